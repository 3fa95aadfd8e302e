"""Congestion control: how much may be in flight (RFC 5681), behind a small interface.

It knows bytes, not segments or time. Which bytes are lost is found out elsewhere
(retransmission.py); an algorithm only hears of it. `mss` is the effective one, options taken off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from appliance.clock import Instant

if TYPE_CHECKING:
    from appliance.netstack.tcp.retransmission import RoundTrip

FLIGHT_MAX: Final = 1 << 30
"""The largest window that window scaling can express (RFC 7323 section 2.3)."""


class Congestion(Protocol):
    """What a congestion control algorithm is told, and what it answers: `window`."""

    window: int
    """Bytes that may be in flight (cwnd). Recovery sets it while it lasts."""

    threshold: int
    """Where slow start ends, and what recovery aims at (ssthresh)."""

    mss: int
    """The effective one; it may become smaller (RFC 1191)."""

    def acknowledged(self, count: int, flight: int, now: Instant) -> None:
        """`count` new bytes were acknowledged, of `flight` that were out. Not during recovery; and
        need not be told where `flight` was less than half the window: that does not grow then."""

    def lost(self, flight: int, now: Instant) -> None:
        """A loss was found out by acknowledgements: the window is made smaller."""

    def timed_out(self, flight: int, again: bool, now: Instant) -> None:
        """The retransmission timer has expired. `again`: and nothing has come since it last did."""

    def undo(self) -> None:
        """The last reduction was needless."""

    def idle(self, now: Instant) -> None:
        """Nothing was sent for longer than a retransmission timeout, and now something will be."""


def initial_window(mss: int) -> int:
    """RFC 6928 section 2."""
    return min(10 * mss, max(2 * mss, 14600))


class NewReno:
    """Slow start, congestion avoidance and the reactions to loss (RFC 5681, RFC 6582)."""

    __slots__ = ("_before", "_credit", "mss", "threshold", "window")

    def __init__(self, mss: int, round_trip: RoundTrip, syn_was_lost: bool = False) -> None:
        self.mss = mss
        self.window = mss if syn_was_lost else initial_window(mss)
        self.threshold = FLIGHT_MAX  # "arbitrarily high"
        self._credit = 0  # bytes acknowledged since the window last grew, in avoidance
        self._before = (self.window, self.threshold)

    def acknowledged(self, count: int, flight: int, now: Instant) -> None:
        """Grow, if the window is what limits the sender: otherwise nothing was learned about the
        network (RFC 7661), and the window would grow without a bound."""
        if flight * 2 < self.window:
            return
        if self.window < self.threshold:
            # Appropriate byte counting without its limit (RFC 3465): one acknowledgement answers
            # a whole super-segment, and a limit of two segments would cost most of the growth.
            self.window = min(self.window + count, FLIGHT_MAX)
            return
        self._avoid(count, now)

    def _avoid(self, count: int, now: Instant) -> None:
        """Congestion avoidance: a segment for each round trip."""
        self._credit += count
        if self._credit >= self.window:
            self._credit -= self.window
            self.window = min(self.window + self.mss, FLIGHT_MAX)

    def lost(self, flight: int, now: Instant) -> None:
        self._before = (self.window, self.threshold)
        self._reduce(min(flight, self.window))
        self.window = self.threshold

    def timed_out(self, flight: int, again: bool, now: Instant) -> None:
        if not again:  # RFC 5681 section 3.1: the same loss is no new sign of congestion
            self._before = (self.window, self.threshold)
            self._reduce(min(flight, self.window))
        self.window = self.mss

    def undo(self) -> None:
        window, threshold = self._before
        self.window = max(self.window, window)
        self.threshold = max(self.threshold, threshold)

    def idle(self, now: Instant) -> None:
        """RFC 5681 section 4.1: the clock of returning acknowledgements has stopped."""
        self.window = min(self.window, initial_window(self.mss))

    def _reduce(self, flight: int) -> None:
        """RFC 5681 equation (4). What limited transmit and recovery sent beyond the window does not
        count (`flight` is without it): it was there because of the loss."""
        self.threshold = max(flight // 2, 2 * self.mss)
        self._credit = 0
