"""Block groups: the descriptors and their backups ("Block Group Descriptors", "Layout").

Everything that is not a file has to have its place: inside its group (or anywhere, with flex_bg),
and nothing else on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance import image_limits
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check.context import Context, tables_bytes
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.crc import MASK32
from appliance.fsimage.ext4.groups import (
    blocks_in,
    fixed_blocks,
    geometry_problem,
    group_start,
    misplaced,
    places,
)
from appliance.fsimage.ext4.layout import ext4_group_desc, ext4_super_block
from appliance.fsimage.ext4.superblock import (
    SUPERBLOCK_BYTES,
    Superblock,
    superblock_checksum,
)

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
        context.notes.append("it is marked as having errors (e2fsck -f removes the mark)")


def _claim_fixed(context: Context, index: int) -> None:
    end = group_start(context.superblock, index) + blocks_in(context.superblock, index)
    for block, count in fixed_blocks(context.superblock, index):
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
    problem = misplaced(superblock, index, group)
    if not problem:
        return group
    context.wrong(Code.GROUP, f"the descriptor of group {index} has {problem}")
    context.doubtful_groups.add(index)
    for backup in _backup_blocks(context, at):
        raw = _raw_group(context, index, backup)
        group = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
        if not misplaced(superblock, index, group):
            return group
    return None


def _backup_blocks(context: Context, at: int) -> Iterator[int]:
    """Where copies of block `at` of the descriptors are."""
    if context.has_feature(incompat=layout.INCOMPAT_META_BG):
        return
    for index in range(1, context.superblock.groups_count):
        block = group_start(context.superblock, index) + 1 + at
        if context.superblock.has_superblock(index) and context.volume.has_blocks(block):
            yield block


def _claim_group(context: Context, index: int, group: ext4_group_desc) -> None:
    for what, block, count in places(context.superblock, group):
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
        block = group_start(context.superblock, index)
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
    mask = int.from_bytes(_places_mask(superblock.desc_bytes) * per_block, "little")
    for at in range(-(-superblock.groups_count // per_block)):
        block = group_start(superblock, index) + 1 + at
        if not context.volume.has_blocks(block):
            continue
        own = context.volume.block(superblock.descriptor_block(at))
        copy = context.volume.block(block)
        # All of a block at once: without sparse_super, every group has copies of all descriptors.
        if (int.from_bytes(own, "little") ^ int.from_bytes(copy, "little")) & mask:
            _compare_descriptors(context, index, block, at * per_block)


def _places_mask(size: int) -> bytes:
    """Ones where a descriptor of `size` bytes says where things are."""
    group, raw = ext4_group_desc.decode(bytes(64)), bytearray(64)
    group.bg_block_bitmap_lo = group.bg_block_bitmap_hi = MASK32
    group.bg_inode_bitmap_lo = group.bg_inode_bitmap_hi = MASK32
    group.bg_inode_table_lo = group.bg_inode_table_hi = MASK32
    group.encode_into(raw, 0)
    return bytes(raw[:size]).ljust(size, b"\0")


def _compare_descriptors(context: Context, index: int, block: int, first: int) -> None:
    """Find which of the copies in `block`, from that of group `first` on, differ."""
    superblock = context.superblock
    per_block = superblock.block_bytes // superblock.desc_bytes
    for number, group in enumerate(context.groups[first : first + per_block], first):
        if group is None or number in context.doubtful_groups:
            continue
        raw = _raw_group(context, number, block)
        copy = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
        if list(places(superblock, copy)) != list(places(superblock, group)):
            context.wrong(
                Code.BACKUP,
                f"the backup in group {index} of the descriptor of group {number} differs",
            )


def unusable(superblock: Superblock) -> None:
    """ImageError if the geometry is one that cannot be checked."""
    problem = geometry_problem(superblock)
    if problem:
        raise ImageError(f"the superblock makes no sense: {problem}")
    if tables_bytes(superblock) > image_limits.CHECK_TABLES_BYTES_MAX:
        raise ImageError(
            f"a check would take {tables_bytes(superblock) >> 20} MiB of memory",
            "check it with e2fsck -fn",
        )
