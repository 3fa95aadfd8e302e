"""How the files of a host directory are named for ever: two ways.

KernelHandles. The kernel itself names files: name_to_handle_at and open_by_handle_at, as its own
NFS server does. Handles survive renames and reboots, and the kernel tells a new file from an old
one with the same inode number. Opening them needs CAP_DAC_READ_SEARCH, and a file system that
supports it (overlayfs, the root of every container, does not by default). Since such a handle can
name any file of the file system, also outside the directory that is served, handles are sealed: who
has not got one from us cannot make one. The seal's key belongs to the machine, so it is the same
after a restart.

IdMap. Otherwise a handle is a 64-bit digest of device, inode number and time of birth, and a table
says where it was seen last: in which directory, under which name. A file is opened along that way
from the top, one component at a time, and what is found must have the same digest; if it has not,
the directory is searched for it, since somebody on the host may have renamed it there. After a
restart the table is empty: the first unknown handle makes us walk through the whole directory,
once. (A file system without times of birth may give an old handle to a new file with its inode
number.)

Both refuse what belongs to another file system that is mounted somewhere below: it has file ids of
its own, and a client could not tell them apart.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

from appliance import limits
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.hostdir import syscalls
from appliance.vfs.hostdir.syscalls import Descriptor, Identity
from appliance.vfs.interface import AboutToWait

_SEAL_BYTES: Final = 6
"""A guess is right once in 2^48 calls, which is nine years at a million calls a second; and the
rest of the handle has room for the longest one in use, that of overlayfs (36 bytes)."""

_TYPE_BYTES: Final = 1
_KERNEL_HANDLE_BYTES_MAX: Final = limits.NODE_HANDLE_BYTES_MAX - _TYPE_BYTES - _SEAL_BYTES
_DIGEST_BYTES: Final = 8
_IDENTITY: Final = struct.Struct(">IIQq")
_LOCATIONS_MAX: Final = 8
_ATTEMPTS_MAX: Final = 1000
"""Of opening an inode that somebody is making: others run in between, so that it gets ready."""

Location = tuple[bytes, bytes]
"""The handle of a directory, and a name in it."""


class Identities(ABC):
    """Handles for open files, and open files for handles."""

    @abstractmethod
    def handle(self, descriptor: Descriptor, location: Location | None) -> bytes:
        """The handle of an open file that was found at `location`. ACCES: of another file
        system."""

    @abstractmethod
    def open(self, handle: bytes) -> Descriptor:
        """Open (O_PATH) what has this handle. STALE, BADHANDLE."""

    def forget(self, handle: bytes, location: Location) -> None:  # noqa: B027 (need not remember)
        """It is not at `location` any more."""


class KernelHandles(Identities):
    """The kernel's handles, sealed: [type 1][seal 6][the kernel's bytes, at most 36]."""

    def __init__(self, root: Descriptor, key: bytes) -> None:
        self._root = root
        self._key = key
        self._mount_id = syscalls.name_to_handle(root).mount_id
        self.open(self.handle(root, None))  # raises where it is not permitted

    def handle(self, descriptor: Descriptor, location: Location | None) -> bytes:
        kind, data, mount_id = syscalls.name_to_handle(descriptor)
        if mount_id != self._mount_id:
            raise VfsError(Code.ACCES, "another file system is mounted there")
        if kind not in range(256) or len(data) > _KERNEL_HANDLE_BYTES_MAX:
            raise VfsError(Code.NOTSUPP, "the kernel's handle is too long")
        head = bytes((kind,))
        return head + self._seal(head, data) + data

    def open(self, handle: bytes) -> Descriptor:
        head, seal = handle[:_TYPE_BYTES], handle[_TYPE_BYTES : _TYPE_BYTES + _SEAL_BYTES]
        data = handle[_TYPE_BYTES + _SEAL_BYTES :]
        if not data or seal != self._seal(head, data):
            raise VfsError(Code.BADHANDLE, "seal")
        try:
            return self._open(head[0], data)
        except FileNotFoundError:
            raise VfsError(Code.STALE) from None

    def _open(self, kind: int, data: bytes) -> Descriptor:
        """Linux says ENOMEM also while somebody makes a file with the inode of one that is gone: a
        moment later it knows that the handle is stale."""
        for _ in range(_ATTEMPTS_MAX):
            try:
                return syscalls.open_by_handle(self._root, kind, data, os.O_PATH)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
            os.sched_yield()
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def _seal(self, head: bytes, data: bytes) -> bytes:
        return blake2b(head + data, digest_size=_SEAL_BYTES, key=self._key).digest()


@dataclass(slots=True)
class _Seen:
    """A file that we have met: its inode number, and where it was, the newest last."""

    inode: int
    locations: list[Location] = field(default_factory=list)


class IdMap(Identities):
    """Digests of identity, and a table of where they were seen."""

    def __init__(
        self,
        root: Descriptor,
        opened: Callable[[bytes], Descriptor | None],
        about_to_wait: AboutToWait,
    ) -> None:
        """`opened` gives the descriptor for a handle where one is open already."""
        self._root = root
        self._opened = opened
        self._about_to_wait = about_to_wait
        self._mount = _mount_of(syscalls.identity(root))
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        self._walk_lock = threading.Lock()
        self._walked = threading.Event()
        self._root_handle = self.handle(root, None)

    def handle(self, descriptor: Descriptor, location: Location | None) -> bytes:
        what = syscalls.identity(descriptor)
        if _mount_of(what) != self._mount:
            raise VfsError(Code.ACCES, "another file system is mounted there")
        handle = _digest(what)
        if location is not None:
            self._remember(handle, what.inode, location)
        return handle

    def _remember(self, handle: bytes, inode: int, location: Location) -> None:
        with self._lock:
            seen = self._seen.setdefault(handle, _Seen(inode))
            locations = seen.locations
            if locations and locations[-1] == location:
                return
            if location in locations:
                locations.remove(location)
            locations.append(location)
            del locations[:-_LOCATIONS_MAX]
            if len(self._seen) > limits.HOST_IDS_MAX:
                self._seen.popitem(last=False)

    def forget(self, handle: bytes, location: Location) -> None:
        with self._lock:
            seen = self._seen.get(handle)
            if seen is not None and location in seen.locations:
                seen.locations.remove(location)
                if not seen.locations:
                    del self._seen[handle]

    def _locations(self, handle: bytes) -> list[Location]:
        """Where it was seen, the newest first."""
        with self._lock:
            seen = self._seen.get(handle)
            return [] if seen is None else seen.locations[::-1]

    def open(self, handle: bytes) -> Descriptor:
        if len(handle) != _DIGEST_BYTES:
            raise VfsError(Code.BADHANDLE, "length")
        if handle == self._root_handle:
            return self._root
        if handle not in self._seen:
            self._walk_once()
        for directory, name in self._locations(handle):
            try:
                return self._open_in(self._open_directory(directory), directory, name, handle)
            except VfsError:
                self.forget(handle, (directory, name))
        raise VfsError(Code.STALE)

    def _open_directory(self, handle: bytes) -> Descriptor:
        """A directory, by the way down from the nearest one above that is open."""
        way: list[tuple[bytes, Location]] = []
        while (directory := self._open_already(handle)) is None:
            locations = self._locations(handle)
            if not locations or len(way) > limits.DIRECTORY_DEPTH_MAX:
                raise VfsError(Code.STALE)
            way.append((handle, locations[0]))
            handle = locations[0][0]
        for below, (above, name) in reversed(way):
            directory = self._open_in(directory, above, name, below)
        return directory

    def _open_already(self, handle: bytes) -> Descriptor | None:
        return self._root if handle == self._root_handle else self._opened(handle)

    def _open_in(
        self, directory: Descriptor, its_handle: bytes, name: bytes, handle: bytes
    ) -> Descriptor:
        """Open `name`, or whatever name the file with this handle has in that directory now."""
        found = _open_if(directory, name, handle)
        if found is not None:
            return found
        with self._lock:
            seen = self._seen.get(handle)
        for inode, other in _names(directory):
            if seen is None or inode != seen.inode:
                continue
            found = _open_if(directory, other, handle)
            if found is not None:
                self.forget(handle, (its_handle, name))
                self._remember(handle, inode, (its_handle, other))
                return found
        raise VfsError(Code.STALE)

    def _walk_once(self) -> None:
        """Learn about every file, the first time that somebody knows one that we do not: the handle
        must be from before our start. Later ones that we do not know are of no file."""
        if self._walked.is_set():
            return
        self._about_to_wait()
        with self._walk_lock:
            pending = [] if self._walked.is_set() else [self._root_handle]
            while pending and len(self._seen) < limits.HOST_IDS_MAX:
                try:
                    pending += self._learn_directory(pending.pop())
                except (OSError, VfsError):
                    continue  # not readable, or gone meanwhile
            self._walked.set()

    def _learn_directory(self, its_handle: bytes) -> list[bytes]:
        """Remember what is in a directory; the directories among it."""
        directory = self._open_directory(its_handle)
        directories = []
        for _, name in _names(directory):
            try:
                found = syscalls.open_at(directory, name, os.O_PATH)
                handle = self.handle(found, (its_handle, name))
            except (OSError, VfsError):
                continue  # gone meanwhile, or another file system
            if stat.S_ISDIR(os.fstat(found).st_mode):
                directories.append(handle)
        return directories


def machine_key() -> bytes:
    """A secret of this machine, the same until it is installed anew (or, where it has no machine
    id, booted anew). What it is cannot be told from what is made with it."""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            secret = Path(path).read_bytes().strip()
        except OSError:
            continue
        if secret:
            return blake2b(secret, digest_size=32, person=b"rumpnfsd handles").digest()
    raise VfsError(Code.NOTSUPP, "neither /etc/machine-id nor a boot id: pass a key")


def _open_if(directory: Descriptor, name: bytes, handle: bytes) -> Descriptor | None:
    """Open `name` if it is what has this handle."""
    try:
        found = syscalls.open_at(directory, name, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if _digest(syscalls.identity(found)) == handle else None


def _names(directory: Descriptor) -> Iterator[tuple[int, bytes]]:
    """Inode numbers and names in a directory, but "." and ".."."""
    listing = syscalls.open_at(directory, b".", os.O_RDONLY | os.O_DIRECTORY)
    while entries := syscalls.directory_entries(listing):
        for inode, _, name in entries:
            if name not in (b".", b".."):
                yield inode, name


def _digest(what: Identity) -> bytes:
    packed = _IDENTITY.pack(*what.device, what.inode, what.birth_ns)
    return blake2b(packed, digest_size=_DIGEST_BYTES).digest()


def _mount_of(what: Identity) -> int | tuple[int, int]:
    """What tells mounts apart: the kernel's number, or the device where it does not say."""
    return what.mount_id or what.device
