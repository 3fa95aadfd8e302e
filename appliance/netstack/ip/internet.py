"""The Internet layer of one host (RFC 1122 section 3): its addresses, where packets go, and the
families of addresses."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from appliance.clock import Instant
from appliance.netstack.ip.addresses import Addresses, AddressState, HostAddress, HostConfig
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.paths import Family, Paths
from appliance.netstack.ip.routes import Route, Routes
from appliance.netstack.ip.v4.claim import Claimant
from appliance.netstack.ip.v4.ipv4 import Ipv4
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import ethernet
from appliance.netstack.wire.address import IPV4_BYTES
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import EthernetHeader
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
        self.addresses = Addresses()
        self.routes = Routes()
        families: dict[int, Family] = {}
        self._families = families
        mtu = min(config.mtu, link.mtu)
        self.paths = Paths(self.addresses, self.routes, families, mtu, timers, counters)
        self.path_to = self.paths.to
        self._ipv4 = Ipv4(
            link,
            config.mac,
            self.addresses,
            self.paths.to,
            deliver,
            error_arrives,
            timers=timers,
            random=random,
            counters=counters,
        )
        families[IPV4_BYTES] = self._ipv4
        for route in config.routes:
            self.routes.add(route)
        for made in config.addresses:
            self._add(made)

    # --- our addresses, and routes ------------------------------------------------------

    def start(self, now: Instant) -> None:
        """Claim the addresses that we were given. Everything is answered from now on."""
        for made in self.addresses:
            self._ipv4.claim(made.address, now)

    def add_address(self, made: HostAddress, now: Instant) -> bool:
        """One more address, used from now on. False: it is there already, or there are too many."""
        if not self._add(made):
            return False
        self._ipv4.claim(made.address, now)
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
        """A borrowed address may be used from now on."""
        self.addresses.become(address, AddressState.PREFERRED)
        self.paths.reroute()
        self._claimants[address].address_is_ours(address, now)

    def address_is_taken(self, address: bytes, rival: str, now: Instant) -> None:
        """A borrowed address is another's."""
        self._claimants[address].address_is_taken(address, rival, now)

    @property
    def is_resolving(self) -> bool:
        """True: there are packets that wait until their next hop has been found."""
        return self._ipv4.neighbours.is_resolving

    def rival(self, address: bytes) -> str | None:
        """The MAC address of another station that uses this IPv4 address of ours, as text."""
        return self._ipv4.rival(address)

    def is_probing(self, address: bytes) -> bool:
        """True: nobody knows yet whether another station uses this IPv4 address of ours."""
        return self._ipv4.is_probing(address)

    def _add(self, made: HostAddress, state: AddressState = AddressState.PREFERRED) -> bool:
        if not self.addresses.add(made, state):
            return False
        self.routes.add(made.connected_route)
        borrowed = state is AddressState.TENTATIVE
        self._ipv4.address_added(made.address, self if borrowed else None)
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
        self._ipv4.address_removed(address)
        self.paths.reroute()
        self._address_removed(address)
        return True

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

    def is_group(self, address: bytes) -> bool:
        """It means many hosts: a broadcast address, or a group."""
        family = self._families.get(len(address))
        return family is not None and family.group_mac(address) is not None

    # --- packets in ---------------------------------------------------------------------

    def frame_arrives(self, frame: bytes, at: int, offload: VnetHeader, now: Instant) -> None:
        """A frame, whose Ethernet header stands at `at`. BadPacket: it was dropped."""
        header = EthernetHeader.parse(frame, at)
        if ethernet.is_group(header.source):
            raise BadPacket("ethernet.bad_source")
        if header.source == self._mac:  # a loop on the link, or a stolen MAC
            if header.ethertype == ethernet.TYPE_ARP:
                self._ipv4.own_arp_arrives(frame, at + ethernet.HEADER_BYTES, now)
            raise BadPacket("ethernet.own_source")
        if header.destination not in (self._mac, ethernet.BROADCAST):
            raise BadPacket("ethernet.not_for_us")
        at += ethernet.HEADER_BYTES
        if header.ethertype == ethernet.TYPE_IPV4:
            broadcast = header.destination == ethernet.BROADCAST
            self._ipv4.arrives(frame, at, offload, broadcast, now)
        elif header.ethertype == ethernet.TYPE_ARP:
            self._ipv4.arp_arrives(frame, at, now)
        else:
            raise BadPacket("ethernet.unknown_type")

    def when_unreachable(self, tell: Callable[[bytes, bytes], None]) -> None:
        """`tell` hears of each path, by its ends, whose next hop does not answer."""
        for family in self._families.values():
            family.neighbours.unreachable = tell

    # --- what transports report -----------------------------------------------------------

    def port_unreachable(self, datagram: Datagram, now: Instant) -> None:
        """Nobody listens where this datagram went."""
        self._ipv4.icmp.port_unreachable(datagram, now)

    def learn_mtu(self, destination: bytes, mtu: int, now: Instant) -> bool:
        """Only packets of this size pass on the way to `destination`. True: that is news."""
        return self.paths.learn_mtu(destination, mtu, now)
