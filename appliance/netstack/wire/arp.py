"""ARP for IPv4 over Ethernet (RFC 826), and its use for conflict detection (RFC 5227)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import TYPE_IPV4, is_group, mac_text
from appliance.netstack.wire.ipv4 import UNSPECIFIED

PACKET_BYTES: Final = 28
REQUEST: Final = 1
REPLY: Final = 2

_HARDWARE_ETHERNET: Final = 1
_NO_MAC: Final = bytes(6)


@dataclass(slots=True)
class ArpPacket:
    """One ARP packet. The RFC's names: sender and target, hardware and protocol address."""

    operation: int
    sender_mac: bytes
    sender_address: bytes
    target_mac: bytes
    target_address: bytes

    _FORMAT: ClassVar[Struct] = Struct("!HHBBH6s4s6s4s")

    @classmethod
    def parse(cls, frame: bytes, at: int) -> ArpPacket:
        """The packet at `at`, from a sender that can be a station."""
        if len(frame) < at + PACKET_BYTES:
            raise BadPacket("arp.truncated")
        hardware, protocol, mac_bytes, address_bytes, *fields = cls._FORMAT.unpack_from(frame, at)
        if hardware != _HARDWARE_ETHERNET or protocol != TYPE_IPV4:
            raise BadPacket("arp.unknown_type")
        if mac_bytes != 6 or address_bytes != 4:
            raise BadPacket("arp.bad_length")
        packet = cls(*fields)
        if packet.operation not in (REQUEST, REPLY):
            raise BadPacket("arp.unknown_operation")
        if is_group(packet.sender_mac) or packet.sender_mac == _NO_MAC:
            raise BadPacket("arp.bad_sender")
        return packet

    def emit(self) -> bytes:
        """The packet's 28 bytes."""
        return self._FORMAT.pack(
            _HARDWARE_ETHERNET,
            TYPE_IPV4,
            6,
            4,
            self.operation,
            self.sender_mac,
            self.sender_address,
            self.target_mac,
            self.target_address,
        )

    def __str__(self) -> str:
        sender, target = address_text(self.sender_address), address_text(self.target_address)
        if self.operation == REPLY:
            return f"arp reply {sender} is-at {mac_text(self.sender_mac)}"
        return f"arp who-has {target} tell {sender}"


def request(our_mac: bytes, our_address: bytes, target_address: bytes) -> ArpPacket:
    """Who has `target_address`?"""
    return ArpPacket(REQUEST, our_mac, our_address, _NO_MAC, target_address)


def probe(our_mac: bytes, address: bytes) -> ArpPacket:
    """Does anybody use `address`? The zero sender address keeps it out of everybody's cache
    (RFC 5227 section 1.1)."""
    return ArpPacket(REQUEST, our_mac, UNSPECIFIED, _NO_MAC, address)


def announcement(our_mac: bytes, our_address: bytes) -> ArpPacket:
    """This address is ours: a request for it, from it (RFC 5227 section 2.3)."""
    return ArpPacket(REQUEST, our_mac, our_address, _NO_MAC, our_address)


def reply_to(asked: ArpPacket, our_mac: bytes) -> ArpPacket:
    """The answer to a request for our address."""
    return ArpPacket(REPLY, our_mac, asked.target_address, asked.sender_mac, asked.sender_address)
