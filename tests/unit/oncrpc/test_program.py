"""Programs (RFC 5531 section 12): a procedure's signature is its contract."""

from __future__ import annotations

from collections.abc import Sequence
from struct import error as StructError
from typing import Any, Generic, Never, TypeVar

import pytest

from appliance.oncrpc.auth import NOBODY
from appliance.oncrpc.program import Call, Program
from appliance.oncrpc.xdr import Buffer, XdrError, bulk, struct, uint32
from tests.sim.rpc_client import CLIENT, SERVER, Loopback

Failure = TypeVar("Failure")


class Refusal(Exception):
    """What the service of these tests raises."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Unforeseen(Exception):
    """What it should not raise."""


@struct
class numbers:
    a: uint32
    b: uint32


@struct
class quotient:
    value: uint32


@struct
class why:
    a: uint32
    hint: uint32 | None


@struct
class read_args:
    count: uint32


@struct
class read_ok:
    count: uint32
    data: bulk


class HostCall(Call[Failure], Generic[Failure]):
    """A call that knows its host, as services have it."""

    __slots__ = ()

    host: list[str]

    def note(self, text: str) -> None:
        self.host.append(text)


class PlainCall(HostCall[None]):
    """And one that is not generic any more."""

    __slots__ = ()


calculator = Program(
    400000,
    7,
    "calc",
    failures=(Refusal,),
    status=lambda error: error.status,
    call=HostCall,
)


@calculator.procedure(1)
def divide(call: HostCall[why], args: numbers) -> quotient:
    """Fails with a body."""
    call.note("divide")
    if args.b == 99:
        raise Refusal(4)
    call.on_failure(lambda: why(args.a, args.b))
    if args.b == 0:
        raise Refusal(33)
    return quotient(args.a // args.b)


@calculator.procedure(2)
def check(call: PlainCall, args: numbers) -> None:
    """Fails with nothing."""
    if args.a != args.b:
        raise Refusal(5)


@calculator.procedure(3)
def add(call: HostCall[Never], args: numbers) -> uint32:
    """Has no status."""
    if args.a > 100:
        raise Refusal(6)
    return args.a + args.b


@calculator.procedure(4, cached=True)
def read(call: HostCall[None], args: read_args) -> read_ok:
    """Has data."""
    data: Sequence[Buffer] = [memoryview(bytes(args.count))]
    return read_ok(args.count, data)


@calculator.procedure(5)
def explain(call: HostCall[why], args: numbers) -> quotient:
    """Fails while it explains its failure."""

    def body() -> why:
        raise Refusal(1)

    call.on_failure(body)
    raise Refusal(70)


def perform(number: int, arguments: object) -> list[Buffer]:
    call: Call[Any] = HostCall([], NOBODY, Loopback())
    return calculator.procedures[number].perform(call, arguments)


def test_what_is_returned_follows_status_0() -> None:
    assert perform(1, numbers(7, 2)) == [bytes.fromhex("00000000 00000003")]


def test_a_failure_is_its_status_and_what_the_procedure_left_to_say() -> None:
    assert perform(1, numbers(7, 0)) == [bytes.fromhex("00000021 00000007 00000001 00000000")]


def test_a_failure_before_that_says_nothing() -> None:
    assert perform(1, numbers(7, 99)) == [bytes.fromhex("00000004 00000000 00000000")]


def test_a_failure_of_the_failure_says_nothing() -> None:
    assert perform(5, numbers(7, 1)) == [bytes.fromhex("00000046 00000000 00000000")]


def test_success_and_failure_may_be_nothing_but_a_status() -> None:
    assert perform(2, numbers(1, 1)) == [bytes(4)]
    assert perform(2, numbers(1, 2)) == [bytes.fromhex("00000005")]


def test_a_result_without_a_status_stands_alone() -> None:
    assert perform(3, numbers(1, 2)) == [bytes.fromhex("00000003")]


def test_a_procedure_without_a_status_cannot_fail() -> None:
    with pytest.raises(Refusal):
        perform(3, numbers(101, 2))


def test_what_a_result_cannot_hold_is_not_sent() -> None:
    with pytest.raises(StructError):
        perform(3, numbers(100, 0xFFFFFFFF))


def test_data_is_handed_on_uncopied() -> None:
    head, data = perform(4, read_args(8))
    assert head == bytes.fromhex("00000000 00000008 00000008")
    assert isinstance(data, memoryview)


def test_every_program_has_procedure_0() -> None:
    assert perform(0, None) == [b""]
    with pytest.raises(XdrError):
        calculator.procedures[0].arguments.decode(b"abcd")


def test_what_is_known_of_a_procedure() -> None:
    procedure = calculator.procedures[4]
    assert (procedure.number, procedure.name, procedure.cached) == (4, "read", True)
    assert repr(procedure) == "calc7 READ" and procedure.counter == "calc7.read"
    assert repr(calculator) == "calc7" and repr(Program(5, 2)) == "program5.2"
    assert not calculator.procedures[1].cached


def test_a_number_is_declared_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        calculator.procedure(3)(add)


def test_a_call_says_what_goes_with_a_failure() -> None:
    def vague(call: HostCall[Any], args: None) -> None:
        pass

    vague.__annotations__["call"] = HostCall
    with pytest.raises(AssertionError, match="does not say"):
        Program(1, 1).procedure(1)(vague)


def test_a_call_knows_where_it_came_from() -> None:
    call: Call[None] = Call(None, NOBODY, Loopback("udp"))
    assert (call.peer, call.local, call.netid) == (CLIENT, SERVER, "udp")
    assert call.failure_body() is None
