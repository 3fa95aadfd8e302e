"""What an ICMP error of either family says about a packet that we seem to have sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class IcmpError:
    """Anybody can have made it up: who hears of it compares it with what was sent (RFC 5927)."""

    source: bytes
    """One of our addresses: where the packet came from."""
    destination: bytes
    """Where it went."""
    protocol: int
    transport: bytes
    """The beginning of its transport header, eight bytes or more: ports and, of TCP, the sequence
    number."""
    reason: str
    """In words."""
    is_hard: bool = False
    """It will not get better by trying again (RFC 1122 section 4.2.3.9, RFC 4443 section 3.1)."""
    next_hop_mtu: int = 0
    """The packet was too large: the largest that would have passed, as the router says or as must
    be guessed. 0: that was not the trouble."""
