"""Which inodes are free, and in which group a new one should be.

What is used together should be near: a file is in the group of its directory, and its blocks are
near its inode. That needs room in the groups where directories are, so directories are spread
(after Orlov): those in the root, which begin trees that have little to do with each other, each in
another group that is emptier than the average; those below near their parents, unless it is rather
full there.
"""

from __future__ import annotations

from array import array
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import bitmaps, bits, layout
from appliance.fsimage.ext4.free_space import FreeSpace
from appliance.fsimage.ext4.groups import directories_of, free_inodes_of
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError

_NOT_CHECKED: Final = -1


class InodeSpace:
    """The inodes of a volume that nobody has, as numbers within their groups."""

    def __init__(self, volume: Volume, blocks: FreeSpace) -> None:
        self._volume: Final = volume
        self._blocks: Final = blocks
        count = volume.superblock.groups_count
        self._per_group: Final = volume.superblock.disk.s_inodes_per_group
        self._groups_count: Final = count
        groups = [volume.group(index) for index in range(count)]
        self._free: Final = array("I", map(free_inodes_of, groups))
        self._directories: Final = array("I", map(directories_of, groups))
        self._low: Final = array("i", [_NOT_CHECKED]) * count
        """In the bitmap, everything before this is in use."""
        self._has_room: Final = bytearray(map(bool, self._free))
        self._damaged: Final[set[int]] = set()
        self._directories_count = sum(self._directories)
        self._next_top = 0
        self.free_inodes = sum(self._free)

    def check(self, index: int) -> None:
        """VfsError: the inode bitmap of this group cannot be used."""
        if self._low[index] != _NOT_CHECKED:
            return
        if index in self._damaged:
            raise VfsError(Code.IO, f"the inode bitmap of group {index} is damaged")
        try:
            bitmaps.check_inodes(self._volume, index)
        except VfsError:
            self.leave_out(index)
            raise
        self._low[index] = 0

    def leave_out(self, index: int) -> None:
        """No inode of this group is given to anybody."""
        self._damaged.add(index)
        self._low[index] = _NOT_CHECKED
        self._has_room[index] = 0

    def take_first(self, index: int, bitmap: bytearray) -> int:
        """Take the first inode that is free in the bitmap of a group that has some."""
        at = bits.find_clear(bitmap, self._low[index] >> 3)
        bitmap[at >> 3] |= 1 << (at & 7)
        self._low[index] = at + 1
        return at

    def gave(self, index: int, at: int) -> None:
        """This one is free now."""
        self._low[index] = min(self._low[index], at)

    def count(self, index: int, free: int, directories: int) -> None:
        """So many more are free in this group, and are directories."""
        left = self._free[index] = self._free[index] + free
        if directories:
            self._directories[index] += directories
            self._directories_count += directories
        self.free_inodes += free
        self._has_room[index] = left > 0 and index not in self._damaged

    def directories_in(self, index: int) -> int:
        """How many there are in a group."""
        return self._directories[index]

    # Which group.

    def group_for(self, parent: int, *, directory: bool) -> int:
        """The best group for an inode. NOSPC: none has one that is free."""
        near = (parent - 1) // self._per_group
        if directory:
            good = self._for_directory(near, top=parent == layout.EXT4_ROOT_INO)
            if good is not None:
                return good
        at = self._has_room.find(1, near)
        if at < 0:
            at = self._has_room.find(1)
        if at < 0:
            raise VfsError(Code.NOSPC)
        return at

    def _for_directory(self, near: int, *, top: bool) -> int | None:
        """A good group for a directory; None: any will have to do."""
        groups = self._groups_count
        inodes = self.free_inodes // groups
        blocks = self._blocks.available_blocks // groups
        directories = self._directories_count // groups
        if top:
            start = self._next_top
        else:
            start = near
            inodes -= self._per_group >> 2
            blocks -= self._volume.superblock.disk.s_blocks_per_group >> 2
            directories += self._per_group >> 4
        for step in range(min(groups, image_limits.DIRECTORY_GROUPS_TRIED_MAX)):
            index = (start + step) % groups
            if (
                self._has_room[index]
                and self._free[index] >= inodes
                and self._blocks.available[index] >= blocks
                and self._directories[index] <= directories
            ):
                if top:
                    self._next_top = index + 1
                return index
        return None
