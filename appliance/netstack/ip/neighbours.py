"""Neighbours: who on the link has which MAC address, for as long as it stays true. What ARP
(v4/arp.py) and neighbour discovery (v6/discovery.py) share: the table, and what waits in it.

Nobody gets into the table by talking alone, so a flood of claims cannot fill it; a flood of packets
from forged addresses fills only what NEIGHBOURS_RESOLVING_MAX allows. Idle neighbours give way
first. One timer serves the whole table, so that a flood cannot grow the heap of deadlines. Where a
neighbour is fixed by the user, nobody is asked or believed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakSet, WeakValueDictionary

from appliance.clock import Instant
from appliance.limits import (
    NEIGHBOUR_WAITING_BYTES_MAX,
    NEIGHBOUR_WAITING_FRAMES_MAX,
    NEIGHBOURS_FIXED_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_RESOLVING_MAX,
)
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import ethernet, vnet
from appliance.netstack.wire.address import address_text
from appliance.trace import Counters


class LeadsOver(Protocol):
    """A path whose next hop is a neighbour (link_path.py)."""

    source: bytes
    destination: bytes
    used: bool
    """A packet went this way since the last look."""

    def lead_over(self, next_hop: Neighbour) -> None: ...

    def resolved(self, mac: bytes) -> None: ...

    def doubtful(self) -> None: ...

    def unresolved(self) -> None: ...


class Resolves(Protocol):
    """What a neighbour asks of its table."""

    def resolve(self, neighbour: Neighbour) -> bool:
        """A packet waits for it. False: there is no room for another neighbour."""

    def wanted(self, neighbour: Neighbour) -> None:
        """A packet goes to a neighbour of whom it is not known whether he is still there."""


class Neighbour:
    """One neighbour, by its IP address."""

    __slots__ = (
        "__weakref__",
        "_table",
        "address",
        "answers",
        "confirmed",
        "due",
        "mac",
        "paths",
        "tries",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, address: bytes, table: Resolves) -> None:
        self._table = table
        self.address = address
        self.mac: bytes | None = None
        self.answers = False  # when it was asked, it has answered
        self.confirmed: Instant = 0
        self.due: Instant | None = None  # when the table's timer has something to do here
        self.tries = 0  # requests sent since it was confirmed
        # Weak: a path lives as long as a connection or the cache of paths wants it.
        self.paths: WeakSet[LeadsOver] = WeakSet()
        self.waiting: deque[bytearray] = deque()
        self.waiting_bytes = 0

    def wait(self, frame: bytearray) -> bool:
        """Keep a frame until the MAC is known; the oldest ones give way (RFC 1122 section 2.3.2.2,
        RFC 4861 section 7.2.2). False: there is no room for another neighbour."""
        if not self._table.resolve(self):
            return False
        self.waiting.append(frame)
        self.waiting_bytes += len(frame)
        while (
            len(self.waiting) > NEIGHBOUR_WAITING_FRAMES_MAX
            or self.waiting_bytes > NEIGHBOUR_WAITING_BYTES_MAX
        ):
            self.waiting_bytes -= len(self.waiting.popleft())
        return True

    def wanted(self) -> None:
        """A packet goes to it, although nobody knows whether it is still there."""
        self._table.wanted(self)

    def leave(self, path: LeadsOver) -> None:
        """A path leads over somebody else now."""
        self.paths.discard(path)

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


Kind = TypeVar("Kind", bound=Neighbour)


class NeighbourTable(ABC, Generic[Kind]):
    """The table. `protocol` begins the names of its counters; how a neighbour is asked, and what
    is done when one is due, is for each protocol to say."""

    def __init__(self, protocol: str, link: Link, timers: Timers, counters: Counters) -> None:
        self._protocol = protocol
        self._link = link
        self._counters = counters
        self._known: dict[bytes, Kind] = {}  # the table, oldest first
        # One object for an address, in the table or not, as long as a path leads over it.
        self._objects: WeakValueDictionary[bytes, Kind] = WeakValueDictionary()
        self._fixed: dict[bytes, Kind] = {}  # and never in the table
        self._resolving: set[bytes] = set()
        self._timer = timers.timer(self._expire)
        self._vnet: Final = vnet.NOTHING if link.vnet else b""
        self.unreachable: Callable[[bytes, bytes], None] = lambda _source, _destination: None
        """Told of each path, by its ends, whose next hop does not answer."""

    @abstractmethod
    def _make(self, address: bytes) -> Kind:
        """A neighbour that is not in the table yet."""

    @abstractmethod
    def _ask(self, neighbour: Kind) -> None:
        """Send one request."""

    @abstractmethod
    def _due(self, neighbour: Kind, now: Instant) -> None:
        """The time that was set for this neighbour has come."""

    @abstractmethod
    def _asked(self, neighbour: Kind, now: Instant) -> None:
        """Its first request has just gone out: set the time for what follows."""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def is_resolving(self) -> bool:
        """True: somebody is being asked for, and packets wait for the answer."""
        return bool(self._resolving)

    def mac_of(self, address: bytes) -> bytes | None:
        """What the table says."""
        neighbour = self._known.get(address) or self._fixed.get(address)
        return None if neighbour is None else neighbour.mac

    # --- from above -------------------------------------------------------------------

    def fix(self, address: bytes, mac: bytes) -> bool:
        """From now on `address` is at `mac`, whatever anybody says. False: there are too many."""
        if address not in self._fixed and len(self._fixed) >= NEIGHBOURS_FIXED_MAX:
            return False
        neighbour = self._fixed[address] = self._object(address)
        self._known.pop(address, None)
        self._resolving.discard(address)
        neighbour.mac, neighbour.due, neighbour.tries = mac, None, 0
        for path in neighbour.paths:
            path.resolved(mac)
        self._send_waiting(neighbour, mac)
        return True

    def is_fixed(self, address: bytes, mac: bytes) -> bool:
        """What `address` says of itself does not count. That it is at `mac` may be a lie."""
        neighbour = self._fixed.get(address)
        if neighbour is not None and neighbour.mac != mac:
            self._count("contested")
        return neighbour is not None

    def lead(self, path: LeadsOver, address: bytes) -> None:
        """`path` leads over the neighbour `address`: it is told of its MAC, now and later."""
        neighbour = self._object(address)
        path.lead_over(neighbour)
        neighbour.paths.add(path)
        if neighbour.mac is not None:
            path.resolved(neighbour.mac)

    def _object(self, address: bytes) -> Kind:
        neighbour = self._objects.get(address)
        if neighbour is None:
            neighbour = self._objects[address] = self._make(address)
        return neighbour

    def resolve(self, neighbour: Neighbour) -> bool:
        """A packet waits: begin to ask, unless that has begun."""
        address = neighbour.address
        if address in self._known:
            return True
        # One that has answered before is no forged address, and a path still leads over it: a flood
        # of those must not keep it from being found again.
        if len(self._resolving) >= NEIGHBOURS_RESOLVING_MAX and not neighbour.answers:
            self._count("too_many_resolving")
            return False
        asked = self._object(address)
        self._insert(asked)
        self._resolving.add(address)
        self._ask(asked)
        # Whoever sends does not know the time. The timer does, and is told to look at once.
        self._timer.set(0)
        return True

    @abstractmethod
    def wanted(self, neighbour: Neighbour) -> None:
        """A packet goes to a neighbour that is in doubt."""

    # --- from below -------------------------------------------------------------------

    def _send_waiting(self, neighbour: Kind, mac: bytes) -> None:
        at = len(self._vnet)
        while neighbour.waiting:
            frame = neighbour.waiting.popleft()
            frame[at : at + ethernet.ADDRESS_BYTES] = mac
            if not self._link.send((frame,)):
                self._counters["link.refused"] += 1
        neighbour.waiting_bytes = 0

    # --- the table --------------------------------------------------------------------

    def _insert(self, neighbour: Kind) -> None:
        if len(self._known) >= NEIGHBOURS_MAX:
            self._forget(self._least_wanted())
            self._count("evicted")
        self._known[neighbour.address] = neighbour

    def _least_wanted(self) -> Kind:
        """The oldest that no path leads over, else the oldest."""
        for neighbour in self._known.values():
            if not neighbour.paths:
                return neighbour
        return next(iter(self._known.values()))

    def _forget(self, neighbour: Kind) -> None:
        del self._known[neighbour.address]
        self._resolving.discard(neighbour.address)
        neighbour.mac = None
        neighbour.due = None
        neighbour.tries = 0
        self._count("dropped_waiting", len(neighbour.waiting))
        neighbour.waiting.clear()
        neighbour.waiting_bytes = 0
        for path in neighbour.paths:
            path.unresolved()

    def _give_up(self, neighbour: Kind) -> None:
        """It does not answer. Who wanted to send over it is told; but not where it has answered
        before: perhaps with a MAC address that was wrong, or is no longer its own. Then the next
        packet asks everybody (RFC 1122 section 2.3.2.1)."""
        self._count("no_answer")
        paths = list(neighbour.paths) if neighbour.mac is None else []
        self._forget(neighbour)
        for path in paths:
            self.unreachable(path.source, path.destination)

    def _count(self, what: str, times: int = 1) -> None:
        self._counters[f"{self._protocol}.{what}"] += times

    # --- time -------------------------------------------------------------------------

    def _expire(self, now: Instant) -> None:
        for neighbour in list(self._known.values()):
            if neighbour.due is None:
                self._asked(neighbour, now)
            elif neighbour.due <= now:
                self._due(neighbour, now)
        deadlines = [n.due for n in self._known.values() if n.due is not None]
        if deadlines:
            self._timer.set(min(deadlines))

    def _set_timer(self, deadline: Instant) -> None:
        if self._timer.deadline is None or deadline < self._timer.deadline:
            self._timer.set(deadline)

    # --- output -----------------------------------------------------------------------

    def _send_frame(self, header: ethernet.EthernetHeader, *packet: bytes) -> None:
        if not self._link.send((self._vnet, header.emit(), *packet)):
            self._counters["link.refused"] += 1
