"""IPv6 (RFC 8200): packets that arrive, and what an address of ours needs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from appliance.clock import Instant
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.claimant import Claimant
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.path import DatagramPath, PathTo
from appliance.netstack.ip.v6.discovery import Discovery
from appliance.netstack.ip.v6.duplicates import Claim6
from appliance.netstack.ip.v6.fragments import Ipv6Reassembly
from appliance.netstack.ip.v6.groups import Groups
from appliance.netstack.ip.v6.icmp import Icmpv6
from appliance.netstack.ip.v6.on_link import OnLink
from appliance.netstack.ip.v6.path import Ipv6Path
from appliance.netstack.ip.v6.router import Host, Routers
from appliance.netstack.link.interface import Link
from appliance.netstack.timers import Timers
from appliance.netstack.wire import icmpv6, ipv6, ndp, vnet
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.netstack.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP
from appliance.netstack.wire.ipv6 import ICMPV6, Chain, Ipv6Header, ParameterProblem
from appliance.netstack.wire.ndp import Neighbour
from appliance.netstack.wire.vnet import VnetHeader
from appliance.trace import Counters

_MLD = frozenset((icmpv6.MLD_QUERY, icmpv6.MLD_REPORT, icmpv6.MLD_DONE, icmpv6.MLD2_REPORT))
_INTERFACE_LOCAL = 1
"""A group of this scope, or of none, never leaves its host (RFC 4291 section 2.7)."""


class Ipv6:
    """IPv6 of one host. `deliver` takes datagrams for TCP and UDP."""

    def __init__(
        self,
        link: Link,
        mac: bytes,
        mtu: int,
        hop_limit: int,
        addresses: Addresses,
        host: Host,
        path_to: PathTo[DatagramPath],
        deliver: Callable[[Datagram, Instant], None],
        error_arrives: Callable[[IcmpError, Instant], None],
        *,
        heeds_routers: bool,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        """`heeds_routers`: believe in what routers advertise."""
        self.mtu = mtu
        self._link = link
        self._mac = mac
        self._addresses = addresses
        self._deliver = deliver
        self._heeds_routers = heeds_routers
        self._timers = timers
        self._random = random
        self._counters = counters
        self._on_link = OnLink(link, mac, counters)
        self.neighbours = Discovery(
            link, addresses, self._on_link, self._router_lost, timers, random, counters
        )
        self.groups = Groups(addresses, self._on_link, timers, random, counters)
        self.icmp = Icmpv6(addresses, path_to, error_arrives, counters)
        self._routers = Routers(
            host, self.neighbours, self._on_link, hop_limit, timers, random, counters
        )
        self._reassembly = Ipv6Reassembly(timers, counters, self.icmp.reassembly_timed_out)
        self._claims: dict[bytes, Claim6] = {}

    # --- our addresses ----------------------------------------------------------------

    def address_added(self, address: bytes, claimant: Claimant | None) -> None:
        """An address will be ours, when nobody else turns out to have it, which `claimant`
        hears."""
        assert claimant is not None, "every IPv6 address is tentative at first"
        self.groups.join(ipv6.solicited_node(address))
        self._claims[address] = Claim6(
            address, claimant, self.neighbours, self._on_link, self._timers, self._counters
        )

    def claim(self, address: bytes, now: Instant) -> None:
        """Find out whether anybody else has it."""
        self.groups.tell(now)
        self._claims[address].start(now)

    def ask_for_routers(self, link_local: bytes, now: Instant) -> None:
        """Now that we have a link-local address, to be answered at."""
        if self._heeds_routers:
            self._routers.start(link_local, now)

    def address_removed(self, address: bytes) -> None:
        """An address is not ours any more."""
        self._claims.pop(address).withdraw()
        self.groups.leave(ipv6.solicited_node(address))

    def rival(self, address: bytes) -> str | None:
        """The MAC address of another station that uses this address of ours."""
        return self._claims[address].rival

    def _router_lost(self, address: bytes, resigned: bool) -> None:
        self._routers.lost(address, resigned)

    # --- packets out ------------------------------------------------------------------

    def make_path(self, source: bytes, destination: bytes, mtu: int) -> Ipv6Path:
        """A path that leads nowhere yet."""
        identification = self._random.getrandbits(32)
        hop_limit = self._routers.hop_limit
        return Ipv6Path(
            self._link,
            self._mac,
            source,
            destination,
            mtu,
            hop_limit,
            identification,
            self._counters,
        )

    def is_host(self, destination: bytes) -> bool:
        """Can a packet be sent there, to one host?"""
        return ipv6.is_host(destination)

    def group_mac(self, destination: bytes) -> bytes | None:
        """The MAC address of a destination that is a group; None: it is none."""
        return ipv6.group_mac(destination) if ipv6.is_multicast(destination) else None

    # --- packets in -------------------------------------------------------------------

    def arrives(
        self, frame: bytes, at: int, offload: VnetHeader, mac: bytes, to_group: bool, now: Instant
    ) -> None:
        """A packet in a frame from `mac` to us or, with `to_group`, to many."""
        header = Ipv6Header.parse(frame, at, len(frame))
        self._check_addresses(header, to_group)
        end = at + ipv6.HEADER_BYTES + header.payload_bytes
        try:
            chain = ipv6.follow(frame, at, end)
            if chain.fragment is None:
                self._datagram_arrives(header, chain, frame, at, end, offload, mac, now)
                return
            whole = self._reassembly.add(header, chain, frame, at, end, now)
        except ParameterProblem as problem:
            self.icmp.parameter_problem(problem, frame[at:end], now)
            raise
        if whole is not None:
            self._whole_arrives(whole, mac, now)

    def own_frame_arrives(self, frame: bytes, at: int, offload: VnetHeader, now: Instant) -> None:
        """A packet in a frame from our own MAC address: only what it says of our addresses
        counts."""
        header = Ipv6Header.parse(frame, at, len(frame))
        end = at + ipv6.HEADER_BYTES + header.payload_bytes
        chain = ipv6.follow(frame, at, end)
        if chain.protocol != ICMPV6 or header.hop_limit != ipv6.HOP_LIMIT_MAX:
            return
        addresses, good = header.source + header.destination, offload.checksum_good
        message = Icmpv6Header.parse(addresses, frame, chain.start, end, good)
        advertised = message.type == icmpv6.NEIGHBOUR_ADVERTISEMENT
        asked = message.type == icmpv6.NEIGHBOUR_SOLICITATION
        if advertised or (asked and header.source == ipv6.UNSPECIFIED):
            claim = self._claims.get(Neighbour.parse(frame, chain.start, end).target)
            if claim is not None:
                claim.hears_our_mac(now, advertised=advertised)

    def _whole_arrives(self, packet: bytes, mac: bytes, now: Instant) -> None:
        """A datagram that came in fragments. A second fragment header in it is one too many."""
        header = Ipv6Header.parse(packet, 0, len(packet))
        chain = ipv6.follow(packet, 0, len(packet))
        if chain.fragment is not None:
            raise BadPacket("ipv6.fragment_in_fragment")
        if chain.protocol == ICMPV6 and is_of_discovery(packet[chain.start]):
            raise BadPacket("nd.fragmented")  # RFC 6980
        self._datagram_arrives(header, chain, packet, 0, len(packet), VnetHeader(), mac, now)

    def is_from_host(self, source: bytes, destination: bytes) -> bool:
        """Does a packet between these addresses come from one other host, to us alone?"""
        ours = self._addresses
        return destination in ours and ipv6.is_host(source) and source not in ours

    def _check_addresses(self, header: Ipv6Header, to_group: bool) -> None:
        if header.source in self._addresses and header.next_header != ICMPV6:
            raise BadPacket("ipv6.own_source")  # the LAND attack, or a conflict
        if header.source != ipv6.UNSPECIFIED and not ipv6.is_host(header.source):
            raise BadPacket("ipv6.bad_source")
        if header.destination in self._addresses:
            if to_group:
                raise BadPacket("ipv6.unicast_in_group")
        elif header.destination not in self.groups:
            raise BadPacket("ipv6.not_for_us")

    def _datagram_arrives(
        self,
        header: Ipv6Header,
        chain: Chain,
        packet: bytes,
        at: int,
        end: int,
        offload: VnetHeader,
        mac: bytes,
        now: Instant,
    ) -> None:
        datagram = Datagram(
            header.source,
            header.destination,
            chain.protocol,
            packet,
            at,
            chain.start,
            end,
            offload.checksum_good,
            ipv6.is_multicast(header.destination),
            offload.gso_size if offload.gso_type == vnet.GSO_UDP_L4 else 0,
            header.traffic_class,
        )
        if chain.protocol == ICMPV6:
            self._icmp_arrives(datagram, header.hop_limit, mac, now)
        elif chain.protocol == ipv6.NO_NEXT_HEADER:
            raise BadPacket("ipv6.no_next_header")
        elif header.source == ipv6.UNSPECIFIED:
            raise BadPacket("ipv6.bad_source")
        elif chain.protocol == PROTOCOL_UDP:
            self._deliver(datagram, now)
        elif datagram.to_group and chain.protocol == PROTOCOL_TCP:
            raise BadPacket("ipv6.group")
        elif chain.protocol == PROTOCOL_TCP:
            self._deliver(datagram, now)
        else:
            where = chain.next_header_at - at
            raise ParameterProblem("ipv6.unknown_protocol", ipv6.CODE_UNKNOWN_NEXT_HEADER, where)

    def _icmp_arrives(self, datagram: Datagram, hop_limit: int, mac: bytes, now: Instant) -> None:
        packet, at, end = datagram.packet, datagram.start, datagram.end
        message = Icmpv6Header.parse(
            datagram.source + datagram.destination, packet, at, end, datagram.checksum_good
        )
        if datagram.source in self._addresses and message.type != icmpv6.NEIGHBOUR_ADVERTISEMENT:
            raise BadPacket("ipv6.own_source")
        if message.type in _MLD:
            if message.type == icmpv6.MLD_QUERY:
                self.groups.query_arrives(datagram.source, hop_limit, packet, at, end, now)
        elif not is_of_discovery(message.type):
            self.icmp.arrives(message, datagram, now)
        elif hop_limit != ipv6.HOP_LIMIT_MAX or message.code:
            raise BadPacket("nd.not_from_link")
        else:
            self._discovery_arrives(message, datagram, mac, now)

    # --- neighbour discovery ------------------------------------------------------------

    def _discovery_arrives(
        self, message: Icmpv6Header, datagram: Datagram, mac: bytes, now: Instant
    ) -> None:
        packet, at, end = datagram.packet, datagram.start, datagram.end
        match message.type:
            case icmpv6.NEIGHBOUR_SOLICITATION:
                self._solicited(Neighbour.parse(packet, at, end), datagram, mac, now)
            case icmpv6.NEIGHBOUR_ADVERTISEMENT:
                heard = Neighbour.parse(packet, at, end)
                self._advertised(heard, message.rest, datagram, mac, now)
            case icmpv6.ROUTER_ADVERTISEMENT if self._heeds_routers:
                self._routers.advertisement_arrives(datagram.source, packet, at, end, now)
            case _:
                raise BadPacket("nd.ignored")  # nobody redirects a server, and it routes nothing

    def _solicited(self, heard: Neighbour, datagram: Datagram, mac: bytes, now: Instant) -> None:
        """RFC 4861 section 7.1.1 and 7.2.3."""
        source, source_mac = datagram.source, heard.options.source_mac
        by_nobody = source == ipv6.UNSPECIFIED
        if by_nobody and (
            source_mac is not None or datagram.destination != ipv6.solicited_node(heard.target)
        ):
            raise BadPacket("nd.bad_source")
        claim = self._claims.get(heard.target)
        if claim is None:
            raise BadPacket("nd.not_our_target")
        if not claim.is_asked_for(by_nobody, mac, now) or heard.target not in self._addresses:
            return
        self._counters["nd.answered"] += 1
        if by_nobody:
            self.neighbours.advertise(heard.target, ipv6.ALL_NODES, None, ndp.OVERRIDE)
            return
        if source_mac is not None:
            self.neighbours.mentioned(source, source_mac, now)
        flags = ndp.SOLICITED | ndp.OVERRIDE
        self.neighbours.advertise(heard.target, source, source_mac or mac, flags)

    def _advertised(
        self, heard: Neighbour, flags: int, datagram: Datagram, mac: bytes, now: Instant
    ) -> None:
        """RFC 4861 section 7.1.2 and 7.2.5."""
        if datagram.source == ipv6.UNSPECIFIED or (datagram.to_group and flags & ndp.SOLICITED):
            raise BadPacket("nd.bad_advertisement")
        claim = self._claims.get(heard.target)
        if claim is not None:
            claim.is_advertised(heard.options.target_mac or mac, now)
            return
        self.neighbours.advertised(
            heard.target,
            heard.options.target_mac,
            flags,
            now,
            is_router=bool(flags & ndp.ROUTER),
        )


def is_of_discovery(kind: int) -> bool:
    """A message type of RFC 4861, which is believed only if it was not forwarded."""
    return icmpv6.ROUTER_SOLICITATION <= kind <= icmpv6.REDIRECT
