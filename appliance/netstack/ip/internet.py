"""The Internet layer of one host (RFC 1122 section 3): its addresses, where packets go, and the
families of addresses.

A host that has an IPv6 address, or is to make one, speaks IPv6, and then has a link-local address
as well (RFC 4291 section 2.8). To one that has none, IPv6 is an unknown protocol, so that nothing
is on the link that its user has not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from appliance.clock import Instant
from appliance.netstack.ip.addresses import USABLE, Addresses, AddressState, HostAddress, HostConfig
from appliance.netstack.ip.claimant import Claimant
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.paths import Paths
from appliance.netstack.ip.routes import Route, Routes
from appliance.netstack.ip.v4.ipv4 import Ipv4
from appliance.netstack.ip.v6.ipv6 import Ipv6
from appliance.netstack.ip.v6.router import link_local
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import ethernet
from appliance.netstack.wire.address import IPV4_BYTES, IPV6_BYTES
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import EthernetHeader
from appliance.netstack.wire.ipv6 import is_link_local
from appliance.netstack.wire.vnet import VnetHeader
from appliance.trace import Counters


class Internet:
    """IP of one host on one link.

    `deliver` takes what arrives for TCP and UDP, `error_arrives` what ICMP says about packets of
    ours, and `address_removed` is told when one of our addresses is no longer ours.
    """

    def __init__(
        self,
        link: Link,
        config: HostConfig,
        deliver: Callable[[Datagram, Instant], None],
        error_arrives: Callable[[IcmpError, Instant], None],
        address_removed: Callable[[bytes], None],
        *,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self._mac = config.mac
        self._address_removed = address_removed
        self._claimants: dict[bytes, Claimant] = {}
        self._link_mtu = mtu = min(config.mtu, link.mtu)
        self.addresses = Addresses()
        self.routes = Routes()
        self._families: dict[int, Ipv4 | Ipv6] = {}
        self.paths = Paths(self.addresses, self.routes, self._families, timers, counters)
        self.path_to = self.paths.to
        self._ipv4 = Ipv4(
            link,
            config.mac,
            mtu,
            config.ttl,
            self.addresses,
            self.paths.to,
            deliver,
            error_arrives,
            timers=timers,
            random=random,
            counters=counters,
        )
        self._ipv6 = Ipv6(
            link,
            config.mac,
            mtu,
            config.ttl,
            self.addresses,
            self,
            self.paths.to,
            deliver,
            error_arrives,
            heeds_routers=config.autoconfigure,
            timers=timers,
            random=random,
            counters=counters,
        )
        self._families[IPV4_BYTES] = self._ipv4
        self._families[IPV6_BYTES] = self._ipv6
        self.speaks_ipv6 = False
        self._configure(config)

    def _configure(self, config: HostConfig) -> None:
        """What the host begins with."""
        for route in config.routes:
            self.routes.add(route)
        for address, mac in config.neighbours:
            self.fix_neighbour(address, mac)
        if config.autoconfigure:
            self._speak_ipv6(config.addresses)
        for made in config.addresses:
            if len(made.address) == IPV6_BYTES:
                self._speak_ipv6(config.addresses)
            self._add(made)

    # --- our addresses, and routes ------------------------------------------------------

    def start(self, now: Instant) -> None:
        """Claim the addresses that we were given. IPv4 is answered from now on, IPv6 when it is
        known that nobody else uses the address (RFC 4862 section 5.4)."""
        for made in self.addresses:
            self._families[len(made.address)].claim(made.address, now)

    def add_address(self, made: HostAddress, now: Instant) -> bool:
        """One more address. False: it is there already, or there are too many."""
        if len(made.address) == IPV6_BYTES and not self.speaks_ipv6:
            self._speak_ipv6((made,))
            for link_local_one in self.addresses:
                if len(link_local_one.address) == IPV6_BYTES:
                    self._ipv6.claim(link_local_one.address, now)
        if not self._add(made):
            return False
        self._families[len(made.address)].claim(made.address, now)
        return True

    def borrow_address(self, made: HostAddress, claimant: Claimant, now: Instant) -> bool:
        """One more IPv4 address, which is used when it has been probed for (RFC 5227). `claimant`
        hears when that is; or, then or later, that another station has it, and removes it. False:
        it is there already, or there are too many."""
        if not self._add(made, AddressState.TENTATIVE):
            return False
        self._claimants[made.address] = claimant
        self._ipv4.claim(made.address, now)
        return True

    def address_is_ours(self, address: bytes, now: Instant) -> None:
        """A tentative address may be used from now on."""
        self.addresses.become(address, AddressState.PREFERRED)
        self.paths.reroute()
        if address in self._claimants:
            self._claimants[address].address_is_ours(address, now)
        elif is_link_local(address):
            self._ipv6.ask_for_routers(address, now)

    def address_is_taken(self, address: bytes, rival: str, now: Instant) -> None:
        """A tentative address is another's: a borrowed one goes back, any other is never used."""
        if address in self._claimants:
            self._claimants[address].address_is_taken(address, rival, now)
        else:
            self.addresses.become(address, AddressState.DUPLICATED)

    @property
    def is_resolving(self) -> bool:
        """True: there are packets that wait until their next hop has been found."""
        return any(family.neighbours.is_resolving for family in self._families.values())

    def rival(self, address: bytes) -> str | None:
        """The MAC address of another station that uses this address of ours, as text."""
        return self._families[len(address)].rival(address)

    def _speak_ipv6(self, given: tuple[HostAddress, ...]) -> None:
        """From now on; with a link-local address of our own, unless one is given."""
        if self.speaks_ipv6:
            return
        self.speaks_ipv6 = True
        if not any(is_link_local(a.address) for a in given if len(a.address) == IPV6_BYTES):
            self._add(link_local(self._mac))

    def _add(self, made: HostAddress, state: AddressState = AddressState.PREFERRED) -> bool:
        family = self._families[len(made.address)]
        if family is self._ipv6:
            state = AddressState.TENTATIVE
        if not self.addresses.add(made, state):
            return False
        self.routes.add(made.connected_route)
        family.address_added(made.address, self if state is AddressState.TENTATIVE else None)
        self.paths.reroute()
        return True

    def remove_address(self, address: bytes) -> bool:
        """One address less: nothing is received at it or sent from it any more, and connections
        that use it are over. False: it was not there."""
        made = self.addresses.remove(address)
        if made is None:
            return False
        self._claimants.pop(address, None)
        self.routes.remove(made.connected_route)
        self._families[len(address)].address_removed(address)
        self.paths.reroute()
        self._address_removed(address)
        return True

    def deprecate_address(self, address: bytes, *, deprecated: bool) -> None:
        """An address is to be used no more than necessary; or as before."""
        if self.addresses.state(address) in USABLE:
            state = AddressState.DEPRECATED if deprecated else AddressState.PREFERRED
            self.addresses.become(address, state)
            self.paths.reroute()

    def add_route(self, route: Route) -> bool:
        """One more route. False: there are too many."""
        if not self.routes.add(route):
            return False
        self.paths.reroute()
        return True

    def remove_route(self, route: Route) -> None:
        """One route less; nothing, where there is no such route."""
        self.routes.remove(route)
        self.paths.reroute()

    def fix_neighbour(self, address: bytes, mac: bytes) -> bool:
        """A neighbour that is not asked for its MAC address, and cannot change it. False: there are
        too many."""
        return self._families[len(address)].neighbours.fix(address, mac)

    def is_group(self, address: bytes) -> bool:
        """It means many hosts: a broadcast address, or a group."""
        family = self._families.get(len(address))
        return family is not None and family.group_mac(address) is not None

    def mtu(self, address_bytes: int) -> int:
        """The largest packet of one family on this link."""
        return self._families[address_bytes].mtu

    def set_mtu(self, address_bytes: int, mtu: int | None) -> None:
        """Somebody says which MTU one family is to use on this link: not more than the link itself
        has. None: that one again."""
        family = self._families[address_bytes]
        used = self._link_mtu if mtu is None else min(mtu, self._link_mtu)
        if used != family.mtu:
            family.mtu = used
            self.paths.link_mtu_changed(address_bytes)

    # --- packets in ---------------------------------------------------------------------

    def frame_arrives(self, frame: bytes, at: int, offload: VnetHeader, now: Instant) -> None:
        """A frame, whose Ethernet header stands at `at`. BadPacket: it was dropped."""
        header = EthernetHeader.parse(frame, at)
        destination = header.destination
        if ethernet.is_group(header.source):
            raise BadPacket("ethernet.bad_source")
        if header.source == self._mac:  # a loop on the link, or a stolen MAC
            if header.ethertype == ethernet.TYPE_ARP:
                self._ipv4.own_arp_arrives(frame, at + ethernet.HEADER_BYTES, now)
            elif header.ethertype == ethernet.TYPE_IPV6 and self.speaks_ipv6:
                self._ipv6.own_frame_arrives(frame, at + ethernet.HEADER_BYTES, offload, now)
            raise BadPacket("ethernet.own_source")
        to_group = destination != self._mac
        if to_group and destination != ethernet.BROADCAST and not self._listens_at(destination):
            raise BadPacket("ethernet.not_for_us")
        at += ethernet.HEADER_BYTES
        if header.ethertype == ethernet.TYPE_IPV4:
            self._ipv4.arrives(frame, at, offload, to_group, now)
        elif header.ethertype == ethernet.TYPE_ARP:
            self._ipv4.arp_arrives(frame, at, now)
        elif header.ethertype == ethernet.TYPE_IPV6 and self.speaks_ipv6:
            self._ipv6.arrives(frame, at, offload, header.source, to_group, now)
        else:
            raise BadPacket("ethernet.unknown_type")

    def is_from_host(self, source: bytes, destination: bytes) -> bool:
        """Does a packet between these addresses come from one other host, to us alone?"""
        return self._families[len(source)].is_from_host(source, destination)

    def _listens_at(self, mac: bytes) -> bool:
        """Is it the MAC address of a group that we are in?"""
        return self.speaks_ipv6 and mac in self._ipv6.groups.macs

    def when_unreachable(self, tell: Callable[[bytes, bytes], None]) -> None:
        """`tell` hears of each path, by its ends, whose next hop does not answer."""
        for family in self._families.values():
            family.neighbours.unreachable = tell

    # --- what transports report -----------------------------------------------------------

    def port_unreachable(self, datagram: Datagram, now: Instant) -> None:
        """Nobody listens where this datagram went."""
        self._families[len(datagram.source)].icmp.port_unreachable(datagram, now)

    def learn_mtu(self, destination: bytes, mtu: int, now: Instant) -> bool:
        """Only packets of this size pass on the way to `destination`. True: that is news."""
        return self.paths.learn_mtu(destination, mtu, now)
