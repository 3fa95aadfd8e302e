"""The contract between a file system and whoever serves it.

A backend implements FileSystem and Node. It stores; it does not judge: permissions, name rules and
the order of checks are in user.py, once, above every backend. So a backend may assume that names
are valid (1..NAME_BYTES_MAX bytes, no "/" and no NUL, never "." or ".."), that a directory is a
directory where one is needed, that the file system is not read-only when something is changed, and
that the caller may do what it asks.

Every method may raise VfsError. A method that fails has changed nothing.

Locking. `FileSystem.lock` is held by whoever needs several calls to be one step (attributes before,
act, attributes after); a backend takes it itself inside each method that needs it. It is never
held while waiting for a device: data is read and written, and `commit` waits, outside it.

Waiting. A method that is about to wait for a device first calls `about_to_wait` (given to the
constructor of a backend that can wait): the thread that serves the wire then hands it on.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

from appliance import limits

Buffer = bytes | bytearray | memoryview

AboutToWait = Callable[[], None]


def waits_for_nobody() -> None:
    """The AboutToWait of a program in which nobody else is kept waiting."""


class FileType(IntEnum):
    """What a node is. The value is the file type in st_mode (S_IFMT), shifted right by 12."""

    FIFO = 0o01
    CHARACTER_DEVICE = 0o02
    DIRECTORY = 0o04
    BLOCK_DEVICE = 0o06
    REGULAR = 0o10
    SYMLINK = 0o12
    SOCKET = 0o14


@dataclass(slots=True)
class Attributes:
    """What is known of a node at one moment. Never changed after it was made: a node whose
    attributes change gets a new one, so that two reads that return the same object mean
    "unchanged".
    """

    type: FileType
    mode: int  # the 12 permission bits
    nlink: int
    uid: int
    gid: int
    size: int  # bytes
    used: int  # bytes of storage
    rdev: tuple[int, int]  # major, minor; (0, 0) unless a device
    fileid: int  # never 0, unique in the file system
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    change: int  # strictly increases with every change of data or attributes
    wire: bytes | None = field(default=None, compare=False, repr=False)
    """Room for one protocol's encoding of these attributes (nfsd/v3/attributes.py), made once."""


class SetTime(Enum):
    """A time that is set without saying which. Backends do not meet it: user.py fills it in."""

    NOW = 1


@dataclass(slots=True)
class SetAttributes:
    """The attributes to change; None leaves one as it is. Times are nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | SetTime | None = None
    mtime_ns: int | SetTime | None = None


@dataclass(slots=True)
class NewNode:
    """What to create. `mode` are the 12 bits as they shall be (there is no umask here)."""

    type: FileType
    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""  # of a symbolic link


@dataclass(slots=True)
class Entry:
    """One name in a directory.

    `cookie` is where to go on after this entry: it is not 0, fits in 63 bits, belongs to this entry
    as long as it exists, and stays good (skipping nothing that stays, repeating nothing) while
    other entries come and go, and over a restart where the file system itself survives one.
    """

    fileid: int
    name: bytes
    cookie: int
    node: Node | None = None  # where the backend has it at hand
    wire: bytes | None = field(default=None, compare=False, repr=False)
    """Room for one protocol's encoding of the three fields above, made once."""


@dataclass(slots=True)
class Statistics:
    """How full a file system is, in bytes and in files. `available_*` is what is left for
    ordinary users, where some is reserved."""

    total_bytes: int
    free_bytes: int
    available_bytes: int
    total_files: int
    free_files: int
    available_files: int


@dataclass(slots=True, frozen=True)
class Limits:
    """What a file system can hold."""

    name_bytes_max: int = limits.NAME_BYTES_MAX
    link_count_max: int = 65_000
    file_bytes_max: int = (1 << 63) - 1
    time_granularity_ns: int = 1


class FileSystem(ABC):
    """A tree of nodes, with an identity of its own.

    `fsid` (64 bits, not 0) is the same after a restart on the same storage, and differs between two
    file systems that are served together.
    """

    def __init__(
        self, fsid: int, *, read_only: bool = False, file_limits: Limits | None = None
    ) -> None:
        self.fsid: Final = fsid
        self.read_only = read_only
        self.limits: Final = file_limits or Limits()
        self.lock: Final = threading.RLock()

    @abstractmethod
    def root(self) -> Node:
        """The directory at the top."""

    @abstractmethod
    def resolve(self, handle: bytes) -> Node:
        """The node that `Node.handle` names, also one from before a restart or a rename.

        BADHANDLE: these bytes cannot be a handle of this file system.
        STALE: the node is gone, for ever, also when its number has been used again.
        """

    @abstractmethod
    def statistics(self) -> Statistics:
        """How full it is."""

    def commit(self) -> None:  # noqa: B027 (nothing to do where nothing lasts)
        """Return when everything that has been done is durable."""

    def close(self) -> None:  # noqa: B027 (likewise)
        """Make everything durable and let go of the storage. The last call."""


class Node(ABC):
    """A file, directory, symbolic link, device, FIFO or socket.

    `handle`: opaque bytes (1 to limits.NODE_HANDLE_BYTES_MAX) that name this node for ever.
    Two Node objects may stand for the same node; `handle` tells.
    """

    __slots__ = ()

    filesystem: FileSystem
    handle: bytes

    @abstractmethod
    def attributes(self) -> Attributes:
        """What is known of it now."""

    @abstractmethod
    def set_attributes(self, changes: SetAttributes) -> None:
        """Change attributes, all or none. A new size truncates or extends with zeros."""

    def commit(self) -> None:  # noqa: B027 (nothing to do where nothing lasts)
        """Return when this node, its data and, of a directory, its entries are durable."""

    # Regular files.

    @abstractmethod
    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        """At most `count` bytes from `offset`, and whether the end of the file was reached.

        The buffers are given away: nobody writes into them any more (they may be sent again).
        """

    @abstractmethod
    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        """Write all of `data` at `offset` (extending the file if need be); the bytes written.

        Durable only after `commit`. NOSPC, FBIG, IO: nothing or less was written.
        """

    # Symbolic links.

    @abstractmethod
    def readlink(self) -> bytes:
        """The text of a symbolic link."""

    # Directories.

    @abstractmethod
    def lookup(self, name: bytes) -> Node:
        """The node of that name. NOENT."""

    @abstractmethod
    def parent(self) -> Node:
        """The directory above; of the root, the root itself."""

    @abstractmethod
    def entries(self, cookie: int, limit: int) -> list[Entry]:
        """At most `limit` entries after the one with `cookie` (0: from the start), "." and ".."
        among them. Fewer than `limit`: these were the last."""

    @abstractmethod
    def create(self, name: bytes, new: NewNode) -> Node:
        """Make a node of any type. EXIST, NOSPC."""

    @abstractmethod
    def link(self, name: bytes, node: Node) -> None:
        """Give `node` (not a directory, of this file system) one more name here. EXIST, MLINK."""

    @abstractmethod
    def remove(self, name: bytes) -> None:
        """Take away a name of something that is not a directory. NOENT, ISDIR."""

    @abstractmethod
    def rmdir(self, name: bytes) -> None:
        """Remove an empty directory. NOENT, NOTDIR, NOTEMPTY."""

    @abstractmethod
    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        """Move an entry of this directory, replacing what `target` has by that name, in one step.

        NOENT; of a replaced directory NOTEMPTY; the rest has been checked by the caller.
        """


def same_node(one: Node, other: Node) -> bool:
    """Whether two Node objects stand for the same node."""
    return one is other or (one.filesystem is other.filesystem and one.handle == other.handle)
