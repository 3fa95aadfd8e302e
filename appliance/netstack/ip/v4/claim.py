"""Our claim to one of our own addresses (RFC 5227): probe, announce, defend, give up.

There are two kinds of addresses, and what section 2 of the RFC leaves to a host differs by kind:

    configured  The user has given it. It is used from the first instant, beside the probes: this
                host is started for one test, and mounted in the same breath. A conflict is told,
                and whoever has just started us may end us. Later the address is defended and
                never given up (section 2.4 (c)): mounts hang on it.
    lent        Somebody else, the claimant (a DHCP client), has it from somewhere, and can get
                another. It is not used before it has been probed for (section 2.1). Later it is
                defended once; when that does not help it is given up (section 2.4 (b)).

    PROBING     probes go out; any packet from the address, and any probe for it, is a conflict
    ANNOUNCING  it is ours, and says so twice
    SETTLED     it is ours
    LOST        somebody else's; nothing follows

The rhythm is faster than the RFC's, which has seven seconds pass before an address is used; it is
for links of all kinds, and this is one of hosts that answer within milliseconds.
"""

from __future__ import annotations

from enum import Enum
from random import Random
from typing import Final

from appliance.clock import Instant
from appliance.limits import (
    ARP_ANNOUNCE_AFTER,
    ARP_CLAIMED_AFTER,
    ARP_DEFEND_AFTER,
    ARP_PROBE_AFTER,
)
from appliance.netstack.ip.claimant import Claimant
from appliance.netstack.ip.v4.arp import Arp
from appliance.netstack.timers import Timers
from appliance.netstack.wire import arp, ethernet
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.ipv4 import UNSPECIFIED
from appliance.trace import Counters, log

PROBE_NUM: Final = 3
ANNOUNCE_NUM: Final = 2


class Stage(Enum):
    """How far a claim has come."""

    PROBING = "probing"
    ANNOUNCING = "announcing"
    SETTLED = "settled"
    LOST = "lost"


class Claim:
    """The claim to one address. `rival`: the MAC address of the last one who had another opinion,
    as text."""

    def __init__(
        self,
        mac: bytes,
        address: bytes,
        neighbours: Arp,
        timers: Timers,
        random: Random,
        counters: Counters,
        claimant: Claimant | None = None,
    ) -> None:
        """Without a claimant, the address is one that was configured."""
        self.stage = Stage.PROBING
        self.rival: str | None = None
        self._mac = mac
        self._address = address
        self._neighbours = neighbours
        self._random = random
        self._counters = counters
        self._claimant = claimant
        self._timer = timers.timer(self._next_step)
        self._probes = 0
        self._announcements = 0
        self._defended: Instant | None = None

    # --- time -------------------------------------------------------------------------

    def start(self, now: Instant) -> None:
        """Send the first probe; the rest follows by itself."""
        assert self._probes == 0
        self._next_step(now)

    def _next_step(self, now: Instant) -> None:
        if self._probes < PROBE_NUM:
            self._probe(now)
        elif self._announcements < ANNOUNCE_NUM:
            self._announce_again(now)
        else:
            self.stage = Stage.SETTLED

    def _probe(self, now: Instant) -> None:
        self._probes += 1
        self._broadcast(arp.probe(self._mac, self._address))
        if self._probes == PROBE_NUM:
            self._timer.set(now + ARP_CLAIMED_AFTER)
        else:
            # At random, so that hosts that were started together do not speak together.
            self._timer.set(now + self._random.randint(ARP_PROBE_AFTER // 2, ARP_PROBE_AFTER))

    def _announce_again(self, now: Instant) -> None:
        if self.stage is Stage.PROBING:
            self.stage = Stage.ANNOUNCING
            if self._claimant is not None:
                self._claimant.address_is_ours(self._address, now)
        self._announcements += 1
        self._announce()
        self._timer.set(now + ARP_ANNOUNCE_AFTER)

    def withdraw(self) -> None:
        """The address is not ours any more."""
        self.stage = Stage.LOST
        self._timer.discard()

    # --- conflicts --------------------------------------------------------------------

    def hears(self, packet: ArpPacket, now: Instant) -> None:
        """Any ARP packet of another station: perhaps it has our address, or wants it."""
        if self.stage is Stage.LOST or not self._is_conflict(packet):
            return
        self._counters["arp.conflict"] += 1
        rival = ethernet.mac_text(packet.sender_mac)
        if self.stage is Stage.PROBING:
            self._taken_already(rival, now)
            return
        self.rival = rival
        if self._defended is None or now - self._defended >= ARP_DEFEND_AFTER:
            self._defend(now)
        elif self._claimant is not None:
            self._give_up(now)

    def hears_our_mac(self, packet: ArpPacket, now: Instant) -> None:
        """An ARP packet from our own MAC address: one of ours that came back, or one of a station
        that was given the same, as a second appliance with the same configuration is.

        What cannot be ours is a packet from the address before we have announced it, and a probe
        when ours are over. So the one that came first tells the other, which finds it out.
        """
        if self.stage is Stage.PROBING and packet.sender_address == self._address:
            self._counters["arp.conflict"] += 1
            rival = f"{ethernet.mac_text(packet.sender_mac)}, which is our own MAC address"
            self._taken_already(rival, now)
        elif self.stage is not Stage.PROBING and self._is_probe(packet):
            self._counters["arp.conflict"] += 1
            if self._defended is None or now - self._defended >= ARP_DEFEND_AFTER:
                self.rival = ethernet.mac_text(packet.sender_mac)
                self._defend(now)

    def _is_conflict(self, packet: ArpPacket) -> bool:
        """RFC 5227 sections 2.1.1 and 2.4. A probe of somebody who hears us answer it is none,
        once the address is ours."""
        if packet.sender_address == self._address:
            return True
        return self.stage is Stage.PROBING and self._is_probe(packet)

    def _is_probe(self, packet: ArpPacket) -> bool:
        return (
            packet.operation == arp.REQUEST
            and packet.sender_address == UNSPECIFIED
            and packet.target_address == self._address
        )

    def _taken_already(self, rival: str, now: Instant) -> None:
        """Somebody was here before us. A configured address goes on, and says nothing yet: an
        announcement would draw our rival's packets to us."""
        is_news, self.rival = self.rival is None, rival
        if self._claimant is not None:
            self._give_up(now)
        elif is_news:
            self._tell()

    def _defend(self, now: Instant) -> None:
        """Say that the address is ours, but not so often that two hosts defend it in a loop."""
        self._tell()
        self._defended = now
        self._announce()

    def _give_up(self, now: Instant) -> None:
        assert self._claimant is not None and self.rival is not None
        self._counters["arp.gave_up"] += 1
        self._tell()
        self.withdraw()
        self._claimant.address_is_taken(self._address, self.rival, now)

    def _tell(self) -> None:
        log.warning(
            "event=arp-conflict address=%s also-at=%s stage=%s",
            address_text(self._address),
            self.rival,
            self.stage.value,
        )

    # --- output -----------------------------------------------------------------------

    def _announce(self) -> None:
        self._broadcast(arp.announcement(self._mac, self._address))

    def _broadcast(self, packet: ArpPacket) -> None:
        self._neighbours.send(ethernet.BROADCAST, packet)
