"""Replies that are held: what they tell has been done, and is not yet certain to last.

A procedure acts at once, and its reply is encoded at once. Where it says `call.hold(promise)`, the
reply is not sent before the promise is kept: RFC 1813 section 4.8 wants what is acknowledged to be
on stable storage. (Of nfsd, a promise is the ticket of a file system, and a flush of the device
keeps it.) The thread that ran the call goes on with the next one; so many calls, of many clients,
come to wait for one flush, and what it releases is sent together: one lock, one flush of the wire.
A promise that is broken turns the reply into the procedure's failure, never into a success.

A held call is a call in progress, for its session, for back-pressure and for the reply cache. Its
arguments are let go of; what is kept is the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Protocol

Buffer = bytes | bytearray | memoryview

Reply = Sequence[Buffer]


class Promise(Protocol):
    """Something that becomes durable (vfs/interface.py: Ticket).

    Calls that hold the same object are released together.
    """

    def wait(self) -> None:
        """Return when it is durable; otherwise an exception says why it will never be."""

    def when_durable(self, then: Callable[[Exception | None], None]) -> None:
        """Call `then` exactly once, by any thread, with None when it is durable or with why it will
        never be; here and now, if that is known already."""


class Call(Protocol):
    """A call that waits to be served (server.py: PendingCall)."""

    def run(self) -> Reply | Held | None:
        """Do it. No lock is held; may take long."""

    def finish(self, reply: Reply | None) -> None:
        """Send the reply (None: there is none). The lock of the leader is held."""


Answer = tuple[Call, Reply | None]


class Held:
    """A reply that must not be sent before `promises` are kept."""

    __slots__ = ("promises", "reply")

    def __init__(
        self, promises: Sequence[Promise], reply: Callable[[Exception | None], Reply | None]
    ) -> None:
        self.promises = promises
        self.reply = reply
        """`reply(None)` is what is sent when all are kept, `reply(error)` when one was broken.
        Called once, without a lock."""


class WaitingRoom:
    """Calls whose replies are held, by the promise that they wait for. Called by many threads."""

    def __init__(self, finish: Callable[[Sequence[Answer]], None]) -> None:
        """`finish` sends replies; by the thread that has kept a promise, all of them at once."""
        self._finish = finish
        self._lock = Lock()
        self._waiting: dict[Promise, list[tuple[Call, Held, Sequence[Promise]]]] = {}
        self._leaving = 0  # released, and their replies are not sent yet

    def __len__(self) -> int:
        """How many calls have not been finished."""
        with self._lock:
            return self._leaving + sum(map(len, self._waiting.values()))

    @property
    def promises(self) -> list[Promise]:
        """What is waited for, what was given first first."""
        with self._lock:
            return list(self._waiting)

    def add(self, call: Call, held: Held) -> None:
        """Finish `call` when it may be. May do so here and now."""
        self._wait(call, held, held.promises)

    def _wait(self, call: Call, held: Held, promises: Sequence[Promise]) -> None:
        """For the first of these promises; then for the others."""
        promise, *later = promises
        entry = call, held, later
        with self._lock:
            together = self._waiting.get(promise)
            if together is not None:
                together.append(entry)
                return
            self._waiting[promise] = [entry]
        promise.when_durable(partial(self._release, promise))

    def _release(self, promise: Promise, error: Exception | None) -> None:
        with self._lock:
            waiting = self._waiting.pop(promise)
            self._leaving += len(waiting)
        answers: list[Answer] = []
        for call, held, later in waiting:
            if later and error is None:
                self._wait(call, held, later)
            else:
                answers.append((call, held.reply(error)))
        if answers:
            self._finish(answers)
        with self._lock:
            self._leaving -= len(waiting)
