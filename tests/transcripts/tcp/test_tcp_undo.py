"""Retransmissions that were needless, and what they did is taken back (RFC 3522, 4015, 2883)."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.undo import Undo
from appliance.netstack.wire.tcp import ACK, PSH
from tests.transcripts.tcp_wire import Wire

MSS = 1448
"""With timestamps."""
RTT = 40 * MILLISECOND


def at(index: int) -> int:
    """Where segment `index` begins."""
    return 1 + index * MSS


def run(first: int, last: int) -> tuple[int, int]:
    """The block of segments first to last."""
    return at(first), at(last + 1)


def sent(wire: Wire, count: int, sacks: bool, stamp: int | None = 1) -> int:
    """`count` segments have been sent; the timestamp that they carry."""
    wire.established(sacks=sacks, stamp=stamp, rtt=RTT, mss=1460 if stamp else MSS)
    wire.user.send([bytes(count * MSS)])
    segment = wire.ours(ACK, seq=at(0), size=MSS)
    wire.ignore()
    return segment.timestamp[0] if segment.timestamp else 0


@pytest.mark.parametrize("sacks", [False, True])
def test_a_delay_is_not_a_loss(wire: Wire, sacks: bool) -> None:
    """RFC 3522 section 3.2: after a timeout the acknowledgement echoes the original's timestamp.
    RFC 4015 section 3: the window comes back, the rest is not sent again, new text goes on."""
    stamp = sent(wire, 8, sacks)
    window = wire.user.congestion.window
    wire.after(400 * MILLISECOND)
    assert wire.counters["tcp.retransmission_timeouts"] >= 1
    wire.ignore()
    wire.peer(ACK, seq=1, ack=at(2), stamp=(2, stamp))
    wire.quiet()
    assert wire.counters["tcp.spurious_retransmissions"] == 1
    assert wire.user.congestion.window == window
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, seq=at(8), size=MSS)
    wire.peer(ACK, seq=1, ack=at(9), stamp=(3, stamp)).quiet()
    assert wire.user.round_trip.rto > 400 * MILLISECOND, "RFC 4015 section 3.2: be patient now"


@pytest.mark.parametrize("sacks", [False, True])
def test_a_loss_is_a_loss(wire: Wire, sacks: bool) -> None:
    """RFC 3522 section 3.2: the timestamp is that of the retransmission."""
    sent(wire, 8, sacks)
    wire.after(300 * MILLISECOND)
    stamps = wire.now // MILLISECOND + wire.user.stamp_base & 0xFFFF_FFFF
    wire.ignore()
    wire.peer(ACK, seq=1, ack=at(1), stamp=(2, stamps)).ignore()
    assert wire.counters["tcp.spurious_retransmissions"] == 0
    assert wire.user.congestion.window < 8 * MSS


@pytest.mark.parametrize("sacks", [False, True])
def test_reordering_is_not_a_loss(wire: Wire, sacks: bool) -> None:
    """RFC 3522 section 3.2, after a fast retransmit: the original came late."""
    stamp = sent(wire, 8, sacks)
    window = wire.user.congestion.window
    wire.after(RTT)
    for last in (1, 2, 3):
        wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, last)] if sacks else [], stamp=(2, stamp))
    wire.ours(ACK, seq=at(0), size=MSS)
    assert wire.user.recovery.active
    wire.after(3 * MILLISECOND).peer(ACK, seq=1, ack=at(4), stamp=(2, stamp))
    assert not wire.user.recovery.active
    assert wire.user.congestion.window >= window
    wire.quiet()


def test_only_the_answer_to_the_retransmission_counts(wire: Wire) -> None:
    """RFC 3522 section 3.2: what moves SND.UNA up to the hole proves nothing about the hole."""
    stamp = sent(wire, 10, sacks=True)
    wire.after(RTT).peer(ACK, seq=1, ack=at(0), sack=[run(3, 6)], stamp=(2, stamp))
    wire.ignore()
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(8, 9), run(3, 6)], stamp=(2, stamp)).ignore()
    first = wire.user.congestion.threshold
    wire.after(RTT).ignore()
    echo = wire.now // MILLISECOND + wire.user.stamp_base & 0xFFFF_FFFF
    wire.peer(ACK, seq=1, ack=at(7), sack=[run(8, 9)], stamp=(2, echo)).ignore()
    assert wire.user.congestion.threshold == first
    assert wire.counters["tcp.spurious_retransmissions"] == 0


def test_a_hole_further_on_is_not_answered_by_what_is_before_it(wire: Wire) -> None:
    """RFC 3522 section 3.2: the acknowledgement has to be of what was sent again."""
    wire.established(stamp=1)
    c, undo = wire.user, Undo()
    before = (wire.now // MILLISECOND + c.stamp_base & MASK) - 5 & MASK
    undo.begin()
    undo.resent(c, 1000, 10, wire.now)
    assert not undo.original_arrived(1000, before)
    assert undo.original_arrived(1010, before)
    assert not undo.original_arrived(1020, before), "only the first"


def test_duplicates_of_everything_take_it_back(wire: Wire) -> None:
    """RFC 2883, RFC 3708: without timestamps the peer's D-SACKs show it, all of them."""
    sent(wire, 8, sacks=True, stamp=None)
    window = wire.user.congestion.window
    wire.after(RTT)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(2, 7)])
    wire.ours(ACK, seq=at(0), size=MSS)
    wire.ours(ACK, seq=at(1), size=MSS)
    wire.peer(ACK, seq=1, ack=at(8))
    assert wire.user.congestion.window < window
    wire.after(RTT).peer(ACK, seq=1, ack=at(8), sack=[run(0, 0)])
    assert wire.counters["tcp.spurious_retransmissions"] == 0
    wire.peer(ACK, seq=1, ack=at(8), sack=[run(1, 1)])
    assert wire.counters["tcp.spurious_retransmissions"] == 1
    assert wire.user.congestion.window >= window


def test_a_second_timeout_does_not_forget_the_first(wire: Wire) -> None:
    """RFC 4015 section 3: the window from before the first of them comes back."""
    stamp = sent(wire, 8, sacks=True)
    window = wire.user.congestion.window
    wire.after(900 * MILLISECOND).ignore()
    assert wire.counters["tcp.retransmission_timeouts"] >= 2
    wire.peer(ACK, seq=1, ack=at(8), stamp=(2, stamp))
    assert wire.user.congestion.window >= window
