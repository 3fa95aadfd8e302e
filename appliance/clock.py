"""Time: the only module that reads it.

Everything that decides takes `now` as an argument, so that the same code runs on this clock and on
the virtual one of tests/sim.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

Instant = int
"""Nanoseconds on a clock that never goes back. Only differences mean anything."""

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> Instant:
        """The present instant, for deadlines and durations."""

    def wall(self) -> int:
        """Nanoseconds since 1970-01-01 UTC, for file times."""


class SystemClock:
    """The kernel's clocks."""

    now = staticmethod(time.monotonic_ns)
    wall = staticmethod(time.time_ns)
