"""What is left to the collector of reference cycles: nothing by a call or a connection. What there
is all the same is still collected while a process serves, only later."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from appliance.garbage import seldom_collected
from appliance.limits import MiB
from appliance.nfsd.v3.protocol import GETATTR3args, READ3args
from appliance.oncrpc.record import mark
from appliance.vfs import handles
from appliance.vfs.interface import FileType, NewNode
from tests.unit.test_machine_durability import (
    Peer,
    PipedMachine,
    Talk,
    change,
    make,
    root_handle,
    running,
)


class Cycle:
    """Refers to itself, so that only the collector lets go of it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_there_was_is_not_looked_through_until_the_end() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    kept = [Cycle()]
    with seldom_collected():
        assert gc.get_freeze_count() > before[1]
        assert not any(each is kept[0] for each in gc.get_objects())
        assert gc.get_threshold()[0] > before[0][0]
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    assert any(each is kept[0] for each in gc.get_objects())


def test_cycles_do_not_pile_up() -> None:
    with seldom_collected():
        cycles = [weakref.ref(Cycle()) for _ in range(150_000)]
        assert sum(ref() is not None for ref in cycles) < 75_000


@contextmanager
def left_to_the_collector() -> Iterator[Counter[str]]:
    """Filled at the end: of which kind there is how much that nothing but a cycle refers to."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(type(each).__name__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def is_over(talk: Talk) -> bool:
    return talk.over or str(talk.connection.state) in ("CLOSED", "TIME-WAIT")


def by_reset(machine: PipedMachine, talk: Talk) -> None:
    talk.connection.abort()


def by_reset_with_replies_unread(machine: PipedMachine, talk: Talk) -> None:
    """So many that the server takes no more calls; some wait."""
    talk.connection.pause()
    file = machine.filesystems[0].root().lookup(b"file")
    read = READ3args(handles.encode(handles.export_id(b"/"), file), 0, 1 * MiB)
    for _ in range(40):
        talk.say(read)
    before = machine.counters["nfs3.read"]
    talk.peer.until(lambda: machine.counters["nfs3.read"] > before + 3)
    talk.peer.rest()
    assert machine.counters["nfs3.read"] < before + 40
    talk.connection.abort()


def by_what_is_no_record(machine: PipedMachine, talk: Talk) -> None:
    talk.connection.send([b"\xff\xff\xff\xff"])


def in_the_middle_of_a_record(machine: PipedMachine, talk: Talk) -> None:
    talk.connection.send([mark(100_000) + bytes(50_000)])
    talk.connection.finish()


def in_order(machine: PipedMachine, talk: Talk) -> None:
    talk.connection.finish()


ENDINGS = [
    by_reset,
    by_reset_with_replies_unread,
    by_what_is_no_record,
    in_the_middle_of_a_record,
    in_order,
]


def left_by(work: Callable[[PipedMachine, Peer], None]) -> Counter[str]:
    """What is left of ten times `work`, after once."""
    machine = PipedMachine(make())
    file = machine.filesystems[0].root().create(b"file", NewNode(FileType.REGULAR, 0o644, 0, 0))
    file.write(0, [bytes(1 * MiB)])
    with running(machine) as peer:
        work(machine, peer)
        with left_to_the_collector() as left:
            for _ in range(10):
                work(machine, peer)
    return left


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_a_connection_leaves_no_cycle(ending: Callable[[PipedMachine, Talk], None]) -> None:
    def talk_to_it(machine: PipedMachine, peer: Peer) -> None:
        talk = peer.connect()
        talk.hear(talk.say(GETATTR3args(root_handle(machine))))
        ending(machine, talk)
        peer.until(lambda: is_over(talk))
        peer.rest()

    assert not left_by(talk_to_it)


def test_a_change_leaves_no_cycle() -> None:
    talks: list[Talk] = []

    def change_it(machine: PipedMachine, peer: Peer) -> None:
        if not talks:
            talks.append(peer.connect())
        talks[0].hear(talks[0].say(change(machine)))

    assert not left_by(change_it)
