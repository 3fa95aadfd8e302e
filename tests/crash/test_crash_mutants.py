"""Every seeded bug is found; and without any, nothing is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.crash.mutants import TOP, Mutant, failures_of
from tests.crash.mutations import MUTANTS
from tests.crash.plan import Task

CONTROLS = list(dict.fromkeys(mutant.task for mutant in MUTANTS))


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


DOCUMENT = TOP / "docs" / "ext4-invariants.md"


def test_every_bug_is_named_where_the_invariant_is() -> None:
    """And every test that the document names exists."""
    text = DOCUMENT.read_text()
    parts = re.split(r"^\*\*([JW]\d+)\*\*", text, flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    for mutant in MUTANTS:
        assert f"*{mutant.name}*" in named[mutant.breaks], mutant.name
    names = {mutant.name for mutant in MUTANTS}
    bugs = set(re.findall(r"(?<!\*)\*([a-z][^*\n]+)\*(?!\*)", "".join(parts[2:])))
    assert bugs <= names
    sources = "\n".join(file.read_text() for file in (TOP / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in sources, test


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_bug_is_found(mutant: Mutant, tmp_path: Path) -> None:
    mutant.make(tmp_path)
    found = failures_of(mutant.task, tmp_path, mutant.nested_every)
    assert found, f"survived: {mutant.name} ({mutant.breaks})"


@pytest.mark.parametrize("task", CONTROLS, ids=str)
def test_without_a_bug_nothing_is_found(task: Task) -> None:
    assert failures_of(task, TOP) == ""
