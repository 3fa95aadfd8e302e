"""Opening and closing a connection: the figures of RFC 9293."""

from __future__ import annotations

from appliance.clock import SECOND
from appliance.limits import TCP_TIME_WAIT
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.transcripts.tcp_wire import Wire


def test_the_peer_opens(wire: Wire) -> None:
    """RFC 9293 figure 6, seen from B."""
    wire.peer(SYN, seq=0)
    wire.state(State.SYN_RECEIVED)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)
    wire.peer(ACK, seq=1, ack=1, text=b"hello")
    assert wire.app.text == b"hello"
    wire.after(SECOND).ours(ACK, seq=1, ack=6)


def test_we_open(wire: Wire) -> None:
    """RFC 9293 figure 6, seen from A."""
    wire.connecting()
    wire.state(State.SYN_SENT)
    wire.peer(SYN | ACK, seq=0, ack=1)
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)
    assert wire.app.rooms == 1


def test_both_open_at_once(wire: Wire) -> None:
    """RFC 9293 figure 7: simultaneous open."""
    wire.connecting()
    wire.peer_port, wire.our_port = 40000, 3000
    wire.peer(SYN, seq=0)
    wire.state(State.SYN_RECEIVED)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(SYN | ACK, seq=0, ack=1)
    wire.state(State.ESTABLISHED)
    assert wire.app.rooms == 1


def test_the_peer_closes_first(wire: Wire) -> None:
    """RFC 9293 figure 12, seen from B."""
    wire.established()
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.ours(ACK, seq=1, ack=2)
    wire.state(State.CLOSE_WAIT)
    assert wire.app.endings == [None]
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=2)
    wire.state(State.LAST_ACK)
    wire.peer(ACK, seq=2, ack=2)
    wire.state(State.CLOSED)
    assert wire.app.endings == [None]


def test_we_close_first(wire: Wire) -> None:
    """RFC 9293 figure 12, seen from A."""
    wire.established()
    wire.user.close()
    wire.state(State.FIN_WAIT_1)
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(ACK, seq=1, ack=2)
    wire.state(State.FIN_WAIT_2)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)
    assert wire.app.endings == [None]
    wire.after(TCP_TIME_WAIT).state(State.CLOSED)
    assert wire.app.endings == [None]


def test_both_close_at_once(wire: Wire) -> None:
    """RFC 9293 figure 13: simultaneous close."""
    wire.established()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.CLOSING)
    wire.peer(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)
    wire.after(TCP_TIME_WAIT).state(State.CLOSED)


def test_text_is_echoed_in_the_acknowledgement(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.3: the acknowledgement rides on the reply."""
    wire.established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"call")
    wire.user.send([b"re", b"ply"])
    wire.ours(PSH | ACK, seq=1, ack=5, text=b"reply")
    wire.peer(ACK, seq=5, ack=6)


def test_an_abort_is_a_reset(wire: Wire) -> None:
    """RFC 9293 section 3.10.5."""
    wire.established()
    wire.user.abort()
    wire.ours(RST | ACK, seq=1, ack=1)
    wire.state(State.CLOSED)
    assert wire.app.endings == ["aborted"]
