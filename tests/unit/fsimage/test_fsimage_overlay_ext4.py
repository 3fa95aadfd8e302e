"""A file system above an overlay file, and the power fails: what was acknowledged is there, and the
file system is sound. (tests/crash does this for the file system alone, and thoroughly.)"""

from __future__ import annotations

import random

import pytest

from appliance import image_limits
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.check import examine
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.overlay_file import OverlayFile, begin
from appliance.fsimage.overlay_format import Base, read_header
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import make_image
from tests.unit.fsimage.overlay_crash import (
    BytesDevice,
    Event,
    RecordingStore,
    killed,
    power_cut,
)

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
FILES = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    options = ["-t", "ext4", "-b", "1024", "-J", "size=1"]
    return make_image(tmp_path_factory.mktemp("base") / "fs.img", "6M", *options).read_bytes()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 65536)


def contents(number: int) -> bytes:
    return b"%d," % number * (100 + number * 150)


def work(base: bytes, durability: Durability) -> tuple[list[Event], list[tuple[int, set[int]]]]:
    """What the store was told, and which files were acknowledged when it had been told so much."""
    store = RecordingStore()
    header = begin(store, Base(len(base), 0, bytes(32)))
    eager = durability is Durability.PROCESS
    overlay = OverlayFile(BytesDevice(base), store, header, eager=eager)
    filesystem = open_ext4(overlay, "image", durability=durability)
    there: set[int] = set()
    acknowledged = [(0, set(there))]
    for number in range(FILES):
        node = filesystem.root().create(b"file-%d" % number, FILE)
        node.write(0, [contents(number)])
        there.add(number)
        if number % 3 == 2:
            filesystem.root().remove(b"file-%d" % (number - 1))
            there.discard(number - 1)
        if number == FILES // 2:
            filesystem.snapshot_create("half")
        filesystem.commit()
        acknowledged.append((len(store.events), set(there)))
    filesystem.close()
    return store.events, acknowledged


def opened(base: bytes, raw: bytearray) -> tuple[OverlayFile, Ext4]:
    store = BytesDevice(raw)
    header = read_header(store)
    assert header is not None
    overlay = OverlayFile(BytesDevice(base), store, header)
    return overlay, open_ext4(overlay, "image")


def check(base: bytes, raw: bytearray, promised: set[int], coming: set[int]) -> None:
    """Every file that was there before and after the step in which it stopped, whole; none of those
    that were gone in both; and a sound file system."""
    overlay, filesystem = opened(base, raw)
    for number in range(FILES):
        try:
            node = filesystem.root().lookup(b"file-%d" % number)
        except VfsError:
            assert number not in promised & coming, f"file-{number} is lost"
            continue
        assert number in promised | coming, f"file-{number} is back"
        if number in promised:
            assert b"".join(node.read(0, 1 << 20)[0]) == contents(number)
    filesystem.commit()
    report = examine(overlay, "image")
    assert report.clean, [str(finding) for finding in report.findings]


@pytest.mark.parametrize("durability", [Durability.FULL, Durability.PROCESS])
def test_nothing_acknowledged_is_lost(base: bytes, durability: Durability) -> None:
    events, acknowledged = work(base, durability)
    dice = random.Random(1)
    made, *flushes = [at for at, event in enumerate(events) if event.flush][1:]
    anywhere = range(made + 4, len(events))
    for cut in [*flushes[:: len(flushes) // 40 + 1], *dice.sample(anywhere, 40)]:
        promised = max((at, index) for index, (at, _) in enumerate(acknowledged) if at <= cut)[1]
        coming = min(promised + 1, len(acknowledged) - 1)
        full = durability is Durability.FULL
        raw = power_cut(events, cut, dice) if full else killed(events, cut)
        check(base, raw, acknowledged[promised][1], acknowledged[coming][1])


def test_a_snapshot_is_what_it_was_after_any_crash(base: bytes) -> None:
    events, _ = work(base, Durability.FULL)
    dice = random.Random(2)
    seen = 0
    for _ in range(25):
        raw = power_cut(events, dice.randrange(len(events) // 2, len(events)), dice)
        _, filesystem = opened(base, raw)
        if filesystem.snapshots():
            filesystem.snapshot_rollback("half", lambda: None)
            names = {entry.name for entry in filesystem.root().entries(0, 100)}
            made = {number for number in range(FILES // 2 + 1) if b"file-%d" % number in names}
            assert made == {number for number in range(FILES // 2 + 1) if number % 3 != 1}
            assert len(names) == 3 + len(made)
            seen += 1
    assert seen > 5
