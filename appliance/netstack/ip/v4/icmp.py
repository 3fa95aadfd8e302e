"""ICMP (RFC 792, RFC 1122 section 3.2.2): answers to echo requests, and errors.

An error is never sent about an ICMP error, a packet to or from more than one host, or a fragment
other than the first; and not more often than a token bucket allows, so that nobody can use us as an
amplifier or make us work for nothing.
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
from appliance.netstack.ip.v4.subnet import Subnets
from appliance.netstack.wire import icmp, ipv4
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmp import IcmpHeader
from appliance.netstack.wire.ipv4 import PROTOCOL_ICMP
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

_QUOTED_BYTES_MAX: Final = 548
"""As much of the packet as leaves the error within 576 bytes (RFC 1812 section 4.3.2.3)."""

_TRANSPORT_BYTES_MIN: Final = 8
"""What an error quotes of the transport header at least: the ports and, of TCP, the sequence
number."""

_HEEDED: Final = icmp.ERRORS - {icmp.SOURCE_QUENCH, icmp.REDIRECT}

_PLATEAUS: Final = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 552)
"""MTUs in use, for routers that do not say theirs (RFC 1191 section 7)."""


_REASONS: Final = {
    (icmp.DESTINATION_UNREACHABLE, 0): "network unreachable",
    (icmp.DESTINATION_UNREACHABLE, 1): "host unreachable",
    (icmp.DESTINATION_UNREACHABLE, icmp.CODE_PROTOCOL_UNREACHABLE): "protocol unreachable",
    (icmp.DESTINATION_UNREACHABLE, icmp.CODE_PORT_UNREACHABLE): "port unreachable",
    (icmp.DESTINATION_UNREACHABLE, icmp.CODE_FRAGMENTATION_NEEDED): "fragmentation needed",
    (icmp.TIME_EXCEEDED, 0): "too many hops",
}


_HARD: Final = frozenset(
    (
        (icmp.DESTINATION_UNREACHABLE, icmp.CODE_PROTOCOL_UNREACHABLE),
        (icmp.DESTINATION_UNREACHABLE, icmp.CODE_PORT_UNREACHABLE),
    )
)


class Icmp:
    """One host's ICMP. `error_arrives` is told of errors about packets that we have sent."""

    def __init__(
        self,
        addresses: Addresses,
        subnets: Subnets,
        path_to: PathTo[DatagramPath],
        error_arrives: Callable[[IcmpError, Instant], None],
        counters: Counters,
    ) -> None:
        self._addresses = addresses
        self._subnets = subnets
        self._path_to = path_to
        self._error_arrives = error_arrives
        self._counters = counters
        self._bucket = TokenBucket(ICMP_ERRORS_PER_SECOND, ICMP_ERRORS_BURST)

    # --- input ------------------------------------------------------------------------

    def arrives(self, datagram: Datagram, now: Instant) -> None:
        """A message to an address of ours."""
        packet, at, end = datagram.packet, datagram.start, datagram.end
        message = IcmpHeader.parse(packet, at, end)
        if message.type == icmp.ECHO_REQUEST and message.code == 0:
            self._counters["icmp.echo"] += 1
            data = memoryview(packet)[at + icmp.HEADER_BYTES : end]
            reply = IcmpHeader(icmp.ECHO_REPLY, 0, message.rest)
            self._send(datagram.source, datagram.destination, reply, data)
        elif message.type in _HEEDED:
            error = parse_error(message, packet[at + icmp.HEADER_BYTES : end], self._addresses)
            self._counters["icmp.error_in"] += 1
            self._error_arrives(error, now)
        else:
            ignored = message.type in icmp.ERRORS  # RFC 6633, and nobody redirects a server
            raise BadPacket("icmp.ignored" if ignored else "icmp.unknown_type")

    # --- output -----------------------------------------------------------------------

    def port_unreachable(self, datagram: Datagram, now: Instant) -> None:
        """Nobody listens where this packet went."""
        packet = datagram.packet[datagram.at : datagram.end]
        self._report(icmp.DESTINATION_UNREACHABLE, icmp.CODE_PORT_UNREACHABLE, packet, now)

    def protocol_unreachable(self, datagram: Datagram, now: Instant) -> None:
        """Nobody here speaks the protocol of this packet."""
        packet = datagram.packet[datagram.at : datagram.end]
        self._report(icmp.DESTINATION_UNREACHABLE, icmp.CODE_PROTOCOL_UNREACHABLE, packet, now)

    def reassembly_timed_out(self, packet: bytes, now: Instant) -> None:
        """A datagram never became complete; `packet` is its first fragment."""
        self._report(icmp.TIME_EXCEEDED, icmp.CODE_REASSEMBLY_TIME_EXCEEDED, packet, now)

    def _report(self, kind: int, code: int, packet: bytes, now: Instant) -> None:
        """Tell the sender of `packet` what became of it, if one may."""
        if not self._may_be_reported(packet):
            return
        if not self._bucket.take(now):
            self._counters["icmp.rate_limited"] += 1
            return
        self._counters["icmp.error_out"] += 1
        quoted = memoryview(packet)[:_QUOTED_BYTES_MAX]
        self._send(packet[12:16], packet[16:20], IcmpHeader(kind, code), quoted)

    def _may_be_reported(self, packet: bytes) -> bool:
        header_bytes = (packet[0] & 0xF) * 4
        first_of_fragments = int.from_bytes(packet[6:8], "big") & ipv4.OFFSET_MASK == 0
        is_error = (
            packet[9] == PROTOCOL_ICMP
            and len(packet) > header_bytes
            and packet[header_bytes] in icmp.ERRORS
        )
        to_us = packet[16:20] in self._addresses
        return (
            to_us
            and first_of_fragments
            and not is_error
            and not self._subnets.is_nobody(packet[12:16])
        )

    def _send(self, destination: bytes, source: bytes, header: IcmpHeader, data: Buffer) -> None:
        message: list[Buffer] = [header.emit([data]), data]
        path = self._path_to(destination, source)
        path.send(PROTOCOL_ICMP, message, icmp.HEADER_BYTES + len(data))


def parse_error(message: IcmpHeader, quoted: bytes, ours: Container[bytes]) -> IcmpError:
    """What an error says about a packet that we could have sent, from an address of `ours`."""
    if len(quoted) < ipv4.HEADER_BYTES:
        raise BadPacket("icmp.truncated_quote")
    header_bytes = (quoted[0] & 0xF) * 4
    if quoted[0] >> 4 != 4 or header_bytes < ipv4.HEADER_BYTES:
        raise BadPacket("icmp.bad_quote")
    if len(quoted) < header_bytes + _TRANSPORT_BYTES_MIN:
        raise BadPacket("icmp.truncated_quote")
    if quoted[12:16] not in ours:
        raise BadPacket("icmp.not_about_us")
    if int.from_bytes(quoted[6:8], "big") & ipv4.OFFSET_MASK:
        raise BadPacket("icmp.about_later_fragment")
    what = message.type, message.code
    reason = _REASONS.get(what, f"icmp type {message.type} code {message.code}")
    error = IcmpError(
        quoted[12:16], quoted[16:20], quoted[9], quoted[header_bytes:], reason, what in _HARD
    )
    if what == (icmp.DESTINATION_UNREACHABLE, icmp.CODE_FRAGMENTATION_NEEDED):
        sent_bytes = int.from_bytes(quoted[2:4], "big")
        error.next_hop_mtu = message.next_hop_mtu or next_plateau(sent_bytes)
        if error.next_hop_mtu >= sent_bytes:  # it would have passed (RFC 5927 section 7.2)
            raise BadPacket("icmp.bad_mtu")
    return error


def next_plateau(packet_bytes: int) -> int:
    """The next smaller MTU than that of a packet that did not pass."""
    return next((mtu for mtu in _PLATEAUS if mtu < packet_bytes), _PLATEAUS[-1])
