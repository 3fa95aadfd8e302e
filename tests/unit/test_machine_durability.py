"""A whole machine over a pipe, with its threads: replies are held until a journal thread has
flushed, and a stop lets them out before it unmounts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance import cli
from appliance.clock import MILLISECOND, SECOND, SystemClock
from appliance.ifconf import interface_config
from appliance.limits import STOP_GRACE
from appliance.machine import Machine, Settings, StopError
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.tcp.connection import Connection
from appliance.nfsd.v3.protocol import GETATTR3args, SETATTR3args, nfsstat3, sattr3
from appliance.oncrpc.record import RecordReader, mark
from appliance.trace import Counters
from appliance.vfs import handles
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.tree import Tree
from tests.sim.nfs_client import NfsClient, Refused
from tests.sim.pipe import PipeEnd, pipe
from tests.sim.rpc_client import Reply, RpcClient
from tests.sim.ticket_filesystem import TicketFileSystem

ADDRESS = bytes([10, 0, 0, 5])
PEER = HostConfig.single(bytes.fromhex("02000a000001"), bytes([10, 0, 0, 1]), 24)
PATIENCE = 20 * SECOND


class PipedMachine(Machine):
    """A machine with these file systems, at "/0", "/1", ..., on one end of a pipe."""

    def __init__(self, *filesystems: TicketFileSystem, threads: int = 4) -> None:
        self.filesystems = filesystems
        self.ours, self.theirs = pipe()
        interface = interface_config(ip="10.0.0.5")
        super().__init__(Settings(interface, None, False, (), None, threads, None))

    def _mount_all(self) -> Tree:
        mounts = [(f"/{at}", filesystem) for at, filesystem in enumerate(self.filesystems)]
        return Tree.of(mounts, self._clock)

    def _open_link(self) -> PipeEnd:
        return self.ours

    @property
    def held_calls(self) -> int:
        assert self._leader is not None
        return len(self._leader.held)

    @property
    def takes_no_calls(self) -> bool:
        return self._rpc.share == 0


class Peer:
    """The client's host at the other end, moved on by `until`."""

    def __init__(self, link: PipeEnd) -> None:
        self.link = link
        self.talks = 0
        self.clock = SystemClock()
        self.stack = Stack(link, PEER, random=random.Random(1), counters=Counters())
        self.stack.start(self.clock.now())

    def connect(self) -> Talk:
        talk = Talk(self)
        talk.connection = self.stack.tcp.connect(ADDRESS, 2049, talk, self.clock.now())
        self.until(lambda: talk.established)
        return talk

    def rest(self) -> None:
        """Long enough for what is under way to arrive."""
        end = self.clock.now() + 50 * MILLISECOND
        self.until(lambda: self.clock.now() > end)

    def until(self, condition: Callable[[], bool]) -> None:
        end = self.clock.now() + PATIENCE
        while not condition():
            now = self.clock.now()
            assert now < end, "never came"
            self.stack.flush(now)
            deadline = self.stack.next_deadline
            if deadline is not None and deadline <= now:
                self.stack.expire(now)
            if self.link.wait(MILLISECOND) and (frame := self.link.receive_now()):
                self.stack.receive(frame, self.clock.now())


def no_waiting(call: bytes, port: int) -> Reply:
    raise AssertionError("this client does not wait for replies")


class Talk:
    """One connection, and the replies that have come on it."""

    connection: Connection

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.established = self.over = False
        peer.talks += 1  # none goes on with the xids of another
        self.client = NfsClient(no_waiting, RpcClient(xid=peer.talks << 16))
        self.reader = RecordReader()
        self.asked: dict[int, object] = {}
        self.answers: dict[int, object] = {}

    def room_again(self, connection: Connection) -> None:
        self.established = True

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.over = True
        connection.close()

    def readable(self, connection: Connection) -> None:
        for head, rest in self.reader.feed(connection.receive()):
            reply = RpcClient.reply(b"".join((head, *rest)))
            try:
                self.answers[reply.xid] = self.client.result(self.asked[reply.xid], reply)
            except Refused as refusal:
                self.answers[reply.xid] = refusal.status

    def say(self, args: object) -> int:
        call = self.client.request(args)
        xid = self.client.rpc.xid
        self.asked[xid] = args
        self.connection.send([mark(len(call)) + call])
        self.peer.stack.flush(self.peer.clock.now())
        return xid

    def hear(self, *xids: int) -> None:
        self.peer.until(lambda: all(xid in self.answers for xid in xids))


@contextmanager
def running(machine: PipedMachine) -> Iterator[Peer]:
    machine.start()
    peer = Peer(machine.theirs)
    try:
        yield peer
    finally:
        stop(machine, peer)


def stop(machine: PipedMachine, peer: Peer) -> None:
    """Stop it while the peer goes on."""
    stopping = threading.Thread(target=machine.stop)
    stopping.start()
    peer.until(lambda: not stopping.is_alive())


def make(fsid: int = 2) -> TicketFileSystem:
    return TicketFileSystem(fsid, SystemClock(), background=True)


def root_handle(machine: PipedMachine) -> bytes:
    return handles.encode(handles.export_id(b"/"), machine.filesystems[0].root())


def change(machine: PipedMachine, mode: int = 0o700) -> SETATTR3args:
    return SETATTR3args(root_handle(machine), sattr3(mode=mode))


def journals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "journal"]


def test_every_file_system_with_background_work_has_a_thread() -> None:
    plain = TicketFileSystem(4, SystemClock())
    machine = PipedMachine(make(2), make(3), plain)
    with running(machine):
        assert len(journals()) == 2
        task = Path("/proc/self/task")
        names = [(task / at.name / "comm").read_text().strip() for at in task.iterdir()]
        assert names.count("journal") == 2, "ps -T shows them"
    assert journals() == []
    assert all(filesystem.closed for filesystem in machine.filesystems)


def test_a_reply_waits_for_the_journal_and_others_do_not_wait_for_it() -> None:
    filesystem = make()
    machine = PipedMachine(filesystem)
    with running(machine) as peer:
        talk = peer.connect()
        filesystem.device.clear()
        held = talk.say(change(machine))
        read = talk.say(GETATTR3args(root_handle(machine)))
        talk.hear(read)
        assert held not in talk.answers
        filesystem.device.set()
        talk.hear(held)
        assert machine.counters["leader.held"] == 1


def test_many_connections_share_flushes() -> None:
    """While the device is busy, the others gather for the flush after it."""
    filesystem = make()
    machine = PipedMachine(filesystem)
    with running(machine) as peer:
        talks = [peer.connect() for _ in range(64)]
        filesystem.device.clear()
        asked = [(talk, talk.say(change(machine))) for talk in talks]
        peer.until(lambda: machine.counters["nfs3.setattr"] == 64)
        peer.until(lambda: machine.held_calls == 64)
        filesystem.device.set()
        for talk, xid in asked:
            talk.hear(xid)
        assert filesystem.flushes <= 2, "the one that was under way, and one for all the others"
        assert machine.counters["leader.released"] == filesystem.flushes


def test_a_flush_that_fails_is_told() -> None:
    filesystem = make()
    machine = PipedMachine(filesystem)
    with running(machine) as peer:
        talk = peer.connect()
        filesystem.fails_with = VfsError(Code.IO)
        held = talk.say(change(machine))
        talk.hear(held)
        assert talk.answers[held] is nfsstat3.NFS3ERR_IO


def test_many_calls_on_one_connection_all_come_out() -> None:
    """More than a connection may have in progress: room for the next is made by the journal."""
    machine = PipedMachine(make(), threads=1)
    with running(machine) as peer:
        talk = peer.connect()
        asked = [talk.say(change(machine, mode)) for mode in range(300)]
        talk.hear(*asked)
        assert machine.counters["leader.held"] == 300
        assert machine.counters["leader.released"] < 300


def test_a_stop_lets_held_replies_out_and_takes_no_more_calls() -> None:
    filesystem = make()
    machine = PipedMachine(filesystem)
    machine.start()
    peer = Peer(machine.theirs)
    talk = peer.connect()
    filesystem.device.clear()
    held = talk.say(change(machine))
    peer.until(lambda: machine.held_calls == 1)
    stopping = threading.Thread(target=machine.stop)
    stopping.start()
    peer.until(lambda: machine.takes_no_calls)
    late = talk.say(change(machine))
    assert not filesystem.closed, "nothing is unmounted under a held reply"
    filesystem.device.set()
    talk.hear(held)
    peer.until(lambda: talk.over)
    peer.until(lambda: not stopping.is_alive())
    assert filesystem.closed
    assert late not in talk.answers and machine.counters["nfs3.setattr"] == 1


def test_a_stop_does_not_wait_for_ever_for_a_device() -> None:
    filesystem = make()
    machine = PipedMachine(filesystem)
    machine.start()
    peer = Peer(machine.theirs)
    talk = peer.connect()
    filesystem.device.clear()
    talk.say(change(machine))
    peer.until(lambda: machine.held_calls == 1)
    before = time.monotonic_ns()
    threading.Timer(STOP_GRACE / SECOND + 1, filesystem.device.set).start()
    machine.stop()
    assert STOP_GRACE <= time.monotonic_ns() - before < STOP_GRACE + 10 * SECOND
    assert filesystem.closed and journals() == []


def test_what_cannot_be_unmounted_is_told_and_the_others_are() -> None:
    bad, good = make(2), make(3)
    bad.closes_with = VfsError(Code.IO, "the disk is gone")
    machine = PipedMachine(good, bad)
    machine.start()
    with pytest.raises(StopError, match="not unmounted clean: /1: IO: the disk is gone") as told:
        machine.stop()
    assert told.value.hint
    assert good.closed and bad.closed and journals() == []


def test_the_exit_code_of_a_stop_that_failed_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filesystem = make()
    filesystem.closes_with = VfsError(Code.NOSPC)
    monkeypatch.setattr(cli, "Machine", lambda settings: PipedMachine(filesystem))
    monkeypatch.setattr(cli, "obey_signals", lambda machine: None)
    monkeypatch.setattr("signal.pthread_sigmask", lambda how, which: None)
    monkeypatch.setattr("appliance.trace.start", lambda level: None)
    assert cli.main(["--ip", "10.0.0.5", "--memory", "1M"]) == 1
    said = capsys.readouterr().err
    assert "error: not unmounted clean: /0: NOSPC\nhint: " in said
