"""A merge that is stopped anywhere: nobody takes the image for a file system, nothing is lost, and
when it is finished the image has what the overlay showed."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance import fsck, image_limits
from appliance.fsimage import merging
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.check import examine
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.half_merged import HalfMergedError, Mark
from appliance.fsimage.image import open_image
from appliance.fsimage.merging import Merging
from appliance.fsimage.overlay_file import OverlayFile, write_header
from appliance.fsimage.overlay_format import HEADER_BYTES, MergeStage, read_header
from appliance.fsimage.overlays import merge, open_overlay
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, run
from tests.unit.fsimage.merge_crash import Event, Recorder, crashes, recording
from tests.unit.fsimage.overlay_crash import BytesDevice

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
SMALL = ("-t", "ext4", "-O", "^has_journal", "-b", "1024", "-N", "32")
PARTITIONS = {1: (63, 640), 2: (703, 640), 3: (1343, 640)}
"""First sector and sectors: none begins where a block of the overlay does, and the second one
shares blocks with both others."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 16384)


@dataclass
class Pair:
    """An image and an overlay with changes; what both are like, and will be."""

    image: Path
    overlay: Path
    after: bytes = b""
    parts: tuple[int | None, ...] = (None,)
    """The partitions that change."""

    def __post_init__(self) -> None:
        self.before = {file: file.read_bytes() for file in (self.image, self.overlay)}
        self.time = self.image.stat().st_mtime_ns
        device = open_overlay(str(self.overlay), FileDevice(self.image), str(self.image))
        self.after = device.read(0, device.size)
        device.close()

    def put(self, state: dict[Path, bytes]) -> None:
        """Let the files be so. An image that is as it was has its time."""
        for file, raw in state.items():
            file.write_bytes(raw)
        if state[self.image] == self.before[self.image]:
            os.utime(self.image, ns=(self.time, self.time))

    def merge(self) -> int:
        return merge(str(self.image), str(self.overlay))

    def record(self) -> list[Event]:
        """Merge, and how it was done; the files are then as before."""
        with recording(Recorder([self.image, self.overlay])) as recorder:
            self.merge()
        assert self.image.read_bytes() == self.after
        self.put(self.before)
        return recorder.events

    def mixed(self) -> list[int | None]:
        """The parts that are now neither as they were nor as they will be."""
        now, before = self.image.read_bytes(), self.before[self.image]
        found = []
        for part in self.parts:
            first, count = PARTITIONS.get(part or 0, (0, len(now) // 512))
            where = slice(first * 512, (first + count) * 512)
            if now[where] not in (before[where], self.after[where]):
                found.append(part)
        return found

    def stop(self, stage: MergeStage | None = None) -> None:
        """Merge until blocks were changed; `stage`: the overlay says this then."""
        events = self.record()
        flushes = [at for at, each in enumerate(events) if each.flush and each.file == self.image]
        for event in events[: flushes[1]]:
            if event.size is None and not event.flush:
                with event.file.open("r+b") as file:
                    file.seek(event.offset)
                    file.write(event.data)
        if stage is not None:
            self.say(stage)

    def say(self, stage: MergeStage) -> None:
        store = FileDevice(self.overlay, read_only=False)
        header = read_header(store)
        assert header is not None
        write_header(store, header.next(stage=stage))
        store.close()


def served(image: Path, overlay: Path, partition: int | None = None) -> None:
    """Some changes made through a file system."""
    filesystem = open_image(str(image), partition=partition, read_only=False, overlay=str(overlay))
    for number in range(3):
        node = filesystem.root().create(b"new-%d" % number, FILE)
        node.write(0, [b"%d" % number * 3000])
    filesystem.root().remove(b"old")
    filesystem.close()


def rewritten(image: Path, overlay: Path, part: tuple[int, int]) -> None:
    """Other bytes in the blocks of a file, wherever they are."""
    raw, (first, count) = image.read_bytes(), part
    device = open_overlay(str(overlay), FileDevice(image), str(image))
    for at in range(first * 512, (first + count) * 512, 1024):
        if raw[at : at + 1024].strip(b"old") == b"":
            device.write(at, [raw[at : at + 1024].replace(b"o", b"O")])
    device.close()


def one_file_system(folder: Path, size: str = "512K", *options: str) -> Pair:
    image = make_image(folder / "fs.img", size, *(options or SMALL))
    (folder / "old").write_bytes(b"old" * 9000)
    debugfs(image, f"write {folder}/old old")
    served(image, folder / "changes")
    return Pair(image, folder / "changes")


def a_disk(folder: Path) -> Pair:
    """Of three partitions, one was served, and one has other bytes in a file: its superblock is in
    no block that was changed. The third is left alone."""
    image = folder / "disk.img"
    raw = bytearray(2048 * 512)
    raw[510:512] = b"\x55\xaa"
    for number, (first, count) in PARTITIONS.items():
        struct.pack_into("<B3xB3xII", raw, 446 + 16 * (number - 1), 0, 0x83, first, count)
        part = make_image(folder / f"part-{number}", f"{count * 512}", *SMALL)
        (folder / "old").write_bytes(b"old" * 9000)
        debugfs(part, f"write {folder}/old old")
        raw[first * 512 : (first + count) * 512] = part.read_bytes()
    image.write_bytes(raw)
    served(image, folder / "changes", 1)
    rewritten(image, folder / "changes", PARTITIONS[2])
    return Pair(image, folder / "changes", parts=(1, 2))


def blocks_only(folder: Path) -> Pair:
    """Other bytes in a file: the block with the superblock is not among those that were changed."""
    image = make_image(folder / "fs.img", "512K", *SMALL)
    (folder / "old").write_bytes(b"old" * 9000)
    debugfs(image, f"write {folder}/old old")
    rewritten(image, folder / "changes", (0, 1024))
    return Pair(image, folder / "changes")


# --- crashes -----------------------------------------------------------------


def refused_by_us(pair: Pair) -> None:
    """Who opens the image without its overlay is told what to do."""
    for part in pair.mixed():
        with pytest.raises(ImageError, match="half merged") as caught:
            open_image(str(pair.image), partition=part)
        assert caught.value.hint == f"finish it: rumpnfsd merge IMAGE {pair.overlay}"


def refused_by_e2fsprogs(pair: Pair) -> None:
    for part in pair.mixed():
        offset = f"?offset={PARTITIONS[part][0] * 512}" if part else ""
        for command in (["dumpe2fs", "-h"], ["e2fsck", "-f", "-n"]):
            if offset and command[0] == "dumpe2fs":
                continue  # which knows no offsets
            done = subprocess.run(
                [*command, f"{pair.image}{offset}"], capture_output=True, text=True, check=False
            )
            assert done.returncode not in (0, 4), done.stdout
            assert "unsupported feature" in done.stdout + done.stderr


def survive(pair: Pair, *, seed: int = 1, tries: int = 16, asked: int = 0) -> tuple[int, int]:
    """Every crash of a merge; how many states there were, and how many of them were neither as
    before nor as after. `asked`: of how many of these e2fsprogs are asked, too."""
    events, states, half = pair.record(), 0, 0
    for state in crashes(events, pair.before, seed, tries):
        states += 1
        pair.put(state)
        mixed = state[pair.image] not in (pair.before[pair.image], pair.after)
        if pair.mixed():
            half += 1
            refused_by_us(pair)
            if half % 7 == 0 and half // 7 <= asked:
                refused_by_e2fsprogs(pair)
        header = read_header(BytesDevice(state[pair.overlay]))
        if header is None:
            assert state[pair.image] == pair.after
        elif header.stage is MergeStage.NOT_BEGUN:
            assert not mixed
            device = open_overlay(str(pair.overlay), FileDevice(pair.image), str(pair.image))
            assert device.read(0, device.size) == pair.after
            device.close()
        else:
            with pytest.raises(ImageError, match="half merged"):
                open_image(str(pair.image), overlay=str(pair.overlay))
        with recording(Recorder([])):
            pair.merge()
        assert pair.image.read_bytes() == pair.after
    return states, half


SCENES: dict[str, Callable[[Path], Pair]] = {
    "a file system": one_file_system,
    "a disk": a_disk,
    "without its superblock": blocks_only,
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_merge_stopped_anywhere(tmp_path: Path, scene: str) -> None:
    pair = SCENES[scene](tmp_path)
    states, half = survive(pair, asked=3)
    assert states > 20
    assert half > 10
    if pair.parts == (None,):
        e2fsck(pair.image)
    for part, (first, _) in PARTITIONS.items():
        if pair.parts != (None,):
            run(["e2fsck", "-fn", f"{pair.image}?offset={first * 512}"])
            open_image(str(pair.image), partition=part).close()


def test_what_does_not_change_is_not_marked(tmp_path: Path) -> None:
    pair = a_disk(tmp_path)
    pair.stop()
    refused_by_us(pair)
    refused_by_e2fsprogs(pair)
    open_image(str(pair.image), partition=3, read_only=False).close()


# --- the tests find mistakes -------------------------------------------------


def _nothing(*_: object) -> None:
    """In the place of something that matters."""


class _NotFlushed:
    """A device whose flush is not waited for."""

    def __init__(self, device: FileDevice) -> None:
        self.read, self.write, self.size = device.read, device.write, device.size

    flush = _nothing


def _marks_not_durable(self: Any, name: str) -> None:
    base, self._base = self._base, _NotFlushed(self._base)
    really_put(self, name)
    self._base = base


def _says_only_marked(self: OverlayFile, stage: MergeStage) -> None:
    if stage is not MergeStage.MARKING:
        really_tell(self, stage)


def _image_not_durable(self: Any, name: str) -> int:
    self._base = _NotFlushed(self._base)
    return really_run(self, name)


def _all_at_once(start: int, end: int, sectors: list[int]) -> list[tuple[int, int]]:
    return [(start, end)]


really_put, really_tell, really_run = Merging._put_marks, OverlayFile.tell_stage, Merging.run

MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "no marks": (Merging, "_put_marks", _nothing, "a file system"),
    "blocks are changed before the marks are durable": (
        Merging, "_put_marks", _marks_not_durable, "a file system"
    ),
    "superblocks are written with the rest": (merging, "_without", _all_at_once, "a disk"),
    "what is below a mark is not in the overlay": (
        OverlayFile, "hold", _nothing, "without its superblock"
    ),
    "the overlay says it after the marks": (
        OverlayFile, "tell_stage", _says_only_marked, "a file system"
    ),
    "the image is not durable when the overlay is emptied": (
        Merging, "run", _image_not_durable, "a file system"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MUTANTS)
def test_mistakes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    where, name, replacement, scene = MUTANTS[mistake]
    pair = SCENES[scene](tmp_path)
    monkeypatch.setattr(where, name, replacement)
    with pytest.raises((AssertionError, ImageError, pytest.fail.Exception)):
        survive(pair)


# --- errors ------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_anywhere_loses_nothing(tmp_path: Path, error: int) -> None:
    pair = blocks_only(tmp_path)
    for instant in range(len(pair.record())):
        pair.put(pair.before)
        failure = OSError(error, os.strerror(error))
        files = [pair.image, pair.overlay]
        with recording(Recorder(files, left=instant, failure=failure)):
            with pytest.raises(VfsError):
                pair.merge()
            if pair.image.read_bytes() not in (pair.before[pair.image], pair.after):
                refused_by_us(pair)
            pair.merge()
        assert pair.image.read_bytes() == pair.after


@pytest.mark.parametrize("which", [0, 1])
def test_after_a_flush_that_failed_the_overlay_says_it_again(tmp_path: Path, which: int) -> None:
    """What was written before it is in the host's memory, and perhaps nowhere else."""
    pair = one_file_system(tmp_path)
    headers = [
        at
        for at, event in enumerate(pair.record())
        if event.file == pair.overlay and event.data and event.offset < 2 * HEADER_BYTES
    ]
    failure = OSError(errno.EIO, "flush")
    files = [pair.image, pair.overlay]
    fails = Recorder(files, left=headers[which] + 1, failure=failure)
    with recording(fails), pytest.raises(VfsError):
        pair.merge()
    with recording(Recorder(files)) as recorder:
        pair.merge()
    events = recorder.events
    touched = next(at for at, event in enumerate(events) if event.data and event.file == pair.image)
    told = [event for event in events[:touched] if event.file == pair.overlay]
    assert told[-1].flush
    assert any(event.data for event in told)


# --- who comes back ----------------------------------------------------------


def without_marks(pair: Pair) -> None:
    """As a merge was left that knew none: some blocks are new, the superblock among them or not."""
    raw = bytearray(pair.before[pair.image])
    for at in range(0, len(raw), 8192):
        raw[at : at + 4096] = pair.after[at : at + 4096]
    pair.put(pair.before)
    pair.image.write_bytes(raw)
    pair.say(MergeStage.UNMARKED)


@pytest.mark.parametrize("scene", SCENES)
def test_a_merge_that_knew_no_marks_is_finished(tmp_path: Path, scene: str) -> None:
    pair = SCENES[scene](tmp_path)
    without_marks(pair)
    assert pair.merge() > 0
    assert pair.image.read_bytes() == pair.after


def test_a_merge_that_knew_no_marks_gets_them(tmp_path: Path) -> None:
    """And is stopped then, anywhere."""
    pair = one_file_system(tmp_path)
    without_marks(pair)
    before = {file: file.read_bytes() for file in pair.before}
    with recording(Recorder([pair.image, pair.overlay])) as recorder:
        pair.merge()
    refused = 0
    for state in crashes(recorder.events, before, 1, 8):
        for file, raw in state.items():
            file.write_bytes(raw)
        if state[pair.image] not in (before[pair.image], pair.after):
            refused_by_us(pair)
            refused += 1
        with recording(Recorder([])):
            pair.merge()
        assert pair.image.read_bytes() == pair.after
    assert refused > 5


def almost_finished(pair: Pair) -> None:
    """The image is, and the overlay is not empty yet."""
    pair.stop()
    pair.image.write_bytes(pair.after)


def test_a_finished_merge_is_not_done_again(tmp_path: Path) -> None:
    """The image was a file system again: who used it since keeps what he wrote."""
    pair = one_file_system(tmp_path)
    almost_finished(pair)
    filesystem = open_image(str(pair.image), read_only=False)
    filesystem.root().create(b"precious", FILE).write(0, [b"mine"])
    filesystem.close()
    used, kept = pair.image.read_bytes(), pair.overlay.read_bytes()
    with pytest.raises(ImageError, match="written to or replaced since") as caught:
        pair.merge()
    assert "remove the overlay" in caught.value.hint
    assert (pair.image.read_bytes(), pair.overlay.read_bytes()) == (used, kept)


def test_a_finished_merge_whose_image_was_left_alone_is_told_so(tmp_path: Path) -> None:
    pair = one_file_system(tmp_path)
    almost_finished(pair)
    pair.merge()
    assert pair.image.read_bytes() == pair.after
    header = read_header(BytesDevice(pair.overlay.read_bytes()))
    assert header is not None
    assert header.stage is MergeStage.NOT_BEGUN


def test_an_image_that_was_put_back_is_merged_into_from_the_beginning(tmp_path: Path) -> None:
    pair = one_file_system(tmp_path)
    pair.stop()
    pair.put({**pair.before, pair.overlay: pair.overlay.read_bytes()})
    with recording(Recorder([pair.image, pair.overlay])) as recorder:
        pair.merge()
    assert pair.image.read_bytes() == pair.after
    first = next(event for event in recorder.events if event.data and event.file == pair.image)
    assert (first.offset, len(first.data)) == (1024, 512)  # a mark


@pytest.mark.parametrize("stage", [MergeStage.MARKING, MergeStage.MARKED])
def test_another_image_of_the_same_size_is_left_alone(tmp_path: Path, stage: MergeStage) -> None:
    pair = one_file_system(tmp_path)
    pair.stop(stage)
    other = make_image(tmp_path / "other.img", "512K", *SMALL)
    for number, contents in enumerate((other.read_bytes(), bytes(512 * 1024))):
        other.write_bytes(contents)
        kept = pair.overlay.read_bytes()
        with pytest.raises(ImageError, match=r"another image|replaced"):
            merge(str(other), str(pair.overlay))
        assert other.read_bytes() == contents, number
        assert pair.overlay.read_bytes() == kept


def test_another_disk_without_a_partition_table_is_left_alone(tmp_path: Path) -> None:
    """Through which the overlay shows no file system at all."""
    pair = a_disk(tmp_path)
    pair.stop()
    pair.image.write_bytes(bytes(len(pair.after)))
    with pytest.raises(ImageError, match="replaced"):
        pair.merge()
    assert not any(pair.image.read_bytes())


def test_half_merged_images_are_not_mixed_up(tmp_path: Path) -> None:
    pairs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pairs.append(one_file_system(tmp_path / name))
    for pair in pairs:
        pair.stop()
    left = pairs[1].image.read_bytes()
    with pytest.raises(ImageError, match="another overlay") as caught:
        merge(str(pairs[1].image), str(pairs[0].overlay))
    assert caught.value.hint == f"finish it: rumpnfsd merge IMAGE {pairs[1].overlay}"
    assert pairs[1].image.read_bytes() == left
    for pair in pairs:
        pair.merge()
        assert pair.image.read_bytes() == pair.after


# --- what the mark says ------------------------------------------------------

KINDS = {
    "ext2 of 1993": ("-t", "ext2", "-r", "0"),
    "ext3": ("-t", "ext3", "-b", "1024", "-J", "size=1"),
    "ext4 with backups": ("-t", "ext4", "-b", "1024", "-O", "^has_journal"),
    "ext4 with blocks of 4 KiB": ("-t", "ext4", "-b", "4096"),
    "ext4 without checksums": ("-t", "ext4", "-O", "^metadata_csum"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_takes_it_for_a_file_system(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does e2fsck repair it, from a backup of the superblock or otherwise."""
    pair = one_file_system(tmp_path, "20M", *KINDS[kind])
    pair.stop()
    refused_by_us(pair)
    refused_by_e2fsprogs(pair)
    left = pair.image.read_bytes()
    assert (
        subprocess.run(["e2fsck", "-fy", pair.image], capture_output=True, check=False).returncode
        == 8
    )
    assert pair.image.read_bytes() == left
    assert fsck.main([str(pair.image)]) == fsck.OPERATIONAL_ERROR
    said = capsys.readouterr().err
    assert "an overlay is half merged into it" in said
    assert f"hint: finish it: rumpnfsd merge IMAGE {pair.overlay}" in said
    pair.merge()
    e2fsck(pair.image)
    assert fsck.main([str(pair.image)]) == fsck.SOUND


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_mounts_no_half_merged_image(tmp_path: Path, kind: str) -> None:
    pair = one_file_system(tmp_path, "20M", *KINDS[kind])
    here = tmp_path / "here"
    here.mkdir()
    mount = ["unshare", "--mount", "--propagation", "private", "mount", "-o", "loop"]
    run([*mount, "-o", "ro", pair.image, here])
    pair.put(pair.before)
    pair.stop()
    left = pair.image.read_bytes()
    for driver in ("auto", "ext2", "ext3", "ext4"):
        done = subprocess.run([*mount, "-t", driver, pair.image, here], check=False)
        assert done.returncode == 32
    assert pair.image.read_bytes() == left


def test_a_superblock_in_the_journal_does_not_replace_the_mark(tmp_path: Path) -> None:
    """As one does that a crash has torn."""
    image = make_image(tmp_path / "fs.img", "20M", "-t", "ext4", "-b", "1024", "-J", "size=1")
    overlay = tmp_path / "changes"
    filesystem = open_image(str(image), read_only=False, overlay=str(overlay))
    assert isinstance(filesystem, Ext4)
    filesystem.root().create(b"new", FILE)
    filesystem.commit()
    filesystem.abandon()
    pair = Pair(image, overlay)
    pair.stop()
    raw = bytearray(pair.after)  # the journal is there
    raw[1024:1536] = image.read_bytes()[1024:1536]
    image.write_bytes(raw)
    refused_by_us(pair)
    device = FileDevice(image)
    with pytest.raises(HalfMergedError):
        examine(device, "image")
    device.close()


def test_a_half_merged_image_is_not_served_below_another_overlay(tmp_path: Path) -> None:
    pair = one_file_system(tmp_path)
    pair.stop()
    for overlay in ("", str(tmp_path / "other")):
        with pytest.raises(ImageError, match="half merged"):
            open_image(str(pair.image), overlay=overlay)


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/a place/changes", "'/a place/changes'"),
        ("/\x1b[2J/$(reboot)", "'/?[2J/$(reboot)'"),
        ("/" + "long" * 40, "OVERLAYFILE"),
        ("", "OVERLAYFILE"),
    ],
)
def test_names_in_a_mark_may_be_anything(tmp_path: Path, file: str, shown: str) -> None:
    image = make_image(tmp_path / "fs.img", "512K", *SMALL)
    raw = bytearray(image.read_bytes())
    raw[1024:1536] = Mark(b"somebody", file).put(raw[1024:1536])
    image.write_bytes(raw)
    with pytest.raises(ImageError, match="half merged") as caught:
        open_image(str(image))
    assert caught.value.hint == f"finish it: rumpnfsd merge IMAGE {shown}"


def test_what_is_marked_is_otherwise_as_it_was(tmp_path: Path) -> None:
    """Who has lost the overlay finds there what he had."""
    image = make_image(tmp_path / "fs.img", "512K", *SMALL)
    sector = image.read_bytes()[1024:1536]
    marked = Mark(b"somebody", "/changes").put(sector)
    changed = {at for at in range(512) if sector[at] != marked[at]}
    assert changed <= {0x63, 0x65, *range(0x78, 0x88), *range(0x180, 0x200)}
    assert len(marked) == 512
