"""Directories (kernel document: "Linear Directories", "Hash Tree Directories").

A directory is read in *chunks*. In an indexed one, a chunk is a leaf of the index (or several,
where names with the same hash go on from leaf to leaf), found by the hash of a name or of a cookie.
Any other directory is one chunk.

Names are compared byte by byte, also in a directory in which the kernel would fold them.

Cookies. Where the file system has dir_index, entries are listed in the order of their hashes, also
those of a directory that has no index (yet): only that order survives when a directory becomes
indexed, and when a leaf is split. The cookie of an entry is the upper 31 bits of its major hash and
its minor hash; entries in which both are equal get consecutive cookies, so that a listing can stop
between them. Without dir_index an entry never moves, and its cookie is its offset plus 1.
"." and ".." have the cookies 1 and 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from appliance import limits
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.extents import BlockMaps, Leaf
from appliance.fsimage.ext4.hash import HALF_MD4, UNSIGNED, NameHash
from appliance.fsimage.ext4.htree import HASH_END, Index, IndexReader
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_dir_entry_2, ext4_dir_entry_tail
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Entry

DOT_COOKIE: Final = 1
DOTDOT_COOKIE: Final = 2
FIRST_COOKIE: Final = 3

_BYTES_IN_REC_LEN_MAX: Final = 1 << 16
"""With blocks of this size a length does not fit into rec_len: 0 and 65535 stand for it."""

_INLINE_PARENT_BYTES: Final = 4
"""An inline directory begins with the number of its parent, in place of "." and ".."."""

RawEntry = tuple[int, int, bytes]
"""Offset in the directory, inode, name."""


class Chunk:
    """A part of a directory."""

    __slots__ = ("cookies", "listing", "names", "offsets")

    def __init__(self, entries: list[RawEntry]) -> None:
        # Of a name that occurs twice, in a damaged directory, the last one counts.
        self.names = {name: number for _, number, name in entries}
        self.offsets = {name: offset for offset, _, name in entries}
        self.listing: list[Entry] | None = None  # in the order of cookies, made when it is needed
        self.cookies: list[int] = []

    def __len__(self) -> int:
        return len(self.names) + 1


class Directories:
    """What the directories of a volume have in common."""

    def __init__(self, volume: Volume, maps: BlockMaps) -> None:
        disk = volume.superblock.disk
        self.volume: Final = volume
        self.maps: Final = maps
        self.chunks: Final[Cache[tuple[int, int], Chunk]] = Cache(
            limits.DIRECTORY_CACHE_ENTRIES_MAX, len
        )
        self.inodes_count: Final = disk.s_inodes_count
        unsigned = bool(disk.s_flags & layout.FLAGS_UNSIGNED_HASH)
        self._has_file_type: Final = bool(disk.s_feature_incompat & layout.INCOMPAT_FILETYPE)
        self._hashes: Final = {
            version: NameHash(version, disk.s_hash_seed, unsigned=unsigned)
            for version in range(2 * UNSIGNED)
        }
        self.default_hash: Final = self._hashes.get(disk.s_def_hash_version, self._hashes[HALF_MD4])

    def hash_of(self, version: int) -> NameHash:
        """The hash function of an index."""
        return self._hashes[version]

    def entries_in(self, number: int, raw: bytes, start: int, end: int) -> Iterator[RawEntry]:
        """The entries between two offsets of a piece of directory `number`, checked."""
        unpack = ext4_dir_entry_2.STRUCT.unpack_from
        name_mask = 0xFF if self._has_file_type else 0xFFFF
        at = start
        while at < end:
            if at + ext4_dir_entry_2.SIZE > end:
                raise self.damaged(number, f"half an entry at {at}")
            inode, length, name_length, file_type = unpack(raw, at)
            if end >= _BYTES_IN_REC_LEN_MAX:
                length = _long_rec_len(length, len(raw))
            name_length |= file_type << 8 & name_mask
            stop = at + ext4_dir_entry_2.SIZE + name_length
            if length < 12 or length & 3 or at + length > end or stop > at + length:
                raise self.damaged(number, f"an entry of {length} bytes at {at}")
            if inode:
                name = raw[at + ext4_dir_entry_2.SIZE : stop]
                if inode > self.inodes_count or not name or b"/" in name or b"\0" in name:
                    raise self.damaged(number, f"an entry {name!r} for inode {inode}")
                yield at, inode, name
            at += length

    def damaged(self, number: int, what: str) -> VfsError:
        """The error for something wrong in directory `number`."""
        return self.volume.damaged(f"directory {number}", f"has {what}")


def _long_rec_len(length: int, block_bytes: int) -> int:
    if length in (0, 0xFFFF):
        return block_bytes
    return length & 0xFFFC | (length & 3) << 16


class Directory:
    """One directory: names to inode numbers, and the entries in order."""

    def __init__(self, shared: Directories, inode: Inode) -> None:
        self._shared: Final = shared
        self._volume: Final = shared.volume
        self._number: Final = inode.number
        self._inode: Final = inode
        self._seed: Final = inodes.seed_of(shared.volume, inode)
        self._inline: Final = inode.has_flag(layout.INLINE_DATA_FL)
        self._blocks: Final = Leaf(0, 0, []) if self._inline else self._find_blocks(inode)
        has_dir_index = shared.volume.superblock.has_dir_index
        index = None
        if has_dir_index and inode.has_flag(layout.INDEX_FL) and not self._inline:
            index = self._read_index()
        self._parent = index.parent if index else 0
        self._leaves: Final = index.leaves if index else range(self._blocks.end)
        # Where names are folded, the index has the hashes of folded names, which are not known
        # here: it says which blocks have entries, but not which of them has a name.
        is_folded = inode.has_flag(layout.CASEFOLD_FL)
        self._index: Final = None if is_folded else index
        self._hash: Final = self._hash_of(index) if has_dir_index else None

    def _hash_of(self, index: Index | None) -> NameHash:
        shared = self._shared
        return shared.hash_of(index.hash_version) if index else shared.default_hash

    def _damaged(self, what: str) -> VfsError:
        return self._shared.damaged(self._number, what)

    # Blocks.

    def _read_index(self) -> Index:
        count = self._blocks.end
        return IndexReader(self._volume, self._number, self._seed, count, self._block).read()

    def _find_blocks(self, inode: Inode) -> Leaf:
        """The map of the directory, checked: it has no holes, and no block occurs twice, so that
        what is read of it cannot be more than what is in the image."""
        bits = self._volume.block_bits
        count = inode.size >> bits
        if not count or inode.size & self._volume.block_bytes - 1:
            raise self._damaged(f"the size {inode.size}")
        if count > self._volume.superblock.blocks_count:
            raise self._damaged(f"more blocks ({count}) than the file system")
        extents = self._shared.maps.of(inode).extents(0, count)
        end = 0
        for extent in sorted(extents, key=lambda each: each.physical):
            if not extent.physical or not extent.written:
                raise self._damaged(f"a hole at block {extent.logical}")
            if extent.physical < end:
                raise self._damaged(f"block {extent.physical} twice")
            end = extent.physical + extent.count
        return Leaf(0, count, extents)

    def _block(self, logical: int) -> bytes:
        """A block of the directory."""
        if logical >= self._blocks.end:
            raise self._damaged(f"no block {logical}")
        at = bisect_right(self._blocks.starts, logical) - 1
        extent = self._blocks.extents[at]
        return self._volume.block(extent.physical + logical - extent.logical)

    def _leaf_entries(self, logical: int) -> Iterator[RawEntry]:
        """The entries of a block that is not part of the index."""
        raw = self._block(logical)
        end = len(raw)
        if self._volume.has_metadata_csum:
            end -= ext4_dir_entry_tail.SIZE
            tail = ext4_dir_entry_tail.decode(raw, end)
            if (
                tail.det_reserved_ft != layout.DIR_TAIL_FILE_TYPE
                or tail.det_rec_len != ext4_dir_entry_tail.SIZE
                or tail.det_reserved_zero1
                or tail.det_checksum != crc32c(self._seed, raw[:end])
            ):
                raise self._damaged(f"a wrong checksum in block {logical}")
        base = logical << self._volume.block_bits
        for offset, number, name in self._shared.entries_in(self._number, raw, 0, end):
            yield base + offset, number, name

    def _inline_entries(self) -> Iterator[RawEntry]:
        """The entries of a directory that is inside its inode: one part in i_block, one behind."""
        raw = inodes.inline_data(self._volume, self._inode)
        split = len(self._inode.disk.i_block)
        yield 0, int.from_bytes(raw[:_INLINE_PARENT_BYTES], "little"), b".."
        yield from self._shared.entries_in(self._number, raw, _INLINE_PARENT_BYTES, split)
        yield from self._shared.entries_in(self._number, raw, split, len(raw))

    # Chunks.

    def _chunk(self, at: int) -> Chunk:
        """The chunk that begins at leaf `at` of the index (0 without one)."""
        key = (self._number, at)
        chunk = self._shared.chunks.get(key)
        if chunk is None:
            chunk = self._read_chunk(at)
            self._shared.chunks.put(key, chunk)
        return chunk

    def _read_chunk(self, at: int) -> Chunk:
        if self._inline:
            entries = list(self._inline_entries())
        else:
            blocks = self._leaves
            if self._index:
                blocks = blocks[at : self._index.group_end(at)]
            if len(blocks) << self._volume.block_bits > limits.DIRECTORY_LINEAR_BYTES_MAX:
                raise self._damaged("so much without an index that it needs e2fsck -D first")
            entries = [entry for block in blocks for entry in self._leaf_entries(block)]
        return Chunk([entry for entry in entries if entry[2] not in (b".", b"..")])

    # What is asked of a directory.

    def parent(self) -> int:
        """The inode number of ".."."""
        if not self._parent:
            entries = self._inline_entries() if self._inline else self._leaf_entries(0)
            self._parent = next((number for _, number, name in entries if name == b".."), 0)
        if not 0 < self._parent <= self._shared.inodes_count:
            raise self._damaged(f"inode {self._parent} for its parent")
        return self._parent

    def lookup(self, name: bytes) -> int:
        """The inode number of `name`; 0: there is none."""
        at = 0
        if self._index and self._hash:
            major, _ = self._hash(name)
            at = self._index.group_of(major)
        return self._chunk(at).names.get(name, 0)

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        """At most `limit` entries after `cookie`. None of them has its node."""
        found = []
        if cookie < DOT_COOKIE:
            found.append(Entry(self._number, b".", DOT_COOKIE))
        if cookie < DOTDOT_COOKIE:
            found.append(Entry(self.parent(), b"..", DOTDOT_COOKIE))
        at = self._index.group_of(cookie >> 32 << 1) if self._index else 0
        while len(found) < limit:
            chunk = self._listed(at)
            begin = bisect_right(chunk.cookies, cookie)
            assert chunk.listing is not None
            found += chunk.listing[begin : begin + limit - len(found)]
            if not self._index:
                break
            at = self._index.group_end(at)
            if at >= len(self._index.leaves):
                break
        return found[:limit]

    def _listed(self, at: int) -> Chunk:
        """The chunk at `at`, with its entries in order."""
        chunk = self._chunk(at)
        if chunk.listing is None:
            listing = (
                self._by_offset(chunk)
                if self._hash is None
                else self._by_hash(chunk, at, self._hash)
            )
            chunk.cookies = [entry.cookie for entry in listing]
            chunk.listing = listing
        return chunk

    @staticmethod
    def _by_offset(chunk: Chunk) -> list[Entry]:
        names = chunk.names
        return [Entry(names[name], name, offset + 1) for name, offset in chunk.offsets.items()]

    def _by_hash(self, chunk: Chunk, at: int, hash_of: NameHash) -> list[Entry]:
        low, high = 0, HASH_END
        if self._index:
            low, high = self._index.hash_at(at), self._index.hash_at(self._index.group_end(at))
        ordered = []
        for name, number in chunk.names.items():
            major, minor = hash_of(name)
            if not low <= major < high:
                raise self._damaged(f"{name!r} where the index does not look for it")
            ordered.append((major >> 1 << 32 | minor, name, number))
        ordered.sort()
        listing = []
        free = max(FIRST_COOKIE, low >> 1 << 32)
        for cookie, name, number in ordered:
            cookie = max(cookie, free)
            listing.append(Entry(number, name, cookie))
            free = cookie + 1
        return listing
