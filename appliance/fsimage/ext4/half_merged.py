"""The mark of a file system into which changes are being written from outside (../merging.py).

It must not be taken for a sound one by anybody, and nobody may try to mend it. The format has a way
to say so: a feature in s_feature_incompat that nobody knows. The kernel does not mount what has
one, and e2fsck and its relatives leave it alone. (A superblock without s_magic would be less:
e2fsck would put a backup in its place.) The checksum, which is in another sector, would be
wrong: so the mark also takes away the feature that says there is one. Then the mark is in one
sector of 512 bytes, which a disk writes whole or not at all.

What is not said by the mark stays: who has lost the overlay has what he had. It stands in place of
the volume's name, where lsblk shows it, and of the record of the first and last errors.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Annotated, Final

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.record import Record, at, le16, le32, record
from appliance.vfs.interface import Buffer

MARKED_OFFSET: Final = layout.SUPERBLOCK_OFFSET
"""Where the sector is that has the mark, in the file system."""
SECTOR_BYTES: Final = 512
OWNER_BYTES: Final = 8

_INCOMPAT_HALF_MERGED: Final = 1 << 31
_VOLUME_NAME: Final = b"half merged".ljust(16, b"\0")
_FILE_BYTES: Final = 120

_bytes8 = Annotated[bytes, f"<{OWNER_BYTES}s"]
_bytes16 = Annotated[bytes, "<16s"]
_bytes120 = Annotated[bytes, f"<{_FILE_BYTES}s"]


@record(size=SECTOR_BYTES)
class _Sector(Record):
    """The first sector of a superblock, as the mark sees it."""

    s_magic: le16 = at(0x038)
    s_feature_incompat: le32 = at(0x060)
    s_feature_ro_compat: le32 = at(0x064)
    s_volume_name: _bytes16 = at(0x078)
    owner: _bytes8 = at(0x180)
    file: _bytes120 = at(0x188)


@dataclass(frozen=True, slots=True)
class Mark:
    """`owner`: which overlay it belongs to, OWNER_BYTES. `file`: where that was, if that is known:
    a name that may be anything, because an image may come from anybody."""

    owner: bytes
    file: str

    def put(self, sector: Buffer) -> bytes:
        """The first sector of a superblock, with this mark."""
        raw = bytearray(sector)
        fields = _Sector.decode(raw)
        name = os.fsencode(self.file)
        fields.s_feature_incompat |= _INCOMPAT_HALF_MERGED
        fields.s_feature_ro_compat &= ~layout.RO_COMPAT_METADATA_CSUM
        fields.s_volume_name = _VOLUME_NAME
        fields.owner = self.owner
        fields.file = name if len(name) <= _FILE_BYTES else b""
        fields.encode_into(raw, 0)
        return bytes(raw)

    @property
    def remedy(self) -> str:
        """What has to be done."""
        shown = "".join(each if each.isprintable() else "?" for each in self.file)
        return f"finish it: rumpnfsd merge IMAGE {shlex.quote(shown) if shown else 'OVERLAYFILE'}"


class HalfMergedError(ImageError):
    """This is no file system until a merge is finished, whatever its backups say."""


def has_file_system(sector: Buffer) -> bool:
    """Whether this is the first sector of a superblock, with a mark or without."""
    return _Sector.decode(sector).s_magic == layout.EXT4_SUPER_MAGIC


def mark_in(sector: Buffer) -> Mark | None:
    """The mark in the first sector of a superblock, if there is one."""
    fields = _Sector.decode(sector)
    if (
        fields.s_magic != layout.EXT4_SUPER_MAGIC
        or not fields.s_feature_incompat & _INCOMPAT_HALF_MERGED
        or fields.s_volume_name != _VOLUME_NAME
    ):
        return None
    return Mark(fields.owner, os.fsdecode(fields.file.rstrip(b"\0")))


def check_whole(sector: Buffer) -> None:
    """HalfMergedError if there is a mark."""
    mark = mark_in(sector)
    if mark is not None:
        raise HalfMergedError("an overlay is half merged into it", mark.remedy)
