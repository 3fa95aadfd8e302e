"""A stack and the link that it is on, as one thing for whoever runs them: reads, timers, bursts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.limits import LINK_BURST_FRAMES
from appliance.netstack.link.interface import ClosableLink
from appliance.netstack.stack import Stack

if TYPE_CHECKING:
    from appliance.netstack.link.fault import FaultLink


class StackDriver:
    """A stack and its link."""

    def __init__(self, stack: Stack, link: ClosableLink) -> None:
        self._stack = stack
        self._link = link
        self._take = stack.receive
        self._full = link.mtu
        self._timers = stack.timers
        self.read = link.receive
        self.wait = link.wait
        self.wake = link.wake
        self.flush = stack.flush
        self.expire = stack.expire

    def receive(self, frame: bytes, now: Instant) -> None:
        """Take a frame in, and where it was a full one, what has come behind it already."""
        self._take(frame, now)
        if len(frame) >= self._full:
            self._take_burst(now)

    def _take_burst(self, now: Instant) -> None:
        for _ in range(1, LINK_BURST_FRAMES):
            frame = self._link.receive_now()
            if frame is None:
                return
            self._take(frame, now)
            if len(frame) < self._full:
                return

    @property
    def next_deadline(self) -> Instant | None:
        return self._timers.next_deadline


class FaultyDriver(StackDriver):
    """The same with a link that holds frames up: these have deadlines, too."""

    def __init__(self, stack: Stack, link: FaultLink) -> None:
        super().__init__(stack, link)
        self._faulty = link
        self.expire = self._expire

    @property
    def next_deadline(self) -> Instant | None:
        deadlines = self._stack.next_deadline, self._faulty.next_deadline
        return min((at for at in deadlines if at is not None), default=None)

    def _expire(self, now: Instant) -> None:
        self._faulty.expire(now)
        self._stack.expire(now)
