"""Weak cache consistency when calls overlap, and what is durable before a reply leaves.

Calls overlap here as they do on several threads: one is held up inside the file system while
another one runs to its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    COMMIT3args,
    LINK3args,
    REMOVE3args,
    RENAME3args,
    SETATTR3args,
    sattr3,
    stable_how,
)
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, NewNode, Node
from appliance.vfs.memory import MemoryDirectory, MemoryFile, MemoryNode
from tests.sim.nfs_client import NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import CHANGES, at, refused, wcc_of

FILE_SYNC, UNSTABLE = stable_how.FILE_SYNC, stable_how.UNSTABLE


@pytest.fixture
def world() -> NfsWorld:
    return NfsWorld("/ *(rw,no_root_squash,sync)")


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """During the next write of data, after it has happened and before it is reported."""
    write = MemoryFile.write
    pending = [action]

    def written(node: MemoryFile, offset: int, data: Sequence[Buffer]) -> int:
        count = write(node, offset, data)
        if pending:
            pending.pop()()
        return count

    monkeypatch.setattr(MemoryFile, "write", written)


def test_a_change_of_a_file_that_a_write_moves_data_into_has_no_before(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.client(), world.client()
    root = client.mount()
    file, another = client.create(root, b"file"), client.create(root, b"another")
    done: list[Any] = []

    def change() -> None:
        done.extend(other(SETATTR3args(each, sattr3(mode=0o600))) for each in (file, another))

    meanwhile(monkeypatch, change)
    client.write(file, b"x")
    assert done[0].obj_wcc.before is None
    assert done[0].obj_wcc.after is not None
    assert done[1].obj_wcc.before is not None


def test_a_guard_holds_while_a_write_moves_data(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.client(), world.client()
    file = client.create(client.mount(), b"file")

    def change() -> None:
        guard = other.attributes(file).ctime
        other(SETATTR3args(file, sattr3(mode=0o600), guard))

    meanwhile(monkeypatch, change)
    client.write(file, b"x")
    assert client.attributes(file).mode == 0o600


def test_a_write_that_nothing_disturbs_tells_before_and_after(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.client(), world.client()
    root = client.mount()
    file, another = client.create(root, b"file"), client.create(root, b"another")
    before = client.attributes(file)
    meanwhile(monkeypatch, lambda: other.write(another, b"elsewhere"))
    assert client.write(file, b"x").file_wcc == wcc_of(before, client.attributes(file))


@pytest.mark.parametrize(
    "what",
    [
        lambda client, root, file: client.write(file, b"y", offset=5),
        lambda client, root, file: client(SETATTR3args(file, sattr3(mode=0o600))),
        lambda client, root, file: client(LINK3args(file, at(root, b"name"))),
        lambda client, root, file: client.remove(root, b"link"),
    ],
    ids=["WRITE", "SETATTR", "LINK", "REMOVE"],
)
def test_a_write_that_overlaps_a_change_of_its_file_has_no_before(
    world: NfsWorld,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[NfsClient, bytes, bytes], object],
) -> None:
    client, other = world.client(), world.client()
    root = client.mount()
    file = client.create(root, b"file")
    client(LINK3args(file, at(root, b"link")))
    meanwhile(monkeypatch, lambda: what(other, root, file))
    done = client.write(file, b"x")
    assert done.file_wcc.before is None
    assert done.file_wcc.after == client.attributes(file)
    before = client.attributes(file)
    again = client.write(file, b"z")
    assert again.file_wcc == wcc_of(before, client.attributes(file))


def test_both_of_two_overlapping_writes_have_no_before(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.client(), world.client()
    file = client.create(client.mount(), b"file")
    inner: list[Any] = []
    meanwhile(monkeypatch, lambda: inner.append(other.write(file, b"y")))
    outer = client.write(file, b"x")
    assert inner[0].file_wcc.before is None
    assert outer.file_wcc.before is None


def test_a_write_that_fails_leaves_no_trace(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    before = client.attributes(file)

    def fails(node: MemoryFile, offset: int, data: Sequence[Buffer]) -> int:
        raise VfsError(Code.IO)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFile, "write", fails)
        with refused("IO") as failure:
            client.write(file, b"x")
        assert failure.body.file_wcc == wcc_of(before, before)
    assert client.write(file, b"x").file_wcc.before is not None
    assert not any(world.nfsd.flights.values())


def test_no_lock_is_held_while_data_moves_or_becomes_durable(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    free: list[bool] = []
    monkeypatch.setattr(MemoryFile, "sync", lambda node: free.append(is_free(world)))
    meanwhile(monkeypatch, lambda: free.append(is_free(world)))
    client.write(file, b"x", stable=FILE_SYNC)
    client(COMMIT3args(file, 0, 0))
    client(SETATTR3args(file, sattr3(mode=0o600)))
    assert free == [True] * 4


def is_free(world: NfsWorld) -> bool:
    """Whether another thread could have the lock of the file system now."""
    got: list[bool] = []

    def attempt() -> None:
        got.append(world.memory.lock.acquire(blocking=False))
        if got[0]:
            world.memory.lock.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return got[0]


def test_the_lock_is_held_from_before_to_after_a_change(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    free: list[bool] = []
    create = MemoryDirectory.create

    def created(node: MemoryDirectory, name: bytes, new: NewNode) -> Node:
        free.append(is_free(world))
        return create(node, name, new)

    monkeypatch.setattr(MemoryDirectory, "create", created)
    client.create(client.mount(), b"file")
    assert free == [False]
    assert is_free(world)


def test_the_lock_is_free_after_a_change_that_failed(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    for args in (
        REMOVE3args(at(root, b"nothing")),
        RENAME3args(at(root, b"nothing"), at(root, b"new")),
        SETATTR3args(root, sattr3(size=1)),
    ):
        with pytest.raises(Exception, match="NFS3ERR"):
            client(args)
        assert is_free(world)


# What is durable before the reply


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The handles of the nodes that were made durable, in order."""
    handles: list[bytes] = []
    monkeypatch.setattr(MemoryNode, "sync", lambda node: handles.append(node.handle))
    return handles


@pytest.mark.parametrize("name", CHANGES)
def test_with_sync_what_was_changed_is_durable_before_the_reply(
    world: NfsWorld, committed: list[bytes], name: str
) -> None:
    make, expected = CHANGES[name]
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    client.mkdir(root, b"below")
    committed.clear()
    client(make(root, file))
    handles = {"root": root, "file": file}
    if "n" in expected:
        handles["n"] = client.lookup(root, b"n")
    assert set(committed) == {handles[node][13:] for node in expected}


@pytest.mark.parametrize("name", CHANGES)
def test_with_async_the_reply_waits_for_nothing(committed: list[bytes], name: str) -> None:
    world = NfsWorld("/ *(rw,no_root_squash,async)")
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    client.mkdir(root, b"below")
    client(CHANGES[name][0](root, file))
    assert committed == []


def test_both_directories_of_a_rename_are_durable(world: NfsWorld, committed: list[bytes]) -> None:
    client = world.client()
    root = client.mount()
    below = client.mkdir(root, b"below")
    client.create(root, b"file")
    committed.clear()
    client(RENAME3args(at(root, b"file"), at(below, b"file")))
    assert set(committed) == {root[13:], below[13:]}


def test_what_failed_is_not_made_durable(world: NfsWorld, committed: list[bytes]) -> None:
    client = world.client()
    with refused("NOENT"):
        client.remove(client.mount(), b"nothing")
    assert committed == []


@pytest.mark.parametrize("name", [name for name, (_, nodes) in CHANGES.items() if nodes])
def test_what_cannot_be_made_durable_is_an_error(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    client.mkdir(root, b"below")

    def fails(node: MemoryNode) -> None:
        raise VfsError(Code.IO)

    monkeypatch.setattr(MemoryNode, "sync", fails)
    with refused("IO"):
        client(CHANGES[name][0](root, file))
    assert is_free(world)
