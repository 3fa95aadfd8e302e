"""Loss: the retransmission timer (RFC 6298), fast retransmit and NewReno (RFC 5681, RFC 6582)."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import TCP_GIVE_UP_AFTER, TCP_ORPHAN_AFTER
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment
from tests.transcripts.tcp_wire import Wire

MSS = 1460


def send_segments(wire: Wire, count: int, first: int = 0) -> None:
    """Queue and send `count` full segments, of which segment i is made of bytes i."""
    for i in range(first, first + count):
        wire.user.send([bytes([i % 256]) * MSS])
    for i in range(first, first + count):
        wire.ours(ACK, seq=1 + i * MSS, size=MSS)
    wire.quiet()


def at(index: int) -> int:
    """Where segment `index` begins."""
    return 1 + index * MSS


def test_retransmission_backs_off(wire: Wire) -> None:
    """RFC 6298 (5.5): the timer doubles."""
    wire.established()
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, seq=1, text=b"x")
    for wait in (200, 400, 800, 1600):
        wire.after((wait - 1) * MILLISECOND).quiet()
        wire.after(1 * MILLISECOND).ours(PSH | ACK, seq=1, text=b"x")


def test_the_first_timeout_is_a_second(wire: Wire) -> None:
    """RFC 6298 (2.1): before anything was measured."""
    wire.connecting()
    wire.after(SECOND - 1).quiet()
    wire.after(1).ours(SYN, seq=0)
    wire.after(2 * SECOND).ours(SYN, seq=0)


def test_a_lost_syn_makes_us_careful(wire: Wire) -> None:
    """RFC 6298 (5.7): a timeout of three seconds; RFC 5681 section 3.1: a window of one segment."""
    wire.connecting()
    wire.after(SECOND).ours(SYN, seq=0)
    wire.peer(SYN | ACK, seq=0, ack=1, mss=1460)
    wire.ours(ACK, seq=1, ack=1)
    wire.user.send([bytes(3 * MSS)])
    wire.ours(ACK, seq=1, size=MSS)
    wire.quiet()
    wire.after(3 * SECOND - 1).quiet()
    wire.after(1).ours(ACK, seq=1, size=MSS)


def test_a_segment_that_was_sent_twice_measures_nothing(wire: Wire) -> None:
    """RFC 6298 section 3, Karn's algorithm; (5.7): the backoff stays until there is a
    measurement."""
    wire.established()
    before = wire.user.round_trip.srtt
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    wire.after(200 * MILLISECOND).ours(PSH | ACK, seq=1)
    wire.after(150 * MILLISECOND).peer(ACK, seq=1, ack=2)
    assert wire.user.round_trip.srtt == before
    assert wire.user.round_trip.rto == 400 * MILLISECOND
    wire.user.send([b"y"])
    wire.ours(PSH | ACK)
    wire.peer(ACK, seq=1, ack=3)
    assert wire.user.round_trip.rto == 200 * MILLISECOND


def test_a_timestamp_measures_what_was_sent_twice(wire: Wire) -> None:
    """RFC 7323 section 4.1: the echo tells which copy arrived, so the backoff ends at once."""
    wire.established(stamp=1)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    second = wire.after(200 * MILLISECOND).ours(PSH | ACK, seq=1)
    assert second.timestamp is not None
    assert wire.user.round_trip.rto == 400 * MILLISECOND
    wire.after(3 * MILLISECOND).peer(ACK, seq=1, ack=2, stamp=(1, second.timestamp[0]))
    assert wire.user.round_trip.rto == 200 * MILLISECOND


def test_filling_a_hole_does_not_open_the_window_wide(wire: Wire) -> None:
    """RFC 3465 section 2.3: after a timeout, an acknowledgement that covers what had long arrived
    counts as one segment."""
    wire.established()
    send_segments(wire, 8)
    wire.after(200 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    wire.peer(ACK, seq=1, ack=at(8))
    assert wire.user.congestion.window == 2 * MSS


def test_an_acknowledgement_restarts_the_timer(wire: Wire) -> None:
    """RFC 6298 (5.3): what is left gets the full timeout again."""
    wire.established()
    send_segments(wire, 3)
    wire.after(150 * MILLISECOND).peer(ACK, seq=1, ack=at(2))
    wire.after(199 * MILLISECOND).quiet()
    wire.after(1000 * MILLISECOND).ours(ACK, seq=at(2))
    wire.ignore()


def test_the_timer_stops_when_all_is_acknowledged(wire: Wire) -> None:
    """RFC 6298 (5.2): an idle connection has no deadline."""
    wire.established()
    send_segments(wire, 3)
    wire.peer(ACK, seq=1, ack=at(3))
    wire.after(1000 * SECOND).quiet()
    assert wire.timers.next_deadline is None


def test_after_a_timeout_slow_start_sends_the_rest_again(wire: Wire) -> None:
    """RFC 5681 section 3.1: one segment, then two, then four; and the peer's own copies count."""
    wire.established()
    send_segments(wire, 8)
    wire.after(200 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(1))
    wire.ours(ACK, seq=at(1), size=MSS)
    wire.ours(ACK, seq=at(2), size=MSS)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(8))
    wire.quiet()
    assert wire.user.unsent_bytes == 0


def test_three_duplicates_mean_loss(wire: Wire) -> None:
    """RFC 5681 section 3.2: the segment goes out again, and the window is halved."""
    wire.established()
    send_segments(wire, 8)
    for _ in range(2):
        wire.peer(ACK, seq=1, ack=at(0))
        wire.quiet()
    wire.peer(ACK, seq=1, ack=at(0))
    wire.ours(ACK, seq=at(0), text=bytes(MSS))
    wire.quiet()
    assert wire.user.congestion.window == 4 * MSS
    wire.peer(ACK, seq=1, ack=at(8))
    assert not wire.user.recovery.active


def test_the_first_two_duplicates_release_new_segments(wire: Wire) -> None:
    """RFC 3042: limited transmit, or a small window could never cause three duplicates."""
    wire.established()
    wire.user.send([bytes(14 * MSS)])
    for i in range(10):
        wire.ours(ACK, seq=at(i), size=MSS)
    wire.quiet()
    for i in (10, 11):
        wire.peer(ACK, seq=1, ack=at(0))
        wire.ours(ACK, seq=at(i), size=MSS)
        wire.quiet()


def test_each_further_duplicate_makes_room(wire: Wire) -> None:
    """RFC 5681 section 3.2 (4): a segment has left the network; when enough have, new ones go."""
    wire.established()
    wire.user.send([bytes(14 * MSS)])
    for i in range(10):
        wire.ours(ACK, seq=at(i), size=MSS)
    for i in (10, 11):
        wire.peer(ACK, seq=1, ack=at(0)).ours(ACK, seq=at(i), size=MSS)
    wire.peer(ACK, seq=1, ack=at(0)).ours(ACK, seq=at(0), size=MSS)
    wire.quiet()
    # Half of ten: what limited transmit has sent does not count (RFC 5681 section 3.2 step 2).
    assert wire.user.congestion.window == 5 * MSS
    for _ in range(4):  # 12 out, 3 to 7 of them departed
        wire.peer(ACK, seq=1, ack=at(0))
        wire.quiet()
    wire.peer(ACK, seq=1, ack=at(0)).ours(ACK, seq=at(12), size=MSS)
    wire.peer(ACK, seq=1, ack=at(0)).ours(PSH | ACK, seq=at(13), size=MSS)
    wire.quiet()


def test_a_partial_acknowledgement_shows_the_next_hole(wire: Wire) -> None:
    """RFC 6582 section 3.2 step 3: no second wait for three duplicates, no second halving."""
    wire.established()
    send_segments(wire, 8)
    for _ in range(3):
        wire.peer(ACK, seq=1, ack=at(0))
    wire.ours(ACK, seq=at(0), size=MSS)
    window = wire.user.congestion.window
    wire.peer(ACK, seq=1, ack=at(3))
    wire.ours(ACK, seq=at(3), text=bytes([3]) * MSS)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(5))
    wire.ours(ACK, seq=at(5), text=bytes([5]) * MSS)
    assert wire.user.congestion.window == window
    wire.peer(ACK, seq=1, ack=at(8))
    assert not wire.user.recovery.active
    assert wire.user.congestion.window <= window


def test_a_partial_acknowledgement_keeps_count_of_what_has_departed(wire: Wire) -> None:
    """RFC 6582 section 3.2 step 3: less by what was acknowledged, and one segment more."""
    wire.established()
    send_segments(wire, 10)
    for _ in range(6):
        wire.peer(ACK, seq=1, ack=at(0))
    assert wire.user.snd.departed == 6 * MSS
    wire.peer(ACK, seq=1, ack=at(3))
    assert wire.user.snd.departed == 4 * MSS
    wire.ignore()


def test_only_the_first_partial_acknowledgement_restarts_the_timer(wire: Wire) -> None:
    """RFC 6582 section 3.2 step 3, the impatient way: many holes are faster mended by a timeout."""
    wire.established()
    send_segments(wire, 8)
    for _ in range(3):
        wire.peer(ACK, seq=1, ack=at(0))
    wire.after(100 * MILLISECOND).peer(ACK, seq=1, ack=at(2))
    wire.after(190 * MILLISECOND).peer(ACK, seq=1, ack=at(4))
    wire.ignore()
    wire.after(9 * MILLISECOND).quiet()
    assert wire.user.recovery.active
    wire.after(1 * MILLISECOND).ours(ACK, seq=at(4), size=MSS)
    assert not wire.user.recovery.active


def test_a_retransmission_that_is_no_longer_needed_leaves_no_right_to_send(wire: Wire) -> None:
    """Duplicates, and the acknowledgement of everything, in one frame: nothing may then go into the
    window that was closed with it."""
    wire.established()
    send_segments(wire, 4)
    wire.user.congestion.window = 4 * MSS
    wire.user.send([bytes(10 * MSS)])
    wire.quiet()
    for ack, window in ((0, 65535), (0, 65535), (0, 65535), (4, 0)):
        packet = Segment(
            wire.peer_port, wire.our_port, wire.peer_isn + 1, (wire.our_isn or 0) + at(ack), ACK,
            window,
        ).emit()  # fmt: skip
        wire.tcp.arrives(wire.family.peer, wire.family.ours, packet, 0, len(packet), True, wire.now)
    wire.quiet()


def test_duplicates_after_recovery_are_not_a_new_loss(wire: Wire) -> None:
    """RFC 6582 section 3.2 step 2: they answer what was sent twice."""
    wire.established()
    send_segments(wire, 4)
    wire.after(200 * MILLISECOND).ours(ACK, seq=at(0))
    window = wire.user.congestion.window
    for _ in range(6):
        wire.peer(ACK, seq=1, ack=at(0))
    wire.quiet()
    assert not wire.user.recovery.active
    assert wire.user.congestion.window == window


def test_an_acknowledgement_with_text_is_no_duplicate(wire: Wire) -> None:
    """RFC 5681 section 2: the peer only talks."""
    wire.established()
    send_segments(wire, 4)
    for i in range(5):
        wire.peer(PSH | ACK, seq=1 + i, ack=1, text=b"x")
    assert wire.user.recovery.duplicates == 0
    wire.ignore()


def test_a_window_update_is_no_duplicate(wire: Wire) -> None:
    """RFC 5681 section 2: the peer only reads."""
    wire.established()
    send_segments(wire, 4)
    for i in range(5):
        wire.peer(ACK, seq=1, ack=1, window=60_000 + i)
    wire.quiet()
    assert wire.user.recovery.duplicates == 0


def test_a_timeout_ends_recovery(wire: Wire) -> None:
    """RFC 6582 section 3.2 step 4: the retransmission was lost, too."""
    wire.established()
    send_segments(wire, 8)
    for _ in range(3):
        wire.peer(ACK, seq=1, ack=at(0))
    wire.ours(ACK, seq=at(0))
    wire.after(400 * MILLISECOND).ours(ACK, seq=at(0), size=MSS)
    assert not wire.user.recovery.active
    assert wire.user.congestion.window == MSS
    wire.ignore()


def test_repeated_timeouts_do_not_lower_the_threshold_again(wire: Wire) -> None:
    """RFC 5681 section 3.1: it is the same loss."""
    wire.established()
    send_segments(wire, 8)
    wire.after(200 * MILLISECOND).ours(ACK, seq=at(0))
    wire.after(400 * MILLISECOND).ours(ACK, seq=at(0))
    wire.peer(ACK, seq=1, ack=at(1)).ignore()
    wire.peer(ACK, seq=1, ack=at(3)).ignore()
    wire.peer(ACK, seq=1, ack=at(8))
    # The threshold is half of the eight segments still: slow start goes up to it.
    assert wire.user.congestion.window == 4 * MSS
    assert wire.user.round_trip.rto > 200 * MILLISECOND


def test_the_second_half_of_a_super_segment_is_sent_again(wire: Wire) -> None:
    """The link cut it up, and the network lost a part: it can be repeated from any byte."""
    wire.host(offload=True).established()
    body = bytes(range(256)) * 40
    wire.user.send([body])
    wire.ours(PSH | ACK, seq=1, text=body)
    wire.peer(ACK, seq=1, ack=1 + 5000)
    wire.after(200 * MILLISECOND).ours(ACK, seq=5001, text=body[5000 : 5000 + MSS])
    wire.peer(ACK, seq=1, ack=1 + 7777)
    wire.ours(ACK, seq=7778, text=body[7777:])


def test_a_retransmission_does_not_keep_to_old_borders(wire: Wire) -> None:
    """Small texts that went out one by one come again joined."""
    wire.established()
    for i in range(10):
        wire.user.send([b"%d" % i])
        wire.ours(PSH | ACK, text=b"%d" % i)
    wire.after(200 * MILLISECOND).ours(PSH | ACK, seq=1, text=b"0123456789")


def test_what_is_sent_again_is_not_copied(wire: Wire) -> None:
    """The text stays where the user has it, until it is acknowledged."""
    wire.established()
    text = bytearray(b"abcdef")
    wire.user.send([text])
    wire.ours(PSH | ACK, text=b"abcdef")
    text[0:1] = b"A"  # a user must not do this; here it shows whose bytes they are
    wire.after(200 * MILLISECOND).ours(PSH | ACK, text=b"Abcdef")
    wire.peer(ACK, seq=1, ack=7)
    del text[:]  # nobody holds a view of it any more


def test_a_lost_fin_is_sent_again(wire: Wire) -> None:
    """RFC 9293 section 3.4: FIN takes a sequence number."""
    wire.established()
    wire.user.send([b"bye"])
    wire.user.close()
    wire.ours(FIN | PSH | ACK, seq=1, text=b"bye")
    wire.after(200 * MILLISECOND).ours(FIN | PSH | ACK, seq=1, text=b"bye")
    wire.peer(ACK, seq=1, ack=4)
    wire.after(400 * MILLISECOND).ours(FIN | ACK, seq=4, text=b"")
    wire.peer(ACK, seq=1, ack=5)
    wire.state(State.FIN_WAIT_2)
    wire.after(SECOND).quiet()


@pytest.mark.parametrize("state", [State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK])
def test_a_fin_that_is_never_acknowledged_is_given_up(wire: Wire, state: State) -> None:
    """A vanished peer does not keep a closed connection for ever; meanwhile the FIN is repeated."""
    wire.established()
    if state is State.LAST_ACK:
        wire.peer(FIN | ACK, seq=1, ack=1).ignore()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1)
    if state is State.CLOSING:
        wire.peer(FIN | ACK, seq=1, ack=1).ignore()
    wire.state(state)
    wire.after(200 * MILLISECOND).ours(FIN | ACK, seq=1)
    wire.after(2 * TCP_ORPHAN_AFTER).ignore()
    assert not wire.tcp.connections
    assert len(wire.app.endings) == 1


def test_fin_wait_2_of_an_orphan_is_reaped(wire: Wire) -> None:
    """The user has closed, the peer never will."""
    wire.established()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1)
    wire.peer(ACK, seq=1, ack=2)
    wire.after(TCP_ORPHAN_AFTER - 1).state(State.FIN_WAIT_2)
    wire.after(1).state(State.CLOSED)
    assert len(wire.app.endings) == 1


def test_closing_a_half_closed_connection_makes_it_an_orphan(wire: Wire) -> None:
    """finish(), then close() in FIN-WAIT-2: now a minute runs."""
    wire.established()
    wire.user.finish()
    wire.ours(FIN | ACK, seq=1)
    wire.peer(ACK, seq=1, ack=2)
    wire.after(10 * TCP_ORPHAN_AFTER).state(State.FIN_WAIT_2)
    wire.user.close()
    wire.after(TCP_ORPHAN_AFTER).state(State.CLOSED)


def test_a_vanished_peer_is_given_up(wire: Wire) -> None:
    """RFC 9293 section 3.8.3: R2; the user hears why, and the peer is told, if it is there."""
    wire.established()
    wire.user.send([b"x"])
    wire.after(TCP_GIVE_UP_AFTER + 61 * SECOND)
    assert wire.app.endings == ["timed out"]
    packet, _ = wire.path.sent[-1]
    assert packet[13] == RST | ACK
    wire.ignore()


def test_the_user_timeout_is_sooner(wire: Wire) -> None:
    """RFC 9293 section 3.9.1: what the user asked for."""
    wire.established()
    wire.user.user_timeout = 3 * SECOND
    wire.user.send([b"x"])
    wire.after(10 * SECOND).ignore()
    assert wire.app.endings == ["user timeout"]


def test_progress_resets_the_user_timeout(wire: Wire) -> None:
    """RFC 5482 section 3: it is the time for which text stays unacknowledged."""
    wire.established()
    wire.user.user_timeout = 3 * SECOND
    for i in range(10):
        wire.user.send([b"x"])
        wire.after(2 * SECOND).peer(ACK, seq=1, ack=2 + i).ignore()
    assert not wire.app.endings


def test_the_congestion_window_limits_a_burst(wire: Wire) -> None:
    """RFC 6928: ten segments to begin with, and twice as many after each round trip."""
    wire.established()
    wire.user.send([bytes(50 * MSS)])
    for i in range(10):
        wire.ours(ACK, seq=at(i), size=MSS)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=at(10))
    for i in range(10, 30):
        wire.ours(ACK, seq=at(i), size=MSS)
    wire.quiet()


def test_a_divided_acknowledgement_gains_nothing(wire: Wire) -> None:
    """RFC 3465: the window grows by bytes acknowledged, not by acknowledgements."""
    wire.established()
    wire.user.send([bytes(10 * MSS)])
    wire.ignore()
    for i in range(1, MSS + 1, 20):
        wire.peer(ACK, seq=1, ack=1 + i)
    wire.ignore()
    assert wire.user.congestion.window <= 11 * MSS


def test_after_a_long_silence_the_window_is_small_again(wire: Wire) -> None:
    """RFC 5681 section 4.1: what was learned about the network is out of date."""
    wire.established()
    acked = 0
    for burst in (10, 20):
        wire.user.send([bytes(burst * MSS)])
        wire.ignore()
        acked += burst
        wire.peer(ACK, seq=1, ack=at(acked))
    assert wire.user.congestion.window > 20 * MSS
    wire.after(10 * SECOND)
    wire.user.send([bytes(30 * MSS)])
    wire.flush()
    assert len(wire.path.sent) == 10
    wire.ignore()
