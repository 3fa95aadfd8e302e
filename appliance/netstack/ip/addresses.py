"""Whose an address is: ours, a neighbour's, somebody's behind the gateway, or nobody's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from appliance.netstack.wire.ipv4 import LIMITED_BROADCAST, UNSPECIFIED, address_text

_ADDRESS_BITS = 32
_LOOPBACK_NET = 127
_MULTICAST_NET = 224  # and everything above it: class D, class E, the limited broadcast


@dataclass(frozen=True)
class HostConfig:
    """One host on one link. Addresses as on the wire."""

    mac: bytes
    address: bytes
    prefix_length: int
    gateway: bytes | None = None
    mtu: int = 1500

    def __post_init__(self) -> None:
        assert len(self.mac) == 6 and not self.mac[0] & 1
        assert len(self.address) == 4 and not self.is_nobody(self.address)
        assert 0 <= self.prefix_length <= _ADDRESS_BITS
        assert self.gateway is None or self.on_link(self.gateway)

    @cached_property
    def _host_bits(self) -> int:
        return _ADDRESS_BITS - self.prefix_length

    @cached_property
    def _network(self) -> int:
        return int.from_bytes(self.address, "big") >> self._host_bits

    @cached_property
    def broadcasts(self) -> frozenset[bytes]:
        """The addresses that mean every host on the link. A subnet with fewer than four addresses
        has none of its own (RFC 3021)."""
        if self._host_bits < 2:
            return frozenset((LIMITED_BROADCAST,))
        last = (self._network + 1 << self._host_bits) - 1
        return frozenset((LIMITED_BROADCAST, last.to_bytes(4, "big")))

    @cached_property
    def _nobodies(self) -> frozenset[bytes]:
        """No host is called so: every host's address, and the subnet's own name."""
        name = (self._network << self._host_bits).to_bytes(4, "big")
        return self.broadcasts | ({UNSPECIFIED} if self._host_bits < 2 else {UNSPECIFIED, name})

    def on_link(self, address: bytes) -> bool:
        """True: a neighbour, reached without a gateway."""
        return int.from_bytes(address, "big") >> self._host_bits == self._network

    def next_hop(self, destination: bytes) -> bytes | None:
        """Whom to hand a packet for `destination`; None: it cannot be reached."""
        return destination if self.on_link(destination) else self.gateway

    def is_nobody(self, address: bytes) -> bool:
        """True: not the address of one host out there, so nothing can come from it or be sent to
        it (RFC 1122 section 3.2.1.3)."""
        first = address[0]
        return first in (0, _LOOPBACK_NET) or first >= _MULTICAST_NET or address in self._nobodies

    def __str__(self) -> str:
        return f"{address_text(self.address)}/{self.prefix_length}"
