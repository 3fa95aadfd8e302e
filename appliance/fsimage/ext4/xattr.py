"""Extended attributes as they lie on the disk ("Extended Attributes").

They are in two places: behind the fields of the inode, and in one block of their own, which inodes
with equal attributes share. In both, entries with names grow from the front, and the values they
point to from the back. The attributes in a block are sorted, and have hashes.

The prefix of a name is a number. An access control list is an attribute without a name, for which
the number says everything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.layout import ext4_xattr_entry, ext4_xattr_header
from appliance.fsimage.ext4.volume import Volume

Key = tuple[int, bytes]
"""An attribute's name: the number of its prefix, and the rest."""

Values = Mapping[Key, bytes]

INLINE_DATA_NAME: Final[Key] = (layout.XATTR_INDEX_SYSTEM, b"data")

BODY_HEADER_BYTES: Final = 4
"""Of an inode's own attributes: the magic number, and nothing else."""

_CHECKSUM_AT: Final = 0x10
_END_BYTES: Final = 4  # zeros where the next entry would be
_PREFIXES: Final = {
    layout.XATTR_INDEX_USER: b"user.",
    layout.XATTR_INDEX_TRUSTED: b"trusted.",
    layout.XATTR_INDEX_SECURITY: b"security.",
}


def key_of(name: bytes) -> Key | None:
    """What an attribute is called on the disk; None for a prefix that is not kept."""
    for index, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    return None


def name_of(key: Key) -> bytes | None:
    """What users call it; None for those that are not for them."""
    prefix = _PREFIXES.get(key[0])
    return None if prefix is None else prefix + key[1]


# --- reading -----------------------------------------------------------------


class Stored(NamedTuple):
    """One attribute. Its value may be in an inode of its own (ea_inode): `inode` is its number."""

    key: Key
    value: bytes
    inode: int
    size: int


def in_body(body: bytes) -> Iterator[Stored]:
    """What is in the bytes of an inode after its fields. ValueError: it makes no sense."""
    if len(body) < BODY_HEADER_BYTES or _magic(body) != layout.XATTR_MAGIC:
        return iter(())
    # Offsets of values count from the first entry.
    return _entries(body, BODY_HEADER_BYTES, BODY_HEADER_BYTES)


def in_block(raw: bytes) -> Iterator[Stored]:
    """What is in a block of attributes. ValueError: it is none, or makes no sense."""
    header = ext4_xattr_header.decode(raw)
    if header.h_magic != layout.XATTR_MAGIC or header.h_blocks != 1:
        raise ValueError("it is no block of attributes")
    return _entries(raw, ext4_xattr_header.SIZE, 0)


def in_inode(body: bytes) -> Iterator[tuple[Key, bytes]]:
    """The attributes whose values are in the inode itself."""
    return ((stored.key, stored.value) for stored in in_body(body) if not stored.inode)


def _magic(body: bytes) -> int:
    (magic,) = struct.unpack_from("<I", body)
    return int(magic)


def _entries(raw: bytes, at: int, base: int) -> Iterator[Stored]:
    """The entries from `at` on; their values are relative to `base`. All of them together are not
    longer than what they are in: each has a place of its own."""
    left = len(raw)
    while at + _END_BYTES <= len(raw) and raw[at : at + _END_BYTES] != bytes(_END_BYTES):
        if at + ext4_xattr_entry.SIZE > len(raw):
            raise ValueError("an entry reaches beyond the end")
        entry = ext4_xattr_entry.decode(raw, at)
        at += ext4_xattr_entry.SIZE
        name = raw[at : at + entry.e_name_len]
        at += _padded(entry.e_name_len)
        value = b""
        if not entry.e_value_inum:
            start = base + entry.e_value_offs
            value = raw[start : start + entry.e_value_size]
        if len(name) != entry.e_name_len or len(value) != (
            0 if entry.e_value_inum else entry.e_value_size
        ):
            raise ValueError("a name or value reaches beyond the end")
        left -= len(value)
        if left < 0:
            raise ValueError("values overlap")
        yield Stored((entry.e_name_index, name), value, entry.e_value_inum, entry.e_value_size)


def block_of(volume: Volume, disk: layout.ext4_inode) -> int:
    """The block with attributes of an inode; 0: there is none."""
    high = disk.i_file_acl_high if _has_64bit(volume) else 0
    return disk.i_file_acl_lo | high << 32


def set_block(volume: Volume, disk: layout.ext4_inode, number: int) -> None:
    """The attributes of this inode are in block `number` from now on."""
    disk.i_file_acl_lo = number & MASK32
    if _has_64bit(volume):
        disk.i_file_acl_high = number >> 32


def _has_64bit(volume: Volume) -> bool:
    return bool(volume.superblock.disk.s_feature_incompat & layout.INCOMPAT_64BIT)


# --- writing -----------------------------------------------------------------


def body_with(values: Values, length: int) -> bytes | None:
    """The `length` bytes of an inode after its fields, with these attributes in them; None: they do
    not fit."""
    if not values:
        return bytes(length)
    area = bytearray(max(length - BODY_HEADER_BYTES, 0) & ~3)
    if not _fill(area, 0, list(values.items()), has_hashes=False):
        return None
    return (struct.pack("<I", layout.XATTR_MAGIC) + area).ljust(length, b"\0")


def fill_block(block: bytearray, values: Values) -> bool:
    """Make a block of these attributes, of one inode, but for its checksum; whether they fit."""
    ordered = sorted(values.items(), key=_order)
    start = ext4_xattr_header.SIZE
    area = bytearray(len(block))
    if not _fill(area, start, ordered, has_hashes=True):
        return False
    block[:] = area
    ext4_xattr_header(layout.XATTR_MAGIC, 1, 1, _hash_of_all(ordered), 0).encode_into(block, 0)
    return True


def seal_block(volume: Volume, number: int, block: bytearray) -> None:
    """Put its checksum into a block of attributes."""
    if volume.has_metadata_csum:
        struct.pack_into("<I", block, _CHECKSUM_AT, block_checksum(volume, number, bytes(block)))


def block_checksum(volume: Volume, number: int, raw: bytes) -> int:
    """What h_checksum has to be in block `number`."""
    blank = raw[:_CHECKSUM_AT] + bytes(4) + raw[_CHECKSUM_AT + 4 :]
    return crc32c(crc32c(volume.seed, struct.pack("<Q", number)), blank)


def entry_hash(name: bytes, value: bytes, *, signed: bool = False) -> int:
    """The hash of an entry. `signed` is how the kernel took characters on some machines before
    version 6.2; both are in use, and good."""
    found = 0
    for character in name:
        if signed and character > 127:
            character |= 0xFFFF_FF00
        found = (found << 5 & MASK32 | found >> 27) ^ character
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        found = (found << 16 & MASK32 | found >> 16) ^ word
    return found


def _hash_of_all(ordered: list[tuple[Key, bytes]]) -> int:
    """The hash of a block, by which the kernel finds others that are equal; 0: it shall not."""
    found = 0
    for (_, name), value in ordered:
        one = entry_hash(name, value)
        if not one:
            return 0
        found = (found << 16 & MASK32 | found >> 16) ^ one
    return found


def _order(item: tuple[Key, bytes]) -> tuple[int, int, bytes]:
    """How the entries of a block are sorted."""
    (index, name), _ = item
    return index, len(name), name


def _fill(area: bytearray, start: int, items: list[tuple[Key, bytes]], *, has_hashes: bool) -> bool:
    """Put entries into `area` from `start` on, and their values at its end; whether they fit."""
    names = sum(ext4_xattr_entry.SIZE + _padded(len(name)) for (_, name), _ in items)
    values = sum(_padded(len(value)) for _, value in items)
    if start + names + _END_BYTES + values > len(area):
        return False
    at, behind = start, len(area)
    for (index, name), value in items:
        behind -= _padded(len(value))
        area[behind : behind + len(value)] = value
        ext4_xattr_entry(
            e_name_len=len(name),
            e_name_index=index,
            e_value_offs=behind if value else 0,
            e_value_inum=0,
            e_value_size=len(value),
            e_hash=entry_hash(name, value) if has_hashes else 0,
        ).encode_into(area, at)
        at += ext4_xattr_entry.SIZE
        area[at : at + len(name)] = name
        at += _padded(len(name))
    return True


def _padded(length: int) -> int:
    return length + 3 & ~3
