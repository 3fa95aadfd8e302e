"""What the allocator promises: who may have what when, what damage does, what it costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance import image_limits
from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4 import groups, layout
from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.free_space import FreeSpace
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_files import Disk
from tests.unit.fsimage.ext4_images import make_image
from tests.unit.fsimage.ext4_small_groups import (
    ANYWHERE,
    allocate_all,
    empty_groups,
    first_of,
    small_groups,
)

ROOT = layout.EXT4_ROOT_INO


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = small_groups(tmp_path)
    yield disk
    disk.device.close()


@contextmanager
def refused(code: Code) -> Iterator[None]:
    with pytest.raises(VfsError) as caught:
        yield
    assert caught.value.code is code


def clear_in(disk: Disk, index: int) -> int:
    """How many blocks the published bitmap of a group has as free."""
    raw = disk.volume.block(groups.block_bitmap_of(disk.volume.group(index)))
    per_group = disk.volume.superblock.disk.s_blocks_per_group
    used = int.from_bytes(raw[: per_group >> 3], "little")
    return per_group - used.bit_count()


# --- who may have what -------------------------------------------------------


def test_what_was_freed_is_free_on_disk_but_nobodys_until_it_is_released(disk: Disk) -> None:
    operation = disk.operation()
    first, count = operation.allocate(ANYWHERE, 10)
    disk.publish(operation)
    index = (first - 1) // 512
    used = clear_in(disk, index)

    operation = disk.operation()
    operation.free(first, count)
    freed = disk.publish(operation)
    assert freed == [(first, count)]
    assert clear_in(disk, index) == used + count
    assert groups.free_blocks_of(disk.volume.group(index)) == used + count
    assert disk.allocator.waiting_blocks == count
    assert disk.operation().allocate(first, 1)[0] != first

    disk.allocator.release(freed)
    assert disk.allocator.waiting_blocks == 0
    assert disk.operation().allocate(first, 1) == (first, 1)


def test_blocks_that_an_operation_frees_are_not_for_itself(disk: Disk) -> None:
    operation = disk.operation()
    run = operation.allocate(ANYWHERE, 10)
    operation.free(*run)
    assert operation.free_blocks_change == 0
    assert operation.allocate(run[0], 1)[0] not in range(run[0], sum(run))


def test_what_failed_to_free_them_leaves_them_allocated(disk: Disk) -> None:
    operation = disk.operation()
    run = operation.allocate(ANYWHERE, 10)
    disk.publish(operation)
    operation = disk.operation()
    operation.free(*run)
    operation.finish()
    disk.allocator.undo(operation)
    assert disk.allocator.waiting_blocks == 0
    assert disk.operation().allocate(run[0], 1)[0] not in range(run[0], sum(run))
    operation = disk.operation()
    operation.free(*run)
    assert disk.publish(operation) == [run]


def test_reserved_blocks_are_nobodys_and_free_on_disk(disk: Disk) -> None:
    first, count = disk.allocator.reserve(ANYWHERE, 16)
    assert count == 16
    index = (first - 1) // 512
    assert clear_in(disk, index) == groups.free_blocks_of(disk.volume.group(index))
    assert disk.operation().allocate(first, 1)[0] == first + count
    assert disk.allocator.reserve_next(first + 5, 1, ahead=0) == 0
    operation = disk.operation()
    disk.allocator.take(operation, first + 8, 8)
    assert operation.free_blocks_change == -8
    disk.publish(operation)
    disk.allocator.cancel(first, 8)
    assert disk.allocator.reserve_next(first, 16, ahead=0) == 8


def test_what_an_operation_that_failed_has_taken_is_still_reserved(disk: Disk) -> None:
    first, count = disk.allocator.reserve(ANYWHERE, 16)
    before = disk.allocator.available_blocks(privileged=True)
    operation = disk.operation()
    disk.allocator.take(operation, first, count)
    disk.allocator.undo(operation)
    assert disk.allocator.available_blocks(privileged=True) == before
    disk.allocator.cancel(first, count)
    assert disk.allocator.available_blocks(privileged=True) == before + count


def test_reservations_leave_something_to_operations(disk: Disk) -> None:
    spare = disk.volume.superblock.blocks_count // 50
    assert spare > image_limits.SPARE_BLOCKS_MAX
    allocator = disk.allocator
    assert allocator.available_blocks(privileged=True) == allocator.free_blocks - 64
    reserved = 0
    while allocator.available_blocks(privileged=True):
        reserved += allocator.reserve(ANYWHERE, 1 << 20)[1]
    assert reserved == allocator.free_blocks - image_limits.SPARE_BLOCKS_MAX
    with refused(Code.NOSPC):
        allocator.reserve(ANYWHERE, 1)
    operation = disk.operation()
    for _ in range(image_limits.SPARE_BLOCKS_MAX):
        operation.allocate(ANYWHERE, 1)
    with refused(Code.NOSPC):
        operation.allocate(ANYWHERE, 1)


def test_blocks_for_root_are_not_available_to_others(disk: Disk) -> None:
    allocator, kept = disk.allocator, disk.volume.superblock.reserved_blocks
    assert kept > 0
    privileged = allocator.available_blocks(privileged=True)
    assert allocator.available_blocks(privileged=False) == privileged - kept
    allocate_all(disk)
    assert allocator.available_blocks(privileged=False) == 0
    assert allocator.available_blocks(privileged=True) == 0


def test_the_last_block_that_comes_back_is_found(disk: Disk) -> None:
    allocate_all(disk)
    metadata = disk.allocator._metadata
    index = next(at for at in range(24) if not metadata.is_in(first_of(at), 512))
    last = disk.volume.superblock.blocks_count - 1
    for block in (last, first_of(index) + 500, first_of(index) + 3):
        operation = disk.operation()
        operation.free(block, 1)
        disk.allocator.release(disk.publish(operation))
        for goal in (ANYWHERE, last, block):
            operation = disk.operation()
            assert operation.allocate(goal, 1) == (block, 1)
            disk.allocator.undo(operation)
        operation = disk.operation()
        operation.allocate(ANYWHERE, 1)
        disk.publish(operation)


def test_an_inode_that_comes_back_is_found(disk: Disk) -> None:
    free = disk.allocator.free_inodes
    operation = disk.operation()
    numbers = [operation.allocate_inode(ROOT, directory=False) for _ in range(free)]
    disk.allocator.undo(operation)
    operation = disk.operation()
    assert [operation.allocate_inode(ROOT, directory=False) for _ in range(free)] == numbers
    disk.publish(operation)
    for number in (numbers[0], numbers[-1], numbers[free // 2]):
        operation = disk.operation()
        operation.free_inode(number, directory=False)
        assert operation.allocate_inode(ROOT, directory=False) == number
        operation.free_inode(number, directory=False)
        disk.allocator.undo(operation)
        with refused(Code.NOSPC):
            disk.operation().allocate_inode(ROOT, directory=True)
        operation = disk.operation()
        operation.free_inode(number, directory=False)
        disk.publish(operation)
        operation = disk.operation()
        assert operation.allocate_inode(ROOT, directory=True) == number
        disk.publish(operation)


# --- where -------------------------------------------------------------------


def test_an_extent_goes_on_where_it_ended(disk: Disk) -> None:
    operation = disk.operation()
    goal, _ = operation.allocate(ANYWHERE, 1)
    for count in (1, 3, 16, 100):
        goal += 1 if count == 1 else 0
        first, got = operation.allocate(goal, count)
        assert (first, got) == (goal, count)
        goal += got


def test_a_long_run_is_looked_for_in_other_groups_before_a_short_one_is_taken(disk: Disk) -> None:
    start = first_of(empty_groups(disk)[0])
    operation = disk.operation()
    for block in range(start, start + 512, 2):
        assert operation.allocate(block, 1) == (block, 1)
    first, count = operation.allocate(start, 64)
    assert count == 64 and first >= start + 512
    assert operation.allocate(start, 1) == (start + 1, 1)


def test_the_goal_is_met_as_near_as_can_be(disk: Disk) -> None:
    one, other, *_ = empty_groups(disk)
    operation = disk.operation()
    for goal in (first_of(one) + 100, disk.volume.superblock.blocks_count - 1, first_of(other)):
        assert operation.allocate(goal, 1) == (goal, 1)
        assert abs(operation.allocate(goal, 1)[0] - goal) < 512
    for goal in (-5, 0, 1 << 50):
        assert disk.volume.has_blocks(*operation.allocate(goal, 5))
    assert disk.allocator.goal_of(1) == disk.allocator.goal_of(2) == 1
    inodes_per_group = disk.volume.superblock.disk.s_inodes_per_group
    assert disk.allocator.goal_of(3 * inodes_per_group + 1) == first_of(3)


def test_files_are_near_their_directory(disk: Disk) -> None:
    per_group = disk.volume.superblock.disk.s_inodes_per_group
    operation = disk.operation()
    for index in (0, 5, 20):
        number = operation.allocate_inode(index * per_group + 1, directory=False)
        assert (number - 1) // per_group == index
    # The group is full: the next one.
    numbers = [operation.allocate_inode(20 * per_group + 1, directory=False) for _ in range(70)]
    found = {(number - 1) // per_group for number in numbers}
    assert found == {20, 21}


def test_directories_in_the_root_are_spread_and_those_below_are_near(disk: Disk) -> None:
    per_group = disk.volume.superblock.disk.s_inodes_per_group
    operation = disk.operation()
    tops = [operation.allocate_inode(ROOT, directory=True) for _ in range(12)]
    assert len({(number - 1) // per_group for number in tops}) == 12
    below = [operation.allocate_inode(tops[0], directory=True) for _ in range(3)]
    assert {(number - 1) // per_group for number in below} == {(tops[0] - 1) // per_group}
    disk.publish(operation)
    found = sum(groups.directories_of(disk.volume.group(index)) for index in range(24))
    assert found == 2 + 12 + 3  # the root and lost+found


def test_directories_leave_a_group_that_is_rather_full(disk: Disk) -> None:
    per_group = disk.volume.superblock.disk.s_inodes_per_group
    operation = disk.operation()
    for _ in range(per_group // 2):
        operation.allocate_inode(5 * per_group + 1, directory=False)
    number = operation.allocate_inode(5 * per_group + 1, directory=True)
    assert (number - 1) // per_group == 6


# --- damage ------------------------------------------------------------------


def flip(disk: Disk, block: int, offset: int, mask: int) -> None:
    """Change a byte of a block that nobody has read yet."""
    raw = bytearray(disk.volume.block(block))
    raw[offset] ^= mask
    disk.volume.publish({block: bytes(raw)})


def make_bitmap_damaged(disk: Disk, index: int) -> None:
    operation = disk.operation()
    operation.allocate(1 + index * 512, 1)  # so that there is one
    disk.publish(operation)
    disk.allocator = Allocator(disk.volume)
    flip(disk, groups.block_bitmap_of(disk.volume.group(index)), 20, 0x10)


def test_a_damaged_bitmap_costs_its_group_and_nothing_else(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    make_bitmap_damaged(disk, 7)
    before = disk.allocator.available_blocks(privileged=True)
    free = groups.free_blocks_of(disk.volume.group(7))
    with caplog.at_level(logging.WARNING):
        operation = disk.operation()
        first, _ = operation.allocate(1 + 7 * 512 + 200, 1)
        assert not 7 * 512 < first <= 8 * 512
        with refused(Code.IO):
            operation.free(1 + 7 * 512 + 300, 2)
        disk.allocator.undo(operation)
    assert [record.message for record in caplog.records] == [
        "image: block bitmap of group 7 has a wrong checksum"
    ]
    assert disk.allocator.available_blocks(privileged=True) == before - free
    runs = allocate_all(disk)
    assert not any(7 * 512 < block <= 8 * 512 for run in runs for block in run[:1])


def test_a_bitmap_that_has_metadata_as_free_is_not_believed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext2", "-b", "1024")
    disk = Disk(image)
    group = disk.volume.group(0)
    table = groups.places(disk.volume.superblock, group)
    first = next(block for what, block, _ in table if what == "inode table") - 1
    flip(disk, groups.block_bitmap_of(group), first >> 3, 1 << (first & 7))
    with refused(Code.NOSPC):  # it was the only group
        disk.operation().allocate(ANYWHERE, 1)
    disk.device.close()


def test_a_count_that_disagrees_is_damage(tmp_path: Path) -> None:
    disk = Disk(make_image(tmp_path / "fs.img", "12M", "-t", "ext2", "-b", "1024"))
    group = disk.volume.group(0)
    flip(disk, groups.block_bitmap_of(group), 900, 0x80)
    flip(disk, groups.inode_bitmap_of(group), 30, 0x80)
    operation = disk.operation()
    assert operation.allocate(ANYWHERE, 1)[0] > 8192
    per_group = disk.volume.superblock.disk.s_inodes_per_group
    assert operation.allocate_inode(ROOT, directory=False) > per_group
    with refused(Code.IO):
        operation.free_inode(20, directory=False)
    disk.device.close()


def test_blocks_behind_the_end_are_not_given_to_anybody(tmp_path: Path) -> None:
    disk = Disk(make_image(tmp_path / "fs.img", "9000K", "-t", "ext2", "-b", "1024"))
    group = disk.volume.group(1)
    for offset in range(110, 1024):
        flip(disk, groups.block_bitmap_of(group), offset, 0xFF)
    runs = allocate_all(disk)
    assert max(map(sum, runs)) == disk.volume.superblock.blocks_count == 9000
    disk.device.close()


def test_inodes_that_were_never_used_cannot_be_in_use(disk: Disk) -> None:
    operation = disk.operation()
    first = operation.allocate_inode(ROOT, directory=False)
    disk.publish(operation)
    group = disk.volume.group(0)
    bitmap = groups.inode_bitmap_of(group)
    per_group = disk.volume.superblock.disk.s_inodes_per_group
    assert group.bg_itable_unused_lo == per_group - first
    raw = bytearray(disk.volume.block(bitmap))
    raw[per_group - 1 >> 3] |= 0x80
    operation = disk.operation()
    operation.change(bitmap)[:] = raw
    change = disk.allocator._change(operation, 0)
    change.inode_bitmap = operation.change(bitmap)
    disk.publish(operation)
    disk.allocator = Allocator(disk.volume)
    with refused(Code.IO):
        disk.operation().free_inode(first, directory=False)


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 1), (1, 1), (2, 3), (12288, 1), (-1, 1), (1 << 40, 1), (11000, 5000)],
    ids=["boot", "superblock", "descriptors", "beyond", "negative", "far", "over the end"],
)
def test_what_belongs_to_nobody_cannot_be_freed(disk: Disk, first: int, count: int) -> None:
    assert disk.volume.superblock.blocks_count == 12288
    operation = disk.operation()
    with refused(Code.IO):
        operation.free(first, count)
    disk.allocator.undo(operation)
    assert disk.allocator.waiting_blocks == 0


def test_every_block_of_metadata_is_protected(disk: Disk) -> None:
    superblock = disk.volume.superblock
    for index in range(superblock.groups_count):
        for _, first, count in groups.places(superblock, disk.volume.group(index)):
            for block in (first, first + count - 1):
                with refused(Code.IO):
                    disk.operation().free(block, 1)


def test_what_is_free_cannot_be_freed(disk: Disk) -> None:
    operation = disk.operation()
    first, count = operation.allocate(1 + 5 * 512 + 500, 12)
    assert (first, count) == (1 + 5 * 512 + 500, 12)
    disk.publish(operation)
    for start, length in ((first - 1, 5), (first + 5, 8), (first + 12, 1)):
        with refused(Code.IO):
            disk.operation().free(start, length)
    operation = disk.operation()
    operation.free(first, count)
    with refused(Code.IO):
        operation.free(first + 3, 1)


def test_a_run_over_the_end_of_a_group_is_freed_in_both(disk: Disk) -> None:
    empty = empty_groups(disk)
    low = next(index for index in empty if index + 1 in empty)
    end = first_of(low + 1)
    operation = disk.operation()
    assert operation.allocate(end - 6, 100) == (end - 6, 6)
    assert operation.allocate(end, 8) == (end, 8)
    disk.publish(operation)
    before = [groups.free_blocks_of(disk.volume.group(index)) for index in (low, low + 1)]
    operation = disk.operation()
    operation.free(end - 6, 14)
    freed = disk.publish(operation)
    after = [groups.free_blocks_of(disk.volume.group(index)) for index in (low, low + 1)]
    assert [after[0] - before[0], after[1] - before[1]] == [6, 8]
    disk.allocator.release(freed)
    assert disk.operation().allocate(end - 6, 1) == (end - 6, 1)
    assert disk.operation().allocate(end, 1) == (end, 1)


def test_inodes_that_are_free_or_reserved_cannot_be_freed(disk: Disk) -> None:
    for number in (1, ROOT, 8, 500):
        with refused(Code.IO):
            disk.operation().free_inode(number, directory=False)


def open_with(image: Path) -> Allocator:
    device = FileDevice(image)
    try:
        return Allocator(Volume(device, Superblock.read(device), "image"))
    finally:
        device.close()


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0x00, 1, "two kinds of metadata"),
        (0x00, 9, "two kinds of metadata"),
        (0x04, 100_000, "cannot be"),
        (0x08, 4090, "out of range"),
        (0x08, 0, "out of range"),
        (0x08, 2, "two kinds of metadata"),
    ],
)
def test_descriptors_that_cannot_be_are_not_written_with(
    tmp_path: Path, offset: int, value: int, text: str
) -> None:
    """Without checksums, so that nothing else finds them."""
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext2", "-b", "1024")
    assert open_with(image).free_blocks
    with image.open("r+b") as file:
        file.seek(2048 + offset)
        file.write(value.to_bytes(4, "little"))
    with pytest.raises(VfsError, match=text):
        open_with(image)


@pytest.mark.parametrize("wide", ["64bit", "^64bit"])
def test_what_is_not_known_in_a_descriptor_stays(tmp_path: Path, wide: str) -> None:
    """The snapshot bitmap at 0x14 is of a feature that nobody has."""
    options = ["-t", "ext4", "-b", "1024", "-O", f"^metadata_csum,{wide}"]
    disk = Disk(make_image(tmp_path / "fs.img", "4M", *options))
    for offset in range(0x14, 0x18):
        flip(disk, 2, offset, 0x5A)
    before = disk.volume.block(2)
    operation = disk.operation()
    operation.allocate(ANYWHERE, 1)
    disk.publish(operation)
    after = disk.volume.block(2)
    assert after[0x14:0x18] == b"\x5a" * 4
    changed = {at for at in range(1024) if before[at] != after[at]}
    assert changed <= {0x0C, 0x0D}  # bg_free_blocks_count_lo
    assert changed
    disk.device.close()


def test_a_table_that_was_never_made_is_used_from_its_beginning(tmp_path: Path) -> None:
    """Whatever the descriptor says of unused inodes: the kernel does not look at that either."""
    options = ["-t", "ext4", "-b", "1024", "-g", "512", "-N", "1500", "-O", "^metadata_csum"]
    disk = Disk(make_image(tmp_path / "fs.img", "12M", *options, "-O", "uninit_bg"))
    volume, per_group = disk.volume, disk.volume.superblock.disk.s_inodes_per_group
    group = volume.group(9)
    assert group.bg_flags & layout.BG_INODE_UNINIT
    group.bg_itable_unused_lo = 0
    table = volume.inode_location(9 * per_group + 1)[0]
    volume.publish({table: b"\xa5" * 1024})
    disk.allocator = Allocator(volume)
    operation = disk.operation()
    assert operation.allocate_inode(9 * per_group + 1, directory=False) == 9 * per_group + 1
    disk.publish(operation)
    in_block = 1024 // volume.superblock.inode_bytes
    assert volume.group(9).bg_itable_unused_lo == per_group - in_block
    assert volume.block(table) == bytes(1024)
    disk.device.close()


# --- what it costs -----------------------------------------------------------


def test_bitmaps_of_idle_groups_are_forgotten(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "BLOCK_BITMAPS_MAX", 3)
    disk.allocator = Allocator(disk.volume)
    operation = disk.operation()
    pending = operation.allocate(1 + 3 * 512, 8)
    disk.publish(operation)
    operation = disk.operation()
    operation.free(*pending)
    freed = disk.publish(operation)
    reserved = disk.allocator.reserve(1 + 6 * 512, 8)
    assert (pending[0] // 512, reserved[0] // 512) == (3, 6)

    seen: set[int] = set()
    for index in (*range(24), *range(24)):
        operation = disk.operation()
        first, _ = operation.allocate(1 + index * 512, 1)
        assert first not in seen
        assert not any(run[0] <= first < sum(run) for run in (pending, reserved))
        seen.add(first)
        disk.publish(operation)
        loaded = disk.allocator._space._groups
        assert {3, 6} <= set(loaded) or index < 6
        assert len(loaded) <= 2 * 3 + 3
    disk.allocator.release(freed)
    disk.allocator.cancel(*reserved)
    assert disk.operation().allocate(pending[0], 1)[0] == pending[0]


def test_a_nearly_full_disk_is_not_searched_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["-t", "ext4", "-b", "1024", "-g", "256", "-N", "4096"]
    options += ["-O", "^has_journal,^resize_inode"]
    disk = Disk(make_image(tmp_path / "fs.img", "128M", *options))
    count = disk.volume.superblock.groups_count
    assert count == 512
    runs = allocate_all(disk)
    # Of every group, every fourth block becomes free.
    operation = disk.operation()
    holes = [block for first, length in runs for block in range(first, first + length, 4)]
    for block in holes:
        operation.free(block, 1)
    disk.allocator.release(disk.publish(operation))
    assert disk.allocator._space.available_blocks == len(holes)

    searches = 0
    search = FreeSpace._search

    def counted(space: FreeSpace, index: int, order: int, start: int) -> int:
        nonlocal searches
        searches += 1
        return search(space, index, order, start)

    monkeypatch.setattr(FreeSpace, "_search", counted)
    operation = disk.operation()
    found = {operation.allocate(ANYWHERE, 64) for _ in holes}
    assert found == {(block, 1) for block in holes}
    assert searches <= len(holes) + count * (256).bit_length()
    disk.device.close()
