"""Fixtures of the proofs: the laboratory of tests/interop, and what is built for it once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.interop.conftest import appliance, guest, netns, start_guest
from tests.interop.lab import run
from tests.proofs import geometry

__all__ = ["appliance", "fsx_program", "guest", "netns", "start_guest", "templates"]

HERE = Path(__file__).parent

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
"""Other examples each time, and many more of them."""


@pytest.fixture(scope="session")
def fsx_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fsx.c as a program that needs nothing where it runs, as the guest has no compiler."""
    made = tmp_path_factory.mktemp("fsx") / "fsx"
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", made, HERE / "fsx.c")
    return made


class Templates:
    """Empty images, each made once and then copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, kind: str) -> Path:
        path = self._folder / f"{kind}.img"
        return path if path.exists() else geometry.make(kind, path)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("templates"))
