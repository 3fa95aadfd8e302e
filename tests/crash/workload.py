"""Random work on a file system: everything that a Node can be asked for, in a seeded order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance.vfs.acl import Acl
from appliance.vfs.interface import FileType, SetAcl, SetAttributes
from tests.crash.model import Node
from tests.crash.worker import Worker

_LARGE_OFFSET: Final = 48 << 20
_SECOND_NS: Final = 1_000_000_000
_LATEST_NS: Final = (1 << 33) * _SECOND_NS
"""Some time after 2038, which needs more than 32 bits."""


@dataclass(frozen=True)
class Pace:
    """How often something is waited for. The rest of the time, transactions grow."""

    sync_share: float
    sync_node_share: float = 0.05
    interrupt_share: float = 0.0


PACES: Final = {
    "every": Pace(1.0),
    "groups": Pace(0.15),
    "seldom": Pace(0.02),
    "interrupted": Pace(0.1, interrupt_share=0.3),
}

Place = tuple[int, bytes]
"""A name: its directory, and itself."""


class RandomWork:
    """Somebody who does at random what can be done."""

    def __init__(self, session: Worker, pace: Pace, *, names_max: int = 120) -> None:
        self._session: Final = session
        self._random: Final = session.random
        self._pace: Final = pace
        self._names_max: Final = names_max
        self._count = session.seed * 100_000  # names differ from those of another life
        lost_found = session.model.now[session.root].entries.get(b"lost+found")
        self._left_alone: Final = frozenset({lost_found})

    def run(self, steps: int) -> None:
        if self._pace.interrupt_share:
            self._session.interrupt(self._pace.interrupt_share)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """One operation, and perhaps a wait for it."""
        session, random = self._session, self._random
        crowded = len(session.model.now) > self._names_max
        act = random.choices(_ACTS, _WEIGHTS_CROWDED if crowded else _WEIGHTS)[0]
        session.tolerantly(act, self)
        if random.random() < self._pace.sync_share:
            session.sync()
        elif random.random() < self._pace.sync_node_share:
            files = self._files()
            if files:
                session.sync_node(random.choice(files)[1])

    # What there is.

    def _directories(self) -> list[int]:
        now = self._session.model.now
        return [
            number
            for number, node in now.items()
            if node.is_directory and number not in self._left_alone
        ]

    def _places(self, wanted: Callable[[Node], bool]) -> list[tuple[Place, int]]:
        now = self._session.model.now
        return [
            ((directory, name), number)
            for directory in self._directories()
            for name, number in now[directory].entries.items()
            if number not in self._left_alone and wanted(now[number])
        ]

    def _files(self) -> list[tuple[Place, int]]:
        return self._places(lambda node: node.new.type is FileType.REGULAR)

    def _directory(self) -> int:
        return self._random.choice(self._directories())

    def _name(self, prefix: str) -> bytes:
        self._count += 1
        length = self._random.choice((0, 0, 5, 30, 120, 240))
        return f"{prefix}{self._count}-".encode() + b"n" * length

    # What can be done.

    def create(self) -> None:
        number = self._session.create(
            self._directory(),
            self._name("f"),
            mode=self._random.choice((0o644, 0o600, 0o4755)),
            owner=self._random.choice(((0, 0), (1000, 100), (100_000, 70_000))),
        )
        if self._random.random() < 0.7:
            size = self._random.choice((1, 700, 1024, 5000, 20_000, 150_000))
            self._write(number, 0, size)

    def mkdir(self) -> None:
        self._session.mkdir(self._directory(), self._name("d"))

    def symlink(self) -> None:
        length = self._random.choice((1, 59, 60, 400, 1000))
        # The text of a long one is a block that looks like one of the journal.
        target = b"\xc0\x3b\x39\x98".ljust(length, b"t")[:length]
        self._session.symlink(self._directory(), self._name("s"), target)

    def mknod(self) -> None:
        kind = self._random.choice(
            (FileType.FIFO, FileType.SOCKET, FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
        )
        is_device = kind in (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
        rdev = self._random.choice(((8, 1), (259, 70_000))) if is_device else (0, 0)
        self._session.create(self._directory(), self._name("n"), kind, rdev=rdev)

    def link(self) -> None:
        places = self._places(lambda node: not node.is_directory)
        if places:
            number = self._random.choice(places)[1]
            self._session.link(self._directory(), self._name("h"), number)

    def remove(self) -> None:
        places = self._places(lambda node: not node.entries)
        if places:
            self._session.remove(*self._random.choice(places)[0])

    def rename(self) -> None:
        places = self._places(lambda node: True)
        if not places:
            return
        (source, name), number = self._random.choice(places)
        target = self._directory()
        if self._is_below(target, number):
            return
        node = self._session.model.now[number]
        victims = [
            other
            for other, below in self._session.model.now[target].entries.items()
            if below not in self._left_alone and self._may_replace(node, below)
        ]
        if victims and self._random.random() < 0.5:
            self._session.rename(source, name, target, self._random.choice(victims))
        else:
            self._session.rename(source, name, target, self._name("r"))

    def _may_replace(self, node: Node, victim: int) -> bool:
        other = self._session.model.now[victim]
        return other.is_directory == node.is_directory and not other.entries

    def _is_below(self, directory: int, number: int) -> bool:
        """Whether `directory` is `number`, or somewhere in it."""
        now = self._session.model.now
        while directory != number:
            if directory == self._session.root:
                return False
            directory = now[directory].parent
        return True

    def write(self) -> None:
        files = self._files()
        if not files:
            return
        number = self._random.choice(files)[1]
        size = self._session.model.now[number].content.size
        inside = self._random.randrange(size + 1)
        offset = self._random.choice((size, inside, inside, inside & ~1023, size + inside))
        self._write(number, offset, self._random.choice((1, 300, 1024, 3000, 9000, 40_000)))

    def scatter(self) -> None:
        """A block far away in a sparse file: extents multiply."""
        files = self._files()
        if files:
            number = self._random.choice(files[:2])[1]
            offset = self._random.randrange(0, _LARGE_OFFSET, 4096)
            self._write(number, offset, self._random.choice((10, 4096)))

    def _write(self, number: int, offset: int, count: int) -> None:
        data = self._random.randbytes(count)
        self._session.tolerantly(self._session.write, number, offset, data)

    def truncate(self) -> None:
        files = self._files()
        if files:
            number = self._random.choice(files)[1]
            size = self._session.model.now[number].content.size
            new = self._random.choice((0, self._random.randrange(size + 1), size + 5000))
            self._session.truncate(number, new)

    def set_attributes(self) -> None:
        places = self._places(lambda node: True)
        if places:
            number = self._random.choice(places)[1]
            changes = self._random.choice(
                (
                    SetAttributes(mode=self._random.choice((0o600, 0o755, 0o1777))),
                    SetAttributes(uid=self._random.randrange(1 << 20), gid=77),
                    SetAttributes(
                        atime_ns=self._random.randrange(_LATEST_NS),
                        mtime_ns=self._random.randrange(_LATEST_NS),
                    ),
                )
            )
            self._session.set_attributes(number, changes)

    def set_acl(self) -> None:
        places = self._places(lambda node: node.new.type in _HAVE_ATTRIBUTES)
        if not places:
            return
        number = self._random.choice(places)[1]
        named = tuple(
            (self._random.randrange(5000), 6) for _ in range(self._random.choice((0, 1, 9)))
        )
        acl = Acl(7, 5, 0, mask=4, users=named)
        changes = self._random.choice(
            (SetAttributes(acl=acl, mode=acl.mode), SetAttributes(acl=SetAcl.NONE))
        )
        if self._session.model.now[number].is_directory:
            changes.default_acl = self._random.choice((acl, SetAcl.NONE, None))
        self._session.set_attributes(number, changes)

    def set_xattr(self) -> None:
        places = self._places(lambda node: node.new.type in _HAVE_ATTRIBUTES)
        if not places:
            return
        number = self._random.choice(places)[1]
        xattrs = self._session.model.now[number].xattrs
        if xattrs and self._random.random() < 0.4:
            self._session.remove_xattr(number, self._random.choice(sorted(xattrs)))
            return
        # There are few different ones, so that some blocks of attributes are shared.
        name = self._random.choice((b"user.a", b"user.with-a-longer-name", b"trusted.t"))
        value = self._random.choice((b"", b"v", b"value" * 8, b"long" * 100))
        self._session.set_xattr(number, name, value)


_HAVE_ATTRIBUTES: Final = (FileType.REGULAR, FileType.DIRECTORY)

_ACTS_AND_WEIGHTS: Final = (
    (RandomWork.create, 30, 6),
    (RandomWork.mkdir, 7, 2),
    (RandomWork.symlink, 4, 1),
    (RandomWork.mknod, 2, 1),
    (RandomWork.link, 4, 1),
    (RandomWork.remove, 16, 45),
    (RandomWork.rename, 10, 10),
    (RandomWork.write, 16, 16),
    (RandomWork.scatter, 4, 4),
    (RandomWork.truncate, 8, 8),
    (RandomWork.set_attributes, 4, 4),
    (RandomWork.set_acl, 3, 2),
    (RandomWork.set_xattr, 6, 4),
)
_ACTS: Final = [act for act, _, _ in _ACTS_AND_WEIGHTS]
_WEIGHTS: Final = [weight for _, weight, _ in _ACTS_AND_WEIGHTS]
_WEIGHTS_CROWDED: Final = [weight for _, _, weight in _ACTS_AND_WEIGHTS]
