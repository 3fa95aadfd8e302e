"""The bitmaps and the counts, against what was found in use ("Block and Inode Bitmaps")."""

from __future__ import annotations

from typing import Final

from appliance.fsimage.ext4 import groups, layout
from appliance.fsimage.ext4.bits import Bits, in_words, ranges_in
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.directories import directories_of
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.layout import ext4_group_desc

_SET: Final = b"\xff"


class BitmapCheck:
    """The way through all groups."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._inodes: Final = Bits(context.inodes_count)
        for number, kind in enumerate(context.kinds):
            if kind or 0 < number < context.superblock.first_inode:
                self._inodes.add(number - 1)
        self._directories: Final = [0] * len(context.groups)
        per_group = context.disk.s_inodes_per_group
        for number in directories_of(context):
            self._directories[(number - 1) // per_group] += 1
        self.free_clusters = 0
        self.free_inodes = 0

    def run(self) -> None:
        """Everything."""
        context = self._context
        for index, group in enumerate(context.groups):
            blocks = self._used_blocks(index)
            inodes = self._used_inodes(index)
            free_blocks = self._clusters_in(index) - blocks.bit_count()
            free_inodes = context.disk.s_inodes_per_group - inodes.bit_count()
            self.free_clusters += free_blocks
            self.free_inodes += free_inodes
            if group:
                self._block_bitmap(index, group, blocks)
                self._inode_bitmap(index, group, inodes)
                self._counts(index, group, free_blocks, free_inodes)
            context.progress("bitmaps", index + 1, len(context.groups))
        self._superblock()

    def _clusters_in(self, index: int) -> int:
        context = self._context
        return -(-groups.blocks_in(context.superblock, index) >> context.cluster_bits)

    def _used_blocks(self, index: int) -> int:
        """The bits of a group as one number."""
        size = self._context.clusters_per_group >> 3
        return int.from_bytes(self._context.used.raw[index * size : (index + 1) * size], "little")

    def _used_inodes(self, index: int) -> int:
        size = self._context.disk.s_inodes_per_group >> 3
        return int.from_bytes(self._inodes.raw[index * size : (index + 1) * size], "little")

    # Bitmaps.

    def _block_bitmap(self, index: int, group: ext4_group_desc, used: int) -> None:
        context = self._context
        clusters = self._clusters_in(index)
        if group.bg_flags & layout.BG_BLOCK_UNINIT and context.has_uninit_groups:
            self._never_used(index, used)
            return
        raw = context.volume.block(groups.block_bitmap_of(group))
        said = group.bg_block_bitmap_csum_lo | group.bg_block_bitmap_csum_hi << 16
        bits = context.clusters_per_group
        self._check_checksum(f"block bitmap of group {index}", raw[: bits >> 3], said)
        found = int.from_bytes(raw, "little")
        if found >> clusters != (1 << 8 * len(raw) - clusters) - 1:
            text = f"the block bitmap of group {index} has free blocks behind its end"
            context.wrong(Code.BITMAP_PADDING, text)
        found &= (1 << clusters) - 1
        first = context.first_block + index * context.disk.s_blocks_per_group
        if found != used:
            self._differ(Code.BLOCK_BITMAP, "blocks", index, (used, found), first)

    def _never_used(self, index: int, used: int) -> None:
        """A group that has only what it was made with needs no bitmap."""
        context = self._context
        size = context.clusters_per_group >> 3
        raw = context.metadata.raw[index * size : (index + 1) * size]
        if used != int.from_bytes(raw, "little"):
            text = f"group {index} has blocks in use, but a bitmap that was never made"
            context.wrong(Code.BLOCK_BITMAP, text)

    def _inode_bitmap(self, index: int, group: ext4_group_desc, used: int) -> None:
        context = self._context
        per_group = context.disk.s_inodes_per_group
        if group.bg_flags & layout.BG_INODE_UNINIT and context.has_uninit_groups:
            if used:
                text = f"group {index} has inodes in use, but a bitmap that was never made"
                context.wrong(Code.INODE_BITMAP, text)
            return
        raw = context.volume.block(groups.inode_bitmap_of(group))
        said = group.bg_inode_bitmap_csum_lo | group.bg_inode_bitmap_csum_hi << 16
        self._check_checksum(f"inode bitmap of group {index}", raw[: per_group >> 3], said)
        padding = raw[per_group >> 3 :]
        if padding != _SET * len(padding):
            text = f"the inode bitmap of group {index} has free inodes behind its end"
            context.wrong(Code.BITMAP_PADDING, text)
        found = int.from_bytes(raw[: per_group >> 3], "little")
        if found != used:
            self._differ(Code.INODE_BITMAP, "inodes", index, (used, found), index * per_group + 1)

    def _check_checksum(self, what: str, raw: bytes, said: int) -> None:
        if not groups.is_right(self._context.volume, raw, said):
            self._context.wrong(Code.BITMAP_CHECKSUM, f"the {what} has a wrong checksum")

    def _differ(self, code: Code, what: str, index: int, sets: tuple[int, int], first: int) -> None:
        """Say which bits are wrong; sets: those in use, those in the bitmap."""
        used, found = sets
        bits = self._context.cluster_bits if code is Code.BLOCK_BITMAP else 0
        for difference, how in (
            (used & ~found, "are in use, but free in the bitmap"),
            (found & ~used, "are free, but in use in the bitmap"),
        ):
            if difference:
                numbers = ((low << bits, high << bits) for low, high in ranges_in(difference, 0))
                text = in_words((first + low, first + high) for low, high in numbers)
                self._context.wrong(code, f"{what} {text} of group {index} {how}")

    # Counts.

    def _counts(self, index: int, group: ext4_group_desc, blocks: int, inodes: int) -> None:
        self._count(f"free blocks of group {index}", groups.free_blocks_of(group), blocks)
        self._count(f"free inodes of group {index}", groups.free_inodes_of(group), inodes)
        said = groups.directories_of(group)
        self._count(f"directories of group {index}", said, self._directories[index])

    def _superblock(self) -> None:
        """Its own counts are brought up to date only now and then: whoever opens the file system
        adds up those of the groups."""
        disk = self._context.disk
        said = disk.s_free_blocks_count_lo
        if self._context.has_feature(incompat=layout.INCOMPAT_64BIT):
            said |= disk.s_free_blocks_count_hi << 32
        free = self.free_clusters << self._context.cluster_bits
        # With bigalloc, it counts blocks, the groups count clusters.
        if (said, disk.s_free_inodes_count) != (free, self.free_inodes):
            self._context.notes.append(
                f"the superblock still has {said} free blocks and {disk.s_free_inodes_count} free"
                f" inodes, instead of {free} and {self.free_inodes}"
            )

    def _count(self, what: str, said: int, found: int) -> None:
        if said != found:
            self._context.wrong(Code.COUNT, f"the count of {what} is {said}, but should be {found}")
