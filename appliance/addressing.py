"""The addresses that a machine serves at: those that its user has configured, or one that a DHCP
server lends it (RFC 2131), which comes later, and may go and come again.

Joins InterfaceConfig and the stack; knows nothing of threads. Whoever calls holds the stack's lock.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.ifconf import InterfaceConfig
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.wire.address import address_text
from appliance.trace import Counters

if TYPE_CHECKING:
    from appliance.netstack.dhcp.host import DhcpHost


def host_config(interface: InterfaceConfig) -> HostConfig:
    """What the stack begins with: where a DHCP server has the address, none."""
    if interface.address is None:
        return HostConfig(interface.mac, mtu=interface.mtu)
    return HostConfig.single(
        mac=interface.mac,
        address=interface.address.ip.packed,
        prefix_length=interface.address.network.prefixlen,
        gateway=interface.gateway.packed if interface.gateway else None,
        mtu=interface.mtu,
    )


class Addressing:
    """The addresses of one stack, which was made with `host_config`."""

    def __init__(
        self, interface: InterfaceConfig, stack: Stack, random: Random, counters: Counters
    ) -> None:
        self._stack = stack
        self._configured = list(stack.ip.addresses)
        self._dhcp: DhcpHost | None = None
        if interface.address is None:
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
        """False: a DHCP server has not given one yet."""
        return self._dhcp is None or self._dhcp.lease is not None

    @property
    def waits_for(self) -> str:
        """Why there is no address yet, in words."""
        return "" if self._dhcp is None else self._dhcp.client.status

    @property
    def is_probing(self) -> bool:
        """True: nobody knows yet whether others use the addresses that are configured."""
        return any(self._stack.ip.is_probing(ours.address) for ours in self._configured)

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

    def __str__(self) -> str:
        return " ".join(address_text(ours.address) for ours in self._stack.ip.addresses)
