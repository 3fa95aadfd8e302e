"""A device in memory, and one that remembers in which order everything was written to it.

The bytes of an image are in anonymous memory of the host (a memfd), and every state that is made
of it is a private mapping of that: it costs only the pages that differ. What a device holds is also
known as a number, its *fingerprint*: the sum over all sectors of a hash of place and contents. It
is kept up to date by every write, so that two states can be recognised as equal without reading
them. The *essence* is the same without what means nothing once the journal was replayed: its log.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from appliance.fsimage.device import WritableBuffer
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer

SECTOR: Final = 512
"""What a disk writes whole or not at all."""

_MASK64: Final = (1 << 64) - 1


class Image:
    """The bytes of an image, from which devices are made."""

    def __init__(self, raw: bytes) -> None:
        self.size: Final = len(raw)
        self._fd = os.memfd_create("image")
        os.ftruncate(self._fd, self.size)
        for offset in range(0, self.size, 1 << 16):
            piece = raw[offset : offset + (1 << 16)]
            if piece.count(0) != len(piece):
                os.pwrite(self._fd, piece, offset)

    def mapping(self) -> mmap.mmap:
        """A private copy; what is written there stays there."""
        return mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY)

    def shared(self) -> mmap.mmap:
        """The image itself, to be changed. Private copies made before may or may not see it."""
        return mmap.mmap(self._fd, self.size)

    def close(self) -> None:
        os.close(self._fd)


class MemoryDevice:
    """A BlockDevice whose bytes are `content`; `log` are the sectors that are not its essence."""

    read_only: Final = False

    def __init__(self, content: mmap.mmap, log: frozenset[int] = frozenset()) -> None:
        self.content: Final = content
        self.size: Final = len(content)
        self.fingerprint = 0
        self.essence = 0
        self.log_sectors: Final = log

    def read(self, offset: int, count: int) -> bytes:
        self._check(offset, count)
        return self.content[offset : offset + count]

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        for view in views:
            view[:] = self.read(offset, len(view))
            offset += len(view)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        self.put(offset, b"".join(data))

    def put(self, offset: int, data: bytes) -> None:
        """Write one piece."""
        self._check(offset, len(data))
        first, last = offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR
        self._count(first, last, -1)
        self.content[offset : offset + len(data)] = data
        self._count(first, last, +1)

    def _count(self, first: int, last: int, sign: int) -> None:
        """Take the sectors from `first` to `last` out of the fingerprint, or into it."""
        content, log = self.content, self.log_sectors
        for sector in range(first, last):
            value = sign * hash((sector, content[sector * SECTOR : sector * SECTOR + SECTOR]))
            self.fingerprint = self.fingerprint + value & _MASK64
            if sector not in log:
                self.essence = self.essence + value & _MASK64

    def _check(self, offset: int, count: int) -> None:
        if not 0 <= offset <= offset + count <= self.size:
            raise VfsError(Code.IO, f"{count} bytes at {offset} are outside of the device")

    def flush(self) -> None:
        """Nothing: this is memory."""

    def close(self) -> None:
        """Nothing: who made the mapping keeps it."""


@dataclass(slots=True, frozen=True)
class Write:
    """One write as the host was asked for it."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(slots=True, frozen=True)
class Flush:
    """Everything written before is durable when it returns."""


Event = Write | Flush


@dataclass(slots=True)
class Marks:
    """At which places of the log something was true: pairs of position and value, both growing."""

    positions: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, position: int, value: int) -> None:
        self.positions.append(position)
        self.values.append(value)

    def at(self, position: int) -> int:
        """The last value that holds once the first `position` events have happened."""
        return self.values[bisect_right(self.positions, position) - 1]


class Recording:
    """Everything that was asked of a device, and the marks that the workload has put between it.

    begun: the number of the operation that is, or was last, at work. acknowledged: the number of
    the last one that was promised to be durable. Operation 0 is what was there before.
    """

    def __init__(self, base: bytes, log: list[Event] | None = None) -> None:
        self.base: Final = base
        self.log: Final = [] if log is None else log
        self.begun: Final = Marks([0], [0])
        self.acknowledged: Final = Marks([0], [0])

    def begin(self, operation: int) -> None:
        self.begun.add(len(self.log), operation)

    def acknowledge(self, operation: int) -> None:
        self.acknowledged.add(len(self.log), operation)

    @property
    def written_bytes(self) -> int:
        return sum(len(event.data) for event in self.log if isinstance(event, Write))

    @property
    def flushes(self) -> int:
        return sum(isinstance(event, Flush) for event in self.log)


class RecordingDevice(MemoryDevice):
    """A device that writes into `recording` what it is asked for.

    A sector of which only a part is written is recorded whole, with what was in it: that is what
    the host gives to its disk.
    """

    def __init__(
        self, content: mmap.mmap, recording: Recording, log: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(content, log)
        self.recording: Final = recording

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        joined = b"".join(data)
        self.put(offset, joined)
        first, end = offset // SECTOR * SECTOR, -(-(offset + len(joined)) // SECTOR) * SECTOR
        self.recording.log.append(Write(first, self.content[first:end]))

    def flush(self) -> None:
        self.recording.log.append(Flush())
