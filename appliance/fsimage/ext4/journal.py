"""What a crash left in the journal, replayed (kernel document: "Journal (jbd2)").

The journal is a ring of blocks in a file of its own. A transaction in it is: descriptor blocks,
each followed by copies of the blocks that it names; revoke blocks, which name blocks whose older
copies are not to be replayed; and a commit block.

What recovery rests on:

J1  A transaction counts if its commit block is there, with the right checksum. The first that is
    not there ends the log, whatever stands behind it.
J2  The transactions of a log have consecutive numbers, beginning with s_sequence at s_start. A
    block with another number is left over from an earlier turn of the ring.
J3  A block that transaction n revokes is not replayed from n or from anything before n.
J4  Of several copies of a block, the last one counts.
J5  A copy that began with the journal's magic has zeros in its place, and its tag says so.
J6  A scan ends: it never reads more blocks than the ring has.
J7  Nothing is written below the overlay: the image stays as the crash left it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from appliance.fsimage.device import Overlay
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode, layout
from appliance.fsimage.ext4.crc import MASK32, crc32_be, crc32c
from appliance.fsimage.ext4.extents import BlockMap, BlockMaps
from appliance.fsimage.ext4.layout import (
    commit_header,
    jbd2_journal_revoke_header_t,
    journal_block_tag3_t,
    journal_block_tag_t,
    journal_header_t,
    journal_superblock_t,
)
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from appliance.trace import log

_KNOWN: Final = (
    layout.JBD2_FEATURE_INCOMPAT_REVOKE
    | layout.JBD2_FEATURE_INCOMPAT_64BIT
    | layout.JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT
    | layout.JBD2_FEATURE_INCOMPAT_CSUM_V2
    | layout.JBD2_FEATURE_INCOMPAT_CSUM_V3
    | layout.JBD2_FEATURE_INCOMPAT_FAST_COMMIT
)

_CRC32C: Final = 4
_TAIL_BYTES: Final = 4
_UUID_BYTES: Final = 16
_FAST_COMMIT_HEAD: Final = struct.Struct("<HHII")
"""The first thing in the area of fast commits: tag, length, features, transaction."""
_FAST_COMMIT_HEAD_TAG: Final = 9

_USE_E2FSCK: Final = "e2fsck -fy repairs it, at the cost of what cannot be replayed; take a copy"


def recover(volume: Volume, overlay: Overlay) -> None:
    """Replay the journal of `volume` into `overlay`, which lies above the device of `volume`, and
    mark the file system there as one that needs no recovery."""
    number = volume.superblock.disk.s_journal_inum
    if not volume.superblock.disk.s_feature_compat & layout.COMPAT_HAS_JOURNAL or not number:
        raise ImageError(
            "the file system was not unmounted, and its journal is on another device",
            "mount it once on the machine that has the journal",
        )
    of_journal = inode.read_any(volume, number)
    ring = Ring(volume, BlockMaps(volume).of(of_journal), of_journal.size)
    last = ring.superblock.s_sequence
    if ring.superblock.s_start:
        scan = Scan(ring)
        scan.run()
        scan.check_fast_commits()
        for block, copy in sorted(scan.copies.items()):
            if block >= volume.superblock.blocks_count:
                raise _refused(f"it has a copy of block {block}, which cannot be")
            overlay.write(block << volume.block_bits, [ring.contents(copy)])
        last = scan.sequence
        log.info("%s: replayed %d blocks of the journal", volume.name, len(scan.copies))
    _mark_clean(volume, overlay, ring, last + 1)


def _mark_clean(volume: Volume, overlay: Overlay, ring: Ring, sequence: int) -> None:
    """Both superblocks, as they are after a recovery. (While it is mounted, the kernel counts what
    is free in the groups only.)"""
    raw = bytearray(overlay.read(layout.SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES))
    superblock = Superblock.parse(bytes(raw))
    blocks, inodes = Volume(overlay, superblock, volume.name).free_blocks_and_inodes()
    disk = superblock.disk
    disk.s_free_blocks_count_lo, disk.s_free_blocks_count_hi = blocks & MASK32, blocks >> 32
    disk.s_free_inodes_count = inodes
    disk.s_feature_incompat &= ~layout.INCOMPAT_RECOVER
    disk.encode_into(raw, 0)
    if volume.has_metadata_csum:
        disk.s_checksum = superblock_checksum(bytes(raw))
        disk.encode_into(raw, 0)
    overlay.write(layout.SUPERBLOCK_OFFSET, [raw])

    head = bytearray(ring.block(0)[: journal_superblock_t.SIZE])
    of_ring = ring.superblock
    of_ring.s_start, of_ring.s_sequence = 0, sequence & MASK32
    of_ring.s_checksum = 0
    of_ring.encode_into(head, 0)
    if ring.checksum_version >= 2:
        of_ring.s_checksum = crc32c(MASK32, bytes(head))
        of_ring.encode_into(head, 0)
    overlay.write(ring.physical(0) << volume.block_bits, [head])


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
        self.superblock: Final = journal_superblock_t.decode(raw)
        features = self.superblock.s_feature_incompat
        self.checksum_version: Final = self._checksum_version(features)
        self.is_64bit: Final = bool(features & layout.JBD2_FEATURE_INCOMPAT_64BIT)
        self._check(raw, size >> volume.block_bits)
        self.seed: Final = crc32c(MASK32, self.superblock.s_uuid)
        self.first: Final = self.superblock.s_first
        self.end: Final = self.superblock.s_maxlen - self._fast_commit_blocks
        if not 0 < self.first <= self.superblock.s_start < self.end and self.superblock.s_start:
            raise _refused("its log begins outside of it")

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
            raise _refused("it has no superblock")
        if self.checksum_version >= 2:
            covered = raw[:0xFC] + b"\0\0\0\0" + raw[0x100 : journal_superblock_t.SIZE]
            if head.s_checksum_type != _CRC32C or head.s_checksum != crc32c(MASK32, covered):
                raise _refused("the checksum of its superblock is wrong")
        unknown = head.s_feature_incompat & ~_KNOWN
        if unknown:
            raise _refused(f"it has features that are not known here ({unknown:#x})")
        if head.s_blocksize != self._volume.block_bytes or head.s_maxlen > blocks:
            raise _refused(f"it has {blocks} blocks, but says {head.s_maxlen}")

    @property
    def _fast_commit_blocks(self) -> int:
        if not self.superblock.s_feature_incompat & layout.JBD2_FEATURE_INCOMPAT_FAST_COMMIT:
            return 0
        return self.superblock.s_num_fc_blks or layout.JBD2_FAST_COMMIT_BLOCKS

    def physical(self, position: int) -> int:
        """Where on the device a block of the ring is."""
        extent = self._map.find(position)
        if not extent.physical:
            raise _refused(f"it has a hole at block {position}")
        return extent.physical + position - extent.logical

    def block(self, position: int) -> bytes:
        """A block of the ring."""
        start = self.physical(position) << self._volume.block_bits
        return self._volume.device.read(start, self._volume.block_bytes)

    def after(self, position: int) -> int:
        """The position after `position`."""
        position += 1
        return position if position < self.end else self.first

    def tail_is_right(self, raw: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revoke block is right."""
        if self.checksum_version < 2:
            return True
        found = int.from_bytes(raw[-_TAIL_BYTES:], "big")
        return found == crc32c(self.seed, raw[:-_TAIL_BYTES] + bytes(_TAIL_BYTES))

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
        end = len(raw) - (_TAIL_BYTES if self.checksum_version >= 2 else 0)
        flags = 0
        while at + self.tag_bytes <= end and not flags & layout.JBD2_FLAG_LAST_TAG:
            block, flags, checksum = self._tag(raw, at)
            found.append((block, flags, checksum))
            at += self.tag_bytes
            if not flags & layout.JBD2_FLAG_SAME_UUID:
                at += _UUID_BYTES
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
                raise _refused(f"block {copy.position} of it has a wrong checksum")
        if copy.escaped:
            raw = struct.pack(">I", layout.JBD2_MAGIC) + raw[4:]
        return raw


class Scan:
    """One way through the log: what is to be replayed."""

    def __init__(self, ring: Ring) -> None:
        self._ring: Final = ring
        self._position = ring.superblock.s_start
        self._left = ring.end - ring.first  # blocks that may still be read (J6)
        self._committed_at = (0, 0)
        self.sequence = ring.superblock.s_sequence
        """The number of the transaction that is being read; in the end, of the first that is not
        there."""
        self.copies: dict[int, Copy] = {}
        self._begin()

    def _begin(self) -> None:
        """Begin a transaction."""
        self._new: dict[int, Copy] = {}
        self._revoked: set[int] = set()
        self._doubtful = False
        self._checksum = MASK32  # of version 1: of all blocks of the transaction

    def _next(self) -> bytes | None:
        """The next block of the log; None: there was a whole turn of the ring."""
        if self._left == 0:
            return None
        self._left -= 1
        raw = self._ring.block(self._position)
        self._position = self._ring.after(self._position)
        return raw

    def run(self) -> None:
        """Read the log from its beginning to its end."""
        while (raw := self._next()) is not None:
            header = journal_header_t.decode(raw)
            if header.h_magic != layout.JBD2_MAGIC or header.h_sequence != self.sequence:
                return  # J2
            match header.h_blocktype:
                case layout.JBD2_DESCRIPTOR_BLOCK:
                    self._descriptor(raw)
                case layout.JBD2_REVOKE_BLOCK:
                    self._revoke(raw)
                case layout.JBD2_COMMIT_BLOCK:
                    if not self._commit(raw):
                        return
                case _:
                    return

    def _descriptor(self, raw: bytes) -> None:
        ring = self._ring
        if not ring.tail_is_right(raw):
            # Either damage, or left over from an earlier turn: the commit block will tell.
            self._doubtful = True
        if ring.checksum_version == 1:
            self._checksum = crc32_be(self._checksum, raw)
        for block, flags, checksum in ring.tags(raw):
            escaped = bool(flags & layout.JBD2_FLAG_ESCAPE)
            self._new[block] = Copy(self._position, self.sequence, escaped, checksum)
            self._skip_copy()

    def _skip_copy(self) -> None:
        if self._ring.checksum_version == 1:
            self._checksum = crc32_be(self._checksum, self._next() or b"")
        elif self._left:
            self._left -= 1
            self._position = self._ring.after(self._position)

    def _revoke(self, raw: bytes) -> None:
        if not self._ring.tail_is_right(raw):
            self._doubtful = True
        self._revoked.update(self._ring.revoked(raw))

    def _commit(self, raw: bytes) -> bool:
        """Whether the transaction that ends here is one (J1). If so, it counts."""
        commit = commit_header.decode(raw)
        committed_at = (commit.h_commit_sec, commit.h_commit_nsec)
        if self._doubtful or not self._checksum_is_right(commit, raw):
            if committed_at < self._committed_at:
                return False  # older than the one before it: left over from an earlier turn
            if self._doubtful or not self._is_async:
                raise _refused(f"transaction {self.sequence} is damaged")
            return False
        for block in self._revoked:
            self.copies.pop(block, None)  # J3, of what came before
        for block, copy in self._new.items():
            if block not in self._revoked:
                self.copies[block] = copy  # J4
        self._committed_at = committed_at
        self.sequence = self.sequence + 1 & MASK32
        self._begin()
        return True

    @property
    def _is_async(self) -> bool:
        """Whether a commit block may have been written before what it commits."""
        features = self._ring.superblock.s_feature_incompat
        return bool(features & layout.JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT)

    def _checksum_is_right(self, commit: commit_header, raw: bytes) -> bool:
        if self._ring.checksum_version >= 2:
            covered = raw[:0x10] + b"\0\0\0\0" + raw[0x14:]
            return commit.h_chksum_0 == crc32c(self._ring.seed, covered)
        if self._ring.checksum_version == 1:
            kind = (commit.h_chksum_type, commit.h_chksum_size)
            none = kind == (0, 0) and commit.h_chksum_0 == 0
            right = kind == (layout.JBD2_CHECKSUM_CRC32, 4) and commit.h_chksum_0 == self._checksum
            return none or right
        return True

    def check_fast_commits(self) -> None:
        """ImageError if the log goes on in the area of fast commits: those are not replayed."""
        ring = self._ring
        if ring.end == ring.superblock.s_maxlen:
            return
        tag, _, _, sequence = _FAST_COMMIT_HEAD.unpack_from(ring.block(ring.end))
        if tag == _FAST_COMMIT_HEAD_TAG and sequence == self.sequence:
            raise ImageError(
                "the journal has fast commits, which cannot be replayed here",
                "mount a copy of the image once with the kernel, or run e2fsck -fy on it",
            )


def _refused(why: str) -> ImageError:
    return ImageError(f"the journal cannot be replayed: {why}", _USE_E2FSCK)
