"""TCP of one host: which connection a packet belongs to, and what all connections share.

Packets come in by `arrives` (or straight to Connection.express) and only mark connections; `flush`
sends. Timers run in the host's Timers, and mark connections too, so a flush belongs after them.
"""

from __future__ import annotations

import random as randomness
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from appliance.clock import MILLISECOND, Instant
from appliance.limits import (
    TCP_CONNECTIONS_MAX,
    TCP_RECEIVE_BYTES,
    TCP_RECEIVE_BYTES_FIRST,
    TCP_RESETS_PER_SECOND_MAX,
    TCP_SYN_BACKLOG,
)
from appliance.netstack.ip.path import CE, NOT_ECT, Path, PathTo
from appliance.netstack.tcp import packet_size, reasons
from appliance.netstack.tcp.active_open import REUSE_GAP, active_open
from appliance.netstack.tcp.connection import Connection, ConnectionUser
from appliance.netstack.tcp.cubic import ALGORITHMS
from appliance.netstack.tcp.ecn import Ecn
from appliance.netstack.tcp.listener import Listener
from appliance.netstack.tcp.output import output, send_alone, send_header
from appliance.netstack.tcp.patience import PerSecond
from appliance.netstack.tcp.reasons import CannotConnect
from appliance.netstack.tcp.receive_half import WINDOW_FIELD_MAX, Budget
from appliance.netstack.tcp.segment_arrives import segment_arrives
from appliance.netstack.tcp.sequence import MASK, is_before, unwrap
from appliance.netstack.tcp.state import SYN_SENT, TIME_WAIT
from appliance.netstack.tcp.syn_cookies import SynCookies
from appliance.netstack.timers import Timers
from appliance.netstack.wire import tcp as wire
from appliance.netstack.wire.address import is_unicast
from appliance.netstack.wire.errors import BadPacket
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

ISN_TICK: Final = 4000
"""Nanoseconds: the ISN clock of RFC 9293 section 3.4.1 counts microseconds in fours."""

PORT_BYTES: Final = 2


class Tcp:
    """The connections and listeners of one host."""

    def __init__(
        self,
        timers: Timers,
        random: randomness.Random,
        counters: Counters,
        path_to: PathTo[Path],
        *,
        receive_bytes: int = TCP_RECEIVE_BYTES,
        connections_max: int = TCP_CONNECTIONS_MAX,
        mss: int | None = None,
        stamps: bool = True,
        sacks: bool = True,
        ecn: bool = True,
        congestion: str = "cubic",
        learn_mtu: Callable[[bytes, int, Instant], bool] | None = None,
    ) -> None:
        """`path_to` gives the path to an address, from one of ours. `receive_bytes` is the receive
        window of a connection; on a link without offload, a window that overruns the link's queue
        costs more than it gives. `mss` is an upper bound beside the path's. `stamps`, `sacks`,
        `ecn`: agree to timestamps, to selective acknowledgements, to ECN. `congestion`: one of
        ALGORITHMS. `learn_mtu` is told that the path to an address has become narrower, and makes
        Path.mtu of it."""
        self.timers = timers
        self.counters = counters
        self.random = random
        self.path_to = path_to
        self.receive_bytes = receive_bytes
        self.window_shift = window_shift(receive_bytes)
        self.first_window = min(receive_bytes, TCP_RECEIVE_BYTES_FIRST, WINDOW_FIELD_MAX)
        self.connections_max = connections_max
        self.stamps = stamps
        self.ecn = ecn
        self._learn_mtu = learn_mtu
        self.sacks = sacks
        self.congestion = ALGORITHMS[congestion]
        self._mss = mss
        self._secret = random.randbytes(16)
        self._numbered = b"", 0
        self.cookies = SynCookies(random)
        self.budget = Budget()
        self.connections: dict[bytes, Connection] = {}
        self.listeners: dict[int, Listener] = {}
        self.dirty: list[Connection] = []
        self._time_wait: dict[Connection, Instant] = {}  # until when; oldest first
        self._time_wait_timer = timers.timer(self._time_wait_over)
        self._orphans: dict[Connection, None] = {}  # the same
        self._headers: list[tuple[Path, wire.Segment]] = []  # of no connection, to send
        self.ports_used = random.getrandbits(32)
        """Source ports that were given out; it begins anywhere."""
        self._resets = PerSecond(TCP_RESETS_PER_SECOND_MAX)

    # --- for users --------------------------------------------------------------------------------

    def listen(
        self,
        port: int,
        accept: Callable[[Connection], ConnectionUser | None],
        backlog: int = TCP_SYN_BACKLOG,
        connections_max: int = TCP_CONNECTIONS_MAX,
    ) -> Listener:
        """Passive OPEN. `accept` is called with each connection whose handshake is complete and
        gives its user; None refuses it. `backlog`: half-open connections, at most."""
        if port in self.listeners:
            raise ValueError(f"port {port} is listened on already")
        listener = Listener(self, port, accept, backlog, connections_max)
        self.listeners[port] = listener
        return listener

    def connect(
        self,
        destination: bytes,
        port: int,
        user: ConnectionUser,
        now: Instant,
        source_port: int | None = None,
        source: bytes | None = None,
        ecn: bool = False,
    ) -> Connection:
        """Active OPEN. `room_again` tells the user that it is established, `ended` that it is not
        going to be. `source`: from this address of ours. `ecn`: ask for ECN; some old middleboxes
        drop what asks. CannotConnect."""
        if not is_unicast(destination):
            raise CannotConnect(reasons.NO_ROUTE)
        c = active_open(self, self.path_to(destination, source), port, user, now, source_port)
        if ecn and self.ecn:
            c.ecn = Ecn(c.snd.iss)
        return c

    # --- packets in -------------------------------------------------------------------------------

    def arrives(
        self,
        source: bytes,
        destination: bytes,
        packet: Buffer,
        at: int,
        end: int,
        checksum_good: bool,
        now: Instant,
        ecn: int = NOT_ECT,
    ) -> None:
        """The TCP packet packet[at:end], which IP took for ours; `ecn` is what the IP header says.
        Whatever is wrong with it is counted, and that is all."""
        try:
            if not is_unicast(source) or source == destination:
                raise BadPacket("tcp.bad_source")
            if not checksum_good and not wire.checksum_is_good(
                source + destination, packet, at, end
            ):
                raise BadPacket("tcp.bad_checksum")
            seg = self._parse(packet, at, end, ecn)
            if not seg.source_port or not seg.destination_port:
                raise BadPacket("tcp.port_zero")
        except BadPacket as bad:
            self.counters[bad.reason] += 1
            return
        key = source + destination + bytes(packet[at : at + 2 * PORT_BYTES])
        c = self.connections.get(key)
        if c is None:
            self._demultiplex(key, seg, now)
        else:
            self._deliver(c, seg, now)

    def segment_of(
        self, c: Connection, packet: bytes, at: int, end: int, now: Instant, ecn: int
    ) -> None:
        """The same of a segment of `c` whose checksum is good."""
        try:
            seg = self._parse(packet, at, end, ecn)
        except BadPacket as bad:
            self.counters[bad.reason] += 1
        else:
            self._deliver(c, seg, now)

    def _parse(self, packet: Buffer, at: int, end: int, ecn: int) -> wire.Segment:
        """The segment, without what we do not agree to. BadPacket."""
        seg = wire.parse(packet, at, end)
        if ecn == CE:
            seg.marked = True
        if not self.stamps:
            seg.timestamp = None
        if not self.sacks:
            seg.sack_permitted = False
        return seg

    def _deliver(self, c: Connection, seg: wire.Segment, now: Instant) -> None:
        """A segment for a connection, or for one that takes its place."""
        iss = self._reused(c, seg) if c.state is TIME_WAIT else None
        if iss is None:
            segment_arrives(c, seg, now)
        else:
            c.end(None)
            self._demultiplex(c.key, seg, now, iss)

    def _demultiplex(
        self, key: bytes, seg: wire.Segment, now: Instant, iss: int | None = None
    ) -> None:
        """A segment of no connection: for a listener, or for nobody. `iss`: of the connection that
        follows one in TIME-WAIT."""
        listener = self.listeners.get(seg.destination_port)
        path = self._path_back(key)
        if listener is not None and listener.is_at(path.source):
            listener.arrives(path, key, seg, now, iss)
        else:
            self._arrives_in_closed(path, key, seg)

    def _path_back(self, key: bytes) -> Path:
        """To the peer in `key`, from the address that it has written to."""
        size = len(key) // 2 - PORT_BYTES
        return self.path_to(key[:size], key[size : 2 * size])

    def _reused(self, c: Connection, seg: wire.Segment) -> int | None:
        """RFC 6191 section 2: a SYN that cannot be an old one takes the place of a connection in
        TIME-WAIT. What it gives is the first sequence number of its successor."""
        if seg.flags & (wire.SYN | wire.ACK | wire.RST) != wire.SYN:
            return None
        newer = unwrap(seg.seq, c.rcv.nxt) > c.rcv.nxt
        if seg.timestamp is not None:
            if not c.stamps or is_before(c.stamp_recent, seg.timestamp[0]):
                newer = True
            elif seg.timestamp[0] != c.stamp_recent:
                newer = False
        if not newer or seg.destination_port not in self.listeners:
            return None
        return c.snd.nxt + REUSE_GAP & MASK

    def _arrives_in_closed(self, path: Path, key: bytes, seg: wire.Segment) -> None:
        """3.10.7.1 CLOSED STATE."""
        self.counters["tcp.no_connection"] += 1
        if seg.flags & wire.RST:
            return
        if seg.flags & wire.ACK:
            self.send_reset(path, key, seg.ack)
        else:
            self.send_reset(path, key, 0, seg.seq + seg.length)

    def icmp_error(
        self, local: bytes, remote: bytes, quoted: Buffer, reason: str, hard: bool
    ) -> None:
        """An ICMP error about a packet of ours from `local` to `remote`; `quoted` is what it shows
        of the TCP header, 8 bytes at least. It ends only a connection that is being opened, if it
        is hard; others keep it as the reason, should they time out (RFC 9293 section 3.9.2.2)."""
        c = self._quoted(local, remote, quoted)
        if c is None:
            return
        if hard and c.state is SYN_SENT:
            c.end(reason)
        else:
            c.soft_error = reason

    def packet_too_big(
        self, local: bytes, remote: bytes, quoted: Buffer, mtu: int, now: Instant
    ) -> None:
        """ICMP says that a packet of ours did not fit in the `mtu` of a link on the way. Of either
        family; the rest as for `icmp_error`."""
        c = self._quoted(local, remote, quoted)
        if c is None:
            return
        if packet_size.too_big(c, mtu):
            self.path_learns(c, mtu, now)
        else:
            self.counters["tcp.too_big_doubted"] += 1

    def _quoted(self, local: bytes, remote: bytes, quoted: Buffer) -> Connection | None:
        """The connection of a packet that an error quotes. None: its sequence number is not in
        flight, so the error is forged or old (RFC 5927 section 4)."""
        if len(quoted) < 8:
            self.counters["tcp.icmp_truncated"] += 1
            return None
        ports = bytes(quoted[:4])
        c = self.connections.get(remote + local + ports[2:] + ports[:2])
        seq = int.from_bytes(quoted[4:8], "big")
        if c is None or not c.snd.una <= unwrap(seq, c.snd.una) < c.snd.nxt:
            self.counters["tcp.icmp_not_ours"] += 1
            return None
        return c

    def path_learns(self, c: Connection, mtu: int, now: Instant) -> None:
        """It is believed that the path of `c` is so narrow."""
        if self._learn_mtu is not None and self._learn_mtu(c.peer_address, mtu, now):
            self.path_changed(c.peer_address)
        else:
            c.fit_path()  # known for another connection, perhaps since this one was half-open

    def unreachable(self, local: bytes, remote: bytes) -> None:
        """The next hop on the way to `remote` does not answer: whoever is just connecting is told
        so; established connections go on trying (RFC 1122 section 3.3.1.4)."""
        for c in list(self.connections.values()):
            if c.peer_address == remote and c.local_address == local:
                c.soft_error = reasons.HOST_UNREACHABLE
                if c.state is SYN_SENT:
                    c.end(reasons.HOST_UNREACHABLE)

    def path_changed(self, remote: bytes) -> None:
        """A router on the path to `remote` has been believed: it has another MTU than before."""
        self._fit_paths(remote, is_lost=True)

    def link_changed(self, remote: bytes) -> None:
        """The path to `remote` has another MTU than before, because our link has, or because what a
        router said is too old to count. What is under way was not too large when it went out."""
        self._fit_paths(remote, is_lost=False)

    def _fit_paths(self, remote: bytes, *, is_lost: bool) -> None:
        for c in list(self.connections.values()):
            if c.peer_address == remote:
                c.fit_path(is_lost=is_lost)

    # --- packets out ------------------------------------------------------------------------------

    def flush(self, now: Instant) -> None:
        """Send what has become sendable: one pass over the marked connections."""
        dirty = self.dirty
        if dirty:
            self.dirty = []
            try:
                for c in dirty:
                    c.marked = False
                    if c.predicted < 0 or not send_alone(c, now):
                        output(c, now)
            except BaseException:  # the others still have something to say
                self.dirty += [c for c in dirty if c.marked and c not in self.dirty]
                raise
        if self._headers:
            headers, self._headers = self._headers, []
            for path, segment in headers:
                if not segment.flags & wire.RST or self._resets.allows(now):
                    if segment.timestamp is not None:
                        base, echo = segment.timestamp
                        segment.timestamp = now // MILLISECOND + base & MASK, echo
                    send_header(path, segment)
                else:
                    self.counters["tcp.resets_suppressed"] += 1

    def send_reset(
        self,
        path: Path,
        key: bytes,
        seq: int,
        ack: int | None = None,
        stamp: tuple[int, int] | None = None,
    ) -> None:
        """Queue a reset to the peer in `key`; with `ack` it acknowledges, too. `stamp` is as for
        `send_later`."""
        source, destination = int.from_bytes(key[-2:], "big"), int.from_bytes(key[-4:-2], "big")
        flags = wire.RST if ack is None else wire.RST | wire.ACK
        segment = wire.Segment(source, destination, seq, ack or 0, flags, 0, timestamp=stamp)
        self.send_later(path, segment)

    def send_later(self, path: Path, segment: wire.Segment) -> None:
        """Queue a segment that belongs to no connection: a reset, or a SYN-ACK with a cookie. When
        it is sent, the clock is added to its TSval."""
        self._headers.append((path, segment))

    # --- for connections --------------------------------------------------------------------------

    def mss_for(self, path: Path) -> int:
        """What we tell a peer to send at most: RFC 9293 section 3.7.1, without regard to
        options."""
        mss = path.mtu - path.header_bytes - wire.HEADER_BYTES
        return mss if self._mss is None else min(mss, self._mss)

    def initial_sequence_number(self, key: bytes, now: Instant) -> int:
        """RFC 6528: a clock, and a function of the connection that nobody else can compute."""
        return now // ISN_TICK + (self._numbers_of(key) >> 32) & MASK

    def stamp_base(self, key: bytes) -> int:
        """Where the connection's timestamps begin (RFC 7323 section 5.4)."""
        return self._numbers_of(key) & MASK

    def _numbers_of(self, key: bytes) -> int:
        """64 bits, half of them for each of these; a connection asks for both in turn."""
        if key != self._numbered[0]:
            self._numbered = key, self.keyed(key, b"numbers", 8)
        return self._numbered[1]

    def keyed(self, key: bytes, purpose: bytes, count: int = 4) -> int:
        """`count` bytes that follow from `key`, as a number that nobody else can compute."""
        digest = blake2b(key, digest_size=count, key=self._secret, person=purpose).digest()
        return int.from_bytes(digest, "big")

    def has_room(self) -> bool:
        """May there be another connection? One in TIME-WAIT gives way, or else one that its user
        has closed: a flood of peers that vanish would keep others out with what it leaves."""
        if len(self.connections) < self.connections_max:
            return True
        if self._time_wait:
            next(iter(self._time_wait)).end(None)
            return True
        if self._orphans:
            self.counters["tcp.orphans_evicted"] += 1
            next(iter(self._orphans)).abort()
            return True
        return False

    def orphaned(self, c: Connection) -> None:
        """The user of `c` has closed it, and its end is still under way."""
        self._orphans[c] = None

    def waiting(self, c: Connection, until: Instant) -> None:
        """`c` is in TIME-WAIT, and no shorter than all others."""
        self._orphans.pop(c, None)
        self._time_wait.pop(c, None)
        self._time_wait[c] = until
        if self._time_wait_timer.deadline is None:
            self._time_wait_timer.set(until)

    def _time_wait_over(self, now: Instant) -> None:
        """For the oldest. The timer is for all of them: it waits for the one that is next."""
        waiting = self._time_wait
        try:
            while waiting and waiting[first := next(iter(waiting))] <= now:
                first.end(None)
        finally:
            if waiting:
                self._time_wait_timer.set(next(iter(waiting.values())))

    def remove(self, c: Connection) -> None:
        """`c` is CLOSED."""
        if self.connections.get(c.key) is c:
            del self.connections[c.key]
        self._time_wait.pop(c, None)
        self._orphans.pop(c, None)
        if c.listener is not None:
            c.listener.remove(c)


def window_shift(receive_bytes: int) -> int:
    """The least shift with which a window of that many bytes can be told."""
    shift = 0
    while receive_bytes >> shift > WINDOW_FIELD_MAX and shift < wire.WINDOW_SCALE_MAX:
        shift += 1
    return shift
