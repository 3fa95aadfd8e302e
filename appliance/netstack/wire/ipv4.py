"""IPv4 (RFC 791): the header.

Options are skipped: nothing on a file server's link needs them, and answering source routes is a
hole. A header that we send never has any.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.checksum import checksum, is_sound
from appliance.netstack.wire.errors import BadPacket

HEADER_BYTES: Final = 20
PACKET_BYTES_MAX: Final = 65535
TTL_DEFAULT: Final = 64

PROTOCOL_ICMP: Final = 1
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

UNSPECIFIED: Final = bytes(4)
LIMITED_BROADCAST: Final = b"\xff\xff\xff\xff"

DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF
FRAGMENT_UNIT: Final = 8
"""Fragment offsets count in eights; every fragment but the last is a multiple of it."""


_OPTION_END: Final = 0
_OPTION_NONE: Final = 1
_SOURCE_ROUTES: Final = frozenset((131, 137))
"""Loose and strict (RFC 791 section 3.1)."""


@dataclass(slots=True)
class Ipv4Header:
    """One header. `offset` is in bytes; `header_bytes` and `total_bytes` are lengths in bytes."""

    source: bytes
    destination: bytes
    protocol: int
    total_bytes: int
    identification: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    offset: int = 0
    ttl: int = TTL_DEFAULT
    type_of_service: int = 0
    header_bytes: int = HEADER_BYTES

    _FORMAT: ClassVar[Struct] = Struct("!BBHHHBBH4s4s")

    @classmethod
    def parse(cls, packet: bytes | bytearray, at: int, end: int) -> Ipv4Header:
        """The header at `at` of a packet that ends at `end` or, where the link has padded it,
        before; `header.total_bytes` says where."""
        if end - at < HEADER_BYTES:
            raise BadPacket("ip.truncated")
        (
            version_ihl,
            type_of_service,
            total_bytes,
            identification,
            fragment,
            ttl,
            protocol,
            _checksum,
            source,
            destination,
        ) = cls._FORMAT.unpack_from(packet, at)
        if version_ihl >> 4 != 4:
            raise BadPacket("ip.bad_version")
        header_bytes = (version_ihl & 0xF) * 4
        if header_bytes < HEADER_BYTES:
            raise BadPacket("ip.bad_header_length")
        if total_bytes < header_bytes:
            raise BadPacket("ip.bad_total_length")
        if total_bytes > end - at:
            raise BadPacket("ip.truncated")
        if not is_sound(packet[at : at + header_bytes]):
            raise BadPacket("ip.bad_checksum")
        if header_bytes > HEADER_BYTES:
            check_options(packet[at + HEADER_BYTES : at + header_bytes])
        return cls(
            source,
            destination,
            protocol,
            total_bytes,
            identification,
            fragment & DONT_FRAGMENT != 0,
            fragment & MORE_FRAGMENTS != 0,
            (fragment & OFFSET_MASK) * FRAGMENT_UNIT,
            ttl,
            type_of_service,
            header_bytes,
        )

    @property
    def is_fragment(self) -> bool:
        """True: only a part of a datagram."""
        return self.more_fragments or self.offset != 0

    def emit(self) -> bytes:
        """The twenty bytes, without options, with the checksum."""
        fragment = (
            self.offset // FRAGMENT_UNIT
            | (DONT_FRAGMENT if self.dont_fragment else 0)
            | (MORE_FRAGMENTS if self.more_fragments else 0)
        )
        fields = [
            0x40 | HEADER_BYTES // 4,
            self.type_of_service,
            self.total_bytes,
            self.identification,
            fragment,
            self.ttl,
            self.protocol,
            0,
            self.source,
            self.destination,
        ]
        fields[7] = checksum(self._FORMAT.pack(*fields))
        return self._FORMAT.pack(*fields)

    def __str__(self) -> str:
        text = f"{address_text(self.source)} > {address_text(self.destination)}"
        text += f" proto={self.protocol} length={self.total_bytes} ttl={self.ttl}"
        if self.is_fragment:
            text += f" id={self.identification} offset={self.offset}"
            text += "+" if self.more_fragments else ""
        return text


def check_options(options: bytes | bytearray) -> None:
    """Options mean nothing to us (RFC 1122 section 3.2.1.8), but they have to be what they say. A
    source route has to be at its end: we pass nothing on (RFC 7126 section 4.3). BadPacket."""
    at = 0
    while at < len(options) and options[at] != _OPTION_END:
        if options[at] == _OPTION_NONE:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            raise BadPacket("ip.bad_option")
        if options[at] in _SOURCE_ROUTES:
            if length < 3:
                raise BadPacket("ip.bad_option")
            if options[at + 2] <= length:  # the pointer
                raise BadPacket("ip.source_route")
        at += length
