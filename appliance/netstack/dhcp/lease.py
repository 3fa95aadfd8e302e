"""What a DHCPACK gives (RFC 2131 section 4.4.1): an address, for a time, with what goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from appliance.clock import SECOND, Instant
from appliance.limits import DHCP_LEASE_MIN
from appliance.netstack.wire import dhcp
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.dhcp import DhcpMessage
from appliance.netstack.wire.errors import BadPacket

_MTU_MIN: Final = 576
"""Every host accepts packets of this size (RFC 1122 section 3.3.2): a server that says less is
wrong, or wants our segments tiny."""

_CLASS_C, _CLASS_B, _CLASS_D = 192, 128, 224
_LOOPBACK_NET: Final = 127
_FUZZ: Final = 20
"""T1 and T2 are earlier by up to this fraction (RFC 2131 section 4.4.5: "some random fuzz"), so
that what was started together does not renew together."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease. Addresses as on the wire; times are None where it has no end."""

    server: bytes
    address: bytes
    prefix_length: int
    gateway: bytes | None
    mtu: int | None
    renew_at: Instant | None = None
    """T1."""
    rebind_at: Instant | None = None
    """T2."""
    ends_at: Instant | None = None

    @property
    def network(self) -> tuple[bytes, int, bytes | None, int | None]:
        """What a host has to be told of it."""
        return (self.address, self.prefix_length, self.gateway, self.mtu)

    def __str__(self) -> str:
        return f"{address_text(self.address)}/{self.prefix_length}"


def lease_of(ack: DhcpMessage, requested: Instant, random: Random) -> Lease:
    """What the message gives. `requested`: when what it answers was sent, from which its times
    count. BadPacket: no host could be configured with it."""
    server, seconds = ack.server, ack.lease_seconds
    if server is None or seconds is None:
        raise BadPacket("dhcp.incomplete")
    if not is_host(ack.yiaddr):
        raise BadPacket("dhcp.bad_address")
    length = ack.prefix_length
    if length is None:
        length = natural_prefix_length(ack.yiaddr)
    if is_name_of_network(ack.yiaddr, length):
        raise BadPacket("dhcp.bad_address")
    mtu = ack.mtu
    lease = Lease(
        server=server,
        address=ack.yiaddr,
        prefix_length=length,
        gateway=gateway_among(ack.routers, ack.yiaddr, length),
        mtu=mtu if mtu is not None and mtu >= _MTU_MIN else None,
    )
    if seconds == dhcp.LEASE_FOR_EVER:
        return lease
    return _timed(lease, ack, requested, random)


def _timed(lease: Lease, ack: DhcpMessage, requested: Instant, random: Random) -> Lease:
    """RFC 2131 section 4.4.5: T1 is half of the lease and T2 seven eighths, where the server does
    not say something that makes sense."""
    assert ack.lease_seconds is not None
    length = max(ack.lease_seconds * SECOND, DHCP_LEASE_MIN)
    rebind = length * 7 // 8
    if ack.rebinding_seconds and ack.rebinding_seconds * SECOND < length:
        rebind = ack.rebinding_seconds * SECOND
    renew = min(length // 2, rebind * 4 // 7)
    if ack.renewal_seconds and ack.renewal_seconds * SECOND < rebind:
        renew = ack.renewal_seconds * SECOND
    early = random.randint(0, renew // _FUZZ)
    return Lease(
        lease.server,
        *lease.network,
        renew_at=requested + renew - early,
        rebind_at=requested + rebind - early,
        ends_at=requested + length,
    )


def is_host(address: bytes) -> bool:
    """True: one host can be called so, in some network."""
    return address[0] not in (0, _LOOPBACK_NET) and address[0] < _CLASS_D


def natural_prefix_length(address: bytes) -> int:
    """The mask of the address's class (RFC 950 section 2.1), for a server that sends none."""
    if address[0] < _CLASS_B:
        return 8
    return 16 if address[0] < _CLASS_C else 24


def is_name_of_network(address: bytes, prefix_length: int) -> bool:
    """True: with such a mask, it is the network's own name or its broadcast address."""
    host_bits = 32 - prefix_length
    if host_bits < 2:  # RFC 3021
        return False
    mask = (1 << host_bits) - 1
    return int.from_bytes(address, "big") & mask in (0, mask)


def gateway_among(routers: list[bytes], address: bytes, prefix_length: int) -> bytes | None:
    """The first router that is another host of our network: no other could be reached."""
    host_bits = 32 - prefix_length
    ours = int.from_bytes(address, "big") >> host_bits
    for router in routers:
        on_link = int.from_bytes(router, "big") >> host_bits == ours
        if on_link and router != address and not is_name_of_network(router, prefix_length):
            return router
    return None
