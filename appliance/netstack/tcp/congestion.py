"""Congestion control: how much may be in flight (RFC 5681), behind a small interface.

It knows bytes, not segments or time. Which bytes are lost is found out elsewhere
(retransmission.py); an algorithm only hears of it. `mss` is the effective one, options taken off.
"""

from __future__ import annotations

from typing import Final, Protocol

FLIGHT_MAX: Final = 1 << 30
"""The largest window that window scaling can express (RFC 7323 section 2.3)."""


class Congestion(Protocol):
    """What a congestion control algorithm is told, and what it answers: `window`."""

    window: int
    """Bytes that may be in flight (cwnd)."""

    mss: int
    """The effective one; it may become smaller (RFC 1191)."""

    def acknowledged(self, count: int, flight: int) -> None:
        """`count` new bytes were acknowledged, of `flight` that were out. Not during recovery."""

    def lost(self, flight: int) -> None:
        """A loss was found out by duplicate acknowledgements: recovery begins."""

    def recovered(self, flight: int) -> None:
        """All that was out when the loss was found out has been acknowledged."""

    def timed_out(self, flight: int, again: bool) -> None:
        """The retransmission timer has expired. `again`: and nothing has come since it last did."""

    def idle(self) -> None:
        """Nothing was sent for longer than a retransmission timeout, and now something will be."""


def initial_window(mss: int) -> int:
    """RFC 6928 section 2."""
    return min(10 * mss, max(2 * mss, 14600))


class NewReno:
    """Slow start, congestion avoidance and the reactions to loss (RFC 5681, RFC 6582)."""

    __slots__ = ("_credit", "mss", "threshold", "window")

    def __init__(self, mss: int, syn_was_lost: bool = False) -> None:
        self.mss = mss
        self.window = mss if syn_was_lost else initial_window(mss)
        self.threshold = FLIGHT_MAX  # ssthresh: "arbitrarily high"
        self._credit = 0  # bytes acknowledged since the window last grew, in avoidance

    def acknowledged(self, count: int, flight: int) -> None:
        """Grow, if the window is what limits the sender: otherwise nothing was learned about the
        network (RFC 7661), and the window would grow without a bound."""
        if flight * 2 < self.window:
            return
        if self.window < self.threshold:
            # Appropriate byte counting without its limit (RFC 3465): one acknowledgement answers
            # a whole super-segment, and a limit of two segments would cost most of the growth.
            self.window = min(self.window + count, FLIGHT_MAX)
            return
        self._credit += count
        if self._credit >= self.window:
            self._credit -= self.window
            self.window = min(self.window + self.mss, FLIGHT_MAX)

    def lost(self, flight: int) -> None:
        self.threshold = self._half(flight)
        self.window = self.threshold
        self._credit = 0

    def recovered(self, flight: int) -> None:
        """RFC 6582 section 3.2 step 3, first choice: no burst into a network that has emptied."""
        self.window = min(self.threshold, max(flight, self.mss) + self.mss)

    def timed_out(self, flight: int, again: bool) -> None:
        if not again:  # RFC 5681 section 3.1: the same loss is no new sign of congestion
            self.threshold = self._half(flight)
        self.window = self.mss
        self._credit = 0

    def idle(self) -> None:
        """RFC 5681 section 4.1: the clock of returning acknowledgements has stopped."""
        self.window = min(self.window, initial_window(self.mss))

    def _half(self, flight: int) -> int:
        """RFC 5681 equation (4). What limited transmit and recovery sent beyond the window does not
        count: it was there because of the loss."""
        return max(min(flight, self.window) // 2, 2 * self.mss)
