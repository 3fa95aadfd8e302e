"""The contract between a file system and whoever serves it.

A backend implements FileSystem and Node. It stores; it does not judge: permissions, name rules and
the order of checks are in user.py, once, above every backend. So a backend may assume that names
are valid (1..NAME_BYTES_MAX bytes, no "/" and no NUL, never "." or ".."), that a directory is a
directory where one is needed, that the file system is not read-only when something is changed, and
that the caller may do what it asks.

Every method may raise VfsError. A method that fails has changed nothing.

Locking. `FileSystem.lock` is held by whoever needs several calls to be one step (attributes before,
act, attributes after); a backend takes it itself inside each method that needs it. It is never
held while waiting for a device: data is read and written, and `sync` waits, outside it.

Durability. What has been done is visible at once and durable later: `sync` gives a Ticket for it,
or None where nothing is left to be done. Whoever has promised durability keeps his answer back
until the ticket says so; many answers may wait for one flush of a device.

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
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError

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


IMMUTABLE: Final = 1
APPEND_ONLY: Final = 2
"""What chattr(1) can forbid, to the superuser too. The rules are in access.py."""


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
    acl: Acl | None = None
    default_acl: Acl | None = None  # of a directory
    flags: int = 0  # IMMUTABLE, APPEND_ONLY
    wire: bytes | None = field(default=None, compare=False, repr=False)
    """Room for one protocol's encoding of these attributes (nfsd/v3/attributes.py), made once."""


class SetTime(Enum):
    """A time that is set without saying which. Backends do not meet it: user.py fills it in."""

    NOW = 1


class SetAcl(Enum):
    """What becomes of an access control list, other than a new one."""

    NONE = 1


@dataclass(slots=True)
class SetAttributes:
    """The attributes to change; None leaves one as it is. Times are nanoseconds since 1970.

    Mode and ACL belong together. A backend stores both as they are given; user.py sees to it that
    a change of one brings the other.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | SetTime | None = None
    mtime_ns: int | SetTime | None = None
    acl: Acl | SetAcl | None = None
    default_acl: Acl | SetAcl | None = None


@dataclass(slots=True)
class NewNode:
    """What to create. `mode` are the 12 bits as they shall be (there is no umask here), and the
    lists are what the directory passes on."""

    type: FileType
    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""  # of a symbolic link
    acl: Acl | None = None
    default_acl: Acl | None = None
    first: SetAttributes | None = None
    """Size and times that it has from the beginning, so that nobody sees it without them, and no
    crash leaves it so."""


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
    directory_link_count_max: int | None = 65_000  # None: there is no such limit
    file_bytes_max: int = (1 << 63) - 1
    time_granularity_ns: int = 1
    acls: bool = False  # whether it keeps access control lists


class Ticket(ABC):
    """The durability of something that has been done, which may take a while.

    Everybody who waits for the same flush had better be given the same object: what one ticket
    releases is answered together.
    """

    @abstractmethod
    def wait(self) -> None:
        """Return when it is durable. VfsError: it will never be (IO, NOSPC, ROFS), and from then on
        every `sync` of the file system fails, since nobody knows what else is lost.

        Announced as a wait. Where no other thread works at it, it is done here.
        """

    @abstractmethod
    def when_durable(self, then: Callable[[VfsError | None], None]) -> None:
        """Call `then` exactly once: with None when it is durable, or with why it will never be.

        By any thread, without any lock of the file system held; here and now if it is settled
        already. `then` is quick, does not call the file system and does not fail.
        """


class FileSystem(ABC):
    """A tree of nodes, with an identity of its own.

    `fsid` (64 bits, not 0) is the same after a restart on the same storage, and differs between two
    file systems that are served together.

    `has_background_work`: tickets are settled by a thread of its own, if there is one: its body is
    `run_in_background`. Without that thread (a test, a simulated world), whoever waits for a ticket
    settles it.
    """

    has_background_work: bool = False

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

    def sync(self) -> Ticket | None:
        """Begin to make durable everything that has been done; None: it is.

        A backend that can only wait until it is does that here, announced, and gives no ticket.
        """
        return None  # nothing lasts, so nothing is left to be done

    def commit(self) -> None:
        """Return when everything that has been done is durable."""
        ticket = self.sync()
        if ticket is not None:
            ticket.wait()

    def run_in_background(self) -> None:  # noqa: B027 (nothing to do without background work)
        """Settle tickets, as they come. Returns after `close`."""

    def close(self) -> None:  # noqa: B027 (nothing to do where nothing lasts)
        """Make everything durable, settle every ticket and let go of the storage. The last call.

        VfsError: something that was done may be lost; the storage is let go of all the same.
        """


@dataclass(slots=True, frozen=True)
class Snapshot:
    """A state of a file system that was kept."""

    name: str
    created_ns: int
    changed_bytes: int  # storage that differs from what the file system was when it was opened


class Snapshots(ABC):
    """What a file system can do beside, if it can keep states of itself: a second base class of
    it. Its storage may still be one that cannot: then every method says NOTSUPP, and why.

    All states are kept, older and newer ones, until they are deleted: one can go back and forth.
    """

    @abstractmethod
    def snapshot_create(self, name: str) -> None:
        """Keep the present state. Everything done so far is in it, and durable with it.
        EXIST, INVAL (no name), NOSPC (too many)."""

    @abstractmethod
    def snapshots(self) -> list[Snapshot]:
        """What is kept, the oldest first."""

    @abstractmethod
    def snapshot_rollback(self, name: str, then: Callable[[], None]) -> None:
        """Go back (or forth) to a state; what is not in it is gone, also for who was promised that
        it is durable. Handles stay good: of what does not exist in that state, they are STALE.

        `then` is called once the state is the present one, and before anybody sees it (with
        `FileSystem.lock` held): who has remembered something of the files forgets it. NOENT.
        """

    @abstractmethod
    def snapshot_delete(self, name: str) -> None:
        """Keep a state no longer. NOENT."""


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

    def sync(self) -> Ticket | None:
        """Begin to make durable this node, its data and, of a directory, its entries; None: they
        are. As `FileSystem.sync`."""
        return None

    def commit(self) -> None:
        """Return when this node, its data and, of a directory, its entries are durable."""
        ticket = self.sync()
        if ticket is not None:
            ticket.wait()

    # Extended attributes: names with their prefix, user. or another. Lists are not among them.

    def xattr(self, name: bytes) -> bytes:
        """The value of one. NOENT."""
        raise _no_xattrs()

    def set_xattr(self, name: bytes, value: bytes) -> None:
        """Give one its value, whether it was there or not. NOSPC."""
        raise _no_xattrs()

    def remove_xattr(self, name: bytes) -> None:
        """Take one away. NOENT."""
        raise _no_xattrs()

    def xattrs(self) -> list[bytes]:
        """The names of all."""
        raise _no_xattrs()

    # Regular files.

    @abstractmethod
    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        """At most `count` bytes from `offset`, and whether the end of the file was reached.

        The buffers are given away: nobody writes into them any more (they may be sent again).
        """

    @abstractmethod
    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        """Write all of `data` at `offset` (extending the file if need be); the bytes written.

        Durable only after `sync`. NOSPC, FBIG, IO: nothing or less was written.
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


def _no_xattrs() -> VfsError:
    return VfsError(Code.NOTSUPP, "extended attributes")


def same_node(one: Node, other: Node) -> bool:
    """Whether two Node objects stand for the same node."""
    return one is other or (one.filesystem is other.filesystem and one.handle == other.handle)
