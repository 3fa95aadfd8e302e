"""Tasks, done by several processes."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from tests.crash.kernel import Kernel
from tests.crash.oracles import Tally
from tests.crash.plan import Failure, Task, run

OUT: Final = Path(__file__).parents[1] / "out"
"""Where images of states that fail are put."""

_TASKS_PER_PROCESS: Final = 25
"""Whatever a process may gather in memory: it is gone after some minutes."""

Result = tuple[Tally, list[Failure]]


def results(todo: list[Task], options: argparse.Namespace) -> Iterator[Result]:
    """What comes of the tasks, done by `options.jobs` processes; 0: here."""
    if not options.jobs:
        for task in todo:
            yield work(task, options)
        return
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=_TASKS_PER_PROCESS) as pool:
        yield from pool.imap_unordered(partial(work, options=options), todo)


def work(task: Task, options: argparse.Namespace) -> Result:
    """One task."""
    logging.disable(logging.WARNING)
    run_it = partial(
        run,
        task,
        save_to=OUT,
        only=options.only,
        failures_max=options.failures,
        nested_every=options.nested_every,
    )
    if not options.kernel_every or os.geteuid():
        return run_it()
    with Kernel() as kernel:
        return run_it(kernel=kernel, kernel_every=options.kernel_every)
