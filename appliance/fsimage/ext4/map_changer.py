"""Changing where the blocks of a file are: what both kinds of maps have in common.

A MapChanger belongs to one inode within one operation, sees the map as that operation has made it,
and counts in i_blocks whatever it adds and takes away. Any number of them may be made, one after
the other, for the same inode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.extents import BlockMaps, Extent, Leaf
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType

REVOKED_PER_EXTENT: Final = 64
"""So many blocks that are metadata count as much as an extent, when they are freed: each of them is
revoked by its number, and what an operation revokes has to fit into the journal, too."""


def replaced(extents: list[Extent], part: Extent) -> list[Extent]:
    """What becomes of `extents` if `part` is what its blocks are; physical 0: there is nothing.
    What is contiguous is one extent, as far as the length of one goes. An extent that stays as it
    was is the same object."""
    if not extents:
        return [part] if part.physical else []
    first, end = part.logical, part.logical + part.count
    last = extents[-1]
    if len(extents) == 1 and last.logical + last.count == first and part.physical:
        count = last.count + part.count  # as a file grows
        if part.continues(last) and count <= extent_blocks_max(part.written):
            return [Extent(last.logical, count, last.physical, part.written)]
        return [last, part]
    pieces = [
        each if each.end <= first else each.part(each.logical, first)
        for each in extents
        if each.logical < first
    ]
    if part.physical:
        pieces.append(part)
    pieces += [
        each if each.logical >= end else each.part(end, each.end)
        for each in extents
        if each.end > end
    ]
    joined = pieces[:1]
    for extent in pieces[1:]:
        last = joined[-1]
        count = last.count + extent.count
        if extent.continues(last) and count <= extent_blocks_max(last.written):
            joined[-1] = Extent(last.logical, count, last.physical, last.written)
        else:
            joined.append(extent)
    return joined


def splice_of(leaf: Leaf, part: Extent) -> Splice:
    """What changes in a leaf if `part` is what its blocks are."""
    start, stop = bisect_left(leaf.starts, part.logical), bisect_right(leaf.starts, part.end)
    while start and leaf.extents[start - 1].end >= part.logical:
        start -= 1
    return start, stop, replaced(leaf.extents[start:stop], part)


def extent_blocks_max(written: bool) -> int:
    """How long an extent can be."""
    return layout.EXTENT_WRITTEN_MAX if written else layout.EXTENT_WRITTEN_MAX - 1


Splice = tuple[int, int, list[Extent]]
"""From where to where the extents of a leaf are replaced, and by what."""

Change = Callable[[Leaf], Splice]
"""Tells what changes in a leaf."""


class MapChanger(ABC):
    """Changes the map of one inode."""

    def __init__(self, maps: BlockMaps, operation: Operation, inode: Inode) -> None:
        self._maps: Final = maps
        self._operation: Final = operation
        self._inode: Final = inode
        self._volume: Final = maps.volume
        self._journaled: Final = inode.disk.i_mode >> 12 != FileType.REGULAR
        """Whether what is in its blocks is metadata, too."""

    @abstractmethod
    def find(self, logical: int) -> Extent:
        """The extent that covers block `logical`, or the hole around it (which may be larger)."""

    @abstractmethod
    def insert(self, logical: int, physical: int, count: int, *, written: bool = True) -> None:
        """Put blocks that were allocated where there was a hole. NOSPC."""

    @abstractmethod
    def convert(self, logical: int, count: int) -> None:
        """What was allocated and unwritten there is written from now on. NOSPC."""

    @abstractmethod
    def remove(self, first: int, end: int, limit: int) -> int:
        """Free the blocks `first` to `end`, from the last one on: about `limit` extents.

        Where that has come to: `first`, if nothing is left.
        """

    def _count(self, blocks: int) -> None:
        """So many more blocks (or fewer) belong to the inode."""
        inodes.add_blocks(self._volume, self._inode, blocks)

    def _allocate(self, goal: int) -> int:
        """A block for the map itself."""
        number, _ = self._operation.allocate(goal, 1)
        self._count(1)
        return number

    def _free(self, first: int, count: int, *, metadata: bool) -> None:
        self._operation.free(first, count, metadata=metadata)
        self._count(-count)

    def _weight(self, extent: Extent) -> int:
        """How many extents to count an extent as, that is freed: every block group that it reaches
        into has a bitmap to be changed; and blocks of metadata have to be revoked."""
        weight = 1 + extent.count // self._volume.superblock.disk.s_blocks_per_group
        return weight + extent.count // REVOKED_PER_EXTENT if self._journaled else weight

    def _note(self, number: int, change: Change) -> None:
        """Block `number` is about to be changed like that: so can be, when it is published, what is
        remembered of it."""
        volume, operation = self._volume, self._operation
        # A second change finds what the first one has remembered, which is of the final block.
        before = None if operation.has_changed(number) else volume.block(number)

        def follow() -> None:
            now = volume.unwritten.get(number)
            if now is None:
                return  # it was freed again
            self._follow(number, before or now, now, change)

        operation.then(follow)

    def _set_root(self, root: bytes, change: Change | None = None) -> None:
        """The same for the root of the map, which is in the inode: this is what it is now."""
        inode = self._inode
        leaf, inode.root = inode.root, None
        inode.disk.i_block = root
        if change is not None and isinstance(leaf, Leaf):
            inode.root = leaf.spliced(*change(leaf), root)

    def _follow(self, number: int, before: bytes, now: bytes, change: Change) -> None:
        """Of `number`, which was `before` and is `now`, remember the difference."""
        pieces, key = self._maps.pieces, (self._inode.number, number)
        leaf = pieces.get(key)
        if isinstance(leaf, Leaf) and leaf.raw == before:
            pieces.put(key, leaf.spliced(*change(leaf), now))

    def _damaged(self, how: str) -> VfsError:
        return self._volume.damaged(f"inode {self._inode.number}", how)
