"""A decorator that records what passes a link, in a file that tcpdump, tshark and Wireshark read.

The capture looks like one from a wire: without virtio-net headers, super-frames cut into segments,
and checksums finished. A frame whose virtio-net header is nonsense is recorded as it is, for that
is what one would want to see. Each frame is written at once, so that the capture of a process that
was killed is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from io import FileIO
from pathlib import Path
from threading import Lock

from dpkt import pcap

from appliance.clock import Clock, SystemClock
from appliance.limits import FRAME_BYTES_MAX
from appliance.netstack.link.interface import ClosableLink, LinkError
from appliance.netstack.link.segmentation import wire_frames
from appliance.netstack.wire import vnet
from appliance.netstack.wire.errors import BadPacket
from appliance.trace import log

Buffer = bytes | bytearray | memoryview

_NANOSECONDS_EXPONENT = -9


class PcapLink:
    """`link`, with everything that passes it recorded in a new file."""

    _writer: pcap.Writer | None

    def __init__(self, link: ClosableLink, file: Path, clock: Clock | None = None) -> None:
        """LinkError: the file cannot be written."""
        self.vnet = link.vnet
        self.mtu = link.mtu
        self._link = link
        self._clock = clock or SystemClock()
        self._file, self._writer = open_capture(file)
        self._lock = Lock()  # one thread reads while another one sends

    def receive(self) -> bytes | None:
        """The link's next frame."""
        frame = self._link.receive()
        if frame:
            self._record(frame)
        return frame

    def receive_now(self) -> bytes | None:
        """The link's next frame, if one is there already."""
        frame = self._link.receive_now()
        if frame is not None:
            self._record(frame)
        return frame

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send a frame over the link. One that it does not take is not recorded."""
        if self._writer is None:
            return self._link.send(buffers)
        frame = b"".join(buffers)  # before it is sent: the buffers may change afterwards
        with self._lock:
            # With the lock over both, an answer to this frame cannot be recorded before it.
            sent = self._link.send((frame,))
            if sent:
                self._write(frame)
        return sent

    def wait(self, timeout_ns: int) -> bool:
        """Whether the link has a frame within the timeout."""
        return self._link.wait(timeout_ns)

    def wake(self) -> None:
        """Let `receive` return."""
        self._link.wake()

    def close(self) -> None:
        """Close the link and the file."""
        self._link.close()
        with self._lock:
            self._writer = None
            self._file.close()

    def _record(self, frame: bytes) -> None:
        with self._lock:
            self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._writer is None:
            return
        # dpkt takes seconds; as a Decimal they are exact to the nanosecond.
        seconds = Decimal(self._clock.wall()).scaleb(_NANOSECONDS_EXPONENT)
        try:
            for wire_frame in as_on_a_wire(frame, self.vnet):
                self._writer.writepkt_time(wire_frame, seconds)
        except OSError as error:
            # A full disk ends the capture, not the service.
            log.error("capture ended error=%s", error.strerror)
            self._writer = None


def open_capture(file: Path) -> tuple[FileIO, pcap.Writer]:
    """A new capture file, with its header."""
    try:
        raw = FileIO(file, "w")
        try:
            return raw, pcap.Writer(raw, snaplen=FRAME_BYTES_MAX, nano=True)
        except OSError:
            raw.close()
            raise
    except OSError as error:
        raise LinkError(f"cannot write a capture to {file}: {error.strerror}") from None


def as_on_a_wire(frame: bytes, has_vnet_header: bool) -> list[bytes]:
    """The frames that a wire would carry, whatever stands in the virtio-net header."""
    if not has_vnet_header:
        return [frame]
    try:
        return list(wire_frames(frame))
    except BadPacket:
        return [frame[vnet.HEADER_BYTES :]]
