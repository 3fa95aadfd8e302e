"""The RPC server (RFC 5531): every call gets one answer, over streams and datagrams, in bounds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import limits
from appliance.clock import SystemClock
from appliance.oncrpc.auth import AuthError, auth_flavor, auth_stat
from appliance.oncrpc.message import (
    auth_error,
    garbage_args,
    opaque_auth,
    proc_unavail,
    prog_mismatch,
    prog_unavail,
    rpc_mismatch,
    system_err,
)
from appliance.oncrpc.program import Call, Program, Refused, Silence
from appliance.oncrpc.record import mark
from appliance.oncrpc.transport import Endpoint
from appliance.oncrpc.xdr import Buffer, bulk, struct, uint32
from tests.sim.rpc_client import Loopback, RpcClient, RpcWorld


@struct
class data_args:
    data: bulk


@struct
class data_ok:
    data: bulk


class Counter:
    """A service: it counts. `meanwhile` is what happens while it does."""

    def __init__(self) -> None:
        self.value = 0
        self.meanwhile: Callable[[], None] = lambda: None


counter2 = Program(500000, 2, "counter")
counter4 = Program(500000, 4, "counter")


@counter2.procedure(1)
def value(call: Call[Never], args: None) -> uint32:
    """Where the counter is."""
    return int(call.host.value)


@counter2.procedure(2, cached=True)
def increment(call: Call[Never], args: uint32) -> uint32:
    """Not idempotent."""
    meanwhile, call.host.meanwhile = call.host.meanwhile, lambda: None
    meanwhile()
    call.host.value += args
    return int(call.host.value)


@counter2.procedure(3)
def crash(call: Call[Never], args: None) -> None:
    """A bug."""
    raise ZeroDivisionError


@counter2.procedure(4)
def who(call: Call[Never], args: None) -> uint32:
    """Denies everybody but root."""
    if call.credential.uid:
        raise AuthError(auth_stat.AUTH_TOOWEAK)
    return call.peer.port


@counter2.procedure(5)
def echo(call: Call[Never], args: data_args) -> data_ok:
    """Says what it was told."""
    return data_ok(args.data)


@counter2.procedure(6)
def hush(call: Call[Never], args: None) -> None:
    """Is not answered."""
    raise Silence


@counter2.procedure(7)
def elsewhere(call: Call[Never], args: None) -> None:
    """Speaks for a program that is not here."""
    raise Refused(prog_unavail())


@counter2.procedure(8, cached=True)
def crash_once(call: Call[Never], args: None) -> uint32:
    """Breaks, but only the first time."""
    call.host.value += 1
    if call.host.value == 1:
        raise KeyError
    return int(call.host.value)


class World(RpcWorld):
    """A server that counts on port 2049, and something else on port 111."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.counter = Counter()
        self.add(counter2, self.counter)
        self.add(counter4, self.counter)
        self.add(Program(600000, 1, "other"), None, port=111)


@pytest.fixture
def world() -> World:
    return World()


client = RpcClient()


def record(call: bytes) -> memoryview:
    return memoryview(mark(len(call)) + call)


def large(size: int) -> list[Buffer]:
    return [bytes(size)]


# --- every call is answered ----------------------------------------------------------------------


@pytest.mark.parametrize("netid", ["tcp", "udp"])
def test_procedure_0_of_every_version_answers(world: World, netid: str) -> None:
    for program in (counter2, counter4):
        assert world.ask(client.call(program, 0), netid=netid).value(None) is None
    assert world.counters["counter2.null"] == world.counters["counter4.null"] == 1


@pytest.mark.parametrize("netid", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (client.header(999999, 1, 0), prog_unavail()),
        (client.header(600000, 1, 0), prog_unavail()),  # it runs, but on another port
        (client.header(500000, 3, 0), prog_mismatch(2, 4)),
        (client.header(500000, 0xFFFFFFFF, 0), prog_mismatch(2, 4)),
        (client.header(500000, 2, 99), proc_unavail()),
        (client.header(500000, 4, 1), proc_unavail()),
        (client.header(500000, 2, 1) + b"more", garbage_args()),
        (client.header(500000, 2, 2), garbage_args()),
        (client.header(500000, 2, 3), system_err()),
        (client.header(500000, 2, 7), prog_unavail()),
        (client.header(500000, 2, 1, rpcvers=3), rpc_mismatch(2, 2)),
        (
            client.header(500000, 2, 1, credential=opaque_auth(auth_flavor.RPCSEC_GSS, b"")),
            auth_error(auth_stat.AUTH_REJECTEDCRED),
        ),
        (
            client.header(500000, 2, 1, credential=opaque_auth(auth_flavor.AUTH_SYS, b"")),
            auth_error(auth_stat.AUTH_BADCRED),
        ),
        (
            client.header(500000, 2, 1, verifier=opaque_auth(auth_flavor.AUTH_SYS, b"")),
            auth_error(auth_stat.AUTH_BADVERF),
        ),
        (RpcClient(uid=5).header(500000, 2, 4), auth_error(auth_stat.AUTH_TOOWEAK)),
    ],
)
def test_what_cannot_be_done_is_refused_and_counted(
    world: World, netid: str, call: bytes, answer: object
) -> None:
    reply = world.ask(call, netid=netid)
    assert reply.body == answer
    assert reply.xid == int.from_bytes(call[:4], "big")
    assert world.counters[f"rpc.{type(answer).__name__}"] == 1


def test_a_bug_is_told_once_and_answered_every_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "rumpnfsd"):
        for _ in range(3):
            assert world.ask(client.call(counter2, 3)).body == system_err()
    assert world.counters["rpc.system_err"] == 3
    assert [record.message for record in caplog.records] == [
        "counter2 CRASH is broken; its callers get SYSTEM_ERR"
    ]
    assert "ZeroDivisionError" in caplog.text


def test_every_call_can_be_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "rumpnfsd"):
        world = World()
        world.ask(client.call(counter2, 1, xid=0xABC))
        world.ask(client.header(500000, 2, 2, xid=0xABD))
    value, reason, increment = caplog.messages
    assert value == "<counter2 VALUE xid=abc from 10.0.0.9:700> -> 32 bytes "
    assert reason.startswith("<counter2 INCREMENT xid=abd from 10.0.0.9:700>: ")
    assert increment.endswith(" -> 28 bytes rpc.garbage_args")


def test_what_is_no_call_is_dropped_and_counted(world: World) -> None:
    transport, session = world.connect()
    session.text_arrived([record(b""), record(b"abcd"), record(client.call(counter2, 1)[:30])])
    world.server.datagram(Loopback("udp"), b"\0" * 40 + b"\1")
    session.text_arrived([record(bytes(4) + b"\0\0\0\1" + bytes(40))])
    world.serve()
    assert not transport.sent and transport.state == "open"
    assert world.counters["rpc.not_a_call"] == 4


def test_silence_is_no_reply_and_holds_nothing_up(world: World) -> None:
    transport, session = world.connect()
    session.text_arrived([record(client.call(counter2, 6)), record(client.call(counter2, 1))])
    world.serve()
    (reply,) = transport.replies()
    assert reply.value(uint32) == 0
    assert world.counters["rpc.silence"] == 1


def test_the_caller_and_its_port_are_known(world: World) -> None:
    assert world.ask(client.call(counter2, 4)).value(uint32) == 700


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 64, 10_000])
def test_calls_arrive_however_the_stream_is_cut(world: World, piece_bytes: int) -> None:
    text = b"".join(bytes(record(client.call(counter2, 2, 1))) for _ in range(5))
    transport, session = world.connect()
    for at in range(0, len(text), piece_bytes):
        session.text_arrived([memoryview(text[at : at + piece_bytes])])
    world.serve()
    assert [reply.value(uint32) for reply in transport.replies()] == [1, 2, 3, 4, 5]


def test_data_goes_through_uncopied(world: World) -> None:
    data = bytearray(b"\7" * 300_000)
    head = client.header(500000, 2, 5) + len(data).to_bytes(4, "big")
    transport, session = world.connect()
    session.text_arrived([memoryview(mark(len(head) + len(data)) + head), memoryview(data)])
    world.serve()
    (reply,) = transport.sent
    assert any(isinstance(piece, memoryview) and piece.obj is data for piece in reply)
    assert bytes(transport.replies()[0].value(data_ok).data[0]) == data


def test_a_bad_record_ends_the_connection(world: World) -> None:
    transport, session = world.connect()
    session.text_arrived([memoryview(b"\xff\xff\xff\xff")])
    assert transport.state == "aborted"
    assert world.counters["rpc.bad_record"] == 1


def test_a_peer_that_stops_sending_gets_the_replies_that_are_due(world: World) -> None:
    transport, session = world.connect()
    session.text_arrived([record(client.call(counter2, 1)), record(client.call(counter2, 1))])
    session.ended()
    assert transport.state == "open"
    world.serve()
    assert transport.state == "closed"
    assert len(transport.sent) == 2


def test_a_quiet_peer_that_goes_is_let_go_at_once(world: World) -> None:
    transport, session = world.connect()
    session.ended()
    session.ended()
    session.room_again()
    assert transport.state == "closed"


# --- limits --------------------------------------------------------------------------------------


def test_calls_beyond_the_limit_wait_and_the_transport_pauses(world: World) -> None:
    number = limits.CALLS_IN_PROGRESS_MAX
    transport, session = world.connect()
    session.text_arrived([record(client.call(counter2, 2, 1)) for _ in range(number + 5)])
    assert len(world.pending) == number
    assert transport.paused
    world.do(world.pending.pop(0))
    assert len(world.pending) == number, "one call finished lets one more in"
    assert transport.paused
    world.serve()
    assert not transport.paused
    assert [reply.value(uint32) for reply in transport.replies()] == list(range(1, number + 6))


def test_a_peer_that_does_not_read_is_not_served(world: World) -> None:
    transport, session = world.connect()
    transport.unsent_bytes = limits.UNSENT_REPLY_BYTES_MAX + 1
    session.text_arrived([record(client.call(counter2, 1))])
    assert transport.paused and not world.pending
    transport.unsent_bytes = limits.UNSENT_REPLY_BYTES_MAX // 2
    session.room_again()
    assert not transport.paused and len(world.pending) == 1


def test_a_peer_that_ends_while_it_is_paused_is_still_answered(world: World) -> None:
    transport, session = world.connect()
    transport.unsent_bytes = limits.UNSENT_REPLY_BYTES_MAX + 1
    session.text_arrived([record(client.call(counter2, 1))])
    session.ended()
    assert transport.state == "open"
    transport.unsent_bytes = 0
    session.room_again()
    world.serve()
    assert transport.state == "closed" and len(transport.sent) == 1


def test_calls_of_a_connection_that_broke_are_not_begun(world: World) -> None:
    transport, session = world.connect()
    transport.unsent_bytes = limits.UNSENT_REPLY_BYTES_MAX + 1
    session.text_arrived([record(client.call(counter2, 1))])
    session.ended()
    session.gone()
    assert not world.pending and transport.state == "closed"


def test_more_connections_make_smaller_shares(world: World) -> None:
    assert world.server.share == limits.CALLS_IN_PROGRESS_MAX
    sessions = [world.connect()[1] for _ in range(limits.CONNECTIONS_MAX)]
    assert world.server.share == limits.CALLS_IN_PROGRESS_MIN
    for session in sessions:
        session.ended()
    assert world.server.share == limits.CALLS_IN_PROGRESS_MAX


def test_one_connection_too_many_takes_the_place_of_the_one_silent_longest(world: World) -> None:
    connections = [world.connect() for _ in range(limits.CONNECTIONS_MAX)]
    connections[0][1].text_arrived([record(client.call(counter2, 1))])
    world.serve()
    transport, session = world.connect()
    assert [t.state for t, _ in connections[:3]] == ["open", "closed", "open"]
    session.text_arrived([record(client.call(counter2, 1))])
    world.serve()
    assert transport.state == "open" and len(transport.sent) == 1
    assert world.counters["rpc.closed_idle"] == 1
    connections[1][1].ended()
    assert world.server.share == limits.CALLS_IN_PROGRESS_MIN, "it was counted once"


def test_connections_that_never_said_anything_give_way_first(world: World) -> None:
    """However many of them come after a client's last call."""
    transport, session = world.connect()
    session.text_arrived([record(client.call(counter2, 1))])
    world.serve()
    silent = [world.connect()[0] for _ in range(limits.CONNECTIONS_MAX + 10)]
    assert transport.state == "open"
    assert [one.state for one in silent[:12]] == ["closed"] * 11 + ["open"]


def test_one_connection_too_many_is_refused_while_all_are_busy(world: World) -> None:
    for _ in range(limits.CONNECTIONS_MAX):
        world.connect()[1].text_arrived([record(client.call(counter2, 1))])
    pending = len(world.pending)
    transport, session = world.connect()
    assert world.counters["rpc.refused_connection"] == 1
    session.room_again()
    session.text_arrived([record(client.call(counter2, 1))])
    assert transport.state == "aborted" and len(world.pending) == pending
    session.ended()
    assert world.server.share == limits.CALLS_IN_PROGRESS_MIN, "it was never counted"


def test_a_transport_that_delivers_while_it_is_resumed_keeps_the_order(world: World) -> None:
    """As TCP does: what waited in the connection comes at once."""
    number = limits.CALLS_IN_PROGRESS_MAX
    later = [record(client.call(counter2, 2, 1)) for _ in range(3)]

    class Eager(Loopback):
        def resume(self) -> None:
            super().resume()
            text, later[:] = list(later), []
            if text:
                session.text_arrived(text)

    transport, session = world.connect(Eager())
    session.text_arrived([record(client.call(counter2, 2, 1)) for _ in range(number)])
    world.serve()
    assert [reply.value(uint32) for reply in transport.replies()] == list(range(1, number + 4))


@pytest.fixture
def inline() -> RpcWorld:
    """A service may run its calls in `submit`."""
    inline = RpcWorld(SystemClock())
    inline.registry.add(counter2, Counter(), inline.do, port=2049)
    return inline


def test_calls_that_waited_are_served_while_they_are_taken(inline: RpcWorld) -> None:
    transport, session = inline.connect()
    transport.unsent_bytes = limits.UNSENT_REPLY_BYTES_MAX + 1
    session.text_arrived([record(client.call(counter2, 2, 1)) for _ in range(3)])
    assert transport.paused and not transport.sent
    transport.unsent_bytes = 0
    session.room_again()
    assert [reply.value(uint32) for reply in transport.replies()] == [1, 2, 3]
    assert not transport.paused


def test_calls_served_while_they_are_taken_are_answered_in_order(inline: RpcWorld) -> None:
    transport, session = inline.connect()
    number = 3 * limits.CALLS_IN_PROGRESS_MAX
    session.text_arrived([record(client.call(counter2, 2, 1)) for _ in range(number)])
    assert [reply.value(uint32) for reply in transport.replies()] == list(range(1, number + 1))
    assert not transport.paused
    datagram = Loopback("udp")
    inline.server.datagram(datagram, client.call(counter2, 1))
    assert inline.server.datagram_calls == 0 and len(datagram.sent) == 1


# --- datagrams -----------------------------------------------------------------------------------


def test_datagrams_beyond_the_limit_are_dropped(world: World) -> None:
    transports = [Loopback("udp") for _ in range(limits.DATAGRAM_CALLS_IN_PROGRESS_MAX + 2)]
    for transport in transports:
        world.server.datagram(transport, client.call(counter2, 1))
    assert world.counters["rpc.datagram_dropped"] == 2
    world.serve()
    assert world.server.datagram_calls == 0
    assert sum(len(transport.sent) for transport in transports) == len(transports) - 2


def test_a_refused_datagram_is_not_in_progress(world: World) -> None:
    for _ in range(limits.DATAGRAM_CALLS_IN_PROGRESS_MAX + 2):
        assert world.ask(client.header(1, 1, 1), netid="udp").body == prog_unavail()
    assert world.server.datagram_calls == 0


def test_a_reply_that_no_datagram_can_hold_is_an_error(world: World) -> None:
    size = limits.DATAGRAM_BYTES_MAX - 24 - 4
    fits = client.call(counter2, 5, data_args(large(size - size % 4)))
    assert len(world.ask(fits, netid="udp").results) == size - size % 4 + 4
    too_large = client.call(counter2, 5, data_args(large(size + 4)))
    assert world.ask(too_large, netid="udp").body == system_err()
    assert world.ask(too_large, netid="tcp").succeeded


# --- duplicates ----------------------------------------------------------------------------------


def test_a_call_that_comes_twice_is_done_once(world: World) -> None:
    call = client.call(counter2, 2, 10)
    transport, session = world.connect()
    for _ in range(3):
        session.text_arrived([record(call)])
        world.serve()
    first, *others = transport.sent
    assert others == [first, first]
    assert world.counter.value == 10
    assert world.counters["rpc.duplicate_answered"] == 2


def test_a_call_that_comes_again_while_it_is_done_is_answered_once(world: World) -> None:
    call = client.call(counter2, 2, 10)
    transport, session = world.connect()

    def again() -> None:
        session.text_arrived([record(call)])
        world.serve()
        assert not transport.sent

    world.counter.meanwhile = again
    session.text_arrived([record(call)])
    world.serve()
    assert world.counter.value == 10 and len(transport.sent) == 1
    assert world.counters["rpc.duplicate_dropped"] == 1


def test_an_idempotent_call_is_done_every_time(world: World) -> None:
    call = client.call(counter2, 1)
    assert world.ask(call).value(uint32) == 0
    world.counter.value = 5
    assert world.ask(call).value(uint32) == 5
    assert len(world.server.reply_cache) == 0


def reconnect(world: World, port: int, *, unsent_bytes: int) -> int:
    """A call answered on one connection, and asked again on the next; the counter afterwards."""
    call = client.call(counter2, 2, 1)
    transport, session = world.connect()
    session.text_arrived([record(call)])
    world.serve()
    transport.unsent_bytes = unsent_bytes
    session.ended()
    transport, session = world.connect(Loopback(peer=Endpoint("10.0.0.9", port)))
    session.text_arrived([record(call)])
    world.serve()
    (reply,) = transport.replies()
    assert reply.succeeded
    return world.counter.value


def test_a_client_that_reconnects_is_known_by_its_port(world: World) -> None:
    assert reconnect(world, 700, unsent_bytes=0) == 1


def test_a_client_that_reconnects_from_elsewhere_is_known_if_its_reply_was_lost(
    world: World,
) -> None:
    assert reconnect(world, 701, unsent_bytes=100) == 1


def test_another_program_with_the_same_xid_is_served(world: World) -> None:
    assert reconnect(world, 701, unsent_bytes=0) == 2


def test_a_datagram_from_another_port_is_from_another_program(world: World) -> None:
    call = client.call(counter2, 2, 1)
    for port, value in ((700, 1), (700, 1), (701, 2)):
        transport = Loopback("udp", peer=Endpoint("10.0.0.9", port))
        world.server.datagram(transport, call)
        world.serve()
        assert transport.replies()[0].value(uint32) == value


def test_a_call_whose_connection_broke_is_answered_on_the_next(world: World) -> None:
    """The client asks again, from another port, while the first call is still being done."""
    call = client.call(counter2, 2, 1)
    transport, session = world.connect(Loopback(peer=Endpoint("10.0.0.9", 800)))

    def again() -> None:
        session.text_arrived([record(call)])
        world.serve()
        assert not transport.sent

    world.counter.meanwhile = again
    _, broken = world.connect()
    broken.text_arrived([record(call)])
    world.serve()
    (answer,) = transport.replies()
    assert answer.value(uint32) == 1 and world.counter.value == 1


def test_a_call_that_broke_is_run_again(world: World) -> None:
    call = client.call(counter2, 8)
    assert world.ask(call).body == system_err()
    assert world.ask(call).value(uint32) == 2
    assert world.ask(call).value(uint32) == 2


# --- no bytes break it ---------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 50), st.data())
def test_no_bytes_break_a_session(
    garbage: list[bytes], piece_bytes: int, data: st.DataObject
) -> None:
    world = World()
    good = client.header(500000, 2, data.draw(st.integers(0, 9)))
    calls = [good[: data.draw(st.integers(0, len(good)))] + text for text in garbage]
    marked = b"".join(bytes(record(call)) for call in calls)
    text = memoryview(marked + data.draw(st.binary(max_size=20)))
    transport, session = world.connect()
    for at in range(0, len(text), piece_bytes):
        if transport.state == "open":
            session.text_arrived([text[at : at + piece_bytes]])
    world.serve()
    for call in calls:
        world.server.datagram(Loopback("udp"), call)
    world.serve()
    assert world.server.datagram_calls == 0
    transport.replies()
