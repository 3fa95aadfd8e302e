"""Opening an image to write to it, and what opening and closing alone leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.superblock import Superblock
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import e2fsck, make_image


def open_rw(image: Path) -> Ext4:
    return open_ext4(FileDevice(image, read_only=False), image.name)


def needs_recovery(image: Path) -> bool:
    device = FileDevice(image)
    try:
        return Superblock.read(device).needs_recovery
    finally:
        device.close()


@pytest.mark.parametrize("kind", ["ext3", "ext4"])
def test_what_was_recovered_is_clean_though_nothing_else_is_done(tmp_path: Path, kind: str) -> None:
    image = make_image(tmp_path / "fs.img", "16M", "-t", kind)
    killed = open_rw(image)
    killed.root().create(b"name", NewNode(FileType.REGULAR, 0o644, 0, 0))
    killed.commit()
    killed.abandon()
    assert needs_recovery(image)
    again = open_rw(image)
    again.root().lookup(b"name")
    again.close()
    assert not needs_recovery(image)
    e2fsck(image)


@pytest.mark.parametrize(("size", "block_bytes"), [("12M", 1024), ("600M", 8192)])
def test_a_superblock_that_is_lost_is_in_the_journal(
    tmp_path: Path, size: str, block_bytes: int
) -> None:
    """A backup leads to the journal. Blocks of 8 KiB have it before the end of what a bitmap could
    speak of: the groups are shorter."""
    options = ("-b", str(block_bytes), "-J", f"size={block_bytes >> 10}")
    image = make_image(tmp_path / "fs.img", size, "-t", "ext4", *options)
    killed = open_rw(image)
    killed.root().create(b"name", NewNode(FileType.REGULAR, 0o644, 0, 0))
    killed.commit()
    killed.abandon()
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    again = open_rw(image)
    again.root().lookup(b"name")
    again.close()
    e2fsck(image)


def test_an_image_that_is_only_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "16M", "-t", "ext4")
    before = image.read_bytes()
    filesystem = open_rw(image)
    filesystem.root().entries(0, 10)
    filesystem.commit()
    filesystem.close()
    assert image.read_bytes() == before


def test_a_removed_file_is_stale_where_descriptors_are_short(tmp_path: Path) -> None:
    """A descriptor of 32 bytes has room for half of the checksum of a bitmap."""
    image = make_image(tmp_path / "fs.img", "16M", "-t", "ext4", "-O", "^64bit")
    filesystem = open_rw(image)
    root = filesystem.root()
    removed = root.create(b"name", NewNode(FileType.REGULAR, 0o644, 0, 0)).handle
    root.remove(b"name")
    with pytest.raises(VfsError) as caught:
        filesystem.resolve(removed)
    assert caught.value.code is Code.STALE
    filesystem.close()
    e2fsck(image)
