"""What is metadata is revoked when it is freed: a transaction has only so much room for that."""

from __future__ import annotations

from pathlib import Path

from appliance.fsimage.ext4 import content
from appliance.fsimage.ext4.operation import Operation
from appliance.limits import MiB
from appliance.vfs.interface import FileType
from tests.unit.fsimage.ext4_disk import EXT4, Disk


def test_whatever_was_freed_at_once_fits_into_the_journal(tmp_path: Path) -> None:
    """As if 140 MiB were a directory, or a symbolic link, under a journal of 1 MiB: 143,360 numbers
    of blocks, which would take 1,138 blocks of it."""
    disk = Disk(tmp_path / "image", "180M", (*EXT4, "-J", "size=1"))
    node = disk.node()
    content.allocate(node, 0, 140 * MiB)

    def become_metadata(operation: Operation) -> None:
        operation.inode(node.inode.number).disk.i_mode = FileType.SYMLINK << 12 | 0o777

    disk.filesystem.change(become_metadata)
    disk.filesystem.root().remove(b"f")
    disk.filesystem.commit()
    disk.check()
    disk.filesystem.close()
