"""Inodes without a name that still have blocks (kernel document: "Orphan file"; ext4_orphan_add).

Removing or truncating a large file takes several transactions. Before the first of them the inode
goes on the list of orphans, so that whoever opens the file system after a crash finishes the work.

The list begins in s_last_orphan and goes on in i_dtime, from the youngest to the oldest. A file
system with orphan_file may have a file full of numbers instead: those are processed, too, when it
is opened; new ones go on the list, which every kernel understands.

An orphan loses what it has, so nobody is taken for one who cannot be (`check`): its number has to
be that of an ordinary inode, in use according to the bitmap; with links it has to be a file, which
is only cut off at its end; and a directory without links has to be empty.
"""

from __future__ import annotations

import struct
from typing import Final

from appliance import image_limits
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.directory import Directories, Directory
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_orphan_block_tail
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType


class Orphans:
    """The list. `numbers` has it from the oldest to the youngest; `problem` says what is wrong
    with it, which then has only what comes before that."""

    def __init__(self, volume: Volume) -> None:
        self._volume: Final = volume
        self.numbers: Final[list[int]] = []
        self.problem: Final = self._read()
        self.numbers.reverse()

    def _read(self) -> str:
        volume, seen = self._volume, set()
        number = volume.superblock.disk.s_last_orphan
        while number:
            problem = _number_problem(volume, number)
            if problem or number in seen:
                return problem or f"has inode {number} twice"
            seen.add(number)
            if len(self.numbers) == image_limits.ORPHANS_MAX:
                return f"has more than {image_limits.ORPHANS_MAX} inodes"
            self.numbers.append(number)
            try:
                number = inodes.read_any(volume, number, unlinked=True).disk.i_dtime
            except VfsError as error:
                return f"has inode {number}: {error.detail}"
        return ""

    def add(self, operation: Operation, inode: Inode) -> None:
        """From now on, somebody will have to finish with `inode`. (One that is there already was
        begun before, and met damage.)"""
        if inode.number in self.numbers:
            return
        inode.disk.i_dtime = self.numbers[-1] if self.numbers else 0
        operation.last_orphan = inode.number
        operation.then(lambda: self.numbers.append(inode.number))

    def remove(self, operation: Operation, inode: Inode) -> None:
        """It is finished, if it was there at all; i_dtime is set by the caller."""
        if inode.number not in self.numbers:
            return
        at = self.numbers.index(inode.number)
        older = self.numbers[at - 1] if at else 0
        if at + 1 == len(self.numbers):
            operation.last_orphan = older
        else:
            operation.inode(self.numbers[at + 1]).disk.i_dtime = older
        operation.then(lambda: self.numbers.remove(inode.number))


def _number_problem(volume: Volume, number: int) -> str:
    """Why this cannot be the number of an orphan; empty if it can."""
    superblock = volume.superblock
    ordinary = superblock.first_inode <= number <= superblock.disk.s_inodes_count
    if not ordinary or number in superblock.hidden_inodes:
        return f"has inode {number}, which cannot be there"
    return ""


def check(volume: Volume, maps: BlockMaps, numbers: list[int]) -> str:
    """What is wrong with some orphans, if anything; nothing has been done with them yet."""
    for number in numbers:
        problem = _number_problem(volume, number) or _problem(volume, maps, number)
        if problem:
            return problem
    return ""


def _problem(volume: Volume, maps: BlockMaps, number: int) -> str:
    if not volume.inode_in_use(number):
        return f"has inode {number}, which is free"
    inode = inodes.read_any(volume, number, unlinked=True)
    kind, links = inode.disk.i_mode >> 12, inode.disk.i_links_count
    if links and kind != FileType.REGULAR:
        return f"has inode {number}, which has a name and is no file"
    if not links and kind == FileType.DIRECTORY and _has_names(volume, maps, inode):
        return f"has directory {number}, which is not empty"
    return ""


def _has_names(volume: Volume, maps: BlockMaps, inode: Inode) -> bool:
    """Whether a directory certainly has names. One that is half removed cannot be read."""
    try:
        return not Directory(Directories(volume, maps), inode).is_empty()
    except VfsError:
        return False


# --- the orphan file ------------------------------------------------------------


class OrphanFile:
    """The file full of numbers of orphans, of a file system that has one."""

    def __init__(self, volume: Volume) -> None:
        self._volume: Final = volume
        self._inode: Final = inodes.read_any(volume, volume.superblock.disk.s_orphan_file_inum)
        self._blocks: Final = self._find_blocks()

    def _find_blocks(self) -> list[int]:
        """IO: it is larger than any kernel makes it."""
        size = self._inode.size
        if size > image_limits.ORPHAN_FILE_BYTES_MAX:
            raise self._volume.distrusted("the orphan file", f"has {size} bytes")
        count = size >> self._volume.block_bits
        extents = BlockMaps(self._volume).of(self._inode).extents(0, count)
        return [
            extent.physical + index
            for extent in extents
            for index in range(extent.count)
            if extent.physical
        ]

    def numbers(self) -> list[int]:
        """The inodes in it. IO: it is damaged."""
        found = []
        for block in self._blocks:
            raw = self._volume.block(block)
            tail_at = len(raw) - ext4_orphan_block_tail.SIZE
            tail = ext4_orphan_block_tail.decode(raw, tail_at)
            right = self._checksum(block, raw[:tail_at])
            if tail.ob_magic != layout.ORPHAN_BLOCK_MAGIC or (
                self._volume.has_metadata_csum and tail.ob_checksum != right
            ):
                raise self._volume.distrusted("the orphan file", f"is damaged in block {block}")
            words = struct.unpack_from(f"<{tail_at // 4}I", raw)
            found += [number for number in words if number]
            if len(found) > image_limits.ORPHANS_MAX:
                most = image_limits.ORPHANS_MAX
                raise self._volume.distrusted("the orphan file", f"has more than {most} inodes")
        return found

    def clear(self, operation: Operation) -> None:
        """Nobody is in it any more."""
        for block in self._blocks:
            raw = operation.change(block)
            tail_at = len(raw) - ext4_orphan_block_tail.SIZE
            raw[:tail_at] = bytes(tail_at)
            checksum = 0
            if self._volume.has_metadata_csum:
                checksum = self._checksum(block, bytes(raw[:tail_at]))
            ext4_orphan_block_tail(layout.ORPHAN_BLOCK_MAGIC, checksum).encode_into(raw, tail_at)

    def _checksum(self, block: int, numbers: bytes) -> int:
        seed = inodes.seed_of(self._volume, self._inode)
        return crc32c(crc32c(seed, struct.pack("<Q", block)), numbers)
