"""Files and directories made with an allocator and nothing else, so that the file systems that
result can be judged: whoever has blocks has them in an extent or a pointer in its inode."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4 import finishing, layout
from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.layout import (
    ext4_dir_entry_2,
    ext4_dir_entry_tail,
    ext4_extent,
    ext4_extent_header,
    ext4_inode,
)
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.ext4_images import debugfs

NOW_NS = 1_700_000_000_000_000_000
EXTENTS = 4
POINTERS = 12

Runs = list[tuple[int, int]]


@dataclass
class File:
    """What was made."""

    inode: int
    runs: Runs
    directory: bool


class Disk:
    """An image that is changed in memory, and saved at the end."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.device = FileDevice(image)
        self.volume = Volume(self.device, Superblock.read(self.device), "image")
        self.allocator = Allocator(self.volume)
        disk = self.volume.superblock.disk
        self.has_extents = bool(disk.s_feature_incompat & layout.INCOMPAT_EXTENTS)

    # Operations, as the Writer makes them.

    def operation(self) -> Operation:
        return Operation(self.volume, self.allocator, NOW_NS)

    def publish(self, operation: Operation) -> Runs:
        """What the operation has freed."""
        blocks = operation.finish()
        operation.announce()
        self.volume.publish(blocks)
        operation.publish()
        finishing.finish(self.volume, blocks)
        self.allocator.free_blocks += operation.free_blocks_change
        self.allocator.free_inodes += operation.free_inodes_change
        return operation.freed

    # Files.

    def create(self, operation: Operation, runs: Runs, *, directory: bool = False) -> File:
        """A file with these blocks (one, for a directory) in the root."""
        number = operation.allocate_inode(layout.EXT4_ROOT_INO, directory=directory)
        volume, inode_bytes = self.volume, self.volume.superblock.inode_bytes
        disk = ext4_inode.decode(bytes(ext4_inode.SIZE))
        disk.i_mode, disk.i_links_count = 0o100644, 1
        body = b""
        if inode_bytes > layout.GOOD_OLD_INODE_SIZE:
            disk.i_extra_isize = 32
            body = bytes(inode_bytes - ext4_inode.SIZE)
        disk.i_block, disk.i_flags = self._map(runs)
        count = sum(count for _, count in runs)
        disk.i_blocks_lo = count << volume.block_bits - 9
        inode = operation.new_inode(number, disk, body)
        inode.size = count << volume.block_bits
        if directory:
            disk.i_mode, disk.i_links_count = 0o040755, 2
            self._entries(operation, number, runs[0][0])
            operation.inode(layout.EXT4_ROOT_INO).disk.i_links_count += 1
        return File(number, runs, directory)

    def _map(self, runs: Runs) -> tuple[bytes, int]:
        block = bytearray(60)
        if not self.has_extents:
            numbers = [first + at for first, count in runs for at in range(count)]
            struct.pack_into(f"<{len(numbers)}I", block, 0, *numbers)
            return bytes(block), 0
        ext4_extent_header(layout.EXTENT_MAGIC, len(runs), EXTENTS, 0, 0).encode_into(block, 0)
        logical = 0
        for at, (first, count) in enumerate(runs):
            extent = ext4_extent(logical, count, first >> 32, first & 0xFFFF_FFFF)
            extent.encode_into(block, ext4_extent_header.SIZE + at * ext4_extent.SIZE)
            logical += count
        return bytes(block), layout.EXTENTS_FL

    def _entries(self, operation: Operation, number: int, at: int) -> None:
        """An empty directory, in the root."""
        block = operation.new_block(at)
        end = len(block) - (ext4_dir_entry_tail.SIZE if self.volume.has_metadata_csum else 0)
        ext4_dir_entry_2(number, 12, 1, 2).encode_into(block, 0)
        ext4_dir_entry_2(layout.EXT4_ROOT_INO, end - 12, 2, 2).encode_into(block, 12)
        block[8:9], block[20:22] = b".", b".."
        if self.volume.has_metadata_csum:
            checksum = crc32c(self.volume.inode_seed(number, 0), bytes(block[:end]))
            tail = ext4_dir_entry_tail(
                0, ext4_dir_entry_tail.SIZE, 0, layout.DIR_TAIL_FILE_TYPE, checksum
            )
            tail.encode_into(block, end)

    def delete(self, operation: Operation, file: File) -> None:
        inode = operation.inode(file.inode)
        inode.disk.i_links_count, inode.disk.i_dtime, inode.size = 0, NOW_NS // 10**9, 0
        # To e2fsck, a table with many inodes without a header for their extents is garbage.
        inode.disk.i_block, inode.disk.i_flags = self._map([])
        inode.disk.i_blocks_lo = 0
        for first, count in file.runs:
            operation.free(first, count, metadata=file.directory)
        operation.free_inode(file.inode, directory=file.directory)
        if file.directory:
            operation.inode(layout.EXT4_ROOT_INO).disk.i_links_count -= 1

    # The end.

    def save(self, files: Sequence[File] = ()) -> None:
        """Everything goes to the image, and the files get names."""
        volume = self.volume
        with self.image.open("r+b") as output:
            for number, block in volume.unwritten.items():
                os.pwrite(output.fileno(), block, number << volume.block_bits)
            raw = bytearray(os.pread(output.fileno(), SUPERBLOCK_BYTES, layout.SUPERBLOCK_OFFSET))
            disk = volume.superblock.disk
            disk.s_free_blocks_count_lo = self.allocator.free_blocks
            disk.s_free_inodes_count = self.allocator.free_inodes
            disk.encode_into(raw, 0)
            if volume.has_metadata_csum:
                disk.s_checksum = superblock_checksum(bytes(raw))
                disk.encode_into(raw, 0)
            os.pwrite(output.fileno(), raw, layout.SUPERBLOCK_OFFSET)
        if files:
            debugfs(self.image, *(f"ln <{file.inode}> /f{file.inode}" for file in files))
