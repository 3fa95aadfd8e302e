"""Deadlines: one heap, no ticks, and no dead entries that pile up."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.clock import Instant
from appliance.netstack.timers import Timer, Timers


def test_a_timer_expires_at_its_deadline_and_once() -> None:
    fired: list[Instant] = []
    timers = Timers()
    timers.timer(fired.append).set(10)
    timers.expire(9)
    assert fired == []
    timers.expire(10)
    timers.expire(20)
    assert fired == [10]
    assert timers.next_deadline is None


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("scd"), st.integers(1, 20))))
def test_what_is_due_is_run_whatever_was_set_before(
    events: list[tuple[int, str, int]],
) -> None:
    """Against a model: each timer has one deadline, or none. The heap never grows without bound."""
    timers = Timers()
    fired: list[tuple[int, Instant]] = []

    def made(index: int) -> Timer:
        return timers.timer(lambda now: fired.append((index, now)))

    all_timers = [made(index) for index in range(4)]
    deadlines: dict[int, Instant] = {}
    discarded: set[int] = set()
    now = 0
    for index, what, delay in events:
        now += 1
        timers.expire(now)
        expected = sorted(i for i, deadline in deadlines.items() if deadline <= now)
        assert sorted(i for i, at in fired) == expected
        fired.clear()
        deadlines = {i: deadline for i, deadline in deadlines.items() if deadline > now}
        if index in discarded:
            continue
        if what == "s":
            all_timers[index].set(now + delay)
            deadlines[index] = now + delay
        elif what == "c":
            all_timers[index].clear()
            deadlines.pop(index, None)
        else:
            all_timers[index].discard()
            deadlines.pop(index, None)
            discarded.add(index)
        if deadlines:
            assert timers.next_deadline is not None
            assert timers.next_deadline <= min(deadlines.values())


def test_discarded_timers_do_not_keep_their_owners_alive() -> None:
    class Owner:
        def act(self, now: Instant) -> None:
            raise AssertionError("it was discarded")

    timers = Timers()
    owner = Owner()
    known = weakref.ref(owner)
    timer = timers.timer(owner.act)
    timer.set(1000)
    timer.discard()
    del owner, timer
    gc.collect()
    assert known() is None
    timers.expire(2000)


def test_dead_entries_are_swept() -> None:
    timers = Timers()
    for _ in range(10_000):
        timer = timers.timer(lambda now: None)
        timer.set(1 << 60)
        timer.discard()
    assert len(timers._heap) < 200
    mover = timers.timer(lambda now: None)
    for deadline in range(10_000, 0, -1):
        mover.set(deadline)
    assert len(timers._heap) < 200


def test_an_action_that_raises_does_not_lose_the_others() -> None:
    timers = Timers()
    done: list[int] = []

    def fail(now: Instant) -> None:
        raise RuntimeError("a mistake of ours")

    for action in (lambda _: done.append(1), fail, lambda _: done.append(3)):
        timers.timer(action).set(100)
    with pytest.raises(RuntimeError):
        timers.expire(100)
    assert done == [1]
    assert timers.next_deadline == 100
    timers.expire(100)
    assert done == [1, 3]
