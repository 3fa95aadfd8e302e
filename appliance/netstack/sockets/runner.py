"""Who runs the stack that sockets are on (loop.py is one; the appliance's leader can be)."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Protocol

from appliance.clock import Instant
from appliance.netstack.stack import Stack


class Runner(Protocol):
    """A stack, the lock that protects it, and what to say after a call of it."""

    @property
    def stack(self) -> Stack: ...

    @property
    def lock(self) -> Lock: ...

    @property
    def now(self) -> Callable[[], Instant]: ...

    def acted(self) -> None:
        """A call of the stack was made: send what has become ready. The lock is held."""

    def wake(self, action: Callable[[], None]) -> None:
        """Do it at the end of what the stack is doing now, or at once. The lock is held."""

    def later(self, action: Callable[[], None]) -> None:
        """Do it soon, in another thread, with the lock."""

    def at_end(self, action: Callable[[], None]) -> None:
        """Do it, with the lock, when nothing will come any more."""
