"""RFC 1071 done by division agrees with RFC 1071 done by the book."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from appliance.netstack.wire.checksum import checksum, fold, is_sound, word_sum, word_sum_of


def by_the_book(data: bytes) -> int:
    """RFC 1071 section 4.1."""
    data += b"\0" * (len(data) % 2)
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=100))
@example(b"")
@example(bytes(20))
@example(b"\xff\xff")
@example(b"\xff\xff" * 9)
@example(b"\x00\x01\xff\xfe")
@example(b"\x80")
def test_the_sum_is_the_one_of_the_rfc(data: bytes) -> None:
    assert word_sum(data) == by_the_book(data)
    assert word_sum(memoryview(data)) == by_the_book(data)


@given(st.binary(min_size=760, max_size=1600), st.sampled_from([0, 0xFF]))
def test_a_long_number_is_folded_before_it_is_divided(data: bytes, fill: int) -> None:
    padding = bytes([fill]) * (len(data) * 2)
    assert word_sum(data) == by_the_book(data)
    assert word_sum(data + padding) == by_the_book(data + padding)


@given(st.binary(min_size=1, max_size=100))
def test_scapy_agrees(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data)


@given(st.lists(st.binary(max_size=9), max_size=8))
def test_a_cut_buffer_has_the_sum_of_the_whole(pieces: list[bytes]) -> None:
    assert word_sum_of(pieces) == by_the_book(b"".join(pieces))


@given(st.binary(min_size=2, max_size=60))
def test_a_buffer_with_its_checksum_is_sound(data: bytes) -> None:
    data = data[: len(data) // 2 * 2]
    sealed = data + checksum(data).to_bytes(2, "big")
    assert is_sound(sealed)


@given(st.binary(min_size=2, max_size=60), st.integers(0), st.integers(0, 7))
def test_one_wrong_bit_is_found(data: bytes, at: int, bit: int) -> None:
    data = data[: len(data) // 2 * 2]
    sealed = bytearray(data + checksum(data).to_bytes(2, "big"))
    sealed[at % len(sealed)] ^= 1 << bit
    assert not is_sound(sealed)


@pytest.mark.parametrize("total", [0, 1, 0xFFFF, 0x10000, 0x1FFFE, 0xFFFF_FFFF])
def test_fold_keeps_the_value_and_fits_in_16_bits(total: int) -> None:
    folded = fold(total)
    assert folded <= 0xFFFF
    assert folded % 0xFFFF == total % 0xFFFF
    assert bool(folded) == bool(total)
