"""Two ways to act on a file system with one vocabulary, so that they can be compared step by step.

An actor's methods take nodes as what `root`, `lookup` and `make` returned, give plain values, and
raise VfsError. `Served` is a real backend seen through User, with a node looked up by its handle in
each call, as a server does. `Naive` is the simplest thing that could be right: dictionaries, and
the superuser, who has every permission.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from appliance.vfs.access import Credential
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, Node, SetAttributes
from appliance.vfs.user import User
from tests.unit.vfs.tools import HandClock, listing, text

Token = Hashable
"""What an actor calls a node."""

Shape = tuple[FileType, int, int, int, int, int]
"""Type, mode, links, owner, group, and the size (0 unless a file or a symbolic link)."""


class Actor(Protocol):
    def root(self) -> Token: ...
    def lookup(self, who: Credential, directory: Token, name: bytes) -> Token: ...
    def make(
        self, who: Credential, directory: Token, name: bytes, type: FileType, mode: int
    ) -> Token: ...
    def link(self, who: Credential, node: Token, directory: Token, name: bytes) -> None: ...
    def remove(self, who: Credential, directory: Token, name: bytes) -> None: ...
    def rmdir(self, who: Credential, directory: Token, name: bytes) -> None: ...
    def rename(
        self, who: Credential, directory: Token, name: bytes, target: Token, target_name: bytes
    ) -> None: ...
    def read(self, who: Credential, node: Token, offset: int, count: int) -> bytes: ...
    def write(self, who: Credential, node: Token, offset: int, data: bytes) -> int: ...
    def change(self, who: Credential, node: Token, changes: SetAttributes) -> None: ...
    def shape(self, node: Token) -> Shape: ...
    def names(self, directory: Token) -> list[bytes]: ...


class Served:
    """A file system behind User."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._clock = HandClock()

    def _user(self, who: Credential) -> User:
        return User(who, clock=self._clock)

    def _node(self, token: Token) -> Node:
        assert isinstance(token, bytes)
        node = self._filesystem.resolve(token)
        node.attributes()
        return node

    def root(self) -> Token:
        return self._filesystem.root().handle

    def lookup(self, who: Credential, directory: Token, name: bytes) -> Token:
        return self._user(who).lookup(self._node(directory), name).handle

    def make(
        self, who: Credential, directory: Token, name: bytes, type: FileType, mode: int
    ) -> Token:
        user, where, wishes = self._user(who), self._node(directory), SetAttributes(mode=mode)
        match type:
            case FileType.REGULAR:
                return user.create(where, name, wishes).handle
            case FileType.DIRECTORY:
                return user.mkdir(where, name, wishes).handle
            case FileType.SYMLINK:
                return user.symlink(where, name, b"to " + name).handle
            case _:
                return user.mknod(where, name, type, wishes=wishes).handle

    def link(self, who: Credential, node: Token, directory: Token, name: bytes) -> None:
        self._user(who).link(self._node(node), self._node(directory), name)

    def remove(self, who: Credential, directory: Token, name: bytes) -> None:
        self._user(who).remove(self._node(directory), name)

    def rmdir(self, who: Credential, directory: Token, name: bytes) -> None:
        self._user(who).rmdir(self._node(directory), name)

    def rename(
        self, who: Credential, directory: Token, name: bytes, target: Token, target_name: bytes
    ) -> None:
        self._user(who).rename(self._node(directory), name, self._node(target), target_name)

    def read(self, who: Credential, node: Token, offset: int, count: int) -> bytes:
        buffers, end = self._user(who).read(self._node(node), offset, count)
        data = text(buffers)
        assert end or len(data) == count
        return data

    def write(self, who: Credential, node: Token, offset: int, data: bytes) -> int:
        half = len(data) // 2
        return self._user(who).write(self._node(node), offset, [data[:half], data[half:]])

    def change(self, who: Credential, node: Token, changes: SetAttributes) -> None:
        self._user(who).set_attributes(self._node(node), changes)

    def shape(self, node: Token) -> Shape:
        its = self._node(node).attributes()
        has_size = its.type in (FileType.REGULAR, FileType.SYMLINK)
        return its.type, its.mode, its.nlink, its.uid, its.gid, its.size if has_size else 0

    def names(self, directory: Token) -> list[bytes]:
        return sorted(entry.name for entry in listing(self._node(directory), page=5))


@dataclass(eq=False)
class _Thing:
    type: FileType
    mode: int
    nlink: int
    parent: _Thing | None
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, _Thing] = field(default_factory=dict)


class Naive:
    """Dictionaries. Only the superuser acts, so there is nothing to permit."""

    def __init__(self) -> None:
        self._root = _Thing(FileType.DIRECTORY, 0o777, 2, None)

    def root(self) -> Token:
        return self._root

    def _live(self, token: Token) -> _Thing:
        assert isinstance(token, _Thing)
        if not token.nlink:
            raise VfsError(Code.STALE)
        return token

    def _names(self, token: Token) -> dict[bytes, _Thing]:
        thing = self._live(token)
        if thing.type is not FileType.DIRECTORY:
            raise VfsError(Code.NOTDIR)
        return thing.names

    def lookup(self, who: Credential, directory: Token, name: bytes) -> _Thing:
        names, its = self._names(directory), self._live(directory)
        if name == b".":
            return its
        if name == b"..":
            return its.parent or its
        if name not in names:
            raise VfsError(Code.NOENT)
        return names[name]

    def make(
        self, who: Credential, directory: Token, name: bytes, type: FileType, mode: int
    ) -> Token:
        names, above = self._names(directory), self._live(directory)
        if name in names:
            raise VfsError(Code.EXIST)
        is_directory = type is FileType.DIRECTORY
        names[name] = made = _Thing(type, mode, 1 + is_directory, above)
        above.nlink += is_directory
        if type is FileType.SYMLINK:
            made.mode, made.data = 0o777, bytearray(b"to " + name)
        return made

    def link(self, who: Credential, node: Token, directory: Token, name: bytes) -> None:
        thing, names = self._live(node), self._names(directory)
        if name in names:
            raise VfsError(Code.EXIST)
        if thing.type is FileType.DIRECTORY:
            raise VfsError(Code.PERM)
        names[name] = thing
        thing.nlink += 1

    def remove(self, who: Credential, directory: Token, name: bytes) -> None:
        thing = self.lookup(who, directory, name)
        if thing.type is FileType.DIRECTORY:
            raise VfsError(Code.ISDIR)
        del self._names(directory)[name]
        thing.nlink -= 1

    def rmdir(self, who: Credential, directory: Token, name: bytes) -> None:
        thing = self.lookup(who, directory, name)
        if thing.type is not FileType.DIRECTORY:
            raise VfsError(Code.NOTDIR)
        if thing.names:
            raise VfsError(Code.NOTEMPTY)
        del self._names(directory)[name]
        thing.nlink = 0
        self._live(directory).nlink -= 1

    def rename(
        self, who: Credential, directory: Token, name: bytes, target: Token, target_name: bytes
    ) -> None:
        source, to = self._live(directory), self._live(target)
        self._names(directory)
        names = self._names(target)
        thing = self.lookup(who, directory, name)
        there = names.get(target_name)
        if there is thing:
            return
        is_directory = thing.type is FileType.DIRECTORY
        if is_directory and _is_at_or_above(thing, to):
            raise VfsError(Code.INVAL)
        if there is not None:
            if _is_at_or_above(there, source):
                raise VfsError(Code.NOTEMPTY)
            if (there.type is FileType.DIRECTORY) != is_directory:
                raise VfsError(Code.NOTDIR if is_directory else Code.ISDIR)
            if is_directory:
                self.rmdir(who, target, target_name)
            else:
                self.remove(who, target, target_name)
        del source.names[name]
        to.names[target_name] = thing
        if is_directory:
            thing.parent = to
            source.nlink -= 1
            to.nlink += 1

    def _file(self, node: Token) -> _Thing:
        thing = self._live(node)
        if thing.type is FileType.REGULAR:
            return thing
        raise VfsError(Code.ISDIR if thing.type is FileType.DIRECTORY else Code.INVAL)

    def read(self, who: Credential, node: Token, offset: int, count: int) -> bytes:
        return bytes(self._file(node).data[offset : offset + count])

    def write(self, who: Credential, node: Token, offset: int, data: bytes) -> int:
        old = self._file(node).data
        if data:
            old.extend(bytes(max(0, offset - len(old))))
            old[offset : offset + len(data)] = data
        return len(data)

    def change(self, who: Credential, node: Token, changes: SetAttributes) -> None:
        thing = self._live(node)
        if changes.size is not None:
            data = self._file(node).data
            del data[changes.size :]
            data.extend(bytes(changes.size - len(data)))
        if changes.mode is not None and thing.type is not FileType.SYMLINK:
            thing.mode = changes.mode

    def shape(self, node: Token) -> Shape:
        thing = self._live(node)
        return thing.type, thing.mode, thing.nlink, 0, 0, len(thing.data)

    def names(self, directory: Token) -> list[bytes]:
        return sorted(self._names(directory))


def _is_at_or_above(thing: _Thing, below: _Thing | None) -> bool:
    while below is not None and below is not thing:
        below = below.parent
    return below is thing
