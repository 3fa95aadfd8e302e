"""Room that is kept ahead of a file that grows: who has it, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import image_limits
from appliance.fsimage.ext4.allocator import Allocator
from tests.unit.fsimage.ext4_files import Disk
from tests.unit.fsimage.ext4_small_groups import (
    allocate_all,
    empty_groups,
    first_of,
    small_groups,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = small_groups(tmp_path)
    yield disk
    disk.device.close()


def test_behind_a_file_that_grows_nobody_else_finds_room(disk: Disk) -> None:
    allocator = disk.allocator
    first, count = allocator.reserve(first_of(empty_groups(disk)[0]), 16)
    available = allocator.available_blocks(privileged=True)
    assert allocator.reserve_next(first + count, 16, ahead=64) == 16
    assert allocator.available_blocks(privileged=True) == available - 16
    assert allocator.reserve(first + 32, 1)[0] == first + 32 + 64
    for at in range(first + 32, first + 96, 16):
        assert allocator.reserve_next(at, 16, ahead=0) == 16
    assert allocator.reserve_next(first + 96, 1, ahead=0) == 0  # somebody is there


def test_a_file_that_needs_more_than_is_kept_gets_what_follows_it(disk: Disk) -> None:
    first = first_of(empty_groups(disk)[0])
    allocator = disk.allocator
    assert allocator.reserve_next(first, 8, ahead=8) == 8
    assert allocator.reserve_next(first + 8, 100, ahead=0) == 100
    assert allocator.reserve(first, 1)[0] == first + 108


def test_a_file_that_grows_with_holes_goes_on_in_the_room_that_is_kept(disk: Disk) -> None:
    first = first_of(empty_groups(disk)[0])
    allocator = disk.allocator
    for at in range(first, first + 90, 3):
        assert allocator.reserve_next(at, 1, ahead=64) == 1
    assert allocator.reserve(first + 1, 1) == (first + 1, 1)  # what was left out, anybody finds


def test_room_that_is_kept_is_given_to_who_finds_nothing_else(disk: Disk) -> None:
    allocator = disk.allocator
    free = allocator.available_blocks(privileged=True)
    first = first_of(empty_groups(disk)[0])
    assert allocator.reserve_next(first, 1, ahead=64) == 1
    runs = [*allocate_all(disk), (first, 1)]
    assert sum(count for _, count in runs) == free + allocator._spare


def test_room_is_kept_at_a_few_places_and_only_a_share_of_it(disk: Disk) -> None:
    allocator = disk.allocator
    share = allocator._space.available_blocks // 64
    starts = [first_of(index) + at for index in empty_groups(disk) for at in (0, 256)]
    assert len(starts) > 16 and share < 256
    for start in starts:
        assert allocator.reserve_next(start, 1, ahead=1 << 20) == 1
    kept = allocator._space._kept
    assert list(kept) == [start + 1 for start in starts[-16:]]
    assert max(kept.values()) <= share
    assert allocator.reserve(starts[0] + 1, 1)[0] == starts[0] + 1  # the oldest is not kept


def test_room_kept_in_a_group_that_is_forgotten_is_given_up(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "BLOCK_BITMAPS_MAX", 3)
    allocator = disk.allocator = Allocator(disk.volume)
    last = empty_groups(disk)[-1]
    first = first_of(last)
    allocator.cancel(first, allocator.reserve_next(first, 1, ahead=64))
    for index in range(last):
        operation = disk.operation()
        operation.allocate(first_of(index), 1)
        disk.publish(operation)
    assert last not in allocator._space._groups
    assert allocator.reserve(first, 32) == (first, 32)
    assert allocator.reserve_next(first + 1, 1, ahead=0) == 0
