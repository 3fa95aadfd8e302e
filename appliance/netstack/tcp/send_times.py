"""When what is in flight was sent: one entry for each run that left at the same time.

RFC 8985 section 5.2 wants this for each segment. There are none here: a super-segment is cut up by
the link, and its pieces may be acknowledged and sent again at any border. So times are kept for
runs. What one flush sends is one run; what is sent again cuts its own out of it. Runs follow each
other without gaps from SND.UNA to SND.NXT, so each needs only its end.

No two runs have the same time, even if the clock stands still: which of two was sent first decides
what is lost. The number of runs is bounded: beyond it pairs of neighbours become one, with the
later time and, if one of them was sent again, as if both had been. Then something is believed lost
a little later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from math import inf

from appliance.clock import Instant
from appliance.limits import TCP_SEND_RUNS_MAX

Run = tuple[int, Instant, bool]
"""Where it ends, when it was last sent, and whether that was not the first time."""


class SendTimes:
    """The runs from SND.UNA to SND.NXT."""

    __slots__ = ("_last", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []  # always the same list
        self._last: Instant = -1

    def sent(self, end: int, now: Instant) -> None:
        """New text, up to `end`, went out. (Where nothing else is in flight, output.py does the
        same by itself.)"""
        runs = self.runs
        now = self._unlike_others(now)
        runs.append((end, now, False))
        if len(runs) > TCP_SEND_RUNS_MAX:
            self._merge()

    def sent_again(self, una: int, left: int, right: int, now: Instant) -> None:
        """[left, right) went out once more."""
        runs = self.runs
        now = self._unlike_others(now)
        at = bisect_right(runs, (left, inf, True))
        until = at
        start = runs[at - 1][0] if at else una
        parts: list[Run] = []
        if start < left:
            parts.append((left, *runs[at][1:]))
        parts.append((right, now, True))
        while until < len(runs) and runs[until][0] <= right:
            until += 1
        runs[at:until] = parts
        if len(runs) > TCP_SEND_RUNS_MAX:
            self._merge()

    def _unlike_others(self, now: Instant) -> Instant:
        """A time that no other run has."""
        latest = max(self._last, self.runs[-1][1]) if self.runs else self._last
        self._last = now = max(now, latest + 1)
        return now

    def acknowledged(self, ack: int) -> None:
        """Everything before `ack` has arrived: forget when that was sent."""
        runs = self.runs
        if not runs or runs[-1][0] <= ack:
            runs.clear()
        elif runs[0][0] <= ack:
            del runs[: bisect_right(runs, (ack, inf, True))]

    def of(self, left: int, right: int) -> Iterator[tuple[int, int, Instant, bool]]:
        """The runs that [left, right) is made of: left, right, when, again."""
        runs = self.runs
        for at in range(bisect_right(runs, (left, inf, True)), len(runs)):
            end, sent_at, again = runs[at]
            stop = min(end, right)
            if left >= stop:
                return
            yield left, stop, sent_at, again
            left = stop

    def _merge(self) -> None:
        """Make pairs of neighbours one run."""
        runs = self.runs
        merged = [
            (second[0], max(first[1], second[1]), first[2] or second[2])
            for first, second in zip(runs[::2], runs[1::2], strict=False)
        ]
        if len(runs) % 2:
            merged.append(runs[-1])
        runs[:] = merged
