"""Where one bit of metadata is wrong, we and e2fsck agree that something is.

The bits are seeded, and lie where our check reads: in superblocks, descriptors, bitmaps, inode
tables, block maps, directories, attributes, and the journal's and the orphan file's heads.
"""

from __future__ import annotations

import random
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.check import check
from tests.unit.fsimage.damage import MemoryDevice, bounded_time
from tests.unit.fsimage.ext4_images import make_image, run, sample_tree
from tests.unit.fsimage.test_ext4_check_damage import SEED

BLOCK = 1024
READS_MAX = 100_000

IMAGES = {
    "default": ["-t", "ext4"],
    "seed and orphan file": ["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
    "many groups": ["-t", "ext4", "-g", "1024"],
    "inline data": ["-t", "ext4", "-O", "inline_data"],
    "no checksums": ["-t", "ext4", "-O", "^metadata_csum"],
    "ext2": ["-t", "ext2", "-g", "1024"],
}
FLIPS = 50
"""In each image: 300 in all."""

STRICTER = {
    "the backup of the superblock": "e2fsck looks at backups only when it needs one",
    "the backup in group": "the same, of descriptors",
    "the list of orphans": "e2fsck looks at it only when it may repair it",
    "has the address of a fragment": "e2fsck looks only at inodes that have a name",
    "inside its inode": "e2fsck does not compare sizes of files with inline data",
    "the value of an attribute": "e2fsck keeps the flag; the kernel refuses such a file",
    "inode 1: has blocks from": "e2fsck lets the list of bad blocks have any",
    "inode 7: ": "e2fsck compares only a part of what is reserved for resizing",
}
"""What we call wrong, but e2fsck does not. In the other direction there is no exception."""


@cache
def image_bytes(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        tree = sample_tree(Path(folder) / "tree")
        options = [*IMAGES[name], "-b", str(BLOCK), *SEED]
        image = make_image(Path(folder) / "fs.img", "4M", *options, tree=tree)
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
        return image.read_bytes()


@cache
def metadata_ranges(name: str) -> tuple[tuple[int, int], ...]:
    """Where a check of the sound image reads."""
    device = MemoryDevice(image_bytes(name), READS_MAX)
    assert check(device) == []
    return tuple(sorted(device.metadata))


def verdict(raw: bytes | bytearray) -> list[str]:
    """What we find wrong, in words."""
    with bounded_time():
        try:
            return [str(finding) for finding in check(MemoryDevice(raw, READS_MAX))]
        except ImageError as error:
            return [str(error)]


@pytest.mark.parametrize("seed", range(FLIPS))
@pytest.mark.parametrize("name", IMAGES)
def test_one_bit(tmp_path: Path, name: str, seed: int) -> None:
    chance = random.Random(f"{name} {seed}")
    offset, count = chance.choice(metadata_ranges(name))
    at, bit = offset + chance.randrange(count), chance.randrange(8)
    raw = bytearray(image_bytes(name))
    raw[at] ^= 1 << bit
    ours = verdict(raw)
    image = tmp_path / "fs.img"
    image.write_bytes(raw)
    theirs = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    where = f"bit {bit} of byte {at} (block {at // BLOCK}): {ours} {theirs.stdout}"
    if theirs.returncode == 0:
        assert all(any(reason in said for reason in STRICTER) for said in ours), where
    else:
        assert ours, where


def test_the_agreement_is_about_something() -> None:
    """Most of the bits matter: with checksums, nearly each of them."""
    wrong = sum(
        bool(verdict(flipped(name, seed)))
        for name in ("default", "many groups")
        for seed in range(20)
    )
    assert wrong >= 36


def flipped(name: str, seed: int) -> bytearray:
    chance = random.Random(seed)
    offset, count = chance.choice(metadata_ranges(name))
    raw = bytearray(image_bytes(name))
    raw[offset + chance.randrange(count)] ^= 1 << chance.randrange(8)
    return raw


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", IMAGES)
def test_whatever_is_in_an_image_a_check_ends(name: str, seed: int) -> None:
    """Several words of metadata replaced, by values that are likely to matter."""
    chance = random.Random(seed)
    raw = bytearray(image_bytes(name))
    for _ in range(chance.choice([1, 3, 20])):
        offset, count = chance.choice(metadata_ranges(name))
        at = offset + chance.randrange(min(count, chance.choice([64, count]))) & ~3
        value = chance.choice([0, 1, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, chance.getrandbits(32)])
        raw[at : at + 4] = value.to_bytes(4, "little")
    verdict(raw)
