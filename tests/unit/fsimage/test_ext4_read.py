"""Whatever mke2fs makes of a tree, our reader shows as that tree. (What the kernel makes, and
what only the kernel knows, is in tests/interop/test_images_loop.py.)"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance import limits
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode, Node, SetAttributes
from tests.unit.fsimage.damage import MemoryDevice
from tests.unit.fsimage.ext4_images import (
    contents,
    debugfs,
    e2fsck,
    listing,
    make_image,
    open_ro,
    run,
    sample_tree,
    view,
)

MATRIX = {
    "default": ["-t", "ext4"],
    "1k": ["-t", "ext4", "-b", "1024"],
    "2k": ["-t", "ext4", "-b", "2048"],
    "4k": ["-t", "ext4", "-b", "4096"],
    "64k": ["-t", "ext4", "-b", "65536"],
    "csum-seed": ["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
    "32bit": ["-t", "ext4", "-O", "^64bit"],
    "no-csum": ["-t", "ext4", "-O", "^metadata_csum"],
    "uninit-bg": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    "no-extents": ["-t", "ext4", "-O", "^extent,^64bit"],
    "no-flex-bg": ["-t", "ext4", "-O", "^flex_bg"],
    "small-groups": ["-t", "ext4", "-b", "1024", "-g", "1024"],
    "meta-bg": ["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"],
    "inline-data": ["-t", "ext4", "-O", "inline_data"],
    "large-dir": ["-t", "ext4", "-b", "1024", "-O", "large_dir"],
    "no-index": ["-t", "ext4", "-O", "^dir_index"],
    "casefold": ["-t", "ext4", "-O", "casefold"],
    "quota": ["-t", "ext4", "-I", "512", "-O", "quota,project"],
    "mmp": ["-t", "ext4", "-O", "mmp"],
    "ea-inode": ["-t", "ext4", "-O", "ea_inode,verity"],
    "bigalloc": ["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
    "bigalloc-1k": ["-t", "ext4", "-b", "1024", "-O", "bigalloc"],
    "sparse-super2": ["-t", "ext4", "-b", "1024", "-O", "sparse_super2"],
    "128-byte-inodes": ["-t", "ext4", "-I", "128"],
    "ext3": ["-t", "ext3"],
    "ext2": ["-t", "ext2", "-b", "4096"],
    "ext2-revision-0": ["-t", "ext2", "-r", "0", "-O", "none"],
}


@pytest.mark.parametrize("indexed", [False, True], ids=["as made", "after e2fsck -D"])
@pytest.mark.parametrize("name", MATRIX)
def test_a_tree(tmp_path: Path, name: str, indexed: bool) -> None:
    tree = sample_tree(tmp_path / "tree")
    size = "100M" if name == "64k" else "24M"
    image = make_image(tmp_path / "fs.img", size, *MATRIX[name], tree=tree)
    if name != "mmp":  # with which e2fsck waits for ten seconds whether somebody else comes
        # (mke2fs forgets to count the tree in the quotas.)
        options = "-fyD" if indexed else "-fy"
        run(["sh", "-c", f"e2fsck {options} {image} > /dev/null; test $? -le 1"])
        e2fsck(image)
    before = image.read_bytes()
    filesystem = open_ro(image)
    found = {bytes.fromhex(path): what for path, what in view(filesystem).items()}
    del found[b"./lost+found"]
    compare(tree, found)
    blocks, free, inodes, free_inodes = counts(image)
    statistics = filesystem.statistics()
    assert statistics.free_bytes == free
    assert statistics.total_bytes <= blocks
    assert (statistics.total_files, statistics.free_files) == (inodes, free_inodes)
    filesystem.close()
    assert image.read_bytes() == before


def compare(tree: Path, found: dict[bytes, dict[str, object]]) -> None:
    """What was found in the image is what is in the tree."""
    top = os.fsencode(tree)
    paths = [b"."] + [
        b"." + os.path.join(folder, name)[len(top) :]
        for folder, folders, files in os.walk(top)
        for name in folders + files
    ]
    assert found.keys() == set(paths)
    for path, what in found.items():
        status = os.lstat(top + path[1:])
        assert what["mode"] == status.st_mode
        assert (what["uid"], what["gid"]) == (status.st_uid, status.st_gid)
        if path != b".":
            assert what["times"][1] // 10**9 == status.st_mtime_ns // 10**9  # type: ignore[index]
        if "sha256" in what:
            assert what["size"] == status.st_size
            assert what["nlink"] == status.st_nlink
        if "target" in what:
            assert bytes.fromhex(str(what["target"])) == os.readlink(top + path[1:])
    same_bytes(tree, found)


def same_bytes(tree: Path, found: dict[bytes, dict[str, object]]) -> None:
    """sha256sum of the files of the tree, and what was read of the image."""
    said = run(["sh", "-c", f"cd {tree}; find . -type f -exec sha256sum {{}} +"])
    sums = {line[66:].encode(): line[:64] for line in said.splitlines()}
    assert sums == {path: what["sha256"] for path, what in found.items() if "sha256" in what}


def counts(image: Path) -> tuple[int, int, int, int]:
    """Blocks and free blocks in bytes, inodes and free inodes, as dumpe2fs has them."""
    said = run(["dumpe2fs", "-h", image])

    def number(name: str) -> int:
        found = re.search(rf"^{name}: +(\d+)", said, re.MULTILINE)
        assert found
        return int(found[1])

    size = number("Block size")
    return (
        number("Block count") * size,
        number("Free blocks") * size,
        number("Inode count"),
        number("Free inodes"),
    )


# --- one image, many questions -----------------------------------------------


@cache
def raw_image(*options: str) -> bytes:
    with TemporaryDirectory() as folder:
        tree = sample_tree(Path(folder) / "tree")
        return make_image(
            Path(folder) / "fs.img", "8M", "-t", "ext4", *options, tree=tree
        ).read_bytes()


@pytest.fixture
def filesystem() -> Ext4:
    return open_ext4(MemoryDevice(raw_image()), "image")


def changed(folder: Path, *commands: str) -> Ext4:
    """The image after some commands of debugfs."""
    image = folder / "changed.img"
    image.write_bytes(raw_image())
    debugfs(image, *commands)
    return open_ext4(MemoryDevice(image.read_bytes()), "image")


@contextmanager
def raises(code: Code) -> Iterator[None]:
    with pytest.raises(VfsError) as caught:
        yield
    assert caught.value.code is code


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 100_000, 299_999])
@pytest.mark.parametrize("count", [0, 1, 4096, 5000, 200_000, 1 << 20])
def test_any_part_of_a_file(filesystem: Ext4, offset: int, count: int) -> None:
    node = filesystem.root().lookup(b"size-300000")
    whole = b"".join(contents(node))
    buffers, at_end = node.read(offset, count)
    assert b"".join(buffers) == whole[offset : offset + count]
    assert at_end == (offset + count >= len(whole))


def test_beyond_the_end_of_a_file(filesystem: Ext4) -> None:
    node = filesystem.root().lookup(b"size-60")
    for offset in (60, 61, 1 << 62):
        assert node.read(offset, 10) == ([], True)


def test_a_hole_is_zeros_that_are_shared(filesystem: Ext4) -> None:
    node = filesystem.root().lookup(b"sparse")
    buffers, at_end = node.read(10_000, 500_000)
    assert b"".join(buffers) == bytes(500_000)
    assert not at_end
    (first,), _ = node.read(0, 4096)
    (second,), _ = node.read(8192, 4096)
    assert isinstance(first, memoryview) and first.readonly
    assert isinstance(second, memoryview) and first.obj is second.obj


def test_what_is_contiguous_is_one_buffer(filesystem: Ext4) -> None:
    buffers, _ = filesystem.root().lookup(b"size-300000").read(0, 1 << 20)
    assert [len(buffer) for buffer in buffers] == [300_000]


def test_names(filesystem: Ext4) -> None:
    root = filesystem.root()
    assert root.lookup(b"short").readlink() == b"size-60"
    assert root.lookup(b"long").readlink() == b"l" * 200
    assert root.lookup(b"hard") is root.lookup(b"size-5000")
    inner = root.lookup(b"a").lookup(b"b").lookup(b"c")
    assert inner.parent().parent() is root.lookup(b"a")
    assert root.parent() is root
    for name in (b"nothing", b"size-6", b"SHORT", b"x" * 255):
        with raises(Code.NOENT):
            root.lookup(name)


def test_a_handle_is_good_after_a_restart(filesystem: Ext4) -> None:
    again = open_ext4(MemoryDevice(raw_image()), "image")
    assert again.fsid == filesystem.fsid != 0
    node = filesystem.root().lookup(b"many").lookup(b"entry-number-0042")
    assert len(node.handle) <= limits.HANDLE_BYTES_MAX - 13
    assert again.resolve(node.handle).attributes() == node.attributes()
    assert again.resolve(filesystem.root().handle).attributes().fileid == 2


def test_a_handle_of_what_is_gone(filesystem: Ext4, tmp_path: Path) -> None:
    handle = filesystem.root().lookup(b"size-60").handle
    with raises(Code.STALE):
        changed(tmp_path, "rm size-60").resolve(handle)
    other = changed(tmp_path, "set_inode_field size-60 generation 77")
    with raises(Code.STALE):
        other.resolve(handle)
    node = other.root().lookup(b"size-60")
    assert other.resolve(node.handle) is node
    free = struct.pack("<QI", filesystem.statistics().total_files - 1, 0)
    beyond = struct.pack("<QI", 1 << 40, 0)
    for stale in (free, beyond):
        with raises(Code.STALE):
            filesystem.resolve(stale)


def test_what_was_never_a_handle(filesystem: Ext4) -> None:
    """Among them are those of inodes that the file system keeps for itself: 8 is the journal."""
    journal, resize = struct.pack("<QI", 8, 0), struct.pack("<QI", 7, 0)
    for handle in (b"", b"x" * 11, b"x" * 13, struct.pack("<QI", 0, 0), journal, resize):
        with raises(Code.BADHANDLE):
            filesystem.resolve(handle)


def test_two_file_systems_of_the_same_uuid_differ() -> None:
    raw = bytearray(raw_image("-O", "^metadata_csum"))
    first = open_ext4(MemoryDevice(raw), "image").fsid
    struct.pack_into("<I", raw, 1024 + 0x108, 1)  # s_mkfs_time
    assert open_ext4(MemoryDevice(raw), "image").fsid != first


def test_a_deleted_file_that_is_still_named(tmp_path: Path) -> None:
    """Damage, not an old handle: the entry is listed, but leads to an error."""
    damaged = changed(tmp_path, "set_inode_field size-60 links_count 0")
    with raises(Code.IO):
        damaged.root().lookup(b"size-60")
    entry = next(entry for entry in listing(damaged.root()) if entry.name == b"size-60")
    assert entry.node is None


def test_a_name_for_an_inode_that_has_none(tmp_path: Path) -> None:
    damaged = changed(tmp_path, "ln <8> journal")
    with raises(Code.IO):
        damaged.root().lookup(b"journal")


def test_attributes(tmp_path: Path) -> None:
    made = changed(
        tmp_path,
        "mknod null c 1 3",
        "mknod disk b 259 60000",
        "mknod pipe p",
        "set_inode_field pipe mode 0144777",
        "set_inode_field pipe uid 4000000000",
        "set_inode_field pipe gid 70000",
        "set_inode_field pipe mtime @0x80000000",
        "set_inode_field pipe mtime_extra 0x4",
        "set_inode_field pipe ctime @0xffffffff",
        "set_inode_field pipe ctime_extra 0x3",
        "set_inode_field pipe version 5",
    ).root()
    assert made.lookup(b"null").attributes().rdev == (1, 3)
    assert made.lookup(b"disk").attributes().rdev == (259, 60000)
    attributes = made.lookup(b"pipe").attributes()
    assert (attributes.type, attributes.mode) == (FileType.SOCKET, 0o4777)
    assert (attributes.uid, attributes.gid) == (4_000_000_000, 70_000)
    assert attributes.mtime_ns == -(1 << 31) * 10**9 + 1
    assert attributes.ctime_ns == (3 * (1 << 32) - 1) * 10**9
    assert attributes.change == attributes.ctime_ns + 5


def test_statistics_keep_what_is_reserved(filesystem: Ext4) -> None:
    statistics = filesystem.statistics()
    assert (
        statistics.available_bytes
        == statistics.free_bytes - 8 * (1 << 20) * 5 // 100 // 1024 * 1024
    )
    assert statistics.available_files == statistics.free_files


def test_nothing_can_be_changed(filesystem: Ext4) -> None:
    root = filesystem.root()
    file = root.lookup(b"size-60")
    assert filesystem.read_only
    for change in (
        lambda: file.set_attributes(SetAttributes(mode=0)),
        lambda: file.write(0, [b"x"]),
        lambda: root.create(b"new", NewNode(FileType.REGULAR, 0, 0, 0)),
        lambda: root.link(b"new", file),
        lambda: root.remove(b"size-60"),
        lambda: root.rmdir(b"a"),
        lambda: root.rename(b"size-60", root, b"new"),
    ):
        with raises(Code.ROFS):
            change()


# --- what is refused as a whole ----------------------------------------------


def refused(raw: bytes | bytearray, words: str) -> ImageError:
    with pytest.raises(ImageError, match=words) as caught:
        open_ext4(MemoryDevice(raw), "image")
    return caught.value


def patched(offset: int, layout: str, value: int) -> bytearray:
    """An image without checksums, with another value in its superblock."""
    raw = bytearray(raw_image("-O", "^metadata_csum"))
    struct.pack_into(layout, raw, 1024 + offset, value)
    return raw


@pytest.mark.parametrize(
    ("bit", "name"), [(0x10000, "encrypt"), (0x1000, "dirdata"), (1, "compression")]
)
def test_features_that_cannot_be_read(bit: int, name: str) -> None:
    error = refused(patched(0x60, "<I", 0x2C2 | bit), f"cannot be read here: {name}$")
    assert "--directory" in error.hint


def test_features_of_the_future() -> None:
    refused(patched(0x60, "<I", 0x2C2 | 1 << 30 | 1 << 25), "FEATURE_I25, FEATURE_I30")


def test_features_for_writers_only() -> None:
    raw = patched(0x64, "<I", 0xFFFF_0000 | 0x2A)
    assert open_ext4(MemoryDevice(raw), "image").root().lookup(b"size-60").attributes().size == 60


def test_a_journal_device(tmp_path: Path) -> None:
    image = make_image(tmp_path / "journal", "4M", "-O", "journal_dev")
    refused(image.read_bytes(), "external journal")


def test_an_image_that_was_cut_off() -> None:
    error = refused(raw_image()[: 7 << 20], "8388608 bytes, but the image only 7340032")
    assert "truncate" in error.hint


def test_a_damaged_superblock() -> None:
    raw = bytearray(raw_image())
    raw[1024 + 0x78] ^= 1
    refused(raw, "checksum of the superblock")


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        *((0x18, "<I", value) for value in (7, 40, 0xFFFFFFFF)),  # s_log_block_size
        *((0x20, "<I", value) for value in (0, 0xFFFFFFFF)),  # s_blocks_per_group
        *((0x28, "<I", value) for value in (0, 0xFFFFFFFF, 3)),  # s_inodes_per_group
        *((0x58, "<H", value) for value in (0, 100, 200, 8192)),  # s_inode_size
        *((0xFE, "<H", value) for value in (0, 33, 48, 2048)),  # s_desc_size
        *((0x14, "<I", value) for value in (0xFFFFFFFF, 2)),  # s_first_data_block
        *((0x04, "<I", value) for value in (0, 1)),  # s_blocks_count_lo
        *((0x00, "<I", value) for value in (0, 0xFFFFFFFF)),  # s_inodes_count
        (0x54, "<I", 0),  # s_first_ino
    ],
)
def test_a_superblock_that_makes_no_sense(offset: int, layout: str, value: int) -> None:
    refused(patched(offset, layout, value), "makes no sense|but the image only")


def test_an_image_of_errors_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marked = changed(tmp_path, "set_super_value state 2")
    assert "marked as having errors" in caplog.text
    assert node_names(marked.root())


def node_names(directory: Node) -> list[bytes]:
    return [entry.name for entry in listing(directory)]
