"""Writing to a file: data goes to the device first, and then, in an operation, into the file.

A write is done in *portions*, each in three steps:

1. Under the lock: look up where the blocks are. Those that are mapped and written are overwritten
   where they are; for holes, blocks are reserved.
2. Without the lock: write the data. Nobody sees it yet, but what overwrites something. (If a part
   of a block is to be written that was allocated, and never written, the lock is kept from step 1
   on: zeros go around the data, and others may be putting theirs there.)
3. Under the lock: if the file still has what was looked up, let it have the new blocks, in one
   operation. If not, somebody has cut the file off meanwhile, or filled the same hole: begin again
   with step 1, and keep the lock.

Why it is enough to compare the extents of step 1: blocks that were freed in between cannot have
come back, as nobody is given blocks while there are transfers that began before they were freed.

A block that is new in the file is written as a whole, with zeros around the data. What is behind
the end of a file in its last block may be anything: before data is put behind a gap, the gap is
made zero (zeroing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from appliance import image_limits
from appliance.fsimage.buffers import Cutter
from appliance.fsimage.ext4 import map_changes, zeroing
from appliance.fsimage.ext4.data import zeros
from appliance.fsimage.ext4.extents import BlockMap, Extent
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer

if TYPE_CHECKING:
    from appliance.fsimage.ext4.node import Ext4Node

_AHEAD_MAX: Final = 2048
_STREAMS: Final = 16
"""A file that cannot go on where it is looks elsewhere for room for as much again as it has, or for
so many blocks; and how far away depends on the number of its inode. So files that grow side by side
do not jump over each other all the time, and soon have long extents, even where no room is kept
ahead of them (free_space.py)."""

_SKIPPED_MAX: Final = 64
"""A hole of up to so many blocks is left free behind what is before it: it may be filled later."""

_HOLES_LOOKED_AT: Final = 3
"""A map has a large hole in pieces."""


def write(node: Ext4Node, offset: int, length: int, data: Sequence[Buffer]) -> int:
    """Write `data`, which is not empty and ends where a file may; how much was written."""
    done = 0
    while done < length:
        buffers = data
        if done:
            cutter = Cutter(data)
            cutter.take(done)
            buffers = cutter.take(length - done)
        try:
            done += _write_portion(node, offset + done, offset + length, buffers)
        except VfsError:
            if not done:
                raise
            break
    return done


def _write_portion(node: Ext4Node, offset: int, end: int, buffers: Sequence[Buffer]) -> int:
    """Write the beginning of the data: how much it was."""
    with _Portion(node, offset, end) as portion:
        if portion.transfer(buffers) and portion.finish():
            return portion.end - offset
    with node.filesystem.lock, _Portion(node, offset, end, alone=True) as portion:
        finished = portion.transfer(buffers) and portion.finish()
        assert finished, "the lock was not kept"
        return portion.end - offset


class _Kind(Enum):
    """What becomes of some blocks."""

    OVERWRITTEN = 1
    CONVERTED = 2  # they were allocated, but not written
    NEW = 3


class _Portion:
    """As much of a write as one operation may change: up to `end`.

    `found`: what the map said; `pieces`: what it shall say. `alone`: the lock is kept to the end.
    """

    __slots__ = (
        "_allocator",
        "_alone",
        "_bits",
        "_filesystem",
        "_found",
        "_inode",
        "_node",
        "_offset",
        "_pieces",
        "_reserved",
        "_transfer",
        "_volume",
        "_wanted",
        "end",
    )

    def __init__(self, node: Ext4Node, offset: int, end: int, *, alone: bool = False) -> None:
        self._node: Final = node
        self._alone: Final = alone
        self._offset: Final = offset
        self.end = self._wanted = end
        self._found: list[Extent] = []
        self._pieces: list[tuple[Extent, _Kind]] = []
        self._reserved: list[Extent] = []
        self._filesystem: Final = node.filesystem
        with self._filesystem.lock:
            volume = self._volume = self._filesystem.volume
            self._allocator: Final = self._filesystem.writer.allocator
            self._bits: Final = volume.block_bits
            try:
                self._plan()
            except BaseException:
                self._cancel()
                raise
            self._inode = node.inode
            self._transfer = volume.transfers.begin()

    def __enter__(self) -> _Portion:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reserved:
            # Who has the lock may be waiting until nothing touches the device.
            self._volume.transfers.is_quiet(self._transfer)
            with self._filesystem.lock:
                self._cancel()
        self._volume.transfers.end(self._transfer)

    def _cancel(self) -> None:
        """Give back what was reserved and is not needed."""
        for extent in self._reserved:
            self._allocator.cancel(extent.physical, extent.count)
        self._reserved.clear()

    # Step 1.

    def _plan(self) -> None:
        node, bits = self._node, self._bits
        node.check_alive()
        if self._offset > node.inode.size:
            self._clean_gap()
        first, stop = self._offset >> bits, (self.end - 1 >> bits) + 1
        extent = node.block_map.find(first)
        if extent.logical + extent.count < stop:
            self._found = node.block_map.extents(first, stop)
        elif not extent.physical:
            self._found = [extent]
            if self._reserve(first, stop):
                return
        elif extent.written:
            self._found, self._pieces = [extent], [(extent, _Kind.OVERWRITTEN)]
            return
        else:
            self._found = [extent.part(first, stop)]
        if not self._pieces:
            self._plan_pieces()
        self.end = min(self.end, self._pieces[-1][0].end << bits)

    def _plan_pieces(self) -> None:
        """For what was found: as many pieces as there may be."""
        for extent in self._found:
            if len(self._pieces) >= image_limits.EXTENTS_CHANGED_MAX:
                break
            if extent.physical:
                kind = _Kind.OVERWRITTEN if extent.written else _Kind.CONVERTED
                self._pieces.append((extent, kind))
            elif not self._reserve(extent.logical, extent.end):
                break

    def _clean_gap(self) -> None:
        """Between the end of the file and what is written there will be zeros."""
        filesystem = self._filesystem
        filesystem.finish_truncation(self._node.inode.number)
        inode, block_map = self._node.inode, self._node.block_map
        if not zeroing.rest_is_zero(self._volume, block_map.find, inode.size):
            filesystem.change(
                lambda operation: zeroing.zero_rest(
                    filesystem, operation, operation.inode(inode.number), inode.size
                )
            )

    def _reserve(self, logical: int, end: int) -> bool:
        """Find blocks for a hole; whether it got as many as it has. NOSPC: the first one got
        none."""
        goal = self._goal(logical)
        while logical < end and len(self._pieces) < image_limits.EXTENTS_CHANGED_MAX:
            try:
                physical, count = self._reserve_some(goal, logical, end - logical)
            except VfsError:
                if not self._pieces:
                    raise
                return False
            extent = Extent(logical, count, physical)
            self._reserved.append(extent)
            self._pieces.append((extent, _Kind.NEW))
            logical, goal = logical + count, physical + count
        return logical == end

    def _reserve_some(self, goal: int, logical: int, count: int) -> tuple[int, int]:
        """Some blocks for a hole, from block `logical` on: the first, and how many. NOSPC."""
        room = self._allocator.available_blocks(privileged=False)
        if not room:
            raise VfsError(Code.NOSPC)
        count = min(count, room)
        if not logical or self._wanted <= self._node.inode.size:
            return self._reserve_near(goal, count)
        found = self._allocator.reserve_next(goal, count, logical)
        return (goal, found) if found else self._reserve_elsewhere(goal, logical, count)

    def _reserve_near(self, goal: int, count: int) -> tuple[int, int]:
        try:
            return self._allocator.reserve(goal, count)
        except VfsError:
            if not self._filesystem.writer.make_freed_usable():
                raise
            return self._allocator.reserve(goal, count)

    def _reserve_elsewhere(self, goal: int, logical: int, count: int) -> tuple[int, int]:
        """Blocks for a file that grows, in a place where it can go on growing."""
        group_blocks = self._volume.superblock.disk.s_blocks_per_group
        distance = (self._node.inode.number % _STREAMS + 1) * (group_blocks // _STREAMS)
        physical, found = self._reserve_near(goal + distance, count + min(logical, _AHEAD_MAX))
        if found > count:
            self._allocator.cancel(physical + count, found - count)
        return physical, min(found, count)

    def _goal(self, logical: int) -> int:
        """Where the blocks of a hole should be: after those before them in the file."""
        if self._pieces:
            last = self._pieces[-1][0]
            return last.physical + last.count
        block_map = self._node.block_map
        before = block_map.tail()
        if before is None or before.logical + before.count > logical:
            before = _last_before(block_map, logical)
        if before is None:
            return self._allocator.goal_of(self._node.inode.number)
        skipped = logical - before.logical - before.count
        return before.physical + before.count + (skipped if skipped < _SKIPPED_MAX else 0)

    # Step 2.

    def transfer(self, buffers: Sequence[Buffer]) -> bool:
        """Bring the data to the device; `buffers` may have more than this portion takes. False:
        that cannot be done unless the lock is kept."""
        if len(self._pieces) == 1 and self.end == self._wanted:
            return self._transfer_piece(*self._pieces[0], self._offset, self.end, buffers)
        cutter, bits = Cutter(buffers), self._bits
        for piece, kind in self._pieces:
            start, stop = max(self._offset, piece.logical << bits), min(self.end, piece.end << bits)
            if not self._transfer_piece(piece, kind, start, stop, cutter.take(stop - start)):
                return False
        return True

    def _transfer_piece(
        self, piece: Extent, kind: _Kind, start: int, stop: int, data: Sequence[Buffer]
    ) -> bool:
        """Bring `data` to where a piece has the bytes from `start` to `stop` of the file."""
        at = (piece.physical - piece.logical << self._bits) + start
        if kind is not _Kind.OVERWRITTEN:
            mask = self._volume.block_bytes - 1
            before, after = start & mask, -stop & mask
            if before or after:
                if kind is _Kind.CONVERTED and not self._alone:
                    return False
                at -= before
                data = [*zeros(before), *data, *zeros(after)]
        self._volume.device.write(at, data)
        return True

    # Step 3.

    def finish(self) -> bool:
        """Let the file have what was written; False: it has changed too much, or has gone back to
        an earlier state."""
        self._volume.transfers.is_quiet(self._transfer)
        with self._filesystem.lock:
            node = self._node
            node.check_alive()
            if self._filesystem.volume is not self._volume:
                return False
            if node.inode is not self._inode and not self._holds():
                return False
            self._filesystem.change(self._act)
            self._reserved.clear()
        return True

    def _holds(self) -> bool:
        """Whether the map still says what was found."""
        first, stop = self._offset >> self._bits, (self.end - 1 >> self._bits) + 1
        found = [each.part(first, stop) for each in self._found if each.logical < stop]
        return self._node.block_map.extents(first, stop) == found

    def _act(self, operation: Operation) -> None:
        filesystem = self._filesystem
        inode = operation.inode(self._node.inode.number)
        if self._pieces[0][1] is not _Kind.OVERWRITTEN or len(self._pieces) > 1:
            changer = map_changes.of(filesystem.maps, operation, inode)
            for piece, kind in self._pieces:
                if kind is _Kind.NEW:
                    self._allocator.take(operation, piece.physical, piece.count)
                    changer.insert(piece.logical, piece.physical, piece.count)
                elif kind is _Kind.CONVERTED:
                    changer.convert(piece.logical, piece.count)
        inode.size = max(inode.size, self.end)
        operation.modified(inode)


def _last_before(block_map: BlockMap, logical: int) -> Extent | None:
    """The last extent before a hole, which begins with block `logical`."""
    for _ in range(_HOLES_LOOKED_AT):
        if not logical:
            break
        before = block_map.find(logical - 1)
        if before.physical:
            return before
        logical = before.logical
    return None
