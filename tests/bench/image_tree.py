"""What is in the images that are measured, and how they are made.

Everybody gets a copy of the same one. All of it is written, zeros where nothing else is: so the
host has a place for every block before anything is measured. Another is sparse, as images are that
somebody has just made.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Final

from appliance.limits import MiB

IMAGE_SIZE: Final = "512M"
SPARSE_SIZE: Final = "1G"
OPENED_SIZE: Final = "2G"
BLOCK_BYTES: Final = 4096
MKE2FS: Final = ("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES))
WHOLE: Final = ("-E", "lazy_itable_init=0,lazy_journal_init=0")
"""mke2fs writes all tables, so that the kernel has nothing left to do in the background."""

JOURNAL: Final = ("-J", "size=64")
"""What an image of 4 GiB has."""

SMALL_DIRECTORIES: Final = [b"small-%02d" % number for number in range(100)]
SMALL_NAMES: Final = [b"name-%05d" % number for number in range(100)]
LARGE: Final = b"large"
LARGE_NAMES: Final = [b"name-%05d" % number for number in range(20_000)]
FILE: Final = b"file"
FILE_BYTES: Final = 64 * MiB
STREAM_BYTES: Final = 64 * MiB

LIVE_NAMES: Final = [b"file-%06d" % number for number in range(2048)]
OTHER_NAMES: Final = [b"other-%06d" % number for number in range(2048)]

CROWD_DIRECTORIES: Final = 1000
CROWD_FILES: Final = 1000


def large_names_shuffled() -> list[bytes]:
    names = LARGE_NAMES.copy()
    random.Random(1).shuffle(names)
    return names


def make(image: Path) -> Path:
    """The image of which everybody gets a copy."""
    top = image.with_name("tree")
    for directory in SMALL_DIRECTORIES:
        _touch_all(top / os.fsdecode(directory), SMALL_NAMES)
    _touch_all(top / os.fsdecode(LARGE), LARGE_NAMES)
    with (top / os.fsdecode(FILE)).open("wb") as file:
        for _ in range(FILE_BYTES // MiB):
            file.write(random.randbytes(MiB))
    subprocess.run(["truncate", "-s", IMAGE_SIZE, image], check=True)
    subprocess.run([*MKE2FS, *WHOLE, *JOURNAL, "-d", top, image], check=True)
    # -D gives the large directory its index.
    subprocess.run(["e2fsck", "-fyD", image], check=False, capture_output=True)
    subprocess.run(["rm", "-r", top], check=True)
    return image


def _touch_all(directory: Path, names: list[bytes]) -> None:
    directory.mkdir(parents=True)
    for name in names:
        (directory / os.fsdecode(name)).touch()


def whole_copy(image: Path, to: Path) -> Path:
    """A copy in which every block is written, and in memory."""
    subprocess.run(["cp", "--sparse=never", image, to], check=True)
    return to


def empty(to: Path, size: str, *options: str) -> Path:
    """A sparse image with nothing in it."""
    subprocess.run(["truncate", "-s", size, to], check=True)
    subprocess.run([*MKE2FS, *WHOLE, *options, to], check=True)
    return to


def fill_crowd(top: Path) -> int:
    """A million files below `top`: how many there are, with their directories."""
    for number in range(CROWD_DIRECTORIES):
        directory = os.path.join(top, f"directory-{number:04d}")
        os.mkdir(directory)
        fd = os.open(directory, os.O_RDONLY)
        for at in range(CROWD_FILES):
            os.close(os.open(f"file-{at:04d}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)
    return CROWD_DIRECTORIES * (1 + CROWD_FILES)


def sparse_copy(image: Path, to: Path) -> Path:
    """A copy with the same holes."""
    subprocess.run(["cp", "--sparse=always", image, to], check=True)
    return to
