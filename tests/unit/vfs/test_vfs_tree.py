"""The appliance's own tree: mounts, and the way to them and back."""

from __future__ import annotations

import random

import pytest

from appliance.vfs.access import READ
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import same_node
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.tree import ROOT_FSID, Tree
from appliance.vfs.user import User
from tests.unit.vfs.tools import ALICE, ROOT, HandClock, memory, names, refused


def test_a_single_file_system_at_the_root() -> None:
    disk = memory()
    tree = Tree.of([("/", disk)], HandClock())
    assert tree.root() is disk.root()
    assert tree.filesystem_by_fsid(disk.fsid) is disk
    refused(Code.STALE, lambda: tree.filesystem_by_fsid(ROOT_FSID))


def test_mounts_come_in_any_order() -> None:
    top, below = memory(fsid=2), memory(fsid=3)
    user = User(ROOT, clock=HandClock())
    user.mkdir(top.root(), b"below")
    tree = Tree.of([("/below", below), ("/", top)], HandClock())
    assert tree.walk("/below") is below.root()
    assert tree.filesystems == [top, below]


def test_the_way_to_the_mount_points_is_there_and_read_only() -> None:
    disk = memory()
    tree = Tree.of([("/srv/disk", disk)], HandClock())
    user = User(ALICE, clock=HandClock(), tree=tree)
    assert names(tree.root()) == [b"srv"]
    assert user.lookup(tree.walk("/srv"), b"disk") is disk.root()
    assert user.access(tree.root()) & READ
    refused(Code.ROFS, lambda: User(ROOT, clock=HandClock()).mkdir(tree.root(), b"x"))


def test_handles_of_the_way_are_the_same_after_a_restart() -> None:
    def start() -> list[bytes]:
        tree = Tree.of([("/b", memory(fsid=2)), ("/a/c", memory(fsid=3))], HandClock())
        return [tree.root().handle, tree.walk("/a").handle]

    assert start() == start()


def test_dot_dot_crosses_a_mount_and_stops_at_the_top() -> None:
    disk = memory()
    tree = Tree.of([("/srv/disk", disk)], HandClock())
    srv = tree.walk("/srv")
    everywhere = User(ALICE, clock=HandClock(), tree=tree)
    assert same_node(everywhere.lookup(disk.root(), b".."), srv)
    assert same_node(everywhere.lookup(tree.root(), b".."), tree.root())
    within = User(ALICE, clock=HandClock(), tree=tree, top=disk.root())
    assert same_node(within.lookup(disk.root(), b".."), disk.root())
    without_tree = User(ALICE, clock=HandClock())
    assert same_node(without_tree.lookup(disk.root(), b".."), disk.root())


def test_without_a_tree_a_user_sees_what_is_covered() -> None:
    disk = memory()
    tree = Tree.of([("/srv", disk)], HandClock())
    covered = User(ALICE, clock=HandClock()).lookup(tree.root(), b"srv")
    assert covered.filesystem.fsid == ROOT_FSID


def test_a_listing_leads_across_mounts() -> None:
    disk = memory()
    tree = Tree.of([("/srv", disk)], HandClock())
    user = User(ALICE, clock=HandClock(), tree=tree)
    entries = {entry.name: entry for entry in user.read_directory(tree.root(), 0, 10)}
    assert user.entry_node(tree.root(), entries[b"srv"]) is disk.root()
    inside = {entry.name: entry for entry in user.read_directory(disk.root(), 0, 10)}
    above = user.entry_node(disk.root(), inside[b".."])
    assert above is not None and same_node(above, tree.root())


def test_a_mount_point_stays() -> None:
    disk, below = memory(fsid=2), memory(fsid=3)
    user = User(ROOT, clock=HandClock())
    point = user.mkdir(disk.root(), b"point")
    user.mkdir(disk.root(), b"other")
    tree = Tree.of([("/", disk), ("/point", below)], HandClock())
    user = User(ROOT, clock=HandClock(), tree=tree)
    root = disk.root()
    refused(Code.ACCES, lambda: user.rmdir(root, b"point"))
    refused(Code.ACCES, lambda: user.rename(root, b"point", root, b"moved"))
    refused(Code.ACCES, lambda: user.rename(root, b"other", root, b"point"))
    assert tree.is_mount_point(point)


def test_renaming_and_linking_across_mounts_is_refused() -> None:
    disk, below = memory(fsid=2), memory(fsid=3)
    User(ROOT, clock=HandClock()).mkdir(disk.root(), b"point")
    tree = Tree.of([("/", disk), ("/point", below)], HandClock())
    user = User(ROOT, clock=HandClock(), tree=tree)
    file = user.create(disk.root(), b"file")
    refused(Code.XDEV, lambda: user.rename(disk.root(), b"file", below.root(), b"file"))
    refused(Code.XDEV, lambda: user.link(file, below.root(), b"file"))


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        (["/a", "/a"], Code.EXIST),
        (["/", "/"], Code.EXIST),
        (["/a", "/"], Code.INVAL),
        (["/", "/missing"], Code.NOENT),
        (["a"], Code.INVAL),
        (["/a/../b"], Code.INVAL),
        (["/", "/file"], Code.NOTDIR),
        (["/", "/file/below"], Code.NOTDIR),
    ],
)
def test_mounts_that_cannot_be(paths: list[str], code: Code) -> None:
    tree = Tree(HandClock())
    *good, bad = paths
    for number, path in enumerate(good, 10):
        disk = memory(fsid=number)
        User(ROOT, clock=HandClock()).create(disk.root(), b"file")
        tree.mount(path, disk)
    with pytest.raises(VfsError) as caught:
        tree.mount(bad, memory(fsid=99))
    assert caught.value.code is code
    assert caught.value.detail != bad  # a path alone says nothing
    assert len(tree.filesystems) == len(good)


def test_the_same_file_system_is_not_mounted_twice() -> None:
    tree = Tree.of([("/a", memory(fsid=5))], HandClock())
    with pytest.raises(VfsError, match=r"already, at /a .*tune2fs -U") as caught:
        tree.mount("/b", memory(fsid=5))
    assert caught.value.code is Code.EXIST


def test_closing_is_in_reverse_order_and_reaches_everybody() -> None:
    closed: list[int] = []

    class Watched(MemoryFileSystem):
        def close(self) -> None:
            closed.append(self.fsid)
            if self.fsid == 3:
                raise VfsError(Code.IO)

    disks = [
        Watched(1 << 20, fsid=fsid, clock=HandClock(), random=random.Random(1))
        for fsid in (2, 3, 4)
    ]
    tree = Tree.of([(f"/{disk.fsid}", disk) for disk in disks], HandClock())
    refused(Code.IO, tree.close)
    assert closed == [4, 3, 2]
