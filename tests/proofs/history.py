"""Random histories of one image and of the file system in memory: whatever is done to both, every
answer and every error is the same; and what is left of the image satisfies e2fsck, our own check
and the kernel.

A node is known on both sides by its handle, for ever: also after it has gone, and over a remount.
The one thing that may differ is room. An image is small and says NOSPC first: then nothing has
happened there, and memory is not asked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from appliance.clock import SECOND
from appliance.limits import MiB
from appliance.vfs.access import Credential
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, Node, SetAcl, SetAttributes
from appliance.vfs.user import User
from tests.proofs import geometry
from tests.unit.vfs.tools import ALICE, BOB, ROOT, HandClock, listing, memory, text

USERS: Final = [ROOT, ROOT, ROOT, ALICE, BOB]
MODES: Final = [0o777, 0o777, 0o1777, 0o2775, 0o750, 0o6755, 0o400]
AFTER_MKE2FS: Final = 2_000_000_000 * SECOND
"""Later than anything that an empty image remembers, since ctimes never go back."""

READ_BYTES_MAX: Final = 1 * MiB

picks = st.integers(0, 47)
names = st.sampled_from([b"a", b"b", b"c", b"d", "\u00e9\u6f22".encode(), b"n" * 255])
types = st.sampled_from(
    [FileType.REGULAR] * 4
    + [FileType.DIRECTORY] * 4
    + [FileType.FIFO, FileType.SOCKET, FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE]
)
blocks = st.sampled_from(
    [0, 0, 1, 2, 3, 11, 12, 13, 40, 267, 268, 269, 1035, 1036, 65803, 65804, 65805]
)
"""Where something begins in one of the formats: the indirect blocks, the doubly and triply indirect
ones of 1 KiB and 4 KiB, after more than an inode's extents."""

FAR: Final = 65_000
FARTHER: Final = 12 + 1024 + 1024**2 - 65_804
"""Blocks from FAR on are so much farther away if they are larger than 1 KiB: where the triply
indirect ones begin."""

beside = st.sampled_from([-1, 0, 0, 1])
lengths = st.sampled_from([1, 59, 60, 61, 156, 1023, 1024, 1025, 4095, 4096, 4097, 9000, 70_000])
texts = st.sampled_from([1, 2, 59, 60, 61, 155, 156, 157, 500, 1000]).map(lambda n: b"t" * n)
rdevs = st.sampled_from([(0, 0), (5, 1), (255, 255), (259, 70_000), (4095, 0xF_FFFF)])
instants = st.sampled_from([None, 0, 1, -1, 1 << 31, (1 << 31) - 1, 1 << 33, -(1 << 31)])
"""Seconds since 1970, of which old inodes keep 32 bits, and new ones 34."""

xattr_names = st.sampled_from([b"trusted.a", b"trusted.b", b"trusted." + b"n" * 100])
xattr_lengths = st.sampled_from([0, 1, 4, 40, 100, 300, 800, 1500])
acls = st.sampled_from(
    [
        None,
        Acl(7, 5, 0, mask=7, users=((ALICE.uid, 6),)),
        Acl(6, 4, 4, mask=5, users=((ALICE.uid, 7), (BOB.uid, 0)), groups=((50, 6),)),
    ]
)

BEGINNING: Final = [
    (2, b"a", FileType.DIRECTORY),
    (2, b"b", FileType.REGULAR),
    (4, b"a", FileType.DIRECTORY),
    (4, b"b", FileType.REGULAR),
    (2, b"c", FileType.DIRECTORY),
    (6, b"d", FileType.DIRECTORY),
]
"""What is there before a history begins; the directories as `directory` numbers them."""

Known = tuple[bytes, bytes]
"""The handles of one node: in the image, and in memory."""


class Side:
    """A file system at work."""

    def __init__(self, number: int, filesystem: FileSystem, clock: HandClock) -> None:
        self.number = number
        self.filesystem = filesystem
        self._clock = clock

    def user(self, who: Credential) -> User:
        return User(who, clock=self._clock)

    def node(self, known: Known) -> Node:
        """Looked up by its handle each time, as a server does."""
        return self.filesystem.resolve(known[self.number])


Act = Callable[[Side], Any]
Outcome = tuple[str, Any]


class History(RuleBasedStateMachine):
    """Subclasses say which image. What is acted on is picked from all that was ever met."""

    kind: ClassVar[str]
    template: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.clock = HandClock(AFTER_MKE2FS)
        self.folder = Path(tempfile.mkdtemp())
        self.image = geometry.copied(self.template, self.folder / "fs.img")
        self.mounted = True
        self.ours = Side(0, geometry.open_rw(self.image, self.clock), self.clock)
        self.model = Side(1, memory(512 * MiB, clock=self.clock), self.clock)
        root = (self.ours.filesystem.root().handle, self.model.filesystem.root().handle)
        self.nodes: list[Known] = [root]
        self.directories: list[Known] = [root]
        self.others: list[Known] = []
        self.block = geometry.block_bytes(self.kind)
        self.serial = 0
        self.model.user(ROOT).mkdir(self.model.node(root), b"lost+found")
        self.lookup(0, 2, b"lost+found")
        for known, mode in zip(self.nodes, (0o777, 0o700), strict=True):
            same = SetAttributes(mode=mode, atime_ns=0, mtime_ns=0)  # mke2fs has its own time
            self.both(lambda side, known=known, same=same: side.node(known).set_attributes(same))  # type: ignore[misc]
        for where, name, type in BEGINNING:
            self.make(0, where, name, type, 0, (0, 0))

    def teardown(self) -> None:
        try:
            if getattr(self, "mounted", False):
                self.everything_is_the_same()
                self.mounted = False
                geometry.judge(self.image, self.ours.filesystem)
        finally:
            if hasattr(self, "folder"):
                shutil.rmtree(self.folder)

    # Picking.

    def directory(self, number: int) -> Known:
        return self._pick(self.directories, number)

    def other(self, number: int) -> Known:
        return self._pick(self.others or self.directories, number)

    def _pick(self, nodes: list[Known], number: int) -> Known:
        """The first or one of the newest (old ones are mostly gone), and sometimes any."""
        if number < 2:
            return self.nodes[-1 - number % len(self.nodes)]
        likely = nodes[:1] + nodes[-5:]
        return likely[number % len(likely)]

    def _met(self, node: Known) -> None:
        if node in self.nodes:
            return
        self.nodes.append(node)
        its = self.ours.node(node).attributes()
        (self.directories if its.type is FileType.DIRECTORY else self.others).append(node)

    # Doing.

    def both(self, act: Act) -> Outcome:
        """The same on both sides, with the same outcome."""
        self.clock.advance(SECOND)
        first = outcome(act, self.ours)
        if first == ("error", Code.NOSPC):
            return first
        second = outcome(act, self.model)
        assert first == second, f"{first}, {second}"
        return first

    def both_nodes(self, act: Callable[[Side], Node]) -> None:
        """The same, of what gives a node: it is the same one."""
        self.clock.advance(SECOND)
        first = outcome(lambda side: act(side).handle, self.ours)
        if first == ("error", Code.NOSPC):
            return
        second = outcome(lambda side: act(side).handle, self.model)
        if "error" in (first[0], second[0]):
            assert first == second
            return
        for one, other in self.nodes:
            assert (one == first[1]) == (other == second[1])
        self._met((first[1], second[1]))

    # Names.

    @rule(who=picks, where=picks, name=names, type=types, mode=picks, rdev=rdevs)
    def make(
        self, who: int, where: int, name: bytes, type: FileType, mode: int, rdev: tuple[int, int]
    ) -> None:
        directory, wishes = self.directory(where), SetAttributes(mode=_of(MODES, mode))

        def act(side: Side) -> Node:
            user, place = side.user(_of(USERS, who)), side.node(directory)
            match type:
                case FileType.REGULAR:
                    return user.create(place, name, wishes)
                case FileType.DIRECTORY:
                    return user.mkdir(place, name, wishes)
                case _:
                    return user.mknod(place, name, type, rdev, wishes)

        self.both_nodes(act)

    @rule(who=picks, where=picks, name=names, said=texts)
    def symlink(self, who: int, where: int, name: bytes, said: bytes) -> None:
        directory = self.directory(where)
        self.both_nodes(
            lambda side: side.user(_of(USERS, who)).symlink(side.node(directory), name, said)
        )

    @rule(where=picks, name=names, verifier=st.integers(0, 3))
    def create_exclusive(self, where: int, name: bytes, verifier: int) -> None:
        directory = self.directory(where)
        self.both_nodes(
            lambda side: side.user(ROOT).create_exclusive(
                side.node(directory), name, verifier.to_bytes(8, "big")
            )
        )

    @rule(where=picks, count=st.sampled_from([3, 20, 90]), length=st.sampled_from([9, 60, 250]))
    def many(self, where: int, count: int, length: int) -> None:
        """Names by the dozen: directories of several blocks, and the splitting of their leaves."""
        for _ in range(count):
            self.serial += 1
            name = (b"%d-" % self.serial).ljust(length, b"x")
            directory = self.directory(where)
            self.both_nodes(lambda side: side.user(ROOT).create(side.node(directory), name))  # noqa: B023

    @rule(where=picks, part=st.sampled_from([1, 2, 3]), first=picks)
    def fewer(self, where: int, part: int, first: int) -> None:
        """Every so manieth name of a directory goes, if it is not a directory."""
        directory = self.directory(where)
        found = outcome(lambda side: sorted_names(side.node(directory)), self.ours)
        for name in found[1][first::part] if found[0] == "value" else []:
            self.both(lambda side: side.user(ROOT).remove(side.node(directory), name))  # noqa: B023

    @rule(who=picks, where=picks, name=names | st.sampled_from([b".", b"..", b"lost+found"]))
    def lookup(self, who: int, where: int, name: bytes) -> None:
        directory = self.directory(where)
        self.both_nodes(lambda side: side.user(_of(USERS, who)).lookup(side.node(directory), name))

    @rule(who=picks, node=picks, where=picks, name=names)
    def link(self, who: int, node: int, where: int, name: bytes) -> None:
        linked, directory = self.other(node), self.directory(where)
        self.both(
            lambda side: side.user(_of(USERS, who)).link(
                side.node(linked), side.node(directory), name
            )
        )

    @rule(who=picks, where=picks, which=picks)
    def remove(self, who: int, where: int, which: int) -> None:
        directory = self.directory(where)
        name = self._name(directory, which)
        self.both(lambda side: side.user(_of(USERS, who)).remove(side.node(directory), name))

    @rule(who=picks, where=picks, which=picks)
    def rmdir(self, who: int, where: int, which: int) -> None:
        directory = self.directory(where)
        name = self._name(directory, which)
        self.both(lambda side: side.user(_of(USERS, who)).rmdir(side.node(directory), name))

    @rule(who=picks, where=picks, which=picks, to=picks, over=picks, new=names)
    def rename(self, who: int, where: int, which: int, to: int, over: int, new: bytes) -> None:
        """To a new name, or over what is there."""
        directory, target = self.directory(where), self.directory(to)
        name, new_name = self._name(directory, which), self._name(target, over) if over % 2 else new
        self.both(
            lambda side: side.user(_of(USERS, who)).rename(
                side.node(directory), name, side.node(target), new_name
            )
        )

    @rule(node=picks, to=picks, new=names)
    def move(self, node: int, to: int, new: bytes) -> None:
        """A directory that was met, from where it is now."""
        moved, target = self.directory(node), self.directory(to)
        kind, place = outcome(lambda side: place_of(side.node(moved)), self.ours)
        if kind == "error":
            return
        above, name = place
        source = next(known for known in self.directories if known[0] == above)
        self.both(
            lambda side: side.user(ROOT).rename(side.node(source), name, side.node(target), new)
        )

    def _name(self, directory: Known, which: int) -> bytes:
        """One that is there; where there is none, one that is not."""
        kind, found = outcome(lambda side: sorted_names(side.node(directory)), self.ours)
        return _of(found, which) if kind == "value" and found else b"none"

    # Contents and attributes.

    @rule(node=picks, block=blocks, plus=beside, length=lengths)
    def write(self, node: int, block: int, plus: int, length: int) -> None:
        """A write without room may have written the beginning, as memory then does, too."""
        file, offset = self.other(node), self._offset(block, plus)
        self.serial += 1
        data = (b"%d;" % self.serial * length)[:length]

        def act(side: Side, count: int = length) -> int:
            half = count // 2
            parts = [data[:half], data[half:count]]
            return side.user(ROOT).write(side.node(file), offset, parts)

        if self.both(act) == ("error", Code.NOSPC):
            written = self.ours.node(file).attributes().size - offset
            if 0 < written <= length:
                act(self.model, written)
                self._same_times(file)

    def _same_times(self, node: Known) -> None:
        its = self.ours.node(node).attributes()
        self.model.node(node).set_attributes(
            SetAttributes(atime_ns=its.atime_ns, mtime_ns=its.mtime_ns)
        )

    @rule(who=picks, node=picks, block=blocks, plus=beside, count=lengths)
    def read(self, who: int, node: int, block: int, plus: int, count: int) -> None:
        file, offset = self.other(node), self._offset(block, plus)
        self.both(lambda side: all_read(side.user(_of(USERS, who)), side.node(file), offset, count))

    @rule(who=picks, node=picks, block=blocks, plus=beside)
    def truncate(self, who: int, node: int, block: int, plus: int) -> None:
        self._change(who, node, SetAttributes(size=self._offset(block, plus)))

    @rule(who=picks, node=picks, mode=picks, owner=picks)
    def chmod_and_chown(self, who: int, node: int, mode: int, owner: int) -> None:
        owner_is = _of([*USERS, None], owner)
        uid, gid = (None, None) if owner_is is None else (owner_is.uid, owner_is.gid)
        self._change(who, node, SetAttributes(mode=_of([*MODES, None], mode), uid=uid, gid=gid))

    @rule(who=picks, node=picks, atime=instants, mtime=instants, rest=st.integers(0, SECOND - 1))
    def set_times(
        self, who: int, node: int, atime: int | None, mtime: int | None, rest: int
    ) -> None:
        self._change(
            who,
            node,
            SetAttributes(atime_ns=self._time(atime, rest), mtime_ns=self._time(mtime, 0)),
        )

    def _offset(self, block: int, plus: int) -> int:
        if block > FAR and self.block > 1024:
            block += FARTHER
        return max(0, block * self.block + plus)

    def _time(self, seconds: int | None, rest: int) -> int | None:
        """As exact, and as far away, as this image keeps times."""
        if seconds is None:
            return None
        granularity = self.ours.filesystem.limits.time_granularity_ns
        if granularity == SECOND:
            seconds = min(seconds, (1 << 31) - 1)
        return seconds * SECOND + rest // granularity * granularity

    def _change(self, who: int, node: int, changes: SetAttributes) -> None:
        changed = self.nodes[node % len(self.nodes)] if node % 4 == 0 else self.other(node)
        self.both(
            lambda side: side.user(_of(USERS, who)).set_attributes(side.node(changed), changes)
        )

    @rule(node=picks, name=xattr_names, length=xattr_lengths, byte=st.sampled_from([b"x", b"y"]))
    def set_xattr(self, node: int, name: bytes, length: int, byte: bytes) -> None:
        """Equal ones among them: files with the same attributes share a block."""
        known = self.other(node) if node % 2 else self.directory(node)
        self.both(lambda side: side.node(known).set_xattr(name, byte * length))

    @rule(node=picks, name=xattr_names)
    def remove_xattr(self, node: int, name: bytes) -> None:
        known = self.other(node) if node % 2 else self.directory(node)
        self.both(lambda side: side.node(known).remove_xattr(name))

    @rule(who=picks, node=picks, acl=acls, default=acls)
    def set_acl(self, who: int, node: int, acl: Acl | None, default: Acl | None) -> None:
        known = self.other(node) if node % 2 else self.directory(node)
        wishes = SetAttributes(acl=acl or SetAcl.NONE, default_acl=default)
        self.both(lambda side: side.user(_of(USERS, who)).set_attributes(side.node(known), wishes))

    # The whole.

    @rule()
    def remount(self) -> None:
        self.mounted = False
        self.ours.filesystem.close()
        self.ours.filesystem = geometry.open_rw(self.image, self.clock)
        self.mounted = True

    @rule(node=picks)
    def sync(self, node: int) -> None:
        if node % 2:
            self.ours.filesystem.commit()
        else:
            outcome(lambda side: side.node(self.other(node)).commit(), self.ours)

    @rule(node=picks)
    def look(self, node: int) -> None:
        """Without `both`: the clock stands still."""
        known = self.nodes[node % len(self.nodes)]
        assert outcome(lambda side: shape(side, known), self.ours) == outcome(
            lambda side: shape(side, known), self.model
        )

    def everything_is_the_same(self) -> None:
        for known in self.nodes:
            first = outcome(lambda side, known=known: shape(side, known), self.ours)  # type: ignore[misc]
            second = outcome(lambda side, known=known: shape(side, known), self.model)  # type: ignore[misc]
            assert first == second, f"{first}\n{second}"
            assert first[0] == "value" or first[1] is Code.STALE


def outcome(act: Act, side: Side) -> Outcome:
    try:
        return "value", act(side)
    except VfsError as error:
        return "error", error.code


def _of(values: list[Any], number: int) -> Any:
    return values[number % len(values)]


def sorted_names(directory: Node) -> list[bytes]:
    if directory.attributes().type is not FileType.DIRECTORY:
        raise VfsError(Code.NOTDIR)
    return sorted(entry.name for entry in listing(directory, page=50))


def place_of(directory: Node) -> tuple[bytes, bytes]:
    """In which directory it is (its handle), and under which name. NOENT: it is the root."""
    its = directory.attributes()
    if its.type is FileType.DIRECTORY:
        above = directory.parent()
        for entry in listing(above):
            if entry.fileid == its.fileid:
                return above.handle, entry.name
    raise VfsError(Code.NOENT)


def all_read(user: User, node: Node, offset: int, count: int) -> bytes:
    """As many reads as it takes."""
    found = bytearray()
    while count > 0:
        buffers, at_end = user.read(node, offset, count)
        data = text(buffers)
        found += data
        if at_end:
            break
        assert data
        offset, count = offset + len(data), count - len(data)
    return bytes(found)


def shape(side: Side, known: Known) -> tuple[Any, ...]:
    """All that is known of a node, but the room that it takes and the size of a directory; and of
    times, whether a step was one change or two."""
    node = side.node(known)
    its = node.attributes()
    content: Any = None
    size = its.size
    if its.type is FileType.REGULAR:
        start = max(0, size - READ_BYTES_MAX)
        content = all_read(side.user(ROOT), node, 0, min(size, READ_BYTES_MAX))
        content += all_read(side.user(ROOT), node, start, READ_BYTES_MAX)
    elif its.type is FileType.SYMLINK:
        content = node.readlink()
    elif its.type is FileType.DIRECTORY:
        size, content = 0, sorted_names(node)
    return (
        its.type, its.mode, its.nlink, its.uid, its.gid, size, its.rdev,
        its.atime_ns // 1000, its.mtime_ns // 1000, its.acl, its.default_acl,
        {name: node.xattr(name) for name in node.xattrs()}, content,
    )  # fmt: skip
