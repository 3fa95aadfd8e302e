"""What is damaged makes an error; what cannot be trusted makes the file system read-only."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4 import groups, layout
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.journal import ring_of
from appliance.fsimage.ext4.superblock import Superblock
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, run
from tests.unit.fsimage.ext4_structures import Structures, seal_superblock
from tests.unit.fsimage.test_ext4_written_damage import WrittenDevice

BLOCK = 1024
FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)


@cache
def sound(*options: str) -> bytes:
    """Some files, and directories in every group."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "d").mkdir(parents=True)
        for name in ("one", "two", "d/three"):
            (tree / name).write_bytes(name.encode() * 500)
        image = make_image(
            Path(folder) / "fs.img", "8M", "-b", "1024", "-g", "2048", *options, tree=tree
        )
        filesystem = open_ext4(FileDevice(image, read_only=False), "image")
        for number in range(12):  # those in the root are spread over the groups
            filesystem.root().create(b"dir-%d" % number, DIRECTORY)
        filesystem.close()
        return image.read_bytes()


class Image:
    """A sound image, to be damaged and opened."""

    def __init__(self, *options: str) -> None:
        self.options = options or ("-t", "ext4")
        self.raw = bytearray(sound(*self.options))
        self.structures = Structures(sound(*self.options))

    def open(self) -> Ext4:
        return open_ext4(WrittenDevice(self.raw), "image")

    def bitmap(self, kind: str, index: int) -> int:
        """Where in the image a bitmap is."""
        group = self.structures.volume.group(index)
        find = groups.block_bitmap_of if kind == "block bitmap" else groups.inode_bitmap_of
        return find(group) * BLOCK

    def seal_group(self, index: int) -> None:
        self.structures.of_kind("group descriptor")[index].seal(self.raw)

    def state(self) -> int:
        return Superblock.read(WrittenDevice(self.raw)).disk.s_state

    def save(self, path: Path) -> Path:
        path.write_bytes(self.raw)
        return path


def refused(code: Code, act: Callable[[], object]) -> str:
    with pytest.raises(VfsError) as caught:
        act()
    assert caught.value.code is code, caught.value
    return caught.value.detail


def kept_reading(filesystem: Ext4) -> None:
    for name in (b"one", b"two"):
        buffers, _ = filesystem.root().lookup(name).read(0, 10_000)
        assert b"".join(buffers) == name * 500
    assert filesystem.root().lookup(b"d").lookup(b"three").attributes().size


# --- while it is served ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["block bitmap", "inode bitmap"])
@pytest.mark.parametrize("options", [("-t", "ext4"), ("-t", "ext4", "-O", "^metadata_csum")])
def test_a_damaged_bitmap_ends_writing(
    options: tuple[str, ...], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is met some time after the file system was opened. What was done before is kept."""
    image = Image(*options)
    image.raw[image.bitmap(kind, 1) + 60] ^= 0x40
    filesystem = image.open()
    before = filesystem.root().create(b"before", FILE)
    with caplog.at_level(logging.ERROR):
        refused(Code.ROFS, lambda: fill(filesystem))
        refused(Code.ROFS, lambda: before.write(0, [b"x"]))
    assert filesystem.read_only
    [sentence] = caplog.messages
    assert f"{kind} of group 1" in sentence
    assert "read-only" in sentence
    assert "e2fsck" in sentence
    kept_reading(filesystem)
    filesystem.close()
    assert image.state() & layout.STATE_ERROR_FS
    image.raw[image.bitmap(kind, 1) + 60] ^= 0x40
    saved = image.save(tmp_path / "fs.img")
    e2fsck(saved)
    said = run(["dumpe2fs", "-h", saved])
    assert "clean with errors" in said
    assert "FS Error count:           1" in said
    assert "First error time:" in said
    assert "before" in debugfs(saved, "ls /")


def fill(filesystem: Ext4) -> None:
    """Something that needs blocks and inodes of every group."""
    for number in range(3000):
        create_and_write(filesystem, number)


def create_and_write(filesystem: Ext4, number: int) -> None:
    filesystem.root().create(b"%d" % number, FILE).write(0, [b"x" * 5000])


def test_the_operation_that_meets_it_does_not_happen() -> None:
    """It had a group with room left; but half of it would rest on what cannot be trusted."""
    image = Image()
    filesystem = image.open()

    def act(operation: object) -> None:
        filesystem.volume.distrusted("block bitmap of group 1", "is strange")

    refused(Code.ROFS, lambda: filesystem.change(act))
    refused(Code.ROFS, lambda: filesystem.root().create(b"new", FILE))
    refused(Code.NOENT, lambda: filesystem.root().lookup(b"new"))
    filesystem.close()


def test_tickets_of_what_was_done_before_are_kept(tmp_path: Path) -> None:
    image = Image()
    filesystem = image.open()
    thread = threading.Thread(target=filesystem.run_in_background)
    thread.start()
    filesystem.root().create(b"before", FILE)
    ticket = filesystem.sync()
    filesystem.volume.distrusted("something", "is strange")
    assert ticket is not None
    ticket.wait()
    filesystem.commit()  # the mark, which may be in the next transaction
    filesystem.abandon()
    thread.join(10)
    again = image.open()
    assert again.root().lookup(b"before").attributes().size == 0
    assert image.state() & layout.STATE_ERROR_FS


def test_damage_in_one_object_is_an_error_of_that_object_only() -> None:
    image = Image()
    block = image.open().root().lookup(b"d").block_map.find(0).physical
    image.raw[block * BLOCK + 20] ^= 1
    filesystem = image.open()
    directory = filesystem.root().lookup(b"d")
    refused(Code.IO, lambda: directory.create(b"new", FILE))
    refused(Code.IO, lambda: directory.remove(b"three"))
    filesystem.root().create(b"new", FILE)
    assert not filesystem.read_only
    filesystem.close()
    assert not image.state() & layout.STATE_ERROR_FS


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_a_file_that_frees_what_is_free_ends_writing(kind: str) -> None:
    """Its map is wrong, or the bitmap, and then others are given what it has."""
    image = Image("-t", kind, "-O", "none" if kind == "ext2" else "^metadata_csum")
    filesystem = image.open()
    node = filesystem.root().lookup(b"one")
    first = node.block_map.find(0).physical
    index, bit = divmod(first - 1, 2048)
    at = image.bitmap("block bitmap", index)
    image.raw[at + (bit >> 3)] &= ~(1 << (bit & 7))
    descriptor = image.structures.of_kind("group descriptor")[index].offset
    (free,) = struct.unpack_from("<H", image.raw, descriptor + 0x0C)
    struct.pack_into("<H", image.raw, descriptor + 0x0C, free + 1)
    image.seal_group(index)
    filesystem = image.open()
    refused(Code.IO, lambda: filesystem.root().remove(b"one"))
    assert filesystem.read_only
    kept_reading(filesystem)


# --- what no lie can get ------------------------------------------------------------


def free_in_bitmap(image: Image, block: int) -> None:
    """Let a bitmap have a block as free, with counts and checksums to match."""
    index, bit = divmod(block - 1, 2048)
    image.raw[image.bitmap("block bitmap", index) + (bit >> 3)] &= ~(1 << (bit & 7))
    at = image.structures.of_kind("group descriptor")[index].offset
    (free,) = struct.unpack_from("<H", image.raw, at + 0x0C)
    struct.pack_into("<H", image.raw, at + 0x0C, free + 1)
    image.seal_group(index)


@pytest.mark.parametrize("what", ["bitmap", "table", "descriptors", "journal", "orphan file"])
def test_a_bitmap_that_gives_away_the_file_systems_own_blocks(what: str) -> None:
    image = Image("-t", "ext4", "-O", "orphan_file")
    volume = image.structures.volume
    group = volume.group(0)
    disk = volume.superblock.disk
    owners = {"journal": layout.EXT4_JOURNAL_INO, "orphan file": disk.s_orphan_file_inum}
    if what in owners:
        inode = inodes.read_any(volume, owners[what])
        block = image.structures.maps.of(inode).find(0).physical
    else:
        block = {
            "bitmap": groups.inode_bitmap_of(group),
            "table": group.bg_inode_table_lo + 5,
            "descriptors": 2,
        }[what]
    free_in_bitmap(image, block)
    filesystem = image.open()
    refused(Code.ROFS, lambda: fill(filesystem))
    assert filesystem.read_only
    kept_reading(filesystem)
    filesystem.close()


def test_a_damaged_bitmap_says_nothing_of_a_handle() -> None:
    """Neither that its file is there, nor that it has gone."""
    image = Image()
    handle = image.open().root().lookup(b"two").handle
    image.raw[image.bitmap("inode bitmap", 0) + 60] ^= 0x40
    filesystem = image.open()
    assert "wrong checksum" in refused(Code.IO, lambda: filesystem.resolve(handle))
    assert filesystem.read_only


def test_an_inode_that_is_in_use_is_not_given_away(tmp_path: Path) -> None:
    """The bitmap has it as free, and everything else agrees."""
    image = Image()
    number = image.open().root().lookup(b"two").inode.number
    at = image.bitmap("inode bitmap", 0)
    image.raw[at + (number - 1 >> 3)] &= ~(1 << (number - 1 & 7))
    descriptor = image.structures.of_kind("group descriptor")[0].offset
    (free,) = struct.unpack_from("<H", image.raw, descriptor + 0x0E)
    struct.pack_into("<H", image.raw, descriptor + 0x0E, free + 1)
    image.seal_group(0)
    filesystem = image.open()
    assert "in use, but free" in refused(Code.IO, lambda: filesystem.root().create(b"new", FILE))
    assert filesystem.read_only
    kept_reading(filesystem)
    filesystem.close()
    assert "two" in debugfs(image.save(tmp_path / "fs.img"), "ls /")


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
@pytest.mark.parametrize("target", ["table", "journal", "superblock"])
def test_a_file_that_claims_the_file_systems_own_blocks_cannot_be_used(
    kind: str, target: str
) -> None:
    """To write to it would be to write over the inode table; to remove it would give that away."""
    image = Image("-t", kind, *(["-O", "^metadata_csum"] if kind == "ext4" else ["-j"]))
    volume = image.structures.volume
    node = image.open().root().lookup(b"one")
    block = {"table": volume.group(0).bg_inode_table_lo, "superblock": 1}.get(target)
    if block is None:
        block = ring_of(volume).physical(3)
    where = node.inode.place[0] * BLOCK + node.inode.place[1] + 0x28
    struct.pack_into("<I", image.raw, where + (20 if kind == "ext4" else 0), block)
    before = bytes(image.raw[block * BLOCK : block * BLOCK + BLOCK])
    filesystem = image.open()
    node = filesystem.root().lookup(b"one")
    for use in (
        lambda: node.write(0, [b"x" * BLOCK]),
        lambda: node.read(0, 10),
        lambda: filesystem.root().remove(b"one"),
    ):
        refused(Code.IO, use)
    assert not filesystem.read_only
    filesystem.root().create(b"new", FILE)
    filesystem.abandon()
    assert image.raw[block * BLOCK : block * BLOCK + BLOCK] == before or target != "table"


# --- as it is opened --------------------------------------------------------------


def mark(image: Image, state: int) -> None:
    struct.pack_into("<H", image.raw, layout.SUPERBLOCK_OFFSET + 0x3A, state)
    seal_superblock(image.raw)


DOUBTS = [
    (("-t", "ext4"), layout.STATE_VALID_FS | layout.STATE_ERROR_FS, "marked as having errors"),
    (("-t", "ext2"), 0, "was not unmounted"),
]


@pytest.mark.parametrize(("options", "state", "text"), DOUBTS)
def test_what_says_that_it_may_be_wrong_is_checked_first(
    options: tuple[str, ...], state: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image(*options)
    mark(image, state)
    with caplog.at_level(logging.WARNING):
        filesystem = image.open()
    assert text in caplog.text
    assert "finds nothing wrong" in caplog.text
    filesystem.root().create(b"new", FILE)
    filesystem.close()


@pytest.mark.parametrize(("options", "state", "text"), DOUBTS)
def test_what_is_wrong_indeed_is_served_read_only(
    options: tuple[str, ...], state: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The lie that no writer can see: a block of a file that is free in its bitmap."""
    image = Image(*options)
    block = image.open().root().lookup(b"two").block_map.find(0).physical
    free_in_bitmap(image, block)
    mark(image, state)
    before = bytes(image.raw)
    with caplog.at_level(logging.WARNING):
        filesystem = image.open()
    assert text in caplog.text
    assert "bitmap" in caplog.text
    assert "e2fsck" in caplog.text
    refused(Code.ROFS, lambda: filesystem.root().create(b"new", FILE))
    kept_reading(filesystem)
    filesystem.close()
    assert image.raw == before


def test_what_is_too_large_to_be_checked_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image("-t", "ext2")
    mark(image, 0)
    monkeypatch.setattr("appliance.image_limits.CHECKED_BLOCKS_MAX", 100)
    assert image.open().read_only


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (0x00, "<I", 3),  # its block bitmap where the backup of the superblock is
        (0x0C, "<H", 0xFFFF),  # free blocks
        (0x0E, "<H", 0xFFFF),  # free inodes
        (0x10, "<H", 0xFFFF),  # directories
    ],
)
def test_descriptors_that_lie_are_not_written_with(
    at: int, form: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image()
    descriptor = image.structures.of_kind("group descriptor")[1]
    struct.pack_into(form, image.raw, descriptor.offset + at, value)
    image.seal_group(1)
    before = bytes(image.raw)
    with caplog.at_level(logging.ERROR):
        filesystem = image.open()
    assert "group descriptor 1" in caplog.text or "block 3 is said to hold" in caplog.text
    assert "read-only" in caplog.text
    refused(Code.ROFS, lambda: filesystem.root().create(b"new", FILE))
    kept_reading(filesystem)
    filesystem.close()
    assert image.raw == before


# --- counts that are wrong --------------------------------------------------------


@pytest.mark.parametrize("options", [("-t", "ext4", "-O", "^metadata_csum"), ("-t", "ext2")])
def test_counts_in_an_inode_that_are_too_low(options: tuple[str, ...]) -> None:
    """i_blocks and i_links_count that would become negative."""
    image = Image(*options)
    for name in (b"one", b"d"):
        node = image.open().root().lookup(name)
        at = node.inode.place[0] * BLOCK + node.inode.place[1]
        struct.pack_into("<I", image.raw, at + 0x1C, 0)
        if name == b"d":
            struct.pack_into("<H", image.raw, at + layout.I_LINKS_COUNT_OFFSET, 1)
    filesystem = image.open()
    directory = filesystem.root().lookup(b"d")
    directory.create(b"sub", DIRECTORY)
    directory.rmdir(b"sub")
    assert directory.lookup(b"three").attributes().size
    filesystem.root().remove(b"one")
    filesystem.close()
