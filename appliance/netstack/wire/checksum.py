"""The Internet checksum (RFC 1071).

The sum of 16-bit words in ones' complement is the sum modulo 0xffff, because 0x10000 leaves the
remainder 1. So the whole buffer may be read as one number, and Python divides long numbers fast.
The number is read in little-endian order: then an odd last byte stands where the padding would put
it, and only the 16-bit result has to be swapped (RFC 1071 section 2 (B): the order of the bytes
does not matter).

There are two zeros in ones' complement. Only an all-zero buffer has the sum 0; every other
multiple of 0xffff has the sum 0xffff, which makes the checksum 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Buffer = bytes | bytearray | memoryview


_HALF_BITS: Final = 768 * 8
_HALF: Final = (1 << _HALF_BITS) - 1
_QUARTER_BITS: Final = 384 * 8
_QUARTER: Final = (1 << _QUARTER_BITS) - 1
"""Of a frame of 1500 bytes, in whole words."""


def remainder(number: int) -> int:
    """`number` % 0xffff. To divide takes longest, so the upper half of a long number is added to
    the lower one first, which changes nothing, and that once more."""
    if number > _HALF:
        number = (number >> _HALF_BITS) + (number & _HALF)
        number = (number >> _QUARTER_BITS) + (number & _QUARTER)
    return number % 0xFFFF


def word_sum(buffer: Buffer) -> int:
    """The ones' complement sum of the 16-bit words of `buffer`, 0 to 0xffff."""
    number = int.from_bytes(buffer, "little")
    swapped = remainder(number)
    if not swapped:
        return 0xFFFF if number else 0
    return swapped >> 8 | (swapped & 0xFF) << 8


def word_sum_of(buffers: Iterable[Buffer]) -> int:
    """The same of several buffers, taken as if they were joined."""
    total = 0
    odd = False
    for buffer in buffers:
        part = word_sum(buffer)
        if odd:  # each byte of it stands in the other half of its word
            part = part >> 8 | (part & 0xFF) << 8
        total += part
        odd ^= len(buffer) & 1 == 1
    return fold(total)


def fold(total: int) -> int:
    """Add the carries of a sum of words back in, until none is left."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(buffer: Buffer) -> int:
    """What goes into the checksum field of `buffer`, in which that field is zero."""
    return 0xFFFF - word_sum(buffer)


def is_sound(buffer: Buffer) -> bool:
    """True: the buffer agrees with the checksum in it."""
    return word_sum(buffer) == 0xFFFF


def pseudo_header_sum(addresses_sum: int, protocol: int, length: int) -> int:
    """The sum of the pseudo-header (RFC 9293 section 3.1, RFC 768): both addresses, the protocol,
    and the length of the transport's header and data."""
    return fold(addresses_sum + protocol + length)
