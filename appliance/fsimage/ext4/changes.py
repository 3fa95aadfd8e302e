"""What changes names and attributes: create, link, remove, rmdir, rename, set_attributes.

Each is one operation (operation.py), so that it happens whole or not at all, whenever the power
fails. Removing and truncating what is large goes on in further ones (removal.py, content.py).
"""

from __future__ import annotations

import secrets
import struct
from random import Random
from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import content, directory_changes, layout, removal, xattr_changes
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_extent_header, ext4_inode
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode, SetAttributes, SetTime

if TYPE_CHECKING:
    from appliance.fsimage.ext4.filesystem import Ext4
    from appliance.fsimage.ext4.node import Ext4Node

_I_BLOCK_BYTES: Final = 60
_EXTRA_ISIZE: Final = ext4_inode.SIZE - layout.GOOD_OLD_INODE_SIZE
_MASK16: Final = 0xFFFF
_MASK32: Final = 0xFFFF_FFFF
_SECOND: Final = 1_000_000_000

_ROOTS_IN_I_BLOCK: Final = (_I_BLOCK_BYTES - ext4_extent_header.SIZE) // ext4_extent_header.SIZE
_NO_EXTENTS: Final = struct.pack("<HHHHI", layout.EXTENT_MAGIC, 0, _ROOTS_IN_I_BLOCK, 0, 0).ljust(
    _I_BLOCK_BYTES, b"\0"
)
_chance: Final = Random(secrets.randbits(256))

_HAS_BLOCKS: Final = (FileType.REGULAR, FileType.DIRECTORY)
_INHERITED: Final = {
    FileType.DIRECTORY: layout.INHERITED_FL,
    FileType.REGULAR: layout.INHERITED_BY_FILES_FL,
}


# --- create -------------------------------------------------------------------------


def create(directory: Ext4Node, name: bytes, new: NewNode) -> Ext4Node:
    """Make a node of any type. EXIST, NOSPC, MLINK, NAMETOOLONG."""
    filesystem = directory.filesystem
    with filesystem.lock:
        _check_new(directory, name)
        inode = filesystem.change(lambda operation: _create(directory, name, new, operation))
        node = filesystem.new_node(inode)
        filesystem.names.put((directory.inode.number, name), node)
        return node


def _check_new(directory: Ext4Node, name: bytes) -> None:
    directory.check_alive()
    if directory.directory.lookup(name):
        raise VfsError(Code.EXIST)


def _create(directory: Ext4Node, name: bytes, new: NewNode, operation: Operation) -> Inode:
    filesystem = directory.filesystem
    above = operation.inode(directory.inode.number)
    is_directory = new.type is FileType.DIRECTORY
    number = operation.allocate_inode(above.number, directory=is_directory)
    inode = _new_inode(filesystem, operation, number, new)
    xattr_changes.set_lists(operation, inode, new.acl, new.default_acl)
    if is_directory:
        inode.disk.i_links_count = 2
        directory_changes.make_first_block(filesystem.directories, operation, inode, above.number)
        _link_from_below(filesystem, above, +1)
    elif new.type is FileType.SYMLINK:
        _set_target(filesystem, operation, inode, new.target)
    flags = above.disk.i_flags & layout.INHERITED_FL
    if flags:
        inode.disk.i_flags |= flags & _INHERITED.get(new.type, layout.INHERITED_BY_OTHERS_FL)
    if new.first is not None:
        inode.size = new.first.size or inode.size
        _set_times(inode, new.first)
    file_type = layout.FILE_TYPES[new.type]
    directory_changes.enter(directory.directory, operation, name, number, file_type)
    return inode


def blank_inode(superblock: Superblock) -> tuple[ext4_inode, bytes]:
    """What all new files and directories begin with, and what stands behind it."""
    blank = ext4_inode.decode(bytes(ext4_inode.SIZE))
    room = superblock.inode_bytes - layout.GOOD_OLD_INODE_SIZE
    blank.i_extra_isize = min(_EXTRA_ISIZE, room)
    blank.i_links_count = 1
    if superblock.disk.s_feature_incompat & layout.INCOMPAT_EXTENTS:
        blank.i_flags, blank.i_block = layout.EXTENTS_FL, _NO_EXTENTS
    return blank, bytes(room - blank.i_extra_isize)


def _new_inode(filesystem: Ext4, operation: Operation, number: int, new: NewNode) -> Inode:
    blank, body = filesystem.blank_inode
    disk = blank.copy()
    disk.i_mode = new.type << 12 | new.mode
    if new.uid or new.gid:
        disk.i_uid, disk.i_uid_high = new.uid & _MASK16, new.uid >> 16 & _MASK16
        disk.i_gid, disk.i_gid_high = new.gid & _MASK16, new.gid >> 16 & _MASK16
    if new.type not in _HAS_BLOCKS:
        disk.i_flags, disk.i_block = 0, bytes(_I_BLOCK_BYTES)
        if new.type in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE):
            disk.i_block = inodes.encoded_rdev(*new.rdev)
    inode = operation.new_inode(number, disk, body)
    disk.i_generation = _new_generation(operation.volume, inode)
    return inode


def _new_generation(volume: Volume, inode: Inode) -> int:
    """One that no handle of a file that had this number has: by chance, and not the last one. (To
    count up from the last one would give, after a rollback, the same ones again.)"""
    last = volume.unfinished.inodes.get(inode.number)
    if last is not None:
        before = last.disk.i_generation
    else:
        block, offset = inode.place
        at = offset + layout.I_GENERATION_OFFSET
        before = int.from_bytes(volume.block(block)[at : at + 4], "little")
    while True:
        generation = _chance.getrandbits(32)
        if generation not in (0, before):
            return generation


def _set_target(filesystem: Ext4, operation: Operation, inode: Inode, target: bytes) -> None:
    """The text of a symbolic link: in the inode, or in a block."""
    inode.size = len(target)
    if len(target) < _I_BLOCK_BYTES:
        inode.disk.i_block = target.ljust(_I_BLOCK_BYTES, b"\0")
        return
    if len(target) >= filesystem.volume.block_bytes:
        raise VfsError(Code.NAMETOOLONG, "text of a symbolic link")
    if filesystem.volume.superblock.disk.s_feature_incompat & layout.INCOMPAT_EXTENTS:
        inode.disk.i_flags, inode.disk.i_block = layout.EXTENTS_FL, _NO_EXTENTS
    content.fill_first_block(filesystem, operation, inode, target)


def _link_from_below(filesystem: Ext4, inode: Inode, change: int) -> None:
    """A directory below comes or goes: its ".." is a link. A count that would be too high is 1 for
    ever, where the file system knows that (dir_nlink). MLINK."""
    disk = inode.disk
    knows = filesystem.volume.superblock.disk.s_feature_ro_compat & layout.RO_COMPAT_DIR_NLINK
    if knows and disk.i_links_count == 1:
        return
    if change < 0 and disk.i_links_count <= 2:
        return  # it was too low; without links, it would be removed
    if disk.i_links_count + change > layout.EXT4_LINK_MAX:
        if not knows:
            raise VfsError(Code.MLINK)
        disk.i_links_count = 1
        return
    disk.i_links_count += change


# --- names ----------------------------------------------------------------------------


def link(directory: Ext4Node, name: bytes, node: Ext4Node) -> None:
    """Give `node` one more name. EXIST, MLINK, NOSPC."""

    def act(operation: Operation) -> None:
        inode = operation.inode(node.inode.number)
        if inode.disk.i_links_count >= layout.EXT4_LINK_MAX:
            raise VfsError(Code.MLINK)
        inode.disk.i_links_count += 1
        operation.touched(inode)
        file_type = layout.FILE_TYPES[inode.type]
        directory_changes.enter(directory.directory, operation, name, inode.number, file_type)

    filesystem = directory.filesystem
    with filesystem.lock:
        _check_new(directory, name)
        node.check_alive()
        filesystem.change(act)
        filesystem.names.put((directory.inode.number, name), node)


def remove(directory: Ext4Node, name: bytes) -> None:
    """Take away a name of something that is not a directory. NOENT, ISDIR."""
    filesystem = directory.filesystem
    with filesystem.lock:
        node = directory.lookup(name)
        if node.attributes().type is FileType.DIRECTORY:
            raise VfsError(Code.ISDIR)
        number = node.inode.number

        def act(operation: Operation) -> bool:
            directory_changes.remove(directory.directory, operation, name)
            return _unlink(filesystem, operation, number)

        gone = filesystem.change(act)
        filesystem.names.forget((directory.inode.number, name))
        if not gone:
            removal.finish(filesystem, number)


def _unlink(filesystem: Ext4, operation: Operation, number: int) -> bool:
    """One name less; False: it has no more, and has to be finished."""
    inode = operation.inode(number)
    operation.touched(inode)
    if inode.disk.i_links_count > 1:
        inode.disk.i_links_count -= 1
        return True
    return removal.drop(filesystem, operation, inode)


def rmdir(directory: Ext4Node, name: bytes) -> None:
    """Remove an empty directory. NOENT, NOTDIR, NOTEMPTY."""
    filesystem = directory.filesystem
    with filesystem.lock:
        filesystem.check_writable()
        node = directory.lookup(name)
        if node.attributes().type is not FileType.DIRECTORY:
            raise VfsError(Code.NOTDIR)
        number = _empty(node)

        def act(operation: Operation) -> bool:
            directory_changes.remove(directory.directory, operation, name)
            _link_from_below(filesystem, operation.inode(directory.inode.number), -1)
            return removal.drop(filesystem, operation, operation.inode(number))

        gone = filesystem.change(act)
        filesystem.names.forget((directory.inode.number, name))
        if not gone:
            removal.finish(filesystem, number)


def _empty(directory: Ext4Node) -> int:
    """The number of a directory that has no names in it. NOTEMPTY."""
    if not directory.directory.is_empty():
        raise VfsError(Code.NOTEMPTY)
    return directory.inode.number


def rename(source: Ext4Node, name: bytes, target: Ext4Node, target_name: bytes) -> None:
    """Move an entry, replacing what `target` has by that name, in one step. NOENT, NOTEMPTY,
    NOSPC."""
    filesystem = source.filesystem
    with filesystem.lock:
        filesystem.check_writable()
        node = source.lookup(name)
        target.check_alive()
        replaced = None
        if target.directory.lookup(target_name):
            replaced = target.lookup(target_name)
            if replaced is node:
                return
            if replaced.attributes().type is FileType.DIRECTORY:
                _empty(replaced)
        rename_ = _Rename(filesystem, source, name, target, target_name, node, replaced)
        gone = filesystem.change(rename_)
        filesystem.names.forget((source.inode.number, name))
        filesystem.names.put((target.inode.number, target_name), node)
        if not gone and replaced is not None:
            removal.finish(filesystem, replaced.inode.number)


class _Rename:
    """One rename, as an operation. It says whether what was replaced is gone."""

    def __init__(
        self,
        filesystem: Ext4,
        source: Ext4Node,
        name: bytes,
        target: Ext4Node,
        target_name: bytes,
        node: Ext4Node,
        replaced: Ext4Node | None,
    ) -> None:
        self._filesystem = filesystem
        self._source, self._name = source, name
        self._target, self._target_name = target, target_name
        self._node, self._replaced = node, replaced

    def __call__(self, operation: Operation) -> bool:
        moved = operation.inode(self._node.inode.number)
        gone = self._enter(operation, moved)
        directory_changes.remove(self._source.directory, operation, self._name)
        if moved.type is FileType.DIRECTORY and self._source is not self._target:
            self._move_directory(operation, moved)
        operation.touched(moved)
        return gone

    def _enter(self, operation: Operation, moved: Inode) -> bool:
        """The new name."""
        into, name = self._target.directory, self._target_name
        file_type = layout.FILE_TYPES[moved.type]
        if self._replaced is None:
            directory_changes.enter(into, operation, name, moved.number, file_type)
            return True
        directory_changes.replace(into, operation, name, moved.number, file_type)
        number = self._replaced.inode.number
        if self._replaced.inode.type is not FileType.DIRECTORY:
            return _unlink(self._filesystem, operation, number)
        above = operation.inode(self._target.inode.number)
        _link_from_below(self._filesystem, above, -1)
        return removal.drop(self._filesystem, operation, operation.inode(number))

    def _move_directory(self, operation: Operation, moved: Inode) -> None:
        """It has another parent."""
        above = operation.inode(self._target.inode.number)
        directory_changes.set_parent(self._node.directory, operation, above.number)
        before = operation.inode(self._source.inode.number)
        _link_from_below(self._filesystem, before, -1)
        _link_from_below(self._filesystem, above, +1)


# --- attributes -------------------------------------------------------------------------


def set_attributes(node: Ext4Node, wishes: SetAttributes) -> None:
    """Change attributes, all or none."""
    filesystem = node.filesystem
    number = node.inode.number

    def act(operation: Operation) -> bool:
        inode = operation.inode(number)
        finished = True
        if wishes.size is not None and wishes.size != inode.size:
            finished = content.set_size(node, operation, inode, wishes.size)
        elif wishes.size is not None:
            operation.modified(inode)
        _set_fields(operation, inode, wishes)
        return finished

    with filesystem.lock:
        node.check_alive()
        if wishes.size is not None and wishes.size > filesystem.limits.file_bytes_max:
            raise VfsError(Code.FBIG)
        if wishes.size is not None:
            filesystem.finish_truncation(number)
        if not filesystem.change(act):
            content.finish_truncation(filesystem, number)


def _set_fields(operation: Operation, inode: Inode, wishes: SetAttributes) -> None:
    disk = inode.disk
    if wishes.mode is not None:
        disk.i_mode = disk.i_mode & ~0o7777 | wishes.mode
    if wishes.uid is not None:
        disk.i_uid, disk.i_uid_high = wishes.uid & _MASK16, wishes.uid >> 16 & _MASK16
    if wishes.gid is not None:
        disk.i_gid, disk.i_gid_high = wishes.gid & _MASK16, wishes.gid >> 16 & _MASK16
    xattr_changes.set_lists(operation, inode, wishes.acl, wishes.default_acl)
    operation.touched(inode)
    _set_times(inode, wishes)


def _set_times(inode: Inode, wishes: SetAttributes) -> None:
    assert not isinstance(wishes.atime_ns, SetTime)  # user.py has filled it in
    assert not isinstance(wishes.mtime_ns, SetTime)
    if wishes.atime_ns is not None:
        inodes.set_atime(inode, wishes.atime_ns)
    if wishes.mtime_ns is not None:
        inodes.set_mtime(inode, wishes.mtime_ns)
