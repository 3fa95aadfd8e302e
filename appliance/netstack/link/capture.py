"""A file that tcpdump, tshark and Wireshark read: what passed a link, and when.

The name decides about the format. FILE.pcapng keeps the direction of each frame, what was done to
it on purpose (link/fault.py) as a comment, and super-frames as they are, with their checksum
finished. In any other file (pcap, with nanoseconds) super-frames are cut into the segments that
they become on a wire. A frame whose virtio-net header is nonsense is recorded as it is, for that is
what one would want to see.

Each frame is written at once, so that the capture of a process that was killed is complete. A full
disk ends the capture, not the service. With a size, a file that has become so large is renamed to
FILE.1, that one to FILE.2, and so on, and the oldest is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from struct import Struct
from typing import Final

from appliance.clock import SECOND, Clock, SystemClock
from appliance.limits import CAPTURE_FILE_BYTES_MIN, CAPTURE_FILES_MAX, FRAME_BYTES_MAX
from appliance.netstack.link import pcapng
from appliance.netstack.link.interface import LinkError
from appliance.netstack.link.segmentation import whole_frame, wire_frames
from appliance.netstack.wire import vnet
from appliance.netstack.wire.errors import BadPacket
from appliance.trace import log

_PCAP_HEADER: Final = Struct("=IHHiIII")
_PCAP_MAGIC_NANOSECONDS: Final = 0xA1B23C4D
_PCAP_RECORD: Final = Struct("=IIII")

FILES_DEFAULT: Final = 2


@dataclass(frozen=True)
class CaptureSpec:
    """Which file; and how large it and how many they become."""

    file: Path
    size: int | None = None
    """In bytes; None: as large as it gets."""
    files: int = FILES_DEFAULT

    def __post_init__(self) -> None:
        """ValueError."""
        if self.size is not None and self.size < CAPTURE_FILE_BYTES_MIN:
            raise ValueError(f"a file of a capture has at least {CAPTURE_FILE_BYTES_MIN >> 10}K")
        if not 1 <= self.files <= CAPTURE_FILES_MAX:
            raise ValueError(f"a capture has 1 to {CAPTURE_FILES_MAX} files")


class Capture:
    """One capture. Only one thread at a time may use it."""

    def __init__(self, spec: CaptureSpec, clock: Clock | None = None, name: str = "") -> None:
        """A new file; `name` is that of the interface. LinkError: it cannot be written."""
        self._spec = spec
        self._clock = clock or SystemClock()
        self._is_pcapng = spec.file.suffix == ".pcapng"
        self._head = pcapng_head(name) if self._is_pcapng else pcap_head()
        self._record: Callable[[bytes, bool, bool, str], bytes] = (
            self._as_pcapng if self._is_pcapng else self._as_pcap
        )
        self._written = 0
        try:
            self._out: FileIO | None = self._begin()
        except OSError as error:
            raise LinkError(f"cannot write a capture to {spec.file}: {error.strerror}") from None

    @property
    def is_open(self) -> bool:
        """False: closed, or ended by trouble with the file."""
        return self._out is not None

    def record(
        self,
        frame: bytes,
        *,
        has_vnet_header: bool,
        outgoing: bool,
        comment: str = "",
        sent: bool = True,
    ) -> None:
        """Write one frame. `sent`: it was on the wire; only pcapng, with its comment, has others,
        for in pcap nothing would tell them apart."""
        if self._out is None or not (sent or self._is_pcapng):
            return
        data = self._record(frame, has_vnet_header, outgoing, comment)
        try:
            size = self._spec.size
            if size is not None and self._written + len(data) > size > len(self._head):
                self._turn()
            self._write(self._out, data)
        except OSError as error:
            log.error("capture ended error=%s", error.strerror)
            self.close()

    def close(self) -> None:
        """The end of the file."""
        if self._out is not None:
            with suppress(OSError):
                self._out.close()
            self._out = None

    def _begin(self) -> FileIO:
        out = FileIO(self._spec.file, "w")
        self._written = 0
        try:
            self._write(out, self._head)
        except OSError:
            out.close()
            raise
        return out

    def _write(self, out: FileIO, data: bytes) -> None:
        self._written += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[out.write(rest) or 0 :]

    def _turn(self) -> None:
        """The next file: all others move up by one name."""
        assert self._out is not None, "only a capture that is written grows"
        self._out.close()
        names = [self._spec.file]
        names += [Path(f"{self._spec.file}.{number}") for number in range(1, self._spec.files)]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            with suppress(FileNotFoundError):
                os.replace(newer, older)
        self._out = self._begin()

    # --- formats ------------------------------------------------------------------------

    def _as_pcapng(self, frame: bytes, has_vnet: bool, outgoing: bool, comment: str) -> bytes:
        direction = pcapng.OUTBOUND if outgoing else pcapng.INBOUND
        bare = bare_frame(frame) if has_vnet else frame
        return pcapng.packet(bare, self._clock.wall(), direction, comment)

    def _as_pcap(self, frame: bytes, has_vnet: bool, _outgoing: bool, _comment: str) -> bytes:
        seconds, rest = divmod(self._clock.wall(), SECOND)
        bares = as_on_a_wire(frame) if has_vnet else [frame]
        return b"".join(
            _PCAP_RECORD.pack(seconds & 0xFFFFFFFF, rest, len(bare), len(bare)) + bare
            for bare in bares
        )


def pcapng_head(name: str) -> bytes:
    return pcapng.head("rumpnfsd", name, FRAME_BYTES_MAX)


def pcap_head() -> bytes:
    return _PCAP_HEADER.pack(
        _PCAP_MAGIC_NANOSECONDS, 2, 4, 0, 0, FRAME_BYTES_MAX, pcapng.LINKTYPE_ETHERNET
    )


def as_on_a_wire(frame: bytes) -> list[bytes]:
    """The frames that a wire would carry, whatever stands in the virtio-net header."""
    try:
        return list(wire_frames(frame))
    except BadPacket:
        return [frame[vnet.HEADER_BYTES :]]


def bare_frame(frame: bytes) -> bytes:
    """The frame without its virtio-net header, whatever stands there."""
    try:
        return whole_frame(frame)
    except BadPacket:
        return frame[vnet.HEADER_BYTES :]
