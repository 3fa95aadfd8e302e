"""One host on one link: frames in, frames out, and the next deadline.

A frame takes one of three ways.

The express lane is for what nearly all frames are: a TCP segment of a connection that exists, in an
IP packet without options and fragmentation, with a checksum that needs no verification or is
right. One `unpack_from` reads all that has to be looked at, from the virtio-net flags to the TCP
window. The connection decides whether the segment is as simple as it looks.

The short way is for what the connection does not take, and for a segment of none, where nothing in
front of it is out of the ordinary: all of that has been read, so it goes straight to TCP.

The long way is for everything else: each header is parsed and checked by its module in wire/. What
is wrong with a packet is a BadPacket, which ends here, as a count under its reason. Nothing that a
peer sends makes `receive` raise.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Final

from appliance.clock import Instant
from appliance.limits import TCP_PLAIN_RECEIVE_BYTES, TCP_RECEIVE_BYTES
from appliance.netstack.ip.addresses import HostAddress, HostConfig
from appliance.netstack.ip.datagram import Datagram
from appliance.netstack.ip.icmp_error import IcmpError
from appliance.netstack.ip.internet import Internet
from appliance.netstack.ip.link_path import TCP_CHECKSUM_OFFSET
from appliance.netstack.ip.path import CE
from appliance.netstack.ip.routes import Route
from appliance.netstack.link.interface import Link
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.ecn import marked
from appliance.netstack.tcp.host import Tcp
from appliance.netstack.tcp.reasons import ADDRESS_GONE
from appliance.netstack.tcp.state import State
from appliance.netstack.timers import Timers
from appliance.netstack.udp import Udp
from appliance.netstack.wire import ethernet, ipv4, ipv6, vnet
from appliance.netstack.wire.address import IPV6_BYTES
from appliance.netstack.wire.checksum import remainder
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP
from appliance.netstack.wire.vnet import CHECKSUM_GOOD, VnetHeader
from appliance.trace import Counters

__all__ = ["HostAddress", "HostConfig", "Route", "Stack"]

_EXPRESS: Final = "6s6xI H2xI2x 12sIIHH"
"""Ethernet destination; type, version, header length, type of service; IP length; fragment field,
time to live, protocol; then what identifies a connection, sequence number, acknowledgement, data
offset and flags, window."""

_unpack_express: Final = Struct("!" + _EXPRESS).unpack_from
_unpack_express_vnet: Final = Struct("!B9x" + _EXPRESS).unpack_from

_EXPRESS6: Final = "6s6xI2xHBx 36sIIHH"
"""Ethernet destination; type, version, traffic class; payload length; next header; the rest."""

_unpack_express6: Final = Struct("!" + _EXPRESS6).unpack_from
_unpack_express6_vnet: Final = Struct("!B9x" + _EXPRESS6).unpack_from

_PLAIN_IPV6: Final = ethernet.TYPE_IPV6 << 16 | 0x6000
_VERSION: Final = 0xFFFFF000
_CE6: Final = CE << 4
_TYPE6: Final = ethernet.TYPE_IPV6 >> 8
_SEGMENT_BYTES_MIN: Final = 20

_PLAIN_IPV4: Final = ethernet.TYPE_IPV4 << 16 | 0x4500
_ALL_BUT_SERVICE: Final = 0xFFFFFF00
_WHOLE_MASK: Final = (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK) << 16 | 0xFF
"""Of fragment field, time to live and protocol: of a whole packet this leaves the protocol."""

_IP_AT: Final = ethernet.HEADER_BYTES
_ETHERNET_AT_VNET: Final = vnet.HEADER_BYTES
_TYPE_AT: Final = 2 * ethernet.ADDRESS_BYTES
_IP_AT_VNET: Final = vnet.HEADER_BYTES + ethernet.HEADER_BYTES
_PORT_BYTES: Final = 2
_TCP_AT: Final = _IP_AT + ipv4.HEADER_BYTES
_TCP_AT_VNET: Final = _IP_AT_VNET + ipv4.HEADER_BYTES
_PACKET_BYTES_MIN: Final = ipv4.HEADER_BYTES + 20
"""An IP and a TCP header without options. (That the IP length is no smaller, express.py sees.)"""

_PADDING_MAX: Final = 64
"""What follows the packet in an honest frame: Ethernet has a minimum of 60 bytes. The express lane
keeps frames as they are, so it takes none in which a byte of text is padded to 64 KiB."""


def _ordinary(ip_header_bytes: int) -> frozenset[bytes]:
    """The virtio-net headers of a TCP packet that is one segment."""
    checksum_at = ethernet.HEADER_BYTES + ip_header_bytes
    to_finish = VnetHeader(vnet.NEEDS_CSUM, csum_start=checksum_at, csum_offset=TCP_CHECKSUM_OFFSET)
    return frozenset((vnet.NOTHING, VnetHeader(vnet.DATA_VALID).emit(), to_finish.emit()))


_ORDINARY: Final = _ordinary(ipv4.HEADER_BYTES)
_ORDINARY6: Final = _ordinary(ipv6.HEADER_BYTES)


class Stack:
    """One host."""

    def __init__(
        self,
        link: Link,
        config: HostConfig,
        *,
        random: Random,
        counters: Counters,
        congestion: str = "cubic",
    ) -> None:
        self.config = config
        self.counters = counters
        self._mac = config.mac
        self._link = link
        self._timers = Timers()
        self.ip = Internet(
            link,
            config,
            self._datagram_arrives,
            self._error_arrives,
            self._address_removed,
            timers=self._timers,
            random=random,
            counters=counters,
        )
        self.udp = Udp(self.ip.path_to, self.ip.port_unreachable, counters)
        window = TCP_RECEIVE_BYTES if link.vnet else min(TCP_RECEIVE_BYTES, TCP_PLAIN_RECEIVE_BYTES)
        self.tcp = Tcp(
            self._timers,
            random,
            counters,
            self.ip.path_to,
            receive_bytes=window,
            congestion=congestion,
            learn_mtu=self.ip.learn_mtu,
        )
        self.flush: Callable[[Instant], None] = self.tcp.flush
        """Send what TCP has made ready."""
        self.ip.paths.resized = self.tcp.link_changed
        self.ip.when_unreachable(self.tcp.unreachable)
        self._connections = self.tcp.connections
        lanes = {
            (True, False): self._receive_vnet,
            (False, False): self._receive_plain,
            (True, True): self._receive_both_vnet,
            (False, True): self._receive_both_plain,
        }
        self.receive: Callable[[bytes, Instant], None] = lanes[link.vnet, self.ip.speaks_ipv6]
        """One frame in. Never raises for what a peer sent. Output of TCP may wait for `flush`."""

    # --- time -------------------------------------------------------------------------

    def start(self, now: Instant) -> None:
        """Claim our addresses. Everything is answered from now on."""
        self.ip.start(now)

    def expire(self, now: Instant) -> None:
        """Run what is due."""
        self._timers.expire(now)

    def close(self, now: Instant) -> None:
        """Take no new connections, and close those that there are, in order."""
        for listener in list(self.tcp.listeners.values()):
            listener.close()
        for connection in list(self.tcp.connections.values()):
            connection.close()
        self.flush(now)

    def reset_connections(self, address: bytes, now: Instant) -> None:
        """Say to all who are connected to one of our addresses that this is over."""
        for connection in list(self.tcp.connections.values()):
            if connection.local_address == address:
                connection.abort()
        self.flush(now)

    @property
    def timers(self) -> Timers:
        """For protocols above that have deadlines of their own."""
        return self._timers

    @property
    def is_quiet(self) -> bool:
        """True: no connection has anything left to say."""
        return all(c.state is State.TIME_WAIT for c in self.tcp.connections.values())

    @property
    def next_deadline(self) -> Instant | None:
        """Nothing is due before; may be in the past, for something that has just come up."""
        return self._timers.next_deadline

    # --- the express lane ---------------------------------------------------------------

    def _receive_vnet(self, frame: bytes, now: Instant) -> None:
        size = len(frame)
        if size >= _IP_AT_VNET + _PACKET_BYTES_MIN:
            (
                vnet_flags,
                mac,
                kind,
                total_bytes,
                fragment_protocol,
                key,
                seq,
                ack,
                offset_flags,
                window,
            ) = _unpack_express_vnet(frame)
            connection = self._connections.get(key)
            if (
                kind & _ALL_BUT_SERVICE == _PLAIN_IPV4
                and fragment_protocol & _WHOLE_MASK == PROTOCOL_TCP
                and mac == self._mac
            ):
                at = _TCP_AT_VNET
                end = _IP_AT_VNET + total_bytes
                if end <= size <= end + _PADDING_MAX and (
                    vnet_flags & CHECKSUM_GOOD or is_sound(frame, _IP_AT_VNET, end)
                ):
                    if connection is not None and connection.express(
                        seq, ack, offset_flags, window, frame, at, end, now
                    ):
                        if kind & CE == CE:
                            marked(connection)
                        return
                    if (
                        total_bytes >= _PACKET_BYTES_MIN
                        and frame[:_ETHERNET_AT_VNET] in _ORDINARY
                        and has_sound_header(frame, _IP_AT_VNET)
                        and self._segment_arrives(
                            connection, key, frame, _ETHERNET_AT_VNET, at, end, now, kind & CE
                        )
                    ):
                        return
        self._take(frame, now)

    def _receive_plain(self, frame: bytes, now: Instant) -> None:
        size = len(frame)
        if size >= _IP_AT + _PACKET_BYTES_MIN:
            (
                mac,
                kind,
                total_bytes,
                fragment_protocol,
                key,
                seq,
                ack,
                offset_flags,
                window,
            ) = _unpack_express(frame)
            connection = self._connections.get(key)
            if (
                kind & _ALL_BUT_SERVICE == _PLAIN_IPV4
                and fragment_protocol & _WHOLE_MASK == PROTOCOL_TCP
                and mac == self._mac
            ):
                at = _TCP_AT
                end = _IP_AT + total_bytes
                if end <= size <= end + _PADDING_MAX and is_sound(frame, _IP_AT, end):
                    if connection is not None and connection.express(
                        seq, ack, offset_flags, window, frame, at, end, now
                    ):
                        if kind & CE == CE:
                            marked(connection)
                        return
                    if total_bytes >= _PACKET_BYTES_MIN and self._segment_arrives(
                        connection, key, frame, 0, at, end, now, kind & CE
                    ):
                        return
        self._take(frame, now)

    def _receive_both_vnet(self, frame: bytes, now: Instant) -> None:
        """Of a host that speaks IPv6 as well."""
        size = len(frame)
        if size <= _IP_AT_VNET or frame[_IP_AT_VNET - 2] != _TYPE6:
            self._receive_vnet(frame, now)
            return
        if size >= _IP_AT_VNET + ipv6.HEADER_BYTES + _SEGMENT_BYTES_MIN:
            (
                vnet_flags,
                mac,
                kind,
                payload_bytes,
                next_header,
                key,
                seq,
                ack,
                offset_flags,
                window,
            ) = _unpack_express6_vnet(frame)
            connection = self._connections.get(key)
            if (
                next_header == PROTOCOL_TCP
                and kind & _VERSION == _PLAIN_IPV6
                and mac == self._mac
                and payload_bytes >= _SEGMENT_BYTES_MIN
            ):
                at = _IP_AT_VNET + ipv6.HEADER_BYTES
                end = at + payload_bytes
                if end <= size <= end + _PADDING_MAX and (
                    vnet_flags & CHECKSUM_GOOD or is_sound6(frame, at, end)
                ):
                    if connection is not None and connection.express(
                        seq, ack, offset_flags, window, frame, at, end, now
                    ):
                        if kind & _CE6 == _CE6:
                            marked(connection)
                        return
                    if frame[:_ETHERNET_AT_VNET] in _ORDINARY6 and self._segment_arrives(
                        connection, key, frame, _ETHERNET_AT_VNET, at, end, now, kind >> 4 & CE
                    ):
                        return
        self._take(frame, now)

    def _receive_both_plain(self, frame: bytes, now: Instant) -> None:
        """Of a host that speaks IPv6 as well."""
        size = len(frame)
        if size <= _IP_AT or frame[_IP_AT - 2] != _TYPE6:
            self._receive_plain(frame, now)
            return
        if size >= _IP_AT + ipv6.HEADER_BYTES + _SEGMENT_BYTES_MIN:
            (
                mac,
                kind,
                payload_bytes,
                next_header,
                key,
                seq,
                ack,
                offset_flags,
                window,
            ) = _unpack_express6(frame)
            connection = self._connections.get(key)
            if (
                next_header == PROTOCOL_TCP
                and kind & _VERSION == _PLAIN_IPV6
                and mac == self._mac
                and payload_bytes >= _SEGMENT_BYTES_MIN
            ):
                at = _IP_AT + ipv6.HEADER_BYTES
                end = at + payload_bytes
                if end <= size <= end + _PADDING_MAX and is_sound6(frame, at, end):
                    if connection is not None and connection.express(
                        seq, ack, offset_flags, window, frame, at, end, now
                    ):
                        if kind & _CE6 == _CE6:
                            marked(connection)
                        return
                    if self._segment_arrives(
                        connection, key, frame, 0, at, end, now, kind >> 4 & CE
                    ):
                        return
        self._take(frame, now)

    # --- the short way ------------------------------------------------------------------

    def _segment_arrives(
        self,
        connection: Connection | None,
        key: bytes,
        frame: bytes,
        ethernet_at: int,
        at: int,
        end: int,
        now: Instant,
        ecn: int,
    ) -> bool:
        """The segment frame[at:end], of a connection or of none, whose checksum is good. False: not
        one host has sent it to us; the long way says what it is."""
        sender = frame[ethernet_at + ethernet.ADDRESS_BYTES : ethernet_at + _TYPE_AT]
        if ethernet.is_group(sender) or sender == self._mac:
            return False
        if connection is not None:
            self.tcp.segment_of(connection, frame, at, end, now, ecn)
            return True
        size = len(key) // 2 - _PORT_BYTES
        source, destination = key[:size], key[size : 2 * size]
        if not self.ip.is_from_host(source, destination):
            return False
        self.tcp.arrives(source, destination, frame, at, end, True, now, ecn)
        return True

    # --- the long way -------------------------------------------------------------------

    def _take(self, frame: bytes, now: Instant) -> None:
        try:
            offload = VnetHeader.parse(frame) if self._link.vnet else VnetHeader()
            at = vnet.HEADER_BYTES if self._link.vnet else 0
            self.ip.frame_arrives(frame, at, offload, now)
        except BadPacket as bad:
            self.counters[bad.reason] += 1

    def _datagram_arrives(self, datagram: Datagram, now: Instant) -> None:
        if datagram.protocol == PROTOCOL_UDP:
            self.udp.arrives(datagram, now)
        else:
            self.tcp.arrives(
                datagram.source,
                datagram.destination,
                datagram.packet,
                datagram.start,
                datagram.end,
                datagram.checksum_good,
                now,
                datagram.traffic_class & CE,
            )

    def _error_arrives(self, error: IcmpError, now: Instant) -> None:
        """An ICMP error about a packet that we seem to have sent."""
        local, remote, quoted = error.source, error.destination, error.transport
        if error.protocol == PROTOCOL_UDP:
            self._datagram_error_arrives(error, now)
            return
        if error.protocol != PROTOCOL_TCP:
            raise BadPacket("icmp.ignored")
        if error.next_hop_mtu:
            self.tcp.packet_too_big(local, remote, quoted, error.next_hop_mtu, now)
        else:
            self.tcp.icmp_error(local, remote, quoted, error.reason, error.is_hard)

    def _datagram_error_arrives(self, error: IcmpError, now: Instant) -> None:
        """One that was too large is no failure but in IPv6, where only we can cut the next one."""
        is_ipv6 = len(error.destination) == IPV6_BYTES
        if not (is_ipv6 and error.next_hop_mtu):
            self.udp.icmp_error(error)
        elif not self.udp.may_have_sent(error.transport):
            raise BadPacket("udp.icmp_not_ours")
        elif self.ip.learn_mtu(error.destination, error.next_hop_mtu, now):
            self.tcp.path_changed(error.destination)

    def _address_removed(self, address: bytes) -> None:
        """What cannot be answered from this address any more is over; nothing is sent about it."""
        for connection in list(self.tcp.connections.values()):
            if connection.local_address == address:
                connection.end(ADDRESS_GONE)


def is_sound(frame: bytes, at: int, end: int) -> bool:
    """Both checksums of a TCP packet without IP options are right. `at`: of the IP header.

    The addresses stand just before the TCP header, so one run of bytes is nearly the pseudo-header
    and the segment; only protocol and length have to be added.
    """
    swapped = end - at - ipv4.HEADER_BYTES + PROTOCOL_TCP
    swapped = (swapped & 0xFF) << 8 | swapped >> 8
    return has_sound_header(frame, at) and not remainder(
        int.from_bytes(frame[at + 12 : end], "little") + swapped
    )


def has_sound_header(frame: bytes, at: int) -> bool:
    """The checksum of an IPv4 header without options is right."""
    return not int.from_bytes(frame[at : at + ipv4.HEADER_BYTES], "little") % 0xFFFF


def is_sound6(frame: bytes, at: int, end: int) -> bool:
    """The same of a TCP packet of IPv6, which has one checksum. `at`: of the TCP header."""
    swapped = end - at + PROTOCOL_TCP
    swapped = (swapped & 0xFF) << 8 | swapped >> 8
    return not remainder(int.from_bytes(frame[at - 32 : end], "little") + swapped)
