"""Where the structures of an image are, so that each kind can be damaged; and how to let their
checksums be right again afterwards ("lying checksums": what no accident makes, but an attacker)."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appliance.fsimage.ext4 import groups, layout
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.directory_block import seal_of as directory_seal
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.htree import IndexReader
from appliance.fsimage.ext4.index_changes import seal_of as index_seal
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.journal import ring_of
from appliance.fsimage.ext4.layout import ext4_extent_header
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from appliance.fsimage.ext4.xattr import block_of, seal_block
from tests.unit.fsimage.damage import MemoryDevice

Seal = Callable[[bytearray], None]
"""Makes the checksums in an image right that cover a structure."""


@dataclass(frozen=True)
class Structure:
    """One piece of metadata: bytes of the image."""

    kind: str
    offset: int
    length: int
    seal: Seal


class Structures:
    """Those of one sound image."""

    def __init__(self, raw: bytes) -> None:
        self.device = MemoryDevice(raw, reads_max=1_000_000)
        self.volume = Volume(self.device, Superblock.read(self.device), "image")
        self.bits = self.volume.block_bits
        self.maps = BlockMaps(self.volume)
        self.all = list(self._find())

    def of_kind(self, kind: str) -> list[Structure]:
        return [each for each in self.all if each.kind == kind]

    @property
    def kinds(self) -> list[str]:
        return sorted({each.kind for each in self.all})

    def _find(self) -> Iterator[Structure]:
        yield Structure("superblock", layout.SUPERBLOCK_OFFSET, 0x280, seal_superblock)
        for index in range(self.volume.superblock.groups_count):
            yield from self._of_group(index)
        for number in self._inodes_in_use():
            yield from self._of_inode(number)
        if self.volume.superblock.has_journal:
            at = ring_of(self.volume).physical(0) << self.bits
            yield Structure("journal superblock", at, 0x100, lambda raw: seal_journal(raw, at))

    def _of_group(self, index: int) -> Iterator[Structure]:
        volume, group = self.volume, self.volume.group(index)
        disk = volume.superblock.disk

        def seal(raw: bytearray) -> None:
            self._seal_group(raw, index)

        at, size = self._descriptor(index)
        yield Structure("group descriptor", at, size, seal)
        at = groups.block_bitmap_of(group) << self.bits
        yield Structure("block bitmap", at, disk.s_blocks_per_group >> 3, seal)
        at = groups.inode_bitmap_of(group) << self.bits
        yield Structure("inode bitmap", at, disk.s_inodes_per_group >> 3, seal)

    def _descriptor(self, index: int) -> tuple[int, int]:
        superblock = self.volume.superblock
        size = superblock.desc_bytes
        block, inside = divmod(index, superblock.block_bytes // size)
        return (superblock.descriptor_block(block) << self.bits) + inside * size, size

    def _seal_group(self, raw: bytearray, index: int) -> None:
        """The checksums of both bitmaps in the descriptor, and its own."""
        volume, group = self.volume, self.volume.group(index)
        disk = volume.superblock.disk
        at, size = self._descriptor(index)
        if volume.has_metadata_csum:
            for place, count, low, high in (
                (groups.block_bitmap_of(group), disk.s_blocks_per_group, 0x18, 0x38),
                (groups.inode_bitmap_of(group), disk.s_inodes_per_group, 0x1A, 0x3A),
            ):
                start = place << self.bits
                value = crc32c(volume.seed, bytes(raw[start : start + (count >> 3)]))
                struct.pack_into("<H", raw, at + low, value & 0xFFFF)
                if size >= 64:
                    struct.pack_into("<H", raw, at + high, value >> 16)
        if volume.has_metadata_csum or volume.superblock.has_gdt_csum:
            checksum = volume.group_checksum(index, bytes(raw[at : at + size]))
            struct.pack_into("<H", raw, at + layout.BG_CHECKSUM_OFFSET, checksum)

    def _inodes_in_use(self) -> Iterator[int]:
        for number in range(1, self.volume.superblock.disk.s_inodes_count + 1):
            if number in (layout.EXT4_ROOT_INO, layout.EXT4_JOURNAL_INO) or (
                number >= self.volume.superblock.first_inode and self.volume.inode_in_use(number)
            ):
                yield number

    def _of_inode(self, number: int) -> Iterator[Structure]:
        volume = self.volume
        if number == layout.EXT4_JOURNAL_INO and not volume.superblock.has_journal:
            return
        inode = inodes.read_any(volume, number, unlinked=True)
        block, offset = inode.place
        at, size = (block << self.bits) + offset, volume.superblock.inode_bytes

        def seal(raw: bytearray) -> None:
            seal_inode(volume, raw, number, at)

        yield Structure("inode", at, size, seal)
        number_of_attributes = block_of(volume, inode.disk)
        if number_of_attributes:

            def seal_attributes(raw: bytearray) -> None:
                self._in_block(raw, number_of_attributes, self._attribute_seal)

            at = number_of_attributes << self.bits
            yield Structure("xattr block", at, volume.block_bytes, seal_attributes)
        kind = inode.disk.i_mode >> 12
        if kind in (4, 8) or (kind == 10 and inode.size >= 60):
            yield from self._of_map(inode)
        if kind == 4:
            yield from self._of_directory(inode)

    def _attribute_seal(self, number: int, block: bytearray) -> None:
        seal_block(self.volume, number, block)

    def _in_block(self, raw: bytearray, number: int, act: Callable[[int, bytearray], None]) -> None:
        start, end = number << self.bits, number + 1 << self.bits
        block = bytearray(raw[start:end])
        act(number, block)
        raw[start:end] = block

    def _of_map(self, inode: Inode) -> Iterator[Structure]:
        self.device.metadata.clear()  # what is read from here on are the blocks of the map
        self.maps.of(inode).extents(0, (inode.size >> self.bits) + 1)
        has_extents = inode.has_flag(layout.EXTENTS_FL)
        seed = inode.seed(self.volume)

        def act(_: int, block: bytearray) -> None:
            if has_extents and self.volume.has_metadata_csum:
                seal_extents(seed, block)

        for at, length in sorted(self.device.metadata):

            def seal(raw: bytearray, number: int = at >> self.bits) -> None:
                self._in_block(raw, number, act)

            yield Structure("extent block" if has_extents else "indirect block", at, length, seal)

    def _of_directory(self, inode: Inode) -> Iterator[Structure]:
        volume = self.volume
        seed, count = inode.seed(volume), inode.size >> self.bits
        block_map = self.maps.of(inode)

        def physical(logical: int) -> int:
            extent = block_map.find(logical)
            return extent.physical + logical - extent.logical

        index_blocks: dict[int, int] = {}
        if inode.has_flag(layout.INDEX_FL):
            reader = IndexReader(
                volume, inode.number, seed, count, lambda at: volume.block(physical(at))
            )
            leaves = set(reader.read().leaves)
            for logical in set(range(count)) - leaves:
                index_blocks[logical] = (
                    layout.DX_NODE_ENTRIES_OFFSET if logical else layout.DX_ROOT_ENTRIES_OFFSET
                )
        for logical in range(count):
            entries_at = index_blocks.get(logical)
            kind = "directory block" if entries_at is None else "directory index"
            put = (
                self._entries_seal(seed)
                if entries_at is None
                else self._index_seal(seed, entries_at)
            )
            number = physical(logical)

            def seal(
                raw: bytearray,
                number: int = number,
                put: Callable[[bytearray], None] = put,
            ) -> None:
                self._in_block(raw, number, lambda _, block: put(block))

            yield Structure(kind, number << self.bits, volume.block_bytes, seal)

    def _entries_seal(self, seed: int) -> Callable[[bytearray], None]:
        sealed = directory_seal(self.volume, seed)

        def seal(block: bytearray) -> None:
            if sealed is not None:
                block[:] = sealed(bytes(block))

        return seal

    def _index_seal(self, seed: int, entries_at: int) -> Callable[[bytearray], None]:
        """A damaged head may say that the checksum is beyond the end: then there is none."""
        put = index_seal(self.volume, seed, entries_at)

        def seal(block: bytearray) -> None:
            limit, count = struct.unpack_from("<HH", block, entries_at)
            if count <= limit <= (len(block) - entries_at) // 8 - 1:
                put(block)

        return seal


# --- checksums ---------------------------------------------------------------


def seal_superblock(raw: bytearray) -> None:
    at = layout.SUPERBLOCK_OFFSET
    (ro_compat,) = struct.unpack_from("<I", raw, at + 0x64)
    if ro_compat & layout.RO_COMPAT_METADATA_CSUM:
        checksum = superblock_checksum(bytes(raw[at : at + SUPERBLOCK_BYTES]))
        struct.pack_into("<I", raw, at + layout.S_CHECKSUM_OFFSET, checksum)


def seal_inode(volume: Volume, raw: bytearray, number: int, at: int) -> None:
    """With whatever generation it has now."""
    if not volume.has_metadata_csum:
        return
    size = volume.superblock.inode_bytes
    (generation,) = struct.unpack_from("<I", raw, at + layout.I_GENERATION_OFFSET)
    (extra,) = struct.unpack_from("<H", raw, at + 128) if size > 128 else (0,)
    low, high = at + layout.I_CHECKSUM_LO_OFFSET, at + layout.I_CHECKSUM_HI_OFFSET
    has_high = extra >= layout.I_CHECKSUM_HI_OFFSET + 2 - layout.GOOD_OLD_INODE_SIZE
    raw[low : low + 2] = b"\0\0"
    if has_high:
        raw[high : high + 2] = b"\0\0"
    checksum = crc32c(volume.inode_seed(number, generation), bytes(raw[at : at + size]))
    struct.pack_into("<H", raw, low, checksum & 0xFFFF)
    if has_high:
        struct.pack_into("<H", raw, high, checksum >> 16)


def seal_extents(seed: int, block: bytearray) -> None:
    """A damaged header may say that the checksum is beyond the end: then there is none."""
    tail = ext4_extent_header.SIZE + 12 * ext4_extent_header.decode(block).eh_max
    if tail + 4 <= len(block):
        struct.pack_into("<I", block, tail, crc32c(seed, bytes(block[:tail])))


def seal_journal(raw: bytearray, at: int) -> None:
    (features,) = struct.unpack_from(">I", raw, at + 0x28)
    if features & (layout.JBD2_FEATURE_INCOMPAT_CSUM_V2 | layout.JBD2_FEATURE_INCOMPAT_CSUM_V3):
        raw[at + 0xFC : at + 0x100] = bytes(4)
        checksum = crc32c(0xFFFF_FFFF, bytes(raw[at : at + 1024]))
        struct.pack_into(">I", raw, at + 0xFC, checksum)


# --- damage ------------------------------------------------------------------


def damage(structures: Structures, raw: bytearray, kind: str, chance: random.Random) -> Structure:
    """Change some bits, or some words to what is likely to matter, in a structure of this kind."""
    structure = chance.choice(structures.of_kind(kind))
    blocks = structures.volume.superblock.blocks_count
    for _ in range(chance.choice([1, 1, 2, 4])):
        near = min(structure.length, chance.choice([32, 64, structure.length]))
        at = structure.offset + chance.randrange(near)
        if chance.random() < 0.5:
            raw[at] ^= 1 << chance.randrange(8)
            continue
        some = chance.randrange(blocks), chance.randrange(blocks), chance.getrandbits(32)
        value = chance.choice([0, 1, 2, 11, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, *some])
        if chance.random() < 0.3:
            struct.pack_into("<H", raw, at & ~1, value & 0xFFFF)
        else:
            struct.pack_into("<I", raw, at & ~3, value)
    return structure
