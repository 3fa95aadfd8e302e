"""IPv6 packets (RFC 8200, 4443): what is answered, what is refused and how."""

from __future__ import annotations

from random import Random

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    defragment6,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import ICMP_ERRORS_BURST, IPV6_EXTENSIONS_MAX, IPV6_FRAGMENT_WAITS
from appliance.netstack.stack import HostConfig
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import DATA_VALID, NEEDS_CSUM, VnetHeader
from tests.sim.clock import VirtualClock
from tests.sim.reader import Reader
from tests.sim.station import OUR_MAC, PEER_MAC
from tests.sim.station6 import (
    OUR_ADDRESS,
    OUR_LINK_LOCAL,
    OURS6,
    PEER,
    PEER6,
    PEER_ADDRESS,
    US,
    US_AT,
    Station6,
    advertisement,
    frame,
    ip6,
    solicitation,
)
from tests.sim.wire import Conditions, Host, Wire, evidence

BOTH_LINKS = pytest.mark.parametrize("has_vnet_header", [False, True])
ECHO = ICMPv6EchoRequest(id=7, seq=9, data=b"hello")


def rebuilt(packet: Packet) -> bytes:
    """The frame, with checksums and lengths as scapy computes them."""
    again = Ether(bytes(packet))
    for layer in (UDP, TCP, ICMPv6EchoReply, ICMPv6DestUnreach, ICMPv6ParamProblem):
        if layer in again:
            field = "chksum" if layer in (UDP, TCP) else "cksum"
            delattr(again[layer], field)
    return bytes(again)


# --- answers --------------------------------------------------------------------------


@BOTH_LINKS
def test_an_echo_is_answered(has_vnet_header: bool) -> None:
    (answer,) = Station6(vnet=has_vnet_header).exchange(frame(ip6() / ECHO))
    assert (answer[IPv6].src, answer[IPv6].dst) == (US, PEER)
    reply = answer[ICMPv6EchoReply]
    assert (reply.id, reply.seq, reply.data) == (7, 9, b"hello")
    assert rebuilt(answer) == bytes(answer)


def test_an_echo_to_all_is_answered_from_an_address_of_our_own() -> None:
    packet = IPv6(src="fe80::1", dst="ff02::1") / ECHO
    station = Station6()
    station.exchange(solicitation(source="fe80::1", target=OUR_LINK_LOCAL, to=OUR_LINK_LOCAL))
    (answer,) = station.exchange(frame(packet, "33:33:00:00:00:01"))
    assert (answer[IPv6].src, answer[IPv6].dst) == (OUR_LINK_LOCAL, "fe80::1")


@BOTH_LINKS
def test_a_datagram_is_delivered_and_answered(has_vnet_header: bool) -> None:
    station = Station6(vnet=has_vnet_header)
    got: list[tuple[bytes, int, bytes, bytes]] = []

    def receive(source: bytes, port: int, destination: bytes, data: memoryview) -> None:
        got.append((source, port, destination, bytes(data)))
        socket.send_to(source, port, [b"got ", data], destination)

    socket = station.stack.udp.bind(2049, receive)
    (answer,) = station.exchange(frame(ip6() / UDP(sport=700, dport=2049) / b"hello"))
    assert got == [(PEER_ADDRESS, 700, OUR_ADDRESS, b"hello")]
    assert bytes(answer[UDP].payload) == b"got hello"
    assert rebuilt(answer) == bytes(answer)


@BOTH_LINKS
@pytest.mark.parametrize("count", [1452, 1453, 9000, 32768, 65507])
def test_a_datagram_of_any_size_goes_both_ways(has_vnet_header: bool, count: int) -> None:
    station = Station6(vnet=has_vnet_header)
    got: list[bytes] = []
    socket = station.stack.udp.bind(2049, lambda _s, _p, _d, data: got.append(bytes(data)))
    data = (bytes(range(251)) * 262)[:count]
    request = IPv6(bytes(ip6() / UDP(sport=700, dport=2049) / data))
    pieces = cut(request)
    Random(count).shuffle(pieces)
    station.exchange(*(frame(piece) for piece in pieces))
    assert got == [data]
    socket.send_to(PEER_ADDRESS, 700, [data[:99], memoryview(data)[99:]])
    answers = station.run(MILLISECOND)
    assert all(len(answer) <= 1514 for answer in answers)
    packets = [answer[IPv6] for answer in answers]
    whole = IPv6(bytes(defragment6(packets) if len(packets) > 1 else packets[0]))  # type: ignore[no-untyped-call]
    assert bytes(whole[UDP].payload) == data
    wanted = whole[UDP].chksum
    del whole[UDP].chksum
    assert IPv6(bytes(whole))[UDP].chksum == wanted != 0


def cut(packet: Packet, size: int = 1500) -> list[Packet]:
    """In fragments, where it does not fit."""
    if len(packet) <= size:
        return [packet]
    first = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=5)
    return list(fragment6(first / packet.payload, size))  # type: ignore[no-untyped-call]


def test_the_port_that_nobody_has_bound_is_reported_with_the_packet() -> None:
    """What traceroute waits for."""
    packet = ip6(hlim=1) / UDP(sport=700, dport=33434) / b"hello"
    (report,) = Station6().exchange(frame(packet))
    unreachable = report[ICMPv6DestUnreach]
    assert (report[IPv6].dst, unreachable.code) == (PEER, 4)
    assert bytes(unreachable.payload) == bytes(packet)
    assert rebuilt(report) == bytes(report)


def test_a_report_fits_into_the_smallest_mtu() -> None:
    (report,) = Station6().exchange(frame(ip6() / UDP(dport=9) / bytes(1400)))
    assert len(report[IPv6]) == 1280


def test_reports_are_rationed() -> None:
    station = Station6()
    frames = [frame(ip6() / UDP(dport=9))] * (ICMP_ERRORS_BURST + 20)
    assert len(station.exchange(*frames)) == ICMP_ERRORS_BURST
    assert station.counters["icmpv6.rate_limited"] == 20


# --- extension headers ------------------------------------------------------------------


def options(*raw: bytes) -> Packet:
    body = b"".join(raw)
    body += bytes(-(len(body) + 2) % 8)
    return Raw(bytes((58, (len(body) + 2) // 8 - 1)) + body)


@pytest.mark.parametrize(
    "packet",
    [
        ip6() / IPv6ExtHdrHopByHop() / ECHO,
        ip6() / IPv6ExtHdrDestOpt() / ECHO,
        ip6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / ECHO,
        ip6() / IPv6ExtHdrRouting(type=0, segleft=0, addresses=[PEER]) / ECHO,
        ip6() / IPv6ExtHdrRouting(type=77, segleft=0) / ECHO,
        ip6() / IPv6ExtHdrFragment(id=1) / ECHO,
        ip6(nh=60) / options(b"\x1e\x04abcd") / ECHO,
    ],
)
def test_extension_headers_are_skipped(packet: Packet) -> None:
    (answer,) = Station6().exchange(frame(IPv6(bytes(packet))))
    assert answer[ICMPv6EchoReply].data == b"hello"


@pytest.mark.parametrize(
    ("packet", "reason", "code", "pointer"),
    [
        (ip6(nh=200) / Raw(bytes(20)), "ipv6.unknown_protocol", 1, 6),
        (ip6() / IPv6ExtHdrDestOpt(nh=200) / Raw(bytes(9)), "ipv6.unknown_protocol", 1, 40),
        (
            ip6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / ECHO,
            "ipv6.late_hop_by_hop",
            1,
            40,
        ),
        (
            ip6() / IPv6ExtHdrRouting(type=0, segleft=1, addresses=[PEER]) / ECHO,
            "ipv6.routing_header",
            0,
            42,
        ),
        (ip6(nh=60) / options(b"\x80\x01x") / ECHO, "ipv6.unknown_option", 2, 42),
        (ip6(nh=60) / options(b"\x01\0\xc2\x01x") / ECHO, "ipv6.unknown_option", 2, 44),
        (
            ip6() / IPv6ExtHdrFragment(m=1, nh=17) / Raw(bytes(9)),
            "ipv6.fragment_bad_length",
            0,
            4,
        ),
        (
            ip6() / IPv6ExtHdrFragment(offset=8191, nh=17) / Raw(bytes(16)),
            "ipv6.fragment_too_long",
            0,
            42,
        ),
        (
            ip6() / IPv6ExtHdrFragment(m=1, nh=6) / Raw(bytes(16)),
            "ipv6.fragment_without_header",
            3,
            0,
        ),
    ],
)
def test_what_cannot_be_dealt_with_is_reported(
    packet: Packet, reason: str, code: int, pointer: int
) -> None:
    station = Station6()
    (report,) = station.exchange(frame(packet))
    problem = report[ICMPv6ParamProblem]
    assert (problem.code, problem.ptr) == (code, pointer)
    assert bytes(problem.payload) == bytes(packet)
    assert station.counters[reason] == 1


def test_an_option_that_asks_for_it_is_reported_to_whom_sent_it_to_a_group() -> None:
    station = Station6()
    for option, count in ((b"\x80\x01x", 1), (b"\xc2\x01x", 0)):
        packet = IPv6(src=PEER, dst="ff02::1", nh=60) / options(option) / ECHO
        assert len(station.exchange(frame(packet, "33:33:00:00:00:01"))) == count


def test_a_chain_without_end_is_not_followed() -> None:
    packet = ip6()
    for _ in range(IPV6_EXTENSIONS_MAX + 1):
        packet /= IPv6ExtHdrDestOpt()
    station = Station6()
    assert not station.exchange(frame(packet / ECHO))
    assert station.counters["ipv6.too_many_extensions"] == 1


# --- drops have names -------------------------------------------------------------------

BAD: list[tuple[str, bytes]] = [
    ("ipv6.truncated", frame(ip6())[:53]),
    ("ipv6.bad_version", frame(ip6(version=5) / ECHO)),
    ("ipv6.truncated", frame(ip6(plen=999) / ECHO)),
    ("ipv6.own_source", frame(ip6(src=US) / TCP(flags="S"))),
    ("ipv6.own_source", frame(ip6(src=US) / ECHO)),
    ("ipv6.bad_source", frame(ip6(src="ff02::1") / UDP())),
    ("ipv6.bad_source", frame(ip6(src="::1") / UDP())),
    ("ipv6.bad_source", frame(ip6(src="::ffff:10.0.0.1") / TCP(flags="S"))),
    ("ipv6.bad_source", frame(ip6(src="::") / UDP())),
    ("icmpv6.bad_source", frame(ip6(src="::") / ECHO)),
    ("ipv6.not_for_us", frame(ip6(dst="fd00::6") / ECHO)),
    ("ipv6.not_for_us", frame(ip6(dst="ff02::2") / ECHO)),
    ("ipv6.not_for_us", frame(ip6(dst="ff01::1") / ECHO)),
    ("ipv6.unicast_in_group", frame(ip6() / ECHO, "33:33:00:00:00:01")),
    ("ipv6.group", frame(ip6(dst="ff02::1") / TCP(flags="S"), "33:33:00:00:00:01")),
    ("ethernet.not_for_us", frame(ip6(dst="ff02::2") / ECHO, "33:33:00:00:00:02")),
    ("ipv6.truncated_extension", frame(ip6(nh=60) / Raw(b"\x3a\x05" + bytes(6)))),
    ("ipv6.truncated_extension", frame(ip6(nh=0) / Raw(b"\x3a"))),
    ("ipv6.truncated_extension", frame(ip6(nh=44) / Raw(bytes(7)))),
    ("ipv6.truncated_option", frame(ip6(nh=60) / Raw(b"\x3a\0\x01\x09" + bytes(4)))),
    ("ipv6.unknown_option", frame(ip6(nh=60) / options(b"\x40\x01x") / ECHO)),
    ("ipv6.no_next_header", frame(ip6(nh=59))),
    ("ipv6.fragment_empty", frame(ip6() / IPv6ExtHdrFragment(m=1, nh=17))),
    ("icmpv6.truncated", frame(ip6(nh=58) / Raw(bytes(7)))),
    ("icmpv6.bad_checksum", frame(ip6() / ICMPv6EchoRequest(cksum=1))),
    ("icmpv6.unknown_type", frame(ip6(nh=58) / ICMPv6EchoReply())),
    ("icmpv6.truncated_quote", frame(ip6() / ICMPv6DestUnreach() / Raw(bytes(39)))),
    ("udp.no_checksum", frame(ip6() / UDP(dport=9, chksum=0))),
    ("udp.bad_checksum", frame(ip6() / UDP(dport=9, chksum=1))),
    ("tcp.bad_checksum", frame(ip6() / TCP(flags="S", chksum=1))),
    ("tcp.no_connection", frame(ip6() / TCP(flags="S", dport=9))),
]


@BOTH_LINKS
@pytest.mark.parametrize(("reason", "bad"), BAD)
def test_a_bad_packet_is_dropped_and_counted(
    reason: str, bad: bytes, has_vnet_header: bool
) -> None:
    station = Station6(vnet=has_vnet_header)
    before = dict(station.counters)
    station.exchange(bad)
    changed = {k for k, v in station.counters.items() if v != before.get(k, 0)}
    assert changed - {"icmpv6.error_out"} == {reason}


@pytest.mark.parametrize(
    "packet",
    [
        ip6(dst="ff02::1") / UDP(dport=9),
        ip6() / ICMPv6DestUnreach() / ip6(src=US, dst=PEER) / UDP(),
        ip6(src="::") / UDP(dport=9),
        ip6() / IPv6ExtHdrDestOpt() / ICMPv6DestUnreach(code=4) / ip6(src=US, dst=PEER) / UDP(),
    ],
)
def test_some_packets_are_never_reported(packet: Packet) -> None:
    group = packet[IPv6].dst.startswith("ff")
    assert not Station6().exchange(frame(packet, "33:33:00:00:00:01" if group else US_AT))


def test_to_a_host_without_an_ipv6_address_it_is_an_unknown_protocol() -> None:
    from tests.sim.station import OURS

    station = Station6(config=OURS, known=False)
    assert not station.exchange(frame(ip6() / ECHO), solicitation())
    assert station.counters["ethernet.unknown_type"] == 1
    assert station.counters["ethernet.not_for_us"] == 1, "not even its groups"


# --- fragments --------------------------------------------------------------------------


def piece(offset: int, text: bytes, more: int, identification: int = 1) -> bytes:
    header = IPv6ExtHdrFragment(offset=offset // 8, m=more, id=identification, nh=58)
    return frame(ip6() / header / Raw(text))


def fragments() -> tuple[bytes, bytes]:
    whole = bytes(IPv6(bytes(ip6() / ICMPv6EchoRequest(data=bytes(range(100)))))[ICMPv6EchoRequest])
    return whole[:56], whole[56:]


def test_overlapping_fragments_condemn_the_datagram() -> None:
    """RFC 8200 section 4.5, RFC 5722: all of it, and what still comes of it."""
    first, last = fragments()
    station = Station6()
    assert not station.exchange(piece(0, first, 1), piece(48, first[48:] + last, 0))
    assert not station.exchange(piece(56, last, 0), piece(0, first, 1))
    assert station.counters["ip.fragment_overlap"] == 1
    assert station.counters["ip.fragment_condemned"] == 2


def test_a_fragment_that_comes_twice_does_no_harm() -> None:
    first, last = fragments()
    (answer,) = Station6().exchange(piece(0, first, 1), piece(0, first, 1), piece(56, last, 0))
    assert answer[ICMPv6EchoReply].data == bytes(range(100))


def test_an_atomic_fragment_has_nothing_to_do_with_others_of_its_number() -> None:
    """RFC 6946."""
    first, last = fragments()
    station = Station6()
    atomic = frame(ip6() / IPv6ExtHdrFragment(id=1) / ECHO)
    answers = station.exchange(piece(0, first, 1), atomic, piece(56, last, 0))
    assert [a[ICMPv6EchoReply].data for a in answers] == [b"hello", bytes(range(100))]


def test_a_datagram_that_never_becomes_complete_is_reported() -> None:
    first, _ = fragments()
    station = Station6()
    assert not station.exchange(piece(0, first, 1))
    assert not station.run(IPV6_FRAGMENT_WAITS - SECOND)
    station.exchange(solicitation())
    reports = [p for p in station.run(2 * SECOND) if ICMPv6TimeExceeded in p]
    assert [report[ICMPv6TimeExceeded].code for report in reports] == [1]


def test_neighbour_discovery_in_fragments_is_refused() -> None:
    """RFC 6980."""
    whole = solicitation(to=US)[54:]
    station = Station6()
    assert not station.exchange(piece(0, whole[:16], 1), piece(16, whole[16:], 0))
    assert station.counters["nd.fragmented"] == 1


# --- TCP --------------------------------------------------------------------------------


class Pair:
    """Two stacks and one connection between them."""

    def __init__(
        self, has_vnet_header: bool, conditions: Conditions, whole: bool = False, mtu: int = 0
    ) -> None:
        self.clock = VirtualClock()
        headers = (has_vnet_header, has_vnet_header)
        self.wire = Wire(
            self.clock, seed=6, conditions=conditions, vnet_headers=headers, whole=whole
        )
        if mtu:
            self.wire.a.mtu = self.wire.b.mtu = mtu
        self.a = Host(self.wire.a, self.clock, PEER6, 1)
        self.b = Host(self.wire.b, self.clock, OURS6, 2)
        self.here, self.there = Reader(), Reader()
        self.b.stack.tcp.listen(2049, lambda _connection: self.there)
        self.clock.run(5 * SECOND)
        self.connection = self.a.stack.tcp.connect(OUR_ADDRESS, 2049, self.here, self.clock.now())
        self.a.act()
        self.clock.run(SECOND)

    def send(self, text: bytes, within: Instant = 60 * SECOND) -> bool:
        self.connection.send([text])
        self.a.act()
        return self.clock.run_while(lambda: len(self.there.text) < len(text), within)


TEXT = Random(6).randbytes(300_000)


@BOTH_LINKS
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_text_goes_over_ipv6(has_vnet_header: bool, loss: float) -> None:
    pair = Pair(has_vnet_header, Conditions(delay=MILLISECOND, loss=loss))
    with evidence(pair.wire, "ipv6"):
        assert pair.send(TEXT)
        assert pair.there.text == TEXT
        assert not pair.b.counters["tcp.bad_checksum"]


def test_super_frames_of_ipv6_go_whole_where_the_link_allows_it() -> None:
    pair = Pair(True, Conditions(), whole=True)
    before = len(pair.wire.record)
    assert pair.send(TEXT)
    assert pair.there.text == TEXT
    assert len(pair.wire.record) - before < len(TEXT) // 1440 / 4


@BOTH_LINKS
def test_the_express_lane_takes_segments_of_ipv6(
    has_vnet_header: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(has_vnet_header, Conditions())
    long_way: list[bytes] = []
    monkeypatch.setattr(pair.b.stack, "_take", lambda taken, _now: long_way.append(taken))
    assert pair.send(TEXT)
    assert not long_way


@BOTH_LINKS
def test_a_fin_over_ipv6_takes_the_short_way(
    has_vnet_header: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(has_vnet_header, Conditions())
    (connection,) = pair.b.stack.tcp.connections.values()
    monkeypatch.setattr(pair.b.stack, "_take", lambda _taken, _now: None)
    pair.connection.finish()
    pair.a.act()
    pair.clock.run(SECOND)
    assert connection.rcv.fin is not None


@BOTH_LINKS
def test_text_gets_through_where_only_smaller_packets_pass(has_vnet_header: bool) -> None:
    """RFC 8201."""
    pair = Pair(has_vnet_header, Conditions(delay=MILLISECOND, mtu=1300), mtu=1500)

    def too_large(lost: bytes) -> None:
        report = ICMPv6PacketTooBig(mtu=1300) / Raw(lost[14:1200])
        told = IPv6(src="fe80::fe", dst=PEER) / report
        bare = bytes(Ether(src="02:00:00:00:00:fe", dst=PEER_MAC.hex(":")) / told)
        deliver = pair.wire.a.deliver
        pair.clock.after(MILLISECOND, lambda: deliver(bytes(10 * has_vnet_header) + bare))

    pair.wire.too_large = too_large
    began = pair.clock.now()
    with evidence(pair.wire, "ipv6-narrow"):
        assert pair.send(TEXT)
    assert pair.clock.now() - began < SECOND, "no timer had to expire"
    assert pair.connection.path.mtu == 1300


@pytest.mark.parametrize("mtu", [0, 68, 1279, 1500, 1 << 31])
def test_a_router_that_talks_nonsense_about_sizes_is_not_believed(mtu: int) -> None:
    """RFC 8201 section 4: below 1280 it is discarded."""
    station = Station6()
    station.stack.udp.bind(2049, lambda *_: None)
    sent = IPv6(src=US, dst=PEER) / UDP(sport=2049, dport=700) / Raw(bytes(1300))
    station.exchange(frame(IPv6(src="fe80::fe", dst=US) / ICMPv6PacketTooBig(mtu=mtu) / sent))
    assert station.counters["icmpv6.bad_mtu"] == 1
    assert station.stack.ip.path_to(PEER_ADDRESS, OUR_ADDRESS).mtu == 1500


def test_a_datagram_that_was_too_large_makes_the_next_ones_smaller() -> None:
    station = Station6()
    socket = station.stack.udp.bind(2049, lambda *_: None)
    socket.send_to(PEER_ADDRESS, 700, [bytes(1400)])
    (sent,) = station.run(MILLISECOND)
    report = ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(sent[IPv6])[:1200])
    station.exchange(frame(IPv6(src="fe80::fe", dst=US) / report))
    socket.send_to(PEER_ADDRESS, 700, [bytes(1400)])
    assert [len(p[IPv6]) <= 1280 for p in station.run(MILLISECOND)] == [True, True]


# --- damage -----------------------------------------------------------------------------


def corpus(pair: Pair) -> list[bytes]:
    """Valid frames of all kinds."""
    c = pair.connection
    text = TCP(sport=c.local_port, dport=2049, flags="A", seq=c.snd.nxt, ack=c.rcv.nxt) / b"text"
    first, last = fragments()
    return [
        solicitation(),
        solicitation(to=US),
        solicitation(source="::", mac=None),
        advertisement(),
        advertisement(to="ff02::1", solicited=0),
        frame(ip6() / ECHO),
        frame(ip6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / ECHO),
        frame(ip6() / IPv6ExtHdrRouting(addresses=[PEER], segleft=0) / ECHO),
        frame(ip6() / ICMPv6DestUnreach(code=4) / IPv6(src=US, dst=PEER) / TCP()),
        frame(ip6() / ICMPv6PacketTooBig(mtu=1300) / IPv6(src=US, dst=PEER) / UDP()),
        frame(ip6() / UDP(dport=7) / b"data"),
        frame(ip6() / UDP(dport=9) / b"nobody"),
        frame(ip6() / TCP(flags="S", dport=2049, options=[("MSS", 1440), ("WScale", 7)])),
        frame(ip6() / text),
        piece(0, first, 1),
        piece(56, last, 0),
    ]


def mutate(valid: bytes, random: Random) -> bytes:
    """A few wrong bytes, a cut, or something repeated."""
    bad = bytearray(valid)
    for _ in range(random.randrange(4)):
        at = min(12 + int(random.expovariate(1 / 30)), len(bad) - 1)
        bad[at] = random.choice((0, 1, 0x3A, 0x2C, 0x60, 0xFF, random.randrange(256)))
    if random.random() < 0.2:
        del bad[random.randrange(len(bad)) :]
    if random.random() < 0.1:
        at = random.randrange(len(bad) + 1)
        bad[at:at] = bad[: random.randrange(80)]
    return bytes(bad)


@BOTH_LINKS
def test_10000_damaged_frames_raise_nothing(has_vnet_header: bool) -> None:
    """Seeded. Checksums are taken for good half of the time, so that the damage gets further in."""
    pair = Pair(has_vnet_header, Conditions())
    pair.b.stack.udp.bind(7, lambda *_: None)
    random = Random(66)
    frames = corpus(pair)
    for number in range(10_000):
        front = b""
        if has_vnet_header:
            front = VnetHeader(random.choice((0, NEEDS_CSUM, DATA_VALID)), 0, 0, 0, 34, 16).emit()
        pair.b.stack.receive(front + mutate(random.choice(frames), random), pair.clock.now())
        if number % 20 == 0:
            pair.b.act()
            pair.clock.run(10 * MILLISECOND)
    reasons = {name for name, count in pair.b.counters.items() if count}
    assert {name.split(".")[0] for name in reasons} >= {"ethernet", "ipv6", "icmpv6", "nd"}
    deadline = pair.b.stack.next_deadline
    assert deadline is None or deadline > pair.clock.now()
    # What was said about the router and the neighbours may be wrong now; the host is not.
    pair.clock.run(200 * SECOND)
    assert pair.b.stack.ip.addresses.source_for(PEER_ADDRESS) == OUR_ADDRESS


@BOTH_LINKS
def test_no_length_of_a_frame_does_harm(has_vnet_header: bool) -> None:
    station = Station6(vnet=has_vnet_header)
    front = vnet.NOTHING if has_vnet_header else b""
    now = station.clock.now()
    for packet in (ECHO, UDP(dport=9) / b"x", IPv6ExtHdrDestOpt() / ECHO, TCP(flags="S")):
        whole = frame(ip6() / packet)
        for length in range(len(whole)):
            station.stack.receive(front + whole[:length], now)
            shorter = bytearray(whole[:length])
            if length > 54:
                shorter[18:20] = (length - 54).to_bytes(2, "big")
            station.stack.receive(front + bytes(shorter), now)
    station.stack.flush(now)


def test_both_families_live_on_one_interface() -> None:
    from appliance.netstack.stack import HostAddress
    from tests.sim.station import OUR_ADDRESS as OUR_IPV4

    config = HostConfig(OUR_MAC, (HostAddress(OUR_IPV4, 24), *OURS6.addresses))
    pair = Pair(True, Conditions())
    both = Host(pair.wire.b, pair.clock, config, 3)
    pair.clock.run(5 * SECOND)
    assert both.stack.ip.addresses.source_for(PEER_ADDRESS) == OUR_ADDRESS
    assert both.stack.ip.addresses.source_for(bytes([10, 0, 0, 1])) == OUR_IPV4
