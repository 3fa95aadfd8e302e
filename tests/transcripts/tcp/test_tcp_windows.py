"""Windows: what may be sent, what is promised, and what happens when one closes."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    TCP_GIVE_UP_AFTER,
    TCP_ORPHAN_AFTER,
    TCP_PIECE_BYTES_MIN,
    TCP_RECEIVE_BYTES_FIRST,
    TCP_SEND_ROOM_BYTES,
    KiB,
    MiB,
)
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST
from tests.transcripts.tcp_wire import Wire


def test_no_more_is_sent_than_the_window_takes(wire: Wire) -> None:
    """RFC 9293 section 3.8.6: not a byte beyond its right edge."""
    wire.established(window=3000)
    wire.user.send([bytes(5000)])
    wire.ours(ACK, seq=1, size=1460)
    wire.ours(ACK, seq=1461, size=1460)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=2921)
    wire.ours(ACK, seq=2921, size=1460)
    wire.ours(PSH | ACK, seq=4381, size=620)


def test_a_closed_window_is_probed_and_the_probe_backs_off(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.1: first after a retransmission timeout, then twice as long."""
    wire.established()
    wire.user.send([b"abc"])
    wire.ours(PSH | ACK, seq=1, text=b"abc")
    wire.peer(ACK, seq=1, ack=4, window=0)
    wire.user.send([b"defg"])
    wire.quiet()
    for wait in (200, 400, 800, 1600):
        wire.after((wait - 1) * MILLISECOND).quiet()
        wire.after(1 * MILLISECOND).ours(ACK, seq=4, text=b"d")
        wire.peer(ACK, seq=1, ack=4, window=0)
    wire.peer(ACK, seq=1, ack=4, window=1000)
    wire.ours(ACK, seq=4, text=b"d")
    wire.ours(PSH | ACK, seq=5, text=b"efg")


def test_a_probe_that_is_taken_opens_the_way(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.1: the update was lost, and the probe's byte is accepted."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"defg"])
    wire.after(200 * MILLISECOND).ours(ACK, seq=1, text=b"d")
    wire.peer(ACK, seq=1, ack=2, window=1000)
    wire.ours(PSH | ACK, seq=2, text=b"efg")


def test_a_lost_probe_is_repeated(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.1: the same byte, no other."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"defg"])
    wire.after(200 * MILLISECOND).ours(ACK, seq=1, text=b"d")
    wire.after(400 * MILLISECOND).ours(ACK, seq=1, text=b"d")


def test_a_window_that_stays_closed_is_no_reason_to_give_up(wire: Wire) -> None:
    """RFC 9293 MUST-37: as long as the probes are answered."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"x"])
    wire.flush()
    for _ in range(30):
        wire.after(60 * SECOND)
        assert len(wire.path.sent) >= 1
        wire.ignore()
        wire.peer(ACK, seq=1, ack=1, window=0)
    wire.state(State.ESTABLISHED)
    assert not wire.app.endings


def test_probes_without_an_answer_end_the_connection(wire: Wire) -> None:
    """RFC 9293 section 3.8.3: nobody is there any more."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"x"])
    wire.after(TCP_GIVE_UP_AFTER + 61 * SECOND).ignore()
    assert wire.app.endings == ["timed out"]


def test_the_user_timeout_also_ends_a_connection_whose_window_stays_closed(wire: Wire) -> None:
    """RFC 5482 section 3: text that is not acknowledged for so long."""
    wire.established()
    wire.user.user_timeout = 5 * SECOND
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"x"])
    for _ in range(13):
        wire.after(SECOND).peer(ACK, seq=1, ack=1, window=0)
    wire.ignore()
    assert wire.app.endings == ["user timeout"]


def test_nobody_waits_for_a_closed_window_after_close(wire: Wire) -> None:
    """An orphan whose peer never opens its window is given up in a minute."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"x"])
    wire.user.close()
    for _ in range(13):
        wire.after(TCP_ORPHAN_AFTER // 6).ignore()
        wire.peer(ACK, seq=1, ack=1, window=0)
    wire.ignore()
    assert not wire.tcp.connections
    assert len(wire.app.endings) == 1


def test_a_fin_alone_is_probed_with(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.1: FIN takes a number like text, and waits for the window like it."""
    wire.established()
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.close()
    wire.quiet()
    wire.after(200 * MILLISECOND).ours(FIN | ACK, seq=1)
    wire.peer(ACK, seq=1, ack=2, window=0)
    wire.state(State.FIN_WAIT_2)


def test_a_peer_may_shrink_its_window(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.1: nothing new beyond the new edge; what is out is not lost yet."""
    wire.established(window=10_000)
    wire.user.send([bytes(12_000)])
    for seq in range(1, 8000, 1460):
        wire.ours(ACK, seq=seq, size=1460)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=1, window=2000)
    wire.quiet()
    assert wire.user.snd.nxt - wire.user.snd.una == 8760
    wire.after(200 * MILLISECOND).ours(ACK, seq=1, size=1460)
    wire.peer(ACK, seq=1, ack=1461, window=540)
    wire.ours(ACK, seq=1461, size=540)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=8761, window=10_000)
    wire.ours(ACK, seq=8761, size=1460)
    wire.ours(ACK, seq=10_221, size=1460)
    wire.ours(PSH | ACK, seq=11_681, size=320)


def test_a_window_shrunk_to_nothing_opens_again(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.1: the peer may have thrown away what was out, so it goes again."""
    wire.established()
    wire.user.send([b"abc"])
    wire.ours(PSH | ACK, seq=1, text=b"abc")
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.quiet()
    wire.peer(ACK, seq=1, ack=1, window=1000)
    wire.ours(PSH | ACK, seq=1, text=b"abc")


def test_a_segment_that_was_overtaken_does_not_change_the_window(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: SND.WL1, of segments that are both inside the window."""
    wire.established(window=3000)
    wire.peer(PSH | ACK, seq=5, ack=1, text=b"later", window=5000)
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.ignore()
    assert wire.user.snd.wnd == 5000


def test_a_fin_does_not_go_beyond_the_window(wire: Wire) -> None:
    """RFC 9293 section 3.4: it takes a number like a byte of text."""
    wire.established(window=3)
    wire.user.send([b"abc"])
    wire.user.close()
    wire.ours(PSH | ACK, seq=1, text=b"abc")
    wire.quiet()
    wire.peer(ACK, seq=1, ack=4, window=1)
    wire.ours(FIN | ACK, seq=4)


def test_an_older_segment_does_not_change_the_window(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, fifth step: SND.WL1 and SND.WL2 tell which is newer."""
    wire.established(window=3000)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"new", window=5000)
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.ignore()
    assert wire.user.snd.wnd == 5000


def test_a_small_peer_is_sent_half_of_its_window(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.1: a window that is never a full segment must not stall us."""
    wire.established(window=100)
    wire.user.send([bytes(250)])
    wire.ours(ACK, seq=1, size=100)
    wire.peer(ACK, seq=1, ack=101, window=50)
    wire.ours(ACK, seq=101, size=50)


def test_a_little_window_is_not_worth_a_segment(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.1: silly window syndrome, the sender's side; then the override."""
    wire.established(window=5000)
    wire.user.send([bytes(6000)])
    for seq in (1, 1461, 2921):
        wire.ours(ACK, seq=seq, size=1460)
    wire.peer(ACK, seq=1, ack=4381, window=100)
    wire.quiet()
    wire.after(200 * MILLISECOND).ours(ACK, seq=4381, size=100)
    assert wire.user.probes == 1
    wire.peer(ACK, seq=1, ack=4481, window=5000)
    wire.ours(ACK, seq=4481, size=1460)
    wire.ours(PSH | ACK, seq=5941, size=60)
    assert wire.user.probes == 0


# --- our window ----------------------------------------------------------------------------------


def test_our_window_closes_while_nobody_reads_and_never_shrinks(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.2: the right edge stays (the wire asserts it after each segment)."""
    wire.established()
    wire.user.pause()
    seq = 1
    while seq + 1460 <= 65536:
        wire.peer(ACK, seq=seq, ack=1, text=bytes(1460))
        seq += 1460
    wire.after(SECOND).ignore()
    assert wire.user.rcv.window < 1460
    wire.peer(ACK, seq=seq, ack=1, text=bytes(1460))
    wire.ours(ACK, ack=65536, window=0)
    wire.user.resume()
    wire.ours(ACK, ack=65536, window=65535)
    assert len(wire.app.text) == 65535


def test_a_probe_of_our_closed_window_is_answered(wire: Wire) -> None:
    """RFC 9293 MUST-36, and its byte is not taken."""
    wire.host(receive_bytes=2000).established()
    wire.user.pause()
    wire.peer(ACK, seq=1, ack=1, text=bytes(2000))
    wire.after(SECOND).ours(ACK, ack=2001, window=0)
    for _ in range(30):
        wire.peer(ACK, seq=2001, ack=1, text=b"x")
        wire.ours(ACK, ack=2001, window=0)
    wire.user.resume()
    wire.ours(ACK, ack=2001, window=2000)
    assert bytes(wire.app.text) == bytes(2000)


def test_a_closed_window_still_takes_acknowledgements(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, first step: both windows may be closed at once."""
    wire.host(receive_bytes=2000).established()
    wire.user.pause()
    wire.peer(ACK, seq=1, ack=1, text=bytes(2000), window=0)
    wire.user.send([b"reply"])
    wire.after(SECOND).ignore()
    wire.peer(ACK, seq=2001, ack=1, text=b"p", window=1000)
    wire.ignore()
    wire.peer(ACK, seq=2001, ack=6)
    assert wire.user.unsent_bytes == 0


def test_a_fin_is_taken_by_a_closed_window(wire: Wire) -> None:
    """It needs no room."""
    wire.host(receive_bytes=2000).established()
    wire.user.pause()
    wire.peer(ACK, seq=1, ack=1, text=bytes(2000))
    wire.peer(FIN | ACK, seq=2001, ack=1)
    wire.ours(ACK, ack=2002, window=0)
    wire.state(State.CLOSE_WAIT)
    assert not wire.app.endings
    wire.user.resume()
    assert (len(wire.app.text), wire.app.endings) == (2000, [None])
    wire.quiet()


def test_a_little_room_is_not_advertised(wire: Wire) -> None:
    """RFC 9293 section 3.8.6.2.2: silly window syndrome, the receiver's side."""
    wire.host(receive_bytes=4000).established()
    wire.app.reading = False
    wire.peer(ACK, seq=1, ack=1, text=bytes(1400))
    wire.peer(ACK, seq=1401, ack=1, text=bytes(1400))
    wire.peer(PSH | ACK, seq=2801, ack=1, text=bytes(1200))
    wire.after(SECOND).ignore()
    c = wire.user
    c.rcv.pieces, last = c.rcv.pieces[:-1], c.rcv.pieces[-1]
    c.rcv.charge -= len(last)
    wire.peer(ACK, seq=4001, ack=1, text=b"probe")
    wire.ours(ACK, ack=4001, window=0)


def test_text_beyond_our_window_is_cut_off(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: "trimmed to fit into the window", and its FIN is not reached."""
    wire.host(receive_bytes=1000).established()
    wire.user.pause()
    wire.peer(FIN | PSH | ACK, seq=1, ack=1, text=bytes(1500))
    wire.ours(ACK, ack=1001, window=0)
    wire.state(State.ESTABLISHED)
    wire.user.resume()
    wire.ours(ACK, ack=1001, window=1000)
    assert len(wire.app.text) == 1000


def test_text_beyond_our_window_is_cut_off_though_it_is_the_next(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: also where the user would take more at once."""
    wire.host(receive_bytes=1000).established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=bytes(1500))
    wire.ours(ACK, ack=1001, window=1000)
    assert len(wire.app.text) == 1000


def test_a_segment_altogether_beyond_our_window_is_refused(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, first step."""
    wire.host(receive_bytes=1000).established()
    wire.peer(PSH | ACK, seq=1001, ack=1, text=b"far away")
    wire.ours(ACK, ack=1, window=1000)
    wire.peer(PSH | ACK, seq=1000, ack=1, text=b"near")
    wire.ours(ACK, ack=1)
    assert wire.app.text == b""
    assert [(seq - wire.peer_isn, bytes(t)) for seq, t in wire.user.rcv.out_of_order] == [
        (1000, b"n")
    ]


def test_windows_are_scaled_both_ways(wire: Wire) -> None:
    """RFC 7323 section 2: but never in a SYN."""
    wire.host(receive_bytes=4 * MiB)
    wire.established(window=1 * MiB, shift=7)
    assert wire.our_shift == 7
    assert wire.user.snd.wnd == 1 * MiB
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, window=TCP_RECEIVE_BYTES_FIRST)


def test_without_the_option_windows_are_not_scaled(wire: Wire) -> None:
    """RFC 7323 section 2.2: both sides must offer it."""
    wire.host(receive_bytes=4 * MiB).established(window=65535)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, window=65535)


def test_rounding_does_not_move_the_edge_left(wire: Wire) -> None:
    """RFC 7323 section 2.4: windows come in steps, and text does not."""
    wire.host(receive_bytes=1 * MiB)
    wire.established(shift=7)
    wire.user.pause()
    seq = 1
    for size in (1, 3, 100, 127, 129, 1000, 1459, 77) * 20:
        wire.peer(PSH | ACK, seq=seq, ack=1, text=bytes(size))
        seq += size
        wire.after(50 * MILLISECOND)
    wire.ignore()


def test_single_bytes_do_not_cost_more_than_the_window(wire: Wire) -> None:
    """Each piece is charged for the objects around it; then small pieces are copied together."""
    wire.host(receive_bytes=256 * KiB)
    wire.established(shift=7)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK)
    wire.user.pause()
    rcv = wire.user.rcv
    for seq in range(1, 3001):
        wire.peer(PSH | ACK, seq=seq, ack=2, text=b"%d" % (seq % 10))
        assert len(rcv.pieces) * TCP_PIECE_BYTES_MIN < 512 * KiB
    wire.ignore()
    wire.user.resume()
    assert bytes(wire.app.text) == b"".join(b"%d" % (seq % 10) for seq in range(1, 3001))
    wire.ignore()


def test_a_host_that_is_full_of_text_takes_no_more(wire: Wire) -> None:
    """A limit for all connections together: what comes then is dropped, and comes again."""
    wire.host(receive_bytes=1 * MiB)
    wire.established(shift=7)
    wire.tcp.budget.limit = 64 * KiB
    wire.user.pause()
    for seq in range(1, 200_000, 1000):
        wire.peer(ACK, seq=seq, ack=1, text=bytes(1000))
    assert wire.user.rcv.count <= 66 * KiB
    assert wire.counters["tcp.no_room"] > 0
    wire.ignore()
    wire.user.resume()
    taken = len(wire.app.text)
    wire.peer(ACK, seq=1 + taken, ack=1, text=bytes(1000))
    assert len(wire.app.text) == taken + 1000
    assert wire.tcp.budget.used == 0
    wire.ignore()


def test_a_crowded_connection_says_when_there_is_room(wire: Wire) -> None:
    """What the user queues is bounded only by himself; he is told once, at half."""
    wire.host(offload=True)
    wire.established(window=512 * KiB, shift=7)
    size = TCP_SEND_ROOM_BYTES
    wire.user.send([bytes(size)])
    acked = 1
    for _ in range(10_000):
        wire.flush()
        if not wire.path.sent:
            break
        for packet, _ in wire.path.sent:
            acked += len(packet) - 20
        wire.path.sent.clear()
        wire.peer(ACK, seq=1, ack=acked)
        assert wire.app.rooms == (1 if size - (acked - 1) <= TCP_SEND_ROOM_BYTES // 2 else 0)
    assert acked == size + 1


def test_unread_text_does_not_hide_a_reset(wire: Wire) -> None:
    """The user of a paused connection hears of its end at once, with the reason."""
    wire.established()
    wire.user.pause()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"unread")
    wire.peer(RST, seq=7)
    wire.ignore()
    assert wire.app.endings == ["reset by peer"]
    assert wire.tcp.budget.used == 0
    wire.user.resume()
    assert wire.app.text == b"unread"


@pytest.mark.parametrize("window", [65535, 1 * MiB])
def test_a_super_segment_may_fill_the_whole_window(wire: Wire, window: int) -> None:
    """A packet of 64 KiB, put together by the link: taken, acknowledged, window open again."""
    wire.host(receive_bytes=window)
    wire.established(shift=7)
    wire.peer(PSH | ACK, seq=1, ack=1, text=bytes(65_160))
    wire.ours(ACK, ack=65_161, window=min(window, TCP_RECEIVE_BYTES_FIRST))
    assert len(wire.app.text) == 65_160


def test_aborting_inside_a_callback_is_safe(wire: Wire) -> None:
    """A user may make any call from inside a callback."""
    wire.established()
    wire.app.readable = lambda connection: connection.abort()  # type: ignore[method-assign]
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"poison")
    wire.ours(RST | ACK, seq=1, ack=7)
    assert wire.app.endings == ["aborted"]
    assert wire.tcp.budget.used == 0


@pytest.mark.parametrize(("nodelay", "corked"), [(False, False), (True, True)])
def test_the_end_of_a_super_segment_waits_as_if_it_were_alone(
    wire: Wire, nodelay: bool, corked: bool
) -> None:
    """RFC 9293 section 3.7.4: offload changes who cuts up, not what is sent."""
    wire.host(offload=True).established()
    wire.user.nodelay, wire.user.corked = nodelay, corked
    wire.user.send([bytes(2 * 1460 + 100)])
    wire.ours(ACK, seq=1, size=2 * 1460)
    wire.quiet()
    wire.user.corked = False
    wire.peer(ACK, seq=1, ack=1 + 2 * 1460)
    wire.ours(PSH | ACK, seq=1 + 2 * 1460, size=100)


def test_a_cork_holds_back_parts_of_segments(wire: Wire) -> None:
    wire.established()
    wire.user.corked = True
    wire.user.send([bytes(1000)])
    wire.quiet()
    wire.user.send([bytes(1000)])
    wire.ours(ACK, seq=1, size=1460)
    wire.quiet()
    wire.user.corked = False
    wire.user.mark()
    wire.ours(PSH | ACK, seq=1461, size=540)


def test_a_cork_does_not_hold_back_the_end(wire: Wire) -> None:
    wire.established()
    wire.user.corked = True
    wire.user.send([b"the last words"])
    wire.user.close()
    wire.ours(FIN | PSH | ACK, seq=1, size=14)
