"""Recovery, invariant by invariant (J1 to J7 of journal.py). debugfs writes the journals, e2fsck
says what they have to become; those of the kernel are in tests/interop/test_images_loop.py."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.device import Overlay
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode, journal, layout
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.damage import MemoryDevice, bounded_time, survey
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, run, sample_tree, view

BLOCK = 1024
FREE = 6000
"""From here on blocks are free: what is replayed there does no harm."""

MAGIC = struct.pack(">I", layout.JBD2_MAGIC)

KINDS = {
    "plain": (["-O", "^metadata_csum"], "jo"),
    "plain-32bit": (["-O", "^metadata_csum,^64bit"], "jo"),
    "checksum-v2": ([], "jo -c -v 2"),
    "checksum-v2-32bit": (["-O", "^64bit"], "jo -c -v 2"),
    "checksum-v3": ([], "jo -c -v 3"),
    "checksum-v3-32bit": (["-O", "^64bit"], "jo -c -v 3"),
}


@dataclass
class Journaled:
    """An image with a journal to replay, and what was written there."""

    image: Path
    ring: list[int]  # where the blocks of the journal are

    def raw(self) -> bytearray:
        return bytearray(self.image.read_bytes())

    def at(self, position: int) -> int:
        """The offset in the image of a block of the journal."""
        return self.ring[position] * BLOCK


def contents(number: int) -> bytes:
    return (b"block %d " % number * BLOCK)[:BLOCK]


@cache
def clean_image(kind: str) -> bytes:
    """What debugfs writes its transactions into."""
    with TemporaryDirectory() as folder:
        tree = sample_tree(Path(folder) / "tree")
        options = ["-t", "ext4", "-b", "1024", *KINDS[kind][0], "-J", "size=1"]
        return make_image(Path(folder) / "fs.img", "8M", *options, tree=tree).read_bytes()


def make(folder: Path, kind: str, *commands: str) -> Journaled:
    """An image in which debugfs has written transactions."""
    image = folder / "fs.img"
    image.write_bytes(clean_image(kind))
    debugfs(image, KINDS[kind][1], *commands, "jc")
    volume = volume_of(bytearray(image.read_bytes()))
    block_map = BlockMaps(volume).of(inode.read_any(volume, 8))
    ring = [
        extent.physical + index
        for extent in block_map.extents(0, 1024)
        for index in range(extent.count)
    ]
    return Journaled(image, ring)


def volume_of(raw: bytes | bytearray) -> Volume:
    device = MemoryDevice(raw)
    return Volume(device, Superblock.read(device), "image")


def write(folder: Path, name: str, blocks: dict[int, bytes]) -> str:
    """The command of debugfs for a transaction of these blocks."""
    file = folder / name
    file.write_bytes(b"".join(blocks.values()))
    return f"jw -b {','.join(map(str, blocks))} {file}"


def replayed(raw: bytes | bytearray) -> dict[int, bytes]:
    """What recovery changes, by block; not counting the two superblocks that it marks clean."""
    volume = volume_of(raw)
    overlay = Overlay(volume.device, BLOCK)
    with bounded_time():
        journal.recover(volume, overlay)
    changes = {offset // BLOCK: block for offset, block in overlay.changes()}
    assert not Superblock.read(overlay).needs_recovery
    return {number: block for number, block in changes.items() if number >= FREE}


@pytest.mark.parametrize("kind", KINDS)
def test_as_e2fsck_replays_it(tmp_path: Path, kind: str) -> None:
    many = {FREE + 100 + index: contents(index) for index in range(150)}
    journaled = make(
        tmp_path,
        kind,
        write(tmp_path, "one", {FREE: contents(1), FREE + 1: contents(2), FREE + 2: contents(3)}),
        f"jw -r {FREE + 1}",
        write(tmp_path, "two", {FREE + 3: MAGIC + contents(4)[4:]}),
        write(tmp_path, "three", {FREE + 2: contents(5)}),
        write(tmp_path, "four", many),
    )
    raw = journaled.raw()
    assert replayed(raw) == {
        FREE: contents(1),
        FREE + 2: contents(5),
        FREE + 3: MAGIC + contents(4)[4:],
        **many,
    }
    assert raw == journaled.raw()  # J7

    ours = tmp_path / "ours.img"
    volume = volume_of(raw)
    overlay = Overlay(volume.device, BLOCK)
    journal.recover(volume, overlay)
    ours.write_bytes(overlay.read(0, overlay.size))
    theirs = tmp_path / "theirs.img"
    shutil.copyfile(journaled.image, theirs)
    run(["e2fsck", "-y", "-E", "journal_only", theirs])
    e2fsck(ours)
    assert view(open_ext4(MemoryDevice(ours.read_bytes()), "ours")) == view(
        open_ext4(MemoryDevice(theirs.read_bytes()), "theirs")
    )
    difference = [
        number
        for number in range(FREE, 8192)
        if ours.read_bytes()[number * BLOCK :][:BLOCK]
        != theirs.read_bytes()[number * BLOCK :][:BLOCK]
    ]
    assert not difference


def test_what_is_served_is_what_was_replayed(tmp_path: Path) -> None:
    """A directory block that exists in the journal only."""
    journaled = make(tmp_path, "checksum-v3")
    before = journaled.image.read_bytes()
    debugfs(journaled.image, "mkdir made-later")
    after = journaled.image.read_bytes()
    changed = [
        number
        for number in range(len(before) // BLOCK)
        if before[number * BLOCK :][:BLOCK] != after[number * BLOCK :][:BLOCK]
    ]
    changed.remove(1)
    journaled.image.write_bytes(before)
    blocks = {number: after[number * BLOCK :][:BLOCK] for number in changed}
    debugfs(journaled.image, "jo -c -v 3", write(tmp_path, "later", blocks), "jc")
    filesystem = open_ext4(MemoryDevice(journaled.image.read_bytes()), "image")
    assert filesystem.root().lookup(b"made-later").attributes().nlink == 2


# --- what is not there, or damaged -------------------------------------------


def three_transactions(folder: Path, kind: str) -> Journaled:
    """Each of one block: descriptor, copy and commit block from position 1, 4 and 7 on."""
    return make(folder, kind, *(write(folder, f"t{n}", {FREE + n: contents(n)}) for n in range(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_J1_without_a_commit_block_nothing_counts(tmp_path: Path, kind: str) -> None:
    journaled = three_transactions(tmp_path, kind)
    for position, left in ((9, 2), (6, 1), (3, 0)):
        raw = journaled.raw()
        raw[journaled.at(position) : journaled.at(position) + BLOCK] = bytes(BLOCK)
        assert replayed(raw) == {FREE + n: contents(n) for n in range(left)}


def test_J2_another_number_is_another_turn_of_the_ring(tmp_path: Path) -> None:
    journaled = three_transactions(tmp_path, "plain")
    for position, left in ((7, 2), (4, 1), (1, 0), (9, 2)):
        raw = journaled.raw()
        raw[journaled.at(position) + 11] ^= 0x40
        assert replayed(raw) == {FREE + n: contents(n) for n in range(left)}


@pytest.mark.parametrize("kind", ["checksum-v2", "checksum-v3"])
@pytest.mark.parametrize("position", range(1, 10))
def test_damage_in_the_journal_is_found(tmp_path: Path, kind: str, position: int) -> None:
    """A bit in a block that counts: the image is refused. Nothing else is worth more here: what
    is on disk without the journal is no file system."""
    journaled = three_transactions(tmp_path, kind)
    raw = journaled.raw()
    raw[journaled.at(position) + 40] ^= 4
    with pytest.raises(ImageError, match="cannot be replayed") as caught:
        replayed(raw)
    assert "e2fsck" in caught.value.hint


@pytest.mark.parametrize("kind", ["checksum-v2", "checksum-v3"])
def test_what_is_damaged_and_older_is_of_an_earlier_turn(tmp_path: Path, kind: str) -> None:
    """A transaction with the right number whose descriptor or commit block has a wrong checksum: if
    it is older than the one before it, the log ends there."""
    journaled = three_transactions(tmp_path, kind)
    for position in (4, 6):
        for seconds, refused in ((999, False), (1000, True), (1001, True)):
            raw = journaled.raw()
            put_commit_time(raw, journaled, 3, 1000)
            put_commit_time(raw, journaled, 6, seconds)
            raw[journaled.at(position) + 40] ^= 4
            if refused:
                with pytest.raises(ImageError, match="transaction 2 is damaged"):
                    replayed(raw)
            else:
                assert replayed(raw) == {FREE: contents(0)}


def put_commit_time(raw: bytearray, journaled: Journaled, position: int, seconds: int) -> None:
    """With a checksum that is right."""
    at = journaled.at(position)
    struct.pack_into(">QI", raw, at + 0x30, seconds, 0)
    seed = crc32c(MASK32, bytes(raw[journaled.at(0) + 0x30 : journaled.at(0) + 0x40]))
    struct.pack_into(">I", raw, at + 0x10, 0)
    struct.pack_into(">I", raw, at + 0x10, crc32c(seed, bytes(raw[at : at + BLOCK])))


def test_J6_a_ring_without_end(tmp_path: Path) -> None:
    """Every block is a descriptor block of the same transaction, without any copies."""
    journaled = three_transactions(tmp_path, "plain")
    raw = journaled.raw()
    empty = struct.pack(">III", layout.JBD2_MAGIC, layout.JBD2_REVOKE_BLOCK, 1)
    for position in range(1, 1024):
        raw[journaled.at(position) : journaled.at(position) + 16] = empty + struct.pack(">I", 16)
    assert replayed(raw) == {}


SUPERBLOCK_DAMAGE: dict[str, Callable[[bytearray, int], None]] = {
    "magic": lambda raw, at: struct.pack_into(">I", raw, at, 0),
    "type": lambda raw, at: struct.pack_into(">I", raw, at + 4, 7),
    "blocksize": lambda raw, at: struct.pack_into(">I", raw, at + 0x0C, 4096),
    "maxlen": lambda raw, at: struct.pack_into(">I", raw, at + 0x10, 0xFFFFFFFF),
    "first": lambda raw, at: struct.pack_into(">I", raw, at + 0x14, 0),
    "start": lambda raw, at: struct.pack_into(">I", raw, at + 0x1C, 5000),
    "features": lambda raw, at: struct.pack_into(">I", raw, at + 0x28, 0x8000),
}


@pytest.mark.parametrize("damage", SUPERBLOCK_DAMAGE)
def test_a_journal_superblock_that_makes_no_sense(tmp_path: Path, damage: str) -> None:
    journaled = three_transactions(tmp_path, "plain")
    raw = journaled.raw()
    SUPERBLOCK_DAMAGE[damage](raw, journaled.at(0))
    with pytest.raises(ImageError, match="cannot be replayed"):
        replayed(raw)


def test_a_damaged_journal_superblock(tmp_path: Path) -> None:
    journaled = three_transactions(tmp_path, "checksum-v3")
    raw = journaled.raw()
    raw[journaled.at(0) + 0x1B] ^= 1
    with pytest.raises(ImageError, match="checksum of its superblock"):
        replayed(raw)


def test_fast_commits_are_refused(tmp_path: Path) -> None:
    """They begin in the blocks at the end of the ring that the superblock gives them."""
    journaled = three_transactions(tmp_path, "plain")
    for sequence, refused in ((4, True), (3, False)):
        raw = journaled.raw()
        at = journaled.at(0)
        features = struct.unpack_from(">I", raw, at + 0x28)[0]
        struct.pack_into(">I", raw, at + 0x28, features | layout.JBD2_FEATURE_INCOMPAT_FAST_COMMIT)
        struct.pack_into("<HHII", raw, journaled.at(1024 - 256), 9, 8, 0, sequence)
        if refused:
            with pytest.raises(ImageError, match="fast commits"):
                replayed(raw)
        else:
            assert len(replayed(raw)) == 3


def test_a_journal_elsewhere(tmp_path: Path) -> None:
    journaled = three_transactions(tmp_path, "plain")
    raw = journaled.raw()
    struct.pack_into("<I", raw, 1024 + 0xE0, 0)
    with pytest.raises(ImageError, match="on another device"):
        replayed(raw)


def test_a_hole_in_the_journal(tmp_path: Path) -> None:
    journaled = make(tmp_path, "plain")
    debugfs(journaled.image, "punch <8> 500 600")
    debugfs(journaled.image, "jo", write(tmp_path, "t", {FREE: contents(0)}), "jc")
    raw = journaled.raw()
    struct.pack_into(">I", raw, journaled.at(0) + 0x1C, 550)
    with pytest.raises(ImageError, match="hole"):
        replayed(raw)


def test_a_block_that_cannot_be(tmp_path: Path) -> None:
    """A tag names a block beyond the end."""
    journaled = three_transactions(tmp_path, "checksum-v3")
    raw = journaled.raw()
    at = journaled.at(1)
    struct.pack_into(">I", raw, at + 12, 1 << 30)
    seed = crc32c(MASK32, bytes(raw[journaled.at(0) + 0x30 : journaled.at(0) + 0x40]))
    struct.pack_into(">I", raw, at + BLOCK - 4, 0)
    struct.pack_into(">I", raw, at + BLOCK - 4, crc32c(seed, bytes(raw[at : at + BLOCK])))
    with pytest.raises(ImageError, match="1073741824"):
        replayed(raw)


@pytest.mark.parametrize("kind", ["plain", "checksum-v3"])
def test_damage_anywhere_in_the_journal_is_survived(tmp_path: Path, kind: str) -> None:
    """Refused, or served with errors: nothing else."""
    journaled = three_transactions(tmp_path, kind)
    for seed in range(100):
        chance = random.Random(seed)
        raw = journaled.raw()
        for _ in range(chance.choice([1, 2, 4])):
            at = journaled.at(chance.randrange(11)) + chance.randrange(chance.choice([64, BLOCK]))
            raw[at] = chance.choice([0, 1, 0xFF, raw[at] ^ 1 << chance.randrange(8)])
        found = survey(MemoryDevice(raw))
        if kind == "checksum-v3":
            assert found in (None, survey(MemoryDevice(journaled.raw())))
