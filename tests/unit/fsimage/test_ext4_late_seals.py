"""What becomes bytes only when a transaction is closed, which may happen at any moment.

Blocks of directories get their checksums then. Until then, whoever verifies them must not be told
that they are damaged, whatever happens in between. Inodes are put into their blocks then, also into
one from which an operation that is at work has just taken an inode that was never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.interface import FileType, NewNode, SetAttributes
from tests.unit.fsimage.ext4_directory_driver import Driver, image_for_directories
from tests.unit.fsimage.ext4_images import e2fsck, make_image
from tests.unit.fsimage.ext4_maps import opened


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


def test_a_transaction_is_closed_while_the_table_of_inodes_goes_on_in_the_same_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first new inode of a file system is in the block of the last one that mke2fs made."""
    image = make_image(tmp_path / "image", "16M", "-t", "ext4", "-b", "4096")
    filesystem = opened(image)
    root = filesystem.root()
    root.lookup(b"lost+found").set_attributes(SetAttributes(mode=0o711))
    real = Allocator.allocate_inode

    def closed_meanwhile(self: Allocator, *words: Any, **named: Any) -> int:
        number = real(self, *words, **named)
        filesystem.commit()
        return number

    monkeypatch.setattr(Allocator, "allocate_inode", closed_meanwhile)
    root.create(b"new", NewNode(FileType.REGULAR, 0o644, 0, 0))
    filesystem.close()
    filesystem = opened(image)
    assert filesystem.root().lookup(b"lost+found").attributes().mode == 0o711
    filesystem.close()
    e2fsck(image)
