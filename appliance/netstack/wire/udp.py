"""UDP (RFC 768): the header and its checksum rules."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.checksum import fold, pseudo_header_sum, word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import PROTOCOL_UDP

HEADER_BYTES: Final = 8
CHECKSUM_OFFSET: Final = 6
DATA_BYTES_MAX: Final = 65535 - 20 - HEADER_BYTES
"""What fits in one IPv4 datagram; IPv6 has room for 20 bytes more, which nobody needs."""


@dataclass(slots=True)
class UdpHeader:
    """One header; `length` counts header and data."""

    source_port: int
    destination_port: int
    length: int
    checksum: int = 0

    _FORMAT: ClassVar[Struct] = Struct("!HHHH")

    @classmethod
    def parse(cls, packet: bytes | bytearray, at: int, end: int) -> UdpHeader:
        """The header at `at` of an IP packet that ends at `end`."""
        if end - at < HEADER_BYTES:
            raise BadPacket("udp.truncated")
        header = cls(*cls._FORMAT.unpack_from(packet, at))
        if header.length < HEADER_BYTES:
            raise BadPacket("udp.bad_length")
        if header.length > end - at:
            raise BadPacket("udp.truncated")
        return header

    def emit(self) -> bytes:
        """The eight bytes."""
        return self._FORMAT.pack(
            self.source_port, self.destination_port, self.length, self.checksum
        )

    def __str__(self) -> str:
        return f"udp {self.source_port} > {self.destination_port} length={self.length}"


def datagram_checksum(addresses_sum: int, length: int, datagram_sum: int) -> int:
    """The checksum of a datagram whose words, with a zero checksum field, add up to
    `datagram_sum`. Zero on the wire means that there is none, so zero is sent in its other form."""
    total = pseudo_header_sum(addresses_sum, PROTOCOL_UDP, length) + datagram_sum
    return 0xFFFF - fold(total) or 0xFFFF


def is_sound(header: UdpHeader, addresses_sum: int, datagram: bytes | bytearray) -> bool:
    """True: the datagram agrees with its checksum, or its sender did not make one."""
    if header.checksum == 0:
        return True
    pseudo = pseudo_header_sum(addresses_sum, PROTOCOL_UDP, header.length)
    return fold(pseudo + word_sum(datagram)) == 0xFFFF
