"""Somebody who works on a file system: on the real one, and, in step, on the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final, ParamSpec, TypeVar

from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode, Node, SetAttributes
from tests.crash.model import CHUNK, Model, Version
from tests.crash.model import Node as ModelNode
from tests.crash.recording import Recording
from tests.crash.sight import Eyes, Judge, Sight, Window, see

P = ParamSpec("P")
T = TypeVar("T")

_FULL: Final = frozenset({Code.NOSPC, Code.MLINK})
"""Why an operation may be refused without anything being wrong."""


class Worker:
    """One who does all that is done below one directory, `top`, whose inode is `root`.

    Methods are operations on inode numbers. Each raises VfsError if the file system refuses; then
    nothing may have changed, which `compare` checks.
    """

    def __init__(
        self,
        filesystem: Ext4,
        recording: Recording,
        *,
        seed: int,
        durability: Durability = Durability.FULL,
        top: Node | None = None,
    ) -> None:
        self.filesystem: Final = filesystem
        self.recording: Final = recording
        self.durability: Final = durability
        self.seed: Final = seed
        self.random: Final = Random(seed)
        self.top: Final = top or filesystem.root()
        self.root: Final = self.top.attributes().fileid
        self.model: Final = Model(
            version_of(filesystem, self.top),
            self.root,
            # Whole seconds cannot go up with every operation.
            tick_ns=int(filesystem.limits.time_granularity_ns == 1),
        )
        self.judge: Final = Judge(self.model)
        self._made: dict[int, Node] = {}
        self.written: Final[list[tuple[int, int, int]]] = []
        """Acknowledgements of single files: position in the log, inode, operation."""

    # Operations.

    def node(self, number: int) -> Node:
        return self.filesystem.resolve(self.model.now[number].handle)

    def create(
        self,
        directory: int,
        name: bytes,
        kind: FileType = FileType.REGULAR,
        *,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        rdev: tuple[int, int] = (0, 0),
        target: bytes = b"",
    ) -> int:
        """A new node; its inode."""
        new = NewNode(kind, mode, *owner, rdev, target)
        number = 0

        def both() -> list[int]:
            nonlocal number
            made = self.node(directory).create(name, new)
            number = made.attributes().fileid
            assert number not in self.model.now, f"inode {number} is in use"
            self._made = {number: made}
            return self.model.create(directory, name, number, new)

        self._operation(both)
        return number

    def mkdir(self, directory: int, name: bytes) -> int:
        return self.create(directory, name, FileType.DIRECTORY, mode=0o755)

    def symlink(self, directory: int, name: bytes, target: bytes) -> int:
        return self.create(directory, name, FileType.SYMLINK, mode=0o777, target=target)

    def link(self, directory: int, name: bytes, number: int) -> None:
        def both() -> list[int]:
            self.node(directory).link(name, self.node(number))
            return self.model.link(directory, name, number)

        self._operation(both)

    def remove(self, directory: int, name: bytes) -> None:
        """Remove a name of anything; of a directory, if it is empty."""

        def both() -> list[int]:
            number = self.model.now[directory].entries[name]
            above = self.node(directory)
            if self.model.now[number].is_directory:
                above.rmdir(name)
            else:
                above.remove(name)
            return self.model.remove(directory, name)

        self._operation(both)

    def rename(self, source: int, name: bytes, target: int, target_name: bytes) -> None:
        def both() -> list[int]:
            self.node(source).rename(name, self.node(target), target_name)
            return self.model.rename(source, name, target, target_name)

        self._operation(both)

    def write(self, number: int, offset: int, data: bytes) -> int:
        """Write what fits; how much it was."""
        done = 0

        def both() -> list[int]:
            nonlocal done
            done = self.node(number).write(offset, [data[:7], data[7:]])
            assert 0 < done <= len(data)
            return self.model.write(number, offset, data[:done])

        self._operation(both)
        return done

    def set_attributes(self, number: int, changes: SetAttributes) -> None:
        def both() -> list[int]:
            self.node(number).set_attributes(changes)
            return self.model.set_attributes(number, changes)

        self._operation(both)

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        def both() -> list[int]:
            self.node(number).set_xattr(name, value)
            return self.model.set_xattr(number, name, value)

        self._operation(both)

    def remove_xattr(self, number: int, name: bytes) -> None:
        def both() -> list[int]:
            self.node(number).remove_xattr(name)
            return self.model.set_xattr(number, name, None)

        self._operation(both)

    def truncate(self, number: int, size: int) -> None:
        self.set_attributes(number, SetAttributes(size=size))

    def _operation(self, both: Callable[[], list[int]]) -> None:
        """Do something, and keep the version that comes of it."""
        model = self.model
        self.recording.begin(len(model.versions))
        before = model.now
        try:
            for number in both():
                node = self._live(number)
                model.observed(number, node.handle, node.attributes())
        except BaseException:
            model.now = before
            self.recording.begin(len(model.versions) - 1)
            raise
        model.keep()

    def _live(self, number: int) -> Node:
        """A node, also a new one, of which the model has no handle yet."""
        return self.node(number) if self.model.now[number].handle else self._made[number]

    # Durability.

    @property
    def last(self) -> int:
        """The number of the last operation."""
        return len(self.model.versions) - 1

    def sync(self) -> None:
        """Wait until everything is durable, in one of the ways there are."""
        if self.random.random() < 0.3:
            self.filesystem.commit()
            self.recording.acknowledge(self.last)
            return
        ticket = self.filesystem.sync()
        if ticket is not None:
            ticket.wait()
        if self.durability is not Durability.LAZY:  # which promises nothing by a ticket
            self.recording.acknowledge(self.last)

    def interrupt(self, share: float) -> None:
        """From now on somebody else waits for durability after some operations of the file system,
        of which one of ours may take several."""
        change = self.filesystem.change
        rng = Random(self.seed)

        def change_and_commit(act: Callable[[Operation], T]) -> T:
            result = change(act)
            if rng.random() < share:
                self.filesystem.commit()
            return result

        setattr(self.filesystem, "change", change_and_commit)  # noqa: B010 (mypy: a method)

    def sync_node(self, number: int) -> None:
        """Wait until one file is durable."""
        self.node(number).commit()
        if self.durability is not Durability.LAZY:
            self.written.append((len(self.recording.log), number, self.last))

    def window(self, point: int) -> Window:
        """What may be seen after a crash at `point` of the log."""
        floor, begun = self.recording.acknowledged.at(point), self.recording.begun.at(point)
        written: dict[int, int] = {}
        for position, number, operation in self.written:
            if position <= point:
                written[number] = operation
                node = self.model.versions[operation].get(number)
                if node is not None:
                    floor = max(floor, min(node.changed, begun))
        return Window(floor, begun, written)

    # What the oracles ask.

    @property
    def probes(self) -> dict[int, set[int]]:
        return self.model.probes

    def promise(self, point: int) -> str:
        return str(self.window(point))

    def problem(self, sight: Sight, point: int, eyes: Eyes) -> str:
        return self.judge.problem(sight, self.window(point), eyes)

    # Checks of the running file system.

    def compare(self) -> None:
        """The running file system holds what the model holds."""
        problem = self.judge.problem(
            see(self.top, self.model.probes_of), Window(self.last, self.last), Eyes.OURS
        )
        assert not problem, f"the running file system {problem}"

    def tolerantly(self, act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Do something that may be refused because something is full; whether it was done."""
        try:
            act(*args, **kwargs)
        except VfsError as error:
            if error.code not in _FULL:
                raise
            return False
        return True


def version_of(filesystem: Ext4, top: Node) -> Version:
    """A first version, of what is there below `top`."""
    version: Version = {}
    numbers: dict[bytes, int] = {}
    for path, seen in sorted(see(top, partial(stored_chunks, filesystem)).items()):
        attributes = seen.attributes
        number = numbers[path] = attributes.fileid
        above, _, name = path.rpartition(b"/")
        parent = numbers[above] if path else number
        new = NewNode(
            attributes.type,
            attributes.mode,
            attributes.uid,
            attributes.gid,
            attributes.rdev,
            seen.target,
            attributes.acl,
            attributes.default_acl,
        )
        version[number] = ModelNode(
            new,
            attributes.nlink,
            seen.content,
            {},
            parent,
            seen.xattrs,
            handle=seen.handle,
            attributes=attributes,
        )
        if path:
            version[parent].entries[name] = number
    return version


def stored_chunks(filesystem: Ext4, number: int) -> set[int]:
    """The chunks of a file that are not all in holes."""
    inode = filesystem.node(number).inode
    block_bytes = filesystem.volume.block_bytes
    extents = filesystem.maps.of(inode).extents(0, -(-inode.size // block_bytes))
    return {
        index
        for extent in extents
        if extent.physical
        for index in range(
            extent.logical * block_bytes // CHUNK, -(-extent.end * block_bytes // CHUNK)
        )
    }
