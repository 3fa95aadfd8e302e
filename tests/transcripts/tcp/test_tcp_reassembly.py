"""Text out of order: kept within bounds, joined, and what came first stays."""

from __future__ import annotations

from random import Random

import pytest

from appliance.clock import SECOND
from appliance.limits import TCP_OUT_OF_ORDER_PIECES_MAX, KiB, MiB
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH
from tests.transcripts.tcp_wire import Wire


def kept(wire: Wire) -> list[tuple[int, bytes]]:
    """What is kept out of order, with relative numbers."""
    return [(seq - wire.peer_isn, bytes(text)) for seq, text in wire.user.rcv.out_of_order]


def test_a_hole_is_reported_at_once_and_filled_at_once(wire: Wire) -> None:
    """RFC 5681 section 4.2: a duplicate acknowledgement for each segment behind the hole, and an
    acknowledgement for all when it is filled."""
    wire.established()
    wire.peer(PSH | ACK, seq=3, ack=1, text=b"cd")
    wire.ours(ACK, ack=1)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"ef")
    wire.ours(ACK, ack=1)
    assert wire.app.text == b""
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"ab")
    wire.ours(ACK, ack=7)
    assert wire.app.text == b"abcdef"
    assert kept(wire) == []


def test_each_segment_of_one_frame_is_reported(wire: Wire) -> None:
    """RFC 5681 section 4.2: though the answers leave in one flush."""
    wire.established()
    wire.flush()
    c = wire.user
    for seq in (11, 21, 31):
        segment = wire_segment(wire, seq, b"0123456789")
        wire.tcp.arrives(*segment, 0, len(segment[2]), True, wire.now)
    wire.flush()
    for _ in range(3):
        wire.ours(ACK, ack=1)
    assert c.rcv.out_of_order_charge == 3 * 256


def wire_segment(wire: Wire, seq: int, text: bytes) -> tuple[bytes, bytes, bytes]:
    """A segment that arrives without a flush behind it."""
    from appliance.netstack.wire.tcp import Segment

    segment = Segment(
        wire.peer_port, wire.our_port, wire.peer_isn + seq, (wire.our_isn or 0) + 1, ACK, 65535
    )
    return wire.family.peer, wire.family.ours, bytes(segment.emit()) + text


def test_what_was_received_first_stays(wire: Wire) -> None:
    """The same numbers with other text: an attacker's, or a broken peer's."""
    wire.established()
    wire.peer(PSH | ACK, seq=4, ack=1, text=b"def")
    wire.peer(PSH | ACK, seq=2, ack=1, text=b"ZZZZZZZ")
    assert kept(wire) == [(2, b"ZZ"), (4, b"def"), (7, b"ZZ")]
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"YYYYYYYYYY")
    assert wire.app.text == b"YYYYYYYYYY"  # in order before it was ever delivered: also first
    wire.ignore()


def test_text_between_pieces_fills_only_the_gaps(wire: Wire) -> None:
    """R3: one segment across two pieces."""
    wire.established()
    wire.peer(ACK, seq=3, ack=1, text=b"CD")
    wire.peer(ACK, seq=7, ack=1, text=b"GH")
    wire.peer(ACK, seq=2, ack=1, text=b"bxxefyyi")
    assert kept(wire) == [(2, b"b"), (3, b"CD"), (5, b"ef"), (7, b"GH"), (9, b"i")]
    wire.peer(ACK, seq=1, ack=1, text=b"a")
    assert wire.app.text == b"abCDefGHi"
    wire.ignore()


def test_a_resegmented_retransmission_leaves_nothing_behind(wire: Wire) -> None:
    """Pieces that RCV.NXT has passed are thrown away, not stranded."""
    wire.established()
    wire.peer(ACK, seq=3, ack=1, text=b"cd")
    wire.peer(ACK, seq=5, ack=1, text=b"ef")
    wire.peer(ACK, seq=9, ack=1, text=b"ij")
    wire.peer(ACK, seq=1, ack=1, text=b"abcdefg")
    assert wire.app.text == b"abcdefg"
    assert kept(wire) == [(9, b"ij")]
    wire.peer(ACK, seq=8, ack=1, text=b"hijk")
    assert wire.app.text == b"abcdefghijk"
    assert kept(wire) == []
    assert wire.user.rcv.out_of_order_charge == 0
    wire.ignore()


def test_a_partly_repeated_segment_is_trimmed(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: only what is new of it."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, text=b"abcd")
    wire.peer(ACK, seq=3, ack=1, text=b"XXef")
    assert wire.app.text == b"abcdef"
    wire.after(SECOND).ours(ACK, ack=7)


def test_a_fin_waits_for_the_text_before_it(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, eighth step."""
    wire.established()
    wire.peer(FIN | ACK, seq=4, ack=1)
    wire.ours(ACK, ack=1)
    wire.state(State.ESTABLISHED)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"abc")
    wire.ours(ACK, ack=5)
    wire.state(State.CLOSE_WAIT)
    assert (bytes(wire.app.text), wire.app.endings) == (b"abc", [None])


def test_text_behind_a_fin_is_not_taken(wire: Wire) -> None:
    """There is nothing behind a FIN."""
    wire.established()
    wire.peer(FIN | ACK, seq=4, ack=1)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"abcXYZ")
    assert wire.app.text == b"abc"
    wire.state(State.CLOSE_WAIT)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"zombie")
    assert wire.app.text == b"abc"
    wire.ignore()


def test_a_fin_before_text_that_has_come_is_not_believed(wire: Wire) -> None:
    """What came first stays, here as well."""
    wire.established()
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"ef")
    wire.peer(FIN | ACK, seq=3, ack=1)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"abcd")
    wire.state(State.ESTABLISHED)
    assert wire.app.text == b"abcdef"
    wire.ignore()


@pytest.mark.lanes("express", "long way")  # it takes long
def test_a_flood_of_holes_is_bounded(wire: Wire) -> None:
    """In pieces, and so in what they cost."""
    wire.host(receive_bytes=4 * MiB)
    wire.established(shift=7)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    for i in range(2 * TCP_OUT_OF_ORDER_PIECES_MAX):
        wire.peer(ACK, seq=3 + 2 * i, ack=2, text=b"x")
    assert len(kept(wire)) == TCP_OUT_OF_ORDER_PIECES_MAX
    assert wire.counters["tcp.no_room"] == TCP_OUT_OF_ORDER_PIECES_MAX
    wire.ignore()
    wire.peer(ACK, seq=1, ack=2, text=b"y" * 20_000)
    assert wire.app.text == b"y" * 20_000
    assert kept(wire) == []
    wire.ignore()


def test_out_of_order_text_counts_for_the_host(wire: Wire) -> None:
    """A thousand connections with holes are bounded together."""
    wire.host(receive_bytes=1 * MiB)
    wire.established(shift=7)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    wire.tcp.budget.limit = 50 * KiB
    for i in range(200):
        wire.peer(ACK, seq=2 + 1000 * i, ack=2, text=bytes(1000))
    assert wire.tcp.budget.used <= 52 * KiB
    wire.ignore()
    wire.peer(ACK, seq=1, ack=2, text=b"x")
    wire.ignore()
    assert wire.tcp.budget.used == 0


def test_the_express_lane_is_closed_while_there_are_holes(wire: Wire) -> None:
    """Header prediction speaks of a connection on which nothing else is going on."""
    wire.established()
    wire.peer(ACK, seq=5, ack=1, text=b"ef")
    assert wire.user.predicted < 0
    wire.peer(ACK, seq=1, ack=1, text=b"abcd")
    assert wire.user.predicted > 0
    wire.ignore()


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_cut_gives_the_same_text(wire: Wire, seed: int) -> None:
    """R1 to R3 together, against the obvious model: a text is what it is."""
    random = Random(seed)
    body = random.randbytes(3000)
    wire.established()
    received = bytearray()
    for _ in range(3000):
        start = random.randrange(len(body))
        if random.random() < 0.2:
            start = len(wire.app.text)
        size = random.choice((1, 7, 100, 700))
        wire.peer(ACK, seq=1 + start, ack=1, text=body[start : start + size])
        received = wire.app.text
        assert body.startswith(bytes(received))
        if len(received) == len(body):
            break
    assert bytes(received) == body
    assert kept(wire) == []
    wire.ignore()
