"""ICMP (RFC 792): echo, and the errors that a host sends and must understand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.checksum import is_sound, word_sum_of
from appliance.netstack.wire.errors import BadPacket

Buffer = bytes | bytearray | memoryview

HEADER_BYTES: Final = 8

ECHO_REPLY: Final = 0
DESTINATION_UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

CODE_PROTOCOL_UNREACHABLE: Final = 2
CODE_PORT_UNREACHABLE: Final = 3
CODE_FRAGMENTATION_NEEDED: Final = 4
CODE_REASSEMBLY_TIME_EXCEEDED: Final = 1

ERRORS: Final = frozenset(
    (DESTINATION_UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM)
)
"""The types that report about another packet, and quote the beginning of it."""


@dataclass(slots=True)
class IcmpHeader:
    """The eight bytes before the data: `rest` is an identifier and a sequence number (echo), or
    zero and the MTU of the next hop (fragmentation needed, RFC 1191)."""

    type: int
    code: int
    rest: int = 0

    _FORMAT: ClassVar[Struct] = Struct("!BBHI")

    @classmethod
    def parse(cls, packet: bytes | bytearray, at: int, end: int) -> IcmpHeader:
        """The header of the message from `at` to `end`, whose checksum is right."""
        if end - at < HEADER_BYTES:
            raise BadPacket("icmp.truncated")
        if not is_sound(packet[at:end]):
            raise BadPacket("icmp.bad_checksum")
        kind, code, _checksum, rest = cls._FORMAT.unpack_from(packet, at)
        return cls(kind, code, rest)

    def emit(self, data: Sequence[Buffer]) -> bytes:
        """The header of a message with this data."""
        bare = self._FORMAT.pack(self.type, self.code, 0, self.rest)
        return self._FORMAT.pack(
            self.type, self.code, 0xFFFF - word_sum_of([bare, *data]), self.rest
        )

    @property
    def next_hop_mtu(self) -> int:
        """What a router that could not fragment would have let pass (0: an old one that does not
        say)."""
        return self.rest & 0xFFFF

    def __str__(self) -> str:
        return f"icmp type={self.type} code={self.code}"
