"""Ten thousand frames in every state, and the mistakes that they should find. `make fuzz`: more."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from appliance.netstack.tcp.host import Tcp
from appliance.netstack.tcp.receive_half import ReceiveHalf
from appliance.netstack.wire import tcp as wire
from tests.fuzz.corpus import CORPUS, CORPUS6
from tests.fuzz.fuzzer import (
    ALL_STATES,
    FRAMES_IN_EPISODE,
    SITUATIONS,
    Failure,
    Tally,
    replay,
    run_episode,
)
from tests.fuzz.mutation import mutated

FRAMES = 10_000
SEED = 2026
PAIRS_MIN = 400
"""Kinds of frames, each in so many states."""


def run(seed: int, episodes: int) -> tuple[Tally, list[Failure]]:
    tally = Tally()
    failures = (run_episode(seed, number, tally) for number in range(episodes))
    return tally, [failure for failure in failures if failure is not None]


def test_no_frame_breaks_the_stack() -> None:
    """In every state; and no state and no kind of frame was left out."""
    tally, failures = run(SEED, FRAMES // FRAMES_IN_EPISODE)
    assert not failures, f"python -m tests.fuzz --seed {SEED} --episode N\n{failures[0]}"
    assert tally.frames == FRAMES
    assert {state for state, _ in tally.seen} == ALL_STATES
    assert {name for _, name in tally.seen} == set(CORPUS) | set(CORPUS6)
    assert len(tally.seen) >= PAIRS_MIN


def test_an_episode_depends_on_nothing_but_its_number() -> None:
    """Or a failure could not be seen again."""
    one, two = Tally(), Tally()
    for number in range(len(SITUATIONS)):
        run_episode(7, number, one)
    for number in reversed(range(len(SITUATIONS))):
        run_episode(7, number, two)
    assert one.seen == two.seen


def test_mutations_are_all_kinds_of_wrong() -> None:
    random = Random(1)
    frame = bytes(range(200))
    sizes = {len(mutated(frame, random)) for _ in range(500)}
    assert min(sizes) < 100 < 200 < max(sizes)
    assert len({mutated(frame, random) for _ in range(100)}) > 90


# --- mistakes that were made on purpose --------------------------------------------------------


def reproducer(episodes: int = 150) -> Failure:
    """The first failure; it can be seen again from what it says."""
    tally = Tally()
    for number in range(episodes):
        failure = run_episode(3, number, tally)
        if failure is not None:
            assert replay(failure.setting, failure.actions) == failure.what
            return failure
    raise AssertionError("the fuzzer has found nothing")


def test_an_exception_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that believes what a header says; the reproducer is a single frame."""
    original = wire.parse

    def parse(packet: Any, at: int, end: int) -> wire.Segment:
        if end - at >= wire.HEADER_BYTES:
            packet[at + (packet[at + 12] >> 4) * 4 - 1]
        return original(packet, at, end)

    monkeypatch.setattr(wire, "parse", parse)
    failure = reproducer()
    assert "IndexError" in failure.what
    assert len(failure.actions) <= 2
    assert f"seed 3, episode {failure.episode}: IndexError" in str(failure)


def test_a_shrinking_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ReceiveHalf.advertise

    def advertise(self: ReceiveHalf) -> int:
        field = original(self)
        if self.out_of_order:
            self.edge -= 1
        return field

    monkeypatch.setattr(ReceiveHalf, "advertise", advertise)
    assert "the window was shrunk" in reproducer().what


def test_two_answers_to_one_frame_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tcp.send_reset

    def send_reset(self: Tcp, *arguments: Any) -> None:
        original(self, *arguments)
        original(self, *arguments)

    monkeypatch.setattr(Tcp, "send_reset", send_reset)
    assert "2 answers to one bad frame" in reproducer().what


def test_a_connection_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.netstack.tcp.connection.TCP_ORPHAN_AFTER", 10**18)
    assert "a connection never ends" in reproducer().what
