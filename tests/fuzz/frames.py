"""Frames, made by hand: any field may be wrong, as long as the checksums are right."""

from __future__ import annotations

from struct import pack

from appliance.netstack.wire.checksum import word_sum
from tests.sim.station import OUR_ADDRESS, OUR_MAC, PEER_ADDRESS, PEER_MAC

MASK = 0xFFFF_FFFF
ICMP, TCP, UDP = 1, 6, 17
IPV4, ARP = 0x0800, 0x0806
IP_AT = 14
CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6}


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    return (0xFFFF - word_sum(data) % 0xFFFF & 0xFFFF).to_bytes(2, "big")


def ethernet(kind: int, payload: bytes, destination: bytes = OUR_MAC) -> bytes:
    """A frame of the peer."""
    return destination + PEER_MAC + kind.to_bytes(2, "big") + payload


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    tos: int = 0,
    fragment: int = 0x4000,
    identification: int = 0,
    source: bytes = PEER_ADDRESS,
    destination: bytes = OUR_ADDRESS,
) -> bytes:
    """A packet in its frame. `fragment` is the field with the flags."""
    length = 20 + len(payload)
    header = pack("!BBHHHBBH", 0x45, tos, length, identification, fragment, 64, protocol, 0)
    return ethernet(IPV4, sealed(header + source + destination + payload))


def sealed(packet: bytes) -> bytes:
    """The packet with the checksums that it should have, as far as they can be found."""
    if len(packet) < 20:
        return packet
    at = (packet[0] & 0xF) * 4
    end = min(int.from_bytes(packet[2:4], "big"), len(packet))
    if not 20 <= at <= end:
        return packet
    header = packet[:10] + b"\0\0" + packet[12:at]
    header = header[:10] + checksum(header) + header[12:]
    payload, rest = packet[at:end], packet[end:]
    field = CHECKSUM_AT.get(packet[9])
    if field is not None and len(payload) >= field + 2:
        bare = payload[:field] + b"\0\0" + payload[field + 2 :]
        protocol = packet[9]
        pseudo = packet[12:20] + pack("!BBH", 0, protocol, len(payload))
        total = checksum(bare if protocol == ICMP else pseudo + bare)
        payload = bare[:field] + total + bare[field + 2 :]
    return header + payload + rest


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
) -> bytes:
    """A segment of the peer, in its frame."""
    options += bytes(-len(options) % 4)
    offset = (20 + len(options)) << 10 & 0xF000
    ports_and_numbers = source, destination, seq & MASK, ack & MASK
    header = pack("!HHIIHHHH", *ports_and_numbers, offset | flags, window, 0, urgent)
    return ipv4(TCP, header + options + text, tos=tos)


def udp(source: int, destination: int, data: bytes) -> bytes:
    """A datagram of the peer."""
    return ipv4(UDP, pack("!HHHH", source, destination, 8 + len(data), 0) + data)


def icmp(kind: int, code: int, rest: int, data: bytes) -> bytes:
    """A message of the peer."""
    return ipv4(ICMP, pack("!BBHI", kind, code, 0, rest) + data)


def quoting(kind: int, code: int, rest: int, ports: tuple[int, int], seq: int) -> bytes:
    """An ICMP error about a segment of ours, from and to these ports."""
    segment = pack("!HHI", *ports, seq & MASK)
    header = pack("!BBHHHBBH", 0x45, 0, 1500, 0, 0x4000, 64, TCP, 0)
    return icmp(kind, code, rest, header + OUR_ADDRESS + PEER_ADDRESS + segment)


def arp(operation: int, sender: bytes, target: bytes, mac: bytes = PEER_MAC) -> bytes:
    """A request (1) or a reply (2)."""
    fixed = pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return ethernet(ARP, fixed + mac + sender + OUR_MAC + target)
