"""The duplicate request cache: what comes twice is done once, and what only looks alike is done."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

from appliance import limits
from appliance.clock import SECOND, Instant
from appliance.oncrpc.reply_cache import Buffer, Entry, ReplyCache


@dataclass(eq=False)
class Connection:
    """A caller."""

    port: int = 700
    lost: bool = False
    sent: list[Sequence[Buffer]] = field(default_factory=list)

    def reply_lost(self) -> bool:
        return self.lost

    def send(self, reply: Sequence[Buffer]) -> None:
        self.sent.append(reply)


class HandClock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.instant: Instant = 1000 * SECOND

    def now(self) -> Instant:
        return self.instant

    def wall(self) -> int:
        return self.instant


class Cache:
    """A cache, asked in the shortest way."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.cache = ReplyCache(self.clock)
        self.caller = Connection()

    def begin(
        self,
        xid: int = 1,
        caller: Connection | None = None,
        client: str = "10.0.0.9",
        arguments: bytes = b"arguments",
    ) -> Entry | Sequence[Buffer] | None:
        return self.cache.begin(client, ("tcp", xid), caller or self.caller, arguments)

    def first(
        self,
        xid: int = 1,
        caller: Connection | None = None,
        client: str = "10.0.0.9",
        arguments: bytes = b"arguments",
    ) -> Entry:
        """A call that is to be run."""
        entry = self.begin(xid, caller, client, arguments)
        assert isinstance(entry, Entry)
        return entry

    def answered(self, xid: int = 1, reply: bytes = b"reply", client: str = "10.0.0.9") -> None:
        """A call that was run."""
        assert self.cache.done(self.first(xid, client=client), [reply]) is None


def test_a_duplicate_of_an_answered_call_gets_the_same_reply() -> None:
    cache = Cache()
    cache.answered()
    assert cache.begin() == [b"reply"]
    assert cache.begin() == [b"reply"]


def test_of_many_threads_one_runs_the_call() -> None:
    cache, together = Cache(), Barrier(4)

    def ask(xid: int) -> object:
        together.wait(timeout=10)
        return cache.begin(xid)

    with ThreadPoolExecutor(4) as pool:
        for xid in range(50):
            found = list(pool.map(ask, [xid] * 4))
            assert sum(isinstance(entry, Entry) for entry in found) == 1


def test_another_xid_is_another_call() -> None:
    cache = Cache()
    cache.answered(1)
    cache.first(2)


def test_another_client_is_another_caller() -> None:
    cache = Cache()
    cache.answered()
    cache.first(client="10.0.0.10")


def test_the_same_xid_with_other_arguments_is_another_call() -> None:
    cache = Cache()
    cache.answered()
    cache.first(arguments=b"Arguments")
    cache.first(arguments=b"arguments\0")


def test_a_duplicate_of_a_call_in_progress_is_dropped() -> None:
    cache = Cache()
    entry = cache.first()
    assert cache.begin() is None
    assert cache.cache.done(entry, [b"reply"]) is None, "nobody else waits for it"


def test_a_call_in_progress_that_comes_over_a_new_connection_is_answered_there_too() -> None:
    cache, again, last = Cache(), Connection(), Connection(port=701)
    entry = cache.first()
    assert cache.begin(caller=again) is None
    assert cache.begin(caller=last) is None
    assert cache.cache.done(entry, [b"reply"]) is last


def test_a_reconnected_client_gets_its_reply() -> None:
    """The port is usually kept."""
    cache = Cache()
    cache.answered()
    assert cache.begin(caller=Connection(port=700)) == [b"reply"]


def test_a_client_that_comes_from_another_port_gets_a_reply_that_was_lost() -> None:
    cache = Cache()
    cache.answered()
    cache.caller.lost = True
    assert cache.begin(caller=Connection(port=701)) == [b"reply"]


def test_a_program_that_is_run_twice_is_not_taken_for_a_client_that_asks_again() -> None:
    """Simple clients count their xids from the same number every time."""
    cache = Cache()
    cache.answered()
    cache.first(caller=Connection(port=701))


def test_an_old_reply_is_not_sent_again() -> None:
    cache = Cache()
    cache.answered()
    cache.clock.instant += limits.REPLY_KEPT_FOR - 1
    assert cache.begin() == [b"reply"]
    cache.clock.instant += 1
    cache.first()


def test_a_call_that_takes_longer_than_replies_are_kept_is_still_done_once() -> None:
    cache = Cache()
    cache.first()
    cache.clock.instant += 2 * limits.REPLY_KEPT_FOR
    assert cache.begin() is None


def test_a_call_that_broke_is_done_again() -> None:
    cache = Cache()
    assert cache.cache.failed(cache.first()) is None
    cache.first()


def test_whoever_asked_again_hears_that_it_broke() -> None:
    cache, again = Cache(), Connection()
    entry = cache.first()
    assert cache.begin(caller=again) is None
    assert cache.cache.failed(entry) is again


def test_a_large_reply_is_not_kept() -> None:
    cache = Cache()
    cache.answered(reply=bytes(limits.REPLY_KEPT_BYTES_MAX + 1))
    assert len(cache.cache) == 0
    cache.first()


def test_one_client_cannot_push_out_another() -> None:
    cache = Cache()
    cache.answered(7, b"kept", client="10.0.0.10")
    for xid in range(limits.REPLIES_KEPT_OF_CLIENT_MAX * 2):
        cache.answered(xid)
    assert len(cache.cache) == limits.REPLIES_KEPT_OF_CLIENT_MAX + 1
    assert cache.begin(7, client="10.0.0.10") == [b"kept"]
    newest = limits.REPLIES_KEPT_OF_CLIENT_MAX * 2 - 1
    assert cache.begin(newest - limits.REPLIES_KEPT_OF_CLIENT_MAX + 1) == [b"reply"]
    cache.first(newest - limits.REPLIES_KEPT_OF_CLIENT_MAX - 1)


def test_many_clients_push_out_the_oldest() -> None:
    cache = Cache()
    clients = limits.REPLIES_KEPT_MAX // 512 + 1
    for number in range(clients):
        for xid in range(512):
            cache.answered(xid, client=f"10.0.1.{number}")
    assert len(cache.cache) == limits.REPLIES_KEPT_MAX
    assert cache.begin(0, client=f"10.0.1.{clients - 1}") == [b"reply"]
    assert cache.begin(0, client="10.0.1.1") == [b"reply"]
    cache.first(511, client="10.0.1.0")


def test_bytes_are_bounded_too() -> None:
    cache = Cache()
    size = limits.REPLY_KEPT_BYTES_MAX
    number = limits.REPLIES_KEPT_BYTES_MAX // size
    for xid in range(number + 3):
        cache.answered(xid, bytes(size))
    assert len(cache.cache) == number
    assert cache.begin(number + 2) == [bytes(size)]
    cache.first(2)


def test_calls_in_progress_are_never_forgotten() -> None:
    cache = Cache()
    entry = cache.first(xid=0)
    for xid in range(1, limits.REPLIES_KEPT_OF_CLIENT_MAX + 50):
        cache.answered(xid)
    assert cache.begin(xid=0) is None
    cache.cache.done(entry, [b"at last"])
    assert cache.begin(xid=0) == [b"at last"]


def test_calls_in_progress_may_be_more_than_replies_are_kept() -> None:
    cache = Cache()
    number = limits.REPLIES_KEPT_OF_CLIENT_MAX + 5
    entries = [cache.first(xid) for xid in range(number)]
    assert len(cache.cache) == number
    for entry in entries:
        cache.cache.done(entry, [b"reply"])
    assert len(cache.cache) == limits.REPLIES_KEPT_OF_CLIENT_MAX


def test_a_call_that_was_replaced_leaves_the_new_one_alone() -> None:
    """The same xid for something else, while the first is still in progress."""
    cache = Cache()
    old = cache.first(arguments=b"old")
    new = cache.first(arguments=b"new")
    cache.cache.done(old, [b"old reply"])
    assert cache.begin(arguments=b"new") is None
    cache.cache.failed(old)
    cache.cache.done(new, [b"new reply"])
    assert cache.begin(arguments=b"new") == [b"new reply"]
    assert len(cache.cache) == 1
