"""Selective acknowledgements: ours, and what is made of the peer's (RFC 2018, 2883, 6675)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.clock import MILLISECOND
from appliance.limits import TCP_OUT_OF_ORDER_PIECES_MAX, TCP_SACK_RANGES_MAX, MiB
from appliance.netstack.wire.tcp import ACK, PSH, SYN
from tests.transcripts.tcp_wire import Wire

MSS = 1460


def at(index: int) -> int:
    """Where segment `index` begins."""
    return 1 + index * MSS


def run(first: int, last: int) -> tuple[int, int]:
    """The block of segments first to last."""
    return at(first), at(last + 1)


def send_segments(wire: Wire, count: int, mss: int = MSS) -> None:
    """Queue and send `count` full segments, of which segment i is made of bytes i."""
    for i in range(count):
        wire.user.send([bytes([i % 256]) * mss])
    for i in range(count):
        wire.ours(ACK, seq=1 + i * mss, size=mss)
    wire.quiet()


# --- what we send ---------------------------------------------------------------------------------


def test_sack_is_agreed_to_only_if_it_is_offered(wire: Wire) -> None:
    """RFC 2018 section 2: the option is for SYNs; without it there are no blocks."""
    wire.established(sacks=False)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"late")
    wire.ours(ACK, ack=1, sack=[])


def test_we_offer_sack(wire: Wire) -> None:
    """RFC 2018 section 2, in an active open; and the peer that does not answer it gets none."""
    c = wire.tcp.connect(bytes((10, 0, 0, 9)), 40000, wire.app, wire.now, source_port=3000)
    wire.app.connection, wire.our_port = c, 3000
    assert wire.ours(SYN, seq=0).sack_permitted
    wire.peer(SYN | ACK, seq=0, ack=1, mss=MSS)
    wire.ours(ACK, seq=1, ack=1)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"late")
    wire.ours(ACK, ack=1, sack=[])


def test_the_most_recent_block_comes_first(wire: Wire) -> None:
    """RFC 2018 section 4: then those told of before, as many as fit (section 3: four, or three
    beside a timestamp)."""
    wire.established(sacks=True)
    expected: list[tuple[int, int]] = []
    for left in (10, 20, 30, 40, 50):
        wire.peer(PSH | ACK, seq=left, ack=1, text=b"abcde")
        expected.insert(0, (left, left + 5))
        wire.ours(ACK, ack=1, sack=expected[:4])
    wire.peer(PSH | ACK, seq=15, ack=1, text=b"abcde")  # joins two
    wire.ours(ACK, ack=1, sack=[(10, 25), (50, 55), (40, 45), (30, 35)])


def test_a_block_that_grows_does_not_displace_the_others(wire: Wire) -> None:
    """RFC 2018 section 4: what was told of before is repeated, however often another one grew."""
    wire.established(sacks=True)
    wire.peer(PSH | ACK, seq=10, ack=1, text=b"a").ignore()
    for seq in range(30, 60):
        wire.peer(PSH | ACK, seq=seq, ack=1, text=b"b")
        wire.ours(ACK, ack=1, sack=[(30, seq + 1), (10, 11)])


def test_three_blocks_beside_a_timestamp(wire: Wire) -> None:
    """RFC 2018 section 3: 40 bytes of options hold no more."""
    wire.established(sacks=True, stamp=1)
    for left in (10, 20, 30):
        wire.peer(PSH | ACK, seq=left, ack=1, text=b"a").ignore()
    wire.peer(PSH | ACK, seq=40, ack=1, text=b"a")
    wire.ours(ACK, ack=1, sack=[(40, 41), (30, 31), (20, 21)])


def test_blocks_end_when_the_hole_is_filled(wire: Wire) -> None:
    """RFC 2018 section 4: nothing below the acknowledgement is a block."""
    wire.established(sacks=True)
    wire.peer(PSH | ACK, seq=11, ack=1, text=b"b" * 10)
    wire.ours(ACK, ack=1, sack=[(11, 21)])
    wire.peer(PSH | ACK, seq=31, ack=1, text=b"d" * 10)
    wire.ours(ACK, ack=1, sack=[(31, 41), (11, 21)])
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a" * 10)
    wire.ours(ACK, ack=21, sack=[(31, 41)])
    wire.peer(PSH | ACK, seq=21, ack=1, text=b"c" * 10)
    wire.ours(ACK, ack=41, sack=[])
    assert wire.app.text == b"a" * 10 + b"b" * 10 + b"c" * 10 + b"d" * 10


def test_what_was_cut_differently_leaves_no_block_behind(wire: Wire) -> None:
    """A retransmission in one piece passes pieces that wait: none may be left below RCV.NXT."""
    wire.established(sacks=True)
    for left in (11, 31, 51):
        wire.peer(PSH | ACK, seq=left, ack=1, text=b"x" * 5).ignore()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x" * 53)
    wire.ours(ACK, ack=56, sack=[])
    assert not wire.user.rcv.out_of_order
    assert not wire.user.rcv.out_of_order_charge
    assert not wire.user.rcv.report.blocks


def test_an_old_duplicate_is_reported_once(wire: Wire) -> None:
    """RFC 2883 section 4: the first block is what came twice, below the acknowledgement."""
    wire.established(sacks=True)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a" * 10)
    wire.after(40 * MILLISECOND).ours(ACK, ack=11, sack=[])
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a" * 10)
    wire.ours(ACK, ack=11, sack=[(1, 11)])
    wire.peer(PSH | ACK, seq=21, ack=1, text=b"c")
    wire.ours(ACK, ack=11, sack=[(21, 22)])


def test_a_duplicate_out_of_order_is_reported_in_its_block(wire: Wire) -> None:
    """RFC 2883 section 4: then the second block is the one that it is part of."""
    wire.established(sacks=True)
    wire.peer(PSH | ACK, seq=11, ack=1, text=b"b" * 30)
    wire.ours(ACK, ack=1, sack=[(11, 41)])
    wire.peer(PSH | ACK, seq=51, ack=1, text=b"d" * 5)
    wire.ours(ACK, ack=1, sack=[(51, 56), (11, 41)])
    wire.peer(PSH | ACK, seq=21, ack=1, text=b"b" * 10)
    wire.ours(ACK, ack=1, sack=[(21, 31), (11, 41), (51, 56)])


def test_blocks_go_in_front_of_text(wire: Wire) -> None:
    """Segments with text stay the size they were; the acknowledgement goes by itself."""
    wire.established(sacks=True)
    wire.app.reading = False
    wire.user.send([b"answer"])
    wire.arrives_as_is(b"")  # nothing; what follows is one flush
    wire.ours(PSH | ACK, seq=1, text=b"answer", sack=[])
    wire.user.send([b"more"])
    wire.peer(PSH | ACK, seq=11, ack=1, text=b"late")
    wire.ours(ACK, seq=7, ack=1, text=b"", sack=[(11, 15)])
    wire.ours(PSH | ACK, seq=7, text=b"more", sack=[])


@pytest.mark.lanes("express", "long way")  # it takes long
def test_a_flood_out_of_order_is_bounded(wire: Wire) -> None:
    """Single bytes with holes between them: pieces, blocks and what is remembered of them."""
    wire.host(receive_bytes=1 * MiB).established(sacks=True, shift=7)
    for i in range(2 * TCP_OUT_OF_ORDER_PIECES_MAX):
        wire.peer(PSH | ACK, seq=3 + 2 * i, ack=1, text=b"x").ignore()
    assert len(wire.user.rcv.out_of_order) == TCP_OUT_OF_ORDER_PIECES_MAX
    assert len(wire.user.rcv.report.blocks) == TCP_OUT_OF_ORDER_PIECES_MAX


# --- what the peer sends --------------------------------------------------------------------------


def test_every_hole_is_mended_in_one_round_trip(wire: Wire) -> None:
    """RFC 6675 section 5: three holes, and each is sent again, once, without a partial
    acknowledgement; as fast as RFC 6937 lets it."""
    wire.established(sacks=True, rtt=20 * MILLISECOND)
    send_segments(wire, 10)
    wire.after(20 * MILLISECOND)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 1)])
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(3, 3), run(1, 1)])
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(5, 9), run(3, 3), run(1, 1)])
    wire.ours(ACK, seq=at(0), text=bytes(MSS))
    wire.ours(ACK, seq=at(2), text=bytes([2]) * MSS)
    wire.ours(ACK, seq=at(4), text=bytes([4]) * MSS)
    wire.quiet()
    wire.after(20 * MILLISECOND).peer(ACK, seq=1, ack=at(10)).quiet()
    assert wire.counters["tcp.bytes_resent"] == 3 * MSS


def test_what_is_sacked_is_never_sent_again(wire: Wire) -> None:
    """RFC 2018 section 5: only what is missing, also after a timeout."""
    wire.established(sacks=True)
    send_segments(wire, 8)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(4, 7)])
    wire.after(1000 * MILLISECOND).flush()
    for i in range(40):
        wire.after(10 * MILLISECOND).peer(ACK, seq=1, ack=at(0), sack=[run(4, 7)])
        if i == 20:
            wire.peer(ACK, seq=1, ack=at(1), sack=[run(4, 7)])
    for packet, _ in wire.path.sent:
        seq = int.from_bytes(packet[4:8], "big") - (wire.our_isn or 0)
        assert seq + len(packet) - 20 <= at(4)
    wire.ignore()


def test_what_is_sacked_is_not_in_flight(wire: Wire) -> None:
    """RFC 6675 section 4, SetPipe; and RFC 3042: the first blocks release new segments."""
    wire.established(sacks=True, rtt=20 * MILLISECOND)
    wire.user.send([bytes(14 * MSS)])
    wire.ignore()
    assert wire.user.snd.flight == 10 * MSS
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 1)])
    wire.ours(ACK, seq=at(10), size=MSS)
    wire.quiet()
    assert wire.user.snd.flight == 10 * MSS


@pytest.mark.parametrize(
    "sack",
    [
        [(at(3), at(2))],
        [(at(3), at(3))],
        [(at(8), at(12))],
        [(at(20), at(21))],
        [(0, at(2))],
        [(at(0), at(1))],
        [(at(2), at(2) + (1 << 31))],
    ],
    ids=["reversed", "empty", "partly unsent", "unsent", "syn", "at una", "half the space"],
)
def test_a_block_that_cannot_be_true_is_ignored(
    wire: Wire, sack: Sequence[tuple[int, int]]
) -> None:
    """RFC 2018 section 3: it says that something beyond the acknowledgement has arrived. All else
    is counted, and that is all."""
    wire.established(sacks=True)
    send_segments(wire, 8)
    for _ in range(5):
        wire.peer(ACK, seq=1, ack=at(0), sack=sack)
    wire.quiet()
    assert not wire.user.snd.sacked
    assert wire.counters["tcp.sack_bad"] == 5


def test_blocks_without_agreement_are_ignored(wire: Wire) -> None:
    """RFC 2018 section 2."""
    wire.established(sacks=False)
    send_segments(wire, 8)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(3, 5)])
    wire.quiet()
    assert not wire.user.snd.sacked


def test_part_of_a_super_segment_is_sent_again(wire: Wire) -> None:
    """The link cut it up: what is missing is two runs at borders that were never ours."""
    wire.host(offload=True).established(sacks=True)
    body = bytes(range(256)) * 40
    wire.user.send([body])
    wire.ours(PSH | ACK, seq=1, text=body)
    wire.after(5 * MILLISECOND)
    wire.peer(ACK, seq=1, ack=1, sack=[(2001, 4001), (5001, 1 + len(body))])
    wire.ours(ACK, seq=1, text=body[:2000])
    wire.peer(ACK, seq=1, ack=4001, sack=[(5001, 1 + len(body))])
    wire.ours(ACK, seq=4001, text=body[4000:5000])
    wire.peer(ACK, seq=1, ack=1 + len(body))
    wire.quiet()
    assert wire.counters["tcp.bytes_resent"] == 3000


def test_a_peer_that_goes_back_on_its_word(wire: Wire) -> None:
    """RFC 2018 section 8: what was reported may have been thrown away; the timeout finds out."""
    wire.established(sacks=True)
    send_segments(wire, 4)
    wire.after(5 * MILLISECOND)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 3)])
    wire.ours(ACK, seq=at(0), size=MSS)
    wire.peer(ACK, seq=1, ack=at(1))  # and 1 to 3 it does not have any more
    wire.quiet()
    wire.after(400 * MILLISECOND).ours(ACK, seq=at(1), size=MSS)
    assert wire.counters["tcp.sack_reneged"] == 1
    wire.peer(ACK, seq=1, ack=at(2))
    wire.ours(ACK, seq=at(2), size=MSS)
    wire.ours(ACK, seq=at(3), size=MSS)
    wire.peer(ACK, seq=1, ack=at(4))


@pytest.mark.lanes("express", "long way")  # it takes long
def test_the_scoreboard_is_bounded(wire: Wire) -> None:
    """A peer that reports single bytes: so many runs, and no more."""
    wire.established(sacks=True, mss=536)
    send_segments(wire, 8, mss=536)
    for left in range(3, 4200, 6):
        blocks = [(left + 2 * i, left + 2 * i + 1) for i in range(3)]
        wire.peer(ACK, seq=1, ack=1, sack=blocks).ignore()
    assert len(wire.user.snd.sacked) == TCP_SACK_RANGES_MAX
    assert wire.counters["tcp.sack_ranges_full"]
    wire.peer(ACK, seq=1, ack=1 + 8 * 536).ignore()
    assert not wire.user.snd.sacked


def test_an_old_acknowledgement_with_blocks_below_una(wire: Wire) -> None:
    """Acknowledgements overtake each other; what is acknowledged already stays so."""
    wire.established(sacks=True)
    send_segments(wire, 8)
    wire.peer(ACK, seq=1, ack=at(4))
    wire.peer(ACK, seq=1, ack=at(1), sack=[run(2, 2)])
    wire.quiet()
    assert not wire.user.snd.sacked
    assert not wire.counters["tcp.sack_bad"]


def test_recovery_lowers_the_window_once(wire: Wire) -> None:
    """RFC 6675 section 5 (4.2), RFC 6937: half at its end, however many holes."""
    wire.established(sacks=True)
    wire.user.send([bytes(40 * MSS)])
    wire.ignore()
    wire.after(5 * MILLISECOND)
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 1), run(3, 3), run(5, 9)])
    assert wire.user.recovery.active
    wire.after(5 * MILLISECOND)
    recover = wire.user.recovery.recover - (wire.our_isn or 0)
    wire.peer(ACK, seq=1, ack=recover).ignore()
    assert not wire.user.recovery.active
    assert wire.user.congestion.window == 5 * MSS


def test_recovery_sends_in_proportion(wire: Wire) -> None:
    """RFC 6937 section 3: half of what is delivered is sent from the first acknowledgement on, and
    not nothing until half of the flight has gone."""
    wire.established(sacks=True, rtt=20 * MILLISECOND)
    wire.user.send([bytes(30 * MSS)])
    wire.ignore()
    wire.after(20 * MILLISECOND)
    for last in (3, 4, 5):
        wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, last)])
    wire.ours(ACK, seq=at(0), size=MSS)
    wire.ours(ACK, seq=at(10), size=MSS)  # half of the 5, of 10, that have arrived
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(0), sack=[run(1, 7)])
    wire.ours(ACK, seq=at(11), size=MSS)
    wire.quiet()


def test_after_a_timeout_what_had_arrived_before_does_not_count_again(wire: Wire) -> None:
    """RFC 3465 section 2.3: one segment was delivered now, and the window grows by one."""
    wire.established(sacks=True, rtt=20 * MILLISECOND)
    send_segments(wire, 8)
    wire.after(20 * MILLISECOND).peer(ACK, seq=1, ack=at(0), sack=[run(2, 7)])
    wire.after(500 * MILLISECOND).ignore()
    assert wire.counters["tcp.retransmission_timeouts"] >= 1
    wire.peer(ACK, seq=1, ack=at(8))
    assert wire.user.congestion.window <= 3 * MSS
