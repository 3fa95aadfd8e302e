"""Cycles are still collected while a process serves, only later."""

from __future__ import annotations

import gc
import weakref

from appliance.garbage import seldom_collected


class Cycle:
    """Refers to itself, so that only the collector lets go of it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_there_was_is_not_looked_through_until_the_end() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    kept = [Cycle()]
    with seldom_collected():
        assert gc.get_freeze_count() > before[1]
        assert not any(each is kept[0] for each in gc.get_objects())
        assert gc.get_threshold()[0] > before[0][0]
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    assert any(each is kept[0] for each in gc.get_objects())


def test_cycles_do_not_pile_up() -> None:
    with seldom_collected():
        cycles = [weakref.ref(Cycle()) for _ in range(150_000)]
        assert sum(ref() is not None for ref in cycles) < 75_000
