"""READDIR and READDIRPLUS: as much as fits, every entry once, and an end that is one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from appliance.limits import KiB, MiB
from appliance.nfsd.v3.protocol import (
    LINK3args,
    READDIR3args,
    READDIRPLUS3args,
    READDIRPLUS3resok,
    SETATTR3args,
    dirlistplus3,
    entry3,
    ftype3,
    sattr3,
)
from appliance.oncrpc.xdr import encode
from appliance.vfs.interface import Entry, FileType, NewNode
from appliance.vfs.memory import MemoryDirectory
from tests.sim.nfs_client import NfsClient
from tests.sim.nfs_world import NfsWorld
from tests.unit.nfsd.nfsd_helpers import at, refused

NO_VERIFIER = bytes(8)
FIXED_BYTES = 4 + 84 + 8 + 4 + 4
"""What a reply has besides entries: attributes, verifier, the end of the list, and eof."""

Page = Callable[[NfsClient, bytes, int, int], Any]


def readdir(client: NfsClient, directory: bytes, cookie: int, count: int) -> Any:
    return client(READDIR3args(directory, cookie, NO_VERIFIER, count))


def readdirplus(client: NfsClient, directory: bytes, cookie: int, count: int) -> Any:
    return client(READDIRPLUS3args(directory, cookie, NO_VERIFIER, count, count))


both = pytest.mark.parametrize("page", [readdir, readdirplus])


@pytest.fixture
def world() -> NfsWorld:
    return NfsWorld()


def filled(client: NfsClient, names: list[bytes]) -> bytes:
    """A directory with files of these names."""
    directory = client.mkdir(client.mount(), b"directory")
    for name in names:
        client.create(directory, name)
    return directory


def listing(client: NfsClient, page: Page, directory: bytes, count: int) -> list[Any]:
    """All pages, one after another."""
    entries: list[Any] = []
    cookie = 0
    for _ in range(10_000):
        reply = page(client, directory, cookie, count).reply
        entries += reply.entries
        if reply.eof:
            return entries
        cookie = reply.entries[-1].cookie
    raise AssertionError("the list has no end")


@both
def test_an_empty_directory_has_its_dots_and_an_end(world: NfsWorld, page: Page) -> None:
    client = world.client()
    root = client.mount()
    directory = client.mkdir(root, b"directory")
    done = page(client, directory, 0, 4096)
    assert done.reply.eof
    assert [entry.name for entry in done.reply.entries] == [b".", b".."]
    its, above = client.attributes(directory), client.attributes(root)
    assert [entry.fileid for entry in done.reply.entries] == [its.fileid, above.fileid]
    assert done.dir_attributes == its


@both
def test_every_entry_is_listed_once_with_its_file_id(world: NfsWorld, page: Page) -> None:
    client = world.client()
    names = [b"n" * random.Random(i).randrange(1, 200) + b"%d" % i for i in range(100)]
    directory = filled(client, names)
    entries = listing(client, page, directory, 1200)
    assert [entry.name for entry in entries] == [b".", b"..", *names]
    assert len({entry.cookie for entry in entries}) == 102
    for entry in entries[2::10]:
        handle = client.lookup(directory, entry.name)
        assert entry.fileid == client.attributes(handle).fileid


@both
def test_names_of_one_file_are_entries_of_their_own(world: NfsWorld, page: Page) -> None:
    client = world.client()
    directory = filled(client, [b"one"])
    file = client.lookup(directory, b"one")
    for i in range(20):
        client(LINK3args(file, at(directory, b"name%d" % i)))
    entries = listing(client, page, directory, 500)
    assert len({entry.name for entry in entries}) == len(entries) == 23
    assert len({entry.fileid for entry in entries[2:]}) == 1


def test_readdirplus_tells_the_attributes_and_handle_of_every_entry(world: NfsWorld) -> None:
    client = world.client()
    directory = filled(client, [b"a", b"bb", b"ccc"])
    client.symlink(directory, b"link", b"text")
    client.mkdir(directory, b"below")
    for entry in client.listing_plus(directory):
        assert entry.name_handle == client.lookup(directory, entry.name)
        assert entry.name_attributes == client.attributes(entry.name_handle)
        assert entry.fileid == entry.name_attributes.fileid


@pytest.mark.parametrize("count", range(0, 700, 4))
def test_readdir_fills_its_count_exactly(world: NfsWorld, count: int) -> None:
    client = world.client()
    names = [b"x" * length for length in (1, 4, 5, 100, 3, 2, 60, 8)]
    directory = filled(client, names)
    whole = readdir(client, directory, 0, MiB).reply.entries
    sizes = [4 + len(b"".join(encode(entry))) for entry in whole]
    fits = max(n for n in range(len(sizes) + 1) if n == 0 or sum(sizes[:n]) + FIXED_BYTES <= count)
    if fits == 0:
        with refused("TOOSMALL") as failure:
            readdir(client, directory, 0, count)
        assert failure.body.dir_attributes == client.attributes(directory)
        return
    done = readdir(client, directory, 0, count)
    assert done.reply.entries == whole[:fits]
    assert done.reply.eof == (fits == len(whole))
    assert len(b"".join(encode(done))) <= count


@pytest.mark.parametrize("maxcount", range(0, 2000, 12))
def test_readdirplus_fills_its_maxcount_exactly(world: NfsWorld, maxcount: int) -> None:
    client = world.client()
    directory = filled(client, [b"x" * length for length in (1, 4, 5, 100, 3)])
    whole = readdirplus(client, directory, 0, MiB).reply.entries
    sizes = [4 + len(b"".join(encode(entry))) for entry in whole]
    fits = max(
        n for n in range(len(sizes) + 1) if n == 0 or sum(sizes[:n]) + FIXED_BYTES <= maxcount
    )
    args = READDIRPLUS3args(directory, 0, NO_VERIFIER, MiB, maxcount)
    if fits == 0:
        with refused("TOOSMALL"):
            client(args)
        return
    done: READDIRPLUS3resok = client(args)
    assert done.reply == dirlistplus3(whole[:fits], fits == len(whole))


@pytest.mark.parametrize("dircount", range(0, 300, 4))
def test_readdirplus_keeps_to_its_dircount(world: NfsWorld, dircount: int) -> None:
    client = world.client()
    directory = filled(client, [b"x" * length for length in (1, 4, 5, 100, 3)])
    whole = readdirplus(client, directory, 0, MiB).reply.entries
    sizes = [
        len(b"".join(encode(entry3(entry.fileid, entry.name, entry.cookie)))) for entry in whole
    ]
    fits = max(n for n in range(len(sizes) + 1) if n == 0 or sum(sizes[:n]) <= dircount)
    args = READDIRPLUS3args(directory, 0, NO_VERIFIER, dircount, MiB)
    if fits == 0:
        with refused("TOOSMALL"):
            client(args)
        return
    assert client(args).reply == dirlistplus3(whole[:fits], fits == len(whole))


@both
def test_after_the_last_entry_there_is_an_end_and_nothing_else(world: NfsWorld, page: Page) -> None:
    client = world.client()
    directory = filled(client, [b"a"])
    last = page(client, directory, 0, 4096).reply.entries[-1].cookie
    for cookie in last, (1 << 63) - 1, 1 << 63, (1 << 64) - 1:
        reply = page(client, directory, cookie, FIXED_BYTES).reply
        assert (reply.entries, reply.eof) == ([], True)
    with refused("TOOSMALL"):
        page(client, directory, last, FIXED_BYTES - 1)


@both
def test_no_backend_is_asked_for_a_cookie_of_more_than_63_bits(
    world: NfsWorld, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def entries(node: MemoryDirectory, cookie: int, limit: int) -> list[Entry]:
        asked.append(cookie)
        return []

    client = world.client()
    root = client.mount()
    monkeypatch.setattr(MemoryDirectory, "entries", entries)
    assert page(client, root, (1 << 64) - 1, 4096).reply.eof
    assert asked == [(1 << 63) - 1]


@both
def test_any_verifier_is_good(world: NfsWorld, page: Page) -> None:
    client = world.client()
    directory = filled(client, [b"a"])
    cookie = page(client, directory, 0, 4096).reply.entries[0].cookie
    args = READDIR3args(directory, cookie, b"\xff" * 8, 4096)
    assert [entry.name for entry in client(args).reply.entries] == [b"..", b"a"]
    plus = READDIRPLUS3args(directory, cookie, b"\xff" * 8, 4096, 4096)
    assert [entry.name for entry in client(plus).reply.entries] == [b"..", b"a"]


@both
def test_what_stays_is_listed_once_while_other_names_come_and_go(
    world: NfsWorld, page: Page
) -> None:
    client = world.client()
    names = [b"stays%03d" % i for i in range(150)]
    goes = [b"goes%03d" % i for i in range(150)]
    directory = filled(client, [name for pair in zip(names, goes, strict=True) for name in pair])
    chance = random.Random(8)
    seen: list[bytes] = []
    cookie = 0
    for number in range(1000):
        reply = page(client, directory, cookie, 1000).reply
        seen += [entry.name for entry in reply.entries]
        if reply.eof:
            break
        cookie = reply.entries[-1].cookie
        for _ in range(3):
            if goes:
                client.remove(directory, goes.pop(chance.randrange(len(goes))))
        if number < 20:
            client.create(directory, b"new%03d" % number)
    else:
        raise AssertionError("the list has no end")
    assert [name for name in seen if name.startswith(b"stays")] == names
    assert len(seen) == len(set(seen))


@both
def test_a_page_goes_on_after_an_entry_that_was_removed(world: NfsWorld, page: Page) -> None:
    client = world.client()
    directory = filled(client, [b"a", b"b", b"c"])
    entries = page(client, directory, 0, 4096).reply.entries
    client.remove(directory, b"a")
    client.remove(directory, b"b")
    after_a = page(client, directory, entries[2].cookie, 4096).reply
    assert [entry.name for entry in after_a.entries] == [b"c"]


@both
def test_cookies_stay_good_over_a_restart(world: NfsWorld, page: Page) -> None:
    client = world.client()
    directory = filled(client, [b"a", b"b"])
    cookie = page(client, directory, 0, 4096).reply.entries[2].cookie
    world.restart()
    assert [e.name for e in page(client, directory, cookie, 4096).reply.entries] == [b"b"]


@pytest.mark.parametrize(("page", "count"), [(readdir, 60 * KiB), (readdirplus, 2 * MiB)])
def test_a_hundred_thousand_entries_are_listed_once_each(page: Page, count: int) -> None:
    world = NfsWorld(size_bytes=1 << 30)
    root = world.memory.root()
    for number in range(100_000):
        root.create(b"file%06d" % number, NewNode(FileType.REGULAR, 0o644, 0, 0))
    client = world.client()
    entries = listing(client, page, client.mount(), count)
    assert [e.name for e in entries[2:]] == [b"file%06d" % number for number in range(100_000)]


@pytest.mark.parametrize(("netid", "most"), [("tcp", MiB), ("udp", 32 * KiB)])
def test_a_page_is_no_larger_than_the_transport_carries(netid: str, most: int) -> None:
    world = NfsWorld(size_bytes=1 << 30)
    root = world.memory.root()
    for number in range(10_000):
        root.create(b"file%06d" % number, NewNode(FileType.REGULAR, 0o644, 0, 0))
    client = world.client(netid=netid)
    done = readdirplus(client, client.mount(), 0, 0xFFFFFFFF)
    size = len(b"".join(encode(done)))
    assert most - 200 < size <= most


@both
def test_only_directories_are_listed(world: NfsWorld, page: Page) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    with refused("NOTDIR") as failure:
        page(client, file, 0, 4096)
    assert failure.body.dir_attributes == client.attributes(file)


@both
def test_a_directory_is_listed_by_who_may_read_it(world: NfsWorld, page: Page) -> None:
    root = world.client()
    directory = root.mkdir(root.mount(), b"directory", sattr3(mode=0o711))
    with refused("ACCES"):
        page(world.client(uid=1000), directory, 0, 4096)


def test_who_may_read_but_not_search_sees_names_and_nothing_else(world: NfsWorld) -> None:
    root = world.client()
    directory = filled(root, [b"a"])
    root(SETATTR3args(directory, sattr3(mode=0o744)))
    entries = readdirplus(world.client(uid=1000), directory, 0, 4096).reply.entries
    assert [entry.name for entry in entries] == [b".", b"..", b"a"]
    assert {(entry.name_attributes, entry.name_handle) for entry in entries} == {(None, None)}


def test_readdirplus_shows_each_type(world: NfsWorld) -> None:
    client = world.client()
    directory = filled(client, [b"file"])
    client.mkdir(directory, b"directory")
    client.symlink(directory, b"link", b"text")
    types = {e.name: e.name_attributes.type for e in client.listing_plus(directory)}
    assert types == {
        b".": ftype3.NF3DIR,
        b"..": ftype3.NF3DIR,
        b"file": ftype3.NF3REG,
        b"directory": ftype3.NF3DIR,
        b"link": ftype3.NF3LNK,
    }
