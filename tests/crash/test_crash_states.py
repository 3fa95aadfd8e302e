"""At least a thousand crash states, of every geometry and all work, each brought up by us, by
e2fsck and, where it may be asked, by the kernel. More, of other seeds: make crash STATES=20000."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from appliance.fsimage.durability import Durability
from tests.crash.kernel import Kernel
from tests.crash.plan import CROWD, JOURNALED, SECOND_LIFE, Task, run
from tests.crash.scripts import SCRIPTS
from tests.crash.workload import PACES

OUT: Final = Path(__file__).parents[1] / "out"
SEED: Final = 4

RANDOM: Final = [
    Task(geometry, work, SEED + index, 12)
    for geometry in JOURNALED
    for index, work in enumerate((*PACES, SECOND_LIFE))
]
DIRECTED: Final = [Task("1k", script, SEED, 14) for script in SCRIPTS] + [
    Task(geometry, script, SEED, 5)
    for script in SCRIPTS
    for geometry in ("4k", "upstream", "ext3", "no-csum")
]
OTHERS: Final = [
    Task("1k", pace, SEED, 15, durability)
    for pace in PACES
    for durability in (Durability.PROCESS, Durability.LAZY)
]
CROWDS: Final = [Task(geometry, CROWD, SEED, 40) for geometry in ("1k", "4k", "ext3")]
ALL: Final = [*RANDOM, *DIRECTED, *OTHERS, *CROWDS]


def test_there_are_enough_of_them() -> None:
    assert sum(task.states for task in ALL) >= 1000


@pytest.mark.root
@pytest.mark.parametrize("task", ALL, ids=str)
def test_every_state_is_sound(task: Task, kernel: Kernel) -> None:
    tally, failures = run(task, kernel=kernel, kernel_every=25, save_to=OUT)
    assert not failures, "\n".join(map(str, failures))
    assert tally.states == task.states
