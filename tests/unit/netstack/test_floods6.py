"""Floods over IPv6, in virtual time: every table keeps to its limit, nobody is made to talk more
than he hears, and when it is over everything is as it was (RFC 4861 section 11, RFC 3756)."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    ADDRESSES_MAX,
    FRAGMENT_FLOWS_MAX,
    MLD_ANSWERS_APART,
    ND_PREFIXES_MAX,
    ND_RETRY_AFTER_MAX,
    ND_ROUTERS_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_RESOLVING_MAX,
    ROUTES_MAX,
)
from appliance.netstack.ip.v6.discovery import State
from appliance.netstack.stack import HostAddress, HostConfig
from tests.sim.flood6 import Flood6
from tests.sim.station import OUR_MAC
from tests.sim.station6 import (
    OUR_ADDRESS,
    PEER,
    PEER_ADDRESS,
    US,
    Station6,
    advertisement,
    frame,
    ip6,
    solicitation,
)

CONFIG = HostConfig(OUR_MAC, (HostAddress(OUR_ADDRESS, 64),), autoconfigure=True)
FRAMES = 1000
KINDS = (
    "router_advertisement", "neighbour", "redirect", "mld_query", "fragment", "extensions",
)  # fmt: skip


def assert_bounded(station: Station6) -> None:
    ip = station.stack.ip
    routers, reassembly = ip._ipv6._routers, ip._ipv6._reassembly
    assert len(routers._routers) <= ND_ROUTERS_MAX
    assert len(routers._prefixes) <= ND_PREFIXES_MAX
    assert len(routers._addresses) <= ND_PREFIXES_MAX
    assert len(ip.addresses) <= ADDRESSES_MAX
    assert len(ip.routes) <= ROUTES_MAX
    assert len(ip._ipv6._claims) == len([a for a in ip.addresses if len(a.address) == 16])
    assert len(ip._ipv6.neighbours) <= NEIGHBOURS_MAX
    assert len(reassembly) <= FRAGMENT_FLOWS_MAX
    assert ip._ipv6.neighbours._retry_after <= ND_RETRY_AFTER_MAX


def answers(station: Station6) -> bool:
    """To a ping of its neighbour, who has asked for it: he may have been forgotten."""
    station.exchange(solicitation())
    sent = station.exchange(frame(ip6() / ICMPv6EchoRequest()))
    return any(ICMPv6EchoReply in one and one["IPv6"].src == US for one in sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_keeps_to_the_limits_and_passes(kind: str) -> None:
    station = Station6(config=CONFIG)
    make = getattr(Flood6(Random(kind), OUR_MAC, OUR_ADDRESS), kind)
    routes = len(station.stack.ip.routes)
    talked = 0
    for _ in range(FRAMES):
        station.peer.send(make())
        station.clock.run(MILLISECOND)
        talked += len(station.peer.take())
        assert_bounded(station)
    assert talked <= FRAMES + 300, "more than it heard, and what it asks and tells of its own"
    assert answers(station)
    station.clock.run(10_000 * SECOND)
    assert answers(station)
    ip = station.stack.ip
    for_ever = [r for r in ip._ipv6._routers._prefixes.values() if r > station.clock.now() << 1]
    assert not ip._ipv6._routers._routers
    assert len(ip.routes) <= routes + len(for_ever) + len(ip._ipv6._routers._addresses)
    assert len(ip._ipv6.neighbours) <= 1


def test_what_cannot_be_learnt_is_counted() -> None:
    station = Station6(config=CONFIG)
    flood = Flood6(Random(1), OUR_MAC, OUR_ADDRESS)
    station.exchange(*(flood.router_advertisement() for _ in range(300)))
    assert station.counters["nd.too_many_routers"] > 0
    assert station.counters["nd.too_many_prefixes"] > 0
    assert station.counters["nd.not_from_link"] > 0
    assert station.counters["nd.bad_option_length"] > 0


def test_a_router_cannot_make_questions_rare() -> None:
    """A retransmission timer of 49 days: a neighbour that did not hear the first question would
    never be asked again, and nobody would be told that it is gone."""
    station = Station6(config=CONFIG)
    neighbours = station.stack.ip._ipv6.neighbours
    neighbours.set_times(0, 0xFFFF_FFFF * MILLISECOND)
    silent = ip_address("fd00::77").packed
    path = station.stack.ip.path_to(silent)
    path.send(17, [bytes(8)], 8)
    station.clock.run(SECOND)
    assert neighbours.is_resolving
    station.clock.run(4 * ND_RETRY_AFTER_MAX)
    assert not neighbours.is_resolving


def test_forged_addresses_do_not_keep_a_neighbour_from_being_found_again() -> None:
    """As many questions are under way as may be; but who has answered before is asked for."""
    station = Station6(config=CONFIG)
    path_to = station.stack.ip.path_to
    ours = path_to(PEER_ADDRESS)
    ours.send(17, [bytes(8)], 8)
    station.run(6 * SECOND)
    station.exchange(advertisement())
    assert station.stack.ip._ipv6.neighbours.state(PEER_ADDRESS) is State.REACHABLE
    station.run(300 * SECOND)
    assert station.stack.ip._ipv6.neighbours.state(PEER_ADDRESS) is None, "not wanted for long"
    for number in range(NEIGHBOURS_RESOLVING_MAX + 1):
        path_to(PEER_ADDRESS[:-2] + (0x100 + number).to_bytes(2, "big")).send(17, [bytes(8)], 8)
    assert station.counters["nd.too_many_resolving"] == 1
    ours.send(17, [b"found it"], 8)
    (packet, *_) = [f for f in station.exchange(advertisement()) if b"found it" in bytes(f)]
    assert packet[IPv6].dst == PEER


@pytest.mark.parametrize("version_1", [False, True])
def test_queries_are_answered_now_and_then(version_1: bool) -> None:
    """However many there are, and however soon they want the answer."""
    station = Station6(config=CONFIG)
    flood = Flood6(Random(2), OUR_MAC, OUR_ADDRESS)
    station.run(5 * SECOND)
    wanted = 24 if version_1 else 28
    sent = 0
    while sent < FRAMES:
        query = flood.mld_query()
        if len(query) == 14 + 40 + 8 + wanted:
            station.peer.send(query)
            sent += 1
            station.clock.run(MILLISECOND)
    groups = len(station.stack.ip._ipv6.groups.macs) - 1
    reports = len(station.peer.take())
    assert 0 < reports <= groups * (FRAMES * MILLISECOND // MLD_ANSWERS_APART + 2)
