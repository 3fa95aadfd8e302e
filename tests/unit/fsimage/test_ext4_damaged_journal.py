"""What a crash left, and what damage made of it: journals that cannot be replayed and lists of
orphans that name others. Either it can be told, and then the image stays as it is to the byte; or
what comes out is a state that there was."""

from __future__ import annotations

import logging
import random
import re
import struct
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance import image_limits
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.journal import ring_of
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.damage import bounded_time
from tests.unit.fsimage.ext4_images import debugfs, make_image, run
from tests.unit.fsimage.ext4_structures import Structures, seal_inode, seal_journal, seal_superblock
from tests.unit.fsimage.test_ext4_failing_device import (
    FailingDevice,
    Tree,
    sound,
    tree_of,
    work,
)

BLOCK = 1024
FLIPS_PER_BLOCK = 3
FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)


def killed_in(*options: str) -> tuple[bytes, list[Tree]]:
    """An image whose journal is full of what was done, and the states that there were since the
    last checkpoint."""
    device = FailingDevice(sound(*options))
    filesystem = open_ext4(device, "image")
    trees = [tree_of(filesystem)]
    work(filesystem, lambda: trees.append(tree_of(filesystem)))
    filesystem.abandon()
    return bytes(device.image), trees


@cache
def killed() -> tuple[bytes, list[Tree]]:
    return killed_in()


@cache
def ring_places() -> list[int]:
    """Where in the image the blocks of the journal are."""
    device = FailingDevice(sound())
    ring = ring_of(Volume(device, Superblock.read(device), "image"))
    return [ring.physical(at) * BLOCK for at in range(ring.end)]


def used_places() -> list[int]:
    """Those with something in them."""
    raw, _ = killed()
    places = ring_places()
    last = max(at for at, place in enumerate(places) if any(raw[place : place + BLOCK]))
    return places[: last + 2]


def opened(device: FailingDevice) -> Ext4 | ImageError:
    """The file system, or why there is none."""
    try:
        return open_ext4(device, "image")
    except ImageError as error:
        return error


def judge(raw: bytearray, trees: list[Tree], folder: Path | None) -> bool:
    """Whether it was refused."""
    device = FailingDevice(bytes(raw))
    with bounded_time():
        filesystem = opened(device)
        if isinstance(filesystem, ImageError):
            assert re.search("journal|superblock", str(filesystem))
            assert "e2fsck" in filesystem.hint
            assert device.image == raw
            return True
        assert tree_of(filesystem) in trees
        filesystem.close()
    if folder is not None:
        image = folder / "fs.img"
        image.write_bytes(device.image)
        run(["e2fsck", "-fn", image])
    return False


# --- the journal ---------------------------------------------------------------------


def test_any_bit_of_the_journal(tmp_path: Path) -> None:
    raw, trees = killed()
    chance = random.Random(3)
    refused = cases = 0
    for place in used_places():
        for _ in range(FLIPS_PER_BLOCK):
            damaged = bytearray(raw)
            at = place + chance.choice([chance.randrange(48), chance.randrange(BLOCK)])
            damaged[at] ^= 1 << chance.randrange(8)
            cases += 1
            refused += judge(damaged, trees, tmp_path if cases % 20 == 0 else None)
    assert cases > 150
    assert refused > 60, "what was in the log before the last checkpoint does not count"


@pytest.mark.parametrize("seed", range(30))
def test_words_of_the_journal_that_lie(seed: int) -> None:
    """Without checksums: whatever comes out, nothing but the errors of a file system."""
    chance = random.Random(seed)
    raw, _ = killed_in("-t", "ext4", "-O", "^metadata_csum")
    damaged = bytearray(raw)
    for _ in range(chance.choice([1, 3])):
        place = chance.choice(used_places())
        at = place + 4 * chance.randrange(chance.choice([12, 256]))
        value = chance.choice([0, 1, 0xFFFF_FFFF, chance.getrandbits(32), chance.randrange(4096)])
        struct.pack_into(">I", damaged, at, value)
    device = FailingDevice(bytes(damaged))
    with bounded_time():
        try:
            filesystem = open_ext4(device, "image")
        except (ImageError, VfsError):
            assert device.image == damaged
            return
        try:
            filesystem.root().create(b"new", FILE)
            filesystem.close()
        except VfsError as error:
            if error.code not in (Code.IO, Code.ROFS, Code.EXIST):
                raise


NONSENSE: dict[str, tuple[int, int]] = {
    "no blocks": (0x10, 1),
    "too few blocks": (0x10, 100),
    "more blocks than it has": (0x10, 0x7FFF_FFFF),
    "other blocks": (0x0C, 4096),
    "begins before it": (0x14, 0),
    "begins behind it": (0x14, 5000),
    "starts behind it": (0x1C, 5000),
    "unknown features": (0x28, 0x8000_0000),
}


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("dirty", [True, False])
def test_a_journal_that_makes_no_sense(what: str, dirty: bool) -> None:
    """With a checksum that is right. Also one with nothing in it is not written to."""
    raw = bytearray(killed()[0] if dirty else sound())
    offset, value = NONSENSE[what]
    at = ring_places()[0]
    struct.pack_into(">I", raw, at + offset, value)
    seal_journal(raw, at)
    assert judge(raw, [], None)


def test_a_journal_with_something_in_it_that_nobody_says_needs_recovery() -> None:
    raw = bytearray(killed()[0])
    at = layout.SUPERBLOCK_OFFSET + 0x60
    (features,) = struct.unpack_from("<I", raw, at)
    struct.pack_into("<I", raw, at, features & ~layout.INCOMPAT_RECOVER)
    seal_superblock(raw)
    assert judge(raw, [], None)


def put_journal_inode(raw: bytearray, offset: int, form: str, *values: int) -> None:
    device = FailingDevice(bytes(raw))
    volume = Volume(device, Superblock.read(device), "image")
    block, inside = inodes.read_any(volume, layout.EXT4_JOURNAL_INO).place
    at = block * BLOCK + inside
    struct.pack_into(form, raw, at + offset, *values)
    seal_inode(volume, raw, layout.EXT4_JOURNAL_INO, at)


def on_inode_table(raw: bytearray) -> None:
    volume = Structures(bytes(sound())).volume
    table = volume.group(0).bg_inode_table_lo
    put_journal_inode(raw, 0x28 + 12, "<IHHI", 0, 1024, 0, table)
    put_journal_inode(raw, 0x28 + 2, "<H", 1)


MAPS: dict[str, Callable[[bytearray], None]] = {
    "on the inode table": on_inode_table,
    "nowhere": lambda raw: put_journal_inode(raw, 0x28 + 2, "<H", 0),
    "no map": lambda raw: put_journal_inode(raw, 0x28, "<H", 0),
    "size 0": lambda raw: put_journal_inode(raw, 4, "<I", 0),
    "size 1": lambda raw: put_journal_inode(raw, 4, "<I", BLOCK),
    "no such inode": lambda raw: put_superblock(raw, 0xE0, 0xFFFF_FFFF),
    "another inode": lambda raw: put_superblock(raw, 0xE0, layout.EXT4_ROOT_INO),
}


def put_superblock(raw: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<I", raw, layout.SUPERBLOCK_OFFSET + offset, value)
    seal_superblock(raw)


@pytest.mark.parametrize("where", MAPS)
@pytest.mark.parametrize("dirty", [True, False])
def test_a_journal_in_a_place_that_makes_no_sense(where: str, dirty: bool) -> None:
    raw = bytearray(killed()[0] if dirty else sound())
    MAPS[where](raw)
    device = FailingDevice(bytes(raw))
    try:
        filesystem = open_ext4(device, "image")
    except (ImageError, VfsError):
        pass
    else:
        assert filesystem.read_only
        filesystem.close()
    assert device.image == raw


def test_a_journal_that_is_in_one_place_twice() -> None:
    raw = bytearray(sound())
    first = ring_places()[0] // BLOCK
    put_journal_inode(raw, 0x28, "<HHHHI", layout.EXTENT_MAGIC, 2, 4, 0, 0)
    put_journal_inode(raw, 0x28 + 12, "<IHHI", 0, 100, 0, first)
    put_journal_inode(raw, 0x28 + 24, "<IHHI", 100, 924, 0, first + 50)
    device = FailingDevice(bytes(raw))
    filesystem = opened(device)
    assert (
        "journal" in str(filesystem)
        if isinstance(filesystem, ImageError)
        else (filesystem.read_only)
    )
    assert device.image == raw


def test_a_journal_that_is_in_one_place_twice_is_not_replayed() -> None:
    """What it holds could be replayed, but who writes to it then would write over it."""
    raw = bytearray(killed()[0])
    places = [place // BLOCK for place in ring_places()]
    begins = [at for at in range(len(places)) if not at or places[at] != places[at - 1] + 1]
    begins += [900, len(places)]
    assert max(begins[:-2]) < 800 and len(begins) <= 5
    put_journal_inode(raw, 0x28, "<HHHHI", layout.EXTENT_MAGIC, len(begins) - 1, 4, 0, 0)
    for entry, (begin, end) in enumerate(pairwise(begins)):
        physical = places[begin - 100 if begin == 900 else begin]
        put_journal_inode(raw, 0x34 + 12 * entry, "<IHHI", begin, end - begin, 0, physical)
    device = FailingDevice(bytes(raw))
    found = opened(device)
    assert isinstance(found, ImageError)
    assert "a block twice" in str(found)
    assert device.image == raw


def test_a_journal_that_makes_the_superblock_nonsense(tmp_path: Path) -> None:
    """It can be replayed, but what comes out is no file system: so it is not."""
    image = tmp_path / "fs.img"
    image.write_bytes(sound())
    block = tmp_path / "block"
    block.write_bytes(bytes(BLOCK))
    debugfs(image, "jo -c -v 3", f"jw -b 1 {block}", "jc")
    raw = bytearray(image.read_bytes())
    device = FailingDevice(bytes(raw))
    with pytest.raises(ImageError):
        open_ext4(device, "image")
    assert device.image == raw


def test_a_journal_larger_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "JOURNAL_BLOCKS_MAX", 1000)
    raw, _ = killed()
    device = FailingDevice(bytes(raw))
    found = opened(device)
    assert isinstance(found, ImageError)
    assert "more than any" in str(found)
    assert device.image == raw


# --- the list of orphans ----------------------------------------------------------------


@cache
def with_files() -> bytes:
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "d").mkdir(parents=True)
        (tree / "empty").mkdir()
        (tree / "d" / "inside").write_bytes(b"inside" * 1000)
        (tree / "file").write_bytes(b"file" * 1000)
        (tree / "other").write_bytes(b"other" * 1000)
        (tree / "link").symlink_to("t" * 200)
        options = ["-t", "ext4", "-b", "1024", "-O", "orphan_file"]
        image = make_image(Path(folder) / "fs.img", "8M", *options, tree=tree)
        return image.read_bytes()


class Orphaned:
    """An image whose list of orphans is made here."""

    def __init__(self) -> None:
        self.raw = bytearray(with_files())
        self.structures = Structures(with_files())
        self.volume = self.structures.volume

    def number(self, *path: bytes) -> int:
        node = open_ext4(FailingDevice(with_files()), "image").root()
        for name in path:
            node = node.lookup(name)
        return node.inode.number

    def put(self, number: int, offset: int, form: str, value: int) -> None:
        block, inside = self.volume.inode_location(number)
        at = block * BLOCK + inside
        struct.pack_into(form, self.raw, at + offset, value)
        seal_inode(self.volume, self.raw, number, at)

    def list(self, *numbers: int) -> None:
        """These are on the list, the youngest first."""
        put_superblock(self.raw, 0xE8, numbers[0])
        for number, following in zip(numbers, [*numbers[1:], 0], strict=True):
            if 0 < number <= self.volume.superblock.disk.s_inodes_count:
                self.put(number, 0x14, "<I", following)

    def open(self) -> tuple[Ext4, FailingDevice]:
        device = FailingDevice(bytes(self.raw))
        with bounded_time():
            return open_ext4(device, "image"), device


def check_untouched(orphaned: Orphaned, caplog: pytest.LogCaptureFixture, text: str) -> None:
    with caplog.at_level(logging.ERROR):
        filesystem, device = orphaned.open()
    assert text in caplog.text
    assert "read-only" in caplog.text
    assert filesystem.read_only
    filesystem.close()
    assert device.image == orphaned.raw


@pytest.mark.parametrize(
    "number", [1, 2, 7, 8, 12 + 400, 0xFFFF_FFFF], ids=lambda number: f"inode {number}"
)
def test_a_list_with_what_cannot_be_an_orphan(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is done, not even to what is right on it."""
    orphaned = Orphaned()
    orphan = orphaned.number(b"other")
    orphaned.put(orphan, layout.I_LINKS_COUNT_OFFSET, "<H", 0)
    orphaned.list(orphan, number)
    check_untouched(orphaned, caplog, "the list of orphans")


@pytest.mark.parametrize("which", ["the journal", "the orphan file", "d", "link", "free", "loop"])
def test_a_list_that_names_others(which: str, caplog: pytest.LogCaptureFixture) -> None:
    orphaned = Orphaned()
    disk = orphaned.volume.superblock.disk
    if which == "loop":
        first, second = orphaned.number(b"file"), orphaned.number(b"other")
        orphaned.list(first, second)
        orphaned.put(second, 0x14, "<I", first)
    else:
        numbers = {
            "the journal": disk.s_journal_inum,
            "the orphan file": disk.s_orphan_file_inum,
            "free": disk.s_inodes_count - 3,
        }
        number = numbers.get(which) or orphaned.number(which.encode())
        orphaned.list(number)
    check_untouched(orphaned, caplog, "the list of orphans")


def test_a_directory_without_links_that_is_not_empty(caplog: pytest.LogCaptureFixture) -> None:
    orphaned = Orphaned()
    number = orphaned.number(b"d")
    orphaned.put(number, layout.I_LINKS_COUNT_OFFSET, "<H", 0)
    orphaned.list(number)
    check_untouched(orphaned, caplog, "not empty")


def test_a_file_with_a_name_keeps_what_it_has() -> None:
    """It may have been on its way to be cut off: what is behind its end goes, and nothing else."""
    orphaned = Orphaned()
    orphaned.list(orphaned.number(b"file"))
    filesystem, device = orphaned.open()
    assert not filesystem.read_only
    assert tree_of(filesystem)[b"/file"] == (b"file" * 1000, [])
    filesystem.close()
    assert Superblock.read(FailingDevice(bytes(device.image))).disk.s_last_orphan == 0


def test_an_orphan_whose_map_is_damaged_stays_on_the_list(tmp_path: Path) -> None:
    """The others go, and the file system is served."""
    orphaned = Orphaned()
    first, second = orphaned.number(b"file"), orphaned.number(b"other")
    for number in (first, second):
        orphaned.put(number, layout.I_LINKS_COUNT_OFFSET, "<H", 0)
    orphaned.put(first, 0x28, "<H", 0)
    orphaned.list(first, second)
    image = tmp_path / "fs.img"
    image.write_bytes(orphaned.raw)
    debugfs(image, "unlink /file", "unlink /other")
    orphaned.raw[:] = image.read_bytes()
    filesystem, device = orphaned.open()
    assert not filesystem.read_only
    filesystem.root().create(b"new", FILE)
    filesystem.close()
    assert Superblock.read(FailingDevice(bytes(device.image))).disk.s_last_orphan == first


# --- the orphan file ---------------------------------------------------------------------


def orphan_file(orphaned: Orphaned, *numbers: int, magic: int = layout.ORPHAN_BLOCK_MAGIC) -> None:
    """Put numbers into it, with a checksum that is right."""
    volume = orphaned.volume
    inode = inodes.read_any(volume, volume.superblock.disk.s_orphan_file_inum)
    block = orphaned.structures.maps.of(inode).find(0).physical
    at = block * BLOCK
    struct.pack_into(f"<{len(numbers)}I", orphaned.raw, at, *numbers)
    seed = crc32c(inodes.seed_of(volume, inode), struct.pack("<Q", block))
    checksum = crc32c(seed, bytes(orphaned.raw[at : at + BLOCK - 8]))
    struct.pack_into("<II", orphaned.raw, at + BLOCK - 8, magic, checksum)
    features = volume.superblock.disk.s_feature_ro_compat | layout.RO_COMPAT_ORPHAN_PRESENT
    put_superblock(orphaned.raw, 0x64, features)


def test_an_orphan_file_with_too_many(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "ORPHANS_MAX", 1)
    orphaned = Orphaned()
    orphan_file(orphaned, orphaned.number(b"file"), orphaned.number(b"other"))
    check_untouched(orphaned, caplog, "more than 1 inodes")


@pytest.mark.parametrize(
    "numbers", [(2,), (8,), (0xFFFF_FFFF,), (900,), (12, 2)], ids=lambda found: f"{found}"
)
def test_an_orphan_file_that_names_others(
    numbers: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    orphaned = Orphaned()
    orphan_file(orphaned, *numbers)
    check_untouched(orphaned, caplog, "the orphan file")


def test_an_orphan_file_full_of_garbage(caplog: pytest.LogCaptureFixture) -> None:
    orphaned = Orphaned()
    orphan_file(orphaned, *random.Random(1).sample(range(1 << 32), 200), magic=17)
    check_untouched(orphaned, caplog, "the orphan file")


def test_an_orphan_file_that_is_right(tmp_path: Path) -> None:
    """So that the tests above are about what is wrong in them."""
    orphaned = Orphaned()
    number = orphaned.number(b"other")
    image = tmp_path / "fs.img"
    image.write_bytes(orphaned.raw)
    debugfs(image, "unlink /other")
    orphaned.raw[:] = image.read_bytes()
    orphaned.put(number, layout.I_LINKS_COUNT_OFFSET, "<H", 0)
    orphan_file(orphaned, number)
    filesystem, device = orphaned.open()
    assert not filesystem.read_only
    filesystem.commit()
    # That the file is empty is said with what was removed then, and not only at the end.
    (features,) = struct.unpack_from("<I", filesystem.volume.block(1), 0x64)
    assert not features & layout.RO_COMPAT_ORPHAN_PRESENT
    filesystem.close()
    image.write_bytes(device.image)
    run(["e2fsck", "-fn", image])
