"""Attacks by the arguments of calls: cut, forged, too large, with names that lead out of a tree."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any, Final

from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    CharacterDevice,
    COMMIT3args,
    CREATE3args,
    Exclusive,
    FSINFO3args,
    FSSTAT3args,
    GETATTR3args,
    Guarded,
    LINK3args,
    LOOKUP3args,
    MKDIR3args,
    MKNOD3args,
    PATHCONF3args,
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
    diropargs3,
    nfsstat3,
    nfstime3,
    sattr3,
    specdata3,
    stable_how,
    symlinkdata3,
)
from appliance.oncrpc.message import garbage_args, success
from tests.interop.hostile import Attack, Attacker, Expected
from tests.interop.hostile_rpc import ask_all, client_of
from tests.sim.nfs_client import MountRefused, NfsClient

NOT_SYNC: Final = nfstime3(1, 2)
"""A guard that no ctime agrees with: such a SETATTR changes nothing."""

_numbers = itertools.count(1)


def scene(attacker: Attacker) -> tuple[NfsClient, bytes, bytes, bytes]:
    """A client; a directory of its own with a file and a link in it."""
    client = client_of(attacker)
    directory = client.mkdir(client.mount(), b"scene-%d" % next(_numbers))
    file = client.create(directory, b"file")
    client.write(file, bytes(5000))
    return client, directory, file, client.symlink(directory, b"link", b"text")


def one_of_each(directory: bytes, file: bytes, link: bytes) -> list[Any]:
    """The arguments of every procedure."""

    def at(name: bytes) -> diropargs3:
        return diropargs3(directory, name)

    time = SetToClientTime(nfstime3(1, 2))
    device = CharacterDevice(devicedata3(sattr3(mode=0o600), specdata3(1, 2)))
    return [
        GETATTR3args(file),
        SETATTR3args(file, sattr3(0o600, 1, 2, 3, time, time), NOT_SYNC),
        LOOKUP3args(at(b"file")),
        ACCESS3args(file, 63),
        READLINK3args(link),
        READ3args(file, 100, 3000),
        WRITE3args(file, 100, 5, stable_how.UNSTABLE, [b"hello"]),
        CREATE3args(at(b"new"), Guarded(sattr3(mode=0o600))),
        CREATE3args(at(b"newer"), Exclusive(b"verifier")),
        MKDIR3args(at(b"directory"), sattr3(mode=0o700)),
        SYMLINK3args(at(b"symlink"), symlinkdata3(sattr3(), b"text")),
        MKNOD3args(at(b"device"), device),
        REMOVE3args(at(b"nothing")),
        RMDIR3args(at(b"nothing")),
        RENAME3args(at(b"nothing"), at(b"name")),
        LINK3args(file, at(b"other")),
        READDIR3args(directory, 0, bytes(8), 4096),
        READDIRPLUS3args(directory, 0, bytes(8), 4096, 4096),
        FSSTAT3args(directory),
        FSINFO3args(directory),
        PATHCONF3args(directory),
        COMMIT3args(file, 0, 0),
    ]


def statuses(attacker: Attacker, client: NfsClient, args: list[Any]) -> list[nfsstat3]:
    """What each of these calls is answered."""
    found = ask_all(attacker, [client.request(one) for one in args])
    return [nfsstat3(reply.status) for reply in found]


# --- arguments that are no arguments --------------------------------------------------------


def cut_arguments(attacker: Attacker) -> Expected:
    """Of every procedure, at every byte. Nothing of such a call is done."""
    client, directory, file, link = scene(attacker)
    header = len(client.rpc.header(100003, 3, 0))
    calls = [client.request(args) for args in one_of_each(directory, file, link)]
    cut = [call[:length] for call in calls for length in range(header, len(call))]
    answers = ask_all(attacker, cut)
    assert {type(reply.body) for reply in answers} == {garbage_args}
    assert {entry.name for entry in client.listing(directory)} == {b".", b"..", b"file", b"link"}
    return Expected({"rpc.garbage_args": len(cut)})


def cut_arguments_of_others(attacker: Attacker) -> Expected:
    """Of mountd and of rpcbind."""
    client = client_of(attacker)
    path = b"\0\0\0\5/file\0\0\0"
    mapping = b"\0\1\x86\xa3\0\0\0\3\0\0\0\6\0\0\0\0"
    expected = Expected()
    for port, program, version, procedure, arguments in (
        (20048, 100005, 3, 1, path),
        (20048, 100005, 3, 3, path),
        (111, 100000, 2, 3, mapping),
        (111, 100000, 4, 3, mapping[:8] + b"\0\0\0\3tcp\0" + bytes(8)),
    ):
        head = client.rpc.header(program, version, procedure)
        cut = [head + arguments[:length] for length in range(len(arguments))]
        cut.append(head + b"\xff\xff\xff\xff" * 4)
        answers = ask_all(attacker, cut, port)
        garbage = [r for r in answers if isinstance(r.body, garbage_args)]
        assert len(garbage) >= len(cut) - 1  # four words of ones are a mapping
        expected["rpc.garbage_args"] += len(garbage)
    return expected


def other_numbers(attacker: Attacker) -> Expected:
    """Good calls with other bytes and words in them, by a fixed seed. Each is answered, by garbage
    or by a result; none breaks its procedure."""
    chance = random.Random(11)
    client, directory, file, link = scene(attacker)
    header = len(client.rpc.header(100003, 3, 0))
    good = [client.request(args) for args in one_of_each(directory, file, link)]
    calls = []
    for number in range(1500):
        call = bytearray(chance.choice(good))
        place = chance.randrange(header, len(call) - 3, 4)
        word = chance.choice((0, 1, 2, 255, 4096, 1 << 31, (1 << 32) - 1, chance.getrandbits(32)))
        call[place : place + 4] = word.to_bytes(4, "big")
        calls.append((next(_numbers) << 12 | number).to_bytes(4, "big") + bytes(call[4:]))
    answers = ask_all(attacker, calls)
    assert {type(reply.body) for reply in answers} == {garbage_args, success}
    return Expected({"rpc.garbage_args": 50})


# --- names ----------------------------------------------------------------------------------

DOTS: Final = [b".", b".."]
IMPOSSIBLE: Final = [
    b"",
    b"/",
    b"//",
    b"a/b",
    b"/etc/passwd",
    b"../escaped",
    b"../../../../../../tmp/escaped",
    b"\0",
    b"a\0b",
    b"file\0",
]
TOO_LONG: Final = [b"x" * 256, b"x" * 1024, b"\xff" * 60_000]

ALLOWED: Final = {
    nfsstat3.NFS3ERR_INVAL,
    nfsstat3.NFS3ERR_ACCES,
    nfsstat3.NFS3ERR_EXIST,
    nfsstat3.NFS3ERR_NOENT,
    nfsstat3.NFS3ERR_ISDIR,
    nfsstat3.NFS3ERR_NOTEMPTY,
}


def _with_name(directory: bytes, file: bytes) -> list[Callable[[bytes], Any]]:
    """Every way in which a name is used."""

    def at(name: bytes) -> diropargs3:
        return diropargs3(directory, name)

    device = CharacterDevice(devicedata3(sattr3(), specdata3(1, 3)))
    return [
        lambda name: CREATE3args(at(name), Guarded(sattr3())),
        lambda name: CREATE3args(at(name), Exclusive(b"verifier")),
        lambda name: MKDIR3args(at(name), sattr3()),
        lambda name: SYMLINK3args(at(name), symlinkdata3(sattr3(), b"text")),
        lambda name: MKNOD3args(at(name), device),
        lambda name: REMOVE3args(at(name)),
        lambda name: RMDIR3args(at(name)),
        lambda name: RENAME3args(at(b"file"), at(name)),
        lambda name: RENAME3args(at(name), at(b"other")),
        lambda name: LINK3args(file, at(name)),
    ]


def names(attacker: Attacker) -> Expected:
    """Every name that is none, everywhere. The tree stays as it is; ".." leads to the root."""
    client, directory, file, _ = scene(attacker)
    root = client.mount()
    before = {entry.name for entry in client.listing(root)}
    for way in _with_name(directory, file):
        for name in (*DOTS, *IMPOSSIBLE):
            (status,) = statuses(attacker, client, [way(name)])
            assert status in ALLOWED, (way(name), status)
        for status in statuses(attacker, client, [way(name) for name in TOO_LONG]):
            assert status is nfsstat3.NFS3ERR_NAMETOOLONG
    lookups: list[Any] = [LOOKUP3args(diropargs3(root, name)) for name in IMPOSSIBLE]
    assert set(statuses(attacker, client, lookups)) <= ALLOWED
    lookups = [LOOKUP3args(diropargs3(root, name)) for name in TOO_LONG]
    assert set(statuses(attacker, client, lookups)) == {nfsstat3.NFS3ERR_NAMETOOLONG}
    assert client.lookup(root, b"..") == client.lookup(root, b".") == root
    assert client.lookup(file_parent := client.lookup(directory, b"."), b"..") == root
    assert file_parent == directory
    assert {entry.name for entry in client.listing(root)} == before
    assert {entry.name for entry in client.listing(directory)} == {b".", b"..", b"file", b"link"}
    return Expected({"nfs3.lookup": 15})


def mount_paths(attacker: Attacker) -> Expected:
    """Paths that are not exported, or are none."""
    client = client_of(attacker)
    paths = [b"", b"\0", b"/\0", b"/file\0x", b"/nowhere", b"relative", b"/" * 1024]
    paths += [b"/../../../etc", b"/..", b"/" + b"x" * 255, b"/" + b"a/" * 500]
    for path in paths:
        try:
            handle = client.mount(path)
        except MountRefused:
            continue
        assert handle == client.mount(b"/"), path
    header = client.rpc.header(100005, 3, 1)
    long = [header + size.to_bytes(4, "big") + bytes(1100) for size in (1025, 1 << 31, 2**32 - 1)]
    assert all(isinstance(r.body, garbage_args) for r in ask_all(attacker, long, 20048))
    return Expected({"mount3.mnt": len(paths), "rpc.garbage_args": 3})


# --- handles --------------------------------------------------------------------------------


def forged_handles(attacker: Attacker) -> Expected:
    """Of every length; with every bit the other way; of a file that is gone."""
    client, directory, file, link = scene(attacker)
    forged_ = [bytes(length) for length in range(65)] + [b"\xff" * n for n in range(65)]
    forged_ += [file[:length] for length in range(len(file))]
    forged_ += [file + bytes(n) for n in range(1, 65 - len(file))]
    forged_ += [_flipped(file, bit) for bit in range(len(file) * 8)]
    gone = client.create(directory, b"gone")
    client.remove(directory, b"gone")
    forged_.append(gone)
    bad = {nfsstat3.NFS3ERR_STALE, nfsstat3.NFS3ERR_BADHANDLE}
    for handle, status in zip(
        forged_,
        statuses(attacker, client, [GETATTR3args(handle) for handle in forged_]),
        strict=True,
    ):
        assert status in bad, (handle, status)
    of_all = [args for handle in (gone, b"", file[:-1]) for args in one_of_each(*[handle] * 3)]
    assert set(statuses(attacker, client, of_all)) <= bad
    second = [RENAME3args(diropargs3(directory, b"file"), diropargs3(gone, b"x"))]
    assert (
        set(statuses(attacker, client, [*second, LINK3args(gone, diropargs3(link, b"x"))])) <= bad
    )
    head = client.rpc.header(100003, 3, 1)
    too_long = [head + size.to_bytes(4, "big") + bytes(size) for size in (65, 68, 128, 1000)]
    too_long.append(head + b"\xff\xff\xff\xff" + bytes(64))
    assert all(isinstance(r.body, garbage_args) for r in ask_all(attacker, too_long))
    return Expected({"rpc.garbage_args": len(too_long), "nfs3.getattr": len(forged_)})


def _flipped(handle: bytes, bit: int) -> bytes:
    changed = bytearray(handle)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- numbers --------------------------------------------------------------------------------

HUGE: Final = (1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WORD: Final = (1 << 32) - 1


def huge_numbers(attacker: Attacker) -> Expected:
    """Counts of 4 GiB, offsets near 2**64, counts that are not those of the data."""
    client, directory, file, _ = scene(attacker)
    for offset in (0, *HUGE):
        data = client.read(file, offset, WORD)
        assert data == (bytes(5000) if offset == 0 else b"")
    refused = {nfsstat3.NFS3ERR_FBIG, nfsstat3.NFS3ERR_INVAL, nfsstat3.NFS3ERR_NOSPC}
    fine = {nfsstat3.NFS3_OK}
    small = {nfsstat3.NFS3ERR_TOOSMALL}
    cookies = fine | {nfsstat3.NFS3ERR_BAD_COOKIE}
    sync, unstable = stable_how.FILE_SYNC, stable_how.UNSTABLE
    none, strange = bytes(8), b"\xff" * 8
    args: list[tuple[Any, set[nfsstat3]]] = [
        *((WRITE3args(file, offset, 2, sync, [b"hi"]), refused) for offset in HUGE[1:]),
        *((SETATTR3args(file, sattr3(size=size)), refused) for size in HUGE[2:]),
        *(
            (WRITE3args(file, 0, count, unstable, [b"hello"]), {nfsstat3.NFS3ERR_INVAL})
            for count in (0, 1, 4, 6, 4096, WORD)
        ),
        *((READDIR3args(directory, 0, none, count), small) for count in (0, 1, 50)),
        *((READDIRPLUS3args(directory, 0, none, WORD, count), small) for count in (0, 1, 50)),
        *((READDIRPLUS3args(directory, 0, none, count, WORD), small) for count in (0, 1, 10)),
        *((READDIR3args(directory, n, strange, WORD), cookies) for n in (0, 1, *HUGE)),
        *((READDIRPLUS3args(directory, n, strange, WORD, WORD), cookies) for n in (0, 1, *HUGE)),
        *((COMMIT3args(file, offset, WORD), fine | refused) for offset in HUGE),
    ]
    args.append((ACCESS3args(file, WORD), fine))
    args.append((SETATTR3args(file, sattr3(mode=WORD)), fine | refused))
    late = SetToClientTime(nfstime3(WORD, WORD))
    args.append((SETATTR3args(file, sattr3(atime=late, mtime=late)), fine | refused))
    for (one, wanted), status in zip(
        args, statuses(attacker, client, [one for one, _ in args]), strict=True
    ):
        assert status in wanted, (one, status)
    assert client.attributes(file).size == 5000
    head = client.rpc.header(100003, 3, 7) + len(file).to_bytes(4, "big") + file
    lies = head + bytes(-len(file) % 4) + bytes(8) + b"\xff\xff\xff\xff" + bytes(4) + b"\xff" * 4
    (reply,) = ask_all(attacker, [lies])
    assert isinstance(reply.body, garbage_args)
    return Expected({"rpc.garbage_args": 1, "nfs3.write": 8})


def holes(attacker: Attacker) -> Expected:
    """One byte at far places, and sizes that are only said: a file costs what is in it."""
    client, _, file, _ = scene(attacker)
    for place in (1 << 30, 1 << 40, (1 << 42) - 1):
        args: list[Any] = [
            WRITE3args(file, place, 1, stable_how.FILE_SYNC, [b"x"]),
            SETATTR3args(file, sattr3(size=place)),
        ]
        allowed = {nfsstat3.NFS3_OK, nfsstat3.NFS3ERR_FBIG, nfsstat3.NFS3ERR_NOSPC}
        assert set(statuses(attacker, client, args)) <= allowed
    client(SETATTR3args(file, sattr3(size=0)))
    return Expected({"nfs3.write": 3})


ATTACKS: list[Attack] = [
    cut_arguments,
    cut_arguments_of_others,
    other_numbers,
    names,
    mount_paths,
    forged_handles,
    huge_numbers,
    holes,
]
