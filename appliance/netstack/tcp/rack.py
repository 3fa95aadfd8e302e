"""Which bytes are lost: RACK, recent acknowledgement (RFC 8985 section 6).

Not how much has arrived behind a byte decides, but what was sent after it: when something that was
sent later has arrived, and then some more time has passed (the reordering window), a byte that has
not arrived is lost. That holds for what was sent again as well, so a retransmission that gets lost
needs no timeout.

The steps of section 6.2 are the methods: (1) and (2) are `delivered`, (3) is in it, (4) is
`window`, (5) is `lost`. Bytes have no segments here: their times come from send_times.py, and parts
of a run that left at once are told apart by their sequence numbers, as segments would be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import MILLISECOND, Instant
from appliance.limits import TCP_RTO_MAX
from appliance.netstack.tcp.sequence import MASK, is_before

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

DUPLICATES_MEAN_LOSS: Final = 3
"""DupThresh of RFC 6675: so many segments behind a hole, and it is believed to be one."""

MULTIPLIER_LASTS: Final = 16
"""RFC 8985 section 6.2 step 4: recoveries for which a widened reordering window stays."""

Lost = list[tuple[int, int, Instant, bool]]
"""Left, right, when it was sent, and whether that was again."""


class Rack:
    """What is known from the most recent of all deliveries."""

    __slots__ = (
        "_dsack_round", "_end", "_fack", "_fack_next", "_lasts", "_multiplier", "_sent_at",
        "reordered", "rtt", "wait",
    )  # fmt: skip

    def __init__(self) -> None:
        self._sent_at: Instant = -1  # RACK.xmit_ts: when that was sent, which was sent last
        self._end = 0  # RACK.end_seq: of two sent at once, the one behind counts
        self.rtt: Instant = 0  # RACK.rtt: how long it took
        self._fack = 0  # RACK.fack: the highest byte that has arrived
        self._fack_next = 0  # the same, after the acknowledgement that is being looked at
        self.reordered = False  # RACK.reordering_seen
        self._multiplier = 1  # RACK.reo_wnd_mult
        self._lasts = 0  # RACK.reo_wnd_persist
        self._dsack_round: int | None = None
        self.wait: Instant | None = None
        """After which time, from when `lost` was asked, it should be asked again."""

    def delivered(self, c: Connection, left: int, right: int, now: Instant, echo: int) -> None:
        """[left, right) has arrived, as an acknowledgement says that echoes `echo` (0: none)."""
        for start, end, sent_at, again in c.snd.times.of(left, right):
            rtt = now - sent_at
            if again:
                # Which of the copies has arrived? (6.2 step 2)
                if echo and is_before(echo, sent_at // MILLISECOND + c.stamp_base & MASK):
                    continue
                if rtt < c.round_trip.least:
                    continue
            elif start < self._fack:
                self.reordered = True  # (6.2 step 3)
            if (sent_at, end) > (self._sent_at, self._end):
                self._sent_at, self._end, self.rtt = sent_at, end, rtt
            self._fack_next = max(self._fack_next, end)

    def noted(self) -> None:
        """That was all of one acknowledgement."""
        self._fack = self._fack_next

    def duplicated(self, c: Connection, ack: int) -> None:
        """(6.2 step 4) A D-SACK: something was sent again too soon. Once in a round trip, wait for
        longer."""
        if self._dsack_round is None or ack >= self._dsack_round:
            self._dsack_round = c.snd.nxt
            self._multiplier += 1
        self._lasts = MULTIPLIER_LASTS

    def recovered(self) -> None:
        """A recovery is over."""
        self._lasts -= 1
        if self._lasts <= 0:
            self._multiplier = 1

    def window(self, c: Connection, recovering: bool) -> Instant:
        """(6.2 step 4) How much longer to wait for what may only have been overtaken."""
        sacked, trip = c.snd.sacked, c.round_trip
        if not self.reordered and (
            recovering
            or len(sacked) >= DUPLICATES_MEAN_LOSS
            or sacked.size > (DUPLICATES_MEAN_LOSS - 1) * c.mss
        ):
            return 0
        return min(self._multiplier * trip.least // 4, trip.srtt or 0)

    def lost(self, c: Connection, now: Instant, recovering: bool) -> Lost:
        """(6.2 step 5) What is lost and was not believed to be. Sets `wait`."""
        snd = c.snd
        patience = self.rtt + self.window(c, recovering) - now
        lost: Lost = []
        self.wait = None
        longest = 0
        for gap in snd.sacked.gaps(snd.una, snd.nxt):
            for left, right in snd.lost.gaps(*gap):
                for start, end, sent_at, again in snd.times.of(left, right):
                    stop = end if sent_at < self._sent_at else min(end, self._end)
                    if sent_at > self._sent_at or start >= stop:
                        continue  # nothing that was sent after it has arrived
                    remaining = sent_at + patience
                    if remaining <= 0:
                        lost.append((start, stop, sent_at, again))
                    else:
                        longest = max(longest, remaining)
        if longest:
            self.wait = min(longest, TCP_RTO_MAX)
        return lost

    def overdue(self, c: Connection, sent_at: Instant, now: Instant) -> bool:
        """(6.3) At a timeout: should that have arrived by now?"""
        rtt = self.rtt or c.round_trip.srtt or 0
        return sent_at + rtt + self.window(c, recovering=False) <= now
