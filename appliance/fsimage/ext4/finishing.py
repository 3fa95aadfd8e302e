"""What is put into its block only when a transaction is closed: inodes, descriptors of groups, and
the checksums of directories.

A directory in which a hundred files are made changes a hundred times, and so does the descriptor of
its group; the disk gets the last state. So an operation publishes them as objects, and here, once
in a transaction, they become bytes, with their checksums and those of the bitmaps. An inode is
another object each time; a descriptor, of which nobody needs a former state, changes in place. The
block of a directory is published at once, but without its checksum.

Until then whoever reads an inode or a descriptor finds the object (`Volume.unfinished`), and never
looks into its block; the checksums of its bitmaps say nothing; and who wants to verify a directory
gets its blocks from `Volume.sealed`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.groups import block_bitmap_of, inode_bitmap_of
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_group_desc
from appliance.fsimage.ext4.volume import Volume

if TYPE_CHECKING:
    from appliance.fsimage.ext4.allocator import GroupChange

_MASK16: Final = 0xFFFF


def add(
    volume: Volume,
    changed: Mapping[int, Inode],
    groups: Mapping[int, GroupChange],
    tables: Iterable[int],
) -> None:
    """These inodes, by their numbers, are what is published now; and of these groups, by theirs,
    the descriptors have changed. `tables`: the blocks that all of them will be in."""
    unfinished = volume.unfinished
    for number in tables:
        if number not in unfinished.tables:
            unfinished.tables[number] = volume.block(number)
    for index, change in groups.items():
        group = unfinished.groups.get(index)
        if group is None:
            group = unfinished.groups[index] = volume.group(index)
        change.apply(group)
    unfinished.inodes.update(changed)


def finish(volume: Volume, numbers: Collection[int]) -> dict[int, bytes]:
    """The blocks of these numbers, which are all that operations have changed since the last time,
    as they go to the disk."""
    unfinished, unwritten = volume.unfinished, volume.unwritten
    tables = {
        # What was changed since is unwritten; what was not, may have come to its place.
        number: bytearray(unwritten.get(number) or before)
        for number, before in unfinished.tables.items()
    }
    for inode in unfinished.inodes.values():
        inodes.encode_into(volume, inode, tables[inode.place[0]])
    for index, group in unfinished.groups.items():
        number, offset = volume.descriptor_place(index)
        _note_bitmaps(volume, group, numbers)
        _encode_group(volume, index, group, tables[number], offset)
    for number, table in tables.items():
        unwritten[number] = bytes(table)
    for number, seal in unfinished.seals.items():
        if number in numbers:  # or it has been freed since
            unwritten[number] = seal(unwritten[number])
    unfinished.clear()  # not before: somebody may be looking for something
    return {number: unwritten[number] for number in numbers}


def _note_bitmaps(volume: Volume, group: ext4_group_desc, numbers: Collection[int]) -> None:
    """Put the checksums of bitmaps that have changed into a descriptor."""
    if not volume.has_metadata_csum:
        return
    disk = volume.superblock.disk
    number = block_bitmap_of(group)
    if number in numbers:
        bits = volume.unwritten[number][: disk.s_blocks_per_group >> 3]
        value = volume.bitmap_checksum(bits)
        group.bg_block_bitmap_csum_lo = value & _MASK16
        group.bg_block_bitmap_csum_hi = value >> 16
    number = inode_bitmap_of(group)
    if number in numbers:
        bits = volume.unwritten[number][: disk.s_inodes_per_group >> 3]
        value = volume.bitmap_checksum(bits)
        group.bg_inode_bitmap_csum_lo = value & _MASK16
        group.bg_inode_bitmap_csum_hi = value >> 16


def _encode_group(
    volume: Volume, index: int, group: ext4_group_desc, table: bytearray, offset: int
) -> None:
    """Put a descriptor into its block, with its checksum."""
    size = volume.superblock.desc_bytes
    if size < ext4_group_desc.SIZE:
        whole = table[offset : offset + size].ljust(ext4_group_desc.SIZE, b"\0")
        group.encode_into(whole, 0)
        table[offset : offset + size] = whole[:size]
    else:
        group.encode_into(table, offset)
    if volume.has_uninit_groups:
        checksum = volume.group_checksum(index, bytes(table[offset : offset + size]))
        at = offset + layout.BG_CHECKSUM_OFFSET
        table[at : at + 2] = checksum.to_bytes(2, "little")
        group.bg_checksum = checksum
