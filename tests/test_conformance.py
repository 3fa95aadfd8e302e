"""docs/conformance.md is what its tables say, and every test that they name is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]

GOOD = """\
rfc = 826
title = "ARP"
[[requirement]]
section = "1"
level = "MUST"
text = "this file is there"
tests = ["tests/test_conformance.py::test_the_page_is_up_to_date"]
"""

SCRIPT = "tests/packetdrill/scripts/nagle.pkt"


def conformance(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOP / "tools" / "conformance", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_is_up_to_date() -> None:
    done = conformance("--check")
    assert done.returncode == 0, done.stderr


def test_a_page_is_made_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "rfc826.toml").write_text(GOOD)
    made = tmp_path / "page.md"
    assert conformance("--tables", tmp_path, "--page", made).returncode == 0
    assert "| 1 | MUST | this file is there | `test_the_page_is_up_to_date` |" in made.read_text()
    made.write_text(made.read_text() + "by hand\n")
    done = conformance("--check", "--tables", tmp_path, "--page", made)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: page.md is not up to date")


def test_a_script_of_packets_is_a_test(tmp_path: Path) -> None:
    test = "tests/test_conformance.py::test_the_page_is_up_to_date"
    (tmp_path / "rfc826.toml").write_text(GOOD.replace(test, SCRIPT))
    made = tmp_path / "page.md"
    assert conformance("--tables", tmp_path, "--page", made).returncode == 0
    assert "| 1 | MUST | this file is there | `nagle.pkt` |" in made.read_text()


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        ("::test_the_page", "::test_another_page", "no such test"),
        ("tests/test_conformance.py", "tests/test_nothing.py", "no such file"),
        ("::test_the_page_is_up_to_date", "", "no such file"),
        ("tests/test_conformance.py::test_the_page_is_up_to_date", SCRIPT + "::x", "no such file"),
        ("tests/test_conformance.py::test_the_page_is_up_to_date", SCRIPT + "x", "no such file"),
        ('level = "MUST"', 'level = "must"', "the level is one of"),
        ('text = "this file is there"', 'text = ""', "section and text"),
        ('tests = ["tests/', 'test = ["tests/', "unknown: test"),
        ('tests = ["tests/test_conformance.py::test_the_page_is_up_to_date"]', "", "neither"),
        ("rfc = 826", "", "rfc, title"),
        ("rfc = 826", "rfc =", "error: "),
    ],
)
def test_a_table_that_cannot_be_right_is_an_error(
    tmp_path: Path, was: str, becomes: str, complaint: str
) -> None:
    assert was in GOOD
    (tmp_path / "rfc826.toml").write_text(GOOD.replace(was, becomes))
    done = conformance("--tables", tmp_path, "--page", tmp_path / "page.md")
    assert done.returncode == 1 and complaint in done.stderr
    assert not (tmp_path / "page.md").exists()
