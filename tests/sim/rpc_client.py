"""A small RPC client without I/O: it builds calls and understands replies.

    client = RpcClient(uid=1000)
    call = client.call(nfs3, 3, LOOKUP3args(...))      # the bytes of a record, without its mark
    reply = client.reply(data)                         # Reply(xid, results=..., ...)
    body = reply.status_body(LOOKUP3resok)             # after a status word of 0

`RpcWorld` is an RPC server in the simplest of worlds: no threads, and transports that remember what
was sent on them. `world.ask(call)` plays one call from its bytes to its reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from appliance.clock import Clock
from appliance.oncrpc.auth import auth_flavor, authsys_parms
from appliance.oncrpc.held import Answer, Held, WaitingRoom
from appliance.oncrpc.message import (
    NO_AUTH,
    RPC_VERSION,
    accepted_reply,
    call_body,
    opaque_auth,
    reply_body,
    rpc_msg,
    success,
)
from appliance.oncrpc.program import Program
from appliance.oncrpc.record import RecordReader, mark
from appliance.oncrpc.server import PendingCall, Registry, RpcServer
from appliance.oncrpc.transport import Buffer, Endpoint, StreamUser
from appliance.oncrpc.xdr import codec, decode, encode
from appliance.trace import Counters
from appliance.vfs.errors import VfsError

T = TypeVar("T")


@dataclass
class Reply:
    """One reply: what it says, and where it was accepted and successful, its results."""

    xid: int
    body: Any  # accepted_reply.reply_data, or what a rejected_reply holds
    results: bytes = b""

    @property
    def succeeded(self) -> bool:
        return isinstance(self.body, success)

    def value(self, kind: Any) -> Any:
        """The results, of any XDR type."""
        assert self.succeeded, self.body
        return codec(kind).decode(self.results)

    @property
    def status(self) -> int:
        """The status word of a result that is a union."""
        assert self.succeeded, self.body
        return int.from_bytes(self.results[:4], "big")

    def ok(self, kind: type[T]) -> T:
        """The body that goes with status 0."""
        assert self.status == 0, f"status {self.status}"
        return decode(kind, self.results[4:])

    def failed(self, status: int, kind: Any = None) -> Any:
        """The body that goes with another status."""
        assert self.status == status, f"status {self.status}, not {status}"
        return codec(kind).decode(self.results[4:])


@dataclass
class RpcClient:
    """The caller: its identity, and the xids it has used."""

    uid: int = 0
    gid: int = 0
    gids: tuple[int, ...] = ()
    machine: bytes = b"client.example"
    xid: int = 0x1000
    anonymous: bool = False

    def credential(self) -> opaque_auth:
        """AUTH_SYS, or AUTH_NONE for the anonymous."""
        if self.anonymous:
            return NO_AUTH
        said = authsys_parms(0, self.machine, self.uid, self.gid, list(self.gids))
        return opaque_auth(auth_flavor.AUTH_SYS, b"".join(encode(said)))

    def header(
        self,
        program: int,
        version: int,
        procedure: int,
        *,
        xid: int | None = None,
        rpcvers: int = RPC_VERSION,
        credential: opaque_auth | None = None,
        verifier: opaque_auth = NO_AUTH,
    ) -> bytes:
        """A call, up to its arguments. Each has a new xid, unless it is given one."""
        if xid is None:
            self.xid += 1
            xid = self.xid
        cred = credential or self.credential()
        body = call_body(rpcvers, program, version, procedure, cred, verifier)
        return b"".join(encode(rpc_msg(xid, body)))

    def call(
        self, program: Program, procedure: int, args: object = None, *, xid: int | None = None
    ) -> bytes:
        """A call of a program that we know, with arguments of the declared type."""
        arguments = b"".join(program.procedures[procedure].arguments.encode(args))
        return self.header(program.number, program.version, procedure, xid=xid) + arguments

    @staticmethod
    def reply(data: Buffer) -> Reply:
        """Understand one reply, without a record mark."""
        data = bytes(data)
        said, end = codec(rpc_msg).read(data, 0, ())
        assert isinstance(said.body, reply_body), "a call, where a reply was expected"
        body = said.body.body
        if not isinstance(body, accepted_reply):
            return _whole(Reply(said.xid, body.body), data, end)
        assert body.verf == NO_AUTH
        if not isinstance(body.reply_data, success):
            return _whole(Reply(said.xid, body.reply_data), data, end)
        return Reply(said.xid, body.reply_data, data[end:])


def _whole(reply: Reply, data: bytes, end: int) -> Reply:
    assert end == len(data), "bytes after the end of a reply"
    return reply


CLIENT: Final = Endpoint("10.0.0.9", 700)
SERVER: Final = Endpoint("10.0.0.5", 2049)
SERVER6 = Endpoint("fd00::5", 2049)


@dataclass
class Loopback:
    """A transport that remembers what was sent on it."""

    netid: str = "tcp"
    peer: Endpoint = CLIENT
    local: Endpoint = SERVER
    sent: list[list[Buffer]] = field(default_factory=list)
    unsent_bytes: int = 0
    paused: bool = False
    state: str = "open"

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self.state == "open":
            self.sent.append(list(buffers))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"

    def replies(self) -> list[Reply]:
        """What was sent since the last time."""
        data = [memoryview(b"".join(buffers)) for buffers in self.sent]
        self.sent.clear()
        if self.netid.startswith("udp"):
            return [RpcClient.reply(datagram) for datagram in data]
        records = RecordReader(record_bytes_max=1 << 30).feed(data)
        return [RpcClient.reply(b"".join((head, *rest))) for head, rest in records]


class RpcWorld:
    """An RPC server and whatever is registered with it, with nothing running: a submitted call
    waits in `pending` until `run` or `serve`, and where its reply is held, in `held` until somebody
    keeps the promise, or `serve`."""

    def __init__(self, clock: Clock) -> None:
        self.registry = Registry()
        self.counters = Counters()
        self.server = RpcServer(self.registry, self.counters, clock)
        self.pending: list[PendingCall] = []
        self.held = WaitingRoom(self._finish)
        self.released: list[int] = []  # how many calls each kept promise has released

    def add(self, program: Program, host: object, port: int = 2049) -> None:
        self.registry.add(program, host, self.pending.append, port=port)

    def run(self) -> None:
        """Run what is pending, and finish what is not held."""
        while self.pending:
            self.do(self.pending.pop(0))

    def do(self, call: PendingCall) -> None:
        """Run one call, and finish it unless it is held."""
        reply = call.run()
        if isinstance(reply, Held):
            self.held.add(call, reply)
        else:
            call.finish(reply)

    def serve(self) -> None:
        """The same; and where nothing else is left to be done, wait for what replies wait for."""
        self.run()
        while self.held:
            promise = self.held.promises[0]
            with suppress(VfsError):
                promise.wait()
            assert promise not in self.held.promises, "whoever waits for a promise settles it"
            self.run()

    def _finish(self, answers: Sequence[Answer]) -> None:
        for call, reply in answers:
            call.finish(reply)
        self.released.append(len(answers))

    def connect(self, transport: Loopback | None = None) -> tuple[Loopback, StreamUser]:
        transport = transport or Loopback()
        return transport, self.server.stream(transport)

    def ask(self, call: bytes, port: int = 2049, netid: str = "tcp") -> Reply:
        """Send one call over a transport of its own, serve it, and return its one reply."""
        address = SERVER6.address if netid.endswith("6") else SERVER.address
        transport = Loopback(netid, local=Endpoint(address, port))
        if netid.startswith("udp"):
            self.server.datagram(transport, call)
        else:
            session = self.server.stream(transport)
            session.text_arrived([memoryview(mark(len(call)) + call)])
            session.ended()
        self.serve()
        (reply,) = transport.replies()
        return reply
