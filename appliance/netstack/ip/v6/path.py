"""An IPv6 path (RFC 8200): the headers of all packets to one destination, made once.

As in v4/path.py; only the packet's length and the bits of ECN differ between two packets of TCP,
and there is no checksum. Only the sender cuts a datagram into fragments (section 4.5), so what is
larger than the path's MTU is cut here, also where the link could do it for IPv4.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from appliance.netstack.ip.link_path import (
    TCP_HEADER_BYTES_MAX,
    Buffer,
    LinkPath,
    cut,
)
from appliance.netstack.ip.path import NOT_ECT
from appliance.netstack.link.interface import Link
from appliance.netstack.wire import ethernet, ipv6, udp, vnet
from appliance.netstack.wire.checksum import word_sum_of
from appliance.netstack.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP
from appliance.netstack.wire.ipv6 import FragmentHeader, Ipv6Header
from appliance.netstack.wire.tcp import CWR, FLAGS_AT
from appliance.trace import Counters

_VERSION_TO_LENGTH: Final = Struct("!HHH").pack_into
_VERSION: Final = 0x6000
"""Version, traffic class and the flow label (zero); the payload's length."""

_PACKET_BYTES_MAX: Final = 65535
"""Of a super-frame, header included: what one read of the other side takes."""


class Ipv6Path(LinkPath):
    """From one of our addresses to one destination (path.py says what the attributes mean)."""

    __slots__ = ("_hop_limit", "_identification")

    mtu_min = ipv6.MTU_MIN
    _tcp_gso = vnet.GSO_TCPV6

    def __init__(
        self,
        link: Link,
        our_mac: bytes,
        source: bytes,
        destination: bytes,
        mtu: int,
        hop_limit: int,
        identification: int,
        counters: Counters,
    ) -> None:
        super().__init__(link, source, destination, mtu, counters)
        self.header_bytes = ipv6.HEADER_BYTES
        if link.vnet:
            self.segment_bytes_max = _PACKET_BYTES_MAX - ipv6.HEADER_BYTES - TCP_HEADER_BYTES_MAX
        self._hop_limit = hop_limit
        self._identification = identification
        header = Ipv6Header(source, destination, PROTOCOL_TCP, 0, hop_limit)
        self._make_templates(our_mac, ethernet.TYPE_IPV6, header.emit())

    def send_tcp(
        self,
        header: Buffer,
        text: Sequence[Buffer],
        text_bytes: int,
        mss: int,
        traffic_class: int = NOT_ECT,
    ) -> None:
        """Send one TCP packet (path.py)."""
        header_bytes = len(header)
        if text_bytes > mss:
            template = self._many
            shape = header_bytes, mss, traffic_class and header[FLAGS_AT] & CWR
            if self._many_is_for != shape:
                self._cut_into(shape)
        else:
            template = self._one
        first = _VERSION | traffic_class << 4
        _VERSION_TO_LENGTH(template, self._ip_at, first, 0, header_bytes + text_bytes)
        self.used = True
        if not self._transmit((template, header, *text)):
            self._counters["link.refused"] += 1

    # --- everything else --------------------------------------------------------------

    def send_udp(self, header: bytes, data: Sequence[Buffer], data_bytes: int) -> bool:
        """Send one datagram over a link that finishes checksums (path.py): of one that has to be
        cut, it is finished here."""
        length = udp.HEADER_BYTES + data_bytes
        payload = [header, *data]
        if not self._fits(length):
            finished = 0xFFFF - word_sum_of(payload) or 0xFFFF
            payload[0] = header[: udp.CHECKSUM_OFFSET] + finished.to_bytes(2, "big")
            return self._send_fragments(PROTOCOL_UDP, payload, length)
        before = ethernet.HEADER_BYTES + ipv6.HEADER_BYTES
        offload = vnet.VnetHeader(
            vnet.NEEDS_CSUM, csum_start=before, csum_offset=udp.CHECKSUM_OFFSET
        )
        return self._send_whole(PROTOCOL_UDP, payload, length, offload)

    def send(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        """Send one datagram, in fragments where it does not fit in one packet (path.py)."""
        if self._fits(payload_bytes):
            return self._send_whole(protocol, payload, payload_bytes, None)
        return self._send_fragments(protocol, payload, payload_bytes)

    def _fits(self, payload_bytes: int) -> bool:
        return ipv6.HEADER_BYTES + payload_bytes <= self.mtu

    def _send_whole(
        self,
        next_header: int,
        payload: Sequence[Buffer],
        payload_bytes: int,
        offload: vnet.VnetHeader | None,
    ) -> bool:
        header = Ipv6Header(
            self.source, self.destination, next_header, payload_bytes, self._hop_limit
        )
        return self._send_packet(header.emit(), payload, offload)

    def _send_fragments(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        assert payload_bytes <= ipv6.PAYLOAD_BYTES_MAX
        self._identification = self._identification + 1 & 0xFFFF_FFFF
        room = self.mtu - ipv6.HEADER_BYTES - ipv6.FRAGMENT_HEADER_BYTES
        offset = 0
        for piece in cut(payload, room // ipv6.FRAGMENT_UNIT * ipv6.FRAGMENT_UNIT):
            piece_bytes = sum(map(len, piece))
            more = offset + piece_bytes < payload_bytes
            front = FragmentHeader(protocol, offset, more, self._identification).emit()
            if not self._send_whole(ipv6.FRAGMENT, [front, *piece], len(front) + piece_bytes, None):
                return False  # without one fragment the others are of no use
            offset += piece_bytes
        return True
