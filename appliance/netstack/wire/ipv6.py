"""IPv6 (RFC 8200): the header, and the extension headers in front of what is carried.

A host reads extension headers for two reasons only: to find what is behind them, and because the
RFC says which of them it must refuse. What they ask for, it does not do: there is no mobility here,
and a routing header that still has to be followed is refused (RFC 5095).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.limits import IPV6_EXTENSIONS_MAX, IPV6_OPTIONS_MAX
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.errors import BadPacket

HEADER_BYTES: Final = 40
PAYLOAD_BYTES_MAX: Final = 65535
MTU_MIN: Final = 1280
"""Every link carries packets of this size (section 5)."""
HOP_LIMIT_DEFAULT: Final = 64
HOP_LIMIT_MAX: Final = 255
"""A packet that arrives with it was not forwarded: its sender is on the link."""

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMPV6: Final = 58
NO_NEXT_HEADER: Final = 59
DESTINATION_OPTIONS: Final = 60

FRAGMENT_HEADER_BYTES: Final = 8
FRAGMENT_UNIT: Final = 8
_FRAGMENT: Final = Struct("!BxHI")
_MORE_FRAGMENTS: Final = 1
_OFFSET_MASK: Final = 0xFFF8

UNSPECIFIED: Final = bytes(16)
LOOPBACK: Final = bytes(15) + b"\1"
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")
ALL_ROUTERS: Final = bytes.fromhex("ff020000000000000000000000000002")
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")
_MAPPED: Final = bytes(10) + b"\xff\xff"

_PAD1: Final = 0
_PADN: Final = 1
_ROUTER_ALERT: Final = 5
_HARMLESS: Final = frozenset((_PADN, _ROUTER_ALERT))

ROUTER_ALERT_MLD: Final = bytes((ICMPV6, 0, _ROUTER_ALERT, 2, 0, 0, _PADN, 0))
"""A hop-by-hop header that asks routers to look at an MLD message (RFC 3810 section 5)."""

_NEXT_HEADER_AT: Final = 6

CODE_ERRONEOUS_FIELD: Final = 0
CODE_UNKNOWN_NEXT_HEADER: Final = 1
CODE_UNKNOWN_OPTION: Final = 2
CODE_INCOMPLETE_CHAIN: Final = 3


class ParameterProblem(BadPacket):
    """A packet that is dropped, and whose sender is told what is wrong with it (RFC 4443 section
    3.4): `pointer` is where, from the beginning of the IP header. `even_to_group`: also if it went
    to a group."""

    def __init__(
        self, reason: str, code: int, pointer: int, *, even_to_group: bool = False
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.pointer = pointer
        self.even_to_group = even_to_group


def is_multicast(address: bytes) -> bool:
    """True: a group (RFC 4291 section 2.7)."""
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    """fe80::/10 (RFC 4291 section 2.5.6)."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_host(address: bytes) -> bool:
    """True: it may be the address of one host out there."""
    return not (
        is_multicast(address)
        or address in (UNSPECIFIED, LOOPBACK)
        or address.startswith(_MAPPED)  # of an IPv4 host, inside a program; never on a wire
    )


def solicited_node(address: bytes) -> bytes:
    """The group in which a host with this address is asked for it (RFC 4291 section 2.7.1)."""
    return _SOLICITED_NODE + address[-3:]


def group_mac(group: bytes) -> bytes:
    """Where Ethernet carries packets for a group (RFC 2464 section 7)."""
    return b"\x33\x33" + group[-4:]


@dataclass(slots=True)
class Ipv6Header:
    """One header. `payload_bytes` counts what is behind it, extension headers included."""

    source: bytes
    destination: bytes
    next_header: int
    payload_bytes: int
    hop_limit: int = HOP_LIMIT_DEFAULT
    traffic_class: int = 0
    flow_label: int = 0

    _FORMAT: ClassVar[Struct] = Struct("!IHBB16s16s")

    @classmethod
    def parse(cls, packet: bytes | bytearray, at: int, end: int) -> Ipv6Header:
        """The header at `at` of a packet that ends at `end` or, where the link has padded it,
        before."""
        if end - at < HEADER_BYTES:
            raise BadPacket("ipv6.truncated")
        first, payload_bytes, next_header, hop_limit, source, destination = cls._FORMAT.unpack_from(
            packet, at
        )
        if first >> 28 != 6:
            raise BadPacket("ipv6.bad_version")
        if HEADER_BYTES + payload_bytes > end - at:
            raise BadPacket("ipv6.truncated")
        traffic_class, flow_label = first >> 20 & 0xFF, first & 0xFFFFF
        return cls(
            source, destination, next_header, payload_bytes, hop_limit, traffic_class, flow_label
        )

    def emit(self) -> bytes:
        """The forty bytes."""
        first = 6 << 28 | self.traffic_class << 20 | self.flow_label
        return self._FORMAT.pack(
            first,
            self.payload_bytes,
            self.next_header,
            self.hop_limit,
            self.source,
            self.destination,
        )

    def __str__(self) -> str:
        text = f"{address_text(self.source)} > {address_text(self.destination)}"
        return f"{text} next={self.next_header} payload={self.payload_bytes} hlim={self.hop_limit}"


@dataclass(slots=True)
class FragmentHeader:
    """RFC 8200 section 4.5. `offset` is in bytes."""

    next_header: int
    offset: int
    more_fragments: bool
    identification: int

    @property
    def is_atomic(self) -> bool:
        """A fragment that is the whole datagram (RFC 6946)."""
        return self.offset == 0 and not self.more_fragments

    def emit(self) -> bytes:
        """The eight bytes."""
        field = self.offset | (_MORE_FRAGMENTS if self.more_fragments else 0)
        return _FRAGMENT.pack(self.next_header, field, self.identification)


@dataclass(slots=True)
class Chain:
    """What the extension headers of a packet lead to."""

    protocol: int
    """What is carried; FRAGMENT where `fragment` says what is known of it."""
    start: int
    """Where it begins."""
    next_header_at: int
    """Where in the packet the field stands that says so."""
    fragment: FragmentHeader | None = None


def follow(packet: bytes | bytearray, at: int, end: int) -> Chain:
    """The extension headers of the packet from `at` to `end`, whose IPv6 header is good, up to the
    first that is none, or to a fragment header. BadPacket."""
    chain = Chain(packet[at + _NEXT_HEADER_AT], at + HEADER_BYTES, at + _NEXT_HEADER_AT)
    for number in range(IPV6_EXTENSIONS_MAX + 1):
        kind = chain.protocol
        if kind == HOP_BY_HOP and number:
            where = chain.next_header_at - at
            raise ParameterProblem("ipv6.late_hop_by_hop", CODE_UNKNOWN_NEXT_HEADER, where)
        if kind == FRAGMENT:
            _take_fragment_header(packet, chain, end)
            return chain
        if kind not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
            return chain
        start = chain.start
        size = (packet[start + 1] + 1) * 8 if start + 8 <= end else 8
        if start + size > end:
            raise BadPacket("ipv6.truncated_extension")
        if kind == ROUTING:
            _check_routing(packet, at, start)
        else:
            _check_options(packet, at, start + 2, start + size)
        chain = Chain(packet[start], start + size, start)
    raise BadPacket("ipv6.too_many_extensions")


def _take_fragment_header(packet: bytes | bytearray, chain: Chain, end: int) -> None:
    if chain.start + FRAGMENT_HEADER_BYTES > end:
        raise BadPacket("ipv6.truncated_extension")
    next_header, field, identification = _FRAGMENT.unpack_from(packet, chain.start)
    chain.fragment = FragmentHeader(
        next_header, field & _OFFSET_MASK, field & _MORE_FRAGMENTS != 0, identification
    )
    chain.start += FRAGMENT_HEADER_BYTES


def _check_routing(packet: bytes | bytearray, at: int, start: int) -> None:
    """Section 4.4: one whose way is at its end is skipped, whatever its type."""
    segments_left = packet[start + 3]
    if segments_left:
        where = start + 2 - at
        raise ParameterProblem("ipv6.routing_header", CODE_ERRONEOUS_FIELD, where)


def _check_options(packet: bytes | bytearray, at: int, start: int, end: int) -> None:
    """Section 4.2: what is done about an unknown option is in its two highest bits."""
    for _ in range(IPV6_OPTIONS_MAX):
        if start >= end:
            return
        kind = packet[start]
        if kind == _PAD1:
            start += 1
            continue
        if start + 2 > end or start + 2 + packet[start + 1] > end:
            raise BadPacket("ipv6.truncated_option")
        if kind not in _HARMLESS and kind >> 6:
            if kind >> 6 == 1:
                raise BadPacket("ipv6.unknown_option")
            raise ParameterProblem(
                "ipv6.unknown_option",
                CODE_UNKNOWN_OPTION,
                start - at,
                even_to_group=kind >> 6 == 2,
            )
        start += 2 + packet[start + 1]
    if start < end:
        raise BadPacket("ipv6.too_many_options")
