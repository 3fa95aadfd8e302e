"""Random histories of many users: what each may do, of us and of the kernel.

A history is made while it is done to our side, from one seed, and then done to the kernel's
(rights_kernel.py): on a copy of the same image, which the kernel has filled with what belongs to
several users, has access control lists, is sticky, passes on its group, or was fixed by chattr(1).
After each step both sides say how it ended, and all that it has changed in the whole tree.
"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from appliance.clock import SECOND
from appliance.vfs.access import Credential
from appliance.vfs.acl import Acl
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileSystem, FileType, Node, SetAcl, SetAttributes, SetTime
from appliance.vfs.user import User
from tests.interop.loop_worker import run_worker
from tests.proofs import geometry
from tests.proofs.rights_kernel import (
    ACCESS,
    DEFAULT,
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    OPERATIONS,
    Seen,
)
from tests.unit.vfs.tools import HandClock, listing

AFTER_THE_KERNEL: Final = 2_100_000_000 * SECOND
"""Later than what the kernel has made before, since ctimes never go back."""

USERS: Final = [
    Credential(0, 0),
    Credential(0, 100),
    Credential(1000, 100, frozenset({100, 50})),
    Credential(1001, 101, frozenset({50})),
    Credential(1002, 102),
    Credential(1003, 0, frozenset({102})),
]
UIDS: Final = [0, 1000, 1000, 1001, 1001, 1002, 1003]
GIDS: Final = [0, 50, 50, 100, 101, 102, 103]
DIRECTORY_MODES: Final = [
    0o777, 0o777, 0o1777, 0o1777, 0o2777, 0o3777, 0o755, 0o2755, 0o775, 0o770, 0o1775, 0o700, 0o733,
    0o555, 0o711, 0o766, 0o070, 0o007, 0o4777,
]  # fmt: skip
FILE_MODES: Final = [
    0o666, 0o644, 0o664, 0o600, 0o640, 0o660, 0o755, 0o711, 0o111, 0o222, 0o444, 0o4755, 0o2755,
    0o6775, 0o2644, 0o2664, 0o2766, 0o4644, 0o6666, 0o1666, 0o000, 0o066, 0o060, 0o006, 0o7777,
]  # fmt: skip
NAMES: Final = ["a", "b", "c", "d", "e"]
RARE_NAMES: Final = [".", "..", "n" * 255, "n" * 256]
NODES_MAX: Final = 50
SECONDS: Final = [1, 5, 77, 999_999_999]

Its = list[Any]
"""All that is compared of a node, as rights_kernel.Tree gives it."""

Step = list[Any]
"""An operation, and what it is given; of the history itself, who does it comes before."""


# --- our side ------------------------------------------------------------------------------------


class Ours:
    """The image behind `User`."""

    def __init__(self, filesystem: FileSystem, *, read_only: bool) -> None:
        self.filesystem = filesystem
        self.clock = HandClock(AFTER_THE_KERNEL)
        self._users = {
            who: User(who, clock=self.clock, read_only=read_only)
            for who in {*USERS, Credential(0, 0)}
        }
        self._seen: Final = Seen()

    def do(self, who: Credential, what: str, arguments: list[Any]) -> Any:
        """As rights_kernel.end_of."""
        self.clock.advance(SECOND)
        count, _ = OPERATIONS[what]
        held = [self.at(path) for path in arguments[:count]]
        if None in held:
            return "nowhere"
        try:
            return DO[what](self._users[who], *held, *arguments[count:])
        except VfsError as error:
            return errno.errorcode[error.code.value]

    def at(self, path: str) -> Node | None:
        node = self.filesystem.root()
        try:
            for name in path.split("/") if path else []:
                if node.attributes().type is not FileType.DIRECTORY:
                    return None
                node = node.lookup(name.encode())
        except VfsError:
            return None
        return node

    def changed(self, moment: int) -> dict[str, Its | None]:
        """As rights_kernel.Tree.changed."""
        found: dict[str, Its] = {}
        self._look("", self.filesystem.root(), moment, found)
        return self._seen.changed(found)

    @property
    def known(self) -> dict[str, Its]:
        """What was there then."""
        return self._seen.known

    def _look(self, path: str, node: Node, moment: int, found: dict[str, Its]) -> None:
        its = node.attributes()
        is_directory = its.type is FileType.DIRECTORY
        found[path] = [
            its.type << 12 | its.mode,
            its.nlink,
            its.uid,
            its.gid,
            0 if is_directory else its.size,
            list(its.rdev),
            node.readlink().decode() if its.type is FileType.SYMLINK else None,
            its.acl and its.acl.to_xattr().hex(),
            its.default_acl and its.default_acl.to_xattr().hex(),
            self._seen.moment(its.fileid, "atime", its.atime_ns, moment),
            self._seen.moment(its.fileid, "mtime", its.mtime_ns, moment),
            self._seen.moment(its.fileid, "ctime", its.ctime_ns, moment),
        ]
        if is_directory:
            for entry in listing(node):
                below = entry.name.decode()
                child = entry.node or node.lookup(entry.name)
                self._look(f"{path}/{below}" if path else below, child, moment, found)


def create_unchecked(user: User, where: Node, name: str, mode: int, size: int | None) -> None:
    user.create_unchecked(where, name.encode(), SetAttributes(mode=mode, size=size))


def mknod(user: User, where: Node, name: str, type: int, major: int, minor: int, mode: int) -> None:
    user.mknod(where, name.encode(), FileType(type), (major, minor), SetAttributes(mode=mode))


def chown(user: User, node: Node, uid: int, gid: int, mode: int | None = None) -> None:
    uid_or_not, gid_or_not = None if uid < 0 else uid, None if gid < 0 else gid
    user.set_attributes(node, SetAttributes(mode=mode, uid=uid_or_not, gid=gid_or_not))


def instant(wish: int | str | None) -> int | SetTime | None:
    return wish * SECOND if isinstance(wish, int) else SetTime.NOW if wish else None


def times(user: User, node: Node, atime: int | str | None, mtime: int | str | None) -> None:
    wishes = SetAttributes(atime_ns=instant(atime), mtime_ns=instant(mtime))
    user.set_attributes(node, wishes)


def entries(user: User, where: Node) -> list[str]:
    found = user.read_directory(where, 0, 10 * NODES_MAX)
    return sorted(entry.name.decode() for entry in found if entry.name not in (b".", b".."))


def acl(user: User, node: Node, name: str, value: str | None) -> None:
    wish = SetAcl.NONE if value is None else Acl.from_xattr(bytes.fromhex(value))
    changes = SetAttributes(acl=wish) if name == ACCESS else SetAttributes(default_acl=wish)
    user.set_attributes(node, changes)


def nothing(value: object) -> None:
    """What an operation gives that is not compared here."""


DO: Final[dict[str, Callable[..., Any]]] = {
    "create": lambda user, where, name, mode: nothing(
        user.create(where, name.encode(), SetAttributes(mode=mode))
    ),
    "create_unchecked": create_unchecked,
    "mkdir": lambda user, where, name, mode: nothing(
        user.mkdir(where, name.encode(), SetAttributes(mode=mode))
    ),
    "symlink": lambda user, where, name, text: nothing(
        user.symlink(where, name.encode(), text.encode())
    ),
    "mknod": mknod,
    "link": lambda user, node, where, name: user.link(node, where, name.encode()),
    "remove": lambda user, where, name: user.remove(where, name.encode()),
    "rmdir": lambda user, where, name: user.rmdir(where, name.encode()),
    "rename": lambda user, where, to, name, new: user.rename(
        where, name.encode(), to, new.encode()
    ),
    "chmod": lambda user, node, mode: user.set_attributes(node, SetAttributes(mode=mode)),
    "chown": chown,
    "give": chown,
    "rewrite": lambda user, node, size, mode: user.set_attributes(
        node, SetAttributes(size=size, mode=mode)
    ),
    "times": times,
    "truncate": lambda user, node, size: user.set_attributes(node, SetAttributes(size=size)),
    "write": lambda user, node: nothing(user.write(node, 0, [b"written"])),
    "read": lambda user, node: nothing(user.read(node, 0, 1)),
    "lookup": lambda user, where, name: nothing(user.lookup(where, name.encode())),
    "entries": entries,
    "access": lambda user, node: user.access(node),
    "acl": acl,
}


# --- what is done --------------------------------------------------------------------------------


class Chance:
    """Steps, picked at random from what is there."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.there: dict[str, Its] = {}

    def beginning(self) -> tuple[list[Step], list[tuple[str, int]]]:
        """What the superuser makes, and what is fixed then."""
        choice = self.random.choice
        steps: list[Step] = []
        directories, others = [""], []
        for number in range(26):
            where, name = choice(directories), f"{choice(NAMES)}{number}"
            path = f"{where}/{name}" if where else name
            if number % 2:
                steps.append(["mkdir", where, name, 0o700])
                directories.append(path)
            else:
                steps.append(self._made(where, name))
                others.append(path)
        for path in directories[1:] + others:
            link = any(step[0] == "symlink" and path == joined(*step[1:3]) for step in steps)
            modes = DIRECTORY_MODES if path in directories else FILE_MODES
            if link:
                steps.append(["chown", path, choice(UIDS), choice(GIDS)])
                continue
            if self.random.random() < 0.4:
                steps.append(["acl", path, ACCESS, self.list()])
            if path in directories and self.random.random() < 0.3:
                steps.append(["acl", path, DEFAULT, self.list()])
            steps.append(["chown", path, choice(UIDS), choice(GIDS)])
            steps.append(["chmod", path, choice(modes)])
        plain = {joined(*step[1:3]) for step in steps if step[0] in ("create", "mkdir")}
        fixed = [
            (path, choice([FS_IMMUTABLE_FL, FS_APPEND_FL]))
            for path in sorted(plain)
            if self.random.random() < 0.15
        ]
        return steps, fixed

    def _made(self, where: str, name: str) -> Step:
        choice = self.random.choice
        kind = choice(["create"] * 5 + ["symlink", "fifo", "device"])
        if kind == "symlink":
            return ["symlink", where, name, "text"]
        if kind == "create":
            return ["create", where, name, choice(FILE_MODES)]
        type = FileType.FIFO
        if kind == "device":
            type = choice([FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE])
        rdev = choice([(0, 0), (5, 1), (259, 70_000)]) if kind == "device" else (0, 0)
        return ["mknod", where, name, int(type), *rdev, choice(FILE_MODES)]

    def list(self) -> str:
        """An access control list of some of the users, now and then one that names nobody."""
        bits = [self.random.randrange(8) for _ in range(4)]
        if self.random.random() < 0.1:
            return Acl(bits[0], bits[1], bits[2]).to_xattr().hex()
        uids = sorted(self.random.sample([1000, 1001, 1002, 1003], self.random.randrange(3)))
        gids = sorted(self.random.sample([0, 50, 100, 102], self.random.randrange(3)))
        users = tuple((uid, self.random.randrange(8)) for uid in uids)
        groups = tuple((gid, self.random.randrange(8)) for gid in gids)
        return Acl(bits[0], bits[1], bits[2], bits[3] | 4, users, groups).to_xattr().hex()

    def step(self) -> Step:
        """The next one."""
        full = len(self.there) > NODES_MAX
        kinds = [*MAKING * (1 if full else 3), *REMOVING * (4 if full else 1), *OTHERS * 2]
        return getattr(self, f"_{self.random.choice(kinds)}")()  # type: ignore[no-any-return]

    # Picking.

    def _node(self, *types: int) -> str:
        """Something that is there, of one of these types if there is such."""
        paths = [
            path for path, its in self.there.items() if not types or stat.S_IFMT(its[0]) in types
        ]
        return self.random.choice(paths or [""])

    def _directory(self) -> str:
        return self._node() if self.random.random() < 0.03 else self._node(stat.S_IFDIR)

    def _name(self) -> str:
        return self.random.choice(RARE_NAMES if self.random.random() < 0.05 else NAMES)

    def _name_in(self, where: str) -> str:
        """One that is there, mostly."""
        start = f"{where}/" if where else ""
        below = [path[len(start) :] for path in self.there if path and path.startswith(start)]
        names = [name for name in below if "/" not in name]
        return self.random.choice(names) if names and self.random.random() < 0.85 else self._name()

    # One of each.

    def _create(self) -> Step:
        return ["create", self._directory(), self._name(), self.random.choice(FILE_MODES)]

    def _create_unchecked(self) -> Step:
        where = self._directory()
        name = self._name_in(where) if self.random.random() < 0.5 else self._name()
        size = self.random.choice([None, None, 0, 5])
        return ["create_unchecked", where, name, self.random.choice(FILE_MODES), size]

    def _mkdir(self) -> Step:
        return ["mkdir", self._directory(), self._name(), self.random.choice(DIRECTORY_MODES)]

    def _other(self) -> Step:
        return self._made(self._directory(), self._name())

    def _link(self) -> Step:
        return ["link", self._node(), self._directory(), self._name()]

    def _remove(self) -> Step:
        where = self._directory()
        return ["remove", where, self._name_in(where)]

    def _rmdir(self) -> Step:
        where = self._directory()
        return ["rmdir", where, self._name_in(where)]

    def _rename(self) -> Step:
        where = self._directory()
        to = where if self.random.random() < 0.3 else self._directory()
        new = self._name_in(to) if self.random.random() < 0.5 else self._name()
        return ["rename", where, to, self._name_in(where), new]

    def _move(self) -> Step:
        """A directory, also to where it or something of it is."""
        above, name = split(self._node(stat.S_IFDIR))
        to = self._directory()
        new = self._name_in(to) if self.random.random() < 0.3 else self._name()
        return ["rename", above, to, name or "a", new]

    def _chmod(self) -> Step:
        return ["chmod", self._node(), self._mode()]

    def _chown(self) -> Step:
        uid = self.random.choice([-1, *UIDS])
        gid = self.random.choice([-1, *GIDS] if uid >= 0 else GIDS)
        return ["chown", self._node(), uid, gid]

    def _give(self) -> Step:
        """To another group, which the owner may do; to another owner, the superuser."""
        uid = self.random.choice([-1, -1, *UIDS])
        return ["give", self._node(), uid, self.random.choice(GIDS), self._mode()]

    def _rewrite(self) -> Step:
        return ["rewrite", self._node(), self.random.choice([0, 3, 10]), self._mode()]

    def _mode(self) -> int:
        return self.random.choice(DIRECTORY_MODES + FILE_MODES)

    def _times(self) -> Step:
        wishes = [None, "now", "now", self.random.choice(SECONDS)]
        atime = self.random.choice(wishes)
        return ["times", self._node(), atime, self.random.choice(wishes[not atime :])]

    def _truncate(self) -> Step:
        return ["truncate", self._node(), self.random.choice([0, 0, 1, 3, 10])]

    def _write(self) -> Step:
        return ["write", self._node(stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR)]

    def _read(self) -> Step:
        return ["read", self._node(stat.S_IFREG, stat.S_IFLNK)]

    def _lookup(self) -> Step:
        where = self._directory()
        return ["lookup", where, self._name_in(where)]

    def _entries(self) -> Step:
        return ["entries", self._directory()]

    def _access(self) -> Step:
        return ["access", self._node()]

    def _acl(self) -> Step:
        name = self.random.choice([ACCESS, DEFAULT])
        return ["acl", self._node(), name, self.list() if self.random.random() < 0.7 else None]


MAKING: Final = ["create", "create_unchecked", "mkdir", "mkdir", "other", "link"]
REMOVING: Final = ["remove", "rmdir"]
OTHERS: Final = [
    "rename", "rename", "move", "chmod", "chown", "give", "rewrite", "times", "truncate",
    "write", "read", "lookup", "entries", "access", "acl",
]  # fmt: skip


def joined(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def split(path: str) -> tuple[str, str]:
    above, _, name = path.rpartition("/")
    return above, name


# --- a whole history -----------------------------------------------------------------------------


@dataclass
class Difference:
    """The first step after which the two sides are not the same."""

    number: int
    step: list[Any]
    ours: Any
    kernel: Any
    before: dict[str, Its | None]


def first_difference(
    image: Path, seed: int, steps: int, *, read_only: bool = False
) -> Difference | None:
    """Fill an empty `image`, and play a history of so many steps on it and on a copy of it."""
    chance = Chance(seed)
    said = image.with_suffix(".json")
    said.write_text(json.dumps(chance.beginning()))
    kernel("begin", image, said, "rw")
    theirs = geometry.copied(image, of_the_kernel(image))

    filesystem = geometry.open_rw(image)
    history, told = play(filesystem, chance, steps, read_only=read_only)
    filesystem.close()
    said.write_text(json.dumps(history))
    by_kernel = kernel("play", theirs, said, "ro" if read_only else "rw,noatime")
    known: dict[str, Its | None] = {}
    for number, (step, ours, kernels) in enumerate(zip(history, told, by_kernel, strict=True)):
        if ours != kernels:
            return Difference(number, step, ours, kernels, known)
        known |= ours[1]
    return None


def of_the_kernel(image: Path) -> Path:
    """Where the kernel's copy of an image is."""
    return image.with_suffix(".theirs.img")


def kernel(action: str, image: Path, said: Path, options: str) -> Any:
    return run_worker(image, options, action, str(said), module="tests.proofs.rights_kernel")


def play(
    filesystem: FileSystem, chance: Chance, steps: int, *, read_only: bool
) -> tuple[list[Any], list[Any]]:
    """Make a history while it is done to our side; the steps, and what came of each."""
    ours = Ours(filesystem, read_only=read_only)
    ours.changed(0)
    history, told = [], []
    for moment in range(1, steps + 1):
        chance.there = ours.known
        who = chance.random.choice(USERS)
        what, *arguments = chance.step()
        history.append([[who.uid, who.gid, sorted(who.groups)], what, *arguments])
        ended = ours.do(who, what, arguments)
        told.append([ended, ours.changed(moment)])
    return history, told
