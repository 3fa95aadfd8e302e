"""Whose an IPv4 address is: a neighbour's, everybody's, or nobody's, as our own addresses say."""

from __future__ import annotations

from typing import Final

from appliance.netstack.ip.addresses import Addresses, HostAddress
from appliance.netstack.wire.address import IPV4_BYTES
from appliance.netstack.wire.ipv4 import LIMITED_BROADCAST, UNSPECIFIED

_LOOPBACK_NET: Final = 127
_MULTICAST_NET: Final = 224  # and everything above it: class D, class E, the limited broadcast
_PREFIX_WITH_BROADCAST_MAX: Final = 30
"""A subnet with fewer than four addresses has no broadcast address, and no name (RFC 3021)."""


class Subnets:
    """The IPv4 networks that we are in."""

    broadcasts: frozenset[bytes]
    """The addresses that mean every host on the link."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self.refresh()

    def refresh(self) -> None:
        """An address has come or gone."""
        self._ours = [a for a in self._addresses if len(a.address) == IPV4_BYTES]
        with_names = [a for a in self._ours if a.prefix_length <= _PREFIX_WITH_BROADCAST_MAX]
        self.broadcasts = frozenset((LIMITED_BROADCAST, *map(broadcast_of, with_names)))
        self._nobodies = self.broadcasts | {UNSPECIFIED, *(a.network for a in with_names)}

    def on_link(self, address: bytes) -> bool:
        """True: a neighbour, reached without a gateway."""
        return any(ours.connected_route.covers(address) for ours in self._ours)

    def is_nobody(self, address: bytes) -> bool:
        """True: not the address of one host out there, so nothing can come from it or be sent to
        it (RFC 1122 section 3.2.1.3)."""
        return cannot_be_host(address) or address in self._nobodies


def cannot_be_host(address: bytes) -> bool:
    """True: no host anywhere has this address."""
    return address[0] in (0, _LOOPBACK_NET) or address[0] >= _MULTICAST_NET


def broadcast_of(ours: HostAddress) -> bytes:
    """The last address of the subnet."""
    number = int.from_bytes(ours.network, "big")
    host_part = (1 << 8 * IPV4_BYTES - ours.prefix_length) - 1
    return (number | host_part).to_bytes(IPV4_BYTES, "big")
