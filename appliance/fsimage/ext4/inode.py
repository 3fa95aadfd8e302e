"""One inode: the record, its checksum, and what it says as vfs attributes."""

from __future__ import annotations

from typing import Final

from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.layout import ext4_inode
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Attributes, FileType

_TYPES: Final = {int(each): each for each in FileType}

_SECOND: Final = 1_000_000_000
_SIGN: Final = 0x8000_0000
_MASK64: Final = (1 << 64) - 1


class Inode:
    """An inode as it is on disk: its fields in `disk`, and in `body` what comes after them."""

    __slots__ = ("body", "disk", "number", "size")

    def __init__(self, number: int, disk: ext4_inode, body: bytes, size: int) -> None:
        self.number = number
        self.disk = disk
        self.body = body
        self.size = size

    @property
    def type(self) -> FileType:
        """What it is; `read` has seen that it is something."""
        return _TYPES[self.disk.i_mode >> 12]

    def has_flag(self, flag: int) -> bool:
        """Whether i_flags has it."""
        return bool(self.disk.i_flags & flag)


def read(volume: Volume, number: int) -> Inode:
    """The inode of `number`.

    STALE: it is free. IO: it is damaged, or none that a directory may name.
    """
    superblock = volume.superblock
    ordinary = superblock.first_inode <= number <= superblock.disk.s_inodes_count
    if not ordinary and number != layout.EXT4_ROOT_INO:
        raise volume.damaged(f"inode {number}", "is not one that a directory may name")
    inode = read_any(volume, number)
    if inode.disk.i_mode >> 12 not in _TYPES:
        raise volume.damaged(
            f"inode {number}", f"is of no type that there is (mode {inode.disk.i_mode:o})"
        )
    return inode


def read_any(volume: Volume, number: int) -> Inode:
    """The same, also of the inodes that the file system keeps for itself; `number` exists."""
    block, offset = volume.inode_location(number)
    raw = volume.block(block)[offset : offset + volume.superblock.inode_bytes]
    inode = decode(volume, number, raw)
    problem = _problem(volume, inode, raw)
    if problem:
        raise volume.damaged(f"inode {number}", problem)
    return inode


def decode(volume: Volume, number: int, raw: bytes) -> Inode:
    """The inode in `raw`, not yet checked."""
    if len(raw) == layout.GOOD_OLD_INODE_SIZE:
        disk, body = ext4_inode.decode(raw.ljust(ext4_inode.SIZE, b"\0")), b""
    else:
        disk = ext4_inode.decode(raw)
        end = layout.GOOD_OLD_INODE_SIZE + disk.i_extra_isize
        if end < ext4_inode.SIZE:
            # The fields behind are not there: their place belongs to the attributes.
            disk = ext4_inode.decode(raw[:end].ljust(ext4_inode.SIZE, b"\0"))
        body = raw[end:]
    size = disk.i_size_lo
    if disk.i_mode >> 12 != FileType.DIRECTORY or (
        volume.superblock.disk.s_feature_incompat & layout.INCOMPAT_LARGEDIR
    ):
        size |= disk.i_size_high << 32
    return Inode(number, disk, body, size)


def _problem(volume: Volume, inode: Inode, raw: bytes) -> str:
    """Why `inode` cannot be used, in words. STALE is raised for one that is just not in use."""
    disk = inode.disk
    if volume.has_metadata_csum and not checksum_is_right(volume, inode, raw):
        if not any(raw):
            raise VfsError(Code.STALE, f"inode {inode.number} was never used")
        return "has a wrong checksum"
    if disk.i_links_count == 0:
        raise VfsError(Code.STALE, f"inode {inode.number} is free")
    if disk.i_extra_isize > len(raw) - layout.GOOD_OLD_INODE_SIZE and disk.i_extra_isize:
        return f"has {disk.i_extra_isize} bytes of extra fields"
    if inode.size >= 1 << 63:
        return f"has the size {inode.size}"
    if inode.has_flag(layout.EA_INODE_FL):
        return "holds an extended attribute"
    return ""


def checksum_is_right(volume: Volume, inode: Inode, raw: bytes) -> bool:
    disk = inode.disk
    low, high = layout.I_CHECKSUM_LO_OFFSET, layout.I_CHECKSUM_HI_OFFSET
    expected = disk.i_checksum_lo
    has_high = disk.i_extra_isize >= high + 2 - layout.GOOD_OLD_INODE_SIZE
    if has_high:
        blank = raw[:low] + b"\0\0" + raw[low + 2 : high] + b"\0\0" + raw[high + 2 :]
        expected |= disk.i_checksum_hi << 16
    else:
        blank = raw[:low] + b"\0\0" + raw[low + 2 :]
    checksum = crc32c(seed_of(volume, inode), blank)
    return expected == (checksum if has_high else checksum & 0xFFFF)


def seed_of(volume: Volume, inode: Inode) -> int:
    """The seed for the checksums of the blocks that belong to `inode`."""
    return volume.inode_seed(inode.number, inode.disk.i_generation)


# --- what it says ------------------------------------------------------------


def attributes_of(volume: Volume, inode: Inode) -> Attributes:
    """The attributes of an inode."""
    disk = inode.disk
    mode = disk.i_mode
    ctime_ns = time_ns(disk.i_ctime, disk.i_ctime_extra)
    device = mode >> 12 in (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
    return Attributes(
        _TYPES[mode >> 12],
        mode & 0o7777,
        disk.i_links_count,
        disk.i_uid | disk.i_uid_high << 16,
        disk.i_gid | disk.i_gid_high << 16,
        inode.size,
        _used_or_inline_bytes(volume, inode),
        rdev_of(disk.i_block) if device else (0, 0),
        inode.number,
        time_ns(disk.i_atime, disk.i_atime_extra),
        time_ns(disk.i_mtime, disk.i_mtime_extra),
        ctime_ns,
        ctime_ns + (disk.i_version | disk.i_version_hi << 32) & _MASK64,
    )


def time_ns(seconds: int, extra: int) -> int:
    """A time on disk, in nanoseconds: 32 signed bits of seconds, and in `extra` two more above
    them (which reach the year 2446) and the nanoseconds."""
    if seconds & _SIGN:
        seconds -= _SIGN << 1
    return (seconds + ((extra & 3) << 32)) * _SECOND + (extra >> 2)


def _used_or_inline_bytes(volume: Volume, inode: Inode) -> int:
    """The storage of an inode. A file inside its inode has none, but must not look like a hole to
    programs that then would not read it."""
    used = used_bytes(volume, inode.disk)
    if inode.has_flag(layout.INLINE_DATA_FL) and inode.type is FileType.REGULAR:
        used += inode.size + 511 & ~511
    return used


def used_bytes(volume: Volume, disk: ext4_inode) -> int:
    """i_blocks in bytes. It counts 512 bytes, or of a huge file blocks."""
    if not volume.superblock.disk.s_feature_ro_compat & layout.RO_COMPAT_HUGE_FILE:
        return disk.i_blocks_lo << 9
    blocks = disk.i_blocks_lo | disk.i_blocks_high << 32
    return blocks << (volume.block_bits if disk.i_flags & layout.HUGE_FILE_FL else 9)


def rdev_of(i_block: bytes) -> tuple[int, int]:
    """Major and minor of a device: the first word in the old encoding (8 bits each), or else the
    second one (12 and 20 bits)."""
    old = int.from_bytes(i_block[:4], "little")
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    new = int.from_bytes(i_block[4:8], "little")
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def inline_data(volume: Volume, inode: Inode) -> bytes:
    """What an inode with inline data holds: i_block, and the attribute that goes on with it."""
    rest = b""
    try:
        for name, value in xattr.in_inode(inode.body):
            if name == xattr.INLINE_DATA_NAME:
                rest = value
    except ValueError as error:
        raise volume.damaged(f"inode {inode.number}", f"has damaged attributes: {error}") from None
    return inode.disk.i_block + rest


def symlink_is_inline(volume: Volume, inode: Inode) -> bool:
    """Whether the text of a symbolic link is in i_block: it then has no block but, perhaps, that of
    its extended attributes."""
    disk = inode.disk
    of_attributes = 0
    if disk.i_file_acl_lo or disk.i_file_acl_high:
        of_attributes = volume.superblock.cluster_blocks << volume.block_bits
    return used_bytes(volume, disk) == of_attributes
