"""ICMPv6 (RFC 4443): the header that all its messages have, those of neighbour discovery too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.checksum import fold, pseudo_header_sum, word_sum, word_sum_of
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv6 import ICMPV6

Buffer = bytes | bytearray | memoryview

HEADER_BYTES: Final = 8

DESTINATION_UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
MLD_QUERY: Final = 130
MLD_REPORT: Final = 131
MLD_DONE: Final = 132
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_SOLICITATION: Final = 135
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
MLD2_REPORT: Final = 143

CODE_ADDRESS_UNREACHABLE: Final = 3
CODE_PORT_UNREACHABLE: Final = 4
CODE_REASSEMBLY_TIME_EXCEEDED: Final = 1

_INFORMATIONAL: Final = 0x80


def is_error(kind: int) -> bool:
    """True: a message about another packet, of which it quotes the beginning."""
    return not kind & _INFORMATIONAL


@dataclass(slots=True)
class Icmpv6Header:
    """The eight bytes in front of the data; what `rest` means depends on the type: identifier and
    sequence number, MTU, pointer, flags."""

    type: int
    code: int
    rest: int = 0

    _FORMAT: ClassVar[Struct] = Struct("!BBHI")

    @classmethod
    def parse(
        cls, addresses: bytes, packet: bytes, at: int, end: int, checksum_good: bool
    ) -> Icmpv6Header:
        """The header of the message from `at` to `end`, that went between `addresses`."""
        if end - at < HEADER_BYTES:
            raise BadPacket("icmpv6.truncated")
        if not checksum_good:
            pseudo = pseudo_header_sum(word_sum(addresses), ICMPV6, end - at)
            if fold(pseudo + word_sum(packet[at:end])) != 0xFFFF:
                raise BadPacket("icmpv6.bad_checksum")
        kind, code, _checksum, rest = cls._FORMAT.unpack_from(packet, at)
        return cls(kind, code, rest)

    def emit(self, addresses_sum: int, data: Sequence[Buffer]) -> bytes:
        """The header of a message with this data. `addresses_sum`: of both IP addresses."""
        bare = self._FORMAT.pack(self.type, self.code, 0, self.rest)
        length = HEADER_BYTES + sum(map(len, data))
        total = pseudo_header_sum(addresses_sum, ICMPV6, length) + word_sum_of([bare, *data])
        return self._FORMAT.pack(self.type, self.code, 0xFFFF - fold(total), self.rest)

    def __str__(self) -> str:
        return f"icmpv6 type={self.type} code={self.code}"
