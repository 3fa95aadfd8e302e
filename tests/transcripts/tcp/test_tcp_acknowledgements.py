"""When an acknowledgement goes, Nagle's algorithm, and the one effective MSS behind both."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.wire.tcp import ACK, FIN, PSH, Segment
from tests.transcripts.tcp_wire import PEER_PORT, PORT, Wire

DELAY = 40 * MILLISECOND


def test_an_acknowledgement_waits_for_text_to_ride_on(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.3: delayed, but not for long."""
    wire.established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"call")
    wire.after(DELAY - 1).quiet()
    wire.after(1).ours(ACK, seq=1, ack=5)


def test_a_reply_carries_the_acknowledgement(wire: Wire) -> None:
    """And then nothing is owed any more."""
    wire.established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"call")
    wire.user.send([b"reply"])
    wire.ours(PSH | ACK, seq=1, ack=5)
    wire.peer(ACK, seq=5, ack=6)
    wire.after(10 * DELAY).quiet()


def test_every_second_full_segment_is_acknowledged(wire: Wire) -> None:
    """RFC 9293 SHLD-19."""
    wire.established()
    for i in range(10):
        wire.peer(ACK, seq=1 + 1460 * i, ack=1, text=bytes(1460))
        if i % 2:
            wire.ours(ACK, ack=1 + 1460 * (i + 1))
        else:
            wire.quiet()


def test_every_second_full_segment_with_timestamps(wire: Wire) -> None:
    """RFC 9293 SHLD-19, of segments that options have made smaller."""
    wire.established(stamp=1)
    wire.peer(ACK, seq=1, ack=1, text=bytes(1448))
    wire.quiet()
    wire.peer(ACK, seq=1449, ack=1, text=bytes(1448))
    wire.ours(ACK, ack=2897)


def test_a_super_segment_is_acknowledged_once_and_at_once(wire: Wire) -> None:
    """It is more than two segments, but one frame."""
    wire.established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=bytes(60_000))
    wire.ours(ACK, ack=60_001)
    wire.after(DELAY).quiet()


def test_segments_that_arrive_together_are_acknowledged_together(wire: Wire) -> None:
    """RFC 9293 MUST-58, MUST-59: whatever waits is processed before anything is sent."""
    wire.established()
    for seq in range(1, 10 * 1460, 1460):
        segment = Segment(PEER_PORT, PORT, wire.peer_isn + seq, wire.user.snd.nxt & MASK, ACK, 1000)
        packet = bytes(segment.emit()) + bytes(1460)
        wire.tcp.arrives(wire.family.peer, wire.family.ours, packet, 0, len(packet), True, wire.now)
    wire.ours(ACK, ack=14_601)
    wire.after(DELAY).quiet()


def test_a_fin_is_acknowledged_at_once(wire: Wire) -> None:
    """Nothing else will come that could carry the acknowledgement."""
    wire.established()
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.ours(ACK, ack=2)


def test_replies_to_all_calls_of_one_frame_leave_together(wire: Wire) -> None:
    """Output waits for flush: three replies, one segment."""
    wire.established()
    for reply in (b"one", b"two", b"three"):
        wire.user.send([reply])
    wire.ours(PSH | ACK, seq=1, text=b"onetwothree")


def test_small_texts_do_not_wait(wire: Wire) -> None:
    """NODELAY is the default: a reply is not held back for an acknowledgement."""
    wire.established()
    wire.user.send([b"one"])
    wire.ours(PSH | ACK, text=b"one")
    wire.user.send([b"two"])
    wire.ours(PSH | ACK, text=b"two")


def test_nagle_holds_a_small_text_while_something_is_out(wire: Wire) -> None:
    """RFC 9293 section 3.7.4."""
    wire.established()
    wire.user.nodelay = False
    wire.user.send([b"one"])
    wire.ours(PSH | ACK, text=b"one")
    wire.user.send([b"two"])
    wire.user.send([b"three"])
    wire.quiet()
    wire.peer(ACK, seq=1, ack=4)
    wire.ours(PSH | ACK, seq=4, text=b"twothree")


def test_nagle_does_not_hold_a_full_segment_with_timestamps(wire: Wire) -> None:
    """The MSS that counts is the effective one: 1448 bytes are a full segment here."""
    wire.established(stamp=1)
    wire.user.nodelay = False
    wire.user.send([bytes(1448)])
    wire.ours(PSH | ACK, seq=1, size=1448)
    wire.user.send([bytes(1448)])
    wire.ours(PSH | ACK, seq=1449, size=1448)
    wire.user.send([bytes(2 * 1448 + 1)])
    wire.ours(ACK, seq=2897, size=1448)
    wire.ours(ACK, seq=4345, size=1448)
    wire.quiet()


@pytest.mark.parametrize("pieces", [1, 7])
def test_what_goes_out_at_once_is_cut_at_every_segment(wire: Wire, pieces: int) -> None:
    """Text in any pieces, FIN behind it: each segment has its own bytes, and only the last PSH and
    FIN. (The path compares the checksums.)"""
    wire.established(stamp=1)
    text = bytes(number * number % 251 for number in range(6 * 1448 + 101))
    size = len(text) // pieces + 1
    wire.user.send([text[at : at + size] for at in range(0, len(text), size)])
    wire.user.finish()
    for at in range(0, 6 * 1448, 1448):
        segment = wire.ours(ACK, seq=1 + at, text=text[at : at + 1448])
        assert segment.flags == ACK
        assert segment.timestamp is not None
    wire.ours(FIN | PSH | ACK, seq=1 + 6 * 1448, text=text[6 * 1448 :])


def test_segments_are_cut_with_the_effective_mss(wire: Wire) -> None:
    """RFC 6691: a packet with options is not larger than one without."""
    wire.established(stamp=1)
    wire.user.send([bytes(3000)])
    wire.ours(ACK, size=1448)
    wire.ours(ACK, size=1448)
    wire.ours(PSH | ACK, size=104)


def test_a_super_segment_is_a_whole_number_of_segments(wire: Wire) -> None:
    """Except for the last one: the link cuts it up, and no small one is left in the middle."""
    wire.host(offload=True).established(window=65535)
    wire.user.send([bytes(5000), bytes(9700)])
    wire.ours(ACK, seq=1, size=14_600)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=14_601)
    wire.ours(PSH | ACK, seq=14_601, size=100)


def test_a_super_segment_does_not_end_in_the_middle(wire: Wire) -> None:
    """A window that is no multiple of the MSS leaves no small segment in the middle of the text."""
    wire.host(offload=True).established(window=10_000)
    wire.user.send([bytes(20_000)])
    wire.ours(ACK, seq=1, size=6 * 1460)
    wire.quiet()
    wire.user.congestion.window = 2 * 1460 + 700
    wire.after(200 * MILLISECOND).ours(ACK, seq=1, size=1460)
    wire.user.congestion.window = 2 * 1460 + 700
    wire.peer(ACK, seq=1, ack=1461)
    wire.ours(ACK, seq=1461, size=2 * 1460)
    wire.quiet()


def test_a_super_segment_keeps_to_what_the_link_takes(wire: Wire) -> None:
    """44 segments of 1460 bytes are as much as fits in one packet."""
    wire.host(offload=True)
    wire.established(window=1 << 20, shift=7)
    wire.user.congestion.window = 1 << 20
    wire.user.send([bytes(200_000)])
    for seq in (1, 64_241, 128_481):
        wire.ours(ACK, seq=seq, size=64_240)
    wire.ours(PSH | ACK, seq=192_721, size=7280)


def test_a_text_in_many_small_pieces_fits_one_write(wire: Wire) -> None:
    """More pieces than writev takes are joined first."""
    wire.host(offload=True).established()
    body = bytes(range(250)) * 8
    wire.user.send([body[i : i + 1] for i in range(len(body))])
    wire.ours(PSH | ACK, text=body)
    wire.after(200 * MILLISECOND).ours(ACK, text=body[:1460])


def test_replies_cost_no_deadline_when_all_is_acknowledged(wire: Wire) -> None:
    """No ticks: an idle connection has nothing to wake up for."""
    wire.established()
    for i in range(5):
        wire.peer(PSH | ACK, seq=1 + 4 * i, ack=1 + 5 * i, text=b"call")
        wire.user.send([b"reply"])
        wire.ours(PSH | ACK)
    wire.peer(ACK, seq=21, ack=26)
    wire.after(1000 * MILLISECOND)
    assert wire.timers.next_deadline is None
