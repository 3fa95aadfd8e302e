"""A large set of small numbers, one bit each, in the order of the bitmaps on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final


class Bits:
    """Numbers from 0 to `count` (exclusive). Ranges are handled a byte at a time, in C."""

    def __init__(self, count: int) -> None:
        self.count: Final = count
        self.raw: Final = bytearray(count + 7 >> 3)

    def __contains__(self, number: int) -> bool:
        return bool(self.raw[number >> 3] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        """One number."""
        self.raw[number >> 3] |= 1 << (number & 7)

    def add_range(self, first: int, count: int) -> bool:
        """All of a range; whether all of them are new."""
        end = first + count
        low, high = first >> 3, end >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, (1 << (end & 7)) - 1
        if low == high:
            return self._add_mask(low, head & tail)
        fresh = self._add_mask(low, head)
        if tail:
            fresh &= self._add_mask(high, tail)
        inner = high - low - 1
        if inner > 0:
            fresh &= self.raw.count(0, low + 1, high) == inner
            self.raw[low + 1 : high] = b"\xff" * inner
        return fresh

    def _add_mask(self, at: int, mask: int) -> bool:
        before = self.raw[at]
        self.raw[at] = before | mask
        return not before & mask

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
