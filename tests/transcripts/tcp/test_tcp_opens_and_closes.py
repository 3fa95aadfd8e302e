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


def test_an_old_duplicate_syn_is_recovered_from(wire: Wire) -> None:
    """RFC 9293 figure 8, seen from B: the peer resets what an old SYN began, and opens anew."""
    wire.peer(SYN, seq=-910)
    wire.ours(SYN | ACK, ack=-909)
    wire.peer(RST, seq=-909)
    wire.quiet()
    assert wire.connection() is None
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)


def test_a_peer_that_has_restarted_finds_out(wire: Wire) -> None:
    """RFC 9293 figure 9, seen from B: its new SYN is challenged, it resets, and opens anew."""
    wire.established()
    wire.peer(SYN, seq=100_000, window=1000)
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)
    wire.peer(RST, seq=1)
    wire.quiet()
    assert wire.app.endings == ["reset by peer"]
    wire.peer(SYN, seq=100_000)
    wire.ours(SYN | ACK, seq=0, ack=100_001)


def test_text_of_a_forgotten_connection_is_reset(wire: Wire) -> None:
    """RFC 9293 figure 10, seen from A: the host has restarted and knows nothing."""
    wire.our_port = 111
    wire.our_isn = 0
    wire.peer(PSH | ACK, seq=1, ack=300, text=b"hello?")
    wire.ours(RST, seq=300)


def test_a_listener_resets_an_acknowledgement(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.2, second step; figure 11."""
    wire.our_isn = 0
    wire.peer(SYN | ACK, seq=0, ack=77)
    wire.ours(RST, seq=77)


def test_a_listener_ignores_a_reset(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.2, first step."""
    wire.peer(RST, seq=0)
    wire.quiet()
    assert wire.counters["tcp.reset_to_listener"] == 1


def test_a_closed_port_refuses(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.1: a reset that acknowledges the SYN."""
    wire.our_port = 111
    wire.peer(SYN, seq=0)
    wire.ours(RST | ACK, ack=1)


def test_a_closed_port_never_answers_a_reset(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.1: two such hosts would reset each other for ever."""
    wire.our_port = 111
    wire.peer(RST, seq=0)
    wire.peer(RST | ACK, seq=0, ack=5)
    wire.quiet()


def test_we_are_refused(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.3, second step: the user hears of it."""
    wire.connecting()
    wire.peer(RST | ACK, seq=0, ack=1)
    wire.quiet()
    assert wire.app.endings == ["connection refused"]
    assert wire.connection() is None


def test_a_blind_reset_does_not_refuse(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.3: only one that acknowledges our SYN."""
    wire.connecting()
    wire.peer(RST, seq=0)
    wire.peer(RST | ACK, seq=0, ack=7)
    wire.quiet()
    wire.state(State.SYN_SENT)


def test_a_wrong_answer_to_our_syn_is_reset(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.3, first step: it answers an old SYN of ours."""
    wire.connecting()
    wire.peer(SYN | ACK, seq=0, ack=-500)
    got = wire.ours(RST)
    assert wire.relative_seq(got) == -500
    wire.state(State.SYN_SENT)


def test_text_with_the_answer_to_our_syn_is_taken(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.3, fourth step: processing goes on at the sixth."""
    wire.connecting()
    wire.peer(SYN | ACK, seq=0, ack=1, text=b"early")
    wire.ours(ACK, seq=1, ack=6)
    assert wire.app.text == b"early"


def test_closing_while_our_syn_is_unanswered_forgets_it(wire: Wire) -> None:
    """RFC 9293 section 3.10.4, SYN-SENT; and the port is free again."""
    wire.connecting()
    wire.user.close()
    wire.quiet()
    assert wire.app.endings == ["closed"]
    wire.connecting()


def test_a_close_before_the_handshake_is_over_waits_for_it(wire: Wire) -> None:
    """RFC 9293 section 3.10.4, SYN-RECEIVED: queued until ESTABLISHED."""
    wire.connecting()
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.user.send([b"last words"])
    wire.user.close()
    wire.quiet()
    wire.peer(SYN | ACK, seq=0, ack=1)
    wire.ours(FIN | PSH | ACK, seq=1, ack=1, text=b"last words")
    wire.state(State.FIN_WAIT_1)


def test_half_close_still_receives(wire: Wire) -> None:
    """RFC 9293 section 3.6: CLOSE means that one has no more to send, not no more to hear."""
    wire.established()
    wire.user.finish()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(ACK, seq=1, ack=2)
    wire.state(State.FIN_WAIT_2)
    wire.peer(PSH | ACK, seq=1, ack=2, text=b"more")
    assert wire.app.text == b"more"
    wire.after(SECOND).ours(ACK, seq=2, ack=5)
    wire.after(1000 * SECOND).state(State.FIN_WAIT_2)
    wire.peer(FIN | ACK, seq=5, ack=2)
    wire.ours(ACK, seq=2, ack=6)
    assert wire.app.endings == [None]


def test_the_peer_half_closes_and_is_still_answered(wire: Wire) -> None:
    """RFC 9293 section 3.6: in CLOSE-WAIT text goes out."""
    wire.established()
    wire.peer(FIN | PSH | ACK, seq=1, ack=1, text=b"question")
    wire.ours(ACK, seq=1, ack=10)
    assert (bytes(wire.app.text), wire.app.endings) == (b"question", [None])
    wire.user.send([b"answer"])
    wire.ours(PSH | ACK, seq=1, ack=10, text=b"answer")
    wire.peer(ACK, seq=10, ack=7)
    wire.user.close()
    wire.ours(FIN | ACK, seq=7, ack=10)


def test_fin_acknowledged_with_the_peers_fin(wire: Wire) -> None:
    """RFC 9293 figure 5, note 2: from FIN-WAIT-1 straight to TIME-WAIT."""
    wire.established()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)


def test_text_and_fin_leave_together(wire: Wire) -> None:
    """RFC 9293 section 3.10.4: the FIN follows what was queued."""
    wire.established()
    wire.user.send([b"good", b"bye"])
    wire.user.close()
    wire.ours(FIN | PSH | ACK, seq=1, ack=1, text=b"goodbye")


def test_closing_with_unread_text_resets(wire: Wire) -> None:
    """RFC 9293 section 3.6.1: the peer must not believe that its text was used."""
    wire.established()
    wire.app.reading = False
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"unread")
    wire.user.close()
    wire.ours(RST | ACK, seq=1, ack=7)
    wire.state(State.CLOSED)
    assert wire.app.endings == ["aborted"]


def test_text_after_close_resets(wire: Wire) -> None:
    """RFC 9293 section 3.6.1: nobody reads it any more."""
    wire.established()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(PSH | ACK, seq=1, ack=2, text=b"too late")
    wire.ours(RST | ACK, seq=2, ack=1)
    wire.state(State.CLOSED)


def test_a_repeated_fin_restarts_time_wait(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, eighth step: our last acknowledgement was lost."""
    until_time_wait(wire)
    wire.after(TCP_TIME_WAIT - SECOND)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.after(TCP_TIME_WAIT - SECOND).state(State.TIME_WAIT)
    wire.after(SECOND).state(State.CLOSED)


def until_time_wait(wire: Wire) -> None:
    """RFC 9293 section 3.6, case 1."""
    wire.established()
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)


def test_a_reset_does_not_end_time_wait(wire: Wire) -> None:
    """RFC 1337 section 3, fix F1."""
    until_time_wait(wire)
    wire.peer(RST, seq=2)
    wire.quiet()
    wire.state(State.TIME_WAIT)


def test_a_repeated_syn_gets_the_same_answer(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: no second connection, and the same sequence number."""
    wire.peer(SYN, seq=0)
    first = wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(SYN, seq=0)
    second = wire.ours(SYN | ACK, seq=0, ack=1)
    assert first.seq == second.seq
    assert len(wire.tcp.connections) == 1


def test_our_answer_to_a_syn_is_repeated(wire: Wire) -> None:
    """RFC 6298: like everything else that takes a sequence number; and then forgotten."""
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    for wait in (1, 2, 4, 8, 16):
        wire.after(wait * SECOND).ours(SYN | ACK, seq=0, ack=1)
    wire.after(100 * SECOND).ignore()
    assert not wire.tcp.connections
    assert not wire.listener.half_open
    assert wire.timers.next_deadline is None


def test_another_syn_before_the_handshake_is_over_begins_anew(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, fourth step: in SYN-RECEIVED after a passive OPEN, back to
    LISTEN. The peer has restarted, and repeats its new SYN."""
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(SYN, seq=500)
    wire.quiet()
    assert not wire.tcp.connections
    wire.peer(SYN, seq=500)
    wire.ours(SYN | ACK, ack=501)
    assert wire.app.endings == []


def test_a_wrong_acknowledgement_of_our_syn_is_reset(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, fifth step, SYN-RECEIVED."""
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=900)
    wire.ours(RST, seq=900)
    wire.state(State.SYN_RECEIVED)


def test_text_on_a_syn_is_not_acknowledged(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.2: it may be kept; we let the peer repeat it."""
    wire.peer(SYN, seq=0, text=b"early")
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1, text=b"early")
    assert wire.app.text == b"early"
    wire.after(SECOND).ours(ACK, ack=6)


def test_the_third_segment_may_carry_text_and_fin(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: the steps go on after ESTABLISHED."""
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(FIN | PSH | ACK, seq=1, ack=1, text=b"all")
    wire.ours(ACK, seq=1, ack=5)
    wire.state(State.CLOSE_WAIT)
    assert (bytes(wire.app.text), wire.app.endings) == (b"all", [None])


def test_a_user_may_refuse(wire: Wire) -> None:
    """The accept callback gives no user: the peer gets a reset."""
    wire.listener.accept = lambda connection: None
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1)
    wire.ours(RST | ACK, seq=1, ack=1)
    assert not wire.tcp.connections
    assert not wire.listener.open


def test_a_listener_that_closes_resets_its_children(wire: Wire) -> None:
    """Those that were not accepted; the established ones go on."""
    wire.established()
    wire.peer_port += 1
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK)
    wire.listener.close()
    wire.ours(RST | ACK)
    assert len(wire.tcp.connections) == 1
    wire.peer_port += 1
    wire.peer(SYN, seq=0)
    wire.ours(RST | ACK)


def test_a_full_host_takes_no_more_connections(wire: Wire) -> None:
    """The SYN is not answered: the peer will try again."""
    wire.host(connections_max=1).established()
    wire.peer_port += 1
    wire.peer(SYN, seq=0)
    wire.quiet()
    assert wire.counters["tcp.too_many_connections"] == 1


def test_a_connection_that_its_user_has_closed_gives_way(wire: Wire) -> None:
    """The peer does not acknowledge our FIN. A full host does not wait for it: it resets the
    oldest of such connections, and there is room for one that somebody wants."""
    wire.host(connections_max=1).established()
    wire.listener.connections_max = 1
    wire.user.close()
    wire.ours(FIN | ACK, seq=1, ack=1)
    wire.state(State.FIN_WAIT_1)
    wire.peer_port += 1
    wire.peer(SYN, seq=0)
    assert wire.ours(SYN | ACK).destination_port == wire.peer_port
    assert wire.ours(RST | ACK).destination_port == wire.peer_port - 1
    assert wire.counters["tcp.orphans_evicted"] == 1


def test_a_connection_in_time_wait_gives_way(wire: Wire) -> None:
    """A full host forgets one that has nothing left to do."""
    wire.host(connections_max=1)
    until_time_wait(wire)
    wire.peer_port += 1
    wire.peer(SYN, seq=0)
    wire.ours(SYN | ACK)
