"""Changing a directory: names come, go, and change what they mean.

A DirectoryChange is a directory as one operation sees it: what is published, and on top of that the
blocks that the operation has changed. What it learns on the way (where records begin, where there
is room) is published with it, so that no block is parsed a second time.

    enter    linear: the first room there is, or another block; the first block of all, when it is
             full, becomes an index instead (index_changes.py), where the file system has dir_index
             indexed: the leaf of the name's hash, which is split when it is full
    remove   the record becomes a part of the one before it; no block is ever given back
    replace  the number of the inode changes in its place: that needs no room, and cannot fail

Directories that are indexed in a way that we would spoil, or that are not in blocks, are left
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import index_changes, layout, map_changes
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.directory import Directories, Directory
from appliance.fsimage.ext4.directory_block import (
    DirectoryBlock,
    Room,
    bytes_needed,
    find_name,
    seal_of,
)
from appliance.fsimage.ext4.htree import Index
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_dir_entry_2, ext4_dir_entry_tail
from appliance.fsimage.ext4.operation import Operation, Seal, no_seal
from appliance.fsimage.ext4.volume import LateSeal, Volume
from appliance.vfs.errors import Code, VfsError

_DOT_BYTES: Final = 12
_DIRECTORY: Final = 2
"""The file_type of a directory."""
_SIZE_MAX: Final = (1 << 32) - 1
"""Of a directory, where the file system has no large_dir."""

_NEVER_WRITTEN: Final = {
    layout.INLINE_DATA_FL: "is inside its inode",
    layout.CASEFOLD_FL: "folds names",
    layout.ENCRYPT_FL: "is encrypted",
}
_FLAGS_NEVER_WRITTEN: Final = sum(_NEVER_WRITTEN)


def enter(
    directory: Directory, operation: Operation, name: bytes, inode: int, file_type: int
) -> None:
    """Put in a name that is not there. NOSPC."""
    _change_of(directory, operation).enter(name, inode, file_type)


def replace(
    directory: Directory, operation: Operation, name: bytes, inode: int, file_type: int
) -> None:
    """Let a name that is there mean another inode. It takes no space."""
    _change_of(directory, operation).replace(name, inode, file_type)


def remove(directory: Directory, operation: Operation, name: bytes) -> None:
    """Take out a name. NOENT."""
    _change_of(directory, operation).remove(name)


def set_parent(directory: Directory, operation: Operation, parent: int) -> None:
    """Let ".." mean another directory."""
    _change_of(directory, operation).set_parent(parent)


def make_first_block(
    directories: Directories, operation: Operation, inode: Inode, parent: int
) -> None:
    """Make `inode`, which has no blocks, a directory with "." and ".." in it. NOSPC."""
    volume = directories.volume
    physical = _append(directories, operation, inode, operation.goal_of(inode.number))
    raw = operation.new_block(physical, late=seal_of(volume, inodes.seed_of(volume, inode)))
    block = _empty_block(raw, volume, directories)
    at = block.put(0, b".", inode.number, _DIRECTORY)
    block.put(at, b"..", parent, _DIRECTORY)


def _change_of(directory: Directory, operation: Operation) -> DirectoryChange:
    change = operation.directories.get(directory.number)
    if change is None:
        change = DirectoryChange(directory, operation)
        operation.directories[directory.number] = change
    return change


def _append(directories: Directories, operation: Operation, inode: Inode, goal: int) -> int:
    """Give the directory one more block: where it is."""
    volume = operation.volume
    physical, _ = operation.allocate(goal, 1)
    changer = map_changes.of(directories.maps, operation, inode)
    changer.insert(inode.size >> volume.block_bits, physical, 1)
    inode.size += volume.block_bytes
    return physical


def _empty_block(raw: bytearray, volume: Volume, directories: Directories) -> DirectoryBlock:
    end = len(raw)
    if volume.has_metadata_csum:
        end -= ext4_dir_entry_tail.SIZE
    block = DirectoryBlock(raw, Room.of(end, [(0, end, 0)]), directories.has_file_type)
    block.fill([])
    return block


class DirectoryChange:
    """A directory as one operation sees it.

    `index`: None: it has none (yet). `changed`: the blocks of entries that the operation has
    changed, by their logical numbers.
    """

    __slots__ = ("_appended", "changed", "directory", "index", "inode", "operation", "volume")

    def __init__(self, directory: Directory, operation: Operation) -> None:
        self.directory: Final = directory
        self.operation: Final = operation
        self.volume: Final = operation.volume
        self.inode: Final = operation.inode(directory.number)
        self.index = directory.index
        self.changed: Final[dict[int, DirectoryBlock]] = {}
        self._appended: Final[list[int]] = []
        self._check()

    def _check(self) -> None:
        """ROFS: it is one that is not written to."""
        flags = self.inode.disk.i_flags
        if flags & _FLAGS_NEVER_WRITTEN:
            problem = next(why for flag, why in _NEVER_WRITTEN.items() if flags & flag)
        elif flags & layout.INDEX_FL and not self.index:
            problem = "has an index that the file system does not know of"
        else:
            return
        raise VfsError(Code.ROFS, f"directory {self.directory.number} {problem}")

    # What is asked for.

    def enter(self, name: bytes, inode: int, file_type: int) -> None:
        needed = bytes_needed(len(name))
        place = self._linear_room(needed) if self.index is None else None
        logical, at = place or self._indexed_room(name, needed)
        block = self.block(logical)
        self._publish_put(name, logical, block.put(at, name, inode, file_type), inode)

    def replace(self, name: bytes, inode: int, file_type: int) -> None:
        logical, at = self._find(name)
        self.block(logical).replace(at, inode, file_type)
        self._publish_put(name, logical, at, inode)

    def remove(self, name: bytes) -> None:
        logical, at = self._find(name)
        block = self.block(logical)
        block.remove(at)
        publish, first = self.directory.publish_drop, self._first(name)
        self.operation.then(partial(publish, first, logical, block, name))
        self.operation.modified(self.inode)

    def set_parent(self, parent: int) -> None:
        root = self.index is not None
        raw = self.root() if root else self.block(0).raw
        self.check_dots(raw)
        raw[_DOT_BYTES : _DOT_BYTES + 4] = parent.to_bytes(4, "little")
        self.operation.then(partial(self.directory.publish_parent, parent))

    def _publish_put(self, name: bytes, logical: int, at: int, inode: int) -> None:
        offset = (logical << self.volume.block_bits) + at
        publish, first = self.directory.publish_put, self._first(name)
        block = self.changed[logical]
        self.operation.then(partial(publish, first, logical, block, name, inode, offset))
        self.operation.modified(self.inode)

    # Where a name is, or may be.

    def _find(self, name: bytes) -> tuple[int, int]:
        """Block, and offset in it, of a name. NOENT."""
        candidates: Sequence[int]
        if self.index is None:
            candidates = self._linear_candidates(name)
        else:
            candidates = self.index.leaves_of(self.directory.hash_of(name)[0])
        has_file_type = self.directory.shared.has_file_type
        for logical in candidates:
            raw = self.operation.block(self.physical(logical))
            at = find_name(raw, self._room(logical), name, has_file_type)
            if at >= 0:
                return logical, at
        raise VfsError(Code.NOENT)

    def _linear_candidates(self, name: bytes) -> list[int]:
        """The blocks that may have a name: what is known of it may not be true any more in those
        that were changed."""
        candidates = list(self.changed)
        offset = self.directory.chunk(0).offsets.get(name, -1)
        if offset >= 0:
            candidates.append(offset >> self.volume.block_bits)
        return candidates

    def _first(self, name: bytes) -> int:
        """The block with which the chunk begins that may have the name."""
        index = self.index
        return index.leaves[index.group_of(self.directory.hash_of(name)[0])] if index else 0

    def _room(self, logical: int) -> Room:
        block = self.changed.get(logical)
        return self.directory.room(logical) if block is None else block.room

    def _linear_room(self, needed: int) -> tuple[int, int] | None:
        """A block, and the offset in it where so much fits; None: the directory has an index
        now."""
        roomy = self.directory.chunk(0).roomy
        for logical in chain(range(roomy, self.count), range(roomy)):
            at = self._room(logical).find(needed)
            if at >= 0:
                return logical, at
        if self.count == 1 and self.volume.superblock.has_dir_index:
            index_changes.make(self)
            return None
        if (self.count + 1) << self.volume.block_bits > image_limits.DIRECTORY_LINEAR_BYTES_MAX:
            raise VfsError(Code.NOSPC, f"directory {self.directory.number} needs an index")
        return self.append_leaf(), 0

    def _indexed_room(self, name: bytes, needed: int) -> tuple[int, int]:
        major = self.directory.hash_of(name)[0]
        # The half of a leaf that was split has room for the longest name.
        for _ in range(2):
            assert self.index is not None
            at = self.index.leaf_of(major)
            logical = self.index.leaves[at]
            offset = self.block(logical).room.find(needed)  # it changes, with or without a split
            if offset >= 0:
                return logical, offset
            index_changes.split(self, at)
        raise self.directory.damaged(f"no room for a name of {needed} bytes in half a block")

    # Blocks.

    @property
    def count(self) -> int:
        """How many blocks it has."""
        return self.directory.blocks.end + len(self._appended)

    def physical(self, logical: int) -> int:
        """Where a block is."""
        at = logical - self.directory.blocks.end
        return self.directory.physical(logical) if at < 0 else self._appended[at]

    def block(self, logical: int) -> DirectoryBlock:
        """A block of entries, to be changed."""
        block = self.changed.get(logical)
        if block is None:
            directory = self.directory
            room = directory.room(logical).copy()
            raw = self.operation.change(self.physical(logical), late=directory.seal)
            block = DirectoryBlock(raw, room, directory.shared.has_file_type)
            self.changed[logical] = block
        return block

    def append(
        self, seal_: Seal = no_seal, *, late: LateSeal | None = None
    ) -> tuple[int, bytearray]:
        """One more block: its logical number, and zeros. NOSPC."""
        logical, large = self.count, layout.INCOMPAT_LARGEDIR
        if (
            self.inode.size + self.volume.block_bytes > _SIZE_MAX
            and not self.volume.superblock.disk.s_feature_incompat & large
        ):
            raise VfsError(Code.NOSPC, f"directory {self.directory.number} is full")
        goal = self.physical(logical - 1) + 1
        physical = _append(self.directory.shared, self.operation, self.inode, goal)
        self._appended.append(physical)
        self.operation.then(partial(self.directory.publish_block, physical))
        return logical, self.operation.new_block(physical, seal_, late=late)

    def append_leaf(self) -> int:
        """One more block of entries, without any: its logical number."""
        logical, raw = self.append(late=self.directory.seal)
        block = _empty_block(raw, self.volume, self.directory.shared)
        self.changed[logical] = block
        self.operation.then(partial(self.directory.publish_room, logical, block))
        return logical

    # The index.

    def root(self) -> bytearray:
        """The first block, which is the root of the index."""
        return self.index_block(0, layout.DX_ROOT_ENTRIES_OFFSET)

    def index_block(self, logical: int, offset: int) -> bytearray:
        """A block of the index, to be changed; its entries begin at `offset`."""
        seal_ = index_changes.seal_of(self.volume, self.directory.seed, offset)
        return self.operation.change(self.physical(logical), seal_)

    def own_index(self) -> Index:
        """The index, to be changed."""
        index = self.index
        assert index is not None
        if index is self.directory.index:
            index = index.copy()
            self.set_index(index)
        return index

    def set_index(self, index: Index) -> None:
        """This is the index from now on."""
        self.index = index
        self.operation.then(partial(self.directory.publish_index, index))

    def check_dots(self, raw: bytes | bytearray) -> int:
        """What ".." means. IO: the first block does not begin as it should."""
        unpack = ext4_dir_entry_2.STRUCT.unpack_from
        number, length, *_ = unpack(raw, 0)
        parent, *_ = unpack(raw, _DOT_BYTES)
        names = raw[8:10] + raw[_DOT_BYTES + 6 : _DOT_BYTES + 7] + raw[_DOT_BYTES + 8 :][:3]
        as_it_should = number == self.directory.number and length == _DOT_BYTES and parent
        if not as_it_should or names != b".\0\2..\0":
            raise self.directory.damaged('no "." and ".." where they belong')
        found: int = parent
        return found
