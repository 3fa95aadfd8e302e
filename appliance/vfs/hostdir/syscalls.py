"""System calls of Linux that Python's os module does not offer, and descriptors that close
themselves.

All of them work on a descriptor, none on a path, so that what was checked is what is acted upon.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.clock import SECOND
from appliance.limits import KiB

MAX_HANDLE_BYTES: Final = 128

_AT_EMPTY_PATH: Final = 0x1000
_DIRENT: Final = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type; then d_name
_DIRENT_NAME: Final = 19
_DIRENT_BUFFER_BYTES: Final = 32 * KiB
_HANDLE_HEAD: Final = struct.Struct("=Ii")  # handle_bytes, handle_type
_STATX_INO: Final = 0x100
_STATX_BTIME: Final = 0x800
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
# Of struct statx: the mask, the inode, the birth (in two parts), the device (likewise), the mount.
_STATX: Final = struct.Struct("=I28xQ40xqI44xIIQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc.fchownat.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_int,
)


class Descriptor(int):
    """An open file descriptor, closed when nobody refers to it any more.

    So a thread that uses one may go on while another one gives it up: the number is not used again
    before the last of them is done. (It has to be passed on as this object, not as a plain number.)
    """

    __slots__ = ()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self)


class Identity(NamedTuple):
    """What tells a file from every other on this host, and where it is mounted."""

    device: tuple[int, int]
    inode: int
    birth_ns: int  # 0 where the file system does not know
    mount_id: int  # 0 where the kernel does not tell (before 5.8)


class KernelHandle(NamedTuple):
    """The kernel's own file handle, and where the file is mounted."""

    type: int
    data: bytes
    mount_id: int


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def open_at(directory: Descriptor, name: bytes, flags: int, mode: int = 0) -> Descriptor:
    """Open one name in a directory; a symbolic link is never followed."""
    return Descriptor(os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory))


def reopen(descriptor: Descriptor, flags: int) -> Descriptor:
    """The same file, opened once more with other flags."""
    return Descriptor(os.open(path_of(descriptor), flags | os.O_CLOEXEC))


def path_of(descriptor: Descriptor) -> str:
    """A path that leads to what the descriptor refers to, wherever that is now, and also if it is a
    symbolic link. The caller keeps the descriptor meanwhile."""
    return f"/proc/self/fd/{int(descriptor)}"


def identity(descriptor: Descriptor) -> Identity:
    """Tell what a descriptor refers to."""
    record = ctypes.create_string_buffer(_STATX_BYTES)
    wanted = _STATX_INO | _STATX_BTIME | _STATX_MNT_ID
    _checked(_libc.statx(descriptor, b"", _AT_EMPTY_PATH, wanted, record))
    mask, inode, seconds, nanoseconds, major, minor, mount_id = _STATX.unpack_from(record)
    birth_ns = seconds * SECOND + nanoseconds if mask & _STATX_BTIME else 0
    return Identity((major, minor), inode, birth_ns, mount_id if mask & _STATX_MNT_ID else 0)


def name_to_handle(descriptor: Descriptor) -> KernelHandle:
    """The kernel's handle. EOPNOTSUPP: this file system has none."""
    record = ctypes.create_string_buffer(_HANDLE_HEAD.size + MAX_HANDLE_BYTES)
    _HANDLE_HEAD.pack_into(record, 0, MAX_HANDLE_BYTES, 0)
    mount_id = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(descriptor, b"", record, ctypes.addressof(mount_id), _AT_EMPTY_PATH)
    )
    length, kind = _HANDLE_HEAD.unpack_from(record)
    data = record.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + length]
    return KernelHandle(kind, data, mount_id.value)


def open_by_handle(mount: Descriptor, kind: int, data: bytes, flags: int) -> Descriptor:
    """Open what `name_to_handle` named. ESTALE; EPERM: this needs CAP_DAC_READ_SEARCH."""
    record = ctypes.create_string_buffer(_HANDLE_HEAD.pack(len(data), kind) + data)
    return Descriptor(_checked(_libc.open_by_handle_at(mount, record, flags | os.O_CLOEXEC)))


def set_owner(descriptor: Descriptor, uid: int, gid: int) -> None:
    """chown(2) of what a descriptor (also an O_PATH one, also of a symbolic link) refers to."""
    _checked(_libc.fchownat(descriptor, b"", uid, gid, _AT_EMPTY_PATH))


def sync_filesystem(descriptor: Descriptor) -> None:
    """Make everything in the file system of this descriptor durable."""
    _checked(_libc.syncfs(descriptor))


def directory_entries(descriptor: Descriptor) -> list[tuple[int, int, bytes]]:
    """The next entries of an open directory, as (inode number, cookie to go on after it, name);
    empty at the end."""
    buffer = ctypes.create_string_buffer(_DIRENT_BUFFER_BYTES)
    length = _checked(_libc.getdents64(descriptor, buffer, _DIRENT_BUFFER_BYTES))
    raw = buffer.raw[:length]
    found = []
    at = 0
    while at < length:
        inode, cookie, record_length, _ = _DIRENT.unpack_from(raw, at)
        name = at + _DIRENT_NAME
        found.append((inode, cookie, raw[name : raw.index(0, name)]))
        at += record_length
    return found
