"""Which slot of an overlay file has which block of the image: the present map, in memory.

A slot that only the present state uses is *private*: its block is changed in place. One that a
snapshot uses, too, never changes; its block gets another slot when it is written to. A slot that
no state uses any more is handed out again, but not at once: a read that began before the state was
given up may still be on its way to it, so it waits for the next time that a state is given up.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import compress, pairwise
from typing import Final

from appliance.fsimage.overlay_format import MAP_ENTRY_BYTES, MAP_PAGE_BYTES, bytes_of_slots

_PAGE_BLOCKS: Final = MAP_PAGE_BYTES // MAP_ENTRY_BYTES
_COMPARED_BLOCKS: Final = 256
"""Maps are compared in pieces: of two states most pieces are equal, or empty."""

Run = tuple[int, int]
"""The first slot, and how many."""


class SlotMap:
    """The present map, and what is known of the slots in it."""

    def __init__(self, slots: array[int], kept: Iterable[array[int]]) -> None:
        """`kept`: the maps of all snapshots, which are looked at one by one."""
        used = set(slots)

        def noted() -> Iterator[array[int]]:
            for other in kept:
                used.update(other)
                yield other

        self.slots = slots
        self._private = unshared(slots, noted())
        used.discard(0)
        self.changed = len(slots) - slots.count(0)
        self._next = max(used, default=0) + 1
        self._free: list[Run] = list(_gaps(used))
        self._given_up: list[int] = []
        self._dirty: set[int] = set()

    @property
    def end(self) -> int:
        """The number of the first slot that was never used."""
        return self._next

    # --- where a block is, and where it goes -------------------------------------------------

    def private_run(self, number: int, count: int) -> Run | None:
        """Where block `number`, and those of the `count` from there that are in the slots behind
        it, are changed in place; None if the first one has to go elsewhere."""
        if not self._private[number]:
            return None
        slots, private, first = self.slots, self._private, self.slots[number]
        length = 1
        while (
            length < count and private[number + length] and slots[number + length] == first + length
        ):
            length += 1
        return first, length

    def new_run(self, number: int, count: int) -> Run:
        """Free slots for blocks from `number` on, as many as are needed and there are in a row."""
        until = self._private.find(1, number, number + count)
        if until >= 0:
            count = until - number
        if not self._free:
            first, self._next = self._next, self._next + count
            return first, count
        first, there = self._free.pop()
        if there > count:
            self._free.append((first + count, there - count))
        return first, min(count, there)

    def give_back(self, run: Run) -> None:
        """What `new_run` gave was not written to."""
        self._free.append(run)

    def point(self, number: int, run: Run) -> None:
        """From now on, blocks from `number` on are in these slots, which hold them already."""
        first, count = run
        end = number + count
        self.changed += self.slots[number:end].count(0)
        self.slots[number:end] = array("I", range(first, first + count))
        self._private[number:end] = b"\1" * count
        self._dirty.update(range(number // _PAGE_BLOCKS, (end - 1) // _PAGE_BLOCKS + 1))

    # --- what has to be written ----------------------------------------------------------------

    def take_dirty(self) -> list[tuple[int, bytes]]:
        """The pieces of the map that were changed since the last time: offset and contents."""
        pages, self._dirty = sorted(self._dirty), set()
        return [(page * MAP_PAGE_BYTES, self._page(page)) for page in pages]

    def still_dirty(self, pieces: list[tuple[int, bytes]]) -> None:
        """What `take_dirty` gave could not be written."""
        self._dirty.update(offset // MAP_PAGE_BYTES for offset, _ in pieces)

    def _page(self, page: int) -> bytes:
        slots = self.slots[page * _PAGE_BLOCKS : (page + 1) * _PAGE_BLOCKS]
        return bytes_of_slots(slots).ljust(MAP_PAGE_BYTES, b"\0")

    # --- states ------------------------------------------------------------------------------

    def share(self) -> None:
        """A snapshot has every slot of the present state, too."""
        self._private = bytearray(len(self.slots))

    def replace(self, slots: array[int]) -> None:
        """Give up the present state; that of a snapshot takes its place."""
        self._give_up(compress(self.slots, self._private))
        self.slots = slots
        self.changed = len(slots) - slots.count(0)
        self._dirty.clear()
        self.share()

    def give_up(self, gone: array[int], alone: bytearray) -> None:
        """Give up the state of a snapshot; `alone`: what no other snapshot has (see unshared). What
        only it had is free, what only it and the present state had is private."""
        unused = []
        for number in _marked(alone):
            slot = gone[number]
            if self.slots[number] == slot:
                self._private[number] = 1
            else:
                unused.append(slot)
        self._give_up(unused)

    def _give_up(self, slots: Iterable[int]) -> None:
        self._free += _runs(sorted(self._given_up))
        self._given_up = list(slots)


def unshared(one: array[int], others: Iterable[array[int]]) -> bytearray:
    """1 for each block that has a slot in `one`, and none or another one in each of the `others`,
    which are looked at one by one; 0 for the rest."""
    alone = bytearray(map(bool, one))
    for other in others:
        _unmark_shared(alone, one, other)
    return alone


def _unmark_shared(alone: bytearray, one: array[int], other: array[int]) -> None:
    start = alone.find(1)
    while start >= 0:
        start -= start % _COMPARED_BLOCKS
        end = start + _COMPARED_BLOCKS
        piece, theirs = one[start:end], other[start:end]
        if piece == theirs:
            alone[start:end] = bytes(len(piece))
        elif any(theirs):
            for number, (slot, their) in enumerate(zip(piece, theirs, strict=True), start):
                if slot == their:
                    alone[number] = 0
        start = alone.find(1, end)


def _marked(marks: bytearray) -> Iterator[int]:
    number = marks.find(1)
    while number >= 0:
        yield number
        number = marks.find(1, number + 1)


def _runs(slots: list[int]) -> Iterator[Run]:
    """Sorted numbers as runs."""
    first = 0
    for index, slot in enumerate(slots, 1):
        if index == len(slots) or slots[index] != slot + 1:
            yield slots[first], index - first
            first = index


def _gaps(used: set[int]) -> Iterator[Run]:
    """The runs of numbers from 1 up to the largest that are not used."""
    if len(used) == max(used, default=0):
        return
    for before, after in pairwise([0, *sorted(used)]):
        if after > before + 1:
            yield before + 1, after - before - 1
