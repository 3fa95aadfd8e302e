"""Inodes that go: their blocks are given back, and then their numbers.

A file of any size is removed in as many operations as it takes. In the first one it loses its name
and goes on the list of orphans (orphans.py); in the last one it leaves the list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import content, layout, orphans, xattr_changes
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.orphans import OrphanFile
from appliance.trace import log
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType

if TYPE_CHECKING:
    from appliance.fsimage.ext4.filesystem import Ext4

_SECOND: Final = 1_000_000_000
_MASK32: Final = 0xFFFF_FFFF


def drop(filesystem: Ext4, operation: Operation, inode: Inode) -> bool:
    """`inode` has lost its last name. Whether it is gone: if not, it is on the list of orphans, and
    `finish` has to be called when the operation is published."""
    inode.disk.i_links_count = 0
    if content.release_all(filesystem, operation, inode):
        _free(filesystem, operation, inode)
        return True
    filesystem.orphans.add(operation, inode)
    return False


def finish(filesystem: Ext4, number: int) -> None:
    """Remove, in as many operations as it takes, an orphan."""
    done = False
    while not done:
        done = filesystem.change(lambda operation: _go_on(filesystem, operation, number))


def _go_on(filesystem: Ext4, operation: Operation, number: int) -> bool:
    inode = operation.inode(number)
    if not content.release_all(filesystem, operation, inode):
        return False
    _free(filesystem, operation, inode)
    return True


def _free(filesystem: Ext4, operation: Operation, inode: Inode) -> None:
    """Its blocks are gone: its attributes and its number go as well."""
    filesystem.orphans.remove(operation, inode)
    xattr_changes.release(operation, inode)
    # By a clock that is near 1970 this would be the number of an inode: the next of a list of
    # orphans, which e2fsck takes for damaged then.
    numbers = operation.volume.superblock.disk.s_inodes_count
    inode.disk.i_dtime = max(operation.now_ns // _SECOND & _MASK32, numbers)
    operation.touched(inode)
    operation.free_inode(inode.number, directory=inode.type is FileType.DIRECTORY)


# --- after a crash ----------------------------------------------------------------


def check_what_was_begun(filesystem: Ext4) -> None:
    """VfsError: a list of orphans names what cannot be one. What is on a list is removed, so it is
    looked at as a whole before anything is done: a list that is wrong in one place is left to
    e2fsck."""
    volume, maps = filesystem.volume, filesystem.maps
    on_list = filesystem.orphans
    problem = on_list.problem or orphans.check(volume, maps, on_list.numbers)
    if problem:
        raise volume.distrusted("the list of orphans", problem)
    if _has_orphan_file(filesystem):
        problem = orphans.check(volume, maps, OrphanFile(volume).numbers())
        if problem:
            raise volume.distrusted("the orphan file", problem)


def finish_what_was_begun(filesystem: Ext4) -> None:
    """Remove and truncate what a crash has left on the lists of orphans, which were checked."""
    if _has_orphan_file(filesystem):
        _empty_orphan_file(filesystem)
    for number in list(filesystem.orphans.numbers):
        try:
            _finish_one(filesystem, number)
        except VfsError as error:  # it stays on the list
            log.warning("%s: orphan %d is left: %s", filesystem.volume.name, number, error)


def _has_orphan_file(filesystem: Ext4) -> bool:
    features = filesystem.volume.superblock.disk.s_feature_ro_compat
    return bool(features & layout.RO_COMPAT_ORPHAN_PRESENT)


def _finish_one(filesystem: Ext4, number: int) -> None:
    inode = inodes.read_any(filesystem.volume, number, unlinked=True)
    if inode.disk.i_links_count == 0:
        log.info("%s: removing inode %d, which has no name", filesystem.volume.name, number)
        finish(filesystem, number)
    else:
        log.info("%s: truncating inode %d", filesystem.volume.name, number)
        content.finish_truncation(filesystem, number)


def _empty_orphan_file(filesystem: Ext4) -> None:
    """Put those in the orphan file on the list, and the file is empty."""
    volume = filesystem.volume
    orphan_file = OrphanFile(volume)
    there = set(filesystem.orphans.numbers)  # this was begun before, and cut off
    try:
        for number in orphan_file.numbers():
            if number not in there:
                there.add(number)
                _put_on_list(filesystem, number)
        filesystem.change(orphan_file.clear)
    except VfsError as error:
        log.warning("%s: the orphan file is left: %s", volume.name, error)
        return
    volume.superblock.disk.s_feature_ro_compat &= ~layout.RO_COMPAT_ORPHAN_PRESENT
    filesystem.writer.superblock_changed()


def _put_on_list(filesystem: Ext4, number: int) -> None:
    filesystem.change(lambda operation: filesystem.orphans.add(operation, operation.inode(number)))
