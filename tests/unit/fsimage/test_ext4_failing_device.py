"""The device below fails: what was acknowledged is kept, and what cannot be is said.

A short workload, each operation made durable before the next, meets a fault at every write, every
flush and every read in turn. A write that fails has written half of its data; a flush that fails
may have lost everything since the last one that did not (as Linux does with dirty pages after an
error), or nothing. Then the image is opened again, by us and after e2fsck.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance import image_limits
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import content
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.journal import ring_of
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, FileType, NewNode, Node, SetAttributes
from tests.unit.fsimage.damage import MemoryDevice, bounded_time
from tests.unit.fsimage.ext4_images import make_image, run

SECTOR = 512
READS_MAX = 20_000
HALF = 100_000
FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)
LINK = NewNode(FileType.SYMLINK, 0o777, 0, 0, target=b"x" * 100)

Tree = dict[bytes, tuple[object, ...]]


class FailingDevice(MemoryDevice):
    """A device with a volatile cache, whose `at`-th call of a kind fails: with `code`, once or from
    then on."""

    read_only = False

    def __init__(
        self, raw: bytes, kind: str = "", at: int = -1, code: Code = Code.IO, *, once: bool = False
    ) -> None:
        self.image = bytearray(raw)
        super().__init__(self.image, READS_MAX)
        self.durable = bytearray(raw)
        self.calls = {"read": 0, "write": 0, "flush": 0}
        self.failed = False
        self._fault = kind, at, code, once
        self.fails_at: Callable[[int], bool] = lambda offset: False

    def _meets(self, kind: str, offset: int = -1) -> bool:
        """Whether this call fails."""
        fault, at, _, once = self._fault
        number = self.calls[kind]
        self.calls[kind] += 1
        fails = kind == fault and (number == at or (number > at >= 0 and not once))
        fails = fails or (kind == "write" and self.fails_at(offset))
        self.failed |= fails
        return fails

    def _error(self) -> VfsError:
        return VfsError(self._fault[2], "the device fails")

    def _bytes(self, offset: int, count: int) -> bytes:
        if self._meets("read"):
            raise self._error()
        return super()._bytes(offset, count)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        joined = b"".join(data)
        if self._meets("write", offset):
            done = len(joined) // 2 // SECTOR * SECTOR
            self.image[offset : offset + done] = joined[:done]
            raise self._error()
        self.image[offset : offset + len(joined)] = joined

    def flush(self) -> None:
        if self._meets("flush"):
            raise self._error()
        self.durable[:] = self.image


@cache
def sound(*options: str) -> bytes:
    with TemporaryDirectory() as folder:
        options = options or ("-t", "ext4")
        return make_image(Path(folder) / "fs.img", "4M", "-b", "1024", *options).read_bytes()


# --- the workload ----------------------------------------------------------------


def steps(filesystem: Ext4) -> list[Callable[[], object]]:
    """The operations. Each finds what it is about by name."""
    root = filesystem.root()

    def at(*path: bytes) -> Node:
        node: Node = root
        for name in path:
            node = node.lookup(name)
        return node

    return [
        lambda: root.create(b"a", FILE),
        lambda: at(b"a").write(0, [b"a" * 3000]),
        lambda: root.create(b"d", DIRECTORY),
        lambda: at(b"d").create(b"b", FILE),
        lambda: at(b"d", b"b").write(0, [b"b" * 9000]),
        lambda: root.rename(b"a", at(b"d"), b"c"),
        filesystem.writer.journal.bring_to_place,
        lambda: at(b"d", b"b").set_attributes(SetAttributes(size=100)),
        lambda: at(b"d", b"b").write(20_000, [b"behind"]),
        lambda: root.create(b"l", LINK),
        lambda: at(b"d").remove(b"c"),
        lambda: root.create(b"n", FILE),
        lambda: at(b"n").write(0, [b"new" * 2000]),
        lambda: at(b"n").set_xattr(b"user.x", b"v" * 500),
        lambda: root.rename(b"n", root, b"l"),
        lambda: at(b"d").set_attributes(SetAttributes(mode=0o700)),
    ]


@dataclass
class Run:
    """How far the workload came: `begun` and `acknowledged` are numbers of operations."""

    begun: int = 0
    acknowledged: int = 0
    errors: int = 0


def work(filesystem: Ext4, after: Callable[[], object] = lambda: None) -> Run:
    """All operations, until one fails. What must not come is any other exception."""
    run_ = Run()
    for step in steps(filesystem):
        run_.begun += 1
        try:
            step()
            filesystem.commit()
        except VfsError:
            run_.errors += 1
            break
        run_.acknowledged = run_.begun
        after()
    return run_


def tree_of(filesystem: Ext4) -> Tree:
    found: Tree = {}
    pending: list[tuple[bytes, Node]] = [(b"", filesystem.root())]
    while pending:
        path, node = pending.pop()
        its = node.attributes()
        if its.type is FileType.DIRECTORY:
            found[path] = (its.mode,)
            names = [entry.name for entry in node.entries(2, 1000)]  # without "." and ".."
            pending += [(path + b"/" + name, node.lookup(name)) for name in names]
        elif its.type is FileType.SYMLINK:
            found[path] = (node.readlink(),)
        else:
            buffers, _ = node.read(0, 1 << 20)
            found[path] = (b"".join(buffers), sorted(node.xattrs()))
    return found


@dataclass
class Story:
    """What happens where nothing fails."""

    trees: list[Tree]
    calls: dict[str, int]
    calls_at_opening: dict[str, int]


@cache
def story() -> Story:
    device = FailingDevice(sound())
    filesystem = open_ext4(device, "image")
    at_opening = dict(device.calls)
    trees = [tree_of(filesystem)]
    work(filesystem, lambda: trees.append(tree_of(filesystem)))
    assert len(trees) == len(steps(filesystem)) + 1
    # The same without looking, which reads.
    device = FailingDevice(sound())
    filesystem = open_ext4(device, "image")
    work(filesystem)
    filesystem.close()
    return Story(trees, device.calls, at_opening)


def check_state(raw: bytes | bytearray, done: Run, where: str) -> None:
    """Recovered by us, it has everything that was acknowledged."""
    allowed = story().trees[done.acknowledged : done.begun + 1]
    filesystem = open_ext4(FailingDevice(bytes(raw)), "recovered")
    assert not filesystem.read_only, where
    assert tree_of(filesystem) in allowed, where
    filesystem.close()


def check_with_e2fsck(raw: bytes | bytearray, done: Run, folder: Path, where: str) -> None:
    """The same for the recovery by e2fsck, which finds nothing that would have to be repaired."""
    allowed = story().trees[done.acknowledged : done.begun + 1]
    image = folder / "fs.img"
    image.write_bytes(raw)
    run(["sh", "-c", f"e2fsck -fy -E journal_only {image}; test $? -le 1"])
    run(["e2fsck", "-fn", image])
    assert tree_of(open_ext4(FailingDevice(image.read_bytes()), "repaired")) in allowed, where


# --- faults of writes and flushes ----------------------------------------------


@pytest.mark.parametrize(("code", "once"), [(Code.IO, False), (Code.NOSPC, True)])
@pytest.mark.parametrize("kind", ["write", "flush"])
def test_what_was_acknowledged_before_a_fault_is_kept(
    tmp_path: Path, kind: str, once: bool, code: Code
) -> None:
    count = story().calls[kind]
    assert count > 20
    for at in range(count):
        device = FailingDevice(sound(), kind, at, code, once=once)
        where = f"{kind} {at} of {count}, {code}, {'once' if once else 'from then on'}"
        with bounded_time():
            filesystem = open_ext4(device, "image")
            done = work(filesystem)
            try:
                filesystem.close()
            except VfsError:
                done.errors += 1
        assert device.failed, where
        # A failure that nobody was told of is one of data that was not needed any more.
        assert done.errors, where
        check_state(device.image, done, f"{where}, all arrived")
        check_state(device.durable, done, f"{where}, what was not flushed is lost")
        raw = device.image if at % 2 else device.durable
        check_with_e2fsck(raw, done, tmp_path, where)


@pytest.mark.parametrize("code", [Code.IO, Code.NOSPC])
def test_after_a_fault_in_the_journal_it_is_read_only(
    caplog: pytest.LogCaptureFixture, code: Code
) -> None:
    device = FailingDevice(sound(), code=code)
    filesystem = open_ext4(device, "image")
    root = filesystem.root()
    root.create(b"kept", FILE).write(0, [b"kept" * 1000])
    filesystem.commit()
    device.fails_at = journal_of(device)
    with caplog.at_level(logging.ERROR):
        root.create(b"lost", FILE)
        ticket = filesystem.sync()
        assert ticket is not None
        told: list[VfsError | None] = []
        ticket.when_durable(told.append)
        with pytest.raises(VfsError):
            ticket.wait()
    assert [error and error.code for error in told] == [code]
    [sentence] = caplog.messages
    assert "journal" in sentence
    assert ("make room" in sentence) is (code is Code.NOSPC)
    assert "nothing can be written any more" in sentence
    assert filesystem.read_only
    before = bytes(device.image)
    for act in (
        lambda: root.create(b"more", FILE),
        lambda: root.lookup(b"kept").write(0, [b"x"]),
        lambda: root.remove(b"kept"),
    ):
        with pytest.raises(VfsError) as caught:
            act()
        assert caught.value.code is Code.ROFS
    assert tree_of(filesystem)[b"/kept"] == (b"kept" * 1000, [])
    with pytest.raises(VfsError):
        filesystem.close()
    assert device.image == before
    again = open_ext4(FailingDevice(bytes(device.image)), "again")
    assert tree_of(again)[b"/kept"] == (b"kept" * 1000, [])


def journal_of(device: FailingDevice) -> Callable[[int], bool]:
    """Whether an offset is in the journal."""
    volume = Volume(device, Superblock.read(device), "image")
    ring = ring_of(volume)
    blocks = {ring.physical(at) for at in range(ring.end)}
    return lambda offset: offset >> 10 in blocks


@pytest.mark.parametrize(("code", "told"), [(Code.NOSPC, Code.NOSPC), (Code.IO, Code.IO)])
def test_a_host_without_room_for_data_is_an_error_of_that_write(
    tmp_path: Path, code: Code, told: Code
) -> None:
    """As it is under a sparse image: the client is told, and everything else goes on."""
    device = FailingDevice(sound(), code=code)
    filesystem = open_ext4(device, "image")
    node = filesystem.root().create(b"file", FILE)
    free = filesystem.statistics().free_bytes
    in_journal = journal_of(device)
    device.fails_at = lambda offset: not in_journal(offset)
    for size in (10, 5000, 300_000):
        with pytest.raises(VfsError) as caught:
            node.write(0, [b"x" * size])
        assert caught.value.code is told
    assert filesystem.statistics().free_bytes == free
    filesystem.root().create(b"other", FILE)
    filesystem.commit()
    assert not filesystem.read_only
    device.fails_at = lambda offset: False
    node.write(0, [b"y" * 300_000])
    filesystem.close()
    image = tmp_path / "fs.img"
    image.write_bytes(device.image)
    run(["e2fsck", "-fn", image])
    assert tree_of(open_ext4(FailingDevice(bytes(device.image)), "again"))[b"/file"] == (
        b"y" * 300_000,
        [],
    )


def test_without_a_journal_a_fault_ends_writing_too() -> None:
    device = FailingDevice(sound("-t", "ext2"))
    filesystem = open_ext4(device, "image")
    filesystem.root().create(b"one", FILE)
    filesystem.commit()
    filesystem.root().create(b"two", FILE)
    device.fails_at = lambda offset: True
    with pytest.raises(VfsError):
        filesystem.commit()
    assert filesystem.read_only
    with pytest.raises(VfsError):
        filesystem.close()
    assert not Superblock.read(FailingDevice(bytes(device.image))).disk.s_state & 1


# --- faults of reads ---------------------------------------------------------------


def test_a_read_that_fails_is_an_error_of_what_needed_it(tmp_path: Path) -> None:
    """A few operations fail, nothing is lost, and the next ones go on."""
    first, last = story().calls_at_opening["read"], story().calls["read"]
    assert last > first
    for at in range(first, last):
        device = FailingDevice(sound(), "read", at, once=True)
        filesystem = open_ext4(device, "image")
        for step in steps(filesystem):
            with suppress(VfsError):
                step()
        filesystem.commit()
        assert device.failed
        assert not filesystem.read_only, at
        live = tree_of(filesystem)
        filesystem.close()
        image = tmp_path / "fs.img"
        image.write_bytes(device.image)
        run(["e2fsck", "-fn", image])
        assert tree_of(open_ext4(FailingDevice(bytes(device.image)), "again")) == live


def given_up(monkeypatch: pytest.MonkeyPatch) -> tuple[FailingDevice, Ext4]:
    """A file "f" of 300 pieces, whose truncation in the middle was given up as a read failed: it is
    on the list of orphans, and has pieces behind its end."""
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 8)
    device = FailingDevice(sound())
    filesystem = open_ext4(device, "image")
    node = filesystem.root().create(b"f", FILE)
    for piece in range(300):
        node.write(piece * 2048, [b"piece %d" % piece])
    filesystem.close()
    reads = 0
    while True:
        image = bytes(device.image)
        failing = FailingDevice(image, "read", reads, once=True)
        with suppress(ImageError, VfsError):
            filesystem = open_ext4(failing, "image")
            node = filesystem.root().lookup(b"f")
            with suppress(VfsError):
                node.set_attributes(SetAttributes(size=HALF))
            if filesystem.orphans.numbers:
                return failing, filesystem
            assert failing.failed, "no read failed where it matters"
        reads += 1


AFTERWARDS: dict[str, Callable[[Ext4], object]] = {
    "cut off": lambda its: its.root().lookup(b"f").set_attributes(SetAttributes(size=5000)),
    "extended": lambda its: its.root().lookup(b"f").set_attributes(SetAttributes(size=700_000)),
    "written behind": lambda its: its.root().lookup(b"f").write(650_000, [b"x"]),
    "given storage": lambda its: content.allocate(its.node(12), 650_000, 660_000),
    "removed": lambda its: its.root().remove(b"f"),
    "replaced": lambda its: its.root().rename(b"other", its.root(), b"f"),
}


@pytest.mark.parametrize("what", AFTERWARDS)
def test_a_truncation_that_was_given_up_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The list of orphans stays one, and what was cut off does not come back."""
    device, filesystem = given_up(monkeypatch)
    filesystem.root().create(b"other", FILE)
    AFTERWARDS[what](filesystem)
    filesystem.commit()
    assert not filesystem.orphans.numbers
    crashed = open_ext4(FailingDevice(bytes(device.image)), "crashed")
    assert not crashed.read_only
    found = tree_of(crashed).get(b"/f", (b"",))[0]
    assert isinstance(found, bytes)
    assert not any(found[HALF:650_000])
    filesystem.close()
    image = tmp_path / "fs.img"
    image.write_bytes(device.image)
    run(["e2fsck", "-fn", image])


def test_a_read_that_fails_while_it_is_opened() -> None:
    """It is refused, or opened as if nothing had been; and it is as it was."""
    for at in range(story().calls_at_opening["read"]):
        device = FailingDevice(sound(), "read", at, once=True)
        with suppress(VfsError):
            open_ext4(device, "image").close()
        assert device.image == sound()


# --- an image that is cut off --------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3000, 100_000, 2_000_000])
def test_an_image_that_becomes_shorter(tmp_path: Path, size: int) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-b", "1024", "-t", "ext4")
    filesystem = open_ext4(FileDevice(image, read_only=False), "image")
    root = filesystem.root()
    for number in range(30):
        root.create(b"%d" % number, FILE).write(0, [b"x" * 20_000])
    filesystem.commit()
    os.truncate(image, size)
    errors = 0
    with bounded_time():
        for step in steps(filesystem):
            try:
                step()
                filesystem.commit()
            except VfsError:
                errors += 1
        for number in range(30):
            try:
                buffers, _ = root.lookup(b"%d" % number).read(0, 20_000)
                assert b"".join(buffers) == b"x" * 20_000
            except VfsError:
                errors += 1
        with suppress(VfsError):
            filesystem.close()
        assert filesystem.read_only
    assert errors
    assert image.stat().st_size == size, "what is cut off is not made again, full of zeros"
