"""Listing a directory while it changes: nothing that stays is skipped or comes twice, and an entry
keeps its cookie. Also when many names have the same hash."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.fsimage.ext4 import directory as directories
from appliance.fsimage.ext4.check import index as index_check
from appliance.fsimage.ext4.chunk import Chunk
from appliance.fsimage.ext4.directory import Directory
from appliance.fsimage.ext4.hash import Hash, NameHash
from tests.unit.fsimage.ext4_directory_driver import Driver, image_for_directories

GEOMETRIES = {
    "by hash": ["-t", "ext4", "-b", "1024"],
    "by place": ["-t", "ext4", "-b", "1024", "-O", "^dir_index"],
}


def names(first: int, end: int) -> list[bytes]:
    return [b"a-name-with-some-length-%05d" % number for number in range(first, end)]


@pytest.fixture(params=GEOMETRIES.values(), ids=list(GEOMETRIES))
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    found = Driver(image_for_directories(tmp_path, "20M", *request.param))
    yield found
    found.close()


class Reader:
    """Somebody who lists a directory, a few entries at a time."""

    def __init__(self, directory: Callable[[], Directory], limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._cookie = 0
        self.found: list[bytes] = []

    def step(self) -> bool:
        """A few more; whether these were the last."""
        entries = self._directory().entries(self._cookie, self._limit)
        self.found += [entry.name for entry in entries]
        if entries:
            assert self._cookie < entries[0].cookie
            self._cookie = entries[-1].cookie
        return len(entries) < self._limit


def list_while(change: Callable[[], None], reader: Reader) -> list[bytes]:
    """What a reader finds if there is a change before each of its steps."""
    while not reader.step():
        change()
    return reader.found


@pytest.mark.parametrize("remembers", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("before", [10, 40, 300], ids=["one block", "to be indexed", "indexed"])
@pytest.mark.parametrize("limit", [1, 3, 50])
def test_what_stays_is_found_once(driver: Driver, limit: int, before: int, remembers: bool) -> None:
    """`cold`: the reader starts from what is on disk each time, as after a restart."""
    chance = random.Random(limit)
    stays = names(0, before)
    driver.add_all(stays)
    comes = iter(names(10_000, 10_200))
    known = driver.directories[b"d"]

    def change() -> None:
        new = list(itertools.islice(comes, 4))
        if not new:
            return
        driver.add_all(new)
        others = [name for name in driver.model[b"d"] if name not in stays]
        driver.drop(chance.choice(others))

    reader = Reader(lambda: known if remembers else driver.fresh(known.number), limit)
    found = list_while(change, reader)
    assert len(found) == len(set(found))
    assert set(stays) | {b".", b".."} <= set(found)
    driver.agree()


@pytest.mark.parametrize("listed", [True, False], ids=["known", "unknown"])
def test_cookies_are_kept(driver: Driver, listed: bool) -> None:
    """From one block to many, over splits and removals; whether or not they were asked for."""
    known = driver.directories[b"d"]
    driver.add_all(names(0, 10))
    before = cookies_of(known)
    for end in range(100, 1000, 100):
        driver.add_all(names(end, end + 100))
        for name in names(end, end + 100)[::2]:
            driver.drop(name)
        if listed:
            cookies_of(known)
    after = cookies_of(known)
    assert after.items() >= before.items()
    assert cookies_of(driver.fresh(known.number)) == after


def cookies_of(directory: Directory) -> dict[bytes, int]:
    return {entry.name: entry.cookie for entry in directory.entries(2, 100_000)}


# --- names with the same hash ---------------------------------------------------------


class CoarseHash(NameHash):
    """A hash with few values, so that many names have the same one."""

    def __call__(self, name: bytes) -> Hash:
        major, minor = super().__call__(name)
        return major & 0x6000_0000, minor & 1


@pytest.fixture
def coarse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Everybody here believes in that hash. (e2fsck would not.)"""
    monkeypatch.setattr(directories, "NameHash", CoarseHash)
    monkeypatch.setattr(index_check, "NameHash", CoarseHash)
    options = ["-t", "ext4", "-b", "1024", "-m", "0"]
    found = Driver(image_for_directories(tmp_path, "20M", *options))
    yield found
    found.close()


def test_many_blocks_of_the_same_hash(coarse: Driver) -> None:
    """Four hashes for 1,200 names, in some 60 blocks: most of them go on with the one before."""
    everything = names(0, 1200)
    coarse.add_all(everything)
    coarse.agree()
    coarse.check_by_ours()
    index = coarse.directories[b"d"].index
    assert index is not None
    assert len(index.leaves) > 30
    assert sum(value & 1 for value in index.hashes) >= len(index.leaves) - 4
    for name in everything[::2]:
        coarse.drop(name)
    coarse.add_all(names(2000, 2300))
    coarse.agree()
    coarse.check_by_ours()


def test_a_boundary_between_equal_hashes(coarse: Driver) -> None:
    """With two hashes in the first leaf, wherever it is cut, every name goes to its side."""
    for name in names(0, 100):
        coarse.add(name)
        assert coarse.directories[b"d"].lookup(name)
        coarse.check_by_ours()
    coarse.agree()


def test_equal_cookies_are_told_apart(coarse: Driver) -> None:
    """Eight cookies for 200 names: each gets one of its own, and keeps it while others go."""
    coarse.add_all(names(0, 200))
    directory = coarse.directories[b"d"]
    before = cookies_of(directory)
    assert len(set(before.values())) == 200
    reader = Reader(lambda: directory, 7)
    gone = iter(names(0, 200)[::2])

    def change() -> None:
        for _ in range(5):
            name = next(gone, None)
            if name:
                coarse.drop(name)
        assert before.items() >= cookies_of(directory).items()

    found = list_while(change, reader)
    assert len(found) == len(set(found))
    assert set(names(0, 200)[1::2]) <= set(found)


def test_a_new_name_gets_a_cookie_that_nobody_has() -> None:
    chunk = Chunk([(at, 11, b"%d" % at) for at in range(3)])

    def position(_: bytes, __: int) -> int:
        return 1000

    def cookies() -> dict[bytes, int]:
        listing, values = chunk.listed(position)
        assert [entry.cookie for entry in listing] == values == sorted(set(values))
        return {entry.name: entry.cookie for entry in listing}

    assert cookies() == {b"0": 1000, b"1": 1001, b"2": 1002}
    chunk.drop(b"1")
    assert cookies() == {b"0": 1000, b"2": 1002}
    chunk.put(b"new", 12, 99)
    assert cookies() == {b"0": 1000, b"new": 1001, b"2": 1002}
    chunk.put(b"more", 12, 99)
    assert cookies() == {b"0": 1000, b"new": 1001, b"2": 1002, b"more": 1003}
    chunk.drop(b"0")
    chunk.put(b"2", 13, 2)
    assert cookies() == {b"new": 1001, b"2": 1002, b"more": 1003}
    assert [entry.fileid for entry in chunk.listed(position)[0]] == [12, 13, 12]


def test_more_changes_than_are_noted() -> None:
    chunk = Chunk([(0, 11, b"first")])

    def position(_: bytes, offset: int) -> int:
        return offset + 3

    chunk.listed(position)
    for at in range(1, 1000):
        chunk.put(b"%d" % at, 12, at)
        if at % 3:
            chunk.drop(b"%d" % at)
        assert len(chunk.unlisted) <= max(64, len(chunk.names))
    listing, _ = chunk.listed(position)
    assert [entry.name for entry in listing] == [
        b"first",
        *(b"%d" % at for at in range(3, 1000, 3)),
    ]
