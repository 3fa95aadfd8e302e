"""Crash states of what is seldom met (rare.py)."""

from __future__ import annotations

from typing import Final

import pytest

from tests.crash.kernel import Kernel
from tests.crash.plan import SECOND_LIFE, Task, run

SEED: Final = 5

TASKS: Final = [
    Task("last-numbers", "every", SEED, 20),
    Task("last-numbers", SECOND_LIFE, SEED, 10),
    Task("three-levels", "three-levels-grow", SEED, 12),
    Task("three-levels", "three-levels-go", SEED, 12),
]
LARGE_BLOCKS: Final = Task("64k", "groups", SEED, 4)
"""Which the kernel only mounts where its pages are as large."""


@pytest.mark.root
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_state_is_sound(task: Task, kernel: Kernel) -> None:
    tally, failures = run(task, kernel=kernel, kernel_every=8, nested_every=6)
    assert not failures, "\n".join(map(str, failures))
    assert tally.states == task.states


def test_every_state_with_large_blocks_is_sound() -> None:
    tally, failures = run(LARGE_BLOCKS, nested_every=6)
    assert not failures, "\n".join(map(str, failures))
    assert tally.states == LARGE_BLOCKS.states
