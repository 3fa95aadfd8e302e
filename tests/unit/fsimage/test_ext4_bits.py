"""Ranges and searches in bitmaps, against sets of numbers."""

from __future__ import annotations

from random import Random

import pytest

from appliance.fsimage.ext4 import bits

SIZE = 40
BITS = 8 * SIZE


def random_bitmap(random: Random) -> tuple[bytearray, set[int]]:
    """Some runs of bits, or hardly any clear one."""
    raw = bytearray(SIZE)
    for _ in range(random.choice((0, 3, 12, 60))):
        first = random.randrange(BITS)
        for at in range(first, min(BITS, first + random.choice((1, 2, 9, 40)))):
            raw[at >> 3] |= 1 << (at & 7)
    return raw, {at for at in range(BITS) if raw[at >> 3] >> (at & 7) & 1}


def members(raw: bytearray) -> set[int]:
    return {at for at in range(BITS) if bits.has(raw, at)}


@pytest.mark.parametrize("seed", range(40))
def test_ranges_are_set_and_cleared(seed: int) -> None:
    random = Random(seed)
    for _ in range(50):
        raw, found = random_bitmap(random)
        first = random.randrange(BITS)
        count = min(random.choice((1, 2, 7, 8, 9, 16, 100, BITS)), BITS - first)
        wanted = set(range(first, first + count))
        set_raw, cleared_raw = bytearray(raw), bytearray(raw)
        assert bits.set_range(set_raw, first, count) == (not wanted & found)
        assert bits.clear_range(cleared_raw, first, count) == (wanted <= found)
        assert members(set_raw) == found | wanted
        assert members(cleared_raw) == found - wanted
        assert len(set_raw) == len(cleared_raw) == SIZE


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_measured(seed: int) -> None:
    random = Random(seed)
    for _ in range(50):
        raw, found = random_bitmap(random)
        first, most = random.randrange(BITS), random.choice((1, 2, 8, 13, 64, BITS, 2 * BITS))
        expected = 0
        while expected < most and first + expected < BITS and first + expected not in found:
            expected += 1
        assert bits.clear_run(raw, first, most) == expected


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_found_the_first_one_in_bytes(seed: int) -> None:
    random = Random(seed)
    for _ in range(20):
        raw, found = random_bitmap(random)
        start = random.randrange(SIZE)
        for order in range(1, 8):
            length = 1 << order - 1
            step = 8 if length >= 8 else 1
            expected = next(
                (
                    at
                    for at in range(8 * start, BITS - length + 1, step)
                    if not found & set(range(at, at + length))
                    and (length >= 8 or at >> 3 == at + length - 1 >> 3)
                ),
                -1,
            )
            assert bits.find_run[order - 1](raw, start) == expected


def test_the_longest_run_is_a_whole_bitmap() -> None:
    raw = bytearray(1 << bits.ORDER_MAX - 4)
    assert bits.find_run[bits.ORDER_MAX - 1](raw, 0) == 0
    raw[-1] = 0x80
    assert bits.find_run[bits.ORDER_MAX - 1](raw, 0) == -1
    assert bits.clear_run(raw, 3, 1 << 30) == 8 * len(raw) - 4
