"""The inodes that the file system has for itself: the journal, the list of orphans, the blocks that
are kept for a larger file system ("Special inodes", "Journal (jbd2)", "Orphan file")."""

from __future__ import annotations

import struct
from typing import Final

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check.blocks import BlockWalk
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.journal import Ring
from appliance.fsimage.ext4.layout import ext4_orphan_block_tail
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType

_DOUBLE_INDIRECT: Final = 13


# --- the journal -------------------------------------------------------------


def check_journal(context: Context) -> None:
    """The journal of a file system that needs no recovery (any more)."""
    disk = context.disk
    number = disk.s_journal_inum
    if not context.has_feature(compat=layout.COMPAT_HAS_JOURNAL):
        if context.superblock.needs_recovery:
            context.wrong(Code.JOURNAL, "the superblock asks for a recovery without a journal")
        return
    if not number:
        context.notes.append("the journal is on another device; it was not looked at")
        return
    if number > context.inodes_count or context.kinds[number] != FileType.REGULAR:
        context.wrong(Code.JOURNAL, f"the journal should be inode {number}, which is no file")
        return
    of_journal = context.inode(number)
    try:
        block_map = BlockMaps(context.volume).of(of_journal)
        ring = Ring(context.volume, block_map, of_journal.size)
        if any(not run.physical for run in block_map.extents(0, ring.superblock.s_maxlen)):
            context.wrong(Code.JOURNAL, "the journal has a hole", number)
    except (ImageError, VfsError) as error:
        context.wrong(Code.JOURNAL, f"the journal cannot be used: {error}", number)
        return
    if ring.superblock.s_start and not context.superblock.needs_recovery:
        context.wrong(Code.JOURNAL, "the journal is not empty, but the superblock says so", number)
    if ring.superblock.s_errno:
        context.wrong(Code.JOURNAL, "the journal was aborted after an error", number)


# --- orphans -----------------------------------------------------------------


class Orphans:
    """Inodes that a crash left to be deleted or truncated at the next mount."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._count = 0

    def collect(self) -> None:
        """Find them all, before the inodes are looked at."""
        context = self._context
        number = context.disk.s_last_orphan
        while number and self._add(number, "the list of orphans"):
            number = context.inode(number).disk.i_dtime
        if context.has_feature(compat=layout.COMPAT_ORPHAN_FILE):
            self._collect_from_file(context.disk.s_orphan_file_inum)
        if self._count:
            context.notes.append(
                f"{self._count} inodes are to be deleted or truncated at the next mount"
            )

    def _add(self, number: int, where: str) -> bool:
        context = self._context
        problem = ""
        if not context.may_be_named(number) or number == layout.EXT4_ROOT_INO:
            problem = "which it cannot have"
        elif number in context.orphans:
            problem = "twice"
        elif context.groups[(number - 1) // context.disk.s_inodes_per_group] is None:
            problem = "which cannot be read"
        elif not context.inode(number).disk.i_mode:
            problem = "which is free"
        if problem:
            context.wrong(Code.ORPHAN, f"{where} has inode {number}, {problem}")
            return False
        context.orphans.add(number)
        self._count += 1
        return True

    def _collect_from_file(self, number: int) -> None:
        context = self._context
        exists = 0 < number <= context.inodes_count
        if not exists or context.groups[(number - 1) // context.disk.s_inodes_per_group] is None:
            context.wrong(Code.ORPHAN, f"inode {number} cannot be the orphan file")
            return
        inode = context.inode(number)
        if inode.disk.i_mode >> 12 != FileType.REGULAR or not inode.disk.i_links_count:
            context.wrong(Code.ORPHAN, "is to be the orphan file, but is no file", number)
            return
        for run in BlockWalk(context).runs(inode):
            if run.logical >= 0:
                for block in range(run.physical, run.physical + run.length):
                    self._block(inode, block)

    def _block(self, inode: Inode, block: int) -> None:
        context = self._context
        bits, size = context.volume.block_bits, context.volume.block_bytes
        raw = context.volume.device.read(block << bits, size)
        end = size - ext4_orphan_block_tail.SIZE
        tail = ext4_orphan_block_tail.decode(raw, end)
        if tail.ob_magic != layout.ORPHAN_BLOCK_MAGIC:
            context.wrong(Code.ORPHAN, f"has no magic in block {block}", inode.number)
            return
        checksum = 0
        if context.superblock.has_metadata_csum:
            seed = crc32c(inodes.seed_of(context.volume, inode), struct.pack("<Q", block))
            checksum = crc32c(seed, raw[:end])
        if tail.ob_checksum != checksum:
            context.wrong(Code.ORPHAN, f"has a wrong checksum in block {block}", inode.number)
        if not any(raw[:end]):
            return
        if not context.has_feature(ro_compat=layout.RO_COMPAT_ORPHAN_PRESENT):
            text = f"has orphans in block {block}, but the superblock says that there are none"
            context.wrong(Code.ORPHAN, text, inode.number)
        for (number,) in struct.iter_unpack("<I", raw[:end]):
            if number:
                self._add(number, "the orphan file")


# --- blocks for a larger file system -----------------------------------------


def check_resize_inode(context: Context) -> None:
    """What is reserved behind the descriptors is one double indirect block in inode 7: each of the
    reserved blocks of the first group lists those of the groups that have backups."""
    if context.kinds[layout.EXT4_RESIZE_INO] == 0:
        if context.has_feature(compat=layout.COMPAT_RESIZE_INODE):
            context.wrong(Code.RESIZE_INODE, "the inode for resizing is missing")
        return
    inode = context.inode(layout.EXT4_RESIZE_INO)
    pointers = struct.unpack("<15I", inode.disk.i_block)
    if not context.has_feature(compat=layout.COMPAT_RESIZE_INODE):
        if any(pointers):
            context.wrong(Code.RESIZE_INODE, "has blocks for resizing", inode.number)
        return
    others = (*pointers[:_DOUBLE_INDIRECT], *pointers[_DOUBLE_INDIRECT + 1 :])
    block = pointers[_DOUBLE_INDIRECT]
    regular = inode.disk.i_mode >> 12 == FileType.REGULAR and inode.disk.i_links_count
    if any(others) or not regular or not context.volume.has_blocks(block):
        context.wrong(Code.RESIZE_INODE, "is not one double indirect block", inode.number)
    elif not _reserves_what_it_should(context, block):
        context.wrong(Code.RESIZE_INODE, "has not the blocks behind the descriptors", inode.number)


def _reserves_what_it_should(context: Context, block: int) -> bool:
    superblock = context.superblock
    per_block = superblock.block_bytes // superblock.desc_bytes
    descriptor_blocks = -(-superblock.groups_count // per_block)
    words = superblock.block_bytes // 4
    # Not from the beginning of group 0: with clusters, blocks of 1 KiB are counted from 0, too.
    first = superblock.descriptor_block(0) + descriptor_blocks
    backups = [
        index for index in range(1, superblock.groups_count) if superblock.has_superblock(index)
    ]
    found = list(struct.unpack(f"<{words}I", context.volume.block(block)))
    expected = [0] * words
    for at in range(context.disk.s_reserved_gdt_blocks):
        expected[(descriptor_blocks + at) % words] = first + at
    if found != expected:
        return False
    per_group = context.disk.s_blocks_per_group
    for reserved in filter(None, expected):
        if not context.volume.has_blocks(reserved):
            return False
        listed = [reserved + index * per_group for index in backups]
        raw = context.volume.block(reserved)
        if list(struct.unpack(f"<{words}I", raw)) != (listed + [0] * words)[:words]:
            return False
    return True
