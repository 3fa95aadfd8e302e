"""The whole host: what reaches TCP, UDP and ICMP, what does not, and what that is counted as.

Invariant of every test here: whatever a peer sends, `receive` returns.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Dot3, Ether
from scapy.packet import Packet

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import (
    FRAGMENT_BYTES_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_RESOLVING_MAX,
    PATHS_MAX,
)
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import DATA_VALID, NEEDS_CSUM, VnetHeader
from tests.sim.clock import VirtualClock
from tests.sim.reader import Reader
from tests.sim.station import OUR_ADDRESS, OUR_MAC, OURS, PEER, PEER_MAC, Station
from tests.sim.wire import Conditions, Host, Wire, evidence

US, THEM = "10.0.0.5", "10.0.0.1"
US_AT, THEM_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")
EVERYBODY_AT = "ff:ff:ff:ff:ff:ff"


def ether(**fields: Any) -> Ether:
    return Ether(**{"src": THEM_AT, "dst": US_AT, **fields})


def ip(**fields: Any) -> IP:
    return IP(**{"src": THEM, "dst": US, **fields})


def padded(packet: Packet) -> bytes:
    return bytes(packet).ljust(60, b"\xee")


# --- drops have names -------------------------------------------------------------------

DROPS: list[tuple[str, bytes]] = [
    ("ethernet.truncated", b""),
    ("ethernet.truncated", bytes(13)),
    ("ethernet.802_3", bytes(Dot3(src=THEM_AT, dst=US_AT) / bytes(40))),
    ("ethernet.unknown_type", bytes(ether(type=0x86DD) / bytes(40))),
    ("ethernet.unknown_type", bytes(ether(type=0x8100) / bytes(40))),
    ("ethernet.not_for_us", bytes(ether(dst="02:00:00:00:00:77") / ip() / UDP())),
    ("ethernet.not_for_us", bytes(ether(dst="01:00:5e:00:00:01") / ip() / UDP())),
    ("ethernet.own_source", bytes(ether(src=US_AT) / ip() / UDP())),
    ("ethernet.bad_source", bytes(ether(src=EVERYBODY_AT) / ip() / UDP())),
    ("ethernet.bad_source", bytes(ether(src="01:00:00:00:00:01") / ip() / UDP())),
    ("arp.truncated", bytes(ether() / ARP(hwsrc=THEM_AT))[:41]),
    ("ip.truncated", bytes(ether() / ip())[:33]),
    ("ip.bad_version", bytes(ether() / ip(version=5) / UDP())),
    ("ip.bad_checksum", bytes(ether() / ip(chksum=1) / UDP())),
    ("ip.bad_header_length", bytes(ether() / ip(ihl=3) / UDP())),
    ("ip.bad_total_length", bytes(ether() / ip(len=8) / UDP())),
    ("ip.truncated", bytes(ether() / ip(len=2000) / UDP())),
    ("ip.own_source", bytes(ether() / ip(src=US) / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="255.255.255.255") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="10.0.0.255") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="10.0.0.0") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="224.0.0.1") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="240.0.0.1") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="127.0.0.1") / TCP(flags="S"))),
    ("ip.bad_source", bytes(ether() / ip(src="0.0.0.0") / UDP())),
    ("ip.not_for_us", bytes(ether() / ip(dst="10.0.0.6") / UDP())),
    ("ip.not_for_us", bytes(ether() / ip(dst="224.0.0.1") / UDP())),
    ("ip.unicast_in_broadcast", bytes(ether(dst=EVERYBODY_AT) / ip() / UDP())),
    ("ip.broadcast", bytes(ether(dst=EVERYBODY_AT) / ip(dst="10.0.0.255") / TCP(flags="S"))),
    ("ip.broadcast", bytes(ether() / ip(dst="255.255.255.255") / ICMP())),
    ("ip.unknown_protocol", bytes(ether() / ip(proto=2) / bytes(8))),
    ("ip.fragment_empty", bytes(ether() / ip(flags="MF"))),
    ("ip.fragment_bad_length", bytes(ether() / ip(flags="MF", proto=17) / bytes(9))),
    ("ip.fragment_too_long", bytes(ether() / ip(frag=8191, proto=17) / bytes(16))),
    ("icmp.truncated", bytes(ether() / ip(proto=1) / bytes(7))),
    ("icmp.bad_checksum", bytes(ether() / ip() / ICMP(chksum=1))),
    ("icmp.truncated_quote", bytes(ether() / ip() / ICMP(type=3, code=3))),
    ("udp.truncated", bytes(ether() / ip(proto=17) / bytes(7))),
    ("udp.bad_checksum", bytes(ether() / ip() / UDP(dport=9, chksum=1) / b"x")),
    ("udp.no_listener", bytes(ether() / ip() / UDP(dport=9))),
    ("tcp.bad_checksum", bytes(ether() / ip() / TCP(flags="S", chksum=1))),
    ("tcp.no_connection", bytes(ether() / ip() / TCP(flags="S", dport=9))),
]


@pytest.mark.parametrize("has_vnet_header", [False, True])
@pytest.mark.parametrize(("reason", "frame"), DROPS)
def test_a_bad_frame_is_dropped_and_counted_under_its_reason(
    reason: str, frame: bytes, has_vnet_header: bool
) -> None:
    station = Station(vnet=has_vnet_header)
    before = dict(station.counters)
    station.exchange(frame)
    changed = {k: v - before.get(k, 0) for k, v in station.counters.items()}
    reports = {"icmp.error_out", "icmp.error_in", "arp.answered"}
    assert {k for k, v in changed.items() if v and k not in reports} == {reason}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\1" + b"\xff" * 9, "vnet.bad_csum_start"),
        (VnetHeader(0, vnet.GSO_TCPV4, gso_size=0).emit(), "vnet.bad_gso_size"),
        (VnetHeader(0, vnet.GSO_TCPV4, gso_size=65535).emit(), "vnet.bad_gso_size"),
        (VnetHeader(0, 77, gso_size=1).emit(), "vnet.bad_gso_type"),
        (b"\1", "vnet.truncated"),
    ],
)
def test_garbage_in_the_vnet_header_is_dropped(header: bytes, reason: str) -> None:
    station = Station(vnet=True)
    frame = bytes(ether() / ip() / UDP(dport=9)) if len(header) == 10 else b""
    station.stack.receive(header + frame, station.clock.now())
    assert station.counters[reason] == 1


@pytest.mark.parametrize(
    "packet",
    [
        ether() / ip() / TCP(flags="S", dport=9) / b"text",
        ether() / ip(options=[b"\1"] * 8) / TCP(flags="S", dport=9),
        ether() / ip() / UDP(dport=9) / b"data",
        ether() / ip() / ICMP() / b"data",
        ether() / ip() / ICMP(type=3, code=3) / IP(src=US, dst=THEM) / TCP(),
        ether() / ARP(op=1, hwsrc=THEM_AT, psrc=THEM, pdst=US),
        ether() / fragment(ip() / ICMP() / bytes(100), 80)[0],  # type: ignore[no-untyped-call]
    ],
)
@pytest.mark.parametrize("has_vnet_header", [False, True])
def test_no_length_of_a_frame_does_harm(packet: Packet, has_vnet_header: bool) -> None:
    """Cut at every byte, and cut but with the IP length corrected, so that the cut goes deeper."""
    station = Station(vnet=has_vnet_header)
    whole = bytes(packet)
    front = vnet.NOTHING if has_vnet_header else b""
    now = station.clock.now()
    for length in range(len(whole)):
        station.stack.receive(front[:length] + whole[: max(0, length - len(front))], now)
        station.stack.receive(front + whole[:length], now)
        if length > 34 and IP in packet:
            shorter = ip(proto=packet[IP].proto) / whole[34:length]
            station.stack.receive(front + bytes(ether() / shorter), now)
    station.stack.flush(now)


def test_padding_behind_a_short_packet_is_ignored() -> None:
    station = Station()
    station.exchange(padded(ether() / ARP(op=1, hwsrc=THEM_AT, psrc=THEM, pdst=US)))
    (answer,) = station.exchange(padded(ether() / ip() / ICMP() / b"x"))
    assert bytes(Ether(answer)[ICMP].payload) == b"x"


# --- the express lane and the long way agree ----------------------------------------------


class Pair:
    """Two stacks and one connection between them."""

    def __init__(
        self, headers: tuple[bool, bool], conditions: Conditions, whole: bool = False
    ) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(
            self.clock, seed=11, conditions=conditions, vnet_headers=headers, whole=whole
        )
        self.a = Host(self.wire.a, self.clock, PEER, 1)
        self.b = Host(self.wire.b, self.clock, OURS, 2)
        self.here, self.there = Reader(), Reader()
        self.b.stack.tcp.listen(2049, self._accept)
        self.clock.run(5 * SECOND)
        self.connection = self.a.stack.tcp.connect(OUR_ADDRESS, 2049, self.here, self.clock.now())
        self.a.act()

    def _accept(self, _connection: Connection) -> Reader:
        return self.there

    def send(self, text: bytes) -> None:
        self.connection.send([text])
        self.a.act()
        done = self.clock.run_while(lambda: len(self.there.text) < len(text), 120 * SECOND)
        assert done and self.there.text == text


TEXT = bytes(Random(5).randbytes(1 << 18))
KINDS = [((True, True), True), ((True, True), False), ((True, False), False)]
KINDS += [((False, True), False), ((False, False), False)]


@pytest.mark.parametrize(("headers", "whole"), KINDS)
def test_text_arrives_over_every_pair_of_links(headers: tuple[bool, bool], whole: bool) -> None:
    pair = Pair(headers, Conditions(delay=MILLISECOND), whole)
    with evidence(pair.wire, "every-pair"):
        pair.send(TEXT)
    assert not pair.b.counters["tcp.bad_checksum"]


@pytest.mark.parametrize("headers", [(True, True), (False, False)])
def test_text_arrives_over_a_wire_that_does_everything_wrong(headers: tuple[bool, bool]) -> None:
    bad = Conditions(
        delay=5 * MILLISECOND,
        loss=0.02,
        duplication=0.02,
        reordering=0.05,
        reordering_delay=4 * MILLISECOND,
        damage=0.01,
    )
    pair = Pair(headers, bad)
    with evidence(pair.wire, "everything-wrong"):
        pair.send(TEXT)
    assert pair.wire.counters["wire.lost"] and pair.wire.counters["wire.damaged"]


def segment(pair: Pair, text: bytes, **fields: Any) -> Packet:
    """The next segment of the connection, as scapy makes it."""
    c = pair.connection
    tcp = TCP(sport=c.local_port, dport=2049, flags="PA", window=1000)
    tcp.seq, tcp.ack = c.snd.nxt % 2**32, c.rcv.nxt % 2**32
    if c.stamps:
        (other,) = pair.b.stack.tcp.connections.values()
        tcp.options = [("NOP", None), ("NOP", None), ("Timestamp", (other.stamp_recent, 0))]
    return ether() / ip(**fields) / tcp / text


def taken_by(pair: Pair) -> Callable[[bytes], tuple[bool, bytes]]:
    """Give the frame to B: did the express lane take it, and which text has arrived?"""
    (connection,) = pair.b.stack.tcp.connections.values()
    key = connection.key
    asked: list[bool] = []

    class Watched:
        """The connection, with a look at what `express` says."""

        def express(self, *arguments: Any) -> bool:
            asked.append(connection.express(*arguments))
            return asked[-1]

    def give(frame: bytes) -> tuple[bool, bytes]:
        pair.b.stack.tcp.connections[key] = Watched()  # type: ignore[assignment]
        asked.clear()
        long_way = pair.b.stack._take

        def take(frame: bytes, now: Instant) -> None:
            pair.b.stack.tcp.connections[key] = connection
            long_way(frame, now)

        pair.b.stack._take = take  # type: ignore[method-assign]
        pair.b.stack.receive(frame, pair.clock.now())
        pair.b.stack._take = long_way  # type: ignore[method-assign]
        pair.b.stack.tcp.connections[key] = connection
        return asked == [True], pair.there.text

    return give


NEEDS = VnetHeader(NEEDS_CSUM, csum_start=34, csum_offset=16).emit()


def open_pair(has_vnet_header: bool) -> Pair:
    pair = Pair((has_vnet_header, has_vnet_header), Conditions())
    pair.clock.run(SECOND)
    return pair


@pytest.mark.parametrize("flags", [NEEDS_CSUM, DATA_VALID, 0])
def test_a_plain_segment_takes_the_express_lane_on_a_vnet_link(flags: int) -> None:
    pair = open_pair(True)
    front = VnetHeader(flags, csum_start=34, csum_offset=16).emit()
    assert taken_by(pair)(front + padded(segment(pair, b"text"))) == (True, b"text")


def test_a_plain_segment_takes_the_express_lane_on_a_plain_link() -> None:
    pair = open_pair(False)
    assert taken_by(pair)(padded(segment(pair, b"text"))) == (True, b"text")


@pytest.mark.parametrize("flags", [NEEDS_CSUM, DATA_VALID])
def test_a_checksum_that_is_known_good_is_not_looked_at(flags: int) -> None:
    pair = open_pair(True)
    frame = segment(pair, b"text")
    frame[TCP].chksum = 0x1234
    front = VnetHeader(flags, csum_start=34, csum_offset=16).emit()
    assert taken_by(pair)(front + bytes(frame)) == (True, b"text")


@pytest.mark.parametrize("has_vnet_header", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chksum": 1}, "ip.bad_checksum"),
        ({"src": "10.0.0.2"}, "tcp.ack_to_listener"),
        ({"dst": "10.0.0.6"}, "ip.not_for_us"),
        ({"proto": 17}, "udp"),
        ({"version": 6}, "ip.bad_version"),
        ({"len": 39}, "tcp"),
        ({"len": 1500}, "ip.truncated"),
        ({"frag": 1}, ""),
        ({"flags": "MF"}, "ip.fragment_bad_length"),
        ({"ihl": 6}, ""),
    ],
)
def test_the_express_lane_refuses_what_is_not_plain(
    change: dict[str, Any], reason: str, has_vnet_header: bool
) -> None:
    """The same frame is fine without the change (tests above)."""
    pair = open_pair(has_vnet_header)
    front = vnet.NOTHING if has_vnet_header else b""
    before = dict(pair.b.counters)
    taken, text = taken_by(pair)(front + bytes(segment(pair, b"text!", **change)))
    assert not taken and not text
    news = {k for k, v in pair.b.counters.items() if v != before.get(k, 0)}
    assert any(k.startswith(reason) for k in news) or not reason


@pytest.mark.parametrize("has_vnet_header", [False, True])
def test_a_segment_to_another_mac_is_not_ours(has_vnet_header: bool) -> None:
    pair = open_pair(has_vnet_header)
    frame = segment(pair, b"text")
    frame.dst = "02:00:00:00:00:77"
    front = VnetHeader(DATA_VALID).emit() if has_vnet_header else b""
    assert taken_by(pair)(front + bytes(frame)) == (False, b"")
    assert pair.b.counters["ethernet.not_for_us"] == 1


@pytest.mark.parametrize("has_vnet_header", [False, True])
def test_any_wrong_bit_of_a_segment_is_found(has_vnet_header: bool) -> None:
    """From the IP header to the end of the text; the express lane verifies, too."""
    pair = open_pair(has_vnet_header)
    give = taken_by(pair)
    good = bytes(segment(pair, b"some text"))
    front = vnet.NOTHING if has_vnet_header else b""
    for at in range(14, len(good)):
        for bit in (0, 3, 7):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            taken, text = give(front + bytes(bad))
            assert not taken and not text, (at, bit)
    assert give(front + good) == (True, b"some text")


def last_segment(pair: Pair) -> Packet:
    """The next one, with a FIN: not what the express lane takes."""
    frame = segment(pair, b"text")
    frame[TCP].flags = "FPA"
    return frame


def first_segment(pair: Pair) -> Packet:
    """Of another connection."""
    return ether() / ip() / TCP(sport=9, dport=2049, flags="S")


FRONTS = [VnetHeader(DATA_VALID).emit(), NEEDS, vnet.NOTHING, b""]


@pytest.mark.parametrize("front", FRONTS)
def test_what_is_not_predicted_takes_the_short_way(
    front: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_pair(bool(front))
    monkeypatch.delattr(Stack, "_take")
    pair.b.stack.receive(front + padded(last_segment(pair)), pair.clock.now())
    assert pair.there.text == b"text"


@pytest.mark.parametrize("front", FRONTS)
def test_a_syn_takes_the_short_way(front: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_pair(bool(front))
    monkeypatch.delattr(Stack, "_take")
    pair.b.stack.receive(front + padded(first_segment(pair)), pair.clock.now())
    assert len(pair.b.stack.tcp.connections) == 2


@pytest.mark.parametrize(
    ("front", "change", "reason"),
    [
        (NEEDS[:6] + b"\xff\xff" + NEEDS[8:], {}, "vnet.bad_csum_start"),
        (VnetHeader(DATA_VALID, 77).emit(), {}, "vnet.bad_gso_type"),
        (VnetHeader(DATA_VALID).emit(), {"chksum": 1}, "ip.bad_checksum"),
        (VnetHeader(DATA_VALID).emit(), {"mac": US_AT}, "ethernet.own_source"),
        (VnetHeader(DATA_VALID).emit(), {"mac": EVERYBODY_AT}, "ethernet.bad_source"),
        (b"", {"chksum": 1}, "ip.bad_checksum"),
        (b"", {"mac": US_AT}, "ethernet.own_source"),
        (b"", {"mac": EVERYBODY_AT}, "ethernet.bad_source"),
    ],
)
@pytest.mark.parametrize("make", [first_segment, last_segment])
def test_the_short_way_takes_nothing_that_the_long_way_drops(
    make: Callable[[Pair], Packet], front: bytes, change: dict[str, Any], reason: str
) -> None:
    pair = open_pair(bool(front))
    frame = make(pair)
    frame.src = change.get("mac", THEM_AT)
    frame[IP].chksum = change.get("chksum")
    pair.b.stack.receive(front + padded(frame), pair.clock.now())
    assert pair.b.counters[reason] == 1 and not pair.there.text
    assert len(pair.b.stack.tcp.connections) == 1


def test_options_of_ip_take_the_long_way_and_arrive() -> None:
    pair = open_pair(False)
    taken, text = taken_by(pair)(bytes(segment(pair, b"text", options=[b"\1"] * 4)))
    assert (taken, text) == (False, b"text")


def test_a_segment_in_fragments_arrives() -> None:
    pair = open_pair(False)
    give = taken_by(pair)
    pieces = fragment(segment(pair, bytes(2000))[IP], 800)  # type: ignore[no-untyped-call]
    results = [give(bytes(ether() / piece)) for piece in pieces]
    assert results[-1] == (False, bytes(2000))


# --- floods and fuzz ----------------------------------------------------------------------


def used_bytes_after(act: Callable[[], None]) -> int:
    """Memory in use, of what was allocated since tracemalloc was started."""
    act()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def readdress(frame: bytes, at: int, host: bytes) -> bytes:
    """Another sender, with the IP header's checksum corrected (RFC 1624, equation 3)."""
    forged = bytearray(frame)
    forged[at + 1 : at + 4] = host
    if forged[12:14] == b"\x08\x00":
        total = 0xFFFF - int.from_bytes(frame[24:26], "big")
        for word in (at, at + 2):
            total += 0xFFFF - int.from_bytes(frame[word : word + 2], "big")
            total += int.from_bytes(forged[word : word + 2], "big")
        forged[24:26] = (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2, "big")
    return bytes(forged)


def test_a_flood_from_forged_addresses_leaves_memory_flat() -> None:
    """Pings, ARP requests and fragments from ever new addresses, for minutes of virtual time."""
    station = Station(config=HostConfig.single(OUR_MAC, OUR_ADDRESS, 8))
    frames = [
        bytes(ether() / ip(src="10.1.2.3") / ICMP() / b"data"),
        bytes(ether() / ARP(op=1, hwsrc=THEM_AT, psrc="10.1.2.3", pdst=US)),
        bytes(ether() / ip(src="10.1.2.3", flags="MF", proto=17) / bytes(1480)),
    ]
    places = [frame.index(bytes([10, 1, 2, 3])) for frame in frames]
    random = Random(3)

    def flood(count: int) -> None:
        for number in range(count):
            for frame, place in zip(frames, places, strict=True):
                forged = readdress(frame, place, random.randbytes(3))
                station.stack.receive(forged, station.clock.now())
            if number % 10 == 0:
                station.host.act()
                station.clock.run(100 * MILLISECOND)
                station.peer.take()
                station.wire.record.clear()

    tracemalloc.start()
    full = used_bytes_after(lambda: flood(2000))
    more = used_bytes_after(lambda: flood(2000))
    tracemalloc.stop()
    assert full < FRAGMENT_BYTES_MAX + 4096 * (
        PATHS_MAX + NEIGHBOURS_MAX + NEIGHBOURS_RESOLVING_MAX
    )
    assert more < 1.05 * full
    assert station.counters["ip.bad_checksum"] == 0, "the forged packets are good ones"
    assert station.counters["icmp.echo"] > 3900
    station.exchange(bytes(ether() / ARP(op=1, hwsrc=THEM_AT, psrc=THEM, pdst=US)))
    (answer,) = station.exchange(bytes(ether() / ip() / ICMP()))
    assert Ether(answer)[ICMP].type == 0, "and it still answers"


def corpus(pair: Pair) -> list[bytes]:
    """Valid frames of all kinds."""
    frames: list[Packet] = [
        ether() / ARP(op=1, hwsrc=THEM_AT, psrc=THEM, pdst=US),
        ether() / ARP(op=2, hwsrc=THEM_AT, psrc=THEM, pdst=US),
        ether() / ip() / ICMP() / b"ping",
        ether() / ip() / ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=US, dst=THEM) / TCP(),
        ether() / ip() / ICMP(type=11) / IP(src=US, dst=THEM) / UDP(),
        ether() / ip() / UDP(dport=7) / b"data",
        ether() / ip() / UDP(dport=9) / b"nobody",
        ether(dst=EVERYBODY_AT) / ip(dst="10.0.0.255") / UDP(dport=7),
        ether() / ip(options=[b"\1"] * 8) / TCP(flags="S", dport=2049),
        ether() / ip() / TCP(flags="S", dport=2049, options=[("MSS", 1460), ("WScale", 7)]),
        segment(pair, b"text"),
        segment(pair, b""),
        segment(pair, bytes(1448)),
    ]
    pieces = fragment(ip() / UDP(dport=7) / bytes(3000), 1480)  # type: ignore[no-untyped-call]
    return [bytes(frame) for frame in (*frames, *(ether() / piece for piece in pieces))]


def mutate(frame: bytes, random: Random) -> bytes:
    """A few wrong bytes, a cut, or something repeated; the checksums corrected half of the time, so
    that the damage gets further in."""
    bad = bytearray(frame)
    for _ in range(random.randrange(4)):
        at = min(int(random.expovariate(1 / 25)), len(bad) - 1)
        bad[at] = random.choice((0, 1, 0x45, 0x7F, 0x80, 0xFF, random.randrange(256)))
    if random.random() < 0.2:
        del bad[random.randrange(len(bad)) :]
    if random.random() < 0.1:
        at = random.randrange(len(bad) + 1)
        bad[at:at] = bad[: random.randrange(60)]
    if random.random() < 0.5 and len(bad) >= 34:
        bad[24:26] = bytes(2)
        again = IP(bytes(bad[14:34]))
        bad[24:26] = again.__class__(bytes(again)).chksum.to_bytes(2, "big")
    return bytes(bad)


@pytest.mark.parametrize("has_vnet_header", [False, True])
def test_10000_damaged_frames_raise_nothing(has_vnet_header: bool) -> None:
    """Seeded. Afterwards the connection, the echo and the limits are as they should be."""
    pair = open_pair(has_vnet_header)
    pair.b.stack.udp.bind(7, lambda *_: None)
    random = Random(20)
    frames = corpus(pair)
    flags = (0, 0, NEEDS_CSUM, DATA_VALID, 0xFF)
    for number in range(10_000):
        front = b""
        if has_vnet_header:
            front = VnetHeader(random.choice(flags), 0, 0, 0, 34, 16).emit()
            if random.random() < 0.1:
                front = random.randbytes(10)
        pair.b.stack.receive(front + mutate(random.choice(frames), random), pair.clock.now())
        if number % 20 == 0:
            pair.b.act()
            pair.clock.run(10 * MILLISECOND)
    reasons = {name for name, count in pair.b.counters.items() if count}
    layers = {name.split(".")[0] for name in reasons}
    assert layers >= {"ethernet", "arp", "ip", "icmp", "udp", "tcp"}
    assert len(reasons) > 30
    deadline = pair.b.stack.next_deadline
    assert deadline is None or deadline > pair.clock.now()
