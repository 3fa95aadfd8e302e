"""The addresses that a machine serves at: those that its user has configured, one that a DHCP
server lends it (RFC 2131), and those that it makes of what IPv6 routers advertise (RFC 4862). The
last two come later, and may go and come again.

Joins InterfaceConfig and the stack; knows nothing of threads. Whoever calls holds the stack's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.ifconf import InterfaceConfig
from appliance.netstack.ip.addresses import AddressState
from appliance.netstack.ip.routes import Route, default_route
from appliance.netstack.ip.v6.router import link_local
from appliance.netstack.stack import HostAddress, HostConfig, Stack
from appliance.netstack.wire.address import address_text
from appliance.trace import Counters

if TYPE_CHECKING:
    from appliance.netstack.dhcp.host import DhcpHost


def host_config(interface: InterfaceConfig) -> HostConfig:
    """What the stack begins with."""
    return HostConfig(
        interface.mac,
        tuple(HostAddress(a.ip.packed, a.network.prefixlen) for a in interface.addresses),
        (
            *(default_route(gateway.packed) for gateway in interface.gateways),
            *(
                Route(r.network.network_address.packed, r.network.prefixlen, r.gateway.packed)
                for r in interface.routes
            ),
        ),
        interface.mtu,
        interface.ttl,
        tuple((address.packed, mac) for address, mac in interface.neighbours),
        autoconfigure=interface.slaac,
    )


class Addressing:
    """The addresses of one stack, which was made with `host_config`."""

    def __init__(
        self, interface: InterfaceConfig, stack: Stack, random: Random, counters: Counters
    ) -> None:
        self._stack = stack
        self._configured = list(stack.ip.addresses)
        self._makes_addresses = interface.slaac and not interface.addresses
        self._dhcp: DhcpHost | None = None
        if interface.dhcp:
            # Not every start needs it, and every start should be quick.
            from appliance.netstack.dhcp.host import DhcpHost
            from appliance.netstack.dhcp.requests import Identity

            identity = Identity(interface.mac, interface.hostname)
            self._dhcp = DhcpHost(stack, identity, random, counters)

    def start(self, now: Instant) -> None:
        """Claim what there is, and ask for what there is not."""
        self._stack.start(now)
        if self._dhcp is not None:
            self._dhcp.start(now)

    @property
    def has_address(self) -> bool:
        """False: what has to come from elsewhere has not come yet."""
        if self._dhcp is not None and self._dhcp.lease is None:
            return False
        return not self._makes_addresses or any(self._in_use())

    @property
    def waits_for(self) -> str:
        """Why there is no address yet, in words."""
        if self._dhcp is not None and self._dhcp.lease is None:
            return self._dhcp.client.status
        return "no IPv6 router has advertised a prefix"

    @property
    def is_tentative(self) -> bool:
        """True: there are addresses that are not used before it is known that others do not."""
        ours = self._stack.ip.addresses
        return any(ours.state(a.address) is AddressState.TENTATIVE for a in self._configured)

    @property
    def conflict(self) -> str | None:
        """Who else uses one of the addresses that are configured, in words."""
        for ours in self._configured:
            rival = self._stack.ip.rival(ours.address)
            if rival is not None:
                return f"{address_text(ours.address)} is in use already on this link, by {rival}"
        return None

    @property
    def is_leaving(self) -> bool:
        """True: something that was sent waits for the MAC address of its next hop."""
        return self._dhcp is not None and self._stack.ip.is_resolving

    def release(self) -> None:
        """Give back what was lent; then wait while `is_leaving`, and `stop`."""
        if self._dhcp is not None:
            self._dhcp.release()

    def stop(self, now: Instant) -> None:
        """What was lent is not used any more."""
        if self._dhcp is not None:
            self._dhcp.stop(now)

    def _in_use(self) -> Iterator[bytes]:
        """What others can reach us at. The link-local address that every IPv6 host makes itself is
        not worth mentioning."""
        made = link_local(self._stack.config.mac)
        for ours in self._stack.ip.addresses:
            if ours.address in self._stack.ip.addresses and ours != made:
                yield ours.address

    def __str__(self) -> str:
        return " ".join(map(address_text, self._in_use()))
