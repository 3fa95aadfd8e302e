"""Structures that no honest program writes: loops, impossible sizes, what belongs to others.

Each test takes a sound image without checksums, so that nothing but the structure itself is wrong,
changes it, and expects an I/O error of the object, at once.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.extents import BlockMaps, ExtentTree
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType
from tests.unit.fsimage.damage import MemoryDevice, bounded_time
from tests.unit.fsimage.ext4_images import make_image, run

BLOCK = 1024
FILE_BLOCKS = 400
MiB = 1 << 20


@cache
def sound(kind: str) -> bytes:
    """An image with a file of many extents, a large file and an indexed directory."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "d").mkdir(parents=True)
        for number in range(300):
            (tree / "d" / f"a-name-of-some-length-{number:04d}").touch()
        with (tree / "file").open("wb") as file:
            for number in range(0, FILE_BLOCKS, 2):
                file.seek(number * BLOCK)
                file.write(b"%04d" % number * (BLOCK // 4))
        (tree / "link").symlink_to("t" * 100)
        (tree / "short").symlink_to("target")
        options = ["-t", kind, "-b", "1024", "-O", "^metadata_csum", "-m", "0"]
        image = make_image(Path(folder) / "fs.img", "4M", *options, tree=tree)
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
        return image.read_bytes()


class Image:
    """An image that can be changed, and looked at afterwards."""

    def __init__(self, kind: str = "ext4") -> None:
        self.raw = bytearray(sound(kind))

    def open(self) -> Ext4:
        return open_ext4(MemoryDevice(self.raw, reads_max=5000), "image")

    def node(self, name: bytes) -> Ext4Node:
        return self.open().root().lookup(name)

    def inode_at(self, name: bytes) -> int:
        """Where in the image the inode of a name is."""
        filesystem = self.open()
        number = filesystem.root().lookup(name).inode.number
        block, offset = filesystem.volume.inode_location(number)
        return block * BLOCK + offset

    def put(self, at: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.raw, at, *values)

    def block_of(self, name: bytes, logical: int) -> int:
        """Where in the image a block of a file is."""
        node = self.node(name)
        extent = node.filesystem.maps.of(node.inode).find(logical)
        assert extent.physical
        return (extent.physical + logical - extent.logical) * BLOCK

    def tree_block(self) -> int:
        """Where the first block of the file's extent tree below its root is."""
        return int.from_bytes(self.raw[self.inode_at(b"file") + 0x38 :][:4], "little") * BLOCK


@pytest.fixture
def image() -> Image:
    return Image()


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    with bounded_time():
        yield


def damaged(node: Ext4Node) -> None:
    """A file cannot be read, a directory neither listed nor searched."""
    uses: list[Callable[[], object]] = [lambda: node.read(0, MiB)]
    if node.attributes().type is FileType.DIRECTORY:
        uses = [lambda: node.entries(0, 1000), lambda: node.lookup(b"nothing")]
    for use in uses:
        with pytest.raises(VfsError) as caught:
            use()
        assert caught.value.code is Code.IO


def test_the_image_is_sound(image: Image) -> None:
    filesystem = image.open()
    node = filesystem.root().lookup(b"file")
    buffers, _ = node.read(0, MiB)
    assert sum(map(len, buffers)) == node.inode.size
    assert isinstance(filesystem.maps.of(node.inode), ExtentTree)
    assert image.raw[image.tree_block() :][:2] == b"\x0a\xf3"
    directory = filesystem.root().lookup(b"d")
    assert directory.inode.has_flag(layout.INDEX_FL)
    assert len(directory.entries(0, 1000)) == 302


# --- extent trees ------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (0x28, "<H", 0),  # eh_magic
        (0x2A, "<H", 5),  # eh_entries > eh_max
        (0x2C, "<H", 500),  # eh_max
        (0x2A, "<I", 0),  # no entries, and no room for any
        (0x2E, "<H", 6),  # eh_depth
        (0x2E, "<H", 0),
        (0x2E, "<H", 2),
        (0x34, "<I", 0xFFFFFFFF),  # ei_block beyond that of its first child
        (0x38, "<I", 0xFFFFFFFF),  # ei_leaf_lo
        (0x38, "<I", 0),
        (0x3C, "<H", 1),  # ei_leaf_hi
    ],
)
def test_a_root_that_cannot_be(image: Image, at: int, layout: str, value: int) -> None:
    image.put(image.inode_at(b"file") + at, layout, value)
    damaged(image.node(b"file"))


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (0x00, "<H", 0),  # eh_magic
        (0x02, "<H", 0xFFFF),  # eh_entries
        (0x02, "<I", 0x10001),  # one of one
        (0x06, "<H", 1),  # eh_depth
        (0x10, "<H", 0),  # ee_len
        (0x10, "<H", 3),  # ee_len: into the next extent
        (0x12, "<H", 1),  # ee_start_hi
        (0x14, "<I", 0),  # ee_start_lo
        (0x14, "<I", 0xFFFFFF00),
        (0x0C, "<I", 7),  # ee_block: behind the next extent
        (0x18, "<I", 0),  # ee_block of the second: that of the first
    ],
)
def test_a_leaf_that_cannot_be(image: Image, at: int, layout: str, value: int) -> None:
    image.put(image.tree_block() + at, layout, value)
    damaged(image.node(b"file"))


def test_a_tree_that_contains_itself(image: Image) -> None:
    """The block below the root says that the next level is in itself."""
    block = image.tree_block()
    root = image.inode_at(b"file") + 0x28
    image.put(root + 6, "<H", 5)
    for depth in range(5):
        image.put(block, "<HHHHI", layout.EXTENT_MAGIC, 1, 84, depth, 0)
        image.put(block + 12, "<IIHH", 0, block // BLOCK, 0, 0)
        damaged(image.node(b"file"))


def test_an_index_without_entries(image: Image) -> None:
    image.put(image.inode_at(b"file") + 0x2A, "<H", 0)
    damaged(image.node(b"file"))


# --- indirect blocks ---------------------------------------------------------


def test_an_indirect_block_that_names_itself() -> None:
    """All three levels are one block full of its own number: a file as large as it says, made of
    that block, in which every read comes to an end."""
    image = Image("ext2")
    inode = image.inode_at(b"file")
    block = int.from_bytes(image.raw[inode + 0x28 + 48 :][:4], "little")
    image.put(block * BLOCK, "<256I", *[block] * 256)
    for slot in (12, 13, 14):
        image.put(inode + 0x28 + 4 * slot, "<I", block)
    image.put(inode + 0x6C, "<I", 1)
    node = image.node(b"file")
    for offset in (0, 20 * BLOCK, 300 * BLOCK, 70_000 * BLOCK, (1 << 32) - MiB):
        buffers, _ = node.read(offset, 64 * BLOCK)
        assert sum(map(len, buffers)) == 64 * BLOCK


@pytest.mark.parametrize("slot", range(15))
def test_a_block_number_beyond_the_end(slot: int) -> None:
    image = Image("ext2")
    inode = image.inode_at(b"file")
    image.put(inode + 0x28 + 4 * slot, "<I", 0xFFFFFFF0)
    image.put(inode + 0x6C, "<I", 1)
    node = image.node(b"file")
    first = {12: 12, 13: 12 + 256, 14: 12 + 256 + 256 * 256}.get(slot, slot)
    with pytest.raises(VfsError) as caught:
        node.read(first * BLOCK, 1)
    assert caught.value.code is Code.IO


# --- sizes -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "ext2"])
def test_a_file_as_large_as_a_number_can_say(kind: str) -> None:
    """What is not there is a hole."""
    image = Image(kind)
    image.put(image.inode_at(b"file") + 0x6C, "<I", 0x7FFF_FFFF)
    node = image.node(b"file")
    for offset in (1 << 41, 1 << 50, node.inode.size - 1000):
        buffers, _ = node.read(offset, MiB)
        assert not any(map(any, buffers))


def test_a_negative_size(image: Image) -> None:
    image.put(image.inode_at(b"file") + 0x6C, "<I", 0x8000_0000)
    with pytest.raises(VfsError, match="size"):
        image.node(b"file")


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 5 * BLOCK, 1 << 31, 0xFFFF_FC00])
def test_a_directory_of_another_size(image: Image, size: int) -> None:
    """Too small for its index, or larger than what it has blocks for."""
    image.put(image.inode_at(b"d") + 4, "<I", size)
    damaged(image.node(b"d"))


@pytest.mark.parametrize("size", [60, 101, 1025, 0xFFFF_FFFF])
def test_a_symbolic_link_of_another_size(image: Image, size: int) -> None:
    for name in (b"short", b"link"):
        at = image.inode_at(name)
        image.put(at + 4, "<I", size)
    with pytest.raises(VfsError):
        image.node(b"short").readlink()
    if size > BLOCK:
        with pytest.raises(VfsError):
            image.node(b"link").readlink()


# --- directories -------------------------------------------------------------


def test_a_directory_in_which_a_block_occurs_twice(image: Image) -> None:
    node = image.node(b"d")
    first = node.filesystem.maps.of(node.inode).find(0)
    at = image.inode_at(b"d") + 0x28
    image.put(at, "<HHHHI", layout.EXTENT_MAGIC, 2, 4, 0, 0)
    image.put(at + 12, "<IHHI", 0, 4, 0, first.physical)
    image.put(at + 24, "<IHHI", 4, 8, 0, first.physical + 3)
    damaged(image.node(b"d"))


def test_a_directory_with_a_hole(image: Image) -> None:
    at = image.inode_at(b"d") + 0x28
    image.put(at + 12, "<I", 1)
    damaged(image.node(b"d"))


@pytest.mark.parametrize("length", [0, 1, 8, 11, 13, 4, 2000, 0xFFFC])
def test_an_entry_of_a_length_that_cannot_be(image: Image, length: int) -> None:
    block = image.block_of(b"d", 1)
    image.put(block + 4, "<H", length)
    with pytest.raises(VfsError, match="an entry of"):
        image.node(b"d").entries(0, 1000)


@pytest.mark.parametrize("name", [b"a/b", b"a\0b", b"/"])
def test_a_name_that_cannot_be(image: Image, name: bytes) -> None:
    block = image.block_of(b"d", 1)
    image.raw[block + 6] = len(name)
    image.raw[block + 8 : block + 8 + len(name)] = name
    with pytest.raises(VfsError, match="an entry b"):
        image.node(b"d").entries(0, 1000)


def test_half_an_entry(image: Image) -> None:
    block = image.block_of(b"d", 1)
    image.put(block, "<IHBB", 0, BLOCK - 4, 0, 0)
    with pytest.raises(VfsError, match="half an entry"):
        image.node(b"d").entries(0, 1000)


# --- indexes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (0x1C, "B", 9),  # hash_version
        (0x1D, "B", 7),  # info_length
        (0x1E, "B", 2),  # indirect_levels
        (0x1E, "B", 1),  # which makes index blocks of the leaves
        (0x20, "<H", 0),  # limit
        (0x20, "<H", 1000),
        (0x22, "<H", 0),  # count
        (0x22, "<H", 1000),
        (0x24, "<I", 0),  # the first leaf: the root itself
        (0x24, "<I", 2),  # the first leaf: also the second
        (0x24, "<I", 0xFFFF),  # the first leaf: none
        (0x28, "<I", 0xFFFFFFF0),  # the second hash: above the third
    ],
)
def test_an_index_that_cannot_be(image: Image, at: int, layout: str, value: int) -> None:
    image.put(image.block_of(b"d", 0) + at, layout, value)
    with pytest.raises(VfsError) as caught:
        image.node(b"d").entries(0, 1000)
    assert caught.value.code is Code.IO


def test_a_name_in_the_wrong_leaf(image: Image) -> None:
    """Listing it would give a cookie from which the listing starts again: an endless loop for the
    client."""
    root = image.block_of(b"d", 0)
    first, second = (image.raw[root + at : root + at + 4] for at in (0x24, 0x2C))
    image.raw[root + 0x24 : root + 0x28], image.raw[root + 0x2C : root + 0x30] = second, first
    with pytest.raises(VfsError, match="does not look for it"):
        image.node(b"d").entries(0, 1000)


def test_a_parent_that_is_none(image: Image) -> None:
    root = image.block_of(b"d", 0)
    for number in (0, 0xFFFFFFFF, 8, image.node(b"file").inode.number):
        image.put(root + 12, "<I", number)
        with pytest.raises(VfsError) as caught:
            image.node(b"d").parent()
        assert caught.value.code is Code.IO


# --- inodes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (0x00, "<H", 0x3000),  # i_mode: of no type
        (0x80, "<H", 200),  # i_extra_isize
        (0x20, "<I", layout.EA_INODE_FL),  # i_flags
        (0x1A, "<H", 0),  # i_links_count
    ],
)
def test_an_inode_that_cannot_be(image: Image, at: int, layout: str, value: int) -> None:
    image.put(image.inode_at(b"file") + at, layout, value)
    with pytest.raises(VfsError) as caught:
        image.node(b"file")
    assert caught.value.code is Code.IO


@pytest.mark.parametrize("mode", [0, 0o755, 0o100644, 0o170000])
def test_a_root_that_is_no_directory(image: Image, mode: int) -> None:
    block, offset = image.open().volume.inode_location(layout.EXT4_ROOT_INO)
    image.put(block * BLOCK + offset, "<H", mode)
    with pytest.raises((ImageError, VfsError)):
        image.open()


def test_inline_data_that_is_not_there(image: Image) -> None:
    at = image.inode_at(b"file")
    flags = struct.unpack_from("<I", image.raw, at + 0x20)[0]
    image.put(at + 0x20, "<I", flags | layout.INLINE_DATA_FL)
    with pytest.raises(VfsError, match="holds 60 bytes of"):
        image.node(b"file").read(0, 100)


@pytest.mark.parametrize("offset", [4, 2000, 0xFFFF])
def test_an_attribute_beyond_the_inode(image: Image, offset: int) -> None:
    at = image.inode_at(b"file")
    image.put(at + 0x20, "<I", layout.INLINE_DATA_FL)
    image.put(at + 160, "<IBBHIII", layout.XATTR_MAGIC, 4, 7, offset, 0, 90, 0)
    image.raw[at + 180 : at + 184] = b"data"
    with pytest.raises(VfsError, match=r"damaged attributes|holds 60 bytes"):
        image.node(b"file").read(0, 100)


def test_a_group_descriptor_that_points_outside(image: Image) -> None:
    for table in (0, 0xFFFF_FFFF, 4090):
        image.put(2 * BLOCK + 8, "<I", table)
        with pytest.raises(VfsError, match="inode table out of range"):
            image.open()


def test_memory_is_bounded(image: Image) -> None:
    """A directory of one block, as often as the image has blocks, would be 4,000 times its size."""
    at = image.inode_at(b"d") + 0x28
    block = image.block_of(b"d", 1) // BLOCK
    flags = struct.unpack_from("<I", image.raw, at - 8)[0]
    image.put(at - 8, "<I", flags & ~layout.INDEX_FL)
    image.put(at - 0x28 + 4, "<I", 4000 * BLOCK)
    image.put(at, "<HHHHI", layout.EXTENT_MAGIC, 4, 4, 0, 0)
    for entry in range(4):
        image.put(at + 12 + 12 * entry, "<IHHI", entry * 1000, 1000, 0, block)
    tracemalloc.start()
    damaged(image.node(b"d"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MiB


def test_every_sentence_is_logged_once(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.put(image.inode_at(b"file") + 0x28, "<H", 0)
    node = image.node(b"file")
    for _ in range(10):
        damaged(node)
    assert len(caplog.messages) == 1
    assert "inode" in caplog.text and "magic" in caplog.text


def test_a_journal_inode_can_be_read_but_not_named(image: Image) -> None:
    volume = image.open().volume
    journal = inodes.read_any(volume, 8)
    assert BlockMaps(volume).of(journal).find(0).physical
    with pytest.raises(VfsError, match="not one that a directory may name"):
        inodes.read(volume, 8)
