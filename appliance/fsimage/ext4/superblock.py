"""The superblock: geometry, features, and whether this driver may touch what they describe.

Nothing here is trusted before `Superblock.parse` has checked it; afterwards no block group reaches
beyond the end, and no division is by zero.
"""

from __future__ import annotations

import hashlib
from typing import Final

from appliance.fsimage.device import BlockDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.half_merged import check_whole
from appliance.fsimage.ext4.layout import ext4_super_block

SUPERBLOCK_BYTES: Final = ext4_super_block.SIZE

_BLOCK_BITS: Final = range(10, 17)
"""Of all sizes of blocks."""

_GROUP_BLOCKS_MAX: Final = (1 << 16) - 8
"""Blocks of a group, as mke2fs makes them, though a bitmap of 8 KiB or more has more bits: those
that are free have to be counted in 16 bits."""

BACKUPS: Final = {
    bits: min(8 << bits, _GROUP_BLOCKS_MAX) + (bits == 10) << bits for bits in _BLOCK_BITS
}
"""Where mke2fs puts the first backup, which is where group 1 begins: for all sizes of blocks, as
powers of two, the offset in bytes. (Blocks of 1 KiB begin with the second one.)"""

_INCOMPAT_READ: Final = (
    layout.INCOMPAT_FILETYPE
    | layout.INCOMPAT_RECOVER
    | layout.INCOMPAT_META_BG
    | layout.INCOMPAT_EXTENTS
    | layout.INCOMPAT_64BIT
    | layout.INCOMPAT_MMP
    | layout.INCOMPAT_FLEX_BG
    | layout.INCOMPAT_EA_INODE
    | layout.INCOMPAT_CSUM_SEED
    | layout.INCOMPAT_LARGEDIR
    | layout.INCOMPAT_INLINE_DATA
    | layout.INCOMPAT_CASEFOLD
)
"""What can be read here. An RO_COMPAT feature never has to be known for reading: that is what the
word means."""

_INCOMPAT_WRITE: Final = (
    layout.INCOMPAT_FILETYPE
    | layout.INCOMPAT_RECOVER
    | layout.INCOMPAT_EXTENTS
    | layout.INCOMPAT_64BIT
    | layout.INCOMPAT_FLEX_BG
    | layout.INCOMPAT_CSUM_SEED
    | layout.INCOMPAT_LARGEDIR
)
_RO_COMPAT_WRITE: Final = (
    layout.RO_COMPAT_SPARSE_SUPER
    | layout.RO_COMPAT_LARGE_FILE
    | layout.RO_COMPAT_HUGE_FILE
    | layout.RO_COMPAT_GDT_CSUM
    | layout.RO_COMPAT_DIR_NLINK
    | layout.RO_COMPAT_EXTRA_ISIZE
    | layout.RO_COMPAT_METADATA_CSUM
    | layout.RO_COMPAT_ORPHAN_PRESENT
)
"""What can be written here. Who knows only the rest of a file system would damage it."""

_REMOVABLE: Final = frozenset({"mmp", "quota", "project", "fast_commit", "read-only", "casefold"})
"""What tune2fs (1.47) takes away from a file system; casefold only if no directory has it."""

_MOUNT_IT: Final = "mount it through a loop device, and serve that with --directory"

_JOURNAL_OF_ITS_OWN: Final = (
    "tune2fs -f -O ^has_journal, and then tune2fs -j, give it one of its own"
)

RESTORE: Final = "e2fsck on a copy of the image restores it from a backup"

_E2FSCK: Final = "check a copy of it with e2fsck -f"


def _feature_names(bits: int, names: dict[int, str], letter: str = "I") -> list[str]:
    return [names.get(1 << bit, f"FEATURE_{letter}{bit}") for bit in range(32) if bits & 1 << bit]


class Superblock:
    """One superblock, checked, with what follows from its numbers."""

    def __init__(self, disk: ext4_super_block) -> None:
        self.disk: Final = disk
        self.block_bits: Final = 10 + disk.s_log_block_size
        self.block_bytes: Final = 1 << self.block_bits
        self.cluster_blocks: Final = (
            1 << disk.s_log_cluster_size - disk.s_log_block_size
            if disk.s_feature_ro_compat & layout.RO_COMPAT_BIGALLOC
            else 1
        )
        is_64bit = disk.s_feature_incompat & layout.INCOMPAT_64BIT
        self.blocks_count: Final = disk.s_blocks_count_lo | (
            disk.s_blocks_count_hi << 32 if is_64bit else 0
        )
        self.reserved_blocks: Final = disk.s_r_blocks_count_lo | (
            disk.s_r_blocks_count_hi << 32 if is_64bit else 0
        )
        self.is_64bit: Final = bool(is_64bit)
        self.desc_bytes: Final = disk.s_desc_size if is_64bit else 32
        self.inode_bytes: Final = (
            disk.s_inode_size if disk.s_rev_level else layout.GOOD_OLD_INODE_SIZE
        )
        self.first_inode: Final = disk.s_first_ino if disk.s_rev_level else 11
        self.has_metadata_csum: Final = bool(
            disk.s_feature_ro_compat & layout.RO_COMPAT_METADATA_CSUM
        )
        self.has_gdt_csum: Final = bool(disk.s_feature_ro_compat & layout.RO_COMPAT_GDT_CSUM)
        self.has_dir_index: Final = bool(disk.s_feature_compat & layout.COMPAT_DIR_INDEX)
        self.checksum_seed: Final = (
            disk.s_checksum_seed
            if disk.s_feature_incompat & layout.INCOMPAT_CSUM_SEED
            else crc32c(MASK32, disk.s_uuid)
        )

    @property
    def groups_count(self) -> int:
        """How many block groups there are; the last one may be short."""
        disk = self.disk
        return -(-(self.blocks_count - disk.s_first_data_block) // disk.s_blocks_per_group)

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal has something to replay."""
        return bool(self.disk.s_feature_incompat & layout.INCOMPAT_RECOVER)

    @property
    def has_journal(self) -> bool:
        """Whether there is a journal, wherever it is."""
        return bool(self.disk.s_feature_compat & layout.COMPAT_HAS_JOURNAL)

    @property
    def why_not_written(self) -> str:
        """Why this file system can be read, but not written; empty if it can."""
        disk = self.disk
        names = _feature_names(disk.s_feature_incompat & ~_INCOMPAT_WRITE, layout.INCOMPAT)
        ro_compat = disk.s_feature_ro_compat & ~_RO_COMPAT_WRITE
        names += _feature_names(ro_compat, layout.RO_COMPAT, "R")
        if disk.s_feature_compat & layout.COMPAT_FAST_COMMIT:
            names.append("fast_commit")
        if names:
            remedy = f"to write to it, {_MOUNT_IT}"
            if _REMOVABLE.issuperset(names):
                remedy = f"tune2fs -O ^{',^'.join(names)} removes what nobody needs of it"
            return f"it uses {', '.join(names)}, which cannot be written here ({remedy})"
        if disk.s_creator_os == layout.OS_HURD:
            # What is the change attribute for Linux is there the block of a translator.
            return f"it was made for the Hurd, whose inodes differ (to write to it, {_MOUNT_IT})"
        if self.has_journal and not disk.s_journal_inum:
            return f"its journal is on another device ({_JOURNAL_OF_ITS_OWN})"
        return ""

    @property
    def fsid(self) -> int:
        """The identity of this file system: its UUID, and when it was made, because images that
        are built again and again are often given the same UUID."""
        made = self.disk.s_mkfs_time.to_bytes(4, "little")
        digest = hashlib.blake2b(self.disk.s_uuid + made, digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1

    @property
    def hidden_inodes(self) -> frozenset[int]:
        """Inodes that belong to the file system itself, though their numbers look ordinary."""
        disk = self.disk
        return frozenset(
            {
                disk.s_journal_inum,
                disk.s_orphan_file_inum,
                disk.s_usr_quota_inum,
                disk.s_grp_quota_inum,
                disk.s_prj_quota_inum,
            }
        )

    def descriptor_block(self, index: int) -> int:
        """Where block `index` of the group descriptors is."""
        disk = self.disk
        of_superblock = layout.SUPERBLOCK_OFFSET >> self.block_bits
        if not disk.s_feature_incompat & layout.INCOMPAT_META_BG or index < disk.s_first_meta_bg:
            return of_superblock + 1 + index
        group = index * (self.block_bytes // self.desc_bytes)
        first = disk.s_first_data_block + group * disk.s_blocks_per_group
        if group == 0:
            return of_superblock + 1
        return first + self.has_superblock(group)

    def has_superblock(self, group: int) -> bool:
        """Whether `group` begins with a copy of the superblock."""
        disk = self.disk
        if group == 0:
            return True
        if disk.s_feature_compat & layout.COMPAT_SPARSE_SUPER2:
            return group in (disk.s_backup_bgs_0, disk.s_backup_bgs_1)
        if group == 1 or not disk.s_feature_ro_compat & layout.RO_COMPAT_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    @classmethod
    def read(cls, device: BlockDevice) -> Superblock:
        """The superblock of `device`. ImageError: it is none of ours, damaged, or too new, or
        (HalfMergedError) there is no file system before a merge is finished."""
        if device.size < layout.SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES:
            raise ImageError("too short to hold a file system")
        raw = device.read(layout.SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)
        superblock = cls.parse(raw)
        needed = superblock.blocks_count << superblock.block_bits
        if needed > device.size:
            raise ImageError(
                f"the file system has {needed} bytes, but the image only {device.size}",
                "the image was cut off: copy it again, or enlarge it with truncate",
            )
        return superblock

    @classmethod
    def parse(cls, raw: bytes, *, trusted: bool = False) -> Superblock:
        """The superblock in these bytes; `trusted`: whatever its checksum says."""
        disk = ext4_super_block.decode(raw)
        if disk.s_magic != layout.EXT4_SUPER_MAGIC:
            raise ImageError("not an ext2, ext3 or ext4 file system")
        check_whole(raw)
        if (
            disk.s_feature_ro_compat & layout.RO_COMPAT_METADATA_CSUM
            and not trusted
            and (disk.s_checksum_type != 1 or disk.s_checksum != superblock_checksum(raw))
        ):
            raise ImageError(
                "the checksum of the superblock is wrong",
                RESTORE,
            )
        _check_features(disk)
        problem = _sizes_problem(disk)
        if not problem:
            superblock = cls(disk)
            problem = superblock._geometry_problem()
            if not problem:
                return superblock
        raise ImageError(f"the superblock makes no sense: {problem}", _E2FSCK)

    def _geometry_problem(self) -> str:
        """What is wrong with the numbers, if anything."""
        disk = self.disk
        bits_per_block = 8 * self.block_bytes
        checks = [
            (
                128 <= self.inode_bytes <= self.block_bytes and _is_power(self.inode_bytes, 2),
                f"inodes of {self.inode_bytes} bytes",
            ),
            (
                self.desc_bytes == 32
                or (64 <= self.desc_bytes <= 1024 and _is_power(self.desc_bytes, 2)),
                f"group descriptors of {self.desc_bytes} bytes",
            ),
            (
                0 < disk.s_inodes_per_group <= bits_per_block,
                f"{disk.s_inodes_per_group} inodes per group",
            ),
            (
                0 < disk.s_blocks_per_group <= bits_per_block * self.cluster_blocks,
                f"{disk.s_blocks_per_group} blocks per group",
            ),
            (
                disk.s_first_data_block <= layout.SUPERBLOCK_OFFSET >> self.block_bits
                and disk.s_first_data_block < self.blocks_count,
                f"{self.blocks_count} blocks after the first {disk.s_first_data_block}",
            ),
            (self.first_inode > layout.EXT4_ROOT_INO, f"first inode {self.first_inode}"),
        ]
        for good, problem in checks:
            if not good:
                return problem
        if disk.s_inodes_count != self.groups_count * disk.s_inodes_per_group:
            return f"{disk.s_inodes_count} inodes in {self.groups_count} groups"
        return ""


def first_backup(device: BlockDevice) -> tuple[int, Superblock] | None:
    """The first backup of the superblock, and its block, if there is one that can be used. It is
    looked for where mke2fs puts it, for all sizes of blocks."""
    for bits, offset in BACKUPS.items():
        if offset + SUPERBLOCK_BYTES > device.size:
            continue
        try:
            found = Superblock.parse(device.read(offset, SUPERBLOCK_BYTES))
        except ImageError:
            continue
        if found.block_bits == bits and found.blocks_count << bits <= device.size:
            return offset >> bits, found
    return None


def superblock_checksum(raw: bytes) -> int:
    """What s_checksum has to be."""
    return crc32c(MASK32, raw[: SUPERBLOCK_BYTES - 4])


def _check_features(disk: ext4_super_block) -> None:
    """ImageError if there is something that a reader has to know, and we do not."""
    incompat = disk.s_feature_incompat
    if incompat & layout.INCOMPAT_JOURNAL_DEV:
        raise ImageError("this is the external journal of a file system, not the file system")
    unknown = _feature_names(incompat & ~_INCOMPAT_READ, layout.INCOMPAT)
    if unknown:
        raise ImageError(
            f"the file system uses what cannot be read here: {', '.join(unknown)}",
            _MOUNT_IT,
        )


def _sizes_problem(disk: ext4_super_block) -> str:
    """What is wrong with the numbers that everything else is computed from, if anything."""
    if disk.s_log_block_size > 6:
        return f"blocks of 2^{10 + disk.s_log_block_size} bytes"
    if disk.s_feature_ro_compat & layout.RO_COMPAT_BIGALLOC and not (
        disk.s_log_block_size <= disk.s_log_cluster_size <= 20
    ):
        return f"clusters of 2^{10 + disk.s_log_cluster_size} bytes"
    return ""


def _is_power(value: int, base: int) -> bool:
    """Whether `value` is base to some power."""
    power = base
    while power < value:
        power *= base
    return power == value
