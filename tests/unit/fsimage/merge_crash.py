"""What a crash can leave of a merge: of an image and its overlay together.

A merge is run while every write, flush and change of size of both files is remembered, in the one
order in which it asked for them. A flush is of one file. So at any point each file has everything
from before its own last flush, and of what came after it any sectors of 512 bytes, whatever the
other file has.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512


@dataclass(frozen=True)
class Event:
    """Something that a file of the host was told: data at an offset, a size, or to flush."""

    file: Path
    offset: int = 0
    data: bytes = b""
    size: int | None = None
    flush: bool = False


@dataclass
class Recorder:
    """Remembers what `files` are told. After `left` of it comes the `failure`, once."""

    files: list[Path]
    events: list[Event] = field(default_factory=list)
    left: int = -1
    failure: BaseException | None = None

    def of(self, handle: int) -> Path | None:
        known = {file.stat().st_ino: file for file in self.files}
        return known.get(os.fstat(handle).st_ino)

    def told(self, handle: int, *, at_ease: bool = False, **what: Any) -> None:
        """`at_ease`: nobody minds if it fails, so it does not."""
        file = self.of(handle)
        if file is None:
            return
        if self.failure is not None and self.left <= 0 and not at_ease:
            failure, self.failure = self.failure, None
            raise failure
        self.left -= 1
        self.events.append(Event(file, **what))


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """What the files are told is remembered, and flushes take no time."""
    write, truncate = os.pwritev, os.ftruncate

    def pwritev(handle: int, buffers: Any, offset: int, *words: Any) -> int:
        recorder.told(handle, offset=offset, data=b"".join(buffers))
        return write(handle, buffers, offset, *words)

    def ftruncate(handle: int, size: int) -> None:
        recorder.told(handle, size=size)
        truncate(handle, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        patch.setattr(os, "ftruncate", ftruncate)
        patch.setattr(os, "fdatasync", lambda handle: recorder.told(handle, flush=True))
        patch.setattr(os, "fsync", lambda handle: recorder.told(handle, at_ease=True, flush=True))
        yield recorder


def crashes(
    events: list[Event], before: dict[Path, bytes], seed: int, tries: int
) -> Iterator[dict[Path, bytes]]:
    """What the files can be after a crash: after each event what a kill leaves, and what `tries`
    power cuts do. No state comes twice."""
    dice = random.Random(seed)
    seen: set[int] = set()
    for cut in range(len(events) + 1):
        for shares in _shares(dice, tries):
            state = {
                file: _left([event for event in events[:cut] if event.file == file], raw, come)
                for (file, raw), share in zip(before.items(), shares, strict=True)
                for come in [_coming_through(dice, share)]
            }
            digest = hash(tuple(state.values()))
            if digest not in seen:
                seen.add(digest)
                yield state


def _shares(dice: random.Random, tries: int) -> Iterator[tuple[float, float]]:
    """How much comes through of what both files were told after their last flush."""
    yield 1, 1
    yield from ((0, 0), (0, 1), (1, 0))
    for _ in range(tries):
        some = dice.choice([0.1, 0.5, 0.9])
        yield dice.choice([(some, some), (some, 1), (1, some)])


def _coming_through(dice: random.Random, share: float) -> Callable[[], bool]:
    return lambda: dice.random() < share


def _left(events: list[Event], before: bytes, comes_through: Callable[[], bool]) -> bytes:
    flushed = max((at for at, event in enumerate(events) if event.flush), default=0)
    raw = bytearray(before)
    for at, event in enumerate(events):
        if event.size is not None:
            raw = raw[: event.size].ljust(event.size, b"\0")
        for start in range(0, len(event.data), SECTOR):
            if at < flushed or comes_through():
                piece = event.data[start : start + SECTOR]
                raw[event.offset + start : event.offset + start + len(piece)] = piece
    return bytes(raw)
