"""Blocks and inodes are given and taken back: bitmaps and group descriptors as an operation changes
them.

Everything here has two sides. On disk are the bitmaps and descriptors: an operation has its own
copies of those that it changes, and they are published or forgotten with it. In memory is who may
be given what (FreeSpace, InodeSpace): that changes at once, so that nothing is given twice, and
`undo` takes it back when an operation fails.

A block goes round like this:

    free -- allocate ----------------> in use -- free --> held -- release --> free
      \\-- reserve --> held -- take --/                   (until its transaction is durable)
             \\----- cancel --> free

Groups that were never used are made as the kernel makes them: the first block that is allocated, or
the first inode, makes the block bitmap; the first inode makes the inode bitmap, too. The table of
inodes is used from its beginning, and bg_itable_unused says how much of its end holds nothing that
anybody may read: before an inode there is used, the rest of its block is made zero.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from appliance import image_limits
from appliance.fsimage.ext4 import bits, layout
from appliance.fsimage.ext4.bitmaps import never_used_blocks
from appliance.fsimage.ext4.free_space import FreeSpace
from appliance.fsimage.ext4.groups import (
    Metadata,
    block_bitmap_of,
    directories_of,
    free_blocks_of,
    free_inodes_of,
    inode_bitmap_of,
    unused_inodes_of,
)
from appliance.fsimage.ext4.inode_space import InodeSpace
from appliance.fsimage.ext4.layout import ext4_group_desc
from appliance.fsimage.ext4.volume import Volume, inode_table_of
from appliance.vfs.errors import Code, VfsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.fsimage.ext4.operation import Operation

_MASK16: Final = 0xFFFF


class GroupChange:
    """What an operation changes in one group."""

    __slots__ = (
        "block_bitmap",
        "directories",
        "flags",
        "free_blocks",
        "free_inodes",
        "group",
        "inode_bitmap",
        "unused",
    )

    def __init__(self, group: ext4_group_desc) -> None:
        self.group: Final = group
        """As it is published."""
        self.flags = group.bg_flags
        self.block_bitmap: bytearray | None = None
        self.inode_bitmap: bytearray | None = None
        """The operation's copies, if it changes them."""
        self.free_blocks = 0
        self.free_inodes = 0
        self.directories = 0
        """How many more there are."""
        self.unused = unused_inodes_of(group)
        """What these two become."""

    def apply(self, group: ext4_group_desc) -> None:
        """Bring a descriptor up to date, but for its checksums."""
        group.bg_flags = self.flags
        if self.free_blocks:
            count = free_blocks_of(group) + self.free_blocks
            group.bg_free_blocks_count_lo = count & _MASK16
            group.bg_free_blocks_count_hi = count >> 16
        if self.inode_bitmap is not None:
            count = free_inodes_of(group) + self.free_inodes
            group.bg_free_inodes_count_lo = count & _MASK16
            group.bg_free_inodes_count_hi = count >> 16
            if self.directories:
                count = directories_of(group) + self.directories
                group.bg_used_dirs_count_lo = count & _MASK16
                group.bg_used_dirs_count_hi = count >> 16
            group.bg_itable_unused_lo = self.unused & _MASK16
            group.bg_itable_unused_hi = self.unused >> 16


class Allocator:
    """The blocks and inodes of one volume that is written. Everything under the lock of the file
    system. To make one, VfsError: the descriptors of the groups are damaged, or say what cannot be;
    the file system cannot be written."""

    def __init__(self, volume: Volume) -> None:
        superblock = volume.superblock
        self._volume: Final = volume
        self._has_uninit: Final = volume.has_uninit_groups
        self._blocks_per_group: Final = superblock.disk.s_blocks_per_group
        self._inodes_per_group: Final = superblock.disk.s_inodes_per_group
        self._metadata: Final = Metadata(volume)
        volume.own_blocks = self._metadata
        self._space: Final = FreeSpace(volume, self._metadata)
        self._inodes: Final = InodeSpace(volume, self._space)
        self._spare: Final = min(superblock.blocks_count // 50, image_limits.SPARE_BLOCKS_MAX)
        self.free_blocks, self.free_inodes = volume.free_blocks_and_inodes()
        """Of what is published. Whoever publishes adds what the operation has changed."""
        self.waiting_blocks = 0
        """How many of the free blocks wait for `release`."""

    def available_blocks(self, *, privileged: bool) -> int:
        """How much data may still be written: by root, or by anybody. (Some of it perhaps only
        after a commit.)"""
        count = self._space.available_blocks + self.waiting_blocks - self._spare
        if not privileged:
            count -= self._volume.superblock.reserved_blocks
        return max(0, count)

    def goal_of(self, inode: int) -> int:
        """Where the blocks of an inode should be, as long as it has none: in its group."""
        return self._space.block((inode - 1) // self._inodes_per_group, 0)

    # Data, before it belongs to an operation.

    def reserve(self, goal: int, count: int) -> tuple[int, int]:
        """Blocks to write data to that no file has yet: the first, and how many (1 to `count`),
        near `goal`. NOSPC. Nobody else gets them, until they are taken or cancelled; on disk they
        stay free."""
        count = min(count, self._space.available_blocks - self._spare)
        if count <= 0:
            raise VfsError(Code.NOSPC)
        group, bit, count = self._space.find(goal, count)
        self._space.hold(group, bit, count)
        return self._space.block(group.index, bit), count

    def reserve_next(self, goal: int, count: int, ahead: int) -> int:
        """The same for a file that grows, exactly at `goal`: how many, perhaps 0. It may soon come
        for so many more."""
        room = self._space.available_blocks - self._spare
        if count > room:
            return 0
        return self._space.hold_next(goal, count, ahead)

    def take(self, operation: Operation, first: int, count: int) -> None:
        """Reserved blocks become allocated. If the operation fails, they are still reserved."""
        index, bit = self._space.place(first)
        if bit + count <= self._blocks_per_group:  # nearly always; and then it takes no generator
            self._use(operation, index, bit, count)
            return
        for index, bit, here in self._space.places(first, count):
            self._use(operation, index, bit, here)

    def cancel(self, first: int, count: int) -> None:
        """Reserved blocks are not needed."""
        for place in self._space.places(first, count):
            self._space.let_go(*place)

    def release(self, extents: Iterable[tuple[int, int]]) -> None:
        """What was freed may be used again: the transaction that freed it is durable, and nothing
        that began before reads or writes there any more."""
        for first, count in extents:
            self.cancel(first, count)
            self.waiting_blocks -= count

    # Operations: blocks.

    def begin(self) -> None:
        """An operation begins."""
        self._space.forget_idle()

    def allocate(self, operation: Operation, goal: int, count: int) -> tuple[int, int]:
        """Blocks that nobody has: the first, and how many (1 to `count`), near `goal`. NOSPC."""
        space = self._space
        group, bit, count = space.find(goal, count)
        space.hold(group, bit, count)
        operation.taken.append((group, bit, count))
        self._use(operation, group.index, bit, count)
        return space.block(group.index, bit), count

    def free(self, operation: Operation, first: int, count: int) -> None:
        """Blocks that nobody needs any more. IO, and the operation has failed: they are not in use,
        or belong to the file system itself."""
        if not self._volume.has_blocks(first, count) or self._metadata.is_in(first, count):
            raise self._volume.damaged(
                f"block {first} or one of {count}", "is no file's, but one has freed it"
            )
        for index, bit, here in self._space.places(first, count):
            change = operation.groups.get(index) or self._change(operation, index)
            bitmap = change.block_bitmap or self._block_bitmap(operation, index, change)
            if not bits.clear_range(bitmap, bit, here):
                raise self._volume.distrusted(
                    f"block {self._space.block(index, bit)} or one of {here}",
                    "is free, but was freed again",
                )
            change.free_blocks += here
        operation.free_blocks_change += count

    def _use(self, operation: Operation, index: int, bit: int, count: int) -> None:
        """On disk, blocks become allocated."""
        change = operation.groups.get(index) or self._change(operation, index)
        bitmap = change.block_bitmap or self._block_bitmap(operation, index, change)
        if not bits.set_range(bitmap, bit, count):
            raise self._volume.distrusted(
                f"block {self._space.block(index, bit)} or one of {count}",
                "is in use, but was allocated",
            )
        change.free_blocks -= count
        operation.free_blocks_change -= count

    def _change(self, operation: Operation, index: int) -> GroupChange:
        change = operation.groups[index] = GroupChange(self._volume.group(index))
        return change

    def _block_bitmap(self, operation: Operation, index: int, change: GroupChange) -> bytearray:
        """The operation's copy of a block bitmap; of one that was never made, the first. VfsError:
        it is damaged."""
        self._space.group(index)
        number = block_bitmap_of(change.group)
        if change.flags & layout.BG_BLOCK_UNINIT and self._has_uninit:
            bitmap = operation.new_block(number)
            bitmap[:] = never_used_blocks(self._volume, self._metadata, index)
            change.flags &= ~layout.BG_BLOCK_UNINIT
        else:
            bitmap = operation.change(number)
        change.block_bitmap = bitmap
        return bitmap

    # Operations: inodes.

    def allocate_inode(self, operation: Operation, parent: int, *, directory: bool) -> int:
        """The number of an inode that nobody has, near its directory. NOSPC."""
        while True:
            index = self._inodes.group_for(parent, directory=directory)
            change = operation.groups.get(index) or self._change(operation, index)
            try:
                bitmap = change.inode_bitmap or self._inode_bitmap(operation, index, change)
            except VfsError:  # has been logged; there are other groups, and this one is none now
                self._inodes.leave_out(index)
                continue
            at = self._inodes.take_first(index, bitmap)
            operation.new_numbers.append((index, at))
            self._count_inode(operation, index, change, -1, int(directory))
            used = self._inodes_per_group - change.unused
            number = index * self._inodes_per_group + at + 1
            if at >= used and self._has_uninit:
                change.unused -= self._clean_table(
                    operation, inode_table_of(change.group), at, used
                )
            else:
                self._check_free(operation, number)
            return number

    def _check_free(self, operation: Operation, number: int) -> None:
        """VfsError: an inode that its bitmap has as free still has names."""
        volume = self._volume
        changed = volume.unfinished.inodes.get(number)
        if changed is not None:
            has_names = changed.disk.i_links_count > 0
        else:
            block, offset = volume.inode_location(number)
            at = offset + layout.I_LINKS_COUNT_OFFSET
            has_names = any(operation.block(block)[at : at + 2])
        if has_names:
            raise volume.distrusted(f"inode {number}", "is in use, but free in its bitmap")

    def free_inode(self, operation: Operation, number: int, *, directory: bool) -> None:
        """An inode that nobody needs any more. IO, and the operation has failed: it is not in
        use."""
        index, at = divmod(number - 1, self._inodes_per_group)
        change = operation.groups.get(index) or self._change(operation, index)
        bitmap = change.inode_bitmap or self._inode_bitmap(operation, index, change)
        ordinary = number >= self._volume.superblock.first_inode
        if not ordinary or not bits.clear_range(bitmap, at, 1):
            raise self._volume.distrusted(f"inode {number}", "is free or reserved, but was freed")
        if directory and not self._inodes.directories_in(index):
            raise self._volume.distrusted(f"group descriptor {index}", "has too few directories")
        self._inodes.gave(index, at)
        self._count_inode(operation, index, change, 1, -int(directory))

    def _count_inode(
        self, operation: Operation, index: int, change: GroupChange, free: int, directories: int
    ) -> None:
        self._inodes.count(index, free, directories)
        change.free_inodes += free
        change.directories += directories
        operation.free_inodes_change += free

    def _inode_bitmap(self, operation: Operation, index: int, change: GroupChange) -> bytearray:
        """The operation's copy of an inode bitmap; of one that was never made, the first. A group
        with an inode bitmap has to have a block bitmap. VfsError: one of them is damaged."""
        self._inodes.check(index)
        number = inode_bitmap_of(change.group)
        if self._has_uninit and change.flags & layout.BG_BLOCK_UNINIT:
            self._block_bitmap(operation, index, change)
        if self._has_uninit and change.flags & layout.BG_INODE_UNINIT:
            bitmap = operation.new_block(number)
            behind = self._inodes_per_group >> 3
            bitmap[behind:] = b"\xff" * (len(bitmap) - behind)
            change.flags &= ~layout.BG_INODE_UNINIT
            change.unused = self._inodes_per_group
        else:
            bitmap = operation.change(number)
        change.inode_bitmap = bitmap
        return bitmap

    def _clean_table(self, operation: Operation, table: int, at: int, used: int) -> int:
        """Inode `at` is behind those that were `used` up to now: the rest of its block, in which
        may be anything, becomes inodes that are free. How many more are used then."""
        volume, inode_bytes = self._volume, self._volume.superblock.inode_bytes
        start = at * inode_bytes & -volume.block_bytes
        number = table + (start >> volume.block_bits)
        clean_from = used * inode_bytes - start
        if clean_from <= 0:
            operation.new_block(number)
        else:
            # Not in a copy: what is published may change under the operation, where the inodes
            # before this one are put into the block as a transaction is closed.
            operation.tables.add(number)
            operation.then(partial(self._clean_rest, number, clean_from))
        end = (start + volume.block_bytes) // inode_bytes
        return min(end, self._inodes_per_group) - used

    def _clean_rest(self, number: int, start: int) -> None:
        """The operation is published: from `start` on, this block of the table has inodes that are
        free, one of which it may have taken."""
        volume = self._volume
        before = volume.unwritten.get(number) or volume.unfinished.tables[number]
        volume.publish({number: before[:start].ljust(volume.block_bytes, b"\0")})

    # The end of an operation.

    def freed(self, extents: Iterable[tuple[int, int]]) -> None:
        """An operation that is published has given back these blocks."""
        for _, count in extents:
            self.waiting_blocks += count

    def undo(self, operation: Operation) -> None:
        """The operation has failed: what it allocated is free again; what it took is reserved."""
        for group, bit, count in operation.taken:
            self._space.let_go(group.index, bit, count)
        for index, at in operation.new_numbers:
            self._inodes.gave(index, at)
        for index, change in operation.groups.items():
            self._inodes.count(index, -change.free_inodes, -change.directories)
