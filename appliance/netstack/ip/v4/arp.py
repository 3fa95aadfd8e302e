"""Our side of ARP (RFC 826), except for the claim to our own addresses (claim.py).

The table holds a neighbour in one of three states:

    RESOLVING   no MAC yet: requests go out by broadcast, packets wait in a bounded queue
    REACHABLE   the MAC was confirmed less than ARP_CONFIRMED_FOR ago
    CHECKING    it was in use since then, so it is asked again, by unicast (RFC 1122 section
                2.3.2.1); packets still go to the old MAC

    nobody    -> RESOLVING [a packet waits for it]     RESOLVING -> REACHABLE [it answers]
    nobody    -> REACHABLE [it asks for our address]   REACHABLE -> CHECKING  [timer; in use]
    CHECKING  -> REACHABLE [any ARP packet of it]      REACHABLE -> nobody    [timer; idle]
    RESOLVING, CHECKING -> nobody [ARP_TRIES_MAX requests without an answer]

Whoever is a nobody again is resolved anew by the next packet to it: a failure is never final.

A reply that was not asked for, or an announcement, can only refresh or move a neighbour that is
already in the table; a request for an address of ours gets in, because its sender is about to talk
to us (that is RFC 826's rule, and saves a round trip). A neighbour that the user has fixed is in
none of these states.
"""

from __future__ import annotations

from appliance.clock import Instant
from appliance.limits import (
    ARP_CONFIRMED_FOR,
    ARP_LOCKED_FOR,
    ARP_RETRY_AFTER,
    ARP_TRIES_MAX,
)
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.neighbours import Neighbour, NeighbourTable
from appliance.netstack.ip.v4.subnet import Subnets
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import arp, ethernet
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.ipv4 import UNSPECIFIED
from appliance.trace import Counters


class Arp(NeighbourTable[Neighbour]):
    """The IPv4 neighbours of one host."""

    def __init__(
        self,
        link: Link,
        mac: bytes,
        addresses: Addresses,
        subnets: Subnets,
        timers: Timers,
        counters: Counters,
    ) -> None:
        super().__init__("arp", link, timers, counters)
        self._mac = mac
        self._addresses = addresses
        self._subnets = subnets

    def _make(self, address: bytes) -> Neighbour:
        return Neighbour(address, self)

    # --- input ------------------------------------------------------------------------

    def arrives(self, packet: ArpPacket, now: Instant) -> None:
        """An ARP packet whose sender is not us (RFC 826, "Packet Reception")."""
        known = self._known.get(packet.sender_address)
        if known is not None:
            self._confirm(known, packet.sender_mac, now)
        if packet.target_address not in self._addresses:
            return
        if packet.operation == arp.REQUEST:
            if known is None and not self.is_fixed(packet.sender_address, packet.sender_mac):
                self._learn(packet, now)
            self._count("answered")
            self.send(packet.sender_mac, arp.reply_to(packet, self._mac))
        elif known is None:
            self._count("unsolicited_reply")

    def _learn(self, packet: ArpPacket, now: Instant) -> None:
        address = packet.sender_address
        if self._subnets.is_nobody(address) or not self._subnets.on_link(address):
            return  # a probe, or somebody with another idea of this subnet: answered, not learnt
        neighbour = self._object(address)
        self._insert(neighbour)
        self._confirm(neighbour, packet.sender_mac, now)

    def _confirm(self, neighbour: Neighbour, mac: bytes, now: Instant) -> None:
        """It has just said so itself."""
        if neighbour.mac is not None and neighbour.mac != mac:
            if now - neighbour.confirmed < ARP_LOCKED_FOR:
                self._count("contested")
                return  # two stations claim the address: do not flap with every packet of theirs
            self._count("moved")
        neighbour.mac = mac
        neighbour.confirmed = now
        neighbour.answers |= neighbour.tries > 0
        neighbour.tries = 0
        neighbour.due = now + ARP_CONFIRMED_FOR
        self._set_timer(neighbour.due)
        self._resolving.discard(neighbour.address)
        for path in neighbour.paths:
            path.resolved(mac)
        self._send_waiting(neighbour, mac)

    def wanted(self, neighbour: Neighbour) -> None:
        """Nobody is in doubt here: who was in use is checked when its time is over."""

    # --- time -------------------------------------------------------------------------

    def _asked(self, neighbour: Neighbour, now: Instant) -> None:
        neighbour.due = now + ARP_RETRY_AFTER

    def _due(self, neighbour: Neighbour, now: Instant) -> None:
        if neighbour.tries == 0 and not neighbour.take_used():
            self._forget(neighbour)  # nobody has wanted it for a while
        elif neighbour.tries >= ARP_TRIES_MAX:
            self._give_up(neighbour)
        else:
            self._ask(neighbour)
            neighbour.due = now + ARP_RETRY_AFTER

    # --- output -----------------------------------------------------------------------

    def _ask(self, neighbour: Neighbour) -> None:
        neighbour.tries += 1
        source = self._addresses.source_for(neighbour.address) or UNSPECIFIED
        asked = arp.request(self._mac, source, neighbour.address)
        self.send(neighbour.mac or ethernet.BROADCAST, asked)

    def send(self, destination: bytes, packet: ArpPacket) -> None:
        """Send an ARP packet to a MAC address."""
        header = ethernet.EthernetHeader(destination, self._mac, ethernet.TYPE_ARP)
        self._send_frame(header, packet.emit())
