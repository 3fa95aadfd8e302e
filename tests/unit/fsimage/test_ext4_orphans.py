"""Who met damage on his way off the list of orphans stays on it, once, until he is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import image_limits
from appliance.fsimage.ext4 import content
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.ext4.operation import Operation
from appliance.limits import KiB
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_disk import Disk, everything, raises, resize


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 4)
    disk = Disk(tmp_path / "image")
    yield disk
    assert disk.filesystem.orphans.numbers == []
    assert disk.filesystem.volume.superblock.disk.s_last_orphan == 0
    disk.check()
    disk.filesystem.close()


def in_pieces(node: Ext4Node) -> None:
    """A file that is cut off in several operations."""
    for logical in range(20, -1, -2):
        node.write(logical * KiB, [b"piece"])


def cut_off_half_way(disk: Disk, node: Ext4Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first operation of a truncation is done; the second one meets damage."""
    real = content._free_behind
    calls: list[int] = []

    def fails(filesystem: Ext4, operation: Operation, inode: Inode, size: int) -> bool:
        calls.append(size)
        if len(calls) == 2:
            raise VfsError(Code.IO, "a block that cannot be read")
        return real(filesystem, operation, inode, size)

    with monkeypatch.context() as patch:
        patch.setattr(content, "_free_behind", fails)
        raises(Code.IO, lambda: resize(node, 0))
    assert disk.filesystem.orphans.numbers[-1] == node.inode.number


def remove(disk: Disk, node: Ext4Node) -> None:
    disk.filesystem.root().remove(b"f")


def cut_off(disk: Disk, node: Ext4Node) -> None:
    in_pieces(node)
    resize(node, 5)


def cut_off_at_once(disk: Disk, node: Ext4Node) -> None:
    resize(node, 30 * KiB)
    resize(node, 20 * KiB)


@pytest.mark.parametrize("act", [remove, cut_off, cut_off_at_once])
@pytest.mark.parametrize("others", [False, True])
def test_who_is_on_the_list_is_not_put_there_twice(
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Disk, Ext4Node], None],
    others: bool,
) -> None:
    node, other = disk.node(), disk.node(b"g")
    in_pieces(node)
    cut_off_half_way(disk, node, monkeypatch)
    if others:
        in_pieces(other)
        cut_off_half_way(disk, other, monkeypatch)
    act(disk, node)
    assert node.inode.number not in disk.filesystem.orphans.numbers
    if others:
        assert disk.filesystem.volume.superblock.disk.s_last_orphan == other.inode.number
        assert other.inode.disk.i_dtime == 0
        cut_off(disk, other)


def extend(node: Ext4Node) -> None:
    resize(node, 30 * KiB)


def write_far(node: Ext4Node) -> None:
    node.write(30 * KiB - 1, [b"\0"])


def reserve(node: Ext4Node) -> None:
    content.allocate(node, 0, 30 * KiB)


@pytest.mark.parametrize("act", [extend, write_far, reserve])
def test_what_was_cut_off_half_way_does_not_come_back(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, act: Callable[[Ext4Node], None]
) -> None:
    node = disk.node()
    in_pieces(node)
    cut_off_half_way(disk, node, monkeypatch)
    act(node)
    assert everything(node) == bytes(30 * KiB)


def test_a_file_that_cannot_be_cut_off_does_not_grow(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = disk.node()
    in_pieces(node)
    cut_off_half_way(disk, node, monkeypatch)

    def fails(*_: object) -> bool:
        raise VfsError(Code.IO, "a block that cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(content, "_free_behind", fails)
        raises(Code.IO, lambda: extend(node))
        raises(Code.IO, lambda: write_far(node))
        raises(Code.IO, lambda: reserve(node))
    assert everything(node) == b""
    extend(node)
