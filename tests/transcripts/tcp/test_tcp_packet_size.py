"""How large packets may be: RFC 9293 section 3.7, RFC 1191, RFC 2923, RFC 5927 section 7.2."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import PATH_MTU_LEARNT_FOR, TCP_BLACK_HOLE_RETRY_AFTER
from appliance.netstack.wire.tcp import ACK, PSH, SYN
from tests.transcripts.tcp_wire import IPV6, Wire

MSS = 1460
NARROW = 1260
"""Of a path on which packets are smaller: IPv6 has none on which this would not pass either."""


def router_says(wire: Wire, mtu: int, seq: int = 1) -> None:
    """ICMP: the packet with the segment at `seq` was larger than `mtu`."""
    ports = wire.our_port.to_bytes(2, "big") + wire.peer_port.to_bytes(2, "big")
    number = (wire.our_isn or 0) + seq & 0xFFFF_FFFF
    quoted = ports + number.to_bytes(4, "big")
    wire.tcp.packet_too_big(wire.family.ours, wire.family.peer, quoted, mtu, wire.now)
    wire.flush()


def test_a_router_is_believed_at_once_about_what_never_got_through(wire: Wire) -> None:
    """RFC 1191 section 3: what is under way goes again in smaller packets, without a timeout."""
    wire.established()
    wire.user.send([bytes(2 * MSS)])
    wire.ours(ACK, seq=1, size=MSS)
    wire.ours(PSH | ACK, seq=1461, size=MSS)
    window = wire.user.congestion.window
    router_says(wire, wire.family.mtu_for(NARROW))
    wire.ours(ACK, seq=1, size=NARROW)
    wire.ours(ACK, seq=1261, size=NARROW)
    wire.ours(PSH | ACK, seq=2521, size=400)
    assert wire.user.congestion.window == window


def test_a_router_is_doubted_about_a_size_that_got_through(wire: Wire) -> None:
    """RFC 5927 section 7.2: nothing changes as long as the connection makes progress."""
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, seq=1, size=MSS)
    wire.peer(ACK, seq=1, ack=1 + MSS)
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, seq=1 + MSS, size=MSS)
    router_says(wire, wire.family.mtu_min, seq=1 + MSS)
    wire.quiet()
    assert wire.user.mss == MSS
    wire.peer(ACK, seq=1, ack=1 + 2 * MSS)
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)


def test_a_doubted_router_is_believed_when_the_timer_expires(wire: Wire) -> None:
    """RFC 5927 section 7.2: the path has changed, and large segments do get lost now."""
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, seq=1, size=MSS)
    wire.peer(ACK, seq=1, ack=1 + MSS)
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, seq=1 + MSS, size=MSS)
    router_says(wire, wire.family.mtu_for(NARROW), seq=1 + MSS)
    wire.quiet()
    wire.after(200 * MILLISECOND).ours(ACK, seq=1 + MSS, size=NARROW)
    assert wire.path.mtu == wire.family.mtu_for(NARROW)


def test_an_idle_connection_on_a_path_that_shrinks_has_lost_nothing(wire: Wire) -> None:
    """Another connection was told: this one has nothing under way that could go again."""
    wire.established()
    wire.path.mtu = wire.family.mtu_for(NARROW)
    wire.user.fit_path()
    wire.quiet()
    assert not wire.user.snd.lost
    wire.user.send([bytes(1300)])
    wire.ours(ACK, seq=1, size=NARROW)
    wire.ours(PSH | ACK, seq=1261, size=40)


def test_a_link_that_becomes_narrower_has_lost_nothing(wire: Wire) -> None:
    """RFC 4861 section 6.3.4: a router says so. What is under way was not too large when it went;
    else whoever forges advertisements has us send everything again with each of them."""
    wire.established()
    wire.user.send([bytes(2 * MSS)])
    wire.ours(ACK, seq=1, size=MSS)
    wire.ours(PSH | ACK, seq=1461, size=MSS)
    wire.path.mtu = wire.family.mtu_for(NARROW)
    wire.tcp.link_changed(wire.family.peer)
    wire.quiet()
    assert not wire.user.snd.lost
    wire.user.send([bytes(MSS)])
    wire.ours(ACK, seq=2921, size=NARROW)
    wire.ours(PSH | ACK, seq=2921 + NARROW, size=MSS - NARROW)


def test_what_another_connection_learnt_counts_when_this_one_hears_it(wire: Wire) -> None:
    """The path knows already; the connection was half-open then."""
    wire.peer(SYN, seq=0, mss=MSS)
    wire.ours(SYN | ACK)
    wire.path.mtu = wire.family.mtu_for(NARROW)
    wire.peer(ACK, seq=1, ack=1)
    wire.path.mtu = wire.family.mtu_for(MSS)  # for the wire's own check of sizes
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)
    wire.path.mtu = wire.family.mtu_for(NARROW)
    router_says(wire, wire.family.mtu_for(NARROW))
    wire.ours(ACK, seq=1, size=NARROW)
    wire.ours(PSH | ACK, seq=1261, size=200)


def test_no_router_makes_segments_tiny(wire: Wire) -> None:
    """RFC 5927 section 7.2: 68 is what IPv4 promises, and a forger's favourite; RFC 8201 section 4:
    no IPv6 packet has to be smaller than 1280."""
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)
    router_says(wire, 68)
    wire.ignore()
    assert wire.family.mtu_for(wire.user.mss) == wire.family.mtu_min


def test_a_wider_path_is_used_again(wire: Wire) -> None:
    """RFC 1191 section 6.3: the path says when (ten minutes later: test_path_mtu.py)."""
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)
    router_says(wire, wire.family.mtu_for(NARROW))
    wire.ignore().peer(ACK, seq=1, ack=1 + MSS)
    wire.path.mtu = wire.family.mtu_for(MSS)
    wire.tcp.link_changed(wire.family.peer)
    wire.quiet()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)


# --- black holes ---------------------------------------------------------------------------------


def lost_again_and_again(wire: Wire, seq: int, sizes: tuple[int, ...]) -> None:
    """The timer expires, backing off, and what is sent again has these sizes."""
    for attempt, size in enumerate(sizes):
        wire.after((200 << attempt) * MILLISECOND).ours(ACK, seq=seq, size=size)


@pytest.mark.parametrize("offload", [False, True])
def test_a_black_hole_is_found_by_smaller_segments(wire: Wire, offload: bool) -> None:
    """RFC 2923 section 2.1: full segments vanish, and nobody says why."""
    wire.host(offload=offload).established()
    wire.user.send([bytes(4 * MSS)])
    wire.ignore()
    smaller = (1220,) if wire.family is IPV6 else (750 - 40, 552 - 40)
    lost_again_and_again(wire, 1, (MSS, MSS, *smaller))
    assert wire.counters["tcp.black_holes"] == len(smaller)
    least = smaller[-1]
    wire.peer(ACK, seq=1, ack=1 + least)
    wire.ours(ACK, seq=1 + least, size=2 * least if offload else least)
    wire.ignore()


def test_small_segments_have_no_black_hole(wire: Wire) -> None:
    """It is not the size that keeps them from arriving."""
    wire.established()
    wire.user.send([b"small"])
    wire.ours(PSH | ACK, text=b"small")
    for attempt in range(6):
        wire.after((200 << attempt) * MILLISECOND).ours(PSH | ACK, seq=1, size=5)
    assert wire.user.mss == MSS


def test_a_size_that_got_through_before_is_given_longer(wire: Wire) -> None:
    """A peer that is away for a few seconds is no black hole."""
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.ours(PSH | ACK, size=MSS)
    wire.peer(ACK, seq=1, ack=1 + MSS)
    wire.user.send([bytes(2 * MSS)])
    wire.ignore()
    half = max(wire.family.mtu_for(MSS) // 2, wire.family.mtu_min) - wire.family.mtu_for(0)
    lost_again_and_again(wire, 1 + MSS, (MSS, MSS, MSS, MSS, half))


def test_larger_segments_are_tried_again_and_then_more_rarely(wire: Wire) -> None:
    """RFC 4821 section 7.7: a path may become better; at the latest after ten minutes."""
    wire.established()
    expected = TCP_BLACK_HOLE_RETRY_AFTER
    sent = 1
    for _ in range(5):
        wire.user.send([bytes(MSS)])
        wire.ignore()
        while wire.user.mss == MSS:
            wire.after(100 * MILLISECOND).ignore()
        shrunk_at = wire.now
        assert wire.user.sizes.retry_after == expected
        sent += MSS
        wire.after(MILLISECOND).peer(ACK, seq=1, ack=sent).ignore()
        wire.after(expected - (wire.now - shrunk_at) - SECOND)
        assert wire.user.mss < MSS
        wire.after(2 * SECOND).ignore()
        assert wire.user.mss == MSS
        expected = min(4 * expected, PATH_MTU_LEARNT_FOR)


def test_larger_segments_are_not_tried_while_nothing_gets_through(wire: Wire) -> None:
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.after(2 * TCP_BLACK_HOLE_RETRY_AFTER).ignore()
    assert wire.user.mss < MSS


def test_a_connection_that_ends_leaves_no_timer_of_its_black_hole(wire: Wire) -> None:
    wire.established()
    wire.user.send([bytes(MSS)])
    wire.after(2 * SECOND).ignore()
    assert wire.user.sizes.up is not None
    wire.user.abort()
    wire.ignore()
    assert wire.user.sizes.up.deadline is None


# --- one effective MSS ---------------------------------------------------------------------------


def test_segmentation_nagle_and_the_silly_window_agree_on_the_mss(wire: Wire) -> None:
    """RFC 9293 section 3.7.1 (MUST-67): options are taken off, once, for everything. A full segment
    with timestamps is full: it waits for nothing, though it is smaller than what the SYN said."""
    wire.established(stamp=1000)
    wire.user.nodelay = False
    c = wire.user
    assert c.mss == MSS - 12 == c.congestion.mss
    c.send([bytes(3 * c.mss)])
    for index in range(3):
        wire.ours(ACK, seq=1 + index * c.mss, size=c.mss)
    wire.quiet()
