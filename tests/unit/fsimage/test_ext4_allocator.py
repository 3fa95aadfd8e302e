"""The allocator against a model, and what it leaves behind against e2fsck and our own check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4 import bits, layout
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_files import EXTENTS, POINTERS, Disk, File, Runs
from tests.unit.fsimage.ext4_images import e2fsck, make_image

GROUPS_OF_8M = ["-t", "ext4", "-b", "1024"]
IMAGES = {
    "1k": ("24M", GROUPS_OF_8M),
    "2k": ("24M", ["-t", "ext4", "-b", "2048", "-g", "2048", "-N", "2048"]),
    "4k": ("48M", ["-t", "ext4", "-b", "4096", "-g", "2048"]),
    "small groups": ("12M", ["-t", "ext4", "-b", "1024", "-g", "512", "-N", "1500"]),
    "no flex_bg": ("12M", ["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^flex_bg"]),
    "32bit": ("24M", [*GROUPS_OF_8M, "-O", "^64bit"]),
    "crc16": ("24M", [*GROUPS_OF_8M, "-O", "^metadata_csum,uninit_bg,^64bit"]),
    "crc16, 64bit": ("24M", [*GROUPS_OF_8M, "-O", "^metadata_csum,uninit_bg"]),
    "no checksums": ("24M", [*GROUPS_OF_8M, "-O", "^metadata_csum"]),
    "sparse_super2": ("24M", [*GROUPS_OF_8M, "-O", "sparse_super2"]),
    "all backups": ("24M", [*GROUPS_OF_8M, "-g", "1024", "-O", "^sparse_super,^resize_inode"]),
    "no resize_inode": ("24M", [*GROUPS_OF_8M, "-O", "^resize_inode"]),
    "128-byte inodes": ("24M", [*GROUPS_OF_8M, "-I", "128"]),
    "short last group": ("17501K", GROUPS_OF_8M),
    "ext3": ("24M", ["-t", "ext3", "-b", "1024"]),
    "ext2": ("24M", ["-t", "ext2", "-b", "4096", "-g", "1024"]),
}

NO_PLACE = 1 << 40


def filled_image(folder: Path, name: str) -> Path:
    """An image in which everything that mke2fs does not write is garbage."""
    size, options = IMAGES[name]
    path = folder / "fs.img"
    count = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    path.write_bytes(b"\xa5\x3c\xff\x81" * (count // 4))
    return make_image(path, size, "-E", "nodiscard,lazy_itable_init=1", *options)


@pytest.fixture(params=IMAGES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(filled_image(tmp_path, request.param))
    yield disk
    disk.device.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(filled_image(tmp_path, "small groups"))
    yield disk
    disk.device.close()


def judge(disk: Disk, files: list[File]) -> None:
    """e2fsck and we find nothing wrong with what is on the disk now."""
    disk.save(files)
    e2fsck(disk.image)
    device = FileDevice(disk.image)
    assert [str(finding) for finding in check(device)] == []
    device.close()


def blocks_of(runs: Runs) -> set[int]:
    return {first + at for first, count in runs for at in range(count)}


def held_for_good(disk: Disk) -> dict[int, bytearray]:
    """Of the groups that are known, what nobody may be given, but for room kept ahead."""
    space = disk.allocator._space
    held = {index: bytearray(group.bitmap) for index, group in space._groups.items()}
    for first, count in space._kept.items():
        index, bit = space.place(first)
        assert bits.clear_range(held[index], bit, count)
    return held


State = tuple[Any, ...]


def state(disk: Disk) -> State:
    """What decides who is given what next; bitmaps that can be made again do not count, nor does
    room that is kept ahead."""
    space, inodes = disk.allocator._space, disk.allocator._inodes
    return (
        held_for_good(disk),
        list(space.available),
        space.available_blocks,
        list(inodes._free),
        list(inodes._directories),
        bytes(inodes._has_room),
        inodes.free_inodes,
        disk.allocator.waiting_blocks,
        disk.allocator.free_blocks,
    )


@contextmanager
def refused(code: Code) -> Iterator[None]:
    with pytest.raises(VfsError) as caught:
        yield
    assert caught.value.code is code


def metadata_of(disk: Disk) -> set[int]:
    superblock = disk.volume.superblock
    every = disk.allocator._metadata.within(0, superblock.blocks_count)
    return {first + at for first, count in every for at in range(count)}


# --- a long random life ------------------------------------------------------


class Life:
    """Random operations, some of which fail, and a model of who has which block."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.disk = disk
        self.random = Random(seed)
        self.files: list[File] = []
        self.waiting: Runs = []
        self.reserved: Runs = []
        self.nobodys = metadata_of(disk)

    def step(self) -> None:
        acts = [self.create, self.create, self.delete, self.cancel, self.release]
        self.random.choice([*acts, self.reserve, self.grow])()
        waiting = sum(count for _, count in self.waiting)
        assert self.disk.allocator.waiting_blocks == waiting
        available = self.disk.allocator._space.available_blocks
        reserved = sum(count for _, count in self.reserved)
        assert available == self.disk.allocator.free_blocks - waiting - reserved

    def wanted(self) -> tuple[int, int]:
        """Where, and how many."""
        place = self.random.randrange(self.disk.volume.superblock.blocks_count)
        return self.random.choice((place, place, NO_PLACE)), self.random.choice((1, 1, 2, 16, 300))

    def given(self, run: tuple[int, int], count: int, others: Runs) -> None:
        """The allocator has given these: nobody else has them."""
        assert 1 <= run[1] <= count
        assert self.disk.volume.has_blocks(*run)
        mine = blocks_of([run])
        assert not mine & self.nobodys
        assert not mine & blocks_of(self.waiting + self.reserved + others)
        assert not any(mine & blocks_of(file.runs) for file in self.files)

    def end(self, operation: Operation, before: State) -> bool:
        """Most operations end well; those that do not have not happened."""
        if self.random.random() < 0.8:
            self.waiting += self.disk.publish(operation)
            return True
        if self.random.random() < 0.5:
            operation.finish()
        self.disk.allocator.undo(operation)
        held, *rest = state(self.disk)
        assert {index: held[index] for index in before[0]} == before[0]
        assert rest == list(before[1:])
        return False

    def create(self) -> None:
        if len(self.files) >= 50:
            return
        before, operation = state(self.disk), self.disk.operation()
        directory = self.random.random() < 0.3
        if directory:
            runs = [operation.allocate(self.wanted()[0], 1)]
            self.given(runs[0], 1, [])
        elif self.reserved and self.disk.has_extents:
            runs = [self.reserved[-1]]
            self.disk.allocator.take(operation, *runs[0])
        else:
            runs = self.some_runs(operation)
        file = self.disk.create(operation, runs, directory=directory)
        if self.end(operation, before):
            self.files.append(file)
            self.reserved = [run for run in self.reserved if run not in runs]

    def some_runs(self, operation: Operation) -> Runs:
        runs: Runs = []
        left = 1000 if self.disk.has_extents else POINTERS
        for _ in range(self.random.randrange(EXTENTS + 1)):
            goal, count = self.wanted()
            count = min(count, left)
            if runs and self.random.random() < 0.5:
                goal = sum(runs[-1])
            if count:
                run = operation.allocate(goal, count)
                self.given(run, count, runs)
                runs.append(run)
                left -= run[1]
        return runs

    def delete(self) -> None:
        if self.files:
            before, operation = state(self.disk), self.disk.operation()
            file = self.random.choice(self.files)
            self.disk.delete(operation, file)
            if self.end(operation, before):
                self.files.remove(file)

    def reserve(self) -> None:
        goal, count = self.wanted()
        run = self.disk.allocator.reserve(goal, count)
        self.given(run, count, [])
        self.reserved.append(run)

    def grow(self) -> None:
        """Behind something that somebody has, perhaps where room is kept."""
        allocator = self.disk.allocator
        if not self.reserved:
            return
        goal = sum(self.random.choice([*self.reserved, *allocator._space._kept.items()]))
        if self.random.random() < 0.7 and allocator._space._kept:
            goal = self.random.choice(list(allocator._space._kept))
        count, ahead = self.wanted()[1], self.random.choice((0, 16, 500))
        found = allocator.reserve_next(goal, count, ahead)
        if found:
            self.given((goal, found), count, [])
            self.reserved.append((goal, found))

    def cancel(self) -> None:
        if self.reserved:
            first, count = self.reserved.pop(self.random.randrange(len(self.reserved)))
            half = count // 2
            if half:
                self.disk.allocator.cancel(first, half)
            self.disk.allocator.cancel(first + half, count - half)

    def release(self) -> None:
        """As after a commit: what was freed before some instant."""
        durable = self.random.randrange(len(self.waiting) + 1)
        self.disk.allocator.release(self.waiting[:durable])
        del self.waiting[:durable]


@pytest.mark.parametrize("seed", range(2))
def test_a_random_life_leaves_a_sound_file_system(disk: Disk, seed: int) -> None:
    life = Life(disk, seed)
    for _ in range(300):
        life.step()
    assert len(life.files) > 10 and any(file.directory for file in life.files)
    judge(disk, life.files)


def test_a_volume_that_is_opened_again_agrees(disk: Disk) -> None:
    life = Life(disk, 7)
    for _ in range(150):
        life.step()
    life.release()
    disk.allocator.release(life.waiting)
    for run in life.reserved:
        disk.allocator.cancel(*run)
    disk.save(life.files)
    again = Disk(disk.image)
    for index in range(disk.volume.superblock.groups_count):
        disk.allocator._space.group(index)
        assert again.allocator._space.group(index).bitmap == held_for_good(disk)[index]
    assert again.allocator.free_blocks == disk.allocator.free_blocks
    assert again.allocator.free_inodes == disk.allocator.free_inodes
    assert again.allocator._space.available == disk.allocator._space.available
    assert again.allocator._inodes._free == disk.allocator._inodes._free
    assert again.allocator._inodes._directories == disk.allocator._inodes._directories
    again.device.close()


# --- everything is used ------------------------------------------------------


def test_every_block_is_given_once_and_then_none(disk: Disk) -> None:
    allocator = disk.allocator
    free, seen = allocator.free_blocks, set(metadata_of(disk))
    operation, runs = disk.operation(), []
    while allocator._space.available_blocks:
        run = operation.allocate(disk.volume.superblock.blocks_count // 2, 1000)
        assert not seen & blocks_of([run])
        seen |= blocks_of([run])
        runs.append(run)
    assert sum(count for _, count in runs) == free
    with refused(Code.NOSPC):
        operation.allocate(0, 1)
    disk.publish(operation)
    assert allocator.free_blocks == 0

    operation = disk.operation()
    for run in runs:
        operation.free(*run)
    freed = disk.publish(operation)
    assert (allocator.free_blocks, allocator.waiting_blocks) == (free, free)
    with refused(Code.NOSPC):
        disk.operation().allocate(0, 1)
    allocator.release(freed)
    assert disk.operation().allocate(0, 1)[1] == 1
    assert allocator.waiting_blocks == 0
    judge(disk, [])


def test_every_inode_is_given_once_and_then_none(disk: Disk) -> None:
    """All of the tables is used, in which mke2fs has left garbage; e2fsck looks at every inode."""
    free, first = disk.allocator.free_inodes, disk.volume.superblock.first_inode
    files: list[File] = []
    while len(files) < free:
        operation = disk.operation()
        files += [disk.create(operation, []) for _ in range(min(97, free - len(files)))]
        disk.publish(operation)
    numbers = {file.inode for file in files}
    assert len(numbers) == free and min(numbers) >= first
    assert max(numbers) == disk.volume.superblock.disk.s_inodes_count
    for index in range(disk.volume.superblock.groups_count):
        group = disk.volume.group(index)
        assert group.bg_itable_unused_lo == group.bg_free_inodes_count_lo == 0
        assert not group.bg_flags & (layout.BG_INODE_UNINIT | layout.BG_BLOCK_UNINIT)
    with refused(Code.NOSPC):
        disk.operation().allocate_inode(2, directory=False)
    with refused(Code.NOSPC):
        disk.operation().allocate_inode(2, directory=True)

    for some in (files[at : at + 200] for at in range(0, free, 200)):
        operation = disk.operation()
        for file in some:
            disk.delete(operation, file)
        disk.publish(operation)
    assert disk.allocator.free_inodes == free
    judge(disk, [])


def test_the_first_inode_of_a_group_makes_both_bitmaps(small: Disk) -> None:
    volume, per_group = small.volume, small.volume.superblock.disk.s_inodes_per_group
    uninit = layout.BG_INODE_UNINIT | layout.BG_BLOCK_UNINIT
    every = range(volume.superblock.groups_count)
    index = next(at for at in every if volume.group(at).bg_flags & uninit == uninit)
    first = index * per_group + 1
    operation = small.operation()
    assert operation.allocate_inode(first, directory=False) == first
    small.allocator.undo(operation)
    assert volume.group(index).bg_flags & uninit == uninit

    operation = small.operation()
    assert operation.allocate_inode(first, directory=False) == first
    operation.free_inode(first, directory=False)
    small.publish(operation)
    group = volume.group(index)
    assert not group.bg_flags & uninit
    in_block = volume.block_bytes // volume.superblock.inode_bytes
    assert group.bg_itable_unused_lo == per_group - in_block
    assert group.bg_free_inodes_count_lo == per_group
    judge(small, [])


def test_the_first_block_of_a_group_makes_its_block_bitmap_only(small: Disk) -> None:
    volume = small.volume
    uninit = layout.BG_INODE_UNINIT | layout.BG_BLOCK_UNINIT
    every = range(volume.superblock.groups_count)
    index = next(at for at in every if volume.group(at).bg_flags & uninit == uninit)
    operation = small.operation()
    run = operation.allocate(1 + index * volume.superblock.disk.s_blocks_per_group, 1)
    operation.free(*run)
    small.publish(operation)
    assert volume.group(index).bg_flags & uninit == layout.BG_INODE_UNINIT
    judge(small, [])
