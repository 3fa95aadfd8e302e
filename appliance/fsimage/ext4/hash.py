"""Names to hashes: what orders an indexed directory (kernel document: "Hash Tree Directories").

A hash has a major part, by which the index is searched, and a minor part, which orders names with
equal major parts. The lowest bit of a major hash is 0; in the index, 1 marks a block that goes on
with the hash of the block before it.

Each function exists twice, because the first implementation took characters as signed where the
machine did; a superblock flag says which of the two the file system was made with.

Half-MD4, which nearly all directories have, takes 4.5 us in Python, as long as all else that a
lookup does. libext2fs, which e2fsprogs bring along on nearly every Linux system, has it in C: 0.5
us. It is used where it is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4.crc import MASK32

Hash = tuple[int, int]
"""Major, minor."""

_Words = tuple[int, ...]

LEGACY: Final = 0
HALF_MD4: Final = 1
TEA: Final = 2
UNSIGNED: Final = 3
"""What is added to a version for its form with unsigned characters."""

_END_OF_DIRECTORY: Final = 0xFFFF_FFFE
"""A major hash that the kernel keeps for "after the last entry"."""

_INITIAL: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_TEA_DELTA: Final = 0x9E3779B9
_FILLS: Final = tuple(bytes((length,)) * 32 for length in range(256))
_UNPACK: Final = {count: struct.Struct(f">{count}I").unpack for count in (4, 8)}
_ROUND2: Final = 0x5A827999
_ROUND3: Final = 0x6ED9EBA1


class NameHash:
    """One hash function with its seed."""

    def __init__(self, version: int, seed: bytes, *, unsigned: bool) -> None:
        """`version` is one of those above, also one that is unsigned already."""
        self._unsigned: Final = unsigned or version >= UNSIGNED
        words = struct.unpack("<4I", seed)
        self._seed: Final = words if any(words) else _INITIAL
        functions: tuple[Callable[[bytes], Hash], ...] = (
            self._legacy,
            half_md4_in_c(self._seed, self._unsigned) or self._half_md4,
            self._tea,
        )
        self._function: Final = functions[version % UNSIGNED]

    def __call__(self, name: bytes) -> Hash:
        """Major and minor hash of `name`."""
        major, minor = self._function(name)
        major &= 0xFFFF_FFFE
        return (major if major != _END_OF_DIRECTORY else major - 2), minor

    def _legacy(self, name: bytes) -> Hash:
        """It has no minor part."""
        older, newer = 0x37ABE8F9, 0x12A3FE2D
        for character in name:
            if character > 127 and not self._unsigned:
                character -= 256
            value = older + (newer ^ (character * 7152373 & MASK32)) & MASK32
            if value & 0x8000_0000:
                value -= 0x7FFF_FFFF
            older, newer = newer, value
        return newer << 1 & MASK32, 0

    def _half_md4(self, name: bytes) -> Hash:
        state = _half_md4_transform(self._seed, self._words(name, 8))
        for at in range(32, len(name), 32):
            state = _half_md4_transform(state, self._words(name[at:], 8))
        return state[1], state[2]

    def _tea(self, name: bytes) -> Hash:
        state = self._seed
        for at in range(0, len(name), 16):
            major, minor = _tea_transform(state[0], state[1], self._words(name[at:], 4))
            state = (major, minor, *state[2:])
        return state[0], state[1]

    def _words(self, rest: bytes, count: int) -> _Words:
        """The first characters of `rest` as `count` big-endian words, filled up with its length."""
        if not self._unsigned and not rest.isascii():
            return _signed_words(rest, count)
        length = len(rest)
        fill = _FILLS[length]
        size = 4 * count
        if length > size:
            rest = rest[:size]
        elif length & 3:
            whole = length & ~3
            rest = rest[:whole] + fill[: 4 - (length & 3)] + rest[whole:]
        return _UNPACK[count](rest + fill[: size - len(rest)])


def half_md4_in_c(seed: _Words, unsigned: bool) -> Callable[[bytes], Hash] | None:
    """libext2fs's half-MD4, with its results in a place of its own: not for two threads at once.
    None: it is not installed."""
    import ctypes  # 10 ms, for those who open an image

    try:
        # It is called with the GIL kept: to let go of it would take as long as the work itself.
        function = ctypes.PyDLL("libext2fs.so.2").ext2fs_dirhash
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, *[ctypes.c_void_p] * 3]
    function.restype = ctypes.c_long
    seed_words, major, minor = (ctypes.c_uint32 * 4)(*seed), ctypes.c_uint32(), ctypes.c_uint32()
    version = HALF_MD4 + UNSIGNED if unsigned else HALF_MD4
    seed_at, major_at, minor_at = map(ctypes.addressof, (seed_words, major, minor))

    def half_md4(name: bytes, _alive: object = seed_words) -> Hash:
        function(version, name, len(name), seed_at, major_at, minor_at)
        return major.value, minor.value

    return half_md4


def _signed_words(rest: bytes, count: int) -> _Words:
    """The same, where a character above 127 is negative, so that it borrows from those before."""
    fill = int.from_bytes(bytes((len(rest),)) * 4, "big")
    words = []
    for at in range(0, min(len(rest), 4 * count), 4):
        word = fill
        for character in rest[at : at + 4]:
            word = (word << 8) + (character - 256 if character > 127 else character) & MASK32
        words.append(word)
    return tuple(words + [fill] * (count - len(words)))


def _tea_transform(major: int, minor: int, words: _Words) -> tuple[int, int]:
    a, b, c, d = words
    x, y, total = major, minor, 0
    for _ in range(16):
        total = total + _TEA_DELTA & MASK32
        x = x + ((y << 4) + a ^ y + total ^ (y >> 5) + b) & MASK32
        y = y + ((x << 4) + c ^ x + total ^ (x >> 5) + d) & MASK32
    return major + x & MASK32, minor + y & MASK32


def _half_md4_transform(state: _Words, words: _Words) -> _Words:
    """Three rounds of MD4, with eight steps each instead of sixteen.

    Sums are cut to 32 bits before each rotation only: what a rotation leaves above bit 31 never
    comes down again, since nothing else here moves bits to the right.
    """
    w0, w1, w2, w3, w4, w5, w6, w7 = words
    a, b, c, d = state
    for p, q, r, s in ((w0, w1, w2, w3), (w4, w5, w6, w7)):
        a = a + (d ^ b & (c ^ d)) + p & MASK32
        a = a << 3 | a >> 29
        d = d + (c ^ a & (b ^ c)) + q & MASK32
        d = d << 7 | d >> 25
        c = c + (b ^ d & (a ^ b)) + r & MASK32
        c = c << 11 | c >> 21
        b = b + (a ^ c & (d ^ a)) + s & MASK32
        b = b << 19 | b >> 13
    for p, q, r, s in ((w1, w3, w5, w7), (w0, w2, w4, w6)):
        a = a + ((b & c) + ((b ^ c) & d)) + p + _ROUND2 & MASK32
        a = a << 3 | a >> 29
        d = d + ((a & b) + ((a ^ b) & c)) + q + _ROUND2 & MASK32
        d = d << 5 | d >> 27
        c = c + ((d & a) + ((d ^ a) & b)) + r + _ROUND2 & MASK32
        c = c << 9 | c >> 23
        b = b + ((c & d) + ((c ^ d) & a)) + s + _ROUND2 & MASK32
        b = b << 13 | b >> 19
    for p, q, r, s in ((w3, w7, w2, w6), (w1, w5, w0, w4)):
        a = a + (b ^ c ^ d) + p + _ROUND3 & MASK32
        a = a << 3 | a >> 29
        d = d + (a ^ b ^ c) + q + _ROUND3 & MASK32
        d = d << 9 | d >> 23
        c = c + (d ^ a ^ b) + r + _ROUND3 & MASK32
        c = c << 11 | c >> 21
        b = b + (c ^ d ^ a) + s + _ROUND3 & MASK32
        b = b << 15 | b >> 17
    return (
        state[0] + a & MASK32,
        state[1] + b & MASK32,
        state[2] + c & MASK32,
        state[3] + d & MASK32,
    )
