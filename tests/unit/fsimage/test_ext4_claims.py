"""What an image only claims to have takes neither time nor memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import image_limits
from appliance.fsimage.ext4 import content, layout, xattr
from appliance.fsimage.ext4.check.context import tables_bytes
from appliance.fsimage.ext4.layout import ext4_xattr_entry, ext4_xattr_header
from appliance.limits import KiB
from appliance.vfs.errors import VfsError
from tests.unit.fsimage.ext4_disk import Disk
from tests.unit.fsimage.test_ext4_hostile import BLOCK, Image


def names_itself(image: Image, name: bytes, blocks: int) -> None:
    """All levels of a file's map are one block full of its own number."""
    inode = image.inode_at(name)
    block = image.block_of(b"file", 0) // BLOCK
    image.put(block * BLOCK, "<256I", *[block] * 256)
    image.put(inode + 0x28, "<15I", *[block] * 15)
    image.put(inode + 0x04, "<I", blocks * BLOCK)


def test_a_search_for_a_hole_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all is said to be data."""
    image = Image("ext2")
    names_itself(image, b"file", 70_000)
    node = image.node(b"file")
    steps: list[int] = []
    block_map = node.block_map
    monkeypatch.setattr(image_limits, "SEEK_EXTENTS_MAX", 1000)
    monkeypatch.setattr(node, "_map", Counted(block_map, steps))
    assert content.seek(node, 0, data=False) == 70_000 * BLOCK
    assert len(steps) == 1000


class Counted:
    """A map that notes what was looked up."""

    def __init__(self, block_map: object, steps: list[int]) -> None:
        self._map, self._steps = block_map, steps

    def find(self, logical: int) -> object:
        self._steps.append(logical)
        return self._map.find(logical)  # type: ignore[attr-defined]


def test_a_search_for_data_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the rest of a hole is said to be data, which reads as zeros."""
    disk = Disk(tmp_path / "image")
    node = disk.node()
    for logical in range(8, -1, -2):  # five extents, none written
        content.allocate(node, logical * KiB, (logical + 1) * KiB)
    node.write(20 * KiB, [b"data"])
    assert content.seek(node, 0, data=True) == 20 * KiB
    monkeypatch.setattr(image_limits, "SEEK_EXTENTS_MAX", 3)
    assert content.seek(node, 0, data=True) == 3 * KiB
    disk.filesystem.close()


def test_a_directory_of_too_many_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_AT_ONCE_MAX", 16)
    image = Image("ext2")
    names_itself(image, b"d", 200)
    with pytest.raises(VfsError, match="more than 16 extents"):
        image.node(b"d").lookup(b"name")


def test_too_many_groups_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "WRITABLE_GROUPS_MAX", 0)
    image = Image("ext2")
    image.put(layout.SUPERBLOCK_OFFSET + 0x0C, "<II", 77, 7)
    image.put(layout.SUPERBLOCK_OFFSET + 0x158, "<I", 1)
    found = image.open().statistics()
    assert (found.free_bytes, found.free_files) == (77 * BLOCK, 7)


def test_values_of_attributes_have_places_of_their_own() -> None:
    raw = bytearray(4 * KiB)
    ext4_xattr_header(layout.XATTR_MAGIC, 1, 1, 0, 0).encode_into(raw, 0)
    for number in range(3):
        at = ext4_xattr_header.SIZE + number * (ext4_xattr_entry.SIZE + 4)
        ext4_xattr_entry(1, layout.XATTR_INDEX_USER, 2 * KiB, 0, 2 * KiB, 0).encode_into(raw, at)
        raw[at + ext4_xattr_entry.SIZE] = ord("a") + number
    with pytest.raises(ValueError, match="overlap"):
        list(xattr.in_block(bytes(raw)))


def test_a_check_counts_what_groups_take() -> None:
    image = Image("ext2")
    superblock = image.open().volume.superblock
    before = tables_bytes(superblock)
    superblock.disk.s_blocks_per_group = 8
    assert superblock.groups_count == 512
    assert tables_bytes(superblock) - before > 500 * 512
