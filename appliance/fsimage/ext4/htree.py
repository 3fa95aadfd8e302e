"""The index of a directory (kernel document: "Hash Tree Directories").

The index is a tree of blocks; what it says is a list, and as a list it is kept here: from each of
`hashes` on, names are in the leaf at the same place of `leaves`. A hash with the lowest bit set
means that names with the hash before it go on in this leaf too; leaves that hang together in that
way are read as one.

Eight bytes on disk become eight bytes in memory, so that an index of any size can be kept.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.hash import TEA, UNSIGNED
from appliance.fsimage.ext4.layout import dx_countlimit, dx_entry, dx_root, dx_tail
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError

HASH_END: Final = 1 << 32

BlockAt = Callable[[int], bytes]
"""Gives a block of the directory by its logical number."""


class Nodes:
    """The blocks of one level of the index: each has the entries of the level below it, or the
    leaves, that begin at its place in `starts`."""

    __slots__ = ("blocks", "starts")

    def __init__(self, blocks: array[int], starts: array[int]) -> None:
        self.blocks = blocks
        self.starts = starts

    def copy(self) -> Nodes:
        return Nodes(self.blocks[:], self.starts[:])

    def node_of(self, at: int) -> int:
        """Which of the blocks has the `at`-th entry."""
        return bisect_right(self.starts, at) - 1


class Index:
    """What the index of one directory says.

    `levels`: the blocks of the index itself, those just above the leaves first; the last is the
    root, alone.
    """

    __slots__ = ("hash_version", "hashes", "leaves", "levels", "parent")

    def __init__(
        self,
        parent: int,
        hash_version: int,
        hashes: array[int],
        leaves: array[int],
        levels: list[Nodes],
    ) -> None:
        self.parent = parent
        self.hash_version = hash_version
        self.hashes = hashes
        self.leaves = leaves
        self.levels = levels

    def copy(self) -> Index:
        """One that can be changed."""
        levels = [nodes.copy() for nodes in self.levels]
        return Index(self.parent, self.hash_version, self.hashes[:], self.leaves[:], levels)

    def leaf_of(self, major: int) -> int:
        """The first leaf that may have names with this major hash."""
        return bisect_right(self.hashes, major) - 1

    def leaves_of(self, major: int) -> array[int]:
        """The leaves that may have names with this major hash: more than one only if there are so
        many that they do not fit into one."""
        hashes = self.hashes
        at = bisect_right(hashes, major)
        end = at
        while end < len(hashes) and hashes[end] == major | 1:
            end += 1
        return self.leaves[at - 1 : end]

    def group_of(self, major: int) -> int:
        """Where the leaves begin that have the names with this major hash."""
        at = self.leaf_of(major)
        while at > 0 and self.hashes[at] & 1:
            at -= 1
        return at

    def group_end(self, at: int) -> int:
        """Where the group of leaves that begins at `at` ends."""
        at += 1
        while at < len(self.hashes) and self.hashes[at] & 1:
            at += 1
        return at

    def hash_at(self, at: int) -> int:
        """The lowest hash in the group of leaves that begins at `at`."""
        return self.hashes[at] if at < len(self.hashes) else HASH_END


class IndexReader:
    """Reads the index of one directory, and checks it."""

    def __init__(
        self, volume: Volume, number: int, seed: int, block_count: int, block_at: BlockAt
    ) -> None:
        self._volume: Final = volume
        self._number: Final = number
        self._seed: Final = seed
        self._block_count: Final = block_count
        self._block_at: Final = block_at

    def _damaged(self, what: str) -> VfsError:
        return self._volume.damaged(f"directory {self._number}", f"has an index with {what}")

    def read(self) -> Index:
        """The index, whole."""
        raw = self._block_at(0)
        root = dx_root.decode(raw)
        if root.hash_version > TEA + UNSIGNED or root.info_length != 8:
            raise self._damaged(f"hash version {root.hash_version}, which is not known here")
        large = self._volume.superblock.disk.s_feature_incompat & layout.INCOMPAT_LARGEDIR
        if root.indirect_levels > (2 if large else 1):
            raise self._damaged(f"{root.indirect_levels} levels")
        levels = [Nodes(array("I", [0]), array("I", [0]))]
        hashes, blocks = array("I"), array("I")
        self._add_entries(raw, layout.DX_ROOT_ENTRIES_OFFSET, 0, hashes, blocks)
        for _ in range(root.indirect_levels):
            hashes, blocks, starts = self._level_below(hashes, nodes := blocks)
            levels.insert(0, Nodes(nodes, starts))
        self._check_leaves(hashes, blocks)
        if not {block for nodes in levels for block in nodes.blocks}.isdisjoint(blocks):
            raise self._damaged("blocks that are leaves as well")
        return Index(root.dotdot_inode, root.hash_version, hashes, blocks, levels)

    def _level_below(
        self, above: array[int], nodes: array[int]
    ) -> tuple[array[int], array[int], array[int]]:
        """The entries of all index blocks `nodes`, and where those of each begin."""
        hashes, blocks, starts = array("I"), array("I"), array("I")
        self._check_leaves(above, nodes)
        for first, block in zip(above, nodes, strict=True):
            raw = self._block_at(block)
            starts.append(len(hashes))
            self._add_entries(raw, layout.DX_NODE_ENTRIES_OFFSET, first, hashes, blocks)
        return hashes, blocks, starts

    def _add_entries(
        self, raw: bytes, offset: int, first: int, hashes: array[int], blocks: array[int]
    ) -> None:
        """Add what one block of the index says; its first entry has its hash, `first`, above."""
        head = dx_countlimit.decode(raw, offset)
        tail_bytes = dx_tail.SIZE if self._volume.has_metadata_csum else 0
        if head.limit != (len(raw) - offset - tail_bytes) // dx_entry.SIZE:
            raise self._damaged(f"room for {head.limit} entries in a block")
        if not 0 < head.count <= head.limit:
            raise self._damaged(f"{head.count} entries in a block for {head.limit}")
        end = offset + head.count * dx_entry.SIZE
        if tail_bytes:
            self._check_checksum(raw, end, offset + head.limit * dx_entry.SIZE)
        words = struct.unpack(f"<{2 * head.count}I", raw[offset:end])
        hashes.append(first)
        hashes.extend(words[2::2])
        blocks.extend(words[1::2])

    def _check_checksum(self, raw: bytes, end: int, tail_at: int) -> None:
        tail = dx_tail.decode(raw, tail_at)
        # Of the tail, what is before the checksum counts; the checksum itself counts as zero.
        covered = raw[:end] + raw[tail_at : tail_at + 4] + b"\0\0\0\0"
        if crc32c(self._seed, covered) != tail.dt_checksum:
            raise self._damaged("a wrong checksum")

    def _check_leaves(self, hashes: array[int], blocks: array[int]) -> None:
        """Hashes ascend, every block is there, and none is used twice: so nothing can loop."""
        before = 0
        for value in hashes:
            if value < before:
                raise self._damaged("hashes that do not ascend")
            before = value
        if min(blocks) == 0 or max(blocks) >= self._block_count:
            raise self._damaged("blocks that are not there")
        if len(set(blocks)) != len(blocks):
            raise self._damaged("blocks that occur twice")
