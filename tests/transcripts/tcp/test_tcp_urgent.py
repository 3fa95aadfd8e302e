"""Urgent text (RFC 9293 section 3.8.5): a pointer beside the stream; the text stays in it (RFC 6093
section 6)."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.wire.tcp import ACK, CWR, ECE, FIN, PSH, SYN, URG
from tests.transcripts.tcp_wire import Wire


def told(wire: Wire) -> list[int]:
    """How much was urgent, each time that the user was told."""
    amounts: list[int] = []

    def urgent(connection: Connection) -> None:
        amounts.append(connection.urgent_bytes)

    wire.user.on_urgent = urgent
    return amounts


# --- received ------------------------------------------------------------------------------------


def test_urgent_text_is_read_where_it_stands(wire: Wire) -> None:
    wire.established()
    wire.peer(URG | PSH | ACK, seq=1, ack=1, text=b"urgent, and more", urgent=6)
    assert wire.app.text == b"urgent, and more"
    wire.after(SECOND).ours(ACK, ack=17)


def test_the_user_is_told_before_the_text_and_learns_how_much_is_left(wire: Wire) -> None:
    """MUST-32, MUST-33."""
    wire.established()
    amounts = told(wire)
    wire.app.reading = False
    wire.peer(URG | ACK, seq=1, ack=1, text=b"0123456789", urgent=15).ignore()
    assert amounts == [15], "the pointer is behind the urgent text"
    assert wire.user.urgent_bytes == 15, "all from what is read next, up to there"
    wire.app.read(wire.user)
    assert wire.user.urgent_bytes == 5
    wire.peer(ACK, seq=11, ack=1, text=b"abcdefgh").ignore()
    wire.app.read(wire.user)
    assert wire.user.urgent_bytes == 0
    wire.ignore()


def test_the_user_is_told_again_when_the_pointer_moves(wire: Wire) -> None:
    """MUST-32; and not by a segment that only says the same."""
    wire.established()
    amounts = told(wire)
    wire.peer(URG | ACK, seq=1, ack=1, text=b"12345", urgent=10)
    wire.peer(URG | ACK, seq=6, ack=1, text=b"67890", urgent=5)
    assert amounts == [10]
    wire.peer(URG | ACK, seq=11, ack=1, text=b"1", urgent=1)
    assert amounts == [10, 1]
    wire.ignore()


def test_a_pointer_that_moves_back_is_not_believed(wire: Wire) -> None:
    """RCV.UP is the maximum of all (section 3.10.7.4, sixth)."""
    wire.established()
    amounts = told(wire)
    wire.peer(URG | ACK, seq=1, ack=1, text=b"12345", urgent=100)
    wire.peer(URG | ACK, seq=6, ack=1, text=b"67890", urgent=1)
    assert (amounts, wire.user.urgent_bytes) == ([100], 90)
    wire.ignore()


@pytest.mark.parametrize(("flags", "urgent"), [(URG, 0), (0, 4)])
def test_nothing_is_urgent(wire: Wire, flags: int, urgent: int) -> None:
    """A pointer to the segment itself, and one without the flag."""
    wire.established()
    amounts = told(wire)
    wire.peer(flags | PSH | ACK, seq=1, ack=1, text=b"text", urgent=urgent)
    assert amounts == []
    wire.ignore()


def test_a_pointer_counts_while_our_window_is_closed(wire: Wire) -> None:
    """MUST-66: of a segment whose text there is no room for."""
    wire.host(receive_bytes=1000).established()
    amounts = told(wire)
    wire.app.reading = False
    wire.peer(ACK, seq=1, ack=1, text=bytes(1000)).after(SECOND).ignore()
    assert wire.user.rcv.window == 0
    wire.peer(URG | ACK, seq=1001, ack=1, text=b"!", urgent=1)
    assert amounts == [1001]
    wire.ours(ACK, ack=1001, window=0)


def test_urgent_text_may_come_with_the_answer_to_our_syn(wire: Wire) -> None:
    wire.connecting()
    amounts = told(wire)
    wire.peer(SYN | ACK | URG, seq=0, ack=1, mss=1460, text=b"now", urgent=3)
    assert amounts == [3]
    assert wire.app.text == b"now"
    wire.ours(ACK, ack=4)


def test_nobody_is_told_who_has_let_go(wire: Wire) -> None:
    wire.established()
    amounts = told(wire)
    wire.user.close()
    wire.ours(FIN | ACK)
    wire.peer(URG | ACK, seq=1, ack=2, urgent=5)
    assert amounts == []
    wire.ignore()


# --- sent ----------------------------------------------------------------------------------------


def test_the_pointer_is_behind_the_urgent_text(wire: Wire) -> None:
    """MUST-62."""
    wire.established()
    wire.user.send([b"before"])
    wire.user.send_urgent([b"now"])
    wire.user.send([b"behind"])
    wire.ours(URG | PSH | ACK, seq=1, text=b"beforenowbehind", urgent=9)
    wire.peer(ACK, seq=1, ack=16)
    wire.user.send([b"later"])
    wire.ours(PSH | ACK, seq=16, text=b"later", urgent=0)


@pytest.mark.parametrize("stamp", [None, 77])
@pytest.mark.parametrize("offload", [False, True])
def test_each_segment_of_a_super_segment_has_its_own_pointer(
    wire: Wire, offload: bool, stamp: int | None
) -> None:
    """What a link cuts up gets one pointer for all, so segments leave one by one."""
    wire.host(offload=offload).established(mss=1000, stamp=stamp)
    size = wire.user.mss
    wire.user.send_urgent([bytes(2 * size + 100)])
    wire.user.finish()
    wire.ours(URG | ACK, seq=1, size=size, urgent=2 * size + 100)
    wire.ours(URG | ACK, seq=1 + size, size=size, urgent=size + 100)
    wire.ours(URG | PSH | FIN | ACK, seq=1 + 2 * size, size=100, urgent=100)


def test_the_window_is_said_to_be_reduced_once(wire: Wire) -> None:
    """RFC 3168 section 6.1.2: CWR is in the first segment alone, as where a link cuts them."""
    wire.host(offload=True).established(mss=1000, ecn=True)
    wire.user.send([bytes(2000)])
    wire.ignore()
    wire.peer(ACK | ECE, seq=1, ack=1001)
    wire.peer(ACK | ECE, seq=1, ack=2001)
    wire.user.send_urgent([bytes(2000)])
    wire.ours(URG | CWR | ACK, seq=2001, size=1000, urgent=2000)
    wire.ours(URG | PSH | ACK, seq=3001, size=1000, urgent=1000)


def test_urgent_text_may_be_of_any_length(wire: Wire) -> None:
    """MUST-31: where the pointer cannot reach the end, it moves on."""
    wire.host(offload=True).established(mss=1460, shift=7, window=1 << 20)
    wire.user.send_urgent([bytes(100_000)])
    assert wire.ours(URG | ACK, seq=1).urgent == 0xFFFF
    sent = 1460
    while sent < 100_000:
        wire.peer(ACK, seq=1, ack=1 + sent)
        while wire.path.sent:
            got = wire.ours(URG | ACK, seq=1 + sent)
            assert got.urgent == min(100_000 - sent, 0xFFFF)
            sent += len(got.text)
    wire.peer(ACK, seq=1, ack=100_001)


def test_urgent_text_is_not_held_by_nagle(wire: Wire) -> None:
    wire.established()
    wire.user.nodelay = False
    wire.user.send([b"one"])
    wire.ours(PSH | ACK, seq=1, text=b"one")
    wire.user.send([b"two"])
    wire.quiet()
    wire.user.send_urgent([b"!"])
    wire.ours(URG | PSH | ACK, seq=4, text=b"two!", urgent=4)


def test_a_closed_window_is_told_of_urgent_text(wire: Wire) -> None:
    """Section 3.8.6.1: the probe brings the pointer, and so does what acknowledges."""
    wire.established(window=0)
    wire.user.send_urgent([b"urgent"])
    wire.after(SECOND // 2).ours(URG | ACK, seq=1, text=b"u", urgent=6)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x", window=0).after(100 * MILLISECOND)
    wire.ours(URG | ACK, seq=2, ack=2, size=0, urgent=5)
    wire.user.abort()
    wire.ignore()


def test_a_keepalive_of_what_was_acknowledged_is_not_urgent(wire: Wire) -> None:
    wire.established()
    wire.user.send_urgent([b"urgent"])
    wire.ours(URG | PSH | ACK, seq=1, urgent=6)
    wire.peer(ACK, seq=1, ack=7)
    wire.user.keep_alive(KeepAlive(SECOND, SECOND, 3))
    wire.after(SECOND).ours(ACK, seq=6, size=0)


def test_nothing_becomes_urgent_after_the_fin(wire: Wire) -> None:
    """A SEND that is too late changes nothing."""
    wire.established()
    wire.user.send([b"text"])
    wire.user.finish()
    wire.user.send_urgent([b"late"])
    wire.ours(FIN | PSH | ACK, seq=1, text=b"text")
