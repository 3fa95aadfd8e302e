"""What a rename does to times: those of the kernel's ext4."""

from __future__ import annotations

from pathlib import Path

from appliance.clock import SECOND
from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import e2fsck, make_image
from tests.unit.vfs.tools import HandClock

DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)
START = 2_000_000_000 * SECOND


def test_a_directory_that_is_moved_is_not_modified(tmp_path: Path) -> None:
    """Though its ".." is another one now; its ctime says that something happened to it."""
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext4", "-b", "1024")
    clock = HandClock(START)
    filesystem = open_ext4(FileDevice(image, read_only=False), "image", clock=clock)
    root = filesystem.root()
    before, after = (root.create(name, DIRECTORY) for name in (b"before", b"after"))
    moved = before.create(b"moved", DIRECTORY)
    clock.advance(10 * SECOND)
    before.rename(b"moved", after, b"moved")
    now = START + 10 * SECOND
    for node, mtime in ((moved, START), (before, now), (after, now)):
        its = node.attributes()
        assert its.mtime_ns // 1000 == mtime // 1000
        assert its.ctime_ns // 1000 == now // 1000
    assert moved.parent() is after
    filesystem.close()
    e2fsck(image)
