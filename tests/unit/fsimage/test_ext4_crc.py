"""Checksums against published check values, and each against a slow definition of itself."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.fsimage.ext4.crc import (
    MASK32,
    Balance,
    crc16,
    crc32_be,
    crc32c,
    crc32c_in_python,
)

CHECK = b"123456789"


def test_check_values() -> None:
    assert crc32c(MASK32, CHECK) ^ MASK32 == 0xE3069283
    assert crc16(0, CHECK) == 0xBB3D
    assert crc32_be(MASK32, CHECK) ^ MASK32 == 0xFC891918


@given(some.integers(0, MASK32), some.binary(max_size=100), some.binary(max_size=100))
def test_pieces(seed: int, first: bytes, second: bytes) -> None:
    for checksum in (crc32c, crc32_be, crc32c_in_python):
        assert checksum(checksum(seed, first), second) == checksum(seed, first + second)
    assert crc16(crc16(seed & 0xFFFF, first), second) == crc16(seed & 0xFFFF, first + second)


@given(some.integers(0, MASK32), some.binary(max_size=300))
def test_the_slow_one_is_the_same(seed: int, data: bytes) -> None:
    assert crc32c(seed, data) == crc32c_in_python(seed, data)


@given(some.integers(0, MASK32), some.binary(max_size=50))
def test_highest_bit_first(seed: int, data: bytes) -> None:
    value = seed
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & MASK32
    assert crc32_be(seed, data) == value


def test_without_the_package_there_is_a_warning() -> None:
    script = """
import sys
sys.modules["google_crc32c"] = None
import logging
logging.basicConfig()
from appliance.fsimage.ext4.crc import crc32c
assert crc32c(0xFFFFFFFF, b"123456789") ^ 0xFFFFFFFF == 0xE3069283
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "slow" in done.stderr


@pytest.mark.parametrize("at", [0, 0xC4, 1016])
def test_four_bytes_make_up_for_any_change(at: int) -> None:
    rng = random.Random(at)
    balance = Balance(1020, at)
    for _ in range(300):
        record = bytearray(rng.randbytes(1020))
        wanted = rng.getrandbits(32)
        before = bytes(record)
        balance.apply(record, wanted)
        assert crc32c(MASK32, bytes(record)) == wanted
        assert record == before[:at] + record[at : at + 4] + before[at + 4 :]
