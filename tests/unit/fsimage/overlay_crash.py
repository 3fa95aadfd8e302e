"""What a crash can leave of an overlay file, and whether it is right.

A store remembers every write, flush and change of size. From that come the files that a crash at
any point may leave: everything before the last flush, and of what came after it any sectors of 512
bytes (a host that lost power), or everything in its order up to the point (a process that was
killed). A script is run on an overlay over such a store; then every file is opened again, and
compared with what the script did.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from appliance.fsimage.device import WritableBuffer
from appliance.fsimage.overlay_file import OverlayFile, Store, begin
from appliance.fsimage.overlay_format import Base, Header, read_header
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer

SECTOR = 512
BLOCKS = 12
BASE = bytes(index * 7 >> 3 & 0x7F for index in range(BLOCKS * 4096 - 1536))
"""The last block is not whole."""
IDENTITY = Base(len(BASE), 1, bytes(32))


class BytesDevice:
    """A device in memory, that grows."""

    read_only = False

    def __init__(self, raw: bytes | bytearray) -> None:
        self.raw = bytearray(raw)

    @property
    def size(self) -> int:
        return len(self.raw)

    def read(self, offset: int, count: int) -> bytes:
        if not 0 <= offset <= offset + count <= self.size:
            raise VfsError(Code.IO, f"{count} at {offset} of {self.size}")
        return bytes(self.raw[offset : offset + count])

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        for view in views:
            view[:] = self.read(offset, len(view))
            offset += len(view)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        joined = b"".join(data)
        self.read(offset, len(joined))
        self.raw[offset : offset + len(joined)] = joined

    def resize(self, size: int) -> None:
        self.raw = self.raw[:size].ljust(size, b"\0")

    def flush(self) -> None:
        """What is in memory is there."""

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass
class Event:
    """Something that the store was told; or, with `done`, a step of the script that came to its
    end, which says what has to hold from there on."""

    offset: int = 0
    data: bytes = b""
    flush: bool = False
    resize: int | None = None
    done: Done | None = None


class RecordingStore(BytesDevice):
    """A store that remembers."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.events: list[Event] = []

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        super().write(offset, data)
        self.events.append(Event(offset, b"".join(data)))

    def resize(self, size: int) -> None:
        super().resize(size)
        self.events.append(Event(resize=size))

    def flush(self) -> None:
        self.events.append(Event(flush=True))


States = dict[str, bytes]


@dataclass
class Done:
    """After a step: what a reader sees, whether that is durable, and the snapshots."""

    contents: bytes
    durable: bool
    kept: States = field(default_factory=dict)


def new_overlay(store: Store, *, eager: bool = False) -> OverlayFile:
    return OverlayFile(BytesDevice(BASE), store, begin(store, IDENTITY), eager=eager)


def reopen(raw: bytes | bytearray) -> OverlayFile:
    header = header_of(raw)
    assert header is not None
    return OverlayFile(BytesDevice(BASE), BytesDevice(raw), header)


def header_of(raw: bytes | bytearray) -> Header | None:
    return read_header(BytesDevice(raw))


class Script:
    """Random steps on an overlay, and a model of it."""

    def __init__(self, seed: int, *, eager: bool) -> None:
        self.random = random.Random(seed)
        self.store = RecordingStore()
        self.overlay = new_overlay(self.store, eager=eager)
        self.model = bytearray(BASE)
        self.kept: States = {}
        self.eager = eager
        self._done(durable=True)

    def run(self, steps: int) -> list[Event]:
        for number in range(steps):
            self.step(number)
            assert self.overlay.read(0, len(BASE)) == self.model
        return self.store.events

    def step(self, number: int) -> None:
        dice = self.random.random()
        names = sorted(self.kept)
        if dice < 0.55:
            self._write(number)
        elif dice < 0.7:
            self.overlay.flush()
            self._done(durable=True)
        elif dice < 0.8 or not names:
            self.overlay.snapshots.create(f"s{number}", number)
            self.kept[f"s{number}"] = bytes(self.model)
            self._done(durable=True)
        else:
            name = self.random.choice(names)
            if dice < 0.9:
                self.overlay.snapshots.rollback(name)
                self.model[:] = self.kept[name]
            else:
                self.overlay.snapshots.delete(name)
                del self.kept[name]
            self._done(durable=True)

    def _write(self, number: int) -> None:
        first = self.random.randrange(len(BASE) // SECTOR)
        count = min(self.random.choice([1, 3, 8, 8, 16, 30]), len(BASE) // SECTOR - first)
        if self.random.random() < 0.5:
            first, count = first // 8 * 8, min(8, len(BASE) // SECTOR - first // 8 * 8)
        data = bytes([0x80 | number & 0x7F]) * (count * SECTOR)
        offset = first * SECTOR
        self.overlay.write(offset, [data[:100], data[100:]])
        self.model[offset : offset + len(data)] = data
        self._done(durable=self.eager)

    def _done(self, *, durable: bool) -> None:
        done = Done(bytes(self.model), durable, dict(self.kept))
        self.store.events.append(Event(done=done))


# --- what a crash leaves -----------------------------------------------------


def killed(events: list[Event], cut: int) -> bytearray:
    """The file when the process is killed after `cut` events."""
    raw = bytearray()
    for event in events[:cut]:
        raw = _applied(raw, event, lambda sector: True)
    return raw


def power_cut(events: list[Event], cut: int, dice: random.Random) -> bytearray:
    """A file that the host may have when its power fails after `cut` events: it may have written
    what was not flushed in any order, and sectors of it only."""
    flushed = max((at for at in range(cut) if events[at].flush), default=0)
    raw = killed(events, flushed)
    share = dice.choice([0.1, 0.5, 0.9])
    for event in events[flushed:cut]:
        raw = _applied(raw, event, lambda sector: dice.random() < share)
    return raw


def _applied(raw: bytearray, event: Event, comes_through: Callable[[int], bool]) -> bytearray:
    if event.resize is not None:
        return raw[: event.resize].ljust(event.resize, b"\0")
    for at in range(0, len(event.data), SECTOR):
        if comes_through(at):
            piece = event.data[at : at + SECTOR]
            raw[event.offset + at : event.offset + at + len(piece)] = piece
    return raw


# --- whether it is right -----------------------------------------------------


def _steps(events: list[Event]) -> Iterator[tuple[int, Done]]:
    for at, event in enumerate(events):
        if event.done is not None:
            yield at, event.done


def check(events: list[Event], cut: int, raw: bytearray) -> None:
    """The file that a crash after `cut` events left has all that was durable, and nothing that was
    never written."""
    steps = list(_steps(events))
    before = [done for at, done in steps if at < cut]
    if not before:
        assert header_of(raw) is None or not reopen(raw).changed_blocks
        return
    coming = [done for at, done in steps if at >= cut][:1]
    durable = max(index for index, done in enumerate(before) if done.durable)
    overlay = reopen(raw)
    _check_contents(overlay, [done.contents for done in before[durable:] + coming])
    names = {snapshot.name for snapshot in overlay.snapshots.names()}
    assert names in [set(done.kept) for done in before[-1:] + coming]
    known = {name: text for done in before + coming for name, text in done.kept.items()}
    for name in names:
        overlay.snapshots.rollback(name)
        assert overlay.read(0, len(BASE)) == known[name], f"snapshot {name}"


def _check_contents(overlay: OverlayFile, possible: list[bytes]) -> None:
    there = overlay.read(0, len(BASE))
    for at in range(0, len(BASE), SECTOR):
        sector = slice(at, at + SECTOR)
        assert there[sector] in [contents[sector] for contents in possible], f"sector at {at}"
