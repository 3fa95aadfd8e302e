"""Several who work at the same time, each in a directory of his own, with the thread that writes
the journal beside them: transactions close, and checkpoints happen, while others are in the middle
of something.

Each has a model of his own directory, and knows what was acknowledged to him. A state is judged
directory by directory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType
from tests.crash.geometry import Geometry
from tests.crash.recording import Recording
from tests.crash.session import Session
from tests.crash.sight import Eyes, Sight
from tests.crash.worker import Worker
from tests.crash.workload import Pace, RandomWork

_PACE: Final = Pace(0.3)
_NAMES_MAX: Final = 40
_WORKERS: Final = 3
_STEPS: Final = 80
_SWITCH_SECONDS: Final = 1e-6
"""Threads take turns after a few instructions, so that they meet in the middle of everything."""


class Crowd:
    """A file system, and those who work on it."""

    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.session: Final = Session(geometry, seed)
        self.geometry: Final = geometry
        self.recording: Final = self.session.recording
        numbers = [
            self.session.create(self.session.root, b"worker%d" % index, FileType.DIRECTORY)
            for index in range(_WORKERS)
        ]
        self.session.sync()
        self._ready: Final = len(self.recording.log)
        self.workers: Final = [
            Worker(
                self.session.filesystem,
                Recording(b"", self.recording.log),
                seed=seed + index + 1,
                top=self.session.node(number),
            )
            for index, number in enumerate(numbers)
        ]
        self._failures: Final[list[BaseException]] = []

    def run(self) -> None:
        """Let all of them work; AssertionError, VfsError: what the first one says who failed."""
        journal = threading.Thread(target=self._guarded, args=(self._write_the_journal,))
        journal.start()
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        works = [RandomWork(worker, _PACE, names_max=_NAMES_MAX) for worker in self.workers]
        threads = [
            threading.Thread(target=self._guarded, args=(work.run, _STEPS)) for work in works
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
        for failure in self._failures:
            raise failure
        for worker in self.workers:
            worker.compare()
        self.session.filesystem.close()
        journal.join()

    def _write_the_journal(self) -> None:
        self.session.filesystem.run_in_background()

    def _guarded(self, act: Callable[..., None], *args: object) -> None:
        """The body of a thread."""
        try:
            act(*args)
        except (AssertionError, VfsError) as error:
            self._failures.append(error)

    # What the oracles ask.

    @property
    def probes(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for worker in self.workers:
            for inode, chunks in worker.probes.items():
                found[inode] = found.get(inode, set()) | chunks
        return found

    def promise(self, point: int) -> str:
        return str([worker.promise(point) for worker in self.workers])

    def problem(self, sight: Sight, point: int, eyes: Eyes) -> str:
        if point < self._ready:
            return ""
        for index, worker in enumerate(self.workers):
            top = b"/worker%d" % index
            below = {
                path[len(top) :]: seen
                for path, seen in sight.items()
                if path == top or path.startswith(top + b"/")
            }
            problem = worker.problem(below, point, eyes)
            if problem:
                return f"{top!r} {problem}"
        return ""

    def let_go(self) -> None:
        self.session.let_go()
