"""Bits in the order of the bitmaps on disk: the lowest of the first byte is number 0.

Ranges are handled a byte at a time, and searches are made by the searches that bytes have (and
regular expressions), so that they run in C: 4 KiB of bits take about a microsecond.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

_FULL: Final = 0xFF


def has(raw: bytes | bytearray, number: int) -> bool:
    """Whether one bit is set."""
    return bool(raw[number >> 3] >> (number & 7) & 1)


def set_range(raw: bytearray, first: int, count: int) -> bool:
    """Set all of a range; whether all of them were clear."""
    end = first + count
    low, high = first >> 3, end >> 3
    if not (first | end) & 7:
        fresh = raw.count(0, low, high) == high - low
        raw[low:high] = b"\xff" * (high - low)
        return fresh
    head, tail = _FULL << (first & 7) & _FULL, (1 << (end & 7)) - 1
    if low == high:
        return _set(raw, low, head & tail)
    fresh = _set(raw, low, head)
    if tail:
        fresh &= _set(raw, high, tail)
    inner = high - low - 1
    if inner > 0:
        fresh &= raw.count(0, low + 1, high) == inner
        raw[low + 1 : high] = b"\xff" * inner
    return fresh


def _set(raw: bytearray, at: int, mask: int) -> bool:
    before = raw[at]
    raw[at] = before | mask
    return not before & mask


def clear_range(raw: bytearray, first: int, count: int) -> bool:
    """Clear all of a range; whether all of them were set."""
    end = first + count
    low, high = first >> 3, end >> 3
    head, tail = _FULL << (first & 7) & _FULL, (1 << (end & 7)) - 1
    if low == high:
        return _clear(raw, low, head & tail)
    were_set = _clear(raw, low, head)
    if tail:
        were_set &= _clear(raw, high, tail)
    inner = high - low - 1
    if inner > 0:
        were_set &= raw.count(_FULL, low + 1, high) == inner
        raw[low + 1 : high] = bytes(inner)
    return were_set


def _clear(raw: bytearray, at: int, mask: int) -> bool:
    before = raw[at]
    raw[at] = before & ~mask
    return before & mask == mask


# --- searching ---------------------------------------------------------------

_in_use: Final = re.compile(rb"[^\x00]").search


def clear_run(raw: bytes | bytearray, first: int, most: int) -> int:
    """How many bits are clear from `first` on: at most `most`, and not beyond the end."""
    at = first >> 3
    rest = raw[at] >> (first & 7)
    if rest:
        return min(most, (rest & -rest).bit_length() - 1)
    count = 8 - (first & 7)
    if count >= most:
        return most
    stop = at + 1 + (most - count + 7 >> 3)
    used = _in_use(raw, at + 1, stop)
    if used is None:
        return min(most, 8 * len(raw) - first)
    at = used.start()
    byte = raw[at]
    return min(most, 8 * at + (byte & -byte).bit_length() - 1 - first)


def _first_run(byte: int, length: int) -> int:
    """Where the first `length` clear bits of a byte are; -1: there are none."""
    mask = (1 << length) - 1
    return next((at for at in range(9 - length) if not byte >> at & mask), -1)


ORDER_MAX: Final = 20
"""Of runs in one bitmap: blocks of 64 KiB have room for 2**19 bits."""

_Find = Callable[[bytes | bytearray, int], int]


def _finder(order: int) -> _Find:
    length = 1 << order - 1
    if length >= 8:
        zeros = bytes(length >> 3)

        def in_bytes(raw: bytes | bytearray, start: int) -> int:
            at = raw.find(zeros, start)
            return at if at < 0 else at << 3

        return in_bytes
    places = [_first_run(byte, length) for byte in range(256)]
    some = b"".join(b"\\x%02x" % byte for byte in range(256) if places[byte] >= 0)
    search = re.compile(b"[" + some + b"]").search

    def in_one_byte(raw: bytes | bytearray, start: int) -> int:
        found = search(raw, start)
        if found is None:
            return -1
        at = found.start()
        return (at << 3) + places[raw[at]]

    return in_one_byte


find_run: Final[list[_Find]] = [_finder(order) for order in range(1, ORDER_MAX + 1)]
"""`find_run[order - 1](raw, start)`: where, from byte `start` on, 2**(order - 1) bits are clear;
-1: nowhere. Only runs inside of one byte or of whole bytes are seen, which is what is preferred
anyway; the search for a single bit sees all."""

find_clear: Final = find_run[0]
"""The first clear bit from byte `start` on; -1: there is none."""


# --- sets --------------------------------------------------------------------


class Bits:
    """A large set of small numbers, from 0 to `count` (exclusive)."""

    def __init__(self, count: int) -> None:
        self.count: Final = count
        self.raw: Final = bytearray(count + 7 >> 3)

    def __contains__(self, number: int) -> bool:
        return has(self.raw, number)

    def add(self, number: int) -> None:
        """One number."""
        self.raw[number >> 3] |= 1 << (number & 7)

    def add_range(self, first: int, count: int) -> bool:
        """All of a range; whether all of them are new."""
        return set_range(self.raw, first, count)

    def overlap_into(self, other: Bits, first: int, count: int) -> None:
        """Add to `other`, which is of the same size, what of a range is in this set."""
        low, high = first >> 3, first + count + 7 >> 3
        mask = ((1 << count) - 1) << (first & 7)
        both = int.from_bytes(self.raw[low:high], "little") & mask
        merged = int.from_bytes(other.raw[low:high], "little") | both
        other.raw[low:high] = merged.to_bytes(high - low, "little")

    def ranges(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """What of a range is in the set, as ranges (first and last)."""
        low, high = first >> 3, first + count + 7 >> 3
        found = int.from_bytes(self.raw[low:high], "little") >> (first & 7)
        return ranges_in(found & (1 << count) - 1, first)

    def within(self, first: int, count: int) -> Iterator[int]:
        """Those numbers of a range that are in the set."""
        return (number for number in range(first, first + count) if number in self)

    def any_in(self, first: int, count: int) -> bool:
        """Whether some number of a range is in the set."""
        low, high = (first + 7) >> 3, (first + count) >> 3
        if low >= high:
            return any(True for _ in self.within(first, count))
        edges = (*range(first, low << 3), *range(high << 3, first + count))
        return self.raw.count(0, low, high) != high - low or any(n in self for n in edges)


def ranges_in(value: int, first: int) -> Iterator[tuple[int, int]]:
    """The bits that are set in a number, as ranges (first and last), the lowest being `first`."""
    while value:
        skip = (value & -value).bit_length() - 1
        value >>= skip
        length = (~value & value + 1).bit_length() - 1
        first += skip
        yield first, first + length - 1
        value >>= length
        first += length


def in_words(ranges: Iterator[tuple[int, int]], most: int = 4) -> str:
    """Ranges for a sentence: "5, 7-9 and more"."""
    words: list[str] = []
    for low, high in ranges:
        if len(words) == most:
            return ", ".join(words) + " and more"
        words.append(str(low) if low == high else f"{low}-{high}")
    return ", ".join(words)
