"""Where the blocks of a file are: extent trees (kernel document: "Extent Tree"), and the indirect
blocks of ext2 and ext3 ("Direct/Indirect Block Addressing").

Both are trees, and both are read piece by piece: a *leaf* is the part of the map that one block of
the tree (or the inode itself) describes, as sorted extents. What lies between extents is a hole.

A damaged or hostile tree cannot loop: every level of an extent tree has to say a smaller depth than
the one above it, and its keys have to lie within those of its parent, in order.

Pieces are remembered, each together with the very bytes that it was read from. A published block is
never changed, only replaced: so a remembered piece is good as long as its block still is the same
object, and nobody ever has to be told that a map has changed. What changes maps (extent_tree.py)
only sees to it that a changed leaf need not be read again as a whole.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_extent, ext4_extent_header, ext4_extent_idx
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError

DIRECT_BLOCKS: Final = 12
EVERYTHING: Final = 1 << 63
"""A logical block number that no file reaches: maps end there with a hole."""

_ROOM_MIN: Final = 4
"""So many entries have room in a root, and more in a block. Who is said to have room for less could
be split without end."""

ROOT: Final = 0
"""The block number that stands for the inode itself, where the root of its map is."""


@dataclass(slots=True)
class Extent:
    """`count` blocks of a file from block `logical` on, at block `physical` of the device.

    In a hole `physical` is 0. What is not `written` reads as zeros, wherever it is.
    """

    logical: int
    count: int
    physical: int
    written: bool = True

    @property
    def end(self) -> int:
        """The first logical block after it."""
        return self.logical + self.count

    def part(self, first: int, end: int) -> Extent:
        """What lies between two logical blocks; there is something."""
        logical, physical = self.logical, self.physical
        if first < logical:
            first = logical
        if end > logical + self.count:
            end = logical + self.count
        return Extent(first, end - first, physical and physical + first - logical, self.written)

    def continues(self, before: Extent) -> bool:
        """Whether it follows `before` in the file and on the device, and is of its kind."""
        return (
            before.logical + before.count == self.logical
            and before.written == self.written
            and self.physical == (before.physical and before.physical + before.count)
        )


class Leaf:
    """All extents of the logical blocks `first` to `end` (exclusive), which are never changed.
    `raw`: what they were read from."""

    __slots__ = ("end", "extents", "first", "raw", "starts")

    depth = 0

    def __init__(
        self,
        first: int,
        end: int,
        extents: list[Extent],
        raw: bytes = b"",
        starts: list[int] | None = None,
    ) -> None:
        self.first = first
        self.end = end
        self.extents = extents
        self.raw = raw
        self.starts = [extent.logical for extent in extents] if starts is None else starts

    def __len__(self) -> int:
        return len(self.extents) + 1

    def find(self, logical: int) -> Extent:
        """The extent that covers block `logical`, or the hole around it."""
        at = bisect_right(self.starts, logical)
        first = self.first
        if at:
            extent = self.extents[at - 1]
            first = extent.logical + extent.count
            if logical < first:
                return extent
        end = self.starts[at] if at < len(self.starts) else self.end
        return Extent(first, end - first, 0)

    def spliced(self, start: int, stop: int, extents: list[Extent], raw: bytes) -> Leaf:
        """This leaf with `extents` in place of those from `start` to `stop`, as it is in `raw`."""
        new, starts = self.extents.copy(), self.starts.copy()
        new[start:stop] = extents
        starts[start:stop] = [extent.logical for extent in extents]
        return Leaf(self.first, self.end, new, raw, starts)

    def with_last(self, extent: Extent) -> Leaf:
        """This leaf with `extent` in place of the last one, which begins where it does."""
        extents = self.extents.copy()
        extents[-1] = extent
        return Leaf(self.first, self.end, extents, starts=self.starts)

    def fits(self, first: int, end: int) -> bool:
        """Whether it may be the leaf of other logical blocks."""
        extents = self.extents
        return not extents or (first <= extents[0].logical and extents[-1].end <= end)


class BlockMap(ABC):
    """Where the blocks of one file are."""

    @abstractmethod
    def leaf(self, logical: int) -> Leaf:
        """The leaf that covers block `logical`."""

    def find(self, logical: int) -> Extent:
        """The extent that covers block `logical`, or the hole around it (which may go on behind its
        end)."""
        return self.leaf(logical).find(logical)

    def tail(self) -> Extent | None:
        """The last extent, if it can be told without reading."""
        return None

    def follow(self, inode: Inode) -> bool:
        """Be the map of what the inode has become, without reading; whether that can be."""
        return False

    def between(self, first: int, end: int) -> Iterator[Extent]:
        """What is at the logical blocks `first` to `end`: extents and holes, without a gap, cut
        to that range."""
        while first < end:
            piece = self.find(first).part(first, end)
            yield piece
            first = piece.end

    def extents(self, first: int, end: int) -> list[Extent]:
        """The same; what is contiguous is one. IO: there are more than are looked at together."""
        found: list[Extent] = []
        for piece in self.between(first, end):
            if found and piece.continues(found[-1]):
                found[-1].count += piece.count
            elif len(found) < image_limits.EXTENTS_AT_ONCE_MAX:
                found.append(piece)
            else:
                raise VfsError(Code.IO, f"a map of more than {len(found)} extents")
        return found


class Branch:
    """A block of an extent tree above the leaves: from each of `keys` on, the map goes on in the
    block of `children` at the same place."""

    __slots__ = ("children", "depth", "end", "first", "keys", "raw")

    def __init__(
        self, first: int, end: int, depth: int, entries: list[tuple[int, int]], raw: bytes
    ) -> None:
        self.first = first
        self.end = end
        self.depth = depth
        self.raw = raw
        self.keys = [key for key, _ in entries]
        self.children = [child for _, child in entries]

    def __len__(self) -> int:
        return len(self.keys) + 1

    def fits(self, first: int, end: int) -> bool:
        """Whether it may be the branch of other logical blocks."""
        return first <= self.keys[0] and self.keys[-1] < end


class BlockMaps:
    """The maps of the files of a volume, and a memory of their pieces."""

    def __init__(self, volume: Volume) -> None:
        self.volume: Final = volume
        self.pieces: Final[Cache[tuple[int, int], Leaf | Branch]] = Cache(
            image_limits.BLOCK_MAP_CACHE_EXTENTS_MAX, len
        )

    def of(self, inode: Inode) -> BlockMap:
        """The map of one inode, which does not have its data inside itself."""
        if inode.has_flag(layout.EXTENTS_FL):
            return ExtentTree(self, inode)
        return IndirectBlocks(self, inode)


def _may_have(volume: Volume, number: int) -> Callable[[int, int], bool]:
    """What says whether an inode may have some blocks: not those of the file system itself, unless
    it is one of its own."""
    disk = volume.superblock.disk
    own = number != layout.EXT4_ROOT_INO and number < volume.superblock.first_inode
    if own or number in (disk.s_journal_inum, disk.s_orphan_file_inum):
        return volume.has_blocks
    return volume.may_be_in_file


class ExtentTree(BlockMap):
    """The extent tree of an inode. Its root is in i_block."""

    def __init__(self, maps: BlockMaps, inode: Inode) -> None:
        self._maps: Final = maps
        self._volume: Final = maps.volume
        self._number: Final = inode.number
        self._generation: Final = inode.disk.i_generation
        root = inode.root
        if root is None:
            root = inode.root = self._read_root(inode.disk.i_block)
        self.root = root

    def _read_root(self, raw: bytes) -> Leaf | Branch:
        header = ext4_extent_header.decode(raw)
        if header.eh_depth > layout.EXTENT_DEPTH_MAX:
            raise self._damaged(f"an extent tree {header.eh_depth} deep")
        return self._parse(raw, 0, EVERYTHING, header.eh_depth)

    def _damaged(self, what: str) -> VfsError:
        return self._volume.damaged(f"inode {self._number}", f"has {what}")

    def find(self, logical: int) -> Extent:
        root = self.root
        return (root if isinstance(root, Leaf) else self.leaf(logical)).find(logical)

    def tail(self) -> Extent | None:
        root = self.root
        return root.extents[-1] if isinstance(root, Leaf) and root.extents else None

    def follow(self, inode: Inode) -> bool:
        if inode.root is None or inode.disk.i_generation != self._generation:
            return False
        self.root = inode.root
        return True

    def leaf(self, logical: int) -> Leaf:
        piece = self.root
        while isinstance(piece, Branch):
            at = bisect_right(piece.keys, logical) - 1
            if at < 0:
                return Leaf(piece.first, piece.keys[0], [])
            end = piece.keys[at + 1] if at + 1 < len(piece.keys) else piece.end
            piece = self.piece(piece.children[at], piece.keys[at], end, piece.depth - 1)
        return piece

    def piece(self, physical: int, first: int, end: int, depth: int) -> Leaf | Branch:
        """The piece of the tree in block `physical`."""
        key = (self._number, physical)
        piece = self._maps.pieces.get(key)
        raw = self._volume.block(physical)
        if piece is None or piece.raw is not raw or piece.depth != depth:
            piece = self._parse(raw, first, end, depth)
            self._check_checksum(raw, physical)
            self._maps.pieces.put(key, piece)
        elif piece.first != first or piece.end != end:
            if not piece.fits(first, end):
                raise self._damaged(f"an extent block {physical} with entries from elsewhere")
            piece.first, piece.end = first, end
        return piece

    def _check_checksum(self, raw: bytes, physical: int) -> None:
        if not self._volume.has_metadata_csum:
            return
        header = ext4_extent_header.decode(raw)
        tail = ext4_extent_header.SIZE + header.eh_max * ext4_extent.SIZE
        seed = self._volume.inode_seed(self._number, self._generation)
        if crc32c(seed, raw[:tail]) != int.from_bytes(raw[tail : tail + 4], "little"):
            raise self._damaged(f"a wrong checksum in extent block {physical}")

    def _parse(self, raw: bytes, first: int, end: int, depth: int) -> Leaf | Branch:
        """The piece in `raw`, of which only `depth` and the range of its keys are known."""
        header = ext4_extent_header.decode(raw)
        room = (len(raw) - ext4_extent_header.SIZE) // ext4_extent.SIZE
        if header.eh_magic != layout.EXTENT_MAGIC:
            raise self._damaged("an extent block without its magic")
        if not header.eh_entries <= header.eh_max <= room or header.eh_max < _ROOM_MIN:
            raise self._damaged(f"an extent block with {header.eh_entries} of {header.eh_max}")
        if header.eh_depth != depth or (depth and not header.eh_entries):
            raise self._damaged(f"an extent block of depth {header.eh_depth} where {depth} belongs")
        start = ext4_extent_header.SIZE
        entries = raw[start : start + header.eh_entries * ext4_extent.SIZE]
        if depth:
            return Branch(first, end, depth, self._branches(entries, first, end), raw)
        return Leaf(first, end, self._extents(entries, first, end), raw)

    def _branches(self, entries: bytes, first: int, end: int) -> list[tuple[int, int]]:
        found, may_have = [], _may_have(self._volume, self._number)
        for key, low, high in ext4_extent_idx.STRUCT.iter_unpack(entries):
            physical = low | high << 32
            if not first <= key < end or not may_have(physical, 1):
                raise self._damaged(f"an extent block {physical} for {key} that cannot be there")
            found.append((key, physical))
            first = key + 1
        return found

    def _extents(self, entries: bytes, first: int, end: int) -> list[Extent]:
        found, may_have = [], _may_have(self._volume, self._number)
        for logical, length, high, low in ext4_extent.STRUCT.iter_unpack(entries):
            written = length <= layout.EXTENT_WRITTEN_MAX
            count = length if written else length - layout.EXTENT_WRITTEN_MAX
            physical = low | high << 32
            if not (
                count and first <= logical and logical + count <= end and may_have(physical, count)
            ):
                raise self._damaged(f"an extent {logical}+{count} at {physical}, which cannot be")
            found.append(Extent(logical, count, physical, written))
            first = logical + count
        return found


class IndirectBlocks(BlockMap):
    """Twelve blocks that the inode names, and three trees, one, two and three levels deep, of
    blocks full of block numbers. 0 is a hole, in any level."""

    def __init__(self, maps: BlockMaps, inode: Inode) -> None:
        self._maps: Final = maps
        self._volume: Final = maps.volume
        self._number: Final = inode.number
        self._may_have: Final = _may_have(maps.volume, inode.number)
        self._bits: Final = maps.volume.block_bits - 2  # of the numbers in one block
        raw = inode.disk.i_block
        self._roots: Final = struct.unpack_from("<3I", raw, 4 * DIRECT_BLOCKS)
        direct = inode.root
        if direct is None:
            direct = inode.root = self._leaf(0, raw, DIRECT_BLOCKS)
        assert isinstance(direct, Leaf)
        self._direct: Final = direct

    def _damaged(self, what: str) -> VfsError:
        return self._volume.damaged(f"inode {self._number}", f"has {what}")

    def leaf(self, logical: int) -> Leaf:
        first = DIRECT_BLOCKS
        if logical < first:
            return self._direct
        for levels, root in enumerate(self._roots, 1):
            end = first + (1 << self._bits * levels)
            if logical < end:
                return self._below(root, levels, first, logical)
            first = end
        return Leaf(first, EVERYTHING, [])

    def _below(self, physical: int, levels: int, first: int, logical: int) -> Leaf:
        """The leaf of `logical` in the tree at `physical`, which begins with block `first`."""
        while physical and levels > 1:
            levels -= 1
            at = logical - first >> self._bits * levels
            first += at << self._bits * levels
            physical = self._pointer(physical, at)
        if physical:
            return self._last(physical, first)
        return Leaf(first, first + (1 << self._bits * levels), [])

    def _last(self, physical: int, first: int) -> Leaf:
        """The leaf in block `physical`."""
        key = (self._number, physical)
        leaf = self._maps.pieces.get(key)
        raw = self.block(physical)
        if not isinstance(leaf, Leaf) or leaf.raw is not raw or leaf.first != first:
            leaf = self._leaf(first, raw, len(raw) // 4)
            self._maps.pieces.put(key, leaf)
        return leaf

    def _pointer(self, physical: int, at: int) -> int:
        """One of the block numbers in a block."""
        return int.from_bytes(self.block(physical)[4 * at : 4 * at + 4], "little")

    def block(self, physical: int) -> bytes:
        """A block full of block numbers."""
        if not self._may_have(physical, 1):
            raise self._damaged(f"an indirect block {physical}, which cannot be")
        return self._volume.block(physical)

    def _leaf(self, first: int, raw: bytes, count: int) -> Leaf:
        """The first `count` block numbers in `raw` as extents."""
        extents: list[Extent] = []
        following = 0
        for logical, physical in enumerate(struct.unpack_from(f"<{count}I", raw), first):
            if physical and physical == following:
                extents[-1].count += 1
            elif physical:
                extents.append(Extent(logical, 1, physical))
            following = physical and physical + 1
        for extent in extents:
            if not self._may_have(extent.physical, extent.count):
                raise self._damaged(f"blocks {extent.physical}+{extent.count}, which cannot be")
        return Leaf(first, first + count, extents, raw)
