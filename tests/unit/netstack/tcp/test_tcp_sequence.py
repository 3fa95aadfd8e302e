"""Numbers that wrap are met only here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.netstack.tcp.sequence import HALF, MASK, WRAP, is_before, unwrap

distances = st.integers(-HALF, HALF - 1)


@given(st.integers(0, 1 << 60), distances)
def test_unwrap_finds_the_nearest(near: int, distance: int) -> None:
    """RFC 9293 section 3.4."""
    assert unwrap((near + distance) % WRAP, near) == near + distance


@given(st.integers(0, MASK), st.integers(1, HALF))
def test_older_timestamps_are_before(stamp: int, age: int) -> None:
    """RFC 7323 section 5.2."""
    assert is_before(stamp - age & MASK, stamp)
    assert not is_before(stamp, stamp)
    if age < HALF:
        assert not is_before(stamp, stamp - age & MASK)
