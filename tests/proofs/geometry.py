"""The kinds of images that the proofs run on: small, so that every border is near; and what has to
be true of one after whatever happened to it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from appliance.clock import Clock
from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.check import examine
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.vfs.interface import FileSystem
from tests.interop.loop_worker import run_worker
from tests.unit.fsimage.ext4_images import make_image, view

HASH_SEED = "3c1f0e7a-5b2d-4c69-8a10-7d5e3f2b1a90"
"""So that every run has its names in the same order."""

SMALL_EXT4 = ["-t", "ext4", "-b", "1024", "-J", "size=1"]

GEOMETRIES: dict[str, tuple[str, list[str]]] = {
    "ext4-1k": ("16M", SMALL_EXT4),
    "ext4-2k": ("32M", ["-t", "ext4", "-b", "2048", "-J", "size=2"]),
    "ext4-4k": ("64M", ["-t", "ext4", "-b", "4096", "-J", "size=4"]),
    "ext4-upstream": ("16M", [*SMALL_EXT4, "-O", "metadata_csum_seed,orphan_file"]),
    "ext4-large-dir": ("16M", [*SMALL_EXT4, "-O", "large_dir", "-I", "512"]),
    "ext4-old-checksums": ("16M", [*SMALL_EXT4, "-O", "^metadata_csum,uninit_bg,^64bit"]),
    "ext4-no-extents": ("16M", [*SMALL_EXT4, "-O", "^extent,^64bit,^dir_index"]),
    "ext4-groups": ("16M", [*SMALL_EXT4, "-g", "2048", "-G", "2", "-N", "2048"]),
    "ext3-1k": ("16M", ["-t", "ext3", "-b", "1024", "-J", "size=1", "-I", "128"]),
    "ext3-4k": ("64M", ["-t", "ext3", "-b", "4096", "-J", "size=4"]),
    "ext2-1k": ("16M", ["-t", "ext2", "-b", "1024", "-I", "128"]),
    "ext4-tiny": ("3M", [*SMALL_EXT4, "-N", "64", "-m", "0"]),
    "ext2-tiny": ("1M", ["-t", "ext2", "-b", "1024", "-N", "64", "-m", "0"]),
    "ext2-4k": ("64M", ["-t", "ext2", "-b", "4096"]),
}
"""By name: how large, and what mke2fs is told."""


def block_bytes(name: str) -> int:
    options = GEOMETRIES[name][1]
    return int(options[options.index("-b") + 1])


def make(name: str, path: Path) -> Path:
    """A new image of this geometry."""
    size, options = GEOMETRIES[name]
    return make_image(path, size, "-E", f"root_owner=0:0,hash_seed={HASH_SEED}", *options)


def copied(template: Path, path: Path) -> Path:
    """Another one like it, as sparse as it is."""
    subprocess.run(["cp", "--sparse=always", template, path], check=True)
    return path


def open_rw(image: Path, clock: Clock | None = None) -> FileSystem:
    """The file system in an image, to be changed."""
    device = FileDevice(image, read_only=False)
    try:
        filesystem = open_ext4(device, image.name, durability=Durability.PROCESS, clock=clock)
    except BaseException:
        device.close()
        raise
    assert not filesystem.read_only
    return filesystem


def judge(image: Path, filesystem: FileSystem | None = None) -> None:
    """Close the file system: e2fsck and our own check find nothing, and the kernel sees in the
    image what we saw, in every particular."""
    ours = None if filesystem is None else view(filesystem)
    if filesystem is not None:
        filesystem.close()
    sound(image)
    if ours is None:
        return
    kernel = run_worker(image, "ro", "view")["objects"]
    assert ours.keys() == kernel.keys()
    for path, found in kernel.items():
        known = ours[path]
        for each in (known, found):
            # The kernel lists a directory in the order of its blocks if it has several without
            # an index, as lost+found; we list it by hashes, then, too.
            each.get("names", []).sort()
        differing = {key: (known.get(key), found[key]) for key in found if known[key] != found[key]}
        assert not differing, f"{bytes.fromhex(path)!r}: {differing}"


def sound(image: Path) -> None:
    """Nothing is to be repaired in an image that is not in use."""
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    device = FileDevice(image)
    try:
        report = examine(device, str(image))
        assert report.clean, "\n".join(map(str, report.findings))
    finally:
        device.close()


def sound_after_replay(image: Path, scratch: Path) -> None:
    """The same of an image that was left in the middle of something: its journal is replayed in a
    copy by e2fsck, which then finds nothing that it has to repair."""
    shutil.copyfile(image, scratch)
    done = subprocess.run(["e2fsck", "-p", scratch], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    sound(scratch)
    scratch.unlink()
