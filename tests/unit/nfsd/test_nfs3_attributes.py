"""GETATTR, SETATTR, ACCESS, FSSTAT, FSINFO, PATHCONF, and what attributes look like on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from appliance import limits
from appliance.clock import SECOND
from appliance.nfsd.v3 import attributes, protocol
from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    DontChange,
    FSINFO3args,
    FSSTAT3args,
    GETATTR3args,
    PATHCONF3args,
    SETATTR3args,
    SetToClientTime,
    SetToServerTime,
    fattr3,
    ftype3,
    nfsstat3,
    nfstime3,
    sattr3,
)
from appliance.oncrpc.xdr import decode
from appliance.vfs.errors import Code
from appliance.vfs.interface import APPEND_ONLY, IMMUTABLE, Attributes, FileType, Limits
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import refused, wcc_of

PLAIN = Attributes(FileType.REGULAR, 0o644, 1, 0, 0, 5, 4096, (0, 0), 7, 1, 2, 3, 4)


def shown(its: Attributes, fsid: int = 9) -> fattr3:
    """Attributes, as a client sees them."""
    return decode(fattr3, attributes.encoded(its, fsid))


def test_every_reason_of_the_vfs_has_its_status() -> None:
    assert attributes.STATUS[Code.NOTEMPTY] is nfsstat3.NFS3ERR_NOTEMPTY
    assert set(attributes.STATUS) == set(Code)


def test_a_fattr3_says_all_that_is_known_of_a_node() -> None:
    its = Attributes(
        FileType.CHARACTER_DEVICE, 0o2640, 3, 1, 2, 1 << 40, 8192, (4, 64), 1 << 60, 1, 2, 3, 4
    )
    time = nfstime3(0, 1)
    assert shown(its, 1 << 63) == fattr3(
        ftype3.NF3CHR,
        0o2640,
        3,
        1,
        2,
        1 << 40,
        8192,
        protocol.specdata3(4, 64),
        1 << 63,
        1 << 60,
        time,
        nfstime3(0, 2),
        nfstime3(0, 3),
    )


@pytest.mark.parametrize("type", FileType)
def test_every_type_of_node_has_its_name_in_the_protocol(type: FileType) -> None:
    names = {
        "REGULAR": "REG",
        "DIRECTORY": "DIR",
        "SYMLINK": "LNK",
        "BLOCK_DEVICE": "BLK",
        "CHARACTER_DEVICE": "CHR",
        "SOCKET": "SOCK",
        "FIFO": "FIFO",
    }
    assert shown(replace(PLAIN, type=type)).type is ftype3["NF3" + names[type.name]]


def test_a_link_count_is_never_zero() -> None:
    assert shown(replace(PLAIN, nlink=0)).nlink == 1


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [
        (-1, nfstime3(0, 0)),
        (0, nfstime3(0, 0)),
        (SECOND - 1, nfstime3(0, SECOND - 1)),
        ((1 << 31) * SECOND, nfstime3(1 << 31, 0)),
        ((1 << 32) * SECOND - 1, nfstime3((1 << 32) - 1, SECOND - 1)),
        ((1 << 32) * SECOND, nfstime3((1 << 32) - 1, SECOND - 1)),
    ],
)
def test_times_outside_the_protocol_become_the_nearest_inside(
    time_ns: int, expected: nfstime3
) -> None:
    assert shown(replace(PLAIN, mtime_ns=time_ns)).mtime == expected


def test_attributes_are_encoded_once_for_every_change() -> None:
    world = NfsWorld()
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.attributes(file)
    node = world.memory.root().lookup(b"file")
    first = node.attributes().wire
    client.attributes(file)
    assert node.attributes().wire is first
    client.write(file, b"x")
    assert client.attributes(file).size == 1


def test_getattr_tells_the_attributes() -> None:
    world = NfsWorld()
    client = world.client(uid=5, gid=6)
    world.memory.root().set_attributes(attributes.changes(sattr3(mode=0o777)))
    file = client.create(client.mount(), b"file", sattr3(mode=0o4751, size=10))
    its = client.attributes(file)
    assert (its.type, its.mode, its.nlink, its.uid, its.gid) == (ftype3.NF3REG, 0o4751, 1, 5, 6)
    assert (its.size, its.fsid) == (10, 2)
    assert its.fileid != 0


def test_getattr_of_what_is_gone_is_stale_although_it_was_known() -> None:
    client = NfsWorld().client()
    root = client.mount()
    file = client.create(root, b"file")
    client.attributes(file)
    client.remove(root, b"file")
    with refused("STALE"):
        client(GETATTR3args(file))


# SETATTR


def test_setattr_sets_what_it_is_asked_and_nothing_else() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file")
    before = client.attributes(file)
    done = client(SETATTR3args(file, sattr3(mode=0o100600, uid=7, gid=8, size=9)))
    after = client.attributes(file)
    assert (after.mode, after.uid, after.gid, after.size) == (0o600, 7, 8, 9)
    assert after.atime == before.atime
    assert done.obj_wcc == wcc_of(before, after)


def test_setattr_of_nothing_changes_nothing() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file")
    before = client.attributes(file)
    assert client(SETATTR3args(file, sattr3())).obj_wcc == wcc_of(before, before)


def test_an_id_of_minus_one_leaves_the_owner_alone() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file", sattr3(uid=5, gid=6))
    client(SETATTR3args(file, sattr3(uid=0xFFFFFFFF, gid=0xFFFFFFFF)))
    its = client.attributes(file)
    assert (its.uid, its.gid) == (5, 6)


def test_setattr_sets_times_of_the_client_and_of_the_server() -> None:
    world = NfsWorld()
    client = world.client()
    file = client.create(client.mount(), b"file")
    mtime = nfstime3(0xFFFFFFFF, 999_999_999)
    world.clock.run(5 * SECOND)
    client(SETATTR3args(file, sattr3(atime=SetToServerTime(), mtime=SetToClientTime(mtime))))
    its = client.attributes(file)
    assert its.mtime == mtime
    assert its.atime == nfstime3(*divmod(world.clock.wall(), SECOND))
    client(SETATTR3args(file, sattr3(atime=DontChange(), mtime=SetToServerTime())))
    assert client.attributes(file).mtime == its.atime


def test_a_second_has_no_more_than_a_thousand_million_nanoseconds() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file")
    with refused("INVAL") as failure:
        client(SETATTR3args(file, sattr3(mtime=SetToClientTime(nfstime3(1, SECOND)))))
    assert failure.body.obj_wcc.after == client.attributes(file)


def test_setattr_keeps_to_its_guard() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file")
    its = client.attributes(file)
    client(SETATTR3args(file, sattr3(mode=0o600), guard=its.ctime))
    now = client.attributes(file)
    assert now.mode == 0o600
    with refused("NOT_SYNC") as failure:
        client(SETATTR3args(file, sattr3(mode=0o666), guard=its.ctime))
    assert failure.body.obj_wcc == wcc_of(now, now)
    assert client.attributes(file) == now


def test_setattr_sets_the_size_and_only_of_files() -> None:
    client = NfsWorld().client()
    root = client.mount()
    file = client.create(root, b"file")
    client.write(file, b"0123456789")
    client(SETATTR3args(file, sattr3(size=4)))
    client(SETATTR3args(file, sattr3(size=6)))
    assert client.read(file) == b"0123\0\0"
    with refused("ISDIR"):
        client(SETATTR3args(root, sattr3(size=0)))
    with refused("INVAL"):
        client(SETATTR3args(client.symlink(root, b"link", b"file"), sattr3(size=0)))


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_a_size_that_no_file_can_have_is_refused(size: int) -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file")
    with refused("FBIG"):
        client(SETATTR3args(file, sattr3(size=size)))
    assert client.attributes(file).size == 0


# ACCESS


def test_access_answers_only_what_was_asked() -> None:
    client = NfsWorld().client()
    file = client.create(client.mount(), b"file", sattr3(mode=0o644))
    done = client(ACCESS3args(file, protocol.ACCESS3_READ | protocol.ACCESS3_EXECUTE))
    assert done.access == protocol.ACCESS3_READ
    assert done.obj_attributes == client.attributes(file)


R, L, M, E, D, X = (
    protocol.ACCESS3_READ,
    protocol.ACCESS3_LOOKUP,
    protocol.ACCESS3_MODIFY,
    protocol.ACCESS3_EXTEND,
    protocol.ACCESS3_DELETE,
    protocol.ACCESS3_EXECUTE,
)


@pytest.mark.parametrize(
    ("mode", "of_a_file", "of_a_directory"),
    [
        (0o0, 0, 0),
        (0o1, X, L),
        (0o2, M | E, 0),  # nothing is added to a directory that may not be searched
        (0o3, M | E | X, L | M | E | D),
        (0o4, R, R),
        (0o5, R | X, R | L),
        (0o6, R | M | E, R),
        (0o7, R | M | E | X, R | L | M | E | D),
    ],
)
@pytest.mark.parametrize("shift", [0, 3, 6])
def test_access_tells_the_rights_of_the_class_of_the_caller(
    mode: int, of_a_file: int, of_a_directory: int, shift: int
) -> None:
    world = NfsWorld()
    root = world.client()
    wishes = sattr3(mode=mode << shift, uid=1000 if shift == 6 else 1, gid=50 if shift == 3 else 1)
    file = root.create(root.mount(), b"file", wishes)
    directory = root.mkdir(root.mount(), b"directory", wishes)
    caller = world.client(uid=1000, gid=60, gids=(50,))
    assert caller(ACCESS3args(file, 0x3F)).access == of_a_file
    assert caller(ACCESS3args(directory, 0x3F)).access == of_a_directory


def test_access_of_the_superuser_lacks_only_the_execution_of_what_is_no_program() -> None:
    client = NfsWorld().client()
    root = client.mount()
    file = client.create(root, b"file", sattr3(mode=0))
    assert client(ACCESS3args(file, 0x3F)).access == R | M | E
    assert client(ACCESS3args(root, 0x3F)).access == R | L | M | E | D


def test_access_knows_that_an_export_is_read_only() -> None:
    world = NfsWorld("/ *(ro,no_root_squash)")
    client = world.client()
    assert client(ACCESS3args(client.mount(), 0x3F)).access == R | L


def test_access_knows_what_is_immutable_or_append_only() -> None:
    world = NfsWorld()
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file", sattr3(mode=0o755))
    directory = client.mkdir(root, b"directory")
    for flags, of_the_file, of_the_directory in (
        (IMMUTABLE, R | X, R | L),
        (APPEND_ONLY, R | E | X, R | L | E),
        (IMMUTABLE | APPEND_ONLY, R | X, R | L),
    ):
        for name, handle, expected in (
            (b"file", file, of_the_file),
            (b"directory", directory, of_the_directory),
        ):
            node = world.memory.root().lookup(name)
            with changed(node.attributes(), flags):
                assert client(ACCESS3args(handle, 0x3F)).access == expected


@contextmanager
def changed(its: Attributes, flags: int) -> Iterator[None]:
    """As after chattr(1), which files in memory do not have."""
    its.flags = flags
    yield
    its.flags = 0


# FSSTAT, FSINFO, PATHCONF


def test_fsstat_tells_how_full_the_file_system_is() -> None:
    world = NfsWorld(size_bytes=1 << 20)
    client = world.client()
    root = client.mount()
    before = client(FSSTAT3args(root))
    assert before.tbytes == 1 << 20
    assert before.fbytes == before.abytes == 1 << 20
    client.write(client.create(root, b"file"), bytes(8192))
    after = client(FSSTAT3args(root))
    assert (after.fbytes, after.abytes) == (before.fbytes - 8192, before.abytes - 8192)
    assert (after.ffiles, after.afiles) == (before.ffiles - 1, before.afiles - 1)
    assert after.tfiles == before.tfiles
    assert after.invarsec == 0
    assert after.obj_attributes == client.attributes(root)


@pytest.mark.parametrize(("netid", "most"), [("tcp", 1 << 20), ("udp", 32 << 10)])
def test_fsinfo_promises_what_the_transport_carries(netid: str, most: int) -> None:
    client = NfsWorld().client(netid=netid)
    root = client.mount()
    its = client(FSINFO3args(root))
    assert its.rtmax == its.rtpref == its.wtmax == its.wtpref == most
    assert its.dtpref <= most
    assert its.rtmax % its.rtmult == its.wtmax % its.wtmult == 0
    assert its.maxfilesize == (1 << 63) - 1
    assert its.time_delta == nfstime3(0, 1)
    assert its.properties == 0x1B
    assert its.obj_attributes == client.attributes(root)


def test_pathconf_tells_the_limits_of_the_file_system() -> None:
    client = NfsWorld().client()
    root = client.mount()
    its = client(PATHCONF3args(root))
    assert its.name_max == limits.NAME_BYTES_MAX
    assert its.linkmax == Limits().link_count_max
    assert (its.no_trunc, its.chown_restricted) == (True, True)
    assert (its.case_insensitive, its.case_preserving) == (False, True)
    assert its.obj_attributes == client.attributes(root)
