"""Every state in which a crash may leave a device, of which a sample is taken.

Two kinds of crash. If the *process* dies (kill -9), what it had asked for has happened, in order: a
prefix of the log of writes, of which the last may be cut off. If the *host* dies (power), what was
written before the last flush is there; of what came after it, any part may be there: each sector
holds what it held at the flush, or what any one of the later writes put there. The sector is 512,
1024 or 4096 bytes, whatever disk it is.

There are far more such states than can be tried, so points are taken more often where something is
decided: around commit blocks, writes to the superblocks, checkpoints and wraps of the log. At each
point there are a few states that are known to be bad (only the last write arrived; all but the
first; ...) and random ones.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.crash.geometry import Geometry, Place
from tests.crash.recording import Flush, Image, MemoryDevice, Recording, Write

UNITS: Final = (512, 1024, 4096)
"""How finely a write may be torn."""

FLUSH: Final = "flush"
WRAP: Final = "wrap"
KINDS: Final = (FLUSH, WRAP, *(place.value for place in Place))
"""Of events near which a crash may happen."""

Piece = tuple[int, bytes]

_PENDING_MAX: Final = 512
"""Writes after a flush that are looked at one by one: more come only from big files."""


@dataclass(slots=True, frozen=True)
class State:
    """What is on the device: the first `settled` events of the log, and then `pieces`.

    `point`: how many events had begun when it happened; so it says what had been promised.
    `recipe`: in words, for whoever has to look into a failure.
    """

    point: int
    settled: int
    pieces: tuple[Piece, ...]
    recipe: str
    host: bool
    """Whether the host died; otherwise only the process."""


# --- pieces ------------------------------------------------------------------


def sectors_of(write: Write, unit: int) -> list[Piece]:
    """A write, cut where a device with sectors of `unit` bytes may tear it."""
    pieces = []
    start = write.offset
    while start < write.end:
        stop = min(write.end, (start // unit + 1) * unit)
        pieces.append((start, write.data[start - write.offset : stop - write.offset]))
        start = stop
    return pieces


def subset(writes: Sequence[Write], unit: int, share: float, rng: random.Random) -> list[Piece]:
    """Each sector of each write with probability `share`, in order."""
    return [piece for write in writes for piece in sectors_of(write, unit) if rng.random() < share]


def versions(writes: Sequence[Write], unit: int, rng: random.Random) -> list[Piece]:
    """Of each sector any one version: as of the flush, or as of any later write to it."""
    by_sector: dict[int, list[Piece]] = {}
    for write in writes:
        for piece in sectors_of(write, unit):
            by_sector.setdefault(piece[0] // unit, []).append(piece)
    return [
        piece for pieces in by_sector.values() for piece in pieces[: rng.randint(0, len(pieces))]
    ]


def whole(writes: Sequence[Write]) -> list[Piece]:
    return [(write.offset, write.data) for write in writes]


# --- points ------------------------------------------------------------------


class Points:
    """Where a crash happens: before some event of the log, in most cases near one that matters;
    always near one of kind `around`, if that is given.

    Each kind of event gets the same attention, however many of it there are: in a log of thousands
    of writes there are a handful of checkpoints.
    """

    def __init__(self, recording: Recording, geometry: Geometry, around: str = "") -> None:
        self._end: Final = len(recording.log)
        kinds: dict[str, list[int]] = {}
        last_in_log = -1
        for index, event in enumerate(recording.log):
            place = geometry.place(event) if isinstance(event, Write) else None
            if isinstance(event, Write) and place in (Place.LOG, Place.COMMIT_BLOCK):
                if event.offset < last_in_log:
                    kinds.setdefault(WRAP, []).append(index)
                last_in_log = event.offset
            kinds.setdefault(FLUSH if place is None else place.value, []).append(index)
        self._kinds: Final = [kinds[around]] if around else list(kinds.values())
        self._anywhere: Final = 0.0 if around else 0.15

    def choose(self, rng: random.Random) -> int:
        """A number of events that have happened."""
        if not self._kinds or rng.random() < self._anywhere:
            return rng.randint(0, self._end)
        # Mostly when it was just asked for: then it is what may have come before the others.
        return min(self._end, rng.choice(rng.choice(self._kinds)) + rng.choice((0, 1, 1, 1, 2)))


# --- states ------------------------------------------------------------------


class States:
    """A sample of the states of one recording, the same for the same seed."""

    def __init__(
        self,
        recording: Recording,
        geometry: Geometry,
        seed: int,
        *,
        host: bool = True,
        around: str = "",
    ) -> None:
        self._recording: Final = recording
        self._log: Final = recording.log
        self._points: Final = Points(recording, geometry, around)
        self._seed: Final = seed
        self._host: Final = host
        self._last_flush: Final = self._flushes()

    def _flushes(self) -> list[int]:
        """For every point: how many events are durable for certain."""
        found, last = [0], 0
        for index, event in enumerate(self._log):
            if isinstance(event, Flush):
                last = index + 1
            found.append(last)
        return found

    def sample(self, count: int) -> list[State]:
        """`count` states, in the order of the log: each is then made of the one before with little
        work."""
        rng = random.Random(self._seed)
        return self.at((self._points.choose(rng) for _ in range(count)), rng)

    def at(self, points: Iterable[int], rng: random.Random) -> list[State]:
        """One state at each of these points, in the order of the log."""
        found = [self._at(point, rng) for point in points]
        return sorted(found, key=lambda state: (state.settled, state.point))

    def _at(self, point: int, rng: random.Random) -> State:
        if not self._host or rng.random() < 0.3:
            return self._of_process(point, rng)
        return self._of_host(point, rng)

    def every_prefix(self) -> Iterator[State]:
        """The process dies before every single write."""
        for point in range(len(self._log) + 1):
            yield State(point, point, (), f"process {point}", False)

    def _of_process(self, point: int, rng: random.Random) -> State:
        event = self._log[point] if point < len(self._log) else None
        if isinstance(event, Write) and rng.random() < 0.5:
            unit = rng.choice(UNITS)
            pieces = sectors_of(event, unit)
            kept = rng.randint(0, len(pieces) - 1)
            recipe = f"process {point} kept {kept} of {len(pieces)} x {unit}"
            return State(point, point, tuple(pieces[:kept]), recipe, False)
        return State(point, point, (), f"process {point}", False)

    def pending(self, point: int) -> list[Write]:
        """The writes at `point` that need not have arrived."""
        since = self._log[self._last_flush[point] : point]
        return [event for event in since if isinstance(event, Write)]

    def _of_host(self, point: int, rng: random.Random) -> State:
        writes = self.pending(point)
        how, pieces = _some(writes, rng)
        recipe = f"host {point} of {len(writes)} pending {how}"
        return State(point, self._last_flush[point], tuple(pieces), recipe, True)

    def extremes(self, point: int) -> Iterator[State]:
        """The states at `point` that are known to be bad."""
        writes = self.pending(point)[-_PENDING_MAX:]
        settled = self._last_flush[point]
        for how, pieces in extremes_of(writes):
            yield State(point, settled, tuple(pieces), f"host {point} {how}", True)


def extremes_of(writes: Sequence[Write]) -> Iterator[tuple[str, list[Piece]]]:
    """What may have arrived of `writes`: nothing, all, each alone, all but each, a torn last."""
    yield "nothing", []
    if not writes:
        return
    yield "all", whole(writes)
    for index in range(len(writes)):
        yield f"only {index}", whole(writes[index : index + 1])
        yield f"all but {index}", whole([*writes[:index], *writes[index + 1 :]])
    for unit in UNITS:
        last = sectors_of(writes[-1], unit)
        yield f"last torn at {unit}", [*whole(writes[:-1]), *last[: len(last) // 2]]
        yield f"last torn at {unit} from behind", [*whole(writes[:-1]), *last[len(last) // 2 :]]


class Stage:
    """Devices in the states of one recording, which are asked for in the order of `settled`: each
    is made of the one before."""

    def __init__(self, recording: Recording, log_sectors: frozenset[int]) -> None:
        self._recording: Final = recording
        self._log_sectors: Final = log_sectors
        self._image: Final = Image(recording.base)
        self._cursor: Final = MemoryDevice(self._image.shared(), log_sectors)
        self._settled = 0

    def _advance(self, settled: int) -> None:
        """Apply the log up to there to what is common to this state and all that follow."""
        assert settled >= self._settled, "states come in order"
        for event in self._recording.log[self._settled : settled]:
            if isinstance(event, Write):
                self._cursor.put(event.offset, event.data)
        self._settled = settled

    @contextlib.contextmanager
    def device(self, state: State) -> Iterator[MemoryDevice]:
        """A device in that state; what is written to it concerns nobody else."""
        self._advance(state.settled)
        content = self._image.mapping()
        device = MemoryDevice(content, self._log_sectors)
        device.fingerprint, device.essence = self._cursor.fingerprint, self._cursor.essence
        for offset, data in state.pieces:
            device.put(offset, data)
        try:
            yield device
        finally:
            content.close()

    def close(self) -> None:
        self._cursor.content.close()
        self._image.close()


def _some(writes: Sequence[Write], rng: random.Random) -> tuple[str, list[Piece]]:
    """One of the things that may have arrived of `writes`."""
    if not writes:
        return "nothing", []
    kind = rng.randrange(11)
    index = rng.randrange(len(writes))
    unit = rng.choice(UNITS)
    if kind == 0:
        return "only the last", whole(writes[-1:])
    if kind == 1:
        return "all but the first", whole(writes[1:])
    if kind == 2:
        return f"only {index}", whole(writes[index : index + 1])
    if kind == 3:
        return f"all but {index}", whole([*writes[:index], *writes[index + 1 :]])
    if kind == 4:
        torn = sectors_of(writes[-1], unit)
        rng.shuffle(torn)
        return f"last torn at {unit}", [*whole(writes[:-1]), *torn[: len(torn) // 2]]
    if kind == 5:
        return f"any version of sectors of {unit}", versions(writes, unit, rng)
    share = rng.choice((0.1, 0.5, 0.9, 0.98))
    if kind >= 8:
        pieces = [*subset(writes[:-1], unit, share, rng), *whole(writes[-1:])]
        return f"the last, and a share of {share} of sectors of {unit}", pieces
    return f"a share of {share} of sectors of {unit}", subset(writes, unit, share, rng)
