"""A directory of the host as a whole: its identity, its limits, and which files are kept open.

Nodes are kept in the order of their last use. One that is pushed out closes its descriptors (which
are open until the last thread that uses them is done), and opens them again, by its handle, if
somebody still has the node.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

from appliance import limits
from appliance.clock import Clock, SystemClock
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.hostdir import lists, syscalls
from appliance.vfs.hostdir.identities import (
    Identities,
    IdMap,
    KernelHandles,
    Location,
    machine_key,
)
from appliance.vfs.hostdir.nodes import HostNode
from appliance.vfs.hostdir.syscalls import Descriptor
from appliance.vfs.interface import (
    AboutToWait,
    FileSystem,
    Limits,
    Statistics,
    waits_for_nobody,
)

_NO_HANDLES: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EOVERFLOW, errno.EINVAL)
_DESCRIPTORS_PER_NODE: Final = 3
_LINK_COUNT_MAX: Final = 1 << 31  # the host says MLINK itself; no file system allows more


class HostDirectory(FileSystem):
    """The directory at `path`. `key` seals handles (the default belongs to this machine);
    `kernel_handles=False` uses the map even where the kernel's handles would serve."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        about_to_wait: AboutToWait = waits_for_nobody,
        key: bytes | None = None,
        kernel_handles: bool = True,
        clock: Clock | None = None,
    ) -> None:
        try:
            self._top = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            status = os.fstat(self._top)
            names = os.fpathconf(self._top, "PC_NAME_MAX")
            os.stat(syscalls.path_of(self._top))  # without /proc nothing can be reopened
            acls = lists.are_kept(self._top)
        except OSError as error:
            raise VfsError.from_os(error) from error
        super().__init__(
            _fsid(self._top, os.path.realpath(path)),
            read_only=read_only,
            file_limits=Limits(
                name_bytes_max=min(names, limits.NAME_BYTES_MAX),
                link_count_max=_LINK_COUNT_MAX,
                directory_link_count_max=None,
                acls=acls,
            ),
        )
        self.about_to_wait: Final = about_to_wait
        self.clock: Final = clock or SystemClock()
        self._top_inode = (status.st_dev, status.st_ino)
        self._reads_at_once = True
        self._nodes: OrderedDict[bytes, HostNode] = OrderedDict()
        self._node_count_max = _nodes_to_keep()
        self.identities: Identities = self._choose_identities(key, kernel_handles)
        self._root = HostNode(self, self.identities.handle(self._top, None), self._top)

    def _choose_identities(self, key: bytes | None, kernel_handles: bool) -> Identities:
        if kernel_handles:
            try:
                return KernelHandles(self._top, key or machine_key())
            except OSError as error:
                if error.errno not in _NO_HANDLES:
                    raise VfsError.from_os(error) from error
            except VfsError as error:
                if error.code is not Code.NOTSUPP:
                    raise
        return IdMap(self._top, self._open_path_of, self.about_to_wait)

    def root(self) -> HostNode:
        return self._root

    def resolve(self, handle: bytes) -> HostNode:
        node = self._kept(handle)
        if node is not None:
            return node
        try:
            path = self.open_path(handle)
        except OSError as error:
            raise VfsError.from_os(error) from error
        return self._keep(handle, path)

    def open_path(self, handle: bytes) -> Descriptor:
        """Open (O_PATH) what has this handle. STALE, BADHANDLE, OSError."""
        try:
            return self.identities.open(handle)
        except VfsError as error:
            if error.code is not Code.STALE:
                raise
        with self.lock:  # it may just have been renamed: once more when nobody renames
            return self.identities.open(handle)

    def node_of(self, path: Descriptor, location: Location | None) -> HostNode:
        """The node of an open file that was found at `location`."""
        handle = self.identities.handle(path, location)
        node = self._kept(handle)
        if node is None:
            return self._keep(handle, path)
        node.offer_path(path)
        return node

    def _kept(self, handle: bytes) -> HostNode | None:
        if handle == self._root.handle:
            return self._root
        with self.lock:
            node = self._nodes.get(handle)
            if node is not None:
                self._nodes.move_to_end(handle)
            return node

    def _keep(self, handle: bytes, path: Descriptor) -> HostNode:
        with self.lock:
            node = self._nodes.setdefault(handle, HostNode(self, handle, path))
            if len(self._nodes) > self._node_count_max:
                _, oldest = self._nodes.popitem(last=False)
                oldest.let_go()
            return node

    def _open_path_of(self, handle: bytes) -> Descriptor | None:
        with self.lock:
            node = self._nodes.get(handle)
        return None if node is None else node.open_path

    def contains(self, directory: Descriptor) -> bool:
        """Whether a directory is this one or below it at present, as the host sees it."""
        before = None
        for _ in range(limits.DIRECTORY_DEPTH_MAX):
            status = os.fstat(directory)
            inode = (status.st_dev, status.st_ino)
            if inode == self._top_inode:
                return True
            if inode == before:  # the host's "/": its parent is itself
                return False
            before = inode
            directory = syscalls.open_at(directory, b"..", os.O_PATH)
        return False

    def read_at_once(self, reader: Descriptor, buffer: bytearray, offset: int) -> int:
        """Read what is in the host's memory; how much that was, 0 where the host cannot tell."""
        if not self._reads_at_once:
            return 0
        try:
            return os.preadv(reader, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._reads_at_once = False
            return 0

    def statistics(self) -> Statistics:
        try:
            status = os.fstatvfs(self._top)
        except OSError as error:
            raise VfsError.from_os(error) from error
        unit = status.f_frsize
        return Statistics(
            status.f_blocks * unit,
            status.f_bfree * unit,
            status.f_bavail * unit,
            status.f_files,
            status.f_ffree,
            status.f_favail,
        )

    def sync(self) -> None:
        self.about_to_wait()
        try:
            syscalls.sync_filesystem(self._top)
        except OSError as error:
            raise VfsError.from_os(error) from error

    def close(self) -> None:
        try:
            if not self.read_only:
                self.sync()
        finally:
            with self.lock:
                while self._nodes:
                    self._nodes.popitem()[1].let_go()


def _fsid(top: Descriptor, path: str) -> int:
    """The same for the same directory after every start, whatever number its device has by then."""
    volume = os.fstatvfs(top).f_fsid or os.fstat(top).st_dev
    what = f"{volume} {os.fstat(top).st_ino} ".encode() + os.fsencode(path)
    return int.from_bytes(blake2b(what, digest_size=8).digest(), "big") or 1


def _nodes_to_keep() -> int:
    """As many as half of the descriptors that this process may have are enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.HOST_NODES_MAX
    return max(1, min(limits.HOST_NODES_MAX, soft // 2 // _DESCRIPTORS_PER_NODE))
