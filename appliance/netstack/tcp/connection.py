"""One TCP connection (RFC 9293): its transmission control block and the calls of its user.

Segments, calls and the clock come in; nothing goes out from here. Whatever makes something worth
sending only marks the connection; Tcp.flush lets each marked one say everything at once
(output.py). So the replies to all calls of one frame leave together, and acknowledgements ride on
them.

    express.py           the common segment, by header prediction
    segment_arrives.py   every other segment (section 3.10.7)
    output.py            what to send
    retransmission.py    what to send again, and the timer for it

The connection tells its user three things (ConnectionUser), and `ended` exactly once. A user may
make any call from inside them.

    closed by the user                what happens
    finish()                          FIN after the text; text still arrives (half-close)
    close()                           the same, but nobody reads any more: unread text, or text that
                                      arrives later, is answered with a reset (RFC 9293 section
                                      3.6.1), and the rest is reaped if the peer does not cooperate
    abort()                           reset
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from appliance.clock import Instant
from appliance.limits import (
    TCP_CHALLENGES_PER_SECOND_MAX,
    TCP_MSS_DEFAULT,
    TCP_MSS_MIN,
    TCP_ORPHAN_AFTER,
    TCP_SEND_ROOM_BYTES,
    TCP_TIME_WAIT,
)
from appliance.netstack.ip.path import Path
from appliance.netstack.tcp import reasons
from appliance.netstack.tcp.calm import CALM
from appliance.netstack.tcp.congestion import Congestion
from appliance.netstack.tcp.ecn import Ecn
from appliance.netstack.tcp.express import express
from appliance.netstack.tcp.packet_size import PacketSize, burst_size, default_mss, segment_size
from appliance.netstack.tcp.patience import KeepAlive, PerSecond, keep_alive
from appliance.netstack.tcp.receive_half import ReceiveHalf
from appliance.netstack.tcp.recovery import Recovery
from appliance.netstack.tcp.retransmission import RoundTrip, timer_expired
from appliance.netstack.tcp.send_half import Buffer, SendHalf
from appliance.netstack.tcp.state import (
    CLOSE_WAIT,
    CLOSED,
    ESTABLISHED,
    FIGURE_5,
    FIN_WAIT_1,
    FIN_WAIT_2,
    HANDSHAKING,
    LAST_ACK,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
    State,
)
from appliance.netstack.timers import Timer
from appliance.netstack.wire import tcp as wire
from appliance.netstack.wire.address import address_text

if TYPE_CHECKING:
    from appliance.netstack.tcp.host import Tcp
    from appliance.netstack.tcp.listener import Listener


class ConnectionUser(Protocol):
    """Whoever uses a connection. Called while a segment or a deadline is worked on."""

    def readable(self, connection: Connection) -> None:
        """Text has arrived: `receive` it, or it waits and the window closes."""

    def room_again(self, connection: Connection) -> None:
        """Half of what crowded the connection has been acknowledged. Also: it is established."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        """Exactly once. None: the peer has sent everything it had to (one may still send), or the
        close that the user asked for is complete. Otherwise the connection is gone, and why."""


class Nobody:
    """The user of a connection that has none yet, or none any more."""

    def readable(self, connection: Connection) -> None:
        pass

    def room_again(self, connection: Connection) -> None:
        pass

    def ended(self, connection: Connection, reason: str | None) -> None:
        pass


NOBODY = Nobody()

NOT_PREDICTED = -1


class Connection:
    """The transmission control block."""

    __slots__ = (
        "ack_timer",
        "burst_bytes",
        "challenges",
        "checksum_base",
        "closed",
        "closing",
        "congestion",
        "corked",
        "counters",
        "crowded",
        "echo",
        "ecn",
        "ended",
        "header",
        "heard_at",
        "keepalive",
        "key",
        "life_timer",
        "listener",
        "marked",
        "mss",
        "nodelay",
        "on_closed",
        "on_urgent",
        "path",
        "paused",
        "predicted",
        "probe_due",
        "probes",
        "progress_at",
        "rcv",
        "recovery",
        "resend_timer",
        "round_trip",
        "sacks",
        "scales",
        "send_at_once",
        "sent_at",
        "sizes",
        "snd",
        "soft_error",
        "stamp_base",
        "stamp_recent",
        "stamp_recent_at",
        "stamps",
        "state",
        "super_bytes",
        "syn_due",
        "syn_was_lost",
        "tcp",
        "traffic_class",
        "user",
        "user_timeout",
    )

    header: bytearray
    checksum_base: int
    """Of a packet without text: the same for all, once options are agreed to. Also what its
    checksum begins with."""
    congestion: Congestion
    """How much may be in flight, once it is established."""
    predicted: int
    """Offset and flags of the segment that express.py takes."""
    mss: int
    """The effective one: text in a segment, options taken off. Everything counts with it."""
    super_bytes: int
    """Text in a packet: a multiple of mss where the link cuts packets up."""
    burst_bytes: int  # new text in one go (burst_size)
    scales: bool
    stamps: bool
    """Both sides scale windows, and use timestamps (RFC 7323)."""
    ecn: Ecn | None
    """Both sides agreed to Explicit Congestion Notification."""
    echo: int
    """ECE, while the peer is to be told of congestion."""
    sacks: bool
    """Both sides acknowledge selectively (RFC 2018)."""
    traffic_class: int
    """DSCP, in its place in front of ECN, for packets of this connection (RFC 9293 MUST-48)."""
    nodelay: bool
    """No Nagle algorithm: replies do not wait."""
    corked: bool
    """Parts of segments wait: the user has more in a moment."""
    user_timeout: Instant | None
    """How long text may stay unacknowledged (RFC 5482); None: as long as the peer is there."""
    on_closed: Callable[[str | None], None] | None
    """Told when it is CLOSED, and why, also where `ended` has told of the peer's FIN before."""
    on_urgent: Callable[[Connection], None] | None
    """Told when the peer has urgent text, and again when there is more: `urgent_bytes`."""
    marked: bool
    """Tcp.flush will ask what there is to send."""
    syn_due: bool
    probe_due: bool
    """A SYN, or a keep-alive probe, is what there is to send."""
    send_at_once: bool
    """One segment may go without regard to windows: a probe, or the first to be sent again."""
    probes: int
    """How often a closed window was probed."""
    crowded: bool
    """So much is unacknowledged that the user should wait."""
    closing: bool
    """finish() was called before the handshake was over."""
    closed: bool
    """The user has let go of us."""
    ended: bool
    """The user has been told."""

    express = express

    def __init__(self, tcp: Tcp, path: Path, key: bytes, iss: int, state: State) -> None:
        """`key` is the peer's address, ours, its port and ours, as in a packet from the peer."""
        self.tcp = tcp
        self.counters = tcp.counters
        self.path = path
        self.key = key
        self.state = state
        self.snd = SendHalf(iss)
        self.rcv = ReceiveHalf(tcp.receive_bytes, tcp.budget)
        self.user: ConnectionUser = NOBODY
        self.listener: Listener | None = None

        self.mss = self.super_bytes = self.burst_bytes = TCP_MSS_DEFAULT
        self.sizes = PacketSize(TCP_MSS_DEFAULT)
        self.ecn, self.echo, self.traffic_class = None, 0, 0
        self.stamp_base = tcp.stamp_base(key)
        self.stamp_recent = 0
        self.round_trip = RoundTrip()
        self.recovery: Recovery = CALM
        self.challenges: PerSecond | None = None
        self.keepalive: KeepAlive | None = None
        self.resend_timer = tcp.timers.timer(self._resend)
        self.ack_timer = tcp.timers.timer(self._acknowledge)
        self.life_timer: Timer | None = None
        self.heard_at = self.progress_at = self.sent_at = self.stamp_recent_at = 0
        self.user_timeout = None
        self.on_closed = self.on_urgent = None
        self.soft_error: str | None = None

        self.predicted = NOT_PREDICTED
        self.probes = 0
        self.nodelay = True
        self.corked = False
        self.scales = self.stamps = self.sacks = self.syn_was_lost = False
        self.marked = self.syn_due = self.probe_due = self.send_at_once = False
        self.paused = self.crowded = self.closing = self.closed = self.ended = False

    @property
    def peer_address(self) -> bytes:
        return self.path.destination

    @property
    def local_address(self) -> bytes:
        return self.path.source

    @property
    def peer_port(self) -> int:
        return int.from_bytes(self.key[-4:-2], "big")

    @property
    def local_port(self) -> int:
        return int.from_bytes(self.key[-2:], "big")

    def __repr__(self) -> str:
        peer = address_text(self.peer_address)
        return f"<Connection {self.local_port} from {peer}:{self.peer_port} {self.state}>"

    # --- what the user calls (section 3.10.1 to 3.10.6) ------------------------------------------

    def send(self, buffers: Iterable[Buffer]) -> None:
        """SEND: queue text. The buffers are given away and must not change. On a connection that
        cannot send any more, nothing happens."""
        snd = self.snd
        if snd.fin is not None or self.closing or self.state is CLOSED:
            return
        snd.queue(buffers)
        if snd.end - snd.una >= TCP_SEND_ROOM_BYTES:
            self.crowded = True
        if not self.marked:
            self.mark()

    def send_urgent(self, buffers: Iterable[Buffer]) -> None:
        """SEND with the URGENT flag (section 3.8.5): all text up to the end of this is urgent. It
        goes out in its turn; the peer is told at once how far it goes."""
        snd, before = self.snd, self.snd.end
        self.send(buffers)
        if snd.end != before:
            snd.up = snd.end

    @property
    def urgent_bytes(self) -> int:
        """How much of what `receive` will give is urgent, or comes before something urgent."""
        return self.rcv.urgent_bytes

    def receive(self) -> list[memoryview]:
        """RECEIVE: take all text that has arrived in order. The window opens by as much."""
        pieces = self.rcv.take()
        if pieces and not self.marked:
            self.mark()
        if self.predicted < 0:
            self.predict()
        return pieces

    @property
    def unsent_bytes(self) -> int:
        """Text that was sent and not acknowledged yet."""
        return self.snd.unacknowledged_text

    def pause(self) -> None:
        """Deliver no more. What arrives waits, and the window closes."""
        self.paused = True
        self.predict()

    def resume(self) -> None:
        """Deliver again, first what has arrived meanwhile."""
        if self.paused:
            self.paused = False
            self.deliver()
            self.predict()
            if self.state is CLOSED:
                self._part()

    def finish(self) -> None:
        """CLOSE in the RFC's sense: a FIN follows the text; text still arrives."""
        state = self.state
        if state is SYN_SENT:
            self.end(reasons.CLOSED)
        elif state is SYN_RECEIVED:
            self.closing = True  # queued until the handshake is over
        elif state is ESTABLISHED:
            self.snd.finish()
            self.become(FIN_WAIT_1)
        elif state is CLOSE_WAIT:
            self.snd.finish()
            self.become(LAST_ACK)
        self.mark()

    def close(self) -> None:
        """Send what is queued and end in order; nobody reads any more."""
        if self.closed:
            return
        self.closed = True
        self.paused = False
        if self.state is CLOSED:
            self._part()
            return
        if self.rcv.pieces:
            self.counters["tcp.closed_with_unread_text"] += 1
            self.abort()
            return
        self.finish()
        if self.state not in (CLOSED, TIME_WAIT):
            self.tcp.orphaned(self)

    def abort(self) -> None:
        """ABORT: reset the connection."""
        if self.state not in (CLOSED, SYN_SENT, TIME_WAIT):
            self._reset()
        self.end(reasons.ABORTED)

    def keep_alive(self, keepalive: KeepAlive) -> None:
        """Ask a peer that says nothing for long whether it is there, and end the connection if it
        is not. Off unless asked for (RFC 9293 MUST-25)."""
        self.keepalive = keepalive
        self._look_after_it(self.heard_at + keepalive.idle)

    # --- the state machine ------------------------------------------------------------------------

    def become(self, state: State) -> None:
        """The only way to another state: along an edge of figure 5, or to CLOSED."""
        assert state is CLOSED or state in FIGURE_5[self.state], (self.state, state)
        self.state = state
        if state is ESTABLISHED:
            self.predict()
        else:
            self.predicted = NOT_PREDICTED

    def predict(self) -> None:
        """Say which segment express.py may take: in order, while nothing else is going on."""
        if self.state is not ESTABLISHED:
            self.predicted = NOT_PREDICTED
            return
        rcv = self.rcv
        normal = (
            not self.paused
            and not rcv.pieces
            and not rcv.out_of_order
            and rcv.fin is None
            and not self.probes
        )
        if not normal:
            self.predicted = NOT_PREDICTED
        else:
            offset = wire.STAMPED_OFFSET if self.stamps else wire.PLAIN_OFFSET
            self.predicted = offset | wire.ACK

    def negotiated(self, mss: int | None, shift: int | None, stamps: bool, sacks: bool) -> None:
        """Both SYNs are known: settle on segment sizes and options. `shift` is the peer's, None
        where windows are not scaled."""
        self.stamps = stamps
        self.sacks = sacks
        path, rcv = self.path, self.rcv
        options = wire.STAMP_BYTES if stamps else 0
        self.sizes.peer_mss = max(mss or default_mss(self.key), TCP_MSS_MIN)
        self._cut_into(segment_size(self, options), options)
        self.snd.shift = shift or 0
        rcv.negotiated(0 if shift is None else self.tcp.window_shift, self.mss)
        ports = self.key[-2:] + self.key[-4:-2]
        self.header = bytearray(ports + bytes(wire.HEADER_BYTES - 4 + options))
        self.checksum_base = path.pseudo_sum + wire.PROTOCOL + len(self.header)

    def _cut_into(self, mss: int, options: int) -> None:
        self.mss, self.snd.full = mss, None
        self.super_bytes = max((self.path.segment_bytes_max - options) // mss * mss, mss)
        self.burst_bytes = burst_size(self)

    def fit_path(self, *, is_lost: bool = True) -> None:
        """Only smaller packets pass on the path now, or larger ones may pass again (RFC 1191). With
        `is_lost`, what is under way and too large has not arrived; it goes out again in smaller
        ones at once, for that is no sign of congestion."""
        if self.state is SYN_SENT:
            return
        options = len(self.header) - wire.HEADER_BYTES
        before, mss = self.mss, segment_size(self, options)
        if mss == before:
            return
        self._cut_into(mss, options)
        if self.state is not SYN_RECEIVED:
            self.congestion.mss = mss
        if mss > before:
            self.counters["tcp.cut_larger"] += 1
            return
        if self.state is SYN_RECEIVED:
            return
        self.counters["tcp.cut_smaller"] += 1
        if is_lost:
            self.recovery.start_over(self)
            self.snd.lose(self.snd.una, self.snd.nxt)
        self.predict()
        self.mark()

    def established(self, ack: int, now: Instant) -> bool:
        """The handshake is complete: our SYN is acknowledged. False: nobody wants the connection,
        and it is over."""
        snd = self.snd
        snd.una = ack
        if snd.timed is not None:
            self.round_trip.sample(now - snd.timed_at, now)
            snd.timed = None
        self.become(ESTABLISHED)
        self.syn_due = False
        self.resend_timer.clear()
        self.progress_at = self.sent_at = now
        self.congestion = self.tcp.congestion(self.mss, self.round_trip, self.syn_was_lost)
        if self.syn_was_lost:
            self.round_trip.syn_was_lost()
        if self.listener is not None:
            user = self.listener.established(self)
            if user is None:
                self.counters["tcp.refused_by_user"] += 1
                self.abort()
                return False
            self.user = user
        else:
            self.user.room_again(self)
        if self.closing:
            self.closing = False
            self.finish()
        self.mark()
        return True

    def wait_2msl(self, now: Instant) -> None:
        """Both FINs are acknowledged; old segments may still be under way."""
        if self.state is not TIME_WAIT:
            self.become(TIME_WAIT)
            self.resend_timer.clear()
            if self.life_timer is not None:
                self.life_timer.clear()
            self.snd.forget()
            self.tcp.waiting(self, now + TCP_TIME_WAIT)
            if self.closed:
                self.tell(None)
                self._part()
        else:
            self.tcp.waiting(self, now + TCP_TIME_WAIT)

    def end(self, reason: str | None) -> None:
        """The connection is over: CLOSED, out of all tables, and nothing of it stays behind."""
        if self.state is CLOSED:
            return
        self.become(CLOSED)
        self.tcp.remove(self)
        self.resend_timer.discard()
        self.ack_timer.discard()
        if self.life_timer is not None:
            self.life_timer.discard()
        self.sizes.discard()
        self.snd.forget()
        self.rcv.forget()
        self.tell(reason)
        if self.on_closed is not None:
            self.on_closed(reason)
        if not self.paused:  # what has arrived may still be wanted
            self._part()

    def _part(self) -> None:
        """Let go of the user, who may keep us: no memory waits for the collector of cycles."""
        self.user = NOBODY
        self.on_closed = self.on_urgent = None

    def tell(self, reason: str | None) -> None:
        """Tell the user that it has ended, once."""
        if not self.ended:
            self.ended = True
            self.user.ended(self, reason)

    def deliver(self) -> None:
        """Give the user what has arrived in order."""
        rcv = self.rcv
        if rcv.pieces and not self.paused:
            self.user.readable(self)
        if rcv.pieces or rcv.out_of_order:
            rcv.account()
        if rcv.fin is not None and rcv.nxt > rcv.fin and not (self.paused or self.closed):
            self.tell(None)

    def ease(self) -> None:
        """It was crowded: tell the user when half of that has gone."""
        if self.unsent_bytes <= TCP_SEND_ROOM_BYTES // 2 and self.state is not CLOSED:
            self.crowded = False
            self.user.room_again(self)

    def mark(self) -> None:
        """Have flush ask what there is to send."""
        if not self.marked:
            self.marked = True
            self.tcp.dirty.append(self)

    def challenge(self, now: Instant) -> None:
        """Answer a segment that may be forged with our numbers, if it was not too often already: a
        real peer will know what to do (RFC 5961)."""
        if self.challenges is None:
            self.challenges = PerSecond(TCP_CHALLENGES_PER_SECOND_MAX)
        if self.challenges.allows(now):
            self.rcv.acks_owed = 1
            self.mark()
        else:
            self.counters["tcp.challenges_suppressed"] += 1

    # --- timers -----------------------------------------------------------------------------------

    def _resend(self, now: Instant) -> None:
        timer_expired(self, now)

    def _acknowledge(self, now: Instant) -> None:
        """No text came by for the acknowledgement to ride on."""
        self.rcv.acks_owed = max(self.rcv.acks_owed, 1)
        self.mark()

    def _look_after_it(self, deadline: Instant) -> None:
        """Set the timer that most connections never need."""
        if self.life_timer is None:
            self.life_timer = self.tcp.timers.timer(self._live_on)
        self.life_timer.set(deadline)

    def _live_on(self, now: Instant) -> None:
        """Nobody wants FIN-WAIT-2 any more, or a keep-alive may be due."""
        if self.state is FIN_WAIT_2 and self.closed:
            self.counters["tcp.orphans_reaped"] += 1
            self.end("closed, and the peer did not")
        elif self.keepalive is not None and self.state not in HANDSHAKING:
            again = keep_alive(self, self.keepalive, now)
            if again is not None:
                self._look_after_it(again)

    def give_up(self, reason: str) -> None:
        """The peer does not answer. Tell it all the same: perhaps only its answers get lost."""
        self._reset()
        self.end(reason)

    def _reset(self) -> None:
        """With a timestamp, where they are used (RFC 7323 section 3.2)."""
        stamp = (self.stamp_base, self.stamp_recent) if self.stamps else None
        self.tcp.send_reset(self.path, self.key, self.snd.nxt, self.rcv.nxt, stamp)

    def reap_later(self, now: Instant) -> None:
        """In FIN-WAIT-2 and closed: the peer has a minute to say FIN."""
        timer = self.life_timer
        if timer is None or timer.deadline is None or self.keepalive is not None:
            self.keepalive = None
            self._look_after_it(now + TCP_ORPHAN_AFTER)
