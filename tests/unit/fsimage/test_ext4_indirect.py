"""The block map of a file without extents, changed: direct blocks, and trees of one, two and three
levels, of which nothing is kept that is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from appliance.fsimage.ext4.extents import EVERYTHING
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.map_changer import MapChanger
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_images import e2fsck
from tests.unit.fsimage.ext4_maps import Mapped, empty_files, opened, tree_blocks

OPTIONS = ("-t", "ext3", "-b", "1024")
NUMBERS = 256  # in a block
SINGLE = 12
DOUBLE = SINGLE + NUMBERS
TRIPLE = DOUBLE + NUMBERS**2
END = TRIPLE + NUMBERS**3


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Ext4]:
    filesystem = opened(empty_files(tmp_path / "image", "16M", *OPTIONS))
    yield filesystem
    filesystem.close()


def somewhere(rng: Random) -> int:
    """A block in any of the trees, mostly near their ends and near to each other."""
    base = rng.choice((0, SINGLE, DOUBLE, DOUBLE + NUMBERS, TRIPLE, TRIPLE + NUMBERS**2, END))
    return min(max(0, base + rng.randrange(-20, 20)), END - 1)


def random_change(mapped: Mapped, rng: Random) -> None:
    first = somewhere(rng)
    if rng.random() < 0.65:
        count = min(rng.randrange(1, 30), END - first)
        while any(first + index in mapped.model for index in range(count)):
            count -= 1
        if count > 0:
            goal = rng.choice((0, mapped.model.get(first - 1, (0, True))[0] + 1))
            mapped.insert(first, count, goal=goal)
    else:
        end = rng.choice((first + 1, first + 30, somewhere(rng), EVERYTHING))
        if rng.random() < 0.1:
            first = 0
        mapped.remove(first, max(first, end), rng.choice((1, 3, 1000)))


@pytest.mark.parametrize("seed", range(4))
def test_any_history(filesystem: Ext4, seed: int) -> None:
    rng = Random(seed)
    mapped = Mapped(filesystem)
    for _ in range(120):
        random_change(mapped, rng)
        mapped.check(END)
    while mapped.remove(0, EVERYTHING, 5):
        mapped.check(END)
    mapped.check(END)
    assert not any(mapped.node.inode.disk.i_block)


@pytest.mark.parametrize("kind", ["ext2", "ext3"])
def test_e2fsck_agrees(tmp_path: Path, kind: str) -> None:
    image = empty_files(tmp_path / "image", "16M", "-t", kind, "-b", "1024")
    filesystem = opened(image)
    rng = Random(kind)
    mapped = Mapped(filesystem)
    for _ in range(100):
        random_change(mapped, rng)
    mapped.remove(END - 1, END)
    mapped.insert(END - 1, 1)
    mapped.check(END)
    filesystem.close()
    e2fsck(image)
    filesystem = opened(image)
    again = Mapped(filesystem)
    again.model = mapped.model
    again.check(END)
    filesystem.close()


@pytest.mark.parametrize(
    ("logical", "tables"),
    [
        (11, 0),
        (SINGLE, 1),
        (DOUBLE - 1, 1),
        (DOUBLE, 2),
        (TRIPLE - 1, 2),
        (TRIPLE, 3),
        (END - 1, 3),
    ],
)
def test_a_block_costs_the_tables_above_it(filesystem: Ext4, logical: int, tables: int) -> None:
    mapped = Mapped(filesystem)
    mapped.insert(logical, 1)
    assert len(tree_blocks(filesystem, mapped.node.inode)) == tables
    mapped.check(END)
    assert mapped.remove(logical, logical + 1) == logical
    assert not any(mapped.node.inode.disk.i_block)
    assert not mapped.node.attributes().used


def test_nothing_is_behind_the_last_tree(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    with pytest.raises(VfsError) as caught:
        mapped.insert(END, 1)
    assert caught.value.code is Code.FBIG
    mapped.check(END)


def test_a_run_over_the_borders_of_trees(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    mapped.insert(5, DOUBLE + NUMBERS)
    mapped.check(DOUBLE + 2 * NUMBERS)
    assert mapped.remove(7, DOUBLE + 20) == 7
    mapped.check(DOUBLE + 2 * NUMBERS)


def test_removal_stops_at_its_limit_and_goes_on(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)
    for logical in range(0, 700, 2):
        mapped.insert(logical, 1, goal=12_000 - 3 * logical)
    reached = EVERYTHING
    while reached:
        before = len(mapped.model)
        reached = mapped.remove(0, reached, 16)
        assert before - len(mapped.model) <= 16
        mapped.check(1000)
    assert not mapped.model


def test_what_an_operation_has_changed_it_sees(filesystem: Ext4) -> None:
    mapped = Mapped(filesystem)

    def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
        for logical in (3, DOUBLE + 7, DOUBLE + 8, TRIPLE):
            changer.insert(logical, 5000 + logical % 100, 1)
        assert changer.find(3).physical == 5003
        assert changer.find(DOUBLE + 8).physical == 5000 + (DOUBLE + 8) % 100
        hole = changer.find(DOUBLE + 9)
        assert not hole.physical and hole.end == DOUBLE + NUMBERS
        assert not changer.find(SINGLE).physical
        raise VfsError(Code.NOSPC)

    with pytest.raises(VfsError):
        mapped.change(act)
    mapped.check(END)


def test_an_impossible_number_is_not_freed(tmp_path: Path) -> None:
    image = empty_files(tmp_path / "image", "16M", *OPTIONS)
    filesystem = opened(image)
    mapped = Mapped(filesystem)
    mapped.insert(SINGLE, 3)
    table = int.from_bytes(mapped.node.inode.disk.i_block[48:52], "little")
    filesystem.close()
    raw = bytearray(image.read_bytes())
    raw[table * 1024 + 4 : table * 1024 + 8] = b"\xff" * 4
    image.write_bytes(raw)
    filesystem = opened(image)
    mapped = Mapped(filesystem)
    with pytest.raises(VfsError) as caught:
        mapped.remove(0, EVERYTHING)
    assert caught.value.code is Code.IO
    filesystem.close()
    assert image.read_bytes()[table * 1024 :][:1024] == raw[table * 1024 :][:1024]
