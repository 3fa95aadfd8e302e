"""Partition tables: MBR, with its chain of logical partitions, and GPT.

A table comes with the image, from anybody: so every chain has an end, every number a limit, and a
partition that reaches beyond the disk or into another one is an ImageError instead of somebody
else's bytes.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import Final

from appliance import image_limits, limits
from appliance.fsimage.device import BlockDevice
from appliance.fsimage.errors import ImageError
from appliance.trace import log

SECTOR_BYTES: Final = 512

_BOOT_SIGNATURE: Final = b"\x55\xaa"
_MBR_TABLE_OFFSET: Final = 446
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")
"""Boot flag, type, first sector, number of sectors (the bytes between are cylinders and heads)."""
_MBR_PRIMARIES: Final = 4
_ACTIVE: Final = 0x80
_EXTENDED_TYPES: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE_TYPE: Final = 0xEE
_FIRST_LOGICAL: Final = 5

_MBR_TYPE_NAMES: Final = {
    0x07: "NTFS or exFAT",
    0x0B: "FAT32",
    0x0C: "FAT32",
    0x0E: "FAT16",
    0x82: "Linux swap",
    0x83: "Linux",
    0x8E: "Linux LVM",
    0xEF: "EFI system",
    0xFD: "Linux RAID",
}

_GPT_SIGNATURE: Final = b"EFI PART"
_GPT_HEADER: Final = struct.Struct("<8sIII4xQQQQ16sQIII")
"""UEFI specification 5.3.2: Signature, Revision, HeaderSize, HeaderCRC32, MyLBA, AlternateLBA,
FirstUsableLBA, LastUsableLBA, DiskGUID, PartitionEntryLBA, NumberOfPartitionEntries,
SizeOfPartitionEntry, PartitionEntryArrayCRC32."""
_GPT_CRC_OFFSET: Final = 16
_GPT_SECTORS: Final = (SECTOR_BYTES, 4096)
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
"""5.3.3: type, GUID, StartingLBA, EndingLBA (inclusive), attributes, name."""

_GPT_TYPE_NAMES: Final = {
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM64)",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft data",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
}

_REPAIR: Final = "look at it with fdisk -l; a damaged GPT is repaired by sgdisk or gdisk"


@dataclass(slots=True, frozen=True)
class Partition:
    """A range of bytes that a table names."""

    number: int
    first: int
    size: int
    type: str
    name: str = ""

    def __str__(self) -> str:
        size = f"{self.size / limits.MiB:.0f} MiB" if self.size >= limits.MiB else f"{self.size} B"
        name = f' "{self.name}"' if self.name else ""
        return f"{self.number}: {size}, {self.type}{name}"


def read_partitions(device: BlockDevice) -> list[Partition]:
    """The partitions of a disk, by number; none if there is no table at all. ImageError: there is
    one that makes no sense."""
    if device.size < 2 * SECTOR_BYTES:
        return []
    boot = device.read(0, SECTOR_BYTES)
    if boot[-2:] != _BOOT_SIGNATURE or not _has_table(boot):
        return []
    entries = _mbr_entries(boot)
    if any(kind == _PROTECTIVE_TYPE for kind, _, _ in entries):
        found = _read_gpt(device)
    else:
        found = _read_mbr(device, entries)
    _check(device, found)
    return found


def _check(device: BlockDevice, partitions: list[Partition]) -> None:
    """Every partition is on the disk, and none in another."""
    before: Partition | None = None
    for partition in sorted(partitions, key=lambda each: each.first):
        if partition.size <= 0 or partition.first + partition.size > device.size:
            raise ImageError(
                f"partition {partition.number} reaches beyond the end of the image",
                "the image was cut off: copy it again, or enlarge it with truncate",
            )
        if before and partition.first < before.first + before.size:
            raise ImageError(f"partitions {before.number} and {partition.number} overlap", _REPAIR)
        before = partition


# --- MBR ---------------------------------------------------------------------


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Type, first sector, number of sectors of the four entries of a table."""
    table = sector[_MBR_TABLE_OFFSET : _MBR_TABLE_OFFSET + _MBR_PRIMARIES * _MBR_ENTRY.size]
    return [(kind, first, count) for _, kind, first, count in _MBR_ENTRY.iter_unpack(table)]


def _has_table(boot: bytes) -> bool:
    """Whether this boot sector has a partition table: that of a file system has code there."""
    flags = boot[_MBR_TABLE_OFFSET : -len(_BOOT_SIGNATURE) : _MBR_ENTRY.size]
    return all(flag in (0, _ACTIVE) for flag in flags)


def _mbr_partition(number: int, kind: int, first: int, count: int) -> Partition:
    name = _MBR_TYPE_NAMES.get(kind, f"type {kind:#04x}")
    return Partition(number, first * SECTOR_BYTES, count * SECTOR_BYTES, name)


def _read_mbr(device: BlockDevice, entries: list[tuple[int, int, int]]) -> list[Partition]:
    found = []
    logical: list[Partition] = []
    for number, (kind, first, count) in enumerate(entries, 1):
        if kind in _EXTENDED_TYPES:
            if logical:
                raise ImageError("the partition table has two extended partitions", _REPAIR)
            logical = _read_logical(device, first)
        elif kind and count:
            found.append(_mbr_partition(number, kind, first, count))
    return found + logical


def _read_logical(device: BlockDevice, extended: int) -> list[Partition]:
    """The chain of logical partitions inside the extended one that begins at sector `extended`:
    each link is a table of two entries, a partition (counted from the link) and the next link
    (counted from the beginning of the chain)."""
    found: list[Partition] = []
    seen: set[int] = set()
    link = extended
    while True:
        if link in seen or len(seen) >= image_limits.PARTITIONS_MAX:
            raise ImageError("the chain of logical partitions has no end", _REPAIR)
        seen.add(link)
        if (link + 1) * SECTOR_BYTES > device.size:
            raise ImageError("the chain of logical partitions leaves the image", _REPAIR)
        sector = device.read(link * SECTOR_BYTES, SECTOR_BYTES)
        if sector[-2:] != _BOOT_SIGNATURE:
            raise ImageError("the chain of logical partitions is broken", _REPAIR)
        (kind, first, count), (next_kind, next_link, _) = _mbr_entries(sector)[:2]
        if kind and count:
            found.append(_mbr_partition(_FIRST_LOGICAL + len(found), kind, link + first, count))
        if next_kind not in _EXTENDED_TYPES or not next_link:
            return found
        link = extended + next_link


# --- GPT ---------------------------------------------------------------------


@dataclass(slots=True)
class _GptHeader:
    """What of a header is needed, checked."""

    sector_bytes: int
    entries_at: int
    entry_count: int
    entry_bytes: int
    entries_crc: int


def _read_gpt(device: BlockDevice) -> list[Partition]:
    """The partitions of the first header that is sound, with its entries: the one at the beginning,
    or its copy at the end."""
    firsts: dict[int, str] = {}
    for sector_bytes in _GPT_SECTORS:
        try:
            return _gpt_partitions(device, _gpt_header(device, sector_bytes, sector_bytes))
        except _Unsound as problem:
            firsts[sector_bytes] = f"first: {problem}"
    backups = []
    for sector_bytes, first in firsts.items():
        try:
            header = _gpt_header(device, device.size - sector_bytes, sector_bytes)
            found = _gpt_partitions(device, header)
        except _Unsound as problem:
            backups.append(f"backup: {problem}")
            continue
        log.warning("partition table: using the backup GPT header (%s)", first)
        return found
    raise ImageError(f"no GPT header is sound ({firsts[SECTOR_BYTES]}; {backups[0]})", _REPAIR)


class _Unsound(Exception):
    """A header that cannot be used; there may be another."""


def _gpt_header(device: BlockDevice, at: int, sector_bytes: int) -> _GptHeader:
    if not 0 < at <= device.size - sector_bytes:
        raise _Unsound("the image is too short")
    raw = device.read(at, sector_bytes)
    (signature, _, size, crc, my_lba, _, _, _, _, entries_lba, count, entry_bytes, entries_crc) = (
        _GPT_HEADER.unpack_from(raw)
    )
    if signature != _GPT_SIGNATURE:
        raise _Unsound("no signature")
    if not _GPT_HEADER.size <= size <= sector_bytes:
        raise _Unsound(f"{size} bytes long")
    blank = raw[:_GPT_CRC_OFFSET] + bytes(4) + raw[_GPT_CRC_OFFSET + 4 : size]
    if zlib.crc32(blank) != crc:
        raise _Unsound("wrong checksum")
    if my_lba * sector_bytes != at:
        raise _Unsound(f"written for sector {my_lba}")
    if entry_bytes < _GPT_ENTRY.size or count * entry_bytes > image_limits.GPT_BYTES_MAX:
        raise _Unsound(f"{count} entries of {entry_bytes} bytes")
    if entries_lba * sector_bytes + count * entry_bytes > device.size:
        raise _Unsound("its entries are beyond the end")
    return _GptHeader(sector_bytes, entries_lba * sector_bytes, count, entry_bytes, entries_crc)


def _gpt_partitions(device: BlockDevice, header: _GptHeader) -> list[Partition]:
    raw = device.read(header.entries_at, header.entry_count * header.entry_bytes)
    if zlib.crc32(raw) != header.entries_crc:
        raise _Unsound("wrong checksum of the entries")
    found: list[Partition] = []
    for index in range(header.entry_count):
        kind, _, first, last, _, name = _GPT_ENTRY.unpack_from(raw, index * header.entry_bytes)
        if not any(kind):
            continue
        if len(found) == image_limits.PARTITIONS_MAX:
            raise ImageError(f"more than {image_limits.PARTITIONS_MAX} partitions", _REPAIR)
        type_id = str(uuid.UUID(bytes_le=kind))
        found.append(
            Partition(
                index + 1,
                first * header.sector_bytes,
                (last + 1 - first) * header.sector_bytes,
                _GPT_TYPE_NAMES.get(type_id, f"type {type_id}"),
                _printable(name.decode("utf-16-le", "replace").split("\0")[0]),
            )
        )
    return found


def _printable(text: str) -> str:
    """A name from the image, for a message on somebody's terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)
