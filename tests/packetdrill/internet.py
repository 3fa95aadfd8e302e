"""IP packets of a script, of either version: made, and taken apart.

As everything here, they are written out once more, away from appliance/netstack/wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from struct import pack, unpack_from

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
DONT_FRAGMENT = 0x4000


class Malformed(Exception):
    """A packet from the host under test that is not well-formed."""


@dataclass(frozen=True)
class Hosts:
    """The host under test and the script, by their addresses."""

    ours: bytes
    peer: bytes

    @property
    def six(self) -> bool:
        return len(self.ours) == 16

    @property
    def icmp(self) -> int:
        return ICMPV6 if self.six else ICMP


HOSTS4 = Hosts(ip_address("10.0.0.5").packed, ip_address("10.0.0.9").packed)
HOSTS6 = Hosts(ip_address("fd00::5").packed, ip_address("fd00::9").packed)


def hosts_of(options: dict[str, str]) -> Hosts:
    """What the head of a script says: `--ip_version=ipv6`."""
    return HOSTS6 if options.get("ip_version") == "ipv6" else HOSTS4


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(unpack_from(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def emit_ip(protocol: int, payload: bytes, source: bytes, destination: bytes, tos: int) -> bytes:
    """A packet, not to be fragmented."""
    if len(source) == 16:
        header = pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, 64)
        return header + source + destination + payload
    words = (0x45, tos, 20 + len(payload), 0, DONT_FRAGMENT, 64, protocol)
    bare = pack("!BBHHHBBH", *words, 0) + source + destination
    return pack("!BBHHHBBH", *words, checksum(bare)) + source + destination + payload


def read_ip(packet: bytes, hosts: Hosts) -> tuple[int, bytes, int]:
    """What a packet of the host carries: protocol, payload, and the two bits of ECN."""
    if packet[0] >> 4 == 6:
        word, size, protocol = unpack_from("!IHB", packet)
        addresses, at, tos = packet[8:40], 40, word >> 20
        total = 40 + size
    else:
        at = (packet[0] & 0xF) * 4
        _, tos, total, _, _, _, protocol = unpack_from("!BBHHHBB", packet)
        addresses = packet[12:20]
        if packet[0] >> 4 != 4 or not 20 <= at <= total or checksum(packet[:at]):
            raise Malformed("a bad IP header")
    if total > len(packet):
        raise Malformed("a packet that is cut off")
    if addresses != hosts.ours + hosts.peer:
        raise Malformed("addresses of others")
    payload = packet[at:total]
    pseudo = pseudo_header(addresses, protocol, len(payload))
    unchecked = protocol == UDP and payload[6:8] == b"\0\0" and not hosts.six
    if not unchecked and checksum((b"" if protocol == ICMP else pseudo) + payload):
        raise Malformed("a bad checksum")
    return protocol, payload, tos & 3


def pseudo_header(addresses: bytes, protocol: int, size: int) -> bytes:
    """What a transport's checksum covers beside the transport."""
    return addresses + pack("!BBH", 0, protocol, size)


def with_checksum(payload: bytes, at: int, protocol: int, hosts: Hosts) -> bytes:
    """What the peer sends, with its checksum filled in."""
    pseudo = pseudo_header(hosts.peer + hosts.ours, protocol, len(payload))
    total = checksum((b"" if protocol == ICMP else pseudo) + payload)
    return payload[:at] + total.to_bytes(2, "big") + payload[at + 2 :]
