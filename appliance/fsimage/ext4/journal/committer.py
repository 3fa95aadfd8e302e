"""From operations to transactions: which belong together, when they are written, who is told.

Operations are published into the *running* transaction. At some moment it is *closed*: it gets no
more of them, and the next one begins. Closed transactions are written to the log one after the
other, by one thread at a time; everybody who waits for one of them waits for the same flush. That
is group commit: while one transaction is on its way to the disk, all that is done meanwhile gathers
in the next.

Since an operation is published whole, every moment is one at which a transaction may be closed.

`_state` guards which transactions there are; it is held for microseconds, and never while anything
waits. `_writing` is held by the thread that writes. Order: `FileSystem.lock`, `_writing`, `_state`;
a thread that writes never needs the file system's lock, so that whoever holds it may wait here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from appliance import image_limits
from appliance.clock import SECOND
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.journal.log import Log
from appliance.fsimage.ext4.volume import Volume
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import AboutToWait, Ticket

_REVOKED_PER_BLOCK: Final = 100
"""At least so many block numbers fit into a revoke block."""

_IS_FULL: Final = frozenset({Code.NOSPC, Code.DQUOT})
"""Failures of the device that its owner can do something about."""

Extents = list[tuple[int, int]]

Complete = Callable[[Collection[int]], dict[int, bytes]]
"""Gives the blocks of these numbers, which operations have changed, as they go to the disk; and
those that every transaction has beside them."""


class Transaction(Ticket):
    """Operations that become durable together; the ticket of all of them."""

    __slots__ = (
        "_callbacks",
        "blocks",
        "error",
        "freed",
        "journal",
        "last_transfer",
        "numbers",
        "revoked",
        "settled",
    )

    def __init__(self, journal: Journal) -> None:
        self.journal: Final = journal
        self.numbers: set[int] = set()
        """The blocks that its operations have changed."""
        self.blocks: dict[int, bytes] = {}
        """All its blocks as they go to the disk, once it is closed."""
        self.revoked: set[int] = set()
        self.freed: Extents = []
        self.last_transfer = 0  # it, and those before it, may still use what was freed
        self.settled = False
        self.error: VfsError | None = None
        self._callbacks: list[Callable[[VfsError | None], None]] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return not self.numbers and not self.revoked

    def with_more(self, count: int) -> int:
        """About how many blocks of the log it takes, if there are `count` more in it."""
        return count + len(self.numbers) + len(self.revoked) // _REVOKED_PER_BLOCK

    def wait(self) -> None:
        self.journal.write_through(self)
        if self.error is not None:
            raise VfsError(self.error.code, self.error.detail)

    def when_durable(self, then: Callable[[VfsError | None], None]) -> None:
        with self.journal.state:
            if not self.settled:
                self._callbacks.append(then)
                return
        then(self.error)

    def settle(self, error: VfsError | None) -> None:
        """It is durable, or will never be."""
        with self.journal.state:
            self.error = error
            self.settled = True
            callbacks, self._callbacks = self._callbacks, []
        for then in callbacks:
            then(error)


class Journal:
    """The transactions of one file system.

    `complete` is asked when a transaction is closed; `failed` is told once, when nothing can be
    written any more.
    """

    def __init__(
        self,
        volume: Volume,
        log_: Log,
        durability: Durability,
        *,
        complete: Complete,
        failed: Callable[[VfsError], None],
        about_to_wait: AboutToWait,
    ) -> None:
        self._volume: Final = volume
        self._log: Final = log_
        self._durability: Final = durability
        self._complete: Final = complete
        self._failed: Final = failed
        self._about_to_wait: Final = about_to_wait
        self.state: Final = threading.RLock()
        self._writing: Final = threading.Lock()
        self._running = Transaction(self)
        self._closed: deque[Transaction] = deque()
        self._durable: deque[Transaction] = deque()  # what they freed is not in use again yet
        self._error: VfsError | None = None
        # The thread in the background.
        self._wake: Final = threading.Event()
        self._dozing = False
        self._wanted = False
        self._ending = False
        self._has_thread = False

    # What operations do.

    def check(self) -> None:
        """ROFS if nothing can be written any more."""
        if self._error is not None:
            raise VfsError(Code.ROFS, f"{self._volume.name}: {self._error.detail}")

    def publish(
        self,
        blocks: Mapping[int, bytes],
        numbers: Collection[int],
        forgotten: Extents,
        freed: Extents,
    ) -> None:
        """An operation is done: with these blocks, with these given back. `numbers`: of all blocks
        that will have changed. There is room for it; `state` is held."""
        running, volume = self._running, self._volume
        for first, length in forgotten:
            volume.forget(first, length)
            gone = range(first, first + length)
            running.numbers.difference_update(gone)
            running.revoked.update(gone)
        running.numbers.update(numbers)
        volume.publish(blocks)
        running.freed += freed
        if self._dozing:
            self._dozing = False
            self._wake.set()

    def make_room(self, count: int) -> None:
        """Let the running transaction be one that can have `count` more blocks. May wait."""
        most = self._log.blocks_max
        if count > most:
            raise VfsError(Code.IO, f"{self._volume.name}: a change of {count} blocks at once")
        with self.state:
            if self._running.with_more(count) <= most:
                return
            self._close_running()
            late = (
                self._closed[0]
                if len(self._closed) > image_limits.TRANSACTIONS_WAITING_MAX
                else None
            )
        if late is not None:
            late.wait()
        elif self._has_thread:
            self._want()

    def _close_running(self) -> None:
        """Begin a new transaction. `state` is held."""
        transaction = self._running
        transaction.blocks = self._complete(transaction.numbers)
        transaction.last_transfer = self._volume.transfers.last
        self._closed.append(transaction)
        self._running = Transaction(self)

    def reusable(self) -> Extents:
        """What was freed by transactions that are durable by now, and is used by no I/O that began
        before; given out once."""
        found: Extents = []
        if not self._durable:
            return found
        with self.state:
            durable, transfers = self._durable, self._volume.transfers
            while durable and transfers.have_ended(durable[0].last_transfer):
                found += durable.popleft().freed
        return found

    # Durability.

    def sync(self) -> Ticket | None:
        """A ticket for everything that was published; None: it is as durable as was asked for."""
        if self._durability is Durability.LAZY and self._error is None:
            return None
        with self.state:
            ticket = self._running
            if ticket.is_empty:
                if not self._closed:
                    self._raise_error()
                    return None
                ticket = self._closed[-1]
        if self._durability is Durability.PROCESS:
            ticket.wait()  # without a flush this takes less time than to tell another thread of it
            return None
        if self._has_thread:
            self._want()
        return ticket

    def _want(self) -> None:
        self._wanted = True
        self._wake.set()

    def write_through(self, transaction: Transaction) -> None:
        """Return when a transaction is settled; if nobody else writes it, write it here."""
        if transaction.settled:
            return
        if self._durability is not Durability.PROCESS:
            self._about_to_wait()
        with self._writing:
            while not transaction.settled:
                self._write_next()

    def commit(self) -> None:
        """Return when everything that was published is durable, whatever was asked for."""
        with self.state:
            running = self._running
            if running.is_empty and self._closed:
                running = self._closed[-1]
        if not running.is_empty:
            running.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise VfsError(self._error.code, self._error.detail)

    def _write_next(self) -> None:
        """Write one transaction. `_writing` is held."""
        with self.state:
            if not self._closed:
                self._close_running()
            transaction = self._closed[0]
            error = self._error
        if error is None:
            try:
                self._log.write(transaction.blocks, transaction.revoked)
            except VfsError as failure:
                error = self._fail(failure)
        with self.state:
            self._closed.popleft()
            if error is None and transaction.freed:
                self._durable.append(transaction)
        transaction.settle(error)
        if self._log.wants_checkpoint:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Bring blocks to their places. `_writing` is held."""
        if self._error is not None:
            return
        try:
            written = self._log.checkpoint()
        except VfsError as failure:
            self._fail(failure)
            return
        with self.state:
            self._volume.written(written)

    def _fail(self, failure: VfsError) -> VfsError:
        """The device has failed: what is on it stays as it is, from now on it is only read."""
        detail = f"{failure.detail}; nothing can be written any more"
        if failure.code in _IS_FULL:
            detail += " (make room, and start again)"
        self._error = VfsError(failure.code, detail)
        log.error("%s: the journal cannot be written: %s", self._volume.name, detail)
        self._failed(self._error)
        return self._error

    # The thread in the background.

    def run(self) -> None:
        """The body of the thread that writes transactions. Returns after `close`."""
        self._has_thread = True
        self._want()  # somebody may have asked before
        while not self._ending:
            timeout = None if self._doze() else image_limits.COMMIT_INTERVAL / SECOND
            in_time = self._wake.wait(timeout)
            self._wake.clear()
            wanted, self._wanted = self._wanted, False
            if wanted or not in_time:
                self._write_what_there_is(checkpoint=not in_time)
        self._has_thread = False

    def _doze(self) -> bool:
        """Whether there is nothing that would have to be written even if nobody asks: then the next
        operation wakes this thread."""
        with self.state:
            idle = self._running.is_empty and not self._closed and not self._volume.unwritten
            self._dozing = idle and not self._ending
            return self._dozing

    def _write_what_there_is(self, *, checkpoint: bool) -> None:
        with self._writing:
            while self._closed or not self._running.is_empty:
                self._write_next()
                checkpoint = checkpoint and self._running.is_empty
            if checkpoint and self._volume.unwritten:
                self._checkpoint()

    def bring_to_place(self) -> None:
        """Return when everything that was published is in its place."""
        self.commit()
        with self._writing:
            self._checkpoint()
            self._raise_error()

    def put_in_place(self, blocks: Mapping[int, bytes]) -> None:
        """Return when blocks that were published past any transaction are in their places, durably.
        There is nothing in the log."""
        self._about_to_wait()
        with self._writing:
            self._raise_error()
            try:
                self._log.put_in_place(blocks)
            except VfsError as failure:
                raise self._fail(failure) from None
        with self.state:
            self._volume.written(blocks)

    # The end.

    def close(self, last: Callable[[], None]) -> None:
        """Bring everything to its place, and let the log be empty. `last` then says in the
        superblock that it is."""
        try:
            self.bring_to_place()
            self._log.close()
            last()
        finally:
            self.end()

    def end(self) -> None:
        """Let the thread in the background go."""
        self._ending = True
        self._wake.set()

    def abandon(self) -> None:
        """Write nothing any more, as if the process were killed here."""
        error = VfsError(Code.IO, "abandoned")
        with self._writing, self.state:
            self._error = error
            waiting = [*self._closed, self._running]
            self._closed.clear()
            self._running = Transaction(self)
        for transaction in waiting:
            transaction.settle(error)
        self.end()
