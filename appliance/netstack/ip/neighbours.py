"""Neighbours: who on the link has which MAC address (RFC 826), for as long as it stays true.

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

Nobody gets into the table by talking alone. A reply that was not asked for, or an announcement, can
only refresh or move a neighbour that is already there; a request for our own address gets in,
because its sender is about to talk to us (that is RFC 826's rule, and saves a round trip).

One timer serves the whole table, so that a flood cannot grow the heap of deadlines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakSet, WeakValueDictionary

from appliance.clock import Instant
from appliance.limits import (
    ARP_CONFIRMED_FOR,
    ARP_LOCKED_FOR,
    ARP_NEIGHBOURS_MAX,
    ARP_RESOLVING_MAX,
    ARP_RETRY_AFTER,
    ARP_TRIES_MAX,
    ARP_WAITING_BYTES_MAX,
    ARP_WAITING_FRAMES_MAX,
)
from appliance.netstack.ip.addresses import HostConfig
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import arp, ethernet, vnet
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.ipv4 import address_text
from appliance.trace import Counters


class LeadsOver(Protocol):
    """A path whose next hop is a neighbour (ipv4_path.py)."""

    used: bool
    """A packet went this way since the last look."""

    def lead_over(self, next_hop: Neighbour) -> None: ...

    def resolved(self, mac: bytes) -> None: ...

    def unresolved(self) -> None: ...


class Neighbour:
    """One neighbour, by its IP address."""

    __slots__ = (
        "__weakref__",
        "_resolve",
        "address",
        "confirmed",
        "due",
        "known_to",
        "mac",
        "paths",
        "tries",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, address: bytes, resolve: Callable[[Neighbour], bool]) -> None:
        self._resolve = resolve
        self.address = address
        self.mac: bytes | None = None
        self.confirmed: Instant = 0
        self.due: Instant | None = None  # when the table's timer has something to do here
        self.tries = 0  # requests sent since it was confirmed
        # Weak: a path lives as long as a connection or the cache of paths wants it.
        self.paths: WeakSet[LeadsOver] = WeakSet()
        self.waiting: deque[bytearray] = deque()
        self.waiting_bytes = 0

    def wait(self, frame: bytearray) -> bool:
        """Keep a frame until the MAC is known; the oldest ones give way (RFC 1122 section
        2.3.2.2). False: there is no room for another neighbour."""
        if not self._resolve(self):
            return False
        self.waiting.append(frame)
        self.waiting_bytes += len(frame)
        while (
            len(self.waiting) > ARP_WAITING_FRAMES_MAX or self.waiting_bytes > ARP_WAITING_BYTES_MAX
        ):
            self.waiting_bytes -= len(self.waiting.popleft())
        return True

    def take_used(self) -> bool:
        """True: a packet was sent to it since the last call."""
        used = False
        for path in self.paths:
            used |= path.used
            path.used = False
        return used

    def __str__(self) -> str:
        at = ethernet.mac_text(self.mac) if self.mac else "unresolved"
        return f"{address_text(self.address)} {at}"


class Neighbours:
    """The table, and our side of ARP except for the claim to our own address (claim.py)."""

    def __init__(self, link: Link, config: HostConfig, timers: Timers, counters: Counters) -> None:
        self._link = link
        self._config = config
        self._counters = counters
        self._known: dict[bytes, Neighbour] = {}  # the table, oldest first
        # One object for an address, in the table or not, as long as a path leads over it.
        self._objects: WeakValueDictionary[bytes, Neighbour] = WeakValueDictionary()
        self._resolving: set[bytes] = set()
        self._timer = timers.timer(self._expire)
        self._vnet: Final = vnet.NOTHING if link.vnet else b""

    def __len__(self) -> int:
        return len(self._known)

    def mac_of(self, address: bytes) -> bytes | None:
        """What the table says."""
        neighbour = self._known.get(address)
        return None if neighbour is None else neighbour.mac

    # --- from above -------------------------------------------------------------------

    def lead(self, path: LeadsOver, address: bytes) -> None:
        """`path` leads over the neighbour `address`: it is told of its MAC, now and later."""
        neighbour = self._object(address)
        neighbour.paths.add(path)
        path.lead_over(neighbour)
        if neighbour.mac is not None:
            path.resolved(neighbour.mac)

    def _object(self, address: bytes) -> Neighbour:
        neighbour = self._objects.get(address)
        if neighbour is None:
            neighbour = self._objects[address] = Neighbour(address, self._resolve)
        return neighbour

    def _resolve(self, neighbour: Neighbour) -> bool:
        """A packet waits: begin to ask, unless that has begun."""
        address = neighbour.address
        if address in self._known:
            return True
        if len(self._resolving) >= ARP_RESOLVING_MAX:
            self._counters["arp.too_many_resolving"] += 1
            return False
        self._insert(neighbour)
        self._resolving.add(address)
        self._ask(neighbour)
        # Whoever sends does not know the time. The timer does, and is told to look at once.
        self._timer.set(0)
        return True

    # --- from below -------------------------------------------------------------------

    def arrives(self, packet: ArpPacket, now: Instant) -> None:
        """An ARP packet whose sender is not us (RFC 826, "Packet Reception")."""
        known = self._known.get(packet.sender_address)
        if known is not None:
            self._confirm(known, packet.sender_mac, now)
        if packet.target_address != self._config.address:
            return
        if packet.operation == arp.REQUEST:
            if known is None:
                self._learn(packet, now)
            self._counters["arp.answered"] += 1
            self.send(packet.sender_mac, arp.reply_to(packet, self._config.mac))
        elif known is None:
            self._counters["arp.unsolicited_reply"] += 1

    def _learn(self, packet: ArpPacket, now: Instant) -> None:
        address = packet.sender_address
        if self._config.is_nobody(address) or not self._config.on_link(address):
            return  # a probe, or somebody with another idea of this subnet: answered, not learnt
        neighbour = self._object(address)
        self._insert(neighbour)
        self._confirm(neighbour, packet.sender_mac, now)

    def _confirm(self, neighbour: Neighbour, mac: bytes, now: Instant) -> None:
        """It has just said so itself."""
        if neighbour.mac is not None and neighbour.mac != mac:
            if now - neighbour.confirmed < ARP_LOCKED_FOR:
                self._counters["arp.contested"] += 1
                return  # two stations claim the address: do not flap with every packet of theirs
            self._counters["arp.moved"] += 1
        neighbour.mac = mac
        neighbour.confirmed = now
        neighbour.tries = 0
        neighbour.due = now + ARP_CONFIRMED_FOR
        self._set_timer(neighbour.due)
        self._resolving.discard(neighbour.address)
        for path in neighbour.paths:
            path.resolved(mac)
        self._send_waiting(neighbour, mac)

    def _send_waiting(self, neighbour: Neighbour, mac: bytes) -> None:
        at = len(self._vnet)
        while neighbour.waiting:
            frame = neighbour.waiting.popleft()
            frame[at : at + ethernet.ADDRESS_BYTES] = mac
            if not self._link.send((frame,)):
                self._counters["link.refused"] += 1
        neighbour.waiting_bytes = 0

    # --- the table --------------------------------------------------------------------

    def _insert(self, neighbour: Neighbour) -> None:
        if len(self._known) >= ARP_NEIGHBOURS_MAX:
            self._forget(self._least_wanted())
            self._counters["arp.evicted"] += 1
        self._known[neighbour.address] = neighbour

    def _least_wanted(self) -> Neighbour:
        """The oldest that no path leads over, else the oldest."""
        for neighbour in self._known.values():
            if not neighbour.paths:
                return neighbour
        return next(iter(self._known.values()))

    def _forget(self, neighbour: Neighbour) -> None:
        del self._known[neighbour.address]
        self._resolving.discard(neighbour.address)
        neighbour.mac = None
        neighbour.due = None
        neighbour.tries = 0
        self._counters["arp.dropped_waiting"] += len(neighbour.waiting)
        neighbour.waiting.clear()
        neighbour.waiting_bytes = 0
        for path in neighbour.paths:
            path.unresolved()

    # --- time -------------------------------------------------------------------------

    def _expire(self, now: Instant) -> None:
        for neighbour in list(self._known.values()):
            if neighbour.due is None:
                neighbour.due = now + ARP_RETRY_AFTER  # its first request has just gone out
            elif neighbour.due <= now:
                self._due(neighbour, now)
        deadlines = [n.due for n in self._known.values() if n.due is not None]
        if deadlines:
            self._timer.set(min(deadlines))

    def _due(self, neighbour: Neighbour, now: Instant) -> None:
        if neighbour.tries == 0 and not neighbour.take_used():
            self._forget(neighbour)  # nobody has wanted it for a while
        elif neighbour.tries >= ARP_TRIES_MAX:
            self._counters["arp.no_answer"] += 1
            self._forget(neighbour)
        else:
            self._ask(neighbour)
            neighbour.due = now + ARP_RETRY_AFTER

    def _set_timer(self, deadline: Instant) -> None:
        if self._timer.deadline is None or deadline < self._timer.deadline:
            self._timer.set(deadline)

    # --- output -----------------------------------------------------------------------

    def _ask(self, neighbour: Neighbour) -> None:
        neighbour.tries += 1
        asked = arp.request(self._config.mac, self._config.address, neighbour.address)
        self.send(neighbour.mac or ethernet.BROADCAST, asked)

    def send(self, destination: bytes, packet: ArpPacket) -> None:
        """Send an ARP packet to a MAC address."""
        header = ethernet.EthernetHeader(destination, self._config.mac, ethernet.TYPE_ARP)
        if not self._link.send((self._vnet, header.emit(), packet.emit())):
            self._counters["link.refused"] += 1
