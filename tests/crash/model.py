"""What a file system should hold: a second, simple one, of which every version is kept.

A version is a dictionary of nodes by inode number; nodes and contents are never changed, only
replaced, so that a version costs one copy of a small dictionary. Version k is the tree after
operation k. The model decides what an operation does to types, links, sizes, names and bytes. What
it cannot know (times, storage, sizes of directories) is observed right after the operation, held to
the rules that there are, and from then on has to stay as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from appliance.vfs.acl import Acl
from appliance.vfs.interface import Attributes, FileType, NewNode, SetAcl, SetAttributes

CHUNK: Final = 4096
_ZEROS: Final = bytes(CHUNK)


@dataclass(slots=True, frozen=True)
class Content:
    """The bytes of a file. Chunks of zeros are not kept, so equal contents are equal objects."""

    chunks: dict[int, bytes] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> Content:
        return cls().write(0, data)

    def write(self, offset: int, data: bytes) -> Content:
        chunks = dict(self.chunks)
        end = offset + len(data)
        for index in range(offset // CHUNK, -(-end // CHUNK)):
            start = index * CHUNK
            into, first = max(offset - start, 0), max(start - offset, 0)
            piece = data[first : start + CHUNK - offset]
            if len(piece) < CHUNK:
                before = chunks.get(index, _ZEROS)
                piece = before[:into] + piece + before[into + len(piece) :]
            _put(chunks, index, piece)
        return Content(chunks, max(self.size, end))

    def resize(self, size: int) -> Content:
        if size >= self.size:
            return Content(self.chunks, size)
        last, inside = divmod(size, CHUNK)
        chunks = {index: chunk for index, chunk in self.chunks.items() if index <= last}
        if last in chunks:
            _put(chunks, last, chunks[last][:inside].ljust(CHUNK, b"\0"))
        return Content(chunks, size)

    def read(self, offset: int, count: int) -> bytes:
        """Within one chunk; behind the end there are zeros."""
        index, inside = divmod(offset, CHUNK)
        return self.chunks.get(index, _ZEROS)[inside : inside + count]


def _put(chunks: dict[int, bytes], index: int, chunk: bytes) -> None:
    if chunk == _ZEROS:
        chunks.pop(index, None)
    else:
        chunks[index] = bytes(chunk)


@dataclass(slots=True, frozen=True)
class Node:
    """One inode in one version."""

    new: NewNode  # type, permissions, owner, device, target
    nlink: int
    content: Content
    entries: dict[bytes, int]
    parent: int
    xattrs: dict[bytes, bytes]
    changed: int = 0
    """The last operation that changed more of it than bytes within its size, and times."""
    handle: bytes = b""
    attributes: Attributes | None = None

    @property
    def is_directory(self) -> bool:
        return self.new.type is FileType.DIRECTORY


Version = dict[int, Node]


class Model:
    """The tree, as it was after each operation.

    Methods are named after operations; each gives back the inodes that it has touched.
    """

    def __init__(self, first: Version, root: int, tick_ns: int = 1) -> None:
        self.root: Final = root
        self.tick_ns: Final = tick_ns  # by which a ctime goes up at least
        self.now: Version = first
        self.versions: Final[list[Version]] = [first]
        self.probes: Final = {number: set(node.content.chunks) for number, node in first.items()}
        """By inode: every chunk that ever had something in it."""
        self.writes: Final[dict[int, list[tuple[int, int, int]]]] = {}
        """By inode: which operation wrote there, from which byte to which."""

    def probes_of(self, number: int) -> set[int]:
        return self.probes.get(number, set())

    def keep(self) -> int:
        """The operation is over: what number it has."""
        self.versions.append(self.now)
        return len(self.versions) - 1

    def _replace(self, changes: dict[int, Node | None]) -> list[int]:
        now = dict(self.now)
        for number, node in changes.items():
            if node is None:
                del now[number]
            else:
                now[number] = replace(node, changed=len(self.versions))
        self.now = now
        return [number for number, node in changes.items() if node is not None]

    # Operations.

    def create(self, directory: int, name: bytes, number: int, new: NewNode) -> list[int]:
        above = self.now[directory]
        is_directory = new.type is FileType.DIRECTORY
        content = Content(size=len(new.target))
        self.probes.setdefault(number, set())
        node = Node(new, 2 if is_directory else 1, content, {}, directory, {})
        return self._replace({number: node, directory: _with(above, name, number, is_directory)})

    def link(self, directory: int, name: bytes, number: int) -> list[int]:
        node = self.now[number]
        return self._replace(
            {
                number: replace(node, nlink=node.nlink + 1),
                directory: _with(self.now[directory], name, number, False),
            }
        )

    def remove(self, directory: int, name: bytes) -> list[int]:
        changes: dict[int, Node | None] = {}
        self._unlink(directory, name, changes)
        return self._replace(changes)

    def _unlink(self, directory: int, name: bytes, changes: dict[int, Node | None]) -> None:
        number = self.now[directory].entries[name]
        node = self.now[number]
        changes[directory] = _without(self.now[directory], name, node.is_directory)
        gone = node.is_directory or node.nlink == 1
        changes[number] = None if gone else replace(node, nlink=node.nlink - 1)

    def rename(self, source: int, name: bytes, target: int, target_name: bytes) -> list[int]:
        number = self.now[source].entries[name]
        node = self.now[number]
        if self.now[target].entries.get(target_name) == number:
            return []
        changes: dict[int, Node | None] = {}
        if target_name in self.now[target].entries:
            self._unlink(target, target_name, changes)
        above = changes.get(source) or self.now[source]
        changes[source] = _without(above, name, node.is_directory)
        above = changes.get(target) or self.now[target]
        changes[target] = _with(above, target_name, number, node.is_directory)
        changes[number] = replace(node, parent=target) if node.is_directory else node
        return self._replace(changes)

    def write(self, number: int, offset: int, data: bytes) -> list[int]:
        node = self.now[number]
        content = node.content.write(offset, data)
        self.probes[number].update(range(offset // CHUNK, -(-(offset + len(data)) // CHUNK)))
        entry = (len(self.versions), offset, offset + len(data))
        self.writes.setdefault(number, []).append(entry)
        touched = self._replace({number: replace(node, content=content)})
        if content.size == node.content.size:
            self.now[number] = replace(self.now[number], changed=node.changed)
        return touched

    def set_attributes(self, number: int, changes: SetAttributes) -> list[int]:
        node = self.now[number]
        new = replace(
            node.new,
            mode=node.new.mode if changes.mode is None else changes.mode,
            uid=node.new.uid if changes.uid is None else changes.uid,
            gid=node.new.gid if changes.gid is None else changes.gid,
            acl=_list_after(node.new.acl, changes.acl),
            default_acl=_list_after(node.new.default_acl, changes.default_acl),
        )
        content = node.content if changes.size is None else node.content.resize(changes.size)
        return self._replace({number: replace(node, new=new, content=content)})

    def set_xattr(self, number: int, name: bytes, value: bytes | None) -> list[int]:
        node = self.now[number]
        if value is not None and node.xattrs.get(name) == value:
            return []
        xattrs = {other: kept for other, kept in node.xattrs.items() if other != name}
        if value is not None:
            xattrs[name] = value
        return self._replace({number: replace(node, xattrs=xattrs)})

    # What is observed.

    def observed(self, number: int, handle: bytes, attributes: Attributes) -> None:
        """These are the attributes of a node that the present operation has touched."""
        node = self.now[number]
        expected = expected_of(number, node)
        found = found_of(attributes)
        assert found == expected, f"inode {number}: is {found}, should be {expected}"
        before = node.attributes
        if before is not None:
            assert attributes.ctime_ns >= before.ctime_ns + self.tick_ns, f"{number}: same ctime"
            assert attributes.change > before.change, f"{number}: same change attribute"
            assert handle == node.handle, f"{number}: another handle"
        self.now[number] = replace(node, handle=handle, attributes=attributes)

    # Looking.

    def walk(self, version: Version) -> Iterator[tuple[bytes, int, Node]]:
        """Every name in a version: path, inode number, node."""
        pending = [(b"", self.root)]
        while pending:
            path, number = pending.pop()
            node = version[number]
            yield path, number, node
            pending += [(path + b"/" + name, below) for name, below in node.entries.items()]


def _list_after(before: Acl | None, change: Acl | SetAcl | None) -> Acl | None:
    """An access control list after a change."""
    if change is None:
        return before
    return None if isinstance(change, SetAcl) else change


def expected_of(number: int, node: Node) -> tuple[object, ...]:
    """What the model knows of the attributes of a node."""
    new = node.new
    size = 0 if node.is_directory else node.content.size
    lists = (new.acl, new.default_acl)
    return (number, new.type, new.mode, new.uid, new.gid, node.nlink, size, new.rdev, *lists)


def found_of(found: Attributes) -> tuple[object, ...]:
    """The same, of attributes that were found."""
    size = 0 if found.type is FileType.DIRECTORY else found.size
    owner = (found.uid, found.gid)
    lists = (found.acl, found.default_acl)
    return (found.fileid, found.type, found.mode, *owner, found.nlink, size, found.rdev, *lists)


def _with(above: Node, name: bytes, number: int, is_directory: bool) -> Node:
    """A directory with one more name."""
    entries = above.entries | {name: number}
    return replace(above, entries=entries, nlink=above.nlink + is_directory)


def _without(above: Node, name: bytes, is_directory: bool) -> Node:
    """A directory with one name less."""
    entries = {other: number for other, number in above.entries.items() if other != name}
    return replace(above, entries=entries, nlink=above.nlink - is_directory)
