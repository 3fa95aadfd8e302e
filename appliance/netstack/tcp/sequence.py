"""Sequence numbers: the one place where they wrap.

On the wire a number is taken modulo 2**32 (RFC 9293 section 3.4). At the door `unwrap` makes of it
the plain integer that is nearest to one we know, and from there on the RFC's
"SND.UNA < SEG.ACK =< SND.NXT" is written `una < seg.ack <= nxt`. On the way out it is masked.
"""

from __future__ import annotations

from typing import Final

WRAP: Final = 1 << 32
MASK: Final = WRAP - 1
HALF: Final = WRAP >> 1


def unwrap(wire: int, near: int) -> int:
    """The number nearest to `near` that is `wire` modulo 2**32."""
    return near + ((wire - near + HALF) & MASK) - HALF


def is_before(stamp: int, other: int) -> bool:
    """Of two timestamps as on the wire: is the first older? (RFC 7323 section 5.2)"""
    return (stamp - other) & MASK >= HALF
