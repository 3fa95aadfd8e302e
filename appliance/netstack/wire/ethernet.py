"""Ethernet II frames (RFC 894): two addresses, a type, a packet."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.errors import BadPacket

HEADER_BYTES: Final = 14
ADDRESS_BYTES: Final = 6
BROADCAST: Final = b"\xff" * ADDRESS_BYTES

TYPE_IPV4: Final = 0x0800
TYPE_ARP: Final = 0x0806
TYPE_IPV6: Final = 0x86DD

TYPE_MIN: Final = 0x0600
"""A smaller number in the place of the type is the length of an IEEE 802.3 frame (spanning tree
and its like)."""

PAYLOAD_BYTES_MIN: Final = 46
"""A wire pads shorter packets to this size; what is behind the packet's own end means nothing."""


def is_group(address: bytes) -> bool:
    """True: a multicast or broadcast address. No station sends from one."""
    return address[0] & 1 == 1


def mac_text(address: bytes) -> str:
    """02:00:00:00:00:05"""
    return address.hex(":")


@dataclass(slots=True)
class EthernetHeader:
    """One frame's header."""

    destination: bytes
    source: bytes
    ethertype: int

    _FORMAT: ClassVar[Struct] = Struct("!6s6sH")

    @classmethod
    def parse(cls, frame: bytes, at: int = 0) -> EthernetHeader:
        """The header at `at`."""
        if len(frame) < at + HEADER_BYTES:
            raise BadPacket("ethernet.truncated")
        header = cls(*cls._FORMAT.unpack_from(frame, at))
        if header.ethertype < TYPE_MIN:
            raise BadPacket("ethernet.802_3")
        return header

    def emit(self) -> bytes:
        """The fourteen bytes."""
        return self._FORMAT.pack(self.destination, self.source, self.ethertype)

    def __str__(self) -> str:
        return f"{mac_text(self.source)} > {mac_text(self.destination)} type={self.ethertype:#06x}"
