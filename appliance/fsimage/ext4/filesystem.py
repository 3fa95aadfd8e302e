"""ext2, ext3 and ext4 as a vfs.FileSystem. It is only read, for now.

A handle is the number of the inode and its generation, which is new each time a number is given to
a new file: so a handle is good for ever, and never names another file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from appliance import limits
from appliance.fsimage.device import BlockDevice, Overlay
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import data as file_data
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import journal, layout
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.directory import Directories, Directory
from appliance.fsimage.ext4.extents import BlockMap, BlockMaps
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import (
    Attributes,
    Buffer,
    Entry,
    FileSystem,
    FileType,
    Limits,
    NewNode,
    Node,
    SetAttributes,
    Statistics,
)

_HANDLE: Final = struct.Struct("<QI")
"""Number and generation of the inode."""

_LINK_COUNT_MAX: Final = 65_000
_SECOND_NS: Final = 1_000_000_000


def open_ext4(device: BlockDevice, name: str) -> Ext4:
    """The file system on `device`; `name` is for messages. ImageError: it cannot be served."""
    superblock = Superblock.read(device)
    if superblock.needs_recovery:
        overlay = Overlay(device, superblock.block_bytes)
        journal.recover(Volume(device, superblock, name), overlay)
        device, superblock = overlay, Superblock.read(overlay)
    if superblock.disk.s_state & layout.STATE_ERROR_FS:
        log.warning("%s: marked as having errors; e2fsck should look at it", name)
    filesystem = Ext4(Volume(device, superblock, name))
    if filesystem.root().attributes().type is not FileType.DIRECTORY:
        raise ImageError("the root of the file system is not a directory")
    return filesystem


class Ext4(FileSystem):
    """One file system."""

    def __init__(self, volume: Volume) -> None:
        superblock = volume.superblock
        has_nanoseconds = superblock.inode_bytes > layout.GOOD_OLD_INODE_SIZE
        super().__init__(
            superblock.fsid,
            read_only=True,
            file_limits=Limits(
                link_count_max=_LINK_COUNT_MAX,
                file_bytes_max=(1 << 32 + superblock.block_bits) - 1,
                time_granularity_ns=1 if has_nanoseconds else _SECOND_NS,
            ),
        )
        self.volume: Final = volume
        self.maps: Final = BlockMaps(volume)
        self.directories: Final = Directories(volume, self.maps)
        self.nodes: Final[Cache[int, Ext4Node]] = Cache(limits.NODE_CACHE_MAX)
        self.names: Final[Cache[tuple[int, bytes], Ext4Node]] = Cache(limits.NAME_CACHE_MAX)
        self._hidden: Final = superblock.hidden_inodes
        self._statistics: Statistics | None = None

    def root(self) -> Ext4Node:
        return self.node(layout.EXT4_ROOT_INO)

    def node(self, number: int) -> Ext4Node:
        """The node of an inode. STALE: it is free."""
        node = self.nodes.get(number)
        if node is None:
            if number in self._hidden:
                raise self.volume.damaged(f"inode {number}", "is not one that may be named")
            node = Ext4Node(self, inodes.read(self.volume, number))
            self.nodes.put(number, node)
        return node

    def named_node(self, number: int) -> Ext4Node:
        """The node of an inode that a directory names: so it should be in use."""
        try:
            return self.node(number)
        except VfsError as error:
            if error.code is Code.STALE:
                raise self.volume.damaged(f"inode {number}", "has a name, but is free") from None
            raise

    def resolve(self, handle: bytes) -> Ext4Node:
        if len(handle) != _HANDLE.size:
            raise VfsError(Code.BADHANDLE, f"{len(handle)} bytes")
        number, generation = _HANDLE.unpack(handle)
        node = self.nodes.get(number)
        if node is None:
            superblock = self.volume.superblock
            if number in self._hidden or (
                number < superblock.first_inode and number != layout.EXT4_ROOT_INO
            ):
                raise VfsError(Code.BADHANDLE, f"inode {number} was never given out")
            # A number that is too high may be from before the file system was made smaller.
            if number > superblock.disk.s_inodes_count or not self.volume.inode_in_use(number):
                raise VfsError(Code.STALE, f"inode {number} is free")
            node = self.node(number)
        if node.inode.disk.i_generation != generation:
            raise VfsError(Code.STALE, f"inode {number} is another file now")
        return node

    def statistics(self) -> Statistics:
        if self._statistics is None:
            self._statistics = self._count()
        return self._statistics

    def _count(self) -> Statistics:
        superblock = self.volume.superblock
        bits = superblock.block_bits
        overhead = superblock.disk.s_overhead_blocks * superblock.cluster_blocks
        total = superblock.blocks_count
        if overhead < total:
            total -= overhead
        free, free_inodes = self.volume.free_blocks_and_inodes()
        return Statistics(
            total_bytes=total << bits,
            free_bytes=free << bits,
            available_bytes=max(0, free - superblock.reserved_blocks) << bits,
            total_files=superblock.disk.s_inodes_count,
            free_files=free_inodes,
            available_files=free_inodes,
        )

    def close(self) -> None:
        self.volume.device.close()


class Ext4Node(Node):
    """One inode. What is derived from it is made when it is first needed, and kept with it."""

    __slots__ = ("_attributes", "_directory", "_map", "filesystem", "handle", "inode")

    filesystem: Ext4

    def __init__(self, filesystem: Ext4, inode: Inode) -> None:
        self.filesystem = filesystem
        self.inode = inode
        self.handle = _HANDLE.pack(inode.number, inode.disk.i_generation)
        self._attributes = inodes.attributes_of(filesystem.volume, inode)
        self._map: BlockMap | None = None
        self._directory: Directory | None = None

    def attributes(self) -> Attributes:
        return self._attributes

    # Files and symbolic links.

    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        inode = self.inode
        left = inode.size - offset
        if left <= 0:
            return [], True
        at_end = count >= left
        if at_end:
            count = left
        if count <= 0:
            return [], at_end
        volume = self.filesystem.volume
        if inode.has_flag(layout.INLINE_DATA_FL):
            return [self._inline_data()[offset : offset + count]], at_end
        block_map = self._map
        if block_map is None:
            block_map = self._map = self.filesystem.maps.of(inode)
        return file_data.read(volume.device, block_map, volume.block_bits, offset, count), at_end

    def _inline_data(self) -> bytes:
        """The whole contents of a file that is inside its inode."""
        data = inodes.inline_data(self.filesystem.volume, self.inode)
        if len(data) < self.inode.size:
            raise self._damaged(f"holds {len(data)} bytes of {self.inode.size}")
        return data[: self.inode.size]

    def _damaged(self, how: str) -> VfsError:
        return self.filesystem.volume.damaged(f"inode {self.inode.number}", how)

    def readlink(self) -> bytes:
        inode, volume = self.inode, self.filesystem.volume
        if inode.size > volume.block_bytes:
            raise self._damaged(f"is a symbolic link of {inode.size} bytes")
        if inodes.symlink_is_inline(volume, inode) and not inode.has_flag(layout.INLINE_DATA_FL):
            if inode.size >= len(inode.disk.i_block):
                raise self._damaged(f"is a symbolic link of {inode.size} bytes without a block")
            return inode.disk.i_block[: inode.size]
        buffers, _ = self.read(0, inode.size)
        return b"".join(buffers)

    # Directories.

    def _entries(self) -> Directory:
        directory = self._directory
        if directory is None:
            directory = self._directory = Directory(self.filesystem.directories, self.inode)
        return directory

    def lookup(self, name: bytes) -> Ext4Node:
        filesystem = self.filesystem
        key = (self.inode.number, name)
        node = filesystem.names.get(key)
        if node is None:
            number = self._entries().lookup(name)
            if not number:
                raise VfsError(Code.NOENT)
            node = filesystem.named_node(number)
            filesystem.names.put(key, node)
        return node

    def parent(self) -> Ext4Node:
        if self.inode.number == layout.EXT4_ROOT_INO:
            return self
        node = self.filesystem.named_node(self._entries().parent())
        if node.attributes().type is not FileType.DIRECTORY:
            raise self._damaged(f"has a parent ({node.inode.number}) that is no directory")
        return node

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        found = self._entries().entries(cookie, limit)
        for entry in found:
            if entry.node is None:
                entry.node = self._node_of(entry)
        return found

    def _node_of(self, entry: Entry) -> Ext4Node | None:
        """The node of an entry; None if it is damaged: its name can be listed nevertheless."""
        try:
            return self.filesystem.named_node(entry.fileid)
        except VfsError:
            return None

    # What changes something.

    def set_attributes(self, changes: SetAttributes) -> None:
        raise _read_only()

    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        raise _read_only()

    def create(self, name: bytes, new: NewNode) -> Node:
        raise _read_only()

    def link(self, name: bytes, node: Node) -> None:
        raise _read_only()

    def remove(self, name: bytes) -> None:
        raise _read_only()

    def rmdir(self, name: bytes) -> None:
        raise _read_only()

    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        raise _read_only()


def _read_only() -> VfsError:
    return VfsError(Code.ROFS, "images are only read")
