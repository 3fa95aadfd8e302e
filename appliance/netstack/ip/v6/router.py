"""What routers advertise (RFC 4861 section 6.3), and the addresses that are made of it (RFC 4862
section 5.5): for a host whose user has asked for that.

Everything learnt has a lifetime, and one timer watches over all of them. A router that does not
answer stays, but behind the others; one whose lifetime is over goes. Identifiers are made of the
MAC address (RFC 4291 appendix A), so that a server keeps its addresses over a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import (
    ND_PREFIXES_MAX,
    ND_ROUTERS_MAX,
    ND_SOLICITATION_AFTER,
    ND_SOLICITATIONS_MAX,
)
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.ip.routes import METRIC_LEARNT, Route, default_route
from appliance.netstack.ip.v6.discovery import Discovery
from appliance.netstack.ip.v6.on_link import OnLink
from appliance.netstack.timers import Timers
from appliance.netstack.wire import icmpv6, ipv6, ndp
from appliance.netstack.wire.address import IPV6_BYTES, address_text
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.netstack.wire.ndp import PrefixInformation, RouterAdvertisement
from appliance.trace import Counters, log

IDENTIFIER_BITS = 64
NEVER = 1 << 63
"""When an infinite lifetime is over."""

TWO_HOURS = 7200 * SECOND
"""RFC 4862 section 5.5.3 (e): a forged advertisement cannot take an address away sooner."""


class Host(Protocol):
    """Whose addresses and routes these are (internet.py)."""

    def add_address(self, made: HostAddress, now: Instant) -> bool: ...

    def remove_address(self, address: bytes) -> bool: ...

    def deprecate_address(self, address: bytes, *, deprecated: bool) -> None:
        """It is to be used no more than necessary; or as before."""

    def add_route(self, route: Route) -> bool: ...

    def remove_route(self, route: Route) -> None: ...

    def set_mtu(self, address_bytes: int, mtu: int | None) -> None: ...


@dataclass(slots=True)
class Lifetimes:
    """Of an address."""

    preferred_until: Instant
    valid_until: Instant


def identifier(mac: bytes) -> bytes:
    """The modified EUI-64 of a MAC address (RFC 4291 appendix A)."""
    return bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def link_local(mac: bytes) -> HostAddress:
    """The address that every IPv6 host has (RFC 4862 section 5.3)."""
    return HostAddress(b"\xfe\x80" + bytes(6) + identifier(mac), IDENTIFIER_BITS)


def after(seconds: int, now: Instant) -> Instant:
    """When a lifetime is over."""
    return NEVER if seconds == ndp.LIFETIME_INFINITE else now + seconds * SECOND


class Routers:
    """The routers, prefixes and addresses that one host has learnt."""

    def __init__(
        self,
        host: Host,
        neighbours: Discovery,
        on_link: OnLink,
        hop_limit: int,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self._host = host
        self._neighbours = neighbours
        self._on_link = on_link
        self._random = random
        self._counters = counters
        self._routers: dict[bytes, Instant] = {}
        self._prefixes: dict[Route, Instant] = {}
        self._addresses: dict[bytes, Lifetimes] = {}
        self._timer = timers.timer(self._expire)
        self._solicit_timer = timers.timer(self._solicit)
        self._solicitations = 0
        self._source = ipv6.UNSPECIFIED
        self.hop_limit = hop_limit
        """Of packets on paths that are made from now on."""

    # --- questions --------------------------------------------------------------------

    def start(self, source: bytes, now: Instant) -> None:
        """Ask for routers, from our link-local address (section 6.3.7)."""
        self._source = source
        self._solicitations = 0
        self._solicit(now)

    def _solicit(self, now: Instant) -> None:
        self._solicitations += 1
        option = ndp.link_layer_option(ndp.SOURCE_LINK_LAYER_ADDRESS, self._on_link.mac)
        header = Icmpv6Header(icmpv6.ROUTER_SOLICITATION, 0)
        self._on_link.send(self._source, ipv6.ALL_ROUTERS, header, option)
        if self._solicitations < ND_SOLICITATIONS_MAX:
            self._solicit_timer.set(now + ND_SOLICITATION_AFTER)

    # --- answers ----------------------------------------------------------------------

    def advertisement_arrives(
        self, source: bytes, packet: bytes, at: int, end: int, now: Instant
    ) -> None:
        """Section 6.1.2 and 6.3.4. The hop limit has been checked."""
        if not ipv6.is_link_local(source):
            raise BadPacket("nd.bad_source")
        heard = RouterAdvertisement.parse(packet, at, end)
        self._counters["nd.router_advertisement"] += 1
        self._solicit_timer.clear()
        if heard.hop_limit:
            self.hop_limit = heard.hop_limit
        self._neighbours.set_times(
            heard.reachable_time * MILLISECOND, heard.retrans_timer * MILLISECOND
        )
        if heard.options.source_mac is not None:
            self._neighbours.mentioned(source, heard.options.source_mac, now)
        self._neighbours.is_router(source)
        if heard.options.mtu is not None and heard.options.mtu >= ipv6.MTU_MIN:
            self._host.set_mtu(IPV6_BYTES, heard.options.mtu)
        self._router(source, heard.router_lifetime, now)
        for prefix in heard.options.prefixes:
            self._prefix(prefix, now)
        self._watch()

    def _router(self, address: bytes, lifetime: int, now: Instant) -> None:
        if not lifetime:
            if address in self._routers:
                self._no_router(address)
        elif address in self._routers:
            self._routers[address] = after(lifetime, now)
        elif len(self._routers) >= ND_ROUTERS_MAX:
            self._counters["nd.too_many_routers"] += 1
        elif self._host.add_route(default_route(address, METRIC_LEARNT)):
            self._routers[address] = after(lifetime, now)
            log.info("event=router address=%s", address_text(address))

    def _no_router(self, address: bytes) -> None:
        del self._routers[address]
        self._host.remove_route(default_route(address, METRIC_LEARNT))

    def lost(self, address: bytes, resigned: bool) -> None:
        """A router does not answer: others come first now (section 6.3.6). Or it is none any
        more."""
        if address not in self._routers:
            return
        route = default_route(address, METRIC_LEARNT)
        if resigned:
            self._no_router(address)
        elif len(self._routers) > 1:
            self._host.remove_route(route)
            self._host.add_route(route)

    def _prefix(self, prefix: PrefixInformation, now: Instant) -> None:
        if ipv6.is_link_local(prefix.prefix) or prefix.prefix_length > 128:
            return
        if not ipv6.is_host(prefix.prefix) and prefix.prefix != ipv6.UNSPECIFIED:
            return
        if prefix.on_link:
            self._on_link_prefix(prefix, now)
        if (
            prefix.autonomous
            and prefix.prefix_length == IDENTIFIER_BITS
            and prefix.preferred_lifetime <= prefix.valid_lifetime
        ):
            self._autonomous_prefix(prefix, now)

    def _on_link_prefix(self, prefix: PrefixInformation, now: Instant) -> None:
        length = prefix.prefix_length
        route = Route(HostAddress(prefix.prefix, length).network, length, None, METRIC_LEARNT)
        if not prefix.valid_lifetime:
            if self._prefixes.pop(route, None) is not None:
                self._host.remove_route(route)
        elif route in self._prefixes:
            self._prefixes[route] = after(prefix.valid_lifetime, now)
        elif len(self._prefixes) >= ND_PREFIXES_MAX:
            self._counters["nd.too_many_prefixes"] += 1
        elif self._host.add_route(route):
            self._prefixes[route] = after(prefix.valid_lifetime, now)

    def _autonomous_prefix(self, prefix: PrefixInformation, now: Instant) -> None:
        """RFC 4862 section 5.5.3 (d) and (e)."""
        address = prefix.prefix[:8] + identifier(self._on_link.mac)
        preferred_until = after(prefix.preferred_lifetime, now)
        valid_until = after(prefix.valid_lifetime, now)
        known = self._addresses.get(address)
        if known is not None:
            known.preferred_until = preferred_until
            known.valid_until = prolonged(known.valid_until, valid_until, now)
            self._host.deprecate_address(address, deprecated=preferred_until <= now)
        elif not prefix.valid_lifetime:
            return
        elif len(self._addresses) >= ND_PREFIXES_MAX:
            self._counters["nd.too_many_prefixes"] += 1
        elif self._host.add_address(HostAddress(address, 128), now):
            self._addresses[address] = Lifetimes(preferred_until, valid_until)
            log.info("event=address-made address=%s", address_text(address))

    # --- time -------------------------------------------------------------------------

    def _watch(self) -> None:
        deadlines = [*self._routers.values(), *self._prefixes.values()]
        for address in self._addresses.values():
            deadlines += (address.preferred_until, address.valid_until)
        due = min((deadline for deadline in deadlines if deadline < NEVER), default=None)
        if due is not None:
            self._timer.set(due)

    def _expire(self, now: Instant) -> None:
        for router in [r for r, until in self._routers.items() if until <= now]:
            self._no_router(router)
        for route in [p for p, until in self._prefixes.items() if until <= now]:
            del self._prefixes[route]
            self._host.remove_route(route)
        for address, lifetimes in list(self._addresses.items()):
            if lifetimes.valid_until <= now:
                del self._addresses[address]
                self._host.remove_address(address)
                log.info("event=address-expired address=%s", address_text(address))
            elif lifetimes.preferred_until <= now:
                lifetimes.preferred_until = NEVER  # until an advertisement says otherwise
                self._host.deprecate_address(address, deprecated=True)
        self._watch()


def prolonged(valid_until: Instant, advertised: Instant, now: Instant) -> Instant:
    """RFC 4862 section 5.5.3 (e): until when an address is valid that is advertised again."""
    if advertised > now + TWO_HOURS or advertised > valid_until:
        return advertised
    if valid_until <= now + TWO_HOURS:
        return valid_until
    return now + TWO_HOURS
