"""A small disk of many groups, for what is said of groups."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from appliance.fsimage.ext4 import groups
from tests.unit.fsimage.ext4_files import Disk, Runs
from tests.unit.fsimage.ext4_images import make_image

ANYWHERE: Final = 0


def small_groups(folder: Path) -> Disk:
    """24 groups of 512 blocks."""
    options = ["-t", "ext4", "-b", "1024", "-g", "512", "-N", "1500"]
    options += ["-O", "^has_journal,^resize_inode"]
    return Disk(make_image(folder / "fs.img", "12M", *options))


def empty_groups(disk: Disk) -> list[int]:
    """Groups that have nothing at all in them."""
    every = range(disk.volume.superblock.groups_count)
    return [at for at in every if groups.free_blocks_of(disk.volume.group(at)) == 512]


def first_of(index: int) -> int:
    """The first block of a group."""
    return 1 + index * 512


def allocate_all(disk: Disk) -> Runs:
    """Everything is somebody's."""
    operation, runs = disk.operation(), []
    while disk.allocator._space.available_blocks:
        runs.append(operation.allocate(ANYWHERE, 1 << 20))
    disk.publish(operation)
    return runs
