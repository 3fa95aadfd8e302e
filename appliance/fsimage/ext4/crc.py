"""The checksums of ext4 and JBD2.

All of them are used without the final inversion and with a seed, as the kernel does: the checksum
of two pieces is that of the second, seeded with that of the first.

CRC-32C is needed for every inode and every metadata block, so it has to be fast: google-crc32c
takes 0.3 us for 4 KiB, Python 150 us.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from appliance.trace import log

Checksum = Callable[[int, bytes], int]

MASK32: Final = 0xFFFF_FFFF


def _table(polynomial: int) -> list[int]:
    """Per byte, what a reflected CRC adds."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC16: Final = _table(0xA001)
_CRC32C: Final = _table(0x82F6_3B78)


def crc32c_in_python(seed: int, data: bytes) -> int:
    """CRC-32C where no package computes it."""
    for byte in data:
        seed = seed >> 8 ^ _CRC32C[(seed ^ byte) & 0xFF]
    return seed


def _choose() -> Checksum:
    """The fastest CRC-32C that is installed."""
    try:
        import google_crc32c
    except ImportError:
        pass
    else:
        if google_crc32c.implementation == "c":
            extend: Checksum = google_crc32c.extend
            return lambda seed, data: extend(seed ^ MASK32, data) ^ MASK32
    log.warning("ext4 checksums are slow: the package google-crc32c has no compiled code here")
    return crc32c_in_python


crc32c: Final[Checksum] = _choose()
"""metadata_csum, and JBD2's checksum versions 2 and 3."""


class Balance:
    """Keeps the CRC-32C of a record of `size` bytes what it was, whatever is changed in it: the
    four bytes at `at` make up for that.

    A CRC is linear: each bit of those bytes flips bits of the CRC that depend on nothing else in
    the record, and any bits can be flipped that way. Which have to be set to flip just one, is
    found by elimination.
    """

    def __init__(self, size: int, at: int) -> None:
        self._at: Final = at
        zeros = crc32c(0, bytes(size))
        rows = []  # what is flipped, and by what
        for bit in range(32):
            record = bytearray(size)
            record[at : at + 4] = (1 << bit).to_bytes(4, "little")
            rows.append((crc32c(0, bytes(record)) ^ zeros, 1 << bit))
        for bit in range(32):
            pivot = next(row for row in rows[bit:] if row[0] >> bit & 1)
            rows.remove(pivot)
            rows = [
                (flipped ^ pivot[0], value ^ pivot[1]) if flipped >> bit & 1 else (flipped, value)
                for flipped, value in rows
            ]
            rows.insert(bit, pivot)
        self._flips: Final = [_combined(rows[low : low + 8]) for low in range(0, 32, 8)]
        """For each byte of what is wrong, what makes up for that."""

    def apply(self, record: bytearray, checksum: int) -> None:
        """Let crc32c(MASK32, record) be `checksum`."""
        at = self._at
        record[at : at + 4] = bytes(4)
        wrong = crc32c(MASK32, bytes(record)) ^ checksum
        first, second, third, fourth = self._flips
        value = (
            first[wrong & 0xFF]
            ^ second[wrong >> 8 & 0xFF]
            ^ third[wrong >> 16 & 0xFF]
            ^ fourth[wrong >> 24]
        )
        record[at : at + 4] = value.to_bytes(4, "little")


def _combined(rows: list[tuple[int, int]]) -> list[int]:
    """For all values of eight bits, what flips just them: of each single bit, `rows` say it."""
    found = [0]
    for _, value in rows:
        found += [each ^ value for each in found]
    return found


def crc16(seed: int, data: bytes) -> int:
    """uninit_bg (gdt_csum): CRC-16 of a group descriptor."""
    for byte in data:
        seed = seed >> 8 ^ _CRC16[(seed ^ byte) & 0xFF]
    return seed


_REVERSED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _reverse32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED), "big")


def crc32_be(seed: int, data: bytes) -> int:
    """JBD2's checksum version 1: zlib's polynomial, highest bit first, hence all bits reversed."""
    reversed_seed = _reverse32(seed) ^ MASK32
    return _reverse32(zlib.crc32(data.translate(_REVERSED), reversed_seed) ^ MASK32)
