"""CUBIC's window (RFC 9438), against the RFC's formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.netstack.tcp.congestion import FLIGHT_MAX
from appliance.netstack.tcp.cubic import ALPHA, BETA, C, Cubic
from appliance.netstack.tcp.retransmission import RoundTrip

MSS = 1000
START = 100 * SECOND


def cubic(rtt: Instant) -> Cubic:
    """On a path with this round trip."""
    trip = RoundTrip()
    trip.sample(rtt, START)
    return Cubic(MSS, trip)


def grown(congestion: Cubic, now: Instant, rtt: Instant, until: Instant) -> list[int]:
    """The window after each round trip in which all of it was used and acknowledged."""
    windows = []
    while now < until:
        window = congestion.window
        for _ in range(max(window // MSS, 1)):
            congestion.acknowledged(MSS, window, now)
        windows.append(congestion.window)
        now += rtt
    return windows


def test_a_loss_leaves_seven_tenths() -> None:
    """Section 4.6: beta."""
    congestion = cubic(100 * MILLISECOND)
    congestion.window = 1000 * MSS
    congestion.lost(1000 * MSS, START)
    assert congestion.window == congestion.threshold == int(1000 * MSS * BETA)


def test_the_window_comes_back_after_k_seconds() -> None:
    """Section 4.2, equation (2): K = cbrt((W_max - cwnd_epoch) / C); flat there, then faster."""
    rtt = 100 * MILLISECOND
    congestion = cubic(rtt)
    congestion.window = 1000 * MSS
    congestion.lost(1000 * MSS, START)
    k = (1000 * (1 - BETA) / C) ** (1 / 3)
    windows = grown(congestion, START, rtt, START + int(2 * k * SECOND))
    back = next(i for i, window in enumerate(windows) if window >= 995 * MSS) * rtt / SECOND
    assert back == pytest.approx(k - (5 / C) ** (1 / 3), rel=0.05)
    middle = len(windows) // 2
    steps = [after - before for before, after in pairwise(windows)]
    assert steps[0] > 5 * steps[middle]
    assert steps[-1] > 5 * steps[middle]
    assert windows[-1] == pytest.approx(1300 * MSS, rel=0.05), "symmetric around W_max"


def test_growth_does_not_depend_on_the_round_trip() -> None:
    """Section 3.1: time decides, not the number of round trips."""
    reached = []
    for rtt in (20 * MILLISECOND, 100 * MILLISECOND):
        congestion = cubic(rtt)
        congestion.window = 2000 * MSS
        congestion.lost(2000 * MSS, START)
        reached.append(grown(congestion, START, rtt, START + 5 * SECOND)[-1])
    assert reached[0] == pytest.approx(reached[1], rel=0.05)


def test_on_a_short_path_it_is_no_slower_than_newreno() -> None:
    """Section 4.3: the Reno-friendly region, ALPHA segments for each round trip."""
    rtt = 1 * MILLISECOND
    congestion = cubic(rtt)
    congestion.window = 20 * MSS
    congestion.lost(20 * MSS, START)
    windows = grown(congestion, START, rtt, START + 11 * rtt)
    assert windows[-1] - 14 * MSS == pytest.approx(11 * ALPHA * MSS, rel=0.25)


def test_less_than_last_time_gives_way() -> None:
    """Section 4.7: fast convergence: others want a share."""
    congestion = cubic(100 * MILLISECOND)
    congestion.window = 1000 * MSS
    congestion.lost(1000 * MSS, START)
    grown(congestion, START, 100 * MILLISECOND, START + SECOND)
    before = congestion.window
    congestion.lost(before, START + SECOND)
    assert congestion._w_max == pytest.approx(before * (1 + BETA) / 2)


def test_a_pause_does_not_make_the_window_jump() -> None:
    """Section 5.8: time in which the application had nothing to send does not count."""
    rtt = 100 * MILLISECOND
    congestion = cubic(rtt)
    congestion.window = 100 * MSS
    congestion.lost(100 * MSS, START)
    before = grown(congestion, START, rtt, START + SECOND)[-1]
    after = grown(congestion, START + 100 * SECOND, rtt, START + 100 * SECOND + rtt)[-1]
    assert after <= before + 3 * MSS


def test_a_timeout_leaves_one_segment_and_slow_start() -> None:
    """Section 4.8: up to the threshold, then cubic from there."""
    rtt = 100 * MILLISECOND
    congestion = cubic(rtt)
    congestion.window = 100 * MSS
    congestion.timed_out(100 * MSS, again=False, now=START)
    assert (congestion.window, congestion.threshold) == (MSS, 70 * MSS)
    congestion.timed_out(MSS, again=True, now=START)
    assert congestion.threshold == 70 * MSS
    windows = grown(congestion, START, rtt, START + SECOND)
    assert windows[:3] == [2 * MSS, 4 * MSS, 8 * MSS]
    assert windows[-1] >= 70 * MSS


def test_undo_restores_everything() -> None:
    """Section 4.9."""
    congestion = cubic(100 * MILLISECOND)
    congestion.window = 100 * MSS
    congestion.lost(100 * MSS, START)
    window, threshold = congestion.window, congestion.threshold
    congestion.timed_out(70 * MSS, again=False, now=START)
    congestion.undo()
    assert (congestion.window, congestion.threshold) == (window, threshold)
    assert congestion._w_max == 100 * MSS


@given(st.lists(st.tuples(st.sampled_from("alutim"), st.integers(0, 1 << 31)), max_size=60))
def test_the_window_stays_sane(events: list[tuple[str, int]]) -> None:
    """Between one segment and what window scaling can express, whatever happens."""
    congestion, now = cubic(50 * MILLISECOND), START
    for kind, count in events:
        now += count % SECOND
        match kind:
            case "a":
                congestion.acknowledged(count, count, now)
            case "l":
                congestion.lost(count, now)
            case "u":
                congestion.undo()
            case "t":
                congestion.timed_out(count, again=bool(count % 2), now=now)
            case "m":
                congestion.mss = MSS // 2
            case _:
                congestion.idle(now)
        assert congestion.mss <= congestion.window <= FLIGHT_MAX
