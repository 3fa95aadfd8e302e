"""Neighbour discovery: rules of RFC 4861 that one message shows, beside the conversations of
test_discovery.py."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLReport2,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.inet6 import ICMPv6ND_NA as NeighbourAdvertisement
from scapy.layers.inet6 import ICMPv6ND_NS as NeighbourSolicitation
from scapy.packet import Packet, Raw

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import ND_RETRY_AFTER
from appliance.netstack.ip.v6.discovery import Discovery, State
from appliance.netstack.stack import HostAddress
from appliance.netstack.tcp import reasons
from tests.sim.station6 import (
    OUR_GROUP,
    OUR_GROUP_AT,
    PEER,
    PEER_ADDRESS,
    PEER_AT,
    ROUTER,
    ROUTER_AT,
    US,
    Station6,
    advertisement,
    frame,
    solicitation,
)
from tests.transcripts.tcp_wire import RecordingUser

OTHER_AT = "02:00:00:00:00:99"
UNKNOWN = Raw(b"\xfe\x02" + bytes(14))
ELSEWHERE = [ICMPv6NDOptMTU(mtu=1280), ICMPv6NDOptPrefixInfo(prefix="fd00:9::", L=1, A=1)]
"""Options of router advertisements."""


def ping() -> bytes:
    return frame(IPv6(src=PEER, dst=US) / ICMPv6EchoRequest())


def asks(*options: Packet, source: str = PEER, to: str = OUR_GROUP, res: int = 0) -> bytes:
    packet = IPv6(src=source, dst=to, hlim=255) / NeighbourSolicitation(tgt=US, res=res)
    for option in options:
        packet /= option
    return frame(packet, OUR_GROUP_AT if to == OUR_GROUP else "02:00:0a:00:00:05")


def table(station: Station6) -> Discovery:
    return station.stack.ip._ipv6.neighbours


def state(station: Station6) -> State | None:
    return table(station).state(PEER_ADDRESS)


def at(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# --- what is skipped --------------------------------------------------------------------


def test_a_question_is_answered_whatever_else_is_in_it() -> None:
    """Sections 4.6, 7.1.1, 9: reserved bits, unknown options and those of other messages; in any
    order."""
    where = ICMPv6NDOptSrcLLAddr(lladdr=PEER_AT)
    for options in (
        [UNKNOWN, *ELSEWHERE, where],
        [where, UNKNOWN],
        [ICMPv6NDOptDstLLAddr(), where],
    ):
        station = Station6(known=False)
        (answer,) = station.exchange(asks(*options, res=0x7FFFFFFF))
        assert answer[NeighbourAdvertisement].tgt == US
        assert table(station).mac_of(PEER_ADDRESS) == at(PEER_AT)
        assert station.stack.ip.mtu(16) == 1500
        assert station.stack.ip.routes.next_hop(ip_address("fd00:9::1").packed) != PEER_ADDRESS


def test_an_answer_counts_whatever_else_is_in_it() -> None:
    """Sections 4.6, 7.1.2."""
    station = Station6(known=False)
    station.exchange(ping())
    said = NeighbourAdvertisement(tgt=PEER, R=0, S=1, O=1, res=0x1FFFFFFF)
    packet = IPv6(src=PEER, dst=US, hlim=255) / said / UNKNOWN
    packet = packet / ICMPv6NDOptSrcLLAddr(lladdr=OTHER_AT) / ICMPv6NDOptDstLLAddr(lladdr=PEER_AT)
    (answer,) = station.exchange(frame(packet))
    assert ICMPv6EchoReply in answer
    assert (answer.dst, state(station)) == (PEER_AT, State.REACHABLE)


def test_our_own_messages_leave_nothing_in_reserved_places() -> None:
    """Sections 4.3, 4.4."""
    station = Station6(known=False)
    (question,) = station.exchange(ping())
    (answer,) = station.exchange(asks(ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:77")))[-1:]
    assert question[NeighbourSolicitation].res == 0
    assert answer[NeighbourAdvertisement].res == 0


# --- what does not change the table -----------------------------------------------------


def test_who_does_not_say_where_he_is_is_answered_but_not_learnt() -> None:
    """Sections 7.2, 7.2.3."""
    station = Station6(known=False)
    assert NeighbourAdvertisement in station.exchange(asks(to=US))[0]
    assert NeighbourAdvertisement in station.exchange(asks(source="::"))[0]
    assert len(table(station)) == 0


def test_a_question_from_another_place_raises_a_doubt() -> None:
    """Section 7.2.3: the new MAC address is taken, and the state is STALE."""
    station = Station6(known=False)
    station.exchange(ping())
    station.exchange(advertisement())
    assert state(station) is State.REACHABLE
    station.exchange(solicitation(mac=OTHER_AT))
    assert (state(station), table(station).mac_of(PEER_ADDRESS)) == (State.STALE, at(OTHER_AT))


@pytest.mark.parametrize("override", [0, 1])
def test_only_one_who_may_override_changes_what_is_in_doubt(override: int) -> None:
    """Section 7.2.5, I b and II."""
    station = Station6()
    assert state(station) is State.STALE
    station.exchange(advertisement(mac=OTHER_AT, override=override))
    mac, after = (OTHER_AT, State.REACHABLE) if override else (PEER_AT, State.STALE)
    assert (table(station).mac_of(PEER_ADDRESS), state(station)) == (at(mac), after)


def test_redirects_are_not_heeded() -> None:
    """Section 8.1: valid ones neither. Nobody tells a server which way to go."""
    station = Station6()
    packet = IPv6(src=ROUTER, dst=US, hlim=255)
    packet /= ICMPv6ND_Redirect(tgt="fe80::77", dst="2001:db8::9")
    packet /= ICMPv6NDOptDstLLAddr(lladdr=OTHER_AT)
    assert not station.exchange(frame(packet, source=ROUTER_AT))
    assert station.counters["nd.ignored"] == 1
    assert table(station).mac_of(ip_address("fe80::77").packed) is None


# --- questions of ours ------------------------------------------------------------------


def test_a_neighbour_is_asked_once_in_a_second_however_many_packets_wait() -> None:
    """Sections 7.2.2, 7.3.3: RetransTimer."""
    station = Station6(known=False)
    times: list[int] = []
    for _ in range(100):
        station.peer.send(ping())
        frames = station.run(50 * MILLISECOND)
        times += [station.clock.now() for f in frames if NeighbourSolicitation in f]
    assert len(times) >= 4
    gaps = [later - before for before, later in pairwise(times)]
    assert min(gaps) >= ND_RETRY_AFTER - 50 * MILLISECOND


def test_who_connects_to_a_neighbour_that_does_not_answer_is_told() -> None:
    """Section 7.2.2: address unreachable."""
    station = Station6(known=False)
    user = RecordingUser()
    station.stack.tcp.connect(PEER_ADDRESS, 80, user, station.clock.now())
    station.host.act()
    station.run(10 * SECOND)
    assert user.endings == [reasons.HOST_UNREACHABLE]


# --- groups -----------------------------------------------------------------------------


def test_the_group_of_an_address_is_joined_before_it_is_asked_for() -> None:
    """Section 7.2.1; RFC 4862 section 5.4.2."""
    station = Station6(started=False)
    frames = [f for f in station.run(MILLISECOND) if f[IPv6].dst != "ff02::2"]
    reports = [i for i, f in enumerate(frames) if ICMPv6MLReport2 in f or f[IPv6].nh == 0]
    questions = [i for i, f in enumerate(frames) if NeighbourSolicitation in f]
    assert reports and questions and reports[0] < questions[0]
    for group in (OUR_GROUP, "ff02::1"):
        assert ip_address(group).packed in station.stack.ip._ipv6.groups


def test_a_group_of_several_addresses_is_left_with_the_last() -> None:
    """Section 7.2.1. Our link-local address is asked for in the same group."""
    station = Station6()
    ip = station.stack.ip
    other = HostAddress(ip_address("fd00:0:0:1::5").packed, 64)
    assert ip.add_address(other, station.clock.now())
    station.run(3 * SECOND)
    ip.remove_address(other.address)
    (answer,) = station.exchange(solicitation())
    assert answer[NeighbourAdvertisement].tgt == US
    ip.remove_address(ip_address("fe80::aff:fe00:5").packed)
    (answer,) = station.exchange(solicitation())
    assert answer[NeighbourAdvertisement].tgt == US
    ip.remove_address(ip_address(US).packed)
    (left,) = station.exchange(solicitation())
    assert left[ICMPv6MLDMultAddrRec].dst == OUR_GROUP
    assert ip_address(OUR_GROUP).packed not in ip._ipv6.groups


def test_who_has_never_advertised_may_stop_being_a_router() -> None:
    """RFC 4861 section 7.2.5: the flag is believed of any neighbour; only a router of ours goes."""
    station = Station6()
    station.exchange(advertisement(router=1))
    station.exchange(advertisement(router=0))
    assert len(station.exchange(frame(IPv6(src=PEER, dst=US) / ICMPv6EchoRequest()))) == 1
