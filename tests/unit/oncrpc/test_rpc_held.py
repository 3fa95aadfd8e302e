"""Calls whose replies are held (RFC 1813 section 4.8), as their sessions see them: still in
progress; answered once, with what came of it; and nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Never

import pytest

from appliance import limits
from appliance.clock import SystemClock
from appliance.oncrpc.message import garbage_args, system_err
from appliance.oncrpc.program import Call, Program
from appliance.oncrpc.record import mark
from appliance.oncrpc.transport import Endpoint, StreamUser
from appliance.oncrpc.xdr import bulk, struct, uint32
from appliance.vfs.errors import Code, VfsError
from tests.sim.rpc_client import Loopback, Reply, RpcClient, RpcWorld


class stat(IntEnum):
    """How a procedure of this program can end."""

    OK = 0
    LOST = 5


@struct
class data_args:
    data: bulk


@struct
class before:
    """What goes with a failure."""

    value: uint32


keeper = Program(
    500001, 1, "keeper", failures=(VfsError,), status=lambda error: stat.LOST, call=Call
)


class Keeper:
    """A service: it counts, and `promise` is what its replies wait for."""

    def __init__(self) -> None:
        self.value = 0
        self.promise = Promise()


class Promise:
    """Kept or broken by the test."""

    def __init__(self) -> None:
        self.then: list[Callable[[Exception | None], None]] = []

    def wait(self) -> None:
        self.settle()

    def when_durable(self, then: Callable[[Exception | None], None]) -> None:
        self.then.append(then)

    def settle(self, error: Exception | None = None) -> None:
        waiting, self.then = self.then, []
        for then in waiting:
            then(error)


@keeper.procedure(1)
def value(call: Call[None], args: None) -> uint32:
    """Reads; waits for nothing."""
    return int(call.host.value)


@keeper.procedure(2, cached=True)
def add(call: Call[before], args: uint32) -> uint32:
    """Must not be done twice, and promises to last. A failure tells where the counter was."""
    was = call.host.value
    call.on_failure(lambda: before(was))
    call.host.value += args
    call.hold(call.host.promise)
    return int(call.host.value)


@keeper.procedure(3)
def add_and_fail(call: Call[None], args: uint32) -> uint32:
    """Fails after it has promised."""
    call.hold(call.host.promise)
    raise VfsError(Code.IO)


@keeper.procedure(4)
def crash(call: Call[None], args: None) -> None:
    """A bug after a promise."""
    call.hold(call.host.promise)
    raise ZeroDivisionError


@keeper.procedure(5)
def never_fails(call: Call[Never], args: None) -> uint32:
    """Has no words for a broken promise."""
    call.hold(call.host.promise)
    call.hold(call.host.promise)
    return 7


@keeper.procedure(6, cached=True)
def store(call: Call[None], args: data_args) -> uint32:
    """Promises to keep a lot."""
    call.hold(call.host.promise)
    return sum(map(len, args.data))


class World(RpcWorld):
    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.keeper = Keeper()
        self.add(keeper, self.keeper)

    def settle(self, error: Exception | None = None) -> None:
        self.keeper.promise.settle(error)


@pytest.fixture
def world() -> World:
    return World()


client = RpcClient()
LOST = VfsError(Code.IO)


def say(session: StreamUser, *calls: bytes) -> None:
    session.text_arrived([memoryview(mark(len(call)) + call) for call in calls])


def values(transport: Loopback) -> list[int]:
    """The results that have been sent, as numbers."""
    replies = transport.replies()
    assert all(reply.status == stat.OK for reply in replies)
    return [int.from_bytes(reply.results[4:], "big") for reply in replies]


def one(transport: Loopback) -> Reply:
    (reply,) = transport.replies()
    return reply


def test_a_reply_is_sent_when_its_promise_is_kept(world: World) -> None:
    transport, session = world.connect()
    say(session, client.call(keeper, 2, 3))
    world.run()
    assert world.keeper.value == 3, "it has been done"
    assert transport.sent == [] and len(world.held) == 1
    world.settle()
    assert values(transport) == [3] and len(world.held) == 0


def test_calls_behind_a_held_one_are_answered_before_it(world: World) -> None:
    transport, session = world.connect()
    held = client.call(keeper, 2, 3)
    say(session, held, client.call(keeper, 1))
    world.run()
    behind = one(transport)
    assert behind.xid == client.xid and behind.succeeded
    world.settle()
    assert one(transport).xid == int.from_bytes(held[:4], "big")


def test_a_world_without_threads_waits_when_nothing_else_is_left(world: World) -> None:
    transport, session = world.connect()
    say(session, client.call(keeper, 2, 3), client.call(keeper, 1), client.call(keeper, 2, 1))
    world.serve()
    assert values(transport) == [3, 3, 4]
    assert world.released == [2]


def test_a_broken_promise_is_the_procedure_s_failure(world: World) -> None:
    transport, session = world.connect()
    world.keeper.value = 10
    say(session, client.call(keeper, 2, 3))
    world.run()
    world.settle(LOST)
    assert one(transport).failed(stat.LOST, before) == before(10)


def test_a_failure_promises_nothing(world: World) -> None:
    transport, session = world.connect()
    say(session, client.call(keeper, 3, 1), client.call(keeper, 4))
    world.run()
    failed, broken = transport.replies()
    assert failed.status == stat.LOST and broken.body == system_err()
    assert len(world.held) == 0 and not world.keeper.promise.then


def test_what_cannot_be_told_is_a_system_error(world: World) -> None:
    for error, call in ((LOST, client.call(keeper, 5)), (OSError(), client.call(keeper, 2, 1))):
        transport, session = world.connect()
        say(session, call)
        world.run()
        assert len(world.held) == 1
        world.settle(error)
        assert one(transport).body == system_err()
    assert len(world.server.reply_cache) == 0, "nobody knows what has happened"


def test_a_held_call_keeps_its_reply_and_not_its_arguments(world: World) -> None:
    _, session = world.connect()
    call = client.call(keeper, 6, data_args([bytes(100_000)]))
    received = bytearray(mark(len(call)) + call)
    session.text_arrived([memoryview(received)])
    with pytest.raises(BufferError):
        received.clear()
    world.run()
    assert len(world.held) == 1
    received.clear()  # nobody refers to it any more


# Duplicates


def test_a_call_that_comes_again_while_it_is_held_is_dropped(world: World) -> None:
    transport, session = world.connect()
    call = client.call(keeper, 2, 3)
    say(session, call)
    world.run()
    say(session, call)
    world.run()
    assert world.counters["rpc.duplicate_dropped"] == 1 and len(world.held) == 1
    world.settle()
    assert values(transport) == [3] and world.keeper.value == 3


@pytest.mark.parametrize("error", [None, LOST])
def test_what_comes_again_later_gets_the_same_reply(world: World, error: VfsError | None) -> None:
    transport, session = world.connect()
    call = client.call(keeper, 2, 3)
    say(session, call)
    world.run()
    world.settle(error)
    first = transport.sent.pop()
    say(session, call)
    world.run()
    assert transport.sent == [first] and len(world.held) == 0
    assert world.keeper.value == 3 and world.counters["rpc.duplicate_answered"] == 1


def test_a_client_that_comes_back_while_its_call_is_held_is_answered(world: World) -> None:
    """The connection broke; the call comes again from another port."""
    call = client.call(keeper, 2, 3)
    transport, session = world.connect()
    say(session, call)
    world.run()
    transport.abort()
    session.ended()
    again, session = world.connect(Loopback(peer=Endpoint("10.0.0.9", 800)))
    say(session, call)
    world.run()
    assert again.sent == []
    world.settle()
    assert values(again) == [3] and transport.sent == [] and world.keeper.value == 3


# Sessions


def test_held_calls_are_calls_in_progress(world: World) -> None:
    number = limits.CALLS_IN_PROGRESS_MAX
    transport, session = world.connect()
    say(session, *[client.call(keeper, 2, 1) for _ in range(number + 5)])
    world.run()
    assert transport.paused and len(world.held) == number
    world.settle()
    assert len(world.pending) == 5, "what there was no room for is taken"
    assert not transport.paused
    world.run()
    world.settle()
    assert values(transport) == list(range(1, number + 6))
    assert world.released == [number, 5]


def test_a_connection_that_closes_while_a_reply_is_held_is_let_go_after_it(world: World) -> None:
    transport, session = world.connect()
    say(session, client.call(keeper, 2, 3))
    world.run()
    session.ended()
    assert transport.state == "open", "the peer may still read"
    world.settle()
    assert values(transport) == [3] and transport.state == "closed"


def test_a_connection_that_is_gone_is_not_written_to(world: World) -> None:
    for error in (None, LOST):
        transport, session = world.connect()
        say(session, client.call(keeper, 2, 3))
        world.run()
        transport.abort()
        session.ended()
        world.settle(error)
        assert transport.sent == []
    assert len(world.held) == 0
    assert world.server.share == limits.CALLS_IN_PROGRESS_MAX


def test_datagrams_are_held_and_counted(world: World) -> None:
    transports = [Loopback("udp") for _ in range(limits.DATAGRAM_CALLS_IN_PROGRESS_MAX + 2)]
    for transport in transports:
        world.server.datagram(transport, client.call(keeper, 2, 1))
    world.run()
    assert world.server.datagram_calls == limits.DATAGRAM_CALLS_IN_PROGRESS_MAX
    assert world.counters["rpc.datagram_dropped"] == 2
    world.settle()
    assert world.server.datagram_calls == 0 and len(world.held) == 0
    assert sum(len(transport.sent) for transport in transports) == len(transports) - 2
    assert world.released == [limits.DATAGRAM_CALLS_IN_PROGRESS_MAX]


# The end


def test_at_the_end_no_call_is_taken_and_what_is_held_gets_out(world: World) -> None:
    transport, session = world.connect()
    say(session, client.call(keeper, 2, 3))
    world.run()
    world.server.stop_taking()
    say(session, client.call(keeper, 2, 4))
    datagram = Loopback("udp")
    world.server.datagram(datagram, client.call(keeper, 2, 5))
    refused, latecomer = world.connect()
    say(latecomer, client.call(keeper, 1))
    world.run()
    assert transport.paused and refused.state == "aborted" and datagram.sent == []
    world.settle()
    assert not world.pending, "room that comes free is not given away"
    assert values(transport) == [3] and world.keeper.value == 3


def test_garbage_is_refused_at_once(world: World) -> None:
    header = client.header(keeper.number, 1, 2)
    assert world.ask(header).body == garbage_args()
