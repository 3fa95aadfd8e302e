"""`rumpnfsd fsck`: its words, and its exit codes."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import fsck
from appliance.cli import main
from appliance.fsck import Bar
from tests.unit.fsimage.ext4_images import debugfs, make_image, run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "file").write_bytes(b"x" * 3000)
    return make_image(tmp_path / "fs.img", "4M", "-t", "ext4", "-b", "1024", tree=tree)


def test_a_sound_image(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert main(["fsck", str(image)]) == 0
    said = capsys.readouterr()
    counts = run(["e2fsck", "-fn", image]).splitlines()[-1]
    files, blocks = counts.split()[1], counts.split()[-2]
    assert said.out == f"{image}: {files} files, {blocks} blocks\n"
    assert said.err == ""
    assert image.read_bytes() == before


@pytest.mark.parametrize("options", [["-f", "-n"], ["-fn"], ["-n", "--quiet"], ["-q"]])
def test_what_people_type_for_e2fsck(image: Path, options: list[str]) -> None:
    assert main(["fsck", *options, str(image)]) == 0


def test_what_is_wrong_is_one_line_each_and_exit_code_4(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    debugfs(image, "sif /d/file links_count 7", "sif /d/file blocks 99")
    assert main(["fsck", "--quiet", str(image)]) == 4
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("inode ") and "(/d/file): " in line for line in lines)
    assert "50688 bytes of storage" in lines[0] and "7 links, but has 1" in lines[1]
    assert all("(e2fsck would " in line for line in lines)
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode == 4


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 16, "IMAGE"),
        (["a", "b"], 16, "unrecognized"),
        (["--repair", "a"], 16, "--repair"),
        (["-p", "a"], 16, "nothing is repaired here"),
        (["-f", "-y", "a"], 16, "e2fsck repairs"),
        (["--partition", "x", "a"], 16, "invalid int"),
        (["not/there"], 8, "not/there"),
        (["."], 8, "not an image"),
    ],
)
def test_what_cannot_be(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fsck", *words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and told in said.err


def test_what_is_no_file_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "fs.img"
    image.write_bytes(b"XFSB" + bytes(5000))
    assert main(["fsck", str(image)]) == 8
    said = capsys.readouterr().err
    assert "an XFS" in said and "hint: mount it through a loop device" in said


def test_a_compressed_image(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = image.with_suffix(".gz")
    packed.write_bytes(gzip.compress(image.read_bytes()))
    assert main(["fsck", str(packed)]) == 0
    assert capsys.readouterr().out.endswith("blocks\n")
    packed.write_bytes(packed.read_bytes()[:-100])
    assert main(["fsck", str(packed)]) == 8
    said = capsys.readouterr().err
    assert "damaged: it ends in the middle" in said and "hint: gzip -t" in said


def test_a_superblock_that_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a backup in the second group; a small image has none."""
    image = make_image(tmp_path / "large.img", "12M", "-t", "ext4", "-b", "1024")
    small = make_image(tmp_path / "small.img", "4M", "-t", "ext4", "-b", "1024")
    for each in (image, small):
        with each.open("r+b") as file:
            file.seek(1024)
            file.write(bytes(1024))
    assert main(["fsck", str(image)]) == 4
    assert "the superblock cannot be used" in capsys.readouterr().out
    assert main(["fsck", str(small)]) == 8


def test_a_partition(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.img"
    first, count = 2048, image.stat().st_size // 512
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", first, count)
    table = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    disk.write_bytes(table.ljust(first * 512, b"\0") + image.read_bytes())
    assert main(["fsck", "--partition", "1", str(disk)]) == 0
    assert main(["fsck", "--partition", "2", str(disk)]) == 8
    capsys.readouterr()
    assert main(["fsck", str(disk)]) == 8
    said = capsys.readouterr().err
    assert "whole disk" in said and said.endswith(f"hint: name one of them: {disk},partition=1\n")
    assert main(["fsck", f"{disk},partition=1"]) == 0
    assert main(["fsck", f"{disk},partition=2"]) == 8
    oddly_named = tmp_path / "fs,partition=1"
    oddly_named.symlink_to(image)
    assert main(["fsck", str(oddly_named)]) == 0


def test_a_mark_alone_is_no_error(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As for e2fsck -fn, which looks at everything then, and finds nothing."""
    debugfs(image, "ssv state 2")
    assert main(["fsck", str(image)]) == 0
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode == 0
    assert "note: it is marked as having errors" in capsys.readouterr().err


def test_a_check_that_is_interrupted(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fsck, "examine", interrupted)
    assert main(["fsck", str(image)]) == 32
    assert capsys.readouterr().err == "error: interrupted\n"
    monkeypatch.undo()
    assert main(["fsck", str(image)]) == 0  # nothing is locked


def test_as_a_program(image: Path) -> None:
    command = [sys.executable, "-m", "appliance", "fsck", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("blocks\n")


def test_who_reads_no_further_hears_no_complaint(image: Path) -> None:
    """As `rumpnfsd fsck IMAGE | head`."""
    debugfs(image, "sif /d/file links_count 7")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "appliance", "fsck", str(image)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (4, "")


def test_a_bar_is_one_line_that_is_cleared() -> None:
    terminal = io.StringIO()
    bar = Bar(terminal)
    bar.show("inodes", 1, 2)
    bar.show("inodes", 1, 2)
    bar.show("bitmaps", 2, 2)
    bar.clear()
    shown = terminal.getvalue().split("\r")[1:]
    assert shown[0] == f"inodes       |{'=' * 20}{' ' * 20}|  50%"
    assert shown[1] == f"bitmaps      |{'=' * 40}| 100%"
    assert shown[2] == " " * len(shown[1]) and shown[3] == ""
    assert len(shown) == 4
