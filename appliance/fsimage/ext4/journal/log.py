"""Writing the journal (kernel document: "Journal (jbd2)").

A transaction goes into the ring in two steps: first its revoke blocks, its descriptor blocks and
the copies of its blocks, then, when the device says that all this is durable, its commit block.
Later, a *checkpoint* writes the blocks to their places, and only then the log may begin further on.

What the order of writes guarantees, at whatever instant it is cut off:

J8   Everything that a transaction needs (its copies, and the file data written before it) is
     durable before its commit block is written.
J9   A transaction is reported durable after its commit block is.
J10  A block comes to its place only after a transaction with that very content is durable, and
     from the newest such transaction.
J11  The log gives a transaction up only when all its blocks are durable in their places; and the
     superblock of the journal says so before its part of the ring is used again.
J12  A block that was freed is revoked in the transaction that frees it, and not checkpointed
     after that.
J13  As long as there is something in the log, the superblock says that it needs recovery: it says
     so before the first transaction is written, and until the log is empty again.
J14  The superblock changes within its first 512 bytes only, which a device writes whole or not at
     all: so it is never torn. Its checksum, which is at its other end, stays what it was.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from appliance.fsimage.device import BlockDevice
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.journal.ring import TAIL_BYTES, UUID_BYTES, Ring
from appliance.fsimage.ext4.layout import (
    commit_header,
    jbd2_journal_revoke_header_t,
    journal_header_t,
)
from appliance.fsimage.ext4.volume import Volume

_MAGIC: Final = struct.pack(">I", layout.JBD2_MAGIC)
_HEADER: Final = struct.Struct(">III")
_TAG: Final = struct.Struct(">IHH")
_TAG_OF_64BIT: Final = struct.Struct(">IHHI")
_COMMIT: Final = commit_header.STRUCT.pack
_SECOND: Final = 1_000_000_000
_SECTOR_BYTES: Final = 512
_PART_OF_LOG: Final = 4
"""A transaction may have this part of the log: so there is always room for the next ones."""

Flush = Callable[[], None]


class Log(Protocol):
    """Where transactions go. Every method may raise VfsError, and then nothing more can be
    promised."""

    @property
    def blocks_max(self) -> int:
        """How many blocks a transaction may have."""

    def write(self, blocks: Mapping[int, bytes], revoked: Iterable[int]) -> None:
        """Return when a transaction is durable."""

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time for one."""

    def checkpoint(self) -> Mapping[int, bytes]:
        """Bring everything to its place; returns what."""

    def put_in_place(self, blocks: Mapping[int, bytes]) -> None:
        """Bring blocks to their places, durably, while there is nothing in the log."""

    def close(self) -> None:
        """Everything is in its place: say so."""


class JournalLog:
    """The log in the ring of a journal.

    `flush` makes durable what was written to the device, or at least keeps the order in which it
    was written (durability.py).
    """

    def __init__(
        self, volume: Volume, ring: Ring, flush: Flush, wall_clock: Callable[[], int]
    ) -> None:
        assert ring.superblock.s_start == 0, "the journal has not been replayed"
        self._device: Final = volume.device
        self._bits: Final = volume.block_bits
        self._block_bytes: Final = volume.block_bytes
        self._zeros: Final = bytes(volume.block_bytes)
        self._ring: Final = ring
        self._flush: Final = flush
        self._wall_clock: Final = wall_clock
        self._images: dict[int, bytes] = {}  # durable in the log, but not in their places
        self._head: int = ring.first
        self._sequence: int = ring.superblock.s_sequence
        self._capacity: Final[int] = ring.end - ring.first
        self._free: int = self._capacity - 1
        self.blocks_max: Final[int] = self._capacity // _PART_OF_LOG
        self._begun = False
        ring.prepare_to_write(checksums=volume.has_metadata_csum, wide=volume.superblock.is_64bit)
        tail_bytes = TAIL_BYTES if ring.checksum_version else 0
        room = volume.block_bytes - journal_header_t.SIZE - UUID_BYTES - tail_bytes
        self._tag_bytes: Final = ring.tag_bytes
        self._tags_per_block: Final = room // self._tag_bytes
        room = volume.block_bytes - jbd2_journal_revoke_header_t.SIZE - tail_bytes
        self._revokes_per_block: Final = room // (8 if ring.is_64bit else 4)

    @property
    def wants_checkpoint(self) -> bool:
        return self._free < self._capacity // 2

    # A transaction.

    def write(self, blocks: Mapping[int, bytes], revoked: Iterable[int]) -> None:
        revoked = sorted(revoked)
        pieces = [*self._revoke_blocks(revoked), *self._described(blocks)]
        assert len(pieces) < self._free, "no checkpoint was made when one was wanted"
        if not self._begun:
            self._point(self._head, self._sequence)  # durable with the flush that follows
            self._begun = True
        # The place of the commit block is zeroed first: only its first 512 bytes are written then,
        # which arrive whole or not at all. Torn, it would count as damage.
        place = self._append([*pieces, self._zeros])
        self._flush()  # J8
        self._device.write(place << self._bits, [self._commit_block()])
        self._flush()  # J9
        self._sequence = self._sequence + 1 & MASK32
        for number in revoked:
            self._images.pop(number, None)  # J12
        self._images.update(blocks)

    def _described(self, blocks: Mapping[int, bytes]) -> list[bytes]:
        """Descriptor blocks, each followed by the copies of the blocks that it names."""
        numbers = sorted(blocks)
        seed = crc32c(self._ring.seed, struct.pack(">I", self._sequence))
        pieces = []
        for start in range(0, len(numbers), self._tags_per_block):
            copies: list[bytes] = []
            tags: list[int] = []  # four numbers for each
            for number in numbers[start : start + self._tags_per_block]:
                copy, flags = blocks[number], layout.JBD2_FLAG_SAME_UUID
                if copy.startswith(_MAGIC):  # J5
                    flags |= layout.JBD2_FLAG_ESCAPE
                    copy = bytes(4) + copy[4:]
                copies.append(copy)
                tags += number & MASK32, flags, number >> 32, crc32c(seed, copy)
            tags[1] &= ~layout.JBD2_FLAG_SAME_UUID
            tags[-3] |= layout.JBD2_FLAG_LAST_TAG
            pieces.append(self._sealed(layout.JBD2_DESCRIPTOR_BLOCK, self._encoded(tags)))
            pieces += copies
        return pieces

    def _encoded(self, tags: list[int]) -> bytes:
        """Tags (low half of the number, flags, high half, checksum), and the UUID after the first,
        which is meant by the flags of all others."""
        if self._ring.checksum_version:
            raw = struct.pack(f">{len(tags)}I", *tags)
        else:
            each = zip(tags[::4], tags[1::4], tags[2::4], strict=True)
            if self._ring.is_64bit:
                raw = b"".join(_TAG_OF_64BIT.pack(low, 0, flags, high) for low, flags, high in each)
            else:
                raw = b"".join(_TAG.pack(low, 0, flags) for low, flags, _ in each)
        size = self._tag_bytes
        return raw[:size] + self._ring.superblock.s_uuid + raw[size:]

    def _revoke_blocks(self, revoked: list[int]) -> list[bytes]:
        size, letter = (8, "Q") if self._ring.is_64bit else (4, "I")
        pieces = []
        for start in range(0, len(revoked), self._revokes_per_block):
            some = revoked[start : start + self._revokes_per_block]
            count = jbd2_journal_revoke_header_t.SIZE + size * len(some)
            body = struct.pack(f">I{len(some)}{letter}", count, *some)
            pieces.append(self._sealed(layout.JBD2_REVOKE_BLOCK, body))
        return pieces

    def _sealed(self, kind: int, body: bytes) -> bytes:
        """A block of the journal's own, with its header, and its checksum at the end."""
        raw = _HEADER.pack(layout.JBD2_MAGIC, kind, self._sequence) + body
        if not self._ring.checksum_version:
            return raw.ljust(self._block_bytes, b"\0")
        raw = raw.ljust(self._block_bytes - TAIL_BYTES, b"\0")
        checksum = crc32c(self._ring.seed, raw + bytes(TAIL_BYTES))
        return raw + struct.pack(">I", checksum)

    def _commit_block(self) -> bytes:
        """What of it is not zero; the rest is there already."""
        seconds, nanoseconds = divmod(self._wall_clock(), _SECOND)
        head = layout.JBD2_MAGIC, layout.JBD2_COMMIT_BLOCK, self._sequence, 0, 0
        begin = _COMMIT(*head, 0, seconds, nanoseconds)
        if self._ring.checksum_version:
            checksum = crc32c(self._ring.seed, begin.ljust(self._block_bytes, b"\0"))
            begin = _COMMIT(*head, checksum, seconds, nanoseconds)
        return begin.ljust(_SECTOR_BYTES, b"\0")

    def _append(self, pieces: list[bytes]) -> int:
        """Write at the head of the log, which may go around; where on the device the last is."""
        ring, done, last = self._ring, 0, 0
        while done < len(pieces):
            physical, length = ring.run(self._head)
            some = pieces[done : done + length]
            self._device.write(physical << self._bits, some)
            last = physical + len(some) - 1
            done += len(some)
            self._free -= len(some)
            self._head += len(some)
            if self._head == ring.end:
                self._head = ring.first
        return last

    # The checkpoint.

    def checkpoint(self) -> Mapping[int, bytes]:
        images, self._images = self._images, {}
        if images:
            write_in_place(self._device, self._bits, images)
            self._flush()  # J11
        if self._begun:
            self._point(self._head, self._sequence)
            self._flush()
        self._free = self._capacity - 1
        return images

    def _point(self, start: int, sequence: int) -> None:
        """Let the superblock of the journal say where the log begins, and with which number.

        What changes is within its first 512 bytes, which a device writes whole or not at all.
        """
        raw = self._ring.pointing_to(start, sequence)
        self._device.write(self._ring.physical(0) << self._bits, [raw])

    def put_in_place(self, blocks: Mapping[int, bytes]) -> None:
        assert not self._begun, "there is something in the log"
        write_in_place(self._device, self._bits, blocks)
        self._flush()

    def close(self) -> None:
        assert not self._images, "the log was not checkpointed"
        self._begun = False
        self._point(0, self._sequence)
        self._flush()


class WriteThrough:
    """No log: blocks go to their places at once. A crash may leave half a transaction, as with the
    kernel's ext2."""

    blocks_max: Final = 1 << 12

    def __init__(self, volume: Volume, flush: Flush) -> None:
        self._device: Final = volume.device
        self._bits: Final = volume.block_bits
        self._flush: Final = flush
        self._images: dict[int, bytes] = {}

    def write(self, blocks: Mapping[int, bytes], revoked: Iterable[int]) -> None:
        write_in_place(self._device, self._bits, blocks)
        self._flush()
        self._images.update(blocks)

    @property
    def wants_checkpoint(self) -> bool:
        return bool(self._images)

    def checkpoint(self) -> Mapping[int, bytes]:
        images, self._images = self._images, {}
        return images

    def put_in_place(self, blocks: Mapping[int, bytes]) -> None:
        write_in_place(self._device, self._bits, blocks)
        self._flush()

    def close(self) -> None:
        """Everything is in its place already."""


def write_in_place(device: BlockDevice, block_bits: int, blocks: Mapping[int, bytes]) -> None:
    """Write blocks to their places, those that follow each other in one go."""
    run: list[bytes] = []
    first = 0
    for number in sorted(blocks):
        if number != first + len(run):
            if run:
                device.write(first << block_bits, run)
            run, first = [], number
        run.append(blocks[number])
    if run:
        device.write(first << block_bits, run)
