"""SYN cookies (RFC 4987 section 3.6): a SYN that leaves nothing behind.

When a listener has too many half-open connections, it keeps no more of them. What it has to know of
a SYN, it puts into the first sequence number of its answer; the third segment of the handshake
brings it back, less one.

       31         30-28          27-24        23        22-0
    generation | MSS (table) | window scale | SACK | proof: 23 bits

The proof is a keyed hash of the connection, the peer's first number and the rest of the cookie. The
key is made from chance, used for one period, remembered for one more, and forgotten: so a cookie is
good for one to two periods, and a guess is right once in eight million times. Whether timestamps
are used needs no place: then the third segment has one (RFC 7323 section 3.2). ECN is not agreed to
with a cookie, and a SYN-ACK that gets lost is not repeated: the peer's SYN is.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from random import Random
from typing import Final

from appliance.clock import Instant
from appliance.limits import (
    TCP_MSS_DEFAULT,
    TCP_MSS_DEFAULT_IPV6,
    TCP_MSS_MIN,
    TCP_SYN_COOKIE_PERIOD,
)
from appliance.netstack.tcp.packet_size import default_mss
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.wire.tcp import SYN, Segment

_MSS: Final = (TCP_MSS_MIN, TCP_MSS_DEFAULT, TCP_MSS_DEFAULT_IPV6, 1300, 1400, 1440, 1460, 8960)
"""What a cookie can say; of others the next smaller one is used. The last ones: 1500 bytes in IPv6
and in IPv4, and jumbo frames."""

_NO_SCALE: Final = 15
_PROOF: Final = (1 << 23) - 1


class SynCookies:
    """The cookies of one host."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._keys = [b"", b""]  # of even and of odd periods; empty: none was given out
        self._period = -1

    def make(self, connection: bytes, syn: Segment, now: Instant) -> int:
        """The first sequence number of the answer to `syn`. `connection`: addresses and ports."""
        period = self._turn(now)
        if not self._keys[period & 1]:
            self._keys[period & 1] = self._random.randbytes(16)
        mss = max(bisect_right(_MSS, syn.mss or default_mss(connection)) - 1, 0)
        scale = _NO_SCALE if syn.window_scale is None else syn.window_scale
        said = (period & 1) << 31 | mss << 28 | scale << 24 | syn.sack_permitted << 23
        return said | self._proof(connection, syn.seq, said)

    def syn_of(self, connection: bytes, third: Segment, now: Instant) -> Segment | None:
        """The SYN that `third`, the third segment of a handshake, says was answered with a cookie.
        None: it was not, or too long ago."""
        self._turn(now)
        cookie, irs = third.ack - 1 & MASK, third.seq - 1 & MASK
        said = cookie & ~_PROOF
        if not self._keys[said >> 31] or cookie & _PROOF != self._proof(connection, irs, said):
            return None
        scale = said >> 24 & 15
        syn = Segment(third.source_port, third.destination_port, irs, 0, SYN, third.wnd)
        syn.mss = _MSS[said >> 28 & 7]
        syn.window_scale = None if scale == _NO_SCALE else scale
        syn.sack_permitted = bool(said & 1 << 23)
        syn.timestamp = third.timestamp
        return syn

    def _turn(self, now: Instant) -> int:
        """Which period is it? Forget what is older than the one before."""
        period = now // TCP_SYN_COOKIE_PERIOD
        if period != self._period:
            self._keys[period & 1] = b""
            if period != self._period + 1:
                self._keys[~period & 1] = b""
            self._period = period
        return period

    def _proof(self, connection: bytes, irs: int, said: int) -> int:
        text = connection + irs.to_bytes(4, "big") + said.to_bytes(4, "big")
        digest = blake2b(text, digest_size=4, key=self._keys[said >> 31], person=b"cookie").digest()
        return int.from_bytes(digest, "big") & _PROOF
