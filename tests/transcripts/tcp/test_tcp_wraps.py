"""Sequence numbers that pass 2**32, on both sides and in every part that compares them."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import MiB
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.transcripts.tcp_wire import Wire

NEAR = 0xFFFF_FFF0


@pytest.fixture
def near(wire: Wire) -> Wire:
    """Both sides begin 16 bytes before the wrap."""
    return wire.host(our_isn=NEAR, peer_isn=NEAR)


def test_handshake_text_and_close(near: Wire) -> None:
    """RFC 9293 section 3.4: all arithmetic is modulo 2**32."""
    near.established()
    assert near.our_isn == NEAR
    near.peer(PSH | ACK, seq=1, ack=1, text=bytes(100))
    near.user.send([bytes(200)])
    near.ours(PSH | ACK, seq=1, ack=101, size=200)
    near.peer(PSH | ACK, seq=101, ack=201, text=bytes(100))
    assert len(near.app.text) == 200
    near.user.close()
    near.ours(FIN | ACK, seq=201, ack=201)
    near.peer(FIN | ACK, seq=201, ack=202)
    near.ours(ACK, seq=202, ack=202)
    near.state(State.TIME_WAIT)


@pytest.mark.parametrize("peer_isn", [0xFFFF_FFFE, 0xFFFF_FFFF, 0])
def test_the_syn_itself_may_be_the_last_number(wire: Wire, peer_isn: int) -> None:
    """SYN takes a number, too."""
    wire.host(our_isn=0xFFFF_FFFF, peer_isn=peer_isn).established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x")
    wire.user.send([b"y"])
    wire.ours(PSH | ACK, seq=1, ack=2, text=b"y")


def test_we_open_across_the_wrap(near: Wire) -> None:
    """RFC 9293 section 3.10.7.3."""
    near.connecting()
    near.peer(SYN | ACK, seq=0, ack=1)
    near.ours(ACK, seq=1, ack=1)
    near.peer(RST, seq=1)
    assert near.app.endings == ["reset by peer"]


def test_reassembly(near: Wire) -> None:
    """A hole that spans the wrap."""
    near.established()
    near.peer(ACK, seq=20, ack=1, text=b"t" * 10)
    near.ours(ACK, ack=1)
    near.peer(ACK, seq=10, ack=1, text=b"m" * 10)
    near.ours(ACK, ack=1)
    near.peer(ACK, seq=1, ack=1, text=b"h" * 9)
    near.ours(ACK, ack=30)
    assert near.app.text == b"h" * 9 + b"m" * 10 + b"t" * 10


def test_fast_retransmit(near: Wire) -> None:
    """RFC 5681 section 3.2."""
    near.established()
    near.user.send([bytes(5 * 1460)])
    for i in range(5):
        near.ours(ACK, seq=1 + 1460 * i)
    for _ in range(3):
        near.peer(ACK, seq=1, ack=1)
    near.ours(ACK, seq=1, size=1460)
    near.peer(ACK, seq=1, ack=5 * 1460 + 1)
    assert near.user.unsent_bytes == 0


def test_timeout(near: Wire) -> None:
    """RFC 6298."""
    near.established()
    near.user.send([bytes(100)])
    near.ours(PSH | ACK, seq=1)
    near.peer(ACK, seq=1, ack=50)
    near.after(200 * MILLISECOND).ours(PSH | ACK, seq=50, size=51)


def test_windows_and_blind_segments(near: Wire) -> None:
    """RFC 5961: what is inside and outside of a window across the wrap."""
    near.established()
    near.peer(RST, seq=30)
    near.ours(ACK, seq=1, ack=1)
    near.peer(RST, seq=0)
    near.peer(RST, seq=70_000)
    near.quiet()
    near.peer(ACK, seq=1, ack=2)
    near.ours(ACK, seq=1, ack=1)
    near.state(State.ESTABLISHED)


def test_more_than_four_gigabytes(wire: Wire) -> None:
    """A stream that wraps again and again: only differences ever mean anything."""
    wire.host(receive_bytes=4 * MiB, our_isn=NEAR)
    wire.established(shift=7)
    c = wire.user
    piece = memoryview(bytes(1 << 30))
    assert piece.nbytes == 1 << 30
    for turn in range(5):
        # The middle of each gigabyte is skipped: as if it had been sent and acknowledged.
        c.snd.una += len(piece)
        for name in ("nxt", "end", "limit"):
            setattr(c.snd, name, c.snd.una)
        c.rcv.nxt += len(piece)
        c.rcv.edge = c.rcv.nxt + c.rcv.capacity
        c.rcv.acked = c.rcv.nxt
        c.snd.wl1, c.snd.wl2 = c.rcv.nxt, c.snd.una
        at = 1 + (turn + 1) * len(piece) + 10 * turn
        wire.peer(PSH | ACK, seq=at, ack=at, text=bytes(10))
        c.send([bytes(10)])
        got = wire.ours(PSH | ACK)
        assert got.seq == (NEAR + at) % (1 << 32)
        assert got.ack == (wire.peer_isn + at + 10) % (1 << 32)
        wire.peer(ACK, seq=at + 10, ack=at + 10)
        assert c.unsent_bytes == 0
    assert len(wire.app.text) == 50
    wire.after(SECOND).quiet()
