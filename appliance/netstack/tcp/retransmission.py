"""When to send again: the round-trip time, the timeout (RFC 6298), and the timer.

RoundTrip measures and keeps the timeout. `acknowledged` is what every acknowledgement of something
new does; what else one may mean is found out by recovery.py, or with SACK by sack_recovery.py. All
of them only say what is to be believed lost (SendHalf.lose); sending is output.py's work.

What happens when the timer of a connection expires is at the end: an unanswered SYN,
unacknowledged text, or a window that stays closed (RFC 9293 section 3.8.6.1). A connection has one
timer for all of this, so that they cannot get in each other's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import (
    TCP_PROBE_TIMEOUT_MIN,
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

LEAST_LASTS: Final = 300 * SECOND
"""A path whose round trip has become longer is believed after so long (RFC 8985 section 6.2)."""

_SURELY_LESS: Final = TCP_RTO_MIN - MILLISECOND
"""Than TCP_RTO_MIN, with whatever variance."""


class RoundTrip:
    """The smoothed round-trip time, and the timeout that follows from it (RFC 6298 section 2)."""

    __slots__ = ("_least_until", "least", "rto", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt: int | None = None
        self.rttvar = 0
        self.rto: int = TCP_RTO_INITIAL
        self.least = 0  # the shortest lately (RACK.min_RTT)
        self._least_until = -1

    def sample(self, rtt: int, now: Instant) -> None:
        """A segment that was sent once was acknowledged after `rtt`. This ends a backoff, too."""
        srtt = self.srtt
        if srtt is None:  # (2.2)
            self.srtt = srtt = rtt
            self.rttvar = rttvar = rtt >> 1
        else:  # (2.3)
            error = rtt - srtt
            rttvar = self.rttvar
            self.rttvar = rttvar = rttvar + ((error if error > 0 else -error) - rttvar >> 2)
            self.srtt = srtt = srtt + (error >> 3)
        rto = srtt + (rttvar << 2)
        if rto < _SURELY_LESS:  # (2.4)
            self.rto = TCP_RTO_MIN
        else:  # (2.3), (2.5)
            rto = max(rto, srtt + MILLISECOND, TCP_RTO_MIN)
            self.rto = rto if rto < TCP_RTO_MAX else TCP_RTO_MAX
        if rtt < self.least or now > self._least_until:
            self.least = rtt
            self._least_until = now + LEAST_LASTS

    @property
    def probe_timeout(self) -> Instant:
        """How long to wait for an acknowledgement of the tail (PTO, RFC 8985 section 7.2)."""
        if self.srtt is None:
            return self.rto
        return min(max(2 * self.srtt, TCP_PROBE_TIMEOUT_MIN), self.rto)

    def back_off(self) -> None:
        """(5.5)"""
        self.rto = min(2 * self.rto, TCP_RTO_MAX)

    def syn_was_lost(self) -> None:
        """(5.7)"""
        if self.srtt is None:
            self.rto = TCP_RTO_AFTER_SYN_LOSS


def acknowledged(c: Connection, ack: int, now: Instant, echo: int = 0) -> None:
    """SND.UNA moves to `ack`, which is at most SND.NXT. `echo` is the timestamp of ours that came
    back with it."""
    snd = c.snd
    una = snd.una
    flight, acked = snd.nxt - una, ack - una
    calm = c.recovery.calm
    if not calm:
        c.recovery.before(c, ack, now, echo)
    snd.acknowledge(ack)
    c.progress_at = now
    c.send_at_once = False
    timed = snd.timed
    if timed is not None:
        if ack >= timed:
            c.round_trip.sample(now - snd.timed_at, now)
            snd.timed = None
    elif echo:
        _sample_copy(c, echo, now)
    if calm:
        congestion = c.congestion
        if flight * 2 >= congestion.window:  # or it did not limit us, and would not grow
            congestion.acknowledged(acked, flight, now)
        if acked == flight:
            c.resend_timer.deadline = None  # (5.2)
        else:
            # RFC 6298 (5.3), or first a probe of the tail: the same as Recovery.arm, but shorter.
            trip = c.round_trip
            probed = c.sacks and flight - acked > c.mss
            c.resend_timer.set(now + (trip.probe_timeout if probed else trip.rto))
    else:
        _advanced(c, acked, flight, now, echo)
    if snd.nxt < snd.limit or snd.lost.size:
        c.mark()


def _advanced(c: Connection, acked: int, flight: int, now: Instant, echo: int) -> None:
    """The same, while there is something to recover from."""
    restart = c.recovery.advanced(c, acked, flight, now, echo)
    if acked == flight:
        c.resend_timer.clear()  # (5.2)
    elif restart:
        c.recovery.arm(c, now)  # (5.3)


def _sample_copy(c: Connection, echo: int, now: Instant) -> None:
    """What is acknowledged was sent again. A timestamp tells which of the copies has arrived (RFC
    7323 section 4.1). Without one, a backoff would last until something new is sent."""
    age = now // MILLISECOND + c.stamp_base - echo & MASK
    if age * MILLISECOND <= TCP_RTO_MAX:
        c.round_trip.sample(max(age, 1) * MILLISECOND, now)


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
    elif snd.una < snd.nxt and c.recovery.expired(c, now):
        return
    elif snd.una == snd.nxt or snd.wnd == 0:
        interval = _probe(c)
    else:
        packet_size.timed_out(c, now)
        flight = snd.nxt - snd.una
        c.congestion.timed_out(flight, c.recovery.timed_out(c, now), now)
        c.round_trip.back_off()
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
