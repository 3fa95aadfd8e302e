"""Frames, made by hand: any field may be wrong, as long as the checksums are right."""

from __future__ import annotations

from ipaddress import ip_address
from struct import pack

from appliance.netstack.wire.checksum import word_sum
from tests.sim.station import OUR_ADDRESS, OUR_MAC, PEER_ADDRESS, PEER_MAC

MASK = 0xFFFF_FFFF
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
IP_AT = 14
CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6, ICMPV6: 2}
EXTENSIONS = (0, 43, 44, 60)
"""Hop-by-hop options, routing, fragment, destination options."""
EXTENSIONS_MAX = 8

OUR_ADDRESS6 = ip_address("fd00::5").packed
PEER_ADDRESS6 = ip_address("fd00::1").packed
ROUTER6 = ip_address("fe80::fe").packed
ALL_NODES = ip_address("ff02::1").packed
ALL_NODES_MAC = bytes.fromhex("333300000001")
OUR_GROUP = ip_address("ff02::1:ff00:5").packed
OUR_GROUP_MAC = bytes.fromhex("3333ff000005")


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    return (0xFFFF - word_sum(data) % 0xFFFF & 0xFFFF).to_bytes(2, "big")


def ethernet(kind: int, payload: bytes, destination: bytes = OUR_MAC) -> bytes:
    """A frame of the peer."""
    return destination + PEER_MAC + kind.to_bytes(2, "big") + payload


def ipv4(
    protocol: int, payload: bytes, *, tos: int = 0, fragment: int = 0x4000, identification: int = 0
) -> bytes:
    """A packet in its frame. `fragment` is the field with the flags."""
    length = 20 + len(payload)
    header = pack("!BBHHHBBH", 0x45, tos, length, identification, fragment, 64, protocol, 0)
    return ethernet(IPV4, sealed(header + PEER_ADDRESS + OUR_ADDRESS + payload))


def ipv6(
    protocol: int,
    payload: bytes,
    *,
    tos: int = 0,
    source: bytes = PEER_ADDRESS6,
    destination: bytes = OUR_ADDRESS6,
    mac: bytes = OUR_MAC,
    hops: int = 255,
) -> bytes:
    """A packet in its frame; `protocol` may be an extension header, which `payload` begins with."""
    header = pack("!IHBB", 6 << 28 | tos << 20, len(payload) & 0xFFFF, protocol, hops)
    return ethernet(IPV6, sealed(header + source + destination + payload), mac)


def packet(six: bool, protocol: int, payload: bytes, tos: int = 0) -> bytes:
    """Of either family."""
    return ipv6(protocol, payload, tos=tos) if six else ipv4(protocol, payload, tos=tos)


def sealed(made: bytes) -> bytes:
    """The packet with the checksums that it should have, as far as they can be found."""
    if made[:1] and made[0] >> 4 == 6:
        return sealed6(made)
    if len(made) < 20:
        return made
    at = (made[0] & 0xF) * 4
    end = min(int.from_bytes(made[2:4], "big"), len(made))
    if not 20 <= at <= end:
        return made
    header = made[:10] + b"\0\0" + made[12:at]
    header = header[:10] + checksum(header) + header[12:]
    pseudo = b"" if made[9] == ICMP else made[12:20]
    return header + sealed_payload(made[9], made[at:end], pseudo) + made[end:]


def sealed6(made: bytes) -> bytes:
    """The same for IPv6, behind its extension headers."""
    if len(made) < 40:
        return made
    at, protocol = 40, made[6]
    for _ in range(EXTENSIONS_MAX):
        if protocol not in EXTENSIONS or at + 8 > len(made):
            break
        size = 8 if protocol == 44 else (made[at + 1] + 1) * 8
        protocol, at = made[at], at + size
    end = min(40 + int.from_bytes(made[4:6], "big"), len(made))
    if at > end:
        return made
    return made[:at] + sealed_payload(protocol, made[at:end], made[8:40]) + made[end:]


def sealed_payload(protocol: int, payload: bytes, addresses: bytes) -> bytes:
    """With its checksum; over a pseudo-header, where there are addresses."""
    field = CHECKSUM_AT.get(protocol)
    if field is None or len(payload) < field + 2:
        return payload
    bare = payload[:field] + b"\0\0" + payload[field + 2 :]
    pseudo = addresses and addresses + pack("!BBH", 0, protocol, len(payload) & 0xFFFF)
    return bare[:field] + checksum(pseudo + bare) + bare[field + 2 :]


def tcp(
    source: int,
    destination: int,
    seq: int,
    ack: int,
    flags: int,
    text: bytes = b"",
    *,
    window: int = 65535,
    urgent: int = 0,
    options: bytes = b"",
    tos: int = 0,
    six: bool = False,
) -> bytes:
    """A segment of the peer, in its frame."""
    options += bytes(-len(options) % 4)
    offset = (20 + len(options)) << 10 & 0xF000
    ports_and_numbers = source, destination, seq & MASK, ack & MASK
    header = pack("!HHIIHHHH", *ports_and_numbers, offset | flags, window, 0, urgent)
    return packet(six, TCP, header + options + text, tos)


def udp(source: int, destination: int, data: bytes, six: bool = False) -> bytes:
    """A datagram of the peer."""
    return packet(six, UDP, pack("!HHHH", source, destination, 8 + len(data), 0) + data)


def icmp(kind: int, code: int, rest: int, data: bytes) -> bytes:
    """A message of the peer."""
    return ipv4(ICMP, pack("!BBHI", kind, code, 0, rest) + data)


def icmp6(kind: int, code: int, rest: int, data: bytes, **ip: bytes) -> bytes:
    """The same for IPv6; `ip`: other addresses."""
    return ipv6(ICMPV6, pack("!BBHI", kind, code, 0, rest) + data, **ip)  # type: ignore[arg-type]


def quoting(kind: int, code: int, rest: int, ports: tuple[int, int], seq: int) -> bytes:
    """An ICMP error about a segment of ours, from and to these ports."""
    segment = pack("!HHI", *ports, seq & MASK)
    header = pack("!BBHHHBBH", 0x45, 0, 1500, 0, 0x4000, 64, TCP, 0)
    return icmp(kind, code, rest, header + OUR_ADDRESS + PEER_ADDRESS + segment)


def quoting6(kind: int, code: int, rest: int, ports: tuple[int, int], seq: int) -> bytes:
    """The same for IPv6."""
    segment = pack("!HHI", *ports, seq & MASK) + bytes(12)
    header = pack("!IHBB", 6 << 28, 1460, TCP, 64)
    return icmp6(kind, code, rest, header + OUR_ADDRESS6 + PEER_ADDRESS6 + segment)


def arp(operation: int, sender: bytes, target: bytes, mac: bytes = PEER_MAC) -> bytes:
    """A request (1) or a reply (2)."""
    fixed = pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return ethernet(ARP, fixed + mac + sender + OUR_MAC + target)


def solicitation(target: bytes, source: bytes = PEER_ADDRESS6) -> bytes:
    """Who has `target`? From nobody (::) it says that somebody wants to have it."""
    option = b"" if source == bytes(16) else b"\1\1" + PEER_MAC
    to = {"destination": OUR_GROUP, "mac": OUR_GROUP_MAC, "source": source}
    return icmp6(135, 0, 0, target + option, **to)


def advertisement(target: bytes, flags: int = 0x6000_0000, mac: bytes = PEER_MAC) -> bytes:
    """`target` is at `mac`: solicited, and overriding what was known."""
    return icmp6(136, 0, flags, target + b"\2\1" + mac, source=target)


def router_advertisement(prefix: bytes, lifetime: int, mtu: int) -> bytes:
    """A router, with a prefix to make addresses of and an MTU."""
    times = pack("!II", 0, 0)
    information = pack("!BBBBIII", 3, 4, 64, 0xC0, lifetime, lifetime, 0) + prefix
    options = b"\1\1" + PEER_MAC + information + pack("!BBHI", 5, 1, 0, mtu)
    to = {"destination": ALL_NODES, "mac": ALL_NODES_MAC, "source": ROUTER6}
    return icmp6(134, 0, 64 << 24 | min(lifetime, 0xFFFF), times + options, **to)
