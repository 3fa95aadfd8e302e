"""Trying the harness on bugs: each is a small edit of the writer, and work that shows it.

A mutant is a copy of the package with one place changed, in which a few crash states are tried in a
process of their own. If the text that is to be changed is not there any more, the mutant has to be
written anew; if no state fails, the harness is blind to it. Both are failures. The bugs are in
mutations.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crash.plan import Task

TOP: Final = Path(__file__).parents[2]
PACKAGE: Final = Path("appliance/fsimage/ext4")

_SECONDS_MAX: Final = 240
_HERE: Final = ("--jobs", "0", "--kernel-every", "0", "--failures", "1")


@dataclass(frozen=True)
class Mutant:
    """One bug. `breaks`: the invariant of docs/ext4-invariants.md that it violates."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    task: Task
    nested_every: int = 6

    def make(self, folder: Path) -> None:
        """A copy of the package in `folder`, with the bug in it. AssertionError: there is no such
        place, or there are several."""
        shutil.copytree(TOP / "appliance", folder / "appliance")
        file = folder / PACKAGE / self.file
        text = file.read_text()
        assert text.count(self.old) == 1, f"{self.name}: {text.count(self.old)} places in {file}"
        file.write_text(text.replace(self.old, self.new))


def failures_of(task: Task, package: Path, nested_every: int = 6) -> str:
    """What the states of `task` say with the `appliance` in `package`; "" if they are sound."""
    command = [sys.executable, "-P", "-m", "tests.crash", *str(task).split()]
    done = subprocess.run(
        [*command, *_HERE, "--nested-every", str(nested_every)],
        env=os.environ | {"PYTHONPATH": f"{package}:{TOP}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=_SECONDS_MAX,
    )
    said = done.stdout + done.stderr
    assert done.returncode in (0, 1), said
    assert (done.returncode == 1) == ("FAILED" in done.stdout), said
    return said if done.returncode else ""
