"""TIME-WAIT: which SYN may take its place (RFC 6191 section 2)."""

from __future__ import annotations

import pytest

from appliance.clock import SECOND
from appliance.limits import TCP_TIME_WAIT
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, SYN
from tests.transcripts.tcp_wire import Wire

LAST = 1000
"""The last timestamp of the connection before."""


def until_time_wait(wire: Wire, stamp: int | None = None) -> int:
    """We have closed. What our numbers began with."""
    wire.established(stamp=stamp)
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)
    wire.stamp = None
    assert wire.our_isn is not None
    return wire.our_isn


BEFORE, NEXT, BEHIND = -70_000, 2, 70_000
"""Sequence numbers: older than the last one seen, it, and newer."""

RULES = [
    # timestamps before; the SYN's; its sequence number; may it take the place?
    (True, LAST + 1, BEFORE, True),
    (True, LAST + 1, BEHIND, True),
    (True, LAST, BEHIND, True),
    (True, LAST, BEFORE, False),
    (True, LAST, NEXT, False),
    (True, LAST - 1, BEHIND, False),
    (True, LAST - 1, BEFORE, False),
    (True, None, BEHIND, True),
    (True, None, BEFORE, False),
    (False, 1, BEFORE, True),
    (False, None, BEHIND, True),
    (False, None, NEXT, False),
    (False, None, BEFORE, False),
]


@pytest.mark.parametrize(("stamps", "stamp", "seq", "taken"), RULES)
def test_which_syn_takes_the_place_of_time_wait(
    wire: Wire, stamps: bool, stamp: int | None, seq: int, taken: bool
) -> None:
    """RFC 6191 section 2, rule by rule. What may not is answered as any SYN that may be forged (RFC
    9293 section 3.10.7.4), or PAWS finds it."""
    old = until_time_wait(wire, LAST if stamps else None)
    wire.peer(SYN, seq=seq, stamp=None if stamp is None else (stamp, 0))
    if not taken:
        wire.ours(ACK, seq=2, ack=2)
        wire.state(State.TIME_WAIT)
        return
    answer = wire.ours(SYN | ACK, ack=seq + 1)
    assert 2 < answer.seq - old < 1 << 20, "our numbers begin beyond the old ones"
    wire.state(State.SYN_RECEIVED)


def test_the_new_connection_lives(wire: Wire) -> None:
    until_time_wait(wire)
    wire.peer(SYN, seq=BEHIND)
    wire.ours(SYN | ACK, ack=BEHIND + 1)
    wire.peer(ACK, seq=BEHIND + 1, ack=1)
    wire.state(State.ESTABLISHED)
    assert wire.app.endings == [None]


def test_without_a_listener_none_does(wire: Wire) -> None:
    """The SYN would only be refused."""
    until_time_wait(wire)
    wire.listener.close()
    wire.peer(SYN, seq=BEHIND)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)


def test_each_connection_waits_for_its_own_time(wire: Wire) -> None:
    """RFC 9293 section 3.6.1, MUST-13: 2 MSL from its own last FIN, also where others wait."""
    ends: dict[int, int] = {}
    for port in (1000, 1001, 1002):
        wire.peer_port, wire.our_isn = port, None
        until_time_wait(wire)
        ends[port] = wire.now + TCP_TIME_WAIT
        wire.after(10 * SECOND)
    wire.peer_port = 1000
    wire.peer(FIN | ACK, seq=1, ack=2)  # once more, so its time begins anew
    wire.ignore()
    ends[1000] = wire.now + TCP_TIME_WAIT
    for port in (1001, 1002, 1000):
        wire.peer_port = port
        wire.after(ends[port] - wire.now - 1)
        assert wire.connection() is not None
        wire.after(1)
        assert wire.connection() is None
    wire.after(TCP_TIME_WAIT)
    assert wire.timers.next_deadline is None


def test_our_first_numbers_follow_a_clock_and_a_secret(wire: Wire) -> None:
    """RFC 6528 section 3: for one pair of sockets they grow by one in 4 us, so that a new
    connection does not begin inside an old one; and one pair says nothing about another."""
    first = {}
    for port in (1000, 1001):
        wire.peer_port = port
        first[port] = wire.tcp.initial_sequence_number(wire.key, wire.now)
        later = wire.tcp.initial_sequence_number(wire.key, wire.now + SECOND)
        assert (later - first[port]) % (1 << 32) == 250_000
    assert abs(first[1000] - first[1001]) > 1 << 16
    other = Wire().host(seed=2)
    other.peer_port = 1000
    assert other.tcp.initial_sequence_number(other.key, wire.now) != first[1000]
