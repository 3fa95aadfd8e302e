"""The loop of a stack that stands on its own: one thread reads the link, runs the stack and its
timers, and sleeps while there is nothing to do.

    with Loop(Stack(link, config, ...), link) as loop:
        ...                     # sockets.Sockets(loop): programs on this stack

Everybody else is an application: it takes `lock`, makes its calls, and says `acted`. What it sends
leaves in its own thread; the loop is woken only where it would sleep past a new deadline. So a
request costs no hand-over on its way out, and one on its way in.

Something that should not happen (an exception in the stack) costs the frame or the deadline that it
happened to: it is counted and logged, and the loop goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final

from appliance.clock import SECOND, Clock, Instant, SystemClock
from appliance.limits import STOP_GRACE
from appliance.netstack.driver import StackDriver
from appliance.netstack.link.interface import ClosableLink
from appliance.netstack.stack import Stack
from appliance.trace import log

SLEEP_MAX: Final = 3600 * SECOND
"""Without any deadline."""


class Loop:
    """Runs one stack on one link."""

    def __init__(
        self,
        stack: Stack,
        link: ClosableLink,
        clock: Clock | None = None,
        driver: StackDriver | None = None,
    ) -> None:
        """`driver`: of stack and link, where it is not the usual one (FaultyDriver)."""
        self.stack = stack
        self.lock: Final = threading.Lock()
        self.now: Final = (clock or SystemClock()).now
        self._link = link
        self._driver = driver or StackDriver(stack, link)
        self._wakes: list[Callable[[], None]] = []
        self._in_turn = False
        self._later: deque[Callable[[], None]] = deque()
        self._at_end: list[Callable[[], None]] = []
        self._sleeps_until: Instant = 0  # in the past while it is awake
        self._turned = threading.Condition(self.lock)
        self._watchers = 0
        self._thread: threading.Thread | None = None

    # --- for applications -------------------------------------------------------------

    def acted(self) -> None:
        """A call of the stack was made: send what has become ready. The lock is held."""
        self._driver.flush(self.now())
        self._mind_deadline()

    def wake(self, action: Callable[[], None]) -> None:
        """Do it at the end of this turn of the loop, or now, outside of one. The lock is held."""
        if self._in_turn:
            self._wakes.append(action)
        else:
            action()

    def until(self, condition: Callable[[], bool], patience: Instant) -> bool:
        """Wait for something that the stack will do. False: it has not been done in time."""
        with self.lock:
            self._watchers += 1
            try:
                return self._turned.wait_for(condition, patience / SECOND)
            finally:
                self._watchers -= 1

    def later(self, action: Callable[[], None]) -> None:
        """Have the loop do it, with the lock. May be called with or without the lock, and from a
        finalizer."""
        self._later.append(action)
        self._link.wake()

    def at_end(self, action: Callable[[], None]) -> None:
        """Do it, with the lock, when the loop has ended: nothing will come any more."""
        self._at_end.append(action)

    def _mind_deadline(self) -> None:
        deadline = self._driver.next_deadline
        if deadline is not None and deadline < self._sleeps_until:
            self._sleeps_until = deadline  # once is enough
            self._link.wake()

    # --- the thread -------------------------------------------------------------------

    def start(self) -> None:
        """Claim our address, and begin."""
        with self.lock:
            self.stack.start(self.now())
        self._thread = threading.Thread(target=self.run, name="netstack", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """The body of the thread. Returns when the link is closed."""
        try:
            while self._turn():
                pass
        finally:
            with self.lock:
                for action in self._at_end:
                    action()

    def _turn(self) -> bool:
        """Take in what is there, or wait for something. False: the link is closed."""
        frame = self._link.receive_now()
        if frame is None:
            if self._link.wait(self._sleep()):
                frame = self._link.receive()
                if frame is None:
                    return False
            self._sleeps_until = 0
        now = self.now()
        with self.lock:
            self._in_turn = True
            if frame:
                try:
                    self._driver.receive(frame, now)
                except Exception:
                    self._failed()
            while self._later:
                self._guarded(self._later.popleft())
            deadline = self._driver.next_deadline
            if deadline is not None and deadline <= now:
                self._guarded(partial(self._driver.expire, now))
            try:
                self._driver.flush(now)
            except Exception:
                self._failed()
            self._in_turn = False
            if self._wakes or self._watchers:
                self._tell()
        return True

    def _tell(self) -> None:
        """This turn is over."""
        for wake in self._wakes:
            self._guarded(wake)
        self._wakes.clear()
        if self._watchers:
            self._turned.notify_all()

    def _sleep(self) -> Instant:
        """For how long. From now on applications wake the loop for an earlier deadline."""
        with self.lock:
            now = self.now()
            deadline = self._driver.next_deadline
            if self._later:
                deadline = now
            self._sleeps_until = now + SLEEP_MAX if deadline is None else deadline
            return max(0, self._sleeps_until - now)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do one thing. What it fails over is over, and everything else goes on."""
        try:
            action()
        except Exception:
            self._failed()

    def _failed(self) -> None:
        """Count and tell what is being handled."""
        self.stack.counters["loop.exception"] += 1
        log.exception("event=exception thread=netstack")

    # --- the end ----------------------------------------------------------------------

    def stop(self, grace: Instant = STOP_GRACE) -> None:
        """Close all connections in order, wait a while for their peers, and end."""
        with self.lock:
            self.stack.close(self.now())
        self.until(lambda: self.stack.is_quiet, grace)
        self._link.close()
        if self._thread is not None:
            self._thread.join(STOP_GRACE / SECOND)

    def __enter__(self) -> Loop:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
