"""ICMP: what is answered, what is reported, and what must never be."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet import fragment as scapy_fragment
from scapy.layers.l2 import ARP, Ether

from appliance.clock import SECOND
from appliance.limits import FRAGMENT_WAITS, ICMP_ERRORS_BURST, ICMP_ERRORS_PER_SECOND
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.rations import TokenBucket
from appliance.netstack.ip.v4.icmp import next_plateau, parse_error
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmp import IcmpHeader
from tests.sim.station import OUR_ADDRESS, OUR_MAC, PEER_MAC, Station

US, PEER = "10.0.0.5", "10.0.0.1"
US_AT, PEER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")


def frame(packet: Any, to: str = US_AT) -> bytes:
    return bytes(Ether(src=PEER_AT, dst=to) / packet)


def from_peer(**fields: Any) -> IP:
    return IP(**{"src": PEER, "dst": US, **fields})


def greeting() -> bytes:
    return bytes(Ether(src=PEER_AT) / ARP(hwsrc=PEER_AT, psrc=PEER, pdst=US))


def known(vnet: bool = False) -> Station:
    """A station that knows where its peer is."""
    station = Station(vnet=vnet)
    station.exchange(greeting())
    return station


# --- echo -----------------------------------------------------------------------------


@pytest.mark.parametrize("vnet", [False, True])
@pytest.mark.parametrize("count", [0, 1, 56, 1472])
def test_an_echo_request_is_answered(vnet: bool, count: int) -> None:
    data = bytes(range(256)) * 6
    request = from_peer() / ICMP(id=7, seq=9) / data[:count]
    (answer,) = known(vnet).exchange(frame(request))
    seen = Ether(answer)
    assert (seen[IP].src, seen[IP].dst) == (US, PEER)
    assert (seen[ICMP].type, seen[ICMP].id, seen[ICMP].seq) == (0, 7, 9)
    assert bytes(seen[ICMP].payload) == data[:count]
    sum_on_wire = seen[ICMP].chksum
    del seen[ICMP].chksum
    assert Ether(bytes(seen))[ICMP].chksum == sum_on_wire


def test_the_largest_echo_is_reassembled_and_answered_in_fragments() -> None:
    data = bytes(range(251)) * 261
    pieces = scapy_fragment(from_peer(id=5) / ICMP(id=1) / data[:65507], 1480)  # type: ignore[no-untyped-call]
    answer = known().exchange(*map(frame, pieces))
    assert all(len(f) <= 1514 for f in answer)
    (whole,) = defragment([Ether(f)[IP] for f in answer])  # type: ignore[no-untyped-call]
    assert bytes(IP(bytes(whole))[ICMP].payload) == data[:65507]


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.0.0.255"])
def test_an_echo_to_everybody_is_not_answered(destination: str) -> None:
    """The smurf attack."""
    station = known()
    assert not station.exchange(frame(from_peer(dst=destination) / ICMP(), "ff:ff:ff:ff:ff:ff"))
    assert station.counters["ip.broadcast"] == 1


@pytest.mark.parametrize("kind", [0, 13, 15, 17, 41, 255])
def test_other_questions_are_not_answered(kind: int) -> None:
    station = known()
    assert not station.exchange(frame(from_peer(proto=1) / bytes(ICMP(type=kind))))
    assert station.counters["icmp.unknown_type"] == 1


# --- errors that we send ----------------------------------------------------------------


def test_a_port_without_a_listener_is_reported_with_the_packet() -> None:
    packet = from_peer(options=[b"\1"] * 4) / UDP(sport=700, dport=9) / b"hello"
    (report,) = known().exchange(frame(packet))
    seen = Ether(report)
    assert (seen[IP].dst, seen[ICMP].type, seen[ICMP].code) == (PEER, 3, 3)
    assert bytes(seen[ICMP].payload) == bytes(packet)


def test_a_report_fits_in_the_smallest_packet_that_all_must_take() -> None:
    (report,) = known().exchange(frame(from_peer() / UDP(dport=9) / bytes(1400)))
    assert Ether(report)[IP].len == 576


def test_a_protocol_that_nobody_speaks_is_reported() -> None:
    station = known()
    (report,) = station.exchange(frame(from_peer(proto=132) / bytes(20)))
    assert (Ether(report)[ICMP].type, Ether(report)[ICMP].code) == (3, 2)
    assert station.counters["ip.unknown_protocol"] == 1


def test_a_datagram_that_never_becomes_complete_is_reported() -> None:
    station = known()
    pieces = scapy_fragment(from_peer() / UDP(dport=9) / bytes(3000), 1480)  # type: ignore[no-untyped-call]
    assert not station.exchange(frame(pieces[0]))
    station.clock.run(FRAGMENT_WAITS // 2)
    station.exchange(greeting())
    station.clock.run(FRAGMENT_WAITS // 2)
    (report,) = map(Ether, station.peer.take())
    assert (report[ICMP].type, report[ICMP].code) == (11, 1)
    assert bytes(report[ICMP].payload)[:28] == bytes(pieces[0])[:28]


def test_nothing_is_reported_of_a_datagram_whose_beginning_is_missing() -> None:
    station = known()
    pieces = scapy_fragment(from_peer() / UDP(dport=9) / bytes(3000), 1480)  # type: ignore[no-untyped-call]
    station.exchange(*map(frame, pieces[1:]))
    station.clock.run(FRAGMENT_WAITS // 2)
    station.exchange(greeting())
    station.clock.run(FRAGMENT_WAITS // 2)
    assert not station.peer.take()
    assert station.counters["ip.fragment_timeout"] == 1


@pytest.mark.parametrize(
    "packet",
    [
        from_peer(dst="10.0.0.255") / UDP(dport=9),
        from_peer(dst="255.255.255.255") / UDP(dport=9),
        from_peer(dst="255.255.255.255", proto=132) / bytes(20),
        from_peer() / ICMP(type=3, code=3) / from_peer(src=US, dst=PEER) / UDP(),
    ],
)
def test_some_packets_are_never_reported(packet: Any) -> None:
    everybody = packet[IP].dst != US
    assert not known().exchange(frame(packet, "ff:ff:ff:ff:ff:ff" if everybody else US_AT))


def test_reports_are_rationed() -> None:
    station = known()
    frames = [frame(from_peer() / UDP(dport=9))] * (ICMP_ERRORS_BURST + 20)
    assert len(station.exchange(*frames)) == ICMP_ERRORS_BURST
    assert station.counters["icmp.rate_limited"] == 20
    station.clock.run(SECOND // 10)
    assert len(station.exchange(*frames)) == ICMP_ERRORS_PER_SECOND // 10


def test_a_bucket_fills_up_to_its_size_and_no_further() -> None:
    bucket = TokenBucket(10, 3)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(SECOND // 10) for _ in range(2)] == [True, False]
    assert [bucket.take(100 * SECOND) for _ in range(4)] == [True, True, True, False]


# --- errors that come to us ---------------------------------------------------------------


def quoting(packet: Any, kind: int = 3, code: int = 3, mtu: int = 0) -> IcmpError:
    return parse_error(IcmpHeader(kind, code, mtu), bytes(packet), (OUR_ADDRESS,))


def test_an_error_says_which_packet_of_ours_it_is_about() -> None:
    ours = IP(src=US, dst=PEER, options=[b"\1"] * 4) / TCP(sport=2049, dport=700, seq=12345)
    error = quoting(bytes(ours)[:32])
    assert (error.destination, error.protocol) == (bytes([10, 0, 0, 1]), 6)
    assert error.transport == bytes(ours[TCP])[:8]
    assert error.is_hard and error.reason == "port unreachable"


def test_fragmentation_needed_says_how_much_would_pass() -> None:
    ours = IP(src=US, dst=PEER) / TCP() / bytes(1460)
    assert quoting(ours, 3, 4, 1400).next_hop_mtu == 1400
    assert quoting(ours, 3, 4, 0).next_hop_mtu == 1492, "an old router does not say: RFC 1191"
    assert not quoting(ours, 3, 4).is_hard


def test_plateaus_go_down_and_end() -> None:
    assert [next_plateau(size) for size in (65535, 1500, 1492, 576, 100)] == [
        32000,
        1492,
        1006,
        552,
        552,
    ]


@pytest.mark.parametrize(
    ("quoted", "reason"),
    [
        (b"", "icmp.truncated_quote"),
        (bytes(IP(src=US))[:19], "icmp.truncated_quote"),
        (bytes(IP(src=US) / bytes(7)), "icmp.truncated_quote"),
        (bytes(IP(src=US, version=6) / bytes(20)), "icmp.bad_quote"),
        (bytes(IP(src=US, ihl=4) / bytes(20)), "icmp.bad_quote"),
        (bytes(IP(src=US, ihl=15) / bytes(20)), "icmp.truncated_quote"),
        (bytes(IP(src=PEER) / bytes(20)), "icmp.not_about_us"),
        (bytes(IP(src=US, frag=5) / bytes(20)), "icmp.about_later_fragment"),
        (bytes(IP(src=US, len=1400) / bytes(20)), "icmp.bad_mtu"),
    ],
)
def test_errors_that_quote_nonsense_are_dropped(quoted: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        quoting(quoted, 3, 4, 1400)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_no_error_makes_us_say_anything(kind: int) -> None:
    """Errors about TCP segments that were never sent, and about datagrams."""
    station = known()
    for quoted in (TCP(sport=2049, dport=700, seq=5), UDP(sport=2049, dport=700)):
        ours = IP(src=US, dst=PEER) / quoted
        for code in range(16):
            message = ICMP(type=kind, code=code) / bytes(ours)
            assert not station.exchange(frame(from_peer() / message))
    assert station.counters["icmp.ignored"] == (32 if kind in (4, 5) else 0)
    about_datagrams = {3: 15, 4: 0, 5: 0, 11: 16, 12: 16}
    assert station.counters["udp.icmp_not_ours"] == about_datagrams[kind]
    assert station.counters["icmp.bad_mtu"] == (2 if kind == 3 else 0)
