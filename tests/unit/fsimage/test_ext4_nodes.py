"""Which file a node is, and when it changed: no two are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.fsimage.ext4 import changes
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "image")
    yield disk
    disk.filesystem.close()


def test_two_changes_at_one_instant_have_two_times(disk: Disk) -> None:
    inode = disk.node().inode.copy()
    now = inodes.Now(2_000_000_000_000_000_000)
    times = []
    for _ in range(3):
        inodes.touch(inode, now)
        times.append(inodes.time_ns(inode.disk.i_ctime, inode.disk.i_ctime_extra))
    assert times == [now.ns, now.ns + 1, now.ns + 2]


def test_no_file_has_the_generation_of_the_one_before(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance it would be the same, or none: a handle of the old file would be one of the new."""
    root, file = disk.filesystem.root(), NewNode(FileType.REGULAR, 0o644, 0, 0)

    class Chance:
        values = iter([7, 7, 0, 8, 8, 9])

        def getrandbits(self, _: int) -> int:
            return next(self.values)

    monkeypatch.setattr(changes, "_chance", Chance())
    found = []
    for durable in (False, True, False):
        node = root.create(b"again", file)
        assert isinstance(node, Ext4Node)
        found.append((node.inode.number, node.inode.disk.i_generation))
        root.remove(b"again")
        if durable:
            disk.filesystem.writer.journal.bring_to_place()
    assert found == [(found[0][0], generation) for generation in (7, 8, 9)]


def test_a_node_does_not_become_another_file(disk: Disk) -> None:
    """Whoever has the number now is left alone."""
    node = disk.node()
    other = node.inode.copy()
    other.disk.i_generation ^= 1
    assert not node.renew(other)
    assert not node.alive
    assert other.disk.i_links_count == 1
