"""Which blocks may be given to somebody.

A block that is free on disk need not be: it may have been freed by a transaction that is not
durable yet (after a crash, the file that had it has it again), or somebody may have it reserved for
data that is on its way to the disk. So there are two bitmaps of a group: the one on disk, and the
one here, `held`, of all blocks that nobody may be given.

How blocks are searched. Near the goal first, then in the groups behind it, and always for a long
run before a short one is taken: runs have *orders*, order n being 2**(n-1) blocks. `best` has of
every group the highest order that there may be, which sinks when a search finds nothing and rises
when blocks come back. So a disk that is nearly full is not searched again and again.

A file that grows finds room *kept ahead* of it: blocks behind its last one that are held, but still
count as available. So a search is made once for many writes, and files that grow side by side do
not get into each other's way. Room is kept at a few places at a time, by nobody in particular and
nowhere but here: whoever comes to its first block has it, and the search that finds nothing else
gives it up.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import bits
from appliance.fsimage.ext4.bitmaps import used_blocks
from appliance.fsimage.ext4.groups import Metadata, free_blocks_of
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError

_find_at_least: Final = [
    re.compile(b"[\\x%02x-\\xff]" % order).search for order in range(bits.ORDER_MAX + 1)
]
"""The next group with a best order of at least this."""

_KEPT_PLACES_MAX: Final = 16
_KEPT_BLOCKS_MAX: Final = 2048
_KEPT_SHARE: Final = 64
"""Room is kept at so many places, and at each so many blocks, or this share of what is available:
at most a quarter of it in all."""

Place = tuple[int, int, int]
"""A group, the first block in it, and how many."""


class HeldBlocks:
    """Of one group, the blocks that nobody may be given."""

    __slots__ = ("bitmap", "index", "low")

    def __init__(self, index: int, bitmap: bytearray) -> None:
        self.index: Final = index
        self.bitmap: Final = bitmap
        self.low = 0
        """Before this byte, there is nothing to be found."""


class FreeSpace:
    """The blocks of a volume that nobody has. Everything under the lock of the file system."""

    def __init__(self, volume: Volume, metadata: Metadata) -> None:
        superblock = volume.superblock
        self._volume: Final = volume
        self._metadata: Final = metadata
        self._first_block: Final = superblock.disk.s_first_data_block
        self._per_group: Final = superblock.disk.s_blocks_per_group
        self._groups_count: Final = superblock.groups_count
        self._groups: Final[dict[int, HeldBlocks]] = {}
        self._groups_max = image_limits.BLOCK_BITMAPS_MAX
        self._damaged: Final[set[int]] = set()
        counts = [free_blocks_of(volume.group(index)) for index in range(self._groups_count)]
        self.available: Final = array("I", counts)
        """How many blocks of each group may be given to somebody."""
        self._best: Final = bytearray(min(n.bit_length(), bits.ORDER_MAX) for n in counts)
        self.available_blocks = sum(counts)
        self._kept: Final[dict[int, int]] = {}
        """Room kept ahead: the first block, and how many."""

    # Groups.

    def place(self, number: int) -> tuple[int, int]:
        """Group of a block, and its place in it."""
        return divmod(number - self._first_block, self._per_group)

    def places(self, first: int, count: int) -> Iterator[Place]:
        """A range of blocks, cut where groups end."""
        index, bit = divmod(first - self._first_block, self._per_group)
        while count > 0:
            here = min(count, self._per_group - bit)
            yield index, bit, here
            index, bit, count = index + 1, 0, count - here

    def block(self, index: int, bit: int) -> int:
        """The number of a block."""
        return self._first_block + index * self._per_group + bit

    def group(self, index: int) -> HeldBlocks:
        """What is held in a group. VfsError: its bitmap is damaged; from then on nothing there is
        given to anybody."""
        group = self._groups.get(index)
        if group is None:
            if index in self._damaged:
                raise VfsError(Code.IO, f"the block bitmap of group {index} is damaged")
            try:
                used = used_blocks(self._volume, self._metadata, index)
            except VfsError:
                self._damaged.add(index)
                self.available_blocks -= self.available[index]
                self.available[index] = self._best[index] = 0
                raise
            group = self._groups[index] = HeldBlocks(index, used)
        return group

    def forget_idle(self) -> None:
        """Called between operations. Of groups in which as much is available as is free on disk,
        the bitmap on disk says it all."""
        if len(self._groups) <= self._groups_max:
            return
        self._give_up_kept()
        for index in list(self._groups):
            if self.available[index] == free_blocks_of(self._volume.group(index)):
                del self._groups[index]
        self._groups_max = max(image_limits.BLOCK_BITMAPS_MAX, 2 * len(self._groups))

    # Searching.

    def find(self, goal: int, count: int) -> tuple[HeldBlocks, int, int]:
        """1 to `count` blocks as near to `goal` as can be: group, first bit, how many. NOSPC."""
        if not self.available_blocks:
            raise VfsError(Code.NOSPC)
        if not self._volume.has_blocks(goal):
            goal = self._first_block
        index, bit = divmod(goal - self._first_block, self._per_group)
        length = self._clear_at(index, bit, count)
        if length:
            return self._groups[index], bit, length
        for order in range(min(count, self._per_group).bit_length(), 0, -1):
            for at in self._groups_with(order, index):
                found = self._search(at, order, bit >> 3 if at == index else 0)
                if found >= 0:
                    group = self._groups[at]
                    return group, found, bits.clear_run(group.bitmap, found, count)
        if not self._kept:
            raise VfsError(Code.NOSPC)
        self._give_up_kept()
        return self.find(goal, count)

    def _clear_at(self, index: int, bit: int, count: int) -> int:
        """How many blocks are to be had just there."""
        if not self.available[index]:
            return 0
        try:
            return bits.clear_run(self.group(index).bitmap, bit, count)
        except VfsError:
            return 0

    def _groups_with(self, order: int, first: int) -> Iterator[int]:
        """The groups that may have a run of this order, from `first` on."""
        search = _find_at_least[order]
        for low, high in ((first, self._groups_count), (0, first)):
            found = search(self._best, low, high)
            while found is not None:
                yield found.start()
                found = search(self._best, found.start() + 1, high)

    def _search(self, index: int, order: int, start: int) -> int:
        """The first bit of a run of this order, if possible from byte `start` on; -1: none."""
        try:
            group = self.group(index)
        except VfsError:  # has been logged; there are other groups
            return -1
        bitmap, low = group.bitmap, group.low
        find = bits.find_run[order - 1]
        found = find(bitmap, max(start, low))
        if found < 0 and start > low:
            start, found = low, find(bitmap, low)
        if found < 0:
            self._best[index] = order - 1
        elif order == 1 and start <= low:
            group.low = found >> 3
        return found

    # Growing.

    def hold_next(self, goal: int, count: int, ahead: int) -> int:
        """Hold for a file that grows what is to be had of `count` blocks exactly at `goal`: how
        many, perhaps 0. Some `ahead` of them are kept."""
        kept = self._kept.pop(goal, 0)
        if kept < count:
            self._let_be_found(goal, kept)
            self._give_up_kept_around(goal)
            kept = self._keep(goal, count, ahead)
            if kept < count:
                count = kept
        if kept > count:
            self._kept[goal + count] = kept - count
        if count:
            index = (goal - self._first_block) // self._per_group
            self.available[index] -= count
            self.available_blocks -= count
        return count

    def _keep(self, goal: int, count: int, ahead: int) -> int:
        """How many blocks from `goal` on are nobody's, at most these; nobody finds them any
        more."""
        if not self._volume.has_blocks(goal):
            return 0
        count += min(ahead, _KEPT_BLOCKS_MAX, self.available_blocks // _KEPT_SHARE)
        index, bit = divmod(goal - self._first_block, self._per_group)
        count = self._clear_at(index, bit, count)
        if count:
            bits.set_range(self._groups[index].bitmap, bit, count)
            if len(self._kept) >= _KEPT_PLACES_MAX:
                oldest = next(iter(self._kept))
                self._let_be_found(oldest, self._kept.pop(oldest))
        return count

    def _let_be_found(self, first: int, count: int) -> None:
        """Room is not kept any more."""
        if count:
            index, bit = self.place(first)
            self._clear(index, bit, count)

    def _give_up_kept_around(self, goal: int) -> None:
        """A file that grows with holes goes on behind the first block that is kept for it."""
        for first, count in self._kept.items():
            if first < goal < first + count:
                self._let_be_found(first, self._kept.pop(first))
                return

    def _give_up_kept(self) -> None:
        for first, count in self._kept.items():
            self._let_be_found(first, count)
        self._kept.clear()

    # Holding.

    def hold(self, group: HeldBlocks, bit: int, count: int) -> None:
        """From now on somebody has these."""
        if count == 1:
            group.bitmap[bit >> 3] |= 1 << (bit & 7)
        else:
            bits.set_range(group.bitmap, bit, count)
        index = group.index
        left = self.available[index] = self.available[index] - count
        self.available_blocks -= count
        if left.bit_length() < self._best[index]:
            self._best[index] = left.bit_length()

    def let_go(self, index: int, bit: int, count: int) -> None:
        """Nobody has these any more."""
        self.available[index] += count
        self.available_blocks += count
        self._clear(index, bit, count)

    def _clear(self, index: int, bit: int, count: int) -> None:
        """From now on these are found."""
        group = self._groups[index]
        were_held = bits.clear_range(group.bitmap, bit, count)
        assert were_held, f"block {self.block(index, bit)} was nobody's"
        group.low = min(group.low, bit >> 3)
        left = self.available[index]
        # What joins its neighbours on both sides makes a run of at most:
        longest = count + (2 << self._best[index]) - 2
        self._best[index] = min(left.bit_length(), longest.bit_length(), bits.ORDER_MAX)
