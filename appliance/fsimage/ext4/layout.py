"""ext4 and JBD2 on disk: the records of the kernel's document, in its order, names and offsets.

Documentation/filesystems/ext4: "Super Block", "Block Group Descriptors", "Inode Table", "Extent
Tree", "Linear Directories", "Hash Tree Directories", "Extended Attributes", "Journal (jbd2)".
"""

from __future__ import annotations

from typing import Annotated, Final

from appliance.fsimage.ext4.record import (
    Record,
    at,
    be8,
    be16,
    be32,
    be64,
    le16,
    le32,
    le64,
    record,
)
from appliance.fsimage.ext4.record import u8 as le8
from appliance.vfs.interface import FileType

bytes16 = Annotated[bytes, "<16s"]
bytes60 = Annotated[bytes, "<60s"]
be_bytes16 = Annotated[bytes, ">16s"]

# --- Super Block -------------------------------------------------------------

SUPERBLOCK_OFFSET: Final = 1024
EXT4_SUPER_MAGIC: Final = 0xEF53

COMPAT_IMAGIC_INODES: Final = 0x0002
COMPAT_HAS_JOURNAL: Final = 0x0004
COMPAT_EXT_ATTR: Final = 0x0008
COMPAT_RESIZE_INODE: Final = 0x0010
COMPAT_DIR_INDEX: Final = 0x0020
COMPAT_SPARSE_SUPER2: Final = 0x0200
COMPAT_FAST_COMMIT: Final = 0x0400
COMPAT_ORPHAN_FILE: Final = 0x1000

INCOMPAT: Final = {
    0x00001: "compression",
    0x00002: "filetype",
    0x00004: "needs_recovery",
    0x00008: "journal_dev",
    0x00010: "meta_bg",
    0x00040: "extent",
    0x00080: "64bit",
    0x00100: "mmp",
    0x00200: "flex_bg",
    0x00400: "ea_inode",
    0x01000: "dirdata",
    0x02000: "metadata_csum_seed",
    0x04000: "large_dir",
    0x08000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
INCOMPAT_FILETYPE: Final = 0x00002
INCOMPAT_RECOVER: Final = 0x00004
INCOMPAT_JOURNAL_DEV: Final = 0x00008
INCOMPAT_META_BG: Final = 0x00010
INCOMPAT_EXTENTS: Final = 0x00040
INCOMPAT_64BIT: Final = 0x00080
INCOMPAT_MMP: Final = 0x00100
INCOMPAT_FLEX_BG: Final = 0x00200
INCOMPAT_EA_INODE: Final = 0x00400
INCOMPAT_CSUM_SEED: Final = 0x02000
INCOMPAT_LARGEDIR: Final = 0x04000
INCOMPAT_INLINE_DATA: Final = 0x08000
INCOMPAT_CASEFOLD: Final = 0x20000

RO_COMPAT: Final = {
    0x00001: "sparse_super",
    0x00002: "large_file",
    0x00008: "huge_file",
    0x00010: "uninit_bg",
    0x00020: "dir_nlink",
    0x00040: "extra_isize",
    0x00100: "quota",
    0x00200: "bigalloc",
    0x00400: "metadata_csum",
    0x00800: "replica",
    0x01000: "read-only",
    0x02000: "project",
    0x04000: "shared_blocks",
    0x08000: "verity",
    0x10000: "orphan_present",
}
RO_COMPAT_SPARSE_SUPER: Final = 0x0001
RO_COMPAT_LARGE_FILE: Final = 0x0002
RO_COMPAT_HUGE_FILE: Final = 0x0008
RO_COMPAT_GDT_CSUM: Final = 0x0010
RO_COMPAT_DIR_NLINK: Final = 0x0020
RO_COMPAT_EXTRA_ISIZE: Final = 0x0040
RO_COMPAT_BIGALLOC: Final = 0x0200
RO_COMPAT_METADATA_CSUM: Final = 0x0400
RO_COMPAT_ORPHAN_PRESENT: Final = 0x10000

S_LAST_MOUNTED_END: Final = 0x0C8
"""The last path where it was mounted: a text that ends with a zero, in 64 bytes up to here."""
S_CHECKSUM_OFFSET: Final = 0x3FC

FLAGS_UNSIGNED_HASH: Final = 0x0002
STATE_VALID_FS: Final = 0x0001
STATE_ERROR_FS: Final = 0x0002
OS_HURD: Final = 1


@record(size=1024)
class ext4_super_block(Record):
    s_inodes_count: le32 = at(0x000)
    s_blocks_count_lo: le32 = at(0x004)
    s_r_blocks_count_lo: le32 = at(0x008)
    s_free_blocks_count_lo: le32 = at(0x00C)
    s_free_inodes_count: le32 = at(0x010)
    s_first_data_block: le32 = at(0x014)
    s_log_block_size: le32 = at(0x018)
    s_log_cluster_size: le32 = at(0x01C)
    s_blocks_per_group: le32 = at(0x020)
    s_clusters_per_group: le32 = at(0x024)
    s_inodes_per_group: le32 = at(0x028)
    s_mtime: le32 = at(0x02C)
    s_wtime: le32 = at(0x030)
    s_mnt_count: le16 = at(0x034)
    s_magic: le16 = at(0x038)
    s_state: le16 = at(0x03A)
    s_creator_os: le32 = at(0x048)
    s_rev_level: le32 = at(0x04C)
    s_first_ino: le32 = at(0x054)
    s_inode_size: le16 = at(0x058)
    s_block_group_nr: le16 = at(0x05A)
    s_feature_compat: le32 = at(0x05C)
    s_feature_incompat: le32 = at(0x060)
    s_feature_ro_compat: le32 = at(0x064)
    s_uuid: bytes16 = at(0x068)
    s_volume_name: bytes16 = at(0x078)
    s_reserved_gdt_blocks: le16 = at(0x0CE)
    s_journal_inum: le32 = at(0x0E0)
    s_journal_dev: le32 = at(0x0E4)
    s_last_orphan: le32 = at(0x0E8)
    s_hash_seed: bytes16 = at(0x0EC)
    s_def_hash_version: le8 = at(0x0FC)
    s_desc_size: le16 = at(0x0FE)
    s_first_meta_bg: le32 = at(0x104)
    s_mkfs_time: le32 = at(0x108)
    s_blocks_count_hi: le32 = at(0x150)
    s_r_blocks_count_hi: le32 = at(0x154)
    s_free_blocks_count_hi: le32 = at(0x158)
    s_min_extra_isize: le16 = at(0x15C)
    s_want_extra_isize: le16 = at(0x15E)
    s_flags: le32 = at(0x160)
    s_mmp_block: le64 = at(0x168)
    s_log_groups_per_flex: le8 = at(0x174)
    s_checksum_type: le8 = at(0x175)
    s_error_count: le32 = at(0x194)
    s_first_error_time: le32 = at(0x198)
    s_last_error_time: le32 = at(0x1CC)
    s_usr_quota_inum: le32 = at(0x240)
    s_grp_quota_inum: le32 = at(0x244)
    s_overhead_blocks: le32 = at(0x248)
    s_backup_bgs_0: le32 = at(0x24C)
    s_backup_bgs_1: le32 = at(0x250)
    s_prj_quota_inum: le32 = at(0x26C)
    s_checksum_seed: le32 = at(0x270)
    s_orphan_file_inum: le32 = at(0x280)
    s_checksum: le32 = at(0x3FC)


@record(size=0x15C)
class ext4_super_block_counts(Record):
    """Those fields of ext4_super_block that change with each transaction."""

    s_free_blocks_count_lo: le32 = at(0x00C)
    s_free_inodes_count: le32 = at(0x010)
    s_wtime: le32 = at(0x030)
    s_last_orphan: le32 = at(0x0E8)
    s_free_blocks_count_hi: le32 = at(0x158)


# --- Block Group Descriptors -------------------------------------------------

BG_INODE_UNINIT: Final = 0x1
BG_BLOCK_UNINIT: Final = 0x2

BG_CHECKSUM_OFFSET: Final = 0x1E


@record(size=64)
class ext4_group_desc(Record):
    """With s_desc_size 32 only the first half is there."""

    bg_block_bitmap_lo: le32 = at(0x00)
    bg_inode_bitmap_lo: le32 = at(0x04)
    bg_inode_table_lo: le32 = at(0x08)
    bg_free_blocks_count_lo: le16 = at(0x0C)
    bg_free_inodes_count_lo: le16 = at(0x0E)
    bg_used_dirs_count_lo: le16 = at(0x10)
    bg_flags: le16 = at(0x12)
    bg_block_bitmap_csum_lo: le16 = at(0x18)
    bg_inode_bitmap_csum_lo: le16 = at(0x1A)
    bg_itable_unused_lo: le16 = at(0x1C)
    bg_checksum: le16 = at(0x1E)
    bg_block_bitmap_hi: le32 = at(0x20)
    bg_inode_bitmap_hi: le32 = at(0x24)
    bg_inode_table_hi: le32 = at(0x28)
    bg_free_blocks_count_hi: le16 = at(0x2C)
    bg_free_inodes_count_hi: le16 = at(0x2E)
    bg_used_dirs_count_hi: le16 = at(0x30)
    bg_itable_unused_hi: le16 = at(0x32)
    bg_block_bitmap_csum_hi: le16 = at(0x38)
    bg_inode_bitmap_csum_hi: le16 = at(0x3A)


# --- Inode Table -------------------------------------------------------------

EXT4_BAD_INO: Final = 1
EXT4_ROOT_INO: Final = 2
EXT4_RESIZE_INO: Final = 7
EXT4_JOURNAL_INO: Final = 8

SECRM_FL: Final = 0x0000_0001
UNRM_FL: Final = 0x0000_0002
COMPR_FL: Final = 0x0000_0004
SYNC_FL: Final = 0x0000_0008
IMMUTABLE_FL: Final = 0x0000_0010
APPEND_FL: Final = 0x0000_0020
NODUMP_FL: Final = 0x0000_0040
NOATIME_FL: Final = 0x0000_0080
NOCOMPR_FL: Final = 0x0000_0400
ENCRYPT_FL: Final = 0x0000_0800
INDEX_FL: Final = 0x0000_1000
IMAGIC_FL: Final = 0x0000_2000
JOURNAL_DATA_FL: Final = 0x0000_4000
NOTAIL_FL: Final = 0x0000_8000
DIRSYNC_FL: Final = 0x0001_0000
HUGE_FILE_FL: Final = 0x0004_0000
EXTENTS_FL: Final = 0x0008_0000
EA_INODE_FL: Final = 0x0020_0000
DAX_FL: Final = 0x0200_0000
INLINE_DATA_FL: Final = 0x1000_0000
CASEFOLD_FL: Final = 0x4000_0000

INHERITED_FL: Final = (SECRM_FL | UNRM_FL | COMPR_FL | SYNC_FL | NODUMP_FL | NOATIME_FL) | (
    NOCOMPR_FL | JOURNAL_DATA_FL | NOTAIL_FL | DIRSYNC_FL | DAX_FL
)
INHERITED_BY_FILES_FL: Final = INHERITED_FL & ~DIRSYNC_FL
INHERITED_BY_OTHERS_FL: Final = NODUMP_FL | NOATIME_FL
"""What a directory passes on to what is made in it: directories, files, and all the rest."""

EXT4_LINK_MAX: Final = 65_000
"""A directory that would have more links says 1, where the file system knows that (dir_nlink)."""

GOOD_OLD_INODE_SIZE: Final = 128
I_LINKS_COUNT_OFFSET: Final = 0x1A
I_GENERATION_OFFSET: Final = 0x64
I_CHECKSUM_LO_OFFSET: Final = 0x7C
I_CHECKSUM_HI_OFFSET: Final = 0x82


@record(size=160)
class ext4_inode(Record):
    """From 0x80 on only as far as i_extra_isize says."""

    i_mode: le16 = at(0x00)
    i_uid: le16 = at(0x02)
    i_size_lo: le32 = at(0x04)
    i_atime: le32 = at(0x08)
    i_ctime: le32 = at(0x0C)
    i_mtime: le32 = at(0x10)
    i_dtime: le32 = at(0x14)
    i_gid: le16 = at(0x18)
    i_links_count: le16 = at(0x1A)
    i_blocks_lo: le32 = at(0x1C)
    i_flags: le32 = at(0x20)
    i_version: le32 = at(0x24)
    i_block: bytes60 = at(0x28)
    i_generation: le32 = at(0x64)
    i_file_acl_lo: le32 = at(0x68)
    i_size_high: le32 = at(0x6C)
    i_obso_faddr: le32 = at(0x70)
    i_blocks_high: le16 = at(0x74)
    i_file_acl_high: le16 = at(0x76)
    i_uid_high: le16 = at(0x78)
    i_gid_high: le16 = at(0x7A)
    i_checksum_lo: le16 = at(0x7C)
    i_extra_isize: le16 = at(0x80)
    i_checksum_hi: le16 = at(0x82)
    i_ctime_extra: le32 = at(0x84)
    i_mtime_extra: le32 = at(0x88)
    i_atime_extra: le32 = at(0x8C)
    i_crtime: le32 = at(0x90)
    i_crtime_extra: le32 = at(0x94)
    i_version_hi: le32 = at(0x98)
    i_projid: le32 = at(0x9C)


# --- Extent Tree -------------------------------------------------------------

EXTENT_MAGIC: Final = 0xF30A
EXTENT_DEPTH_MAX: Final = 5
EXTENT_WRITTEN_MAX: Final = 32768
"""An ee_len above this is that of an unwritten extent, plus this."""


@record(size=12)
class ext4_extent_header(Record):
    eh_magic: le16 = at(0x0)
    eh_entries: le16 = at(0x2)
    eh_max: le16 = at(0x4)
    eh_depth: le16 = at(0x6)
    eh_generation: le32 = at(0x8)


@record(size=12)
class ext4_extent_idx(Record):
    ei_block: le32 = at(0x0)
    ei_leaf_lo: le32 = at(0x4)
    ei_leaf_hi: le16 = at(0x8)


@record(size=12)
class ext4_extent(Record):
    ee_block: le32 = at(0x0)
    ee_len: le16 = at(0x4)
    ee_start_hi: le16 = at(0x6)
    ee_start_lo: le32 = at(0x8)


# --- Linear Directories ------------------------------------------------------

DIR_TAIL_FILE_TYPE: Final = 0xDE

FILE_TYPES: Final[dict[int, int]] = {
    FileType.REGULAR: 1,
    FileType.DIRECTORY: 2,
    FileType.CHARACTER_DEVICE: 3,
    FileType.BLOCK_DEVICE: 4,
    FileType.FIFO: 5,
    FileType.SOCKET: 6,
    FileType.SYMLINK: 7,
}
"""What file_type of an entry says, by the upper four bits of i_mode."""


@record(size=8)
class ext4_dir_entry_2(Record):
    """The name follows."""

    inode: le32 = at(0x0)
    rec_len: le16 = at(0x4)
    name_len: le8 = at(0x6)
    file_type: le8 = at(0x7)


@record(size=12)
class ext4_dir_entry_tail(Record):
    det_reserved_zero1: le32 = at(0x0)
    det_rec_len: le16 = at(0x4)
    det_reserved_zero2: le8 = at(0x6)
    det_reserved_ft: le8 = at(0x7)
    det_checksum: le32 = at(0x8)


# --- Hash Tree Directories ---------------------------------------------------

DX_ROOT_ENTRIES_OFFSET: Final = 0x20
DX_NODE_ENTRIES_OFFSET: Final = 0x08


@record(size=0x20)
class dx_root(Record):
    """The index begins after two entries that a reader without indexes takes for the directory's
    only ones."""

    dot_inode: le32 = at(0x00)
    dot_rec_len: le16 = at(0x04)
    dotdot_inode: le32 = at(0x0C)
    dotdot_rec_len: le16 = at(0x10)
    reserved_zero: le32 = at(0x18)
    hash_version: le8 = at(0x1C)
    info_length: le8 = at(0x1D)
    indirect_levels: le8 = at(0x1E)
    unused_flags: le8 = at(0x1F)


@record(size=8)
class dx_countlimit(Record):
    """In place of the first entry's hash; its block follows as in any entry."""

    limit: le16 = at(0x0)
    count: le16 = at(0x2)
    block: le32 = at(0x4)


@record(size=8)
class dx_entry(Record):
    hash: le32 = at(0x0)
    block: le32 = at(0x4)


@record(size=8)
class dx_tail(Record):
    dt_reserved: le32 = at(0x0)
    dt_checksum: le32 = at(0x4)


# --- Extended Attributes -----------------------------------------------------

XATTR_MAGIC: Final = 0xEA02_0000
XATTR_INDEX_USER: Final = 1
XATTR_INDEX_POSIX_ACL_ACCESS: Final = 2
XATTR_INDEX_POSIX_ACL_DEFAULT: Final = 3
XATTR_INDEX_TRUSTED: Final = 4
XATTR_INDEX_SECURITY: Final = 6
XATTR_INDEX_SYSTEM: Final = 7


@record(size=32)
class ext4_xattr_header(Record):
    """At the beginning of a block of attributes."""

    h_magic: le32 = at(0x00)
    h_refcount: le32 = at(0x04)
    h_blocks: le32 = at(0x08)
    h_hash: le32 = at(0x0C)
    h_checksum: le32 = at(0x10)


@record(size=16)
class ext4_xattr_entry(Record):
    """The name follows."""

    e_name_len: le8 = at(0x0)
    e_name_index: le8 = at(0x1)
    e_value_offs: le16 = at(0x2)
    e_value_inum: le32 = at(0x4)
    e_value_size: le32 = at(0x8)
    e_hash: le32 = at(0xC)


# --- Orphan file ---------------------------------------------------------------

ORPHAN_BLOCK_MAGIC: Final = 0x0B10_CA04


@record(size=8)
class ext4_orphan_block_tail(Record):
    """At the end of each block of inode numbers."""

    ob_magic: le32 = at(0x0)
    ob_checksum: le32 = at(0x4)


# --- Journal (jbd2) ----------------------------------------------------------

JBD2_MAGIC: Final = 0xC03B_3998

JBD2_DESCRIPTOR_BLOCK: Final = 1
JBD2_COMMIT_BLOCK: Final = 2
JBD2_SUPERBLOCK_V1: Final = 3
JBD2_SUPERBLOCK_V2: Final = 4
JBD2_REVOKE_BLOCK: Final = 5

JBD2_FEATURE_COMPAT_CHECKSUM: Final = 0x01
JBD2_FEATURE_INCOMPAT_REVOKE: Final = 0x01
JBD2_FEATURE_INCOMPAT_64BIT: Final = 0x02
JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT: Final = 0x04
JBD2_FEATURE_INCOMPAT_CSUM_V2: Final = 0x08
JBD2_FEATURE_INCOMPAT_CSUM_V3: Final = 0x10
JBD2_FEATURE_INCOMPAT_FAST_COMMIT: Final = 0x20

JBD2_FLAG_ESCAPE: Final = 0x1
JBD2_FLAG_SAME_UUID: Final = 0x2
JBD2_FLAG_LAST_TAG: Final = 0x8

JBD2_CHECKSUM_CRC32: Final = 1
JBD2_FAST_COMMIT_BLOCKS: Final = 256
"""How many blocks at the end of the journal are for fast commits if s_num_fc_blks says 0."""


@record(size=12)
class journal_header_t(Record):
    h_magic: be32 = at(0x0)
    h_blocktype: be32 = at(0x4)
    h_sequence: be32 = at(0x8)


@record(size=1024)
class journal_superblock_t(Record):
    h_magic: be32 = at(0x00)
    h_blocktype: be32 = at(0x04)
    h_sequence: be32 = at(0x08)
    s_blocksize: be32 = at(0x0C)
    s_maxlen: be32 = at(0x10)
    s_first: be32 = at(0x14)
    s_sequence: be32 = at(0x18)
    s_start: be32 = at(0x1C)
    s_errno: be32 = at(0x20)
    s_feature_compat: be32 = at(0x24)
    s_feature_incompat: be32 = at(0x28)
    s_feature_ro_compat: be32 = at(0x2C)
    s_uuid: be_bytes16 = at(0x30)
    s_checksum_type: be8 = at(0x50)
    s_num_fc_blks: be32 = at(0x54)
    s_checksum: be32 = at(0xFC)


@record(size=16)
class journal_block_tag3_t(Record):
    """With checksum version 3."""

    t_blocknr: be32 = at(0x0)
    t_flags: be32 = at(0x4)
    t_blocknr_high: be32 = at(0x8)
    t_checksum: be32 = at(0xC)


@record(size=8)
class journal_block_tag_t(Record):
    """Without it; t_blocknr_high follows if the journal is 64bit."""

    t_blocknr: be32 = at(0x0)
    t_checksum: be16 = at(0x4)
    t_flags: be16 = at(0x6)


@record(size=16)
class jbd2_journal_revoke_header_t(Record):
    h_magic: be32 = at(0x0)
    h_blocktype: be32 = at(0x4)
    h_sequence: be32 = at(0x8)
    r_count: be32 = at(0xC)


@record(size=60)
class commit_header(Record):
    h_magic: be32 = at(0x00)
    h_blocktype: be32 = at(0x04)
    h_sequence: be32 = at(0x08)
    h_chksum_type: be8 = at(0x0C)
    h_chksum_size: be8 = at(0x0D)
    h_chksum_0: be32 = at(0x10)
    h_commit_sec: be64 = at(0x30)
    h_commit_nsec: be32 = at(0x38)
