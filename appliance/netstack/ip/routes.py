"""The routing table (RFC 1122 section 3.3.1): which neighbour takes a packet for a destination.

The longest prefix that covers the destination decides; of two equally long ones the lower metric,
and then the one that was added first. Routes are few, and a path asks only when it is made and when
a route comes or goes, so a list in the order of preference is enough.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from appliance.limits import ROUTES_MAX
from appliance.netstack.wire.address import address_text, same_bits

METRIC_LEARNT = 1024
"""Of a route that a router or a DHCP server has told: one that the user gave comes first."""


@dataclass(frozen=True, slots=True)
class Route:
    """Packets for the addresses whose first `prefix_length` bits are those of `network`."""

    network: bytes
    prefix_length: int
    gateway: bytes | None = None
    """The neighbour that passes them on; None: the destination is itself a neighbour."""
    metric: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.prefix_length <= 8 * len(self.network)
        assert self.gateway is None or len(self.gateway) == len(self.network)

    def covers(self, address: bytes) -> bool:
        """Does it lead to `address`?"""
        same_family = len(address) == len(self.network)
        return same_family and same_bits(address, self.network) >= self.prefix_length

    def __str__(self) -> str:
        via = "" if self.gateway is None else f" via {address_text(self.gateway)}"
        return f"{address_text(self.network)}/{self.prefix_length}{via}"


def default_route(gateway: bytes, metric: int = 0) -> Route:
    """Everything that nothing else covers."""
    return Route(bytes(len(gateway)), 0, gateway, metric)


class Routes:
    """All routes of a host, of both families, best first."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, route: Route) -> bool:
        return route in self._routes

    def add(self, route: Route) -> bool:
        """Add a route; one that two addresses bring along is there twice. False: there are too
        many."""
        if len(self._routes) >= ROUTES_MAX:
            return False
        insort(self._routes, route, key=_preference)
        return True

    def remove(self, route: Route) -> None:
        """Take a route away, once; nothing, where there is no such route."""
        if route in self._routes:
            self._routes.remove(route)

    def find(self, destination: bytes) -> Route | None:
        """The route to one host. None: it cannot be reached."""
        return next((route for route in self._routes if route.covers(destination)), None)

    def next_hop(self, destination: bytes) -> bytes | None:
        """The neighbour that takes a packet for `destination`; None: nobody does."""
        route = self.find(destination)
        if route is None:
            return None
        return destination if route.gateway is None else route.gateway


def _preference(route: Route) -> tuple[int, int]:
    return -route.prefix_length, route.metric
