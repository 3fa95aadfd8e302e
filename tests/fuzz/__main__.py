"""Frames by the million: `make fuzz FRAMES=1000000 SEED=n`; or one episode again.

python -m tests.fuzz [--frames N] [--seed N] [--jobs N] [--episode NUMBER]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from multiprocessing import Pool
from resource import RUSAGE_SELF, getrusage

from tests.fuzz.fuzzer import FRAMES_IN_EPISODE, Failure, Tally, run_episode

EPISODES_AT_ONCE = 50
FAILURES_SHOWN_MAX = 10


def main() -> int:
    options = arguments()
    if options.episode is not None:
        failure = run_episode(options.seed, options.episode, Tally())
        print(failure or "nothing is wrong")
        return 1 if failure else 0
    episodes = -(-options.frames // FRAMES_IN_EPISODE)
    batches = range(0, episodes, EPISODES_AT_ONCE)
    started = time.monotonic()
    total = Tally()
    failures: list[Failure] = []
    memory = 0
    with Pool(options.jobs) as pool:
        for tally, failed, kilobytes in pool.imap_unordered(
            partial(run_batch, options.seed, episodes), batches
        ):
            total.frames += tally.frames
            total.seen.update(tally.seen)
            memory = max(memory, kilobytes)
            for failure in failed[: FAILURES_SHOWN_MAX - len(failures)]:
                print(f"\nFAILED {failure}")
            failures += failed
            rate = total.frames / (time.monotonic() - started)
            print(f"\r{total.frames} frames, {len(failures)} failures, {rate:.0f}/s, "
                  f"{memory // 1024} MiB", end="", flush=True)  # fmt: skip
    states = sorted({state for state, _ in total.seen})
    print(f"\n{len(total.seen)} pairs of state and frame, in {', '.join(states)}")
    if failures:
        print(f"again: python -m tests.fuzz --seed {options.seed} --episode {failures[0].episode}")
    return 1 if failures else 0


def run_batch(seed: int, episodes: int, first: int) -> tuple[Tally, list[Failure], int]:
    """Some episodes, in a process of their own: what was done, what failed, the memory in KiB."""
    tally = Tally()
    failures = []
    for number in range(first, min(first + EPISODES_AT_ONCE, episodes)):
        failure = run_episode(seed, number, tally)
        if failure is not None:
            failures.append(failure)
    return tally, failures, getrusage(RUSAGE_SELF).ru_maxrss


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--episode", type=int, help="this one alone, with its reproducer")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
