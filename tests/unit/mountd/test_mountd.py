"""mountd: which path gets a handle, and what showmount is told."""

from __future__ import annotations

import random

import pytest

from appliance.mountd.protocol import (
    PC_CHOWN_RESTRICTED,
    PC_ERROR,
    PC_NO_TRUNC,
    exportnode,
    exports,
    fhstatus_ok,
    groupnode,
    mountlist,
    mountstat3,
    ppathcnf,
)
from appliance.mountd.service import mount1, mount2, mount3
from appliance.nfsd.v3.protocol import ftype3, sattr3
from appliance.oncrpc.message import garbage_args, proc_unavail, prog_mismatch, success
from appliance.oncrpc.program import Program
from appliance.oncrpc.transport import Endpoint
from appliance.vfs.interface import FileType, NewNode
from tests.sim.nfs_client import MOUNTD_PORT, MountRefused, NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.sim.rpc_client import Loopback, Reply, RpcClient

DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)
versions = pytest.mark.parametrize("program", [mount1, mount2, mount3])
old_versions = pytest.mark.parametrize("program", [mount1, mount2])


def served(text: str | None = None) -> NfsWorld:
    """A tree with /export/below, a file, a directory that is not exported, and a mount."""
    world = NfsWorld()
    root = world.memory.root()
    for name in b"export", b"private", b"mounted":
        root.create(name, DIRECTORY)
    root.lookup(b"export").create(b"below", DIRECTORY)
    root.lookup(b"export").create(b"file", NewNode(FileType.REGULAR, 0o644, 0, 0))
    root.lookup(b"export").create(b"disk", DIRECTORY)
    world.tree.mount("/export/disk", world.filesystem(3))
    if text is not None:
        world.export(text)
    return world


def ask(client: NfsClient, program: Program, number: int, args: object = None) -> Reply:
    return client.ask(client.rpc.call(program, number, args), MOUNTD_PORT)


def refusal(client: NfsClient, path: bytes) -> str:
    """Why a path cannot be mounted."""
    with pytest.raises(MountRefused) as caught:
        client.mount(path)
    return caught.value.status.name.removeprefix("MNT3ERR_")


# MNT


def test_an_exported_directory_can_be_mounted() -> None:
    client = served("/export *(rw)").client()
    assert client.attributes(client.mount(b"/export")).type is ftype3.NF3DIR


@pytest.mark.parametrize("path", [b"/export/", b"//export", b"/export//"])
def test_superfluous_slashes_do_not_matter(path: bytes) -> None:
    client = served("/export *(rw)").client()
    assert client.mount(path) == client.mount(b"/export")


def test_a_directory_below_an_exported_one_can_be_mounted() -> None:
    client = served("/export *(rw)").client()
    top = client.mount(b"/export")
    assert client.mount(b"/export/below") == client.lookup(top, b"below")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/export/nothing", "NOENT"),
        (b"/export/nothing/deep", "NOENT"),
        (b"/export/file", "NOTDIR"),
        (b"/export/file/deep", "NOTDIR"),
        (b"/private", "ACCES"),
        (b"/nothing", "ACCES"),  # whether it exists is nobody's business
        (b"/", "ACCES"),
        (b"/exported", "ACCES"),
        (b"export", "ACCES"),
        (b"", "ACCES"),
        (b"/export/../private", "ACCES"),
        (b"/export/.", "ACCES"),
        (b"/export/nul\0", "ACCES"),
        (b"/export/" + b"n" * 256, "NAMETOOLONG"),
        (b"/export" + b"/below" * 200, "NAMETOOLONG"),
        (b"/" + b"n" * 100_000, "NAMETOOLONG"),
    ],
)
def test_what_cannot_be_mounted_is_refused_with_the_reason(path: bytes, status: str) -> None:
    assert refusal(served("/export *(rw)").client(), path) == status


def test_a_path_of_the_greatest_length_can_be_mounted() -> None:
    world = served("/export *(rw)")
    node = world.memory.root().lookup(b"export")
    path = b"/export"
    while len(path) < 1024:
        name = b"n" * min(255, 1024 - len(path) - 1)
        node = node.create(name, DIRECTORY)
        path += b"/" + name
    assert len(path) == 1024
    assert world.client().mount(path)


def test_a_client_that_is_not_listed_is_refused() -> None:
    world = served("/export 10.0.0.9(rw)")
    assert world.client(address="10.0.0.9").mount(b"/export")
    assert refusal(world.client(address="10.0.0.7"), b"/export") == "ACCES"
    assert refusal(world.client(address="10.0.0.7"), b"/export/nothing") == "ACCES"


def test_a_secure_export_is_mounted_from_a_port_of_the_superuser() -> None:
    world = served("/export *(rw,secure)")
    assert world.client(port=1023).mount(b"/export")
    assert refusal(world.client(port=1024), b"/export") == "ACCES"
    world.export("/export *(rw,insecure)")
    assert world.client(port=1024).mount(b"/export")


@pytest.mark.parametrize(
    ("options", "flavors"),
    [("rw", [1, 0]), ("rw,sec=sys", [1]), ("rw,sec=none", [0]), ("rw,sec=krb5:sys", [1])],
)
def test_the_flavors_that_are_good_are_told_the_best_first(
    options: str, flavors: list[int]
) -> None:
    assert served(f"/export *({options})").client().mnt(b"/export").auth_flavors == flavors


def test_an_export_for_flavors_that_are_not_served_is_refused() -> None:
    assert refusal(served("/export *(rw,sec=krb5)").client(), b"/export") == "ACCES"


def test_without_an_exports_file_everything_can_be_mounted() -> None:
    client = served().client(port=40000)
    assert client.mount(b"/private")
    assert client.lookup(client.mount(b"/export"), b"disk") == client.mount(b"/export/disk")
    assert refusal(client, b"/nothing") == "NOENT"


def test_a_file_system_below_is_mounted_only_with_crossmnt_or_an_export_of_its_own() -> None:
    world = served("/export *(rw)")
    client = world.client()
    assert refusal(client, b"/export/disk") == "ACCES"
    world.export("/export *(rw,crossmnt)")
    assert client.attributes(client.mount(b"/export/disk")).fsid == 3
    world.export("/export *(rw)\n/export/disk *(rw)")
    assert client.attributes(client.mount(b"/export/disk")).fsid == 3


def test_a_handle_from_mnt_is_the_one_that_lookup_gives() -> None:
    world = served("/export *(rw,crossmnt)\n/export/disk *(rw)")
    client = world.client()
    assert client.lookup(client.mount(b"/export"), b"disk") == client.mount(b"/export/disk")


@old_versions
def test_the_old_versions_give_a_handle_of_32_bytes(program: Program) -> None:
    client = served("/export *(rw)").client()
    handle = ask(client, program, 1, b"/export").ok(fhstatus_ok).fhandle
    assert handle == client.mount(b"/export").ljust(32, b"\0")


@old_versions
def test_the_old_versions_refuse_with_the_same_numbers(program: Program) -> None:
    client = served("/export *(rw)").client()
    for path, status in ((b"/private", 13), (b"/export/nothing", 2), (b"/export/file", 20)):
        reply = ask(client, program, 1, path)
        assert (reply.status, len(reply.results)) == (status, 4)


# DUMP, UMNT, UMNTALL


def mounts(client: NfsClient) -> list[tuple[bytes, bytes]]:
    listed: mountlist = ask(client, mount3, 2).value(mountlist)
    return [(body.ml_hostname, body.ml_directory) for body in listed.entries]


def test_what_is_mounted_is_listed_until_it_is_unmounted() -> None:
    world = served("/export *(rw)")
    one, other = world.client(address="10.0.0.8"), world.client(address="10.0.0.9")
    one.mount(b"/export")
    one.mount(b"/export/below")
    other.mount(b"/export")
    assert mounts(one) == [
        (b"10.0.0.8", b"/export"),
        (b"10.0.0.8", b"/export/below"),
        (b"10.0.0.9", b"/export"),
    ]
    assert ask(one, mount3, 3, b"/export").value(None) is None
    assert mounts(one) == [(b"10.0.0.8", b"/export/below"), (b"10.0.0.9", b"/export")]
    one.mount(b"/export")
    ask(one, mount3, 4)
    assert mounts(one) == [(b"10.0.0.9", b"/export")]


def test_a_mount_that_is_repeated_or_refused_is_not_listed_again() -> None:
    client = served("/export *(rw)").client()
    client.mount(b"/export")
    client.mount(b"/export")
    refusal(client, b"/private")
    assert mounts(client) == [(b"10.0.0.9", b"/export")]


def test_unmounting_what_is_not_mounted_is_no_error() -> None:
    client = served("/export *(rw)").client()
    assert ask(client, mount3, 3, b"/nothing").succeeded
    assert ask(client, mount3, 4).succeeded


def test_the_list_of_mounts_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.limits.MOUNT_LIST_MAX", 3)
    world = served("/export *(rw)")
    for number in range(5):
        world.client(address=f"10.0.0.{number}").mount(b"/export")
    assert [host for host, _ in mounts(world.client())] == [b"10.0.0.2", b"10.0.0.3", b"10.0.0.4"]
    world.client(address="10.0.0.2").mount(b"/export")  # again, so it is the last to be forgotten
    world.client(address="10.0.0.5").mount(b"/export")
    assert [host for host, _ in mounts(world.client())] == [b"10.0.0.4", b"10.0.0.2", b"10.0.0.5"]


# EXPORT


@versions
def test_the_exports_are_listed_as_the_file_says_them(program: Program) -> None:
    world = served("/export 10.0.0.0/24(rw) *.example(ro)\n/private *(ro)")
    expected = exports(
        [
            exportnode(b"/export", [groupnode(b"10.0.0.0/24"), groupnode(b"*.example")]),
            exportnode(b"/private", [groupnode(b"*")]),
        ]
    )
    assert ask(world.client(), program, 5).value(exports) == expected
    if program is not mount3:
        assert ask(world.client(), program, 6).value(exports) == expected


def test_a_client_name_that_is_too_long_for_the_list_is_cut() -> None:
    netgroup = "@" + "n" * 300
    world = served(f"/export {netgroup}(rw)")
    listed = ask(world.client(), mount3, 5).value(exports)
    assert listed.entries[0].ex_groups == [groupnode(netgroup[:255].encode())]


# PATHCONF, and the protocol as such


def test_version_2_has_pathconf() -> None:
    client = served("/export *(rw)").client()
    its: ppathcnf = ask(client, mount2, 7, b"/export").value(ppathcnf)
    assert (its.pc_link_max, its.pc_name_max) == (65_000, 255)
    assert its.pc_mask == PC_NO_TRUNC | PC_CHOWN_RESTRICTED
    assert ask(client, mount2, 7, b"/private").value(ppathcnf).pc_mask == PC_ERROR


@pytest.mark.parametrize(
    ("program", "last"), [(mount1, 6), (mount2, 7), (mount3, 5)], ids=["1", "2", "3"]
)
def test_each_version_has_its_procedures_and_no_others(program: Program, last: int) -> None:
    assert sorted(program.procedures) == list(range(last + 1))
    client = served().client()
    unknown = client.rpc.header(program.number, program.version, last + 1)
    assert isinstance(client.ask(unknown, MOUNTD_PORT).body, proc_unavail)


def test_another_version_is_answered_with_those_that_there_are() -> None:
    client = served().client()
    reply = client.ask(client.rpc.header(100005, 4, 0), MOUNTD_PORT)
    assert reply.body == prog_mismatch(1, 3)


@versions
@pytest.mark.parametrize("netid", ["tcp", "udp"])
def test_every_version_is_served_over_both_transports(program: Program, netid: str) -> None:
    client = served("/export *(rw)").client(netid=netid)
    for number, args in ((0, None), (1, b"/export"), (2, None), (3, b"/export"), (4, None)):
        assert ask(client, program, number, args).succeeded


@versions
def test_whatever_comes_is_answered(program: Program) -> None:
    chance = random.Random(program.version)
    world = served("/export *(rw)")
    rpc = RpcClient()
    for _ in range(300):
        number = chance.choice(sorted(program.procedures))
        noise = chance.randbytes(chance.randrange(0, 60, chance.choice((1, 4))))
        call = rpc.header(program.number, program.version, number) + noise
        reply = world.ask(call, Loopback(local=Endpoint("10.0.0.5", MOUNTD_PORT)))
        assert isinstance(reply.body, success | garbage_args)
    assert world.rpc.counters["rpc.system_err"] == 0


def test_a_mount_follows_a_directory_that_was_made_by_a_client() -> None:
    client = served().client()
    made = client.mkdir(client.mount(), b"made", sattr3(mode=0o700))
    assert client.mount(b"/made") == made
    assert mounts(client)[-1] == (b"10.0.0.9", b"/made")


def test_the_numbers_of_the_statuses_are_those_of_the_rfc() -> None:
    assert {status.name.removeprefix("MNT3ERR_"): int(status) for status in mountstat3} == {
        "MNT3_OK": 0,
        "PERM": 1,
        "NOENT": 2,
        "IO": 5,
        "ACCES": 13,
        "NOTDIR": 20,
        "INVAL": 22,
        "NAMETOOLONG": 63,
        "NOTSUPP": 10004,
        "SERVERFAULT": 10006,
    }
