"""Times and versions of inodes where a clock, or the room for them, is not as one would like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from appliance.clock import SECOND
from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.vfs.interface import Attributes, FileType, NewNode, SetAttributes
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image
from tests.unit.vfs.tools import HandClock

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
NOW = 1_900_000_000 * SECOND + 123_456_789


@contextmanager
def opened(image: Path, wall_ns: int = NOW) -> Iterator[Ext4]:
    device = FileDevice(image, read_only=False)
    with closing(open_ext4(device, "image", clock=HandClock(wall_ns))) as filesystem:
        yield filesystem


def attributes(image: Path) -> Attributes:
    with opened(image) as filesystem:
        return filesystem.root().lookup(b"file").attributes()


@pytest.mark.parametrize("seconds", [0, 1, 200])
def test_what_was_removed_by_a_clock_without_a_battery(tmp_path: Path, seconds: int) -> None:
    """The time of the removal is not the number of an inode: e2fsck takes that for a list of
    orphans that is damaged, as soon as the clock has been set."""
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext4", "-N", "512")
    with opened(image, seconds * SECOND) as filesystem:
        for name in (b"one", b"two"):
            filesystem.root().create(name, FILE)
        for name in (b"one", b"two"):
            filesystem.root().remove(name)
    with opened(image) as filesystem:
        filesystem.root().create(b"three", FILE)
    e2fsck(image)


@pytest.mark.parametrize(("inode_bytes", "extra"), [(256, 4), (256, 32), (128, 0)])
def test_what_is_told_is_what_is_kept(tmp_path: Path, inode_bytes: int, extra: int) -> None:
    """Kernels before ext4 left inodes of 256 bytes that have no room for parts of a second."""
    options = ("-t", "ext3", "-I", str(inode_bytes))
    image = make_image(tmp_path / "fs.img", "8M", *options)
    with opened(image) as filesystem:
        filesystem.root().create(b"file", FILE)
    fields = ["atime_extra", "ctime_extra", "mtime_extra", "crtime", "crtime_extra", "version_hi"]
    if extra == 4:
        debugfs(image, *(f"sif /file {field} 0" for field in fields), "sif /file extra_isize 4")
    debugfs(image, "sif /file version 0xffffffff")
    with opened(image) as filesystem:
        node = filesystem.root().lookup(b"file")
        before = node.attributes().change
        node.set_attributes(SetAttributes(mode=0o600, mtime_ns=NOW + 5, atime_ns=NOW + 7))
        told = node.attributes()
        assert told.change != before
    assert attributes(image) == told
    e2fsck(image)
