"""Changing the block map of an ext2 or ext3 file (kernel document: "Direct/Indirect Block
Addressing"): twelve block numbers in the inode, and three trees of blocks full of block numbers.

A number of 0 is a hole, of whatever size the tree below it would have. A *table* is the inode or
one of those blocks; what has nothing but zeros is not kept. There is nothing unwritten here.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final

from appliance.fsimage.ext4.extents import DIRECT_BLOCKS, ROOT, BlockMaps, Extent, IndirectBlocks
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.map_changer import MapChanger, splice_of
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError

_NUMBER: Final = 4
_LEVELS_MAX: Final = 3
_MASK32: Final = 0xFFFF_FFFF


class IndirectChanger(MapChanger):
    """Changes the map of one inode."""

    def __init__(self, maps: BlockMaps, operation: Operation, inode: Inode) -> None:
        super().__init__(maps, operation, inode)
        self._reader: Final = IndirectBlocks(maps, inode)
        self._bits: Final = maps.volume.block_bits - 2  # of the numbers in one block
        self._mask: Final = (1 << self._bits) - 1
        self._limit = 0  # what `remove` may still free
        self._end = 0  # from where on it has freed everything

    # Tables.

    def _table(self, table: int) -> bytes | bytearray:
        """All of a table, as this operation sees it."""
        if table == ROOT:
            return self._inode.disk.i_block
        if self._operation.has_changed(table):
            return self._operation.block(table)
        return self._reader.block(table)

    def _size(self, table: int) -> int:
        """How many numbers of blocks of the file are in one."""
        return 1 << self._bits if table else DIRECT_BLOCKS

    def _numbers(self, table: int, start: int, stop: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{stop - start}I", self._table(table), _NUMBER * start)

    def _number(self, table: int, at: int) -> int:
        return self._numbers(table, at, at + 1)[0]

    def _write(self, table: int, at: int, numbers: bytes, part: Extent | None = None) -> None:
        """Replace some numbers in a table; if they are those of blocks of the file, `part` is what
        becomes of it."""
        change = None if part is None else partial(splice_of, part=part)
        at *= _NUMBER
        if table == ROOT:
            before = self._inode.disk.i_block
            self._set_root(before[:at] + numbers + before[at + len(numbers) :], change)
            return
        if change is not None:
            self._note(table, change)
        self._operation.change(table)[at : at + len(numbers)] = numbers

    # Looking.

    def _tree(self, logical: int) -> tuple[int, int]:
        """How many levels of blocks are above block `logical`, and the first block that is in the
        same tree. FBIG."""
        if logical < DIRECT_BLOCKS:
            return 0, 0
        first = DIRECT_BLOCKS
        for levels in range(1, _LEVELS_MAX + 1):
            end = first + (1 << self._bits * levels)
            if logical < end:
                return levels, first
            first = end
        raise VfsError(Code.FBIG, "more blocks than a file without extents can have")

    def _walk(self, logical: int) -> tuple[int, int, int]:
        """The table and the place in it where the number of block `logical` is; or with how many
        levels are missing below, where that of the topmost missing table would be."""
        levels, first = self._tree(logical)
        table, at = ROOT, DIRECT_BLOCKS - 1 + levels if levels else logical
        while levels:
            number = self._number(table, at)
            if not number:
                break
            levels -= 1
            table, at = number, logical - first >> self._bits * levels & self._mask
        return table, at, levels

    def find(self, logical: int) -> Extent:
        table, at, levels = self._walk(logical)
        if levels:
            span = 1 << self._bits * levels
            return Extent(logical, span - (logical - self._tree(logical)[1] & span - 1), 0)
        numbers = self._numbers(table, at, self._size(table))
        step = 1 if numbers[0] else 0
        count = 1
        while count < len(numbers) and numbers[count] == numbers[0] + step * count:
            count += 1
        return Extent(logical, count, numbers[0])

    # Changing.

    def insert(self, logical: int, physical: int, count: int, *, written: bool = True) -> None:
        assert written, "nothing is unwritten without extents"
        if physical + count > 1 << 32:
            raise VfsError(Code.NOSPC, "the free blocks have numbers that need extents")
        self._count(count)
        while count:
            table, at, levels = self._walk(logical)
            if levels:
                number = self._allocate(table + 1 if table else physical)
                self._operation.new_block(number)
                self._write(table, at, struct.pack("<I", number))
                continue
            some = min(count, self._size(table) - at)
            numbers = struct.pack(f"<{some}I", *range(physical, physical + some))
            self._write(table, at, numbers, Extent(logical, some, physical))
            logical, physical, count = logical + some, physical + some, count - some

    def convert(self, logical: int, count: int) -> None:
        """Nothing is unwritten here."""

    def remove(self, first: int, end: int, limit: int) -> int:
        self._limit, self._end = limit, end
        for levels in range(_LEVELS_MAX, 0, -1):
            base = self._base(levels)
            low, high = max(first, base), min(end, self._base(levels + 1))
            if low < high and self._limit > 0:
                self._remove_tree(ROOT, DIRECT_BLOCKS - 1 + levels, levels, base, low, high)
        high = min(end, DIRECT_BLOCKS)
        if first < high and self._limit > 0:
            self._remove_numbers(ROOT, 0, first, high)
        return self._end if self._limit <= 0 else first

    def _base(self, levels: int) -> int:
        """The first block of the tree that is so many levels deep."""
        return DIRECT_BLOCKS + sum(1 << self._bits * each for each in range(1, levels))

    def _remove_tree(
        self, above: int, place: int, levels: int, base: int, first: int, end: int
    ) -> None:
        """Free what is between `first` and `end` in the tree whose number is in the table `above`
        and whose blocks begin with `base`; also the tree itself, if nothing is left of it."""
        table = self._number(above, place)
        if not table:
            return
        if levels == 1:
            self._remove_numbers(table, base, first, end)
        else:
            shift = self._bits * (levels - 1)
            for at in range(end - 1 - base >> shift, (first - base >> shift) - 1, -1):
                start = base + (at << shift)
                low, high = max(first, start), min(end, start + (1 << shift))
                self._remove_tree(table, at, levels - 1, start, low, high)
                if self._limit <= 0:
                    break
        raw = self._table(table)
        if raw.count(0) == len(raw):
            self._write(above, place, bytes(_NUMBER))
            self._free(table, 1, metadata=True)
            self._limit -= 1

    def _remove_numbers(self, table: int, base: int, first: int, end: int) -> None:
        """Free blocks that a table names, whose first number is that of block `base`."""
        numbers = self._numbers(table, first - base, end - base)
        stop = start = len(numbers)
        while start and self._limit > 0:
            stop = start
            start -= 1
            if not numbers[start]:
                continue
            while start and numbers[start - 1] == numbers[start] - 1 != 0:
                start -= 1
            extent = Extent(first + start, stop - start, numbers[start])
            if not self._volume.has_blocks(extent.physical, extent.count):
                raise self._damaged(f"block {extent.physical}, which cannot be")
            self._free(extent.physical, extent.count, metadata=self._journaled)
            self._limit -= self._weight(extent)
        self._end = first + start
        if any(numbers[start:]):
            gone = Extent(self._end, len(numbers) - start, 0)
            self._write(table, self._end - base, bytes(_NUMBER * gone.count), gone)
