"""Crash states by the thousand: `make crash STATES=20000`, or one again, after a failure.

python -m tests.crash [--states N] [--seed N] [--geometry NAME] [--work NAME] [--only INDEX]
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from appliance.fsimage.durability import Durability
from tests.crash.oracles import Tally
from tests.crash.plan import EVERY_GEOMETRY, JOURNALED, WORKS, Failure, Task, tasks
from tests.crash.rare import RARE_SCRIPTS
from tests.crash.runner import OUT, results
from tests.crash.states import KINDS


def main() -> int:
    options = arguments()
    geometries = [options.geometry] if options.geometry else JOURNALED
    if options.work:
        how = Durability(options.durability)
        todo = [
            Task(name, options.work, options.seed, options.states, how, options.around)
            for name in geometries
        ]
    else:
        todo = list(tasks(options.states, options.seed, geometries))
    started = time.monotonic()
    total, failures = Tally(), list[Failure]()
    for tally, failed in results(todo, options):
        total.add(tally)
        failures += failed
        for failure in failed:
            print(f"\nFAILED {failure}")
        progress(total, len(failures), started)
    print(f"\n{total.summary()}, {len(failures)} failures, {time.monotonic() - started:.0f} s")
    if failures:
        print(f"images of what failed are in {OUT}")
    return 1 if failures else 0


def progress(total: Tally, failures: int, started: float) -> None:
    rate = total.states / (time.monotonic() - started)
    print(f"\r{total.states} states, {failures} failures, {rate:.0f}/s", end="")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--geometry", choices=EVERY_GEOMETRY)
    parser.add_argument("--work", choices=[*WORKS, *RARE_SCRIPTS])
    parser.add_argument("--durability", choices=[how.value for how in Durability], default="full")
    parser.add_argument("--around", choices=KINDS, default="", help="where the crashes are")
    parser.add_argument("--only", type=int, help="the index of one state")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="0: in this process")
    parser.add_argument("--kernel-every", type=int, default=25, help="0: the kernel is not asked")
    parser.add_argument("--nested-every", type=int, default=6, help="crashed in the recovery, too")
    parser.add_argument("--failures", type=int, default=3, help="of one task, before it ends")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
