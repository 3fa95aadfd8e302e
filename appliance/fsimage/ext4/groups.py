"""Block groups: how the disk is divided, and where the file system keeps itself ("Layout", "Block
Group Descriptors", "Block and Inode Bitmaps").

At the beginning of some groups are copies of the superblock and of the descriptors: that follows
from the geometry (`fixed_blocks`). Bitmaps and inode tables are where the descriptors say
(`places`): in their own group, or with flex_bg anywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from appliance import image_limits
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.layout import ext4_group_desc
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume, inode_table_of

# --- geometry ----------------------------------------------------------------


def geometry_problem(superblock: Superblock) -> str:
    """What is wrong with the numbers that `Superblock.parse` lets pass, because a reader can do
    with them; who looks at the bitmaps cannot."""
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


def group_start(superblock: Superblock, index: int) -> int:
    """The first block of a group."""
    return superblock.disk.s_first_data_block + index * superblock.disk.s_blocks_per_group


def blocks_in(superblock: Superblock, index: int) -> int:
    """How many blocks a group has; the last may have fewer."""
    left = superblock.blocks_count - group_start(superblock, index)
    return min(superblock.disk.s_blocks_per_group, left)


def fixed_blocks(superblock: Superblock, index: int) -> Iterator[tuple[int, int]]:
    """Where copies of the superblock and of the descriptors are in a group, and how many blocks."""
    disk = superblock.disk
    start = group_start(superblock, index)
    has_superblock = superblock.has_superblock(index)
    if index == 0 and start == 0 and superblock.block_bytes == layout.SUPERBLOCK_OFFSET:
        # With bigalloc and blocks of 1 KiB, the boot block is in the first group too.
        yield 0, 1
        start = 1
    if has_superblock:
        yield start, 1
    per_block = superblock.block_bytes // superblock.desc_bytes
    has_meta_bg = bool(disk.s_feature_incompat & layout.INCOMPAT_META_BG)
    if has_meta_bg and index // per_block >= disk.s_first_meta_bg:
        if index % per_block in (0, 1, per_block - 1):
            yield start + has_superblock, 1
    elif has_superblock:
        old = disk.s_first_meta_bg if has_meta_bg else -(-superblock.groups_count // per_block)
        count = old + (0 if has_meta_bg else disk.s_reserved_gdt_blocks)
        if count:
            yield start + 1, count


# --- what a descriptor says --------------------------------------------------


def block_bitmap_of(group: ext4_group_desc) -> int:
    """Where the block bitmap is."""
    return group.bg_block_bitmap_lo | group.bg_block_bitmap_hi << 32


def inode_bitmap_of(group: ext4_group_desc) -> int:
    """Where the inode bitmap is."""
    return group.bg_inode_bitmap_lo | group.bg_inode_bitmap_hi << 32


def free_blocks_of(group: ext4_group_desc) -> int:
    """How many blocks of the group are free."""
    return group.bg_free_blocks_count_lo | group.bg_free_blocks_count_hi << 16


def free_inodes_of(group: ext4_group_desc) -> int:
    """How many inodes of the group are free."""
    return group.bg_free_inodes_count_lo | group.bg_free_inodes_count_hi << 16


def directories_of(group: ext4_group_desc) -> int:
    """How many inodes of the group are directories."""
    return group.bg_used_dirs_count_lo | group.bg_used_dirs_count_hi << 16


def unused_inodes_of(group: ext4_group_desc) -> int:
    """How many inodes at the end of the table were never used: nobody reads them, and what is in
    their place may be anything."""
    return group.bg_itable_unused_lo | group.bg_itable_unused_hi << 16


def places(superblock: Superblock, group: ext4_group_desc) -> Iterator[tuple[str, int, int]]:
    """What a group has somewhere: name, first block, number of blocks."""
    yield "block bitmap", block_bitmap_of(group), 1
    yield "inode bitmap", inode_bitmap_of(group), 1
    table_bytes = superblock.disk.s_inodes_per_group * superblock.inode_bytes
    yield "inode table", inode_table_of(group), -(-table_bytes >> superblock.block_bits)


def misplaced(superblock: Superblock, index: int, group: ext4_group_desc) -> str:
    """Which of the places of a group cannot be, in words."""
    first, end = superblock.disk.s_first_data_block, superblock.blocks_count
    if not superblock.disk.s_feature_incompat & layout.INCOMPAT_FLEX_BG:
        first = group_start(superblock, index)
        end = first + blocks_in(superblock, index)
    for what, block, count in places(superblock, group):
        if not first <= block <= block + count <= end:
            return f"its {what} at block {block}, which cannot be"
    return ""


def miscounted(superblock: Superblock, index: int, group: ext4_group_desc) -> str:
    """Which of the counts of a group cannot be, in words."""
    per_group = superblock.disk.s_inodes_per_group
    for what, count, most in (
        ("free blocks", free_blocks_of(group), blocks_in(superblock, index)),
        ("free inodes", free_inodes_of(group), per_group),
        ("directories", directories_of(group), per_group),
    ):
        if count > most:
            return f"{count} {what} of {most}"
    return ""


def is_right(volume: Volume, bits: bytes, said: int) -> bool:
    """Whether the checksum that a descriptor has of a bitmap is right, if there are checksums. Of
    a short descriptor, `said` is its lower half."""
    if not volume.has_metadata_csum:
        return True
    return volume.bitmap_checksum(bits) == said


# --- all of it ---------------------------------------------------------------


class Metadata:
    """Which blocks the file system has for itself: what the groups have, and what its own files
    have (the journal, and the orphan file).

    To be made, every descriptor is looked at: VfsError if one is damaged, or if two things are said
    to be in one place. Whoever writes with such descriptors writes over something.
    """

    def __init__(self, volume: Volume) -> None:
        superblock = volume.superblock
        problem = geometry_problem(superblock)
        if not problem and superblock.groups_count > image_limits.WRITABLE_GROUPS_MAX:
            problem = f"{superblock.groups_count} block groups, too many to be written"
        if problem:
            raise volume.distrusted("the superblock", f"has {problem}")
        runs = sorted([*_runs(volume), *_own_files(volume)])
        self._starts = [0] * len(runs)
        self._ends = [0] * len(runs)
        end = 0
        for at, (first, count) in enumerate(runs):
            if first < end:
                raise volume.distrusted(f"block {first}", "is said to hold two kinds of metadata")
            end = first + count
            self._starts[at], self._ends[at] = first, end

    def within(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """What there is in a range of blocks: first block, number of blocks."""
        end = first + count
        for at in range(bisect_right(self._ends, first), len(self._starts)):
            start = max(self._starts[at], first)
            if start >= end:
                return
            yield start, min(self._ends[at], end) - start

    def is_in(self, first: int, count: int) -> bool:
        """Whether some of these blocks are of it."""
        at = bisect_right(self._ends, first)
        return at < len(self._starts) and self._starts[at] < first + count


def _runs(volume: Volume) -> Iterator[tuple[int, int]]:
    """All metadata: first block, number of blocks. With flex_bg, the bitmaps and tables of many
    groups lie side by side, and make one run."""
    superblock = volume.superblock
    open_runs: dict[str, tuple[int, int]] = {}
    for index in range(superblock.groups_count):
        yield from fixed_blocks(superblock, index)
        group = volume.group(index)
        problem = misplaced(superblock, index, group) or miscounted(superblock, index, group)
        if problem:
            raise volume.distrusted(f"group descriptor {index}", f"has {problem}")
        for what, block, count in places(superblock, group):
            first, so_far = open_runs.get(what, (block, 0))
            if block != first + so_far:
                yield first, so_far
                first, so_far = block, 0
            open_runs[what] = first, so_far + count
    yield from open_runs.values()


def _own_files(volume: Volume) -> Iterator[tuple[int, int]]:
    """The same of the files that the file system has for itself. A file that is said to have such
    a block, too, would write over the journal; if it is removed, others would get the block."""
    disk = volume.superblock.disk
    numbers = [disk.s_journal_inum] if volume.superblock.has_journal else []
    if disk.s_feature_compat & layout.COMPAT_ORPHAN_FILE:
        numbers.append(disk.s_orphan_file_inum)
    maps = BlockMaps(volume)
    for number in filter(None, numbers):
        if number > disk.s_inodes_count:
            raise volume.distrusted("the superblock", f"has its own file in inode {number}")
        inode = inodes.read_any(volume, number)
        count = inode.size >> volume.block_bits
        if count > volume.superblock.blocks_count:
            raise volume.distrusted(f"inode {number}", f"is the system's, and has {count} blocks")
        for extent in maps.of(inode).extents(0, count):
            if extent.physical:
                yield extent.physical, extent.count
