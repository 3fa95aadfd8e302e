"""One inode: the record, its checksum, and what it says as vfs attributes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.layout import ext4_inode
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import APPEND_ONLY, IMMUTABLE, Attributes, FileType

if TYPE_CHECKING:
    from appliance.fsimage.ext4.extents import Branch, Leaf

_TYPES: Final = {int(each): each for each in FileType}

_SECOND: Final = 1_000_000_000
_SIGN: Final = 0x8000_0000
_MASK16: Final = 0xFFFF
_MASK32: Final = 0xFFFF_FFFF
_MASK48: Final = (1 << 48) - 1
_MASK64: Final = (1 << 64) - 1

_SECONDS_MIN: Final = -(1 << 31)
_SECONDS_MAX: Final = (1 << 31) - 1
_SECONDS_MAX_WITH_EPOCH: Final = (1 << 34) - (1 << 31) - 1
"""The ends of the times that fit: in 1901; in 2038, or 2446 with the two bits in i_*time_extra."""

_TIMES_EXTRA: Final = 16
"""i_extra_isize has to be so much for a time of more than whole seconds, and 28 for a version of
more than 32 bits. Kernels before ext4 have left inodes of 256 bytes with 4."""
_VERSION_EXTRA: Final = 28

_DEVICE_MASK: Final = 0o130000
_DEVICE: Final = FileType.CHARACTER_DEVICE << 12
"""Both kinds of devices are this, with or without one more bit."""

_FIXED_FL: Final = layout.IMMUTABLE_FL | layout.APPEND_FL

_I_CHECKSUM_HI_END: Final = layout.I_CHECKSUM_HI_OFFSET + 2
_put16: Final = struct.Struct("<H").pack_into


class Inode:
    """An inode as it is on disk: its fields in `disk`, and in `body` what comes after them."""

    __slots__ = ("_seed", "body", "disk", "number", "place", "root", "size")

    def __init__(
        self, number: int, disk: ext4_inode, body: bytes, size: int, place: tuple[int, int]
    ) -> None:
        self.number = number
        self.disk = disk
        self.body = body
        self.size = size
        self.place = place
        """Its block of the inode table, and the offset in it."""
        self.root: Leaf | Branch | None = None
        """What i_block says of where its blocks are, once somebody has read that."""
        self._seed: int | None = None

    def seed(self, volume: Volume) -> int:
        """The seed for the checksums of the blocks that belong to it."""
        seed = self._seed
        if seed is None:
            seed = self._seed = volume.inode_seed(self.number, self.disk.i_generation)
        return seed

    def copy(self) -> Inode:
        """Another one, to be changed."""
        copy = Inode(self.number, self.disk.copy(), self.body, self.size, self.place)
        copy._seed = self._seed
        copy.root = self.root
        return copy

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


def read_any(volume: Volume, number: int, *, unlinked: bool = False) -> Inode:
    """The same, also of the inodes that the file system keeps for itself; `number` exists. With
    `unlinked` also of those that have no name any more."""
    inode = volume.unfinished.inodes.get(number)
    if inode is None:
        place = block, offset = volume.inode_location(number)
        raw = volume.block(block)[offset : offset + volume.superblock.inode_bytes]
        inode = decode(volume, number, raw, place)
        problem = _problem(volume, inode, raw, unlinked)
        if problem:
            raise volume.damaged(f"inode {number}", problem)
    elif not unlinked:
        _check_linked(inode)
    return inode


def _check_linked(inode: Inode) -> None:
    if inode.disk.i_links_count == 0:
        raise VfsError(Code.STALE, f"inode {inode.number} is free")


def decode(volume: Volume, number: int, raw: bytes, place: tuple[int, int] = (0, 0)) -> Inode:
    """The inode in `raw`, which comes from `place`; not yet checked."""
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
    return Inode(number, disk, body, size, place)


def _problem(volume: Volume, inode: Inode, raw: bytes, unlinked: bool) -> str:
    """Why `inode` cannot be used, in words. STALE is raised for one that is just not in use."""
    disk = inode.disk
    if volume.has_metadata_csum and not checksum_is_right(volume, inode, raw):
        if not any(raw):
            raise VfsError(Code.STALE, f"inode {inode.number} was never used")
        return "has a wrong checksum"
    if not unlinked:
        _check_linked(inode)
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
    return inode.seed(volume)


# --- writing -----------------------------------------------------------------


def encode_into(volume: Volume, inode: Inode, table: bytearray) -> None:
    """Put `inode` into its block of the inode table, with its checksum. Fields that are not known
    here stay."""
    disk, size = inode.disk, inode.size
    _, offset = inode.place
    disk.i_size_lo = size & _MASK32
    if disk.i_mode >> 12 != FileType.DIRECTORY or size >> 32:
        disk.i_size_high = size >> 32
    disk.i_checksum_lo = disk.i_checksum_hi = 0
    body = inode.body
    stop = offset + volume.superblock.inode_bytes
    end = stop - len(body)
    if end - offset >= ext4_inode.SIZE:
        disk.encode_into(table, offset)
    else:
        fields = bytearray(ext4_inode.SIZE)
        disk.encode_into(fields, 0)
        table[offset:end] = fields[: end - offset]
    table[end:stop] = body
    if volume.has_metadata_csum:
        raw = bytes(table[offset:stop])
        checksum = crc32c(inode.seed(volume), raw)
        _put16(table, offset + layout.I_CHECKSUM_LO_OFFSET, checksum & _MASK16)
        if end - offset >= _I_CHECKSUM_HI_END:
            _put16(table, offset + layout.I_CHECKSUM_HI_OFFSET, checksum >> 16)


def add_blocks(volume: Volume, inode: Inode, count: int) -> None:
    """Count `count` more (or fewer) blocks of the file system in i_blocks."""
    disk = inode.disk
    blocks = disk.i_blocks_lo + (count << volume.block_bits - 9)
    if 0 <= blocks <= _MASK32 and not disk.i_flags & layout.HUGE_FILE_FL:  # nearly always
        disk.i_blocks_lo = blocks
        return
    if not volume.superblock.disk.s_feature_ro_compat & layout.RO_COMPAT_HUGE_FILE:
        disk.i_blocks_lo = min(max(0, blocks), _MASK32)  # what was there may be damaged
        return
    blocks = disk.i_blocks_lo | disk.i_blocks_high << 32
    if disk.i_flags & layout.HUGE_FILE_FL:
        blocks = max(0, blocks + count)
    else:
        blocks = max(0, blocks + (count << volume.block_bits - 9))
        if blocks >> 48:  # from here on whole blocks are counted
            disk.i_flags |= layout.HUGE_FILE_FL
            blocks >>= volume.block_bits - 9
    blocks = min(blocks, _MASK48)
    disk.i_blocks_lo, disk.i_blocks_high = blocks & _MASK32, blocks >> 32


class Now:
    """One instant, for all times of an operation: encoded once."""

    __slots__ = ("encoded", "ns")

    def __init__(self, ns: int) -> None:
        self.ns = ns
        seconds, nanoseconds = divmod(ns, _SECOND)
        self.encoded = (seconds, nanoseconds << 2)
        """As it is in two fields of an inode, if it has the second and this is before 2038."""
        if not 0 <= seconds <= _SECONDS_MAX:
            self.encoded = (-1, 0)


def begin(inode: Inode, now: Now) -> None:
    """It is new: all its times are this one."""
    disk = inode.disk
    seconds, extra = now.encoded
    if seconds < 0 or disk.i_extra_isize < _TIMES_EXTRA:
        seconds, extra = encoded_time(inode, now.ns)
    disk.i_atime = disk.i_ctime = disk.i_mtime = disk.i_crtime = seconds
    disk.i_atime_extra = disk.i_ctime_extra = disk.i_mtime_extra = disk.i_crtime_extra = extra
    disk.i_version = 1


def touch(inode: Inode, now: Now) -> None:
    """Something about it changes: i_version goes up, and ctime, as far as its resolution allows:
    strictly, or else it stays at least."""
    disk = inode.disk
    if (
        disk.i_extra_isize >= _TIMES_EXTRA
        and (disk.i_ctime, disk.i_ctime_extra) < now.encoded
        and (not disk.i_ctime_extra & 3)
    ):  # which is nearly always: the time before was of our days, too
        disk.i_ctime, disk.i_ctime_extra = now.encoded
    else:
        before, now_ns = time_ns(disk.i_ctime, disk.i_ctime_extra), now.ns
        if now_ns <= before:
            now_ns = before + (disk.i_extra_isize >= _TIMES_EXTRA)
        disk.i_ctime, disk.i_ctime_extra = encoded_time(inode, now_ns)
    if disk.i_version < _MASK32:
        disk.i_version += 1
    else:
        disk.i_version = 0
        if disk.i_extra_isize >= _VERSION_EXTRA:  # or it would be another one when read again
            disk.i_version_hi = disk.i_version_hi + 1 & _MASK32


def modify(inode: Inode, now: Now) -> None:
    """Its content changes: the mtime is the new ctime."""
    touch(inode, now)
    disk = inode.disk
    disk.i_mtime, disk.i_mtime_extra = disk.i_ctime, disk.i_ctime_extra


def set_mtime(inode: Inode, value_ns: int) -> None:
    """Change the time of the last modification."""
    inode.disk.i_mtime, inode.disk.i_mtime_extra = encoded_time(inode, value_ns)


def set_atime(inode: Inode, value_ns: int) -> None:
    """Change the time of the last access."""
    inode.disk.i_atime, inode.disk.i_atime_extra = encoded_time(inode, value_ns)


def encoded_time(inode: Inode, value_ns: int) -> tuple[int, int]:
    """A time as it is kept in an inode, in two fields; the nearest one that can be kept."""
    seconds, nanoseconds = divmod(value_ns, _SECOND)
    has_extra = inode.disk.i_extra_isize >= _TIMES_EXTRA
    if 0 <= seconds <= _SECONDS_MAX:  # which is nearly always
        return seconds, nanoseconds << 2 if has_extra else 0
    if not has_extra:
        return min(max(seconds, _SECONDS_MIN), _SECONDS_MAX) & _MASK32, 0
    if not _SECONDS_MIN <= seconds <= _SECONDS_MAX_WITH_EPOCH:
        nanoseconds = 0
        seconds = min(max(seconds, _SECONDS_MIN), _SECONDS_MAX_WITH_EPOCH)
    low = seconds & _MASK32
    signed = low - (1 << 32) if low & _SIGN else low
    return low, nanoseconds << 2 | (seconds - signed >> 32 & 3)


# --- what it says ------------------------------------------------------------


def attributes_of(
    volume: Volume, inode: Inode, acl: Acl | None = None, default_acl: Acl | None = None
) -> Attributes:
    """The attributes of an inode that has these lists (xattr_reader.py)."""
    disk = inode.disk
    mode = disk.i_mode
    ctime_ns = time_ns(disk.i_ctime, disk.i_ctime_extra)
    device = mode & _DEVICE_MASK == _DEVICE
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
        acl,
        default_acl,
        _flags_of(disk) if disk.i_flags & _FIXED_FL else 0,
    )


def _flags_of(disk: ext4_inode) -> int:
    flags = IMMUTABLE if disk.i_flags & layout.IMMUTABLE_FL else 0
    return flags | APPEND_ONLY if disk.i_flags & layout.APPEND_FL else flags


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


def encoded_rdev(major: int, minor: int) -> bytes:
    """The i_block of a device. INVAL: the numbers do not fit."""
    if major >> 12 or minor >> 20:
        raise VfsError(Code.INVAL, f"device {major}:{minor}")
    if major < 256 and minor < 256:
        words = major << 8 | minor, 0
    else:
        words = 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return struct.pack("<II52x", *words)


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
