"""An extent tree that is changed says afterwards what it should, to a reader who remembers what it
was as well as to one who reads it anew; and it has no block that it does not need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from appliance.fsimage.ext4 import extent_tree
from appliance.fsimage.ext4.extents import EVERYTHING, BlockMaps, Extent, ExtentTree
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.map_changer import MapChanger
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_images import e2fsck
from tests.unit.fsimage.ext4_maps import (
    Mapped,
    depth_of,
    empty_files,
    holes_in,
    opened,
    tree_blocks,
)

OPTIONS = ("-t", "ext4", "-b", "1024")


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Ext4]:
    filesystem = opened(empty_files(tmp_path / "image", "16M", *OPTIONS))
    yield filesystem
    filesystem.close()


def small_nodes(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """New nodes have room for a few entries only."""
    room_of = extent_tree.room_of
    monkeypatch.setattr(
        extent_tree, "room_of", lambda size: min(entries, room_of(size)) if size > 60 else 4
    )


def random_change(mapped: Mapped, rng: Random, end: int) -> None:
    """Something; what is there already is left alone by insertions."""
    kind = rng.choice(("insert", "insert", "insert", "convert", "remove", "punch"))
    first, count = holes_in(mapped.model, rng, end, rng.choice((1, 1, 3, 20)))
    if kind == "insert" and count:
        goal = rng.choice((0, mapped.model.get(first - 1, (0, True))[0] + 1, rng.randrange(16_000)))
        mapped.insert(first, count, written=rng.random() < 0.6, goal=goal)
    elif kind == "convert":
        mapped.convert(first, rng.randrange(1, 10))
    elif kind == "remove":
        mapped.remove(first, first + rng.choice((1, 2, 30)), rng.choice((1, 3, 100)))
    elif kind == "punch":
        mapped.remove(first, first + 1)


@pytest.mark.parametrize("entries", [4, 5, 8, 84])
@pytest.mark.parametrize("seed", range(3))
def test_any_history(
    filesystem: Ext4, monkeypatch: pytest.MonkeyPatch, entries: int, seed: int
) -> None:
    small_nodes(monkeypatch, entries)
    rng = Random(f"{entries} {seed}")
    mapped = Mapped(filesystem)
    deepest = 0
    for _ in range(250):
        random_change(mapped, rng, 600)
        mapped.check(1000)
        deepest = max(deepest, mapped.depth)
    assert deepest >= (3 if entries <= 5 else 1)
    while mapped.remove(0, EVERYTHING, 7):
        mapped.check(1000)
    assert not mapped.model
    mapped.check(1000)
    assert mapped.depth == 0


def test_e2fsck_agrees(tmp_path: Path) -> None:
    image = empty_files(tmp_path / "image", "16M", *OPTIONS)
    filesystem = opened(image)
    rng = Random(1)
    mapped = Mapped(filesystem)
    for logical in range(0, 1000, 2):  # so many extents that there are several leaves
        mapped.insert(logical, 1, goal=rng.randrange(16_000))
    for _ in range(300):
        random_change(mapped, rng, 1500)
    assert mapped.depth == 2
    mapped.check(2000)
    filesystem.close()
    e2fsck(image)
    filesystem = opened(image)
    again = Mapped(filesystem)
    again.model = mapped.model
    again.check(2000)
    filesystem.close()


# --- what becomes one, and what does not -----------------------------------------------


def extents_of(mapped: Mapped) -> list[Extent]:
    """The entries of a tree without branches, as they are on disk."""
    tree = BlockMaps(mapped.filesystem.volume).of(mapped.node.inode)
    assert isinstance(tree, ExtentTree)
    return tree.leaf(0).extents


def place(mapped: Mapped, *extents: Extent) -> None:
    """Put extents into the map wherever they are said to be: nobody allocates them."""

    def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
        for extent in extents:
            changer.insert(extent.logical, extent.physical, extent.count, written=extent.written)

    mapped.change(act)


def test_neighbours_become_one(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    place(mapped, Extent(10, 5, 12510), Extent(20, 5, 12520), Extent(15, 5, 12515))
    assert extents_of(mapped) == [Extent(10, 15, 12510)]
    place(mapped, Extent(5, 5, 12505), Extent(25, 1, 12525))
    assert extents_of(mapped) == [Extent(5, 21, 12505)]


def test_what_is_elsewhere_or_unwritten_stays_apart(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    apart = [
        Extent(10, 5, 12510),
        Extent(15, 5, 12600),
        Extent(20, 5, 12605, False),
        Extent(26, 1, 12612),
    ]
    place(mapped, *reversed(apart))
    assert extents_of(mapped) == apart


@pytest.mark.parametrize(("written", "most"), [(True, 32768), (False, 32767)])
def test_an_extent_has_a_largest_length(filesystem: Ext4, written: bool, most: int) -> None:
    mapped = Mapped(filesystem)
    volume = filesystem.volume
    volume.may_be_in_file = lambda first, count=1: True  # type: ignore[method-assign]
    place(mapped, Extent(0, 2 * most + 5, 1000, written))
    assert [extent.count for extent in extents_of(mapped)] == [most, most, 5]
    place(mapped, Extent(2 * most + 5, 5, 1000 + 2 * most + 5, written))
    assert [extent.count for extent in extents_of(mapped)] == [most, most, 10]


def test_the_middle_of_an_unwritten_extent_becomes_written(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    place(mapped, Extent(0, 30, 12500, False))
    mapped.change(lambda operation, changer, inode: changer.convert(10, 10))
    assert extents_of(mapped) == [
        Extent(0, 10, 12500, False),
        Extent(10, 10, 12510),
        Extent(20, 10, 12520, False),
    ]
    mapped.change(lambda operation, changer, inode: changer.convert(0, 10))
    assert extents_of(mapped) == [Extent(0, 20, 12500), Extent(20, 10, 12520, False)]
    mapped.change(lambda operation, changer, inode: changer.convert(15, 100))
    assert extents_of(mapped) == [Extent(0, 30, 12500)]


def test_a_hole_in_an_extent(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    mapped.insert(0, 30)
    assert mapped.remove(10, 12) == 10
    assert [extent.logical for extent in extents_of(mapped)] == [0, 12]
    assert mapped.remove(0, 3) == 0
    assert mapped.remove(28, 100) == 28
    assert [(each.logical, each.count) for each in extents_of(mapped)] == [(3, 7), (12, 16)]
    mapped.check(50)


def test_what_an_operation_has_changed_it_sees(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)

    def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
        for logical in range(0, 20, 2):
            changer.insert(logical, 12_000 + logical, 1)
        assert changer.find(6) == Extent(6, 1, 12_006)
        hole = changer.find(7)
        assert (hole.logical, hole.end, hole.physical) == (7, 8, 0)
        assert changer.find(500).physical == 0
        assert mapped.node.block_map.find(6).physical == 0  # nobody else does

    mapped.change(act)
    assert mapped.node.block_map.find(6).physical == 12_006


# --- bounds and failures ----------------------------------------------------------------


def test_removal_stops_at_its_limit_and_goes_on(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    for logical in range(0, 400, 2):
        mapped.insert(logical, 1, goal=5000 - 3 * logical)
    assert mapped.depth == 1
    reached = EVERYTHING
    rounds = 0
    while reached:
        before = len(mapped.model)
        reached = mapped.remove(0, reached, 16)
        assert before - len(mapped.model) <= 16
        mapped.check(500)
        rounds += 1
    assert rounds == 200 / 16 + 0.5
    assert mapped.depth == 0


def test_a_tree_that_shrinks_goes_back_into_the_inode(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    for logical in range(0, 400, 2):
        mapped.insert(logical, 1, goal=5000 - 3 * logical)
    mapped.remove(10, EVERYTHING)
    assert mapped.depth == 1
    mapped.remove(8, EVERYTHING)
    assert mapped.depth == 0
    mapped.check(500)


def test_a_tree_has_a_greatest_depth(filesystem: Ext4, monkeypatch: pytest.MonkeyPatch) -> None:
    small_nodes(monkeypatch, 4)
    mapped = Mapped(filesystem)

    def fill() -> None:
        for logical in range(0, 8000, 2):
            mapped.insert(logical, 1, goal=16_000 - 2 * logical)

    with pytest.raises(VfsError) as caught:
        fill()
    assert caught.value.code is Code.NOSPC
    assert mapped.depth == 5
    mapped.check(10_000)


def test_an_operation_that_fails_has_changed_nothing(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    for logical in range(0, 400, 2):
        mapped.insert(logical, 1, goal=5000 - 3 * logical)
    free = filesystem.statistics()

    def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
        changer.insert(1, 9000, 1)
        changer.remove(100, EVERYTHING, 1000)
        raise VfsError(Code.NOSPC)

    with pytest.raises(VfsError):
        mapped.change(act)
    assert filesystem.statistics() == free
    mapped.check(500)


def test_a_damaged_tree_is_not_made_worse(tmp_path: Path) -> None:
    image = empty_files(tmp_path / "image", "16M", *OPTIONS)
    filesystem = opened(image)
    mapped = Mapped(filesystem)
    for logical in range(0, 20, 2):
        mapped.insert(logical, 1, goal=5000 - 3 * logical)
    leaf = int.from_bytes(mapped.node.inode.disk.i_block[16:20], "little")
    filesystem.close()
    raw = bytearray(image.read_bytes())
    raw[leaf * 1024 + 20] ^= 1
    image.write_bytes(raw)
    filesystem = opened(image)
    mapped = Mapped(filesystem)
    for change in (
        lambda: mapped.insert(1, 1),
        lambda: mapped.convert(0, 1),
        lambda: mapped.remove(0, 5),
    ):
        with pytest.raises(VfsError) as caught:
            change()
        assert caught.value.code is Code.IO
    filesystem.close()
    assert image.read_bytes()[leaf * 1024 : leaf * 1024 + 1024] == raw[leaf * 1024 :][:1024]


def test_a_leaf_that_was_changed_and_freed_in_one_operation_is_not_remembered_anew(
    filesystem: Ext4,
) -> None:
    """It has no contents that what is remembered of it could be of."""
    mapped = Mapped(filesystem)
    for logical in range(200):
        mapped.insert(logical, 1, goal=15_000 - 3 * logical)
    tree = mapped.node.block_map
    assert isinstance(tree, ExtentTree)
    mapped.check(300)
    keys = [(mapped.number, block) for block in tree_blocks(filesystem, mapped.node.inode)]
    pieces = filesystem.maps.pieces
    before = [pieces.get(key) for key in keys]
    assert len(before) == 3
    assert all(before)

    def shorten_and_empty(operation: Operation, changer: MapChanger, inode: Inode) -> None:
        changer.remove(195, 200, 1000)
        changer.remove(0, 200, 1000)

    mapped.change(shorten_and_empty)
    assert [pieces.get(key) for key in keys] == before
    mapped.model.clear()
    mapped.check(300)


# --- cost -------------------------------------------------------------------------------


def test_a_change_in_a_large_leaf_does_not_make_anybody_read_it_again(
    filesystem: Ext4, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = Mapped(filesystem)
    for logical in range(0, 120, 2):
        mapped.insert(logical, 1, goal=5000 - 3 * logical)
    mapped.check(200)
    decoded: list[int] = []
    real = ExtentTree._extents

    def counted(self: ExtentTree, entries: bytes, first: int, end: int) -> list[Extent]:
        decoded.append(len(entries))
        return real(self, entries, first, end)

    monkeypatch.setattr(ExtentTree, "_extents", counted)
    for logical in (1, 55, 117):
        mapped.insert(logical, 1, goal=9000 + logical)
        mapped.convert(logical, 1)
        mapped.remove(logical + 1, logical + 2)
        assert mapped.node.block_map.find(logical).physical
    assert not decoded
    monkeypatch.undo()
    mapped.check(200)


def test_a_file_that_grows_has_full_nodes(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    for logical in range(200):
        mapped.insert(logical, 1, goal=15_000 - 3 * logical)
    assert depth_of(filesystem, mapped.node.inode) == 1
    entries = int.from_bytes(mapped.node.inode.disk.i_block[2:4], "little")
    assert entries == 3  # 83, 83 and 34: a node gives its last entry away
    mapped.check(300)
