"""What the paths of both families share: the way to the next hop, and the frame in front of it.

A path does not ask, for each packet, whether its next hop has been resolved: `_transmit` is the
link's `send` while the address is known, and puts packets in the neighbour's queue while it is not.
The headers in front of a TCP header stand ready in two buffers, one for a packet that is a segment
and one for a packet that the link cuts up; both begin with what the link wants there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from appliance.netstack.ip.path import NOT_ECT
from appliance.netstack.link.interface import Link
from appliance.netstack.wire import ethernet, vnet
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.checksum import fold, word_sum
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

TCP_HEADER_BYTES_MAX = 60
TCP_CHECKSUM_OFFSET = 16


class NextHop(Protocol):
    """What a path wants of its neighbour."""

    def wait(self, frame: bytearray) -> bool:
        """Send the frame, whose Ethernet destination is still to be filled in, when the neighbour
        has been resolved."""

    def wanted(self) -> None:
        """A packet goes to the neighbour, of whom it is not known whether he is still there."""

    def leave(self, path: LinkPath) -> None:
        """The path leads over somebody else now."""


class LinkPath(ABC):
    """From one of our addresses to one destination (path.py says what the attributes mean)."""

    __slots__ = (
        "__weakref__",
        "_counters",
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

    mtu_min: int
    """No router may talk us into smaller packets."""
    _tcp_gso: int
    """How the link is told to cut a TCP packet of this family up."""

    def __init__(
        self, link: Link, source: bytes, destination: bytes, mtu: int, counters: Counters
    ) -> None:
        self.source = source
        self.destination = destination
        self.mtu = mtu
        self.checksum_offload = link.vnet
        self.segment_bytes_max = 0
        self.header_bytes = 0
        self.pseudo_sum = fold(word_sum(source) + word_sum(destination))
        self.used = False  # since the neighbour last looked
        self._link = link
        self._counters = counters
        self._next_hop: NextHop | None = None
        self._transmit: Callable[[Sequence[Buffer]], bool] = self._nowhere

    def _make_templates(self, our_mac: bytes, ethertype: int, packet: bytes) -> None:
        """`packet`: the IP header of a TCP packet."""
        frame = ethernet.EthernetHeader(bytes(6), our_mac, ethertype).emit() + packet
        if self._link.vnet:
            frame = self._vnet_tcp().emit() + frame
        self._one = bytearray(frame)
        self._many = bytearray(frame)
        self._many_is_for = (0, 0, 0)
        self._ip_at = len(frame) - len(packet)

    def _vnet_tcp(self, header_bytes: int = 0, mss: int = 0, cwr: int = 0) -> vnet.VnetHeader:
        """What the link is to do with a TCP packet: with `mss`, cut it up; with `cwr`, keep CWR on
        the first segment alone."""
        before = ethernet.HEADER_BYTES + self.header_bytes
        kind = self._tcp_gso | vnet.GSO_ECN if cwr else self._tcp_gso
        return vnet.VnetHeader(
            vnet.NEEDS_CSUM,
            kind if mss else vnet.GSO_NONE,
            before + header_bytes if mss else 0,
            mss,
            before,
            TCP_CHECKSUM_OFFSET,
        )

    @abstractmethod
    def send_tcp(
        self,
        header: Buffer,
        text: Sequence[Buffer],
        text_bytes: int,
        mss: int,
        traffic_class: int = NOT_ECT,
    ) -> None:
        """Send one TCP packet (path.py)."""

    @abstractmethod
    def send_udp(self, header: bytes, data: Sequence[Buffer], data_bytes: int) -> bool:
        """Send one datagram whose checksum the link finishes (path.py)."""

    @abstractmethod
    def send(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        """Send one datagram (path.py)."""

    # --- the next hop -----------------------------------------------------------------

    def lead_over(self, next_hop: NextHop) -> None:
        """Packets go to this neighbour; until `resolved` they wait there."""
        self._let_go()
        self._next_hop = next_hop
        self._transmit = self._wait

    @property
    def leads_nowhere(self) -> bool:
        """The destination cannot be reached."""
        return self._transmit == self._nowhere

    def lead_nowhere(self) -> None:
        """The destination cannot be reached: what is sent is counted, and lost."""
        self._let_go()
        self._transmit = self._nowhere

    def _let_go(self) -> None:
        if self._next_hop is not None:
            self._next_hop.leave(self)
            self._next_hop = None

    def resolved(self, mac: bytes) -> None:
        """The neighbour is at this address: packets go out at once."""
        at = self._ip_at - ethernet.HEADER_BYTES
        self._one[at : at + 6] = mac
        self._many[at : at + 6] = mac
        self._transmit = self._link.send

    def doubtful(self) -> None:
        """The neighbour was there, but that is long ago: it wants to know of the next packet."""
        self._transmit = self._announce

    def unresolved(self) -> None:
        """The neighbour's address is not known any more: packets wait there."""
        self._transmit = self._wait

    def _wait(self, buffers: Sequence[Buffer]) -> bool:
        assert self._next_hop is not None
        return self._next_hop.wait(bytearray().join(buffers))

    def _announce(self, buffers: Sequence[Buffer]) -> bool:
        assert self._next_hop is not None
        self._transmit = self._link.send
        self._next_hop.wanted()
        return self._link.send(buffers)

    def _nowhere(self, _buffers: Sequence[Buffer]) -> bool:
        self._counters["ip.no_route"] += 1
        return True  # counted once is enough

    def learn_mtu(self, mtu: int) -> bool:
        """A router on the way lets no larger packets pass (RFC 1191, RFC 8201). True: that is news.

        Whoever calls has made sure that the message is about a packet of ours.
        """
        mtu = max(mtu, self.mtu_min)
        if mtu >= self.mtu:
            return False
        self.mtu = mtu
        return True

    def _cut_into(self, shape: tuple[int, int, int]) -> None:
        """For packets with so many bytes of header and of text in a segment, and CWR or not: that
        is for the first segment alone, so the link has to know."""
        assert self.segment_bytes_max, "the link cannot cut a packet up"
        self._many_is_for = shape
        self._many[: vnet.HEADER_BYTES] = self._vnet_tcp(*shape).emit()

    def _send_packet(
        self, header: bytes, payload: Sequence[Buffer], offload: vnet.VnetHeader | None
    ) -> bool:
        """Send one packet with this IP header. False: the link did not take it."""
        frame = self._one[: self._ip_at]
        if self._link.vnet:
            frame[: vnet.HEADER_BYTES] = vnet.NOTHING if offload is None else offload.emit()
        self.used = True
        sent = self._transmit((frame, header, *payload))
        if not sent:
            self._counters["link.refused"] += 1
        return sent

    def __str__(self) -> str:
        return f"path to {address_text(self.destination)} mtu={self.mtu}"


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
