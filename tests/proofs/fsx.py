"""Random operations on a few files of a file system, beside a model that holds every byte of them.

The idea is that of Apple's fsx of 1991: no scenario, only chance, and after each step what is read
has to be what was written, what was never written has to be zero, and sizes have to fit. Chance is
a seed, so a failure is repeated by repeating the seed; it tells the last operations before it.

    fsx = Fsx(Target(mount), seed=1, block_bytes=4096)
    fsx.run(10_000)
    fsx.close()

Each file has a window: the bytes from `base` on in which everything happens. Below it is a hole. So
the borders of a format (where indirect blocks begin, where an offset needs 33 bits) are met without
files of gigabytes. Several files grow in turn, so that none of them is contiguous.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from appliance.limits import KiB
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, NewNode, Node, SetAttributes

WINDOW_BYTES: Final = 256 * KiB
LOGGED_OPERATIONS: Final = 60
_WRITE_BYTES_MAX: Final = 64 * KiB
_FILE: Final = NewNode(FileType.REGULAR, 0o644, 0, 0)


@dataclass
class Model:
    """What one file has to hold."""

    name: bytes
    base: int
    size: int = 0
    window: bytearray = field(default_factory=lambda: bytearray(WINDOW_BYTES))

    def read(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        hole = max(0, min(count, self.base - offset))
        start = max(0, offset - self.base)
        return bytes(hole) + bytes(self.window[start : start + count - hole])

    def write(self, offset: int, data: bytes) -> None:
        start = offset - self.base
        self.window[start : start + len(data)] = data
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        kept = max(0, size - self.base)
        self.window[kept:] = bytes(WINDOW_BYTES - kept)
        self.size = size

    def punch(self, offset: int, count: int) -> None:
        start = offset - self.base
        end = min(start + count, max(0, self.size - self.base))
        if end > start:
            self.window[start:end] = bytes(end - start)


Range = Callable[[Node, int, int], None]
"""Does something to a file, from an offset to an end."""


class Target:
    """A directory of a file system that can be mounted again. `punch` and `allocate` are how a hole
    is made there and how it is filled with storage, if that is possible."""

    def __init__(
        self,
        mount: Callable[[], FileSystem],
        punch: Range | None = None,
        allocate: Range | None = None,
    ) -> None:
        self._mount = mount
        self.punch = punch
        self.allocate = allocate
        self.filesystem = mount()

    @property
    def directory(self) -> Node:
        return self.filesystem.root()

    def remount(self) -> None:
        self.filesystem.close()
        self.filesystem = self._mount()


class Difference(AssertionError):
    """The file system and the model disagree."""


class Fsx:
    """One run, from one seed."""

    def __init__(
        self,
        target: Target,
        *,
        seed: int,
        block_bytes: int,
        bases: Sequence[int] = (0, 0, 0),
        may_fill: bool = False,
    ) -> None:
        self._target = target
        self._seed = seed
        self._random = random.Random(seed)
        self._block_bytes = block_bytes
        self._may_fill = may_fill
        self._log: deque[str] = deque(maxlen=LOGGED_OPERATIONS)
        self._number = 0
        self._names = 0
        self.refused = 0
        self._models = [Model(b"", base) for base in bases]
        self._nodes = [self._created(model) for model in self._models]
        self._weighted = [
            (self._write, 28),
            (self._append, 60 if may_fill else 14),
            (self._read, 24),
            (self._truncate, 2 if may_fill else 8),
            (self._extend, 5),
            (self._punch, 6 if target.punch else 0),
            (self._allocate, 5 if target.allocate else 0),
            (self._sync, 2),
            (self._reopen, 4),
            (self._compare, 2),
            (self._replace, 1),
            (self._rename, 2),
        ]

    def run(self, count: int, *, remount_every: int = 500) -> None:
        """So many operations, and then a look at everything. Difference."""
        acts, weights = zip(*self._weighted, strict=True)
        for act in self._random.choices(acts, weights, k=count):
            self._number += 1
            which = self._random.randrange(len(self._models))
            act(which)
            self._check_size(which)
            if self._random.randrange(remount_every) == 0:
                self._remount()
        for which in range(len(self._models)):
            self._compare(which)

    def close(self) -> None:
        self._target.filesystem.close()

    # Operations.

    def _write(self, which: int) -> None:
        self._write_at(which, self._position(which))

    def _append(self, which: int) -> None:
        model = self._models[which]
        if model.base <= model.size < model.base + WINDOW_BYTES:
            self._write_at(which, model.size)

    def _write_at(self, which: int, offset: int) -> None:
        model, node = self._models[which], self._nodes[which]
        count = min(self._length(), model.base + WINDOW_BYTES - offset)
        if not count:
            return
        data = self._data(count)
        self._say(which, f"write {count} at {offset}")
        before = node.attributes().change
        try:
            written = node.write(offset, self._cut(data))
        except VfsError as error:
            self._filled(error)
            self._accept_part(which, offset, data)
            return
        if not (written == count or (self._may_fill and 0 < written < count)):
            raise self._difference(which, f"{written} of {count} bytes were written")
        model.write(offset, data[:written])
        if node.attributes().change <= before:
            raise self._difference(which, "the change attribute did not increase")

    def _accept_part(self, which: int, offset: int, data: bytes) -> None:
        """A write for which there was no room has written the beginning of its data, or nothing."""
        model, node = self._models[which], self._nodes[which]
        size = node.attributes().size
        found = self._text(node, offset, len(data))
        same = len(found)
        while found[:same] != data[:same]:
            same -= 1
        if not same and size == model.size:
            return
        model.write(offset, data[:same])

    def _read(self, which: int) -> None:
        model = self._models[which]
        offset = self._position(which)
        if self._random.randrange(16) == 0:
            offset = self._random.randrange(model.base + WINDOW_BYTES)
        self._check(which, offset, self._length())

    def _compare(self, which: int) -> None:
        """The whole window, and the end of the hole below it."""
        model = self._models[which]
        start = max(0, model.base - self._block_bytes - 1)
        self._check(which, start, model.base - start + WINDOW_BYTES + 1)

    def _truncate(self, which: int) -> None:
        model = self._models[which]
        self._resize(which, self._random.choice([0, model.base]) if self._one_in(6) else None)

    def _extend(self, which: int) -> None:
        """To a size beyond the end: what is between is zero, whatever was there before."""
        model = self._models[which]
        size = self._position(which)
        if size > model.size:
            self._resize(which, size)

    def _resize(self, which: int, size: int | None) -> None:
        model, node = self._models[which], self._nodes[which]
        size = self._position(which) if size is None else size
        self._say(which, f"truncate from {model.size} to {size}")
        try:
            node.set_attributes(SetAttributes(size=size))
        except VfsError as error:
            self._filled(error)
            return
        model.truncate(size)
        if size == 0 and node.attributes().used:
            raise self._difference(which, f"empty, and uses {node.attributes().used} bytes")

    def _punch(self, which: int) -> None:
        model, punch = self._models[which], self._target.punch
        assert punch is not None
        offset = self._position(which)
        end = offset + self._length()
        self._say(which, f"punch from {offset} to {end}")
        try:
            punch(self._nodes[which], offset, end)
        except VfsError as error:
            self._filled(error)
            return
        model.punch(offset, min(end, model.base + WINDOW_BYTES) - offset)

    def _allocate(self, which: int) -> None:
        """It reads as before; only if it is behind the end, there is more of it."""
        model, allocate = self._models[which], self._target.allocate
        assert allocate is not None
        offset = self._position(which)
        end = min(offset + self._length(), model.base + WINDOW_BYTES)
        if offset == end:
            return
        self._say(which, f"allocate from {offset} to {end}")
        try:
            allocate(self._nodes[which], offset, end)
        except VfsError as error:
            self._filled(error)
            return
        model.size = max(model.size, end)

    def _sync(self, which: int) -> None:
        self._say(which, "sync")
        if self._one_in(4):
            self._target.filesystem.commit()
        else:
            self._nodes[which].commit()

    def _reopen(self, which: int) -> None:
        """By its handle or by its name."""
        filesystem, handle = self._target.filesystem, self._nodes[which].handle
        if self._one_in(2):
            self._nodes[which] = filesystem.resolve(handle)
        else:
            self._nodes[which] = self._target.directory.lookup(self._models[which].name)
        if self._nodes[which].handle != handle:
            raise self._difference(which, "the name leads to another file")

    def _replace(self, which: int) -> None:
        """Remove the file, and make another in its place."""
        model = self._models[which]
        self._say(which, "remove, and create")
        self._target.directory.remove(model.name)
        old = self._nodes[which].handle
        model.truncate(0)
        self._nodes[which] = self._created(model)
        try:
            self._target.filesystem.resolve(old)
        except VfsError as error:
            if error.code is Code.STALE:
                return
        raise self._difference(which, "the handle of the removed file is still good")

    def _rename(self, which: int) -> None:
        """Give it another name; or put it in place of another file, which then is made anew."""
        model, directory = self._models[which], self._target.directory
        other = self._random.randrange(len(self._models))
        if other == which:
            name = self._new_name()
            self._say(which, f"rename to {name!r}")
            directory.rename(model.name, directory, name)
            model.name = name
            return
        replaced = self._models[other]
        self._say(which, f"rename over file {other}")
        directory.rename(model.name, directory, replaced.name)
        model.name = replaced.name
        replaced.truncate(0)
        self._nodes[other] = self._created(replaced)

    def _remount(self) -> None:
        self._log.append(f"{self._number}: remount")
        handles = [node.handle for node in self._nodes]
        self._target.remount()
        self._nodes = [self._target.filesystem.resolve(handle) for handle in handles]
        for which in range(len(self._models)):
            self._compare(which)

    # What they share.

    def _created(self, model: Model) -> Node:
        model.name = self._new_name()
        return self._target.directory.create(model.name, _FILE)

    def _new_name(self) -> bytes:
        self._names += 1
        return b"file-%d" % self._names

    def _one_in(self, count: int) -> bool:
        return self._random.randrange(count) == 0

    def _position(self, which: int) -> int:
        """Somewhere in the window; often where a block begins, or a byte beside it."""
        offset = self._random.randrange(WINDOW_BYTES)
        if self._one_in(2):
            offset -= offset % self._block_bytes
            offset += self._random.choice([-1, 0, 0, 1])
        return self._models[which].base + max(0, offset)

    def _length(self) -> int:
        match self._random.randrange(4):
            case 0:
                return self._random.randrange(1, 100)
            case 1:
                return self._block_bytes * self._random.randrange(1, 5)
            case 2:
                return self._block_bytes + self._random.choice([-1, 0, 1])
            case _:
                return self._random.randrange(1, _WRITE_BYTES_MAX)

    def _data(self, count: int) -> bytes:
        """Bytes that tell which operation wrote them."""
        stamp = b"%d." % self._number
        return (stamp * (count // len(stamp) + 1))[:count]

    def _cut(self, data: bytes) -> list[memoryview]:
        """In up to three buffers, as data comes from a network."""
        cuts = sorted(self._random.randrange(len(data) + 1) for _ in range(2))
        view = memoryview(data)
        return [view[: cuts[0]], view[cuts[0] : cuts[1]], view[cuts[1] :]]

    def _text(self, node: Node, offset: int, count: int) -> bytes:
        """What is there, in as many reads as it takes."""
        found = bytearray()
        while count > 0:
            buffers, at_end = node.read(offset, count)
            text = b"".join(buffers)
            found += text
            if at_end:
                break
            if not text:
                raise Difference(f"a read at {offset} gave nothing, and was not at the end")
            offset, count = offset + len(text), count - len(text)
        return bytes(found)

    def _check(self, which: int, offset: int, count: int) -> None:
        model = self._models[which]
        self._say(which, f"read {count} at {offset}")
        found = self._text(self._nodes[which], offset, count)
        wanted = model.read(offset, count)
        if found == wanted:
            return
        if len(found) != len(wanted):
            raise self._difference(which, f"{len(found)} bytes, and not {len(wanted)}")
        at = next(at for at, byte in enumerate(found) if byte != wanted[at])
        few = slice(at, at + 24)
        raise self._difference(which, f"at {offset + at}: {found[few]!r}, and not {wanted[few]!r}")

    def _check_size(self, which: int) -> None:
        size = self._nodes[which].attributes().size
        if size != self._models[which].size:
            raise self._difference(which, f"size {size}, and not {self._models[which].size}")

    def _filled(self, error: VfsError) -> None:
        """The file system is full: where that may be, it is no failure."""
        if error.code is not Code.NOSPC or not self._may_fill:
            raise self._difference(0, str(error)) from error
        self.refused += 1
        self._log.append(f"{self._number}: no room")

    def _say(self, which: int, what: str) -> None:
        self._log.append(f"{self._number}: file {which}: {what}")

    def _difference(self, which: int, what: str) -> Difference:
        history = "\n".join(self._log)
        return Difference(
            f"seed {self._seed}, operation {self._number}, file {which}"
            f" (base {self._models[which].base}): {what}\n{history}"
        )
