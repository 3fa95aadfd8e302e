"""When to send again: the retransmission timeout (RFC 6298) and fast recovery (RFC 6582).

RoundTrip measures and keeps the timeout. Recovery reads duplicate acknowledgements. Both only say
what is to be believed lost (SendHalf.lose); sending is output.py's work. What happens when the
timer of a connection expires is at the end: an unanswered SYN, unacknowledged text, or a window
that stays closed (RFC 9293 section 3.8.6.1). A connection has one timer for all three, so that they
cannot get in each other's way.

Fast recovery is written without RFC 6582's inflated window. Each duplicate acknowledgement says
that a segment has left the network; its bytes are `departed` and no longer count as in flight,
which comes to the same. (With SACK, the bytes that have left will be known instead of guessed.) The
first two duplicates release a new segment each for the same reason: that is limited transmit (RFC
3042)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import MILLISECOND, Instant
from appliance.limits import (
    TCP_RTO_AFTER_SYN_LOSS,
    TCP_RTO_INITIAL,
    TCP_RTO_MAX,
    TCP_RTO_MIN,
)
from appliance.netstack.tcp import packet_size
from appliance.netstack.tcp.patience import in_time, why_give_up
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import HANDSHAKING

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

DUPLICATES_MEAN_LOSS: Final = 3
"""RFC 5681 section 3.2."""


class RoundTrip:
    """The smoothed round-trip time, and the timeout that follows from it (RFC 6298 section 2)."""

    __slots__ = ("rto", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt: int | None = None
        self.rttvar = 0
        self.rto: int = TCP_RTO_INITIAL

    def sample(self, rtt: int) -> None:
        """A segment that was sent once was acknowledged after `rtt`. This ends a backoff, too."""
        if self.srtt is None:  # (2.2)
            self.srtt = rtt
            self.rttvar = rtt >> 1
        else:  # (2.3)
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) >> 2
            self.srtt += (rtt - self.srtt) >> 3
        rto = self.srtt + max(MILLISECOND, 4 * self.rttvar)
        self.rto = min(max(rto, TCP_RTO_MIN), TCP_RTO_MAX)  # (2.4), (2.5)

    def back_off(self) -> None:
        """(5.5)"""
        self.rto = min(2 * self.rto, TCP_RTO_MAX)

    def syn_was_lost(self) -> None:
        """(5.7)"""
        if self.srtt is None:
            self.rto = TCP_RTO_AFTER_SYN_LOSS


class Recovery:
    """What duplicate acknowledgements mean (RFC 6582 section 3.2, its step numbers)."""

    __slots__ = ("active", "duplicates", "partial", "recover", "timed_out_at")

    def __init__(self, iss: int) -> None:
        self.active = False
        self.duplicates = 0
        self.partial = False  # a partial acknowledgement has come in this recovery
        self.recover = iss - 1  # step 1, for a loss in the first window, too
        self.timed_out_at = iss

    def duplicate(self, c: Connection) -> None:
        """An acknowledgement that says nothing but that a segment has arrived."""
        snd = c.snd
        if self.active:
            self._departed(c)
            return
        if snd.una - 1 <= self.recover:
            # Step 2. Bytes that were out at the last loss: something has only arrived twice.
            return
        self.duplicates += 1
        self._departed(c)
        if self.duplicates < DUPLICATES_MEAN_LOSS:
            return
        self.active = True
        self.partial = False
        self.recover = snd.nxt
        c.congestion.lost(snd.nxt - snd.una)
        snd.lose(snd.una, min(snd.una + c.mss, snd.nxt))
        c.send_at_once = True
        c.counters["tcp.fast_retransmits"] += 1

    def _departed(self, c: Connection) -> None:
        snd = c.snd
        snd.departed = min(snd.departed + c.mss, snd.nxt - snd.una)
        c.mark()

    def advanced(self, c: Connection, acked: int, flight: int, now: Instant) -> None:
        """New bytes were acknowledged, while duplicates had been counted or recovery was active."""
        snd = c.snd
        self.duplicates = 0
        if not self.active:
            snd.departed = 0
            c.congestion.acknowledged(acked, flight)
        elif snd.una >= self.recover:  # step 3: full acknowledgement
            self.active = False
            snd.departed = 0
            c.congestion.recovered(snd.nxt - snd.una)
        else:  # step 3: partial acknowledgement: the next hole
            snd.departed = max(snd.departed - acked + c.mss, 0) if acked >= c.mss else 0
            snd.departed = min(snd.departed, snd.nxt - snd.una)
            snd.lose(snd.una, min(snd.una + c.mss, snd.nxt))
            c.send_at_once = True
            if not self.partial:
                self.partial = True
                c.resend_timer.set(now + c.round_trip.rto)

    def timed_out(self, c: Connection) -> bool:
        """Step 4. Was it for bytes for which the timer had expired before?"""
        again = self.timed_out_at == c.snd.una
        self.timed_out_at = c.snd.una
        self.start_over(c)
        return again

    def start_over(self, c: Connection) -> None:
        """All that is out is going to be sent again."""
        self.active = False
        self.duplicates = 0
        self.recover = c.snd.nxt
        c.snd.departed = 0


def acknowledged(c: Connection, ack: int, now: Instant, echo: int = 0) -> None:
    """SND.UNA moves to `ack`, which is at most SND.NXT. `echo` is the timestamp of ours that came
    back with it."""
    snd = c.snd
    flight = snd.nxt - snd.una
    acked = ack - snd.una
    snd.acknowledge(ack)
    c.progress_at = now
    c.send_at_once = False
    if snd.timed is not None and ack >= snd.timed:
        c.round_trip.sample(now - snd.timed_at)
        snd.timed = None
    elif snd.timed is None and echo:
        # A timestamp tells which of the copies has arrived (RFC 7323 section 4.1). Without one, a
        # backoff would last until something new is sent.
        age = now // MILLISECOND + c.stamp_base - echo & MASK
        if age * MILLISECOND <= TCP_RTO_MAX:
            c.round_trip.sample(max(age, 1) * MILLISECOND)
    recovery = c.recovery
    if not recovery.active and not recovery.duplicates:
        if ack - 1 <= recovery.recover and acked > c.mss:
            # It fills a hole and covers what had arrived behind it: one segment has left the
            # network now, not all of them (RFC 3465 section 2.3).
            acked = c.mss
        c.congestion.acknowledged(acked, flight)
        restart = True
    else:
        restart = not recovery.active
        recovery.advanced(c, acked, flight, now)
        restart = restart or not recovery.active
    if ack == snd.nxt:
        c.resend_timer.clear()  # RFC 6298 (5.2)
    elif restart:
        c.resend_timer.set(now + c.round_trip.rto)  # (5.3)
    if snd.nxt < snd.limit or snd.lost < snd.lost_end:
        c.mark()


# --- the timer ---------------------------------------------------------------


def timer_expired(c: Connection, now: Instant) -> None:
    """Nothing came back for what was sent last, or the window has stayed closed."""
    reason = why_give_up(c, now)
    if reason is not None:
        c.counters["tcp.timeouts"] += 1
        if c.state in HANDSHAKING:
            c.end(reason)
        else:
            c.give_up(reason)
        return
    snd = c.snd
    if c.state in HANDSHAKING:
        c.round_trip.back_off()
        snd.timed = None
        c.syn_due = c.syn_was_lost = True
        interval = c.round_trip.rto
    elif snd.una == snd.nxt or snd.wnd == 0:
        interval = _probe(c)
    else:
        packet_size.timed_out(c, now)
        c.congestion.timed_out(snd.nxt - snd.una, again=c.recovery.timed_out(c))
        c.round_trip.back_off()
        snd.lose(snd.una, snd.nxt)
        interval = c.round_trip.rto
    c.counters["tcp.retransmission_timeouts"] += 1
    c.resend_timer.set(in_time(c, now + interval))
    c.predict()
    c.mark()


def _probe(c: Connection) -> Instant:
    """The window is closed, or too small to be worth a segment: send something anyway, to learn
    whether it has opened. Answered probes are no sign of trouble: they go on, further and further
    apart (RFC 9293 section 3.8.6.1)."""
    snd = c.snd
    if snd.una < snd.nxt:
        snd.lose(snd.una, snd.una + 1)
    c.send_at_once = True
    c.probes += 1
    return probe_interval(c)


def probe_interval(c: Connection) -> Instant:
    """Until the next probe of a window that does not open."""
    return int(min(c.round_trip.rto << min(c.probes, 16), TCP_RTO_MAX))
