"""What routers advertise (RFC 4861 section 6.3), the addresses that are made of it (RFC 4862), and
the groups that routers are told of (RFC 3810)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.inet6 import ICMPv6ND_NS as NeighbourSolicitation
from scapy.layers.inet6 import ICMPv6ND_RA as Advertisement
from scapy.layers.inet6 import ICMPv6ND_RS as RouterSolicitation
from scapy.packet import Packet

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    MLD_OLDER_VERSION_FOR,
    ND_PREFIXES_MAX,
    ND_ROUTERS_MAX,
    ROUTES_MAX,
)
from appliance.netstack.ip.addresses import AddressState
from appliance.netstack.ip.v6.router import identifier
from appliance.netstack.stack import HostConfig
from appliance.netstack.wire.mld import response_delay
from tests.sim.station import OUR_MAC
from tests.sim.station6 import (
    ALL_NODES_AT,
    OUR_GROUP,
    OUR_LINK_LOCAL,
    OURS6,
    ROUTER,
    ROUTER_AT,
    Station6,
    advertisement,
    frame,
)

AUTOMATIC = HostConfig(OUR_MAC, autoconfigure=True)
PREFIX = "2001:db8:7::"
MADE = "2001:db8:7::aff:fe00:5"
FAR = "2001:db8:99::1"
FOREVER = 0xFFFF_FFFF
HOUR = 3600


def prefix(
    text: str = PREFIX, valid: int = 4 * HOUR, preferred: int = HOUR, length: int = 64, **flags: int
) -> Packet:
    return ICMPv6NDOptPrefixInfo(
        prefix=text,
        prefixlen=length,
        L=flags.get("L", 1),
        A=flags.get("A", 1),
        validlifetime=valid,
        preferredlifetime=preferred,
    )


def advertised(
    *options: Packet, source: str = ROUTER, lifetime: int = 1800, hlim: int = 255, **fields: int
) -> bytes:
    """A router advertisement to all nodes."""
    packet: Packet = IPv6(src=source, dst="ff02::1", hlim=hlim)
    packet /= Advertisement(routerlifetime=lifetime, **fields)  # type: ignore[arg-type]
    for option in options:
        packet /= option
    return frame(packet, ALL_NODES_AT, ROUTER_AT)


def station() -> Station6:
    """Without an address, and told nothing yet."""
    return Station6(config=AUTOMATIC, known=False)


def state(host: Station6, address: str = MADE) -> AddressState | None:
    return host.stack.ip.addresses.state(ip_address(address).packed)


def next_hop(host: Station6, destination: str = FAR) -> str | None:
    hop = host.stack.ip.routes.next_hop(ip_address(destination).packed)
    return None if hop is None else str(ip_address(hop))


# --- routers --------------------------------------------------------------------------


def test_routers_are_asked_for_three_times_from_the_link_local_address() -> None:
    host = Station6(config=AUTOMATIC, started=False)
    asked = [p for p in host.run(30 * SECOND) if RouterSolicitation in p]
    assert len(asked) == 3
    assert {(p[IPv6].src, p[IPv6].dst, p[IPv6].hlim) for p in asked} == {
        (OUR_LINK_LOCAL, "ff02::2", 255)
    }
    assert asked[0][ICMPv6NDOptSrcLLAddr].lladdr == OUR_MAC.hex(":")


def test_an_answer_ends_the_asking() -> None:
    host = Station6(config=AUTOMATIC, started=False)
    host.run(2 * SECOND)
    host.exchange(advertised())
    assert not [p for p in host.run(30 * SECOND) if RouterSolicitation in p]


def test_an_address_is_made_tested_and_used_over_the_router() -> None:
    host = station()
    mac = ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_AT)
    host.exchange(advertised(prefix(), ICMPv6NDOptMTU(mtu=1400), mac, chlim=33))
    assert state(host) is AddressState.TENTATIVE
    host.run(2 * SECOND)
    assert state(host) is AddressState.PREFERRED
    (answer,) = host.exchange(frame(IPv6(src=FAR, dst=MADE) / ICMPv6EchoRequest()))
    assert ICMPv6EchoReply in answer and answer.dst == ROUTER_AT, "its MAC was in what it said"
    assert answer[IPv6].hlim == 33
    assert host.stack.ip.path_to(ip_address(FAR).packed).mtu == 1400
    assert next_hop(host, "2001:db8:7::99") == "2001:db8:7::99", "the prefix is on the link"


def test_who_has_not_asked_for_it_believes_no_router() -> None:
    host = Station6(config=OURS6)
    host.exchange(advertised(prefix()))
    assert state(host) is None
    assert host.counters["nd.ignored"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        advertised(prefix(), hlim=254),
        advertised(prefix(), source="2001:db8::1"),
        advertised(prefix(length=65)),
        advertised(prefix(preferred=5 * HOUR)),
        advertised(prefix(valid=0, preferred=0)),
        advertised(prefix("fe80::")),
        advertised(prefix("ff02::")),
        advertised(prefix(A=0)),
    ],
)
def test_of_what_must_not_be_used_no_address_is_made(bad: bytes) -> None:
    """RFC 4861 section 6.1.2, RFC 4862 section 5.5.3."""
    host = station()
    before = len(host.stack.ip.addresses)
    host.exchange(bad)
    assert len(host.stack.ip.addresses) == before


@pytest.mark.parametrize(
    "bad", [prefix("fe80::"), prefix("ff02::"), prefix(length=129), prefix(length=255)]
)
def test_of_what_is_no_prefix_no_route_is_made(bad: Packet) -> None:
    """RFC 4861 section 6.3.4. Link-local addresses are on the link anyway, and stay there."""
    host = station()
    host.exchange(advertised())
    before = len(host.stack.ip.routes)
    host.exchange(advertised(bad))
    assert len(host.stack.ip.routes) == before


def test_a_prefix_that_is_told_again_stays_for_longer_and_then_goes() -> None:
    """RFC 4861 section 6.3.4: its lifetime begins again."""
    host = station()
    host.exchange(advertised())
    before = len(host.stack.ip.routes)
    for _ in range(2):
        host.exchange(advertised(prefix(valid=100, preferred=100, A=0)))
        host.run(60 * SECOND)
        assert len(host.stack.ip.routes) == before + 1
    host.run(60 * SECOND)
    assert len(host.stack.ip.routes) == before


def test_an_mtu_that_cannot_be_is_ignored() -> None:
    host = station()
    for mtu in (1279, 9000, 0):
        host.exchange(advertised(ICMPv6NDOptMTU(mtu=mtu)))
        assert host.stack.ip.mtu(16) == 1500


def test_a_router_goes_when_its_time_is_over_or_when_it_says_so() -> None:
    host = station()
    host.exchange(advertised(lifetime=100))
    assert next_hop(host) == ROUTER
    host.run(101 * SECOND)
    assert next_hop(host) is None
    host.exchange(advertised())
    assert next_hop(host) == ROUTER
    host.exchange(advertised(lifetime=0))
    assert next_hop(host) is None


def test_a_router_that_resigns_is_none_any_more() -> None:
    """RFC 4861 section 7.2.5: its router flag is gone."""
    host = station()
    host.exchange(advertised(ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_AT)))
    answer = advertisement(ROUTER, ROUTER_AT, router=0, to=OUR_LINK_LOCAL)
    host.exchange(answer)
    assert next_hop(host) is None


def test_a_router_that_does_not_answer_makes_room_for_another() -> None:
    host = station()
    other, other_at = "fe80::fd", "02:00:00:00:00:fd"
    host.exchange(advertised(prefix(), ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_AT)))
    packet = IPv6(src=other, dst="ff02::1", hlim=255) / Advertisement(routerlifetime=1800)
    packet /= ICMPv6NDOptSrcLLAddr(lladdr=other_at)
    host.exchange(frame(packet, ALL_NODES_AT, other_at))
    host.run(2 * SECOND)
    assert next_hop(host) == ROUTER
    ping = frame(IPv6(src=FAR, dst=MADE) / ICMPv6EchoRequest())
    (answer,) = host.exchange(ping)
    assert answer.dst == ROUTER_AT
    asked = [p for p in host.run(20 * SECOND) if NeighbourSolicitation in p]
    assert [p[NeighbourSolicitation].tgt for p in asked] == [ROUTER] * 3
    assert next_hop(host) == other
    (answer,) = host.exchange(ping)
    assert answer.dst == other_at


# --- lifetimes ------------------------------------------------------------------------


def test_an_address_is_deprecated_and_then_removed() -> None:
    host = station()
    host.exchange(advertised(prefix(valid=100, preferred=50)))
    host.run(49 * SECOND)
    assert state(host) is AddressState.PREFERRED
    host.run(2 * SECOND)
    assert state(host) is AddressState.DEPRECATED
    assert next_hop(host, "2001:db8:7::99") == "2001:db8:7::99"
    host.run(50 * SECOND)
    assert state(host) is None
    assert next_hop(host, "2001:db8:7::99") == ROUTER


def test_an_advertisement_renews_what_it_says_again() -> None:
    host = station()
    host.exchange(advertised(prefix(valid=100, preferred=50)))
    host.run(60 * SECOND)
    assert state(host) is AddressState.DEPRECATED
    host.exchange(advertised(prefix(valid=100, preferred=50)))
    assert state(host) is AddressState.PREFERRED
    host.run(45 * SECOND)
    assert state(host) is AddressState.PREFERRED


def test_what_is_for_ever_stays() -> None:
    host = station()
    host.exchange(advertised(prefix(valid=FOREVER, preferred=FOREVER)))
    host.run(100_000 * SECOND)
    assert state(host) is AddressState.PREFERRED


@pytest.mark.parametrize(
    ("first", "second", "gone_after"),
    [
        (4 * HOUR, 0, 2 * HOUR),
        (4 * HOUR, 60, 2 * HOUR),
        (HOUR, 60, HOUR),
        (HOUR, 3 * HOUR, 3 * HOUR),
        (4 * HOUR, 3 * HOUR, 3 * HOUR),
    ],
)
def test_a_forged_advertisement_leaves_an_address_two_hours(
    first: int, second: int, gone_after: int
) -> None:
    """RFC 4862 section 5.5.3 (e)."""
    host = station()
    host.exchange(advertised(prefix(valid=first, preferred=60)))
    host.run(2 * SECOND)
    host.exchange(advertised(prefix(valid=second, preferred=0)))
    assert state(host) is AddressState.DEPRECATED
    host.run((gone_after - 10) * SECOND)
    assert state(host) is AddressState.DEPRECATED
    host.run(20 * SECOND)
    assert state(host) is None


def test_a_duplicate_is_not_used_and_not_made_again() -> None:
    host = station()
    host.exchange(advertised(prefix()))
    rival = advertisement(MADE, ROUTER_AT, solicited=0, to="ff02::1", sender_at=ROUTER_AT)
    host.exchange(rival)
    assert state(host) is AddressState.DUPLICATED
    host.exchange(advertised(prefix()))
    assert not [p for p in host.run(5 * SECOND) if NeighbourSolicitation in p]


def test_a_flood_of_routers_and_prefixes_is_bounded() -> None:
    host = station()
    for number in range(200):
        many = [prefix(f"2001:db8:{number:x}:{n:x}::") for n in range(4)]
        host.exchange(advertised(*many, source=f"fe80::{number + 1:x}"))
    assert host.counters["nd.too_many_routers"] == 200 - ND_ROUTERS_MAX
    assert host.counters["nd.too_many_prefixes"] > 0
    assert len(host.stack.ip.addresses) <= ND_PREFIXES_MAX + 1
    assert len(host.stack.ip.routes) <= ROUTES_MAX
    host.run(5 * HOUR * SECOND)
    assert len(host.stack.ip.addresses) == 1, "the link-local one is left"


def test_an_identifier_is_made_of_the_mac_address() -> None:
    assert identifier(bytes.fromhex("021122334455")).hex(":", 2) == "0011:22ff:fe33:4455"


# --- groups ---------------------------------------------------------------------------


def reports(frames: list[Packet]) -> list[tuple[int, str]]:
    """The records of version 2 reports."""
    return [
        (record.rtype, record.dst)
        for f in frames
        if ICMPv6MLReport2 in f
        for record in f[ICMPv6MLReport2].records
        if isinstance(record, ICMPv6MLDMultAddrRec)
    ]


def query(message: Packet, to: str = "ff02::1", source: str = ROUTER, hlim: int = 1) -> bytes:
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert(otype=5, value=0)])
    packet = IPv6(src=source, dst=to, hlim=hlim) / alert / message
    return frame(packet, ALL_NODES_AT if to == "ff02::1" else "33:33:ff:00:00:05", ROUTER_AT)


def test_a_group_that_is_joined_is_told_twice() -> None:
    host = Station6(started=False)
    frames = host.run(10 * SECOND)
    told = reports(frames)
    assert set(told) == {(4, OUR_GROUP)}, "both addresses are asked for in one group"
    assert len(told) == 2
    (first, *_) = [f for f in frames if ICMPv6MLReport2 in f]
    assert (first[IPv6].src, first[IPv6].dst, first[IPv6].hlim) == ("::", "ff02::16", 1)
    assert first[RouterAlert].value == 0, "so that routers look at it"
    wanted = first[ICMPv6MLReport2].cksum
    del first[ICMPv6MLReport2].cksum
    assert type(first)(bytes(first))[ICMPv6MLReport2].cksum == wanted


@pytest.mark.parametrize("group", ["::", OUR_GROUP])
def test_a_query_is_answered_within_its_time_and_once_for_all(group: str) -> None:
    host = Station6()
    asked = query(ICMPv6MLQuery2(mrd=1000, mladdr=group), "ff02::1" if group == "::" else group)
    for _ in range(20):
        host.peer.send(asked)
    assert reports(host.run(SECOND + MILLISECOND)) == [(2, OUR_GROUP)]


def test_a_querier_of_version_1_is_answered_in_its_own_words() -> None:
    """RFC 3810 section 8.2.1: as long as there is one."""
    host = Station6()
    asked = query(ICMPv6MLQuery(mrd=100))
    host.peer.send(asked)
    (report,) = [f for f in host.run(SECOND) if ICMPv6MLReport in f]
    assert (report[IPv6].dst, report[ICMPv6MLReport].mladdr) == (OUR_GROUP, OUR_GROUP)
    host.stack.ip.remove_address(ip_address("fd00::5").packed)
    host.stack.ip.remove_address(ip_address(OUR_LINK_LOCAL).packed)
    (done,) = [f for f in host.run(SECOND) if ICMPv6MLDone in f]
    assert (done[IPv6].dst, done[ICMPv6MLDone].mladdr) == ("ff02::2", OUR_GROUP)


def test_version_2_is_spoken_again_when_the_old_querier_is_gone() -> None:
    host = Station6()
    host.peer.send(query(ICMPv6MLQuery(mrd=100)))
    host.run(MLD_OLDER_VERSION_FOR + SECOND)
    host.stack.ip.remove_address(ip_address("fd00::5").packed)
    assert not reports(host.run(SECOND)), "the link-local address still needs the group"
    host.stack.ip.remove_address(ip_address(OUR_LINK_LOCAL).packed)
    assert reports(host.run(SECOND)) == [(3, OUR_GROUP)]


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("mld.not_from_link", query(ICMPv6MLQuery2(), hlim=2)),
        ("mld.not_from_link", query(ICMPv6MLQuery2(), source="2001:db8::1")),
        ("mld.bad_group", query(ICMPv6MLQuery2(mladdr="2001:db8::1"))),
    ],
)
def test_a_query_that_cannot_be_from_a_router_is_dropped(reason: str, bad: bytes) -> None:
    host = Station6()
    host.exchange(bad)
    assert host.counters[reason] == 1
    assert not reports(host.run(20 * SECOND))


@pytest.mark.parametrize(
    ("code", "delay"), [(0, 0), (32767, 32767), (0x8000, 32768), (0xFFFF, 8387584)]
)
def test_long_delays_are_written_as_floating_point(code: int, delay: int) -> None:
    """RFC 3810 section 5.1.3."""
    assert response_delay(code) == delay
