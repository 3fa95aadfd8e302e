"""Our reader against the kernel: the same image, mounted through a loop device, says the same.

The kernel fills each image with one of everything, so that what is read here was made by it:
indexes of directories, extent trees, unwritten extents. Every attribute, byte, name and the order
of names is compared.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice, Overlay
from appliance.fsimage.ext4 import journal
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from tests.interop.loop_worker import run_worker
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, open_ro, view

pytestmark = pytest.mark.root

MATRIX = {
    "ext4-4k": ["-t", "ext4", "-b", "4096"],
    "ext4-small": ["-t", "ext4", "-b", "1024"],
    "ext4-2k": ["-t", "ext4", "-b", "2048"],
    "ext4-upstream": ["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
    "ext4-32bit": ["-t", "ext4", "-b", "4096", "-O", "^64bit"],
    "ext4-no-csum": ["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
    "ext4-uninit-bg": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    "ext4-no-extents": ["-t", "ext4", "-b", "1024", "-O", "^extent,^64bit"],
    "ext4-large-dir": ["-t", "ext4", "-b", "1024", "-O", "large_dir"],
    "ext4-inline": ["-t", "ext4", "-b", "4096", "-O", "inline_data"],
    "ext4-no-index": ["-t", "ext4", "-b", "4096", "-O", "^dir_index"],
    "ext4-meta-bg": ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
    "ext4-bigalloc": ["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
    "ext4-sparse2": ["-t", "ext4", "-b", "1024", "-O", "sparse_super2"],
    "ext4-inode-512": ["-t", "ext4", "-b", "4096", "-I", "512"],
    "ext4-inode-128": ["-t", "ext4", "-b", "4096", "-I", "128"],
    "ext4-old-types": ["-t", "ext4", "-b", "4096", "-O", "^filetype,^huge_file,^dir_nlink"],
    "ext3-4k": ["-t", "ext3", "-b", "4096", "-I", "256"],
    "ext3-1k-128": ["-t", "ext3", "-b", "1024", "-I", "128"],
    "ext2-1k": ["-t", "ext2", "-b", "1024", "-I", "128"],
    "ext2-4k": ["-t", "ext2", "-b", "4096"],
    "ext2-no-index": [
        "-t",
        "ext2",
        "-b",
        "2048",
        "-O",
        "^dir_index,^filetype,^sparse_super,^resize_inode",
    ],
}


@pytest.mark.parametrize("name", MATRIX)
def test_the_kernel_sees_the_same(tmp_path: Path, name: str) -> None:
    image = make_image(tmp_path / "fs.img", "120M", "-N", "9000", *MATRIX[name])
    run_worker(image, "rw", "populate")
    e2fsck(image)
    compare(image)


@pytest.mark.parametrize("version", ["legacy", "half_md4", "tea"])
@pytest.mark.parametrize("sign", ["signed", "unsigned"])
def test_every_hash(tmp_path: Path, version: str, sign: str) -> None:
    """Characters above 127 are what the signs differ in; "unicode" is an indexed directory."""
    image = make_image(tmp_path / "fs.img", "64M", "-t", "ext4", "-b", "1024", "-N", "9000")
    number = ["legacy", "half_md4", "tea"].index(version)
    flags = {"signed": 1, "unsigned": 2}[sign]
    debugfs(image, f"set_super_value def_hash_version {number}", f"set_super_value flags {flags}")
    run_worker(image, "rw", "populate")
    compare(image)


def compare(image: Path) -> None:
    """The kernel and we say the same of `image`; and it is not changed by either."""
    before = image_digest(image)
    kernel = run_worker(image, "ro,noload", "view")
    filesystem = open_ro(image)
    ours = view(filesystem)
    statistics = filesystem.statistics()
    filesystem.close()
    assert ours.keys() == kernel["objects"].keys()
    for path, found in kernel["objects"].items():
        assert ours[path] == found, bytes.fromhex(path)
    blocks, free, files, free_files, block_bytes = kernel["statistics"]
    assert statistics.total_bytes == blocks * block_bytes
    assert statistics.free_bytes == free * block_bytes
    assert (statistics.total_files, statistics.free_files) == (files, free_files)
    assert image_digest(image) == before


def image_digest(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- journals ----------------------------------------------------------------

JOURNALS = {
    "default": (["-t", "ext4", "-b", "4096"], "rw"),
    "1k": (["-t", "ext4", "-b", "1024"], "rw"),
    "seed-orphan-file": (["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"], "rw"),
    "no-checksum": (["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"], "rw"),
    "checksum-v1": (["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"], "rw,journal_checksum"),
    "async": (
        ["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
        "rw,data=writeback,journal_async_commit",
    ),
    "32bit": (["-t", "ext4", "-b", "4096", "-O", "^64bit"], "rw"),
    "data-journal": (["-t", "ext4", "-b", "4096"], "rw,data=journal"),
    "ext3": (["-t", "ext3", "-b", "4096"], "rw"),
    "wrapped": (["-t", "ext4", "-b", "1024", "-J", "size=1"], "rw"),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_left_by_the_kernel(tmp_path: Path, name: str) -> None:
    options, mount_options = JOURNALS[name]
    image = make_image(tmp_path / "fs.img", "64M", "-N", "4096", *options)
    crashed = tmp_path / "crashed.img"
    run_worker(image, mount_options, "crash", str(crashed))
    assert needs_recovery(crashed)

    before = image_digest(crashed)
    filesystem = open_ro(crashed)
    ours = view(filesystem)
    filesystem.close()
    assert image_digest(crashed) == before

    replayed = replay(crashed, tmp_path / "replayed.img")
    assert not needs_recovery(replayed)
    shutil.copyfile(crashed, image)
    kernel = run_worker(image, "rw,noatime", "view")
    assert ours == kernel["objects"]
    e2fsck_but_orphans(replayed)


def needs_recovery(image: Path) -> bool:
    device = FileDevice(image)
    found = Superblock.read(device).needs_recovery
    device.close()
    return found


def replay(crashed: Path, replayed: Path) -> Path:
    """The image as our recovery sees it."""
    device = FileDevice(crashed)
    superblock = Superblock.read(device)
    overlay = Overlay(device, superblock.block_bytes)
    journal.recover(Volume(device, superblock, "crashed"), overlay)
    shutil.copyfile(crashed, replayed)
    with replayed.open("r+b") as file:
        for offset, block in overlay.changes():
            file.seek(offset)
            file.write(block)
    device.close()
    return replayed


def e2fsck_but_orphans(image: Path) -> None:
    """What was deleted while it was open is still there, in the list of orphans, as in the image of
    any crash. Nothing else is to be found."""
    said = subprocess.run(["e2fsck", "-p", image], capture_output=True, text=True, check=False)
    assert said.returncode <= 1, said.stdout
    expected = ("orphan", "cleared.", ": clean, ", "features different from backup", " files (")
    for line in said.stdout.splitlines():
        assert any(words in line.lower() for words in expected), line
    e2fsck(image)
