"""Attacks by fragments (RFC 791, RFC 815, RFC 1858, RFC 5722), against the whole stack: each ends
in silence and a counter, and an honest datagram gets through afterwards.

What carries them is an echo request: where a datagram is whole and sound, it is answered. The rules
themselves, F1 to F4, have their tests in test_fragments.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet import fragment as scapy_fragment
from scapy.layers.l2 import ARP, Ether

from appliance.clock import SECOND
from appliance.limits import (
    FRAGMENT_BYTES_MAX,
    FRAGMENT_FLOWS_MAX,
    FRAGMENT_PIECES_MAX,
    FRAGMENT_WAITS,
)
from appliance.netstack.wire.checksum import checksum
from tests.sim.station import OUR_MAC, PEER_MAC, Station

US, PEER = "10.0.0.5", "10.0.0.1"
US_AT, PEER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")
ECHO = bytes(ICMP(id=7) / (bytes(range(256)) * 4))  # 1032 bytes

Span = tuple[int, int, bool]
"""From, to, and whether more follow."""


def greeting() -> bytes:
    return bytes(Ether(src=PEER_AT) / ARP(hwsrc=PEER_AT, psrc=PEER, pdst=US))


def known() -> Station:
    station = Station()
    station.exchange(greeting())
    return station


def frame(packet: Any) -> bytes:
    return bytes(Ether(src=PEER_AT, dst=US_AT) / packet)


def piece(span: Span, text: bytes = ECHO, **fields: Any) -> bytes:
    """One fragment of `text`."""
    start, stop, more = span
    ip = IP(**{"src": PEER, "dst": US, "id": 9, "proto": 1, "frag": start // 8, **fields})
    ip.flags = "MF" if more else 0
    return frame(ip / text[start:stop])


def is_answered(station: Station, *frames: bytes) -> bool:
    """Was any of it an echo request that is whole?"""
    seen = [Ether(answer) for answer in station.exchange(*frames)]
    return any(ICMP in one and one[ICMP].type == 0 for one in seen)


def honest_works(station: Station) -> bool:
    """In two fragments, with another identification."""
    return is_answered(station, piece((0, 512, True), id=7777), piece((512, 1032, False), id=7777))


def test_an_honest_datagram_in_any_order_is_answered() -> None:
    station = known()
    spans = [(0, 256, True), (256, 768, True), (768, 1032, False)]
    for number, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1])):
        assert is_answered(station, *(piece(spans[i], id=100 + number) for i in order))
    assert honest_works(station)


# --- overlaps -------------------------------------------------------------------------

OVERLAPS: dict[str, list[Span]] = {
    "teardrop: inside the one before": [(0, 512, True), (24, 48, False)],
    "teardrop: inside, with more": [(0, 512, True), (64, 128, True), (512, 1032, False)],
    "bonk: begins before the end": [(0, 512, True), (504, 1032, False)],
    "rewrites the header": [(0, 512, True), (0, 256, True), (512, 1032, False)],
    "a larger one around it": [(256, 512, True), (0, 1024, True), (1024, 1032, False)],
    "the same start, longer": [(0, 256, True), (0, 512, True), (512, 1032, False)],
    "the same end, longer": [(256, 512, True), (0, 512, True), (512, 1032, False)],
    "by eight bytes, backwards": [(512, 1032, False), (0, 520, True)],
    "the last one, again as one in the middle": [(512, 1032, False), (512, 1032, True)],
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_an_overlap_condemns_the_datagram(name: str) -> None:
    station = known()
    spans = OVERLAPS[name]
    text = ECHO + bytes(8)
    assert not is_answered(station, *(piece(span, text) for span in spans))
    rest = [(at, at + 8, at + 8 < len(ECHO)) for at in range(0, len(ECHO), 8)]
    assert not is_answered(station, *(piece(span) for span in rest)), "nor by what follows"
    assert station.counters["ip.fragment_overlap"] == 1
    assert station.counters["ip.reassembled"] == 0
    assert honest_works(station)


def test_a_duplicate_counts_once_and_its_first_text_counts() -> None:
    """What a link repeats, or a router sends two ways, is no attack."""
    station = known()
    forged = piece((0, 512, True), bytes(1032))
    first = piece((0, 512, True))
    assert is_answered(station, first, forged, first, piece((512, 1032, False)))
    assert station.counters["ip.fragment_duplicate"] == 2


def test_a_flood_of_duplicates_costs_nothing() -> None:
    station = known()
    one = piece((0, 512, True))
    station.exchange(one)
    charged = reassembly(station).charged_bytes
    station.exchange(*[one] * 5000)
    assert reassembly(station).charged_bytes == charged
    assert station.counters["ip.fragment_duplicate"] == 5000
    assert is_answered(station, piece((512, 1032, False)))


def reassembly(station: Station) -> Any:
    return station.stack.ip._ipv4._reassembly


# --- ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spans",
    [
        [(512, 1032, False), (256, 512, False)],
        [(256, 512, False), (512, 1032, False)],
        [(512, 1032, False), (1032, 1040, True)],
        [(1032, 1040, True), (512, 1032, False)],
        [(512, 1032, False), (512, 1024, False)],
    ],
)
def test_two_ends_condemn_the_datagram(spans: list[Span]) -> None:
    station = known()
    text = ECHO + bytes(8)
    assert not is_answered(station, *(piece(span, text) for span in spans))
    assert not is_answered(station, piece((0, 256, True)), piece((256, 512, True)))
    assert station.counters["ip.fragment_overlap"] == 1
    assert honest_works(station)


def test_the_ping_of_death_starts_nothing() -> None:
    """Its last fragment ends behind 65,535."""
    station = known()
    station.exchange(piece((0, 1480, True), bytes(1480)))
    for at, count in ((65528, 8), (65120, 1480), (65512, 4)):
        dead = IP(src=PEER, dst=US, id=9, proto=1, frag=at // 8) / bytes(count)
        assert not station.exchange(frame(dead))
    assert station.counters["ip.fragment_too_long"] == 3
    assert honest_works(station)


def test_options_do_not_make_a_datagram_longer_than_the_longest() -> None:
    """Each fragment may be within the limit, and the header of the first one push the whole beyond
    it."""
    station = known()
    step = 1424
    frames = [
        piece((at, min(at + step, 65504), True), bytes(65515)) for at in range(step, 65504, step)
    ]
    first = piece((0, step, True), bytes(65515), options=[b"\1"] * 40)
    last = piece((65504, 65515, False), bytes(65515))
    assert not station.exchange(*frames, last, first)
    assert station.counters["ip.fragment_too_long"] == 1
    assert reassembly(station).charged_bytes == 0
    assert honest_works(station)


@pytest.mark.parametrize("more", [True, False])
def test_a_fragment_without_data_starts_nothing(more: bool) -> None:
    station = known()
    station.exchange(piece((0, 0, True)), piece((512, 512, more)), piece((8, 8, more)))
    assert station.counters["ip.fragment_empty"] == 3
    assert len(reassembly(station)) == 0


def test_only_the_last_fragment_may_end_within_eight_bytes() -> None:
    station = known()
    assert not is_answered(station, piece((0, 515, True)), piece((512, 1032, False)))
    assert station.counters["ip.fragment_bad_length"] == 1


# --- what is hidden in fragments ----------------------------------------------------------


def test_a_tiny_first_fragment_is_looked_at_when_the_datagram_is_whole() -> None:
    """RFC 1858 section 3: the flags of TCP are in the second one. It is no way past any check."""
    station = known()
    segment = IP(src=PEER, dst=US, id=9) / TCP(sport=700, dport=9, flags="S", seq=5)
    text = bytes(segment)[20:]
    assert not station.exchange(piece((0, 8, True), text, proto=6))
    (reset,) = station.exchange(piece((8, 20, False), text, proto=6))
    assert Ether(reset)[TCP].flags == "RA"
    wrong = bytearray(text)
    wrong[13] ^= 1
    assert not station.exchange(
        piece((0, 8, True), bytes(wrong), proto=6, id=10),
        piece((8, 20, False), bytes(wrong), proto=6, id=10),
    )
    assert station.counters["tcp.bad_checksum"] == 1


def test_a_datagram_too_short_for_its_protocol_is_dropped_as_a_whole_one_is() -> None:
    station = known()
    assert not station.exchange(
        piece((0, 8, True), bytes(12), proto=6), piece((8, 12, False), bytes(12), proto=6)
    )
    assert station.counters["ip.reassembled"] == 1
    assert [name for name in station.counters if name.startswith("tcp.")] == ["tcp.bad_checksum"]


def test_fragments_of_different_datagrams_do_not_mix() -> None:
    """Source, destination, protocol and identification tell them apart (RFC 791)."""
    station = known()
    first = piece((0, 512, True))
    for other in ({"src": "10.0.0.2"}, {"id": 10}, {"proto": 17}, {"dst": "10.0.0.255"}):
        assert not is_answered(station, first, piece((512, 1032, False), **other))
    assert len(reassembly(station)) == 5
    assert is_answered(station, piece((512, 1032, False)))


# --- floods ---------------------------------------------------------------------------


def test_datagrams_that_never_end_are_bounded_and_time_out() -> None:
    station = known()
    station.exchange(*(piece((0, 64, True), id=n) for n in range(2 * FRAGMENT_FLOWS_MAX)))
    assert len(reassembly(station)) == FRAGMENT_FLOWS_MAX
    assert station.counters["ip.fragment_evicted"] == FRAGMENT_FLOWS_MAX
    assert is_answered(station, piece((0, 512, True), id=9999), piece((512, 1032, False), id=9999))
    station.clock.run(FRAGMENT_WAITS + SECOND)
    assert len(reassembly(station)) == reassembly(station).charged_bytes == 0


def test_large_datagrams_that_never_end_are_bounded_in_bytes() -> None:
    station = known()
    frames = [piece((at, at + 1480, True), bytes(60000)) for at in range(0, 59200, 1480)]
    for number in range(100):
        for one in frames:
            station.stack.receive(of_another(one, number), station.clock.now())
        assert reassembly(station).charged_bytes <= FRAGMENT_BYTES_MAX
    assert station.counters["ip.fragment_evicted"] > 20
    assert honest_works(station)


def of_another(one: bytes, number: int) -> bytes:
    """The same fragment, of the datagram with this identification."""
    header = bytearray(one[14:34])
    header[4:6] = number.to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return one[:14] + header + one[34:]


def test_a_datagram_of_a_thousand_tiny_fragments_is_condemned() -> None:
    station = known()
    text = bytes(8 * 1000)
    station.exchange(*(piece((at, at + 8, True), text) for at in range(0, len(text), 8)))
    assert station.counters["ip.fragment_too_many"] == 1
    assert station.counters["ip.fragment_condemned"] == 1000 - FRAGMENT_PIECES_MAX - 1
    assert honest_works(station)


def test_a_flood_makes_us_say_little() -> None:
    """Of datagrams that time out, the first fragments are reported, and not all of them."""
    station = known()
    station.exchange(*(piece((0, 64, True), id=number) for number in range(FRAGMENT_FLOWS_MAX)))
    station.clock.run(FRAGMENT_WAITS // 2)
    station.exchange(greeting())
    station.clock.run(FRAGMENT_WAITS // 2 + SECOND)
    reports = [one for one in map(Ether, station.peer.take()) if ICMP in one]
    assert 0 < len(reports) < FRAGMENT_FLOWS_MAX // 2
    assert {(one[ICMP].type, one[ICMP].code) for one in reports} == {(11, 1)}
    assert station.counters["icmp.rate_limited"] > 0


# --- fragments that we make ---------------------------------------------------------------


@pytest.mark.parametrize("mtu", [576, 577, 583, 1006, 1280, 1492, 1500])
@pytest.mark.parametrize("count", [0, 1, 548, 549, 1472, 1473, 8192, 32768, 65507])
def test_a_reply_of_any_size_arrives_over_any_MTU(mtu: int, count: int) -> None:
    """An NFS reply over UDP: every fragment fits, none is empty, all but the last are multiples of
    eight, and scapy makes the same datagram of them."""
    station = Station(mtu=mtu)
    station.exchange(greeting())
    socket = station.stack.udp.bind(2049, lambda *_: None)
    data = bytes(number % 251 for number in range(count))
    station.peer.take()
    assert socket.send_to(bytes([10, 0, 0, 1]), 700, [data[:100], data[100:]])
    station.clock.run(SECOND // 1000)
    packets = [Ether(raw)[IP] for raw in station.peer.take()]
    assert all(packet.len <= mtu and packet.len > 20 for packet in packets)
    assert all(packet.len % 8 == 20 % 8 for packet in packets[:-1])
    assert len({packet.id for packet in packets}) == 1
    assert len(packets) == -(-(count + 8) // ((mtu - 20) // 8 * 8)) or count + 28 <= mtu
    (whole,) = defragment(packets) if len(packets) > 1 else packets  # type: ignore[no-untyped-call]
    again = IP(bytes(whole))
    assert bytes(again[UDP].payload) == data
    sent = again[UDP].chksum
    del again[UDP].chksum
    assert IP(bytes(again))[UDP].chksum == sent


def test_what_scapy_cuts_at_every_size_arrives() -> None:
    station = known()
    for size in range(8, 600, 40):
        packet = IP(src=PEER, dst=US, id=size) / ICMP(id=size) / bytes(1000)
        cut = scapy_fragment(packet, size)  # type: ignore[no-untyped-call]
        assert is_answered(station, *map(frame, cut))
