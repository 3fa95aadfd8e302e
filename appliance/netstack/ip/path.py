"""The way to one destination: how a transport protocol hands its packets down.

A transport keeps the path of a connection, and asks nothing else of IP. Everything about addresses
and the next hop is behind `send`; a packet whose next hop is being resolved is queued there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

Buffer = bytes | bytearray | memoryview

NOT_ECT: Final = 0
ECT_0: Final = 2
CE: Final = 3
"""The last two bits of the type of service or traffic class (RFC 3168 section 5): not capable of
ECN, capable, and marked by a router whose queue grows."""


class Path(Protocol):
    """From one of our addresses to one destination, both of one family."""

    source: bytes
    destination: bytes
    """Addresses as on the wire: 4 bytes or 16."""

    header_bytes: int
    """What the network layer puts in front of a payload: 20 (IPv4 without options) or 40 (IPv6)."""

    mtu: int
    """The largest packet, network header included, that fits in one frame on this path."""

    mtu_min: int
    """Nobody may talk us into smaller packets than these."""

    checksum_offload: bool
    """True: the link computes the transport checksum. The transport then puts the sum of the
    pseudo-header, folded but not complemented, in its checksum field."""

    segment_bytes_max: int
    """The most payload of one TCP packet that the link cuts into segments for us (0: it cannot)."""

    pseudo_sum: int
    """Sum of the 16-bit words of both addresses, for the pseudo-header (RFC 9293 section 3.1)."""

    def send_tcp(
        self,
        header: Buffer,
        text: Sequence[Buffer],
        text_bytes: int,
        mss: int,
        traffic_class: int = NOT_ECT,
    ) -> None:
        """Send one TCP packet: header with options, then the text in pieces.

        `text_bytes` is the sum of the pieces; where it is more than `mss`, the link is asked to
        cut the packet into segments of `mss` bytes of text. `traffic_class`
        (type of service, in IPv4) goes into the IP header: DSCP and ECN. All buffers may change
        afterwards.
        """


class DatagramPath(Path, Protocol):
    """The same, for whoever sends datagrams that may be cut into fragments."""

    def send_udp(self, header: bytes, data: Sequence[Buffer], data_bytes: int) -> bool:
        """Send one datagram over a link that finishes checksums: there is the sum of the
        pseudo-header in the header's checksum field. False: the link did not take it."""

    def send(self, protocol: int, payload: Sequence[Buffer], payload_bytes: int) -> bool:
        """Send one datagram, in fragments where it does not fit in one packet.

        False: the link did not take all of it.
        """


PathKind = TypeVar("PathKind", bound=Path, covariant=True)


class PathTo(Protocol[PathKind]):
    """How a transport gets a path to a destination."""

    def __call__(self, destination: bytes, source: bytes | None = None) -> PathKind:
        """The path from `source`, an address of ours; without one, from the best for this
        destination. To one that cannot be reached, the path swallows and counts what is sent."""
