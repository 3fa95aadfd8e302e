"""However many files there are, the memory that they take is bounded; and what an operation needed
goes with it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final

import pytest

from appliance.fsimage.durability import Durability
from appliance.fsimage.image import open_image
from appliance.limits import MiB
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType, NewNode, Node, SetAttributes
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


def live(root: Node, name: bytes) -> None:
    """What directories go through."""
    directory = root.create(b"in " + name, DIRECTORY)
    node = directory.create(name, FILE)
    node.write(0, [b"text"])
    node.set_attributes(SetAttributes(mode=0o600, size=2))
    root.link(b"also " + name, node)
    with pytest.raises(VfsError):
        root.link(b"also " + name, node)
    directory.rename(name, root, name)
    root.remove(name)
    root.rmdir(b"in " + name)


def test_an_operation_leaves_nothing_to_the_collector_of_cycles(tmp_path: Path) -> None:
    """It has copies of blocks: to keep them until the collector comes costs more than it saves."""
    image = make_image(tmp_path / "fs.img", "32M", "-t", "ext4")
    filesystem = open_image(str(image), read_only=False, durability=Durability.PROCESS)
    gc.collect()
    gc.disable()
    try:
        for name in (b"one", b"two", b"three"):
            live(filesystem.root(), name)
            filesystem.commit()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(each) for each in gc.garbage if type(each).__module__.startswith("appliance.")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left
    filesystem.close()
