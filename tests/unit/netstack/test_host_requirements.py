"""What RFC 1122 asks of a host's IP, ICMP and ARP, as far as no other file has a test of it.
docs/conformance/rfc1122.toml has them all."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether

from appliance.clock import SECOND
from appliance.limits import ARP_LOCKED_FOR, NEIGHBOURS_MAX, NEIGHBOURS_RESOLVING_MAX
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.stack import HostConfig
from tests.sim.station import OUR_MAC, PEER_MAC, Station

US, PEER, GATEWAY = "10.0.0.5", "10.0.0.1", "10.0.0.254"
US_AT, PEER_AT, LIAR_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":"), "02:00:00:00:00:66"
ANYBODY = "ff:ff:ff:ff:ff:ff"


def frame(packet: Any, to: str = US_AT, at: str = PEER_AT) -> bytes:
    return bytes(Ether(src=at, dst=to) / packet)


def from_peer(**fields: Any) -> IP:
    return IP(**{"src": PEER, "dst": US, **fields})


def arp(op: int, sender: str, target: str, at: str = PEER_AT, to: str = ANYBODY) -> bytes:
    packet = ARP(op=op, hwsrc=at, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return frame(packet, to, at)


def known() -> Station:
    station = Station()
    station.exchange(arp(1, PEER, US))
    return station


def answer_to(station: Station, packet: Any) -> Ether | None:
    frames = station.exchange(frame(packet))
    return Ether(frames[0]) if frames else None


# --- IP (section 3.2.1) -----------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, 1, 255])
def test_a_packet_whose_time_to_live_is_over_is_taken(ttl: int) -> None:
    """Section 3.2.1.7: only who passes packets on looks at it."""
    assert answer_to(known(), from_peer(ttl=ttl) / ICMP())


def test_what_we_send_lives_long_enough() -> None:
    station = known()
    for packet in (from_peer() / ICMP(), from_peer() / UDP(dport=9), from_peer() / TCP(dport=9)):
        answer = answer_to(station, packet)
        assert answer is not None and answer[IP].ttl == 64


@pytest.mark.parametrize("vnet", [False, True])
def test_the_time_to_live_is_what_was_configured(vnet: bool) -> None:
    """Section 3.2.1.7, and RFC 9293 MUST-49. Of fragments, and of a connection's segments, too."""
    config = HostConfig(OUR_MAC, (HostAddress(bytes([10, 0, 0, 5]), 24),), ttl=7)
    station = Station(config=config, vnet=vnet)
    station.exchange(arp(1, PEER, US))
    station.stack.tcp.listen(80, lambda _: None)
    for packet in (
        from_peer() / ICMP() / bytes(3000),
        from_peer() / UDP(dport=9),
        from_peer() / TCP(dport=9),
        from_peer() / TCP(dport=80),
    ):
        pieces = [frame(piece) for piece in fragment(packet)]  # type: ignore[no-untyped-call]
        answers = [Ether(answer) for answer in station.exchange(*pieces)]
        assert answers
        for answer in answers:
            assert answer[IP].ttl == 7
            right = IP(bytes(answer[IP]))
            del right.chksum
            assert IP(bytes(right)).chksum == answer[IP].chksum


@pytest.mark.parametrize("version", [0, 5, 6, 15])
def test_another_version_of_IP_is_dropped(version: int) -> None:
    station = known()
    assert answer_to(station, from_peer(version=version) / ICMP()) is None
    assert station.counters["ip.bad_version"] == 1


def test_any_wrong_bit_of_the_header_is_found() -> None:
    """Section 3.2.1.2: by the checksum, or before it is looked at."""
    station = known()
    good = frame(from_peer() / ICMP())
    for bit in range(160):
        bad = bytearray(good)
        bad[14 + bit // 8] ^= 1 << bit % 8
        assert not station.exchange(bytes(bad)), bit


@pytest.mark.parametrize(
    "option",
    [
        b"\x01\x01\x01\x01",
        b"\x00\xff\xff\xff",
        b"\x82\x0b" + bytes(9),  # security
        b"\x88\x04\x00\x01",  # stream identifier, which section 3.2.1.8 (b) wants ignored
        b"\x07\x07\x04" + bytes(4),  # record route
        b"\x44\x08\x05\x00" + bytes(4),  # timestamp
        b"\x94\x04\x00\x00",  # router alert
        b"\xde\x04\x12\x34",  # nobody's
        b"\x83\x07\x08\x0a\x00\x00\x01",  # a loose source route that is at its end
    ],
)
def test_an_option_is_skipped_whatever_it_is(option: bytes) -> None:
    answer = answer_to(known(), from_peer(options=[option]) / ICMP(id=3))
    assert answer is not None and answer[ICMP].id == 3 and answer[IP].ihl == 5


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (b"\x07", "ip.bad_option"),
        (b"\x07\x00\x00\x00", "ip.bad_option"),
        (b"\x07\x01\x00\x00", "ip.bad_option"),
        (b"\x01\x07\x04\x00", "ip.bad_option"),
        (b"\x01\x01\x01\x07", "ip.bad_option"),
        (b"\x83\x02\x00\x00", "ip.bad_option"),
        (b"\x83\x07\x04\x0a\x00\x00\x09", "ip.source_route"),
        (b"\x89\x07\x04\x0a\x00\x00\x09", "ip.source_route"),
    ],
)
def test_options_that_contradict_themselves_or_want_to_be_passed_on(
    option: bytes, reason: str
) -> None:
    """Section 3.3.5: a host may refuse to be a router, and so do we."""
    station = known()
    packet = from_peer(options=[option.ljust(-(-len(option) // 4) * 4, b"\x07")]) / ICMP()
    if len(option) == 1:
        packet = from_peer(options=[b"\x01\x01\x01\x07"]) / ICMP()
    assert answer_to(station, packet) is None
    assert station.counters[reason] == 1


def test_random_options_raise_nothing() -> None:
    station = known()
    random = Random(8)
    for _ in range(500):
        option = random.randbytes(4 * random.randrange(1, 11))
        station.stack.receive(frame(from_peer(options=[option]) / ICMP()), station.clock.now())
    assert station.counters["ip.bad_option"] > 30
    assert station.counters["icmp.echo"] > 2


def test_nothing_is_passed_on() -> None:
    """Section 3.1: not a router, whatever arrives."""
    station = known()
    for destination in ("10.0.0.9", "192.0.2.1", "224.0.0.5"):
        for protocol in (1, 6, 17):
            assert answer_to(station, from_peer(dst=destination, proto=protocol) / b"x") is None
    assert station.counters["ip.not_for_us"] == 9


@pytest.mark.parametrize("destination", ["10.0.0.0", "0.0.0.0"])
def test_the_old_broadcast_of_zeros_is_nobody(destination: str) -> None:
    """Section 3.3.6: known for what it is, and never answered."""
    station = known()
    assert not station.exchange(frame(from_peer(dst=destination) / UDP(dport=9), ANYBODY))
    assert station.counters["icmp.error_out"] == 0


# --- ICMP (section 3.2.2) ---------------------------------------------------------------


def test_an_error_has_no_type_of_service_and_quotes_what_it_got() -> None:
    packet = from_peer(tos=0x1C, id=77) / UDP(sport=700, dport=9) / b"some text"
    answer = answer_to(known(), packet)
    assert answer is not None and answer[IP].tos == 0
    assert bytes(answer[ICMP].payload) == bytes(packet)
    assert (answer[IP].src, answer[IP].dst) == (US, PEER)


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "10.0.0.255", "10.0.0.0"])
def test_nothing_is_reported_to_who_is_not_one_host(source: str) -> None:
    station = known()
    assert answer_to(station, from_peer(src=source) / UDP(dport=9)) is None
    assert station.counters["ip.bad_source"] == 1


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_no_error_is_reported_about_an_error(kind: int) -> None:
    """Not even about one that nobody can read."""
    station = known()
    for count in (0, 7, 8, 27, 28, 40):
        about = bytes(IP(src=US, dst=PEER) / UDP(dport=9) / bytes(20))[:count]
        assert answer_to(station, from_peer() / ICMP(type=kind, code=3) / about) is None
    assert station.counters["icmp.error_out"] == 0


def test_a_redirect_moves_nothing() -> None:
    """Section 3.2.2.2, not obeyed: whoever can send one would get our packets."""
    station = known()
    about = IP(src=US, dst="192.0.2.1") / UDP(sport=9, dport=9) / b"x"
    redirect = frame(from_peer(src=GATEWAY) / ICMP(type=5, code=1, gw="10.0.0.66") / about)
    station.exchange(redirect)
    assert station.counters["icmp.ignored"] == 1
    asked = [
        Ether(f)[ARP].pdst for f in station.exchange(frame(from_peer(src="192.0.2.1") / ICMP()))
    ]
    assert asked == [GATEWAY]


# --- ARP (section 2.3.2), and who would misuse it -----------------------------------------


def is_reached_at(station: Station, at: str) -> bool:
    answer = answer_to(station, from_peer() / ICMP())
    return answer is not None and ICMP in answer and answer.dst == at


@pytest.mark.parametrize(
    "lie",
    [
        arp(2, PEER, US, LIAR_AT, US_AT),
        arp(1, PEER, PEER, LIAR_AT),
        arp(1, PEER, US, LIAR_AT),
        arp(2, PEER, "10.0.0.9", LIAR_AT),
    ],
)
def test_a_neighbour_that_has_just_spoken_is_not_taken_over(lie: bytes) -> None:
    """A reply, an announcement, a request, the talk of two others: while the entry is fresh."""
    station = known()
    station.exchange(lie)
    assert is_reached_at(station, PEER_AT)
    assert station.counters["arp.contested"] == 1


def test_the_true_owner_takes_its_address_back() -> None:
    station = known()
    station.clock.run(ARP_LOCKED_FOR)
    station.exchange(arp(1, PEER, PEER, LIAR_AT))
    assert is_reached_at(station, LIAR_AT)
    station.clock.run(ARP_LOCKED_FOR)
    station.exchange(arp(1, PEER, PEER, PEER_AT))
    assert is_reached_at(station, PEER_AT)


@pytest.mark.parametrize("at", ["01:00:5e:00:00:01", ANYBODY, "00:00:00:00:00:00"])
@pytest.mark.parametrize("op", [1, 2])
def test_no_neighbour_moves_to_a_group_or_to_nowhere(op: int, at: str) -> None:
    """Our packets to it would go to everybody."""
    station = known()
    station.clock.run(ARP_LOCKED_FOR)
    packet = ARP(op=op, hwsrc=at, psrc=PEER, pdst=US)
    station.exchange(frame(packet, US_AT, LIAR_AT))
    assert is_reached_at(station, PEER_AT)
    assert station.counters["arp.bad_sender"] == 1


@pytest.mark.parametrize("sender", ["0.0.0.0", "255.255.255.255", "10.0.0.255", "224.0.0.1"])
def test_nobody_in_particular_is_no_neighbour(sender: str) -> None:
    station = Station()
    station.exchange(arp(1, sender, US, LIAR_AT), arp(2, sender, US, LIAR_AT))
    assert len(station.stack.ip._ipv4.neighbours) == 0


def test_a_flood_of_replies_that_nobody_asked_for_leaves_no_trace() -> None:
    station = Station(config=HostConfig.single(OUR_MAC, bytes([10, 0, 0, 5]), 8))
    for number in range(400):
        sender = f"10.{number % 250}.{number // 250}.9"
        station.exchange(arp(2, sender, US, LIAR_AT), arp(1, sender, sender, LIAR_AT))
    assert len(station.stack.ip._ipv4.neighbours) == 0
    assert station.counters["arp.unsolicited_reply"] == 400
    assert station.peer.take() == []


def test_a_storm_of_requests_is_answered_one_for_one_and_bounded() -> None:
    station = Station(config=HostConfig.single(OUR_MAC, bytes([10, 0, 0, 5]), 8))
    senders = [f"10.{number % 250}.{number // 250}.9" for number in range(2 * NEIGHBOURS_MAX)]
    frames = station.exchange(*(arp(1, sender, US, LIAR_AT) for sender in senders))
    assert len(frames) == len(senders)
    assert len(station.stack.ip._ipv4.neighbours) == NEIGHBOURS_MAX


def test_nobody_is_asked_for_more_than_once_a_second() -> None:
    """Section 2.3.2.1: whatever makes us want to send there."""
    station = Station()
    asked = 0
    for _ in range(100):
        frames = station.exchange(*[frame(from_peer() / ICMP())] * 20)
        station.clock.run(SECOND // 20)
        asked += sum(ARP in Ether(f) for f in frames + station.peer.take())
    assert asked <= 6, "in five seconds"


def test_a_flood_from_everywhere_makes_us_ask_for_a_bounded_number() -> None:
    station = Station(config=HostConfig.single(OUR_MAC, bytes([10, 0, 0, 5]), 8))
    pings = (frame(from_peer(src=f"10.0.{n // 250}.{n % 250 + 1}") / ICMP()) for n in range(200))
    frames = station.exchange(*pings)
    assert len(frames) == NEIGHBOURS_RESOLVING_MAX


def test_a_packet_survives_until_its_neighbour_answers() -> None:
    """Section 2.3.2.2: at least one; the latest."""
    station = Station()
    assert ARP in Ether(station.exchange(frame(from_peer() / ICMP(seq=1)))[0])
    (answer,) = station.exchange(arp(2, PEER, US, PEER_AT, US_AT))
    assert Ether(answer)[ICMP].seq == 1
