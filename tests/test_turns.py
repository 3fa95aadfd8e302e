"""Of tests in several processes, one that has to be alone is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.turns import Turns, runs_alone

PATIENCE = 60


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Turns]]:
    """Of three processes."""
    for name in ("door", "room"):
        (tmp_path / name).touch()
    made = [Turns(tmp_path / "door", tmp_path / "room") for _ in range(3)]
    yield made
    for each in made:
        each.close()


def in_thread(turns: Turns, alone: bool) -> tuple[threading.Thread, threading.Event]:
    """It wants to enter; the event says that it has."""
    entered = threading.Event()

    def enter() -> None:
        turns.enter(alone=alone)
        entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return thread, entered


def test_others_run_at_the_same_time(three: list[Turns]) -> None:
    for each in three:
        each.enter(alone=False)


def test_who_is_alone_waits_for_who_is_there_and_others_for_him(three: list[Turns]) -> None:
    first, second, third = three
    first.enter(alone=False)
    waits, alone = in_thread(second, True)
    assert not alone.wait(0.05)
    later, beside = in_thread(third, False)
    first.leave()
    assert alone.wait(PATIENCE)
    assert not beside.wait(0.05)
    second.leave()
    assert beside.wait(PATIENCE)
    for thread in (waits, later):
        thread.join(PATIENCE)


def test_who_has_a_network_is_alone(request: pytest.FixtureRequest) -> None:
    assert runs_alone(SimpleNamespace(fixturenames=["guest", "netns", "tmp_path"]))
    assert not runs_alone(request.node)
    assert not runs_alone(SimpleNamespace())  # a script of packetdrill
