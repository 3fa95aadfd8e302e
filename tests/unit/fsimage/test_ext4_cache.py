"""The bounded memory: what was used of late is there, and never more than the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from appliance.fsimage.ext4.cache import Cache


def test_what_was_put_is_there() -> None:
    cache: Cache[int, str] = Cache(10)
    assert cache.get(1) is None
    cache.put(1, "one")
    cache.put(1, "uno")
    assert cache.get(1) == "uno"
    assert len(cache) == 1
    cache.forget(1)
    cache.forget(2)
    assert cache.get(1) is None


def test_what_is_old_can_be_forgotten() -> None:
    cache: Cache[int, int] = Cache(4)
    for number in range(3):
        cache.put(number, number)
    cache.forget(0)
    assert cache.get(0) is None
    assert cache.get(1) == 1


def test_what_is_used_stays() -> None:
    cache: Cache[int, int] = Cache(10)
    cache.put(0, 0)
    for number in range(1, 1000):
        cache.put(number, number)
        assert cache.get(0) == 0
    assert cache.get(1) is None


def test_what_was_used_of_late_stays() -> None:
    cache: Cache[int, int] = Cache(10)
    for number in range(1000):
        cache.put(number, number)
    assert [cache.get(number) for number in range(995, 1000)] == list(range(995, 1000))


@given(some.lists(some.tuples(some.integers(0, 9), some.binary(max_size=40), some.booleans())))
def test_the_limit_holds(steps: list[tuple[int, bytes, bool]]) -> None:
    cache: Cache[int, bytes] = Cache(100, len)
    newest: dict[int, bytes] = {}
    for key, value, forget in steps:
        if forget:
            cache.forget(key)
            newest.pop(key, None)
        else:
            cache.put(key, value)
            newest[key] = value
        found = {each: cache.get(each) for each in range(10)}
        assert all(value in (None, newest.get(each)) for each, value in found.items())
        kept = [value for value in found.values() if value is not None]
        assert sum(map(len, kept)) <= 100
        assert forget or cache.get(key) == value
