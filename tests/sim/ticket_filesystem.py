"""A file system in memory of which nothing is durable before a flush: a disk, as seen from above.

    filesystem = TicketFileSystem(2, clock)
    ticket = filesystem.sync()
    filesystem.flush()                  # keeps it; flush(VfsError(Code.IO)) breaks it

Without a thread, whoever waits for a ticket flushes. With `background=True` a thread can do it,
`run_in_background`, as soon as a ticket is wanted and `device` lets it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Condition, Event

from appliance.clock import Clock
from appliance.limits import MiB
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Ticket
from appliance.vfs.memory import MemoryFileSystem

PATIENCE = 20.0
"""Seconds after which a thread in a test has waited in vain."""

Then = Callable[[VfsError | None], None]


class Flush(Ticket):
    """A flush that is to come, and who waits for it."""

    def __init__(self, filesystem: TicketFileSystem) -> None:
        self._filesystem = filesystem
        self._then: list[Then] | None = []  # None: it is settled
        self._changed = Condition()
        self._error: VfsError | None = None
        self.wanted = False

    def wait(self) -> None:
        self._filesystem.want(self)
        with self._changed:
            assert self._changed.wait_for(lambda: self._then is None, PATIENCE)
        if self._error is not None:
            raise self._error

    def when_durable(self, then: Then) -> None:
        with self._changed:
            waiting = self._then
            if waiting is not None:
                waiting.append(then)
        if waiting is None:
            then(self._error)
        elif self._filesystem.has_background_work:
            self._filesystem.want(self)

    def settle(self, error: VfsError | None) -> None:
        with self._changed:
            assert self._then is not None, "a ticket is settled once"
            waiting, self._then, self._error = self._then, None, error
            self._changed.notify_all()
        for then in waiting:
            then(error)


class TicketFileSystem(MemoryFileSystem):
    """See above. `flushes` counts them; with `durable` nothing waits for one. `fails_with`: how the
    flushes of the thread end."""

    def __init__(self, fsid: int, clock: Clock, *, background: bool = False) -> None:
        super().__init__(64 * MiB, fsid=fsid, clock=clock, random=random.Random(fsid))
        self.has_background_work = background
        self.durable = False
        self.flushes = 0
        self.device = Event()
        self.device.set()
        self.fails_with: VfsError | None = None
        self.closes_with: VfsError | None = None
        self.closed = False
        self._changed = Condition()
        self._next = Flush(self)

    def sync(self) -> Ticket | None:
        return None if self.durable else self._next

    def want(self, ticket: Flush) -> None:
        """Somebody waits for this ticket."""
        if self.has_background_work and not self.closed:
            with self._changed:
                ticket.wanted = True
                self._changed.notify_all()
        elif ticket is self._next:
            self.flush()

    def flush(self, error: VfsError | None = None) -> None:
        """Everything that was done is durable, or never will be."""
        with self._changed:
            ticket, self._next = self._next, Flush(self)
        assert self.device.wait(PATIENCE)
        self.flushes += 1
        ticket.settle(error)

    def run_in_background(self) -> None:
        while not self.closed:
            with self._changed:
                self._changed.wait_for(lambda: self._next.wanted or self.closed)
            if not self.closed:
                self.flush(self.fails_with)

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.flush(self.closes_with)
        if self.closes_with is not None:
            raise self.closes_with
