"""Snapshots of a device: both kinds of overlays keep states, go back and forth between them, and
forget them, whatever is written in between; and it takes no time."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance import image_limits
from appliance.fsimage.device import BlockDevice, FileDevice, Overlay, Slice, snapshots_of
from appliance.fsimage.overlays import open_overlay
from appliance.fsimage.snapshots import BlockSnapshots
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.overlay_crash import BytesDevice, new_overlay

BASE = bytes(index * 7 >> 3 & 0x7F for index in range(12 * 4096 - 1536))
NAMES = some.sampled_from("abcde")


def in_memory() -> BlockDevice:
    return Overlay(BytesDevice(BASE))


def in_a_file() -> BlockDevice:
    return new_overlay(BytesDevice(b""))


@pytest.fixture(params=[in_memory, in_a_file])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BlockDevice:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 16384)
    made: BlockDevice = request.param()
    return made


def kept(device: BlockDevice) -> BlockSnapshots:
    snapshots = snapshots_of(device)
    assert snapshots is not None
    return snapshots


class States(RuleBasedStateMachine):
    """Both kinds of overlays against a copy for each state."""

    @initialize(make=some.sampled_from([in_memory, in_a_file]))
    def start(self, make: Callable[[], BlockDevice]) -> None:
        self.device = make()
        self.snapshots = kept(self.device)
        self.present = bytearray(BASE)
        self.states: dict[str, bytes] = {}

    @rule(offset=some.integers(0, len(BASE) - 1), data=some.binary(min_size=1, max_size=9000))
    def write(self, offset: int, data: bytes) -> None:
        data = data[: len(BASE) - offset]
        self.device.write(offset, [data])
        self.present[offset : offset + len(data)] = data

    @rule(first=some.integers(0, 10), count=some.integers(1, 4), byte=some.integers(0, 255))
    def write_blocks(self, first: int, count: int, byte: int) -> None:
        self.write(first * 4096, bytes([byte]) * (count * 4096))

    @rule()
    def flush(self) -> None:
        self.device.flush()

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        self.told(name in self.states, Code.EXIST, lambda: self.snapshots.create(name, 1))
        self.states.setdefault(name, bytes(self.present))

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        self.told(name not in self.states, Code.NOENT, lambda: self.snapshots.rollback(name))
        self.present = bytearray(self.states.get(name, self.present))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.told(name not in self.states, Code.NOENT, lambda: self.snapshots.delete(name))
        self.states.pop(name, None)

    def told(self, wrong: bool, code: Code, act: Callable[[], None]) -> None:
        if not wrong:
            act()
            return
        with pytest.raises(VfsError) as caught:
            act()
        assert caught.value.code is code

    @invariant()
    def it_is_as_it_should_be(self) -> None:
        if hasattr(self, "device"):
            assert self.device.read(0, len(BASE)) == self.present
            assert {snapshot.name for snapshot in self.snapshots.names()} == set(self.states)

    def teardown(self) -> None:
        for name, contents in getattr(self, "states", {}).items():
            self.snapshots.rollback(name)
            assert self.device.read(0, len(BASE)) == contents


TestStates = States.TestCase
TestStates.settings = settings(stateful_step_count=25)


def test_what_is_told_of_a_snapshot(device: BlockDevice) -> None:
    snapshots = kept(device)
    device.write(0, [bytes(5000)])
    snapshots.create("first", 123)
    device.write(0, [bytes(3 * 4096)])
    snapshots.create("zweiter ü", 456)
    told = [(each.name, each.created_ns, each.changed_bytes) for each in snapshots.names()]
    assert told == [("first", 123, 2 * 4096), ("zweiter ü", 456, 3 * 4096)]
    snapshots.rollback("first")
    snapshots.create("third", 789)
    assert snapshots.names()[2].changed_bytes == 2 * 4096


@pytest.mark.parametrize("name", ["", " ", "a ", "a\nb", "a/b", "x" * 65, "ü" * 33, "\udc80"])
def test_what_is_no_name(device: BlockDevice, name: str) -> None:
    with pytest.raises(VfsError) as caught:
        kept(device).create(name, 0)
    assert caught.value.code is Code.INVAL
    assert kept(device).names() == []


def test_there_is_a_limit(device: BlockDevice) -> None:
    snapshots = kept(device)
    for number in range(image_limits.SNAPSHOTS_MAX):
        device.write(number % 11 * 4096, [b"x" * 4096])
        snapshots.create(f"s{number}", number)
    with pytest.raises(VfsError, match="delete one first") as caught:
        snapshots.create("one more", 0)
    assert caught.value.code is Code.NOSPC
    snapshots.delete("s30")
    snapshots.create("one more", 0)


def test_an_unknown_name_is_told_with_those_there_are(device: BlockDevice) -> None:
    kept(device).create("clean", 0)
    with pytest.raises(VfsError, match=r'no snapshot "claen".*clean'):
        kept(device).rollback("claen")


def test_a_partition_has_those_of_the_disk(device: BlockDevice) -> None:
    assert snapshots_of(Slice(Slice(device, 4096, 8192), 0, 4096)) is kept(device)
    assert snapshots_of(BytesDevice(b"")) is None


# --- memory ---------------------------------------------------------------------


def test_what_snapshots_hold_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_BYTES_MAX", 4 * 4096)
    device = Overlay(BytesDevice(BASE))
    device.write(0, [bytes(2 * 4096)])
    device.snapshots.create("two", 0)
    device.write(0, [b"x" * 2 * 4096])
    with pytest.raises(VfsError) as caught:
        device.write(5 * 4096, [b"x"])
    assert caught.value.code is Code.NOSPC
    device.write(0, [b"y" * 2 * 4096])  # nothing new
    device.snapshots.delete("two")
    device.write(5 * 4096, [b"x" * 2 * 4096])
    with pytest.raises(VfsError):
        device.write(8 * 4096, [b"x"])


def test_layers_do_not_grow_with_time() -> None:
    device = Overlay(BytesDevice(BASE))
    device.snapshots.create("start", 0)
    for number in range(300):
        device.write(number % 11 * 4096, [b"x" * 100])
        device.snapshots.create("now", number)
        device.write(0, [b"y"])
        device.snapshots.delete("now")
        if number % 3 == 0:
            device.snapshots.rollback("start")
    assert len(device._layers.present) <= 3


def test_a_reader_is_not_disturbed() -> None:
    """What changes under it between two looks is a state that was there."""
    device: Overlay

    class Slow(BytesDevice):
        def readinto(self, *words: object) -> None:
            super().readinto(*words)  # type: ignore[arg-type]
            device.snapshots.rollback("one")
            device.snapshots.delete("two")
            device.write(0, [b"3" * 8192])

    device = Overlay(Slow(BASE))
    device.write(0, [b"1" * 4096])
    device.snapshots.create("one", 1)
    device.write(0, [b"2" * 8192])
    device.snapshots.create("two", 2)
    assert device.read(0, 8192) == b"2" * 8192


# --- how long it takes -----------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "file"])
def test_it_takes_milliseconds(tmp_path: Path, where: str) -> None:
    """With 64 MiB changed, above an image of 2 GiB. (Generous: the machine may be busy.)"""
    image = tmp_path / "fs.img"
    image.touch()
    os.truncate(image, 2 << 30)
    base = FileDevice(image)
    device: BlockDevice = Overlay(base)
    if where == "file":
        device = open_overlay(str(tmp_path / "changes"), base, str(image), eager=True)
    for number in range(64):
        device.write(number << 21, [bytes(1 << 20)])
    snapshots = kept(device)
    best = dict.fromkeys(("create", "rollback", "delete"), 1.0)
    for attempt in range(5):
        device.write(attempt << 22, [b"x" * 4096])
        name = f"s{attempt}"
        for step, act in (
            ("create", partial(snapshots.create, name, 0)),
            ("rollback", partial(snapshots.rollback, name)),
            ("delete", partial(snapshots.delete, name)),
        ):
            began = time.perf_counter()
            act()
            best[step] = min(best[step], time.perf_counter() - began)
    print({step: f"{taken * 1000:.2f} ms" for step, taken in best.items()})
    assert max(best.values()) < 0.1, best
    device.close()


# --- memory --------------------------------------------------------------------------


def test_maps_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """To open an overlay file, and to delete a snapshot, takes no memory for each of their maps."""
    image = tmp_path / "large.img"
    image.touch()
    os.truncate(image, 1 << 31)
    map_bytes = (1 << 31 >> 12) * 4
    peaks = {}
    for count in (3, 20):
        file = str(tmp_path / f"changes-{count}")
        overlay = open_overlay(file, FileDevice(image), str(image))
        for number in range(count):
            overlay.write(number * 4096, [b"x"])
            overlay.snapshots.create(f"{number}", 0)
        overlay.close()
        tracemalloc.start()
        overlay = open_overlay(file, FileDevice(image), str(image))
        opening = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        overlay.snapshots.delete("1")
        deleting = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        overlay.close()
        peaks[count] = (opening, deleting)
    for few, many in zip(*peaks.values(), strict=True):
        assert many < few + map_bytes // 2
        assert many < 6 * map_bytes
