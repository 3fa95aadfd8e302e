"""How large packets may be: path-MTU discovery (RFC 1191, RFC 8201) as far as TCP is concerned, and
what to do where it does not work (RFC 2923).

A router says that a packet was too large. Anybody can say so. It is believed about a packet that is
in flight; but where segments of this size have been acknowledged before, not until the timer
expires, so that a forger has to stop the connection before he can make it slow (RFC 5927 section
7.2).

A router that drops large packets and says nothing is a black hole. When the timer expires again and
again for a full segment, segments become half as large, down to what every path has to take. It may
have been something else: so larger ones are tried again, soon at first, and after ten minutes
where it was always in vain (RFC 4821 section 7.7 has such a timer).

The path knows what routers said, for all connections to its destination; what one connection found
out about black holes is its own. Nothing depends on how a super-segment was cut: text is sent again
in segments of the size that counts then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import Instant
from appliance.limits import (
    PATH_MTU_LEARNT_FOR,
    TCP_BLACK_HOLE_RETRY_AFTER,
    TCP_BLACK_HOLE_TIMEOUTS,
    TCP_BLACK_HOLE_TIMEOUTS_PROVEN,
    TCP_BURST_BYTES,
    TCP_MSS_DEFAULT,
    TCP_MSS_DEFAULT_IPV6,
)
from appliance.netstack.timers import Timer
from appliance.netstack.wire.tcp import HEADER_BYTES

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

_IPV4_KEY_BYTES: Final = 12


class PacketSize:
    """What one connection knows about the size of its packets."""

    __slots__ = ("ceiling", "peer_mss", "retry_after", "shrunk_at", "timeouts", "told", "una", "up")

    def __init__(self, peer_mss: int) -> None:
        self.peer_mss = peer_mss
        self.told: int | None = None  # an MTU that is believed when the timer expires
        self.ceiling: int | None = None  # of a packet, because of a black hole
        self.una = -1  # for this, the timer has expired `timeouts` times
        self.timeouts = 0
        self.shrunk_at: Instant = 0
        self.retry_after: Instant = TCP_BLACK_HOLE_RETRY_AFTER
        self.up: Timer | None = None  # when larger packets are tried again

    def discard(self) -> None:
        """The connection is over."""
        if self.up is not None:
            self.up.discard()


def burst_size(c: Connection) -> int:
    """How much new text is sent in one go: what the link cuts up, or where it leaves checksums to
    us, too, what output.py does."""
    if c.path.segment_bytes_max or c.path.checksum_offload:
        return c.super_bytes
    return max(TCP_BURST_BYTES // c.mss * c.mss, c.mss)


def segment_size(c: Connection, options: int) -> int:
    """The effective MSS, and the only place where it is computed (RFC 9293 section 3.7.1): what the
    peer takes and the path lets through, options taken off."""
    sizes, path = c.sizes, c.path
    most = min(sizes.peer_mss, c.tcp.mss_for(path))
    if sizes.ceiling is not None:
        most = min(most, sizes.ceiling - path.header_bytes - HEADER_BYTES)
    return most - options


def default_mss(key: bytes) -> int:
    """What a peer takes that does not say (RFC 9293 section 3.7.1): IPv6 promises more. `key`:
    both addresses and ports of the connection."""
    return TCP_MSS_DEFAULT if len(key) == _IPV4_KEY_BYTES else TCP_MSS_DEFAULT_IPV6


def is_proven(c: Connection) -> bool:
    """Has a full segment of the present size been acknowledged?"""
    return c.snd.full is not None and c.snd.una >= c.snd.full


def too_big(c: Connection, mtu: int) -> bool:
    """A router says that a packet of ours in flight was larger than the `mtu` of the next link.
    False: we will see."""
    if is_proven(c):
        c.sizes.told = mtu
        return False
    return True


def timed_out(c: Connection, now: Instant) -> None:
    """The retransmission timer has expired for text that the peer has room for."""
    sizes, snd = c.sizes, c.snd
    if sizes.told is not None:
        mtu, sizes.told = sizes.told, None
        c.tcp.path_learns(c, mtu, now)
        return
    if sizes.una != snd.una:
        sizes.una, sizes.timeouts = snd.una, 0
    sizes.timeouts += 1
    proven = is_proven(c)
    patience = TCP_BLACK_HOLE_TIMEOUTS_PROVEN if proven else TCP_BLACK_HOLE_TIMEOUTS
    if sizes.timeouts < patience or snd.nxt - snd.una < c.mss:
        return
    packet = c.path.header_bytes + len(c.header) + c.mss
    ceiling = max(packet // 2, c.path.mtu_min)
    if ceiling >= packet:
        return
    c.counters["tcp.black_holes"] += 1
    if proven:
        sizes.retry_after = TCP_BLACK_HOLE_RETRY_AFTER
    sizes.ceiling, sizes.shrunk_at = ceiling, now
    if sizes.up is None:
        sizes.up = c.tcp.timers.timer(lambda then: _try_larger(c, then))
    sizes.up.set(now + sizes.retry_after)
    c.fit_path()


def _try_larger(c: Connection, now: Instant) -> None:
    sizes = c.sizes
    assert sizes.up is not None
    if c.progress_at <= sizes.shrunk_at:  # nothing gets through at all
        sizes.up.set(now + sizes.retry_after)
        return
    sizes.ceiling = None
    sizes.retry_after = min(4 * sizes.retry_after, PATH_MTU_LEARNT_FOR)
    c.fit_path()
