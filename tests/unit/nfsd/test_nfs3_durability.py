"""What a `sync` export promises, and when (RFC 1813 section 4.8): replies are held until the file
system has flushed, many share one flush, and a flush that fails is never a success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    COMMIT3args,
    GETATTR3args,
    REMOVE3args,
    SETATTR3args,
    WRITE3args,
    fattr3,
    sattr3,
    stable_how,
    wcc_data,
)
from appliance.oncrpc.record import mark
from appliance.oncrpc.transport import Endpoint
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, Ticket
from appliance.vfs.memory import MemoryFile, MemoryNode
from tests.sim.clock import VirtualClock
from tests.sim.nfs_client import NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.sim.rpc_client import SERVER, Loopback
from tests.sim.ticket_filesystem import TicketFileSystem
from tests.unit.nfsd.nfsd_helpers import CHANGES, at, refused, wcc_of

FILE_SYNC, UNSTABLE = stable_how.FILE_SYNC, stable_how.UNSTABLE
PROMISES = [name for name, (_, nodes) in CHANGES.items() if nodes]
WCC = ("wcc_data", "dir_wcc", "obj_wcc", "file_wcc", "fromdir_wcc", "linkdir_wcc")


class World:
    """A server of a file system that flushes when the test says so; in it `file` and `below`."""

    def __init__(self, exports: str = "/ *(rw,no_root_squash,sync)") -> None:
        self.filesystem = TicketFileSystem(2, VirtualClock())
        self.nfs = NfsWorld(exports, [("/", self.filesystem)])
        self.client = self.nfs.client()
        self.root = self.client.mount()
        self.file = self.client.create(self.root, b"file")
        self.client.mkdir(self.root, b"below")
        self.filesystem.flushes = 0
        self.nfs.rpc.released.clear()

    def args(self, name: str) -> Any:
        return CHANGES[name][0](self.root, self.file)

    def attributes(self, handle: bytes) -> fattr3:
        """How things are, without a wait for what is held."""
        line = self.line(801)
        line.say(GETATTR3args(handle))
        (told,) = line.heard()
        found: fattr3 = told.obj_attributes
        return found

    def line(self, port: int = 800) -> Line:
        return Line(self, port)


class Line:
    """One connection of a client, which does not wait for replies."""

    def __init__(self, world: World, port: int) -> None:
        self.rpc = world.nfs.rpc
        self.client = world.nfs.client(port=port)
        self.transport, self.session = self.rpc.connect(
            Loopback("tcp", Endpoint("10.0.0.9", port), SERVER)
        )
        self.asked: dict[int, Any] = {}

    def say(self, *calls: Any) -> None:
        for args in calls:
            call = self.client.request(args)
            self.asked[self.client.rpc.xid] = args
            self.repeat(call)

    def repeat(self, call: bytes) -> None:
        self.session.text_arrived([memoryview(mark(len(call)) + call)])
        self.rpc.run()

    def heard(self) -> list[Any]:
        """The bodies of the replies that have come. Refused."""
        return [
            self.client.result(self.asked[reply.xid], reply) for reply in self.transport.replies()
        ]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("name", PROMISES)
def test_a_change_is_visible_at_once_and_answered_when_it_is_durable(
    world: World, name: str
) -> None:
    line, before = world.line(), (world.attributes(world.root), world.attributes(world.file))
    line.say(world.args(name))
    assert line.transport.sent == [], "it is held"
    now = (world.attributes(world.root), None if name == "REMOVE" else world.attributes(world.file))
    assert (now == before) == (name == "COMMIT")
    line.say(GETATTR3args(world.root))
    assert len(line.heard()) == 1, "what changes nothing is not"
    world.filesystem.flush()
    assert len(line.heard()) == 1
    assert world.filesystem.flushes == 1 and world.nfs.rpc.released == [1]


@pytest.mark.parametrize("code", [Code.IO, Code.ROFS, Code.NOSPC])
@pytest.mark.parametrize("name", PROMISES)
def test_what_does_not_last_is_a_failure_with_the_attributes_of_the_change(
    world: World, name: str, code: Code
) -> None:
    """Those from right before and after it, under its lock, whatever happens while it is held."""
    line = world.line()
    subject = world.file if name.startswith(("SETATTR", "WRITE", "COMMIT")) else world.root
    before = world.attributes(subject)
    line.say(world.args(name))
    after = world.attributes(subject)
    if name != "COMMIT":  # it changes nothing: its failure tells how things are
        line.say(SETATTR3args(subject, sattr3(mode=0o711)))
    world.filesystem.flush(VfsError(code))
    reply, *_ = line.transport.replies()
    with refused(code.name) as failure:
        line.client.result(line.asked[reply.xid], reply)
    told = next(getattr(failure.body, field) for field in WCC if hasattr(failure.body, field))
    assert told == (wcc_data(None, after) if name == "COMMIT" else wcc_of(before, after))


def test_an_unstable_write_waits_for_its_commit(world: World) -> None:
    line = world.line()
    line.say(WRITE3args(world.file, 0, 1, UNSTABLE, [b"x"]))
    (written,) = line.heard()
    assert written.committed is UNSTABLE
    line.say(COMMIT3args(world.file, 0, 0))
    assert line.heard() == []
    world.filesystem.flush()
    (committed,) = line.heard()
    assert committed.verf == written.verf


@pytest.mark.parametrize("name", CHANGES)
def test_an_async_export_promises_nothing(name: str) -> None:
    world = World("/ *(rw,no_root_squash,async)")
    line = world.line()
    line.say(world.args(name))
    assert len(line.heard()) == 1
    assert len(world.nfs.rpc.held) == 0 and world.filesystem.flushes == 0


@pytest.mark.parametrize("name", PROMISES)
def test_what_is_durable_already_is_answered_at_once(world: World, name: str) -> None:
    world.filesystem.durable = True
    line = world.line()
    line.say(world.args(name))
    assert len(line.heard()) == 1
    assert len(world.nfs.rpc.held) == 0 and world.filesystem.flushes == 0


def test_what_failed_is_answered_at_once(world: World) -> None:
    line = world.line()
    line.say(REMOVE3args(at(world.root, b"nothing")))
    with refused("NOENT"):
        line.heard()


def test_many_clients_share_one_flush(world: World) -> None:
    lines = [world.line(900 + number) for number in range(64)]
    for number, line in enumerate(lines):
        line.say(world.args("WRITE FILE_SYNC"), SETATTR3args(world.file, sattr3(mode=number)))
    assert all(line.transport.sent == [] for line in lines)
    world.filesystem.flush()
    assert [len(line.heard()) for line in lines] == [2] * 64
    assert world.filesystem.flushes == 1
    assert world.nfs.rpc.released == [128], "they were sent together, too"


def test_a_later_change_waits_for_the_next_flush(world: World) -> None:
    """What is done while the device is busy has the flush after it."""
    one, other = world.line(900), world.line(901)
    one.say(world.args("CREATE"))
    during: list[bool] = []
    ticket = world.filesystem.sync()
    assert ticket is not None
    ticket.when_durable(lambda error: during.append(error is None))
    world.filesystem.flush()
    other.say(world.args("REMOVE"))
    assert (len(one.heard()), other.heard(), during) == (1, [], [True])
    world.filesystem.flush()
    assert len(other.heard()) == 1


def test_a_call_that_comes_again_while_it_is_held_is_not_done_again(world: World) -> None:
    line = world.line()
    call = line.client.request(REMOVE3args(at(world.root, b"file")))
    for _ in range(3):
        line.repeat(call)
    assert line.transport.sent == []
    world.filesystem.flush()
    (reply,) = line.transport.replies()
    assert reply.status == 0
    line.repeat(call)
    (again,) = line.transport.replies()
    assert again == reply, "and not NOENT"
    assert world.nfs.rpc.counters["nfs3.remove"] == 4


# The write verifier


def test_a_write_tells_the_verifier_from_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has written may have been taken back before its reply is made."""
    nfsd, write = world.nfs.nfsd, MemoryFile.write
    old = nfsd.write_verifier

    def taken_back(node: MemoryFile, offset: int, data: Sequence[Buffer]) -> int:
        count = write(node, offset, data)
        nfsd.renew_write_verifier()
        return count

    monkeypatch.setattr(MemoryFile, "write", taken_back)
    told = world.client(WRITE3args(world.file, 0, 1, UNSTABLE, [b"x"])).verf
    assert told == old
    assert world.client(COMMIT3args(world.file, 0, 0)).verf == nfsd.write_verifier != old


def test_a_commit_tells_the_verifier_from_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nfsd, sync = world.nfs.nfsd, MemoryNode.sync
    old = nfsd.write_verifier

    def taken_back(node: MemoryNode) -> Ticket | None:
        nfsd.renew_write_verifier()
        return sync(node)

    monkeypatch.setattr(MemoryNode, "sync", taken_back)
    assert world.client(COMMIT3args(world.file, 0, 0)).verf == nfsd.write_verifier != old


def test_a_device_that_fails_makes_everybody_write_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some devices tell it once, to whoever asks first: others must hear of it, too."""
    other = world.nfs.client(address="10.0.0.8")
    told = other(WRITE3args(world.file, 0, 1, UNSTABLE, [b"x"])).verf

    def fails(node: MemoryNode) -> Ticket | None:
        raise VfsError(Code.IO)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryNode, "sync", fails)
        with refused("IO"):
            world.client(COMMIT3args(world.file, 0, 0))
    assert other(COMMIT3args(world.file, 0, 0)).verf != told


def test_a_refused_commit_makes_nobody_write_again(world: World) -> None:
    somebody = world.nfs.client(uid=1000)
    verifier = world.nfs.nfsd.write_verifier
    with refused("ACCES"):
        somebody(COMMIT3args(world.file, 0, 0))
    assert world.nfs.nfsd.write_verifier == verifier


def test_a_verifier_that_is_renewed_is_new_and_as_long() -> None:
    nfsd = NfsWorld().nfsd
    nfsd.write_verifier = bytes([255] * 8)
    nfsd.renew_write_verifier()
    assert nfsd.write_verifier == bytes(8)
    nfsd.renew_write_verifier()
    assert nfsd.write_verifier == bytes(7) + b"\1"


def test_the_world_itself_waits_when_nothing_else_is_left(world: World) -> None:
    """So every other test of nfsd works on such a file system as well."""
    client: NfsClient = world.client
    made = client.create(world.root, b"made")
    client.write(made, b"data", stable=FILE_SYNC)
    assert world.filesystem.flushes == 2


@pytest.mark.parametrize("name", PROMISES)
def test_the_thread_that_settles_does_not_need_the_file_system(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Somebody may hold the lock of the file system and wait for that thread."""
    line = world.line()
    line.say(world.args(name))

    def used(node: MemoryNode) -> None:
        raise AssertionError("attributes are asked for")

    with monkeypatch.context() as settling:
        settling.setattr(MemoryNode, "attributes", used)
        world.filesystem.flush(VfsError(Code.IO))
    with refused("IO"):
        line.heard()
