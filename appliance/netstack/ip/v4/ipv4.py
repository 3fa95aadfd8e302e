"""IPv4 (RFC 791): packets that arrive, ARP, and what an address of ours needs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from appliance.clock import Instant
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.claimant import Claimant
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.path import DatagramPath, PathTo
from appliance.netstack.ip.v4.arp import Arp
from appliance.netstack.ip.v4.claim import Claim
from appliance.netstack.ip.v4.fragments import Ipv4Reassembly
from appliance.netstack.ip.v4.icmp import Icmp
from appliance.netstack.ip.v4.path import Ipv4Path
from appliance.netstack.ip.v4.subnet import Subnets
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import vnet
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import (
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Ipv4Header,
)
from appliance.netstack.wire.vnet import VnetHeader
from appliance.trace import Counters


class Ipv4:
    """IPv4 of one host. `deliver` takes datagrams for TCP and UDP."""

    def __init__(
        self,
        link: Link,
        mac: bytes,
        mtu: int,
        ttl: int,
        addresses: Addresses,
        path_to: PathTo[DatagramPath],
        deliver: Callable[[Datagram, Instant], None],
        error_arrives: Callable[[IcmpError, Instant], None],
        *,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self.mtu = mtu
        self._ttl = ttl
        self._link = link
        self._mac = mac
        self._addresses = addresses
        self._deliver = deliver
        self._timers = timers
        self._random = random
        self._counters = counters
        self._subnets = Subnets(addresses)
        self.neighbours = Arp(link, mac, addresses, self._subnets, timers, counters)
        self.icmp = Icmp(addresses, self._subnets, path_to, error_arrives, counters)
        self._reassembly = Ipv4Reassembly(timers, counters, self.icmp.reassembly_timed_out)
        self._claims: dict[bytes, Claim] = {}

    # --- our addresses ----------------------------------------------------------------

    def address_added(self, address: bytes, claimant: Claimant | None = None) -> None:
        """An address has become ours, or will be, when nobody else turns out to have it."""
        self._subnets.refresh()
        self._claims[address] = Claim(
            self._mac,
            address,
            self.neighbours,
            self._timers,
            self._random,
            self._counters,
            claimant,
        )

    def claim(self, address: bytes, now: Instant) -> None:
        """Tell the link that an address is ours, and hear who disagrees."""
        self._claims[address].start(now)

    def rival(self, address: bytes) -> str | None:
        """The MAC address of another station that uses this address of ours."""
        return self._claims[address].rival

    def address_removed(self, address: bytes) -> None:
        """An address is not ours any more."""
        self._subnets.refresh()
        self._claims.pop(address).withdraw()

    # --- packets out ------------------------------------------------------------------

    def make_path(self, source: bytes, destination: bytes, mtu: int) -> Ipv4Path:
        """A path that leads nowhere yet."""
        identification = self._random.getrandbits(16)
        return Ipv4Path(
            self._link,
            self._mac,
            source,
            destination,
            mtu,
            self._ttl,
            identification,
            self._counters,
        )

    def is_host(self, destination: bytes) -> bool:
        """Can a packet be sent there, to one host?"""
        return not self._subnets.is_nobody(destination)

    def group_mac(self, destination: bytes) -> bytes | None:
        """The MAC address of a destination that is everybody; None: it is a host."""
        return b"\xff" * 6 if destination in self._subnets.broadcasts else None

    def is_from_host(self, source: bytes, destination: bytes) -> bool:
        """Does a packet between these addresses come from one other host, to us alone?"""
        ours = self._addresses
        return destination in ours and not (source in ours or self._subnets.is_nobody(source))

    # --- packets in -------------------------------------------------------------------

    def arp_arrives(self, frame: bytes, at: int, now: Instant) -> None:
        """An ARP packet."""
        packet = ArpPacket.parse(frame, at)
        if packet.sender_mac == self._mac:
            raise BadPacket("arp.own_sender")
        for claim in list(self._claims.values()):
            claim.hears(packet, now)
        if packet.sender_address not in self._addresses:
            self.neighbours.arrives(packet, now)

    def own_arp_arrives(self, frame: bytes, at: int, now: Instant) -> None:
        """An ARP packet in a frame from our own MAC address."""
        packet = ArpPacket.parse(frame, at)
        for claim in list(self._claims.values()):
            claim.hears_our_mac(packet, now)

    def arrives(
        self, frame: bytes, at: int, offload: VnetHeader, broadcast: bool, now: Instant
    ) -> None:
        """A packet in a frame to us, or to everybody."""
        header = Ipv4Header.parse(frame, at, len(frame))
        if header.source in self._addresses:
            raise BadPacket("ip.own_source")  # the LAND attack, or a conflict
        if self._subnets.is_nobody(header.source):
            raise BadPacket("ip.bad_source")
        if header.destination in self._addresses:
            if broadcast:  # RFC 1122 section 3.3.6
                raise BadPacket("ip.unicast_in_broadcast")
        elif header.destination not in self._subnets.broadcasts:
            raise BadPacket("ip.not_for_us")
        if not header.is_fragment:
            self._datagram_arrives(header, frame, at, offload, now)
            return
        whole = self._reassembly.add(header, frame, at, now)
        if whole is not None:
            header = Ipv4Header.parse(whole, 0, len(whole))
            self._datagram_arrives(header, whole, 0, VnetHeader(), now)

    def _datagram_arrives(
        self, header: Ipv4Header, packet: bytes, at: int, offload: VnetHeader, now: Instant
    ) -> None:
        to_group = header.destination not in self._addresses
        datagram = Datagram(
            header.source,
            header.destination,
            header.protocol,
            packet,
            at,
            at + header.header_bytes,
            at + header.total_bytes,
            offload.checksum_good,
            to_group,
            offload.gso_size if offload.gso_type == vnet.GSO_UDP_L4 else 0,
            header.type_of_service,
        )
        if header.protocol == PROTOCOL_UDP:
            self._deliver(datagram, now)
        elif to_group:
            # No connection and no echo for a broadcast (RFC 1122 sections 4.2.3.10, 3.2.2.6).
            raise BadPacket("ip.broadcast")
        elif header.protocol == PROTOCOL_TCP:
            self._deliver(datagram, now)
        elif header.protocol == PROTOCOL_ICMP:
            self.icmp.arrives(datagram, now)
        else:
            self.icmp.protocol_unreachable(datagram, now)
            raise BadPacket("ip.unknown_protocol")
