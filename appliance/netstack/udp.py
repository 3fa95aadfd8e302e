"""UDP (RFC 768, RFC 1122 section 4.1): ports and datagrams.

A reply comes from the address that was asked; to a datagram that was broadcast it comes from one of
our own: that is how a client that looks for an rpcbind by broadcast learns where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance.clock import Instant
from appliance.limits import UDP_PORTS_MAX
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.path import DatagramPath, PathTo
from appliance.netstack.wire import udp
from appliance.netstack.wire.address import IPV6_BYTES
from appliance.netstack.wire.checksum import pseudo_header_sum, word_sum, word_sum_of
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import PROTOCOL_UDP
from appliance.netstack.wire.udp import UdpHeader
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

Receive = Callable[[bytes, int, bytes, memoryview], None]
"""A datagram: source address, source port, destination address, data (valid for good)."""


class PortInUse(Exception):
    """Somebody has bound this port before, or too many others."""


class UdpSocket:
    """One bound port."""

    def __init__(self, udp_layer: Udp, port: int) -> None:
        self._udp = udp_layer
        self.port = port
        self.error_arrives: Callable[[bytes, int, str], None] | None = None

    def send_to(
        self,
        address: bytes,
        port: int,
        buffers: Sequence[Buffer],
        source: bytes | None = None,
    ) -> bool:
        """Send one datagram, from the address `source` of ours or from the best one. False: it is
        too large, or the link did not take it."""
        return self._udp.send(self.port, address, port, buffers, source)

    def refused(self, address: bytes, port: int, reason: str) -> None:
        """ICMP says that what was sent there did not arrive."""
        if self.error_arrives is not None:
            self.error_arrives(address, port, reason)

    def close(self) -> None:
        """Free the port."""
        self._udp.unbind(self)


class Udp:
    """One host's UDP."""

    def __init__(
        self,
        path_to: PathTo[DatagramPath],
        no_listener: Callable[[Datagram, Instant], None],
        counters: Counters,
    ) -> None:
        """`no_listener` reports a datagram to a port that nobody has bound."""
        self._path_to = path_to
        self._no_listener = no_listener
        self._counters = counters
        self._bound: dict[int, tuple[UdpSocket, Receive]] = {}

    def bind(self, port: int, receive: Receive) -> UdpSocket:
        """Datagrams to `port` go to `receive`. PortInUse."""
        assert 0 < port <= 0xFFFF
        if port in self._bound or len(self._bound) >= UDP_PORTS_MAX:
            raise PortInUse(port)
        made = UdpSocket(self, port)
        self._bound[port] = (made, receive)
        return made

    def unbind(self, socket: UdpSocket) -> None:
        """Free the port of a socket; nothing, where that has been done."""
        bound = self._bound.get(socket.port)
        if bound is not None and bound[0] is socket:
            del self._bound[socket.port]

    def may_have_sent(self, transport: bytes) -> bool:
        """Could a datagram that begins with these bytes have come from here?"""
        return int.from_bytes(transport[:2], "big") in self._bound

    # --- input ------------------------------------------------------------------------

    def arrives(self, datagram: Datagram, now: Instant) -> None:
        """A packet with one datagram, or with several that the link has joined."""
        packet, start, end = datagram.packet, datagram.start, datagram.end
        header = UdpHeader.parse(packet, start, end)
        if not datagram.checksum_good:
            if header.checksum == 0 and len(datagram.source) == IPV6_BYTES:
                raise BadPacket("udp.no_checksum")  # RFC 8200 section 8.1
            addresses = word_sum(datagram.source + datagram.destination)
            if not udp.is_sound(header, addresses, packet[start : start + header.length]):
                raise BadPacket("udp.bad_checksum")
        if header.destination_port == 0:
            raise BadPacket("udp.port_zero")
        bound = self._bound.get(header.destination_port)
        if bound is None:
            self._no_listener(datagram, now)
            raise BadPacket("udp.no_listener")
        data = memoryview(packet)[start + udp.HEADER_BYTES : start + header.length]
        step = datagram.joined_bytes or len(data)
        for begin in range(0, len(data) or 1, step or 1):
            piece = data[begin : begin + step]
            bound[1](datagram.source, header.source_port, datagram.destination, piece)

    def icmp_error(self, error: IcmpError) -> None:
        """An ICMP error about a datagram of ours (RFC 1122 section 4.1.3.3)."""
        port = int.from_bytes(error.transport[:2], "big")
        bound = self._bound.get(port)
        if bound is None:
            raise BadPacket("udp.icmp_not_ours")
        remote_port = int.from_bytes(error.transport[2:4], "big")
        bound[0].refused(error.destination, remote_port, error.reason)

    # --- output -----------------------------------------------------------------------

    def send(
        self,
        source_port: int,
        address: bytes,
        port: int,
        buffers: Sequence[Buffer],
        source: bytes | None = None,
    ) -> bool:
        """Send one datagram from a port of ours, and from `source` or the best address."""
        data_bytes = sum(map(len, buffers))
        if data_bytes > udp.DATA_BYTES_MAX or port == 0:
            self._counters["udp.cannot_be_sent"] += 1
            return False
        path = self._path_to(address, source)
        length = udp.HEADER_BYTES + data_bytes
        header = UdpHeader(source_port, port, length)
        if path.checksum_offload:
            header.checksum = pseudo_header_sum(path.pseudo_sum, PROTOCOL_UDP, length)
            return path.send_udp(header.emit(), buffers, data_bytes)
        datagram_sum = word_sum_of([header.emit(), *buffers])
        header.checksum = udp.datagram_checksum(path.pseudo_sum, length, datagram_sum)
        return path.send(PROTOCOL_UDP, [header.emit(), *buffers], length)
