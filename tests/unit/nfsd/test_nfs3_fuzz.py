"""Is there any call that nfsd does not answer, or that ends it?"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from appliance.nfsd.v3.procedures import nfs3
from appliance.nfsd.v3.protocol import (
    CharacterDevice,
    COMMIT3args,
    CREATE3args,
    Exclusive,
    FSINFO3args,
    GETATTR3args,
    Guarded,
    LINK3args,
    LOOKUP3args,
    MKDIR3args,
    MKNOD3args,
    READ3args,
    READDIR3args,
    READDIRPLUS3args,
    READLINK3args,
    REMOVE3args,
    RENAME3args,
    RMDIR3args,
    SETATTR3args,
    SetToClientTime,
    SYMLINK3args,
    WRITE3args,
    devicedata3,
    nfstime3,
    sattr3,
    specdata3,
    stable_how,
    symlinkdata3,
)
from appliance.oncrpc.message import garbage_args, success
from appliance.vfs.interface import FileType, Node
from tests.sim.nfs_client import NFS_PORT, NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.sim.rpc_client import Loopback, RpcClient
from tests.unit.nfsd.nfsd_helpers import at

NUMBERS = (0, 1, 2, 255, 256, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
BIG_NUMBERS = (*NUMBERS, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def sample_calls(client: NfsClient) -> list[bytes]:
    """One well-formed call of every kind, in a tree with something of every kind."""
    root = client.mount()
    file = client.create(root, b"file")
    client.write(file, bytes(5000))
    link = client.symlink(root, b"link", b"text")
    client.mkdir(root, b"below")
    time = SetToClientTime(nfstime3(1, 2))
    device = devicedata3(sattr3(mode=0o600), specdata3(1, 2))
    args: list[Any] = [
        GETATTR3args(file),
        SETATTR3args(file, sattr3(0o600, 1, 2, 3, time, time), nfstime3(1, 2)),
        LOOKUP3args(at(root, b"file")),
        READLINK3args(link),
        READ3args(file, 100, 3000),
        WRITE3args(file, 100, 5, stable_how.UNSTABLE, [b"hello"]),
        CREATE3args(at(root, b"new"), Guarded(sattr3(mode=0o600))),
        CREATE3args(at(root, b"newer"), Exclusive(b"verifier")),
        MKDIR3args(at(root, b"directory"), sattr3(mode=0o700)),
        SYMLINK3args(at(root, b"symlink"), symlinkdata3(sattr3(), b"text")),
        MKNOD3args(at(root, b"device"), CharacterDevice(device)),
        REMOVE3args(at(root, b"link")),
        RMDIR3args(at(root, b"below")),
        RENAME3args(at(root, b"file"), at(root, b"name")),
        LINK3args(file, at(root, b"other")),
        READDIR3args(root, 0, bytes(8), 4096),
        READDIRPLUS3args(root, 0, bytes(8), 4096, 4096),
        FSINFO3args(root),
        COMMIT3args(file, 0, 0),
    ]
    return [client.request(one) for one in args]


def mutated(call: bytes, chance: random.Random) -> bytes:
    """`call` with something else in its arguments."""
    start = len(RpcClient().header(0, 0, 0))
    data = bytearray(call)
    match chance.randrange(5):
        case 0:
            data[chance.randrange(start, len(data))] = chance.randrange(256)
        case 1:
            place = chance.randrange(start, len(data), 4)
            data[place : place + 4] = chance.choice(NUMBERS).to_bytes(4, "big")
        case 2:
            place = chance.randrange(start, len(data) - 4, 4)
            data[place : place + 8] = chance.choice(BIG_NUMBERS).to_bytes(8, "big")
        case 3:
            del data[chance.randrange(start, len(data)) :]
        case _:
            place = chance.randrange(start, len(data))
            data[place:place] = chance.randbytes(chance.choice((1, 4, 8)))
    return bytes(data)


@pytest.mark.parametrize("seed", range(12))
def test_every_call_is_answered_whatever_is_in_it(seed: int) -> None:
    """No mutation escapes: none ends the server, none is broken, each has exactly one reply."""
    chance = random.Random(seed)
    world = NfsWorld()
    calls = sample_calls(world.client())
    answers: Counter[type] = Counter()
    for number in range(400):
        call = mutated(chance.choice(calls), chance)
        netid = chance.choice(("tcp", "udp"))
        call = (number + 1 << 8 | seed).to_bytes(4, "big") + call[4:]  # a xid of its own
        reply = world.ask(call, Loopback(netid))
        assert reply.xid == number + 1 << 8 | seed
        answers[type(reply.body)] += 1
    assert set(answers) == {success, garbage_args}
    assert min(answers.values()) > 50
    assert world.rpc.counters["rpc.system_err"] == 0
    assert world.memory.lock.acquire(blocking=False)


@pytest.mark.parametrize("number", range(1, 22))
def test_arguments_that_are_cut_anywhere_are_garbage(number: int) -> None:
    world = NfsWorld()
    client = world.client()
    whole = [c for c in sample_calls(client) if int.from_bytes(c[20:24], "big") == number]
    header = len(client.rpc.header(100003, 3, number, xid=1))
    for call in whole:
        for length in range(header, len(call), 3):
            reply = client.ask(call[:length], NFS_PORT)
            assert isinstance(reply.body, garbage_args)


@pytest.mark.parametrize("number", sorted(nfs3.procedures))
def test_every_procedure_takes_random_arguments(number: int) -> None:
    chance = random.Random(number)
    world = NfsWorld()
    rpc = RpcClient()
    for _ in range(50):
        noise = chance.randbytes(chance.randrange(0, 200, 4))
        reply = world.ask(rpc.header(100003, 3, number) + noise, Loopback())
        assert isinstance(reply.body, success | garbage_args)


@pytest.mark.parametrize("seed", range(6))
def test_random_work_keeps_the_tree_whole(seed: int) -> None:
    """Whatever well-formed calls do, in any order, every name leads to a node with a link."""
    chance = random.Random(seed)
    world = NfsWorld()
    client = world.client()
    handles = [client.mount()]
    names = [b"a", b"b", b"c", b".", b"..", b"", b"x" * 256]
    for _ in range(400):
        where = at(chance.choice(handles), chance.choice(names))
        other = at(chance.choice(handles), chance.choice(names))
        args = chance.choice(
            [
                CREATE3args(where, Guarded(sattr3())),
                MKDIR3args(where, sattr3()),
                SYMLINK3args(where, symlinkdata3(sattr3(), b"text")),
                REMOVE3args(where),
                RMDIR3args(where),
                RENAME3args(where, other),
                LINK3args(chance.choice(handles), where),
                WRITE3args(where.dir, chance.choice(BIG_NUMBERS), 1, stable_how.FILE_SYNC, [b"x"]),
                READ3args(where.dir, chance.choice(BIG_NUMBERS), chance.choice(NUMBERS)),
            ]
        )
        reply = client.ask(client.request(args), NFS_PORT)
        if not reply.status and isinstance(args, CREATE3args | MKDIR3args | SYMLINK3args):
            handles.append(client.result(args, reply).obj)
    check_tree(world)
    assert world.rpc.counters["rpc.system_err"] == 0


def check_tree(world: NfsWorld) -> None:
    """Every name leads to a node that is there, and every node has as many links as names."""
    root = world.memory.root()
    names: Counter[bytes] = Counter([root.handle])
    directories: list[Node] = [root]
    while directories:
        directory = directories.pop()
        for entry in directory.entries(2, 10_000):  # after the dots
            node = world.memory.resolve(directory.lookup(entry.name).handle)
            names[node.handle] += 1
            if node.attributes().type is FileType.DIRECTORY:
                directories.append(node)
                assert names[node.handle] == 1
    assert set(names) == set(world.memory.nodes)
    for handle, count in names.items():
        its = world.memory.resolve(handle).attributes()
        assert its.type is FileType.DIRECTORY or its.nlink == count
