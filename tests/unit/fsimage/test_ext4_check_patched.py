"""Damage that is made by writing a few bytes, in an image without checksums (so that nothing else
is wrong): e2fsck finds it, and so do we, and name it."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.check import Code, groups
from appliance.fsimage.ext4.check.context import Context, tables_bytes
from appliance.fsimage.ext4.check.groups import unusable
from appliance.fsimage.ext4.superblock import Superblock
from tests.unit.fsimage.damage import bounded_time
from tests.unit.fsimage.ext4_images import debugfs, make_image, run
from tests.unit.fsimage.test_ext4_check_damage import (
    BLOCK,
    block_of,
    e2fsck_finds,
    findings,
    made,
    sound,
)

EXT4 = ["-t", "ext4", "-O", "^metadata_csum"]
EXT2 = ["-t", "ext2"]

GROUP0 = 2 * BLOCK
"""The first group descriptor; with 64bit, each has 64 bytes."""


class Patch:
    """An image to write to."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.raw = bytearray(image.read_bytes())

    def put(self, at: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.raw, at, *values)
        self.image.write_bytes(self.raw)

    def get(self, at: int, layout: str = "<I") -> int:
        value: int = struct.unpack_from(layout, self.raw, at)[0]
        return value

    def inode(self, path: str) -> int:
        """Where an inode is."""
        said = run(["debugfs", "-R", f"imap {path}", self.image])
        found = re.search(r"block (\d+), offset (0x[0-9a-f]+)", said)
        assert found, said
        return int(found[1]) * BLOCK + int(found[2], 16)

    def block(self, path: str, logical: int = 0) -> int:
        """Where a block of a file is."""
        return block_of(self.image, path, logical) * BLOCK

    def entry(self, directory: str, name: bytes) -> int:
        """Where an entry of a directory of one block is."""
        start = self.block(directory)
        return self.raw.index(name, start, start + BLOCK) - 8

    @property
    def leaf(self) -> int:
        """Where the first extents of /many are: a block below its inode."""
        return self.get(self.inode("/many") + 40 + 16) * BLOCK


def swapped_leaves(patch: Patch) -> None:
    """The first two leaves of an index change places."""
    root = patch.block("/big")
    first, second = patch.get(root + 0x24), patch.get(root + 0x2C)
    patch.put(root + 0x24, "<I", second)
    patch.put(root + 0x2C, "<I", first)


def same_name(patch: Patch) -> None:
    at = patch.entry("<2>", b"many") + 8
    patch.raw[at : at + 4] = b"file"
    patch.image.write_bytes(patch.raw)


DAMAGE: dict[str, tuple[Callable[[Patch], None], Code, str]] = {
    "order of extents": (
        lambda p: p.put(p.leaf + 24, "<I", 0),
        Code.BLOCK_MAP,
        "extents out of order at 0",
    ),
    "magic of extents": (lambda p: p.put(p.leaf, "<H", 7), Code.BLOCK_MAP, "no magic"),
    "depth of extents": (
        lambda p: p.put(p.leaf + 6, "<H", 1),
        Code.BLOCK_MAP,
        "the depth 1 where 0 belongs",
    ),
    "number of extents": (lambda p: p.put(p.leaf + 2, "<H", 999), Code.BLOCK_MAP, "999 entries"),
    "length of an extent": (
        lambda p: p.put(p.leaf + 12 + 4, "<H", 0),
        Code.BLOCK_MAP,
        "extent of 0 blocks",
    ),
    "key of an index": (
        lambda p: p.put(p.inode("/many") + 40 + 12, "<I", 1),
        Code.BLOCK_MAP,
        "from 0 on where its index says 1",
    ),
    "block that does not exist": (
        lambda p: p.put(p.leaf + 12 + 8, "<I", 99999),
        Code.BLOCK_RANGE,
        "block 99999, which does not exist",
    ),
    "extent block that does not exist": (
        lambda p: p.put(p.inode("/many") + 40 + 16, "<I", 99999),
        Code.BLOCK_RANGE,
        "extent block 99999",
    ),
    "block claimed twice": (
        lambda p: p.put(p.leaf + 12 + 8, "<I", p.block("/other") // BLOCK),
        Code.BLOCK_SHARED,
        "claimed more than once",
    ),
    "block of the superblock": (
        lambda p: p.put(p.leaf + 12 + 8, "<I", 1),
        Code.BLOCK_METADATA,
        "from 1 on, where the file system keeps itself",
    ),
    "length of an entry": (
        lambda p: p.put(p.entry("/d", b"sub") + 4, "<H", 9),
        Code.DIRECTORY,
        "an entry of 9 bytes",
    ),
    "character in a name": (
        lambda p: p.put(p.entry("/d", b"sub") + 9, "<B", ord("/")),
        Code.ENTRY,
        "no name",
    ),
    "type of an entry": (
        lambda p: p.put(p.entry("/d", b"sub") + 7, "<B", 1),
        Code.ENTRY_TYPE,
        "of type 2",
    ),
    "inode of an entry": (
        lambda p: p.put(p.entry("/d", b"sub"), "<I", 99999),
        Code.ENTRY,
        "inode 99999, which cannot be named",
    ),
    "the same name twice": (same_name, Code.ENTRY_DUPLICATE, '"file" twice'),
    "dot": (lambda p: p.put(p.block("/d"), "<I", 2), Code.DOTS, 'does not begin with "."'),
    "dot-dot": (
        lambda p: p.put(p.block("/d/sub") + 12, "<I", 2),
        Code.DOTS,
        'has 2 as ".."',
    ),
    "hole in a directory": (
        lambda p: p.put(p.inode("/big") + 40 + 12, "<I", 1),
        Code.DIRECTORY,
        "has no block at 0-0",
    ),
    "hash version": (lambda p: p.put(p.block("/big") + 0x1C, "<B", 9), Code.INDEX, "version 9"),
    "levels of an index": (lambda p: p.put(p.block("/big") + 0x1E, "<B", 5), Code.INDEX, "levels"),
    "limit of an index": (
        lambda p: p.put(p.block("/big") + 0x20, "<H", 5),
        Code.INDEX,
        "of 5 entries",
    ),
    "block of an index": (
        lambda p: p.put(p.block("/big") + 0x24, "<I", 99),
        Code.INDEX,
        "block 99, which does not exist",
    ),
    "block of an index twice": (
        lambda p: p.put(p.block("/big") + 0x24, "<I", 2),
        Code.INDEX,
        "block 2 twice",
    ),
    "order of an index": (
        lambda p: p.put(p.block("/big") + 0x28, "<I", 0xFFFF_FFF0),
        Code.INDEX,
        "hashes that do not ascend",
    ),
    "name in a wrong leaf": (swapped_leaves, Code.INDEX, "where its index does not look"),
    "magic of attributes": (
        lambda p: p.put(p.get(p.inode("/file") + 0x68) * BLOCK, "<I", 1),
        Code.XATTR,
        "which holds none",
    ),
    "references to attributes": (
        lambda p: p.put(p.get(p.inode("/file") + 0x68) * BLOCK + 4, "<I", 5),
        Code.XATTR_REFCOUNT,
        "count 5 inodes, but 1",
    ),
    "hash of an attribute": (
        lambda p: p.put(p.get(p.inode("/file") + 0x68) * BLOCK + 32 + 12, "<I", 5),
        Code.XATTR,
        "wrong hash",
    ),
    "size of an attribute": (
        lambda p: p.put(p.get(p.inode("/file") + 0x68) * BLOCK + 32 + 8, "<I", 5000),
        Code.XATTR,
        "beyond the end",
    ),
    "place of a block bitmap": (
        lambda p: p.put(GROUP0, "<I", 99999),
        Code.GROUP,
        "its block bitmap at block 99999",
    ),
    "place of an inode table": (
        lambda p: p.put(GROUP0 + 8, "<I", 0),
        Code.GROUP,
        "its inode table at block 0",
    ),
    "free inodes of a group": (
        lambda p: p.put(GROUP0 + 14, "<H", 3),
        Code.COUNT,
        "free inodes of group 0 is 3",
    ),
    "padding of an inode bitmap": (
        lambda p: p.put(p.get(GROUP0 + 4) * BLOCK + BLOCK - 1, "<B", 0),
        Code.BITMAP_PADDING,
        "inode bitmap of group 0",
    ),
    "padding of the last block bitmap": (
        lambda p: p.put(p.get(GROUP0 + 64) * BLOCK + BLOCK - 1, "<B", 0),
        Code.BITMAP_PADDING,
        "block bitmap of group 1",
    ),
    "magic of the journal": (
        lambda p: p.put(p.block("<8>"), ">I", 5),
        Code.JOURNAL,
        "it has no superblock",
    ),
    "start of the journal": (
        lambda p: p.put(p.block("<8>") + 0x1C, ">I", 1),
        Code.JOURNAL,
        "not empty",
    ),
    "reserved block": (
        lambda p: p.put(p.get(p.inode("<7>") + 40 + 4 * 13) * BLOCK + 4 + 4, "<I", 9000),
        Code.RESIZE_INODE,
        "behind the descriptors",
    ),
}


STRICTER = {
    "depth of extents": "the kernel refuses the file; e2fsck takes the depth from the root",
    "start of the journal": "e2fsck would replay it, but -n keeps it from looking",
}
"""What e2fsck -fn does not call wrong."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_in_a_few_bytes(tmp_path: Path, kind: str) -> None:
    make_it, code, text = DAMAGE[kind]
    image = made(tmp_path, *EXT4)
    make_it(Patch(image))
    assert e2fsck_finds(image) == (kind not in STRICTER)
    found = findings(image)
    assert any(f.code is code and text in f.text for f in found), [str(f) for f in found]


def test_all_owners_of_a_shared_block_are_named(tmp_path: Path) -> None:
    image = made(tmp_path, *EXT4)
    patch = Patch(image)
    shared = patch.block("/other") // BLOCK
    patch.put(patch.leaf + 12 + 8, "<I", shared)
    owners = {f.path: f.text for f in findings(image) if f.code is Code.BLOCK_SHARED}
    assert owners.keys() == {"/many", "/other"}
    assert all(text.endswith(f": {shared}") for text in owners.values())


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (12, 99999, Code.BLOCK_RANGE),
        (3, 99999, Code.BLOCK_RANGE),
        (12, 3, Code.BLOCK_METADATA),
        (13, 0, Code.INODE_BLOCKS),
    ],
)
def test_indirect_blocks(tmp_path: Path, at: int, value: int, code: Code) -> None:
    image = made(tmp_path, *EXT2)
    patch = Patch(image)
    patch.put(patch.inode("/many") + 40 + 4 * at, "<I", value)
    assert e2fsck_finds(image)
    assert any(f.code is code and f.path == "/many" for f in findings(image))


def test_directories_that_lie_in_each_other(tmp_path: Path) -> None:
    image = made(tmp_path, *EXT4)
    debugfs(image, "mkdir /x", "mkdir /x/y", "cd /x/y", "link /x z", "cd /", "unlink /x")
    assert e2fsck_finds(image)
    found = findings(image)
    assert any(f.code is Code.UNREACHABLE and "lies in itself" in f.text for f in found)


def test_backups(tmp_path: Path) -> None:
    """e2fsck looks at them only when it needs them."""
    image = made(tmp_path, *EXT4)
    patch = Patch(image)
    patch.put(8193 * BLOCK + 0x28, "<I", 8)
    patch.put(8194 * BLOCK + 8, "<I", 8)
    texts = [f.text for f in findings(image)]
    assert texts == [
        "the backup of the superblock in group 1 disagrees with it about s_inodes_per_group",
        "the backup in group 1 of the descriptor of group 0 differs",
    ]


def test_backups_in_all_groups_are_not_compared_descriptor_by_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts in them may be out of date; of what is elsewhere, only the block that says so is."""
    per_group, count = 256, 32
    image = tmp_path / "fs.img"
    features = "^metadata_csum,^sparse_super,^resize_inode,^has_journal,^uninit_bg"
    options = ["-t", "ext4", "-b", "1024", "-g", str(per_group), "-N", "256", "-O", features]
    make_image(image, "8M", *options)
    patch = Patch(image)
    size = patch.get(1024 + 0xFE, "<H") or 32
    compared: list[int] = []
    real = groups._compare_descriptors

    def counted(context: Context, index: int, block: int, first: int) -> None:
        compared.append(block)
        real(context, index, block, first)

    monkeypatch.setattr(groups, "_compare_descriptors", counted)
    of_group_9 = (1 + 9 * per_group + 1) * BLOCK  # the first block of its copy of the descriptors
    patch.put(of_group_9 + 3 * size + 0x0C, "<H", 77)
    assert findings(image) == []
    assert not compared
    patch.put(of_group_9 + 3 * size + 0x08, "<I", 77)
    texts = [f.text for f in findings(image)]
    assert texts == ["the backup in group 9 of the descriptor of group 3 differs"]
    assert compared == [of_group_9 // BLOCK]
    assert Superblock.parse(bytes(patch.raw[1024:2048])).groups_count == count


def test_a_block_of_attributes_that_is_shared_with_a_file(tmp_path: Path) -> None:
    image = made(tmp_path, *EXT4)
    patch = Patch(image)
    patch.put(patch.leaf + 12 + 8, "<I", patch.get(patch.inode("/file") + 0x68))
    assert e2fsck_finds(image)
    owners = {f.path for f in findings(image) if f.code is Code.BLOCK_SHARED}
    assert owners == {"/many", "/file"}


# --- hostile -----------------------------------------------------------------


def test_trees_that_lead_back_into_themselves_end(tmp_path: Path) -> None:
    """Every inode begins a tree of three levels, in which every block is the first one."""
    image = made(tmp_path, *EXT2)
    patch = Patch(image)
    block = 11000
    patch.raw[block * BLOCK : (block + 1) * BLOCK] = struct.pack("<I", block) * (BLOCK // 4)
    first = patch.inode("<12>")
    for at in range(first, first + 100 * 128, 128):
        struct.pack_into("<H", patch.raw, at, 0o100644)
        struct.pack_into("<H", patch.raw, at + 26, 1)
        struct.pack_into("<15I", patch.raw, at + 40, *[block] * 15)
    image.write_bytes(patch.raw)
    with bounded_time():
        found = findings(image)
    assert len(found) > 100


def test_one_entry_for_every_block(tmp_path: Path) -> None:
    """What each of many inodes claims is the whole image."""
    image = made(tmp_path, *EXT4)
    patch = Patch(image)
    first = patch.inode("<12>")
    for at in range(first, first + 100 * 256, 256):
        struct.pack_into("<H", patch.raw, at, 0o100644)
        struct.pack_into("<H", patch.raw, at + 26, 1)
        struct.pack_into("<I", patch.raw, at + 32, 0x80000)
        extents = (0xF30A, 1, 4, 0, 0, 0, 12000, 0, 100)
        struct.pack_into("<HHHHIIHHI", patch.raw, at + 40, *extents)
    image.write_bytes(patch.raw)
    tracemalloc.start()
    with bounded_time():
        found = findings(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len([f for f in found if f.code is Code.BLOCK_SHARED]) >= 100
    assert peak < 80 << 20


def test_a_size_that_is_only_claimed_is_refused() -> None:
    superblock = Superblock.parse(sound(*EXT4)[BLOCK : 2 * BLOCK])
    assert tables_bytes(superblock) < 1 << 20
    superblock.disk.s_inodes_count = 1 << 31
    with pytest.raises(ImageError, match="makes no sense"):
        unusable(superblock)


@pytest.mark.parametrize(
    ("at", "text"), [(0, "has orphans"), (BLOCK - 8, "no magic"), (BLOCK - 4, "wrong checksum")]
)
def test_the_orphan_file(tmp_path: Path, at: int, text: str) -> None:
    image = made(tmp_path, "-t", "ext4", "-O", "^metadata_csum,orphan_file")
    patch = Patch(image)
    patch.put(patch.block("<12>") + at, "<I", 12345)
    assert e2fsck_finds(image)
    found = findings(image)
    assert any(f.code is Code.ORPHAN and text in f.text for f in found), [str(f) for f in found]
