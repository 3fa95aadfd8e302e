"""Neighbour discovery (RFC 4861 section 4): messages behind the ICMPv6 header, and their options.

What these messages must look like to be believed is in sections 6.1 and 7.1; whatever of it can be
seen in the message alone is checked here, the rest (hop limit, addresses) where they arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from appliance.limits import ND_OPTIONS_MAX
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import HEADER_BYTES
from appliance.netstack.wire.ipv6 import is_multicast

SOURCE_LINK_LAYER_ADDRESS: Final = 1
TARGET_LINK_LAYER_ADDRESS: Final = 2
PREFIX_INFORMATION: Final = 3
MTU: Final = 5

ROUTER: Final = 0x8000_0000
SOLICITED: Final = 0x4000_0000
OVERRIDE: Final = 0x2000_0000
"""Flags of a neighbour advertisement, in the first word behind the checksum."""

LIFETIME_INFINITE: Final = 0xFFFF_FFFF

_ADDRESS_BYTES: Final = 16
_OPTION_UNIT: Final = 8
_ON_LINK: Final = 0x80
_AUTONOMOUS: Final = 0x40
_PREFIX: Final = Struct("!xxBBII4x16s")
_ROUTER_TIMES: Final = Struct("!II")


@dataclass(slots=True)
class PrefixInformation:
    """Section 4.6.2. Lifetimes in seconds."""

    prefix_length: int
    on_link: bool
    autonomous: bool
    valid_lifetime: int
    preferred_lifetime: int
    prefix: bytes


@dataclass(slots=True)
class Options:
    """The options that a host understands; others are skipped. Of one that comes twice, the last
    counts; prefixes may be many."""

    source_mac: bytes | None = None
    target_mac: bytes | None = None
    mtu: int | None = None
    prefixes: list[PrefixInformation] = field(default_factory=list)


def parse_options(packet: bytes, at: int, end: int) -> Options:
    """The options from `at` to `end`. BadPacket: one has the length zero, or is cut off."""
    options = Options()
    for _ in range(ND_OPTIONS_MAX):
        if at == end:
            return options
        if at + 2 > end:
            raise BadPacket("nd.truncated_option")
        kind, size = packet[at], packet[at + 1] * _OPTION_UNIT
        if not size or at + size > end:
            raise BadPacket("nd.bad_option_length")
        _take_option(options, kind, packet[at : at + size])
        at += size
    raise BadPacket("nd.too_many_options")


def _take_option(options: Options, kind: int, option: bytes) -> None:
    if kind == SOURCE_LINK_LAYER_ADDRESS and len(option) == 8:
        options.source_mac = option[2:]
    elif kind == TARGET_LINK_LAYER_ADDRESS and len(option) == 8:
        options.target_mac = option[2:]
    elif kind == MTU and len(option) == 8:
        options.mtu = int.from_bytes(option[4:], "big")
    elif kind == PREFIX_INFORMATION and len(option) == 32:
        length, flags, valid, preferred, prefix = _PREFIX.unpack(option)
        on_link, autonomous = bool(flags & _ON_LINK), bool(flags & _AUTONOMOUS)
        options.prefixes.append(
            PrefixInformation(length, on_link, autonomous, valid, preferred, prefix)
        )


def link_layer_option(kind: int, mac: bytes) -> bytes:
    """A MAC address as an option."""
    return bytes((kind, 1)) + mac


@dataclass(slots=True)
class Neighbour:
    """A neighbour solicitation or advertisement (sections 4.3, 4.4): who has, or is, `target`."""

    target: bytes
    options: Options

    @classmethod
    def parse(cls, packet: bytes, at: int, end: int) -> Neighbour:
        """The message whose ICMPv6 header stands at `at`."""
        options_at = at + HEADER_BYTES + _ADDRESS_BYTES
        if options_at > end:
            raise BadPacket("nd.truncated")
        target = packet[at + HEADER_BYTES : options_at]
        if is_multicast(target):
            raise BadPacket("nd.bad_target")
        return cls(target, parse_options(packet, options_at, end))


@dataclass(slots=True)
class RouterAdvertisement:
    """Section 4.2. Lifetime in seconds, times in milliseconds; zero means that nothing is said."""

    hop_limit: int
    router_lifetime: int
    reachable_time: int
    retrans_timer: int
    options: Options

    @classmethod
    def parse(cls, packet: bytes, at: int, end: int) -> RouterAdvertisement:
        """The message whose ICMPv6 header stands at `at`."""
        options_at = at + HEADER_BYTES + _ROUTER_TIMES.size
        if options_at > end:
            raise BadPacket("nd.truncated")
        hop_limit, lifetime = packet[at + 4], int.from_bytes(packet[at + 6 : at + 8], "big")
        reachable, retrans = _ROUTER_TIMES.unpack_from(packet, at + HEADER_BYTES)
        return cls(hop_limit, lifetime, reachable, retrans, parse_options(packet, options_at, end))
