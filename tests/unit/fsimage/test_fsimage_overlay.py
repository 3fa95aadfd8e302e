"""Overlay files: like a copy of the image, whatever is written; after a crash at any instant they
have what was durable, and no garbage; they fit one image, and can be merged into it.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance import image_limits
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.overlay_file import OverlayFile
from appliance.fsimage.overlay_format import HEADER_BYTES, MAPS, Base, Header, read_header
from appliance.fsimage.overlays import merge, open_overlay
from appliance.fsimage.slot_map import SlotMap
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.overlay_crash import (
    BASE,
    BytesDevice,
    Script,
    check,
    killed,
    new_overlay,
    power_cut,
    reopen,
)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 16384)


# --- a device like any other --------------------------------------------------

WRITES = some.lists(some.tuples(some.integers(0, 40_000), some.binary(max_size=9000)), max_size=8)


@given(WRITES, some.integers(0, 40_000), some.integers(0, 6000), some.booleans())
def test_it_is_like_a_copy(
    writes: list[tuple[int, bytes]], offset: int, count: int, eager: bool
) -> None:
    copy = bytearray(BASE)
    store = BytesDevice(b"")
    overlay = new_overlay(store, eager=eager)
    for at, data in writes:
        overlay.write(at, [data[: len(data) // 3], data[len(data) // 3 :]])
        copy[at : at + len(data)] = data
    first, second = bytearray(count // 3), bytearray(count - count // 3)
    overlay.readinto(offset, [first, second])
    assert first + second == copy[offset : offset + count]
    overlay.flush()
    again = reopen(store.raw)
    assert again.read(0, len(BASE)) == copy
    merged = bytearray(BASE)
    for at, length in again.changes():
        merged[at : at + length] = again.read(at, length)
    assert merged == copy


@pytest.mark.parametrize("offset", [-1, len(BASE) - 1, 1 << 60])
def test_beyond_the_end_is_an_io_error(offset: int) -> None:
    overlay = new_overlay(BytesDevice(b""))
    uses: list[Callable[[], object]] = [
        lambda: overlay.read(offset, 2),
        lambda: overlay.write(offset, [b"ab"]),
    ]
    for use in uses:
        with pytest.raises(VfsError) as caught:
            use()
        assert caught.value.code is Code.IO


def test_blocks_in_a_row_are_one_write_and_one_read(tmp_path: Path) -> None:
    class Counting(BytesDevice):
        calls = 0

        def write(self, *words: Any) -> None:
            self.calls += 1
            super().write(*words)

        def readinto(self, *words: Any) -> None:
            self.calls += 1
            super().readinto(*words)

    store = Counting(b"")
    overlay = new_overlay(store)
    store.calls = 0
    for _ in range(2):  # new blocks, and the same ones again
        overlay.write(4096, [bytes(5 * 4096)])
        assert store.calls == 1
        store.calls = 0
    overlay.read(4096 + 100, 4 * 4096)
    assert store.calls == 1


def test_a_full_host_loses_nothing() -> None:
    class Full(BytesDevice):
        full = False

        def write(self, *words: Any) -> None:
            if self.full:
                raise VfsError(Code.NOSPC, "full")
            super().write(*words)

    store = Full(b"")
    overlay = new_overlay(store)
    overlay.write(0, [b"x" * 4096])
    store.full = True
    for offset in (0, 100, 4096, 5000):
        with pytest.raises(VfsError):
            overlay.write(offset, [b"y" * 8192])
    with pytest.raises(VfsError):
        overlay.flush()  # the map does not fit either, and is not forgotten
    store.full = False
    overlay.write(8192, [b"z" * 4096])
    overlay.flush()
    expected = b"x" * 4096 + BASE[4096:8192] + b"z" * 4096 + BASE[12288:]
    assert reopen(store.raw).read(0, len(BASE)) == expected


# --- crashes ------------------------------------------------------------------


def survive(seed: int, *, eager: bool = False, steps: int = 25, tries: int = 2) -> int:
    """Every crash of one script; how many states were looked at."""
    events = Script(seed, eager=eager).run(steps)
    dice = random.Random(seed)
    states = 0
    for cut in range(len(events) + 1):
        check(events, cut, killed(events, cut))
        for _ in range(0 if eager else tries):
            check(events, cut, power_cut(events, cut, dice))
        states += 1 + (0 if eager else tries)
    return states


def test_a_power_cut_at_any_instant() -> None:
    assert sum(survive(seed) for seed in range(12)) > 1500


def test_a_kill_at_any_instant_loses_no_write_where_they_are_eager() -> None:
    assert sum(survive(seed, eager=True) for seed in range(12)) > 500


def _nothing(*_: object) -> None:
    """In the place of something that matters."""


def _map_before_data(self: OverlayFile, pieces: list[tuple[int, bytes]]) -> None:
    self._write_map(pieces)
    self._store.flush()


def _point_first(self: OverlayFile, number: int, run: tuple[int, int], data: Any) -> None:
    self._store.resize(max(self._store.size, self._header.slot_offset(run[0] + run[1])))
    self._map.point(number, run)
    if self._eager:
        self._write_map(self._map.take_dirty())
    self._store.write(self._header.slot_offset(run[0]), data)


def _free_at_once(self: SlotMap, slots: Any) -> None:
    self._free += [(slot, 1) for slot in slots]


def _free_too_much(self: SlotMap, gone: Any, alone: Any) -> None:
    self._free += [(slot, 1) for slot in gone if slot]


def _same_copy(self: Header) -> tuple[int, bytes]:
    return 0, really_encode(self)[1]


really_encode = Header.encode

MUTANTS: dict[str, tuple[type, str, Callable[..., Any], bool]] = {
    "a map is written before its slots are durable": (
        OverlayFile, "_make_durable", _map_before_data, False
    ),
    "a map says what is not written yet": (OverlayFile, "_fill", _point_first, True),
    "headers are not waited for": (OverlayFile, "_barrier", _nothing, False),
    "snapshots share slots that are changed in place": (SlotMap, "share", _nothing, False),
    "what other states have is freed": (SlotMap, "give_up", _free_too_much, False),
    "a header is written over the one that counts": (Header, "encode", _same_copy, False),
    "the map of a snapshot is not written": (OverlayFile, "_write_copy", _nothing, False),
    "maps are never written": (OverlayFile, "_write_map", _nothing, False),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_these_mistakes_would_be_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, mistake, eager = MUTANTS[name]
    monkeypatch.setattr(owner, method, mistake)
    with pytest.raises((AssertionError, ImageError, VfsError)):
        assert sum(survive(seed, eager=eager) for seed in range(12))


def test_slots_are_used_again_but_not_at_once() -> None:
    """A read that began before a rollback may still be on its way."""
    store = BytesDevice(b"")
    overlay = new_overlay(store)
    overlay.snapshots.create("start", 0)
    for _ in range(40):
        overlay.write(0, [bytes(4096 * 8)])
        overlay.snapshots.rollback("start")
    assert overlay._map.end <= 1 + 2 * 8
    overlay.write(0, [b"a" * 4096])
    slot = overlay._map.slots[0]
    overlay.snapshots.rollback("start")
    overlay.write(0, [b"b" * 4096 * 8])
    assert slot not in overlay._map.slots


# --- one image, one overlay, one server ----------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "fs.img"
    path.write_bytes(BASE)
    return path


def opened(image: Path, file: Path) -> OverlayFile:
    base = FileDevice(image)
    try:
        return open_overlay(str(file), base, str(image))
    except ImageError:
        base.close()
        raise


def test_changes_are_there_at_the_next_start(image: Path, tmp_path: Path) -> None:
    overlay = opened(image, tmp_path / "changes")
    overlay.write(5000, [b"changed"])
    overlay.close()
    assert image.read_bytes() == BASE
    assert (tmp_path / "changes").stat().st_mode & 0o777 == 0o600
    overlay = opened(image, tmp_path / "changes")
    assert overlay.read(4998, 11) == BASE[4998:5000] + b"changed" + BASE[5007:5009]
    overlay.close()


def test_the_file_takes_room_for_what_was_changed(tmp_path: Path) -> None:
    image = tmp_path / "large.img"
    image.touch()
    os.truncate(image, 1 << 40)
    began = time.monotonic()
    overlay = opened(image, tmp_path / "changes")
    overlay.write((1 << 40) - 4096, [b"x" * 4096])
    overlay.flush()
    assert os.stat(tmp_path / "changes").st_blocks * 512 < 1 << 20
    overlay.close()
    assert opened(image, tmp_path / "changes").read((1 << 40) - 1, 1) == b"x"
    assert time.monotonic() - began < 20


def test_only_one_server_has_an_overlay_but_many_share_an_image(
    image: Path, tmp_path: Path
) -> None:
    first, second = opened(image, tmp_path / "1"), opened(image, tmp_path / "2")
    with pytest.raises(ImageError, match="in use"):
        opened(image, tmp_path / "1")
    with pytest.raises(ImageError, match="in use"):
        FileDevice(image, read_only=False)
    first.close()
    second.close()


def rewrite(image: Path) -> None:
    """The same bytes again: only the time tells."""
    with image.open("r+b") as file:
        file.write(BASE[:1])


def replace(image: Path) -> None:
    times = image.stat()
    image.write_bytes(BASE[::-1])
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rewrite, "written to"),
        (replace, "begin differently"),
        (lambda image: os.truncate(image, 45_056), "45056"),
    ],
)
def test_an_overlay_of_another_image_is_refused(
    image: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    file = tmp_path / "changes"
    overlay = opened(image, file)
    overlay.write(0, [b"x"])
    overlay.close()
    before = file.read_bytes()
    change(image)
    for use in (lambda: opened(image, file), lambda: merge(str(image), str(file))):
        with pytest.raises(ImageError, match=words) as caught:
            use()
        assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def test_an_image_that_only_lost_its_time_gets_it_again(image: Path, tmp_path: Path) -> None:
    """As the hint says."""
    overlay = opened(image, tmp_path / "changes")
    overlay.write(0, [b"x"])
    overlay.close()
    image.touch()
    with pytest.raises(ImageError, match="without its time") as caught:
        opened(image, tmp_path / "changes")
    subprocess.run(caught.value.hint.partition(": ")[2].split(), check=True)
    overlay = opened(image, tmp_path / "changes")
    assert overlay.read(0, 1) == b"x"
    overlay.close()


def test_an_empty_overlay_fits_any_image(image: Path, tmp_path: Path) -> None:
    opened(image, tmp_path / "changes").close()
    replace(image)
    overlay = opened(image, tmp_path / "changes")
    assert overlay.read(0, 9) == BASE[::-1][:9]
    overlay.close()


def test_an_overlay_of_the_wrong_image_that_was_never_used(image: Path, tmp_path: Path) -> None:
    """Of whatever size that was: who corrects the name of the image can start."""
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"no image")
    opened(wrong, tmp_path / "changes").close()
    overlay = opened(image, tmp_path / "changes")
    overlay.write(0, [b"x"])
    overlay.close()
    with pytest.raises(ImageError, match="another image"):
        opened(wrong, tmp_path / "changes")


def test_a_copy_with_its_time_is_the_same_image(image: Path, tmp_path: Path) -> None:
    overlay = opened(image, tmp_path / "changes")
    overlay.write(0, [b"x"])
    overlay.close()
    other = tmp_path / "other.img"
    other.write_bytes(BASE)
    os.utime(other, ns=(0, image.stat().st_mtime_ns))
    opened(other, tmp_path / "changes").close()


# --- damaged files -----------------------------------------------------------


def spoiled(raw: bytearray, what: str) -> None:
    header = read_header(BytesDevice(raw))
    assert header is not None
    at = header.map_offset(header.present)
    match what:
        case "both headers":
            raw[100] ^= 1
            raw[HEADER_BYTES + 100] ^= 1
        case "cut off":
            del raw[header.slot_offset(2) :]
        case "twice":
            raw[at + 4 : at + 8] = raw[at : at + 4]
        case "far":
            raw[at : at + 4] = b"\xff\xff\xff\x7f"


@pytest.mark.parametrize("what", ["both headers", "cut off", "twice", "far"])
def test_a_damaged_file_is_refused(image: Path, tmp_path: Path, what: str) -> None:
    file = tmp_path / "changes"
    overlay = opened(image, file)
    overlay.write(0, [bytes(4096 * 4)])
    overlay.close()
    raw = bytearray(file.read_bytes())
    spoiled(raw, what)
    file.write_bytes(raw)
    with pytest.raises(ImageError, match="damaged"):
        opened(image, file)


@given(some.integers(0, 2 * HEADER_BYTES + MAPS * 4096 - 1), some.integers(1, 255))
def test_any_damaged_byte_is_an_error_or_is_harmless(at: int, change: int) -> None:
    """Whatever a file holds: an ImageError, a VfsError, or a device of the right size."""
    store = BytesDevice(b"")
    overlay = new_overlay(store)
    overlay.write(0, [bytes(4096)])
    overlay.snapshots.create("s", 0)
    overlay.write(0, [bytes(8192)])
    overlay.flush()
    store.raw[at] ^= change
    try:
        again = reopen(store.raw)
    except ImageError:
        return
    assert len(again.read(0, len(BASE))) == len(BASE)
    again.write(0, [bytes(4096)])


@pytest.mark.parametrize("contents", [b"#!/bin/sh\n", b"\0" * 100_000, b"x" * 20_000])
def test_a_file_that_is_no_overlay_is_left_alone(
    image: Path, tmp_path: Path, contents: bytes
) -> None:
    file = tmp_path / "precious"
    file.write_bytes(contents)
    with pytest.raises(ImageError, match="not an overlay"):
        opened(image, file)
    assert file.read_bytes() == contents


def test_a_newer_version_is_refused(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("appliance.fsimage.overlay_format.VERSION", 2)
        opened(image, tmp_path / "changes").close()
    with pytest.raises(ImageError, match="version"):
        opened(image, tmp_path / "changes")


def test_a_header_of_anybody_is_checked() -> None:
    """A right checksum is no reason to believe a header."""
    good = Header.new(Base(1 << 20, 0, bytes(32)))
    for bad in (
        good.next(block_bits=40),
        good.next(base=Base(1 << 60, 0, bytes(32))),
        good.next(present=MAPS),
    ):
        assert Header.decode(bad.encode()[1]) is None


def test_an_overlay_that_cannot_be_opened(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot open the overlay"):
        opened(image, tmp_path / "no" / "such")


# --- merging -----------------------------------------------------------------


def test_a_merge_writes_the_changes_into_the_image(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "changes"
    overlay = opened(image, file)
    overlay.write(3000, [b"m" * 10_000])
    overlay.write(len(BASE) - 3, [b"end"])
    expected = overlay.read(0, len(BASE))
    overlay.close()
    assert merge(str(image), str(file)) == 4 * 4096 + len(BASE) % 4096
    assert image.read_bytes() == expected
    assert merge(str(image), str(file)) == 0
    overlay = opened(image, file)
    assert overlay.changed_blocks == 0
    overlay.write(0, [b"and on it goes"])
    overlay.close()


class KilledError(Exception):
    """The end of the process."""


def test_a_merge_is_killed_at_any_instant_and_begun_again(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 4096)
    really = {name: getattr(os, name) for name in ("pwritev", "fdatasync", "ftruncate")}
    for instant in range(100):
        image.write_bytes(BASE)
        file = tmp_path / f"changes-{instant}"
        overlay = opened(image, file)
        overlay.write(0, [b"n" * 9000])
        overlay.write(30_000, [b"n" * 9000])
        expected = overlay.read(0, len(BASE))
        overlay.close()
        left = instant

        def dies(name: str) -> Callable[..., Any]:
            def call(*words: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KilledError
                return really[name](*words)

            return call

        with monkeypatch.context() as patch:
            for name in really:
                patch.setattr(os, name, dies(name))
            try:
                merge(str(image), str(file))
            except KilledError:
                pass
            else:
                assert instant > 8
                assert image.read_bytes() == expected
                return
        _goes_on(image, file, expected)
    pytest.fail("a merge takes that many steps?")


def _goes_on(image: Path, file: Path, expected: bytes) -> None:
    """Killed somewhere: either nothing was done yet, or only a merge goes on."""
    if image.read_bytes() not in (BASE, expected):
        with pytest.raises(ImageError, match="half merged") as caught:
            opened(image, file)
        assert "rumpnfsd merge" in caught.value.hint
    merge(str(image), str(file))
    assert image.read_bytes() == expected
    opened(image, file).close()


def test_a_merge_does_not_lose_snapshots_without_a_word(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "changes"
    overlay = opened(image, file)
    overlay.snapshots.create("precious", 1)
    overlay.write(0, [b"x"])
    overlay.close()
    with pytest.raises(ImageError, match="precious") as caught:
        merge(str(image), str(file))
    assert "--discard-snapshots" in caught.value.hint
    assert merge(str(image), str(file), discard_snapshots=True) == 4096
    assert image.read_bytes()[:1] == b"x"


def test_a_merge_needs_both_files_for_itself(image: Path, tmp_path: Path) -> None:
    overlay = opened(image, tmp_path / "changes")
    overlay.write(0, [b"x"])
    with pytest.raises(ImageError, match="in use") as caught:
        merge(str(image), str(tmp_path / "changes"))
    assert caught.value.hint == "a merge writes to both files, and has to be alone with them"
    overlay.close()
    reader = FileDevice(image)
    with pytest.raises(ImageError, match="in use"):
        merge(str(image), str(tmp_path / "changes"))
    reader.close()
    with pytest.raises(ImageError, match="No such file"):
        merge(str(image), str(tmp_path / "nothing"))
    assert merge(str(image), str(tmp_path / "changes")) == 4096
