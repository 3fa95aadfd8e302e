"""Handles, exports, squashing, ports, flavors, and mounts that are crossed or hidden."""

from __future__ import annotations

import random
from typing import Any

import pytest

from appliance.nfsd.callers import Caller, Callers, Grant, NodeCache
from appliance.nfsd.v3.protocol import (
    COMMIT3args,
    CREATE3args,
    FSINFO3args,
    GETATTR3args,
    Guarded,
    LINK3args,
    LOOKUP3args,
    MKDIR3args,
    MKNOD3args,
    READ3args,
    REMOVE3args,
    RENAME3args,
    RMDIR3args,
    SETATTR3args,
    Socket,
    SYMLINK3args,
    WRITE3args,
    sattr3,
    stable_how,
    symlinkdata3,
)
from appliance.oncrpc.auth import auth_stat
from appliance.oncrpc.message import auth_error
from appliance.vfs.interface import FileType, NewNode, SetAttributes
from tests.sim.nfs_client import NFS_PORT, NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import at, refused

DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)


@pytest.fixture
def world() -> NfsWorld:
    return NfsWorld()


# Handles


def test_bytes_that_were_never_a_handle_are_bad(world: NfsWorld) -> None:
    client = world.client()
    handle = client.mount()
    foreign = [b"", b"\1", handle[:13], b"\2" + handle[1:], bytes(64), handle.ljust(64, b"\0")]
    for bytes_ in [*foreign, handle + b"\0"]:
        with refused("BADHANDLE"):
            client.attributes(bytes_)


def test_a_handle_of_another_file_system_or_export_is_stale(world: NfsWorld) -> None:
    client = world.client()
    handle = bytearray(client.mount())
    for place in 1, 12:  # in the export's number, in the file system's
        forged = bytearray(handle)
        forged[place] ^= 0x55
        with refused("STALE"):
            client.attributes(bytes(forged))


def test_a_handle_with_another_generation_is_stale(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("STALE"):
        client.attributes(file[:-1] + bytes((file[-1] ^ 1,)))


def test_random_handles_are_refused(world: NfsWorld) -> None:
    client = world.client()
    chance = random.Random(3)
    for _ in range(300):
        handle = chance.choice((b"", b"\1")) + chance.randbytes(chance.randrange(64))
        with pytest.raises(Exception, match=r"BADHANDLE|STALE"):
            client.attributes(handle)


def test_handles_stay_good_over_a_restart(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.write(file, b"content")
    world.restart()
    assert client.read(file) == b"content"


def test_every_procedure_says_that_a_handle_is_stale(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    gone = client.mkdir(root, b"gone")
    client(RMDIR3args(at(root, b"gone")))
    for args in calls(gone, b"name", gone):
        with refused("STALE"):
            client(args)


def calls(directory: bytes, name: bytes, file: bytes) -> list[Any]:
    """One call of most procedures, and of all that change something."""
    return [
        GETATTR3args(file),
        LOOKUP3args(at(directory, name)),
        READ3args(file, 0, 1),
        FSINFO3args(file),
        *changing_calls(directory, name, file),
    ]


def changing_calls(directory: bytes, name: bytes, file: bytes) -> list[Any]:
    where = at(directory, name)
    new = at(directory, b"new")
    return [
        SETATTR3args(file, sattr3(mode=0o600)),
        WRITE3args(file, 0, 1, stable_how.UNSTABLE, [b"x"]),
        CREATE3args(new, Guarded(sattr3())),
        MKDIR3args(new, sattr3()),
        SYMLINK3args(new, symlinkdata3(sattr3(), b"text")),
        MKNOD3args(new, Socket(sattr3())),
        REMOVE3args(where),
        RENAME3args(where, new),
        LINK3args(file, new),
        COMMIT3args(file, 0, 0),
    ]


def test_nodes_that_are_used_stay_cached() -> None:
    cache = NodeCache(generation_size=10)
    nodes: list[Any] = [object() for _ in range(100)]
    for number, node in enumerate(nodes):
        cache.put(b"%d" % number, node)
        assert cache.get(b"0") is nodes[0]
    assert cache.get(b"99") is nodes[99]
    assert cache.get(b"50") is None


def test_a_node_that_was_dropped_from_the_cache_is_found_again(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    client.attributes(file)
    world.nfsd.callers.nodes.forget(file)
    assert client.attributes(file).size == 0


# Who is let in


def test_a_handle_is_stale_for_a_client_that_is_not_listed() -> None:
    world = NfsWorld("/ 10.0.0.9(rw,no_root_squash)")
    client, stranger = world.client(), world.client(address="10.0.0.7")
    root = client.mount()
    file = client.create(root, b"file")
    for args in calls(root, b"file", file):
        with refused("STALE"):
            stranger(args)
    assert client.lookup(root, b"file") == file


@pytest.mark.parametrize(
    ("options", "port", "let_in"),
    [
        ("rw,secure", 1023, True),
        ("rw,secure", 1024, False),
        ("rw,insecure", 40000, True),
    ],
)
def test_a_secure_export_is_for_the_ports_of_the_superuser(
    options: str, port: int, let_in: bool
) -> None:
    world = NfsWorld(f"/ *({options})")
    known = world.client()
    handle = known.mount()
    known.attributes(handle)  # another port of the same client is another matter
    client = world.client(port=port)
    if let_in:
        assert client.attributes(handle).fileid
    else:
        with refused("PERM"):
            client.attributes(handle)


def test_a_flavor_that_is_not_listed_is_too_weak() -> None:
    world = NfsWorld("/ *(rw,sec=sys)")
    handle = world.client().mount()
    nobody = world.client(anonymous=True)
    reply = nobody.ask(nobody.request(GETATTR3args(handle)), NFS_PORT)
    assert reply.body == auth_error(auth_stat.AUTH_TOOWEAK)


def test_loading_the_exports_again_takes_effect_at_once() -> None:
    world = NfsWorld("/ *(rw,no_root_squash)")
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    world.export("/ *(ro,no_root_squash)")
    with refused("ROFS"):
        client.remove(root, b"file")
    world.export("/other *(rw)")
    with refused("STALE"):
        client.attributes(file)
    world.export("/ *(rw,no_root_squash)")
    client.remove(root, b"file")


def test_the_callers_that_are_remembered_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.limits.CALLERS_MAX", 10)
    world = NfsWorld()
    handle = world.client().mount()
    for uid in range(50):
        assert world.client(uid=uid).attributes(handle).fileid
    in_force = world.nfsd.callers._in_force
    assert len(in_force.callers) <= 10


# Who one is


@pytest.mark.parametrize(
    ("options", "uid", "gid", "owner"),
    [
        ("no_root_squash", 0, 0, (0, 0)),
        ("root_squash", 0, 0, (65534, 65534)),
        ("root_squash", 1000, 0, (1000, 65534)),
        ("root_squash", 1000, 100, (1000, 100)),
        ("all_squash", 1000, 100, (65534, 65534)),
        ("all_squash,anonuid=5,anongid=6", 1000, 100, (5, 6)),
        ("root_squash,anonuid=5,anongid=6", 0, 0, (5, 6)),
    ],
)
def test_what_is_made_belongs_to_who_the_caller_is_here(
    options: str, uid: int, gid: int, owner: tuple[int, int]
) -> None:
    world = NfsWorld(f"/ *(rw,{options})")
    open_to_all(world)
    client = world.client(uid=uid, gid=gid)
    its = client.attributes(client.create(client.mount(), b"file"))
    assert (its.uid, its.gid) == owner


def open_to_all(world: NfsWorld) -> None:
    """Anybody may make files in the root directory."""
    world.memory.root().set_attributes(SetAttributes(mode=0o777))


def test_a_caller_without_a_name_is_the_anonymous_user() -> None:
    world = NfsWorld("/ *(rw,no_root_squash,anonuid=77,anongid=78)")
    open_to_all(world)
    client = world.client(anonymous=True)
    its = client.attributes(client.create(client.mount(), b"file"))
    assert (its.uid, its.gid) == (77, 78)


def test_supplementary_groups_count() -> None:
    world = NfsWorld("/ *(rw,no_root_squash)")
    root = world.client()
    file = root.create(root.mount(), b"file", sattr3(mode=0o060, gid=50))
    world.client(uid=1000, gid=100, gids=(49, 50)).write(file, b"x")
    with refused("ACCES"):
        world.client(uid=1000, gid=100, gids=(49,)).write(file, b"x")


# Read-only


def test_nothing_is_changed_in_a_read_only_export() -> None:
    world = NfsWorld("/ *(rw,no_root_squash)")
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    world.export("/ *(ro,no_root_squash)")
    assert_read_only(client, root, file)


def test_nothing_is_changed_in_a_read_only_file_system(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    world.memory.read_only = True
    assert_read_only(client, root, file)


def assert_read_only(client: NfsClient, root: bytes, file: bytes) -> None:
    before = client.attributes(root), client.attributes(file)
    for args in changing_calls(root, b"file", file):
        with refused("ROFS"):
            client(args)
    assert (client.attributes(root), client.attributes(file)) == before
    assert client.read(file) == b""


# Several exports and mounts


@pytest.fixture
def mounted() -> NfsWorld:
    """A file system at /, and one at /inner in it."""
    world = NfsWorld()
    world.memory.root().create(b"inner", DIRECTORY)
    world.memory.root().create(b"plain", DIRECTORY)
    inner = world.filesystem(3)
    inner.root().create(b"inside", NewNode(FileType.REGULAR, 0o644, 0, 0))
    world.tree.mount("/inner", inner)
    return world


def names(client: NfsClient, directory: bytes) -> set[bytes]:
    return {entry.name for entry in client.listing(directory)} - {b".", b".."}


def test_a_mount_is_not_seen_through_an_export_without_crossmnt(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw,no_root_squash)")
    client = mounted.client()
    inner = client.lookup(client.mount(), b"inner")
    assert names(client, inner) == set()
    assert client.attributes(inner).fsid == 2


def test_a_mount_is_crossed_in_an_export_with_crossmnt(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw,no_root_squash,crossmnt)")
    client = mounted.client()
    root = client.mount()
    inner = client.lookup(root, b"inner")
    assert names(client, inner) == {b"inside"}
    assert client.attributes(inner).fsid == 3
    assert client.lookup(inner, b"..") == root
    (entry,) = [e for e in client.listing_plus(root) if e.name == b"inner"]
    assert entry.name_handle == inner
    assert entry.name_attributes == client.attributes(inner)


def test_a_mount_that_is_exported_as_nohide_is_seen_from_above(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw,no_root_squash)\n/inner *(rw,no_root_squash,nohide)")
    client = mounted.client()
    root = client.mount()
    inner = client.lookup(root, b"inner")
    assert inner == client.mount(b"/inner")
    assert names(client, inner) == {b"inside"}
    (entry,) = [e for e in client.listing_plus(root) if e.name == b"inner"]
    assert entry.name_handle == inner


def test_nohide_is_for_the_clients_of_that_export_only(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw)\n/inner 10.0.0.7(rw,nohide)")
    client = mounted.client(address="10.0.0.9")
    assert client.attributes(client.lookup(client.mount(), b"inner")).fsid == 2


def test_what_is_crossed_has_the_options_of_its_own_export(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw,no_root_squash,crossmnt)\n/inner *(ro,no_root_squash)")
    client = mounted.client()
    root = client.mount()
    inner = client.lookup(root, b"inner")
    assert inner == client.mount(b"/inner")
    client.create(root, b"file")
    with refused("ROFS"):
        client.create(inner, b"file")


def test_a_mount_with_an_export_that_lets_nobody_in_does_not_spoil_the_listing(
    mounted: NfsWorld,
) -> None:
    mounted.export("/ *(rw,crossmnt)\n/inner *(rw,sec=krb5)")
    client = mounted.client()
    found = {e.name: e.name_handle for e in client.listing_plus(client.mount())}
    assert found[b"inner"] is None
    assert found[b"plain"] is not None


def test_a_forged_handle_does_not_reach_a_file_system_that_is_not_in_the_export(
    mounted: NfsWorld,
) -> None:
    mounted.export("/ *(rw,no_root_squash)\n/inner 10.0.0.7(rw,no_root_squash)")
    client = mounted.client(address="10.0.0.9")
    inside = mounted.client(address="10.0.0.7").mount(b"/inner")
    forged = client.mount()[:5] + inside[5:]
    with refused("STALE"):
        client.attributes(forged)


@pytest.mark.parametrize(("path", "reached"), [("/", True), ("/plain", False)])
def test_crossmnt_reaches_what_is_mounted_below_the_exported_directory(
    mounted: NfsWorld, path: str, reached: bool
) -> None:
    mounted.export(f"{path} *(rw,crossmnt)\n/inner 10.0.0.7(rw)")
    inside = mounted.client(address="10.0.0.7").mount(b"/inner")
    client = mounted.client(address="10.0.0.9")
    forged = client.mount(path.encode())[:5] + inside[5:]
    if reached:
        assert client.attributes(forged).fsid == 3
    else:
        with refused("STALE"):
            client.attributes(forged)


def test_crossmnt_does_not_reach_what_is_above(mounted: NfsWorld) -> None:
    mounted.export("/ 10.0.0.7(rw)\n/inner *(rw,crossmnt)")
    above = mounted.client(address="10.0.0.7").mount()
    client = mounted.client(address="10.0.0.9")
    with refused("STALE"):
        client.attributes(client.mount(b"/inner")[:5] + above[5:])


def test_the_way_up_from_a_mount_stays_in_its_export(mounted: NfsWorld) -> None:
    mounted.memory.root().lookup(b"plain").create(b"deep", DIRECTORY)
    mounted.tree.mount("/plain/deep", mounted.filesystem(4))
    mounted.export("/ *(rw)\n/plain *(rw,crossmnt)")
    client = mounted.client()
    plain = client.mount(b"/plain")
    deep = client.lookup(plain, b"deep")
    assert client.attributes(deep).fsid == 4
    assert client.lookup(deep, b"..") == plain


def test_dot_dot_does_not_lead_above_the_exported_directory(mounted: NfsWorld) -> None:
    mounted.export("/plain *(rw,no_root_squash)")
    client = mounted.client()
    plain = client.mount(b"/plain")
    assert client.lookup(plain, b"..") == plain
    above = {e.name: e.name_handle for e in client.listing_plus(plain)}
    assert above[b".."] == plain


def test_nothing_is_renamed_or_linked_from_one_export_to_another(mounted: NfsWorld) -> None:
    mounted.export(
        "/ *(rw,no_root_squash)\n/plain *(rw,no_root_squash)\n/inner *(rw,no_root_squash)"
    )
    client = mounted.client()
    root = client.mount()
    file = client.create(root, b"file")
    for path in b"/plain", b"/inner":
        other = client.mount(path)
        with refused("XDEV"):
            client(RENAME3args(at(root, b"file"), at(other, b"file")))
        with refused("XDEV"):
            client(LINK3args(file, at(other, b"file")))
    assert client.lookup(root, b"file") == file


def test_two_first_calls_at_once_do_not_take_one_export_for_two(
    world: NfsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    grant = Callers.grant

    def granted(callers: Callers, caller: Caller, handle: bytes) -> Grant:
        caller.grants.clear()  # another thread makes the same grant, and puts it over ours
        caller.users.clear()
        return grant(callers, caller, handle)

    monkeypatch.setattr(Callers, "grant", granted)
    client(RENAME3args(at(root, b"file"), at(root, b"new")))


def test_nothing_is_renamed_or_linked_across_a_mount(mounted: NfsWorld) -> None:
    mounted.export("/ *(rw,no_root_squash,crossmnt)")
    client = mounted.client()
    root = client.mount()
    file, inner = client.create(root, b"file"), client.lookup(root, b"inner")
    before = client.attributes(inner)
    with refused("XDEV") as failure:
        client(RENAME3args(at(root, b"file"), at(inner, b"file")))
    assert failure.body.fromdir_wcc.before is not None
    assert (failure.body.todir_wcc.before, failure.body.todir_wcc.after) == (None, before)
    with refused("XDEV"):
        client(LINK3args(file, at(inner, b"file")))


@pytest.mark.parametrize("crossing", ["crossmnt", "nocrossmnt"])
def test_a_mount_point_is_neither_removed_nor_renamed(mounted: NfsWorld, crossing: str) -> None:
    mounted.export(f"/ *(rw,no_root_squash,{crossing})")
    client = mounted.client()
    root = client.mount()
    with refused("ACCES"):
        client(RMDIR3args(at(root, b"inner")))
    with refused("ACCES"):
        client(RENAME3args(at(root, b"inner"), at(root, b"new")))
