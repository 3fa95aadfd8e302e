"""Passive open: a port that takes connections (RFC 9293 section 3.10.1, 3.10.7.2).

A SYN makes a connection in SYN-RECEIVED, kept in the listener's backlog until its handshake is
complete; only then does the user hear of it. The backlog is bounded. When it is full, SYNs are
answered with cookies, and leave nothing behind (syn_cookies.py): a flood of forged ones costs no
memory, and an honest client gets its connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.netstack.ip.path import Path
from appliance.netstack.tcp.connection import Connection, ConnectionUser
from appliance.netstack.tcp.ecn import Ecn, asks
from appliance.netstack.tcp.segment_arrives import segment_arrives
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import LISTEN, SYN_RECEIVED
from appliance.netstack.wire.tcp import ACK, RST, SYN, Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.host import Tcp


class Listener:
    """One port. `accept` gets each new connection and gives its user; None: it is reset."""

    def __init__(
        self,
        tcp: Tcp,
        port: int,
        accept: Callable[[Connection], ConnectionUser | None],
        backlog: int,
        connections_max: int,
    ) -> None:
        self._tcp = tcp
        self.port = port
        self.accept = accept
        self.backlog = backlog
        self.connections_max = connections_max
        self.half_open: dict[Connection, None] = {}  # oldest first
        self.open: set[Connection] = set()  # accepted, and not CLOSED yet
        self.taking = True  # False: its user has enough of them for now
        self.is_at: Callable[[bytes], bool] = everywhere
        """Is it meant by what arrives at this address of ours? (RFC 9293 MUST-43.)"""

    def arrives(
        self, path: Path, key: bytes, seg: Segment, now: Instant, iss: int | None = None
    ) -> None:
        """3.10.7.2 LISTEN STATE."""
        counters = self._tcp.counters
        if seg.flags & RST:  # first
            counters["tcp.reset_to_listener"] += 1
        elif seg.flags & ACK:  # second
            self._complete(path, key, seg, now)
        elif not seg.flags & SYN:  # fourth
            counters["tcp.no_syn"] += 1
        elif self._has_room():  # third
            self._answer(path, key, seg, now, iss)

    def _has_room(self) -> bool:
        """For one more connection? If not, the peer will ask again."""
        if not self.taking:
            self._tcp.counters["tcp.accept_queue_full"] += 1
            return False
        if not self._tcp.has_room() or len(self.open) >= self.connections_max:
            self._tcp.counters["tcp.too_many_connections"] += 1
            return False
        return True

    def _answer(self, path: Path, key: bytes, seg: Segment, now: Instant, iss: int | None) -> None:
        """Answer a SYN. Text or a FIN that came with it is not kept: the peer will repeat it."""
        if len(self.half_open) >= self.backlog:
            self._answer_with_cookie(path, key, seg, now)
            return
        if iss is None:
            iss = self._tcp.initial_sequence_number(key, now)
        c = self._open(path, key, seg, now, iss)
        if self._tcp.ecn and asks(seg):
            c.ecn = Ecn(iss)
        c.syn_due = True
        c.mark()

    def _answer_with_cookie(self, path: Path, key: bytes, seg: Segment, now: Instant) -> None:
        tcp = self._tcp
        tcp.counters["tcp.syn_cookies_sent"] += 1
        cookie = tcp.cookies.make(key, seg, now)
        window = tcp.first_window
        answer = Segment(self.port, seg.source_port, cookie, seg.seq + 1, SYN | ACK, window)
        answer.mss = tcp.mss_for(path)
        if seg.window_scale is not None:
            answer.window_scale = tcp.window_shift
        answer.sack_permitted = seg.sack_permitted
        if seg.timestamp is not None:
            answer.timestamp = tcp.stamp_base(key), seg.timestamp[0]
        tcp.send_later(path, answer)

    def _complete(self, path: Path, key: bytes, seg: Segment, now: Instant) -> None:
        """An acknowledgement: of a cookie, or of nothing that we know."""
        tcp = self._tcp
        syn = None if seg.flags & SYN else tcp.cookies.syn_of(key, seg, now)
        if syn is None:
            tcp.send_reset(path, key, seg.ack)
            tcp.counters["tcp.ack_to_listener"] += 1
        elif self._has_room():
            tcp.counters["tcp.syn_cookies_accepted"] += 1
            c = self._open(path, key, syn, now, seg.ack - 1 & MASK)
            c.snd.nxt += 1  # the cookie was our SYN
            segment_arrives(c, seg, now)

    def _open(self, path: Path, key: bytes, seg: Segment, now: Instant, iss: int) -> Connection:
        """A connection in SYN-RECEIVED, because of this SYN."""
        c = Connection(self._tcp, path, key, iss, LISTEN)
        c.listener = self
        c.heard_at = c.progress_at = now
        c.scales = seg.window_scale is not None
        c.rcv.start(seg.seq)
        c.negotiated(seg.mss, seg.window_scale, seg.timestamp is not None, seg.sack_permitted)
        if seg.timestamp is not None:
            c.stamp_recent, c.stamp_recent_at = seg.timestamp[0], now
        c.snd.wnd = c.snd.wnd_max = seg.wnd
        c.snd.wl1, c.snd.wl2 = seg.seq, iss
        c.become(SYN_RECEIVED)
        self._tcp.connections[key] = c
        self.half_open[c] = None
        return c

    def established(self, c: Connection) -> ConnectionUser | None:
        """The handshake of `c` is complete: who uses it?"""
        del self.half_open[c]
        self.open.add(c)
        return self.accept(c)

    def remove(self, c: Connection) -> None:
        """`c` is CLOSED."""
        self.half_open.pop(c, None)
        self.open.discard(c)

    def close(self) -> None:
        """Take no more connections; reset those that were not accepted yet."""
        self._tcp.listeners.pop(self.port, None)
        for c in list(self.half_open):
            c.abort()


def everywhere(_local: bytes) -> bool:
    """A listener at all of our addresses."""
    return True
