"""NewReno's window, and the round-trip time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import TCP_RTO_INITIAL, TCP_RTO_MAX, TCP_RTO_MIN
from appliance.netstack.tcp.congestion import FLIGHT_MAX, NewReno, initial_window
from appliance.netstack.tcp.retransmission import RoundTrip

MSS = 1000
NOW = 10 * SECOND


@pytest.mark.parametrize(("mss", "window"), [(1460, 14600), (536, 5360), (9000, 18000)])
def test_the_initial_window(mss: int, window: int) -> None:
    """RFC 6928 section 2."""
    assert initial_window(mss) == window
    assert NewReno(mss, RoundTrip(), syn_was_lost=True).window == mss


def test_slow_start_doubles() -> None:
    """RFC 5681 section 3.1, equation (2), counted in bytes."""
    reno = NewReno(MSS, RoundTrip())
    reno.acknowledged(10 * MSS, 10 * MSS, NOW)
    assert reno.window == 20 * MSS


def test_avoidance_adds_a_segment_each_round_trip() -> None:
    """RFC 5681 section 3.1, equation (3)."""
    reno = NewReno(MSS, RoundTrip())
    reno.lost(10 * MSS, NOW)
    assert reno.window == reno.threshold == 5 * MSS
    for _ in range(5):
        reno.acknowledged(MSS, 5 * MSS, NOW)
    assert reno.window == 6 * MSS
    for _ in range(12):
        reno.acknowledged(MSS // 2, 6 * MSS, NOW)
    assert reno.window == 7 * MSS


def test_a_window_that_is_not_used_does_not_grow() -> None:
    """RFC 7661: an application that sends little learns nothing about the network."""
    reno = NewReno(MSS, RoundTrip())
    for _ in range(100):
        reno.acknowledged(MSS, MSS, NOW)
    assert reno.window == 10 * MSS


def test_a_timeout_leaves_one_segment() -> None:
    """RFC 5681 section 3.1, equation (4); the same loss does not lower the threshold again."""
    reno = NewReno(MSS, RoundTrip())
    reno.timed_out(10 * MSS, again=False, now=NOW)
    assert (reno.window, reno.threshold) == (MSS, 5 * MSS)
    reno.timed_out(MSS, again=True, now=NOW)
    assert (reno.window, reno.threshold) == (MSS, 5 * MSS)


@given(st.lists(st.tuples(st.sampled_from("aluti"), st.integers(0, 1 << 31)), max_size=50))
def test_the_window_stays_sane(events: list[tuple[str, int]]) -> None:
    """Between one segment and what window scaling can express."""
    reno = NewReno(MSS, RoundTrip())
    for kind, count in events:
        match kind:
            case "a":
                reno.acknowledged(count, count, NOW)
            case "l":
                reno.lost(count, NOW)
            case "u":
                reno.undo()
            case "t":
                reno.timed_out(count, again=bool(count % 2), now=NOW)
            case _:
                reno.idle(NOW)
        assert MSS <= reno.window <= FLIGHT_MAX


def test_the_first_measurement() -> None:
    """RFC 6298 (2.2): SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 * RTTVAR."""
    trip = RoundTrip()
    assert trip.rto == TCP_RTO_INITIAL
    trip.sample(400 * MILLISECOND, NOW)
    assert trip.srtt == 400 * MILLISECOND
    assert trip.rttvar == 200 * MILLISECOND
    assert trip.rto == 1200 * MILLISECOND


def test_later_measurements() -> None:
    """RFC 6298 (2.3): alpha = 1/8, beta = 1/4."""
    trip = RoundTrip()
    trip.sample(400 * MILLISECOND, NOW)
    trip.sample(800 * MILLISECOND, NOW)
    assert trip.rttvar == 250 * MILLISECOND
    assert trip.srtt == 450 * MILLISECOND
    assert trip.rto == 1450 * MILLISECOND


@given(st.lists(st.integers(0, 100 * SECOND), min_size=1, max_size=50))
def test_the_timeout_has_bounds(samples: list[int]) -> None:
    """RFC 6298 (2.4), (2.5)."""
    trip = RoundTrip()
    for rtt in samples:
        trip.sample(rtt, NOW)
        assert TCP_RTO_MIN <= trip.rto <= TCP_RTO_MAX
    for _ in range(20):
        trip.back_off()
    assert trip.rto == TCP_RTO_MAX
