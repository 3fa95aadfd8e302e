"""What is served, opened: several partitions of one disk, which share its lock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.mounts import MountError, Mounts, MountSpec
from appliance.vfs.interface import FileType, NewNode, waits_for_nobody
from tests.unit.fsimage.ext4_images import e2fsck, make_image, run

MiB = 1 << 20
TABLE = "label: gpt\nstart=2048, size=8192\nstart=16384, size=8192\nstart=32768, size=2048\n"
PLACES = {1: 1 * MiB, 2: 8 * MiB}
FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Two file systems, and a partition with nothing in it."""
    path = tmp_path / "disk.img"
    run(["truncate", "-s", "32M", path])
    run(["sfdisk", "-q", path], said=TABLE)
    for offset in PLACES.values():
        part = make_image(tmp_path / "part", "4M", "-t", "ext4", "-b", "1024", "-U", "random")
        with path.open("r+b") as whole:
            whole.seek(offset)
            whole.write(part.read_bytes())
        part.unlink()
    return path


def mounts_of(*specs: MountSpec) -> Mounts:
    return Mounts(
        specs,
        durability=Durability.FULL,
        clock=SystemClock(),
        random=random.Random(1),
        about_to_wait=waits_for_nobody,
    )


def part(disk: Path, number: int, *, read_only: bool = False) -> MountSpec:
    return MountSpec("image", str(disk), f"/{number}", read_only, number)


def check_partitions(disk: Path) -> None:
    whole = disk.read_bytes()
    for number, offset in PLACES.items():
        copy = disk.with_name(f"part-{number}")
        copy.write_bytes(whole[offset : offset + 4 * MiB])
        e2fsck(copy)


def test_two_partitions_of_a_disk_are_written(disk: Path, tmp_path: Path) -> None:
    other_name = tmp_path / "other.img"
    other_name.symlink_to(disk)
    tree = mounts_of(part(disk, 1), part(other_name, 2)).mount()
    for number in PLACES:
        file = tree.walk(f"/{number}").create(b"file", FILE)
        file.write(0, [b"in partition %d" % number])
        file.commit()
    with pytest.raises(ImageError, match="written to by another process"):
        FileDevice(disk)
    tree.close()
    check_partitions(disk)

    mounts = mounts_of(part(disk, 1, read_only=True), part(disk, 2))
    tree = mounts.mount()
    assert [filesystem.read_only for _, filesystem in mounts.opened] == [True, False]
    for number in PLACES:
        data, _ = tree.walk(f"/{number}/file").read(0, 100)
        assert b"".join(data) == b"in partition %d" % number
    mounts.opened[1][1].close()
    with pytest.raises(ImageError, match="written to by another process"):
        FileDevice(disk)  # the other partition has it still
    mounts.opened[0][1].close()
    FileDevice(disk, read_only=False).close()


def test_a_start_that_fails_leaves_no_lock(disk: Path) -> None:
    with pytest.raises(MountError, match="none of the file systems"):
        mounts_of(part(disk, 1), part(disk, 3)).mount()
    FileDevice(disk, read_only=False).close()
    check_partitions(disk)


def test_a_disk_that_somebody_reads_is_not_written(disk: Path) -> None:
    reader = FileDevice(disk)
    with pytest.raises(MountError, match="in use by another process") as caught:
        mounts_of(part(disk, 1), part(disk, 2, read_only=True)).mount()
    assert "a copy of its own" in caught.value.hint
    reader.close()
