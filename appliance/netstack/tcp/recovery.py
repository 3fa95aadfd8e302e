"""Fast recovery without SACK: what duplicate acknowledgements mean (RFC 6582).

It is written without RFC 6582's inflated window. Each duplicate acknowledgement says that a segment
has left the network; its bytes are `departed` and no longer count as in flight, which comes to the
same. (With SACK the bytes that have left are known instead of guessed: sack_recovery.py.) The first
two duplicates release a new segment each for the same reason: that is limited transmit (RFC 3042).

The interface that both kinds of recovery share:

    calm                 nothing is going on: an acknowledgement means just what it says
    active               fast recovery is going on
    before, advanced     SND.UNA is about to move; it has moved
    duplicate            an acknowledgement that did not move it
    expired              the timer has: was it for something of ours, and no timeout?
    timed_out            it was a timeout
    start_over           all that is out is going to be sent again, for another reason
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from appliance.clock import Instant
from appliance.netstack.tcp.undo import Undo
from appliance.netstack.wire.tcp import Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

DUPLICATES_MEAN_LOSS: Final = 3
"""RFC 5681 section 3.2."""


class Recovery(Protocol):
    """What both kinds of recovery have."""

    active: bool
    calm: bool
    duplicates: int
    recover: int
    """SND.NXT at the last loss."""
    undo: Undo

    def blocks(self, c: Connection, seg: Segment, now: Instant) -> None:
        """The segment has SACK blocks, and both sides use them."""

    def duplicate(self, c: Connection, now: Instant) -> None:
        """An acknowledgement that does not move SND.UNA, but says that something has arrived."""

    def before(self, c: Connection, ack: int, now: Instant, echo: int) -> None:
        """SND.UNA is going to move to `ack`. Not while it is calm."""

    def advanced(self, c: Connection, acked: int, flight: int, now: Instant, echo: int) -> bool:
        """It has moved by `acked` bytes, of `flight` that were out. Not while it is calm. Does the
        retransmission timer begin anew?"""

    def resent(self, c: Connection, seq: int, count: int, now: Instant) -> None:
        """`count` bytes went out again, from `seq` on."""

    def arm(self, c: Connection, now: Instant) -> None:
        """SND.UNA has moved, and not everything is acknowledged: set the timer."""

    def expired(self, c: Connection, now: Instant) -> bool:
        """The timer of the connection has expired. False: it was a timeout."""

    def timed_out(self, c: Connection, now: Instant) -> bool:
        """A timeout: say what is lost. Was it for bytes for which the timer had expired before?"""

    def start_over(self, c: Connection) -> None:
        """All that is out is going to be sent again."""


class NewRenoRecovery:
    """Recovery of a connection without SACK (RFC 6582 section 3.2, its step numbers)."""

    __slots__ = ("active", "calm", "duplicates", "partial", "recover", "timed_out_at", "undo")

    def __init__(self, iss: int) -> None:
        self.calm = True
        self.active = False
        self.duplicates = 0
        self.partial = False  # a partial acknowledgement has come in this recovery
        self.recover = iss - 1  # step 1, for a loss in the first window, too
        self.timed_out_at = iss
        self.undo = Undo()

    def blocks(self, c: Connection, seg: Segment, now: Instant) -> None:
        """Not agreed to, so not looked at."""

    def before(self, c: Connection, ack: int, now: Instant, echo: int) -> None:
        """Nothing has to be known of the bytes."""

    def resent(self, c: Connection, seq: int, count: int, now: Instant) -> None:
        self.undo.resent(c, seq, count, now)

    def arm(self, c: Connection, now: Instant) -> None:
        c.resend_timer.set(now + c.round_trip.rto)

    def expired(self, c: Connection, now: Instant) -> bool:
        """There is nothing but timeouts."""
        return False

    def duplicate(self, c: Connection, now: Instant) -> None:
        snd = c.snd
        if self.active:
            self._departed(c)
            return
        if snd.una - 1 <= self.recover:
            # Step 2. Bytes that were out at the last loss: something has only arrived twice.
            return
        self.calm = False
        self.duplicates += 1
        self._departed(c)
        if self.duplicates < DUPLICATES_MEAN_LOSS:
            return
        self.active = True
        self.partial = False
        self.recover = snd.nxt
        self.undo.begin()
        c.congestion.lost(snd.nxt - snd.una, now)
        snd.lose(snd.una, min(snd.una + c.mss, snd.nxt))
        c.send_at_once = True
        c.counters["tcp.fast_retransmits"] += 1

    def _departed(self, c: Connection) -> None:
        snd = c.snd
        snd.departed = min(snd.departed + c.mss, snd.nxt - snd.una)
        c.mark()

    def advanced(self, c: Connection, acked: int, flight: int, now: Instant, echo: int) -> bool:
        snd = c.snd
        self.duplicates = 0
        if self.undo.original_arrived(snd.una, echo):
            self._take_back(c)
            return True
        if not self.active:
            snd.departed = 0
            self.calm = snd.una - 1 > self.recover
            if not self.calm:
                # It fills a hole and covers what had arrived behind it: one segment has left the
                # network now, not all of them (RFC 3465 section 2.3).
                acked = min(acked, c.mss)
            c.congestion.acknowledged(acked, flight, now)
            return True
        if snd.una >= self.recover:  # step 3: full acknowledgement, the first choice
            self.active = False
            self.calm = snd.una - 1 > self.recover
            snd.departed = 0
            # No burst into a network that has emptied.
            congestion = c.congestion
            congestion.window = min(congestion.threshold, max(snd.nxt - snd.una, c.mss) + c.mss)
            return True
        # Step 3: partial acknowledgement: the next hole.
        snd.departed = max(snd.departed - acked + c.mss, 0) if acked >= c.mss else 0
        snd.departed = min(snd.departed, snd.nxt - snd.una)
        snd.lose(snd.una, min(snd.una + c.mss, snd.nxt))
        c.send_at_once = True
        first, self.partial = not self.partial, True
        return first

    def _take_back(self, c: Connection) -> None:
        """Nothing was lost."""
        self.undo.give_up()
        self.active = False
        self.recover = c.snd.una - 2
        self.calm = True
        c.snd.departed = 0
        take_back(c)

    def timed_out(self, c: Connection, now: Instant) -> bool:
        """Step 4."""
        again = self.timed_out_at == c.snd.una
        self.timed_out_at = c.snd.una
        if not again:
            self.undo.begin()
        self._all_again(c)
        c.snd.lose(c.snd.una, c.snd.nxt)
        return again

    def start_over(self, c: Connection) -> None:
        self._all_again(c)
        self.undo.give_up()

    def _all_again(self, c: Connection) -> None:
        self.active = self.calm = False
        self.duplicates = 0
        self.recover = c.snd.nxt
        c.snd.departed = 0


def take_back(c: Connection) -> None:
    """What was believed lost is in flight, and the window is what it was (RFC 4015 section 3)."""
    c.snd.lost.clear()
    c.send_at_once = False
    c.congestion.undo()
    c.counters["tcp.spurious_retransmissions"] += 1
    c.mark()
