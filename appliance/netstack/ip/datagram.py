"""What IP has taken for ours, whole, and hands to TCP, UDP or ICMP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Datagram:
    """One packet of either family, reassembled where it came in fragments."""

    source: bytes
    destination: bytes
    protocol: int
    """Of the transport header: behind the extension headers, in IPv6."""
    packet: bytes
    at: int
    """Where in `packet` the IP header begins: an ICMP error quotes from there."""
    start: int
    end: int
    """Transport header and data."""
    checksum_good: bool
    """The link has verified the transport checksum, or it was never on a wire."""
    to_group: bool
    """Sent to everybody, or to a group: no connection, and no error (RFC 1122 section 3.2.2)."""
    joined_bytes: int = 0
    """Where the link has joined UDP datagrams: the data of each; the last one may be shorter."""
    traffic_class: int = 0
    """Type of service in IPv4: DSCP and ECN."""
