"""SYN cookies: RFC 4987 section 3.6."""

from __future__ import annotations

from random import Random

import pytest

from appliance.clock import SECOND
from appliance.limits import TCP_SYN_COOKIE_PERIOD, TCP_SYN_RECEIVED_MAX
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.packet_size import default_mss
from appliance.netstack.tcp.state import State
from appliance.netstack.tcp.syn_cookies import SynCookies
from appliance.netstack.wire.tcp import ACK, CWR, ECE, FIN, PSH, RST, SYN, Segment
from tests.transcripts.tcp_wire import PEER_PORT, Wire

BACKLOG = 16


@pytest.fixture
def flooded(wire: Wire) -> Wire:
    """So many half-open connections that there will be no more."""
    return flood(wire)


def flood(wire: Wire, count: int = BACKLOG) -> Wire:
    wire.listener.backlog = BACKLOG
    for port in range(1024, 1024 + count):
        wire.peer_port = port
        wire.peer(SYN, seq=0)
    wire.ignore()
    wire.peer_port = PEER_PORT
    return wire


def last(wire: Wire) -> Connection:
    """The connection of the peer that came last."""
    c = wire.connection()
    assert c is not None
    return c


def test_below_the_threshold_there_are_no_cookies(wire: Wire) -> None:
    flood(wire, BACKLOG - 1).established()
    assert wire.counters["tcp.syn_cookies_sent"] == 0


def test_a_flood_leaves_nothing_behind(wire: Wire) -> None:
    """RFC 4987 section 3.6: only the backlog is kept, whatever comes."""
    flood(wire, 5000)
    assert len(wire.listener.half_open) == len(wire.tcp.connections) == BACKLOG
    assert wire.counters["tcp.syn_cookies_sent"] == 5000 - BACKLOG
    wire.after(TCP_SYN_RECEIVED_MAX + 60 * SECOND).ignore()
    assert not wire.tcp.connections


def test_an_honest_client_gets_its_connection(flooded: Wire) -> None:
    """RFC 4987 section 3.6: and may send text with the third segment at once."""
    wire = flooded
    wire.peer(SYN, seq=0, mss=1460)
    wire.ours(SYN | ACK, seq=0, ack=1)
    assert len(wire.tcp.connections) == BACKLOG
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"call")
    wire.state(State.ESTABLISHED)
    assert bytes(wire.app.text) == b"call"
    wire.user.send([b"reply"])
    wire.ours(PSH | ACK, seq=1, ack=5, text=b"reply")
    assert len(wire.listener.half_open) == BACKLOG


@pytest.mark.parametrize(
    ("mss", "used"),
    [(None, None), (0, None), (50, 88), (300, 88), (536, 536), (1459, 1440), (1460, 1460)],
)
def test_the_cookie_remembers_the_mss(flooded: Wire, mss: int | None, used: int | None) -> None:
    """Or the next smaller one that it can say: never more than the peer takes. None: what the
    family has where nobody says anything."""
    flooded.established(mss=mss)
    assert last(flooded).mss == (flooded.family.mss_default if used is None else used)


@pytest.mark.parametrize("shift", [None, 0, 1, 7, 14])
def test_the_cookie_remembers_the_window_scale(flooded: Wire, shift: int | None) -> None:
    """RFC 7323 section 2.2: as the SYN had it, or none for both."""
    wire = flooded.established(shift=shift, window=65535)
    c = last(wire)
    assert (c.scales, c.snd.shift) == (shift is not None, shift or 0)
    assert c.snd.wnd == 65535 >> (shift or 0) << (shift or 0)
    if shift is None:
        assert c.rcv.shift == 0


@pytest.mark.parametrize("sacks", [False, True])
def test_the_cookie_remembers_sack(flooded: Wire, sacks: bool) -> None:
    """RFC 2018 section 2: its bit 23."""
    assert flooded.established(sacks=sacks).user.sacks == sacks


def test_timestamps_are_used_as_the_third_segment_has_them(flooded: Wire) -> None:
    """RFC 7323 section 3.2: agreed to in the SYNs, so it is in every segment."""
    flooded.established(stamp=1000)
    c = last(flooded)
    assert c.stamps and c.stamp_recent == 1000 and c.mss == 1448
    c.send([b"x"])
    answer = flooded.ours(PSH | ACK, text=b"x")
    assert answer.timestamp is not None and answer.timestamp[1] == 1000
    assert answer.timestamp[0] >= flooded.stamp[1] if flooded.stamp else False


@pytest.mark.parametrize("permitted", [False, True])
def test_the_cookie_remembers_selective_acknowledgements(flooded: Wire, permitted: bool) -> None:
    """RFC 2018 section 2: used if both SYNs had the option."""
    flooded.peer(SYN, seq=0, mss=1460, sacks=permitted)
    assert flooded.ours(SYN | ACK).sack_permitted == permitted
    flooded.peer(ACK, seq=1, ack=1)
    assert last(flooded).sacks == permitted


def test_without_an_mss_ipv6_promises_more() -> None:
    """RFC 9293 section 3.7.1 (MUST-15)."""
    assert default_mss(bytes(2 * 4 + 4)) == 536
    assert default_mss(bytes(2 * 16 + 4)) == 1220
    cookies = SynCookies(Random(1))
    for key, expected in ((bytes(12), 536), (bytes(36), 1220)):
        cookie = cookies.make(key, Segment(1, 2, 5, 0, SYN, 0), SECOND)
        syn = cookies.syn_of(key, Segment(1, 2, 6, cookie + 1, ACK, 0), SECOND)
        assert syn is not None and syn.mss == expected


def test_ecn_is_not_agreed_to_with_a_cookie(flooded: Wire) -> None:
    """RFC 3168 section 6.1.1: there is no place for it, so the answer does not have it."""
    flooded.peer(SYN | ECE | CWR, seq=0, mss=1460)
    flooded.ours(SYN | ACK)


def test_a_repeated_syn_is_answered_again(flooded: Wire) -> None:
    """The SYN-ACK that got lost is not remembered, the SYN is repeated."""
    flooded.peer(SYN, seq=0, mss=1460)
    first = flooded.ours(SYN | ACK)
    flooded.after(SECOND).ignore()
    flooded.peer(SYN, seq=0, mss=1460)
    assert flooded.ours(SYN | ACK).seq == first.seq


def third(wire: Wire, cookie: int, seq: int = 1) -> Wire:
    """An acknowledgement of `cookie`, as on the wire."""
    segment = Segment(wire.peer_port, wire.our_port, wire.peer_isn + seq, cookie + 1, ACK, 65535)
    return wire.arrives(bytes(segment.emit()))


def test_a_guess_is_reset(flooded: Wire) -> None:
    """RFC 9293 section 3.10.7.2: an acknowledgement of nothing."""
    wire = flooded
    wire.peer(SYN, seq=0, mss=1460)
    cookie = wire.ours(SYN | ACK).seq
    random = Random(1)
    for guess in [cookie ^ 1 << bit for bit in range(32)] + [random.getrandbits(32)] * 100:
        third(wire, guess)
        wire.ours(RST)
    assert wire.counters["tcp.syn_cookies_accepted"] == 0
    third(wire, cookie, seq=2)
    wire.ours(RST)
    wire.peer_port += 1
    third(wire, cookie)
    wire.ours(RST)
    wire.peer_port -= 1
    third(wire, cookie)
    wire.state(State.ESTABLISHED)


def test_without_a_flood_no_acknowledgement_opens_a_connection(wire: Wire) -> None:
    """There is no key, so nothing to guess."""
    third(wire, 0).ours(RST)
    third(wire, 1 << 31).ours(RST)


@pytest.mark.parametrize("periods", [2, 3, 4, 7])
def test_a_cookie_is_good_for_two_periods_at_most(flooded: Wire, periods: int) -> None:
    """RFC 4987 section 3.6: or what somebody has seen long ago would open connections."""
    wire = flooded
    wire.peer(SYN, seq=0, mss=1460)
    cookie = wire.ours(SYN | ACK).seq
    wire.after(TCP_SYN_COOKIE_PERIOD).ignore()
    third(wire, cookie)
    wire.state(State.ESTABLISHED)
    wire.peer_port += 1
    wire.peer(SYN, seq=0, mss=1460)
    cookie = wire.ours(SYN | ACK).seq
    wire.after(periods * TCP_SYN_COOKIE_PERIOD).ignore()
    third(wire, cookie).ours(RST)


def test_each_period_has_its_own_key(flooded: Wire) -> None:
    """The same SYN gets other cookies, and those of long ago are worth nothing for ever."""
    wire = flooded
    cookies = set()
    for _ in range(6):
        wire.peer(SYN, seq=0, mss=1460)
        cookies.add(wire.ours(SYN | ACK).seq & (1 << 23) - 1)
        # The backlog empties in a minute, and is filled again.
        wire.after(TCP_SYN_COOKIE_PERIOD).ignore()
        flood(wire)
    assert len(cookies) == 6


@pytest.mark.parametrize("flags", [RST, RST | ACK, FIN, SYN | ACK])
def test_other_segments_open_nothing(flooded: Wire, flags: int) -> None:
    """RFC 9293 section 3.10.7.2: the steps before are as ever."""
    wire = flooded
    wire.peer(SYN, seq=0, mss=1460)
    wire.ours(SYN | ACK)
    wire.peer(flags, seq=1, ack=1).ignore()
    assert wire.connection() is None


def test_a_host_that_is_full_takes_none_of_them(wire: Wire) -> None:
    """The peer believes that it is connected; its text will be repeated until there is room."""
    wire.host(connections_max=BACKLOG + 1)
    flood(wire)
    wire.peer(SYN, seq=0, mss=1460)
    cookie = wire.ours(SYN | ACK).seq
    wire.peer_port += 1
    wire.established()
    wire.peer_port -= 1
    third(wire, cookie).quiet()
    assert wire.connection() is None
    last_one = next(c for c in wire.tcp.connections.values() if c.state is State.ESTABLISHED)
    last_one.abort()
    wire.ignore()
    third(wire, cookie).quiet()
    wire.state(State.ESTABLISHED)
