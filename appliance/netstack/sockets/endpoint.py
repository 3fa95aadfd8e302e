"""What a descriptor of a socket stands for, and how threads wait for it.

An endpoint is protected by the lock of the runner; all its methods are called with it. They never
wait: what cannot be done now gives None, and `until` lets the caller sleep until the stack has
changed something. Whatever ends an endpoint (its own close, a reset, a timeout, the end of the
network) goes through `changed`, so nobody sleeps on.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Condition
from typing import TypeVar

from appliance.clock import SECOND, Instant
from appliance.netstack.sockets.errors import error
from appliance.netstack.sockets.options import Options
from appliance.netstack.sockets.readiness import Readiness
from appliance.netstack.sockets.runner import Runner

Result = TypeVar("Result")


class Endpoint(ABC):
    """A stream, a listening port, or datagrams."""

    def __init__(self, runner: Runner, options: Options) -> None:
        self.runner = runner
        self.options = options
        self.closed = False
        self._pending = 0  # SO_ERROR
        self._condition = Condition(runner.lock)
        self._readiness: Readiness | None = None
        self._is_to_wake = False

    # --- what it is ready for -----------------------------------------------------------

    @property
    @abstractmethod
    def can_read(self) -> bool:
        """Reading (or accepting) would not wait."""

    @property
    @abstractmethod
    def can_write(self) -> bool:
        """Writing would not wait."""

    def fileno(self) -> int:
        """The descriptor that poll and select take. It is made when somebody asks for it."""
        if self.closed:
            return -1
        if self._readiness is None:
            self._readiness = Readiness()
            self._readiness.show(self.can_read, self.can_write)
        return self._readiness.fileno()

    def changed(self) -> None:
        """Somebody may be able to go on. Where the stack is at work, that is said when it is done:
        who wakes before could do nothing but wait for the lock."""
        if not self._is_to_wake:
            self._is_to_wake = True
            self.runner.wake(self._wake)

    def _wake(self) -> None:
        self._is_to_wake = False
        self._condition.notify_all()
        self.show()

    def show(self) -> None:
        """Its descriptor says what it is ready for."""
        if self._readiness is not None:
            self._readiness.show(self.can_read, self.can_write)

    def become(self, successor: Endpoint) -> None:
        """Who had our descriptor has that of `successor`."""
        successor._readiness, self._readiness = self._readiness, None
        successor.show()

    # --- waiting ------------------------------------------------------------------------

    def until(
        self, attempt: Callable[[], Result | None], timeout: float | None, late: str = "timed out"
    ) -> Result:
        """What `attempt` gives, tried again after every change, for `timeout` seconds (None: as
        long as it takes; 0: once, then BlockingIOError). TimeoutError; OSError, where the endpoint
        was closed meanwhile."""
        deadline: Instant | None = None
        while (result := self._attempt(attempt)) is None:
            if timeout is None:
                self._condition.wait()
                continue
            if timeout == 0:
                raise error(errno.EAGAIN)
            now = self.runner.now()
            if deadline is None:
                deadline = now + int(timeout * SECOND)
            if now >= deadline:
                raise TimeoutError(late)
            self._condition.wait((deadline - now) / SECOND)
        return result

    def _attempt(self, attempt: Callable[[], Result | None]) -> Result | None:
        if self.closed:
            raise error(errno.EBADF)
        return attempt()

    def sleep_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for it, though the endpoint is closed."""
        self._condition.wait_for(condition, seconds)

    # --- the end ------------------------------------------------------------------------

    def take_error(self) -> int:
        """SO_ERROR: why it failed, once."""
        pending, self._pending = self._pending, 0
        return pending

    def raise_pending(self) -> None:
        """Say once why it failed."""
        if self._pending:
            raise error(self.take_error())

    def close(self) -> None:
        """The last reference is gone."""
        if self.closed:
            return
        self.closed = True
        self.release()
        self._wake()
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None

    @abstractmethod
    def release(self) -> None:
        """Give back what it has of the stack: for good."""

    @abstractmethod
    def network_down(self) -> None:
        """Nothing will come any more: whoever waits is told."""
