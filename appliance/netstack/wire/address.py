"""IP addresses as on the wire, of both families: 4 bytes (RFC 791) or 16 (RFC 4291). The length
tells them apart, everywhere in the stack."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

IPV4_BYTES: Final = 4
IPV6_BYTES: Final = 16


def address_text(address: bytes) -> str:
    """10.0.0.5, or fd00::5 in the form of RFC 5952."""
    return inet_ntop(AF_INET if len(address) == IPV4_BYTES else AF_INET6, address)


def same_bits(one: bytes, other: bytes) -> int:
    """How many bits two addresses of one family have in common, from the left (RFC 6724 section
    2.2: CommonPrefixLen)."""
    differing = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) * 8 - differing.bit_length()


def is_unicast(address: bytes) -> bool:
    """Could it be the address of one host? (An answer to any other would go to many, or
    nowhere.)"""
    if len(address) != IPV4_BYTES:
        return address[0] != 0xFF and int.from_bytes(address, "big") > 1  # neither :: nor ::1
    return 0 < address[0] < 224 and address[0] != 127
