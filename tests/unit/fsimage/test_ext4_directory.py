"""Cookies: an entry keeps its own while others come and go, and when the directory is indexed."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from appliance.fsimage.ext4.hash import NameHash
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Entry, Node
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, listing, make_image, open_ro, run

COUNT = 600
"""Names of this length and number are some 20 blocks of 1 KiB."""


def name(number: int) -> bytes:
    return b"a-name-with-some-length-%04d" % number


def make(folder: Path, names: list[bytes], *options: str, hash_version: str = "half_md4") -> Path:
    tree = folder / "tree"
    (tree / "d").mkdir(parents=True)
    for each in names:
        (tree / "d" / each.decode()).touch()
    image = make_image(folder / "fs.img", "16M", "-t", "ext4", "-b", "1024", *options, tree=tree)
    shutil.rmtree(tree)
    run(["tune2fs", "-E", f"hash_alg={hash_version}", image])
    e2fsck(image)
    return image


def index(image: Path) -> None:
    run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])


def entries_of(image: Path) -> list[Entry]:
    filesystem = open_ro(image)
    entries = listing(filesystem.root().lookup(b"d"))
    filesystem.close()
    return entries


def cookies_of(image: Path) -> dict[bytes, int]:
    return {entry.name: entry.cookie for entry in entries_of(image)}


def test_the_cookie_is_the_hash(tmp_path: Path) -> None:
    image = make(tmp_path, [name(number) for number in range(COUNT)])
    filesystem = open_ro(image)
    seed = image.read_bytes()[1024 + 0xEC :][:16]
    hash_of = NameHash(1, seed, unsigned=False)
    for entry in listing(filesystem.root().lookup(b"d")):
        major, minor = hash_of(entry.name)
        assert entry.cookie == major >> 1 << 32 | minor
    filesystem.close()


def test_an_index_changes_no_cookie(tmp_path: Path) -> None:
    image = make(tmp_path, [name(number) for number in range(COUNT)])
    before = cookies_of(image)
    index(image)
    assert "Indirect levels" in debugfs(image, "htree_dump d")
    assert cookies_of(image) == before


def test_a_deep_index(tmp_path: Path) -> None:
    """The root, of 1 KiB, has room for 120 leaves, with 8 of these names each: not enough."""
    names = [b"%04d" % number + b"x" * 100 for number in range(2000)]
    image = make(tmp_path, names, "-N", "4000")
    before = cookies_of(image)
    index(image)
    assert "Indirect levels: 1" in debugfs(image, "htree_dump d")
    assert cookies_of(image) == before
    filesystem = open_ro(image)
    directory = filesystem.root().lookup(b"d")
    assert all(directory.lookup(each).attributes().nlink == 1 for each in names)
    filesystem.close()


@pytest.mark.parametrize("options", [[], ["-O", "^dir_index"]], ids=["by hash", "by offset"])
@pytest.mark.parametrize("indexed", [False, True], ids=["linear", "indexed"])
def test_what_stays_keeps_its_cookie(tmp_path: Path, options: list[str], indexed: bool) -> None:
    image = make(tmp_path, [name(number) for number in range(COUNT)], *options)
    if indexed:
        index(image)
    before = cookies_of(image)
    gone = [name(number) for number in range(0, COUNT, 3)]
    debugfs(image, *(f"rm d/{each.decode()}" for each in gone))
    after = cookies_of(image)
    assert after == {each: cookie for each, cookie in before.items() if each not in gone}
    # What came between is found between, and what was read before it is not read again.
    debugfs(image, *(f"ln d/{name(1).decode()} d/new-{number}" for number in range(50)))
    assert cookies_of(image).items() >= after.items()


def test_offsets_without_dir_index(tmp_path: Path) -> None:
    image = make(tmp_path, [name(number) for number in range(COUNT)], "-O", "^dir_index")
    entries = entries_of(image)
    assert [entry.name for entry in entries] == [name(number) for number in range(COUNT)]
    assert max(entry.cookie for entry in entries) < 64 * 1024


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 10_000])
@pytest.mark.parametrize("indexed", [False, True], ids=["linear", "indexed"])
def test_any_number_at_a_time(tmp_path: Path, limit: int, indexed: bool) -> None:
    image = make(tmp_path, [name(number) for number in range(200)])
    if indexed:
        index(image)
    filesystem = open_ro(image)
    directory = filesystem.root().lookup(b"d")
    assert step_by_step(directory, limit) == [b".", b".."] + [
        entry.name for entry in listing(directory)
    ]
    filesystem.close()


def step_by_step(directory: Node, limit: int) -> list[bytes]:
    found: list[bytes] = []
    cookie = 0
    while True:
        entries = directory.entries(cookie, limit)
        assert len(entries) <= limit
        found += [entry.name for entry in entries]
        if len(entries) < limit:
            return found
        cookie = entries[-1].cookie


@pytest.mark.parametrize("indexed", [False, True], ids=["linear", "indexed"])
def test_names_with_the_same_hash(tmp_path: Path, indexed: bool) -> None:
    """The legacy hash has 31 bits and no minor part, so that names with equal ones are found."""
    image = make(tmp_path, [], hash_version="legacy")
    hash_of = NameHash(0, image.read_bytes()[1024 + 0xEC :][:16], unsigned=False)
    by_hash = defaultdict(list)
    for number in range(300_000):
        by_hash[hash_of(b"%06d" % number)[0]].append(b"%06d" % number)
    same = list(itertools.chain(*(each for each in by_hash.values() if len(each) > 1)))
    assert len(same) > 10
    folder = tmp_path / "again"
    folder.mkdir()
    names = [*same, *(name(number) for number in range(100))]
    image = make(folder, names, hash_version="legacy")
    if indexed:
        index(image)
        assert "Indirect levels" in debugfs(image, "htree_dump d")
    filesystem = open_ro(image)
    directory = filesystem.root().lookup(b"d")
    found = step_by_step(directory, 1)
    assert sorted(found[2:]) == sorted(names)
    assert all(directory.lookup(each).attributes() for each in names)
    filesystem.close()


def test_cookies_that_nobody_gave_out(tmp_path: Path) -> None:
    image = make(tmp_path, [name(number) for number in range(COUNT)])
    for _ in range(2):
        filesystem = open_ro(image)
        directory = filesystem.root().lookup(b"d")
        for cookie in (3, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1):
            entries = directory.entries(cookie, 1000)
            assert all(entry.cookie > cookie for entry in entries)
        assert directory.entries((1 << 64) - 1, 1000) == []
        filesystem.close()
        index(image)


def test_nodes_come_with_the_entries(tmp_path: Path) -> None:
    filesystem = open_ro(make(tmp_path, [name(number) for number in range(50)]))
    directory = filesystem.root().lookup(b"d")
    first, second = directory.entries(0, 100), directory.entries(0, 100)
    assert [entry.node for entry in first] == [entry.node for entry in second]
    assert first[0].node is directory
    assert first[1].node is filesystem.root()
    assert all(entry.node is directory.lookup(entry.name) for entry in first[2:])
    filesystem.close()


def test_names_that_the_kernel_would_fold(tmp_path: Path) -> None:
    """They are found as they are written; the index is of folded names, and is not searched."""
    names = [b"A-Name-In-Mixed-CASE-%04d" % number for number in range(COUNT)]
    image = make(tmp_path, names, "-O", "casefold")
    debugfs(image, "set_inode_field d flags 0x40080000")
    before = cookies_of(image)
    index(image)
    assert "Indirect levels" in debugfs(image, "htree_dump d")
    assert cookies_of(image) == before
    filesystem = open_ro(image)
    directory = filesystem.root().lookup(b"d")
    assert all(directory.lookup(each).attributes() for each in names)
    with pytest.raises(VfsError):
        directory.lookup(names[0].lower())
    assert directory.parent() is filesystem.root()
    filesystem.close()
