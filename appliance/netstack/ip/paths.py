"""The paths that are in use, by destination and source. The one not used for longest is dropped
from the cache; a connection that holds it goes on using it, so all that exist are known as well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakSet

from appliance.clock import Instant
from appliance.limits import PATH_MTU_LEARNT_FOR, PATHS_MAX
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.link_path import LinkPath
from appliance.netstack.ip.neighbours import NeighbourTable
from appliance.netstack.ip.routes import Routes
from appliance.netstack.timers import Timers
from appliance.trace import Counters


class Family(Protocol):
    """What paths want of IPv4 and of IPv6."""

    @property
    def mtu(self) -> int:
        """The largest packet that the link carries."""

    @property
    def neighbours(self) -> NeighbourTable[Any]: ...

    def make_path(self, source: bytes, destination: bytes, mtu: int) -> LinkPath:
        """A path that leads nowhere yet."""

    def is_host(self, destination: bytes) -> bool:
        """Can a packet be sent there, to one host?"""

    def group_mac(self, destination: bytes) -> bytes | None:
        """The MAC address of a destination that is a group; None: it is none."""


class Paths:
    """Destination and source -> path."""

    def __init__(
        self,
        addresses: Addresses,
        routes: Routes,
        families: Mapping[int, Family],
        timers: Timers,
        counters: Counters,
    ) -> None:
        """`families`: by the length of an address."""
        self._addresses = addresses
        self._routes = routes
        self._families = families
        self._counters = counters
        self._paths: OrderedDict[tuple[bytes, bytes], LinkPath] = OrderedDict()
        self._all: WeakSet[LinkPath] = WeakSet()
        self._chosen: dict[bytes, bytes] = {}  # destination -> source, where it was left to us
        self._learnt: dict[bytes, Instant] = {}  # until when a smaller MTU counts, in order
        self._mtu_timer = timers.timer(self._forget_mtus)
        self.resized: Callable[[bytes], None] = lambda _destination: None
        """Told of a destination to which larger packets may pass again, or which is to get smaller
        ones from now on."""

    def __len__(self) -> int:
        return len(self._paths)

    def to(self, destination: bytes, source: bytes | None = None) -> LinkPath:
        """The path to one host (path.py, PathTo)."""
        if source is None:
            source = self._chosen.get(destination) or self._choose(destination)
        key = destination, source
        path = self._paths.get(key)
        if path is None:
            path = self._make(destination, source)
        else:
            self._paths.move_to_end(key)
        return path

    def _choose(self, destination: bytes) -> bytes:
        """The source for this destination. Where no address will do, so will no route: the path
        leads nowhere."""
        if len(self._chosen) >= PATHS_MAX:
            self._chosen.clear()
        source = self._addresses.source_for(destination) or bytes(len(destination))
        self._chosen[destination] = source
        return source

    def _make(self, destination: bytes, source: bytes) -> LinkPath:
        family = self._families[len(destination)]
        path = family.make_path(source, destination, family.mtu)
        self._lead(path)
        if len(self._paths) >= PATHS_MAX:
            self._paths.popitem(last=False)
        self._paths[destination, source] = path
        self._all.add(path)
        return path

    def _lead(self, path: LinkPath) -> None:
        """Over the next hop that routes say; a group needs none, and no address of ours, either."""
        destination = path.destination
        family = self._families[len(destination)]
        group = family.group_mac(destination)
        if group is not None:
            path.resolved(group)
            return
        next_hop = self._routes.next_hop(destination)
        if (
            next_hop is None
            or path.source not in self._addresses
            or not family.is_host(destination)
        ):
            path.lead_nowhere()
        else:
            family.neighbours.lead(path, next_hop)

    def reroute(self) -> None:
        """A route or an address has come or gone, or is to be preferred or not."""
        self._chosen.clear()
        for path in list(self._all):
            self._lead(path)

    # --- path MTU ---------------------------------------------------------------------

    def link_mtu_changed(self, address_bytes: int) -> None:
        """The link carries larger packets of one family than before, or only smaller ones. What has
        been learnt of routers further on is learnt again."""
        for path in list(self._all):
            if len(path.destination) == address_bytes:
                path.mtu = self._families[address_bytes].mtu
                self.resized(path.destination)

    def learn_mtu(self, destination: bytes, mtu: int, now: Instant) -> bool:
        """A router on the way to `destination` lets no larger packets pass (RFC 1191, RFC 8201).
        True: that is news."""
        learnt = [p.learn_mtu(mtu) for p in list(self._all) if p.destination == destination]
        if not any(learnt):
            return False
        self._counters["ip.path_mtu_learnt"] += 1
        self._learnt.pop(destination, None)
        self._learnt[destination] = now + PATH_MTU_LEARNT_FOR
        if self._mtu_timer.deadline is None:
            self._mtu_timer.set(now + PATH_MTU_LEARNT_FOR)
        return True

    def _forget_mtus(self, now: Instant) -> None:
        """The way may have changed: try the link's own MTU again (RFC 1191 section 6.3)."""
        for destination, until in list(self._learnt.items()):
            if until > now:
                self._mtu_timer.set(until)
                break
            del self._learnt[destination]
            self._widen(destination)

    def _widen(self, destination: bytes) -> None:
        for path in list(self._all):
            if path.destination == destination:
                path.mtu = self._families[len(destination)].mtu
        self.resized(destination)
