"""The ring of blocks that a journal is, and what is in its blocks (kernel document: "Journal
(jbd2)", Layout).

Both who replays a journal (recovery.py) and who writes one (log.py) see it through this.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from appliance import image_limits
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.extents import BlockMap
from appliance.fsimage.ext4.layout import (
    jbd2_journal_revoke_header_t,
    journal_block_tag3_t,
    journal_block_tag_t,
    journal_header_t,
    journal_superblock_t,
)
from appliance.fsimage.ext4.volume import Volume

_KNOWN: Final = (
    layout.JBD2_FEATURE_INCOMPAT_REVOKE
    | layout.JBD2_FEATURE_INCOMPAT_64BIT
    | layout.JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT
    | layout.JBD2_FEATURE_INCOMPAT_CSUM_V2
    | layout.JBD2_FEATURE_INCOMPAT_CSUM_V3
    | layout.JBD2_FEATURE_INCOMPAT_FAST_COMMIT
)

CRC32C: Final = 4
TAIL_BYTES: Final = 4
UUID_BYTES: Final = 16

_USE_E2FSCK: Final = "e2fsck -fy repairs it, at the cost of what cannot be replayed; take a copy"


@dataclass(slots=True)
class Copy:
    """Where in the ring a copy of a block is, and what its tag says of it."""

    position: int
    sequence: int
    escaped: bool
    checksum: int


class Ring:
    """The blocks of the journal, and the checksums of what is in them."""

    def __init__(self, volume: Volume, block_map: BlockMap, size: int) -> None:
        self._volume: Final = volume
        self._map: Final = block_map
        raw = self.block(0)
        self._raw: Final = raw[: journal_superblock_t.SIZE]
        self.superblock: Final = journal_superblock_t.decode(raw)
        features = self.superblock.s_feature_incompat
        self.checksum_version = self._checksum_version(features)
        self.is_64bit = bool(features & layout.JBD2_FEATURE_INCOMPAT_64BIT)
        self._check(raw, size >> volume.block_bits)
        self.seed: Final = crc32c(MASK32, self.superblock.s_uuid)
        self.first: Final = self.superblock.s_first
        self.end: Final = self.superblock.s_maxlen - self._fast_commit_blocks
        if not 0 < self.first < self.end:
            raise refused(f"its log is from block {self.first} to {self.end}")
        if self.superblock.s_start and not self.first <= self.superblock.s_start < self.end:
            raise refused("its log begins outside of it")

    def _checksum_version(self, features: int) -> int:
        if features & layout.JBD2_FEATURE_INCOMPAT_CSUM_V3:
            return 3
        if features & layout.JBD2_FEATURE_INCOMPAT_CSUM_V2:
            return 2
        return int(bool(self.superblock.s_feature_compat & layout.JBD2_FEATURE_COMPAT_CHECKSUM))

    def _check(self, raw: bytes, blocks: int) -> None:
        """ImageError if this is not a journal that can be replayed here."""
        head = self.superblock
        if head.h_magic != layout.JBD2_MAGIC or head.h_blocktype not in (
            layout.JBD2_SUPERBLOCK_V1,
            layout.JBD2_SUPERBLOCK_V2,
        ):
            raise refused("it has no superblock")
        if self.checksum_version >= 2:
            covered = raw[:0xFC] + b"\0\0\0\0" + raw[0x100 : journal_superblock_t.SIZE]
            if head.s_checksum_type != CRC32C or head.s_checksum != crc32c(MASK32, covered):
                raise refused("the checksum of its superblock is wrong")
        unknown = head.s_feature_incompat & ~_KNOWN
        if unknown:
            raise refused(f"it has features that are not known here ({unknown:#x})")
        if head.s_blocksize != self._volume.block_bytes or head.s_maxlen > blocks:
            raise refused(f"it has {blocks} blocks, but says {head.s_maxlen}")
        if head.s_maxlen > image_limits.JOURNAL_BLOCKS_MAX:
            raise refused(f"it has {head.s_maxlen} blocks, more than any there is")

    @property
    def _fast_commit_blocks(self) -> int:
        if not self.superblock.s_feature_incompat & layout.JBD2_FEATURE_INCOMPAT_FAST_COMMIT:
            return 0
        return self.superblock.s_num_fc_blks or layout.JBD2_FAST_COMMIT_BLOCKS

    def physical(self, position: int) -> int:
        """Where on the device a block of the ring is."""
        extent = self._map.find(position)
        if not extent.physical:
            raise refused(f"it has a hole at block {position}")
        return extent.physical + position - extent.logical

    def run(self, position: int) -> tuple[int, int]:
        """Where a block of the ring is, and how many follow it there, itself included."""
        extent = self._map.find(position)
        if not extent.physical:
            raise refused(f"it has a hole at block {position}")
        skipped = position - extent.logical
        return extent.physical + skipped, min(extent.end, self.end) - position

    def block(self, position: int) -> bytes:
        """A block of the ring."""
        start = self.physical(position) << self._volume.block_bits
        return self._volume.device.read(start, self._volume.block_bytes)

    def check_empty(self) -> None:
        """ImageError: it has something in it, which was not replayed."""
        if self.superblock.s_start:
            raise refused("there is something in it, though the file system was unmounted")

    def check_room(self) -> None:
        """ImageError: nothing can be written to it. There has to be room, in blocks that are all
        there, each of them once."""
        problem = ""
        if self.end - self.first < image_limits.JOURNAL_BLOCKS_MIN:
            problem = f"its log has {self.end - self.first} blocks"
        end = 0
        for extent in sorted(self._map.extents(0, self.end), key=lambda each: each.physical):
            if not extent.physical or extent.physical < end:
                problem = f"it has a hole, or a block twice, at block {extent.logical}"
            end = extent.physical + extent.count
        if problem:
            raise ImageError(f"the journal cannot be written: {problem}", _USE_E2FSCK)

    def prepare_to_write(self, *, checksums: bool, wide: bool) -> None:
        """Set the features with which transactions are written from now on, as the kernel does."""
        head = self.superblock
        features = head.s_feature_incompat | layout.JBD2_FEATURE_INCOMPAT_REVOKE
        features &= ~(
            layout.JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT
            | layout.JBD2_FEATURE_INCOMPAT_CSUM_V2
            | layout.JBD2_FEATURE_INCOMPAT_CSUM_V3
        )
        if wide:
            features |= layout.JBD2_FEATURE_INCOMPAT_64BIT
        if checksums:
            features |= layout.JBD2_FEATURE_INCOMPAT_CSUM_V3
        head.s_feature_compat &= ~layout.JBD2_FEATURE_COMPAT_CHECKSUM
        head.s_feature_incompat = features
        head.s_checksum_type = CRC32C if checksums else 0
        head.h_blocktype = layout.JBD2_SUPERBLOCK_V2
        head.s_errno = 0
        self.checksum_version = self._checksum_version(features)
        self.is_64bit = bool(features & layout.JBD2_FEATURE_INCOMPAT_64BIT)

    def pointing_to(self, start: int, sequence: int) -> bytes:
        """The superblock of the journal, where the log begins at `start` (0: it is empty)."""
        head = self.superblock
        head.s_start, head.s_sequence, head.s_checksum = start, sequence, 0
        raw = bytearray(self._raw)
        head.encode_into(raw, 0)
        if self.checksum_version >= 2:
            head.s_checksum = crc32c(MASK32, bytes(raw))
            head.encode_into(raw, 0)
        return bytes(raw)

    def after(self, position: int) -> int:
        """The position after `position`."""
        position += 1
        return position if position < self.end else self.first

    def tail_is_right(self, raw: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revoke block is right."""
        if self.checksum_version < 2:
            return True
        found = int.from_bytes(raw[-TAIL_BYTES:], "big")
        return found == crc32c(self.seed, raw[:-TAIL_BYTES] + bytes(TAIL_BYTES))

    @property
    def tag_bytes(self) -> int:
        """The length of a tag. (Version 2 has two bytes more than it uses.)"""
        if self.checksum_version == 3:
            return journal_block_tag3_t.SIZE
        high = 4 if self.is_64bit else 0
        return journal_block_tag_t.SIZE + high + (2 if self.checksum_version == 2 else 0)

    def tags(self, raw: bytes) -> list[tuple[int, int, int]]:
        """The tags of a descriptor block: block number, flags, checksum."""
        found = []
        at = journal_header_t.SIZE
        end = len(raw) - (TAIL_BYTES if self.checksum_version >= 2 else 0)
        flags = 0
        while at + self.tag_bytes <= end and not flags & layout.JBD2_FLAG_LAST_TAG:
            block, flags, checksum = self._tag(raw, at)
            found.append((block, flags, checksum))
            at += self.tag_bytes
            if not flags & layout.JBD2_FLAG_SAME_UUID:
                at += UUID_BYTES
        return found

    def _tag(self, raw: bytes, at: int) -> tuple[int, int, int]:
        if self.checksum_version == 3:
            tag3 = journal_block_tag3_t.decode(raw, at)
            high = tag3.t_blocknr_high if self.is_64bit else 0
            return tag3.t_blocknr | high << 32, tag3.t_flags, tag3.t_checksum
        tag = journal_block_tag_t.decode(raw, at)
        block = tag.t_blocknr
        if self.is_64bit:
            block |= int.from_bytes(raw[at + tag.SIZE : at + tag.SIZE + 4], "big") << 32
        return block, tag.t_flags, tag.t_checksum

    def revoked(self, raw: bytes) -> tuple[int, ...]:
        """The block numbers in a revoke block."""
        start = jbd2_journal_revoke_header_t.SIZE
        end = min(jbd2_journal_revoke_header_t.decode(raw).r_count, len(raw))
        size, letter = (8, "Q") if self.is_64bit else (4, "I")
        return struct.unpack_from(f">{max(0, end - start) // size}{letter}", raw, start)

    def contents(self, copy: Copy) -> bytes:
        """The block of which `copy` is one (J5)."""
        raw = self.block(copy.position)
        if self.checksum_version >= 2:
            sequence = struct.pack(">I", copy.sequence)
            checksum = crc32c(crc32c(self.seed, sequence), raw)
            if copy.checksum != (checksum if self.checksum_version == 3 else checksum & 0xFFFF):
                raise refused(f"block {copy.position} of it has a wrong checksum")
        if copy.escaped:
            raw = struct.pack(">I", layout.JBD2_MAGIC) + raw[4:]
        return raw


def refused(why: str) -> ImageError:
    """The error for a journal that is left alone."""
    return ImageError(f"the journal cannot be replayed: {why}", _USE_E2FSCK)
