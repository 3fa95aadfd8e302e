"""Measuring on a machine that others use as well: everything on one core, rounds that take turns,
and of each figure the best and the median.

A sample is taken in processor time and in wall time. Work that waits for nothing is judged by the
first: what others do on the machine is not in it. What waits for a disk can only be judged by the
second.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """How long `count` operations took, in seconds, and how many bytes they moved."""

    count: int
    cpu: float
    wall: float
    moved: int = 0


class Timer:
    """Takes samples of one subject."""

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu: Final = cpu

    def __call__(self, act: Callable[[], int], moved: int = 0) -> Sample:
        """`act` says how many operations it did. What others left behind is not collected in it."""
        gc.collect()
        cpu, wall = self._cpu(), time.perf_counter()
        count = act()
        wall, cpu = time.perf_counter() - wall, self._cpu() - cpu
        return Sample(count, cpu, wall, moved)


def cpu_of(pid: int) -> float:
    """The processor time of another process, in steps of 10 ms."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and those that it starts, have the first core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fixed_work() -> float:
    """Processor time of a piece of Python that is always the same: how fast the machine is now."""
    begin = time.process_time()
    numbers: dict[int, int] = {}
    for number in range(60_000):
        numbers[number & 1023] = number
    return time.process_time() - begin


@dataclass(slots=True)
class Figures:
    """All samples of one row and one subject."""

    samples: list[Sample] = field(default_factory=list)

    def each(self, *, wall: bool) -> tuple[float, float]:
        """Seconds for one operation: the best, and the median."""
        times = [(sample.wall if wall else sample.cpu) / sample.count for sample in self.samples]
        return min(times), statistics.median(times)

    @property
    def moved(self) -> int:
        """Bytes in one operation."""
        return self.samples[0].moved // self.samples[0].count
