"""One file, directory or symbolic link as a vfs.Node.

A node has the inode as it is published; what is derived from it is made when it is first needed,
and kept with it. When the inode has lost its last name, its node is stale, whoever still has it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import changes, content, layout, xattr, xattr_changes, xattr_reader
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.directory import Directory
from appliance.fsimage.ext4.extents import BlockMap
from appliance.fsimage.ext4.inode import Inode
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import (
    Attributes,
    Buffer,
    Entry,
    FileType,
    NewNode,
    Node,
    SetAttributes,
    Ticket,
)

if TYPE_CHECKING:
    from appliance.fsimage.ext4.filesystem import Ext4

HANDLE: Final = struct.Struct("<QI")
"""Number and generation of the inode."""


class Ext4Node(Node):
    """One inode."""

    __slots__ = (
        "__weakref__",
        "_attributes",
        "_directory",
        "_map",
        "alive",
        "filesystem",
        "handle",
        "inode",
    )

    filesystem: Ext4

    def __init__(self, filesystem: Ext4, inode: Inode) -> None:
        self.filesystem = filesystem
        self.inode = inode
        self.handle = HANDLE.pack(inode.number, inode.disk.i_generation)
        self.alive = True
        self._attributes: Attributes | None = None  # made when somebody asks for them
        self._map: BlockMap | None = None
        self._directory: Directory | None = None

    def attributes(self) -> Attributes:
        attributes = self._attributes
        if attributes is None:
            with self.filesystem.lock:
                self.check_alive()
                attributes = self._attributes = _attributes_of(self.filesystem, self.inode)
        return attributes

    def renew(self, inode: Inode) -> bool:
        """`inode` is what was published for it; whether there is still such a node."""
        is_same = inode.disk.i_generation == self.inode.disk.i_generation
        block_map = self._map
        if inode.disk.i_block != self.inode.disk.i_block and block_map is not None:
            self._map = block_map if block_map.follow(inode) else None
        self.inode = inode
        self._attributes = None
        self.alive = is_same and inode.disk.i_links_count > 0
        return self.alive

    def reload(self) -> bool:
        """The file system was opened again, from another state; whether there is such a node."""
        self._map = None
        self._directory = None
        try:
            inode = inodes.read(self.filesystem.volume, self.inode.number)
            return self.renew(inode)
        except VfsError:
            self._attributes = None
            self.alive = False
            return False

    def check_alive(self) -> None:
        """STALE: it was removed."""
        if not self.alive:
            raise VfsError(Code.STALE, f"inode {self.inode.number} was removed")

    def sync(self) -> Ticket | None:
        return self.filesystem.sync()

    def commit(self) -> None:
        self.filesystem.commit()

    def set_attributes(self, changes_: SetAttributes) -> None:
        changes.set_attributes(self, changes_)

    # Extended attributes.

    def xattr(self, name: bytes) -> bytes:
        value = self._xattrs().get(name)
        if value is None:
            raise VfsError(Code.NOENT, "attribute")
        return value

    def xattrs(self) -> list[bytes]:
        return list(self._xattrs())

    def _xattrs(self) -> dict[bytes, bytes]:
        with self.filesystem.lock:
            self.check_alive()
            found = xattr_reader.read_all(self.filesystem.volume, self.inode)
        named = {xattr.name_of(key): value for key, value in found.items()}
        return {name: value for name, value in named.items() if name is not None}

    def set_xattr(self, name: bytes, value: bytes) -> None:
        self._change_xattr(name, value)

    def remove_xattr(self, name: bytes) -> None:
        self._change_xattr(name, None)

    def _change_xattr(self, name: bytes, value: bytes | None) -> None:
        number = self.inode.number
        with self.filesystem.lock:
            self.check_alive()
            self.filesystem.change(
                lambda operation: xattr_changes.change(
                    operation, operation.inode(number), name, value
                )
            )

    # Files and symbolic links.

    @property
    def block_map(self) -> BlockMap:
        """Where its blocks are. The lock is held."""
        block_map = self._map
        if block_map is None:
            block_map = self._map = self.filesystem.maps.of(self.inode)
        return block_map

    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        return content.read(self, offset, count)

    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        return content.write(self, offset, data)

    def readlink(self) -> bytes:
        self.check_alive()
        inode, volume = self.inode, self.filesystem.volume
        if inode.size > volume.block_bytes:
            raise self.damaged(f"is a symbolic link of {inode.size} bytes")
        if inodes.symlink_is_inline(volume, inode) and not inode.has_flag(layout.INLINE_DATA_FL):
            if inode.size >= len(inode.disk.i_block):
                raise self.damaged(f"is a symbolic link of {inode.size} bytes without a block")
            return inode.disk.i_block[: inode.size]
        buffers, _ = self.read(0, inode.size)
        return b"".join(buffers)

    def damaged(self, how: str) -> VfsError:
        """The error for something that is not as it should be."""
        return self.filesystem.volume.damaged(f"inode {self.inode.number}", how)

    # Directories.

    @property
    def directory(self) -> Directory:
        """The names in it. The lock is held."""
        directory = self._directory
        if directory is None:
            self.check_alive()
            directory = self._directory = Directory(self.filesystem.directories, self.inode)
        return directory

    def lookup(self, name: bytes) -> Ext4Node:
        filesystem = self.filesystem
        key = (self.inode.number, name)
        node = filesystem.names.get(key)
        if node is None:
            with filesystem.lock:
                number = self.directory.lookup(name)
                if not number:
                    raise VfsError(Code.NOENT)
                node = filesystem.named_node(number)
                filesystem.names.put(key, node)
        return node

    def parent(self) -> Ext4Node:
        if self.inode.number == layout.EXT4_ROOT_INO:
            return self
        with self.filesystem.lock:
            node = self.filesystem.named_node(self.directory.parent())
        if node.attributes().type is not FileType.DIRECTORY:
            raise self.damaged(f"has a parent ({node.inode.number}) that is no directory")
        return node

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        with self.filesystem.lock:
            found = self.directory.entries(cookie, limit)
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

    # What changes a directory.

    def create(self, name: bytes, new: NewNode) -> Node:
        return changes.create(self, name, new)

    def link(self, name: bytes, node: Node) -> None:
        assert isinstance(node, Ext4Node)
        changes.link(self, name, node)

    def remove(self, name: bytes) -> None:
        changes.remove(self, name)

    def rmdir(self, name: bytes) -> None:
        changes.rmdir(self, name)

    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        assert isinstance(target, Ext4Node)
        changes.rename(self, name, target, target_name)


def _attributes_of(filesystem: Ext4, inode: Inode) -> Attributes:
    volume = filesystem.volume
    return inodes.attributes_of(volume, inode, *xattr_reader.lists_of(volume, inode))
