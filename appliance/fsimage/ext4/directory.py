"""Directories (kernel document: "Linear Directories", "Hash Tree Directories").

A name is looked for in the leaf of its hash, if the directory has an index. That needs no more
than to know where the records of the leaf begin (Room).

A directory is listed in *chunks*: leaf by leaf, or several together, where names with the same hash
go on from leaf to leaf. A directory without an index is one chunk, and a name is looked for in it.

Names are compared byte by byte, also in a directory in which the kernel would fold them.

Cookies. Where the file system has dir_index, entries are listed in the order of their hashes, also
those of a directory that has no index (yet): only that order survives when a directory becomes
indexed, and when a leaf is split. The cookie of an entry is the upper 31 bits of its major hash and
its minor hash, or what chunk.py gives it if another one has that. The legacy hash has no minor
part, and many names have the same one: a checksum of the name takes its place.
Without dir_index an entry never moves, and its cookie is its offset plus 1.
"." and ".." have the cookies 1 and 2.

A Directory says what is published. It is brought up to date when a change is published
(directory_changes.py), and it is read and changed under the lock of the file system.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.chunk import (
    DOT_COOKIE,
    DOTDOT_COOKIE,
    Chunk,
    Position,
    RawEntry,
)
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.directory_block import (
    HEAD,
    RECORD_BYTES_MIN,
    DirectoryBlock,
    Room,
    bytes_needed,
    find_name,
    rec_len_from_disk,
    seal_of,
)
from appliance.fsimage.ext4.extents import BlockMaps, Extent, Leaf
from appliance.fsimage.ext4.hash import HALF_MD4, LEGACY, TEA, UNSIGNED, Hash, NameHash
from appliance.fsimage.ext4.htree import HASH_END, Index, IndexReader
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_dir_entry_2, ext4_dir_entry_tail
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Entry

_INLINE_PARENT_BYTES: Final = 4
"""An inline directory begins with the number of its parent, in place of "." and ".."."""

_DOTS: Final = (b".", b"..")

_GROWTH: Final = 16
"""A chunk that grows is weighed again only now and then, with room to grow."""

HashOf = Callable[[bytes], Hash]

Record = tuple[int, int, int, bytes]
"""Offset, length, inode (0: none), name."""


class Directories:
    """What the directories of a volume have in common."""

    def __init__(self, volume: Volume, maps: BlockMaps) -> None:
        disk = volume.superblock.disk
        self.volume: Final = volume
        self.maps: Final = maps
        self.chunks: Final[Cache[tuple[int, int], Chunk]] = Cache(
            image_limits.DIRECTORY_CACHE_ENTRIES_MAX, len
        )
        self.rooms: Final[Cache[tuple[int, int], Room]] = Cache(
            image_limits.DIRECTORY_ROOM_BYTES_MAX, Room.weight
        )
        self.inodes_count: Final = disk.s_inodes_count
        unsigned = bool(disk.s_flags & layout.FLAGS_UNSIGNED_HASH)
        self.has_file_type: Final = bool(disk.s_feature_incompat & layout.INCOMPAT_FILETYPE)
        default = disk.s_def_hash_version
        self.default_version: Final = default if default <= TEA else HALF_MD4
        self._hashes: Final[dict[int, HashOf]] = {
            version: lru_cache(image_limits.NAME_HASHES_MAX)(
                NameHash(version, disk.s_hash_seed, unsigned=unsigned)
            )
            for version in range(2 * UNSIGNED)
        }

    def hash_of(self, version: int) -> HashOf:
        """The hash function of an index; it remembers what it was asked for lately."""
        return self._hashes[version]

    def records_in(self, number: int, raw: bytes, start: int, end: int) -> Iterator[Record]:
        """The records between two offsets of a piece of directory `number`, checked."""
        unpack = ext4_dir_entry_2.STRUCT.unpack_from
        name_mask = 0xFF if self.has_file_type else 0xFFFF
        at = start
        while at < end:
            if at + HEAD > end:
                raise self.damaged(number, f"half an entry at {at}")
            inode, length, name_length, file_type = unpack(raw, at)
            if length & 3 or not length:  # which is a length only in large blocks
                length = rec_len_from_disk(length, len(raw))
            name_length |= file_type << 8 & name_mask
            stop = at + HEAD + name_length
            if length < RECORD_BYTES_MIN or length & 3 or at + length > end or stop > at + length:
                raise self.damaged(number, f"an entry of {length} bytes at {at}")
            name = raw[at + HEAD : stop]
            if inode and (inode > self.inodes_count or not name or b"/" in name or b"\0" in name):
                raise self.damaged(number, f"an entry {name!r} for inode {inode}")
            yield at, length, inode, name
            at += length

    def damaged(self, number: int, what: str) -> VfsError:
        """The error for something wrong in directory `number`."""
        return self.volume.damaged(f"directory {number}", f"has {what}")


class Directory:
    """One directory: names to inode numbers, and the entries in order."""

    def __init__(self, shared: Directories, inode: Inode) -> None:
        self.shared: Final = shared
        self.number: Final = inode.number
        self.seed: Final = inodes.seed_of(shared.volume, inode)
        self.seal: Final = seal_of(shared.volume, self.seed)
        self._volume: Final = shared.volume
        self._inode: Final = inode
        self._identity: Final = inode.number << 32 | inode.disk.i_generation
        """In the caches: another directory may get the same number."""
        self._inline: Final = inode.has_flag(layout.INLINE_DATA_FL)
        self.blocks = Leaf(0, 0, []) if self._inline else self._find_blocks(inode)
        self._has_dir_index: Final = shared.volume.superblock.has_dir_index
        # Where names are folded, the index has the hashes of folded names, which are not known
        # here: it says which blocks have entries, but not which of them has a name.
        self.index: Index | None = None
        self._folded_index: Index | None = None
        if self._has_dir_index and inode.has_flag(layout.INDEX_FL) and not self._inline:
            index = self._read_index()
            if inode.has_flag(layout.CASEFOLD_FL):
                self._folded_index = index
            else:
                self.index = index
        known = self.index or self._folded_index
        self._version: Final = known.hash_version if known else shared.default_version
        self.hash_of: Final = shared.hash_of(self._version)
        """The hash function of its index, or of the one that it will have."""
        self._parent = 0

    def damaged(self, what: str) -> VfsError:
        return self.shared.damaged(self.number, what)

    # Blocks.

    def _read_index(self) -> Index:
        count = self.blocks.end
        return IndexReader(self._volume, self.number, self.seed, count, self._block).read()

    def _find_blocks(self, inode: Inode) -> Leaf:
        """The map of the directory, checked: it has no holes, and no block occurs twice, so that
        what is read of it cannot be more than what is in the image."""
        bits = self._volume.block_bits
        count = inode.size >> bits
        if not count or inode.size & self._volume.block_bytes - 1:
            raise self.damaged(f"the size {inode.size}")
        if count > self._volume.superblock.blocks_count:
            raise self.damaged(f"more blocks ({count}) than the file system")
        extents = self.shared.maps.of(inode).extents(0, count)
        end = 0
        for extent in sorted(extents, key=lambda each: each.physical):
            if not extent.physical or not extent.written:
                raise self.damaged(f"a hole at block {extent.logical}")
            if extent.physical < end:
                raise self.damaged(f"block {extent.physical} twice")
            end = extent.physical + extent.count
        return Leaf(0, count, extents)

    def physical(self, logical: int) -> int:
        """Where a block of the directory is."""
        blocks = self.blocks
        if logical >= blocks.end:
            raise self.damaged(f"no block {logical}")
        extent = blocks.extents[bisect_right(blocks.starts, logical) - 1]
        return extent.physical + logical - extent.logical

    def _block(self, logical: int) -> bytes:
        """A block of the directory."""
        return self._volume.block(self.physical(logical))

    def _leaf_records(self, logical: int) -> Iterator[Record]:
        """What is in a block that is not part of the index."""
        raw = self._volume.sealed(self.physical(logical))
        end = len(raw)
        if self._volume.has_metadata_csum:
            end -= ext4_dir_entry_tail.SIZE
            tail = ext4_dir_entry_tail.decode(raw, end)
            if (
                tail.det_reserved_ft != layout.DIR_TAIL_FILE_TYPE
                or tail.det_rec_len != ext4_dir_entry_tail.SIZE
                or tail.det_reserved_zero1
                or tail.det_checksum != crc32c(self.seed, raw[:end])
            ):
                raise self.damaged(f"a wrong checksum in block {logical}")
        return self.shared.records_in(self.number, raw, 0, end)

    def _leaf_entries(self, logical: int) -> Iterator[RawEntry]:
        base = logical << self._volume.block_bits
        for at, _, number, name in self._leaf_records(logical):
            if number:
                yield base + at, number, name

    def _inline_entries(self) -> Iterator[RawEntry]:
        """The entries of a directory that is inside its inode: one part in i_block, one behind."""
        raw = inodes.inline_data(self._volume, self._inode)
        split = len(self._inode.disk.i_block)
        yield 0, int.from_bytes(raw[:_INLINE_PARENT_BYTES], "little"), b".."
        for start, end in ((_INLINE_PARENT_BYTES, split), (split, len(raw))):
            for at, _, number, name in self.shared.records_in(self.number, raw, start, end):
                if number:
                    yield at, number, name

    # Chunks.

    def chunk(self, at: int) -> Chunk:
        """The chunk that begins at leaf `at` of the index (0 without one)."""
        index = self.index
        first = index.leaves[at] if index else 0
        chunk = self.known_chunk(first)
        if chunk is None:
            chunk = self._read_chunk(at)
            self.publish_chunk(first, chunk)
        return chunk

    def _read_chunk(self, at: int) -> Chunk:
        if self._inline:
            entries = list(self._inline_entries())
        else:
            blocks = self._leaves(at)
            if len(blocks) << self._volume.block_bits > image_limits.DIRECTORY_LINEAR_BYTES_MAX:
                raise self.damaged("so much without an index that it needs e2fsck -D first")
            entries = [entry for block in blocks for entry in self._leaf_entries(block)]
        return Chunk([entry for entry in entries if entry[2] not in _DOTS])

    def _leaves(self, at: int) -> Sequence[int]:
        """The blocks of the chunk at `at`."""
        if self.index:
            return self.index.leaves[at : self.index.group_end(at)]
        return self._folded_index.leaves if self._folded_index else range(self.blocks.end)

    # Rooms.

    def room(self, logical: int) -> Room:
        """Where the records are, and where something fits, in a block of entries."""
        key = (self._identity, logical)
        room = self.shared.rooms.get(key)
        if room is None:
            end = self._volume.block_bytes
            if self._volume.has_metadata_csum:
                end -= ext4_dir_entry_tail.SIZE
            records = (
                (at, length, bytes_needed(len(name)) if number else 0)
                for at, length, number, name in self._leaf_records(logical)
            )
            room = Room.of(end, records)
            self.shared.rooms.put(key, room)
        return room

    # What is asked of a directory.

    def parent(self) -> int:
        """The inode number of ".."."""
        if not self._parent:
            index = self.index or self._folded_index
            entries = self._inline_entries() if self._inline else self._leaf_entries(0)
            self._parent = (
                index.parent
                if index
                else next((number for _, number, name in entries if name == b".."), 0)
            )
        if not 0 < self._parent <= self.shared.inodes_count:
            raise self.damaged(f"inode {self._parent} for its parent")
        return self._parent

    def lookup(self, name: bytes) -> int:
        """The inode number of `name`; 0: there is none."""
        index = self.index
        if index is None:
            return self.chunk(0).names.get(name, 0)
        for logical in index.leaves_of(self.hash_of(name)[0]):
            raw = self._block(logical)
            at = find_name(raw, self.room(logical), name, self.shared.has_file_type)
            if at >= 0:
                return int.from_bytes(raw[at : at + 4], "little")
        return 0

    def is_empty(self) -> bool:
        """Whether it has no names but "." and "..". Stops at the first one."""
        index = self.index
        if not index:
            return not self.chunk(0).names
        return not any(
            number for logical in index.leaves for _, _, number, _ in self._leaf_records(logical)
        )

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        """At most `limit` entries after `cookie`. None of them has its node."""
        found = []
        if cookie < DOT_COOKIE:
            found.append(Entry(self.number, b".", DOT_COOKIE))
        if cookie < DOTDOT_COOKIE:
            found.append(Entry(self.parent(), b"..", DOTDOT_COOKIE))
        index = self.index
        at = index.group_of(cookie >> 32 << 1) if index else 0
        while len(found) < limit:
            listing, cookies = self.chunk(at).listed(self._position(at))
            begin = bisect_right(cookies, cookie)
            found += listing[begin : begin + limit - len(found)]
            if not index:
                break
            at = index.group_end(at)
            if at >= len(index.leaves):
                break
        return found[:limit]

    def _position(self, at: int) -> Position:
        """What gives the entries of the chunk at `at` their cookies."""
        if not self._has_dir_index:
            return lambda _, offset: offset + 1
        index, hash_of = self.index, self.hash_of
        low, high = (
            (index.hash_at(at), index.hash_at(index.group_end(at))) if index else (0, HASH_END)
        )
        has_minor = self._version % UNSIGNED != LEGACY

        def by_hash(name: bytes, _: int) -> int:
            major, minor = hash_of(name)
            if not low <= major < high:
                raise self.damaged(f"{name!r} where the index does not look for it")
            return major >> 1 << 32 | (minor if has_minor else zlib.crc32(name))

        return by_hash

    # What is published.

    def known_chunk(self, first: int) -> Chunk | None:
        """The chunk that begins with block `first`, if it is at hand."""
        return self.shared.chunks.get((self._identity, first))

    def publish_chunk(self, first: int, chunk: Chunk) -> None:
        """This is now the chunk that begins with block `first`."""
        self.shared.chunks.put((self._identity, first), chunk)

    def forget_chunk(self, first: int) -> None:
        """The chunk that begins with block `first` is not what it was, or has gone."""
        self.shared.chunks.forget((self._identity, first))

    def publish_put(
        self, first: int, logical: int, block: DirectoryBlock, name: bytes, number: int, offset: int
    ) -> None:
        """`name` is in block `logical` now, or means another inode."""
        self.publish_room(logical, block)
        chunk = self.known_chunk(first)
        if chunk is not None:
            chunk.roomy = logical
            chunk.put(name, number, offset)
            if len(chunk.names) >= chunk.weight:
                self.forget_chunk(first)
                chunk.weight += chunk.weight // 4 + _GROWTH
                self.publish_chunk(first, chunk)

    def publish_drop(self, first: int, logical: int, block: DirectoryBlock, name: bytes) -> None:
        """`name` has gone from block `logical`."""
        self.publish_room(logical, block)
        chunk = self.known_chunk(first)
        if chunk is not None:
            chunk.roomy = logical
            chunk.drop(name)

    def publish_room(self, logical: int, block: DirectoryBlock) -> None:
        """There is another block at `logical`."""
        self.shared.rooms.put((self._identity, logical), block.room)

    def publish_block(self, physical: int) -> None:
        """The directory has one block more."""
        end = self.blocks.end
        *extents, last = self.blocks.extents
        if last.physical + last.count == physical:
            extents.append(Extent(last.logical, last.count + 1, last.physical))
        else:
            extents += (last, Extent(end, 1, physical))
        self.blocks = Leaf(0, end + 1, extents)

    def publish_index(self, index: Index) -> None:
        """This is its index now."""
        self.index = index

    def publish_parent(self, parent: int) -> None:
        """It is in another directory now."""
        self._parent = parent
