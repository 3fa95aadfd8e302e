"""A DHCP client in virtual time, and a server that does what the test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from appliance.clock import Instant
from appliance.netstack.dhcp.client import DhcpClient
from appliance.netstack.dhcp.lease import Lease
from appliance.netstack.dhcp.requests import Identity
from appliance.netstack.dhcp.states import IN_USE, State
from appliance.netstack.timers import Timers
from appliance.netstack.wire import dhcp
from appliance.netstack.wire.dhcp import BOOTREPLY, BOOTREQUEST, DhcpMessage
from appliance.trace import Counters
from tests.sim.clock import VirtualClock

MAC = bytes.fromhex("02000a000005")
SERVER = bytes([10, 0, 0, 1])
OTHER_SERVER = bytes([10, 0, 0, 2])
GIVEN = bytes([10, 0, 0, 77])
MASK = bytes([255, 255, 255, 0])


@dataclass
class Sent:
    """One message of the client."""

    at: Instant
    message: DhcpMessage
    source: bytes | None
    """None: 0.0.0.0."""
    server: bytes | None
    """None: to everybody."""


@dataclass
class World:
    """The client, its network, and what has happened."""

    lease_seconds: int = 600
    answers: bool = True
    """The server is there: it offers GIVEN, and acknowledges whatever it is asked for."""
    checks: bool = True
    """Nobody else has the address: the network says so at once."""
    before: Lease | None = None
    seed: int = 1
    options: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.timers = Timers()
        self.counters = Counters()
        self.sent: list[Sent] = []
        self.used: Lease | None = None
        self.given_up: list[str] = []
        identity = Identity(MAC, "files")
        self.client = DhcpClient(identity, self, self.timers, Random(self.seed), self.counters)
        self.client.start(0, self.before)
        self._arm()

    # --- the network ----------------------------------------------------------------------

    def broadcast(self, message: bytes, source: bytes | None) -> None:
        self._went(message, source, None)

    def unicast(self, message: bytes, server: bytes) -> None:
        assert self.used is not None, "nobody would know where to answer"
        self._went(message, self.used.address, server)

    def check(self, lease: Lease, now: Instant) -> None:
        if self.checks:
            self.clock.at(now, self._nobody_has_it)

    def use(self, lease: Lease, now: Instant) -> None:
        assert self.used is None or self.used.address == lease.address
        self.used = lease

    def give_up(self, lease: Lease, reason: str, now: Instant) -> None:
        assert self.used in (None, lease), "each use ends once"
        self.used = None
        self.given_up.append(reason)

    # --- the server -----------------------------------------------------------------------

    def _went(self, message: bytes, source: bytes | None, server: bytes | None) -> None:
        sent = Sent(self.clock.now(), DhcpMessage.parse(message), source, server)
        self.sent.append(sent)
        if not self.answers:
            return
        if sent.message.type == dhcp.DISCOVER:
            self.clock.at(self.clock.now(), partial(self.reply, dhcp.OFFER, to=sent))
        elif sent.message.type == dhcp.REQUEST:
            self.clock.at(self.clock.now(), partial(self.reply, dhcp.ACK, to=sent))

    def reply(
        self,
        kind: int,
        *,
        to: Sent | None = None,
        server: bytes = SERVER,
        yiaddr: bytes = GIVEN,
        **fields: Any,
    ) -> None:
        """An answer to the last message, or to `to`. Fields are those of the message."""
        asked = (to or self.sent[-1]).message
        options = {
            dhcp.OPTION_MESSAGE_TYPE: bytes((kind,)),
            dhcp.OPTION_SERVER_IDENTIFIER: server,
            dhcp.OPTION_SUBNET_MASK: MASK,
            dhcp.OPTION_LEASE_TIME: self.lease_seconds.to_bytes(4, "big"),
            **self.options,
        }
        message = DhcpMessage(BOOTREPLY, asked.xid, MAC, yiaddr=yiaddr, options=options)
        for name, value in fields.items():
            setattr(message, name, value)
        self.arrives(message.emit())

    def asked(self) -> Sent:
        """Something that an answer may be to: the message that the client waits for one to."""
        return Sent(0, DhcpMessage(BOOTREQUEST, self.client._xid, MAC), None, None)

    def arrives(self, data: bytes) -> None:
        self.client.arrives(data, self.clock.now())
        self._arm()

    def _nobody_has_it(self) -> None:
        self.client.address_is_ours(self.clock.now())
        self._arm()

    # --- time -----------------------------------------------------------------------------

    def _arm(self) -> None:
        deadline = self.timers.next_deadline
        if deadline is not None:
            self.clock.at(deadline, self._expire)

    def _expire(self) -> None:
        self.timers.expire(self.clock.now())
        assert (self.used is not None) == (self.client.state in IN_USE), "D1"
        self._arm()

    def is_in(self, state: State) -> bool:
        """Is the client there?"""
        return self.client.state is state

    def run(self, duration: int) -> None:
        self.clock.run(duration)

    def take(self) -> list[Sent]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent
