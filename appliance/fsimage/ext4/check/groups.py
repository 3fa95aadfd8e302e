"""Block groups: the descriptors, and where the file system keeps itself ("Block Group Descriptors",
"Layout").

Everything that is not a file has to have its place: inside its group (or anywhere, with flex_bg),
and nothing else on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance import limits
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check.context import Context, tables_bytes
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.layout import ext4_group_desc, ext4_super_block
from appliance.fsimage.ext4.superblock import (
    SUPERBLOCK_BYTES,
    Superblock,
    superblock_checksum,
)
from appliance.fsimage.ext4.volume import inode_table_of

_INCOMPAT_SET_LATER: Final = layout.INCOMPAT_RECOVER
"""The kernel sets it in the primary superblock only."""

_NEVER_CHANGED: Final = (
    "s_inodes_count",
    "s_blocks_count_lo",
    "s_blocks_count_hi",
    "s_first_data_block",
    "s_log_block_size",
    "s_blocks_per_group",
    "s_inodes_per_group",
    "s_rev_level",
    "s_inode_size",
    "s_desc_size",
    "s_uuid",
)
"""Or only in all copies together."""


def geometry_problem(superblock: Superblock) -> str:
    """What is wrong with the numbers that `Superblock.parse` lets pass, because a reader can do
    with them; a check cannot."""
    disk = superblock.disk
    clusters_per_group = disk.s_blocks_per_group // superblock.cluster_blocks
    if clusters_per_group % 8 or disk.s_blocks_per_group % superblock.cluster_blocks:
        return f"{disk.s_blocks_per_group} blocks per group"
    if disk.s_inodes_per_group % 8:
        return f"{disk.s_inodes_per_group} inodes per group"
    tables = disk.s_inodes_count * superblock.inode_bytes
    if tables > superblock.blocks_count << superblock.block_bits:
        return f"{disk.s_inodes_count} inodes in {superblock.blocks_count} blocks"
    descriptors = superblock.groups_count * superblock.desc_bytes
    if (
        not disk.s_feature_incompat & layout.INCOMPAT_META_BG
        and descriptors > disk.s_blocks_per_group << superblock.block_bits
    ):
        return f"{superblock.groups_count} groups of {disk.s_blocks_per_group} blocks"
    return ""


def check_groups(context: Context) -> None:
    """Read all descriptors, and claim what the file system has for itself."""
    _check_superblock(context)
    for index in range(context.superblock.groups_count):
        _claim_fixed(context, index)
    for index in range(context.superblock.groups_count):
        context.groups.append(_read_group(context, index))
        context.progress("groups", index + 1, context.superblock.groups_count)
    for index, group in enumerate(context.groups):
        if group:
            _claim_group(context, index, group)
    if context.has_feature(incompat=layout.INCOMPAT_MMP):
        block = context.disk.s_mmp_block
        if not context.volume.has_blocks(block) or not context.claim_metadata(block, 1):
            context.wrong(Code.SUPERBLOCK, f"the multi-mount protection cannot be in block {block}")
    _check_backups(context)


def _check_superblock(context: Context) -> None:
    disk, superblock = context.disk, context.superblock
    if superblock.reserved_blocks > superblock.blocks_count:
        context.wrong(
            Code.SUPERBLOCK, f"the superblock reserves {superblock.reserved_blocks} blocks"
        )
    if disk.s_state & layout.STATE_ERROR_FS:
        context.wrong(Code.SUPERBLOCK, "the file system is marked as having errors")


# --- where things are --------------------------------------------------------


def group_start(context: Context, index: int) -> int:
    """The first block of a group."""
    return context.first_block + index * context.disk.s_blocks_per_group


def blocks_in(context: Context, index: int) -> int:
    """How many blocks a group has; the last may have fewer."""
    left = context.superblock.blocks_count - group_start(context, index)
    return min(context.disk.s_blocks_per_group, left)


def fixed_blocks(context: Context, index: int) -> Iterator[tuple[int, int]]:
    """Where copies of the superblock and of the descriptors are in a group, and how many blocks."""
    superblock, disk = context.superblock, context.disk
    start = group_start(context, index)
    has_superblock = superblock.has_superblock(index)
    if index == 0 and start == 0 and superblock.block_bytes == layout.SUPERBLOCK_OFFSET:
        # With bigalloc and blocks of 1 KiB, the boot block is in the first group too.
        yield 0, 1
        start = 1
    if has_superblock:
        yield start, 1
    per_block = superblock.block_bytes // superblock.desc_bytes
    has_meta_bg = context.has_feature(incompat=layout.INCOMPAT_META_BG)
    if has_meta_bg and index // per_block >= disk.s_first_meta_bg:
        if index % per_block in (0, 1, per_block - 1):
            yield start + has_superblock, 1
    elif has_superblock:
        old = disk.s_first_meta_bg if has_meta_bg else -(-superblock.groups_count // per_block)
        count = old + (0 if has_meta_bg else disk.s_reserved_gdt_blocks)
        if count:
            yield start + 1, count


def _claim_fixed(context: Context, index: int) -> None:
    end = group_start(context, index) + blocks_in(context, index)
    for block, count in fixed_blocks(context, index):
        if block + count > end:
            context.wrong(Code.SUPERBLOCK, f"group {index} has no room for its descriptors")
            count = max(0, end - block)
        if count:
            context.claim_metadata(block, count)


# --- descriptors -------------------------------------------------------------


def _raw_group(context: Context, index: int, block: int) -> bytes:
    size = context.superblock.desc_bytes
    at = index % (context.superblock.block_bytes // size) * size
    return context.volume.block(block)[at : at + size]


def _read_group(context: Context, index: int) -> ext4_group_desc | None:
    """A descriptor, or its backup if its own cannot be used; None: neither can."""
    superblock = context.superblock
    at = index // (superblock.block_bytes // superblock.desc_bytes)
    raw = _raw_group(context, index, superblock.descriptor_block(at))
    group = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
    if context.has_uninit_groups and group.bg_checksum != context.volume.group_checksum(index, raw):
        context.wrong(Code.GROUP_CHECKSUM, f"the descriptor of group {index} has a wrong checksum")
        context.doubtful_groups.add(index)
    problem = _place_problem(context, index, group)
    if not problem:
        return group
    context.wrong(Code.GROUP, f"the descriptor of group {index} has {problem}")
    context.doubtful_groups.add(index)
    for backup in _backup_blocks(context, at):
        raw = _raw_group(context, index, backup)
        group = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
        if not _place_problem(context, index, group):
            return group
    return None


def _backup_blocks(context: Context, at: int) -> Iterator[int]:
    """Where copies of block `at` of the descriptors are."""
    if context.has_feature(incompat=layout.INCOMPAT_META_BG):
        return
    for index in range(1, context.superblock.groups_count):
        block = group_start(context, index) + 1 + at
        if context.superblock.has_superblock(index) and context.volume.has_blocks(block):
            yield block


def places(context: Context, group: ext4_group_desc) -> Iterator[tuple[str, int, int]]:
    """What a group has somewhere: name, first block, number of blocks."""
    yield "block bitmap", group.bg_block_bitmap_lo | group.bg_block_bitmap_hi << 32, 1
    yield "inode bitmap", group.bg_inode_bitmap_lo | group.bg_inode_bitmap_hi << 32, 1
    table_bytes = context.disk.s_inodes_per_group * context.superblock.inode_bytes
    yield "inode table", inode_table_of(group), -(-table_bytes >> context.volume.block_bits)


def _place_problem(context: Context, index: int, group: ext4_group_desc) -> str:
    first, end = context.first_block, context.superblock.blocks_count
    if not context.has_feature(incompat=layout.INCOMPAT_FLEX_BG):
        first = group_start(context, index)
        end = first + blocks_in(context, index)
    for what, block, count in places(context, group):
        if not first <= block <= block + count <= end:
            return f"its {what} at block {block}, which cannot be"
    return ""


def _claim_group(context: Context, index: int, group: ext4_group_desc) -> None:
    for what, block, count in places(context, group):
        if not context.claim_metadata(block, count) and not context.cluster_bits:
            context.wrong(
                Code.GROUP,
                f"the {what} of group {index}, at block {block}, overlaps other metadata",
            )


# --- backups -----------------------------------------------------------------


def _check_backups(context: Context) -> None:
    """What has to agree between the superblock and its backups: what never changes, or only
    together. (Counts and states, and features that the kernel adds, are not kept up to date.)"""
    for index in range(1, context.superblock.groups_count):
        if not context.superblock.has_superblock(index):
            continue
        block = group_start(context, index)
        raw = context.volume.device.read(block << context.volume.block_bits, SUPERBLOCK_BYTES)
        disk = ext4_super_block.decode(raw)
        problem = _backup_problem(context, disk, raw)
        if not problem and disk.s_rev_level and disk.s_block_group_nr != index & 0xFFFF:
            problem = f"says that it is in group {disk.s_block_group_nr}"
        if problem:
            context.wrong(Code.BACKUP, f"the backup of the superblock in group {index} {problem}")
        _check_descriptor_backups(context, index)


def _backup_problem(context: Context, disk: ext4_super_block, raw: bytes) -> str:
    if disk.s_magic != layout.EXT4_SUPER_MAGIC:
        return "is none"
    if context.superblock.has_metadata_csum and disk.s_checksum != superblock_checksum(raw):
        return "has a wrong checksum"
    own = context.disk
    for name in _NEVER_CHANGED:
        if getattr(disk, name) != getattr(own, name):
            return f"disagrees with it about {name}"
    if (disk.s_feature_incompat ^ own.s_feature_incompat) & ~_INCOMPAT_SET_LATER:
        return "disagrees with it about the features"
    return ""


def _check_descriptor_backups(context: Context, index: int) -> None:
    """Where things are, the copy of the descriptors in group `index` has to know as well."""
    superblock = context.superblock
    if context.has_feature(incompat=layout.INCOMPAT_META_BG):
        return
    per_block = superblock.block_bytes // superblock.desc_bytes
    for number, group in enumerate(context.groups):
        block = group_start(context, index) + 1 + number // per_block
        if (
            group is None
            or number in context.doubtful_groups
            or not context.volume.has_blocks(block)
        ):
            continue
        raw = _raw_group(context, number, block)
        copy = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
        if list(places(context, copy)) != list(places(context, group)):
            context.wrong(
                Code.BACKUP,
                f"the backup in group {index} of the descriptor of group {number} differs",
            )


def unusable(superblock: Superblock) -> None:
    """ImageError if the geometry is one that cannot be checked."""
    problem = geometry_problem(superblock)
    if problem:
        raise ImageError(f"the superblock makes no sense: {problem}")
    if tables_bytes(superblock) > limits.CHECK_TABLES_BYTES_MAX:
        raise ImageError(
            f"a check would take {tables_bytes(superblock) >> 20} MiB of memory",
            "check it with e2fsck -fn",
        )
