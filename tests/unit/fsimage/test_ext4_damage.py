"""Whatever is in an image: the answer is an error of the object, in bounded time and memory."""

from __future__ import annotations

import random
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.unit.fsimage.damage import MemoryDevice, survey
from tests.unit.fsimage.ext4_images import make_image, run, sample_tree

IMAGES = {
    "ext4": ["-t", "ext4", "-b", "1024"],
    "ext4-no-csum": ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
    "ext4-inline": ["-t", "ext4", "-b", "1024", "-O", "inline_data,^metadata_csum"],
    "ext2": ["-t", "ext2", "-b", "1024"],
}
ROUNDS = 60


@cache
def image_bytes(name: str) -> bytes:
    """An image with something of everything, its larger directory indexed."""
    with TemporaryDirectory() as folder:
        tree = sample_tree(Path(folder) / "tree")
        image = make_image(Path(folder) / "fs.img", "4M", *IMAGES[name], tree=tree)
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
        return image.read_bytes()


@cache
def metadata_ranges(name: str) -> tuple[tuple[int, int], ...]:
    """Where a walk through everything reads metadata."""
    device = MemoryDevice(image_bytes(name))
    assert survey(device)
    return tuple(sorted(device.metadata))


def damaged(name: str, seed: int) -> bytearray:
    """The image with some bits of its metadata changed."""
    chance = random.Random(seed)
    raw = bytearray(image_bytes(name))
    for _ in range(chance.choice([1, 1, 2, 5])):
        offset, count = chance.choice(metadata_ranges(name))
        # The beginning of a block is where the structures are that lead on.
        at = offset + chance.randrange(min(count, chance.choice([64, count])))
        if chance.random() < 0.6:
            raw[at] ^= 1 << chance.randrange(8)
        else:
            value = chance.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)])
            at = min(at & ~3, len(raw) - 4)
            struct.pack_into("<I", raw, at, value)
    return raw


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("name", IMAGES)
def test_damage_is_an_error_of_the_object(name: str, seed: int) -> None:
    survey(MemoryDevice(damaged(name, seed)))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_with_checksums_damage_is_never_served(seed: int) -> None:
    """What can still be had is as it was."""
    whole = survey(MemoryDevice(image_bytes("ext4")))
    assert whole
    found = survey(MemoryDevice(damaged("ext4", seed))) or {}
    for path, seen in found.items():
        assert seen == whole[path]
