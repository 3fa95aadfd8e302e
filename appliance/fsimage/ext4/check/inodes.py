"""Every inode that is in use: its fields, and who has which blocks ("Inode Table").

An inode is in use if it has links, or is waiting in the list of orphans to be deleted or truncated;
what the bitmap says is compared with that later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.bits import in_words
from appliance.fsimage.ext4.check import xattrs
from appliance.fsimage.ext4.check.blocks import BlockWalk, Wrong
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.fields import field_problems, link_text_problem, size_problem
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_group_desc
from appliance.fsimage.ext4.volume import inode_table_of
from appliance.vfs.interface import FileType

_PIECE_BYTES: Final = 1 << 20
"""How much of the inode table is read at a time."""

_KINDS: Final = frozenset(int(each) for each in FileType)

UNKNOWN_KIND: Final = 15
"""Of an inode in use with a mode that there is not."""


class InodeScan:
    """The way through all inodes."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._walk: Final = BlockWalk(context)
        self._has_csum: Final = context.superblock.has_metadata_csum
        self._first: Final = context.superblock.first_inode
        disk = context.disk
        times = [time for time in (disk.s_wtime, disk.s_mtime, disk.s_mkfs_time) if time]
        # In a list of orphans, i_dtime has the number of the next one: no time that there was.
        self._orphan_limit: Final = min([context.inodes_count, *times])

    def run(self) -> None:
        """Look at all."""
        context = self._context
        for index, group in enumerate(context.groups):
            self._scan_group(index, group)
            context.progress("inodes", index + 1, len(context.groups))
        if context.shared.raw.count(0) != len(context.shared.raw):
            SharedBlocks(context).run()
        xattrs.check_refcounts(context)

    def _scan_group(self, index: int, group: ext4_group_desc | None) -> None:
        context = self._context
        per_group = context.disk.s_inodes_per_group
        unused = self._unused(index, group)
        first = index * per_group + 1
        if unused:
            context.unused_inodes.add_range(first + per_group - unused, unused)
        if group is None:
            return
        size = context.superblock.inode_bytes
        nothing = bytes(size)
        for number, raw in self._raw_inodes(inode_table_of(group), first, per_group - unused):
            # Most inodes of most tables are of this kind.
            if raw != nothing:
                self._look(number, raw)

    def _unused(self, index: int, group: ext4_group_desc | None) -> int:
        """How many inodes at the end of a group's table are not worth a look."""
        context = self._context
        per_group = context.disk.s_inodes_per_group
        if group is None:
            return per_group
        if not context.has_uninit_groups or index in context.doubtful_groups:
            return 0
        if group.bg_flags & layout.BG_INODE_UNINIT:
            return per_group
        unused = group.bg_itable_unused_lo | group.bg_itable_unused_hi << 16
        if unused > per_group:
            context.wrong(Code.GROUP, f"group {index} has {unused} unused inodes of {per_group}")
            return 0
        return unused

    def _raw_inodes(self, block: int, first: int, count: int) -> Iterator[tuple[int, bytes]]:
        volume, size = self._context.volume, self._context.superblock.inode_bytes
        at, end = block << volume.block_bits, count * size
        for start in range(0, end, _PIECE_BYTES):
            piece = volume.device.read(at + start, min(_PIECE_BYTES, end - start))
            for offset in range(0, len(piece), size):
                yield first + (start + offset) // size, piece[offset : offset + size]

    # One inode.

    def _look(self, number: int, raw: bytes) -> None:
        context = self._context
        inode = inodes.decode(context.volume, number, raw)

        def wrong(code: Code, text: str) -> None:
            context.wrong(code, text, number)

        is_orphan = number in context.orphans
        if 0 < inode.disk.i_dtime < self._orphan_limit and not is_orphan:
            wrong(Code.INODE_FIELD, "is marked as part of a list of orphans that it is not in")
        if not inode.disk.i_links_count and not is_orphan and number != layout.EXT4_ROOT_INO:
            self._look_at_free(inode, raw, wrong)
            return
        self._check_checksum(inode, raw, wrong)
        self._remember(inode)
        if inode.disk.i_mode >> 12 not in _KINDS:
            wrong(Code.INODE_MODE, f"is of no type that there is (mode {inode.disk.i_mode:o})")
            return
        for code, text in field_problems(context, inode, raw, is_orphan=is_orphan):
            wrong(code, text)
        self._check_storage(inode, wrong, is_orphan=is_orphan)

    def _check_checksum(self, inode: Inode, raw: bytes, wrong: Wrong) -> None:
        volume = self._context.volume
        if self._has_csum and not inodes.checksum_is_right(volume, inode, raw):
            wrong(Code.INODE_CHECKSUM, "has a wrong checksum")

    def _look_at_free(self, inode: Inode, raw: bytes, wrong: Wrong) -> None:
        """An inode that is not in use. (Those that the file system has for itself always are.)"""
        context, disk = self._context, inode.disk
        if inode.number >= self._first:
            if disk.i_mode and not disk.i_dtime:
                wrong(Code.INODE_FIELD, "is free, but was never deleted")
            return
        self._check_checksum(inode, raw, wrong)
        if inode.number == layout.EXT4_BAD_INO:
            # It has blocks, but neither a mode nor a name.
            if disk.i_mode or disk.i_uid or disk.i_gid or disk.i_file_acl_lo:
                wrong(Code.INODE_FIELD, "is to list bad blocks, but has more than that")
            Claims(context, self._walk, inode, wrong).claim_all()
        elif disk.i_mode >> 12 not in (0, FileType.REGULAR):
            wrong(Code.INODE_MODE, f"is reserved, but has the mode {disk.i_mode:o}")
        elif inode.size or disk.i_blocks_lo or disk.i_blocks_high or any(disk.i_block[:4]):
            wrong(Code.INODE_BLOCKS, "is reserved and not in use, but says that it has contents")

    def _remember(self, inode: Inode) -> None:
        context, number = self._context, inode.number
        kind = inode.disk.i_mode >> 12
        context.kinds[number] = kind if kind in _KINDS else UNKNOWN_KIND
        context.links[number] = inode.disk.i_links_count

    # What it stores.

    def _check_storage(self, inode: Inode, wrong: Wrong, *, is_orphan: bool) -> None:
        context = self._context
        blocks = xattrs.check(context, inode, wrong)
        last = last_written = -1
        if has_map(context, inode):
            runs = Claims(context, self._walk, inode, wrong)
            runs.claim_all()
            blocks += runs.blocks
            last, last_written = runs.last, runs.last_written
        found = blocks << context.volume.block_bits
        said = inodes.used_bytes(context.volume, inode.disk)
        if found != said:
            wrong(Code.INODE_BLOCKS, f"says that it has {said} bytes of storage, but has {found}")
        if inode.disk.i_mode >> 12 == FileType.SYMLINK:
            self._check_link(inode, wrong)
        problem = size_problem(context, inode, last, last_written)
        # An orphan may be on its way to a smaller size.
        if problem and not is_orphan:
            wrong(Code.INODE_SIZE, problem)

    def _check_link(self, inode: Inode, wrong: Wrong) -> None:
        """The text of a symbolic link."""
        context = self._context
        if inode.has_flag(layout.INLINE_DATA_FL):
            return
        text = inode.disk.i_block
        if has_map(context, inode):
            run = next(iter(self._walk.runs(inode)), None)
            if run is None or run.logical != 0 or not run.written:
                wrong(Code.SYMLINK, "is a symbolic link without text")
                return
            bits = context.volume.block_bits
            text = context.volume.device.read(run.physical << bits, context.volume.block_bytes)
        problem = link_text_problem(text, inode.size, len(text))
        if problem:
            wrong(Code.SYMLINK, problem)


def has_map(context: Context, inode: Inode) -> bool:
    """Whether i_block says where blocks are."""
    kind = inode.disk.i_mode >> 12
    if inode.has_flag(layout.INLINE_DATA_FL):
        return False
    if kind == FileType.SYMLINK:
        return inode.has_flag(layout.EXTENTS_FL) or not inodes.symlink_is_inline(
            context.volume, inode
        )
    return kind in (FileType.REGULAR, FileType.DIRECTORY)


class Claims:
    """Claims the blocks of one inode, and counts them."""

    def __init__(self, context: Context, walk: BlockWalk, inode: Inode, wrong: Wrong) -> None:
        self._context: Final = context
        self._walk: Final = walk
        self._inode: Final = inode
        self._wrong: Final = wrong
        self._is_resize: Final = inode.number == layout.EXT4_RESIZE_INO
        self._last_cluster = -1
        self.blocks = 0
        self.last = -1
        """The last logical block."""
        self.last_written = -1

    def claim_all(self) -> None:
        """All of them."""
        for logical, physical, count, written in self._walk.runs(self._inode, self._wrong):
            self._claim(physical, count, is_tree=logical < 0)
            if logical >= 0:
                self.last = max(self.last, logical + count - 1)
                if written:
                    self.last_written = max(self.last_written, logical + count - 1)

    def _claim(self, physical: int, count: int, *, is_tree: bool) -> None:
        context = self._context
        first = context.cluster_of(physical)
        end = context.cluster_of(physical + count - 1) + 1
        if not is_tree and context.cluster_bits and first == self._last_cluster:
            first += 1  # two extents of a file may be in one cluster
        self._last_cluster = end - 1
        clusters = end - first
        if not clusters:
            return
        self.blocks += clusters << context.cluster_bits
        if self._is_resize:
            # What it has are the reserved blocks behind the descriptors, but for one.
            context.used.add_range(first, clusters)
            return
        if context.used.any_in(first, clusters):
            if context.metadata.any_in(first, clusters):
                self._wrong(
                    Code.BLOCK_METADATA,
                    f"has blocks from {physical} on, where the file system keeps itself",
                )
            context.used.overlap_into(context.shared, first, clusters)
        context.used.add_range(first, clusters)


class SharedBlocks:
    """Who has the blocks that more than one inode has: known only when all were looked at."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._walk: Final = BlockWalk(context)

    def run(self) -> None:
        """Name them."""
        context = self._context
        for number in range(1, context.inodes_count + 1):
            if context.kinds[number]:
                inode = context.inode(number)
                shared = self._shared_of(inode)
                if shared:
                    text = f"has blocks that are claimed more than once: {shared}"
                    context.wrong(Code.BLOCK_SHARED, text, number)

    def _shared_of(self, inode: Inode) -> str:
        return in_words(self._ranges(inode))

    def _ranges(self, inode: Inode) -> Iterator[tuple[int, int]]:
        context = self._context
        attributes = xattr.block_of(context.volume, inode.disk)
        if (
            context.volume.has_blocks(attributes)
            and context.cluster_of(attributes) in context.shared
        ):
            yield attributes, attributes
        if not has_map(context, inode):
            return
        for _, physical, count, _ in self._walk.runs(inode):
            first = context.cluster_of(physical)
            clusters = context.cluster_of(physical + count - 1) - first + 1
            for low, high in context.shared.ranges(first, clusters):
                yield (
                    context.first_block + (low << context.cluster_bits),
                    context.first_block + (high << context.cluster_bits),
                )
