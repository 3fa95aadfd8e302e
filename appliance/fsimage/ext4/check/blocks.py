"""All blocks of one inode, those of its tree included ("Extent Tree", "Direct/Indirect Block
Addressing").

In contrast to extents.py, which looks one block up and gives up at the first thing that is wrong,
this goes through everything, and goes on behind what is wrong. It ends, whatever the tree says: of
an extent tree, only a block that says a smaller depth and begins where its parent says it does is
entered; and in one pass through a file system no block of a tree is entered twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.bits import Bits
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_extent, ext4_extent_header, ext4_extent_idx

Wrong = Callable[[Code, str], None]

_DIRECT_BLOCKS: Final = 12
_LOGICAL_END: Final = 1 << 32


class Run(NamedTuple):
    """Consecutive blocks of an inode."""

    logical: int
    """-1: they are blocks of the tree."""
    physical: int
    length: int
    written: bool = True


def say_nothing(code: Code, text: str) -> None:
    """For those who go through the blocks another time."""


class BlockWalk:
    """One pass through the blocks of many inodes."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._volume: Final = context.volume
        self._entered: Final = Bits(context.clusters_count << context.cluster_bits)

    def runs(self, inode: Inode, wrong: Wrong = say_nothing) -> Iterator[Run]:
        """The blocks of an inode that has some. All of them exist."""
        if inode.has_flag(layout.EXTENTS_FL):
            return _Extents(self, inode, wrong).runs()
        return self._indirect(inode, wrong)

    def has_blocks(self, first: int, count: int = 1) -> bool:
        """Whether there are such blocks."""
        return self._volume.has_blocks(first, count)

    def enter(self, block: int) -> bytes | None:
        """A block of a tree; None: it was entered already."""
        at = block - self._context.first_block
        if at in self._entered:
            return None
        self._entered.add(at)
        return self._volume.device.read(block << self._volume.block_bits, self._volume.block_bytes)

    def seed_of(self, inode: Inode) -> int | None:
        """The seed for the checksums of what belongs to an inode, if there are any."""
        if not self._volume.has_metadata_csum:
            return None
        return inodes.seed_of(self._volume, inode)

    # Indirect blocks.

    def _indirect(self, inode: Inode, wrong: Wrong) -> Iterator[Run]:
        pointers = struct.unpack("<15I", inode.disk.i_block)
        yield from self._pointers(0, pointers[:_DIRECT_BLOCKS], wrong)
        first = _DIRECT_BLOCKS
        bits = self._volume.block_bits - 2
        for levels, block in enumerate(pointers[_DIRECT_BLOCKS:], 1):
            yield from self._below(block, levels, first, wrong)
            first += 1 << bits * levels

    def _below(self, block: int, levels: int, first: int, wrong: Wrong) -> Iterator[Run]:
        """What is in the tree at `block`, which begins with logical block `first`."""
        if not block:
            return
        if not self.has_blocks(block):
            wrong(Code.BLOCK_RANGE, f"has the indirect block {block}, which does not exist")
            return
        yield Run(-1, block, 1)
        raw = self.enter(block)
        if raw is None:
            return
        pointers = struct.unpack(f"<{len(raw) // 4}I", raw)
        if levels == 1:
            yield from self._pointers(first, pointers, wrong)
            return
        step = 1 << (self._volume.block_bits - 2) * (levels - 1)
        for at, child in enumerate(pointers):
            yield from self._below(child, levels - 1, first + at * step, wrong)

    def _pointers(self, first: int, pointers: tuple[int, ...], wrong: Wrong) -> Iterator[Run]:
        """Block numbers, as runs."""
        start = count = 0
        for logical, block in enumerate(pointers, first):
            exists = block != 0 and self.has_blocks(block)
            if count and exists and block == start + count:
                count += 1
                continue
            if count:
                yield Run(logical - count, start, count)
            start, count = block, int(exists)
            if block and not exists:
                wrong(Code.BLOCK_RANGE, f"has block {block}, which does not exist, at {logical}")
        if count:
            yield Run(first + len(pointers) - count, start, count)


class _Extents:
    """One way through one extent tree."""

    def __init__(self, walk: BlockWalk, inode: Inode, wrong: Wrong) -> None:
        self._walk: Final = walk
        self._inode: Final = inode
        self._wrong: Final = wrong
        self._seed: Final = walk.seed_of(inode)
        self._next = 0  # the first logical block that has not been described yet

    def runs(self) -> Iterator[Run]:
        """Everything."""
        raw = self._inode.disk.i_block
        header = ext4_extent_header.decode(raw)
        if header.eh_depth > layout.EXTENT_DEPTH_MAX:
            self._wrong(Code.BLOCK_MAP, f"has an extent tree {header.eh_depth} deep")
        elif self._is_sound(header, header.eh_depth, len(raw), "its inode"):
            yield from self._node(raw, header)

    def _is_sound(self, header: ext4_extent_header, depth: int, room: int, where: str) -> bool:
        """Whether what follows a header can be made sense of."""
        most = (room - ext4_extent_header.SIZE) // ext4_extent.SIZE
        problem = ""
        if header.eh_magic != layout.EXTENT_MAGIC:
            problem = "has no magic"
        elif not most - 2 <= header.eh_max <= most:
            problem = f"has room for {header.eh_max} entries, where {most} fit"
        elif header.eh_entries > header.eh_max:
            problem = f"has {header.eh_entries} entries in room for {header.eh_max}"
        elif header.eh_depth != depth:
            problem = f"has the depth {header.eh_depth} where {depth} belongs"
        elif depth and not header.eh_entries:
            problem = "is an index without entries"
        if problem:
            self._wrong(Code.BLOCK_MAP, f"has an extent header in {where} that {problem}")
        return not problem

    def _node(self, raw: bytes, header: ext4_extent_header) -> Iterator[Run]:
        start = ext4_extent_header.SIZE
        entries = raw[start : start + header.eh_entries * ext4_extent.SIZE]
        if not header.eh_depth:
            yield from self._leaf(entries)
            return
        for key, low, high in ext4_extent_idx.STRUCT.iter_unpack(entries):
            block = low | high << 32
            if not self._walk.has_blocks(block):
                self._wrong(
                    Code.BLOCK_RANGE,
                    f"has the extent block {block}, which does not exist, at {key}",
                )
            elif key < self._next:
                self._wrong(Code.BLOCK_MAP, f"has extents out of order at {key}")
            else:
                yield Run(-1, block, 1)
                yield from self._child(block, key, header.eh_depth - 1)

    def _child(self, block: int, key: int, depth: int) -> Iterator[Run]:
        raw = self._walk.enter(block)
        if raw is None:
            return
        header = ext4_extent_header.decode(raw)
        if not self._is_sound(header, depth, len(raw), f"block {block}"):
            return
        self._check_checksum(raw, header, block)
        if header.eh_entries:
            # Both kinds of entry begin with their key.
            first = int.from_bytes(raw[ext4_extent_header.SIZE :][:4], "little")
            if first != key:
                self._wrong(
                    Code.BLOCK_MAP, f"has extents from {first} on where its index says {key}"
                )
                return
        yield from self._node(raw, header)

    def _check_checksum(self, raw: bytes, header: ext4_extent_header, block: int) -> None:
        if self._seed is None:
            return
        tail = ext4_extent_header.SIZE + header.eh_max * ext4_extent.SIZE
        if crc32c(self._seed, raw[:tail]) != int.from_bytes(raw[tail : tail + 4], "little"):
            self._wrong(Code.BLOCK_MAP_CHECKSUM, f"has a wrong checksum in extent block {block}")

    def _leaf(self, entries: bytes) -> Iterator[Run]:
        for logical, length, high, low in ext4_extent.STRUCT.iter_unpack(entries):
            written = length <= layout.EXTENT_WRITTEN_MAX
            count = length if written else length - layout.EXTENT_WRITTEN_MAX
            physical = low | high << 32
            if not count or logical + count > _LOGICAL_END:
                self._wrong(Code.BLOCK_MAP, f"has an extent of {count} blocks at {logical}")
            elif not self._walk.has_blocks(physical, count):
                self._wrong(
                    Code.BLOCK_RANGE,
                    f"has the extent {logical}+{count} at block {physical}, which does not exist",
                )
            elif logical < self._next:
                self._wrong(Code.BLOCK_MAP, f"has extents out of order at {logical}")
            else:
                self._next = logical + count
                yield Run(logical, physical, count, written)
