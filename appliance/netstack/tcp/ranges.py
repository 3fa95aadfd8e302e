"""Sets of sequence numbers as sorted runs.

What has been acknowledged selectively, what is believed lost (together the scoreboard of RFC 6675),
and what lies out of order are all sets of bytes. A set is kept as half-open runs [left, right) that
are disjoint and do not touch, so that it costs what it has holes, whatever segments the bytes
travelled in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

_NO_RUNS: list[int] = []
"""Of all sets in which nothing has been yet: most stay so."""


class Ranges:
    """A set of sequence numbers."""

    __slots__ = ("_lefts", "_rights", "size")

    def __init__(self) -> None:
        self._lefts = self._rights = _NO_RUNS
        self.size = 0  # how many numbers are in the set

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._lefts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The runs, from the left. The set must not change meanwhile."""
        return zip(self._lefts, self._rights, strict=True)

    def __repr__(self) -> str:
        return f"<Ranges {list(self)}>"

    @property
    def left(self) -> int:
        """The first number. The set is not empty."""
        return self._lefts[0]

    @property
    def right(self) -> int:
        """Behind the last number. The set is not empty."""
        return self._rights[-1]

    @property
    def first(self) -> tuple[int, int]:
        """The first run. The set is not empty."""
        return self._lefts[0], self._rights[0]

    def __contains__(self, seq: int) -> bool:
        return self.run_of(seq) is not None

    def run_of(self, seq: int) -> tuple[int, int] | None:
        """The run with `seq` in it."""
        at = bisect_right(self._lefts, seq) - 1
        if at < 0 or self._rights[at] <= seq:
            return None
        return self._lefts[at], self._rights[at]

    def covers(self, left: int, right: int) -> bool:
        """Is all of [left, right) in the set?"""
        run = self.run_of(left)
        return run is not None and right <= run[1]

    def gaps(self, left: int, right: int) -> list[tuple[int, int]]:
        """What of [left, right) is not in the set, as runs from the left."""
        lefts, rights = self._lefts, self._rights
        gaps: list[tuple[int, int]] = []
        for at in range(bisect_right(rights, left), len(lefts)):
            if left >= right:
                return gaps
            if lefts[at] > left:
                gaps.append((left, min(lefts[at], right)))
            left = rights[at]
        if left < right:
            gaps.append((left, right))
        return gaps

    def add(self, left: int, right: int) -> int:
        """Put [left, right) in. How many of it are new?"""
        if self._lefts is _NO_RUNS:
            self._lefts, self._rights = [], []
        lefts, rights = self._lefts, self._rights
        at = bisect_left(rights, left)  # the first run that touches it, or lies behind
        until = bisect_right(lefts, right)
        before = 0
        if at < until:
            left, right = min(left, lefts[at]), max(right, rights[until - 1])
            before = sum(rights[i] - lefts[i] for i in range(at, until))
        lefts[at:until] = (left,)
        rights[at:until] = (right,)
        self.size += right - left - before
        return right - left - before

    def remove(self, left: int, right: int) -> int:
        """Take [left, right) out. How many of it were in the set?"""
        lefts, rights = self._lefts, self._rights
        at = bisect_right(rights, left)
        until = bisect_left(lefts, right)
        if at >= until or left >= right:
            return 0
        outer_left, outer_right = lefts[at], rights[until - 1]
        gone = sum(rights[i] - lefts[i] for i in range(at, until))
        rest = []
        if outer_left < left:
            rest.append((outer_left, left))
        if outer_right > right:
            rest.append((right, outer_right))
        lefts[at:until] = [run[0] for run in rest]
        rights[at:until] = [run[1] for run in rest]
        gone -= sum(run[1] - run[0] for run in rest)
        self.size -= gone
        return gone

    def remove_before(self, seq: int) -> int:
        """Take out what is before `seq`. How many were that?"""
        return self.remove(self._lefts[0], seq) if self._lefts else 0

    def clear(self) -> None:
        """Take everything out."""
        self._lefts = self._rights = _NO_RUNS
        self.size = 0
