"""Passive OPEN (RFC 9293 section 3.9.1.1), beside connections that there are already."""

from __future__ import annotations

import pytest

from appliance.clock import SECOND
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, PSH, SYN
from tests.transcripts.tcp_wire import PORT, RecordingUser, Wire


def test_a_port_is_listened_on_once_and_the_first_listener_stays(wire: Wire) -> None:
    """RFC 9293 MUST-41: a second OPEN is an error, and changes nothing."""
    wire.established()
    with pytest.raises(ValueError, match="listened on already"):
        wire.tcp.listen(PORT, RecordingUser().accept)
    assert wire.tcp.listeners[PORT] is wire.listener
    wire.state(State.ESTABLISHED)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"text")
    wire.after(SECOND).ours(ACK, ack=5)


def test_a_listener_that_begins_changes_no_connection_from_its_port(wire: Wire) -> None:
    """RFC 9293 MUST-41, MUST-42: the port of a connection in SYN-SENT may be listened on, and each
    peer gets what is his."""
    wire.connecting()
    other = RecordingUser()
    wire.tcp.listen(wire.our_port, other.accept)
    wire.state(State.SYN_SENT)
    mine, our_isn, wire.peer_port = wire.peer_port, wire.our_isn, 50_000
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1)
    assert other.connection is not None and other.connection.peer_port == 50_000
    wire.peer_port, wire.our_isn = mine, our_isn
    wire.peer(SYN | ACK, seq=0, ack=1)
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)
    assert wire.app.connection is not other.connection


def test_a_port_listens_while_connections_to_it_are_half_open(wire: Wire) -> None:
    """RFC 9293 MUST-42: SYN-RECEIVED is a state of one connection, not of the port."""
    for port in (50_000, 50_001, 50_002):
        wire.peer_port = port
        wire.peer(SYN, seq=0)
        wire.ours(SYN | ACK, seq=0, ack=1)
    assert len(wire.listener.half_open) == 3
    wire.peer(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)
    assert len(wire.listener.half_open) == 2


def test_a_connection_may_be_opened_from_a_port_that_listens(wire: Wire) -> None:
    """RFC 9293 MUST-42, the other way round."""
    c = wire.tcp.connect(wire.family.peer, 7, wire.app, wire.now, source_port=PORT)
    wire.ours(SYN, seq=0)
    wire.established()
    assert c.state is State.SYN_SENT
    assert wire.tcp.listeners[PORT] is wire.listener
    wire.after(SECOND).ours(SYN)
