"""Changing an extent tree (kernel document: "Extent Tree"), a few bytes in a few blocks at a time.

The one verb is `_put`: let the map say this for these blocks, which now are within one extent or
one hole. It looks at the extents that overlap or touch the range (at most two), writes down what
becomes of them, joins what is contiguous, and puts that in their place. That is an insertion, the
conversion of the middle of an extent, and the removal of a part of one.

Room is made in single steps: the lowest full node below one that has room is split, or the root
moves into a block of its own and the tree becomes deeper; then `_put` starts again from the root. A
node that is full and grows at its end gives away its last entry only, so that a file that is
written from its start to its end has full nodes.

Invariants: a node below the root is never empty; the key of a node is the first block that its
first entry speaks of; keys and extents are in order. What was published is checked by the reader
(extents.py) before it is changed; what this operation has changed itself needs no check.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.extents import (
    EVERYTHING,
    ROOT,
    BlockMaps,
    Extent,
    ExtentTree,
    Leaf,
)
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_extent, ext4_extent_header, ext4_extent_idx
from appliance.fsimage.ext4.map_changer import (
    REVOKED_PER_EXTENT,
    MapChanger,
    extent_blocks_max,
    replaced,
)
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError

_HEADER: Final = ext4_extent_header.SIZE
_ENTRY: Final = ext4_extent.SIZE
_LENGTH: Final = 4  # where ee_len is in an entry
_MASK32: Final = 0xFFFF_FFFF

_counts: Final = struct.Struct("<2x3H").unpack_from
_key: Final = struct.Struct("<I").unpack_from
_entry: Final = ext4_extent.STRUCT.unpack_from
_index: Final = ext4_extent_idx.STRUCT.unpack_from


def room_of(block_bytes: int) -> int:
    """How many entries a block of a tree has. (What is left over is enough for a checksum.)"""
    return (block_bytes - _HEADER) // _ENTRY


class _Node:
    """One node on the way from the root to a logical block."""

    __slots__ = ("at", "block", "count", "depth", "end", "number", "room")

    def __init__(self, number: int, block: bytes | bytearray, end: int) -> None:
        self.number = number
        self.block = block
        self.end = end  # the logical block at which the next node of this depth begins
        self.count, self.room, self.depth = _counts(block)
        self.at = -1

    def seek(self, logical: int) -> None:
        """Let `at` be the last entry that begins at `logical` or before; -1: there is none."""
        block, last = self.block, self.count - 1
        if last < 0 or _key(block, _HEADER + _ENTRY * last)[0] <= logical:
            self.at = last
            return
        self.at = (
            bisect_right(range(last), logical, key=lambda at: _key(block, _HEADER + _ENTRY * at)[0])
            - 1
        )

    def key(self, at: int) -> int:
        """The first logical block of an entry; after the last one, that of the next node."""
        if at == self.count:
            return self.end
        key: int = _key(self.block, _HEADER + _ENTRY * at)[0]
        return key

    def extent(self, at: int) -> Extent:
        """An entry of a leaf."""
        logical, length, high, low = _entry(self.block, _HEADER + _ENTRY * at)
        written = length <= layout.EXTENT_WRITTEN_MAX
        count = length if written else length - layout.EXTENT_WRITTEN_MAX
        return Extent(logical, count, low | high << 32, written)

    def extents(self, start: int, stop: int) -> list[Extent]:
        """Some of them."""
        return [self.extent(at) for at in range(start, stop)]

    def child(self, at: int) -> int:
        """The block to which an entry of an index node leads."""
        _, low, high = _index(self.block, _HEADER + _ENTRY * at)
        return int(low | high << 32)

    def raw(self, start: int, stop: int) -> bytes:
        """Entries as they are on disk."""
        return bytes(self.block[_HEADER + _ENTRY * start : _HEADER + _ENTRY * stop])


def _encoded(extent: Extent) -> bytes:
    length = extent.count if extent.written else extent.count + layout.EXTENT_WRITTEN_MAX
    physical = extent.physical
    return ext4_extent.STRUCT.pack(extent.logical, length, physical >> 32, physical & _MASK32)


def _index_entry(key: int, number: int) -> bytes:
    return ext4_extent_idx.STRUCT.pack(key, number & _MASK32, number >> 32)


class ExtentTreeChanger(MapChanger):
    """Changes the tree of one inode."""

    def __init__(self, maps: BlockMaps, operation: Operation, inode: Inode) -> None:
        super().__init__(maps, operation, inode)
        self._tree: ExtentTree | None = None

    def _reader(self) -> ExtentTree:
        """What reads the tree; it has checked the root."""
        if self._tree is None:
            self._tree = ExtentTree(self._maps, self._inode)
        return self._tree

    # Looking.

    def find(self, logical: int) -> Extent:
        leaf = self._path(logical)[-1]
        first = 0
        if leaf.at >= 0:
            extent = leaf.extent(leaf.at)
            if logical < extent.end:
                return extent
            first = extent.end
        end = leaf.key(leaf.at + 1)
        return Extent(first, end - first, 0)

    def _path(self, logical: int) -> list[_Node]:
        """The nodes from the root to the leaf in which `logical` is, or would be."""
        self._reader()
        node = _Node(ROOT, self._inode.disk.i_block, EVERYTHING)
        node.seek(logical)
        path = [node]
        while node.depth:
            if node.at < 0:
                node.at = 0  # what comes before everything goes into the first leaf
            at, depth = node.at, node.depth - 1
            first, end = node.key(at), node.key(at + 1)
            number = node.child(at)
            node = _Node(number, self._checked(number, first, end, depth), end)
            node.seek(logical)
            path.append(node)
        return path

    def _checked(self, number: int, first: int, end: int, depth: int) -> bytes | bytearray:
        """What is in a block of the tree, as this operation sees it."""
        if not self._operation.has_changed(number):
            self._reader().piece(number, first, end, depth)
        return self._operation.block(number)

    # Changing.

    def insert(self, logical: int, physical: int, count: int, *, written: bool = True) -> None:
        self._count(count)
        if written and self._lengthen(logical, physical, count):
            return
        most = extent_blocks_max(written)
        while count:
            some = min(count, most)
            self._put(Extent(logical, some, physical, written))
            logical, physical, count = logical + some, physical + some, count - some

    def _lengthen(self, logical: int, physical: int, count: int) -> bool:
        """What is done again and again for a file that is written from its start to its end, and
        has few extents: the last one, which is in the inode, becomes longer. Whether that was it.
        """
        root, disk = self._inode.root, self._inode.disk
        if not isinstance(root, Leaf) or not root.extents:
            return False
        # What is remembered has been checked.
        last = len(root.extents) - 1
        before = root.extents[last]
        total = before.count + count
        if (
            before.logical + before.count != logical
            or before.physical + before.count != physical
            or not before.written
            or total > layout.EXTENT_WRITTEN_MAX
        ):
            return False
        raw, at = disk.i_block, _HEADER + _ENTRY * last + _LENGTH
        disk.i_block = raw[:at] + total.to_bytes(2, "little") + raw[at + 2 :]
        self._inode.root = root.with_last(Extent(before.logical, total, before.physical))
        return True

    def convert(self, logical: int, count: int) -> None:
        end = logical + count
        while logical < end:
            part = self.find(logical).part(logical, end)
            if part.physical and not part.written:
                part.written = True
                self._put(part)
            logical = part.end

    def remove(self, first: int, end: int, limit: int) -> int:
        while first < end and limit > 0:
            path = self._path(end - 1)
            leaf = path[-1]
            if leaf.at < 0 or leaf.extent(leaf.at).end <= first:
                end = first
                break
            end, weight = self._remove_last(path, first, end, limit)
            limit -= weight
        self._shrink()
        return end

    def _remove_last(self, path: list[_Node], first: int, end: int, limit: int) -> tuple[int, int]:
        """Free what the last leaf of `path` has between `first` and `end`, where there is
        something: from which block on all is free, and how much was freed."""
        leaf = path[-1]
        if self._journaled:
            last = min(end, leaf.extent(leaf.at).end)
            first = max(first, last - limit * REVOKED_PER_EXTENT)
        start = stop = leaf.at + 1
        weight = 0
        while start and weight < limit:
            extent = leaf.extent(start - 1)
            if extent.logical < first or extent.end > end:
                break
            self._free(extent.physical, extent.count, metadata=self._journaled)
            weight += self._weight(extent)
            start -= 1
        if start < stop:
            end = leaf.key(start)
            if stop - start == leaf.count:
                self._drop(path)
            else:
                self._splice(path, start, stop, [])
            return end, weight
        part = leaf.extent(leaf.at).part(first, end)
        self._put(Extent(part.logical, part.count, 0))
        self._free(part.physical, part.count, metadata=self._journaled)
        return part.logical, self._weight(part)

    def _put(self, part: Extent) -> None:
        """Let the map say this, where it says one other thing now; physical 0: nothing."""
        while True:
            path = self._path(part.logical)
            leaf = path[-1]
            start, stop, extents = self._around(leaf, part)
            if leaf.count - (stop - start) + len(extents) <= leaf.room:
                self._splice(path, start, stop, extents)
                return
            self._make_room(path)

    @staticmethod
    def _around(leaf: _Node, part: Extent) -> tuple[int, int, list[Extent]]:
        """Which entries have to do with `part`, and what they become."""
        start = stop = leaf.at + 1
        while start and leaf.extent(start - 1).end >= part.logical:
            start -= 1
        if stop < leaf.count and leaf.key(stop) == part.end:
            stop += 1
        old = leaf.extents(start, stop)
        new = replaced(old, part)
        while old and new and old[0] is new[0]:
            del old[0], new[0]
            start += 1
        while old and new and old[-1] is new[-1]:
            del old[-1], new[-1]
            stop -= 1
        return start, stop, new

    def _splice(self, path: list[_Node], start: int, stop: int, extents: list[Extent]) -> None:
        """Replace extents of the leaf at the end of `path`; some are left, and there is room."""
        leaf = path[-1]
        before = key = leaf.key(0)
        if not start:
            key = extents[0].logical if extents else leaf.key(stop)
        self._replace(leaf, start, stop, b"".join(map(_encoded, extents)), extents)
        if key != before:
            self._correct_keys(path, key)

    def _correct_keys(self, path: list[_Node], key: int) -> None:
        """The last node of `path` begins with `key` now: let the nodes above it say so."""
        for node in reversed(path[:-1]):
            entry = _index_entry(key, node.child(node.at))
            self._replace(node, node.at, node.at + 1, entry)
            if node.at:
                break

    def _replace(
        self,
        node: _Node,
        start: int,
        stop: int,
        entries: bytes,
        extents: list[Extent] | None = None,
    ) -> None:
        """Put other entries in the place of some; in a leaf, they are `extents`."""
        splice = None if extents is None else (start, stop, extents)
        change = None if splice is None else lambda _: splice
        after = entries + node.raw(stop, node.count)
        at = _HEADER + _ENTRY * start
        count = (node.count + start - stop + len(entries) // _ENTRY).to_bytes(2, "little")
        if node.number == ROOT:
            root = self._inode.disk.i_block
            after = after.ljust(len(root) - at, b"\0")
            self._set_root(root[:2] + count + root[4:at] + after, change)
            return
        if change is not None:
            self._note(node.number, change)
        block = self._operation.change(node.number, self._seal)
        block[at : at + len(after)] = after
        block[2:4] = count

    def _seal(self, block: bytearray) -> None:
        """The checksum of a block of the tree."""
        if self._volume.has_metadata_csum:
            tail = _HEADER + _ENTRY * int.from_bytes(block[4:6], "little")
            checksum = crc32c(inodes.seed_of(self._volume, self._inode), bytes(block[:tail]))
            block[tail : tail + 4] = checksum.to_bytes(4, "little")

    # The shape of the tree.

    def _make_room(self, path: list[_Node]) -> None:
        """One step towards room in the last node of `path`, which is full."""
        level = len(path) - 1
        while level and path[level - 1].count == path[level - 1].room:
            level -= 1
        if level:
            self._split(path[level - 1], path[level])
        else:
            self._deepen(path[0])

    def _split(self, above: _Node, node: _Node) -> None:
        """Move the entries at the end of `node` to a new node beside it."""
        at = node.count // 2 if node.at + 1 < node.count else node.count - 1
        number = self._new_node(node.number + 1, node.depth, node.raw(at, node.count))
        entry = _index_entry(node.key(at), number)
        self._replace(node, at, node.count, b"", None if node.depth else [])
        self._replace(above, above.at + 1, above.at + 1, entry)

    def _deepen(self, root: _Node) -> None:
        """Move all that is in the root to a node below it."""
        if root.depth == layout.EXTENT_DEPTH_MAX:
            raise VfsError(Code.NOSPC, "the extent tree of this file is as deep as one can be")
        near = root.child(0) if root.depth else root.extent(0).physical
        number = self._new_node(near, root.depth, root.raw(0, root.count))
        self._new_root(root.depth + 1, _index_entry(root.key(0), number))

    def _new_node(self, near: int, depth: int, entries: bytes) -> int:
        number = self._allocate(near)
        block = self._operation.new_block(number, self._seal)
        header = ext4_extent_header(
            layout.EXTENT_MAGIC, len(entries) // _ENTRY, room_of(len(block)), depth, 0
        )
        header.encode_into(block, 0)
        block[_HEADER : _HEADER + len(entries)] = entries
        return number

    def _new_root(self, depth: int, entries: bytes) -> None:
        i_block = bytearray(len(self._inode.disk.i_block))
        room = room_of(len(i_block))
        header = ext4_extent_header(layout.EXTENT_MAGIC, len(entries) // _ENTRY, room, depth, 0)
        header.encode_into(i_block, 0)
        i_block[_HEADER : _HEADER + len(entries)] = entries
        self._set_root(bytes(i_block))

    def _drop(self, path: list[_Node]) -> None:
        """Remove the last node of `path`, of which nothing is left, and those above it that have
        nothing else."""
        while len(path) > 1:
            self._free(path.pop().number, 1, metadata=True)
            node = path[-1]
            if node.count > 1:
                key = node.key(1)
                self._replace(node, node.at, node.at + 1, b"")
                if not node.at:
                    self._correct_keys(path, key)
                return
        self._new_root(0, b"")

    def _shrink(self) -> None:
        """As long as the root has a single child which fits into it, let it take its place."""
        while True:
            root = _Node(ROOT, self._inode.disk.i_block, EVERYTHING)
            if not root.depth or root.count > 1:
                return
            number = root.child(0)
            block = self._checked(number, root.key(0), EVERYTHING, root.depth - 1)
            child = _Node(number, block, EVERYTHING)
            if child.count > root.room:
                return
            self._new_root(child.depth, child.raw(0, child.count))
            self._free(number, 1, metadata=True)
