"""Changing a file system: operations in, transactions out.

What an operation has changed is published here: its blocks into the running transaction, its inodes
to whoever keeps them, its counts into the superblock.

The first change of all marks the file system as one that is in use (its journal needs recovery; or,
without a journal, it is not clean), and nothing else may become durable before that is. So an image
that is only looked at stays as it was, to the byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from threading import RLock
from typing import Final, TypeVar

from appliance.fsimage.ext4 import finishing, layout
from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.crc import MASK32, Balance
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.journal.committer import Journal
from appliance.fsimage.ext4.layout import ext4_super_block_counts
from appliance.fsimage.ext4.operation import Known, Operation
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import Code, VfsError

T = TypeVar("T")

_SECOND: Final = 1_000_000_000


class Writer:
    """Who changes one file system.

    `known` gives inodes that are at hand; `adopt` is given every inode that an operation has
    changed, when it is published.
    """

    def __init__(
        self,
        volume: Volume,
        allocator: Allocator,
        lock: RLock,
        wall_clock: Callable[[], int],
        known: Known,
        adopt: Callable[[Iterable[Inode]], None],
    ) -> None:
        self.volume: Final = volume
        self.allocator: Final = allocator
        self.journal: Journal
        self._lock: Final = lock
        self._wall_clock: Final = wall_clock
        self._known: Final = known
        self._adopt: Final = adopt
        self._balance: Balance | None = None
        self._has_journal: Final = volume.superblock.has_journal
        self._in_use = self._has_journal and volume.superblock.needs_recovery  # as it was found
        bits = volume.block_bits
        self._superblock_at: Final = layout.SUPERBLOCK_OFFSET & volume.block_bytes - 1
        self._superblock_in: Final = layout.SUPERBLOCK_OFFSET >> bits
        self._superblock_block = volume.block(self._superblock_in)  # kept: to close cannot fail
        self._counts = (-1, -1, -1)  # as they are in the superblock
        self._more_changed = True  # there, than counts
        self._state = volume.superblock.disk.s_state
        self._stopped = ""  # why

    # Operations.

    def change(self, act: Callable[[Operation], T]) -> T:
        """Let `act` change something: all that it does happens, or it raises and nothing does."""
        with self._lock:
            self.journal.check()
            if self._stopped:
                raise self._no_trust()
            if not self._in_use:
                self._mark(in_use=True)
            try:
                return self._attempt(act)
            except VfsError as error:
                if error.code is not Code.NOSPC or not self.make_freed_usable():
                    raise
            return self._attempt(act)

    def make_freed_usable(self) -> bool:
        """Wait until what was freed may be used again; whether there was something."""
        if not self.allocator.waiting_blocks:
            return False
        before = self.allocator.waiting_blocks
        self.journal.commit()
        self.volume.transfers.wait_until_quiet()  # who still reads what was freed
        self.allocator.release(self.journal.reusable())
        return self.allocator.waiting_blocks < before

    def _attempt(self, act: Callable[[Operation], T]) -> T:
        allocator = self.allocator
        reusable = self.journal.reusable()
        if reusable:
            allocator.release(reusable)
        operation = Operation(self.volume, allocator, self._wall_clock(), self._known)
        try:
            result = act(operation)
            blocks = operation.finish()
            numbers = operation.tables.union(blocks)
            self.journal.make_room(len(numbers) + len(operation.forgotten))
            if self._stopped:
                raise self._no_trust()
        except BaseException:
            allocator.undo(operation)
            operation.forget()
            raise
        with self.journal.state:
            operation.announce()
            self.journal.publish(blocks, numbers, operation.forgotten, operation.freed)
            self._adopt(operation.publish())
            allocator.free_blocks += operation.free_blocks_change
            allocator.free_inodes += operation.free_inodes_change
            if operation.last_orphan is not None:
                self.volume.superblock.disk.s_last_orphan = operation.last_orphan
        return result

    # What is not to be trusted.

    def _no_trust(self) -> VfsError:
        return VfsError(Code.ROFS, self._stopped)

    def stop(self, reason: str) -> None:
        """Something that belongs to all is damaged: from now on nothing is changed any more, an
        operation that is at work fails, and the superblock says that e2fsck is needed. What was
        done before is made durable: that was done with what could be trusted."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = reason
            self._note_error()
            with contextlib.suppress(VfsError):  # the journal has said so
                if self._in_use:
                    with self.journal.state:
                        blocks = self._superblock()
                        self.journal.publish(blocks, blocks, [], [])
                else:
                    self._mark(in_use=True)

    def _note_error(self) -> None:
        """In the superblock, as the kernel does."""
        disk = self.volume.superblock.disk
        now = self._wall_clock() // _SECOND & MASK32
        self._state |= layout.STATE_ERROR_FS
        disk.s_state |= layout.STATE_ERROR_FS
        disk.s_error_count = disk.s_error_count + 1 & MASK32
        disk.s_first_error_time = disk.s_first_error_time or now
        disk.s_last_error_time = now
        self._more_changed = True

    # The superblock.

    def complete(self, numbers: Collection[int]) -> dict[int, bytes]:
        """The blocks of a transaction that is closed now, as they go to the disk: those that
        operations have changed, and the superblock."""
        blocks = finishing.finish(self.volume, numbers)
        if self._counts != self._present_counts():
            blocks.update(self._superblock())
        return blocks

    def superblock_changed(self) -> None:
        """Something in it is not what it was; it goes to the disk when its counts do."""
        self._more_changed = True

    def _present_counts(self) -> tuple[int, int, int]:
        allocator = self.allocator
        orphan = self.volume.superblock.disk.s_last_orphan
        return allocator.free_blocks, allocator.free_inodes, orphan

    def _superblock(self) -> dict[int, bytes]:
        """The block with the superblock in it, up to date."""
        self._counts = free_blocks, free_inodes, orphan = self._present_counts()
        volume, at = self.volume, self._superblock_at
        block = bytearray(self._superblock_block)
        if self._more_changed:
            volume.superblock.disk.encode_into(block, at)
            self._more_changed = False
        now = self._wall_clock() // _SECOND & MASK32
        ext4_super_block_counts(
            free_blocks & MASK32, free_inodes, now, orphan, free_blocks >> 32
        ).encode_into(block, at)
        if volume.has_metadata_csum:
            self._keep_checksum(block, at)
        self._superblock_block = bytes(block)
        blocks = {self._superblock_in: self._superblock_block}
        volume.publish(blocks)
        return blocks

    def _keep_checksum(self, block: bytearray, at: int) -> None:
        """Make the checksum of the superblock right that is there already (J14)."""
        if self._balance is None:
            self._balance = Balance(layout.S_CHECKSUM_OFFSET, layout.S_LAST_MOUNTED_END - 4)
        covered = block[at : at + layout.S_CHECKSUM_OFFSET]
        covered[layout.S_LAST_MOUNTED_END - 5] = 0  # where the text ends at the latest
        self._balance.apply(covered, self.volume.superblock.disk.s_checksum)
        block[at : at + layout.S_CHECKSUM_OFFSET] = covered

    def _mark(self, *, in_use: bool) -> None:
        """Say in the superblock that the file system is in use, or that it is not any more. There
        is nothing in the journal (J13)."""
        disk = self.volume.superblock.disk
        if in_use:
            disk.s_mtime = self._wall_clock() // _SECOND & MASK32
            disk.s_mnt_count = disk.s_mnt_count + 1 & 0xFFFF
        if self._has_journal:
            disk.s_feature_incompat &= ~layout.INCOMPAT_RECOVER
            disk.s_feature_incompat |= layout.INCOMPAT_RECOVER if in_use else 0
        else:
            disk.s_state = self._state & ~layout.STATE_VALID_FS if in_use else self._state
        self._more_changed = True
        with self.journal.state:
            blocks = self._superblock()
        self.journal.put_in_place(blocks)
        self._in_use = in_use

    def close(self) -> None:
        """Leave a file system that is clean. VfsError: it is not."""
        if self._in_use:
            self.journal.close(lambda: self._mark(in_use=False))
        else:
            self.journal.end()
