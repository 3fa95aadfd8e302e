"""Each kind of damage, made on purpose: e2fsck finds it, and so do we, and name it.

The damage is made in an image without checksums (so that nothing else is wrong), or by debugfs,
which computes them again.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.ext4.check import Code, Finding, check, examine
from tests.unit.fsimage.damage import MemoryDevice
from tests.unit.fsimage.ext4_images import debugfs, make_image, run

BLOCK = 1024
SEED = ["-E", "hash_seed=6a1b5c9e-2f0d-4f5e-9a53-0c1d2e3f4a5b"]
"""So that names are in the same leaves of an index each time."""


@cache
def sound(*options: str) -> bytes:
    """An image with some of everything that the damage below needs."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "d" / "sub").mkdir(parents=True)
        (tree / "big").mkdir()
        for number in range(200):
            (tree / "big" / f"a-name-of-some-length-{number:04d}").touch()
        (tree / "file").write_bytes(b"x" * 5000)
        (tree / "other").write_bytes(b"y" * 3000)
        (tree / "long").symlink_to("l" * 200)
        (tree / "short").symlink_to("target")
        with (tree / "many").open("wb") as file:
            for number in range(0, 400, 2):
                file.seek(number * BLOCK)
                file.write(b"%04d" % number * (BLOCK // 4))
        image = make_image(Path(folder) / "fs.img", "12M", "-b", "1024", *SEED, *options, tree=tree)
        debugfs(image, "ea_set /file user.a " + "v" * 300, "ea_set /other user.b c")
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
        return image.read_bytes()


def inode_number(image: Path, path: str) -> int:
    found = re.search(r"Inode: (\d+)", run(["debugfs", "-R", f"stat {path}", image]))
    assert found
    return int(found[1])


def block_of(image: Path, path: str, logical: int = 0) -> int:
    return int(re.findall(r"\d+", run(["debugfs", "-R", f"bmap {path} {logical}", image]))[-1])


def findings(image: Path) -> list[Finding]:
    return check(MemoryDevice(image.read_bytes(), 100_000))


def e2fsck_finds(image: Path) -> bool:
    return subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode != 0


def made(tmp_path: Path, *options: str) -> Path:
    image = tmp_path / "fs.img"
    image.write_bytes(sound(*options))
    assert not findings(image) and not e2fsck_finds(image)
    return image


BY_DEBUGFS = {
    "mode": ("sif /file mode 0170644", "/file", Code.INODE_MODE, "no type"),
    "size too small": ("sif /file size 100", "/file", Code.INODE_SIZE, "100 bytes"),
    "size of a directory": ("sif /d size 5000", "/d", Code.INODE_SIZE, "5000 bytes"),
    "i_blocks": ("sif /file blocks 64", "/file", Code.INODE_BLOCKS, "32768 bytes of storage"),
    "links": ("sif /file links_count 3", "/file", Code.LINK_COUNT, "3 links, but has 1"),
    "links of a directory": ("sif /d links_count 9", "/d", Code.LINK_COUNT, "9 links, but has 3"),
    "dtime": ("sif /file dtime 1234567890", "/file", Code.INODE_FIELD, "deletion"),
    "extra_isize": ("sif /file extra_isize 222", "/file", Code.INODE_FIELD, "222 bytes"),
    "flags": ("sif /file flags 0x10080000", "/file", Code.INODE_FIELD, "inline data"),
    "index of a file": ("sif /file flags 0x81000", "/file", Code.INODE_FIELD, "an index"),
    "extents unsaid": ("sif /file flags 0", "/file", Code.INODE_FIELD, "flags do not say"),
    "faddr": ("sif /file faddr 5", "/file", Code.INODE_FIELD, "fragment"),
    "link text": ("sif /short size 3", "/short", Code.SYMLINK, "3 bytes, but has 6"),
    "long link text": ("sif /long size 100", "/long", Code.SYMLINK, "100 bytes, but has 200"),
    "attribute block": ("sif /file file_acl 999999", "/file", Code.BLOCK_RANGE, "999999"),
    "free blocks of a group": ("set_bg 1 free_blocks_count 7", "", Code.COUNT, "of group 1 is 7"),
    "directories of a group": ("set_bg 0 used_dirs_count 7", "", Code.COUNT, "directories"),
    "block bitmap": ("setb 11000", "", Code.BLOCK_BITMAP, "11000 of group 1 are free, but"),
    "block bitmap, unset": ("freeb 1", "", Code.BLOCK_BITMAP, "blocks 1 of group 0 are in use"),
    "inode bitmap": ("seti <900>", "", Code.INODE_BITMAP, "900 of group 0 are free, but"),
    "inode bitmap, unset": ("freei /file", "", Code.INODE_BITMAP, "are in use, but free"),
    "no name": ("unlink /file", "", Code.UNREACHABLE, "has 1 links, but no name"),
    "no name of a directory": ("unlink /d", "", Code.UNREACHABLE, "directory without a name"),
    "two names of a directory": ("link /d /e", "", Code.ENTRY, "has a name already"),
    "an entry for nothing": ("link <900> /e", "", Code.ENTRY, "for inode 900"),
    "an entry for the root": ("link <2> /e", "", Code.ENTRY, "for the root"),
    "an entry for a reserved inode": ("link <8> /e", "", Code.ENTRY, "cannot be named"),
    "journal": ("sif <8> mode 0", "", Code.JOURNAL, "which is no file"),
    "resize inode": ("sif <7> block[0] 5000", "", Code.RESIZE_INODE, "double indirect"),
}


@pytest.mark.parametrize("kind", BY_DEBUGFS)
def test_damage_with_right_checksums(tmp_path: Path, kind: str) -> None:
    command, path, code, text = BY_DEBUGFS[kind]
    image = made(tmp_path, "-t", "ext4")
    inode = inode_number(image, path) if path else 0
    debugfs(image, command)
    assert e2fsck_finds(image)
    found = findings(image)
    assert any(
        f.code is code and text in f.text and f.inode in (inode or f.inode,) for f in found
    ), [str(f) for f in found]
    if path:
        assert {f.path for f in found if f.inode == inode} <= {path, ""}


def test_a_list_of_orphans_that_cannot_be(tmp_path: Path) -> None:
    """e2fsck looks at it only when it may repair it."""
    image = made(tmp_path, "-t", "ext4")
    debugfs(image, "ssv last_orphan 5")
    assert [finding.code for finding in findings(image)] == [Code.ORPHAN]
    repaired = subprocess.run(["e2fsck", "-fy", image], capture_output=True, text=True, check=False)
    assert "Illegal orphaned inode 5" in repaired.stdout
    assert findings(image) == []


def test_what_is_free_in_all_is_only_noted(tmp_path: Path) -> None:
    """The kernel does not keep these counts up to date; e2fsck corrects them in silence."""
    image = made(tmp_path, "-t", "ext4")
    debugfs(image, "ssv free_blocks_count 77", "ssv free_inodes_count 78")
    assert not e2fsck_finds(image)
    report = examine(MemoryDevice(image.read_bytes(), 100_000), "image")
    assert report.clean
    assert len(report.notes) == 1 and "77 free blocks and 78 free inodes" in report.notes[0]
