"""What an image is, by its magic.

A few formats can be served; the others are known by name, so that the message can say what to do.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final

from appliance.fsimage.device import BlockDevice
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.superblock import RESTORE, first_backup

_EXT_MAGIC_OFFSET: Final = layout.SUPERBLOCK_OFFSET + 0x38
_BOOT_SIGNATURE_OFFSET: Final = 510
_BEGINNING_BYTES: Final = 64 * 1024
"""If this is all zeros, nobody has put anything there yet."""

_LOOP_MOUNT: Final = "mount it through a loop device and serve it with --directory"
_CONVERT: Final = "convert it: qemu-img convert -O raw IMAGE NEW"
_DECOMPRESS: Final = "decompress it first"

_OTHERS: Final = (
    (0, b"QFI\xfb", "a qcow2 image", _CONVERT),
    (0, b"KDMV", "a VMDK image", _CONVERT),
    (0, b"vhdxfile", "a VHDX image", _CONVERT),
    (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox image", _CONVERT),
    (0, b"\x1f\x8b", "compressed with gzip", _DECOMPRESS),
    (0, b"\xfd7zXZ\0", "compressed with xz", _DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _DECOMPRESS),
    (0, b"LUKS\xba\xbe", "encrypted with LUKS", "open it with cryptsetup first"),
    (0, b"hsqs", "a squashfs", _LOOP_MOUNT),
    (0, b"XFSB", "an XFS", _LOOP_MOUNT),
    (0x10040, b"_BHRfS_M", "a Btrfs", _LOOP_MOUNT),
    (0x8001, b"CD001", "an ISO 9660", _LOOP_MOUNT),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS", _LOOP_MOUNT),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS", _LOOP_MOUNT),
    (3, b"NTFS    ", "an NTFS", _LOOP_MOUNT),
    (3, b"EXFAT   ", "an exFAT", _LOOP_MOUNT),
    (54, b"FAT", "a FAT", _LOOP_MOUNT),
    (82, b"FAT32", "a FAT", _LOOP_MOUNT),
    (0, b"BZh", "compressed with bzip2", _DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _DECOMPRESS),
    (0, b"PK\3\4", "a zip archive", "unpack it first"),
    (0, b"\x3a\xff\x26\xed", "a sparse image of Android", "convert it: simg2img IMAGE NEW"),
    (512, b"LABELONE", "a physical volume of LVM", "serve one of its logical volumes, /dev/VG/LV"),
    (4086, b"SWAPSPACE2", "a swap area", ""),
    (257, b"ustar", "a tar archive", "unpack it and serve it with --directory"),
)
"""Offset, magic, what it is, and what to do about it."""


class Kind(Enum):
    """What can be done with an image."""

    EXT4 = "ext4"
    DISK = "disk"
    OTHER = "other"


def probe(device: BlockDevice) -> tuple[Kind, str, str]:
    """What is on `device`; of what cannot be served, its name and a hint."""
    if _has(device, _EXT_MAGIC_OFFSET, struct.pack("<H", layout.EXT4_SUPER_MAGIC)):
        return Kind.EXT4, "", ""
    for offset, magic, name, hint in _OTHERS:
        if _has(device, offset, magic):
            return Kind.OTHER, name, hint
    if _has(device, _BOOT_SIGNATURE_OFFSET, b"\x55\xaa"):
        return Kind.DISK, "", ""
    backup = first_backup(device)
    if backup is not None:
        lost = f"an ext2, ext3 or ext4 without its superblock (a backup is in block {backup[0]})"
        return Kind.OTHER, lost, RESTORE
    beginning = device.read(0, min(device.size, _BEGINNING_BYTES))
    hint = "file(1) may know what it is" if any(beginning) else "mkfs.ext4 makes one"
    return Kind.OTHER, "none of the file systems that are known here", hint


def _has(device: BlockDevice, offset: int, magic: bytes) -> bool:
    end = offset + len(magic)
    return end <= device.size and device.read(offset, len(magic)) == magic
