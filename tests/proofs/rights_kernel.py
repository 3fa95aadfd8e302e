"""What the kernel says about who may do what: the operations of a history, on an image mounted
through a loop device, by a process that takes on the identity of each caller.

Directories and files are held by descriptors that the superuser has opened, as handles are held by
a client: so what is asked is the right to the operation, and not to the way there. Where the rules
of NFS are not those of system calls, an action does what knfsd does, and says why.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.interop.loop_worker import main

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE_FL, FS_APPEND_FL = 0x10, 0x20
AT_EMPTY_PATH = 0x1000
CLOCK_REALTIME_COARSE = 5
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SET_ID = stat.S_ISUID | stat.S_ISGID
DOTS = (".", "..")
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CLIENTS_TIMES_NS = 10**18
"""Times before this one were set by somebody; the others are the clock's."""

LIBC = ctypes.CDLL(None, use_errno=True)

Who = tuple[int, int, list[int]]
"""User, group, and supplementary groups."""


# --- identities and descriptors ------------------------------------------------------------------


@contextmanager
def acting(who: Who) -> Iterator[None]:
    """As this user. What only the superuser may do goes with him, as in knfsd."""
    uid, gid, groups = who
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


@contextmanager
def superuser() -> Iterator[None]:
    """What knfsd does whatever the mode says."""
    uid, gid = os.geteuid(), os.getegid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.setegid(gid)
        os.seteuid(uid)


def name_of(held: int) -> str:
    return f"/proc/self/fd/{held}"


class Nowhere(Exception):
    """There is nothing at this path."""


@contextmanager
def holding(*paths: str) -> Iterator[list[int]]:
    """Descriptors of these, opened by the superuser only to name them."""
    held: list[int] = []
    try:
        for path in paths:
            try:
                held.append(os.open(f"./{path}", os.O_PATH | os.O_NOFOLLOW))
            except OSError:
                raise Nowhere from None
        yield held
    finally:
        for each in held:
            os.close(each)


def is_owner(held: int) -> bool:
    return os.fstat(held).st_uid == os.geteuid()


def may(held: int, wanted: int) -> bool:
    return os.access(name_of(held), wanted, effective_ids=True)


def fixed(held: int) -> int:
    """Which of the flags of chattr(1) forbid something."""
    if stat.S_IFMT(os.fstat(held).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return 0
    with superuser():
        return flags_of(held) & (FS_IMMUTABLE_FL | FS_APPEND_FL)


def flags_of(held: int) -> int:
    buffer = bytearray(8)
    control(held, FS_IOC_GETFLAGS, buffer)
    return int(struct.unpack_from("<I", buffer)[0])


def set_flags(held: int, flags: int) -> None:
    control(held, FS_IOC_SETFLAGS, bytearray(struct.pack("<Q", flags)))


def control(held: int, request: int, buffer: bytearray) -> None:
    opened = os.open(name_of(held), os.O_RDONLY)
    try:
        fcntl.ioctl(opened, request, buffer)
    finally:
        os.close(opened)


@contextmanager
def appending(held: int) -> Iterator[None]:
    """What knfsd takes for appending, and no system call."""
    with superuser():
        flags = flags_of(held)
        set_flags(held, flags & ~FS_APPEND_FL)
    try:
        yield
    finally:
        with superuser():
            set_flags(held, flags)


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# --- operations ----------------------------------------------------------------------------------


def create(where: int, name: str, mode: int) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL, mode, dir_fd=where))


def create_unchecked(where: int, name: str, mode: int, size: int | None) -> None:
    """knfsd looks first: what is there keeps all but its size. "." and ".." are there, and no
    files."""
    try:
        os.stat(name, dir_fd=where, follow_symlinks=False)
        if name in DOTS:
            raise failure(errno.EEXIST)
    except FileNotFoundError:
        create(where, name, mode)
        if size is not None:
            with superuser():
                os.truncate(f"{name_of(where)}/{name}", size)
        return
    with superuser():
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=where)
    try:
        if size is not None and stat.S_ISREG(os.fstat(found).st_mode):
            truncate(found, size)
    finally:
        os.close(found)


def mkdir(where: int, name: str, mode: int) -> None:
    """mkdir(2) leaves the set-id bits to chmod(2); over NFS they come with the call."""
    os.mkdir(name, mode & ~SET_ID, dir_fd=where)
    if mode & SET_ID:
        with superuser():
            path = f"{name_of(where)}/{name}"
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | mode & SET_ID)


def symlink(where: int, name: str, text: str) -> None:
    os.symlink(text, name, dir_fd=where)


def mknod(where: int, name: str, type: int, major: int, minor: int, mode: int) -> None:
    os.mknod(name, type << 12 | mode, os.makedev(major, minor), dir_fd=where)


def link(held: int, where: int, name: str) -> None:
    """fs.protected_hardlinks is a rule of link(2) alone. It is met before the rights to the
    directory and the rules for what is linked, which are then looked at here."""
    source = name_of(held)
    try:
        os.link(source, name, dst_dir_fd=where)
    except PermissionError as error:
        its = os.fstat(held)
        if error.errno != errno.EPERM or os.geteuid() in (0, its.st_uid):
            raise
        if not may(where, os.W_OK | os.X_OK):
            raise failure(errno.EPERM if fixed(where) & FS_IMMUTABLE_FL else errno.EACCES) from None
        if fixed(held) or stat.S_ISDIR(its.st_mode):
            raise
        with superuser():
            os.link(source, name, dst_dir_fd=where)


def remove(where: int, name: str) -> None:
    os.unlink(name, dir_fd=where)


def rmdir(where: int, name: str) -> None:
    """RFC 1813 has a word of its own for ".."."""
    try:
        os.rmdir(name, dir_fd=where)
    except OSError as error:
        if name != ".." or error.errno != errno.ENOTEMPTY:
            raise
        raise failure(errno.EEXIST) from None


def rename(where: int, to: int, name: str, new: str) -> None:
    """RFC 1813 has a word of its own for "." and ".."."""
    try:
        os.rename(name, new, src_dir_fd=where, dst_dir_fd=to)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise failure(errno.EINVAL) from None


def chmod(held: int, mode: int) -> None:
    """knfsd does not hear a wish for the mode of a symbolic link."""
    if stat.S_ISLNK(os.fstat(held).st_mode):
        if os.fstatvfs(held).f_flag & os.ST_RDONLY:
            raise failure(errno.EROFS)
        return
    os.chmod(name_of(held), mode)


def chown(held: int, uid: int, gid: int) -> None:
    os.chown(name_of(held), uid, gid)


def give(held: int, uid: int, gid: int, mode: int) -> None:
    """Owner and mode in one call. Of the mode, knfsd leaves out what a change of owner takes."""
    its = os.fstat(held).st_mode
    if not stat.S_ISDIR(its):
        mode &= ~SET_ID if mode & stat.S_IXGRP else ~stat.S_ISUID
    chown(held, uid, gid)
    chmod(held, mode)


def times(held: int, atime: int | str | None, mtime: int | str | None) -> None:
    """Of two times that are both "now" utimensat(2) asks whether the caller may write; of one, he
    has to be the owner, and the file not append-only. knfsd asks the same of one as of two."""
    wishes = (atime, mtime)
    try:
        set_times(held, *wishes)
    except PermissionError:
        if "now" not in wishes or None not in wishes or fixed(held) & FS_IMMUTABLE_FL:
            raise
        if not (is_owner(held) or may(held, os.W_OK)):
            raise failure(errno.EACCES) from None
        with appending(held) if fixed(held) else nullcontext(), superuser():
            set_times(held, *wishes)


def set_times(held: int, *wishes: int | str | None) -> None:
    spec = (ctypes.c_long * 4)()
    for at, wish in enumerate(wishes):
        if isinstance(wish, int):
            spec[2 * at] = wish
        else:
            spec[2 * at + 1] = UTIME_NOW if wish else UTIME_OMIT
    if LIBC.utimensat(held, b"", spec, AT_EMPTY_PATH):
        raise failure(ctypes.get_errno())


def opened_to_write(held: int) -> int:
    """knfsd lets the owner write whatever the mode says."""
    try:
        return os.open(name_of(held), os.O_WRONLY)
    except PermissionError as error:
        if error.errno != errno.EACCES or not is_owner(held):
            raise
    with superuser():
        return os.open(name_of(held), os.O_WRONLY)


def truncate(held: int, size: int) -> None:
    """knfsd lets files grow that are append-only."""
    its = os.fstat(held)
    if not stat.S_ISREG(its.st_mode):
        os.truncate(name_of(held), size)
    grows = fixed(held) == FS_APPEND_FL and size >= its.st_size
    grows = grows and (is_owner(held) or may(held, os.W_OK))
    with appending(held) if grows else nullcontext():
        file = opened_to_write(held)
        try:
            os.ftruncate(file, size)
        finally:
            os.close(file)


def rewrite(held: int, size: int, mode: int) -> None:
    """Size and mode in one call. All or nothing is done, also where knfsd would do the half."""
    its = os.fstat(held)
    for_owner = os.geteuid() not in (0, its.st_uid) or fixed(held)
    if stat.S_ISREG(its.st_mode) and for_owner:
        chmod(held, mode)  # which fails
    truncate(held, size)
    chmod(held, mode)


def write(held: int) -> None:
    file = opened_to_write(held)
    try:
        os.pwrite(file, b"written", 0)
    finally:
        os.close(file)


def read(held: int) -> None:
    """knfsd lets the owner read, and also who may execute."""
    if stat.S_ISLNK(os.fstat(held).st_mode):
        raise failure(errno.EINVAL)
    try:
        os.close(os.open(name_of(held), os.O_RDONLY))
    except PermissionError as error:
        if error.errno != errno.EACCES or not (is_owner(held) or may(held, os.X_OK)):
            raise


def lookup(where: int, name: str) -> None:
    os.stat(name, dir_fd=where, follow_symlinks=False)


def entries(where: int) -> list[str]:
    return sorted(os.listdir(name_of(where)))


def access(held: int) -> int:
    """Which rights he has. To write a directory is of no use without searching it."""
    rights = sum(right for right in (os.R_OK, os.W_OK, os.X_OK) if may(held, right))
    if stat.S_ISDIR(os.fstat(held).st_mode) and not may(held, os.W_OK | os.X_OK):
        rights &= ~os.W_OK
    return rights


def acl(held: int, name: str, value: str | None) -> None:
    if value is None:
        os.removexattr(name_of(held), name)
    else:
        os.setxattr(name_of(held), name, bytes.fromhex(value))


Operation = tuple[int, Callable[..., Any]]
"""How many paths it takes first, and what it does."""

OPERATIONS: dict[str, Operation] = {
    "create": (1, create),
    "create_unchecked": (1, create_unchecked),
    "mkdir": (1, mkdir),
    "symlink": (1, symlink),
    "mknod": (1, mknod),
    "link": (2, link),
    "remove": (1, remove),
    "rmdir": (1, rmdir),
    "rename": (2, rename),
    "chmod": (1, chmod),
    "chown": (1, chown),
    "give": (1, give),
    "rewrite": (1, rewrite),
    "times": (1, times),
    "truncate": (1, truncate),
    "write": (1, write),
    "read": (1, read),
    "lookup": (1, lookup),
    "entries": (1, entries),
    "access": (1, access),
    "acl": (1, acl),
}


def end_of(who: Who, what: str, arguments: list[Any]) -> Any:
    """How it ended: what it gave, or why it failed."""
    paths, operation = OPERATIONS[what]
    try:
        with holding(*arguments[:paths]) as held, acting(who):
            return operation(*held, *arguments[paths:])
    except Nowhere:
        return "nowhere"
    except OSError as error:
        return errno.errorcode[error.errno or 0]


# --- what is there -------------------------------------------------------------------------------


class Seen:
    """What was there when it was last looked at."""

    def __init__(self) -> None:
        self.known: dict[str, list[Any]] = {}
        self._moments: dict[tuple[int, str], tuple[int, int]] = {}

    def changed(self, found: dict[str, list[Any]]) -> dict[str, list[Any] | None]:
        """Paths that are new or not what they were, or gone, now that this is there."""
        before, self.known = self.known, found
        gone: dict[str, list[Any] | None] = dict.fromkeys(before.keys() - found.keys())
        return gone | {path: its for path, its in found.items() if before.get(path) != its}

    def moment(self, inode: int, which: str, time_ns: int, moment: int) -> Any:
        """A time as it is compared: one that nobody has set is the number of the step that it
        changed with."""
        if time_ns < CLIENTS_TIMES_NS:
            return f"{time_ns} ns"
        known = self._moments.get((inode, which))
        if known is None or known[0] != time_ns:
            known = self._moments[inode, which] = (time_ns, moment)
        return known[1]


class Tree:
    """All that is there, and what has changed of it since it was last looked at."""

    def __init__(self) -> None:
        self._seen = Seen()

    def changed(self, moment: int) -> dict[str, list[Any] | None]:
        """What the step with this number has changed."""
        return self._seen.changed(dict(self._walk("", moment)))

    def _walk(self, path: str, moment: int) -> Iterator[tuple[str, list[Any]]]:
        here = f"./{path}"
        status = os.lstat(here)
        is_directory = stat.S_ISDIR(status.st_mode)
        is_link = stat.S_ISLNK(status.st_mode)
        lists = [None, None] if is_link else [list_of(here, ACCESS), list_of(here, DEFAULT)]
        inode = status.st_ino
        yield (
            path,
            [
                status.st_mode,
                status.st_nlink,
                status.st_uid,
                status.st_gid,
                0 if is_directory else status.st_size,
                [os.major(status.st_rdev), os.minor(status.st_rdev)],
                os.readlink(here) if is_link else None,
                *lists,
                self._seen.moment(inode, "atime", status.st_atime_ns, moment),
                self._seen.moment(inode, "mtime", status.st_mtime_ns, moment),
                self._seen.moment(inode, "ctime", status.st_ctime_ns, moment),
            ],
        )
        if is_directory:
            for name in os.listdir(here):
                yield from self._walk(f"{path}/{name}" if path else name, moment)


def list_of(path: str, name: str) -> str | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False).hex()
    except OSError:
        return None


# --- actions -------------------------------------------------------------------------------------


def begin(image: str, argument: str) -> None:
    """What is there before a history: made by the superuser, and then fixed (chattr)."""
    os.umask(0)
    steps, flags = json.loads(Path(argument).read_text())
    os.chmod(".", 0o777)
    for what, *arguments in steps:
        ended = end_of((0, 0, []), what, arguments)
        assert ended is None, (what, arguments, ended)
    for path, bits in flags:
        with holding(path) as (held,):
            set_flags(held, flags_of(held) | bits)


def times_are_fine() -> bool:
    """Whether each change has a time of its own (from Linux 6.13 on); elsewhere those within a
    tick of the kernel's clock share one."""
    seen = set()
    for _ in range(5):
        os.chmod(".", stat.S_IMODE(os.stat(".").st_mode))
        seen.add(os.stat(".").st_ctime_ns)
    return len(seen) == 5


def await_tick() -> None:
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        time.sleep(0.0005)


def play(image: str, argument: str) -> list[Any]:
    """A history, one step after the other: how each ended, and what it changed."""
    os.umask(0)
    nothing_changes = os.statvfs(".").f_flag & os.ST_RDONLY
    fine = nothing_changes or times_are_fine()
    tree = Tree()
    tree.changed(0)
    told = []
    for moment, (who, what, *arguments) in enumerate(json.loads(Path(argument).read_text()), 1):
        if not fine:
            await_tick()
        ended = end_of(who, what, arguments)
        told.append([ended, tree.changed(moment)])
    return told


if __name__ == "__main__":
    main({"begin": begin, "play": play})
