"""Changing the index of a directory (kernel document: "Hash Tree Directories").

A leaf that is full is split: the upper half of its names, in the order of their hashes, goes to a
new leaf, and the index gets an entry for that, next to the one for the old. If the hash at the
boundary is in both halves, the new entry is marked as going on with the one before (bit 0).

A block of the index that is full is split in the same way, which needs an entry in the block above.
The root cannot be split: what it has goes to a new block below it, and the index is one level
deeper. At two levels (three with large_dir) with everything full it ends.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from appliance import image_limits
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.directory_block import rec_len_to_disk
from appliance.fsimage.ext4.htree import Index, Nodes
from appliance.fsimage.ext4.layout import (
    dx_countlimit,
    dx_entry,
    dx_root,
    dx_tail,
    ext4_dir_entry_2,
)
from appliance.fsimage.ext4.operation import Seal, no_seal
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError

if TYPE_CHECKING:
    from appliance.fsimage.ext4.directory_changes import DirectoryChange

_DOTDOT_AT: Final = 12
_INFO_BYTES: Final = 8


def seal_of(volume: Volume, seed: int, offset: int) -> Seal:
    """The seal of a block of the index whose entries begin at `offset`."""
    return partial(_seal, seed, offset) if volume.has_metadata_csum else no_seal


def _seal(seed: int, offset: int, raw: bytearray) -> None:
    node = _Node(raw, offset)
    tail = offset + node.limit * dx_entry.SIZE
    reserved = dx_tail.decode(raw, tail).dt_reserved
    # Of the tail, what is before the checksum counts; the checksum itself counts as zero.
    dx_tail(reserved, 0).encode_into(raw, tail)
    covered = memoryview(raw)[: node.at(node.count)], memoryview(raw)[tail : tail + dx_tail.SIZE]
    dx_tail(reserved, crc32c(seed, b"".join(covered))).encode_into(raw, tail)


class _Node:
    """The entries of a block of the index, to be changed. What would be the hash of the first is
    known above it; in its place is how many there are."""

    __slots__ = ("_offset", "raw")

    def __init__(self, raw: bytearray, offset: int) -> None:
        self.raw = raw
        self._offset = offset

    @property
    def count(self) -> int:
        return dx_countlimit.decode(self.raw, self._offset).count

    @property
    def limit(self) -> int:
        return dx_countlimit.decode(self.raw, self._offset).limit

    def at(self, index: int) -> int:
        """Where an entry is in the block."""
        return self._offset + index * dx_entry.SIZE

    def become(self, entries: bytes, volume: Volume) -> None:
        """Have these entries, and no others."""
        raw, offset = self.raw, self._offset
        room = len(raw) - offset - (dx_tail.SIZE if volume.has_metadata_csum else 0)
        raw[offset:] = entries.ljust(len(raw) - offset, b"\0")
        limit, count = room // dx_entry.SIZE, len(entries) // dx_entry.SIZE
        dx_countlimit(limit, count, dx_entry.decode(entries).block).encode_into(raw, offset)

    def entries(self, begin: int, end: int) -> bytes:
        return bytes(self.raw[self.at(begin) : self.at(end)])

    def insert(self, index: int, key: int, block: int) -> None:
        """One more entry, not the first; there is room."""
        at, end = self.at(index), self.at(self.count)
        self.raw[at + dx_entry.SIZE : end + dx_entry.SIZE] = self.raw[at:end]
        dx_entry(key, block).encode_into(self.raw, at)
        head = dx_countlimit.decode(self.raw, self._offset)
        head.count += 1
        head.encode_into(self.raw, self._offset)


def make(change: DirectoryChange) -> None:
    """Give a directory of one block an index: the block becomes the root, and what it had goes to
    the first leaf."""
    directory, volume = change.directory, change.volume
    block = change.block(0)
    parent = change.check_dots(block.raw)
    records = [record for _, record in block.entries()[2:]]
    leaf = change.append_leaf()
    change.block(leaf).fill(records)
    del change.changed[0]

    raw = change.root()
    version = directory.shared.default_version
    root = dx_root.decode(raw)
    root.dotdot_rec_len = rec_len_to_disk(len(raw) - _DOTDOT_AT)
    root.reserved_zero = root.indirect_levels = root.unused_flags = 0
    root.hash_version, root.info_length = version, _INFO_BYTES
    root.encode_into(raw, 0)
    _Node(raw, layout.DX_ROOT_ENTRIES_OFFSET).become(_entry(0, leaf), volume)

    change.inode.disk.i_flags |= layout.INDEX_FL
    only = Nodes(array("I", [0]), array("I", [0]))
    change.set_index(Index(parent, version, array("I", [0]), array("I", [leaf]), [only]))
    change.operation.then(partial(directory.forget_chunk, 0))


def _entry(key: int, block: int) -> bytes:
    raw = bytearray(dx_entry.SIZE)
    dx_entry(key, block).encode_into(raw, 0)
    return bytes(raw)


# --- leaves ------------------------------------------------------------------


def split(change: DirectoryChange, at: int) -> None:
    """Split the `at`-th leaf in two. NOSPC."""
    directory, index = change.directory, change.own_index()
    block = change.block(index.leaves[at])
    hash_of = directory.hash_of
    ordered = sorted([(hash_of(name)[0], record) for name, record in block.entries()])
    if len(ordered) < 2:
        raise directory.damaged(f"no room in block {index.leaves[at]}, which is empty")
    if not index.hashes[at] & ~1 <= ordered[0][0] <= ordered[-1][0] < index.hash_at(at + 1):
        raise directory.damaged(f"names in block {index.leaves[at]} that do not belong there")
    records = [record for _, record in ordered]
    middle = middle_of([len(record) for record in records])
    boundary = ordered[middle][0]
    goes_on = boundary == ordered[middle - 1][0]
    first = index.group_of(index.hashes[at] & ~1)
    if goes_on:
        _check_group(change, index.group_end(first) - first + 1)

    upper = change.append_leaf()
    block.fill(records[:middle])
    change.block(upper).fill(records[middle:])
    change.operation.then(partial(directory.publish_room, index.leaves[at], block))
    change.operation.then(partial(directory.forget_chunk, index.leaves[first]))
    _insert_leaf(change, at, boundary | goes_on, upper)


def _check_group(change: DirectoryChange, count: int) -> None:
    """NOSPC if so many leaves hang together that they cannot be listed, as one, any more."""
    if count << change.volume.block_bits > image_limits.DIRECTORY_LINEAR_BYTES_MAX:
        raise VfsError(Code.NOSPC, f"directory {change.directory.number}: names of one hash")


def middle_of(lengths: list[int]) -> int:
    """Where to cut, so that the larger side is as small as can be; there is something on both.

    It then has half of the bytes and half of one entry at most, so that the longest name finds room
    in a block of 1 KiB, too.
    """
    total = sum(lengths)
    before = list(accumulate(lengths, initial=0))
    above = min(max(bisect_left(before, total, key=lambda count: 2 * count), 1), len(lengths) - 1)
    below = max(above - 1, 1)
    return below if total - 2 * before[below] <= abs(2 * before[above] - total) else above


# --- the index ---------------------------------------------------------------


def _insert_leaf(change: DirectoryChange, at: int, key: int, leaf: int) -> None:
    """An entry for `leaf` after that of the `at`-th."""
    index = change.own_index()
    node = _node_with_room(change, index, 0, at)
    _insert(change, index, 0, node, at, key, leaf)
    index.hashes.insert(at + 1, key)
    index.leaves.insert(at + 1, leaf)


def _insert(
    change: DirectoryChange, index: Index, level: int, node: int, at: int, key: int, block: int
) -> None:
    """An entry after the `at`-th of all at this level, which is in block `node` of it."""
    starts = index.levels[level].starts
    _node(change, index, level, node).insert(at - starts[node] + 1, key, block)
    for later in range(node + 1, len(starts)):
        starts[later] += 1


def _node(change: DirectoryChange, index: Index, level: int, node: int) -> _Node:
    """A block of the index, to be changed."""
    is_root = level == len(index.levels) - 1
    offset = layout.DX_ROOT_ENTRIES_OFFSET if is_root else layout.DX_NODE_ENTRIES_OFFSET
    return _Node(change.index_block(index.levels[level].blocks[node], offset), offset)


def _node_with_room(change: DirectoryChange, index: Index, level: int, at: int) -> int:
    """Which block of this level has the `at`-th entry, and room for one more. NOSPC."""
    number = index.levels[level].node_of(at)
    node = _node(change, index, level, number)
    if node.count < node.limit:
        return number
    if level == len(index.levels) - 1:
        _push_down(change, index)
    else:
        _split_node(change, index, level, number)
    return _node_with_room(change, index, level, at)


def _append_node(change: DirectoryChange, entries: bytes) -> int:
    """A new block of the index. Whoever reads it without the index finds one empty record."""
    offset = layout.DX_NODE_ENTRIES_OFFSET
    logical, raw = change.append(seal_of(change.volume, change.directory.seed, offset))
    ext4_dir_entry_2(0, rec_len_to_disk(len(raw)), 0, 0).encode_into(raw, 0)
    _Node(raw, offset).become(entries, change.volume)
    return logical


def _push_down(change: DirectoryChange, index: Index) -> None:
    """Move what the root has to a new block below it."""
    large = change.volume.superblock.disk.s_feature_incompat & layout.INCOMPAT_LARGEDIR
    if len(index.levels) >= (3 if large else 2):
        raise VfsError(Code.NOSPC, f"directory {change.directory.number}: its index is full")
    top = len(index.levels) - 1
    root = _node(change, index, top, 0)
    below = _append_node(change, root.entries(0, root.count))
    root.become(_entry(0, below), change.volume)
    fields = dx_root.decode(root.raw)
    fields.indirect_levels += 1
    fields.encode_into(root.raw, 0)
    index.levels[top].blocks[0] = below
    index.levels.append(Nodes(array("I", [0]), array("I", [0])))


def _split_node(change: DirectoryChange, index: Index, level: int, number: int) -> None:
    """Move the upper half of the entries of a block, not the root, to a new one."""
    above = _node_with_room(change, index, level + 1, number)
    node = _node(change, index, level, number)
    middle, count = node.count // 2, node.count
    upper = node.entries(middle, count)
    new = _append_node(change, upper)
    node.become(node.entries(0, middle), change.volume)
    _insert(change, index, level + 1, above, number, dx_entry.decode(upper).hash, new)
    nodes = index.levels[level]
    nodes.blocks.insert(number + 1, new)
    nodes.starts.insert(number + 1, nodes.starts[number] + middle)
