"""Deadlines: one heap for a whole host, no ticks.

A timer is moved far more often than it expires (a retransmission timer with every acknowledgement).
So a timer has at most one entry in the heap, which may be too early: moving the deadline later only
writes an attribute, and the entry is put back where it belongs when it comes up. `next_deadline`
may therefore be earlier than anything that is due, but never later."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from appliance.clock import Instant


class Timer:
    """One deadline and what to do then. `deadline` is None while it is not set."""

    __slots__ = ("_action", "_entry", "_timers", "deadline")

    def __init__(self, timers: Timers, action: Callable[[Instant], None]) -> None:
        self._timers = timers
        self._action = action
        self._entry: Instant | None = None  # where the heap has it
        self.deadline: Instant | None = None

    def set(self, deadline: Instant) -> None:
        """Expire at `deadline`, and at no other time."""
        self.deadline = deadline
        entry = self._entry
        if entry is None or deadline < entry:
            self._entry = deadline
            self._timers.push(deadline, self)
            if entry is not None:
                self._timers.gone()

    def clear(self) -> None:
        """Do not expire."""
        self.deadline = None

    def discard(self) -> None:
        """Never expire again. Its owner is gone, and the heap does not keep it alive."""
        self.deadline = None
        self._action = _nothing
        if self._entry is not None:
            self._entry = None
            self._timers.gone()

    def is_at(self, entry: Instant) -> bool:
        """Is the heap entry made for `entry` the one that counts?"""
        return entry == self._entry

    def due(self, entry: Instant, now: Instant) -> None:
        """The heap entry made for `entry` has come up: act, move on, or forget it."""
        if entry != self._entry:
            self._timers.dead -= 1
            return  # overtaken by an earlier deadline, or discarded
        self._entry = None
        deadline = self.deadline
        if deadline is None:
            return
        if deadline > now:
            self.set(deadline)
            return
        self.deadline = None
        self._action(now)


def _nothing(now: Instant) -> None:
    """What a discarded timer does."""


class Timers:
    """All timers of a host."""

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, Timer]] = []
        self._serial = 0
        self.dead = 0  # entries that will do nothing when they come up
        self.next_deadline: Instant | None = None
        """Nothing is due before this instant."""

    def timer(self, action: Callable[[Instant], None]) -> Timer:
        """A new timer, not set. `action(now)` runs in `expire`, and may set it again."""
        return Timer(self, action)

    def push(self, deadline: Instant, timer: Timer) -> None:
        self._serial += 1  # equal deadlines expire in the order in which they were set
        heappush(self._heap, (deadline, self._serial, timer))
        self._look()

    def gone(self) -> None:
        """An entry of the heap has lost its purpose. When most have, they are thrown out: an idle
        timer of hours must not stay behind every connection there ever was."""
        self.dead += 1
        if self.dead > 64 and self.dead * 2 > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if entry[2].is_at(entry[0])]
            heapify(self._heap)
            self.dead = 0
            self._look()

    def _look(self) -> None:
        """It is asked for far more often than it changes."""
        self.next_deadline = self._heap[0][0] if self._heap else None

    def expire(self, now: Instant) -> None:
        """Run what is due at `now`. Afterwards `next_deadline` is later than `now`, unless an
        action set its timer to now or earlier."""
        heap = self._heap
        due: list[tuple[Instant, int, Timer]] = []
        while heap and heap[0][0] <= now:
            due.append(heappop(heap))
        due.reverse()
        try:
            while due:
                entry, _, timer = due.pop()
                timer.due(entry, now)
        finally:
            for rest in due:  # one has raised: the others are due as before
                heappush(heap, rest)
            self._look()
