"""Sets of sequence numbers, and when they were sent, against obvious models (RFC 6675, 8985)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.limits import TCP_SEND_RUNS_MAX
from appliance.netstack.tcp.ranges import Ranges
from appliance.netstack.tcp.send_times import SendTimes

END = 60
spans = (
    st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted).filter(lambda s: s[0] < s[1])
)


def runs_of(numbers: set[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        left = runs.pop()[0] if runs and runs[-1][1] == number else number
        runs.append((left, number + 1))
    return runs


@given(st.lists(st.tuples(st.sampled_from("arbgc"), spans), max_size=40))
def test_ranges_are_sets(events: list[tuple[str, list[int]]]) -> None:
    """Adding, removing, gaps and what they return, against a set of numbers."""
    ranges, model = Ranges(), set[int]()
    for kind, (left, right) in events:
        span = set(range(left, right))
        match kind:
            case "a":
                assert ranges.add(left, right) == len(span - model)
                model |= span
            case "r":
                assert ranges.remove(left, right) == len(span & model)
                model -= span
            case "b":
                before = {number for number in model if number < left}
                assert ranges.remove_before(left) == len(before)
                model -= before
            case "g":
                assert ranges.gaps(left, right) == runs_of(span - model)
            case _:
                assert ranges.covers(left, right) == (span <= model)
                assert (left in ranges) == (left in model)
        assert list(ranges) == runs_of(model)
        assert ranges.size == len(model)
        if model:
            assert (ranges.left, ranges.right) == (min(model), max(model) + 1)
            assert ranges.first == runs_of(model)[0]


@given(st.lists(st.tuples(st.sampled_from("nra"), spans), max_size=40))
def test_times_are_those_of_each_byte(events: list[tuple[str, list[int]]]) -> None:
    """Sent, sent again in other pieces, acknowledged at any byte: against a time for each."""
    times, model = SendTimes(), dict[int, tuple[int, bool]]()
    una = nxt = 0
    for now, (kind, (left, right)) in enumerate(events):
        match kind:
            case "n":
                count = right - left
                times.sent(nxt + count, now)
                model.update(dict.fromkeys(range(nxt, nxt + count), (now, False)))
                nxt += count
            case "r":
                left, right = max(left, una), min(right, nxt)
                if left < right:
                    times.sent_again(una, left, right, now)
                    model.update(dict.fromkeys(range(left, right), (now, True)))
            case _:
                una = max(una, min(left, nxt))
                times.acknowledged(una)
        told = {
            seq: (sent_at, again)
            for start, stop, sent_at, again in times.of(una, nxt)
            for seq in range(start, stop)
        }
        assert told == {seq: value for seq, value in model.items() if una <= seq < nxt}


def test_the_clock_may_stand_still() -> None:
    """What was sent first has the earlier time all the same: the order decides what is lost."""
    times = SendTimes()
    times.sent(10, 7)
    times.sent(20, 7)
    times.sent_again(0, 0, 5, 7)
    assert [sent_at for _, _, sent_at, _ in times.of(0, 20)] == [9, 7, 8]


def test_the_runs_are_bounded() -> None:
    """Neighbours become one, with the later time: what is in it is believed lost later."""
    times = SendTimes()
    for now in range(3 * TCP_SEND_RUNS_MAX):
        times.sent(now + 1, now)
        assert len(times.runs) <= TCP_SEND_RUNS_MAX
    for seq in range(0, 3 * TCP_SEND_RUNS_MAX, 2):
        times.sent_again(0, seq, seq + 1, 10_000 + seq)
        assert len(times.runs) <= TCP_SEND_RUNS_MAX
    told = list(times.of(0, 3 * TCP_SEND_RUNS_MAX))
    assert told[0][0] == 0
    assert told[-1][1] == 3 * TCP_SEND_RUNS_MAX
    for start, stop, sent_at, _ in told:
        assert sent_at >= start, (start, stop)
