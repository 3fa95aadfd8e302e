"""LOOKUP, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK: names come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    BlockDevice,
    CharacterDevice,
    CREATE3args,
    Exclusive,
    Fifo,
    Guarded,
    LINK3args,
    LOOKUP3args,
    MKDIR3args,
    MKNOD3args,
    NotByMknodDirectory,
    NotByMknodRegular,
    NotByMknodSymlink,
    REMOVE3args,
    RENAME3args,
    RMDIR3args,
    Socket,
    SYMLINK3args,
    Unchecked,
    devicedata3,
    diropargs3,
    ftype3,
    mknoddata3,
    sattr3,
    specdata3,
    symlinkdata3,
)
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import at, refused, wcc_of


@pytest.fixture
def world() -> NfsWorld:
    return NfsWorld()


def symlink_args(where: diropargs3) -> SYMLINK3args:
    return SYMLINK3args(where, symlinkdata3(sattr3(), b"text"))


def fifo_args(where: diropargs3) -> MKNOD3args:
    return MKNOD3args(where, Fifo(sattr3()))


MAKERS: dict[str, Callable[[diropargs3], Any]] = {
    "guarded": lambda where: CREATE3args(where, Guarded(sattr3())),
    "exclusive": lambda where: CREATE3args(where, Exclusive(b"verifier")),
    "mkdir": lambda where: MKDIR3args(where, sattr3()),
    "symlink": symlink_args,
    "mknod": fifo_args,
}


# LOOKUP


def test_lookup_finds_a_name(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    done = client(LOOKUP3args(at(root, b"file")))
    assert done.object == file
    assert done.obj_attributes == client.attributes(file)
    assert done.dir_attributes == client.attributes(root)


def test_lookup_of_what_is_not_there_tells_the_directory(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    with refused("NOENT") as failure:
        client.lookup(root, b"nothing")
    assert failure.body.dir_attributes == client.attributes(root)


def test_lookup_in_what_is_no_directory(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("NOTDIR") as failure:
        client.lookup(file, b"name")
    assert failure.body.dir_attributes == client.attributes(file)


def test_lookup_knows_the_dots(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    assert client.lookup(directory, b".") == directory
    assert client.lookup(directory, b"..") == root
    assert client.lookup(root, b"..") == root


# Names that are none


BAD_NAMES = [
    (b"", "ACCES"),
    (b"a/b", "ACCES"),
    (b"/", "ACCES"),
    (b"../etc", "ACCES"),
    (b"nul\0", "ACCES"),
    (b"n" * 256, "NAMETOOLONG"),
    (b"n" * 5000, "NAMETOOLONG"),
]


@pytest.mark.parametrize(("name", "status"), BAD_NAMES)
def test_a_name_that_is_none_is_not_looked_up(world: NfsWorld, name: bytes, status: str) -> None:
    client = world.client()
    with refused(status):
        client.lookup(client.mount(), name)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("name", "status"), BAD_NAMES)
def test_nothing_is_made_with_a_name_that_is_none(
    world: NfsWorld, maker: str, name: bytes, status: str
) -> None:
    client = world.client()
    root = client.mount()
    its = client.attributes(root)
    with refused(status) as failure:
        client(MAKERS[maker](at(root, name)))
    assert failure.body.dir_wcc == wcc_of(its, its)
    assert len(list(client.listing(root))) == 2


@pytest.mark.parametrize(("name", "status"), BAD_NAMES)
def test_nothing_is_removed_or_renamed_by_a_name_that_is_none(
    world: NfsWorld, name: bytes, status: str
) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    for args in (
        REMOVE3args(at(root, name)),
        RMDIR3args(at(root, name)),
        RENAME3args(at(root, name), at(root, b"other")),
        RENAME3args(at(root, b"file"), at(root, name)),
        LINK3args(file, at(root, name)),
    ):
        with refused(status):
            client(args)
    assert client.lookup(root, b"file") == file


@pytest.mark.parametrize("name", [b".", b".."])
@pytest.mark.parametrize("maker", MAKERS)
def test_the_dots_exist_already(world: NfsWorld, maker: str, name: bytes) -> None:
    client = world.client()
    with refused("EXIST"):
        client(MAKERS[maker](at(client.mount(), name)))


def test_the_dots_can_neither_be_removed_nor_renamed(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    client.create(root, b"file")
    for name in (b".", b".."):
        with refused("INVAL"):
            client(RENAME3args(at(directory, name), at(root, b"new")))
        with refused("INVAL"):
            client(RENAME3args(at(root, b"file"), at(directory, name)))
        with refused("ISDIR"):
            client.remove(directory, name)
    with refused("INVAL"):
        client(RMDIR3args(at(directory, b".")))
    with refused("EXIST"):
        client(RMDIR3args(at(directory, b"..")))


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\xfe", b"...", b"a\nb", b" "])
def test_any_other_name_is_good(world: NfsWorld, name: bytes) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, name)
    assert client.lookup(root, name) == file
    assert [entry.name for entry in client.listing(root)][2:] == [name]


# What is made


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_made_is_told_with_the_directory_before_and_after(
    world: NfsWorld, maker: str
) -> None:
    client = world.client()
    root = client.mount()
    before = client.attributes(root)
    done = client(MAKERS[maker](at(root, b"new")))
    assert client.lookup(root, b"new") == done.obj
    assert done.obj_attributes == client.attributes(done.obj)
    assert done.dir_wcc == wcc_of(before, client.attributes(root))


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_is_made_over_something_else(world: NfsWorld, maker: str) -> None:
    client = world.client()
    root = client.mount()
    client.mkdir(root, b"name")
    its = client.attributes(root)
    with refused("EXIST") as failure:
        client(MAKERS[maker](at(root, b"name")))
    assert failure.body.dir_wcc == wcc_of(its, its)


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_is_made_in_what_is_no_directory(world: NfsWorld, maker: str) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("NOTDIR"):
        client(MAKERS[maker](at(file, b"name")))


def test_a_directory_is_one_and_counts_as_a_link(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    links = client.attributes(root).nlink
    directory = client.mkdir(root, b"directory", sattr3(mode=0o1750))
    its = client.attributes(directory)
    assert (its.type, its.mode, its.nlink) == (ftype3.NF3DIR, 0o1750, 2)
    assert client.attributes(root).nlink == links + 1


@pytest.mark.parametrize(("text", "status"), [(b"", "INVAL"), (b"t" * 5000, "NAMETOOLONG")])
def test_a_link_text_that_is_none_is_refused(world: NfsWorld, text: bytes, status: str) -> None:
    client = world.client()
    with refused(status):
        client.symlink(client.mount(), b"link", text)


@pytest.mark.parametrize(
    ("what", "type", "rdev"),
    [
        (CharacterDevice(devicedata3(sattr3(mode=0o600), specdata3(4, 64))), "NF3CHR", (4, 64)),
        (
            BlockDevice(devicedata3(sattr3(mode=0o600), specdata3(8, 1 << 19))),
            "NF3BLK",
            (8, 1 << 19),
        ),
        (Socket(sattr3(mode=0o600)), "NF3SOCK", (0, 0)),
        (Fifo(sattr3(mode=0o600)), "NF3FIFO", (0, 0)),
    ],
)
def test_mknod_makes_special_files(
    world: NfsWorld, what: mknoddata3, type: str, rdev: tuple[int, int]
) -> None:
    client = world.client()
    root = client.mount()
    done = client(MKNOD3args(at(root, b"special"), what))
    its = client.attributes(done.obj)
    assert (its.type, its.mode) == (ftype3[type], 0o600)
    assert (its.rdev.specdata1, its.rdev.specdata2) == rdev


@pytest.mark.parametrize("what", [NotByMknodRegular(), NotByMknodDirectory(), NotByMknodSymlink()])
def test_mknod_makes_nothing_that_has_a_procedure_of_its_own(
    world: NfsWorld, what: mknoddata3
) -> None:
    client = world.client()
    root = client.mount()
    its = client.attributes(root)
    with refused("BADTYPE") as failure:
        client(MKNOD3args(at(root, b"name"), what))
    assert failure.body.dir_wcc == wcc_of(its, its)


def test_create_unchecked_over_a_directory_leaves_it_alone(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    its = client.attributes(directory)
    client(CREATE3args(at(root, b"directory"), Unchecked(sattr3(size=0))))
    assert client.attributes(directory) == its


# REMOVE, RMDIR


def test_remove_takes_the_name_away(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    before = client.attributes(root)
    done = client(REMOVE3args(at(root, b"file")))
    assert done.dir_wcc == wcc_of(before, client.attributes(root))
    with refused("NOENT"):
        client.lookup(root, b"file")


def test_rmdir_takes_an_empty_directory_away(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    before = client.attributes(root)
    done = client(RMDIR3args(at(root, b"directory")))
    assert done.dir_wcc == wcc_of(before, client.attributes(root))
    with refused("STALE"):
        client.attributes(directory)


@pytest.mark.parametrize(
    ("args", "name", "status"),
    [
        (REMOVE3args, b"nothing", "NOENT"),
        (REMOVE3args, b"directory", "ISDIR"),
        (RMDIR3args, b"nothing", "NOENT"),
        (RMDIR3args, b"file", "NOTDIR"),
        (RMDIR3args, b"full", "NOTEMPTY"),
    ],
)
def test_what_cannot_be_removed_stays(world: NfsWorld, args: Any, name: bytes, status: str) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    client.mkdir(root, b"directory")
    client.create(client.mkdir(root, b"full"), b"content")
    its = client.attributes(root)
    with refused(status) as failure:
        client(args(at(root, name)))
    assert failure.body.dir_wcc == wcc_of(its, its)


# RENAME


def test_rename_moves_a_name_and_tells_both_directories(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    source, target = client.mkdir(root, b"source"), client.mkdir(root, b"target")
    file = client.create(source, b"file")
    before = client.attributes(source), client.attributes(target)
    done = client(RENAME3args(at(source, b"file"), at(target, b"name")))
    assert client.lookup(target, b"name") == file
    assert done.fromdir_wcc == wcc_of(before[0], client.attributes(source))
    assert done.todir_wcc == wcc_of(before[1], client.attributes(target))


def test_rename_within_a_directory_keeps_the_handle(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"old")
    client.write(file, b"content")
    client(RENAME3args(at(root, b"old"), at(root, b"new")))
    assert client.lookup(root, b"new") == file
    assert client.read(file) == b"content"


def test_rename_replaces_what_has_the_name(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file, replaced = client.create(root, b"file"), client.create(root, b"replaced")
    client(RENAME3args(at(root, b"file"), at(root, b"replaced")))
    assert client.lookup(root, b"replaced") == file
    with refused("STALE"):
        client.attributes(replaced)


def test_rename_between_names_of_one_file_does_nothing(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"one")
    client(LINK3args(file, at(root, b"other")))
    client(RENAME3args(at(root, b"one"), at(root, b"other")))
    assert client.lookup(root, b"one") == client.lookup(root, b"other") == file


@pytest.mark.parametrize(
    ("name", "target", "status"),
    [
        (b"nothing", b"new", "NOENT"),
        (b"file", b"directory", "ISDIR"),
        (b"directory", b"file", "NOTDIR"),
        (b"directory", b"full", "NOTEMPTY"),
    ],
)
def test_rename_that_does_not_fit_changes_nothing(
    world: NfsWorld, name: bytes, target: bytes, status: str
) -> None:
    client = world.client()
    root = client.mount()
    client.create(root, b"file")
    client.mkdir(root, b"directory")
    client.create(client.mkdir(root, b"full"), b"content")
    its = client.attributes(root)
    with refused(status) as failure:
        client(RENAME3args(at(root, name), at(root, target)))
    assert failure.body.fromdir_wcc == failure.body.todir_wcc == wcc_of(its, its)


def test_a_directory_is_not_moved_into_itself(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    below = client.mkdir(directory, b"below")
    for target in directory, below:
        with refused("INVAL"):
            client(RENAME3args(at(root, b"directory"), at(target, b"name")))
    assert client.lookup(root, b"directory") == directory


# LINK


def test_link_gives_a_file_one_more_name(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    before = client.attributes(root)
    done = client(LINK3args(file, at(root, b"name")))
    assert client.lookup(root, b"name") == file
    assert done.file_attributes == client.attributes(file)
    assert done.file_attributes.nlink == 2
    assert done.linkdir_wcc == wcc_of(before, client.attributes(root))
    client.remove(root, b"file")
    assert client.attributes(file).nlink == 1


def test_link_over_something_is_refused_and_tells_both(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    its = client.attributes(root)
    with refused("EXIST") as failure:
        client(LINK3args(file, at(root, b"file")))
    assert failure.body.linkdir_wcc == wcc_of(its, its)
    assert failure.body.file_attributes == client.attributes(file)


def test_a_directory_has_only_one_name(world: NfsWorld) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    with refused("PERM"):
        client(LINK3args(directory, at(root, b"name")))


def test_link_into_what_is_no_directory(world: NfsWorld) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("NOTDIR"):
        client(LINK3args(file, at(file, b"name")))
