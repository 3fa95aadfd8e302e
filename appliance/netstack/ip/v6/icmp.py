"""ICMPv6 (RFC 4443): answers to echo requests, and errors in both directions.

An error is never sent about an ICMPv6 error, a packet to a group (but for the two exceptions of
section 2.4 (e.3)), or a packet from nobody; and not more often than a token bucket allows.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from appliance.clock import Instant
from appliance.limits import ICMP_ERRORS_BURST, ICMP_ERRORS_PER_SECOND
from appliance.netstack.ip.addresses import Addresses
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.path import DatagramPath, PathTo
from appliance.netstack.ip.rations import TokenBucket
from appliance.netstack.wire import icmpv6, ipv6
from appliance.netstack.wire.checksum import word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.netstack.wire.ipv6 import ICMPV6, ParameterProblem
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

_QUOTED_BYTES_MAX: Final = ipv6.MTU_MIN - ipv6.HEADER_BYTES - icmpv6.HEADER_BYTES
"""As much of the packet as leaves the error within the smallest MTU (section 2.4 (c))."""

_TRANSPORT_BYTES_MIN: Final = 8

_REASONS: Final = {
    (icmpv6.DESTINATION_UNREACHABLE, 0): "network unreachable",
    (icmpv6.DESTINATION_UNREACHABLE, 1): "administratively prohibited",
    (icmpv6.DESTINATION_UNREACHABLE, 2): "beyond scope of source address",
    (icmpv6.DESTINATION_UNREACHABLE, icmpv6.CODE_ADDRESS_UNREACHABLE): "host unreachable",
    (icmpv6.DESTINATION_UNREACHABLE, icmpv6.CODE_PORT_UNREACHABLE): "port unreachable",
    (icmpv6.PACKET_TOO_BIG, 0): "packet too big",
    (icmpv6.TIME_EXCEEDED, 0): "too many hops",
    (icmpv6.PARAMETER_PROBLEM, ipv6.CODE_UNKNOWN_NEXT_HEADER): "protocol unreachable",
}
_HARD: Final = frozenset(
    (
        (icmpv6.DESTINATION_UNREACHABLE, icmpv6.CODE_PORT_UNREACHABLE),
        (icmpv6.PARAMETER_PROBLEM, ipv6.CODE_UNKNOWN_NEXT_HEADER),
    )
)


class Icmpv6:
    """One host's ICMPv6, without what stays on the link. `error_arrives` is told of errors about
    packets that we have sent."""

    def __init__(
        self,
        addresses: Addresses,
        path_to: PathTo[DatagramPath],
        error_arrives: Callable[[IcmpError, Instant], None],
        counters: Counters,
    ) -> None:
        self._addresses = addresses
        self._path_to = path_to
        self._error_arrives = error_arrives
        self._counters = counters
        self._bucket = TokenBucket(ICMP_ERRORS_PER_SECOND, ICMP_ERRORS_BURST)

    # --- input ------------------------------------------------------------------------

    def arrives(self, message: Icmpv6Header, datagram: Datagram, now: Instant) -> None:
        """A message whose checksum is right."""
        data = memoryview(datagram.packet)[datagram.start + icmpv6.HEADER_BYTES : datagram.end]
        if message.type == icmpv6.ECHO_REQUEST and message.code == 0:
            self._echo(message, datagram, data)
        elif (message.type, 0) in _REASONS and not datagram.to_group:
            error = parse_error(message, bytes(data), self._addresses)
            self._counters["icmpv6.error_in"] += 1
            self._error_arrives(error, now)
        else:
            raise BadPacket("icmpv6.unknown_type")

    def _echo(self, message: Icmpv6Header, datagram: Datagram, data: memoryview) -> None:
        """Section 4.2; one that went to a group is answered from an address of our own."""
        if not ipv6.is_host(datagram.source):
            raise BadPacket("icmpv6.bad_source")
        self._counters["icmpv6.echo"] += 1
        source = None if datagram.to_group else datagram.destination
        self._send(datagram.source, source, Icmpv6Header(icmpv6.ECHO_REPLY, 0, message.rest), data)

    # --- output -----------------------------------------------------------------------

    def port_unreachable(self, datagram: Datagram, now: Instant) -> None:
        """Nobody listens where this packet went."""
        packet = datagram.packet[datagram.at : datagram.end]
        header = Icmpv6Header(icmpv6.DESTINATION_UNREACHABLE, icmpv6.CODE_PORT_UNREACHABLE)
        self.report(header, packet, now)

    def parameter_problem(self, problem: ParameterProblem, packet: bytes, now: Instant) -> None:
        """There is something in the packet that cannot be dealt with."""
        header = Icmpv6Header(icmpv6.PARAMETER_PROBLEM, problem.code, problem.pointer)
        self.report(header, packet, now, even_to_group=problem.even_to_group)

    def reassembly_timed_out(self, packet: bytes, now: Instant) -> None:
        """A datagram never became complete; `packet` begins with its first fragment."""
        header = Icmpv6Header(icmpv6.TIME_EXCEEDED, icmpv6.CODE_REASSEMBLY_TIME_EXCEEDED)
        self.report(header, packet, now)

    def report(
        self, header: Icmpv6Header, packet: bytes, now: Instant, *, even_to_group: bool = False
    ) -> None:
        """Tell the sender of `packet` what became of it, if one may."""
        source, destination = packet[8:24], packet[24:40]
        to_us = destination in self._addresses
        if not to_us and not (even_to_group and ipv6.is_multicast(destination)):
            return
        if not ipv6.is_host(source) or is_error(packet):
            return
        if not self._bucket.take(now):
            self._counters["icmpv6.rate_limited"] += 1
            return
        self._counters["icmpv6.error_out"] += 1
        quoted = memoryview(packet)[:_QUOTED_BYTES_MAX]
        self._send(source, destination if to_us else None, header, quoted)

    def _send(
        self, destination: bytes, source: bytes | None, header: Icmpv6Header, data: Buffer
    ) -> None:
        path = self._path_to(destination, source)
        addresses_sum = word_sum(path.source + path.destination)
        message: list[Buffer] = [header.emit(addresses_sum, [data]), data]
        path.send(ICMPV6, message, icmpv6.HEADER_BYTES + len(data))


def is_error(packet: bytes) -> bool:
    """True: the packet holds an ICMPv6 error or a redirect, or one cannot tell."""
    try:
        chain = ipv6.follow(packet, 0, len(packet))
    except ParameterProblem:
        return False  # that is what is to be reported
    except BadPacket:
        return True
    protocol = chain.protocol if chain.fragment is None else chain.fragment.next_header
    if protocol != ICMPV6:
        return False
    if chain.start >= len(packet) or (chain.fragment is not None and chain.fragment.offset):
        return True
    kind = packet[chain.start]
    return icmpv6.is_error(kind) or kind == icmpv6.REDIRECT


def parse_error(message: Icmpv6Header, quoted: bytes, ours: Container[bytes]) -> IcmpError:
    """What an error says about a packet that we could have sent, from an address of `ours`."""
    if len(quoted) < ipv6.HEADER_BYTES:
        raise BadPacket("icmpv6.truncated_quote")
    if quoted[0] >> 4 != 6:
        raise BadPacket("icmpv6.bad_quote")
    # Only the beginning is quoted: what the length says is not here.
    source, destination = quoted[8:24], quoted[24:40]
    if source not in ours:
        raise BadPacket("icmpv6.not_about_us")
    chain = ipv6.follow(quoted, 0, len(quoted))
    protocol = chain.protocol
    if chain.fragment is not None:
        if chain.fragment.offset:
            raise BadPacket("icmpv6.about_later_fragment")
        protocol = chain.fragment.next_header
    if len(quoted) < chain.start + _TRANSPORT_BYTES_MIN:
        raise BadPacket("icmpv6.truncated_quote")
    what = message.type, message.code
    reason = _REASONS.get(what, f"icmpv6 type {message.type} code {message.code}")
    error = IcmpError(source, destination, protocol, quoted[chain.start :], reason, what in _HARD)
    if message.type == icmpv6.PACKET_TOO_BIG:
        sent_bytes = ipv6.HEADER_BYTES + int.from_bytes(quoted[4:6], "big")
        # RFC 8201 section 4: nobody has a smaller MTU; and this packet would have passed.
        if message.rest < ipv6.MTU_MIN or message.rest >= sent_bytes:
            raise BadPacket("icmpv6.bad_mtu")
        error.next_hop_mtu = message.rest
    return error
