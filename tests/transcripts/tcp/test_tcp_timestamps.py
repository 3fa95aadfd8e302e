"""Timestamps and PAWS (RFC 7323)."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, PSH, RST, SYN
from tests.transcripts.tcp_wire import Wire


def test_timestamps_are_used_where_both_sides_offer_them(wire: Wire) -> None:
    """RFC 7323 section 3.2."""
    wire.established(stamp=7000)
    wire.user.send([b"x"])
    got = wire.ours(PSH | ACK)
    assert got.timestamp is not None
    assert got.timestamp[1] == 7000


def test_without_an_offer_there_are_none(wire: Wire) -> None:
    """RFC 7323 section 3.2."""
    wire.established()
    wire.user.send([b"x"])
    assert wire.ours(PSH | ACK).timestamp is None


def test_a_host_may_decline(wire: Wire) -> None:
    """The option is not echoed, and segments keep their full size."""
    wire.host(stamps=False)
    wire.peer(SYN, seq=0, mss=1460, stamp=(1, 0))
    assert wire.ours(SYN | ACK).timestamp is None
    wire.peer(ACK, seq=1, ack=1)
    assert wire.user.mss == 1460


def test_our_timestamps_follow_the_clock(wire: Wire) -> None:
    """RFC 7323 section 5.4: a millisecond each."""
    wire.established(stamp=1)
    wire.user.send([b"x"])
    first = wire.ours(PSH | ACK).timestamp
    wire.after(100 * MILLISECOND)
    wire.user.send([b"y"])
    second = wire.ours(PSH | ACK).timestamp
    assert first is not None
    assert second is not None
    assert second[0] - first[0] & 0xFFFF_FFFF == 100


def test_the_earliest_unacknowledged_timestamp_is_echoed(wire: Wire) -> None:
    """RFC 7323 section 4.3: so that the peer measures the delay of our acknowledgement, too."""
    wire.established(stamp=100)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a", stamp=(110, 1))
    wire.peer(PSH | ACK, seq=2, ack=1, text=b"b", stamp=(120, 1))
    got = wire.after(40 * MILLISECOND).ours(ACK, ack=3)
    assert got.timestamp is not None
    assert got.timestamp[1] == 110


def test_the_timestamp_of_the_answer_to_our_syn_is_echoed(wire: Wire) -> None:
    """RFC 7323 section 3.2: from the third segment of the handshake on."""
    wire.connecting()
    wire.peer(SYN | ACK, seq=0, ack=1, mss=1460, stamp=(7777, 1))
    got = wire.ours(ACK, seq=1, ack=1)
    assert got.timestamp is not None
    assert got.timestamp[1] == 7777


def test_a_hole_does_not_move_the_echo(wire: Wire) -> None:
    """RFC 7323 section 4.3, case B."""
    wire.established(stamp=100)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"e", stamp=(130, 1))
    got = wire.ours(ACK, ack=1)
    assert got.timestamp is not None
    assert got.timestamp[1] == 100


def test_an_old_duplicate_is_recognized(wire: Wire) -> None:
    """RFC 7323 section 5.3 R1: in the window, but older than what came before. It is answered."""
    wire.established(stamp=100)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"old", stamp=(99, 1))
    wire.ours(ACK, seq=1, ack=1)
    assert wire.app.text == b""
    assert wire.counters["tcp.paws"] == 1


def test_the_same_timestamp_is_not_old(wire: Wire) -> None:
    """RFC 7323 section 5.3: many segments share a millisecond."""
    wire.established(stamp=100)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"same", stamp=(100, 1))
    assert wire.app.text == b"same"
    wire.after(SECOND).ours(ACK)


def test_timestamps_wrap(wire: Wire) -> None:
    """RFC 7323 section 5.2: compared like sequence numbers."""
    wire.established(stamp=0xFFFF_FFFF)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"after", stamp=(3, 1))
    assert wire.app.text == b"after"
    wire.after(SECOND).ours(ACK)
    wire.peer(PSH | ACK, seq=6, ack=1, text=b"before", stamp=(0xFFFF_FFFF, 1))
    wire.ours(ACK, ack=6)
    assert wire.app.text == b"after"


def test_a_reset_needs_no_timestamp(wire: Wire) -> None:
    """RFC 7323 section 5.3: PAWS does not look at resets."""
    wire.established(stamp=100)
    wire.peer(RST, seq=1, stamp=(1, 0))
    wire.state(State.CLOSED)


def test_a_missing_timestamp_is_tolerated(wire: Wire) -> None:
    """RFC 7323 section 3.2 would drop it; peers behind some middleboxes would then never finish."""
    wire.established(stamp=100)
    wire.stamp = None
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"bare")
    assert wire.app.text == b"bare"
    assert wire.after(SECOND).ours(ACK, ack=5).timestamp is not None


def test_after_weeks_of_silence_timestamps_prove_nothing(wire: Wire) -> None:
    """RFC 7323 section 5.5: the peer's clock has gone on by more than half of its numbers, so the
    new one looks old."""
    weeks = 25 * 24 * 3600
    wire.established(stamp=100)
    wire.after(weeks * SECOND)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"hello again", stamp=(100 + weeks * 1000, 1))
    assert wire.app.text == b"hello again"
    wire.after(SECOND).ours(ACK)


def test_a_forged_syn_or_reset_does_not_move_the_timestamp(wire: Wire) -> None:
    """A timestamp far ahead would make all that is genuine look old."""
    wire.established(stamp=100)
    wire.peer(SYN, seq=1, stamp=(1_000_000, 1))
    wire.ignore()
    wire.peer(RST, seq=9, stamp=(1_000_000, 1))
    wire.ignore()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"genuine", stamp=(101, 1))
    assert wire.app.text == b"genuine"
    wire.after(SECOND).ours(ACK)


def test_timestamps_in_an_unusual_place_are_read(wire: Wire) -> None:
    """RFC 7323 appendix A only recommends a layout: others go the long way."""
    wire.established(stamp=100)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x", stamp=(200, 1))
    _, packet = wire.log[-1]
    segment = bytearray(packet[wire.family.header_bytes :])
    segment[20:32] = b"\x08\x0a" + segment[24:32] + b"\x01\x01"
    segment[4:8] = (wire.peer_isn + 2).to_bytes(4, "big")
    wire.arrives(bytes(segment))
    assert wire.app.text == b"xx"
    wire.after(SECOND).ours(ACK, ack=3)


def test_each_connection_has_its_own_time(wire: Wire) -> None:
    """RFC 7323 section 7.1: nobody learns from one how long the host has been up."""
    stamps = []
    for port in (1000, 2000, 3000):
        wire.peer_port = port
        wire.peer(SYN, seq=0, stamp=(1, 0))
        answer = wire.ours(SYN | ACK)
        assert answer.timestamp is not None
        stamps.append(answer.timestamp[0])
    assert len({stamp >> 16 for stamp in stamps}) == 3


@pytest.mark.parametrize("end", ["abort", "unread text", "timeout"])
def test_a_reset_of_ours_has_a_timestamp(wire: Wire, end: str) -> None:
    """RFC 7323 section 3.2: a peer with PAWS may want one, though none has to."""
    wire.established(stamp=100)
    if end == "abort":
        wire.user.abort()
    elif end == "unread text":
        wire.user.pause()
        wire.peer(PSH | ACK, seq=1, ack=1, text=b"unread")
        wire.user.close()
    else:
        wire.user.keep_alive(KeepAlive(idle=SECOND, interval=SECOND, probes=1))
        wire.after(SECOND).ours(ACK, seq=0)
        wire.after(SECOND)
    reset = wire.ours(RST | ACK, seq=1)
    expected = wire.now // MILLISECOND + wire.tcp.stamp_base(wire.key) & MASK
    assert reset.timestamp == (expected, 100)


def test_a_reset_of_no_connection_has_none(wire: Wire) -> None:
    """There is nothing to tell of: whose clock should it be?"""
    wire.peer(ACK, seq=5, ack=7, stamp=(1, 2))
    assert wire.ours(RST).timestamp is None
