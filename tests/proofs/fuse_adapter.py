"""A file system of ours under the kernel's VFS, for tests: programs that know nothing of us use it.

    FUSE_LIBRARY_NAME=fuse3 python -m tests.proofs.fuse_adapter IMAGE MOUNTPOINT

IMAGE may be "memory". It serves until it is unmounted, and says "mounted" when it can be used. Each
call goes through vfs.user.User with the caller's user and group, as a call over the wire does.
libfuse hides what is removed while it is open, as an NFS client does.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
from collections.abc import Iterator
from typing import Any

import mfusepy

from appliance.clock import SystemClock
from appliance.fsimage.durability import Durability
from appliance.fsimage.image import open_image
from appliance.limits import MiB
from appliance.vfs.access import Credential
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, Node, SetAttributes, SetTime
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.user import User

MEMORY_BYTES = 512 * MiB
LISTED_AT_ONCE = 256
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def in_errno(function: Any) -> Any:
    """The method, with what we say turned into what the kernel understands."""

    def method(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except VfsError as error:
            number = error.code.value if error.code is not Code.BADHANDLE else Code.STALE.value
            raise OSError(number, error.detail) from None

    return method


class Adapter(mfusepy.Operations):  # type: ignore[misc]
    """The operations of libfuse, by path; those on open files by the node."""

    use_ns = True

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._clock = SystemClock()
        self._open: dict[int, Node] = {}
        self._next = 0

    def init_with_config(self, connection: Any, config: Any) -> None:
        # Attributes are asked for each time: it is we who are tested, and not the kernel's caches.
        config.use_ino = 1
        config.attr_timeout = 0.0
        config.entry_timeout = 0.0
        print("mounted", flush=True)

    # Who, and where.

    @property
    def _user(self) -> User:
        uid, gid, _ = mfusepy.fuse_get_context()
        return User(Credential(uid, gid), clock=self._clock)

    def _walk(self, names: list[bytes]) -> Node:
        node, user = self._filesystem.root(), self._user
        for name in names:
            node = user.lookup(node, name)
        return node

    def _node(self, path: str) -> Node:
        return self._walk(_names(path))

    def _place(self, path: str) -> tuple[Node, bytes]:
        """The directory of a name, and the name."""
        *above, name = _names(path)
        return self._walk(above), name

    # Looking.

    @in_errno
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        its = self._node(path).attributes()
        return {
            "st_mode": its.type << 12 | its.mode,
            "st_nlink": its.nlink,
            "st_uid": its.uid,
            "st_gid": its.gid,
            "st_size": its.size,
            "st_blocks": its.used // 512,
            "st_ino": its.fileid,
            "st_rdev": os.makedev(*its.rdev),
            "st_atime": its.atime_ns,
            "st_mtime": its.mtime_ns,
            "st_ctime": its.ctime_ns,
        }

    @in_errno
    def access(self, path: str, amode: int) -> int:
        if amode & ~self._user.access(self._node(path)):
            raise VfsError(Code.ACCES)
        return 0

    @in_errno
    def readlink(self, path: str) -> str:
        return os.fsdecode(self._user.readlink(self._node(path)))

    @in_errno
    def readdir_with_offset(
        self, path: str, offset: int, fh: int
    ) -> Iterator[tuple[str, dict[str, int], int]]:
        return self._entries(self._node(path), offset)

    def _entries(self, directory: Node, cookie: int) -> Iterator[tuple[str, dict[str, int], int]]:
        while True:
            entries = self._user.read_directory(directory, cookie, LISTED_AT_ONCE)
            for entry in entries:
                yield os.fsdecode(entry.name), {"st_ino": entry.fileid}, entry.cookie
                cookie = entry.cookie
            if len(entries) < LISTED_AT_ONCE:
                return

    @in_errno
    def statfs(self, path: str) -> dict[str, int]:
        total = self._filesystem.statistics()
        return {
            "f_bsize": 4096,
            "f_frsize": 4096,
            "f_blocks": total.total_bytes // 4096,
            "f_bfree": total.free_bytes // 4096,
            "f_bavail": total.available_bytes // 4096,
            "f_files": total.total_files,
            "f_ffree": total.free_files,
            "f_favail": total.available_files,
            "f_namemax": self._filesystem.limits.name_bytes_max,
        }

    # Names.

    @in_errno
    def mknod(self, path: str, mode: int, dev: int) -> int:
        directory, name = self._place(path)
        type = FileType(stat.S_IFMT(mode) >> 12)
        if type is FileType.REGULAR:
            self._user.create(directory, name, _with_mode(mode))
            return 0
        self._user.mknod(
            directory, name, type, (os.major(dev), os.minor(dev)), wishes=_with_mode(mode)
        )
        return 0

    @in_errno
    def mkdir(self, path: str, mode: int) -> int:
        self._user.mkdir(*self._place(path), _with_mode(mode))
        return 0

    @in_errno
    def symlink(self, target: str, source: str) -> int:
        """`target` is the new path: the names are libfuse's, as seen from the other end."""
        self._user.symlink(*self._place(target), os.fsencode(source))
        return 0

    @in_errno
    def link(self, target: str, source: str) -> int:
        self._user.link(self._node(source), *self._place(target))
        return 0

    @in_errno
    def unlink(self, path: str) -> int:
        self._user.remove(*self._place(path))
        return 0

    @in_errno
    def rmdir(self, path: str) -> int:
        self._user.rmdir(*self._place(path))
        return 0

    @in_errno
    def rename(self, old: str, new: str) -> int:
        self._user.rename(*self._place(old), *self._place(new))
        return 0

    # Attributes.

    def _change(self, path: str, changes: SetAttributes) -> int:
        self._user.set_attributes(self._node(path), changes)
        return 0

    @in_errno
    def chmod(self, path: str, mode: int) -> int:
        return self._change(path, SetAttributes(mode=stat.S_IMODE(mode)))

    @in_errno
    def chown(self, path: str, uid: int, gid: int) -> int:
        keep = (0xFFFF_FFFF, -1)
        return self._change(
            path,
            SetAttributes(uid=None if uid in keep else uid, gid=None if gid in keep else gid),
        )

    @in_errno
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return self._change(path, SetAttributes(size=length))

    @in_errno
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        atime, mtime = times or (UTIME_NOW, UTIME_NOW)
        return self._change(path, SetAttributes(atime_ns=_time(atime), mtime_ns=_time(mtime)))

    # Extended attributes.

    @in_errno
    def listxattr(self, path: str) -> list[str]:
        return [os.fsdecode(name) for name in self._node(path).xattrs()]

    @in_errno
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self._having(path, name).xattr(os.fsencode(name))

    @in_errno
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        node, wanted = self._node(path), os.fsencode(name)
        if options & os.XATTR_CREATE and wanted in node.xattrs():
            raise VfsError(Code.EXIST)
        if options & os.XATTR_REPLACE:
            node = self._having(path, name)
        node.set_xattr(wanted, value)
        return 0

    @in_errno
    def removexattr(self, path: str, name: str) -> int:
        self._having(path, name).remove_xattr(os.fsencode(name))
        return 0

    def _having(self, path: str, name: str) -> Node:
        """A node with this attribute."""
        node = self._node(path)
        if os.fsencode(name) not in node.xattrs():
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return node

    # Open files.

    def _opened(self, node: Node) -> int:
        self._next += 1
        self._open[self._next] = node
        return self._next

    @in_errno
    def create(self, path: str, mode: int, fi: int | None = None) -> int:
        directory, name = self._place(path)
        return self._opened(self._user.create_unchecked(directory, name, _with_mode(mode)))

    @in_errno
    def open(self, path: str, flags: int) -> int:
        return self._opened(self._node(path))

    def release(self, path: str, fh: int) -> int:
        del self._open[fh]
        return 0

    @in_errno
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        node, found = self._open[fh], bytearray()
        while size > 0:
            buffers, at_end = self._user.read(node, offset, size)
            text = b"".join(buffers)
            found += text
            if at_end:
                break
            offset, size = offset + len(text), size - len(text)
        return bytes(found)

    @in_errno
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._user.write(self._open[fh], offset, [data])

    @in_errno
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._open[fh].commit()
        return 0

    @in_errno
    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._node(path).commit()
        return 0


def _names(path: str) -> list[bytes]:
    return [name for name in os.fsencode(path).split(b"/") if name]


def _with_mode(mode: int) -> SetAttributes:
    return SetAttributes(mode=stat.S_IMODE(mode))


def _time(wish: int) -> int | SetTime | None:
    """What libfuse hands on for "now" and "as it is" are nanoseconds that no second has."""
    if wish == UTIME_OMIT:
        return None
    return SetTime.NOW if wish == UTIME_NOW else wish


def mounted(what: str) -> FileSystem:
    if what == "memory":
        chance = random.Random(1)
        return MemoryFileSystem(MEMORY_BYTES, fsid=7, clock=SystemClock(), random=chance)
    return open_image(what, read_only=False, durability=Durability.PROCESS)


def main() -> None:
    what, mountpoint = sys.argv[1:]
    filesystem = mounted(what)
    try:
        mfusepy.FUSE(
            Adapter(filesystem), mountpoint, foreground=True, nothreads=True, allow_other=True
        )
    finally:
        filesystem.close()


if __name__ == "__main__":
    main()
