"""Peers that vanish, users that wait: everybody hears of the end, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import TCP_GIVE_UP_AFTER, TCP_KEEPALIVE_IDLE
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, parse
from tests.transcripts.tcp_wire import Wire


def test_keepalive_is_off_unless_asked_for(wire: Wire) -> None:
    """RFC 9293 MUST-25."""
    wire.established()
    wire.after(100 * TCP_KEEPALIVE_IDLE).quiet()


def test_a_silent_peer_is_asked_and_lives(wire: Wire) -> None:
    """RFC 9293 section 3.8.4: with a number that must be answered."""
    wire.established()
    wire.user.keep_alive(KeepAlive())
    wire.after(7200 * SECOND - 1).quiet()
    wire.after(1).ours(ACK, seq=0, ack=1, text=b"")
    wire.peer(ACK, seq=1, ack=1)
    wire.after(7200 * SECOND - 1).quiet()
    wire.after(1).ours(ACK, seq=0)


def test_a_peer_that_does_not_answer_is_given_up(wire: Wire) -> None:
    """RFC 9293 section 3.8.4: after several probes, never after one (MUST-27)."""
    wire.established()
    wire.user.keep_alive(KeepAlive(idle=100 * SECOND, interval=10 * SECOND, probes=3))
    wire.after(100 * SECOND).ours(ACK, seq=0)
    wire.after(10 * SECOND).ours(ACK, seq=0)
    wire.after(10 * SECOND).ours(ACK, seq=0)
    wire.after(10 * SECOND).ours(RST | ACK, seq=1)
    assert wire.app.endings == ["keep-alive: no answer"]
    assert wire.timers.next_deadline is None


def test_a_busy_peer_is_not_asked(wire: Wire) -> None:
    """RFC 9293 MUST-26: only when nothing was received for the whole interval."""
    wire.established()
    wire.user.keep_alive(KeepAlive(idle=100 * SECOND))
    for i in range(20):
        wire.after(60 * SECOND)
        wire.peer(PSH | ACK, seq=1 + i, ack=1, text=b"x")
        wire.after(SECOND).ours(ACK, seq=1, ack=2 + i)


def test_a_keepalive_of_the_peer_is_answered(wire: Wire) -> None:
    """RFC 9293 section 3.8.4: whether it carries a byte of garbage or not."""
    wire.established()
    wire.peer(ACK, seq=0, ack=1)
    wire.ours(ACK, seq=1, ack=1)
    wire.peer(ACK, seq=0, ack=1, text=b"\0")
    wire.ours(ACK, seq=1, ack=1)
    assert wire.app.text == b""


def by_reset(wire: Wire) -> None:
    wire.peer(RST, seq=1)


def by_fin(wire: Wire) -> None:
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.user.close()
    wire.ignore()
    wire.peer(ACK, seq=2, ack=2)


def by_close(wire: Wire) -> None:
    wire.user.close()
    wire.ignore()
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.after(100 * SECOND)


def by_abort(wire: Wire) -> None:
    wire.user.abort()
    wire.user.abort()


def by_timeout(wire: Wire) -> None:
    wire.user.send([b"x"])
    wire.after(TCP_GIVE_UP_AFTER + 61 * SECOND)


def by_orphanage(wire: Wire) -> None:
    wire.user.close()
    wire.ignore()
    wire.peer(ACK, seq=1, ack=2)
    wire.after(100 * SECOND)


def by_late_text(wire: Wire) -> None:
    wire.user.close()
    wire.ignore()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x")


def by_keepalive(wire: Wire) -> None:
    wire.user.keep_alive(KeepAlive(idle=SECOND, interval=SECOND, probes=1))
    wire.after(10 * SECOND)


def by_simultaneous_close(wire: Wire) -> None:
    wire.user.close()
    wire.ignore()
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.peer(ACK, seq=2, ack=2)
    wire.after(100 * SECOND)


DEATHS = [
    by_reset, by_fin, by_close, by_abort, by_timeout, by_orphanage, by_late_text, by_keepalive,
    by_simultaneous_close,
]  # fmt: skip


@pytest.mark.parametrize("death", DEATHS)
def test_every_death_is_told_once_and_leaves_nothing(
    wire: Wire, death: Callable[[Wire], None]
) -> None:
    """The user hears of it exactly once; no table, no timer, no byte of the budget remembers."""
    wire.established()
    death(wire)
    wire.ignore()
    assert len(wire.app.endings) == 1
    wire.state(State.CLOSED)
    assert not wire.tcp.connections
    assert not wire.listener.open
    assert not wire.listener.half_open
    assert not wire.tcp._time_wait
    assert wire.tcp.budget.used == 0
    wire.after(100 * SECOND).quiet()
    assert wire.timers.next_deadline is None
    wire.user.send([b"to nobody"])
    wire.user.finish()
    wire.user.close()
    wire.user.abort()
    wire.user.resume()
    wire.quiet()
    assert len(wire.app.endings) == 1


def test_a_paused_user_hears_of_a_fin_behind_the_text(wire: Wire) -> None:
    """In the order in which it happened."""
    wire.established()
    wire.user.pause()
    wire.peer(FIN | PSH | ACK, seq=1, ack=1, text=b"last")
    wire.ours(ACK, ack=6)
    assert (bytes(wire.app.text), wire.app.endings) == (b"", [])
    wire.user.resume()
    assert (bytes(wire.app.text), wire.app.endings) == (b"last", [None])


def test_thousands_of_connections_leave_no_timers(wire: Wire) -> None:
    """The idle timer of hours of a dead connection does not stay in the heap."""
    for turn in range(2000):
        wire.peer_port = 1024 + turn
        wire.peer(SYN, seq=0)
        wire.ours(SYN | ACK)
        wire.peer(ACK, seq=1, ack=1)
        wire.user.keep_alive(KeepAlive())
        wire.peer(RST, seq=1)
    assert not wire.tcp.connections
    assert len(wire.timers._heap) < 400


def test_calls_before_the_connection_is_established_are_kept(wire: Wire) -> None:
    """SEND in SYN-SENT: queued (RFC 9293 section 3.10.2)."""
    wire.connecting()
    wire.user.send([b"early"])
    wire.quiet()
    wire.peer(SYN | ACK, seq=0, ack=1)
    wire.ours(PSH | ACK, seq=1, ack=1, text=b"early")


def test_a_peer_that_owes_an_acknowledgement_is_not_asked(wire: Wire) -> None:
    """RFC 9293 MUST-26: keep-alives are for when nothing is outstanding; the retransmission timer
    asks already."""
    wire.established()
    wire.user.keep_alive(KeepAlive(idle=10 * SECOND, interval=10 * SECOND, probes=2))
    wire.user.send([b"text"])
    wire.ours(PSH | ACK, seq=1, text=b"text")
    wire.after(TCP_GIVE_UP_AFTER - SECOND)
    assert {parse(p, 0, len(p)).seq for p, _ in wire.path.sent} == {wire.user.snd.iss + 1}
    wire.ignore().state(State.ESTABLISHED)
    wire.after(120 * SECOND).ignore()
    assert wire.app.endings == ["timed out"]


def test_a_closed_window_is_probed_and_not_asked(wire: Wire) -> None:
    """RFC 9293 MUST-26: the probes of the window are questions enough."""
    wire.established()
    wire.user.keep_alive(KeepAlive(idle=10 * SECOND, interval=10 * SECOND, probes=2))
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"x"])
    for _ in range(20):
        wire.after(30 * SECOND)
        assert all(parse(p, 0, len(p)).text for p, _ in wire.path.sent)
        wire.ignore().peer(ACK, seq=1, ack=1, window=0)
    wire.state(State.ESTABLISHED)


@pytest.mark.parametrize(("timeout", "probes"), [(15, 1), (45, 4), (120, 11)])
def test_a_user_timeout_says_how_long_keepalives_go_on(
    wire: Wire, timeout: int, probes: int
) -> None:
    """RFC 5482 section 4.2: the two must not contradict each other; the number of probes gives
    way."""
    wire.established()
    wire.user.user_timeout = timeout * SECOND
    wire.user.keep_alive(KeepAlive(idle=10 * SECOND, interval=10 * SECOND, probes=3))
    wire.after(timeout * SECOND - 1)
    for _ in range(probes):
        wire.ours(ACK, seq=0)
    wire.quiet().state(State.ESTABLISHED)
    wire.after(10 * SECOND)
    wire.ignore()
    assert wire.app.endings == ["keep-alive: no answer"]


def test_the_user_timeout_is_kept_to_the_point(wire: Wire) -> None:
    """RFC 5482 section 3: not at the next retransmission, which may be a minute later."""
    wire.established()
    wire.user.user_timeout = 1000 * MILLISECOND
    wire.user.send([b"x"])
    wire.after(999 * MILLISECOND).ignore().state(State.ESTABLISHED)
    wire.after(1 * MILLISECOND).ours(RST | ACK)
    assert wire.app.endings == ["user timeout"]


def test_the_user_timeout_of_an_open_that_is_not_answered(wire: Wire) -> None:
    """RFC 9293 section 3.9.1.1: OPEN takes a timeout, too."""
    wire.connecting()
    wire.user.user_timeout = 2500 * MILLISECOND
    wire.after(2499 * MILLISECOND).ignore().state(State.SYN_SENT)
    wire.after(1 * MILLISECOND).quiet()
    assert wire.app.endings == ["no answer to SYN"]


def test_a_cork_does_not_hold_text_for_ever(wire: Wire) -> None:
    """RFC 9293 MUST-61: text is not buffered indefinitely; a retransmission timeout is enough."""
    wire.established()
    wire.user.corked = True
    wire.user.send([b"part"])
    wire.after(199 * MILLISECOND).quiet()
    wire.after(1 * MILLISECOND).ours(PSH | ACK, seq=1, text=b"part")
