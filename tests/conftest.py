"""What holds for every test: hypothesis profiles, the options of the command line, and which tests
may run at the same time when several processes run them (`pytest --numprocesses`).

"ci" tries the same examples every time, so that a red run is red again on the next machine;
"nightly" tries new ones, and more of them: HYPOTHESIS_PROFILE=nightly.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

from appliance.limits import MiB
from appliance.trace import log
from tests.turns import Turns, runs_alone

TOP: Final = Path(__file__).parents[1]

ROOM_BYTES: Final = 3 << 30
"""What two processes take of the disk, and then as much again: one test writes a gigabyte."""

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here, and not in tests/packetdrill, because pytest reads the command line first."""
    parser.addoption(
        "--against",
        choices=("ours", "linux", "both"),
        default="both",
        help="the host that scripts of packetdrill are played against: our stack, the kernel's",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """A disk that fills up in the middle fails a thousand tests, and none says why."""
    of_all = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not of_all or hasattr(session.config, "workerinput"):
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        pytest.exit(
            f"all tests together need {ROOM_BYTES // MiB} MiB in {folder}, and {free // MiB} MiB"
            " are free: name another place, TMPDIR=/var/tmp make test",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Commands, the fuzzer and the crash harness set up the log of their process, which here is
    that of all tests after them."""
    level, handlers, propagate = log.level, list(log.handlers), log.propagate
    yield
    logging.disable(logging.NOTSET)
    log.setLevel(level)
    log.handlers[:] = handlers
    log.propagate = propagate


TURNS: Final = Turns(TOP / "Makefile", TOP / "pyproject.toml")


def pytest_unconfigure() -> None:
    TURNS.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    TURNS.enter(alone=runs_alone(item))
    try:
        return (yield)
    finally:
        TURNS.leave()
