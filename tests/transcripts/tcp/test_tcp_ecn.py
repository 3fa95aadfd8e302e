"""Explicit Congestion Notification: RFC 3168 section 6.1."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.ip.path import CE, ECT_0, NOT_ECT
from appliance.netstack.wire.tcp import ACK, CWR, ECE, FIN, PSH, RST, SYN
from tests.transcripts.tcp_wire import Wire

MSS = 1460


def last_ecn(wire: Wire) -> int:
    """What the IP header of our last packet says."""
    return wire.path.ecns[-1]


# --- negotiation (6.1.1) -------------------------------------------------------------------------


def test_a_peer_that_asks_is_answered_with_ece_alone(wire: Wire) -> None:
    """RFC 3168 section 6.1.1: an ECN-setup SYN-ACK has ECE and not CWR."""
    wire.peer(SYN | ECE | CWR, seq=0, mss=MSS)
    wire.ours(SYN | ECE | ACK, seq=0, ack=1)
    assert last_ecn(wire) == NOT_ECT


@pytest.mark.parametrize("flags", [0, ECE, CWR])
def test_a_peer_that_does_not_ask_gets_none(wire: Wire, flags: int) -> None:
    """RFC 3168 section 6.1.1: one flag alone is no ECN-setup SYN."""
    wire.peer(SYN | flags, seq=0, mss=MSS)
    wire.ours(SYN | ACK, seq=0, ack=1)
    wire.peer(ACK, seq=1, ack=1)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, text=b"x")
    assert last_ecn(wire) == NOT_ECT
    wire.peer(PSH | ACK, seq=1, ack=2, text=b"y", ecn=CE)
    wire.after(SECOND).ours(ACK, ack=2)


def test_a_host_may_decline_ecn(wire: Wire) -> None:
    wire.host(ecn=False).peer(SYN | ECE | CWR, seq=0, mss=MSS)
    wire.ours(SYN | ACK, seq=0, ack=1)


def connect(wire: Wire) -> None:
    """We open, and ask."""
    wire.app.connection = wire.tcp.connect(
        wire.path.destination, wire.peer_port, wire.app, wire.now, source_port=3000, ecn=True
    )
    wire.our_port = 3000
    wire.flush()


def test_we_ask_where_the_user_wants_it(wire: Wire) -> None:
    """RFC 3168 section 6.1.1: both flags in the SYN."""
    connect(wire)
    wire.ours(SYN | ECE | CWR, seq=0)
    wire.peer(SYN | ACK | ECE, seq=0, ack=1, mss=MSS)
    wire.ours(ACK, seq=1, ack=1)
    assert last_ecn(wire) == NOT_ECT, "an acknowledgement without text (section 6.1.4)"
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, text=b"x")
    assert last_ecn(wire) == ECT_0


@pytest.mark.parametrize("flags", [0, ECE | CWR])
def test_an_answer_that_is_no_ecn_setup_turns_it_off(wire: Wire, flags: int) -> None:
    """RFC 3168 section 6.1.1.1: some hosts reflect the flags of the SYN."""
    connect(wire)
    wire.ours(SYN | ECE | CWR, seq=0)
    wire.peer(SYN | ACK | flags, seq=0, ack=1, mss=MSS).ignore()
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, text=b"x")
    assert last_ecn(wire) == NOT_ECT


def test_a_syn_that_got_lost_is_sent_again_without_asking(wire: Wire) -> None:
    """RFC 3168 section 6.1.1.1: somebody on the way may drop what asks."""
    connect(wire)
    wire.ours(SYN | ECE | CWR, seq=0)
    wire.after(SECOND).ours(SYN, seq=0)


def test_a_lost_answer_is_repeated_with_the_agreement(wire: Wire) -> None:
    """The first one may have arrived: then the peer believes that we agreed."""
    wire.peer(SYN | ECE | CWR, seq=0, mss=MSS)
    wire.ours(SYN | ECE | ACK, seq=0, ack=1)
    wire.after(SECOND).ours(SYN | ECE | ACK, seq=0, ack=1)


# --- the data receiver (6.1.3) -------------------------------------------------------------------


def test_a_mark_is_echoed_until_the_peer_has_reacted(wire: Wire) -> None:
    """RFC 3168 section 6.1.3: ECE in every segment, up to one that comes with CWR."""
    wire.established(ecn=True)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a", ecn=ECT_0)
    wire.after(SECOND).ours(ACK, ack=2)
    wire.peer(PSH | ACK, seq=2, ack=1, text=b"b", ecn=CE)
    wire.ours(ACK | ECE, ack=3)  # at once
    wire.peer(PSH | ACK, seq=3, ack=1, text=b"c", ecn=ECT_0)
    wire.after(SECOND).ours(ACK | ECE, ack=4)
    wire.user.send([b"x"])
    wire.ours(PSH | ACK | ECE, seq=1, text=b"x")
    wire.peer(PSH | ACK | CWR, seq=4, ack=2, text=b"d", ecn=ECT_0)
    wire.after(SECOND).ours(ACK, ack=5)


def test_a_mark_on_the_segment_with_cwr_is_a_new_one(wire: Wire) -> None:
    """RFC 3168 section 6.1.3: the peer answers an older mark, and met congestion again."""
    wire.established(ecn=True)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"a", ecn=CE).ours(ACK | ECE)
    wire.peer(PSH | ACK | CWR, seq=2, ack=1, text=b"b", ecn=CE).ours(ACK | ECE)


def test_a_mark_outside_the_window_is_ignored(wire: Wire) -> None:
    """RFC 3168 section 6.1.5: a packet outside the window may be forged."""
    wire.established(ecn=True)
    wire.peer(PSH | ACK, seq=100_000, ack=1, text=b"a", ecn=CE).ours(ACK, ack=1)


def test_a_selective_acknowledgement_carries_the_echo_too(wire: Wire) -> None:
    """RFC 3168 section 6.1.3: every segment does."""
    wire.established(ecn=True, sacks=True)
    wire.peer(PSH | ACK, seq=10, ack=1, text=b"later", ecn=CE)
    answer = wire.ours(ACK | ECE, ack=1)
    assert answer.sack


# --- the data sender (6.1.2) ---------------------------------------------------------------------


def test_an_echo_halves_the_window_once_in_a_round_trip(wire: Wire) -> None:
    """RFC 3168 section 6.1.2, and CWR goes with the next new text, once."""
    wire.established(ecn=True)
    window = wire.user.congestion.window
    wire.user.send([bytes(8 * MSS)])
    for index in range(8):
        wire.ours(ACK, seq=1 + index * MSS, size=MSS)
        assert last_ecn(wire) == ECT_0
    wire.peer(ACK | ECE, seq=1, ack=1 + MSS)
    smaller = wire.user.congestion.window
    assert smaller <= window * 3 // 4
    wire.peer(ACK | ECE, seq=1, ack=1 + 2 * MSS)
    wire.peer(ACK | ECE, seq=1, ack=1 + 8 * MSS)
    assert wire.user.congestion.window >= smaller
    assert wire.counters["tcp.ecn_reactions"] == 1
    assert wire.counters["tcp.bytes_resent"] == 0
    wire.user.send([b"one", b"two"])
    wire.ours(PSH | ACK | CWR, text=b"onetwo")
    wire.user.send([b"three"])
    wire.ours(PSH | ACK, text=b"three")
    wire.peer(ACK | ECE, seq=1, ack=1 + 8 * MSS + 11)
    assert wire.counters["tcp.ecn_reactions"] == 2


def test_what_is_sent_again_may_not_be_marked(wire: Wire) -> None:
    """RFC 3168 section 6.1.5; and after a loss, too, the next new text carries CWR (6.1.2)."""
    wire.established(ecn=True)
    wire.user.send([b"abc"])
    wire.ours(PSH | ACK, seq=1, text=b"abc")
    wire.after(200 * MILLISECOND).ours(PSH | ACK, seq=1, text=b"abc")
    assert last_ecn(wire) == NOT_ECT
    wire.peer(ACK, seq=1, ack=4)
    wire.user.send([b"d"])
    wire.ours(PSH | ACK | CWR, seq=4, text=b"d")
    assert last_ecn(wire) == ECT_0


def test_a_probe_may_not_be_marked(wire: Wire) -> None:
    """RFC 3168 section 6.1.6."""
    wire.established(ecn=True)
    wire.peer(ACK, seq=1, ack=1, window=0)
    wire.user.send([b"abc"])
    wire.after(200 * MILLISECOND).ours(ACK, seq=1, text=b"a")
    assert last_ecn(wire) == NOT_ECT


def test_a_fin_or_a_reset_without_text_may_not_be_marked(wire: Wire) -> None:
    """RFC 3168 section 6.1.4: there is no text in it."""
    wire.established(ecn=True)
    wire.user.finish()
    wire.ours(FIN | ACK, seq=1)
    assert last_ecn(wire) == NOT_ECT
    wire.user.abort()
    wire.ours(RST | ACK, seq=2)
    assert last_ecn(wire) == NOT_ECT


def test_an_echo_without_agreement_means_nothing(wire: Wire) -> None:
    """RFC 3168 section 6.1.1: only a connection on which both agreed."""
    wire.established()
    wire.user.send([bytes(2 * MSS)])
    wire.ours(ACK, size=MSS)
    wire.ours(PSH | ACK, size=MSS)
    window = wire.user.congestion.window
    wire.peer(ACK | ECE, seq=1, ack=1 + 2 * MSS)
    assert wire.user.congestion.window >= window


def test_a_super_segment_carries_cwr_once(wire: Wire) -> None:
    """RFC 3168 section 6.1.2: the link keeps it on the first segment (test_path.py)."""
    wire.host(offload=True).established(ecn=True)
    wire.user.send([bytes(8 * MSS)])
    wire.ours(ACK, size=8 * MSS)
    wire.peer(ACK | ECE, seq=1, ack=1 + MSS)
    wire.peer(ACK | ECE, seq=1, ack=1 + 8 * MSS)
    wire.user.send([bytes(4 * MSS)])
    wire.ours(ACK | CWR, size=4 * MSS)
    assert last_ecn(wire) == ECT_0


# --- beside ECN: the rest of the field ------------------------------------------------------------


def test_a_user_may_ask_for_a_service(wire: Wire) -> None:
    """RFC 9293 MUST-48: DSCP goes into all packets of the connection, ECN stays what it is."""
    wire.established(ecn=True, sacks=True)
    low_delay = 46 << 2
    wire.user.traffic_class = low_delay
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, text=b"x")
    assert last_ecn(wire) == low_delay | ECT_0
    wire.peer(PSH | ACK, seq=10, ack=2, text=b"later")
    assert wire.ours(ACK).sack
    assert last_ecn(wire) == low_delay
    wire.after(200 * MILLISECOND)
    wire.user.finish()
    wire.ours(FIN | ACK)
    assert last_ecn(wire) == low_delay
