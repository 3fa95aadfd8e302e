"""What routers advertise (RFC 4861 section 6.3), and the addresses that are made of it (RFC 4862
section 5.5), as conversations."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_chksum,
)
from scapy.layers.inet6 import ICMPv6ND_NS as NeighbourSolicitation
from scapy.layers.inet6 import ICMPv6ND_RA as RouterAdvertisement
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from appliance.clock import SECOND
from appliance.limits import ND_SOLICITATION_AFTER, ND_SOLICITATIONS_MAX
from appliance.netstack.ip.addresses import AddressState
from appliance.netstack.ip.v6.discovery import Discovery, State
from appliance.netstack.stack import HostConfig
from tests.sim.station import OUR_MAC
from tests.sim.station6 import (
    ALL_NODES_AT,
    OUR_LINK_LOCAL,
    OURS6,
    ROUTER,
    ROUTER_AT,
    US_AT,
    Station6,
    advertisement,
    frame,
)

OTHER, OTHER_AT = "fe80::fd", "02:00:00:00:00:fd"
FAR = "2001:db8:9::9"
MADE = "2001:db8::aff:fe00:5"
HOUR = 3600
FOR_EVER = 0xFFFFFFFF

ALONE = HostConfig(OUR_MAC, autoconfigure=True)


def says(
    *options: Packet,
    source: str = ROUTER,
    mac: str | None = ROUTER_AT,
    hlim: int = 255,
    **fields: Any,
) -> bytes:
    """A router advertisement. Nothing in it is said but a lifetime, unless `fields` do."""
    quiet = {"chlim": 0, "routerlifetime": 1800, "reachabletime": 0, "retranstimer": 0}
    message = IPv6(src=source, dst="ff02::1", hlim=hlim)
    message /= RouterAdvertisement(**{**quiet, **fields})
    for option in ([] if mac is None else [ICMPv6NDOptSrcLLAddr(lladdr=mac)]) + list(options):
        message /= option
    return frame(message, ALL_NODES_AT, mac or ROUTER_AT)


def prefix(network: str = "2001:db8::", **fields: Any) -> Packet:
    usual = {"prefixlen": 64, "L": 1, "A": 1, "validlifetime": 4 * HOUR}
    usual |= {"preferredlifetime": HOUR}
    return ICMPv6NDOptPrefixInfo(prefix=network, **{**usual, **fields})


def ping(source: str, to: str = MADE) -> bytes:
    return frame(IPv6(src=source, dst=to) / ICMPv6EchoRequest(), source=ROUTER_AT)


def table(station: Station6) -> Discovery:
    return station.stack.ip._ipv6.neighbours


def state(station: Station6, address: str) -> State | None:
    return table(station).state(ip_address(address).packed)


def address_state(station: Station6, address: str = MADE) -> AddressState | None:
    return station.stack.ip.addresses.state(ip_address(address).packed)


def next_hop(station: Station6, destination: str = FAR) -> str | None:
    hop = station.stack.ip.routes.next_hop(ip_address(destination).packed)
    return None if hop is None else str(ip_address(hop))


def listening() -> Station6:
    """A host that has asked in vain, and has its link-local address only."""
    station = Station6(config=ALONE, known=False)
    station.run(20 * SECOND)
    return station


def configured(*options: Packet) -> Station6:
    """One that has an address of its own making, too."""
    station = listening()
    station.exchange(says(*(options or (prefix(),))))
    station.run(3 * SECOND)
    assert address_state(station) is AddressState.PREFERRED
    return station


# --- questions --------------------------------------------------------------------------


def asked(frames: list[Packet]) -> list[Packet]:
    return [f for f in frames if ICMPv6ND_RS in f]


def test_routers_are_asked_for_three_times() -> None:
    """RFC 4861 section 6.3.7, with what section 4.1 wants in the question."""
    questions = asked(Station6(config=ALONE, started=False).run(60 * SECOND))
    assert len(questions) == ND_SOLICITATIONS_MAX
    for question in questions:
        assert (question[IPv6].src, question[IPv6].dst) == (OUR_LINK_LOCAL, "ff02::2")
        assert (question[IPv6].hlim, question[ICMPv6ND_RS].res) == (255, 0)
        assert question[ICMPv6NDOptSrcLLAddr].lladdr == US_AT


def test_an_answer_ends_the_questions() -> None:
    """RFC 4861 section 6.3.7."""
    station = Station6(config=ALONE, started=False)
    assert len(asked(station.run(2 * SECOND))) == 1
    station.exchange(says())
    assert not asked(station.run(10 * ND_SOLICITATION_AFTER))


def test_a_host_that_was_told_everything_does_not_listen() -> None:
    """Nor does any host answer a router's question, or send advertisements."""
    station = Station6(config=OURS6)
    station.exchange(says(prefix()))
    assert station.counters["nd.ignored"] == 1
    assert address_state(station) is None
    question = IPv6(src="fe80::7", dst="ff02::2", hlim=255) / ICMPv6ND_RS()
    to_all = IPv6(src="fe80::7", dst="ff02::1", hlim=255) / ICMPv6ND_RS()
    assert not station.exchange(frame(question, "33:33:00:00:00:02"), frame(to_all, ALL_NODES_AT))


# --- what is believed -------------------------------------------------------------------

BAD = [
    ("nd.bad_source", says(source="2001:db8::fe")),
    ("nd.not_from_link", says(hlim=254)),
    ("nd.not_from_link", says(code=1)),
    ("icmpv6.bad_checksum", says(cksum=1)),
    ("nd.truncated", frame(IPv6(src=ROUTER, dst="ff02::1", hlim=255) / Raw(b""), ALL_NODES_AT)),
    ("nd.bad_option_length", says(Raw(bytes(8)))),
    ("nd.bad_option_length", says(Raw(b"\x0e\x02" + bytes(6)))),
]


def cut_to_twelve_bytes() -> bytes:
    """With a good checksum."""
    packet = Ether(says(mac=None))[IPv6]
    short = IPv6(src=ROUTER, dst="ff02::1", hlim=255, nh=58)
    message = bytearray(bytes(packet)[40:52])
    message[2:4] = b"\0\0"
    total: int = in6_chksum(58, short / Raw(bytes(message)), bytes(message))  # type: ignore[no-untyped-call]
    message[2:4] = total.to_bytes(2, "big")
    return frame(short / Raw(bytes(message)), ALL_NODES_AT, ROUTER_AT)


@pytest.mark.parametrize(("reason", "bad"), BAD)
def test_a_bad_advertisement_is_dropped(reason: str, bad: bytes) -> None:
    """RFC 4861 section 6.1.2."""
    station = listening()
    station.exchange(cut_to_twelve_bytes() if reason == "nd.truncated" else bad)
    assert station.counters[reason] == 1
    assert next_hop(station) is None


def test_what_a_host_does_not_know_in_an_advertisement_is_skipped() -> None:
    """RFC 4861 section 6.1.2: reserved bits, unknown options, options of other messages."""
    station = listening()
    target = Raw(b"\x02\x01\x02\x00\x00\x00\x00\x99")
    station.exchange(says(Raw(b"\xfe\x01" + bytes(6)), target, prefix(res1=63, res2=7), res=31))
    assert next_hop(station) == ROUTER
    assert address_state(station) is AddressState.TENTATIVE


def test_a_router_is_a_neighbour_in_doubt() -> None:
    """RFC 4861 section 6.3.4: STALE, when it is new and when its address is another."""
    station = listening()
    station.exchange(says(mac=None))
    assert state(station, ROUTER) is None, "it has not said where it is"
    station.exchange(says())
    assert state(station, ROUTER) is State.STALE
    station = configured()
    answers = station.exchange(ping(FAR))
    assert (answers[0].dst, state(station, ROUTER)) == (ROUTER_AT, State.DELAY)
    station.exchange(advertisement(ROUTER, ROUTER_AT, router=1, to=OUR_LINK_LOCAL))
    station.exchange(says())
    assert state(station, ROUTER) is State.REACHABLE, "the same again says nothing new"
    station.exchange(says(mac="02:00:00:00:00:ee"))
    assert state(station, ROUTER) is State.STALE


# --- routers ----------------------------------------------------------------------------


def test_a_router_is_used_as_long_as_it_says() -> None:
    """RFC 4861 sections 6.3.4, 6.3.5: until its lifetime is over, or it says zero."""
    station = configured(prefix(validlifetime=FOR_EVER, preferredlifetime=FOR_EVER))
    assert next_hop(station) == ROUTER
    station.run(1000 * SECOND)
    station.exchange(says())
    station.run(1700 * SECOND)
    assert next_hop(station) == ROUTER, "each advertisement begins it anew"
    station.run(101 * SECOND)
    assert next_hop(station) is None
    station.exchange(says())
    assert next_hop(station) == ROUTER
    station.exchange(says(routerlifetime=0))
    assert next_hop(station) is None


def test_paths_follow_when_a_router_goes() -> None:
    """RFC 4861 sections 6.3.4, 6.3.5: two are kept, and nothing goes to the one that is gone."""
    station = configured()
    station.exchange(says(source=OTHER, mac=OTHER_AT))
    assert station.exchange(ping(FAR))[0].dst == ROUTER_AT
    station.exchange(says(routerlifetime=0))
    assert station.exchange(ping(FAR))[0].dst == OTHER_AT


def test_a_router_that_resigns_is_none() -> None:
    """RFC 4861 sections 7.2.5, 7.3.3: its own advertisement says that it is a host."""
    station = configured()
    station.exchange(says(source=OTHER, mac=OTHER_AT))
    station.exchange(ping(FAR))
    station.exchange(advertisement(ROUTER, ROUTER_AT, router=0, to=OUR_LINK_LOCAL))
    assert next_hop(station) == OTHER
    assert station.exchange(ping(FAR))[0].dst == OTHER_AT


def test_a_question_of_a_router_does_not_make_it_a_host() -> None:
    """RFC 4861 section 7.2.3: a solicitation says nothing about that."""
    station = configured()
    question = IPv6(src=ROUTER, dst=OUR_LINK_LOCAL, hlim=255)
    question /= NeighbourSolicitation(tgt=OUR_LINK_LOCAL) / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_AT)
    station.exchange(frame(question, source=ROUTER_AT))
    station.exchange(ping(FAR))
    station.run(20 * SECOND)
    assert station.counters["nd.no_answer"] == 1
    assert next_hop(station) == ROUTER, "the only one"
    assert table(station)._object(ip_address(ROUTER).packed).is_router


def test_another_router_comes_first_when_one_does_not_answer() -> None:
    """RFC 4861 section 6.3.6."""
    station = configured()
    station.exchange(says(source=OTHER, mac=OTHER_AT))
    station.exchange(ping(FAR))
    station.run(20 * SECOND)
    assert next_hop(station) == OTHER


# --- what one router leaves unsaid -------------------------------------------------------


def test_what_an_advertisement_leaves_open_stays_as_it_was() -> None:
    """RFC 4861 section 6.3.4: zero is not the default, and one advertisement does not undo
    another."""
    station = configured()
    station.exchange(says(ICMPv6NDOptMTU(mtu=1400), chlim=7, reachabletime=5000, retranstimer=3000))
    station.exchange(says(source=OTHER, mac=OTHER_AT))
    ip = station.stack.ip
    assert (ip._ipv6._routers.hop_limit, ip.mtu(16)) == (7, 1400)
    assert table(station)._reachable_base == 5 * SECOND
    assert table(station)._retry_after == 3 * SECOND
    assert next_hop(station) == ROUTER
    assert address_state(station) is AddressState.PREFERRED


@pytest.mark.parametrize("mtu", [1279, 9000])
def test_an_mtu_that_cannot_be_is_not_used(mtu: int) -> None:
    """RFC 4861 section 6.3.4: not less than 1280, and not more than the link has."""
    station = configured()
    station.exchange(says(ICMPv6NDOptMTU(mtu=mtu)))
    assert station.stack.ip.mtu(16) == 1500


def test_a_prefix_that_does_not_say_on_link_says_nothing_about_it() -> None:
    """RFC 4861 sections 4.6.2, 6.3.4: neither that it is, nor that it is not."""
    station = configured(prefix())
    assert next_hop(station, "2001:db8::9") == "2001:db8::9"
    station.exchange(says(prefix(L=0, validlifetime=0)))
    assert next_hop(station, "2001:db8::9") == "2001:db8::9"
    station.exchange(says(prefix("2001:db8:5::", L=0)))
    assert next_hop(station, "2001:db8:5::9") == ROUTER
    station.exchange(says(prefix(validlifetime=0, preferredlifetime=0)))
    assert next_hop(station, "2001:db8::9") == ROUTER, "only this takes it back"


# --- addresses --------------------------------------------------------------------------


def test_an_address_is_made_of_a_prefix_and_tested_before_it_is_used() -> None:
    """RFC 4862 sections 5.5.3 (d), 5.4."""
    station = listening()
    frames = station.exchange(says(prefix()))
    probes = [f for f in frames if NeighbourSolicitation in f]
    assert [(p[IPv6].src, p[NeighbourSolicitation].tgt) for p in probes] == [("::", MADE)]
    assert address_state(station) is AddressState.TENTATIVE
    assert not station.exchange(ping(ROUTER))
    station.run(3 * SECOND)
    assert ICMPv6EchoReply in station.exchange(ping(ROUTER))[0]


@pytest.mark.parametrize(
    "option",
    [
        prefix(A=0),
        prefix("fe80::"),
        prefix(preferredlifetime=5 * HOUR),
        prefix(prefixlen=63),
        prefix(prefixlen=65),
        prefix(validlifetime=0, preferredlifetime=0),
    ],
)
def test_some_prefixes_make_no_address(option: Packet) -> None:
    """RFC 4862 section 5.5.3 (a) to (d)."""
    station = listening()
    station.exchange(says(option))
    ours = [str(ip_address(a.address)) for a in station.stack.ip.addresses]
    assert ours == [OUR_LINK_LOCAL]


@pytest.mark.parametrize(
    ("advertised", "left"),
    [(60, 2 * HOUR), (3 * HOUR, 3 * HOUR), (8 * HOUR, 8 * HOUR), (FOR_EVER, 10**9)],
)
def test_a_forged_lifetime_does_not_take_an_address_away_at_once(
    advertised: int, left: int
) -> None:
    """RFC 4862 section 5.5.3 (e): two hours stay."""
    station = configured()
    station.exchange(says(prefix(validlifetime=advertised, preferredlifetime=60)))
    until = station.stack.ip._ipv6._routers._addresses[ip_address(MADE).packed].valid_until
    seconds = (until - station.clock.now()) // SECOND
    assert seconds > left if advertised == FOR_EVER else seconds in (left - 1, left)
    station.run(min(left - 10, 9 * HOUR) * SECOND)
    assert address_state(station) is AddressState.DEPRECATED


def test_a_deprecated_address_still_answers_from_itself() -> None:
    """RFC 4862 section 5.5.4: whatever is sent to it is taken; it is only not chosen first."""
    station = configured()
    station.run(HOUR * SECOND)
    assert address_state(station) is AddressState.DEPRECATED
    station.exchange(says())
    syn = IPv6(src=ROUTER, dst=MADE) / TCP(sport=700, dport=9, flags="S")
    answers = station.exchange(ping(ROUTER), frame(syn, source=ROUTER_AT))
    assert [a[IPv6].src for a in answers if TCP in a or ICMPv6EchoReply in a] == [MADE] * 2
    second = prefix("2001:db8:7::", validlifetime=FOR_EVER, preferredlifetime=FOR_EVER)
    station.exchange(says(second))
    station.run(3 * SECOND)
    chosen = station.stack.ip.addresses.source_for(ip_address(FAR).packed)
    assert chosen == ip_address("2001:db8:7::aff:fe00:5").packed


def test_an_address_whose_time_is_over_is_not_ours() -> None:
    """RFC 4862 section 5.5.4: nothing is received at it, or sent from it."""
    station = configured()
    station.run(4 * HOUR * SECOND)
    assert address_state(station) is None
    station.exchange(says())
    assert not station.exchange(ping(ROUTER))
    assert address_state(station, OUR_LINK_LOCAL) is AddressState.PREFERRED, "for ever"


def test_an_address_that_was_given_needs_no_router() -> None:
    """And what routers say does not touch it."""
    station = Station6(config=replace(OURS6, autoconfigure=True))
    station.exchange(says(prefix("fd00::", validlifetime=60, preferredlifetime=60)))
    station.run(100 * SECOND)
    assert address_state(station, "fd00::5") is AddressState.PREFERRED
