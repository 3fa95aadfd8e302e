"""CUBIC congestion control (RFC 9438), and which algorithms there are.

In congestion avoidance the window follows a cubic function of the time since the last reduction:
fast while it is far below the window at which that happened, flat near it, then fast again. So a
long path is filled as quickly as a short one. Where NewReno would be faster, CUBIC does as that
would (the Reno-friendly region). All of it is counted in bytes; the RFC's segments are `mss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from appliance.clock import SECOND, Instant
from appliance.netstack.tcp.congestion import FLIGHT_MAX, Congestion, NewReno

if TYPE_CHECKING:
    from appliance.netstack.tcp.retransmission import RoundTrip

C: Final = 0.4
"""Segments for each cubed second (section 5)."""
BETA: Final = 0.7
"""What a loss leaves of the window (section 4.6)."""
ALPHA: Final = 3 * (1 - BETA) / (1 + BETA)
"""Segments that NewReno would have to add for each round trip, to get the same average with a
reduction to BETA (section 4.3)."""


class Cubic(NewReno):
    """Slow start and timeouts are NewReno's; avoidance and the reduction are CUBIC's."""

    __slots__ = (
        "_cubic_before", "_epoch", "_estimate", "_grew_at", "_k", "_prior", "_round_trip", "_w_max",
        "_window",
    )  # fmt: skip

    def __init__(self, mss: int, round_trip: RoundTrip, syn_was_lost: bool = False) -> None:
        super().__init__(mss, round_trip, syn_was_lost)
        self._round_trip = round_trip
        self._w_max = 0.0
        self._prior = 0.0  # cwnd_prior: before the last reduction
        self._k = 0.0  # seconds until the function is at w_max again
        self._epoch: Instant | None = None  # when this stage of avoidance began
        self._grew_at: Instant = 0
        self._estimate = 0.0  # W_est: where NewReno would be
        self._window = 0.0  # the window with its fraction
        self._cubic_before = (0.0, 0.0)

    def _avoid(self, count: int, now: Instant) -> None:
        rtt = self._round_trip.srtt or 0
        if self._epoch is None:
            self._begin(now)
        elif now - self._grew_at > 2 * rtt:
            # The application had nothing to send: that time does not count (section 5.8).
            self._epoch += now - self._grew_at
        self._grew_at = now
        assert self._epoch is not None
        if int(self._window) != self.window:
            self._window = float(self.window)  # recovery or a smaller path has set it
        mss, window = self.mss, self._window
        elapsed = (now - self._epoch) / SECOND
        target = self._cubic(elapsed + rtt / SECOND)
        target = min(max(target, window), 1.5 * window)
        alpha = 1.0 if self._estimate >= self._prior else ALPHA
        self._estimate += alpha * mss * count / window
        if self._cubic(elapsed) < self._estimate:
            window = max(window, self._estimate)  # section 4.3
        else:
            window += (target - window) * count / window  # sections 4.4, 4.5
        self._window = min(window, float(FLIGHT_MAX))
        self.window = int(self._window)

    def _begin(self, now: Instant) -> None:
        """A stage of avoidance begins (section 4.2)."""
        self._epoch = now
        self._grew_at = now
        window = float(self.window)
        if self._w_max < window:  # after a timeout, or slow start without a loss (section 4.8)
            self._w_max = window
        self._k = ((self._w_max - window) / (C * self.mss)) ** (1 / 3)
        self._estimate = window

    def _cubic(self, seconds: float) -> float:
        """W_cubic(t) of equation (1)."""
        return C * self.mss * (seconds - self._k) ** 3 + self._w_max

    def _reduce(self, flight: int) -> None:
        """Sections 4.6 and 4.7: the multiplicative decrease, and fast convergence."""
        self._cubic_before = (self._w_max, self._prior)
        self._w_max = flight * (1 + BETA) / 2 if flight < self._w_max else float(flight)
        self._prior = float(flight)
        self.threshold = max(int(flight * BETA), 2 * self.mss)
        self._epoch = None

    def undo(self) -> None:
        """Section 4.9: all variables are what they were."""
        super().undo()
        self._w_max, self._prior = self._cubic_before
        self._epoch = None

    def idle(self, now: Instant) -> None:
        super().idle(now)
        self._epoch = None


ALGORITHMS: Final[Mapping[str, Callable[..., Congestion]]] = {"cubic": Cubic, "newreno": NewReno}
