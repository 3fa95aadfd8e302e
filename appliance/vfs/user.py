"""Somebody who acts on file systems: the rules of POSIX, once, above every backend.

Each method does what a system call does in Linux's VFS, in its order of checks: the directory is
one (NOTDIR) and may be searched (ACCES), the name is valid, it exists or does not (EXIST, NOENT),
the file system and the export are writable (ROFS), the directory may be written (ACCES), the sticky
bit allows it (PERM), the types fit (ISDIR, NOTDIR, PERM). Check and act are one step: both happen
under the lock of the file system.

Where NFS has its own rules, they are here because every protocol version shares them. An owner may
always read and write his file, since the server does not know that he opened it before he took the
permission away; who may execute may read; and an exclusive create stores the client's verifier in
the times of the new file, so that a repeated call, also after a restart, finds its own file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance import limits
from appliance.clock import SECOND, Clock
from appliance.vfs import access
from appliance.vfs.access import EXECUTE, READ, WRITE, Credential
from appliance.vfs.acl import Acl
from appliance.vfs.attribute_rules import permitted_changes
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import (
    IMMUTABLE,
    Attributes,
    Buffer,
    Entry,
    FileSystem,
    FileType,
    NewNode,
    Node,
    SetAttributes,
    SetTime,
    Ticket,
    same_node,
)
from appliance.vfs.tree import Tree

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
"""The modes of what is created without one."""

VERIFIER_BYTES: Final = 8

_DIRECTORY: Final = FileType.DIRECTORY
_REGULAR: Final = FileType.REGULAR
_STORED: Final = (_REGULAR, _DIRECTORY, FileType.SYMLINK)
_DEVICES: Final = (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
_MAJOR_BITS: Final = 12
_MINOR_BITS: Final = 20
"""Of the numbers of a device, as Linux has them."""

_WHITEOUT: Final = (FileType.CHARACTER_DEVICE, (0, 0))
"""No device, but a mark of overlay file systems, which anybody may make."""

_DOTS: Final = (b".", b"..")
_SET_ID: Final = access.SET_UID | access.SET_GID
_NO_WISHES: Final = SetAttributes()


class User:
    """A credential at work, within one export.

    `tree`: what is a mount point, which can be neither removed nor renamed; with `crosses`, mounts
    are crossed in `lookup`, too. `top`: ".." does not lead above it.
    """

    __slots__ = ("_clock", "_mounts", "_read_only", "_top", "_tree", "credential")

    def __init__(
        self,
        credential: Credential,
        *,
        clock: Clock,
        read_only: bool = False,
        tree: Tree | None = None,
        crosses: bool = True,
        top: Node | None = None,
    ) -> None:
        self.credential = credential
        self._clock = clock
        self._read_only = read_only
        self._mounts = tree
        self._tree = tree if crosses else None
        self._top = top

    # Names.

    def lookup(self, directory: Node, name: bytes) -> Node:
        """The node of that name; "." and ".." are understood."""
        self._directory(directory, EXECUTE)
        if name in _DOTS:
            return directory if name == b"." else self._above(directory)
        check_name(directory.filesystem, name)
        found = directory.lookup(name)
        return found if self._tree is None else self._tree.cross(found)

    def read_directory(self, directory: Node, cookie: int, limit: int) -> list[Entry]:
        """At most `limit` entries after `cookie`, "." and ".." among them; fewer: the last."""
        self._directory(directory, READ)
        return directory.entries(cookie, limit)

    def entry_nodes(self, directory: Node, entries: Sequence[Entry]) -> list[Node | None]:
        """`entry_node` of many."""
        try:
            self._directory(directory, EXECUTE)
        except VfsError:
            return [None] * len(entries)
        tree = self._tree
        return [
            self.entry_node(directory, entry)
            if (node := entry.node) is None or entry.name in _DOTS
            else node
            if tree is None
            else tree.cross(node)
            for entry in entries
        ]

    def entry_node(self, directory: Node, entry: Entry) -> Node | None:
        """The node of an entry that `read_directory` gave, or None where it cannot be shown: it has
        gone meanwhile, or the directory may be read but not searched."""
        try:
            if entry.node is None or entry.name in _DOTS:
                return self.lookup(directory, entry.name)
            self._directory(directory, EXECUTE)
        except VfsError:
            return None
        return entry.node if self._tree is None else self._tree.cross(entry.node)

    def create(self, directory: Node, name: bytes, wishes: SetAttributes = _NO_WISHES) -> Node:
        """Make a regular file that is not there yet ("guarded"). EXIST."""
        with directory.filesystem.lock:
            return self._make(directory, name, _REGULAR, FILE_MODE, wishes)

    def create_unchecked(
        self, directory: Node, name: bytes, wishes: SetAttributes = _NO_WISHES
    ) -> Node:
        """Make a regular file; if there is something, that, and a regular file gets the size that
        was wished (its other attributes are not touched)."""
        with directory.filesystem.lock:
            found = self._find_for_file(directory, name)
            if found is None:
                return self._make(directory, name, _REGULAR, FILE_MODE, wishes)
            if wishes.size is not None and found.attributes().type is _REGULAR:
                self.set_attributes(found, SetAttributes(size=wishes.size))
            return found

    def create_exclusive(self, directory: Node, name: bytes, verifier: bytes) -> Node:
        """Make a regular file that remembers `verifier`; if there is one that remembers the same
        and is still empty, this call was repeated, and it is the one. EXIST."""
        assert len(verifier) == VERIFIER_BYTES
        atime_ns, mtime_ns = _times_of_verifier(verifier)
        with directory.filesystem.lock:
            found = self._find_for_file(directory, name)
            if found is None:
                wishes = SetAttributes(mode=0, atime_ns=atime_ns, mtime_ns=mtime_ns)
                return self._make(directory, name, _REGULAR, FILE_MODE, wishes)
            its = found.attributes()
            made_by_it = (its.type, its.size, its.atime_ns, its.mtime_ns)
            if made_by_it != (_REGULAR, 0, atime_ns, mtime_ns):
                raise VfsError(Code.EXIST)
            return found

    def mkdir(self, directory: Node, name: bytes, wishes: SetAttributes = _NO_WISHES) -> Node:
        """Make a directory. EXIST, MLINK."""
        with directory.filesystem.lock:
            return self._make(directory, name, _DIRECTORY, DIRECTORY_MODE, wishes)

    def symlink(
        self, directory: Node, name: bytes, target: bytes, wishes: SetAttributes = _NO_WISHES
    ) -> Node:
        """Make a symbolic link with this text; nobody asks for its mode. EXIST, NAMETOOLONG,
        INVAL."""
        if not target or b"\0" in target:
            raise VfsError(Code.INVAL, "text of a symbolic link")
        if len(target) > limits.SYMLINK_BYTES_MAX:
            raise VfsError(Code.NAMETOOLONG, "text of a symbolic link")
        with directory.filesystem.lock:
            return self._make(directory, name, FileType.SYMLINK, 0o777, wishes, target=target)

    def mknod(
        self,
        directory: Node,
        name: bytes,
        type: FileType,
        rdev: tuple[int, int] = (0, 0),
        wishes: SetAttributes = _NO_WISHES,
    ) -> Node:
        """Make a device (the superuser), FIFO or socket. EXIST, PERM, INVAL."""
        if type in _STORED:
            raise VfsError(Code.INVAL, "mknod")
        if type not in _DEVICES:
            rdev = (0, 0)
        elif rdev[0] >> _MAJOR_BITS or rdev[1] >> _MINOR_BITS:
            raise VfsError(Code.INVAL, "numbers of a device")
        with directory.filesystem.lock:
            return self._make(directory, name, type, FILE_MODE, wishes, rdev=rdev)

    def link(self, node: Node, directory: Node, name: bytes) -> None:
        """Give `node` one more name. EXIST, XDEV, PERM (a directory), MLINK."""
        with directory.filesystem.lock:
            self._new_name(directory, name)
            if node.filesystem is not directory.filesystem:
                raise VfsError(Code.XDEV)
            its = node.attributes()
            access.check_not_fixed(its)
            if its.type is _DIRECTORY:
                raise VfsError(Code.PERM, "link to a directory")
            if its.nlink >= node.filesystem.limits.link_count_max:
                raise VfsError(Code.MLINK)
            directory.link(name, node)

    def remove(self, directory: Node, name: bytes) -> None:
        """Take away a name of something that is not a directory. NOENT, ISDIR."""
        with directory.filesystem.lock:
            if name in _DOTS:
                self._directory(directory, EXECUTE)
                raise VfsError(Code.ISDIR)
            entry = self._old_name(directory, name)
            if entry.attributes().type is _DIRECTORY:
                raise VfsError(Code.ISDIR)
            directory.remove(name)

    def rmdir(self, directory: Node, name: bytes) -> None:
        """Remove an empty directory. NOENT, NOTDIR, NOTEMPTY, ACCES (a mount point); "." and ".."
        are INVAL and EXIST, as RFC 1813 has it."""
        with directory.filesystem.lock:
            if name in _DOTS:
                self._directory(directory, EXECUTE)
                raise VfsError(Code.INVAL if name == b"." else Code.EXIST)
            entry = self._old_name(directory, name)
            if entry.attributes().type is not _DIRECTORY:
                raise VfsError(Code.NOTDIR)
            self._not_busy(entry)
            directory.rmdir(name)

    def rename(
        self, directory: Node, name: bytes, target_directory: Node, target_name: bytes
    ) -> None:
        """Move an entry, replacing what has the target's name, in one step.

        INVAL: into itself or below; ISDIR: something else over a directory; NOTDIR: a directory
        over something else; NOTEMPTY; XDEV. Between two names of one node: nothing happens.
        """
        self._directory(directory, EXECUTE)
        self._directory(target_directory, EXECUTE)
        if directory.filesystem is not target_directory.filesystem:
            raise VfsError(Code.XDEV)
        if name in _DOTS or target_name in _DOTS:
            raise VfsError(Code.INVAL)
        with directory.filesystem.lock:
            moved = self._existing(directory, name)
            replaced = self._find(target_directory, target_name)
            if replaced is not None and same_node(moved, replaced):
                return
            self._check_move(moved, directory, target_directory, replaced)
            directory.rename(name, target_directory, target_name)

    def _check_move(
        self, moved: Node, directory: Node, target_directory: Node, replaced: Node | None
    ) -> None:
        """The rules of rename once both names have been looked up."""
        is_directory = moved.attributes().type is _DIRECTORY
        elsewhere = not same_node(directory, target_directory)
        if elsewhere and _is_at_or_above(moved, target_directory):
            raise VfsError(Code.INVAL, "into itself")
        if elsewhere and replaced is not None and _is_at_or_above(replaced, directory):
            raise VfsError(Code.NOTEMPTY, "over what it is in")
        self._may_unlink(self._directory(directory, WRITE | EXECUTE), moved)
        its = self._directory(target_directory, WRITE | EXECUTE)
        if replaced is not None:
            self._may_unlink(its, replaced)
            if (replaced.attributes().type is _DIRECTORY) != is_directory:
                raise VfsError(Code.NOTDIR if is_directory else Code.ISDIR)
            self._not_busy(replaced)
        if is_directory:
            self._not_busy(moved)
            if elsewhere:
                self._require(moved.attributes(), WRITE)  # its ".." changes
                if replaced is None:
                    _room_for_a_directory(target_directory, its)

    # Contents and attributes.

    def read(self, node: Node, offset: int, count: int) -> tuple[list[Buffer], bool]:
        """At most `count` bytes from `offset`, and whether the end was reached. ISDIR, INVAL."""
        its = node.attributes()
        if its.type is not _REGULAR:
            raise VfsError(Code.ISDIR if its.type is _DIRECTORY else Code.INVAL, "not a file")
        credential = self.credential
        if credential.uid != its.uid and not access.rights(credential, its) & (READ | EXECUTE):
            raise VfsError(Code.ACCES)
        return node.read(offset, count)

    def write(self, node: Node, offset: int, data: Sequence[Buffer]) -> int:
        """Write all of `data`; how much it was. ISDIR, INVAL, ROFS, FBIG, NOSPC."""
        its = self._writer(node)
        end = offset + sum(map(len, data))
        if end > node.filesystem.limits.file_bytes_max:
            raise VfsError(Code.FBIG)
        if its.mode & _SET_ID and not self.credential.is_superuser:
            self._take_set_id(node)
        return node.write(offset, data)

    def sync(self, node: Node) -> Ticket | None:
        """Begin to make durable what was written to the file; None: it is."""
        self._writer(node)
        return node.sync()

    def readlink(self, node: Node) -> bytes:
        """The text of a symbolic link. INVAL."""
        if node.attributes().type is not FileType.SYMLINK:
            raise VfsError(Code.INVAL, "not a symbolic link")
        return node.readlink()

    def set_attributes(self, node: Node, changes: SetAttributes) -> None:
        """Change attributes, all or none; the rules are in attribute_rules.py."""
        filesystem = node.filesystem
        with filesystem.lock:
            before = node.attributes()
            if changes.size is None or before.type is _REGULAR:  # what has none is told so first
                self._writable(filesystem)
            if (changes.size or 0) > filesystem.limits.file_bytes_max:
                raise VfsError(Code.FBIG)
            if (changes.acl or changes.default_acl) and not filesystem.limits.acls:
                raise VfsError(Code.NOTSUPP, "access control lists")
            permitted = permitted_changes(self.credential, before, changes, self._clock.wall())
            if permitted != _NO_WISHES:
                node.set_attributes(permitted)

    def access(self, node: Node) -> int:
        """Which of READ, WRITE and EXECUTE this user has on `node` (an owner gets no favours: this
        is what a client shows to its programs). What is written to a device, FIFO or socket stays
        on the client, so it may be where nothing else is."""
        its = node.attributes()
        granted = access.rights(self.credential, its)
        if its.type is _DIRECTORY and not access.permits(self.credential, its, WRITE | EXECUTE):
            granted &= ~WRITE  # it is of no use alone
        if (self._read_only or node.filesystem.read_only) and its.type in _STORED:
            granted &= ~WRITE
        if its.flags & IMMUTABLE:
            granted &= ~WRITE
        return granted

    # The steps that they share.

    def _directory(self, node: Node, wanted: int) -> Attributes:
        """The attributes of a directory on which the user has the `wanted` rights."""
        its = node.attributes()
        if its.type is not _DIRECTORY:
            raise VfsError(Code.NOTDIR)
        self._require(its, wanted)
        return its

    def _require(self, its: Attributes, wanted: int) -> None:
        if its.flags and wanted & WRITE:
            access.check_not_immutable(its)
        if not access.permits(self.credential, its, wanted):
            raise VfsError(Code.ACCES)

    def _writable(self, filesystem: FileSystem) -> None:
        if self._read_only or filesystem.read_only:
            raise VfsError(Code.ROFS)

    def _writer(self, node: Node) -> Attributes:
        """The attributes of a regular file that the user may write."""
        its = node.attributes()
        if its.type is not _REGULAR:
            raise VfsError(Code.ISDIR if its.type is _DIRECTORY else Code.INVAL, "not a file")
        self._writable(node.filesystem)
        if its.flags:
            access.check_not_immutable(its)
        credential = self.credential
        if credential.uid != its.uid and not access.permits(credential, its, WRITE):
            raise VfsError(Code.ACCES)
        if its.flags:
            access.check_not_fixed(its)
        return its

    def _find(self, directory: Node, name: bytes) -> Node | None:
        """What has this name in a directory that may be searched, without crossing a mount."""
        self._directory(directory, EXECUTE)
        if name in _DOTS:
            return directory if name == b"." else self._above(directory)
        check_name(directory.filesystem, name)
        try:
            return directory.lookup(name)
        except VfsError as error:
            if error.code is Code.NOENT:
                return None
            raise

    def _find_for_file(self, directory: Node, name: bytes) -> Node | None:
        """What has the name of a file that shall be there. EXIST: it can never be a file's."""
        found = self._find(directory, name)
        if name in _DOTS:
            raise VfsError(Code.EXIST)
        return found

    def _new_name(self, directory: Node, name: bytes) -> Attributes:
        """The rules for a name that shall come into being; the attributes of the directory."""
        if self._find(directory, name) is not None:
            raise VfsError(Code.EXIST)
        self._writable(directory.filesystem)
        return self._directory(directory, WRITE | EXECUTE)

    def _old_name(self, directory: Node, name: bytes) -> Node:
        """The rules for a name that shall go; its node."""
        entry = self._existing(directory, name)
        self._may_unlink(self._directory(directory, WRITE | EXECUTE), entry)
        return entry

    def _existing(self, directory: Node, name: bytes) -> Node:
        """What has this name, before it is changed."""
        self._directory(directory, EXECUTE)
        self._writable(directory.filesystem)
        check_name(directory.filesystem, name)
        return directory.lookup(name)

    def _may_unlink(self, directory: Attributes, entry: Node) -> None:
        if not access.may_unlink(self.credential, directory, entry.attributes()):
            raise VfsError(Code.PERM, "sticky, immutable or append-only")

    def _not_busy(self, entry: Node) -> None:
        if self._mounts is not None and self._mounts.is_mount_point(entry):
            raise VfsError(Code.ACCES, "a mount point")

    def _make(
        self,
        directory: Node,
        name: bytes,
        type: FileType,
        default_mode: int,
        wishes: SetAttributes,
        *,
        target: bytes = b"",
        rdev: tuple[int, int] = (0, 0),
    ) -> Node:
        its = self._new_name(directory, name)
        if type in _DEVICES and (type, rdev) != _WHITEOUT and not self.credential.is_superuser:
            raise VfsError(Code.PERM, "mknod")
        if type is _DIRECTORY:
            _room_for_a_directory(directory, its)
        if (wishes.size or 0) > directory.filesystem.limits.file_bytes_max:
            raise VfsError(Code.FBIG)
        mode = default_mode
        if wishes.mode is not None and type is not FileType.SYMLINK:
            mode = wishes.mode & 0o7777
        uid, gid, mode = self._ownership(its, type, mode, wishes)
        new = NewNode(type, mode, uid, gid, rdev, target)
        if its.default_acl is not None:
            _inherit(new, its.default_acl)
        first = SetAttributes(
            size=(wishes.size or None) if type is _REGULAR else None,
            atime_ns=self._instant(wishes.atime_ns),
            mtime_ns=self._instant(wishes.mtime_ns),
        )
        new.first = None if first == _NO_WISHES else first
        return directory.create(name, new)

    def _ownership(
        self, directory: Attributes, type: FileType, mode: int, wishes: SetAttributes
    ) -> tuple[int, int, int]:
        """Owner, group and mode of a new node: whose it is, unless a set-group-id directory passes
        its group on, or the superuser wishes otherwise (others' wishes are not heard)."""
        credential = self.credential
        uid, gid = credential.uid, credential.gid
        if directory.mode & access.SET_GID:
            gid = directory.gid
            if type is _DIRECTORY:
                mode |= access.SET_GID
            elif (
                mode & access.GROUP_EXECUTE
                and not credential.is_superuser
                and not credential.in_group(gid)
            ):
                mode &= ~access.SET_GID
        if credential.is_superuser:
            uid = uid if wishes.uid is None else wishes.uid
            gid = gid if wishes.gid is None else wishes.gid
        return uid, gid, mode

    def _instant(self, wish: int | SetTime | None) -> int | None:
        return self._clock.wall() if wish is SetTime.NOW else wish

    def _take_set_id(self, node: Node) -> None:
        with node.filesystem.lock:
            its = node.attributes()
            mode, in_group = its.mode, self.credential.in_group(its.gid)
            kept = access.without_set_id(mode, in_group=in_group)
            if kept != mode:
                node.set_attributes(SetAttributes(mode=kept))

    def _above(self, directory: Node) -> Node:
        """What ".." is: never above the top of the export, and across mounts only with a tree."""
        if self._top is not None and same_node(directory, self._top):
            return directory
        tree = self._tree
        if tree is not None and tree.is_top(directory):
            covered = tree.covered_by(directory)
            return directory if covered is None else self._above(covered)
        above = directory.parent()
        return above if tree is None else tree.cross(above)


def check_name(filesystem: FileSystem, name: bytes) -> None:
    """Whether this can be a name in a directory. ACCES, as Linux and RFC 1813 (section 3.2) have
    it, for one that cannot; NAMETOOLONG."""
    if not name or b"/" in name or b"\0" in name:
        raise VfsError(Code.ACCES, "not a name")
    if len(name) > filesystem.limits.name_bytes_max:
        raise VfsError(Code.NAMETOOLONG)


def _room_for_a_directory(directory: Node, its: Attributes) -> None:
    """One more directory below is one more link, its ".."."""
    most = directory.filesystem.limits.directory_link_count_max
    if most is not None and its.nlink >= most:
        raise VfsError(Code.MLINK)


def _inherit(new: NewNode, default: Acl) -> None:
    """What a directory with this default list passes on."""
    if new.type is FileType.SYMLINK:
        return
    acl, new.mode = default.inherited(new.mode)
    new.acl = None if acl.is_minimal else acl
    new.default_acl = default if new.type is _DIRECTORY else None


def _is_at_or_above(node: Node, below: Node) -> bool:
    """Whether the directory `below` is `node` or somewhere under it."""
    if node.attributes().type is not _DIRECTORY:
        return False
    for _ in range(limits.DIRECTORY_DEPTH_MAX):
        if same_node(node, below):
            return True
        above = below.parent()
        if same_node(above, below):
            return False
        below = above
    raise VfsError(Code.INVAL, "too deep")


def _times_of_verifier(verifier: bytes) -> tuple[int, int]:
    """A verifier as two file times in whole seconds before 2038, which every file system keeps."""
    high, low = (int.from_bytes(half, "big") & 0x7FFF_FFFF for half in (verifier[:4], verifier[4:]))
    return low * SECOND, high * SECOND
