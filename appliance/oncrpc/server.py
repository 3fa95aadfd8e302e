"""The RPC server: bytes and datagrams in, calls to the threads of their services, replies out.

The life of a call: a session cuts the bytes of its transport into records (record.py), reads the
header of each (message.py), finds the procedure in the registry, and submits a PendingCall to the
service. Some thread of the service runs it; then it is finished: the reply is sent, at once or when
what it promises is certain (held.py). Whatever can be refused by its header is answered at once.
Every call gets an answer, because silence hangs clients; what is no call is dropped and counted.

Threads. Sessions are called with the leader's lock held (leader.py), and so is `finish`; `run` is
called without, and so is what makes the reply of a held call. What they touch belongs to their call
alone, but for the reply cache, which has a lock, and the services, which know that they are called
by many.

Back-pressure. A session takes calls as long as it has fewer in progress than its share, and the
peer takes the replies. Otherwise it pauses its transport, so that the peer's window closes, and
holds what was delivered already; it goes on when a call is finished or the replies have drained.
A held call is a call in progress.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from appliance import limits
from appliance.clock import Clock
from appliance.oncrpc.auth import AuthError, Credential
from appliance.oncrpc.held import Held, Reply
from appliance.oncrpc.message import (
    Denied,
    NotACall,
    Refusal,
    auth_error,
    call_header,
    garbage_args,
    proc_unavail,
    prog_mismatch,
    prog_unavail,
    refusal,
    success_reply,
    system_err,
)
from appliance.oncrpc.program import Call, Procedure, Program, Refused, Silence
from appliance.oncrpc.record import Record, RecordError, RecordReader
from appliance.oncrpc.reply_cache import Caller, Entry, ReplyCache
from appliance.oncrpc.transport import NETIDS, Buffer, StreamUser, Transport
from appliance.oncrpc.xdr import XdrError
from appliance.trace import Counters, log


@dataclass(frozen=True, slots=True)
class Service:
    """A program that runs: who does it, on which thread, and where it can be called."""

    program: Program
    host: Any
    submit: Callable[[PendingCall], None]
    port: int
    netids: tuple[str, ...]


Target = tuple[Service, Procedure]
Table = dict[tuple[int, int, int], Target]
"""What can be called at one place, by program, version and procedure."""


class Registry:
    """The programs that run. Complete before the first call comes."""

    def __init__(self) -> None:
        self._services: list[Service] = []
        self._tables: dict[tuple[str, int], Table] = {}

    def add(
        self,
        program: Program,
        host: object,
        submit: Callable[[PendingCall], None],
        *,
        port: int,
        netids: tuple[str, ...] = NETIDS,
    ) -> None:
        """Serve `program` on a port; `host` is the service that its procedures find in their call.
        `submit`, with the leader's lock held, gives a call to the thread that shall run it."""
        service = Service(program, host, submit, port, netids)
        self._services.append(service)
        for netid in netids:
            table = self._tables.setdefault((netid, port), {})
            for number, procedure in program.procedures.items():
                key = (program.number, program.version, number)
                assert key not in table, f"{program} is registered twice on {netid} {port}"
                table[key] = (service, procedure)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services)

    def table(self, netid: str, port: int) -> Table:
        """What can be called there."""
        return self._tables.get((netid, port), {})


def _unavailable(table: Table, program: int, version: int) -> Refusal:
    """Why a procedure that is not in the table cannot be called (RFC 5531 section 9)."""
    versions = [a_version for a_program, a_version, _ in table if a_program == program]
    if not versions:
        return prog_unavail()
    if version not in versions:
        return prog_mismatch(min(versions), max(versions))
    return proc_unavail()


def counter(why: Refusal) -> str:
    """What counts refusals of this kind."""
    return f"rpc.{type(why).__name__}"


SYSTEM_ERROR: Final = counter(system_err())


class PendingCall:
    """One call, from its header to its reply."""

    __slots__ = (
        "_also",
        "_arguments_at",
        "_credential",
        "_head",
        "_procedure",
        "_rest",
        "_service",
        "_session",
        "_trouble",
        "_xid",
    )

    def __init__(
        self,
        session: Session,
        target: Target,
        xid: int,
        credential: Credential,
        record: Record,
        arguments_at: int,
    ) -> None:
        self._session = session
        self._service, self._procedure = target
        self._xid = xid
        self._credential = credential
        self._head, self._rest = record
        self._arguments_at = arguments_at
        self._trouble = ""  # what to count
        self._also: Caller | None = None

    def __repr__(self) -> str:
        return f"<{self._procedure} xid={self._xid:x} from {self._session.transport.peer}>"

    def run(self) -> Reply | Held | None:
        """Do it, or find the reply from when it was done; None: there is none to be sent.

        Called once, by any thread, without the leader's lock. May take long.
        """
        return self._run_once() if self._procedure.cached else self._run()

    def finish(self, reply: Reply | None) -> None:
        """Send what `run` returned, or what came of it when it was held. Called once, with the
        leader's lock."""
        session = self._session
        if self._trouble:
            session.server.counters[self._trouble] += 1
        if session.server.tells_calls:
            log.debug("%r -> %d bytes %s", self, sum(map(len, reply or ())), self._trouble)
        if reply is not None:
            session.send(reply)
            if self._also is not None:
                self._also.send(reply)
        session.finished()

    def _run_once(self) -> Reply | Held | None:
        """Run a call that must not be done twice, unless it has been done."""
        session, procedure, at = self._session, self._procedure, self._arguments_at
        program = procedure.program
        cache = session.server.reply_cache
        netid = session.transport.netid
        entry = cache.begin(
            session.transport.peer.address,
            (netid, self._xid, program.number, program.version, procedure.number),
            session,
            self._head[at : at + limits.REPLY_CHECKSUM_BYTES],
        )
        if not isinstance(entry, Entry):
            self._trouble = "rpc.duplicate_dropped" if entry is None else "rpc.duplicate_answered"
            return entry
        reply = self._run()
        if isinstance(reply, Held):
            return Held(reply.promises, partial(self._settled_once, entry, reply))
        self._keep(entry, reply)
        return reply

    def _settled_once(self, entry: Entry, held: Held, error: Exception | None) -> Reply | None:
        reply = held.reply(error)
        self._keep(entry, reply)
        return reply

    def _keep(self, entry: Entry, reply: Reply | None) -> None:
        """For when the call comes again."""
        cache = self._session.server.reply_cache
        if reply is None or self._trouble == SYSTEM_ERROR:
            self._also = cache.failed(entry)
        else:
            self._also = cache.done(entry, reply)

    def _run(self) -> Reply | Held | None:
        procedure, session = self._procedure, self._session
        try:
            arguments = procedure.arguments.decode(self._head, self._arguments_at, self._rest)
        except XdrError as error:
            log.debug("%r: %s", self, error)
            return self._refused(garbage_args())
        call = procedure.program.call(self._service.host, self._credential, session.transport)
        try:
            results = procedure.perform(call, arguments)
        except AuthError as error:
            return self._refused(auth_error(error.stat))
        except Refused as error:
            return self._refused(error.why)
        except Silence:
            self._trouble = "rpc.silence"
            return None
        except Exception as error:  # noqa: BLE001 (a bug in one procedure must not end its thread)
            return self._broken(error)
        reply = success_reply(self._xid, results, marked=session.marked)
        if not session.marked and sum(map(len, reply)) > limits.DATAGRAM_BYTES_MAX:
            return self._refused(system_err())
        if call.promises:
            self._head, self._rest = b"", ()  # up to 1 MiB, and not needed any more
            return Held(call.promises, partial(self._settled, call, reply))
        return reply

    def _settled(self, call: Call[Any], reply: Reply, error: Exception | None) -> Reply:
        """What is sent when it is known whether that lasts which `reply` tells."""
        if error is None:
            return reply
        try:
            results = self._procedure.fail(call, error)
        except Exception as bug:  # noqa: BLE001 (nor must it end the thread of a file system)
            return self._broken(bug)
        return success_reply(self._xid, results, marked=self._session.marked)

    def _broken(self, error: Exception) -> Reply:
        self._session.server.broken(self._procedure, error)
        return self._refused(system_err())

    def _refused(self, why: Refusal) -> list[Buffer]:
        self._trouble = counter(why)
        return refusal(self._xid, why, marked=self._session.marked)


class Session(ABC):
    """Where calls come from: one stream, or one datagram."""

    marked: bool
    """Replies carry a record mark."""

    def __init__(
        self, server: RpcServer, transport: Transport, known: dict[bytes, Credential]
    ) -> None:
        self.server = server
        self.transport = transport
        self.port = transport.peer.port
        self.in_progress = 0
        self._known = known  # callers, by their credentials
        self._table = server.registry.table(transport.netid, transport.local.port)

    def send(self, reply: Sequence[Buffer]) -> None:
        """Send a reply."""
        self.transport.send(reply)

    def take(self, record: Record) -> None:
        """Submit the call that a record is, or refuse it."""
        counters = self.server.counters
        try:
            xid, program, version, number, credential, at = call_header(record[0], self._known)
        except NotACall:
            counters["rpc.not_a_call"] += 1
            return
        except Denied as denied:
            self._refuse(denied.xid, denied.why)
            return
        target = self._table.get((program, version, number))
        if target is None:
            self._refuse(xid, _unavailable(self._table, program, version))
            return
        counters[target[1].counter] += 1
        self.in_progress += 1
        target[0].submit(PendingCall(self, target, xid, credential, record, at))

    def _refuse(self, xid: int, why: Refusal) -> None:
        self.server.counters[counter(why)] += 1
        self.send(refusal(xid, why, marked=self.marked))

    @abstractmethod
    def finished(self) -> None:
        """One of the calls in progress has got its reply."""

    @abstractmethod
    def reply_lost(self) -> bool:
        """Whether a reply that was sent here may never have arrived."""


class StreamSession(Session):
    """The calls of one connection."""

    marked = True

    def __init__(self, server: RpcServer, transport: Transport) -> None:
        super().__init__(server, transport, {})
        self._reader = RecordReader()
        self._held: deque[Record] = deque()  # records for which there was no room
        self._taking = False
        self._paused = False
        self._ended = False
        self._closed = False
        self._lost = False
        self._born = self.heard = server.heard  # when it last said something

    def text_arrived(self, text: Sequence[memoryview]) -> None:
        """The next bytes of the connection."""
        server = self.server
        server.heard = self.heard = server.heard + 1
        try:
            records = self._reader.feed(text)
        except RecordError as error:
            log.info("%s: %s", self.transport.peer, error)
            self.server.counters["rpc.bad_record"] += 1
            self._held.clear()
            self.transport.abort()
            return
        if records:
            self._held.extend(records)
            self._take_held()

    def room_again(self) -> None:
        """The replies that had not been acknowledged have drained."""
        if self._paused:
            self._take_held()
        if self._ended:
            self._close_when_done()

    def ended(self) -> None:
        """The peer sends no more; it may still read."""
        if self._ended:
            return
        self._lost = self.reply_lost() or self.in_progress > 0
        self._ended = True
        self._reader.forget()  # the reply cache keeps us for minutes
        self.server.stream_ended(self)
        self._close_when_done()

    def gone(self) -> None:
        """Nobody hears an answer: calls that have not begun are not run. They come again."""
        self._held.clear()
        self._close_when_done()

    @property
    def is_idle(self) -> bool:
        """True: nothing is lost but time when the connection is closed."""
        return not (self.in_progress or self._held or self.transport.unsent_bytes)

    @property
    def has_spoken(self) -> bool:
        """False: nothing has come since it was opened."""
        return self.heard != self._born

    def finished(self) -> None:
        self.in_progress -= 1
        if self._paused:
            self._take_held()
        if self._ended:
            self._close_when_done()

    def reply_lost(self) -> bool:
        return self._lost if self._ended else self.transport.unsent_bytes > 0

    def _close_when_done(self) -> None:
        """The peer has ended its half: end ours, after the last reply."""
        if not (self.in_progress or self._held or self._closed):
            self._closed = True
            self.transport.close()

    def _take_held(self) -> None:
        """Take the calls for which there is room. Pause the transport when there is none, and
        resume it when there is again."""
        if self._taking:
            return  # a call was finished while it was being taken
        self._taking = True
        held = self._held
        while held and self._has_room():
            self.take(held.popleft())
        self._taking = False
        if held or not self._has_room():
            if not self._paused:
                self._paused = True
                self.transport.pause()
        elif self._paused:
            self._paused = False
            self.transport.resume()

    def _has_room(self) -> bool:
        return (
            self.in_progress < self.server.share
            and self.transport.unsent_bytes <= limits.UNSENT_REPLY_BYTES_MAX
        )


class DatagramSession(Session):
    """The one call of a datagram."""

    marked = False

    def finished(self) -> None:
        self.server.datagram_calls -= 1

    def reply_lost(self) -> bool:
        return False  # whoever asks again from another port is somebody else


class RefusedStream:
    """One connection too many: it ends when it wants something."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def text_arrived(self, text: Sequence[memoryview]) -> None:
        """Whatever it is."""
        self._transport.abort()

    def room_again(self) -> None:
        """Nothing waits for it."""

    def ended(self) -> None:
        """It has found out by itself."""
        self._transport.close()

    def gone(self) -> None:
        """So it has."""


class RpcServer:
    """All sessions, and what they share."""

    def __init__(self, registry: Registry, counters: Counters, clock: Clock) -> None:
        self.registry: Final = registry
        self.counters: Final = counters
        self.reply_cache: Final = ReplyCache(clock)
        self.share = limits.CALLS_IN_PROGRESS_MAX  # calls in progress of each stream
        self.datagram_calls = 0
        self.heard = 0  # how often any stream has said something
        self._taking = True
        self._streams: dict[StreamSession, None] = {}  # the oldest first
        self._callers: dict[bytes, Credential] = {}  # by UDP
        self._told: set[tuple[Procedure, type[Exception]]] = set()
        self.tells_calls: Final = log.isEnabledFor(logging.DEBUG)

    def stream(self, transport: Transport) -> StreamUser:
        """A new connection; who gets its bytes."""
        full = len(self._streams) >= limits.CONNECTIONS_MAX
        if not self._taking or (full and not self._make_room()):
            self.counters["rpc.refused_connection"] += 1
            return RefusedStream(transport)
        session = StreamSession(self, transport)
        self._streams[session] = None
        self._share_out()
        return session

    def _make_room(self) -> bool:
        """Close the stream that has been silent longest, so that idle connections cannot keep
        others out; its client, if it is a good one, connects again when it has something to say.
        Those that never said anything go first: in a flood of them, a client that does not call for
        half a second would otherwise be the one."""
        idle = [stream for stream in self._streams if stream.is_idle]
        if not idle:
            return False
        self.counters["rpc.closed_idle"] += 1
        min(idle, key=lambda stream: (stream.has_spoken, stream.heard)).ended()
        return True

    def stream_ended(self, stream: StreamSession) -> None:
        """One connection less."""
        del self._streams[stream]
        self._share_out()

    def datagram(self, transport: Transport, data: Buffer) -> None:
        """One datagram; its reply goes to `transport`."""
        if not self._taking or self.datagram_calls >= limits.DATAGRAM_CALLS_IN_PROGRESS_MAX:
            self.counters["rpc.datagram_dropped"] += 1
            return
        session = DatagramSession(self, transport, self._callers)
        session.take((bytes(data), ()))
        self.datagram_calls += session.in_progress

    def broken(self, procedure: Procedure, error: Exception) -> None:
        """A procedure raised what it should not. The log tells it once, the counters every time."""
        if (procedure, type(error)) not in self._told:
            self._told.add((procedure, type(error)))
            log.error("%r is broken; its callers get SYSTEM_ERR", procedure, exc_info=error)

    def stop_taking(self) -> None:
        """Take no more calls: they stay with their callers, who will ask again. Those in progress
        go on."""
        self._taking = False
        self._share_out()

    def _share_out(self) -> None:
        if not self._taking:
            self.share = 0
            return
        equal = limits.CALLS_IN_PROGRESS_TOTAL // max(1, len(self._streams))
        self.share = max(limits.CALLS_IN_PROGRESS_MIN, min(equal, limits.CALLS_IN_PROGRESS_MAX))
