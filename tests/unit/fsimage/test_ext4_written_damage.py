"""An image with something wrong in it is written to: nothing that was sound gets worse.

Each case damages one structure of a sound image, by seeded bits and words, with checksums that tell
of it, without checksums, or with checksums that lie. Then a fixed battery of operations runs on it.

What "not worse" means: two copies are repaired with e2fsck -fy, one from before the battery, one
from after it. Every object that the battery has not named, and that survives in the first, is in
the second, with the same contents and the same names. What the damage itself puts into doubt is
left out: an inode whose blocks others claim, too, or that its bitmap has as free.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.extents import Extent
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, FileType, NewNode, Node, SetAttributes
from tests.unit.fsimage.damage import MemoryDevice, bounded_time
from tests.unit.fsimage.ext4_images import MKE2FS, contents, debugfs, run
from tests.unit.fsimage.ext4_structures import Structures, damage

BLOCK = 1024
READS_MAX = 30_000
WRITES_MAX = 5_000
LOST_AND_FOUND = 11
MEMORY_MAX = 24 << 20
SEEDS = 24
REGULAR, DIRECTORY, SYMLINK = FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK

IMAGES = {
    "ext4": ["-t", "ext4"],
    "checksums that lie": ["-t", "ext4"],
    "no checksums": ["-t", "ext4", "-O", "^metadata_csum", "-g", "2048"],
    "seed, orphan file": ["-t", "ext4", "-O", "metadata_csum_seed,orphan_file", "-g", "2048"],
    "ext3": ["-t", "ext3", "-I", "128"],
    "ext2": ["-t", "ext2", "-g", "2048"],
}
LYING = {"checksums that lie", "seed, orphan file"}

ALLOWED = {
    *(Code.IO, Code.ROFS, Code.NOSPC, Code.NOENT, Code.EXIST, Code.NOTEMPTY, Code.ISDIR),
    *(Code.NOTDIR, Code.STALE, Code.MLINK, Code.FBIG, Code.NOTSUPP, Code.INVAL),
}


class WrittenDevice(MemoryDevice):
    """One that can be written to, so often."""

    read_only = False

    def __init__(self, raw: bytearray) -> None:
        super().__init__(raw, READS_MAX)
        self.image = raw
        self._writes_left = WRITES_MAX

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        self._writes_left -= 1
        assert self._writes_left, "this never ends"
        joined = b"".join(data)
        if not 0 <= offset <= offset + len(joined) <= self.size:
            raise VfsError(Code.IO, "outside")
        self.image[offset : offset + len(joined)] = joined

    def flush(self) -> None:
        """Nothing: this is memory."""


# --- the images ----------------------------------------------------------------


def plant(top: Path, prefix: str) -> None:
    """One of each kind: what the battery names begins with t, what it does not with k."""
    (top / f"{prefix}-file").write_bytes(bytes(range(256)) * 20)
    with (top / f"{prefix}-frag").open("wb") as file:
        for number in range(0, 700, 2):
            file.seek(number * BLOCK)
            file.write(b"%04d" % number * (BLOCK // 4))
    directory = top / f"{prefix}-dir"
    directory.mkdir()
    for number in range(130):
        (directory / f"{prefix}-entry-number-{number:04d}").touch()
    (top / f"{prefix}-sub" / f"{prefix}-inner").mkdir(parents=True)
    (top / f"{prefix}-sub" / f"{prefix}-inner" / f"{prefix}-deep").write_bytes(b"deep" * 999)
    (top / f"{prefix}-short").symlink_to("target")
    (top / f"{prefix}-link").symlink_to("t" * 200)
    (top / f"{prefix}-xattr").write_bytes(b"with attributes")
    (top / f"{prefix}-hard").hardlink_to(top / f"{prefix}-xattr")


@cache
def image_bytes(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        plant(tree, "k")
        plant(tree, "t")
        image = Path(folder) / "fs.img"
        run(["truncate", "-s", "6M", image])
        run([*MKE2FS, "-b", str(BLOCK), "-N", "512", *IMAGES[name], "-d", str(tree), image])
        for prefix in "kt":
            value = Path(folder) / "value"
            value.write_bytes(prefix.encode() * 300)
            debugfs(image, f"ea_set -f {value} {prefix}-xattr user.large")
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
        return image.read_bytes()


@cache
def structures(name: str) -> Structures:
    return Structures(image_bytes(name))


# --- the battery ---------------------------------------------------------------


@dataclass
class Battery:
    """Operations on a file system. `named`: the inodes that they were about."""

    filesystem: Ext4
    named: set[int] = field(default_factory=set)
    done: int = 0

    def at(self, *path: bytes) -> Ext4Node:
        node = self.filesystem.root()
        for name in path:
            self.named.add(node.inode.number)
            node = node.lookup(name)
        self.named.add(node.inode.number)
        return node

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Whatever is wrong is said with an error that is one of a file system."""
        try:
            yield
            self.done += 1
        except VfsError as error:
            if error.code not in ALLOWED:
                raise

    def run(self) -> None:
        steps: list[Callable[[], object]] = [
            self.make,
            lambda: self.at().create(b"n-dir", new(DIRECTORY)),
            lambda: self.at().create(b"n-link", new(SYMLINK, target=b"x" * 300)),
            lambda: self.at(b"t-file").write(0, [b"begin"]),
            lambda: self.at(b"t-file").write(5000, [b"y" * 5000]),
            lambda: self.at(b"t-file").write(200_000, [b"behind a gap"]),
            lambda: self.at(b"t-frag").write(BLOCK, [b"into holes" * 2000]),
            lambda: self.at(b"t-frag").write(300 * BLOCK, [b"." * 100_000]),
            lambda: self.at(b"t-frag").set_attributes(SetAttributes(size=300_123)),
            lambda: self.at(b"t-frag").set_attributes(SetAttributes(size=900_000)),
            lambda: self.at().link(b"n-hard", self.at(b"t-frag")),
            lambda: self.at(b"t-dir").set_attributes(SetAttributes(mode=0o700, uid=77)),
            lambda: self.at(b"t-xattr").set_xattr(b"user.more", b"m" * 200),
            lambda: self.at(b"t-hard").remove_xattr(b"user.large"),
            lambda: self.rename((b"t-file",), (b"t-sub", b"t-renamed")),
            lambda: self.rename((b"t-short",), (b"t-link",)),
            lambda: self.rename((b"t-sub", b"t-inner"), (b"t-moved",)),
            lambda: self.remove(b"t-xattr"),
            lambda: self.remove(b"t-link"),
            lambda: self.remove(b"t-sub", b"t-renamed"),
            lambda: self.rmdir(b"t-sub"),
            lambda: self.rmdir(b"n-dir"),
            lambda: self.rmdir(b"t-moved"),
            lambda: self.remove(b"t-frag"),
            lambda: self.remove(b"n-hard"),
            lambda: self.at().entries(0, 100),
            self.filesystem.statistics,
            self.filesystem.commit,
            self.make_again,
        ]
        for step in steps:
            with self.allowed():
                step()
        for number in range(60):
            with self.allowed():
                self.at(b"t-dir").create(b"t-new-%d" % number * 8, new(REGULAR))
            with self.allowed():
                self.remove(b"t-dir", b"t-entry-number-%04d" % (2 * number))
        self.look_around()

    def make(self) -> None:
        self.at().create(b"n-file", new(REGULAR)).write(0, [b"new" * 10_000])

    def make_again(self) -> None:
        self.at().create(b"n-again", new(REGULAR)).write(7, [b"again" * 60_000])

    def holder(self, path: tuple[bytes, ...]) -> Ext4Node:
        """The directory of what has this path, which may be another one than it should be."""
        with suppress(VfsError):
            self.at(*path)
        return self.at(*path[:-1])

    def rename(self, source: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        self.holder(source).rename(source[-1], self.holder(target), target[-1])

    def remove(self, *path: bytes) -> None:
        self.holder(path).remove(path[-1])

    def rmdir(self, *path: bytes) -> None:
        self.holder(path).rmdir(path[-1])

    def look_around(self) -> None:
        """Reading goes on, whatever has happened."""
        for name in (b"k-file", b"k-frag", b"k-xattr"):
            with self.allowed():
                node = self.filesystem.root().lookup(name)
                node.read(0, 1 << 20)
                node.xattrs()
        for name in (b"k-dir", b"k-sub"):
            with self.allowed():
                self.filesystem.root().lookup(name).entries(0, 500)


def new(kind: FileType, target: bytes = b"") -> NewNode:
    return NewNode(kind, 0o755, 0, 0, target=target)


# --- the judgement ---------------------------------------------------------------


@dataclass
class Tree:
    """What is in a repaired image, by inode."""

    objects: dict[int, tuple[object, ...]] = field(default_factory=dict)
    names: dict[tuple[int, bytes], int] = field(default_factory=dict)
    blocks: dict[int, list[Extent]] = field(default_factory=dict)

    def owners(self, blocks: set[int]) -> set[int]:
        """The inodes that have some of these blocks."""
        return {
            number
            for number, extents in self.blocks.items()
            for extent in extents
            if any(extent.physical <= block < extent.physical + extent.count for block in blocks)
        }


def tree_of(image: Path) -> Tree:
    raw = image.read_bytes()
    filesystem = open_ext4(MemoryDevice(raw, 1_000_000), "repaired", read_only=True)
    tree = Tree()
    pending: list[Ext4Node] = [filesystem.root()]
    while pending:
        node = pending.pop()
        if node.inode.number not in tree.objects:
            with suppress(VfsError):  # what cannot be read is not there
                pending += visit(tree, node)
    return tree


def visit(tree: Tree, node: Ext4Node) -> list[Ext4Node]:
    """Put an object into the tree: what is below it."""
    its = node.attributes()
    found: tuple[object, ...] = (its.type, its.mode, its.uid, its.gid)
    below = []
    if its.type is REGULAR:
        found += (its.size, digest(node), sorted(node.xattrs()))
    elif its.type is SYMLINK:
        found += (node.readlink(),)
    elif its.type is DIRECTORY:
        for entry in node.entries(2, 10_000):
            tree.names[its.fileid, entry.name] = entry.fileid
            with suppress(VfsError):
                below.append(node.lookup(entry.name))
    if its.type in (REGULAR, DIRECTORY):
        extents = node.block_map.extents(0, min(its.size, 1 << 30) // BLOCK + 1)
        tree.blocks[its.fileid] = [extent for extent in extents if extent.physical]
    tree.objects[its.fileid] = found
    return below


def digest(node: Node) -> bytes:
    its = node.attributes()
    if its.size > 1 << 24:  # as large as damage has made it
        buffers, _ = node.read(0, 1 << 20)
        return b"".join(buffers)
    found = hashlib.sha256()
    for buffer in contents(node):
        found.update(buffer)
    return found.digest()


def repaired(image: Path, raw: bytes | bytearray) -> Tree | None:
    """The tree after a repair; None: there is nothing to be repaired. (e2fsck may go round in
    circles about one file, such as one that has the blocks of its own map in it.)"""
    image.write_bytes(raw)
    for _ in range(3):
        code, _ = e2fsck(image, "-fy")
        if code == 0:
            break
    try:
        return tree_of(image)
    except (ImageError, VfsError):  # not even its root
        return None


def e2fsck(image: Path, how: str) -> tuple[int, str]:
    done = subprocess.run(
        ["e2fsck", how, image], capture_output=True, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout


def said_of(image: Path, raw: bytes | bytearray) -> str:
    """What e2fsck finds, and what it finds on the way when it repairs that (which is more: it does
    not go into what has a wrong checksum before it has decided what to do about it)."""
    image.write_bytes(raw)
    found = e2fsck(image, "-fn")[1]
    return found + "=== repairing:\n" + e2fsck(image, "-fy")[1]


def in_doubt(said: str) -> set[int]:
    """The inodes that e2fsck says have blocks that others have, too."""
    return {int(number) for number in re.findall(r"Multiply-claimed.*? in inode (\d+)", said)}


def numbers_in(text: str) -> Iterator[int]:
    for first, last in re.findall(r"(\d+)(?:--(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


def free_but_claimed(said: str) -> set[int]:
    """Blocks that some inode has, while the bitmap has them as free."""
    found: set[int] = set()
    for line in re.findall(r"Block bitmap differences:(.*)", said):
        for piece in re.findall(r"\+(\d+|\(\d+--\d+\))", line):
            found.update(numbers_in(piece))
    return found


def shared_blocks(said: str, without: set[int]) -> set[int]:
    """The blocks that belong to two inodes, both of them none of `without`."""
    owners: dict[int, set[int]] = {}
    for inode, line in re.findall(r"Multiply-claimed block\(s\) in inode (\d+):(.*)", said):
        if int(inode) not in without:
            for block in numbers_in(line):
                owners.setdefault(block, set()).add(int(inode))
    return {block for block, inodes in owners.items() if len(inodes) > 1}


def check_not_worse(
    folder: Path, before: bytearray, after: bytearray, named: set[int], where: str
) -> None:
    image = folder / "fs.img"
    said_before = said_of(image, before)
    said_after = said_of(image, after)
    wrong_before = {int(number) for number in re.findall(r"[Ii]node #?(\d+)", said_before)}
    worse = shared_blocks(said_after, wrong_before) - free_but_claimed(said_before)
    assert not worse, f"{where}: blocks {worse} belong to two\n{said_before}\n{said_after}"
    first = repaired(image, before)
    if first is None:
        return
    claimed = free_but_claimed(said_before)
    second = repaired(image, after)
    assert second is not None, f"{where}: cannot be repaired\n{said_before}\n{said_after}"
    doubtful = in_doubt(said_before) | first.owners(claimed)
    excused = named | doubtful
    story = f"{where}; named {sorted(named)}\n{said_before}\n===== after:\n{said_after}"
    for number, found in first.objects.items():
        if number not in excused and number != LOST_AND_FOUND:
            assert second.objects.get(number) == found, f"inode {number}: {story}"
    for (directory, name), number in first.names.items():
        if number in excused or directory in doubtful or directory == LOST_AND_FOUND:
            continue
        if directory not in named or name.startswith(b"k-"):
            assert second.names.get((directory, name)) == number, f"{name!r}: {story}"


# --- the cases ---------------------------------------------------------------------


def run_case(tmp_path: Path, name: str, kind: str, chance: random.Random) -> None:
    raw = bytearray(image_bytes(name))
    structure = damage(structures(name), raw, kind, chance)
    if name in LYING:
        structure.seal(raw)
    before = bytearray(raw)
    where = f"{name}: {kind} at {structure.offset} (block {structure.offset // BLOCK})"
    named: set[int] = set()
    with bounded_time():
        try:
            filesystem = open_ext4(WrittenDevice(raw), "image")
        except (ImageError, VfsError):
            assert raw == before, f"{where}: refused, but changed"
            return
        if filesystem.read_only:
            assert raw == before, f"{where}: served read-only, but changed"
        battery = Battery(filesystem)
        battery.run()
        named = battery.named
        with suppress(VfsError):
            filesystem.close()
    check_not_worse(tmp_path, before, raw, named, where)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", IMAGES)
def test_nothing_gets_worse(tmp_path: Path, name: str, seed: int) -> None:
    chance = random.Random(f"{name} {seed}")
    kinds = structures(name).kinds
    run_case(tmp_path, name, kinds[seed % len(kinds)], chance)


@pytest.mark.parametrize("name", IMAGES)
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """Whatever a structure says how large it is."""
    for seed in range(5):
        chance = random.Random(f"memory {name} {seed}")
        kinds = structures(name).kinds
        raw = bytearray(image_bytes(name))
        structure = damage(structures(name), raw, chance.choice(kinds), chance)
        structure.seal(raw)
        tracemalloc.start()
        with bounded_time():
            with suppress(ImageError, VfsError):
                Battery(open_ext4(WrittenDevice(raw), "image")).run()
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MEMORY_MAX, f"{name}: {structure.kind} {seed}: {peak}"


def test_the_battery_does_something_on_a_sound_image(tmp_path: Path) -> None:
    for name in IMAGES:
        raw = bytearray(image_bytes(name))
        before = bytearray(raw)
        filesystem = open_ext4(WrittenDevice(raw), "image")
        battery = Battery(filesystem)
        battery.run()
        filesystem.close()
        assert battery.done > 145, (name, battery.done)
        image = tmp_path / "fs.img"
        assert "WARNING" not in said_of(image, raw)
        check_not_worse(tmp_path, before, raw, battery.named, name)
