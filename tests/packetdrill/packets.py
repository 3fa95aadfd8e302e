"""Packets of a script on the wire: made from what it says, and compared with what it says.

The formats are written out here once more, away from appliance/netstack/wire, so that a mistake
there cannot hide in both. A Flow knows where the numbers of a connection begin: the peer's at
`peer_isn`, the host's where its SYN said; and how far its timestamps are from those in the script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from struct import pack, unpack_from

from tests.packetdrill.internet import (
    HOSTS4,
    TCP,
    UDP,
    Hosts,
    Malformed,
    emit_ip,
    read_ip,
    with_checksum,
)
from tests.packetdrill.language import FLAG_LETTERS, Icmp, Option, Packet, Range, Tcp, Udp

OUR_PORT = 8080
PEER_PORT = 45000

FIN, SYN, RST, PSH, ACK = (1 << bit for bit in range(5))
ECN_BITS = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}
ECN_NAMES = {bits: name for name, bits in ECN_BITS.items()}

OPTION_KINDS = {"eol": 0, "nop": 1, "mss": 2, "wscale": 3, "sackOK": 4, "sack": 5, "TS": 8}
STAMP_TICKS_OFF_MAX = 2
"""Milliseconds by which a timestamp may differ from the script's time of its packet, beyond the
tolerance: two clocks that count in them do not turn over together."""

MASK = 0xFFFF_FFFF


class Mismatch(Exception):
    """A packet that is not the one which the script expects: in what."""


def pattern(first: int, size: int) -> bytes:
    """The text of either side from byte `first` on: every byte says where it is."""
    return bytes((at ^ at >> 8 ^ at >> 16) & 0xFF for at in range(first, first + size))


@dataclass
class Flow:
    """One connection, by its ports."""

    peer_port: int
    our_port: int
    peer_isn: int
    our_isn: int = 0
    stamp_offset: int | None = None
    """What our timestamps are on the wire, less what they are in the script."""

    def relative(self, wire: int, isn: int) -> int:
        """A number as in the script: between -2**31 and 2**31."""
        return (wire - isn + (1 << 31) & MASK) - (1 << 31)


@dataclass
class Seen:
    """A packet of the host under test, with numbers as in a script, and its flags as bits."""

    body: Tcp | Udp | Icmp
    ecn: str
    ports: tuple[int, int]
    flags: int = 0
    text: bytes = b""
    seq_on_wire: int = 0

    def __str__(self) -> str:
        return f"[{self.ecn}] {self.body}"


@dataclass
class Flows:
    """All connections of a script."""

    peer_isn: int = 0
    our_port: int = OUR_PORT
    peer_port: int = PEER_PORT
    hosts: Hosts = HOSTS4
    _known: dict[tuple[int, int], Flow] = field(default_factory=dict)

    def get(self, peer_port: int | None, our_port: int | None) -> Flow:
        """The one between these ports; None: the script's."""
        key = peer_port or self.peer_port, our_port or self.our_port
        return self._known.setdefault(key, Flow(*key, self.peer_isn))

    # --- from the script to the wire --------------------------------------------------------------

    def emit(self, packet: Packet) -> bytes:
        """The IP packet that the peer sends."""
        flow = self.get(packet.source_port, packet.destination_port)
        body = packet.body
        hosts = self.hosts
        if isinstance(body, Tcp):
            protocol, payload = TCP, with_checksum(emit_tcp(body, flow), 16, TCP, hosts)
        elif isinstance(body, Udp):
            bare = emit_udp(body.size, flow.peer_port, flow.our_port)
            protocol, payload = UDP, with_checksum(bare, 6, UDP, hosts)
        else:
            bare = emit_icmp(body, flow, hosts)
            protocol, payload = hosts.icmp, with_checksum(bare, 2, hosts.icmp, hosts)
        ecn = ECN_BITS.get(packet.ecn or "noecn", 0)
        return emit_ip(protocol, payload, hosts.peer, hosts.ours, ecn)

    # --- from the wire to the script --------------------------------------------------------------

    def read(self, packet: bytes) -> Seen:
        """A packet of the host, which must be well-formed."""
        protocol, payload, bits = read_ip(packet, self.hosts)
        ecn = ECN_NAMES[bits]
        if protocol == TCP:
            return self._read_tcp(payload, ecn)
        if protocol == UDP:
            ours, peer = unpack_from("!HH", payload)
            return Seen(Udp(len(payload) - 8), ecn, (ours, peer))
        if protocol == self.hosts.icmp:
            return self._read_icmp(payload, ecn)
        raise Malformed(f"IP protocol {protocol}")

    def _read_tcp(self, segment: bytes, ecn: str) -> Seen:
        ours, peer, seq, ack, offset_flags, window, _, urgent = unpack_from("!HHIIHHHH", segment)
        text_at = (offset_flags >> 12) * 4
        if not 20 <= text_at <= len(segment):
            raise Malformed("a bad TCP data offset")
        flow, flags = self.get(peer, ours), offset_flags & 0xFF
        if flags & SYN and not flags & RST:
            if flow.our_isn != seq:
                flow.stamp_offset = None
            flow.our_isn = seq
        text = segment[text_at:]
        first = flow.relative(seq, flow.our_isn)
        body = Tcp(
            flag_letters(flags),
            Range(first, first + len(text), len(text)),
            flow.relative(ack, flow.peer_isn) if flags & ACK else None,
            window,
            urgent if flags & 0x20 else None,
            tuple(read_options(segment[20:text_at], flow)),
        )
        return Seen(body, ecn, (ours, peer), flags, text, seq)

    def _read_icmp(self, message: bytes, ecn: str) -> Seen:
        kind, code = message[0], message[1]
        quoted = message[8:]
        at = 40 if self.hosts.six else (quoted[0] & 0xF) * 4 if quoted else 0
        about: Udp | Range | None = None
        ports = (0, 0)
        if at and len(quoted) >= at + 8:
            peer, ours = unpack_from("!HH", quoted, at)
            ports = (ours, peer)
            protocol = quoted[6] if self.hosts.six else quoted[9]
            if protocol == UDP:
                about = Udp(int.from_bytes(quoted[at + 4 : at + 6], "big") - 8)
            elif protocol == TCP:
                flow = self.get(peer, ours)
                first = flow.relative(int.from_bytes(quoted[at + 4 : at + 8], "big"), flow.peer_isn)
                about = Range(first, first, 0)
        has_mtu = (kind, code) == ((2, 0) if self.hosts.six else (3, 4))
        mtu = int.from_bytes(message[4:8], "big") if has_mtu else 0
        return Seen(Icmp(kind, code, mtu, about), ecn, ports)


def emit_tcp(tcp: Tcp, flow: Flow) -> bytes:
    """A segment of the peer, without its checksum. Its text is the pattern."""
    options = b"".join(emit_option(option, flow) for option in tcp.options)
    if any(option.name != "raw" for option in tcp.options):
        options += b"\x01" * (-len(options) % 4)
    if len(options) % 4:
        raise Mismatch(f"options of {len(options)} bytes do not fit into words")
    bits = flag_bits(tcp.flags)
    ack = 0 if tcp.ack is None else tcp.ack + flow.our_isn & MASK
    window = 65535 if tcp.window is None else tcp.window
    header = pack(
        "!HHIIHHHH", flow.peer_port, flow.our_port, tcp.seq.first + flow.peer_isn & MASK, ack,
        (20 + len(options)) << 10 & 0xF000 | bits, window, 0, tcp.urgent or 0,
    )  # fmt: skip
    return header + options + pattern(tcp.seq.first, tcp.seq.size)


def emit_udp(size: int, source: int, destination: int) -> bytes:
    """A datagram of the peer."""
    return pack("!HHHH", source, destination, 8 + size, 0) + pattern(0, size)


def emit_icmp(icmp: Icmp, flow: Flow, hosts: Hosts) -> bytes:
    """An error about a packet of ours, with the first eight bytes of what it carried."""
    quoted = icmp.quoted
    if isinstance(quoted, Udp):
        protocol, size = UDP, quoted.size + 8
        start = pack("!HHHH", flow.our_port, flow.peer_port, size, 0)
    else:
        first = quoted.first if quoted else 0
        protocol, size = TCP, 20 + (quoted.size if quoted else 0)
        start = pack("!HHI", flow.our_port, flow.peer_port, first + flow.our_isn & MASK)
    header = emit_ip(protocol, bytes(size), hosts.ours, hosts.peer, 0)[:-size]
    # For IPv6 the whole TCP header: as much as fits is quoted there.
    rest = bytes(12) if hosts.six else b""
    return pack("!BBHI", icmp.type, icmp.code, 0, icmp.mtu) + header + start + rest


# --- options and flags ---------------------------------------------------------------------------


def emit_option(option: Option, flow: Flow) -> bytes:
    """As on the wire."""
    match option.name:
        case "raw":
            return option.raw
        case "mss":
            return pack("!BBH", 2, 4, *option.numbers)
        case "wscale":
            return pack("!BBB", 3, 3, *option.numbers)
        case "sackOK":
            return b"\x04\x02"
        case "sack":
            edges = [number + flow.our_isn & MASK for number in option.numbers]
            return pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)
        case "TS":
            value, echo = option.numbers
            if echo:
                echo = echo + (flow.stamp_offset or 0) & MASK
            return pack("!BBII", 8, 10, value, echo)
    return bytes((OPTION_KINDS[option.name],))


def read_options(data: bytes, flow: Flow) -> Iterator[Option]:
    """Those of a segment of the host, with numbers as in a script."""
    at = 0
    while at < len(data):
        kind = data[at]
        if kind in (0, 1):
            yield Option("nop" if kind else "eol")
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        if size < 2 or at + size > len(data):
            raise Malformed("an option that has no good size")
        yield read_option(kind, data[at : at + size], flow)
        at += size


def read_option(kind: int, whole: bytes, flow: Flow) -> Option:
    """One of more than a byte."""
    match kind, len(whole):
        case 2, 4:
            return Option("mss", (int.from_bytes(whole[2:], "big"),))
        case 3, 3:
            return Option("wscale", (whole[2],))
        case 4, 2:
            return Option("sackOK")
        case 8, 10:
            value, echo = unpack_from("!II", whole, 2)
            return Option("TS", (value - (flow.stamp_offset or 0) & MASK, echo))
        case 5, size if size >= 10 and size % 8 == 2:
            edges = unpack_from(f"!{(size - 2) // 4}I", whole, 2)
            return Option("sack", tuple(flow.relative(edge, flow.peer_isn) for edge in edges))
    return Option("raw", raw=whole)


def flag_bits(letters: str) -> int:
    return sum(1 << FLAG_LETTERS.index(letter) for letter in set(letters) - {"-"})


def flag_letters(bits: int) -> str:
    """In the order in which scripts have them."""
    order = "SFRPUEW."
    return "".join(c for c in order if bits >> FLAG_LETTERS.index(c) & 1) or "-"


# --- is it the one? ------------------------------------------------------------------------------


def compare(expected: Packet, seen: Seen, flows: Flows, slack_ns: int) -> None:
    """Mismatch, unless `seen` is what the script expects. PSH counts only where the script has it,
    and what the script does not mention does not count at all."""
    if isinstance(expected.body, Tcp) and isinstance(seen.body, Tcp):
        learn_stamp(expected.body, seen, flows)
        compare_tcp(expected.body, seen, seen.body, slack_ns)
    elif isinstance(expected.body, Icmp) and isinstance(seen.body, Icmp):
        compare_icmp(expected.body, seen.body)
    elif expected.body != seen.body:
        raise Mismatch("kind of packet")
    marks = ("ect0", "ect1") if expected.ecn == "ect01" else (expected.ecn,)
    if expected.ecn is not None and seen.ecn not in marks:
        raise Mismatch("ECN mark")
    if expected.source_port and (expected.source_port, expected.destination_port) != seen.ports:
        raise Mismatch("ports {} > {}".format(*seen.ports))


def learn_stamp(expected: Tcp, seen: Seen, flows: Flows) -> None:
    """The host's first timestamp is the one that the script gives it."""
    ours, peer = seen.ports
    flow = flows.get(peer, ours)
    assert isinstance(seen.body, Tcp)
    wanted = [option for option in expected.options if option.name == "TS"]
    actual = [option for option in seen.body.options if option.name == "TS"]
    if wanted and actual and flow.stamp_offset is None:
        flow.stamp_offset = actual[0].numbers[0] - wanted[0].numbers[0] & MASK
        stamp = Option("TS", (wanted[0].numbers[0], actual[0].numbers[1]))
        options = [stamp if option is actual[0] else option for option in seen.body.options]
        seen.body = replace(seen.body, options=tuple(options))


def compare_icmp(expected: Icmp, seen: Icmp) -> None:
    if (expected.type, expected.code, expected.mtu) != (seen.type, seen.code, seen.mtu):
        raise Mismatch("ICMP type and code")
    if isinstance(expected.quoted, Udp) and expected.quoted != seen.quoted:
        raise Mismatch("what it quotes")


def compare_tcp(expected: Tcp, seen: Seen, body: Tcp, slack_ns: int) -> None:
    wanted = flag_bits(expected.flags)
    actual = seen.flags if wanted & PSH else seen.flags & ~PSH
    if wanted != actual:
        raise Mismatch("flags")
    # A reset that answers what has no acknowledgement has the number zero, whatever went before.
    zero = wanted & RST and not expected.seq.first and not seen.seq_on_wire
    if expected.seq != body.seq and not zero:
        raise Mismatch("sequence numbers")
    if expected.ack is not None and expected.ack != body.ack:
        raise Mismatch("acknowledgement")
    if expected.window is not None and expected.window != body.window:
        raise Mismatch("window")
    if expected.urgent is not None and expected.urgent != body.urgent:
        raise Mismatch("urgent pointer")
    if seen.text != pattern(expected.seq.first, len(seen.text)):
        raise Mismatch("text: not the bytes that belong at these sequence numbers")
    compare_options(expected, body, slack_ns)


def compare_options(expected: Tcp, body: Tcp, slack_ns: int) -> None:
    left = list(body.options)
    for option in expected.options:
        found = next((other for other in left if is_option(option, other, slack_ns)), None)
        if found is None:
            raise Mismatch(f"options: no {option}")
        left.remove(found)
    if left and not expected.any_options:
        raise Mismatch(f"options: {left[0]} is not expected")
    if not expected.any_options and not is_in_order(expected, body):
        raise Mismatch("order of options")


def is_in_order(expected: Tcp, body: Tcp) -> bool:
    return [option.name for option in expected.options] == [option.name for option in body.options]


def is_option(expected: Option, seen: Option, slack_ns: int) -> bool:
    """The same; of a timestamp, nearly."""
    if expected.name != "TS" or seen.name != "TS":
        return expected == seen
    (value, echo), (other, other_echo) = expected.numbers, seen.numbers
    off = abs((other - value + (1 << 31) & MASK) - (1 << 31))
    return echo == other_echo and off <= STAMP_TICKS_OFF_MAX + slack_ns // 1_000_000
