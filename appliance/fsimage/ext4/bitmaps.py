"""The bitmaps of one group, looked at before they are believed ("Block and Inode Bitmaps",
"Lazy Block Group Initialization").

With checksums of descriptors, a group that has nothing but what it was made with needs no bitmap:
flags in the descriptor say that it has not been made, and what is in its block may be anything.
"""

from __future__ import annotations

from appliance.fsimage.ext4 import bits, layout
from appliance.fsimage.ext4.groups import (
    Metadata,
    block_bitmap_of,
    blocks_in,
    free_blocks_of,
    free_inodes_of,
    group_start,
    inode_bitmap_of,
    is_right,
    unused_inodes_of,
)
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError

# --- blocks ------------------------------------------------------------------


def used_blocks(volume: Volume, metadata: Metadata, index: int) -> bytearray:
    """Which blocks of a group are in use, with those behind its end. VfsError: the bitmap is
    damaged, and whoever believed it would give away blocks that somebody has."""
    superblock, group = volume.superblock, volume.group(index)
    per_group, start = superblock.disk.s_blocks_per_group, group_start(superblock, index)
    count = blocks_in(superblock, index)
    if group.bg_flags & layout.BG_BLOCK_UNINIT and volume.has_uninit_groups:
        used = never_used_blocks(volume, metadata, index)[: per_group >> 3]
    else:
        raw = volume.block(block_bitmap_of(group))[: per_group >> 3]
        said = group.bg_block_bitmap_csum_lo | group.bg_block_bitmap_csum_hi << 16
        if not (index in volume.unfinished.groups or is_right(volume, raw, said)):
            raise _damaged(volume, "block", index, "has a wrong checksum")
        used = bytearray(raw)
        for first, length in metadata.within(start, count):
            bits.set_range(used, first - start, length)
        if used != raw:
            raise _damaged(volume, "block", index, "has metadata as free")
        if count < per_group:
            bits.set_range(used, count, per_group - count)
    free = per_group - int.from_bytes(used, "little").bit_count()
    if free != free_blocks_of(group):
        text = f"has {free} free blocks, but its descriptor has {free_blocks_of(group)}"
        raise _damaged(volume, "block", index, text)
    return used


def never_used_blocks(volume: Volume, metadata: Metadata, index: int) -> bytearray:
    """The bitmap that was never made, of a group that has nothing but metadata: a whole block."""
    superblock = volume.superblock
    start, count = group_start(superblock, index), blocks_in(superblock, index)
    bitmap = bytearray(volume.block_bytes)
    for first, length in metadata.within(start, count):
        bits.set_range(bitmap, first - start, length)
    behind = 8 * len(bitmap) - count
    if behind:
        bits.set_range(bitmap, count, behind)
    return bitmap


# --- inodes ------------------------------------------------------------------


def check_inodes(volume: Volume, index: int) -> None:
    """VfsError if the inode bitmap of a group is damaged."""
    superblock, group = volume.superblock, volume.group(index)
    per_group = superblock.disk.s_inodes_per_group
    used, unused = 0, 0
    if volume.has_uninit_groups:
        unused = unused_inodes_of(group)
    if not volume.has_uninit_groups or not group.bg_flags & layout.BG_INODE_UNINIT:
        raw = volume.block(inode_bitmap_of(group))[: per_group >> 3]
        said = group.bg_inode_bitmap_csum_lo | group.bg_inode_bitmap_csum_hi << 16
        if not (index in volume.unfinished.groups or is_right(volume, raw, said)):
            raise _damaged(volume, "inode", index, "has a wrong checksum")
        used = int.from_bytes(raw, "little")
    reserved = min(max(superblock.first_inode - 1 - index * per_group, 0), per_group)
    if ~used & (1 << reserved) - 1:
        raise _damaged(volume, "inode", index, "has a reserved inode as free")
    if unused > per_group or used >> per_group - unused:
        raise _damaged(volume, "inode", index, "has an inode that was never used as in use")
    free = per_group - used.bit_count()
    if free != free_inodes_of(group):
        text = f"has {free} free inodes, but its descriptor has {free_inodes_of(group)}"
        raise _damaged(volume, "inode", index, text)


def _damaged(volume: Volume, kind: str, index: int, how: str) -> VfsError:
    return volume.distrusted(f"{kind} bitmap of group {index}", how)
