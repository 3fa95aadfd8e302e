"""Virtual time: a heap of things to do, and a clock that jumps from one to the next.

Nothing happens between two instants, so an hour costs nothing, and a run depends on nothing but
what was scheduled.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from appliance.clock import Instant

WALL_AT_START = 1_700_000_000_000_000_000
STEPS_MAX = 5_000_000
"""A world that does more than this in one `run` will never come to rest."""


class VirtualClock:
    """A clock (appliance.clock.Clock) that a test moves."""

    def __init__(self, start: Instant = 0) -> None:
        self._now = start
        self._start = start
        self._serial = 0
        self._to_do: list[tuple[Instant, int, Callable[[], None]]] = []

    def now(self) -> Instant:
        return self._now

    def wall(self) -> int:
        return WALL_AT_START + self._now - self._start

    def at(self, instant: Instant, action: Callable[[], None]) -> None:
        """Do it at `instant`; what is set for the same instant is done in that order."""
        self._serial += 1
        heappush(self._to_do, (max(instant, self._now), self._serial, action))

    def after(self, duration: int, action: Callable[[], None]) -> None:
        """Do it `duration` nanoseconds from now."""
        self.at(self._now + duration, action)

    def run_until(self, instant: Instant) -> None:
        """Do all that is due up to `instant`, which is the time afterwards."""
        self._run(instant, lambda: False)
        self._now = max(self._now, instant)

    def run(self, duration: int) -> None:
        """The same, for a while from now."""
        self.run_until(self._now + duration)

    def run_while(self, condition: Callable[[], bool], limit: int) -> bool:
        """Go on until `condition` no longer holds, or for `limit` nanoseconds. True: it has
        ended."""
        self._run(self._now + limit, lambda: not condition())
        return not condition()

    def _run(self, last: Instant, enough: Callable[[], bool]) -> None:
        for _ in range(STEPS_MAX):
            if enough() or not self._to_do or self._to_do[0][0] > last:
                return
            self._now, _, action = heappop(self._to_do)
            action()
        raise AssertionError("the world does not come to rest")
