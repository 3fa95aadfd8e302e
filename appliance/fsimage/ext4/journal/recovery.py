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
J7  A journal is replayed into memory first: one that cannot be replayed leaves the image as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from appliance.fsimage.device import Overlay
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import inode, layout
from appliance.fsimage.ext4.crc import MASK32, crc32_be, crc32c
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.journal.ring import Copy, Ring, refused
from appliance.fsimage.ext4.layout import commit_header, journal_header_t
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from appliance.trace import log

_FAST_COMMIT_HEAD: Final = struct.Struct("<HHII")
"""The first thing in the area of fast commits: tag, length, features, transaction."""
_FAST_COMMIT_HEAD_TAG: Final = 9


def recover(volume: Volume, overlay: Overlay) -> None:
    """Replay the journal of `volume` into `overlay`, which lies above the device of `volume`, and
    mark the file system there as one that needs no recovery."""
    ring, sequence = replay_into(volume, overlay)
    _mark_clean(volume, overlay)
    overlay.write(ring.physical(0) << volume.block_bits, [ring.pointing_to(0, sequence)])


def recover_in_place(volume: Volume, flush: Callable[[], None]) -> None:
    """Replay the journal of `volume` on its device. That it needs recovery stays in the superblock:
    somebody will write to the journal.

    A journal that cannot be replayed is left as it is, and so is everything else. Whenever this is
    cut off, it can be done again from the beginning.
    """
    overlay = Overlay(volume.device, volume.block_bytes)
    ring, sequence = replay_into(volume, overlay)
    ring.check_room()
    if Superblock.read(overlay).block_bytes != volume.block_bytes:
        raise refused("its superblock is that of another file system")
    for offset, block in overlay.changes():
        volume.device.write(offset, [block])
    flush()
    volume.device.write(ring.physical(0) << volume.block_bits, [ring.pointing_to(0, sequence)])
    flush()


def replay_into(volume: Volume, overlay: Overlay) -> tuple[Ring, int]:
    """Replay the journal into `overlay`: the journal, and the number of its next transaction."""
    ring = ring_of(volume)
    last = ring.superblock.s_sequence
    if ring.superblock.s_start:
        scan = Scan(ring)
        scan.run()
        scan.check_fast_commits()
        for block, copy in sorted(scan.copies.items()):
            if block >= volume.superblock.blocks_count:
                raise refused(f"it has a copy of block {block}, which cannot be")
            overlay.write(block << volume.block_bits, [ring.contents(copy)])
        last = scan.sequence
        log.info("%s: replayed %d blocks of the journal", volume.name, len(scan.copies))
    return ring, last + 1 & MASK32


def ring_of(volume: Volume) -> Ring:
    """The journal of a file system."""
    number = volume.superblock.disk.s_journal_inum
    if not volume.superblock.has_journal or not number:
        raise ImageError(
            "the file system was not unmounted, and its journal is on another device",
            "mount it once on the machine that has the journal",
        )
    if number > volume.superblock.disk.s_inodes_count:
        raise refused(f"there is no inode {number}")
    of_journal = inode.read_any(volume, number)
    return Ring(volume, BlockMaps(volume).of(of_journal), of_journal.size)


def _mark_clean(volume: Volume, overlay: Overlay) -> None:
    """The superblock, as it is after a recovery. (While it is mounted, the kernel counts what is
    free in the groups only.)"""
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
                raise refused(f"transaction {self.sequence} is damaged")
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
