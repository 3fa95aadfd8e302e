"""An IPv4 path: the headers of all packets to one destination, made once.

Everything in front of a TCP header (virtio-net, Ethernet and IPv4 header) differs between two
packets to the same destination only in the IP packet's length, its checksum, and what the link is
to do about segmentation. So it stands ready in a buffer, and a packet costs one `pack_into`. The
IP checksum is the precomputed sum of all the rest, plus the length (RFC 1624 by other means).

A path does not ask, for each packet, whether its next hop has been resolved: `_transmit` is the
link's `send` while the address is known, and puts packets in the neighbour's queue while it is not.

TCP's packets have DF set, and then their identification may be anything (RFC 6864 section 4.1): it
is zero. Packets that may be fragmented count theirs up, from a random start for each path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final, Protocol

from appliance.limits import PATH_MTU_MIN
from appliance.netstack.link.interface import Link
from appliance.netstack.wire import ethernet, ipv4, udp, vnet
from appliance.netstack.wire.checksum import fold, word_sum
from appliance.netstack.wire.ipv4 import FRAGMENT_UNIT, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

_TCP_HEADER_BYTES_MAX: Final = 60
_TCP_CHECKSUM_OFFSET: Final = 16
_IP_AFTER_LENGTH: Final = b"\x00\x00\x40\x00" + bytes((ipv4.TTL_DEFAULT, PROTOCOL_TCP))
"""Identification, DF, time to live, protocol: what stands between the length and the checksum."""

_LENGTH_TO_CHECKSUM: Final = Struct("!H6sH").pack_into
_IP_LENGTH_AT: Final = 2


class NextHop(Protocol):
    """What a path wants of its neighbour."""

    def wait(self, frame: bytearray) -> bool:
        """Send the frame, whose Ethernet destination is still to be filled in, when the neighbour
        has been resolved."""


class Ipv4Path:
    """From our address to one destination (path.py says what the attributes mean)."""

    __slots__ = (
        "__weakref__",
        "_counters",
        "_fixed_sum",
        "_identification",
        "_ip_at",
        "_link",
        "_many",
        "_many_is_for",
        "_next_hop",
        "_one",
        "_transmit",
        "checksum_offload",
        "destination",
        "header_bytes",
        "mtu",
        "pseudo_sum",
        "segment_bytes_max",
        "source",
        "used",
    )

    def __init__(
        self,
        link: Link,
        our_mac: bytes,
        source: bytes,
        destination: bytes,
        mtu: int,
        identification: int,
        counters: Counters,
    ) -> None:
        self.source = source
        self.destination = destination
        self.header_bytes = ipv4.HEADER_BYTES
        self.mtu = mtu
        self.checksum_offload = link.vnet
        self.segment_bytes_max = 0
        if link.vnet:
            self.segment_bytes_max = (
                ipv4.PACKET_BYTES_MAX - ipv4.HEADER_BYTES - _TCP_HEADER_BYTES_MAX
            )
        self.pseudo_sum = fold(word_sum(source) + word_sum(destination))
        self.used = False  # since the neighbour last looked
        self._link = link
        self._counters = counters
        self._identification = identification
        self._next_hop: NextHop | None = None
        self._transmit: Callable[[Sequence[Buffer]], bool] = self._nowhere
        self._make_templates(our_mac)

    def _make_templates(self, our_mac: bytes) -> None:
        """One for a packet that is a segment, one for a packet that the link cuts up."""
        header = Ipv4Header(self.source, self.destination, PROTOCOL_TCP, 0, dont_fragment=True)
        packet = header.emit()
        self._fixed_sum = word_sum(packet[:10] + packet[12:])
        frame = ethernet.EthernetHeader(bytes(6), our_mac, ethernet.TYPE_IPV4).emit() + packet
        if self._link.vnet:
            frame = self._vnet_tcp().emit() + frame
        self._one = bytearray(frame)
        self._many = bytearray(frame)
        self._many_is_for = (0, 0)
        self._ip_at = len(frame) - ipv4.HEADER_BYTES

    @staticmethod
    def _vnet_tcp(header_bytes: int = 0, mss: int = 0) -> vnet.VnetHeader:
        before = ethernet.HEADER_BYTES + ipv4.HEADER_BYTES
        return vnet.VnetHeader(
            vnet.NEEDS_CSUM,
            vnet.GSO_TCPV4 if mss else vnet.GSO_NONE,
            before + header_bytes if mss else 0,
            mss,
            before,
            _TCP_CHECKSUM_OFFSET,
        )

    # --- the next hop -----------------------------------------------------------------

    def lead_over(self, next_hop: NextHop) -> None:
        """Packets go to this neighbour; until `resolved` they wait there."""
        self._next_hop = next_hop
        self._transmit = self._wait

    def resolved(self, mac: bytes) -> None:
        """The neighbour is at this address: packets go out at once."""
        at = self._ip_at - ethernet.HEADER_BYTES
        self._one[at : at + 6] = mac
        self._many[at : at + 6] = mac
        self._transmit = self._link.send

    def unresolved(self) -> None:
        """The neighbour's address is not known any more: packets wait there."""
        self._transmit = self._wait

    def _wait(self, buffers: Sequence[Buffer]) -> bool:
        assert self._next_hop is not None
        return self._next_hop.wait(bytearray().join(buffers))

    def _nowhere(self, _buffers: Sequence[Buffer]) -> bool:
        self._counters["ip.no_route"] += 1
        return True  # counted once is enough

    def learn_mtu(self, mtu: int) -> bool:
        """A router on the way lets no larger packets pass (RFC 1191). True: that is news.

        Whoever calls has made sure that the message is about a packet of ours.
        """
        mtu = max(mtu, PATH_MTU_MIN)
        if mtu >= self.mtu:
            return False
        self.mtu = mtu
        return True

    # --- TCP --------------------------------------------------------------------------

    def send_tcp(self, header: Buffer, text: Sequence[Buffer], text_bytes: int, mss: int) -> None:
        """Send one TCP packet (path.py)."""
        header_bytes = len(header)
        if text_bytes > mss:
            template = self._many
            if self._many_is_for != (header_bytes, mss):
                self._cut_into(header_bytes, mss)
        else:
            template = self._one
        total_bytes = ipv4.HEADER_BYTES + header_bytes + text_bytes
        _LENGTH_TO_CHECKSUM(
            template,
            self._ip_at + _IP_LENGTH_AT,
            total_bytes,
            _IP_AFTER_LENGTH,
            -(self._fixed_sum + total_bytes) % 0xFFFF,  # checksum.py: why a remainder
        )
        self.used = True
        if not self._transmit((template, header, *text)):
            self._counters["link.refused"] += 1

    def _cut_into(self, header_bytes: int, mss: int) -> None:
        assert self.segment_bytes_max, "the link cannot cut a packet up"
        self._many_is_for = (header_bytes, mss)
        self._many[: vnet.HEADER_BYTES] = self._vnet_tcp(header_bytes, mss).emit()

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
        )
        return self._send_packet(header, payload, offload)

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
            )
            if not self._send_packet(header, piece, None):
                return False  # without one fragment the others are of no use
            offset += piece_bytes
        return True

    def _send_packet(
        self, header: Ipv4Header, payload: Sequence[Buffer], offload: vnet.VnetHeader | None
    ) -> bool:
        frame = self._one[: self._ip_at]
        if self._link.vnet:
            frame[: vnet.HEADER_BYTES] = vnet.NOTHING if offload is None else offload.emit()
        self.used = True
        sent = self._transmit((frame, header.emit(), *payload))
        if not sent:
            self._counters["link.refused"] += 1
        return sent

    def _next_identification(self) -> int:
        self._identification = (self._identification + 1) & 0xFFFF
        return self._identification

    def __str__(self) -> str:
        return f"path to {ipv4.address_text(self.destination)} mtu={self.mtu}"


def cut(buffers: Sequence[Buffer], piece_bytes: int) -> Iterator[list[memoryview]]:
    """The joined buffers in pieces of `piece_bytes` (the last one may be shorter), without copying:
    each piece is a list of views."""
    piece: list[memoryview] = []
    room = piece_bytes
    for buffer in buffers:
        rest = memoryview(buffer)
        while len(rest) >= room:
            piece.append(rest[:room])
            yield piece
            rest = rest[room:]
            piece, room = [], piece_bytes
        if len(rest):
            piece.append(rest)
            room -= len(rest)
    if piece:
        yield piece
