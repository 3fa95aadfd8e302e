"""The file of an overlay: what is in it, byte by byte.

An overlay file holds the blocks of an image that were changed, while the image itself is only read.

    0                 header, copy 0          } the valid one with the higher sequence number
    HEADER_BYTES      header, copy 1          } counts; they are written in turn
    2 * HEADER_BYTES  map 0, map 1, ...       MAPS of them, each map_bytes long
    data_offset       slot 1, slot 2, ...     block_bytes each

A map has 4 bytes for each block of the image: 0, the block is as in the image; otherwise the number
of the slot that has it. The header says which map is the present state, and which are snapshots.
The other maps and slots are free. A new file is a header, and holes; the first header of all says
that it is being made.

All numbers are little-endian. What the order of writes guarantees is in overlay_file.py.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import zlib
from array import array
from dataclasses import dataclass, field, replace
from enum import IntEnum
from struct import Struct
from typing import Final

from appliance import image_limits
from appliance.clock import SECOND
from appliance.fsimage.device import BlockDevice
from appliance.fsimage.errors import ImageError
from appliance.vfs.interface import Buffer

MAGIC: Final = b"rumpovl\0"
VERSION: Final = 1
HEADER_BYTES: Final = 8192
MAPS: Final = image_limits.SNAPSHOTS_MAX + 2
"""The present state, the snapshots, and one to write the next present state into."""
MAP_PAGE_BYTES: Final = 4096
"""Maps are written in such pieces, and are a multiple of it long."""
MAP_ENTRY_BYTES: Final = 4
SEQUENCE_WHILE_MADE: Final = 1

_BLOCK_BITS_MIN: Final = 12
_BLOCK_BITS_MAX: Final = 30
_DIGESTED_BYTES: Final = 64 * 1024
_DIGEST_BYTES: Final = 32

_HEAD: Final = Struct("<8sIIQQQ32sIII")
"""Magic, version, log2 of block_bytes, sequence; size, modification time and digest of the image;
how far it is merged; the number of the present map, and of snapshots."""
_SNAPSHOT: Final = Struct(f"<{image_limits.SNAPSHOT_NAME_BYTES_MAX}sIQQ")
"""Name, number of its map, when it was made, changed blocks."""
_CHECKSUM: Final = Struct("<I")
"""CRC-32 of everything before it, in the last bytes of the header."""

assert _HEAD.size + image_limits.SNAPSHOTS_MAX * _SNAPSHOT.size + _CHECKSUM.size <= HEADER_BYTES


class MergeStage(IntEnum):
    """How far an overlay is merged into its image (merging.py)."""

    NOT_BEGUN = 0
    UNMARKED = 1
    """Blocks of the image are being changed, and its file systems, if it has any that are known
    here, say nothing about it."""
    MARKING = 2
    """Nothing of the image is changed but for marks in its file systems."""
    MARKED = 3
    """Blocks are being changed. A file system that has no mark any more is finished."""


@dataclass(frozen=True, slots=True)
class Base:
    """Which image an overlay belongs to: how large it is, when it was last changed, and its first
    bytes, where the partition table or the superblock with its UUID and mount times is."""

    size: int
    modified_ns: int
    digest: bytes

    @classmethod
    def of(cls, device: BlockDevice, path: str) -> Base:
        """The identity of the image at `path`, which is open as `device`."""
        status = os.stat(path)
        start = device.read(0, min(_DIGESTED_BYTES, device.size))
        return cls(
            device.size,
            # Of a block device the time is that of its name in /dev, which means nothing.
            status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0,
            hashlib.blake2b(start, digest_size=_DIGEST_BYTES).digest(),
        )

    def owner(self, length: int) -> bytes:
        """What the marks of a merge into this image say, in so many bytes."""
        said = b"%d %d %s" % (self.size, self.modified_ns, self.digest)
        return hashlib.blake2b(said, digest_size=length).digest()

    def difference(self, other: Base) -> str:
        """How `other`, what is there, differs from this one; "" if it does not."""
        if self.size != other.size:
            return f"that one has {self.size} bytes, this one {other.size}"
        if self.digest != other.digest:
            return "they begin differently"
        if self.modified_ns != other.modified_ns:
            return "it was written to (or copied without its time) since"
        return ""

    def remedy(self, other: Base, path: str) -> str:
        """What can be done about the difference of `other`, which is at `path`."""
        if replace(other, modified_ns=self.modified_ns) != self:
            return "changes above another image are garbage; use that image, or another overlay"
        seconds, nanoseconds = divmod(self.modified_ns, SECOND)
        return (
            "what was written to it would be garbage above the changes; if nothing was, give it its"
            f" time again: touch -d @{seconds}.{nanoseconds:09} {path}"
        )


@dataclass(frozen=True, slots=True)
class KeptMap:
    """A snapshot."""

    name: str
    map: int
    created_ns: int
    changed_blocks: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked."""

    block_bits: int
    base: Base
    sequence: int = 0
    stage: MergeStage = MergeStage.NOT_BEGUN
    present: int = 0
    snapshots: tuple[KeptMap, ...] = field(default=())

    @classmethod
    def new(cls, base: Base) -> Header:
        """That of an empty overlay."""
        bits = _BLOCK_BITS_MIN
        while (base.size >> bits) * MAP_ENTRY_BYTES >= image_limits.OVERLAY_MAP_BYTES_MAX:
            bits += 1
        return cls(bits, base)

    def next(self, **changes: object) -> Header:
        """The header that follows this one."""
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]

    @property
    def blocks(self) -> int:
        """Blocks of the image, the last one perhaps in part."""
        return self.base.size + (1 << self.block_bits) - 1 >> self.block_bits

    @property
    def map_bytes(self) -> int:
        return _round_up(self.blocks * MAP_ENTRY_BYTES, MAP_PAGE_BYTES)

    @property
    def data_offset(self) -> int:
        return _round_up(2 * HEADER_BYTES + MAPS * self.map_bytes, 1 << self.block_bits)

    def map_offset(self, number: int) -> int:
        return 2 * HEADER_BYTES + number * self.map_bytes

    def slot_offset(self, slot: int) -> int:
        return self.data_offset + (slot - 1 << self.block_bits)

    def free_map(self) -> int:
        """A map that holds no state."""
        used = {self.present, *(kept.map for kept in self.snapshots)}
        return next(number for number in range(MAPS) if number not in used)

    # --- bytes ----------------------------------------------------------------------------

    def encode(self) -> tuple[int, bytes]:
        """Where it belongs in the file, and its bytes."""
        base = self.base
        raw = _HEAD.pack(
            MAGIC, VERSION, self.block_bits, self.sequence, base.size, base.modified_ns,
            base.digest, self.stage, self.present, len(self.snapshots),
        )  # fmt: skip
        for kept in self.snapshots:
            raw += _SNAPSHOT.pack(
                kept.name.encode(), kept.map, kept.created_ns, kept.changed_blocks
            )
        raw = raw.ljust(HEADER_BYTES - _CHECKSUM.size, b"\0")
        return (self.sequence & 1) * HEADER_BYTES, raw + _CHECKSUM.pack(zlib.crc32(raw))

    @classmethod
    def decode(cls, raw: bytes) -> Header | None:
        """The header in these bytes; None if it is torn, or never was one. ImageError: one that is
        whole, but not for us."""
        [checksum] = _CHECKSUM.unpack(raw[-_CHECKSUM.size :])
        if not raw.startswith(MAGIC) or zlib.crc32(raw[: -_CHECKSUM.size]) != checksum:
            return None
        _, version, bits, sequence, size, modified, digest, stage, present, count = (
            _HEAD.unpack_from(raw)
        )
        if version != VERSION:
            raise ImageError(f"an overlay of version {version}, of which only {VERSION} is known")
        if count > image_limits.SNAPSHOTS_MAX or not _BLOCK_BITS_MIN <= bits <= _BLOCK_BITS_MAX:
            return None
        if stage > max(MergeStage):
            return None
        at = [_HEAD.size + index * _SNAPSHOT.size for index in range(count)]
        kept = tuple(_snapshot(*_SNAPSHOT.unpack_from(raw, offset)) for offset in at)
        header = cls(bits, Base(size, modified, digest), sequence, MergeStage(stage), present, kept)
        return header if header._is_possible() else None

    def _is_possible(self) -> bool:
        """Whether it has room in memory, and no map has two meanings."""
        maps = [self.present, *(kept.map for kept in self.snapshots)]
        return (
            self.map_bytes <= image_limits.OVERLAY_MAP_BYTES_MAX
            and len(set(maps)) == len(maps)
            and max(maps) < MAPS
        )


def _snapshot(name: bytes, number: int, created_ns: int, changed: int) -> KeptMap:
    return KeptMap(name.rstrip(b"\0").decode("utf-8", "replace"), number, created_ns, changed)


def read_header(device: BlockDevice) -> Header | None:
    """The header that counts; None if nothing was ever written but the beginning. ImageError: this
    is no overlay."""
    raw = device.read(0, min(2 * HEADER_BYTES, device.size)).ljust(2 * HEADER_BYTES, b"\0")
    if device.size <= 2 * HEADER_BYTES and _never_made(raw):
        return None
    found = [Header.decode(raw[:HEADER_BYTES]), Header.decode(raw[HEADER_BYTES:])]
    valid = [header for header in found if header is not None]
    if not valid:
        raise ImageError("not an overlay, or damaged", "name a file that does not exist yet")
    header = max(valid, key=lambda header: header.sequence)
    return None if header.sequence == SEQUENCE_WHILE_MADE else header


def _never_made(raw: bytes) -> bool:
    """Whether a file that is no longer than this is empty, or was left when the first header was
    being written."""
    second = raw[HEADER_BYTES : -_CHECKSUM.size]
    return not raw[:HEADER_BYTES].strip(b"\0") and (
        second.startswith(MAGIC) or not second.strip(b"\0")
    )


def slots_of(raw: Buffer, count: int) -> array[int]:
    """The numbers in a map."""
    slots = array("I")
    assert slots.itemsize == MAP_ENTRY_BYTES
    slots.frombytes(memoryview(raw)[: count * MAP_ENTRY_BYTES])
    if sys.byteorder == "big":
        slots.byteswap()
    return slots


def bytes_of_slots(slots: array[int]) -> bytes:
    """The bytes of (a part of) a map."""
    if sys.byteorder == "big":
        slots = slots[:]
        slots.byteswap()
    return slots.tobytes()


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit
