"""READ, WRITE, COMMIT, READLINK, and CREATE in its three modes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from appliance.limits import KiB, MiB
from appliance.nfsd.v3.protocol import (
    COMMIT3args,
    CREATE3args,
    Exclusive,
    Guarded,
    READ3args,
    READLINK3args,
    SETATTR3args,
    Unchecked,
    WRITE3args,
    ftype3,
    sattr3,
    stable_how,
)
from appliance.oncrpc.message import garbage_args
from appliance.oncrpc.record import mark
from appliance.vfs.interface import Buffer
from appliance.vfs.memory import MemoryFile
from tests.sim.nfs_client import NFS_PORT
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import at, refused, wcc_of

OFFSET_MAX = (1 << 63) - 1
UNSTABLE, FILE_SYNC = stable_how.UNSTABLE, stable_how.FILE_SYNC


@pytest.fixture
def world() -> NfsWorld:
    return NfsWorld()


# READ


@pytest.mark.parametrize(
    ("offset", "count", "data", "eof"),
    [
        (0, 4, b"0123", False),
        (0, 10, b"0123456789", True),
        (0, 11, b"0123456789", True),
        (6, 4, b"6789", True),
        (3, 0, b"", False),
        (10, 0, b"", True),
        (10, 5, b"", True),
        (11, 5, b"", True),
        (OFFSET_MAX - 1, 5, b"", True),
        (OFFSET_MAX, 5, b"", True),
        (OFFSET_MAX + 1, 5, b"", True),
        ((1 << 64) - 1, 0xFFFFFFFF, b"", True),
    ],
)
def test_read_gives_what_is_there_and_says_when_that_was_all(
    world: NfsWorld, offset: int, count: int, data: bytes, eof: bool
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.write(file, b"0123456789")
    done = client(READ3args(file, offset, count))
    assert b"".join(done.data) == data
    assert (done.count, done.eof) == (len(data), eof)
    assert done.file_attributes == client.attributes(file)


@pytest.mark.parametrize("offset", [5, OFFSET_MAX - 3, OFFSET_MAX, 1 << 63, (1 << 64) - 1])
def test_no_backend_is_asked_for_bytes_that_no_file_has(
    world: NfsWorld, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def read(node: MemoryFile, offset: int, count: int) -> tuple[list[Buffer], bool]:
        asked.append((offset, count))
        return [], True

    client = world.client()
    file = client.create(client.mount(), b"file")
    monkeypatch.setattr(MemoryFile, "read", read)
    client.read(file, offset, 4096)
    (range_,) = asked
    assert range_[0] == min(offset, OFFSET_MAX)
    assert sum(range_) <= OFFSET_MAX


@pytest.mark.parametrize(("netid", "most"), [("tcp", MiB), ("udp", 32 * KiB)])
def test_read_gives_no_more_than_the_transport_carries(
    world: NfsWorld, netid: str, most: int
) -> None:
    writer = world.client()
    file = writer.create(writer.mount(), b"file")
    writer.write(file, random.Random(1).randbytes(MiB))
    writer.write(file, b"more", offset=MiB)
    done = world.client(netid=netid)(READ3args(file, 0, 0xFFFFFFFF))
    assert (done.count, done.eof) == (most, False)
    assert b"".join(done.data) == random.Random(1).randbytes(MiB)[:most]


def test_read_of_a_hole_gives_zeros(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.write(file, b"end", offset=100_000)
    assert client.read(file) == bytes(100_000) + b"end"


def test_what_was_read_is_not_copied(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.write(file, bytes(MiB))
    (first, *_), _ = world.memory.root().lookup(b"file").read(0, MiB)
    assert isinstance(first, memoryview)
    call = client.request(READ3args(file, 0, MiB))
    transport, stream = world.rpc.connect()
    stream.text_arrived([memoryview(mark(len(call)) + call)])
    world.rpc.serve()
    (reply,) = transport.sent
    assert any(isinstance(piece, memoryview) and piece.obj is first.obj for piece in reply)


@pytest.mark.parametrize(("name", "status"), [(b"directory", "ISDIR"), (b"link", "INVAL")])
def test_read_and_write_are_for_regular_files(world: NfsWorld, name: bytes, status: str) -> None:
    client = world.client()
    root = client.mount()
    client.mkdir(root, b"directory")
    client.symlink(root, b"link", b"text")
    node = client.lookup(root, name)
    with refused(status) as failure:
        client(READ3args(node, 0, 1))
    assert failure.body.file_attributes == client.attributes(node)
    with refused(status) as failure:
        client.write(node, b"x")
    its = client.attributes(node)
    assert failure.body.file_wcc == wcc_of(its, its)
    with refused(status):
        client(COMMIT3args(node, 0, 0))


# WRITE


def test_write_tells_the_file_before_and_after(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    before = client.attributes(file)
    done = client.write(file, b"hello", offset=3)
    after = client.attributes(file)
    assert done.file_wcc == wcc_of(before, after)
    assert (done.count, after.size) == (5, 8)
    assert client.read(file) == b"\0\0\0hello"


def test_write_takes_the_pieces_as_they_came(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    data = random.Random(1).randbytes(300_000)
    call = client.request(WRITE3args(file, 0, len(data), FILE_SYNC, [data]))
    record = mark(len(call)) + call
    pieces = [memoryview(record[:60_000]), memoryview(bytearray(record[60_000:]))]
    taken: list[Buffer] = []

    def write(node: MemoryFile, offset: int, data: Sequence[Buffer]) -> int:
        taken.extend(data)
        return sum(map(len, data))

    monkeypatch.setattr(MemoryFile, "write", write)
    transport, stream = world.rpc.connect()
    stream.text_arrived(pieces)
    world.rpc.serve()
    assert len(transport.replies()) == 1
    assert b"".join(taken) == data
    assert isinstance(taken[-1], memoryview) and taken[-1].obj is pieces[-1].obj


def test_write_of_nothing_is_no_error(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    before = client.attributes(file)
    assert client.write(file, b"").count == 0
    assert client.attributes(file) == before


@pytest.mark.parametrize("count", [4, 6])
def test_write_with_a_count_that_is_not_that_of_its_data_is_refused(
    world: NfsWorld, count: int
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("INVAL"):
        client(WRITE3args(file, 0, count, UNSTABLE, [b"12345"]))
    assert client.attributes(file).size == 0


@pytest.mark.parametrize("offset", [OFFSET_MAX - 3, OFFSET_MAX, 1 << 63, (1 << 64) - 1])
def test_write_beyond_what_a_file_can_hold_is_too_big(world: NfsWorld, offset: int) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    its = client.attributes(file)
    with refused("FBIG") as failure:
        client.write(file, b"12345", offset=offset)
    assert failure.body.file_wcc == wcc_of(its, its)


def test_write_to_a_full_file_system_is_no_space(world: NfsWorld) -> None:
    small = NfsWorld(size_bytes=64 * KiB)
    client = small.client()
    file = client.create(client.mount(), b"file")
    with refused("NOSPC"):
        client.write(file, bytes(100 * KiB))


def test_write_says_how_it_was_asked_to_commit(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    for how in stable_how:
        assert client.write(file, b"x", stable=how).committed is how


def test_the_write_verifier_is_the_same_until_the_server_starts_again(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    first = client.write(file, b"x", stable=UNSTABLE).verf
    assert client(COMMIT3args(file, 0, 0)).verf == first
    assert client.write(file, b"y").verf == first
    world.restart()
    assert client.write(file, b"x", stable=UNSTABLE).verf != first
    assert client(COMMIT3args(file, 0, 0)).verf != first


# COMMIT


@pytest.mark.parametrize(("offset", "count"), [(0, 0), (5, 1), ((1 << 64) - 1, 0xFFFFFFFF)])
def test_commit_takes_any_range(world: NfsWorld, offset: int, count: int) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.write(file, b"hello", stable=UNSTABLE)
    its = client.attributes(file)
    done = client(COMMIT3args(file, offset, count))
    assert done.file_wcc == wcc_of(its, its)


# READLINK


def test_readlink_gives_the_text_byte_for_byte(world: NfsWorld) -> None:
    client = world.client()
    text = b"../\xff somewhere//else"
    link = client.symlink(client.mount(), b"link", text)
    done = client(READLINK3args(link))
    assert done.data == text
    assert done.symlink_attributes == client.attributes(link)


def test_readlink_is_for_symbolic_links(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    for node in root, client.create(root, b"file"):
        with refused("INVAL") as failure:
            client(READLINK3args(node))
        assert failure.body.symlink_attributes == client.attributes(node)


# CREATE


def test_create_makes_a_file_and_tells_about_it(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    before = client.attributes(root)
    done = client(CREATE3args(at(root, b"file"), Guarded(sattr3(mode=0o640, size=5))))
    assert client.lookup(root, b"file") == done.obj
    its = client.attributes(done.obj)
    assert done.obj_attributes == its
    assert (its.type, its.mode, its.size) == (ftype3.NF3REG, 0o640, 5)
    assert done.dir_wcc == wcc_of(before, client.attributes(root))


def test_create_guarded_refuses_what_exists(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    its = client.attributes(root)
    with refused("EXIST") as failure:
        client(CREATE3args(at(root, b"file"), Guarded(sattr3())))
    assert failure.body.dir_wcc == wcc_of(its, its)


def test_create_unchecked_takes_what_exists_and_sets_only_its_size(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file", sattr3(mode=0o600))
    client.write(file, b"0123456789")
    where = at(root, b"file")
    assert client(CREATE3args(where, Unchecked(sattr3(mode=0o777)))).obj == file
    assert client.read(file) == b"0123456789"
    client(CREATE3args(where, Unchecked(sattr3(mode=0o777, size=0))))
    its = client.attributes(file)
    assert (its.mode, its.size) == (0o600, 0)


def test_create_exclusive_finds_its_own_file_when_it_comes_again(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    where, verifier = at(root, b"file"), b"\xff\xfe\x80\x01\x90\x00\x00\xff"
    made = client(CREATE3args(where, Exclusive(verifier)))
    assert client(CREATE3args(where, Exclusive(verifier))).obj == made.obj
    world.restart()
    assert client(CREATE3args(where, Exclusive(verifier))).obj == made.obj
    with refused("EXIST"):
        client(CREATE3args(where, Exclusive(b"\0another")))


def test_create_exclusive_does_not_take_a_file_that_was_made_otherwise(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    with refused("EXIST"):
        client(CREATE3args(at(root, b"file"), Exclusive(b"verifier")))


def test_after_an_exclusive_create_the_client_sets_the_attributes(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    made = client(CREATE3args(at(root, b"file"), Exclusive(b"verifier")))
    client(SETATTR3args(made.obj, sattr3(mode=0o640)))
    assert client.attributes(made.obj).mode == 0o640


def test_a_mode_of_creation_that_there_is_not_is_garbage(world: NfsWorld) -> None:
    client = world.client()
    call = client.request(CREATE3args(at(client.mount(), b"file"), Exclusive(b"verifier")))
    broken = call[:-12] + (3).to_bytes(4, "big") + call[-8:]
    assert isinstance(client.ask(broken, NFS_PORT).body, garbage_args)
