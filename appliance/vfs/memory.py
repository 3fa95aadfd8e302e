"""A complete file system in memory: the example for authors of backends, and the tests' oracle.

Content is in sparse.py. Names of a directory are in a dictionary, and in a list in the order in
which they came. A cookie is a number that the directory never uses again; the list is sorted by it,
so that a listing goes on wherever it was, whatever came or went. A removed entry stays in the list,
without its node, until removed ones are the majority; so listing n entries takes O(n) in all.

Attributes are replaced, never changed. `change` and `ctime` are one number, which is the time but
always at least one more than before; so no change goes unseen, however coarse the clock. Reading
does not change `atime`. Extended attributes take storage as data does; access control lists are
attributes like the mode, and take none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from random import Random
from typing import Final

from appliance import limits
from appliance.clock import Clock
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import (
    Attributes,
    Buffer,
    Entry,
    FileSystem,
    FileType,
    Limits,
    NewNode,
    Node,
    SetAcl,
    SetAttributes,
    SetTime,
    Statistics,
    Ticket,
)
from appliance.vfs.sparse import PAGE_BYTES, SparseBytes, pieces

_GENERATION_BYTES: Final = 4
_HANDLE_BYTES: Final = 8 + _GENERATION_BYTES
_COMPACT_FROM: Final = 32  # shorter lists are not worth the trouble
_XATTR_OVERHEAD_BYTES: Final = 256  # so that many small ones do not cost nothing
_NO_XATTRS: Final[dict[bytes, bytes]] = {}  # what most nodes have; replaced, never changed
_DOT, _DOT_DOT, _FIRST_COOKIE = 1, 2, 3

_cookie_of = attrgetter("cookie")


class MemoryFileSystem(FileSystem):
    """A file system that holds up to `size_bytes` of data, and as many nodes as that has pages."""

    def __init__(
        self,
        size_bytes: int,
        *,
        fsid: int,
        clock: Clock,
        random: Random,
        node_count_max: int | None = None,
    ) -> None:
        super().__init__(fsid, file_limits=Limits(acls=True))
        self._clock = clock
        self._random = random
        self._page_count = size_bytes // PAGE_BYTES
        self._node_count_max = node_count_max or max(self._page_count, 16)
        self.free_bytes = self._page_count * PAGE_BYTES
        self.nodes: dict[bytes, MemoryNode] = {}
        self._last_fileid = 0
        self._root = MemoryDirectory(self, NewNode(FileType.DIRECTORY, 0o755, 0, 0), None)

    def root(self) -> MemoryDirectory:
        return self._root

    def resolve(self, handle: bytes) -> MemoryNode:
        node = self.nodes.get(handle)
        if node is None:
            raise VfsError(Code.STALE if len(handle) == _HANDLE_BYTES else Code.BADHANDLE)
        return node

    def statistics(self) -> Statistics:
        total, free = self._page_count * PAGE_BYTES, self.free_bytes
        free_nodes = self._node_count_max - len(self.nodes)
        return Statistics(total, free, free, self._node_count_max, free_nodes, free_nodes)

    def now(self) -> int:
        return self._clock.wall()

    def take_storage(self, growth: int) -> None:
        """Use so many bytes more (or fewer). NOSPC."""
        if growth > self.free_bytes:
            raise VfsError(Code.NOSPC)
        self.free_bytes -= growth

    def admit(self, node: MemoryNode) -> tuple[int, bytes]:
        """The file id and handle of a new node. NOSPC."""
        if len(self.nodes) >= self._node_count_max:
            raise VfsError(Code.NOSPC, "no room for another file")
        self._last_fileid += 1
        generation = self._random.getrandbits(8 * _GENERATION_BYTES)
        handle = (self._last_fileid << 8 * _GENERATION_BYTES | generation).to_bytes(
            _HANDLE_BYTES, "big"
        )
        self.nodes[handle] = node
        return self._last_fileid, handle


class MemoryNode(Node):
    """What all types have in common; as it is, a device, FIFO or socket."""

    __slots__ = ("_attributes", "_xattrs", "filesystem", "handle")

    filesystem: MemoryFileSystem

    def __init__(self, filesystem: MemoryFileSystem, new: NewNode) -> None:
        self.filesystem = filesystem
        fileid, self.handle = filesystem.admit(self)
        now = filesystem.now()
        nlink, size = (2, PAGE_BYTES) if new.type is FileType.DIRECTORY else (1, len(new.target))
        self._attributes = Attributes(
            new.type,
            new.mode,
            nlink,
            new.uid,
            new.gid,
            size,
            0,
            new.rdev,
            fileid,
            now,
            now,
            now,
            now,
            new.acl,
            new.default_acl,
        )
        self._xattrs: dict[bytes, bytes] = _NO_XATTRS

    def attributes(self) -> Attributes:
        return self._attributes

    def set_attributes(self, changes: SetAttributes) -> None:
        with self.filesystem.lock:
            self.check_alive()
            if changes.size is not None:
                self._resize(changes.size)
            self._become(changes=changes)

    def sync(self) -> Ticket | None:
        return self.filesystem.sync()

    def _resize(self, size: int) -> None:
        raise VfsError(Code.INVAL, "size")

    def check_alive(self) -> None:
        if not self._attributes.nlink:
            raise VfsError(Code.STALE)

    def add_links(self, count: int) -> None:
        """So many more names; with none left, the node is gone."""
        self._become(nlink=self._attributes.nlink + count)
        if not self._attributes.nlink:
            del self.filesystem.nodes[self.handle]
            self._release()

    def _release(self) -> None:
        """Give storage back."""
        self.filesystem.take_storage(-sum(map(_xattr_bytes, self._xattrs.items())))
        self._xattrs = _NO_XATTRS

    # Extended attributes.

    def xattr(self, name: bytes) -> bytes:
        value = self._xattrs.get(name)
        if value is None:
            raise VfsError(Code.NOENT, "attribute")
        return value

    def set_xattr(self, name: bytes, value: bytes) -> None:
        if len(name) > limits.XATTR_NAME_BYTES_MAX or len(value) > limits.XATTR_VALUE_BYTES_MAX:
            raise VfsError(Code.NOSPC, "a long attribute")
        with self.filesystem.lock:
            self.check_alive()
            growth = _xattr_bytes((name, value))
            if name in self._xattrs:
                growth -= _xattr_bytes((name, self._xattrs[name]))
            elif sum(map(len, self._xattrs)) + len(name) > limits.XATTR_NAMES_BYTES_MAX:
                raise VfsError(Code.NOSPC, "many attributes")
            self.filesystem.take_storage(growth)
            self._xattrs = self._xattrs | {name: value}
            self._become(used_bytes=growth)

    def remove_xattr(self, name: bytes) -> None:
        with self.filesystem.lock:
            self.check_alive()
            freed = _xattr_bytes((name, self.xattr(name)))
            self._xattrs = {key: value for key, value in self._xattrs.items() if key != name}
            self.filesystem.take_storage(-freed)
            self._become(used_bytes=-freed)

    def xattrs(self) -> list[bytes]:
        return list(self._xattrs)

    def _become(
        self,
        *,
        nlink: int | None = None,
        size: int | None = None,
        used_bytes: int = 0,
        modified: bool = False,
        changes: SetAttributes | None = None,
    ) -> None:
        """Replace the attributes; `used_bytes` is how much more storage is used than before."""
        old = self._attributes
        now = self.filesystem.now()
        change = now if now > old.change else old.change + 1
        mtime = change if modified else old.mtime_ns
        mode, uid, gid, atime = old.mode, old.uid, old.gid, old.atime_ns
        acl, default_acl = old.acl, old.default_acl
        if changes is not None:
            mode = mode if changes.mode is None else changes.mode
            uid = uid if changes.uid is None else changes.uid
            gid = gid if changes.gid is None else changes.gid
            size = old.size if changes.size is None else changes.size
            mtime = mtime if changes.size is None else change
            atime = _time(changes.atime_ns, atime)
            mtime = _time(changes.mtime_ns, mtime)
            acl = _acl(changes.acl, acl)
            default_acl = _acl(changes.default_acl, default_acl)
        self._attributes = Attributes(
            old.type,
            mode,
            old.nlink if nlink is None else nlink,
            uid,
            gid,
            old.size if size is None else size,
            old.used + used_bytes,
            old.rdev,
            old.fileid,
            atime,
            mtime,
            change,
            change,
            acl,
            default_acl,
        )

    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        raise VfsError(Code.INVAL, "not a file")

    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        raise VfsError(Code.INVAL, "not a file")

    def readlink(self) -> bytes:
        raise VfsError(Code.INVAL, "not a symbolic link")

    def lookup(self, name: bytes) -> Node:
        raise VfsError(Code.NOTDIR)

    def parent(self) -> Node:
        raise VfsError(Code.NOTDIR)

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        raise VfsError(Code.NOTDIR)

    def create(self, name: bytes, new: NewNode) -> Node:
        raise VfsError(Code.NOTDIR)

    def link(self, name: bytes, node: Node) -> None:
        raise VfsError(Code.NOTDIR)

    def remove(self, name: bytes) -> None:
        raise VfsError(Code.NOTDIR)

    def rmdir(self, name: bytes) -> None:
        raise VfsError(Code.NOTDIR)

    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        raise VfsError(Code.NOTDIR)


class MemorySymlink(MemoryNode):
    """A symbolic link."""

    __slots__ = ("_target",)

    def __init__(self, filesystem: MemoryFileSystem, new: NewNode) -> None:
        super().__init__(filesystem, new)
        self._target = new.target

    def readlink(self) -> bytes:
        return self._target


class MemoryFile(MemoryNode):
    """A regular file."""

    __slots__ = ("_content",)

    def __init__(self, filesystem: MemoryFileSystem, new: NewNode) -> None:
        super().__init__(filesystem, new)
        self._content = SparseBytes()

    def read(self, offset: int, count: int) -> tuple[list[Buffer], bool]:
        with self.filesystem.lock:
            size = self._attributes.size
            end = min(offset + count, size)
            return self._content.read(pieces(offset, end)), end >= size

    def write(self, offset: int, data: Sequence[Buffer]) -> int:
        length = sum(map(len, data))
        if not length:
            return 0
        end = offset + length
        where = pieces(offset, end)
        with self.filesystem.lock:
            self.check_alive()
            growth = self._content.growth(where)
            self.filesystem.take_storage(growth)
            self._content.write(where, data)
            size = max(end, self._attributes.size)
            self._become(size=size, used_bytes=growth, modified=True)
        return length

    def _resize(self, size: int) -> None:
        before = self._content.stored_bytes
        self._content.truncate(size)
        growth = self._content.stored_bytes - before
        self.filesystem.take_storage(growth)
        self._become(used_bytes=growth)

    def _release(self) -> None:
        """Buffers that were given out stay good: they hold the content themselves."""
        super()._release()
        self.filesystem.take_storage(-self._content.stored_bytes)
        self._content.truncate(0)


class MemoryDirectory(MemoryNode):
    """A directory. An entry in the list that has no node was removed."""

    __slots__ = ("_gone_count", "_list", "_names", "_next_cookie", "_parent")

    def __init__(
        self, filesystem: MemoryFileSystem, new: NewNode, parent: MemoryDirectory | None
    ) -> None:
        super().__init__(filesystem, new)
        self._parent = self if parent is None else parent
        self._names: dict[bytes, Entry] = {}
        self._list: list[Entry] = []
        self._gone_count = 0
        self._next_cookie = _FIRST_COOKIE

    def lookup(self, name: bytes) -> Node:
        entry = self._names.get(name)
        if entry is None or (node := entry.node) is None:
            raise VfsError(Code.NOENT)
        return node

    def parent(self) -> Node:
        return self._parent

    def entries(self, cookie: int, limit: int) -> list[Entry]:
        with self.filesystem.lock:
            found = [entry for entry in self._dots() if entry.cookie > cookie]
            at = bisect_right(self._list, cookie, key=_cookie_of) if cookie > _DOT_DOT else 0
            while len(found) < limit and at < len(self._list):
                stop = at + limit - len(found)
                some = self._list[at:stop]
                found += [e for e in some if e.node is not None] if self._gone_count else some
                at = stop
            return found[:limit]

    def _dots(self) -> tuple[Entry, Entry]:
        above = self._parent
        return (
            Entry(self._attributes.fileid, b".", _DOT, self),
            Entry(above.attributes().fileid, b"..", _DOT_DOT, above),
        )

    def create(self, name: bytes, new: NewNode) -> Node:
        with self.filesystem.lock:
            self._check_new(name)
            node = self._made(new)
            if new.first is not None:
                node.set_attributes(new.first)
            self._add(name, node)
            return node

    def _made(self, new: NewNode) -> MemoryNode:
        match new.type:
            case FileType.REGULAR:
                return MemoryFile(self.filesystem, new)
            case FileType.DIRECTORY:
                return MemoryDirectory(self.filesystem, new, self)
            case FileType.SYMLINK:
                return MemorySymlink(self.filesystem, new)
            case _:
                return MemoryNode(self.filesystem, new)

    def link(self, name: bytes, node: Node) -> None:
        assert isinstance(node, MemoryNode) and not isinstance(node, MemoryDirectory)
        with self.filesystem.lock:
            self._check_new(name)
            node.check_alive()
            self._add(name, node)
            node.add_links(+1)

    def remove(self, name: bytes) -> None:
        with self.filesystem.lock:
            node = self._child(name)
            if isinstance(node, MemoryDirectory):
                raise VfsError(Code.ISDIR)
            self._unlink(name, node)

    def rmdir(self, name: bytes) -> None:
        with self.filesystem.lock:
            node = self._child(name)
            if not isinstance(node, MemoryDirectory):
                raise VfsError(Code.NOTDIR)
            node.check_empty()
            self._unlink(name, node)

    def rename(self, name: bytes, target: Node, target_name: bytes) -> None:
        assert isinstance(target, MemoryDirectory)
        with self.filesystem.lock:
            node = self._child(name)
            target.check_alive()
            if target_name in target._names:
                replaced = target._child(target_name)
                if replaced is node:
                    return
                if isinstance(replaced, MemoryDirectory):
                    replaced.check_empty()
                target._unlink(target_name, replaced)
            self._drop(name, node)
            target._add(target_name, node)
            if isinstance(node, MemoryDirectory):
                node._parent = target
            node.add_links(0)  # its ctime shows that it was renamed

    def check_empty(self) -> None:
        if self._names:
            raise VfsError(Code.NOTEMPTY)

    def _check_new(self, name: bytes) -> None:
        self.check_alive()
        if name in self._names:
            raise VfsError(Code.EXIST)

    def _child(self, name: bytes) -> MemoryNode:
        node = self.lookup(name)
        assert isinstance(node, MemoryNode)
        return node

    def _unlink(self, name: bytes, node: MemoryNode) -> None:
        self._drop(name, node)
        node.add_links(-2 if isinstance(node, MemoryDirectory) else -1)

    def _add(self, name: bytes, node: MemoryNode) -> None:
        """Enter a name."""
        entry = Entry(node.attributes().fileid, name, self._next_cookie, node)
        self._next_cookie += 1
        self._names[name] = entry
        self._list.append(entry)
        self._modified(+1 if isinstance(node, MemoryDirectory) else 0)

    def _drop(self, name: bytes, node: MemoryNode) -> None:
        """Strike a name out."""
        self._names.pop(name).node = None
        self._gone_count += 1
        if self._gone_count > max(len(self._names), _COMPACT_FROM):
            self._list = [entry for entry in self._list if entry.node is not None]
            self._gone_count = 0
        self._modified(-1 if isinstance(node, MemoryDirectory) else 0)

    def _modified(self, directories: int) -> None:
        """The content has changed, by so many directories (each has a ".." that is a link here)."""
        self._become(nlink=self._attributes.nlink + directories, modified=True)


def _time(wish: int | SetTime | None, old: int) -> int:
    assert not isinstance(wish, SetTime)  # user.py has filled it in
    return old if wish is None else wish


def _acl(wish: Acl | SetAcl | None, old: Acl | None) -> Acl | None:
    if wish is SetAcl.NONE:
        return None
    return wish or old


def _xattr_bytes(xattr: tuple[bytes, bytes]) -> int:
    """What one attribute is charged."""
    name, value = xattr
    return len(name) + len(value) + _XATTR_OVERHEAD_BYTES
