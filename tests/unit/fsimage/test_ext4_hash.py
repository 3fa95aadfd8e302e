"""Hashes of names, with debugfs as the judge (its dx_hash knows the signed ones; the unsigned ones
are compared with what the kernel makes, in tests/interop/test_images_loop.py)."""

from __future__ import annotations

import ctypes
import random
import re
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.fsimage.ext4.hash import HALF_MD4, UNSIGNED, NameHash, half_md4_in_c
from tests.unit.fsimage.ext4_images import debugfs, make_image

SEED = "12345678-1234-5678-9abc-def012345678"
VERSIONS = ["legacy", "half_md4", "tea"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.-_0123456789XYZ\u00e4\u00f6\u6f22\U0001f600"


def names() -> list[str]:
    chance = random.Random(5)
    lengths = [*range(1, 36), 63, 64, 65, 120]
    return ["".join(chance.choice(LETTERS) for _ in range(length)) for length in lengths]


@pytest.mark.parametrize("seed", [SEED, str(uuid.UUID(int=0))])
@pytest.mark.parametrize("version", VERSIONS)
def test_as_debugfs_has_it(tmp_path: Path, version: str, seed: str) -> None:
    image = make_image(tmp_path / "fs.img", "1M", "-t", "ext2")
    ours = NameHash(VERSIONS.index(version), uuid.UUID(seed).bytes, unsigned=False)
    wanted = names()
    option = "" if seed != SEED else f"-s {seed}"
    said = debugfs(image, *(f"dx_hash -h {version} {option} {name}" for name in wanted))
    found = re.findall(r"^Hash of (.*) is 0x(\w+) \(minor 0x(\w+)\)", said, re.MULTILINE)
    assert len(found) == len(wanted)
    for name, major, minor in found:
        assert ours(name.encode()) == (int(major, 16), int(minor, 16))


@given(some.binary(min_size=1, max_size=255), some.booleans())
def test_it_is_the_same_with_the_library_and_without(name: bytes, unsigned: bool) -> None:
    seed = uuid.UUID(SEED).bytes
    in_c = half_md4_in_c(struct.unpack("<4I", seed), unsigned)
    assert in_c is not None, "e2fsprogs are installed for these tests"
    assert in_c(name) == half_md4_in_python(name, seed, unsigned)


def half_md4_in_python(name: bytes, seed: bytes, unsigned: bool) -> tuple[int, int]:
    major, minor = NameHash(HALF_MD4, seed, unsigned=unsigned)._half_md4(name)
    return major & ~1, minor


def test_without_the_library_it_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = uuid.UUID(SEED).bytes
    with_it = NameHash(HALF_MD4, seed, unsigned=False)
    monkeypatch.setattr(ctypes, "PyDLL", _not_installed)
    without = NameHash(HALF_MD4, seed, unsigned=False)
    assert with_it._function.__name__ != without._function.__name__
    assert [with_it(name.encode()) for name in names()] == [without(n.encode()) for n in names()]


def _not_installed(name: str) -> None:
    raise OSError(name)


@pytest.mark.parametrize("version", range(len(VERSIONS)))
def test_the_sign_matters_above_127_only(version: int) -> None:
    seed = uuid.UUID(SEED).bytes
    signed = NameHash(version, seed, unsigned=False)
    unsigned = NameHash(version, seed, unsigned=True)
    assert signed(b"plain") == unsigned(b"plain")
    assert signed("ä".encode()) != unsigned("ä".encode())
    assert NameHash(version + UNSIGNED, seed, unsigned=False)(b"\xff") == unsigned(b"\xff")


@given(some.binary(min_size=1, max_size=255), some.integers(0, 5))
def test_a_major_hash_is_even_and_not_that_of_the_end(name: bytes, version: int) -> None:
    """The lowest bit and the highest value mean something else in an index."""
    major, minor = NameHash(version, uuid.UUID(SEED).bytes, unsigned=False)(name)
    assert major % 2 == 0
    assert 0 <= major < 0xFFFF_FFFE
    assert 0 <= minor < 1 << 32
