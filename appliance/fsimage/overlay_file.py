"""Changes to an image, kept in a file beside it: `--image FILE,overlay=OVERLAYFILE`.

overlay_format.py says what is in the file. This is what its writes keep to, so that it can be
killed, or the host can lose power, at any instant:

V1  A block's slot is written before the map points to it, and made durable before the map that
    points to it is written: `flush` is data, flush, map, flush. So a map, torn or not, never leads
    to what was not written: each entry in it is an old one or a new one, and both lead to a whole
    block.
V2  A block that has a private slot is changed in place, as in any file: a write that was not
    flushed may be there in part.
V3  A slot that a snapshot has is not written to, nor is a snapshot's map.
V4  What states there are changes with the header, which is written whole into the copy that does
    not count, after everything that it speaks of is durable.
V5  Slots and maps that a header gave up are used again only after that header is durable.

So to the file system above, the device is like a disk: what was flushed is there, and what was
written since may be there or not, sector by sector.

`eager`: a map is written as soon as its slots are, and only `flush` and `close` wait for the disk.
Whatever was written survives the process, but perhaps not the host (Durability.PROCESS).
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from appliance import image_limits
from appliance.fsimage.buffers import Cutter
from appliance.fsimage.device import BlockDevice, WritableBuffer, bytes_of, check_range
from appliance.fsimage.errors import ImageError
from appliance.fsimage.overlay_format import (
    HEADER_BYTES,
    Base,
    Header,
    KeptMap,
    MergeStage,
    bytes_of_slots,
    slots_of,
)
from appliance.fsimage.slot_map import SlotMap, unshared
from appliance.fsimage.snapshots import BlockSnapshots, check_new_name, unknown
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, Snapshot


class Store(BlockDevice, Protocol):
    """The overlay's file: a device that grows."""

    def resize(self, size: int) -> None:
        """Change its size; what is new is zeros."""


class OverlayFile:
    """A device that reads from `base` what is not in `store`, and writes to `store`."""

    read_only: Final = False

    def __init__(
        self, base: BlockDevice, store: Store, header: Header, *, eager: bool = False
    ) -> None:
        """`header` is that of the store, and fits the base. ImageError: the store is damaged."""
        self.size: Final = base.size
        self._base = base
        self._store = store
        self._header = header
        self._eager = eager
        self._bits: Final = header.block_bits
        self._block_bytes: Final = 1 << header.block_bits
        self._map: Final = self._load()
        self._lock = threading.RLock()
        """Held by who changes the map: never while waiting, but for a snapshot."""
        self._flushing = threading.Lock()
        """Held by who writes maps and headers; taken before the other one."""
        self._in_doubt = False
        """A header could not be written: nobody knows which one is in the file, so nothing that
        is written from now on may be called durable."""
        self.snapshots: Final[BlockSnapshots] = _FileSnapshots(self)

    def _load(self) -> SlotMap:
        header, store = self._header, self._store
        try:
            present = self._read_map(header.present)
            slots = SlotMap(present, (self._read_map(kept.map) for kept in header.snapshots))
        except VfsError as error:
            raise ImageError(f"the overlay cannot be read: {error.detail}") from None
        used = len(present) - present.count(0)
        if used != len(set(present) - {0}):
            raise ImageError("the overlay is damaged: two blocks are in the same place")
        if header.slot_offset(slots.end) > store.size:
            raise ImageError("the overlay is damaged: it was cut off")
        return slots

    def _read_map(self, number: int) -> array[int]:
        header = self._header
        raw = self._store.read(header.map_offset(number), header.map_bytes)
        return slots_of(raw, header.blocks)

    @property
    def changed_blocks(self) -> int:
        """Blocks that are not as in the base."""
        return self._map.changed

    def changes(self) -> Iterator[tuple[int, int]]:
        """Offset and length of what was changed, in pieces that are not too large."""
        slots, piece = self._map.slots, max(1, image_limits.OVERLAY_GROWS_BY >> self._bits)
        number = 0
        while number < len(slots):
            if not slots[number]:
                number += 1
                continue
            end = number + 1
            while end < len(slots) and slots[end] and end - number < piece:
                end += 1
            first = number << self._bits
            yield first, min(self.size, end << self._bits) - first
            number = end

    def has_changes(self, first: int, count: int) -> bool:
        """Whether anything in this range was changed."""
        return any(self._map.slots[first >> self._bits : (first + count - 1 >> self._bits) + 1])

    # --- reading ------------------------------------------------------------------------------

    def read(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.readinto(offset, [buffer])
        return bytes(buffer)

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        wanted = bytes_of(views)
        check_range(self, offset, wanted)
        runs = self._runs(offset, wanted)
        if len(runs) == 1:
            device, at, _ = runs[0]
            device.readinto(at, views)
            return
        cutter = Cutter(views)
        for device, at, length in runs:
            device.readinto(at, cutter.take(length))

    def _runs(self, offset: int, count: int) -> list[tuple[BlockDevice, int, int]]:
        """Where a range is: device, offset there, length."""
        bits = self._bits
        first = offset >> bits
        slots = self._map.slots[first : (offset + count - 1 >> bits) + 1]
        if not any(slots):
            return [(self._base, offset, count)]
        runs: list[tuple[BlockDevice, int, int]] = []
        at, end, index = offset, offset + count, 0
        while index < len(slots):
            slot, last = slots[index], index + 1
            step = 1 if slot else 0
            while last < len(slots) and slots[last] == slot + step * (last - index):
                last += 1
            until = min(end, first + last << bits)
            inside = at - (first + index << bits)
            place = self._header.slot_offset(slot) + inside if slot else at
            runs.append((self._store if slot else self._base, place, until - at))
            at, index = until, last
        return runs

    # --- writing ------------------------------------------------------------------------------

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        count = bytes_of(data)
        check_range(self, offset, count)
        cutter, end = Cutter(data), offset + count
        with self._lock:
            while offset < end:
                number, inside = divmod(offset, self._block_bytes)
                whole = end - offset >> self._bits
                if inside or not whole:
                    length = min(self._block_bytes - inside, end - offset)
                    self._write_part(number, inside, cutter.take(length))
                else:
                    length = self._write_whole(number, whole, cutter) << self._bits
                offset += length
            if self._eager:
                self._write_dirty()

    def _write_whole(self, number: int, count: int, cutter: Cutter) -> int:
        """Write whole blocks, as many of `count` as go to one place."""
        run = self._map.private_run(number, count)
        if run:
            self._store.write(self._header.slot_offset(run[0]), cutter.take(run[1] << self._bits))
            return run[1]
        run = self._map.new_run(number, count)
        self._fill(number, run, cutter.take(run[1] << self._bits))
        return run[1]

    def _write_part(self, number: int, inside: int, piece: Sequence[Buffer]) -> None:
        run = self._map.private_run(number, 1)
        if run:
            self._store.write(self._header.slot_offset(run[0]) + inside, piece)
            return
        start = number << self._bits
        block = bytearray(self._block_bytes)
        before = memoryview(block)[: min(self._block_bytes, self.size - start)]
        self.readinto(start, [before])
        for buffer in piece:
            block[inside : inside + len(buffer)] = buffer
            inside += len(buffer)
        self._fill(number, self._map.new_run(number, 1), [block])

    def _fill(self, number: int, run: tuple[int, int], data: Sequence[Buffer]) -> None:
        """Put blocks into new slots, and only then let the map say so (V1)."""
        header, (first, count) = self._header, run
        try:
            end = header.slot_offset(first + count)
            if end > self._store.size:
                self._store.resize(end + image_limits.OVERLAY_GROWS_BY)
            self._store.write(header.slot_offset(first), data)
        except VfsError:
            self._map.give_back(run)
            raise
        self._map.point(number, run)

    def _write_dirty(self) -> None:
        """Let the map in the file be as it is here; what cannot be written is still to come."""
        pieces = self._map.take_dirty()
        try:
            self._write_map(pieces)
        except VfsError:
            self._map.still_dirty(pieces)
            raise

    def hold(self, offset: int) -> None:
        """Have the block with the byte at `offset` here, as if it were changed."""
        with self._lock:
            if not self.has_changes(offset, 1):
                start = offset >> self._bits << self._bits
                block = self.read(start, min(self._block_bytes, self.size - start))
                self.write(start, [block])

    # --- durability -----------------------------------------------------------------------------

    def flush(self) -> None:
        with self._flushing:
            with self._lock:
                pieces = self._map.take_dirty()
            self._make_durable(pieces)

    def _make_durable(self, pieces: list[tuple[int, bytes]]) -> None:
        """The slots, and then the pieces of the map that lead to them (V1)."""
        if self._in_doubt:
            raise VfsError(Code.IO, "a snapshot of the overlay failed half-way")
        try:
            self._store.flush()
            if pieces:
                self._write_map(pieces)
                self._store.flush()
        except VfsError:
            with self._lock:
                self._map.still_dirty(pieces)
            raise

    def _write_map(self, pieces: list[tuple[int, bytes]]) -> None:
        offset = self._header.map_offset(self._header.present)
        for at, piece in pieces:
            self._store.write(offset + at, [piece])

    def _barrier(self) -> None:
        """What was written before this is durable before what is written after it."""
        if not self._eager:
            self._store.flush()

    def _replace_header(self, header: Header) -> None:
        """The change of states becomes true (V4)."""
        self._barrier()
        self._in_doubt = True
        write_header(self._store, header)
        self._barrier()
        self._in_doubt = False
        self._header = header

    def tell_stage(self, stage: MergeStage) -> None:
        """Say durably how far a merge is, of an overlay that is durable before. It is written also
        if it is said already, because a flush may have failed since."""
        with self._nothing_moves() as header:
            self._replace_header(header.next(stage=stage))

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._store.close()
            self._base.close()

    # --- states (through `snapshots`) -----------------------------------------------------------

    def kept(self) -> list[Snapshot]:
        """The snapshots."""
        return [
            Snapshot(kept.name, kept.created_ns, kept.changed_blocks << self._bits)
            for kept in self._header.snapshots
        ]

    def _find(self, name: str) -> KeptMap:
        for kept in self._header.snapshots:
            if kept.name == name:
                return kept
        raise unknown(name, self.kept())

    @contextmanager
    def _nothing_moves(self) -> Iterator[Header]:
        """While states change, nobody writes, and all that was written is in the map's place."""
        with self._flushing, self._lock:
            if self._eager:
                self._write_dirty()
            else:
                self._make_durable(self._map.take_dirty())
            yield self._header

    def keep(self, name: str, created_ns: int) -> None:
        """Copy the map."""
        with self._nothing_moves() as header:
            check_new_name(name, self.kept())
            kept = KeptMap(name, header.free_map(), created_ns, self._map.changed)
            self._write_copy(kept.map, self._map.slots)
            self._replace_header(header.next(snapshots=(*header.snapshots, kept)))
            self._map.share()

    def go_back(self, name: str) -> None:
        """Copy the snapshot's map, because from now on the copy changes."""
        with self._nothing_moves() as header:
            slots = self._read_map(self._find(name).map)
            present = header.free_map()
            self._write_copy(present, slots)
            self._replace_header(header.next(present=present))
            self._map.replace(slots)

    def forget(self, name: str) -> None:
        """What the others do not have becomes free."""
        with self._nothing_moves() as header:
            gone = self._find(name)
            slots = self._read_map(gone.map)
            stay = tuple(kept for kept in header.snapshots if kept is not gone)
            # What cannot be read is told before anything has changed.
            alone = unshared(slots, (self._read_map(kept.map) for kept in stay))
            self._replace_header(header.next(snapshots=stay))
            self._map.give_up(slots, alone)

    def _write_copy(self, number: int, slots: array[int]) -> None:
        header = self._header
        raw = bytes_of_slots(slots).ljust(header.map_bytes, b"\0")
        self._store.write(header.map_offset(number), [raw])


class _FileSnapshots:
    """The states of an OverlayFile."""

    def __init__(self, overlay: OverlayFile) -> None:
        self.create = overlay.keep
        self.names = overlay.kept
        self.rollback = overlay.go_back
        self.delete = overlay.forget


def begin(store: Store, base: Base) -> Header:
    """Make an empty overlay of the file, whatever is in it.

    The first header says that it is being made; the second one comes when the file is as long as
    it has to be, so that one which is shorter is known to be damaged.
    """
    header = Header.new(base)
    store.resize(0)
    store.resize(2 * HEADER_BYTES)
    for size in (2 * HEADER_BYTES, header.data_offset):
        store.resize(size)
        header = header.next()
        write_header(store, header)
        store.flush()
    return header


def write_header(store: Store, header: Header) -> None:
    """Put a header into the copy that is its."""
    offset, raw = header.encode()
    store.write(offset, [raw])
