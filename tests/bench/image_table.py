"""The rows about images, what they should be, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from appliance.limits import KiB
from tests.bench.measuring import Figures

GROUP: Final = 32
CLIENTS: Final = {1: 250, 8: 800, 64: 2048}
"""How many wait for durability at a time, and how often that is measured in a round."""

GB: Final = 1e9
SUBJECTS: Final = ("ours", "kernel", "fuse2fs")


@dataclass(frozen=True, slots=True)
class Goal:
    """At least so many operations, or bytes, a second; or so much of what the kernel does."""

    text: str
    operations: float = 0
    data: float = 0
    of_kernel: float = 0

    def is_met(self, ours: float, kernel: float | None, moved: int) -> bool:
        """`ours`, `kernel`: seconds for one operation."""
        if self.of_kernel:
            return kernel is None or kernel / ours >= self.of_kernel
        return 1 / ours >= self.operations and moved / ours >= self.data


MILLION: Final = Goal("1,000,000/s", operations=1e6)
HALF: Final = Goal("half the kernel's", of_kernel=0.5)
GOALS: Final = {
    "GETATTR, cached": MILLION,
    "LOOKUP, cached": MILLION,
    "LOOKUP, uncached, directories of 100": Goal("100,000/s", operations=1e5),
    "LOOKUP, uncached, a directory of 20,000": Goal("40,000/s", operations=4e4),
    "READ 64 KiB, warm": Goal("8 GB/s", data=8 * GB),
    "WRITE 64 KiB, overwriting": Goal("3 GB/s", data=3 * GB),
    "WRITE 64 KiB, new blocks": Goal("3 GB/s", data=3 * GB),
    "create, alone": Goal("12,000/s", operations=12e3),
    f"create, in groups of {GROUP}": Goal("30,000/s", operations=30e3),
    **{f"create, durable, {clients} at a time": HALF for clients in CLIENTS},
    "open, clean, 2 GiB": Goal("under 5 ms", operations=1 / 5e-3),
    "open, dirty": Goal("under 1 s", operations=1),
}

Table = dict[str, dict[str, Figures]]
"""By row and subject."""


def is_wall(row: str) -> bool:
    """Whether somebody waits for the disk there."""
    return "durable" in row or row.startswith("open")


def lines(table: Table) -> Iterator[str]:
    """The table, as it is printed."""
    head = "".join(f"{name:>15}{'median':>13}" for name in SUBJECTS)
    yield f"{'':42}{'us':>11}{head}{'of kernel':>11}   goal"
    for row, figures in table.items():
        wall, moved = is_wall(row), figures["ours"].moved
        best = {name: each.each(wall=wall) for name, each in figures.items()}
        ours = best["ours"][0]
        text = f"{row:42}{ours * 1e6:>11,.2f}"
        for name in SUBJECTS:
            found = [_figure(value, moved) for value in best[name]] if name in best else ["", ""]
            text += f"{found[0]:>15}{found[1]:>13}"
        kernel = best["kernel"][0] if "kernel" in best else None
        text += f"{kernel / ours:>10.2f}x" if kernel else " " * 11
        goal = GOALS.get(row)
        if goal is not None:
            text += f"   {goal.text}{'' if goal.is_met(ours, kernel, moved) else '  MISSED'}"
        yield text.rstrip()


def _figure(seconds: float, moved: int) -> str:
    """A rate."""
    if moved > 4 * KiB:
        return f"{moved / seconds / GB:.2f} GB/s"
    return f"{1 / seconds:,.0f}/s"
