"""Multicast listener discovery: version 2 (RFC 3810), and version 1 (RFC 2710) for routers that
speak only that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import HEADER_BYTES
from appliance.netstack.wire.ipv6 import UNSPECIFIED, is_multicast

MODE_IS_EXCLUDE: Final = 2
CHANGE_TO_INCLUDE: Final = 3
CHANGE_TO_EXCLUDE: Final = 4
"""Record types (RFC 3810 section 5.2.12). Without sources, "exclude" means: everything that is sent
to the group; "include": nothing."""

_VERSION_1_BYTES: Final = 24
_VERSION_2_BYTES_MIN: Final = 28
_FLOATING: Final = 0x8000
_ADDRESS_BYTES: Final = 16


@dataclass(slots=True)
class Query:
    """Which groups are listened to? `group` None: all of them."""

    group: bytes | None
    respond_within_ms: int
    version: int

    @classmethod
    def parse(cls, packet: bytes, at: int, end: int) -> Query:
        """The message whose ICMPv6 header stands at `at` (RFC 3810 section 8.1: its length says
        which version it is)."""
        length = end - at
        if length < _VERSION_1_BYTES or _VERSION_1_BYTES < length < _VERSION_2_BYTES_MIN:
            raise BadPacket("mld.bad_length")
        code = int.from_bytes(packet[at + 4 : at + 6], "big")
        group = packet[at + HEADER_BYTES : at + HEADER_BYTES + _ADDRESS_BYTES]
        if group != UNSPECIFIED and not is_multicast(group):
            raise BadPacket("mld.bad_group")
        version = 1 if length == _VERSION_1_BYTES else 2
        within = code if version == 1 else response_delay(code)
        return cls(None if group == UNSPECIFIED else group, within, version)


def response_delay(code: int) -> int:
    """The maximum response delay in milliseconds (RFC 3810 section 5.1.3)."""
    if code < _FLOATING:
        return code
    return (code & 0xFFF | 0x1000) << (code >> 12 & 7) + 3


def records(kind: int, groups: Sequence[bytes]) -> bytes:
    """The body of a version 2 report, behind its ICMPv6 header."""
    return b"".join(bytes((kind, 0, 0, 0)) + group for group in groups)
