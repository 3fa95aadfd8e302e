"""One block of directory entries, and room in it (kernel document: "Linear Directories").

Records follow each other without a gap up to the end of the block, or up to its tail, where the
checksum is. A record is longer than its name needs where something has gone; a record for inode 0
is free as a whole. So there are no moves: an entry is put into the rest of a record, and what goes
becomes a part of the record before it.

    0         12         24              44                     60
    | .       | ..       | name........  | another.  (16 free)  | ...
                                                    ^ a new entry of up to 16 bytes
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from typing import Final

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.layout import ext4_dir_entry_2, ext4_dir_entry_tail
from appliance.fsimage.ext4.volume import LateSeal, Volume

HEAD: Final = ext4_dir_entry_2.SIZE
RECORD_BYTES_MIN: Final = 12
"""The length of a record with the shortest name."""

_BYTES_IN_REC_LEN_MAX: Final = 1 << 16
"""With blocks of this size a length does not fit into rec_len: 0 and 65535 stand for it."""

_pack_head = ext4_dir_entry_2.STRUCT.pack_into
_unpack_head = ext4_dir_entry_2.STRUCT.unpack_from
_pack_length = struct.Struct("<H").pack_into
_tail = ext4_dir_entry_tail.STRUCT.pack


def rec_len_from_disk(rec_len: int, block_bytes: int) -> int:
    """The length that rec_len means."""
    if block_bytes < _BYTES_IN_REC_LEN_MAX:
        return rec_len
    if rec_len in (0, 0xFFFF):
        return block_bytes
    return rec_len & 0xFFFC | (rec_len & 3) << 16


def rec_len_to_disk(length: int) -> int:
    """A length, as rec_len."""
    return length if length < _BYTES_IN_REC_LEN_MAX else 0xFFFF


def bytes_needed(name_bytes: int) -> int:
    """The length of a record for a name of this length."""
    return name_bytes + HEAD + 3 & ~3


def seal_of(volume: Volume, seed: int) -> LateSeal | None:
    """The seal of a block of entries."""
    return partial(_sealed, seed) if volume.has_metadata_csum else None


def _sealed(seed: int, block: bytes) -> bytes:
    """The block with a tail that has the checksum of everything before it."""
    covered = block[: -ext4_dir_entry_tail.SIZE]
    checksum = crc32c(seed, covered)
    return covered + _tail(0, ext4_dir_entry_tail.SIZE, 0, layout.DIR_TAIL_FILE_TYPE, checksum)


class Room:
    """Where the records of a block begin, and after which of them something fits."""

    __slots__ = ("end", "free", "starts")

    def __init__(self, end: int, starts: array[int], free: dict[int, int]) -> None:
        self.end = end
        self.starts = starts
        self.free = free
        """From the beginning of a record, how much longer it is than it has to be; only where
        that is enough for another record."""

    @classmethod
    def of(cls, end: int, records: Iterable[tuple[int, int, int]]) -> Room:
        """`records`: where each begins, its length, and how much of that it needs."""
        starts, free = array("H"), {}
        for at, length, used in records:
            starts.append(at)
            if length - used >= RECORD_BYTES_MIN:
                free[at] = length - used
        return cls(end, starts, free)

    def weight(self) -> int:
        """About how many bytes it takes in memory."""
        return 300 + 2 * len(self.starts) + 100 * len(self.free)

    def copy(self) -> Room:
        return Room(self.end, self.starts[:], dict(self.free))

    def find(self, needed: int) -> int:
        """The record after which (or, if it is empty, in which) so many bytes fit; -1: none."""
        for at, free in self.free.items():
            if free >= needed:
                return at
        return -1

    def end_of(self, index: int) -> int:
        """Where the record ends that is the `index`-th."""
        index += 1
        return self.starts[index] if index < len(self.starts) else self.end


def find_name(raw: bytes | bytearray, room: Room, name: bytes, has_file_type: bool) -> int:
    """Where the entry of `name` is in a block; -1: it is not there. What a removed entry may have
    left behind is none."""
    starts = room.starts
    at = raw.find(name, HEAD) - HEAD
    while at >= 0:
        index = bisect_left(starts, at)
        if index < len(starts) and starts[index] == at:
            inode, _, low, high = _unpack_head(raw, at)
            if inode and len(name) == (low if has_file_type else low | high << 8):
                return at
        at = raw.find(name, at + HEAD + 1) - HEAD
    return -1


class DirectoryBlock:
    """A block that an operation changes, with the Room in it."""

    __slots__ = ("has_file_type", "raw", "room")

    def __init__(self, raw: bytearray, room: Room, has_file_type: bool) -> None:
        self.raw = raw
        self.room = room
        self.has_file_type = has_file_type

    def _used(self, at: int) -> int:
        """How much of its record an entry needs."""
        inode, _, low, high = _unpack_head(self.raw, at)
        if not inode:
            return 0
        return bytes_needed(low if self.has_file_type else low | high << 8)

    def _set_length(self, at: int, length: int) -> None:
        _pack_length(self.raw, at + 4, rec_len_to_disk(length))

    def put(self, at: int, name: bytes, inode: int, file_type: int) -> int:
        """Put an entry in or after the record at `at`, where there is room: where it is now."""
        room, raw = self.room, self.raw
        free = room.free.pop(at)
        index = bisect_left(room.starts, at)
        end = room.end_of(index)
        begin = end - free
        if begin != at:
            _pack_length(raw, at + 4, begin - at)  # shorter than any block: it fits into rec_len
            room.starts.insert(index + 1, begin)
        if not self.has_file_type:
            file_type = 0
        _pack_head(raw, begin, inode, rec_len_to_disk(free), len(name), file_type)
        raw[begin + HEAD : begin + HEAD + len(name)] = name
        free -= bytes_needed(len(name))
        if free >= RECORD_BYTES_MIN:
            room.free[begin] = free
        return begin

    def remove(self, at: int) -> None:
        """Take away the entry at `at`. Nothing of its name is left behind."""
        room, raw = self.room, self.raw
        index = bisect_left(room.starts, at)
        end = room.end_of(index)
        room.free.pop(at, None)
        if not index:  # there is none before it that it could become a part of
            raw[at : at + 4] = bytes(4)
            raw[at + 6 : end] = bytes(end - at - 6)
            room.free[at] = end - at
            return
        raw[at:end] = bytes(end - at)
        del room.starts[index]
        before = room.starts[index - 1]
        self._set_length(before, end - before)
        room.free[before] = end - before - self._used(before)

    def replace(self, at: int, inode: int, file_type: int) -> None:
        """Let the entry at `at` mean another inode."""
        self.raw[at : at + 4] = inode.to_bytes(4, "little")
        if self.has_file_type:
            self.raw[at + 7] = file_type

    def find(self, name: bytes) -> int:
        """Where the entry of `name` is; -1: it is not here."""
        return find_name(self.raw, self.room, name, self.has_file_type)

    def entries(self) -> list[tuple[bytes, bytes]]:
        """All entries: name, and a record that is as short as it can be."""
        raw, wide, found = bytes(self.raw), not self.has_file_type, []
        for at in self.room.starts:
            inode, rec_len, low, high = _unpack_head(raw, at)
            if inode:
                length = low | high << 8 if wide else low
                used = length + HEAD + 3 & ~3
                record = raw[at : at + used]
                if rec_len != used:
                    record = record[:4] + used.to_bytes(2, "little") + record[6:]
                found.append((record[HEAD : HEAD + length], record))
        return found

    def fill(self, records: list[bytes]) -> list[int]:
        """Become a block of just these entries: where each of them is."""
        end = self.room.end
        *starts, used = accumulate(map(len, records), initial=0)
        self.raw[:used] = b"".join(records)
        self.raw[used:end] = bytes(end - used)
        last = starts[-1] if starts else 0  # without any, one record that is empty
        self._set_length(last, end - last)
        free = {last: end - used} if end - used >= RECORD_BYTES_MIN else {}
        self.room = Room(end, array("H", starts or [last]), free)
        return starts
