"""Held replies: each is finished once, together with those that wait for the same, whoever settles
it and whenever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from appliance.oncrpc.held import Answer, Held, Reply, WaitingRoom

Then = Callable[[Exception | None], None]


class Settled:
    """A promise that a test keeps or breaks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.then: list[Then] = []
        self.settled = False
        self.error: Exception | None = None
        self.asked = 0

    def wait(self) -> None:
        raise AssertionError("nobody waits")

    def when_durable(self, then: Then) -> None:
        with self.lock:
            self.asked += 1
            if not self.settled:
                self.then.append(then)
                return
        then(self.error)

    def settle(self, error: Exception | None = None) -> None:
        with self.lock:
            self.settled, self.error = True, error
            waiting, self.then = self.then, []
        for then in waiting:
            then(error)


class OneCall:
    """A call, which is only finished here."""

    def run(self) -> Reply | Held | None:
        raise AssertionError("it has run")

    def finish(self, reply: Reply | None) -> None:
        raise AssertionError("the room does not send")


class Rig:
    """A room, and what it has finished: a list for each time."""

    def __init__(self) -> None:
        self.room = WaitingRoom(self.finish)
        self.finished: list[list[Reply | None]] = []
        self.lengths: list[int] = []

    def finish(self, answers: Sequence[Answer]) -> None:
        self.lengths.append(len(self.room))
        self.finished.append([reply for _, reply in answers])

    def hold(self, name: bytes, *promises: Settled) -> None:
        def reply(error: Exception | None) -> Reply:
            return [name if error is None else name + b": " + str(error).encode()]

        self.room.add(OneCall(), Held(promises, reply))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_waits_for_one_promise_is_finished_together_in_order(rig: Rig) -> None:
    one, other = Settled(), Settled()
    rig.hold(b"a", one)
    rig.hold(b"x", other)
    rig.hold(b"b", one)
    rig.hold(b"c", one)
    assert rig.finished == [] and len(rig.room) == 4
    assert rig.room.promises == [one, other]
    one.settle()
    assert rig.finished == [[[b"a"], [b"b"], [b"c"]]]
    assert len(rig.room) == 1 and rig.room.promises == [other]
    assert one.asked == 1, "one promise is asked once, however many calls wait for it"


def test_what_is_settled_already_is_finished_here_and_now(rig: Rig) -> None:
    promise = Settled()
    promise.settle()
    rig.hold(b"a", promise)
    assert rig.finished == [[[b"a"]]]
    promise.error = OSError("no disk")
    rig.hold(b"b", promise)
    assert rig.finished == [[[b"a"]], [[b"b: no disk"]]]
    assert len(rig.room) == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_several_promises_are_all_waited_for(rig: Rig, order: tuple[int, ...]) -> None:
    promises = [Settled() for _ in range(3)]
    rig.hold(b"a", *promises)
    for which in order:
        assert rig.finished == []
        promises[which].settle()
    assert rig.finished == [[[b"a"]]]


def test_one_broken_promise_is_enough(rig: Rig) -> None:
    first, second, third = Settled(), Settled(), Settled()
    rig.hold(b"a", first, second)
    rig.hold(b"b", second, third)
    first.settle(OSError("gone"))
    assert rig.finished == [[[b"a: gone"]]]
    second.settle(OSError("gone, too"))
    assert rig.finished[1:] == [[[b"b: gone, too"]]]
    third.settle()
    assert len(rig.finished) == 2, "nobody waits for what comes after a failure"


def test_a_call_is_in_the_room_until_its_reply_is_on_its_way(rig: Rig) -> None:
    promise = Settled()
    rig.hold(b"a", promise)
    rig.hold(b"b", promise)
    promise.settle()
    assert rig.lengths == [2] and len(rig.room) == 0


def test_with_many_threads_every_call_is_finished_once() -> None:
    """Three threads hold calls on promises that a fourth one settles meanwhile."""
    rig, dice = Rig(), random.Random(4)
    promises = [Settled() for _ in range(200)]
    current = [0]

    def hold(names: Sequence[int]) -> None:
        for name in names:
            at = min(current[0] + name % 2, len(promises) - 2)
            rig.hold(b"%d" % name, *promises[at : at + 1 + name % 3])

    threads = [
        threading.Thread(target=hold, args=(range(start, start + 1000),))
        for start in (0, 1000, 2000)
    ]
    for thread in threads:
        thread.start()
    for current[0], promise in enumerate(promises):
        threads[0].join(dice.random() / 2000)
        promise.settle()
    for thread in threads:
        thread.join(20)
    counted = Counter(bytes(reply[0]) for batch in rig.finished for reply in batch if reply)
    assert counted == {b"%d" % name: 1 for name in range(3000)}
    assert len(rig.room) == 0 and rig.room.promises == []
