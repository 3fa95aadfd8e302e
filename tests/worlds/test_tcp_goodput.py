"""How much gets through on bad wires, and that nothing is sent needlessly on good ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import KiB, MiB
from tests.sim.wire import Conditions, evidence
from tests.worlds.goodput import (
    CASES,
    HEAD,
    LOSSES,
    TABLE,
    TOLERANCE,
    Case,
    Transfer,
    goodput,
    kept,
)

NARROW = Case(250, 100, 1024)
LONG = Conditions(delay=50 * MILLISECOND)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(case).split()))
def test_goodput_is_what_was_decided(case: Case) -> None:
    """RFC 5681, 6675, 8985, 9438: loss x buffer x delay. A change is a decision: look at it, then
    `python -m tests.worlds.goodput --write`."""
    row = kept()[str(case).strip()]
    now = [goodput(case, loss) for loss in LOSSES]
    assert now == pytest.approx(row, rel=TOLERANCE, abs=1)


def test_the_table_is_complete() -> None:
    """No line without a case, no case without a line."""
    assert TABLE.read_text().startswith(HEAD)
    assert sorted(kept()) == sorted(str(case).strip() for case in CASES)


def test_one_percent_of_loss_leaves_sixty_percent() -> None:
    """At 100 ms and with 1 MB of buffers: what is lost is repaired beside what goes on (RFC 6675),
    and CUBIC comes back faster than NewReno."""
    assert goodput(NARROW, 0.01) >= 0.6 * goodput(NARROW, 0.0)
    assert goodput(NARROW, 0.01) > goodput(replace(NARROW, algorithm="newreno"), 0.01)


def test_sack_mends_what_an_overrun_queue_has_lost() -> None:
    """RFC 6675: many holes in one round trip. NewReno mends one in each (RFC 6582)."""
    without = replace(NARROW, algorithm="newreno", sacks=False)
    assert goodput(replace(NARROW, algorithm="newreno"), 0.0) > 1.3 * goodput(without, 0.0)


@pytest.mark.parametrize("rate", [250, 10_000])
def test_reordering_without_loss_does_not_halve_the_rate(rate: int) -> None:
    """RFC 8985 section 6.2 step 4: what is late is waited for, and for longer once something was
    sent again in vain (RFC 2883)."""
    straight = Case(rate, 100, 1024)
    assert goodput(replace(straight, reordering=0.05), 0.0) > 0.5 * goodput(straight, 0.0)


@pytest.mark.parametrize("algorithm", ["cubic", "newreno"])
@pytest.mark.parametrize("sacks", [True, False])
@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(delay=1),
        LONG,
        Conditions(delay=1 * MILLISECOND, bytes_per_second=1_000_000, queue_bytes=2 * MiB),
        Conditions(delay=200 * MILLISECOND, bytes_per_second=100_000, queue_bytes=2 * MiB),
    ],
    ids=["at once", "far away", "a queue that grows", "a satellite"],
)
def test_without_loss_nothing_is_sent_twice(
    conditions: Conditions, sacks: bool, algorithm: str
) -> None:
    """RFC 6298, RFC 8985: no timeout, no probe, no recovery, whatever the delay and however it
    grows."""
    transfer = Transfer(conditions, size=512 * KiB, sacks=sacks, algorithm=algorithm)
    with evidence(transfer.wire, "tcp-goodput-clean"):
        transfer.run()
        transfer.clock.run(2 * SECOND)
        assert transfer.client.counters["tcp.bytes_resent"] == 0
        assert transfer.client.counters["tcp.retransmission_timeouts"] == 0
        assert transfer.client.counters["tcp.tail_loss_probes"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_what_is_lost_is_sent_again_once(seed: int) -> None:
    """RFC 6675, RFC 8985: with 2 % lost both ways, what goes out again is hardly more than that."""
    conditions = replace(LONG, loss=0.02, bytes_per_second=1_000_000, queue_bytes=1 * MiB)
    transfer = Transfer(conditions, seed=seed)
    with evidence(transfer.wire, f"tcp-goodput-lossy-{seed}"):
        transfer.run()
        segments = transfer.client.counters["tcp.bytes_resent"] / 1448
        lost = transfer.wire.counters["wire.lost"]  # acknowledgements among them
        assert segments <= 1.2 * lost, (segments, lost)


def test_short_answers_on_a_lossy_wire_seldom_wait_for_a_timeout() -> None:
    """RFC 8985: ten segments, of which those near the end may be lost; on a path of 20 ms a
    timeout costs ten round trips, a probe two, a reordering window a quarter of one."""
    conditions = Conditions(delay=10 * MILLISECOND, loss=0.05)
    timeouts = []
    for sacks in (True, False):
        answers = [Transfer(conditions, seed, size=10 * 1448, sacks=sacks) for seed in range(60)]
        for answer in answers:
            answer.run()
        counters = [answer.client.counters for answer in answers]
        timeouts.append(sum(counter["tcp.retransmission_timeouts"] for counter in counters))
        assert sacks == any(counter["tcp.tail_loss_probes"] for counter in counters)
    assert timeouts[0] < 0.8 * timeouts[1], timeouts  # those of lost SYNs among them


@pytest.mark.parametrize("algorithm", ["cubic", "newreno"])
def test_many_flows_share_a_narrow_wire(algorithm: str) -> None:
    """RFC 2914: eight at once get about the same (Jain's index), and together nearly all."""
    conditions = Conditions(delay=20 * MILLISECOND, bytes_per_second=1_000_000, queue_bytes=60_000)
    transfer = Transfer(conditions, flows=8, size=4 * MiB, algorithm=algorithm)
    rate = transfer.run(until=lambda: transfer.elapsed >= 6 * SECOND)
    shares = [sink.arrived for sink in transfer.sinks]
    assert len(shares) == 8
    fairness = sum(shares) ** 2 / (8 * sum(share**2 for share in shares))
    assert fairness > 0.8, shares
    assert rate > 850
