"""The way to one destination: how a transport protocol hands its packets down.

A transport keeps the path of a connection, and asks nothing else of IP. Everything about addresses
and the next hop is behind `send`; a packet whose next hop is being resolved is queued there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Path(Protocol):
    """From one of our addresses to one destination."""

    source: bytes
    destination: bytes
    """Addresses as on the wire (4 bytes; later 16)."""

    header_bytes: int
    """What the network layer puts in front of a payload: 20 (IPv4 without options)."""

    mtu: int
    """The largest packet, network header included, that fits in one frame on this path."""

    checksum_offload: bool
    """True: the link computes the transport checksum. The transport then puts the sum of the
    pseudo-header, folded but not complemented, in its checksum field."""

    segment_bytes_max: int
    """The most payload of one TCP packet that the link cuts into segments for us (0: it cannot)."""

    pseudo_sum: int
    """Sum of the 16-bit words of both addresses, for the pseudo-header (RFC 9293 section 3.1)."""

    def send_tcp(self, header: Buffer, text: Sequence[Buffer], text_bytes: int, mss: int) -> None:
        """Send one TCP packet: header with options, then the text in pieces.

        `text_bytes` is the sum of the pieces; where it is more than `mss`, the link is asked to
        cut the packet into segments of `mss` bytes of text. All buffers may change afterwards.
        """
