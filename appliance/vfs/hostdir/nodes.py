"""One file of a host directory: its descriptors, and what can be done with it.

A node opens what it needs when it needs it: an O_PATH descriptor for everything that does not touch
the content, one for reading and one for writing. It lets go of them when it is pushed out of the
cache, and of the one for writing at each commit too, since the host does not execute a program that
somebody has open for writing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from appliance.clock import MILLISECOND
from appliance.vfs.acl import Acl
from appliance.vfs.buffers import unset_bytes
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.hostdir import lists, syscalls
from appliance.vfs.hostdir.syscalls import Descriptor
from appliance.vfs.interface import (
    Attributes,
    Buffer,
    Entry,
    FileType,
    NewNode,
    Node,
    SetAttributes,
    SetTime,
)

if TYPE_CHECKING:
    from appliance.vfs.hostdir.filesystem import HostDirectory

_IOV_MAX: Final = 1024  # buffers in one pwritev, says Linux
_COOKIE_MAX: Final = (1 << 63) - 1
_BLOCK_BYTES: Final = 512  # of st_blocks
_HOST_TICK_NS: Final = 20 * MILLISECOND  # no kernel's clock for files is coarser
_USER_XATTR: Final = b"user."
_ONLY_FOR_US: Final = 0o700
_TYPES: Final = {int(type): type for type in FileType}
_LISTING: Final = os.O_RDONLY | os.O_DIRECTORY
# A descriptor for data must neither wait for nor become anything.
_DATA: Final = os.O_NONBLOCK | os.O_NOCTTY

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _on_host(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """What the host's kernel refuses becomes a VfsError."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise VfsError.from_os(error) from error

    return call


class HostNode(Node):
    """A file, directory, symbolic link, device, FIFO or socket of the host."""

    __slots__ = (
        "_attributes",
        "_bumps",
        "_lists_are_settled",
        "_path",
        "_reader",
        "_writer",
        "filesystem",
        "handle",
    )

    filesystem: HostDirectory

    def __init__(self, filesystem: HostDirectory, handle: bytes, path: Descriptor | None) -> None:
        self.filesystem = filesystem
        self.handle = handle
        self._path = path
        self._reader: Descriptor | None = None
        self._writer: Descriptor | None = None
        self._attributes: Attributes | None = None
        self._lists_are_settled = True
        self._bumps = 0

    # Descriptors. A caller keeps what it was given in a variable of its own while it uses it.

    def path(self) -> Descriptor:
        """A descriptor that is good for everything but the content."""
        path = self._path
        if path is None:
            path = self._path = self.filesystem.open_path(self.handle)
        return path

    @property
    def open_path(self) -> Descriptor | None:
        """The same, if it is open already."""
        return self._path

    def offer_path(self, path: Descriptor) -> None:
        """Somebody has just opened this node, in case that it is of use."""
        if self._path is None:
            self._path = path

    def let_go(self) -> None:
        """Close everything (when nobody uses it any more); it is opened again when needed."""
        self._path = self._reader = self._writer = None

    def _data(self, flags: int) -> Descriptor:
        """Open the content of a regular file."""
        path = self.path()
        if not stat.S_ISREG(os.fstat(path).st_mode):
            raise VfsError(Code.INVAL, "not a file")
        return syscalls.reopen(path, flags | _DATA)

    def _reading(self) -> Descriptor:
        reader = self._reader
        if reader is None:
            reader = self._reader = self._data(os.O_RDONLY)
        return reader

    def _writing(self) -> Descriptor:
        writer = self._writer
        if writer is None:
            writer = self._writer = self._data(os.O_WRONLY)
        return writer

    # Attributes.

    @_on_host
    def attributes(self) -> Attributes:
        path = self.path()
        status = os.fstat(path)
        if not status.st_nlink:
            raise VfsError(Code.STALE, "removed")
        known = self._attributes
        unchanged = known is not None and _is_unchanged(known, status, self._bumps)
        if known is None or not unchanged or not self._lists_are_settled:
            fresh = _attributes(status, self._bumps, *self._lists(path, status))
            if unchanged and fresh == known:
                return known
            known = self._attributes = fresh
        return known

    def _lists(self, path: Descriptor, status: os.stat_result) -> tuple[Acl | None, Acl | None]:
        """The access control lists. A new one is a change, so they need not be asked for again
        before there is another one: unless the last is so fresh that the next may have its time."""
        kind = stat.S_IFMT(status.st_mode)
        if not self.filesystem.limits.acls or kind == stat.S_IFLNK:
            return None, None
        age_ns = self.filesystem.clock.wall() - status.st_ctime_ns
        self._lists_are_settled = age_ns > _HOST_TICK_NS
        return lists.read(path, is_directory=kind == stat.S_IFDIR)

    @_on_host
    def set_attributes(self, changes: SetAttributes) -> None:
        path = self.path()
        name = syscalls.path_of(path)
        if changes.uid is not None or changes.gid is not None:
            keep = -1
            syscalls.set_owner(
                path,
                keep if changes.uid is None else changes.uid,
                keep if changes.gid is None else changes.gid,
            )
        if changes.size is not None:
            os.truncate(self._data(os.O_WRONLY), changes.size)
        if changes.mode is not None and not stat.S_ISLNK(os.fstat(path).st_mode):
            os.chmod(name, changes.mode)
        lists.change(path, changes.acl, changes.default_acl)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            before = os.fstat(path)
            atime, mtime = changes.atime_ns, changes.mtime_ns
            assert not isinstance(atime, SetTime) and not isinstance(mtime, SetTime)
            times = (
                before.st_atime_ns if atime is None else atime,
                before.st_mtime_ns if mtime is None else mtime,
            )
            os.utime(name, ns=times)
        self._bumps += 1

    @_on_host
    def sync(self) -> None:
        path = self.path()
        kind = stat.S_IFMT(os.fstat(path).st_mode)
        filesystem = self.filesystem
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return  # nothing but a name and attributes: durable with its directory
        filesystem.about_to_wait()
        writer = self._writer
        try:
            if kind == stat.S_IFDIR:
                os.fsync(syscalls.open_at(path, b".", _LISTING))
            else:
                os.fsync(self._reading() if writer is None else writer)
        except PermissionError:  # not readable by us: then with everything else
            filesystem.sync()
        self._writer = None

    # Extended attributes: those of users. The others are the host's own affair.

    @_on_host
    def xattr(self, name: bytes) -> bytes:
        path = self._path_for(name)
        return os.getxattr(syscalls.path_of(path), name)

    @_on_host
    def set_xattr(self, name: bytes, value: bytes) -> None:
        path = self._path_for(name)
        os.setxattr(syscalls.path_of(path), name, value)
        self._bumps += 1

    @_on_host
    def remove_xattr(self, name: bytes) -> None:
        path = self._path_for(name)
        os.removexattr(syscalls.path_of(path), name)
        self._bumps += 1

    @_on_host
    def xattrs(self) -> list[bytes]:
        path = self.path()
        names = map(os.fsencode, os.listxattr(syscalls.path_of(path)))
        return [name for name in names if name.startswith(_USER_XATTR)]

    def _path_for(self, name: bytes) -> Descriptor:
        if not name.startswith(_USER_XATTR):
            raise VfsError(Code.NOTSUPP, "an attribute with this prefix")
        return self.path()

    # Content.

    @_on_host
    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        reader = self._reading()
        left = os.fstat(reader).st_size - offset
        if left <= 0:
            return [], True
        buffer = unset_bytes(min(count, left))
        length = self.filesystem.read_at_once(reader, buffer, offset)
        if length < len(buffer):
            self.filesystem.about_to_wait()
            length += os.preadv(reader, [memoryview(buffer)[length:]], offset + length)
        if length < len(buffer):  # somebody has cut it off meanwhile
            return [memoryview(buffer)[:length]], True
        return [buffer], length == left

    @_on_host
    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        writer = self._writing()
        pending = [memoryview(piece) for piece in data if len(piece)]
        written = 0
        while pending:
            count = os.pwritev(writer, pending[:_IOV_MAX], offset + written)
            written += count
            pending = _without_first(pending, count)
        self._bumps += 1
        return written

    @_on_host
    def readlink(self) -> bytes:
        return os.readlink(b"", dir_fd=self.path())

    # Directories.

    @_on_host
    def lookup(self, name: bytes) -> HostNode:
        found = syscalls.open_at(self.path(), name, os.O_PATH)
        return self.filesystem.node_of(found, (self.handle, name))

    @_on_host
    def parent(self) -> HostNode:
        filesystem = self.filesystem
        if self.handle == filesystem.root().handle:
            return filesystem.root()
        above = syscalls.open_at(self.path(), b"..", os.O_PATH)
        if not filesystem.contains(above):
            raise VfsError(Code.STALE, "moved out of the directory that is served")
        return filesystem.node_of(above, None)

    @_on_host
    def entries(self, cookie: int, limit: int) -> list[Entry]:
        found: list[Entry] = []
        if cookie > _COOKIE_MAX:
            return found
        # One of its own, because its position is all the state that a listing has.
        listing = syscalls.open_at(self.path(), b".", _LISTING)
        os.lseek(listing, cookie, os.SEEK_SET)
        is_root = self.handle == self.filesystem.root().handle
        while len(found) < limit and (some := syscalls.directory_entries(listing)):
            for inode, after, name in some:
                if is_root and name == b"..":
                    inode = self.attributes().fileid
                found.append(Entry(inode, name, after))
        return found[:limit]

    @_on_host
    def create(self, name: bytes, new: NewNode) -> HostNode:
        directory = self.path()
        made, writer = _make(directory, name, new)
        try:
            _give_to(made, new)
            node = self.filesystem.node_of(made, (self.handle, name))
            if new.first is not None:
                node.set_attributes(new.first)
        except (OSError, VfsError):
            _unmake(directory, name, new)
            raise
        node._writer = writer
        self._bumps += 1
        return node

    @_on_host
    def link(self, name: bytes, node: Node) -> None:
        assert isinstance(node, HostNode)
        path = node.path()
        os.link(syscalls.path_of(path), name, dst_dir_fd=self.path(), follow_symlinks=True)
        self.filesystem.node_of(path, (self.handle, name))
        self._bumps += 1
        node._bumps += 1

    @_on_host
    def remove(self, name: bytes) -> None:
        node = self.lookup(name)
        os.unlink(name, dir_fd=self.path())
        self._has_gone(name, node)

    @_on_host
    def rmdir(self, name: bytes) -> None:
        node = self.lookup(name)
        os.rmdir(name, dir_fd=self.path())
        self._has_gone(name, node)

    @_on_host
    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        assert isinstance(target, HostNode)
        filesystem = self.filesystem
        with filesystem.lock:  # nobody finds it at neither place (HostDirectory.open_path)
            node, replaced = self.lookup(name), target.find(target_name)
            path = node.path()
            os.rename(name, target_name, src_dir_fd=self.path(), dst_dir_fd=target.path())
            if replaced is node:
                return
            if replaced is not None:
                target._has_gone(target_name, replaced)
            filesystem.node_of(path, (target.handle, target_name))
            filesystem.identities.forget(node.handle, (self.handle, name))
            for changed in (self, target, node):
                changed._bumps += 1

    def find(self, name: bytes) -> HostNode | None:
        """What `lookup` gives, or None."""
        try:
            return self.lookup(name)
        except VfsError as error:
            if error.code is Code.NOENT:
                return None
            raise

    def _has_gone(self, name: bytes, node: HostNode) -> None:
        """A name is no more. Its node is closed, or the host could not reuse its storage."""
        self.filesystem.identities.forget(node.handle, (self.handle, name))
        node.let_go()
        node._bumps += 1
        self._bumps += 1


def _is_unchanged(known: Attributes, status: os.stat_result, bumps: int) -> bool:
    return (
        status.st_ctime_ns == known.ctime_ns
        and status.st_ctime_ns + bumps == known.change
        and status.st_mtime_ns == known.mtime_ns
        and status.st_size == known.size
        and status.st_atime_ns == known.atime_ns
        and status.st_mode & 0o7777 == known.mode
        and status.st_nlink == known.nlink
        and status.st_uid == known.uid
        and status.st_gid == known.gid
        and status.st_blocks * _BLOCK_BYTES == known.used
    )


def _attributes(
    status: os.stat_result, bumps: int, acl: Acl | None, default_acl: Acl | None
) -> Attributes:
    """What the host says, in our words. `change` is the time of change and the number of changes
    that we made, because the host's clock for files may stand still for milliseconds."""
    rdev = status.st_rdev
    return Attributes(
        _TYPES[stat.S_IFMT(status.st_mode) >> 12],
        status.st_mode & 0o7777,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_blocks * _BLOCK_BYTES,
        (os.major(rdev), os.minor(rdev)) if rdev else (0, 0),
        status.st_ino,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ctime_ns + bumps,
        acl,
        default_acl,
    )


def _make(directory: Descriptor, name: bytes, new: NewNode) -> tuple[Descriptor, Descriptor | None]:
    """Make it, accessible to nobody else yet, and open it; a file also for writing, which a mode
    that it gets later may forbid."""
    match new.type:
        case FileType.REGULAR:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            writer = syscalls.open_at(directory, name, flags, _ONLY_FOR_US & 0o600)
            return syscalls.reopen(writer, os.O_PATH), writer
        case FileType.DIRECTORY:
            os.mkdir(name, _ONLY_FOR_US, dir_fd=directory)
        case FileType.SYMLINK:
            os.symlink(new.target, name, dir_fd=directory)
        case _:
            mode = new.type << 12 | _ONLY_FOR_US & 0o600
            os.mknod(name, mode, os.makedev(*new.rdev), dir_fd=directory)
    made = syscalls.open_at(directory, name, os.O_PATH)
    status = os.fstat(made)
    is_ours = (
        stat.S_IFMT(status.st_mode) >> 12 == new.type
        and status.st_uid == os.geteuid()
        and (new.type is FileType.DIRECTORY or status.st_nlink == 1)
    )
    if not is_ours:  # it must not be given away: it is not what we have made
        raise VfsError(Code.STALE, "replaced on the host meanwhile")
    return made, None


def _give_to(made: Descriptor, new: NewNode) -> None:
    """Owner first, since a change of owner clears bits of the mode."""
    status = os.fstat(made)
    if (status.st_uid, status.st_gid) != (new.uid, new.gid):
        # Only root can give files away; for other users the files are the server's.
        with contextlib.suppress(PermissionError):
            syscalls.set_owner(made, new.uid, new.gid)
    if new.type is not FileType.SYMLINK:
        os.chmod(syscalls.path_of(made), new.mode)


def _unmake(directory: Descriptor, name: bytes, new: NewNode) -> None:
    with contextlib.suppress(OSError):
        if new.type is FileType.DIRECTORY:
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


def _without_first(pieces: list[memoryview], count: int) -> list[memoryview]:
    """`pieces` without their first `count` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
