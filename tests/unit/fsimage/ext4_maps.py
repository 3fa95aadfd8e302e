"""Block maps under test: a file in an image, what its map should say, and who changes both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import map_changes
from appliance.fsimage.ext4.extents import BlockMaps, Branch, Extent, ExtentTree, IndirectBlocks
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.map_changer import MapChanger
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.ext4.operation import Operation
from tests.unit.fsimage.ext4_images import debugfs, make_image

Block = tuple[int, bool]
"""Where a block is, and whether it is written."""


def empty_files(image: Path, size: str, *options: str, names: str = "f") -> Path:
    """An image with some empty files."""
    make_image(image, size, *options)
    debugfs(image, *(f"write /dev/null {name}" for name in names.split()))
    return image


def opened(image: Path) -> Ext4:
    return open_ext4(FileDevice(image, read_only=False), "image", durability=Durability.PROCESS)


class Mapped:
    """A file and the map that it should have."""

    def __init__(self, filesystem: Ext4, name: bytes = b"f") -> None:
        self.filesystem = filesystem
        self.node: Ext4Node = filesystem.root().lookup(name)
        self.number = self.node.inode.number
        self.model: dict[int, Block] = {}

    def change(self, act: Callable[[Operation, MapChanger, Inode], None]) -> None:
        """Change the map in one operation."""

        def all_of_it(operation: Operation) -> None:
            inode = operation.inode(self.number)
            act(operation, map_changes.of(self.filesystem.maps, operation, inode), inode)

        self.filesystem.change(all_of_it)

    # Changes, of the map and of the model.

    def insert(self, logical: int, count: int, *, written: bool = True, goal: int = 0) -> None:
        """Fill a hole with new blocks."""

        def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
            at, end, near = logical, logical + count, goal
            while at < end:
                physical, some = operation.allocate(near, end - at)
                changer.insert(at, physical, some, written=written)
                for index in range(some):
                    placed[at + index] = (physical + index, written)
                at, near = at + some, physical + some
            inode.size = max(inode.size, end << self.filesystem.volume.block_bits)

        placed: dict[int, Block] = {}
        self.change(act)
        self.model.update(placed)

    def convert(self, logical: int, count: int) -> None:
        self.change(lambda operation, changer, inode: changer.convert(logical, count))
        for at in range(logical, logical + count):
            if at in self.model:
                self.model[at] = (self.model[at][0], True)

    def remove(self, first: int, end: int, limit: int = 1000) -> int:
        """Free some; where it stopped."""
        reached = [end]

        def act(operation: Operation, changer: MapChanger, inode: Inode) -> None:
            reached[0] = changer.remove(first, end, limit)

        self.change(act)
        for at in [at for at in self.model if reached[0] <= at < end]:
            del self.model[at]
        return reached[0]

    # Comparing.

    def expected(self) -> list[Extent]:
        """The model as extents without a limit to their length."""
        found: list[Extent] = []
        for logical, (physical, written) in sorted(self.model.items()):
            extent = Extent(logical, 1, physical, written)
            if found and extent.continues(found[-1]):
                found[-1].count += 1
            else:
                found.append(extent)
        return found

    def check(self, end: int) -> None:
        """The reader sees the model: as it remembers the map, and as it reads it anew."""
        fresh = BlockMaps(self.filesystem.volume).of(self.node.inode)
        expected = self.expected()
        for block_map in (fresh, self.node.block_map):
            found = [extent for extent in block_map.extents(0, end) if extent.physical]
            assert found == expected
        tables = tree_blocks(self.filesystem, self.node.inode)
        assert len(set(tables)) == len(tables)
        blocks = len(self.model) + len(tables)
        used = inodes.used_bytes(self.filesystem.volume, self.node.inode.disk)
        assert used == blocks << self.filesystem.volume.block_bits

    @property
    def depth(self) -> int:
        return depth_of(self.filesystem, self.node.inode)


def depth_of(filesystem: Ext4, inode: Inode) -> int:
    block_map = BlockMaps(filesystem.volume).of(inode)
    assert isinstance(block_map, ExtentTree)
    return block_map.root.depth


def tree_blocks(filesystem: Ext4, inode: Inode) -> list[int]:
    """The blocks of the map itself."""
    maps = BlockMaps(filesystem.volume)
    block_map = maps.of(inode)
    if isinstance(block_map, ExtentTree):
        return _below(block_map, block_map.root)
    assert isinstance(block_map, IndirectBlocks)
    roots = inode.disk.i_block[48:]
    found = []
    for levels in (1, 2, 3):
        root = int.from_bytes(roots[4 * levels - 4 : 4 * levels], "little")
        found += _tables(filesystem, root, levels)
    return found


def _below(tree: ExtentTree, piece: object) -> list[int]:
    if not isinstance(piece, Branch):
        return []
    found = []
    ends = [*piece.keys[1:], piece.end]
    for key, end, child in zip(piece.keys, ends, piece.children, strict=True):
        below = tree.piece(child, key, end, piece.depth - 1)
        first = below.keys[0] if isinstance(below, Branch) else below.starts[0]
        assert first == key, "the key of a node is where its first entry begins"
        found += [child, *_below(tree, below)]
    return found


def _tables(filesystem: Ext4, table: int, levels: int) -> list[int]:
    if not table:
        return []
    raw = filesystem.volume.block(table)
    assert any(raw), "a table without a number is not kept"
    if levels == 1:
        return [table]
    below = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
    return [table, *(each for number in below for each in _tables(filesystem, number, levels - 1))]


def holes_in(model: dict[int, Block], rng: Random, end: int, most: int) -> tuple[int, int]:
    """A range without blocks: its first one, and how many (0: there is something)."""
    first = rng.randrange(end)
    count = 0
    while count < most and first + count < end and first + count not in model:
        count += 1
    return first, count
