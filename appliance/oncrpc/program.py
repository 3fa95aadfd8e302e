"""ONC RPC programs (RFC 5531 section 12): a table of procedures, each one typed function.

    nfs3 = Program(100003, version=3, name="nfs", failures=(VfsError,), status=nfsstat3_of)

    @nfs3.procedure(3)
    def lookup(call: Call[LOOKUP3resfail], args: LOOKUP3args) -> LOOKUP3resok:
        ...

The signature is the contract; nothing is said twice:

- `args` is decoded before the function runs; what does not decode is answered GARBAGE_ARGS.
- What it returns is the body of success. One of the `failures` that it raises becomes a status word
  (`status(error)`) and the body that goes with it. The reply is then the union that the RFC
  declares: a status and the body of its arm. Success is 0, as in every program that does it so.
- `Call[X]`: X is the body that goes with a failure: what `call.on_failure` was given makes it, else
  it is an X with everything absent. `Call[None]`: nothing goes with a failure.
- `call.hold(promise)`: the reply is not sent before the promise is kept (held.py). If it is broken
  with one of the `failures`, the reply is that failure.
- `Call[Never]`: the result has no status, it is the returned value alone; it never fails.

Arguments and results may be any XDR type, also `uint32`, `bool`, or None for void.

A Program is a declaration and belongs to no server: `call.host` is the service that was registered
with it (server.py). Procedure 0 (NULL) is there without being declared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import NoneType
from typing import Any, Final, Generic, Never, TypeVar, get_args, get_type_hints

from appliance.oncrpc.auth import Credential
from appliance.oncrpc.held import Promise
from appliance.oncrpc.message import reply_data
from appliance.oncrpc.transport import Endpoint, Transport
from appliance.oncrpc.xdr import Buffer, Codec, codec, encode, nothing

Failure = TypeVar("Failure")
Handler = TypeVar("Handler", bound=Callable[..., Any])

_SUCCESS: Final = bytes(4)


class Refused(Exception):
    """A procedure answers in the words of RPC itself: what it was asked for is not there."""

    def __init__(self, why: reply_data) -> None:
        super().__init__(why)
        self.why = why


class Silence(Exception):
    """A procedure does not answer, because its RFC says so."""


class Call(Generic[Failure]):
    """One call in progress, as its procedure sees it.

    A service may have its own kind of Call, with accessors for its host: `Program(call=...)`.
    """

    __slots__ = ("_failure", "_transport", "credential", "host", "promises")

    def __init__(self, host: Any, credential: Credential, transport: Transport) -> None:
        self.host = host
        self.credential = credential
        self._transport = transport
        self._failure: Callable[[], Failure] | None = None
        self.promises: Sequence[Promise] = ()
        """What the reply waits for."""

    @property
    def peer(self) -> Endpoint:
        """Where the call came from."""
        return self._transport.peer

    @property
    def local(self) -> Endpoint:
        """Where it arrived."""
        return self._transport.local

    @property
    def netid(self) -> str:
        """What it came over: "tcp" or "udp"."""
        return self._transport.netid

    def hold(self, promise: Promise) -> None:
        """The reply is not to be sent before `promise` is kept; if it is broken, a failure is. What
        `on_failure` was given may then be called by the thread that had to keep it, so it has to
        know by now what it tells."""
        if promise not in self.promises:
            self.promises = [*self.promises, promise]

    def on_failure(self, body: Callable[[], Failure]) -> None:
        """From now on, `body()` makes what goes with a failure."""
        self._failure = body

    def failure_body(self) -> Failure | None:
        """What goes with a failure, if `on_failure` was called."""
        return self._failure() if self._failure else None


class Procedure:
    """One procedure of a program: what is known of it."""

    def __init__(self, program: Program, number: int, handler: Any, *, cached: bool) -> None:
        hints = get_type_hints(handler, include_extras=True)
        self.failure = _failure(hints["call"])
        self.program = program
        self.number = number
        self.name: str = handler.__name__
        self.counter = f"{program.label}.{self.name}"
        self.cached = cached
        self.handler = handler
        self.arguments: Codec[Any] = codec(hints["args"])
        self.result: Codec[Any] = codec(hints["return"])
        self.has_status = self.failure is not Never

    def __repr__(self) -> str:
        return f"{self.program.label} {self.name.upper()}"

    def perform(self, call: Call[Any], arguments: object) -> list[Buffer]:
        """Do it; the results as they are in the reply: one piece, then bulk data uncopied."""
        program = self.program
        try:
            result = self.handler(call, arguments)
        except program.failures as error:
            call.promises = ()  # what it was about to promise, it does not
            return self.fail(call, error)
        pieces: list[Buffer] = [_SUCCESS] if self.has_status else []
        bulk = self.result.write(result, pieces.append)
        joined = b"".join(pieces)
        return [joined, *bulk] if bulk else [joined]

    def fail(self, call: Call[Any], error: Exception) -> list[Buffer]:
        """The results of a call that has failed, be it after it was performed."""
        program = self.program
        if not (self.has_status and isinstance(error, program.failures)):
            raise error
        return [program.status(error).to_bytes(4, "big") + self._failure_body(call)]

    def _failure_body(self, call: Call[Any]) -> bytes:
        try:
            body = call.failure_body()
        except self.program.failures:
            body = None  # what it was to tell has gone, too
        return self._no_failure_body if body is None else b"".join(encode(body))

    @cached_property
    def _no_failure_body(self) -> bytes:
        return b"" if self.failure is NoneType else b"".join(encode(nothing(self.failure)))


def _failure(call: Any) -> Any:
    """The X of Call[X], also where a service has its own kind of Call."""
    (failure,) = get_args(call) or get_args(call.__orig_bases__[0])
    assert not isinstance(failure, TypeVar), f"{call} does not say what goes with a failure"
    return failure


class Program:
    """One version of one program."""

    def __init__(
        self,
        number: int,
        version: int,
        name: str = "",
        *,
        failures: tuple[type[Exception], ...] = (),
        status: Callable[[Any], int] = int,
        call: type[Call[Any]] = Call,
    ) -> None:
        self.number: Final = number
        self.version: Final = version
        self.name: Final = name or f"program{number}."
        self.label: Final = f"{self.name}{version}"
        self.failures: Final = failures
        self.status: Final = status
        self.call: Final = call
        self.procedures: Final[dict[int, Procedure]] = {}
        self.procedure(0)(null)

    def __repr__(self) -> str:
        return self.label

    def procedure(self, number: int, *, cached: bool = False) -> Callable[[Handler], Handler]:
        """Declare a procedure. `cached`: to do it twice is not the same as to do it once, so its
        reply is kept for when the call comes again (reply_cache.py)."""

        def declare(handler: Handler) -> Handler:
            assert number not in self.procedures, f"procedure {number} declared twice"
            self.procedures[number] = Procedure(self, number, handler, cached=cached)
            return handler

        return declare


def null(call: Call[Never], args: None) -> None:
    """Do nothing: every program answers procedure 0 (RFC 5531 section 12.1)."""
