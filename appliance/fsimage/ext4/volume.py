"""What everything in an ext4 file system is read through: verified metadata blocks.

A Volume is a device with a superblock: it knows where the inode of a number is, which block numbers
can exist, and remembers blocks. Whoever asks for a block checks what is in it, because only he
knows what it should be; `damaged` makes the error, and the sentence in the log.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from appliance import image_limits
from appliance.fsimage.device import BlockDevice
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.crc import crc16, crc32c
from appliance.fsimage.ext4.layout import ext4_group_desc
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.transfers import Transfers
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError

if TYPE_CHECKING:
    from appliance.fsimage.ext4.inode import Inode


class OwnBlocks(Protocol):
    """Which blocks the file system has for itself (groups.Metadata)."""

    def is_in(self, first: int, count: int) -> bool:
        """Whether some of these are of it."""


LateSeal = Callable[[bytes], bytes]
"""Gives a block with its checksum in it. Of one that has it already: the same."""


class Unfinished:
    """What operations have changed in the running transaction, and is not in its block yet: that
    is done when the transaction is closed (finishing.py)."""

    __slots__ = ("groups", "inodes", "seals", "tables")

    def __init__(self) -> None:
        self.inodes: Final[dict[int, Inode]] = {}
        self.groups: Final[dict[int, ext4_group_desc]] = {}
        self.tables: Final[dict[int, bytes]] = {}
        """The blocks into which they will be put, as they were when the first of them changed."""
        self.seals: Final[dict[int, LateSeal]] = {}
        """What puts their checksums into blocks that are published without. It is known before the
        block is, and until it is known with its checksum: see Volume.sealed."""

    def clear(self) -> None:
        """All that is in its block now."""
        self.inodes.clear()
        self.groups.clear()
        self.tables.clear()
        self.seals.clear()


class Volume:
    """A device, its superblock, and the metadata blocks read from it.

    Two kinds of damage. What is wrong with one file, directory or inode is an error of that object
    (`damaged`). What is wrong with something that belongs to all, such as a bitmap, is not to be
    trusted any more (`distrusted`): whoever writes is told, and stops.
    """

    def __init__(self, device: BlockDevice, superblock: Superblock, name: str) -> None:
        self.device: Final = device
        self.superblock: Final = superblock
        self.name: Final = name
        self.block_bits: Final = superblock.block_bits
        self.block_bytes: Final = superblock.block_bytes
        self.has_metadata_csum: Final = superblock.has_metadata_csum
        self.seed: Final = superblock.checksum_seed
        self._first_block: Final = superblock.disk.s_first_data_block
        self._blocks: Final[Cache[int, bytes]] = Cache(image_limits.METADATA_CACHE_BYTES_MAX, len)
        self._groups: Final[Cache[int, ext4_group_desc]] = Cache(image_limits.GROUPS_CACHE_MAX)
        self._inodes_per_group: Final = superblock.disk.s_inodes_per_group
        self._inode_bytes: Final = superblock.inode_bytes
        self._inode_tables: Final[dict[int, int]] = {}
        self._group_seeds: Final[dict[int, int]] = {}
        self._descriptor_places: Final[dict[int, tuple[int, int]]] = {}
        self.has_uninit_groups: Final = superblock.has_metadata_csum or superblock.has_gdt_csum
        """Whether the flags of groups, and their counts of unused inodes, mean something."""
        self._complaints: Final[set[str]] = set()
        self.transfers: Final = Transfers()
        self.unwritten: Final[dict[int, bytes]] = {}
        """Blocks that were changed, and have not come to their place on the device yet."""
        self._arrivals = 0
        """How often blocks have come to their places."""
        self.unfinished: Final = Unfinished()
        self.own_blocks: OwnBlocks | None = None
        """Known where it is written."""
        self.distrust: Callable[[str], None] = _nobody_writes
        """Told what cannot be trusted any more."""

    # Blocks.

    def has_blocks(self, first: int, count: int = 1) -> bool:
        """Whether these block numbers can hold something."""
        return self._first_block <= first and first + count <= self.superblock.blocks_count

    def may_be_in_file(self, first: int, count: int = 1) -> bool:
        """Whether a file may have these blocks: they exist, and are not the file system's own."""
        own = self.own_blocks
        return self.has_blocks(first, count) and (own is None or not own.is_in(first, count))

    def block(self, number: int) -> bytes:
        """A metadata block. It is never changed: who wants to, makes another one."""
        return self.unwritten.get(number) or self._blocks.get(number) or self._read_block(number)

    def _read_block(self, number: int) -> bytes:
        """A block as the device has it. Meanwhile it may be changed, and may even come to its place
        and be put into the cache: what was read before that must not take its place there."""
        if not 0 <= number < self.superblock.blocks_count:
            raise self.damaged(f"block {number}", "is beyond the end")
        while True:
            arrivals = self._arrivals
            block = self.device.read(number << self.block_bits, self.block_bytes)
            self._blocks.put(number, block)
            if arrivals == self._arrivals:
                return block
            self._blocks.forget(number)
            newer = self.unwritten.get(number)
            if newer is not None:
                return newer

    def sealed(self, number: int) -> bytes:
        """The same with its checksum, for whoever verifies it."""
        seals = self.unfinished.seals
        while True:
            seal = seals.get(number)
            block = self.block(number)
            if seals.get(number) is seal:  # else it was published, or sealed, in between
                return block if seal is None else seal(block)

    def publish(self, blocks: Mapping[int, bytes]) -> None:
        """From now on these are the contents of these blocks, whatever the device has."""
        self.unwritten.update(blocks)

    def written(self, blocks: Mapping[int, bytes]) -> None:
        """These have come to the device."""
        self._arrivals += 1
        unwritten = self.unwritten
        for number, block in blocks.items():
            if unwritten.get(number) is block:
                self._blocks.put(number, block)
                unwritten.pop(number, None)

    def forget(self, first: int, count: int) -> None:
        """These blocks have no metadata any more."""
        for number in range(first, first + count):
            self.unwritten.pop(number, None)
            self._blocks.forget(number)

    def damaged(self, what: str, how: str) -> VfsError:
        """The error to raise for something that is not as it should be; it is logged once."""
        sentence = f"{self.name}: {what} {how}"
        if sentence not in self._complaints and len(self._complaints) < image_limits.COMPLAINTS_MAX:
            self._complaints.add(sentence)
            log.warning("%s", sentence)
        return VfsError(Code.IO, sentence)

    def distrusted(self, what: str, how: str) -> VfsError:
        """The same for something that belongs to all: nothing more is written."""
        error = self.damaged(what, how)
        self.distrust(error.detail)
        return error

    # Block groups.

    def group(self, index: int) -> ext4_group_desc:
        """The descriptor of a block group."""
        group = self.unfinished.groups.get(index) or self._groups.get(index)
        if group is None:
            group = self._read_group(index)
            self._groups.put(index, group)
        return group

    def descriptor_place(self, index: int) -> tuple[int, int]:
        """Block and offset in it of the descriptor of a group."""
        place = self._descriptor_places.get(index)
        if place is None:
            if len(self._descriptor_places) >= image_limits.GROUPS_CACHE_MAX:
                self._descriptor_places.clear()
            size = self.superblock.desc_bytes
            at, inside = divmod(index, self.block_bytes // size)
            place = self.superblock.descriptor_block(at), inside * size
            self._descriptor_places[index] = place
        return place

    def _read_group(self, index: int) -> ext4_group_desc:
        superblock = self.superblock
        number, offset = self.descriptor_place(index)
        raw = self.block(number)[offset : offset + superblock.desc_bytes]
        group = ext4_group_desc.decode(raw[:64].ljust(64, b"\0"))
        if self.has_uninit_groups and group.bg_checksum != self.group_checksum(index, raw):
            raise self.distrusted(f"group descriptor {index}", "has a wrong checksum")
        table_bytes = superblock.disk.s_inodes_per_group * superblock.inode_bytes
        table_blocks = table_bytes + self.block_bytes - 1 >> self.block_bits
        if not self.has_blocks(inode_table_of(group), table_blocks):
            raise self.distrusted(f"group descriptor {index}", "has its inode table out of range")
        return group

    def group_checksum(self, index: int, raw: bytes) -> int:
        """What bg_checksum of the descriptor `raw` has to be."""
        at = layout.BG_CHECKSUM_OFFSET
        if self.has_metadata_csum:
            seed = self._group_seeds.get(index)
            if seed is None:
                seed = self._group_seed(index)
            return crc32c(seed, raw[:at] + b"\0\0" + raw[at + 2 :]) & 0xFFFF
        number, uuid = struct.pack("<I", index), self.superblock.disk.s_uuid
        return crc16(0xFFFF, uuid + number + raw[:at] + raw[at + 2 :])

    def _group_seed(self, index: int) -> int:
        if len(self._group_seeds) >= image_limits.GROUPS_CACHE_MAX:
            self._group_seeds.clear()
        seed = self._group_seeds[index] = crc32c(self.seed, struct.pack("<I", index))
        return seed

    # Inodes.

    def inode_location(self, number: int) -> tuple[int, int]:
        """Block and offset in it of an inode; `number` is one that exists."""
        index, at = divmod(number - 1, self._inodes_per_group)
        table = self._inode_tables.get(index) or self._inode_table(index)
        offset = at * self._inode_bytes
        return table + (offset >> self.block_bits), offset & self.block_bytes - 1

    def _inode_table(self, index: int) -> int:
        """The first block of a group's part of the inode table, which never changes."""
        if len(self._inode_tables) >= image_limits.GROUPS_CACHE_MAX:
            self._inode_tables.clear()
        table = self._inode_tables[index] = inode_table_of(self.group(index))
        return table

    def inode_in_use(self, number: int) -> bool:
        """What the inode bitmap says; `number` is one that exists."""
        per_group = self.superblock.disk.s_inodes_per_group
        index, at = divmod(number - 1, per_group)
        group = self.group(index)
        if group.bg_flags & layout.BG_INODE_UNINIT and self.has_uninit_groups:
            return False
        bitmap = self.block(group.bg_inode_bitmap_lo | group.bg_inode_bitmap_hi << 32)
        if self.has_metadata_csum and index not in self.unfinished.groups:
            expected = group.bg_inode_bitmap_csum_lo | group.bg_inode_bitmap_csum_hi << 16
            if self.bitmap_checksum(bitmap[: per_group + 7 >> 3]) != expected:
                raise self.distrusted(f"inode bitmap of group {index}", "has a wrong checksum")
        return bool(bitmap[at >> 3] >> (at & 7) & 1)

    def bitmap_checksum(self, bits: bytes) -> int:
        """Of a bitmap: as much of it as a descriptor has room for."""
        checksum = crc32c(self.seed, bits)
        return checksum if self.superblock.desc_bytes >= ext4_group_desc.SIZE else checksum & 0xFFFF

    def inode_seed(self, number: int, generation: int) -> int:
        """The seed for the checksums of everything that belongs to one inode."""
        return crc32c(self.seed, struct.pack("<II", number, generation))

    # How full it is.

    def free_blocks_and_inodes(self) -> tuple[int, int]:
        """Sums over the groups, as the kernel and e2fsck have it: the superblock's own counts are
        brought up to date only now and then. They count where the groups are too many."""
        disk = self.superblock.disk
        if self.superblock.groups_count > image_limits.WRITABLE_GROUPS_MAX:
            high = disk.s_free_blocks_count_hi if self.superblock.is_64bit else 0
            return disk.s_free_blocks_count_lo | high << 32, disk.s_free_inodes_count
        blocks = inodes = 0
        for index in range(self.superblock.groups_count):
            group = self.group(index)
            blocks += group.bg_free_blocks_count_lo | group.bg_free_blocks_count_hi << 16
            inodes += group.bg_free_inodes_count_lo | group.bg_free_inodes_count_hi << 16
        return blocks * self.superblock.cluster_blocks, inodes


def _nobody_writes(reason: str) -> None:
    """Nobody has to be told."""


def inode_table_of(group: ext4_group_desc) -> int:
    """The first block of a group's part of the inode table."""
    return group.bg_inode_table_lo | group.bg_inode_table_hi << 32
