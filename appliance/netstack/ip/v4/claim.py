"""Our claim to our own address (RFC 5227): probe, announce, defend.

The RFC would have a host stay silent for some seconds while it probes. This one was given its
address by its user, who starts a server for one test and mounts it in the same breath. So it
answers from the first instant, and the probes go out beside that, in a faster rhythm: a conflict is
found, counted, told to the user, and defended against; the address is not given up (RFC 5227
section 2.4 (c), for a host whose address has to stay).
"""

from __future__ import annotations

from random import Random

from appliance.clock import Instant
from appliance.limits import ARP_ANNOUNCE_AFTER, ARP_DEFEND_AFTER, ARP_PROBE_AFTER
from appliance.netstack.ip.v4.arp import Arp
from appliance.netstack.timers import Timers
from appliance.netstack.wire import arp, ethernet
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.ipv4 import UNSPECIFIED
from appliance.trace import Counters, log

PROBE_NUM = 3
ANNOUNCE_NUM = 2


class Claim:
    """The claim to one address."""

    def __init__(
        self,
        mac: bytes,
        address: bytes,
        neighbours: Arp,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self._mac = mac
        self._address = address
        self._neighbours = neighbours
        self._random = random
        self._counters = counters
        self._timer = timers.timer(self._next_step)
        self._probes = 0
        self._announcements = 0
        self._defended: Instant | None = None

    def start(self, now: Instant) -> None:
        """Send the first probe; the rest follows by itself."""
        self._probes = self._announcements = 0
        self._next_step(now)

    def _next_step(self, now: Instant) -> None:
        if self._probes < PROBE_NUM:
            self._probes += 1
            self._broadcast(arp.probe(self._mac, self._address))
            # At random, so that hosts that were started together do not speak together.
            self._timer.set(now + self._random.randint(ARP_PROBE_AFTER // 2, ARP_PROBE_AFTER))
        elif self._announcements < ANNOUNCE_NUM:
            self._announcements += 1
            self._announce()
            if self._announcements < ANNOUNCE_NUM:
                self._timer.set(now + ARP_ANNOUNCE_AFTER)

    def withdraw(self) -> None:
        """The address is not ours any more."""
        self._timer.discard()

    def disputed_by(self, packet: ArpPacket) -> bool:
        """True: another station uses our address, or is about to (it probes while we do)."""
        if packet.sender_address == self._address:
            return True
        return (
            packet.sender_address == UNSPECIFIED
            and packet.target_address == self._address
            and packet.operation == arp.REQUEST
            and self._announcements == 0
        )

    def defend(self, packet: ArpPacket, now: Instant) -> None:
        """Say that the address is ours, but not so often that two hosts defend it in a loop."""
        self._counters["arp.conflict"] += 1
        if self._defended is not None and now - self._defended < ARP_DEFEND_AFTER:
            return
        self._defended = now
        log.warning(
            "arp conflict address=%s also_at=%s",
            address_text(self._address),
            ethernet.mac_text(packet.sender_mac),
        )
        self._announce()

    def _announce(self) -> None:
        self._broadcast(arp.announcement(self._mac, self._address))

    def _broadcast(self, packet: ArpPacket) -> None:
        self._neighbours.send(ethernet.BROADCAST, packet)
