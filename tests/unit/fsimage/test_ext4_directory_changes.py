"""Names come and go: a dictionary, our reader, our checker and e2fsck have to agree."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.fsimage.ext4 import directory_changes, layout
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.layout import dx_root, ext4_inode
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.ext4_directory_driver import (
    FILES,
    NOW_NS,
    Driver,
    image_for_directories,
)
from tests.unit.fsimage.ext4_images import debugfs, run

GEOMETRIES = {
    "1024": ["-t", "ext4", "-b", "1024"],
    "2048": ["-t", "ext4", "-b", "2048"],
    "4096": ["-t", "ext4", "-b", "4096"],
    "64 KiB": ["-t", "ext4", "-b", "65536"],
    "64 KiB, no checksums": ["-t", "ext4", "-b", "65536", "-O", "^metadata_csum"],
    "no checksums": ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
    "no index": ["-t", "ext4", "-b", "1024", "-O", "^dir_index"],
    "ext2": ["-t", "ext2", "-b", "1024"],
    "no file types": ["-t", "ext3", "-b", "1024", "-O", "^filetype"],
}
SMALL_BLOCKS = GEOMETRIES["1024"]
DIRECTORY = 2


def random_name(chance: random.Random) -> bytes:
    length = chance.choice((chance.randint(1, 16), chance.randint(1, 255)))
    return bytes(chance.choice(b"abcdefghijklmnopqrstuvwxyz\xc3\xa4\xff-.") for _ in range(length))


def new_name(driver: Driver, chance: random.Random, where: bytes = b"d") -> bytes:
    while True:
        name = random_name(chance)
        if name not in driver.model[where] and name not in (b".", b".."):
            return name


def long_names(count: int) -> list[bytes]:
    """Four of these fill a block of 1 KiB."""
    return [b"%08d" % number + b"x" * 200 for number in range(count)]


def names(count: int) -> list[bytes]:
    return [b"a-name-with-some-length-%06d" % number for number in range(count)]


@pytest.fixture(params=GEOMETRIES.values(), ids=list(GEOMETRIES))
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    found = Driver(image_for_directories(tmp_path, "40M", "-m", "0", *request.param))
    yield found
    found.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Driver]:
    """Blocks of 1 KiB."""
    found = Driver(image_for_directories(tmp_path, "40M", "-m", "0", *SMALL_BLOCKS))
    yield found
    found.close()


def some_changes(driver: Driver, chance: random.Random, operation: Operation) -> None:
    """A few changes in one operation, in both directories."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        where = chance.choice((b"d", b"d", b"e"))
        names = driver.model[where]
        known = chance.choice(sorted(names)) if names else b""
        file = chance.randrange(FILES)
        kind = chance.random()
        if not names or kind < 0.6:
            name = new_name(driver, chance, where)
            driver.enter(operation, where, name, file)
            names[name] = file
        elif kind < 0.9:
            driver.remove(operation, where, known, names.pop(known))
        else:
            driver.replace(operation, where, known, names[known], file)
            names[known] = file


def test_any_changes(driver: Driver) -> None:
    chance = random.Random(1)
    for number in range(1200):
        driver.change(lambda operation: some_changes(driver, chance, operation))
        if number % 300 == 0:
            driver.agree()
    driver.agree()
    driver.check()
    for where, left in driver.model.items():
        for name in sorted(left):
            driver.drop(name, where)
    driver.agree()
    driver.check()


# --- the index -------------------------------------------------------------------


@pytest.mark.parametrize("unsigned", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("version", ["legacy", "half_md4", "tea"])
def test_every_hash(tmp_path: Path, version: str, unsigned: bool) -> None:
    image = image_for_directories(tmp_path, "16M", *SMALL_BLOCKS)
    run(["tune2fs", "-E", f"hash_alg={version}", image])
    debugfs(image, f"set_super_value flags {2 if unsigned else 1}")
    driver = Driver(image)
    chance = random.Random(2)
    driver.add_all({random_name(chance) for _ in range(1500)} - {b".", b".."})
    driver.agree()
    driver.check()
    assert root_of(driver).hash_version == ["legacy", "half_md4", "tea"].index(version)
    driver.close()


def root_of(driver: Driver) -> dx_root:
    """The root of the index of "d"."""
    directory = driver.directories[b"d"]
    return dx_root.decode(driver.volume.block(directory.physical(0)))


def test_an_index_that_is_full_of_others_names(tmp_path: Path) -> None:
    """e2fsck packs leaves so that there is hardly any room in them."""
    driver = Driver(image_for_directories(tmp_path, "16M", *SMALL_BLOCKS))
    driver.add_all(names(1000))
    driver.write()
    driver.close()
    run(["sh", "-c", f"e2fsck -fyD {driver.image} > /dev/null; test $? -le 1"])
    again = Driver(driver.image)
    again.model.update(driver.model)
    again.add_all(b"more-%04d" % number for number in range(500))
    for name in names(1000)[::3]:
        again.drop(name)
    again.agree()
    again.check()
    again.close()


def test_levels(tmp_path: Path) -> None:
    """Two levels, until even they are full; then large_dir, which allows for a third one.

    Names that come in the order of their hashes leave one behind in each leaf: that takes the
    fewest of them.
    """
    options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-m", "0"]
    driver = Driver(image_for_directories(tmp_path, "64M", *options))
    every = [b"%08d" % number + b"x" * 240 for number in range(20_000)]
    every.sort(key=driver.directories[b"d"].hash_of)
    filler = iter(every)
    driver.add_all(itertools.islice(filler, 100))
    assert root_of(driver).indirect_levels == 0
    driver.add_all(itertools.islice(filler, 200))
    assert root_of(driver).indirect_levels == 1
    driver.agree()
    driver.check()
    with pytest.raises(VfsError, match="index is full") as caught:
        driver.add_all(filler)
    assert caught.value.code is Code.NOSPC
    assert len(driver.model[b"d"]) > 7_000
    driver.check()
    driver.close()

    run(["tune2fs", "-O", "large_dir", driver.image])
    larger = Driver(driver.image)
    larger.model.update(driver.model)
    larger.add_all(b"%08d" % number + b"y" * 240 for number in range(1000))
    assert root_of(larger).indirect_levels == 2
    larger.agree()
    larger.check()
    larger.close()


def test_many_entries(tmp_path: Path) -> None:
    """So many that not all of them are remembered."""
    options = ["-t", "ext4", "-b", "4096", "-m", "0"]
    driver = Driver(image_for_directories(tmp_path, "128M", *options))
    count = 150_000
    for file in range(FILES):  # a file has 65,000 names at most
        mine = [b"file-number-%06d" % number for number in range(file, count, FILES)]
        for at in range(0, len(mine), 50):

            def act(operation: Operation, some: list[bytes] = mine[at : at + 50]) -> None:
                for name in some:
                    driver.enter(operation, b"d", name, file)  # noqa: B023 (called at once)

            driver.change(act)
        driver.model[b"d"].update(dict.fromkeys(mine, file))
    driver.check()
    expected = {name: driver.files[file] for name, file in driver.model[b"d"].items()}
    assert driver.names_of(driver.directories[b"d"], step=10_000) == expected
    some = random.Random(3).sample(sorted(expected), 5000)
    assert all(driver.directories[b"d"].lookup(name) == expected[name] for name in some)
    driver.close()


# --- what else belongs to a directory ----------------------------------------------


def mkdir(driver: Driver, operation: Operation, name: bytes, above: bytes = b"d") -> int:
    """Make a directory in "d", and its number."""
    model = operation.inode(driver.directories[above].number)
    number = operation.allocate_inode(model.number, directory=True)
    disk = ext4_inode.decode(bytes(ext4_inode.SIZE))
    disk.i_mode, disk.i_links_count, disk.i_extra_isize = model.disk.i_mode, 2, 32
    disk.i_generation = number
    if model.has_flag(layout.EXTENTS_FL):
        disk.i_flags = layout.EXTENTS_FL
        disk.i_block = bytes.fromhex("0af30000040000000000000000") + bytes(47)
    if driver.volume.superblock.inode_bytes == layout.GOOD_OLD_INODE_SIZE:
        disk.i_extra_isize = 0
        body = b""
    else:
        body = bytes(driver.volume.superblock.inode_bytes - ext4_inode.SIZE)
    inode = operation.new_inode(number, disk, body)
    directory_changes.make_first_block(driver.shared, operation, inode, model.number)
    model.disk.i_links_count += 1
    directory_changes.enter(driver.directories[above], operation, name, number, DIRECTORY)
    return number


def test_a_new_directory_and_its_parent(driver: Driver) -> None:
    numbers: list[int] = []
    driver.change(lambda operation: numbers.append(mkdir(driver, operation, b"new")))
    number = numbers[0]
    assert driver.directories[b"d"].lookup(b"new") == number
    new = driver.fresh(number)
    assert new.is_empty() and new.parent() == driver.directories[b"d"].number
    driver.check()

    driver.directories[b"new"] = new
    driver.model[b"new"] = {}
    for many in (10, 2000):  # within one block; in many, or in an index
        driver.add_all((name for name in names(many) if name not in driver.model[b"new"]), b"new")
        for parent in (b"e", b"d"):
            move(driver, new.number, parent)
            assert new.parent() == driver.directories[parent].number
            assert driver.fresh(number).parent() == driver.directories[parent].number
            assert new.entries(1, 1)[0].fileid == driver.directories[parent].number
    del driver.model[b"d"]
    driver.agree()
    driver.check()


def move(driver: Driver, number: int, parent: bytes) -> None:
    """Move directory "new" from "d" to "e" or back, in one operation."""
    source = driver.directories[b"d" if parent == b"e" else b"e"]
    target = driver.directories[parent]

    def act(operation: Operation) -> None:
        directory_changes.enter(target, operation, b"new", number, DIRECTORY)
        directory_changes.remove(source, operation, b"new")
        new = driver.directories[b"new"]
        directory_changes.set_parent(new, operation, target.number)
        operation.inode(source.number).disk.i_links_count -= 1
        operation.inode(target.number).disk.i_links_count += 1

    driver.change(act)


def test_a_rename_within_one_directory(driver: Driver) -> None:
    """Both names in one operation; in the end all of them are others."""
    driver.add_all(names(500))
    for name in names(500):

        def act(operation: Operation, name: bytes = name) -> None:
            driver.enter(operation, b"d", b"new-" + name, 1)
            driver.remove(operation, b"d", name, 0)

        driver.change(act)
        del driver.model[b"d"][name]
        driver.model[b"d"][b"new-" + name] = 1
    driver.agree()
    driver.check()


def test_nothing_is_left_of_a_name(small: Driver) -> None:
    for name in (b"secret-one", b"secret-two", b"secret-three"):
        small.add(name)
    for name in (b"secret-two", b"secret-one", b"secret-three"):
        small.drop(name)
    directory = small.directories[b"d"]
    assert b"secret" not in small.volume.block(directory.physical(0))


def test_times(small: Driver) -> None:
    """Both times are that of the operation, in a directory that has not come from the future."""
    numbers: list[int] = []
    small.change(lambda operation: numbers.append(mkdir(small, operation, b"new")))
    number = numbers[0]
    small.directories[b"new"], small.model[b"new"] = small.fresh(number), {}
    for change in (small.add, small.drop):
        change(b"name", where=b"new")
        seconds, nanoseconds = divmod(NOW_NS + small.operations, 1_000_000_000)
        disk = inodes.read(small.volume, number).disk
        assert (disk.i_mtime, disk.i_mtime_extra) == (seconds, nanoseconds << 2)
        assert (disk.i_ctime, disk.i_ctime_extra) == (seconds, nanoseconds << 2)


# --- what fails changes nothing ------------------------------------------------------


def test_no_space(tmp_path: Path) -> None:
    """The whole image goes into one directory; what fails has not happened, what is removed makes
    room again."""
    options = ["-t", "ext4", "-b", "1024", "-m", "0", "-O", "^has_journal"]
    driver = Driver(image_for_directories(tmp_path, "2M", *options))
    with pytest.raises(VfsError) as caught:
        driver.add_all(long_names(20_000))
    assert caught.value.code is Code.NOSPC
    assert len(driver.model[b"d"]) > 1000
    driver.agree()
    driver.check()
    gone = sorted(driver.model[b"d"])[:50]
    for name in gone:
        driver.drop(name)
        driver.add(name, 1)
    driver.agree()
    driver.check()
    driver.close()


def test_a_name_that_is_not_there(small: Driver) -> None:
    small.add_all(names(100))
    with pytest.raises(VfsError) as caught:
        small.change(lambda operation: small.remove(operation, b"d", b"nobody", 0))
    assert caught.value.code is Code.NOENT
    with pytest.raises(VfsError) as caught:
        small.change(lambda operation: small.replace(operation, b"d", b"nobody", 0, 1))
    assert caught.value.code is Code.NOENT
    small.agree()


@pytest.mark.parametrize(
    ("feature", "flag"),
    [
        ("-dir_index", layout.INDEX_FL),
        ("casefold", layout.CASEFOLD_FL),
        ("filetype", layout.ENCRYPT_FL),
    ],
    ids=["an index that nobody knows", "folded", "encrypted"],
)
def test_what_is_never_written(tmp_path: Path, feature: str, flag: int) -> None:
    image = image_for_directories(tmp_path, "16M", *SMALL_BLOCKS)
    driver = Driver(image)
    driver.add_all(names(5))
    driver.write()
    driver.close()
    debugfs(image, f"feature {feature}")
    debugfs(image, f"set_inode_field d flags {flag | layout.EXTENTS_FL:#x}")
    before = image.read_bytes()
    again = Driver(image)
    with pytest.raises(VfsError) as caught:
        again.add(b"new")
    assert caught.value.code is Code.ROFS
    with pytest.raises(VfsError):
        again.change(lambda operation: again.remove(operation, b"d", names(5)[0], 0))
    assert not again.volume.unwritten
    again.close()
    assert image.read_bytes() == before


def test_a_directory_inside_its_inode(tmp_path: Path) -> None:
    driver = Driver(image_for_directories(tmp_path, "16M", *SMALL_BLOCKS, "-O", "inline_data"))
    with pytest.raises(VfsError) as caught:
        driver.add(b"new")
    assert caught.value.code is Code.ROFS
    driver.close()


@pytest.fixture
def unsealed(tmp_path: Path) -> Iterator[Driver]:
    """Blocks of 1 KiB without checksums."""
    options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"]
    found = Driver(image_for_directories(tmp_path, "16M", *options))
    yield found
    found.close()


@pytest.mark.parametrize("seed", range(30))
def test_damaged_directories(unsealed: Driver, seed: int) -> None:
    """Whatever is in the blocks of a directory: an error at most, and what is said to have happened
    has."""
    chance = random.Random(seed)
    unsealed.add_all(b"%05d" % number + b"n" * chance.randrange(60) for number in range(300))
    unsealed.add_all((b"%05d" % number for number in range(30)), where=b"e")
    where = chance.choice((b"d", b"e"))
    known, seen = unsealed.directories[where], set()

    def spoil(operation: Operation) -> None:
        for _ in range(chance.choice((1, 2, 5))):
            logical = chance.choice((0, chance.randrange(known.blocks.end)))
            at = chance.choice((chance.randrange(64), chance.randrange(1024)))
            raw = operation.change(known.physical(logical))
            raw[at] = chance.choice((0, 1, 255, chance.randrange(256)))

    unsealed.change(spoil)
    there = sorted(unsealed.model[where])
    for number in range(60):
        try:
            if not number:
                unsealed.directories[where] = unsealed.fresh(known.number)
                unsealed.directories[where].entries(0, 10_000)
            elif number % 3 == 0:
                unsealed.drop(there.pop(chance.randrange(min(20, len(there)))), where)
            else:
                name = b"new-%05d" % number + b"y" * chance.randrange(80)
                unsealed.add(name, where=where)
                assert unsealed.directories[where].lookup(name) == unsealed.files[0]
        except VfsError as error:
            seen.add(error.code)
    assert seen <= {Code.IO, Code.NOENT}


def test_names_in_the_wrong_leaf(unsealed: Driver) -> None:
    """What is where the index does not look for it is not spread further."""
    unsealed.add_all(names(300))
    directory = unsealed.directories[b"d"]
    assert directory.index is not None
    first, second = map(directory.physical, directory.index.leaves[:2])

    def exchange(operation: Operation) -> None:
        before = bytes(operation.block(first))
        operation.change(first)[:] = operation.block(second)
        operation.change(second)[:] = before

    unsealed.change(exchange)
    unsealed.directories[b"d"] = unsealed.fresh(directory.number)
    with pytest.raises(VfsError, match="do not belong there") as caught:
        unsealed.add_all(b"new-%d" % number for number in range(1000))
    assert caught.value.code is Code.IO


def test_no_dots(small: Driver) -> None:
    """A directory that does not begin as it should gets neither another parent nor an index."""
    directory = small.directories[b"d"]
    number = directory.physical(0)
    small.add_all(names(10))

    def spoil(operation: Operation) -> None:
        operation.change(number, late=directory.seal)[12 + 8] = ord("x")

    small.change(spoil)
    with pytest.raises(VfsError) as caught:
        small.change(lambda operation: directory_changes.set_parent(directory, operation, 2))
    assert caught.value.code is Code.IO
    with pytest.raises(VfsError):
        small.add_all(names(200)[10:])
    assert directory.lookup(names(1)[0])
