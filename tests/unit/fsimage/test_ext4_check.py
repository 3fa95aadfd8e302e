"""What e2fsck finds clean, we find clean, and count the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4.bits import Bits, in_words, ranges_in
from appliance.fsimage.ext4.check import Report, check, examine
from tests.unit.fsimage.damage import MemoryDevice
from tests.unit.fsimage.ext4_images import debugfs, make_image, run, sample_tree
from tests.unit.fsimage.test_ext4_read import MATRIX


def report_of(image: Path) -> Report:
    device = FileDevice(image)
    try:
        return examine(device, "image")
    finally:
        device.close()


def e2fsck_counts(image: Path) -> str:
    """The numbers in the last line of e2fsck, which has to find nothing wrong."""
    said = run(["e2fsck", "-f", "-n", image]).splitlines()[-1]
    found = re.search(r": (\d+/\d+) files .*, (\d+/\d+) blocks", said)
    assert found, said
    return " ".join(found.groups())


def counts(report: Report) -> str:
    return f"{report.files}/{report.files_max} {report.blocks}/{report.blocks_max}"


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "with a tree"])
@pytest.mark.parametrize("name", MATRIX)
def test_what_mke2fs_makes_is_clean(tmp_path: Path, name: str, populated: bool) -> None:
    size = "100M" if name == "64k" else "24M"
    tree = sample_tree(tmp_path / "tree") if populated else None
    image = make_image(tmp_path / "fs.img", size, *MATRIX[name], tree=tree)
    if name != "mmp":  # with which e2fsck waits for ten seconds whether somebody else comes
        run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
    before = image.read_bytes()
    report = report_of(image)
    assert report.findings == [] and report.clean
    if name != "mmp":
        assert counts(report) == e2fsck_counts(image)
    assert image.read_bytes() == before


def test_extended_attributes_devices_and_shared_blocks_of_attributes(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext4", "-b", "1024")
    value = tmp_path / "value"
    value.write_bytes(b"v" * 700)
    debugfs(
        image,
        "mkdir /d",
        "cd /d",
        "mknod fifo p",
        "mknod char c 5 1",
        "mknod block b 300 70000",
        f"write {value} file",
        "symlink link " + "t" * 100,
        "ea_set /d/file user.short abc",
        f"ea_set -f {value} /d/file user.long",
        f"ea_set -f {value} /d user.long",
    )
    assert report_of(image).findings == []
    assert counts(report_of(image)) == e2fsck_counts(image)


def test_a_directory_of_three_levels(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3000):
        (tree / f"{number:0120d}").touch()
    options = ["-t", "ext4", "-b", "1024", "-O", "large_dir", "-N", "4000"]
    image = make_image(tmp_path / "fs.img", "24M", *options, tree=tree)
    run(["sh", "-c", f"e2fsck -fyD {image} > /dev/null; test $? -le 1"])
    assert report_of(image).findings == []


def test_progress_is_told(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext4")
    seen: list[tuple[str, int, int]] = []
    examine(MemoryDevice(image.read_bytes()), "image", lambda *step: seen.append(step))
    assert [what for what, done, total in seen if done == total] == [
        "groups",
        "inodes",
        "directories",
        "bitmaps",
    ]


def test_a_dirty_journal_is_checked_as_replayed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext4", "-b", "1024")
    # The number of the root's first block, and contents that would be damage.
    block = int(re.findall(r"\d+", run(["debugfs", "-R", "bmap <2> 0", image]))[-1])
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff" * 1024)
    debugfs(image, "jo", f"jw -b {block} {junk}", "jc")
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode in (0, 4)
    before = image.read_bytes()
    report = report_of(image)
    assert any("replayed" in note for note in report.notes)
    assert any(finding.inode == 2 for finding in report.findings)
    assert image.read_bytes() == before


def test_orphans_are_told_but_not_wrong(tmp_path: Path) -> None:
    tree = sample_tree(tmp_path / "tree")
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext4", "-b", "1024", tree=tree)
    inode = re.search(r"Inode: (\d+)", run(["debugfs", "-R", "stat /size-5000", image]))
    assert inode
    debugfs(
        image,
        f"sif <{inode[1]}> links_count 0",
        "unlink /size-5000",
        "unlink /hard",
        f"ssv last_orphan {inode[1]}",
    )
    report = report_of(image)
    assert report.findings == []
    assert report.notes == ["1 inodes are to be deleted or truncated at the next mount"]


# --- sets --------------------------------------------------------------------


@pytest.mark.parametrize("first", range(18))
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17, 30])
def test_ranges_of_bits(first: int, count: int) -> None:
    bits = Bits(64)
    assert not bits.any_in(0, 64)
    assert bits.add_range(first, count)
    inside = list(range(first, first + count))
    assert [n for n in range(64) if n in bits] == inside == list(bits.within(0, 64))
    assert list(bits.ranges(0, 64)) == [(first, first + count - 1)]
    assert not bits.add_range(first + count - 1, 3)
    assert list(ranges_in(0b1011000, 5)) == [(8, 9), (11, 11)]
    other = Bits(64)
    bits.overlap_into(other, first + count // 2, 10)
    assert list(other.within(0, 64)) == [
        n for n in range(first + count // 2, first + count // 2 + 10) if n < first + count + 2
    ]
    for start in range(40):
        assert bits.any_in(start, 9) == any(n in bits for n in range(start, start + 9))


def test_ranges_in_words() -> None:
    assert in_words(iter([(1, 1), (5, 7)])) == "1, 5-7"
    assert in_words((n, n) for n in range(0, 99, 2)) == "0, 2, 4, 6 and more"


def test_an_image_in_memory_can_be_checked(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext2", "-b", "1024")
    assert check(MemoryDevice(image.read_bytes())) == []
