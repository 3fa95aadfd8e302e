"""The appliance's own file tree: file systems mounted at paths, as in a kernel.

A mount covers a directory: whoever comes to the covered directory goes on at the root of the file
system that covers it (`cross`), and ".." from there leads to the directory above the covered one
(`covered_by`). Where nothing is mounted at "/", a small read-only directory tree holds the way to
the mount points. It looks the same after every start on the same mounts, so handles of it stay
good.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from typing import Final

from appliance import limits
from appliance.clock import Clock
from appliance.limits import MiB
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, NewNode, Node, same_node
from appliance.vfs.memory import MemoryFileSystem

ROOT_FSID: Final = 1
"""The identity of the tree that leads to the mount points."""


class Tree:
    """File systems, and where they are mounted. Built before it is served, then only read."""

    def __init__(self, clock: Clock) -> None:
        self._way = MemoryFileSystem(
            1 * MiB, fsid=ROOT_FSID, clock=clock, random=random.Random(ROOT_FSID)
        )
        self._way.read_only = True
        self._root: FileSystem = self._way
        self._mounted: list[tuple[str, FileSystem]] = []
        self._by_fsid: dict[int, FileSystem] = {ROOT_FSID: self._way}
        self._covers: dict[tuple[int, bytes], FileSystem] = {}
        self._covered: dict[int, Node] = {}

    @classmethod
    def of(cls, mounts: Iterable[tuple[str, FileSystem]], clock: Clock) -> Tree:
        """A tree with these mounts, given in any order."""
        tree = cls(clock)
        for path, filesystem in sorted(mounts, key=lambda mount: _components(mount[0])):
            tree.mount(path, filesystem)
        return tree

    def mount(self, path: str, filesystem: FileSystem) -> None:
        """Mount at `path`, which comes after what it is mounted on.

        EXIST: something is mounted there, or this file system is already. NOENT, NOTDIR: no such
        directory in the file system that is mounted above. INVAL: "/" after others.
        """
        if filesystem.fsid in self._by_fsid:
            there = next(at for at, each in self._mounted if each.fsid == filesystem.fsid)
            raise VfsError(
                Code.EXIST,
                f"{path}: this file system is mounted already, at {there} (a copy of an image"
                " needs a UUID of its own: tune2fs -U random)",
            )
        names = _components(path)
        if not names:
            self._mount_root(filesystem)
        else:
            self._mount_below(path, names, filesystem)
        self._by_fsid[filesystem.fsid] = filesystem
        self._mounted.append((path, filesystem))

    def _mount_root(self, filesystem: FileSystem) -> None:
        if self._root is not self._way:
            raise VfsError(Code.EXIST, "/: something is mounted there")
        if self._mounted:
            raise VfsError(Code.INVAL, "/ has to be mounted before what is below it")
        self._root = filesystem
        del self._by_fsid[ROOT_FSID]

    def _mount_below(self, path: str, names: list[bytes], filesystem: FileSystem) -> None:
        node = self.root()
        for name in names:
            node = self.cross(self._step(path, node, name))
        if node.attributes().type is not FileType.DIRECTORY:
            raise VfsError(Code.NOTDIR, f"{path} is no directory: nothing can be mounted there")
        if self.is_top(node):
            raise VfsError(Code.EXIST, f"{path}: something is mounted there")
        self._covers[node.filesystem.fsid, node.handle] = filesystem
        self._covered[filesystem.fsid] = node

    def _step(self, path: str, node: Node, name: bytes) -> Node:
        try:
            return _lookup(node, name)
        except VfsError as error:
            if error.code is Code.NOENT and node.filesystem is self._way:
                return node.create(name, NewNode(FileType.DIRECTORY, 0o755, 0, 0))
            what = f"cannot mount at {path}: no directory {os.fsdecode(name)}"
            raise VfsError(error.code, f"{what} in what is served above it") from None

    def root(self) -> Node:
        """The directory "/"."""
        return self._root.root()

    def walk(self, path: str) -> Node:
        """The node at `path`, across mounts; ".." and symbolic links are not followed. NOENT,
        NOTDIR."""
        node = self.root()
        for name in _components(path):
            node = self.cross(_lookup(node, name))
        return node

    def cross(self, node: Node) -> Node:
        """What one finds on coming to `node`: the root of what is mounted there, or `node`."""
        covers = self._covers
        if not covers:
            return node
        filesystem = covers.get((node.filesystem.fsid, node.handle))
        return node if filesystem is None else filesystem.root()

    def is_mount_point(self, node: Node) -> bool:
        """Whether something is mounted on `node`."""
        return (node.filesystem.fsid, node.handle) in self._covers

    def is_top(self, node: Node) -> bool:
        """Whether `node` is the root of a file system."""
        return node.handle == node.filesystem.root().handle

    def covered_by(self, node: Node) -> Node | None:
        """The directory that the file system of `node` is mounted on; None for the one at "/"."""
        return self._covered.get(node.filesystem.fsid)

    def reaches(self, top: Node, filesystem: FileSystem) -> bool:
        """Whether `filesystem` is mounted somewhere below the directory `top`."""
        node = self._covered.get(filesystem.fsid)
        for _ in range(limits.DIRECTORY_DEPTH_MAX):
            if node is None or same_node(node, top):
                return node is not None
            is_top = self.is_top(node)
            node = self._covered.get(node.filesystem.fsid) if is_top else node.parent()
        return False

    def filesystem_by_fsid(self, fsid: int) -> FileSystem:
        """The file system of that identity. STALE: none is mounted."""
        filesystem = self._by_fsid.get(fsid)
        if filesystem is None:
            raise VfsError(Code.STALE, "no such file system")
        return filesystem

    @property
    def filesystems(self) -> list[FileSystem]:
        """What is mounted, in the order in which it was."""
        return [filesystem for _, filesystem in self._mounted]

    def close(self) -> None:
        """Unmount everything, the last first. One that fails does not keep the others; the error
        names each."""
        failures: list[tuple[str, VfsError]] = []
        while self._mounted:
            path, filesystem = self._mounted.pop()
            try:
                filesystem.close()
            except VfsError as error:
                failures.append((path, error))
        if failures:
            words = "; ".join(f"{path}: {error}" for path, error in failures)
            raise VfsError(failures[0][1].code, words)


def _components(path: str) -> list[bytes]:
    """The names in an absolute path."""
    if not path.startswith("/"):
        raise VfsError(Code.INVAL, f"{path}: not an absolute path")
    names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise VfsError(Code.INVAL, f'{path}: has ".."')
    return names


def _lookup(node: Node, name: bytes) -> Node:
    if node.attributes().type is not FileType.DIRECTORY:
        raise VfsError(Code.NOTDIR)
    return node.lookup(name)
