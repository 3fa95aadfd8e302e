"""Who may do what, as a table: every call that needs a right, and who has it.

The directory and the file in it have some owner, group and mode; the callers are the superuser,
the owner, a member of the group and somebody else. A row says who succeeds, and what the others are
told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    CharacterDevice,
    COMMIT3args,
    CREATE3args,
    Exclusive,
    Fifo,
    GETATTR3args,
    Guarded,
    LINK3args,
    LOOKUP3args,
    MKDIR3args,
    MKNOD3args,
    READ3args,
    READDIR3args,
    READDIRPLUS3args,
    REMOVE3args,
    RENAME3args,
    RMDIR3args,
    SETATTR3args,
    SetToClientTime,
    SetToServerTime,
    SYMLINK3args,
    Unchecked,
    WRITE3args,
    devicedata3,
    nfstime3,
    sattr3,
    specdata3,
    stable_how,
    symlinkdata3,
)
from tests.sim.nfs_client import Refused
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import at

OWNER, MEMBER, OTHER, GROUP = 1000, 1001, 1002, 100

Make = Callable[[bytes, bytes], Any]
"""Arguments, from the handles of the directory and the file."""


def read(directory: bytes, file: bytes) -> Any:
    return READ3args(file, 0, 1)


def write(directory: bytes, file: bytes) -> Any:
    return WRITE3args(file, 0, 1, stable_how.UNSTABLE, [b"x"])


def commit(directory: bytes, file: bytes) -> Any:
    return COMMIT3args(file, 0, 0)


def lookup(directory: bytes, file: bytes) -> Any:
    return LOOKUP3args(at(directory, b"file"))


def readdir(directory: bytes, file: bytes) -> Any:
    return READDIR3args(directory, 0, bytes(8), 4096)


def readdirplus(directory: bytes, file: bytes) -> Any:
    return READDIRPLUS3args(directory, 0, bytes(8), 4096, 4096)


def create(directory: bytes, file: bytes) -> Any:
    return CREATE3args(at(directory, b"new"), Guarded(sattr3()))


def create_exclusive(directory: bytes, file: bytes) -> Any:
    return CREATE3args(at(directory, b"new"), Exclusive(b"verifier"))


def truncate_by_create(directory: bytes, file: bytes) -> Any:
    return CREATE3args(at(directory, b"file"), Unchecked(sattr3(size=0)))


def mkdir(directory: bytes, file: bytes) -> Any:
    return MKDIR3args(at(directory, b"new"), sattr3())


def symlink(directory: bytes, file: bytes) -> Any:
    return SYMLINK3args(at(directory, b"new"), symlinkdata3(sattr3(), b"text"))


def mkfifo(directory: bytes, file: bytes) -> Any:
    return MKNOD3args(at(directory, b"new"), Fifo(sattr3()))


def mkdevice(directory: bytes, file: bytes) -> Any:
    device = devicedata3(sattr3(), specdata3(1, 3))
    return MKNOD3args(at(directory, b"new"), CharacterDevice(device))


def remove(directory: bytes, file: bytes) -> Any:
    return REMOVE3args(at(directory, b"file"))


def rmdir(directory: bytes, file: bytes) -> Any:
    return RMDIR3args(at(directory, b"below"))


def rename(directory: bytes, file: bytes) -> Any:
    return RENAME3args(at(directory, b"file"), at(directory, b"new"))


def link(directory: bytes, file: bytes) -> Any:
    return LINK3args(file, at(directory, b"new"))


def chmod(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(mode=0o600))


def chown(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(uid=OTHER))


def chgrp_to_own_group(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(gid=GROUP))


def truncate(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(size=0))


def touch(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(mtime=SetToServerTime()))


def set_time(directory: bytes, file: bytes) -> Any:
    return SETATTR3args(file, sattr3(mtime=SetToClientTime(nfstime3(1, 2))))


def getattr(directory: bytes, file: bytes) -> Any:
    return GETATTR3args(file)


ALL = "superuser owner member other"
TABLE: list[tuple[Make, int, int, str, str]] = [
    # call, mode of the directory, of the file, who may, what the others are told
    (getattr, 0o000, 0o000, ALL, ""),
    (read, 0o000, 0o444, ALL, ""),  # a handle is good without the way to it
    (read, 0o777, 0o440, "superuser owner member", "ACCES"),
    (read, 0o777, 0o000, "superuser owner", "ACCES"),  # he may have had it open
    (read, 0o777, 0o001, "superuser owner other", "ACCES"),  # who may execute has to read
    (read, 0o777, 0o404, "superuser owner other", "ACCES"),
    (write, 0o000, 0o222, ALL, ""),
    (write, 0o777, 0o020, "superuser owner member", "ACCES"),
    (write, 0o777, 0o444, "superuser owner", "ACCES"),
    (commit, 0o777, 0o020, "superuser owner member", "ACCES"),
    (lookup, 0o711, 0o000, ALL, ""),
    (lookup, 0o710, 0o777, "superuser owner member", "ACCES"),
    (lookup, 0o666, 0o777, "superuser", "ACCES"),
    (readdir, 0o444, 0o000, ALL, ""),
    (readdir, 0o440, 0o777, "superuser owner member", "ACCES"),
    (readdir, 0o311, 0o777, "superuser", "ACCES"),
    (readdirplus, 0o440, 0o777, "superuser owner member", "ACCES"),
    (create, 0o777, 0o000, ALL, ""),
    (create, 0o770, 0o777, "superuser owner member", "ACCES"),
    (create, 0o722, 0o777, "superuser owner", "ACCES"),  # not without searching
    (create, 0o755, 0o777, "superuser owner", "ACCES"),
    (create_exclusive, 0o775, 0o777, "superuser owner member", "ACCES"),
    (truncate_by_create, 0o555, 0o020, "superuser owner member", "ACCES"),
    (mkdir, 0o775, 0o777, "superuser owner member", "ACCES"),
    (symlink, 0o775, 0o777, "superuser owner member", "ACCES"),
    (mkfifo, 0o775, 0o777, "superuser owner member", "ACCES"),
    (mkdevice, 0o777, 0o777, "superuser", "PERM"),
    (remove, 0o777, 0o000, ALL, ""),
    (remove, 0o770, 0o777, "superuser owner member", "ACCES"),
    (remove, 0o1777, 0o777, "superuser owner", "PERM"),  # sticky
    (rmdir, 0o775, 0o777, "superuser owner member", "ACCES"),
    (rmdir, 0o1777, 0o777, "superuser owner", "PERM"),
    (rename, 0o775, 0o000, "superuser owner member", "ACCES"),
    (rename, 0o1777, 0o777, "superuser owner", "PERM"),
    (link, 0o775, 0o000, "superuser owner member", "ACCES"),
    (chmod, 0o777, 0o777, "superuser owner", "PERM"),
    (chown, 0o777, 0o777, "superuser", "PERM"),
    (chgrp_to_own_group, 0o777, 0o777, "superuser owner", "PERM"),
    (truncate, 0o777, 0o020, "superuser owner member", "ACCES"),
    (touch, 0o777, 0o020, "superuser owner member", "ACCES"),
    (set_time, 0o777, 0o777, "superuser owner", "PERM"),
]


@pytest.mark.parametrize("caller", ALL.split())
@pytest.mark.parametrize(
    ("make", "directory_mode", "file_mode", "allowed", "status"),
    TABLE,
    ids=[f"{make.__name__} {directory:o} {file:o}" for make, directory, file, _, _ in TABLE],
)
def test_who_may_do_what(
    make: Make, directory_mode: int, file_mode: int, allowed: str, status: str, caller: str
) -> None:
    world = NfsWorld()
    superuser = world.client()
    owned = sattr3(uid=OWNER, gid=GROUP, mode=0o777)
    directory = superuser.mkdir(superuser.mount(), b"directory", owned)
    file = superuser.create(directory, b"file", owned)
    superuser.mkdir(directory, b"below", owned)
    superuser(SETATTR3args(file, sattr3(mode=file_mode)))
    superuser(SETATTR3args(directory, sattr3(mode=directory_mode)))
    client = {
        "superuser": superuser,
        "owner": world.client(uid=OWNER, gid=OWNER, gids=(GROUP,)),
        "member": world.client(uid=MEMBER, gid=GROUP),
        "other": world.client(uid=OTHER, gid=OTHER),
    }[caller]
    told = "OK"
    try:
        client(make(directory, file))
    except Refused as refused:
        told = refused.status.name.removeprefix("NFS3ERR_")
    assert told == ("OK" if caller in allowed.split() else status)


def test_writing_takes_the_rights_of_its_owner_from_a_program() -> None:
    world = NfsWorld()
    superuser = world.client()
    file = superuser.create(superuser.mount(), b"file", sattr3(mode=0o6777, uid=OWNER))
    superuser.write(file, b"x")
    assert superuser.attributes(file).mode == 0o6777
    world.client(uid=OTHER).write(file, b"x")
    assert superuser.attributes(file).mode == 0o777
