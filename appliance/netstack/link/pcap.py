"""A decorator that records what passes a link, in a file that tcpdump, tshark and Wireshark read
(capture.py says what is in it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from appliance.clock import Clock
from appliance.netstack.link.capture import Capture, CaptureSpec
from appliance.netstack.link.interface import ClosableLink

Buffer = bytes | bytearray | memoryview


class PcapLink:
    """`link`, with everything that passes it recorded in a new file."""

    def __init__(
        self,
        link: ClosableLink,
        file: Path | CaptureSpec,
        clock: Clock | None = None,
        name: str = "",
    ) -> None:
        """LinkError: the file cannot be written."""
        self.vnet = link.vnet
        self.mtu = link.mtu
        self._link = link
        spec = file if isinstance(file, CaptureSpec) else CaptureSpec(file)
        self._capture = Capture(spec, clock, name)
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
        if not self._capture.is_open:
            return self._link.send(buffers)
        frame = b"".join(buffers)  # before it is sent: the buffers may change afterwards
        with self._lock:
            # With the lock over both, an answer to this frame cannot be recorded before it.
            sent = self._link.send((frame,))
            if sent:
                self._capture.record(frame, has_vnet_header=self.vnet, outgoing=True)
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
            self._capture.close()

    def _record(self, frame: bytes) -> None:
        with self._lock:
            self._capture.record(frame, has_vnet_header=self.vnet, outgoing=False)
