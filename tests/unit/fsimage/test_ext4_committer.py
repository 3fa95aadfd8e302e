"""Group commit: which operations share a transaction, who is told when, what a failing device
does. The log is a stand-in; the real one has its own tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from appliance import image_limits
from appliance.clock import MILLISECOND
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.journal.committer import Journal
from appliance.fsimage.ext4.transfers import Transfers
from appliance.vfs.errors import Code, VfsError

PATIENCE = 10.0


class FakeVolume:
    """What a journal needs of a volume."""

    name = "image"

    def __init__(self) -> None:
        self.transfers = Transfers()
        self.unwritten: dict[int, bytes] = {}

    def publish(self, blocks: Mapping[int, bytes]) -> None:
        self.unwritten.update(blocks)

    def complete(self, numbers: Collection[int]) -> dict[int, bytes]:
        return {number: self.unwritten[number] for number in numbers}

    def forget(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.unwritten.pop(number, None)

    def written(self, blocks: Mapping[int, bytes]) -> None:
        for number in blocks:
            self.unwritten.pop(number, None)


class FakeLog:
    """A log whose flushes take as long as a test wishes."""

    blocks_max = 8

    def __init__(self) -> None:
        self.transactions: list[tuple[dict[int, bytes], set[int]]] = []
        self.checkpoints = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: VfsError | None = None
        self.closed = False

    def write(self, blocks: Mapping[int, bytes], revoked: Iterable[int]) -> None:
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.transactions.append((dict(blocks), set(revoked)))

    wants_checkpoint = False

    def checkpoint(self) -> Mapping[int, bytes]:
        self.checkpoints += 1
        return {
            number: block for blocks, _ in self.transactions for number, block in blocks.items()
        }

    def put_in_place(self, blocks: Mapping[int, bytes]) -> None:
        raise AssertionError("nobody has asked for that")

    def close(self) -> None:
        self.closed = True


class World:
    """A journal with its surroundings."""

    def __init__(self, durability: Durability = Durability.FULL) -> None:
        self.volume, self.log = FakeVolume(), FakeLog()
        self.failures: list[VfsError] = []
        self.waits = 0
        self.journal = Journal(
            self.volume,  # type: ignore[arg-type]
            self.log,
            durability,
            complete=self.volume.complete,
            failed=self.failures.append,
            about_to_wait=self._waits,
        )

    def _waits(self) -> None:
        self.waits += 1

    def act(self, *numbers: int, freed: list[tuple[int, int]] | None = None) -> None:
        """An operation that changes these blocks."""
        self.journal.make_room(len(numbers))
        blocks = {number: b"%d" % number for number in numbers}
        with self.journal.state:
            self.journal.publish(blocks, blocks, [], freed or [])

    @contextmanager
    def thread(self) -> Iterator[None]:
        """The thread in the background."""
        body = threading.Thread(target=self.journal.run)
        body.start()
        try:
            eventually(lambda: self.journal._has_thread)
            yield
        finally:
            self.log.gate.set()
            self.journal.end()
            body.join(PATIENCE)
            assert not body.is_alive()


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_without_a_thread_whoever_waits_writes() -> None:
    world = World()
    world.act(1)
    world.act(2)
    ticket = world.journal.sync()
    assert ticket is not None
    assert not world.log.transactions
    ticket.wait()
    assert [sorted(blocks) for blocks, _ in world.log.transactions] == [[1, 2]]
    assert world.waits == 1
    assert world.journal.sync() is None


def test_what_is_done_during_a_flush_shares_the_next_one() -> None:
    """Sixty-four clients, two flushes: that of the first, and one for all others."""
    world = World()
    told: list[VfsError | None] = []
    with world.thread():
        world.log.gate.clear()
        world.act(0)
        first = world.journal.sync()
        assert first is not None
        assert world.log.entered.wait(PATIENCE)
        for number in range(63):
            world.act(number % 5)
            ticket = world.journal.sync()
            assert ticket is not None and ticket is not first
            ticket.when_durable(told.append)
        assert not told
        world.log.gate.set()
        eventually(lambda: len(told) == 63)
    assert told == [None] * 63
    assert len(world.log.transactions) == 2


def test_a_transaction_that_is_full_is_closed() -> None:
    world = World()
    for number in range(0, 24, 3):
        world.act(number, number + 1, number + 2)
    world.journal.commit()
    sizes = [len(blocks) for blocks, _ in world.log.transactions]
    assert max(sizes) <= world.log.blocks_max
    assert sum(sizes) == 24


def test_complete_transactions_do_not_pile_up() -> None:
    """Whoever is too fast for the disk waits for it."""
    world = World()
    for number in range(100):
        world.act(*range(number, number + 8))
    assert len(world.log.transactions) >= 100 - image_limits.TRANSACTIONS_WAITING_MAX - 2


def test_a_change_that_is_too_large_for_the_log_is_refused() -> None:
    world = World()
    with pytest.raises(VfsError):
        world.act(*range(9))
    assert not world.volume.unwritten


def test_freed_blocks_wait_for_their_transaction() -> None:
    """J13: not before it is durable."""
    world = World()
    world.act(1, freed=[(100, 5)])
    assert world.journal.reusable() == []
    world.journal.commit()
    assert world.journal.reusable() == [(100, 5)]
    assert world.journal.reusable() == []


def test_freed_blocks_wait_for_transfers_that_began_before() -> None:
    """A slow reader still reads from them."""
    world = World()
    slow = world.volume.transfers.begin()
    world.act(1, freed=[(100, 5)])
    world.journal.commit()
    later = world.volume.transfers.begin()
    assert world.journal.reusable() == []
    world.volume.transfers.end(slow)
    assert world.journal.reusable() == [(100, 5)]
    world.volume.transfers.end(later)


def test_a_block_that_is_forgotten_is_revoked_and_not_written() -> None:
    """J12."""
    world = World()
    world.act(1, 2)
    with world.journal.state:
        world.journal.publish({3: b"3"}, [3], [(1, 2)], [(1, 2)])
    world.journal.commit()
    assert world.log.transactions == [({3: b"3"}, {1, 2})]
    assert world.volume.unwritten == {3: b"3"}


@pytest.mark.parametrize("with_thread", [False, True])
def test_a_device_that_fails_ends_all_writing(with_thread: bool) -> None:
    world = World()
    world.log.error = VfsError(Code.NOSPC, "the host is full")
    told: list[VfsError | None] = []
    if with_thread:
        with world.thread():
            world.act(1)
            ticket = world.journal.sync()
            assert ticket is not None
            ticket.when_durable(told.append)
            eventually(lambda: bool(told))
    else:
        world.act(1)
        ticket = world.journal.sync()
        assert ticket is not None
        ticket.when_durable(told.append)
        with pytest.raises(VfsError) as raised:
            ticket.wait()
        assert raised.value.code is Code.NOSPC
    assert told[0] is not None and told[0].code is Code.NOSPC
    assert len(world.failures) == 1
    with pytest.raises(VfsError) as refused:
        world.journal.check()
    assert refused.value.code is Code.ROFS
    world.log.error = None
    with pytest.raises(VfsError):
        world.journal.close(lambda: None)
    assert not world.log.transactions and not world.log.closed


def test_what_cannot_be_brought_to_its_place_ends_all_writing() -> None:
    world = World()
    world.act(1)

    def fails() -> Mapping[int, bytes]:
        raise VfsError(Code.IO, "gone")

    world.log.checkpoint = fails  # type: ignore[method-assign]
    with pytest.raises(VfsError):
        world.journal.bring_to_place()
    assert len(world.failures) == 1


def test_process_is_durable_when_it_returns_and_nobody_waits() -> None:
    world = World(Durability.PROCESS)
    world.act(1)
    assert world.journal.sync() is None
    assert len(world.log.transactions) == 1
    assert world.waits == 0


def test_lazy_promises_nothing_now_and_writes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "COMMIT_INTERVAL", 20 * MILLISECOND)
    world = World(Durability.LAZY)
    with world.thread():
        world.act(1)
        assert world.journal.sync() is None
        eventually(lambda: bool(world.log.transactions))
        eventually(lambda: world.log.checkpoints > 0)


def test_nothing_wakes_an_idle_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "COMMIT_INTERVAL", 1 * MILLISECOND)
    world = World()
    wakes = 0
    wait = world.journal._wake.wait

    def counted(timeout: float | None = None) -> bool:
        nonlocal wakes
        wakes += 1
        return wait(timeout)

    monkeypatch.setattr(world.journal._wake, "wait", counted)
    with world.thread():
        eventually(lambda: wakes == 2)  # once to see whether anything was wanted before
        time.sleep(0.05)
        assert wakes == 2
        world.act(1)
        eventually(lambda: world.log.checkpoints > 0)


def test_the_end_brings_everything_to_its_place() -> None:
    world = World()
    world.act(1)
    said: list[bool] = []
    world.journal.close(lambda: said.append(world.log.closed))
    assert [sorted(blocks) for blocks, _ in world.log.transactions] == [[1]]
    assert world.log.checkpoints == 1
    assert said == [True], "the superblock says last that the log is empty"


def test_abandoned_means_as_if_killed() -> None:
    world = World()
    world.act(1)
    ticket = world.journal.sync()
    assert ticket is not None
    world.journal.abandon()
    with pytest.raises(VfsError):
        ticket.wait()
    assert not world.log.transactions


def test_many_threads_lose_nothing() -> None:
    """Everybody's block is durable when everybody's ticket says so."""
    world = World()
    world.log.blocks_max = 64
    done: list[int] = []

    def client(first: int) -> None:
        for number in range(first, first + 50):
            world.act(number)
            ticket = world.journal.sync()
            if ticket is not None:
                ticket.wait()
            assert any(number in blocks for blocks, _ in world.log.transactions)
            done.append(number)

    with world.thread():
        threads = [threading.Thread(target=client, args=(base * 100,)) for base in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(done) == 400


def test_it_dozes_only_when_everything_is_in_its_place() -> None:
    """Nobody would ask for the rest."""
    world = World()
    assert world.journal._doze()
    world.act(1, 2)
    assert not world.journal._doze()
    world.journal.make_room(8)  # which closes the transaction
    world.volume.unwritten.clear()
    assert not world.journal._doze()
    world.journal.commit()
    world.volume.unwritten[1] = b"1"
    assert not world.journal._doze()
    world.journal.bring_to_place()
    assert world.journal._doze()
