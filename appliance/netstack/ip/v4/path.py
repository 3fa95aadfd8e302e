"""An IPv4 path: the headers of all packets to one destination, made once.

Everything in front of a TCP header (virtio-net, Ethernet and IPv4 header) differs between two
packets to the same destination only in the IP packet's length, its checksum, the bits of ECN, and
what the link is to do about segmentation. So it stands ready in a buffer, and a packet costs one
`pack_into`, or nothing where the packet before it was as large: acknowledgements are, and most
calls and replies of one kind. The IP checksum is the precomputed sum of all the rest, plus length
and bits (RFC 1624 by other means).

TCP's packets have DF set, and then their identification may be anything (RFC 6864 section 4.1): it
is zero. Packets that may be fragmented count theirs up, from a random start for each path.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from appliance.limits import PATH_MTU_MIN
from appliance.netstack.ip.link_path import (
    TCP_HEADER_BYTES_MAX,
    Buffer,
    LinkPath,
    cut,
)
from appliance.netstack.ip.path import NOT_ECT
from appliance.netstack.link.interface import Link
from appliance.netstack.wire import ethernet, ipv4, udp, vnet
from appliance.netstack.wire.checksum import word_sum
from appliance.netstack.wire.ipv4 import FRAGMENT_UNIT, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from appliance.netstack.wire.tcp import CWR, FLAGS_AT
from appliance.trace import Counters

_SERVICE_TO_CHECKSUM: Final = Struct("!BH6sH").pack_into
_IP_SERVICE_AT: Final = 1
_HEADER_BYTES: Final = ipv4.HEADER_BYTES


class Ipv4Path(LinkPath):
    """From one of our addresses to one destination (path.py says what the attributes mean)."""

    __slots__ = (
        "_after_length", "_fixed_sum", "_identification", "_one_bytes", "_one_class", "_ttl",
    )  # fmt: skip

    mtu_min = PATH_MTU_MIN
    _tcp_gso = vnet.GSO_TCPV4

    def __init__(
        self,
        link: Link,
        our_mac: bytes,
        source: bytes,
        destination: bytes,
        mtu: int,
        ttl: int,
        identification: int,
        counters: Counters,
    ) -> None:
        super().__init__(link, source, destination, mtu, counters)
        self.header_bytes = ipv4.HEADER_BYTES
        if link.vnet:
            self.segment_bytes_max = (
                ipv4.PACKET_BYTES_MAX - ipv4.HEADER_BYTES - TCP_HEADER_BYTES_MAX
            )
        self._identification = identification
        self._ttl = ttl
        header = Ipv4Header(source, destination, PROTOCOL_TCP, 0, dont_fragment=True, ttl=ttl)
        packet = header.emit()
        self._after_length = packet[4:10]
        """Identification, DF, time to live, protocol: what is between length and checksum."""
        self._fixed_sum = word_sum(packet[:10] + packet[12:])
        self._make_templates(our_mac, ethernet.TYPE_IPV4, packet)
        self._one_bytes = self._one_class = 0  # what `_one` is filled in for: often the next, too

    # --- TCP --------------------------------------------------------------------------

    def send_tcp(
        self,
        header: Buffer,
        text: Sequence[Buffer],
        text_bytes: int,
        mss: int,
        traffic_class: int = NOT_ECT,
    ) -> None:
        """Send one TCP packet (path.py)."""
        total_bytes = _HEADER_BYTES + len(header) + text_bytes
        if text_bytes > mss:
            template = self._many
            shape = len(header), mss, traffic_class and header[FLAGS_AT] & CWR
            if self._many_is_for != shape:
                self._cut_into(shape)
            self._fill(template, total_bytes, traffic_class)
        else:
            template = self._one
            if total_bytes != self._one_bytes or traffic_class != self._one_class:
                self._fill(template, total_bytes, traffic_class)
                self._one_bytes, self._one_class = total_bytes, traffic_class
        self.used = True
        frame = (template, header, text[0]) if len(text) == 1 else (template, header, *text)
        if not self._transmit(frame):
            self._counters["link.refused"] += 1

    def _fill(self, template: bytearray, total_bytes: int, traffic_class: int) -> None:
        """Make it the header of a packet of this size and class."""
        _SERVICE_TO_CHECKSUM(
            template,
            self._ip_at + _IP_SERVICE_AT,
            traffic_class,
            total_bytes,
            self._after_length,
            -(self._fixed_sum + total_bytes + traffic_class)
            % 0xFFFF,  # checksum.py: why a remainder
        )

    # --- everything else --------------------------------------------------------------

    def send_udp(self, header: bytes, data: Sequence[Buffer], data_bytes: int) -> bool:
        """Send one datagram over a link that finishes checksums: there is the sum of the
        pseudo-header in the header's checksum field. The link also cuts it into fragments."""
        before = ethernet.HEADER_BYTES + ipv4.HEADER_BYTES
        offload = vnet.VnetHeader(
            vnet.NEEDS_CSUM, csum_start=before, csum_offset=udp.CHECKSUM_OFFSET
        )
        length = udp.HEADER_BYTES + data_bytes
        if not self._fits(length):
            offload.gso_type = vnet.GSO_UDP
            offload.gso_size = self._fragment_bytes_max
            offload.hdr_len = before + udp.HEADER_BYTES
        return self._send_whole(PROTOCOL_UDP, [header, *data], length, offload)

    def send(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        """Send one datagram, in fragments where it does not fit in one packet.

        False: the link did not take all of it.
        """
        if self._fits(payload_bytes):
            return self._send_whole(protocol, payload, payload_bytes, None)
        return self._send_fragments(protocol, payload, payload_bytes)

    def _fits(self, payload_bytes: int) -> bool:
        return ipv4.HEADER_BYTES + payload_bytes <= self.mtu

    @property
    def _fragment_bytes_max(self) -> int:
        return (self.mtu - ipv4.HEADER_BYTES) // FRAGMENT_UNIT * FRAGMENT_UNIT

    def _send_whole(
        self,
        protocol: int,
        payload: Sequence[Buffer],
        payload_bytes: int,
        offload: vnet.VnetHeader | None,
    ) -> bool:
        header = Ipv4Header(
            self.source,
            self.destination,
            protocol,
            ipv4.HEADER_BYTES + payload_bytes,
            self._next_identification(),
            ttl=self._ttl,
        )
        return self._send_packet(header.emit(), payload, offload)

    def _send_fragments(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        assert ipv4.HEADER_BYTES + payload_bytes <= ipv4.PACKET_BYTES_MAX
        identification = self._next_identification()
        offset = 0
        for piece in cut(payload, self._fragment_bytes_max):
            piece_bytes = sum(map(len, piece))
            header = Ipv4Header(
                self.source,
                self.destination,
                protocol,
                ipv4.HEADER_BYTES + piece_bytes,
                identification,
                more_fragments=offset + piece_bytes < payload_bytes,
                offset=offset,
                ttl=self._ttl,
            )
            if not self._send_packet(header.emit(), piece, None):
                return False  # without one fragment the others are of no use
            offset += piece_bytes
        return True

    def _next_identification(self) -> int:
        self._identification = (self._identification + 1) & 0xFFFF
        return self._identification
