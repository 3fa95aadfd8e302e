"""Neighbour discovery (RFC 4861 section 7): who has which MAC address, and is he still there?

    INCOMPLETE  asked for by multicast; packets wait
    REACHABLE   confirmed less than REACHABLE_TIME ago: he has answered us
    STALE       he was there, or says so himself: believed, but the next packet starts a check
    DELAY       that packet has gone out; an answer may make the check unnecessary
    PROBE       asked by unicast; packets still go to the old address

    nobody -> INCOMPLETE [a packet waits]           nobody -> STALE [he asks for us]
    INCOMPLETE -> REACHABLE [solicited answer]      INCOMPLETE -> STALE [unsolicited one]
    REACHABLE -> STALE [time; another address]      STALE -> DELAY [a packet]
    DELAY -> PROBE [DELAY_FIRST_PROBE_TIME]         any -> REACHABLE [solicited answer]
    INCOMPLETE, PROBE -> nobody [three questions without an answer]
    STALE -> nobody [nobody has wanted him for ND_STALE_FOR]

A path notices the packet that wants a STALE neighbour by itself (LinkPath.doubtful); nothing is
looked up for each packet. Whoever is a nobody again is resolved anew by the next packet to him.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random

from appliance.clock import MILLISECOND, Instant
from appliance.limits import (
    ND_DELAY_FIRST_PROBE,
    ND_REACHABLE_FOR,
    ND_RETRY_AFTER,
    ND_RETRY_AFTER_MAX,
    ND_STALE_FOR,
    ND_TRIES_MAX,
)
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.neighbours import LeadsOver, Neighbour, NeighbourTable
from appliance.netstack.ip.v6.on_link import OnLink
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import icmpv6, ipv6, ndp
from appliance.netstack.wire.ethernet import is_group
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.trace import Counters

REACHABLE_TIME_MAX = 3_600_000 * MILLISECOND
"""Section 6.2.1: AdvReachableTime is one hour at most."""


class State(Enum):
    """Section 7.3.2. A neighbour that is not in the table has none."""

    INCOMPLETE = "incomplete"
    REACHABLE = "reachable"
    STALE = "stale"
    DELAY = "delay"
    PROBE = "probe"


class Neighbour6(Neighbour):
    """One IPv6 neighbour."""

    __slots__ = ("is_router", "state")

    def __init__(self, address: bytes, table: Discovery) -> None:
        super().__init__(address, table)
        self.state = State.INCOMPLETE
        self.is_router = False


class Discovery(NeighbourTable[Neighbour6]):
    """The IPv6 neighbours of one host. `router_lost` is told of a router that does not answer, and
    of one that has resigned: that says it is none any more."""

    def __init__(
        self,
        link: Link,
        addresses: Addresses,
        on_link: OnLink,
        router_lost: Callable[[bytes, bool], None],
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        super().__init__("nd", link, timers, counters)
        self._addresses = addresses
        self._on_link = on_link
        self._router_lost = router_lost
        self._random = random
        self._reachable_base = ND_REACHABLE_FOR
        self._retry_after = ND_RETRY_AFTER

    def _make(self, address: bytes) -> Neighbour6:
        return Neighbour6(address, self)

    def state(self, address: bytes) -> State | None:
        """Of one neighbour; None: not in the table."""
        neighbour = self._known.get(address)
        return None if neighbour is None else neighbour.state

    def set_times(self, reachable: Instant, retry: Instant) -> None:
        """What a router advertises; 0: it does not say (section 6.3.4)."""
        if 0 < reachable <= REACHABLE_TIME_MAX:
            self._reachable_base = reachable
        if retry:
            self._retry_after = min(max(retry, ND_RETRY_AFTER // 10), ND_RETRY_AFTER_MAX)

    def _reachable_time(self) -> Instant:
        """Between half of the base and one and a half of it, so that hosts do not keep time
        together (section 6.3.2)."""
        base = self._reachable_base
        return self._random.randint(base // 2, base * 3 // 2)

    # --- from above -------------------------------------------------------------------

    def lead(self, path: LeadsOver, address: bytes) -> None:
        """As for every table; the path is to say when it wants a neighbour in doubt."""
        super().lead(path, address)
        neighbour = self._known.get(address)
        if neighbour is not None and neighbour.state is State.STALE:
            self._doubt(neighbour)

    def wanted(self, neighbour: Neighbour) -> None:
        """STALE -> DELAY."""
        known = self._known.get(neighbour.address)
        if known is None or known.state is not State.STALE:
            return
        known.state = State.DELAY
        known.due = None  # from now, which whoever sends does not know
        self._trust(known)
        self._timer.set(0)

    def _doubt(self, neighbour: Neighbour6) -> None:
        for path in neighbour.paths:
            path.doubtful()

    def _trust(self, neighbour: Neighbour6) -> None:
        assert neighbour.mac is not None
        for path in neighbour.paths:
            path.resolved(neighbour.mac)

    # --- from below -------------------------------------------------------------------

    def mentioned(self, address: bytes, mac: bytes, now: Instant) -> None:
        """A neighbour has told its own MAC address with a question of its own (section 7.2.3; a
        router's advertisement: 6.3.4)."""
        if is_group(mac) or not ipv6.is_host(address) or self.is_fixed(address, mac):
            return
        neighbour = self._known.get(address)
        if neighbour is None:
            neighbour = self._object(address)
            self._insert(neighbour)
        elif neighbour.mac == mac:
            if neighbour.state is State.STALE:
                neighbour.due = now + ND_STALE_FOR
            return
        self._now_at(neighbour, mac, State.STALE, now)

    def advertised(
        self, target: bytes, mac: bytes | None, flags: int, now: Instant, *, is_router: bool
    ) -> None:
        """A neighbour advertisement that has been checked (section 7.2.5)."""
        neighbour = self._known.get(target)
        if neighbour is None:
            self._count("unsolicited")
            return
        if mac is not None and is_group(mac):
            return
        if neighbour.state is State.INCOMPLETE:
            if mac is None:
                return
            neighbour.is_router = is_router
            solicited = flags & ndp.SOLICITED
            self._now_at(neighbour, mac, State.REACHABLE if solicited else State.STALE, now)
            return
        moved = mac is not None and mac != neighbour.mac
        if moved and not flags & ndp.OVERRIDE:
            if neighbour.state is State.REACHABLE:
                self._become(neighbour, State.STALE, now)
            self._count("contested")
            return
        if moved:
            self._count("moved")
        self._router_flag(neighbour, is_router)
        if flags & ndp.SOLICITED:
            self._now_at(neighbour, mac or neighbour.mac, State.REACHABLE, now)
        elif moved:
            self._now_at(neighbour, mac, State.STALE, now)

    def is_router(self, address: bytes) -> None:
        """It has sent a router advertisement."""
        neighbour = self._known.get(address)
        if neighbour is not None:
            neighbour.is_router = True

    def _router_flag(self, neighbour: Neighbour6, is_router: bool) -> None:
        was = neighbour.is_router
        neighbour.is_router = is_router
        if was and not is_router:
            self._router_lost(neighbour.address, True)

    def _now_at(self, neighbour: Neighbour6, mac: bytes | None, state: State, now: Instant) -> None:
        assert mac is not None
        neighbour.mac = mac
        neighbour.confirmed = now
        neighbour.answers |= state is State.REACHABLE
        self._resolving.discard(neighbour.address)
        self._trust(neighbour)
        self._become(neighbour, state, now)
        has_waited = bool(neighbour.waiting)
        self._send_waiting(neighbour, mac)
        if has_waited and state is State.STALE:
            self.wanted(neighbour)

    def _become(self, neighbour: Neighbour6, state: State, now: Instant) -> None:
        """REACHABLE or STALE."""
        neighbour.state = state
        neighbour.tries = 0
        if state is State.STALE:
            neighbour.due = now + ND_STALE_FOR
            self._doubt(neighbour)
        else:
            neighbour.due = now + self._reachable_time()
        self._set_timer(neighbour.due)

    # --- time -------------------------------------------------------------------------

    def _asked(self, neighbour: Neighbour6, now: Instant) -> None:
        is_delay = neighbour.state is State.DELAY
        neighbour.due = now + (ND_DELAY_FIRST_PROBE if is_delay else self._retry_after)

    def _due(self, neighbour: Neighbour6, now: Instant) -> None:
        match neighbour.state:
            case State.REACHABLE:
                self._become(neighbour, State.STALE, now)
            case State.STALE:
                self._forget(neighbour)
            case State.DELAY:
                neighbour.state = State.PROBE
                neighbour.tries = 0
                self._ask_again(neighbour, now)
            case _ if neighbour.tries < ND_TRIES_MAX:
                self._ask_again(neighbour, now)
            case _:
                self._give_up(neighbour)
                if neighbour.is_router:
                    self._router_lost(neighbour.address, False)

    def _ask_again(self, neighbour: Neighbour6, now: Instant) -> None:
        self._ask(neighbour)
        neighbour.due = now + self._retry_after

    def _forget(self, neighbour: Neighbour6) -> None:
        super()._forget(neighbour)
        neighbour.state = State.INCOMPLETE

    # --- output -----------------------------------------------------------------------

    def _ask(self, neighbour: Neighbour6) -> None:
        """A neighbour solicitation (section 7.2.2), from an address that he can answer to."""
        neighbour.tries += 1
        target = neighbour.address
        source = self._addresses.source_for(target)
        if source is None:
            return
        option = ndp.link_layer_option(ndp.SOURCE_LINK_LAYER_ADDRESS, self._on_link.mac)
        self._on_link.send(
            source,
            ipv6.solicited_node(target) if neighbour.mac is None else target,
            Icmpv6Header(icmpv6.NEIGHBOUR_SOLICITATION, 0),
            target + option,
            to_mac=neighbour.mac,
        )

    def advertise(self, target: bytes, to: bytes, to_mac: bytes | None, flags: int) -> None:
        """A neighbour advertisement for an address of ours (section 7.2.4)."""
        option = ndp.link_layer_option(ndp.TARGET_LINK_LAYER_ADDRESS, self._on_link.mac)
        header = Icmpv6Header(icmpv6.NEIGHBOUR_ADVERTISEMENT, 0, flags)
        self._on_link.send(target, to, header, target + option, to_mac=to_mac)
