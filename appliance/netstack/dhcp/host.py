"""A stack that has its address from a DHCP server: what the client wants of it, done (RFC 2131).

The stack serves on; only the address comes and goes. What listens goes on listening, and is there
again at the next address. The socket hears nothing of the time, so what arrives waits for the
client's own timer, which is told to expire at once.
"""

from __future__ import annotations

from collections import deque
from random import Random

from appliance.clock import Instant
from appliance.limits import DHCP_WAITING_MAX
from appliance.netstack.dhcp.client import DhcpClient
from appliance.netstack.dhcp.lease import Lease
from appliance.netstack.dhcp.requests import Identity
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.ip.routes import METRIC_LEARNT, Route, default_route
from appliance.netstack.stack import Stack
from appliance.netstack.wire.address import IPV4_BYTES
from appliance.netstack.wire.dhcp import CLIENT_PORT, SERVER_PORT
from appliance.netstack.wire.ipv4 import LIMITED_BROADCAST, UNSPECIFIED
from appliance.trace import Counters


class DhcpHost:
    """The client of one stack."""

    def __init__(
        self, stack: Stack, identity: Identity, random: Random, counters: Counters
    ) -> None:
        self._stack = stack
        self._counters = counters
        self._arrived: deque[bytes] = deque()
        self._timer = stack.timers.timer(self._hand_over)
        self._socket = stack.udp.bind(CLIENT_PORT, self._receive)
        self._route: Route | None = None
        self._in_use: Lease | None = None
        self._borrowed = False  # the address that is being checked or in use
        self.client = DhcpClient(identity, self, stack.timers, random, counters)

    def start(self, now: Instant, before: Lease | None = None) -> None:
        """Begin to ask for an address."""
        self.client.start(now, before)

    def release(self) -> None:
        """Give the address back. It goes with `stop`, when the server has been told
        (`Stack.ip.is_resolving`)."""
        self.client.release()

    def stop(self, now: Instant) -> None:
        """The end."""
        self.client.stop(now)
        self._socket.close()

    @property
    def lease(self) -> Lease | None:
        """What is in use."""
        return self._in_use

    # --- datagrams --------------------------------------------------------------------

    def _receive(self, _source: bytes, port: int, _destination: bytes, data: memoryview) -> None:
        if port != SERVER_PORT:
            self._counters["dhcp.bad_port"] += 1
        elif len(self._arrived) >= DHCP_WAITING_MAX:
            self._counters["dhcp.too_many"] += 1
        else:
            self._arrived.append(bytes(data))
            self._timer.set(0)  # at once: the timer knows the time

    def _hand_over(self, now: Instant) -> None:
        while self._arrived:
            self.client.arrives(self._arrived.popleft(), now)

    def broadcast(self, message: bytes, source: bytes | None) -> None:
        """To every server on the link (client.py, Network)."""
        source = source or UNSPECIFIED
        self._socket.send_to(LIMITED_BROADCAST, SERVER_PORT, [message], source)

    def unicast(self, message: bytes, server: bytes) -> None:
        """To one server, over the gateway where it is no neighbour."""
        assert self._in_use is not None
        self._socket.send_to(server, SERVER_PORT, [message], self._in_use.address)

    # --- the address ------------------------------------------------------------------

    def check(self, lease: Lease, now: Instant) -> None:
        """Probe for it. What is ours already needs no probes, and no server would lend it."""
        made = HostAddress(lease.address, lease.prefix_length)
        self._borrowed = self._stack.ip.borrow_address(made, self, now)
        if not self._borrowed:
            self.client.address_is_taken("this host itself", now)

    def address_is_ours(self, _address: bytes, now: Instant) -> None:
        """Nobody answered the probes (claim.py, Claimant)."""
        self.client.address_is_ours(now)

    def address_is_taken(self, address: bytes, rival: str, now: Instant) -> None:
        """Another station has it. Connections are reset while we can (RFC 5227 section 2.4)."""
        self._stack.reset_connections(address, now)
        self.client.address_is_taken(rival, now)

    def use(self, lease: Lease, now: Instant) -> None:
        """The address has been added by `check`; now for what goes with it."""
        self._in_use = lease
        self._set_route(lease.gateway)
        self._stack.ip.set_mtu(IPV4_BYTES, lease.mtu)

    def give_up(self, lease: Lease, reason: str, now: Instant) -> None:
        """Nothing is received or sent at it any more, and its connections are over."""
        self._set_route(None)
        self._stack.ip.set_mtu(IPV4_BYTES, None)
        if self._borrowed:
            self._stack.ip.remove_address(lease.address)
        self._in_use = None

    def _set_route(self, gateway: bytes | None) -> None:
        if self._route is not None:
            self._stack.ip.remove_route(self._route)
        self._route = default_route(gateway, METRIC_LEARNT) if gateway is not None else None
        if self._route is not None:
            self._stack.ip.add_route(self._route)
