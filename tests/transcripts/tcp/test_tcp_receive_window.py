"""The receive window follows its user: it grows with what he reads in a round trip (after RFC 9293
section 3.8.6.2.2, whose rules hold all the while; the wire asserts that its edge never moves left).
"""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    TCP_RECEIVE_BYTES,
    TCP_RECEIVE_BYTES_FIRST,
    TCP_RECEIVE_ROUND_MIN,
    KiB,
    MiB,
)
from appliance.netstack.tcp.host import window_shift
from appliance.netstack.wire.tcp import ACK, PSH, SYN, Segment
from tests.transcripts.tcp_wire import Wire

ROUND_TRIP = 100 * MILLISECOND
PIECE = 32 * KiB


def far_away(wire: Wire, receive_bytes: int = TCP_RECEIVE_BYTES) -> Wire:
    """A peer whose handshake took a round trip."""
    wire.host(receive_bytes=receive_bytes)
    wire.peer(SYN, seq=0, mss=1460, shift=7)
    answer = wire.ours(SYN | ACK)
    assert answer.window_scale is not None
    wire.peer_shift, wire.our_shift = 7, answer.window_scale
    wire.after(ROUND_TRIP).peer(ACK, seq=1, ack=1)
    assert wire.user.round_trip.srtt == ROUND_TRIP
    return wire


def stream(wire: Wire, count: int, bytes_per_round_trip: int) -> None:
    """So much text arrives, at this rate."""
    for _ in range(count // PIECE):
        wire.after(ROUND_TRIP * PIECE // bytes_per_round_trip)
        text_arrives(wire)


def text_arrives(wire: Wire) -> None:
    """A piece in order. Its checksum is known to be good: computing it slowly takes too long."""
    seq, ack = wire.user.rcv.nxt, wire.user.snd.una
    header = Segment(wire.peer_port, wire.our_port, seq, ack, ACK, 65535).emit()
    packet = bytes(header) + bytes(PIECE)
    if not (wire.expressly and wire.express(packet)):
        wire.tcp.arrives(wire.family.peer, wire.family.ours, packet, 0, len(packet), True, wire.now)
    wire.ignore()


def window(wire: Wire) -> int:
    """What we tell the peer now."""
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    rcv = wire.user.rcv
    wire.peer(ACK, seq=rcv.nxt - wire.peer_isn, ack=wire.user.snd.nxt - wire.user.snd.iss)
    wire.ignore()
    return rcv.edge - rcv.nxt


def test_it_begins_small(wire: Wire) -> None:
    assert window(far_away(wire)) == TCP_RECEIVE_BYTES_FIRST


@pytest.mark.parametrize("rate", [400 * KiB, 1 * MiB, 3 * MiB])
def test_it_becomes_twice_what_is_read_in_a_round_trip(wire: Wire, rate: int) -> None:
    """The peer must be able to send as much again before our acknowledgements get there."""
    far_away(wire)
    stream(wire, 20 * MiB, rate)
    assert 2 * rate <= window(wire) <= 4 * rate


def test_a_slow_peer_gets_no_more(wire: Wire) -> None:
    far_away(wire)
    stream(wire, 8 * MiB, TCP_RECEIVE_BYTES_FIRST // 4)
    assert window(wire) == TCP_RECEIVE_BYTES_FIRST


def test_it_ends_where_the_limit_is(wire: Wire) -> None:
    far_away(wire)
    stream(wire, 64 * MiB, 32 * MiB)
    assert window(wire) == TCP_RECEIVE_BYTES
    assert wire.tcp.budget.granted == TCP_RECEIVE_BYTES - TCP_RECEIVE_BYTES_FIRST


def test_what_is_not_read_does_not_make_it_grow(wire: Wire) -> None:
    """The user is what limits it then."""
    far_away(wire)
    stream(wire, TCP_RECEIVE_BYTES_FIRST // 2, 4 * MiB)
    wire.user.pause()
    stream(wire, TCP_RECEIVE_BYTES_FIRST - PIECE, 4 * MiB)
    wire.after(SECOND).ignore()
    assert wire.user.rcv.capacity == TCP_RECEIVE_BYTES_FIRST
    wire.user.resume()
    wire.ignore()


def test_a_round_trip_on_the_link_counts_a_little_more(wire: Wire) -> None:
    """Of 50 us nothing is learnt about how much fits into the way."""
    wire.host(receive_bytes=TCP_RECEIVE_BYTES).established(shift=7)
    for _ in range(3):
        for _ in range(TCP_RECEIVE_BYTES_FIRST // 2 // PIECE):
            text_arrives(wire)
        wire.after(TCP_RECEIVE_ROUND_MIN).ignore()
    assert wire.user.rcv.capacity == 2 * TCP_RECEIVE_BYTES_FIRST


def test_all_connections_together_are_not_promised_too_much(wire: Wire) -> None:
    far_away(wire)
    wire.tcp.budget.limit = 1 * MiB
    stream(wire, 16 * MiB, 8 * MiB)
    assert wire.user.rcv.capacity == 1 * MiB
    assert wire.tcp.budget.granted == 768 * KiB
    wire.user.abort()
    wire.ignore()
    assert wire.tcp.budget.granted == 0


@pytest.mark.parametrize(
    ("most", "shift"), [(65535, 0), (65536, 1), (1 * MiB, 5), (TCP_RECEIVE_BYTES, 8)]
)
def test_the_scale_is_chosen_for_the_largest_window(wire: Wire, most: int, shift: int) -> None:
    """RFC 7323 section 2.2: it is said once, in the SYN, and the window only grows later."""
    far_away(wire, receive_bytes=most)
    assert wire.our_shift == window_shift(most) == shift
    stream(wire, 4 * most, 4 * most)
    assert window(wire) >= most - (1 << shift)
