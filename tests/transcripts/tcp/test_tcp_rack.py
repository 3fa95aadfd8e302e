"""Losses found out by time, and probes of the tail (RFC 8985)."""

from __future__ import annotations

from appliance.clock import MILLISECOND
from appliance.limits import TCP_PROBE_TIMEOUT_MIN
from appliance.netstack.tcp.calm import begin
from appliance.netstack.tcp.sack_recovery import SackRecovery
from appliance.netstack.wire.tcp import ACK, FIN, PSH
from tests.transcripts.tcp_wire import Wire

MSS = 1460
RTT = 40 * MILLISECOND


def at(index: int) -> int:
    """Where segment `index` begins."""
    return 1 + index * MSS


def run(first: int, last: int) -> tuple[int, int]:
    """The block of segments first to last."""
    return at(first), at(last + 1)


def sent(wire: Wire, count: int) -> None:
    """On a connection with SACK and a round trip of RTT, `count` full segments have been sent."""
    wire.established(sacks=True, rtt=RTT)
    wire.user.send([bytes(count * MSS)])
    for i in range(count):
        wire.ours(ACK, seq=at(i), size=MSS)
    wire.quiet()


def test_what_was_overtaken_gets_a_quarter_of_a_round_trip(wire: Wire) -> None:
    """RFC 8985 section 6.2 step 4: few have arrived behind it; it may be on its way."""
    sent(wire, 4)
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 1)])
    wire.after(RTT // 4 - 1 * MILLISECOND).quiet()
    wire.after(1 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    assert wire.user.recovery.active
    assert wire.counters["tcp.retransmission_timeouts"] == 0


def test_what_was_only_overtaken_is_not_sent_again(wire: Wire) -> None:
    """RFC 8985 section 6.2 step 4: it comes within the reordering window; nothing is lowered."""
    sent(wire, 4)
    window = wire.user.congestion.window
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 2)])
    wire.after(RTT // 8).peer(ACK, seq=1, ack=at(4))
    wire.after(2 * RTT).quiet()
    assert wire.user.congestion.window >= window


def test_three_behind_it_and_it_is_lost_at_once(wire: Wire) -> None:
    """RFC 8985 section 6.2 step 4: DupThresh, while nothing has come out of order."""
    sent(wire, 5)
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 2)]).quiet()
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 3)])
    wire.ours(ACK, seq=at(0), size=MSS)


def test_once_something_came_late_three_are_not_enough(wire: Wire) -> None:
    """RFC 8985 section 6.2 step 3: a path that reorders; then time alone decides."""
    sent(wire, 5)
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(2, 2)])
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 2)])  # 1 was late
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 4)])
    wire.quiet()
    wire.after(RTT // 4).ours(ACK, seq=at(0), size=MSS)


def test_a_needless_retransmission_makes_us_wait_for_longer(wire: Wire) -> None:
    """RFC 8985 section 6.2 step 4: for each round trip with a D-SACK a quarter more; after sixteen
    recoveries it is as before."""
    sent(wire, 5)
    recovery = begin(wire.user)
    assert isinstance(recovery, SackRecovery)
    rack = recovery.rack
    rack.reordered = True
    assert rack.window(wire.user, recovering=True) == rack_quarter(wire) == RTT // 4
    wire.after(RTT).peer(ACK, seq=1, ack=at(2), sack=[run(0, 0)])
    wire.peer(ACK, seq=1, ack=at(2), sack=[run(1, 1)])  # the same round trip
    assert rack.window(wire.user, recovering=True) == 2 * rack_quarter(wire)
    wire.peer(ACK, seq=1, ack=at(5), sack=[run(2, 2)])
    assert rack.window(wire.user, recovering=True) == 3 * rack_quarter(wire)
    for _ in range(16):
        rack.recovered()
    assert rack.window(wire.user, recovering=True) == rack_quarter(wire)


def rack_quarter(wire: Wire) -> int:
    """A quarter of the shortest round trip."""
    return wire.user.round_trip.least // 4


def test_a_lost_retransmission_needs_no_timeout(wire: Wire) -> None:
    """RFC 8985 section 3.1: what was sent after it has arrived, so it is lost again."""
    sent(wire, 10)
    wire.user.send([bytes(5 * MSS)])
    wire.ignore()
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 9)])
    threshold = wire.user.congestion.threshold
    wire.ours(ACK, seq=at(0), size=MSS)  # lost, too
    wire.ours(ACK, seq=at(10), size=MSS)
    wire.ignore()
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 10)])
    wire.after(RTT // 4).ours(ACK, seq=at(0), size=MSS)
    assert wire.counters["tcp.retransmission_timeouts"] == 0
    assert wire.user.congestion.threshold < threshold, "RFC 5681 section 4.3"
    wire.ignore()


def test_the_tail_is_probed_before_the_timeout(wire: Wire) -> None:
    """RFC 8985 section 7.2: nothing for two round trips; the last segment again, and its block
    shows what is missing."""
    sent(wire, 4)
    wire.after(RTT).peer(ACK, seq=1, ack=at(1))
    wire.after(2 * RTT - 1 * MILLISECOND).quiet()
    wire.after(1 * MILLISECOND).ours(ACK, seq=at(3), size=MSS)
    wire.quiet()
    wire.after(RTT).peer(ACK, seq=1, ack=at(1), sack=[run(3, 3)])
    wire.after(RTT // 4).ours(ACK, seq=at(1), size=MSS)
    wire.ours(ACK, seq=at(2), size=MSS)
    assert wire.counters["tcp.retransmission_timeouts"] == 0
    assert wire.counters["tcp.tail_loss_probes"] == 1


def test_a_probe_is_new_text_if_there_is_any(wire: Wire) -> None:
    """RFC 8985 section 7.3: the window is full, and one segment more goes."""
    wire.established(sacks=True, rtt=RTT)
    wire.user.send([bytes(12 * MSS)])
    wire.ignore()
    wire.after(2 * RTT).ours(ACK, seq=at(10), size=MSS)
    wire.quiet()


def test_a_probe_does_not_put_the_timeout_off(wire: Wire) -> None:
    """RFC 8985 section 7.3: one probe; then the timeout, and nothing in between."""
    sent(wire, 3)
    rto = wire.user.round_trip.rto
    wire.after(2 * RTT).ours(ACK, seq=at(2), size=MSS)
    wire.after(rto - 1 * MILLISECOND).quiet()
    wire.after(1 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    wire.quiet()
    assert wire.counters["tcp.retransmission_timeouts"] == 1


def test_new_text_does_not_put_the_timeout_off(wire: Wire) -> None:
    """RFC 6298 (5.1): the timer runs already. A user who keeps sending to a peer that is gone must
    not keep it from expiring, probes or not."""
    sent(wire, 3)
    for _ in range(20):
        wire.user.send([bytes(100)])
        wire.after(20 * MILLISECOND)
    wire.ignore()
    assert wire.counters["tcp.retransmission_timeouts"] >= 1


def test_one_segment_waits_for_the_timeout(wire: Wire) -> None:
    """RFC 8985 section 7.2: its acknowledgement may be delayed, so a probe would be no sooner."""
    sent(wire, 1)
    wire.after(199 * MILLISECOND).quiet()
    wire.after(1 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    assert wire.counters["tcp.tail_loss_probes"] == 0


def test_a_probe_does_not_come_too_soon(wire: Wire) -> None:
    """On a path without delay two round trips are nothing."""
    wire.established(sacks=True)
    wire.user.send([bytes(3 * MSS)])
    wire.ignore()
    wire.after(TCP_PROBE_TIMEOUT_MIN - 1).quiet()
    wire.after(1).ours(ACK, seq=at(2), size=MSS)


def test_a_probe_that_mended_a_loss_lowers_the_window(wire: Wire) -> None:
    """RFC 8985 section 7.4.2: the network lost something, even if no recovery was needed."""
    sent(wire, 10)
    wire.after(RTT).peer(ACK, seq=1, ack=at(9))
    window = wire.user.congestion.window
    wire.user.send([bytes(MSS)])
    wire.ignore()
    wire.after(2 * RTT).ours(PSH | ACK, seq=at(10), size=MSS)
    wire.after(RTT).peer(ACK, seq=1, ack=at(11))
    wire.user.send([bytes(2 * MSS)])
    wire.ignore()
    wire.after(RTT).peer(ACK, seq=1, ack=at(13))
    assert wire.user.congestion.window < window


def test_a_probe_that_was_not_needed_lowers_nothing(wire: Wire) -> None:
    """RFC 8985 section 7.4.2: the D-SACK says that both have arrived."""
    sent(wire, 10)
    wire.after(RTT).peer(ACK, seq=1, ack=at(8))
    window = wire.user.congestion.window
    wire.after(2 * RTT).ours(ACK, seq=at(9), size=MSS)
    wire.peer(ACK, seq=1, ack=at(10))
    wire.after(RTT).peer(ACK, seq=1, ack=at(10), sack=[run(9, 9)])
    wire.user.send([bytes(2 * MSS)])
    wire.ignore()
    wire.after(RTT).peer(ACK, seq=1, ack=at(12))
    assert wire.user.congestion.window >= window
    recovery = wire.user.recovery
    assert isinstance(recovery, SackRecovery)
    assert not recovery.active
    recovery.rack.reordered = True  # and it says nothing about the order of packets
    assert recovery.rack.window(wire.user, recovering=True) == rack_quarter(wire)


def test_a_lost_fin_is_probed_with_the_text_before_it(wire: Wire) -> None:
    """RFC 8985 section 7.3: FIN is the last thing of the last segment."""
    wire.established(sacks=True, rtt=RTT)
    wire.user.send([bytes(2 * MSS)])
    wire.user.finish()
    wire.ours(ACK, seq=at(0), size=MSS)
    wire.ours(FIN | ACK, seq=at(1), size=MSS)
    wire.after(2 * RTT).ours(FIN | ACK, seq=at(1) + 1, size=MSS - 1)
    wire.after(RTT).peer(ACK, seq=1, ack=at(2) + 1)


def test_a_timeout_spares_what_was_sent_just_now(wire: Wire) -> None:
    """RFC 8985 section 6.3: not all that is out is lost when the timer expires."""
    sent(wire, 3)
    wire.after(2 * RTT).ours(ACK, seq=at(2), size=MSS)
    wire.after(190 * MILLISECOND)
    wire.user.send([bytes(MSS)])
    wire.ours(ACK | PSH, seq=at(3), size=MSS)
    wire.after(10 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    wire.after(30 * MILLISECOND).peer(ACK, seq=1, ack=at(3))
    wire.quiet()


def test_a_retransmission_gets_the_full_timeout(wire: Wire) -> None:
    """RFC 6298 (5.1): counted from when SND.UNA was sent last, or its second retransmission,
    which RACK begins, would be met by the timeout of the first."""
    wire.established(sacks=True, rtt=RTT)
    wire.user.send([bytes(20 * MSS)])
    wire.ignore()
    wire.after(100 * MILLISECOND).peer(ACK, seq=1, ack=at(0), sack=[run(1, 9)])
    wire.ignore()
    wire.after(199 * MILLISECOND).ignore()
    assert wire.counters["tcp.retransmission_timeouts"] == 0
    wire.after(1 * MILLISECOND).ignore()
    assert wire.counters["tcp.retransmission_timeouts"] == 1


def test_timers_rest_when_all_is_acknowledged(wire: Wire) -> None:
    """An idle connection has no deadline: no probe, no reordering window is left armed."""
    sent(wire, 5)
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(1, 1)])
    wire.peer(ACK, seq=1, ack=at(5))
    wire.after(1000 * RTT).quiet()
    assert wire.timers.next_deadline is None
