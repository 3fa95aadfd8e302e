"""However many files there are, the memory that they take is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from appliance.fsimage.durability import Durability
from appliance.fsimage.image import open_image
from appliance.limits import MiB
from appliance.vfs.interface import FileType, NewNode
from tests.bench.image_walk import walk_of
from tests.unit.fsimage.ext4_images import make_image

MEMORY_MAX: Final = 300 * MiB
FILES: Final = 1_000_000
PART: Final = 32
IN_A_DIRECTORY: Final = 1000

FILE: Final = NewNode(FileType.REGULAR, 0o644, 0, 0)
DIRECTORY: Final = NewNode(FileType.DIRECTORY, 0o755, 0, 0)


def test_a_tree_of_a_million_files_is_walked_with_bounded_memory(tmp_path: Path) -> None:
    """With a part of the files, and caches of that part of their size: as many times as much is
    what the whole would take. (`make bench` walks through the whole.)"""
    image = make_image(tmp_path / "fs.img", "256M", "-t", "ext4", "-N", "40000")
    filesystem = open_image(str(image), read_only=False, durability=Durability.LAZY)
    count = FILES // PART
    for start in range(0, count, IN_A_DIRECTORY):
        directory = filesystem.root().create(b"directory-%d" % start, DIRECTORY)
        for number in range(start, min(count, start + IN_A_DIRECTORY)):
            directory.create(b"file-%d" % number, FILE)
    filesystem.close()
    walk = walk_of(image, PART)
    assert walk.count > count
    assert walk.memory_before + PART * (walk.memory_bytes - walk.memory_before) < MEMORY_MAX
