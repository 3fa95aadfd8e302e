"""Blocks of directories get their checksums when a transaction is closed. Until then, whoever
verifies them must not be told that they are damaged, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.fsimage.ext4.operation import Operation
from tests.unit.fsimage.ext4_directory_driver import Driver, image_for_directories


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """Its transaction stays open."""
    found = Driver(image_for_directories(tmp_path, "16M", "-t", "ext4", "-b", "1024"))
    found.gathers = True
    yield found
    found.close()


def some(begin: int, count: int) -> list[bytes]:
    return [b"a-name-%06d" % number for number in range(begin, begin + count)]


def test_a_directory_is_read_again_before_its_transaction_is_closed(driver: Driver) -> None:
    driver.add_all(some(0, 5))
    number = driver.directories[b"d"].physical(0)
    assert number in driver.volume.unfinished.seals
    driver.agree()  # which reads it without what is known of it
    driver.check()
    assert not driver.volume.unfinished.seals
    driver.agree()


def test_a_block_of_names_becomes_an_index_in_the_same_transaction(driver: Driver) -> None:
    """Its seal is another one from then on."""
    driver.add_all(some(0, 20))
    number = driver.directories[b"d"].physical(0)
    assert number in driver.volume.unfinished.seals
    driver.add_all(some(20, 200))
    assert driver.directories[b"d"].index is not None
    assert number not in driver.volume.unfinished.seals
    driver.agree()
    driver.check()
    driver.agree()


def test_an_operation_that_fails_leaves_seals_as_they_were(driver: Driver) -> None:
    driver.add_all(some(0, 20))
    before = dict(driver.volume.unfinished.seals)

    def fail(operation: Operation) -> None:
        for name in some(20, 200):
            driver.enter(operation, b"d", name, 0)
        raise LookupError

    with pytest.raises(LookupError):
        driver.change(fail)
    assert driver.volume.unfinished.seals == before
    driver.agree()
    driver.check()


@pytest.mark.parametrize("commits", [True, False], ids=["sealed", "changed"])
def test_what_happens_while_somebody_reads(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    """Readers have no lock: between its seal and the block, or the other way round, a transaction
    may be closed, or an operation published."""
    driver.add_all(some(0, 5))
    if not commits:
        driver.commit()
    directory, volume = driver.directories[b"d"], driver.volume
    number = directory.physical(0)
    read: Callable[[int], bytes] = volume.block
    meanwhile: list[Callable[[], None]] = [driver.commit if commits else add_one(driver)]

    def block(wanted: int) -> bytes:
        found = read(wanted)
        if wanted == number and meanwhile:
            meanwhile.pop()()
            if not commits:
                found = read(wanted)  # it came just before
        return found

    monkeypatch.setattr(type(volume), "block", lambda _, wanted: block(wanted))
    raw = volume.sealed(number)
    monkeypatch.undo()
    assert not meanwhile
    driver.commit()
    assert raw == volume.block(number)


def add_one(driver: Driver) -> Callable[[], None]:
    return lambda: driver.add(b"one-more")
