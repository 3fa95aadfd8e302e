"""Fast recovery with SACK: scoreboard, loss detection, tail loss probes, and how fast to send.

    scoreboard      SendHalf.sacked and .lost, as runs of bytes (RFC 2018, RFC 6675)
    what is lost    rack.py (RFC 8985 section 6); found out at each acknowledgement that is not
                    calm, and once more when the reordering window has passed
    the tail        a probe when nothing has come back for two round trips (RFC 8985 section 7)
    how fast        proportional rate reduction (RFC 6937): per acknowledgement, the window is what
                    is in flight and as much more as may be sent for what has been delivered

What is lost is sent again by output.py, before anything new, from whatever byte to whatever byte.
Limited transmit (RFC 3042) comes by itself: what is SACKed is not in flight.

The timer of a connection stands for three deadlines here, and `expired` looks which it was: the
reordering window, a probe, or the retransmission timeout. A probe never puts the timeout off: that
is counted from the last progress, or from when the timer last acted or SND.UNA was sent again
(`_acted_at`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.limits import TCP_SACK_RANGES_MAX
from appliance.netstack.tcp.rack import Rack
from appliance.netstack.tcp.recovery import take_back
from appliance.netstack.tcp.sack import blocks_of
from appliance.netstack.tcp.undo import Undo
from appliance.netstack.wire.tcp import Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection


class SackRecovery:
    """Recovery of a connection with SACK."""

    __slots__ = (
        "_acted_at",
        "_delivered",
        "_dsacked",
        "_echo",
        "_entered_at",
        "_flight_at_loss",
        "_in_flight",
        "_probe_again",
        "_probe_end",
        "_prr_delivered",
        "_prr_out",
        "_reorder_at",
        "_timed_out_at",
        "_unanswered",
        "active",
        "calm",
        "duplicates",
        "rack",
        "recover",
        "undo",
    )  # fmt: skip

    def __init__(self, iss: int) -> None:
        self.calm = True
        self.active = False
        self.duplicates = 0  # nobody counts them here
        self.recover = iss - 1
        self.rack = Rack()
        self.undo = Undo()
        self._delivered = 0  # bytes, by the acknowledgement that is being looked at
        self._dsacked = False  # it has a D-SACK
        self._echo = 0
        self._unanswered = False  # a loss that congestion control has not heard of
        self._entered_at: Instant = 0
        self._timed_out_at = iss
        # RFC 6937 section 3
        self._flight_at_loss = 1  # RecoverFS
        self._prr_delivered = 0
        self._prr_out = 0
        self._in_flight = 0  # after the last acknowledgement
        # RFC 8985 section 7
        self._probe_end: int | None = None  # TLP.end_seq
        self._probe_again = False  # TLP.is_retrans
        self._reorder_at: Instant | None = None
        self._acted_at: Instant = 0

    # --- an acknowledgement ----------------------------------------------------------------------

    def blocks(self, c: Connection, seg: Segment, now: Instant) -> None:
        """Note what the blocks say. What follows from it, `advanced` or `duplicate` will do."""
        snd = c.snd
        self.calm = False
        self._echo = seg.timestamp[1] if c.stamps and seg.timestamp is not None else 0
        duplicate, blocks = blocks_of(c, seg)
        if duplicate is not None:
            self._duplicated(c, seg.ack, *duplicate)
        self._sent_since(c)
        for left, right in blocks:
            for gap in snd.sacked.gaps(left, right):
                if len(snd.sacked) >= TCP_SACK_RANGES_MAX:
                    c.counters["tcp.sack_ranges_full"] += 1
                    return
                self._arrived(c, *gap, now)
                snd.sack(*gap)

    def _duplicated(self, c: Connection, ack: int, left: int, right: int) -> None:
        """A D-SACK (RFC 2883), with an acknowledgement up to `ack`."""
        self._dsacked = True
        c.counters["tcp.dsacks_received"] += 1
        if self._probe_end is not None and self._probe_again and right == self._probe_end:
            return  # a probe was not needed: that says nothing about the order of packets
        self.rack.duplicated(c, ack)
        if self.undo.duplicated(right - left):
            self._take_back(c)

    def _arrived(self, c: Connection, left: int, right: int, now: Instant) -> None:
        self._delivered += right - left
        self.rack.delivered(c, left, right, now, self._echo)

    def before(self, c: Connection, ack: int, now: Instant, echo: int) -> None:
        self._echo = echo
        self._sent_since(c)
        for gap in c.snd.sacked.gaps(c.snd.una, ack):
            self._arrived(c, *gap, now)

    def advanced(self, c: Connection, acked: int, flight: int, now: Instant, echo: int) -> bool:
        snd = c.snd
        if self.undo.original_arrived(snd.una, echo):
            self._take_back(c)
        elif self.active:
            if snd.una >= self.recover:
                self._recovered(c)
        else:
            if snd.una - acked < self.recover:
                # A timeout is being mended: what had arrived long before does not count again.
                acked = min(acked, self._delivered)
            c.congestion.acknowledged(acked, flight, now)
        self._consider(c, now)
        return True

    def duplicate(self, c: Connection, now: Instant) -> None:
        self._consider(c, now)
        self.arm(c, now)
        c.mark()

    def _consider(self, c: Connection, now: Instant) -> None:
        """The scoreboard is up to date: what is lost, and how much may be sent?"""
        snd = c.snd
        self.rack.noted()
        self._probe_answered(c, now)
        self._detect(c, now)
        if self.active:
            self._proportional_rate(c)
        self._delivered = 0
        self._dsacked = False
        self._in_flight = snd.flight
        self.calm = (
            not (self.active or snd.sacked.size or snd.lost.size)
            and self._probe_end is None
            and snd.una >= self.recover
        )

    def _detect(self, c: Connection, now: Instant) -> None:
        """Let RACK look, and begin a recovery if that finds something."""
        snd, rack = c.snd, self.rack
        for left, right, sent_at, again in rack.lost(c, now, self.active):
            snd.lose(left, right)
            c.counters["tcp.bytes_lost"] += right - left
            if again and self.active and sent_at >= self._entered_at:
                # A lost retransmission is a second sign of congestion (RFC 5681 section 4.3).
                self._enter(c, now)
            elif right > self.recover:
                self._unanswered = True
        self._reorder_at = None if rack.wait is None else now + rack.wait
        if self._unanswered and not self.active and snd.una >= self.recover:
            self._enter(c, now)

    def _enter(self, c: Connection, now: Instant) -> None:
        """Fast recovery begins (RFC 6675 section 5 step 4; RFC 6937)."""
        snd = c.snd
        self.active = True
        self._unanswered = False
        self._entered_at = now
        self.recover = snd.nxt
        self._probe_end = None
        self._flight_at_loss = max(snd.nxt - snd.una, 1)
        self._prr_delivered = self._prr_out = 0
        self.undo.begin()
        c.congestion.lost(snd.nxt - snd.una, now)
        c.send_at_once = True
        c.counters["tcp.fast_retransmits"] += 1

    def _recovered(self, c: Connection) -> None:
        self.active = False
        self.rack.recovered()
        c.congestion.window = c.congestion.threshold

    def _take_back(self, c: Connection) -> None:
        """Nothing was lost."""
        self.undo.give_up()
        self.active = self._unanswered = False
        self.recover = c.snd.una - 2
        take_back(c)

    # --- how fast ---------------------------------------------------------------------------------

    def _sent_since(self, c: Connection) -> None:
        """Before the first change by an acknowledgement: what was sent since the last one?"""
        if self.active:
            self._prr_out += max(c.snd.flight - self._in_flight, 0)
            self._in_flight = c.snd.flight

    def _proportional_rate(self, c: Connection) -> None:
        """RFC 6937 section 3.1, with the slow start reduction bound."""
        congestion = c.congestion
        in_flight, threshold = c.snd.flight, congestion.threshold
        self._prr_delivered += self._delivered
        if in_flight > threshold:
            share = -(-self._prr_delivered * threshold // self._flight_at_loss)
            count = share - self._prr_out
        else:
            limit = max(self._prr_delivered - self._prr_out, self._delivered) + c.mss
            count = min(threshold - in_flight, limit)
        congestion.window = max(in_flight + max(count, 0), c.mss)

    # --- the tail ---------------------------------------------------------------------------------

    def _probe_answered(self, c: Connection, now: Instant) -> None:
        """RFC 8985 section 7.4.2: had the probe mended a loss?"""
        end, snd = self._probe_end, c.snd
        if end is None or snd.una < end:
            return
        if not self._probe_again or self._dsacked:
            self._probe_end = None  # it was new text, or not needed
        elif snd.una > end:  # (if it was not needed, the D-SACK would have come before)
            self._probe_end = None
            c.congestion.lost(snd.nxt - snd.una, now)

    def _send_probe(self, c: Connection, now: Instant) -> None:
        """RFC 8985 section 7.3: new text if there is any, or else the last segment again."""
        snd = c.snd
        c.counters["tcp.tail_loss_probes"] += 1
        new = snd.nxt < snd.end and snd.una + snd.wnd - snd.nxt >= min(c.mss, snd.end - snd.nxt)
        if not new:
            snd.lose(max(snd.una, snd.nxt - c.mss), snd.nxt)
        self._probe_again = not new
        self._probe_end = snd.nxt + (min(c.mss, snd.end - snd.nxt) if new else 0)
        self.calm = False
        c.send_at_once = True

    # --- the timer --------------------------------------------------------------------------------

    def timeout_at(self, c: Connection) -> Instant:
        """When the retransmission timer expires (RFC 6298)."""
        return max(c.progress_at, self._acted_at) + c.round_trip.rto

    def _may_probe(self, c: Connection) -> bool:
        """RFC 8985 section 7.2. With one segment in flight a probe would have to wait for a delayed
        acknowledgement, and is no sooner than the timeout."""
        snd = c.snd
        return (
            not self.active
            and self._probe_end is None
            and not snd.sacked.size
            and not snd.lost.size
            and snd.una >= self.recover
            and snd.nxt - snd.una > c.mss
            and snd.wnd > 0
        )

    def resent(self, c: Connection, seq: int, count: int, now: Instant) -> None:
        self.undo.resent(c, seq, count, now)
        if seq == c.snd.una:
            # A retransmission gets the full timeout, too: RACK will say if it is lost, and that
            # takes a round trip more.
            self._acted_at = now

    def arm(self, c: Connection, now: Instant) -> None:
        """Set the timer to whatever comes first."""
        deadline = self.timeout_at(c)
        if self._reorder_at is not None:
            deadline = min(deadline, self._reorder_at)
        elif self._may_probe(c):
            probe_at = max(c.sent_at, c.progress_at) + c.round_trip.probe_timeout
            deadline = min(deadline, probe_at)
        c.resend_timer.set(max(deadline, now + 1))

    def expired(self, c: Connection, now: Instant) -> bool:
        if now >= self.timeout_at(c):
            return False
        if self._reorder_at is not None and now >= self._reorder_at:
            self._sent_since(c)
            self._consider(c, now)
        elif self._may_probe(c) and now >= c.sent_at + c.round_trip.probe_timeout:
            self._send_probe(c, now)
            self._acted_at = now
        self.arm(c, now)
        c.predict()
        c.mark()
        return True

    def timed_out(self, c: Connection, now: Instant) -> bool:
        snd = c.snd
        again = self._timed_out_at == snd.una
        self._timed_out_at = snd.una
        if not again:
            self.undo.begin()
        if snd.una in snd.sacked:
            # The peer has thrown away what it said it had (RFC 2018 section 8).
            c.counters["tcp.sack_reneged"] += 1
            snd.forget_sacks()
        self._all_again(c)
        self._acted_at = now
        for gap in snd.sacked.gaps(snd.una, snd.nxt):
            for left, right, sent_at, _ in list(snd.times.of(*gap)):
                # RFC 8985 section 6.3: what was sent just now may still arrive.
                if again or self.rack.overdue(c, sent_at, now):
                    snd.lose(left, right)
        snd.lose(snd.una, min(snd.una + c.mss, snd.nxt))
        c.send_at_once = True  # whatever is still in flight (RFC 6298 (5.4))
        return again

    def start_over(self, c: Connection) -> None:
        self._all_again(c)
        self.undo.give_up()

    def _all_again(self, c: Connection) -> None:
        self.active = self.calm = self._unanswered = False
        self.recover = c.snd.nxt
        self._probe_end = self._reorder_at = None
