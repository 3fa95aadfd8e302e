"""Neighbour discovery (RFC 4861) and duplicate addresses (RFC 4862) as conversations: who is asked,
who is believed, who is forgotten, and whose an address is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_chksum,
)
from scapy.layers.inet6 import ICMPv6ND_NA as NeighbourAdvertisement
from scapy.layers.inet6 import ICMPv6ND_NS as NeighbourSolicitation
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    ARP_DEFEND_AFTER,
    ND_DELAY_FIRST_PROBE,
    ND_REACHABLE_FOR,
    ND_STALE_FOR,
    NEIGHBOUR_WAITING_FRAMES_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_RESOLVING_MAX,
)
from appliance.netstack.ip.addresses import AddressState
from appliance.netstack.ip.v6.discovery import Discovery, State
from appliance.netstack.stack import HostAddress
from tests.sim.clock import VirtualClock
from tests.sim.station6 import (
    ALL_NODES_AT,
    OUR_ADDRESS,
    OUR_GROUP,
    OUR_GROUP_AT,
    OUR_LINK_LOCAL,
    OURS6,
    PEER,
    PEER_ADDRESS,
    PEER_AT,
    ROUTER,
    US,
    US_AT,
    Station6,
    advertisement,
    frame,
    solicitation,
)
from tests.sim.wire import Host, Wire

PEER_GROUP, PEER_GROUP_AT = "ff02::1:ff00:1", "33:33:ff:00:00:01"
OTHER_AT = "02:00:00:00:00:99"


def ping(source: str = PEER, number: int = 0, source_at: str = PEER_AT) -> bytes:
    return frame(IPv6(src=source, dst=US) / ICMPv6EchoRequest(seq=number), source=source_at)


def asked(frames: list[Packet]) -> list[tuple[str, str]]:
    """Where our solicitations went, and for whom."""
    found = [f for f in frames if NeighbourSolicitation in f]
    return [(f.dst, f[NeighbourSolicitation].tgt) for f in found]


def table(station: Station6) -> Discovery:
    return station.stack.ip._ipv6.neighbours


def state(station: Station6, address: str = PEER) -> State | None:
    return table(station).state(ip_address(address).packed)


# --- answers --------------------------------------------------------------------------


@pytest.mark.parametrize("to", [OUR_GROUP, US])
def test_a_solicitation_for_our_address_is_answered_to_the_sender_alone(to: str) -> None:
    (answer,) = Station6(known=False).exchange(solicitation(to=to))
    said = answer[NeighbourAdvertisement]
    assert (answer.dst, answer[IPv6].dst, answer[IPv6].hlim) == (PEER_AT, PEER, 255)
    assert (said.tgt, said.S, said.O, said.R) == (US, 1, 1, 0)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == US_AT
    wanted = said.cksum
    del said.cksum
    assert Ether(bytes(answer))[NeighbourAdvertisement].cksum == wanted


def test_who_wants_our_address_is_told_with_all_others_that_it_is_taken() -> None:
    rival = solicitation(source="::", mac=None)
    (answer,) = Station6().exchange(rival)
    said = answer[NeighbourAdvertisement]
    assert (answer.dst, answer[IPv6].dst) == (ALL_NODES_AT, "ff02::1")
    assert (said.tgt, said.S, said.O) == (US, 0, 1)


def cut_short(rest: bytes) -> bytes:
    """A solicitation that ends before its target does, with a good checksum."""
    message = bytes((135, 0, 0, 0)) + rest
    total: int = in6_chksum(58, IPv6(src=PEER, dst=US), message)  # type: ignore[no-untyped-call]
    return message[:2] + total.to_bytes(2, "big") + message[4:]


BAD = [
    ("nd.not_from_link", solicitation(hlim=254)),
    ("nd.not_from_link", advertisement().replace(b"\x3a\xff", b"\x3a\xfe", 1)),
    ("nd.not_our_target", solicitation(target="fd00::0105:5", to=OUR_GROUP)),
    ("nd.bad_source", solicitation(source="::", to=OUR_GROUP)),
    ("nd.bad_source", solicitation(source="::", mac=None, to=US)),
    ("nd.bad_target", solicitation(target="ff02::1")),
    ("nd.bad_advertisement", advertisement(to="ff02::1", solicited=1)),
    (
        "nd.truncated",
        frame(IPv6(src=PEER, dst=US, hlim=255, nh=58) / Raw(cut_short(bytes(19)))),
    ),
    (
        "nd.bad_option_length",
        frame(IPv6(src=PEER, dst=US, hlim=255) / NeighbourSolicitation(tgt=US) / Raw(bytes(8))),
    ),
    (
        "nd.bad_option_length",
        frame(IPv6(src=PEER, dst=US, hlim=255) / NeighbourSolicitation(tgt=US) / Raw(b"\1\2" * 4)),
    ),
    (
        "nd.too_many_options",
        frame(
            IPv6(src=PEER, dst=US, hlim=255)
            / NeighbourSolicitation(tgt=US)
            / Raw(b"\x0e\1".ljust(8) * 40)
        ),
    ),
    ("nd.unsolicited", advertisement("fd00::77")),
]


def with_checksum(bad: bytes) -> bytes:
    packet = Ether(bad)
    for layer in (NeighbourSolicitation, NeighbourAdvertisement):
        if layer in packet:
            del packet[layer].cksum
    return bytes(packet)


@pytest.mark.parametrize(("reason", "bad"), BAD)
def test_what_must_not_be_believed_is_dropped_and_counted(reason: str, bad: bytes) -> None:
    """RFC 4861 sections 7.1.1 and 7.1.2."""
    station = Station6()
    before = dict(station.counters)
    assert not station.exchange(with_checksum(bad))
    changed = {k for k, v in station.counters.items() if v != before.get(k, 0)}
    assert changed == {reason}


# --- questions ------------------------------------------------------------------------


def test_a_packet_waits_until_its_neighbour_has_answered() -> None:
    station = Station6(known=False)
    questions = station.exchange(ping(number=1), ping(number=2))
    assert asked(questions) == [(PEER_GROUP_AT, PEER)]
    question = questions[0]
    assert (question[IPv6].src, question[IPv6].dst, question[IPv6].hlim) == (US, PEER_GROUP, 255)
    assert question[ICMPv6NDOptSrcLLAddr].lladdr == US_AT
    answers = station.exchange(advertisement())
    assert [a[ICMPv6EchoReply].seq for a in answers] == [1, 2]
    assert {a.dst for a in answers} == {PEER_AT}
    assert state(station) is State.REACHABLE


def test_an_answer_without_an_address_says_nothing_to_one_who_asks_for_it() -> None:
    station = Station6(known=False)
    station.exchange(ping())
    assert not station.exchange(advertisement(mac=None))
    assert state(station) is State.INCOMPLETE


def test_of_too_many_waiting_packets_the_latest_are_sent() -> None:
    station = Station6(known=False)
    count = NEIGHBOUR_WAITING_FRAMES_MAX + 6
    station.exchange(*(ping(number=number) for number in range(count)))
    answers = station.exchange(advertisement())
    assert [a[ICMPv6EchoReply].seq for a in answers] == list(range(6, count))


def test_an_answer_that_does_not_come_is_asked_for_three_times_and_a_failure_is_not_final() -> None:
    station = Station6(known=False)
    station.peer.send(ping())
    assert asked(station.run(20 * SECOND)) == [(PEER_GROUP_AT, PEER)] * 3
    assert station.counters["nd.no_answer"] == 1
    assert station.counters["nd.dropped_waiting"] == 1
    assert station.stack.next_deadline is None, "nothing is left to do"
    assert asked(station.exchange(ping())) == [(PEER_GROUP_AT, PEER)]


def test_what_is_not_on_the_link_goes_over_the_router() -> None:
    station = Station6()
    (question,) = station.exchange(ping("2001:db8::9"))
    assert (question[NeighbourSolicitation].tgt, question[IPv6].src) == (ROUTER, OUR_LINK_LOCAL)
    answer = advertisement(ROUTER, "02:00:00:00:00:fe", router=1, to=OUR_LINK_LOCAL)
    (sent,) = station.exchange(answer)
    assert (sent.dst, sent[IPv6].dst) == ("02:00:00:00:00:fe", "2001:db8::9")


# --- unreachability -------------------------------------------------------------------


def reachable() -> Station6:
    station = Station6(known=False)
    station.exchange(ping())
    station.exchange(advertisement())
    assert state(station) is State.REACHABLE
    return station


def test_who_asks_for_us_is_believed_but_checked_when_he_is_wanted() -> None:
    """STALE, DELAY, PROBE, REACHABLE."""
    station = Station6()
    assert state(station) is State.STALE
    (answer,) = station.exchange(ping())
    assert answer.dst == PEER_AT, "at once"
    assert state(station) is State.DELAY
    assert asked(station.run(ND_DELAY_FIRST_PROBE)) == [(PEER_AT, PEER)], "then by unicast"
    assert state(station) is State.PROBE
    assert ICMPv6EchoReply in station.exchange(ping())[0], "meanwhile it is used"
    station.exchange(advertisement())
    assert state(station) is State.REACHABLE
    assert not asked(station.run(10 * SECOND))


def test_a_neighbour_that_is_gone_is_found_out() -> None:
    station = Station6()
    station.exchange(ping())
    assert asked(station.run(20 * SECOND)) == [(PEER_AT, PEER)] * 3
    assert state(station) is None
    assert asked(station.exchange(ping())) == [(PEER_GROUP_AT, PEER)]


def test_what_was_confirmed_long_ago_is_checked_when_it_is_used() -> None:
    station = reachable()
    assert not station.run(ND_REACHABLE_FOR * 3 // 2)
    assert state(station) is State.STALE
    station.exchange(ping())
    assert state(station) is State.DELAY


def test_a_neighbour_that_nobody_wants_is_forgotten() -> None:
    station = Station6()
    assert not station.run(ND_STALE_FOR + SECOND)
    assert state(station) is None
    assert station.stack.next_deadline is None


def test_an_advertisement_that_may_not_override_only_raises_a_doubt() -> None:
    """RFC 4861 section 7.2.5."""
    station = reachable()
    station.exchange(advertisement(mac=OTHER_AT, override=0))
    assert state(station) is State.STALE
    assert table(station).mac_of(PEER_ADDRESS) == bytes.fromhex(PEER_AT.replace(":", ""))
    station.exchange(advertisement(mac=OTHER_AT, override=0))
    assert station.counters["nd.contested"] == 2


@pytest.mark.parametrize(("solicited", "after"), [(1, State.REACHABLE), (0, State.STALE)])
def test_a_neighbour_that_moves_takes_its_packets_along(solicited: int, after: State) -> None:
    station = reachable()
    to = US if solicited else "ff02::1"
    station.exchange(advertisement(mac=OTHER_AT, solicited=solicited, to=to, sender_at=OTHER_AT))
    assert state(station) is after
    (answer,) = station.exchange(ping())
    assert answer.dst == OTHER_AT


def test_an_unsolicited_confirmation_confirms_nothing() -> None:
    station = reachable()
    station.run(ND_REACHABLE_FOR * 3 // 2)
    station.exchange(advertisement(solicited=0, to="ff02::1"))
    assert state(station) is State.STALE


def test_who_talks_about_himself_unasked_is_not_learnt() -> None:
    station = Station6(known=False)
    station.exchange(advertisement(to="ff02::1", solicited=0))
    assert state(station) is None


# --- floods ---------------------------------------------------------------------------


def test_a_flood_of_questions_does_not_grow_the_table() -> None:
    station = Station6()
    station.exchange(ping())
    for number in range(2000):
        mac = "02:01:00:00:" + number.to_bytes(2, "big").hex(":")
        station.exchange(solicitation(source=f"fd00::1:{number:x}", mac=mac))
    assert len(table(station)) == NEIGHBOURS_MAX
    assert station.counters["nd.answered"] == 2001
    (answer,) = station.exchange(ping())
    assert answer.dst == PEER_AT, "the one in use has stayed"


def test_packets_from_forged_addresses_do_not_make_us_flood_the_link() -> None:
    station = Station6()
    frames = station.exchange(*(ping(f"fd00::2:{number:x}") for number in range(300)))
    assert len(asked(frames)) == NEIGHBOURS_RESOLVING_MAX
    assert station.counters["nd.too_many_resolving"] == 300 - NEIGHBOURS_RESOLVING_MAX
    station.run(10 * SECOND)
    assert len(asked(station.exchange(ping("fd00::3")))) == 1


# --- our own address ------------------------------------------------------------------


def address_state(station: Station6, address: str = US) -> AddressState | None:
    return station.stack.ip.addresses.state(ip_address(address).packed)


def test_an_address_is_used_after_nobody_has_claimed_it() -> None:
    station = Station6(started=False)
    probes = [f for f in station.run(MILLISECOND) if NeighbourSolicitation in f]
    assert [p[NeighbourSolicitation].tgt for p in probes] == [OUR_LINK_LOCAL, US]
    assert {p[IPv6].src for p in probes} == {"::"}
    assert probes[1].dst == OUR_GROUP_AT
    assert all(ICMPv6NDOptSrcLLAddr not in p for p in probes)
    assert address_state(station) is AddressState.TENTATIVE
    assert not station.exchange(solicitation(), ping()), "not yet"
    said = [f for f in station.run(2 * SECOND) if NeighbourAdvertisement in f]
    assert [f[NeighbourAdvertisement].tgt for f in said] == [OUR_LINK_LOCAL, US]
    assert {(f.dst, f[NeighbourAdvertisement].O) for f in said} == {(ALL_NODES_AT, 1)}
    assert address_state(station) is AddressState.PREFERRED


@pytest.mark.parametrize(
    "rival",
    [
        advertisement(US, OTHER_AT, solicited=0, to="ff02::1", sender_at=OTHER_AT),
        frame(
            IPv6(src="::", dst=OUR_GROUP, hlim=255) / NeighbourSolicitation(tgt=US),
            OUR_GROUP_AT,
            OTHER_AT,
        ),
    ],
)
def test_an_address_that_somebody_else_has_or_wants_is_not_used(
    rival: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    station = Station6(started=False)
    station.run(MILLISECOND)
    station.exchange(rival)
    assert not [f for f in station.run(10 * SECOND) if US in str(f.summary())]
    assert address_state(station) is AddressState.DUPLICATED
    assert address_state(station, OUR_LINK_LOCAL) is AddressState.PREFERRED
    assert not station.exchange(solicitation(), ping())
    assert station.counters["nd.duplicate"] == 1
    assert station.stack.ip.rival(OUR_ADDRESS) == OTHER_AT
    assert f"address={US} also-at={OTHER_AT}" in caplog.text


def test_an_address_that_is_ours_is_defended_but_not_in_a_loop() -> None:
    station = Station6()
    rival = advertisement(US, OTHER_AT, solicited=0, to="ff02::1", sender_at=OTHER_AT)
    (defence,) = station.exchange(rival, rival, rival)
    said = defence[NeighbourAdvertisement]
    assert (defence.dst, said.tgt, said.O) == (ALL_NODES_AT, US, 1)
    assert defence[ICMPv6NDOptDstLLAddr].lladdr == US_AT
    assert station.counters["nd.conflict"] == 3
    station.run(ARP_DEFEND_AFTER)
    assert len(station.exchange(rival)) == 1


def test_two_hosts_with_the_same_configuration_find_it_out() -> None:
    """They have the same MAC address too: the first one is left alone, the second one gives up."""
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    first = Host(wire.a, clock, OURS6, 1)
    clock.run(5 * SECOND)
    second = Host(wire.b, clock, OURS6, 2)
    clock.run(5 * SECOND)
    assert first.stack.ip.addresses.state(OUR_ADDRESS) is AddressState.PREFERRED
    assert second.stack.ip.addresses.state(OUR_ADDRESS) is AddressState.DUPLICATED
    assert "our own MAC address" in str(second.stack.ip.rival(OUR_ADDRESS))
    assert second.counters["nd.duplicate"] == 2, "the link-local address is the same, too"


def test_frames_of_ours_that_come_back_change_nothing() -> None:
    station = Station6(started=False)
    for sent in station.run(MILLISECOND):
        station.peer.send(bytes(sent))
    station.run(3 * SECOND)
    assert address_state(station) is AddressState.PREFERRED
    station.exchange(advertisement(US, US_AT, solicited=0, to="ff02::1", sender_at=US_AT))
    assert not station.counters["nd.conflict"]


def test_an_address_can_be_added_and_removed() -> None:
    station = Station6()
    another = HostAddress(ip_address("fd00::7").packed, 64)
    assert station.stack.ip.add_address(another, station.clock.now())
    station.host.act()
    station.run(3 * SECOND)
    question = solicitation("fd00::7", to="ff02::1:ff00:7")
    (answer,) = station.exchange(question)
    assert answer[NeighbourAdvertisement].tgt == "fd00::7"
    assert station.stack.ip.remove_address(another.address)
    assert not [f for f in station.exchange(question) if NeighbourAdvertisement in f]


def test_a_fixed_neighbour_is_neither_asked_for_nor_believed() -> None:
    """What the user has said counts, for as long as we run."""
    fixed = (PEER_ADDRESS, bytes.fromhex(OTHER_AT.replace(":", "")))
    station = Station6(config=replace(OURS6, neighbours=(fixed,)), known=False)
    for talk in (solicitation(), advertisement(), advertisement(solicited=0)):
        station.exchange(talk)
        answers = station.exchange(ping())
        assert [(f.dst, ICMPv6EchoReply in f) for f in answers] == [(OTHER_AT, True)]
    assert station.counters["nd.contested"] == 1
    quiet = station.run(2 * ND_STALE_FOR)
    assert asked(quiet) == []
    assert len(station.exchange(ping())) == 1
