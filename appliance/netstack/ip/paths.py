"""The paths that are in use, by destination. The one not used for longest is dropped from the
cache; a connection that holds it goes on using it."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

from appliance.clock import Instant
from appliance.limits import PATH_MTU_LEARNT_FOR, PATHS_MAX
from appliance.netstack.ip.addresses import HostConfig
from appliance.netstack.ip.ipv4_path import Ipv4Path
from appliance.netstack.ip.neighbours import Neighbours
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.trace import Counters


class Paths:
    """Destination address -> Ipv4Path."""

    def __init__(
        self,
        link: Link,
        config: HostConfig,
        neighbours: Neighbours,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self._link = link
        self._config = config
        self._neighbours = neighbours
        self._random = random
        self._counters = counters
        self._paths: OrderedDict[bytes, Ipv4Path] = OrderedDict()
        self._mtu_timer = timers.timer(self._forget_mtus)
        self.mtu = min(config.mtu, link.mtu)

    def __len__(self) -> int:
        return len(self._paths)

    def to(self, destination: bytes) -> Ipv4Path:
        """The path to one host. To one that cannot be reached, it swallows and counts what is
        sent."""
        path = self._paths.get(destination)
        if path is None:
            path = self._make(destination)
        else:
            self._paths.move_to_end(destination)
        return path

    def _make(self, destination: bytes) -> Ipv4Path:
        path = Ipv4Path(
            self._link,
            self._config.mac,
            self._config.address,
            destination,
            self.mtu,
            self._random.getrandbits(16),
            self._counters,
        )
        next_hop = self._config.next_hop(destination)
        if next_hop is not None and not self._config.is_nobody(destination):
            self._neighbours.lead(path, next_hop)
        if len(self._paths) >= PATHS_MAX:
            self._paths.popitem(last=False)
        self._paths[destination] = path
        return path

    def learn_mtu(self, destination: bytes, mtu: int, now: Instant) -> bool:
        """A router on the way to `destination` lets no larger packets pass (RFC 1191). True: that
        is news."""
        path = self._paths.get(destination)
        if path is None or not path.learn_mtu(mtu):
            return False
        self._counters["ip.path_mtu_learnt"] += 1
        if self._mtu_timer.deadline is None:
            self._mtu_timer.set(now + PATH_MTU_LEARNT_FOR)
        return True

    def _forget_mtus(self, _now: Instant) -> None:
        """The way may have changed: try the link's own MTU again."""
        for path in self._paths.values():
            path.mtu = self.mtu
