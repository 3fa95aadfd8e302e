"""Walk through everything in an image, as a client with `find -ls` does, and say what that took.

    python -m tests.bench.image_walk IMAGE [PART]

It prints how many there were, seconds, and bytes of memory at the end and at the beginning. In a
process of its own, so that the memory is that of the walk: with the interpreter, everything that
was imported, and all caches as full as they get; with PART, caches of that part of their size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance import image_limits
from appliance.fsimage.image import open_image
from appliance.limits import KiB
from appliance.vfs.interface import Attributes, FileType, Node
from tests.bench.image_ours import LISTED


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk took."""

    count: int
    seconds: float
    memory_bytes: int
    memory_before: int


def walk(top: Node) -> Iterator[Attributes]:
    """The attributes of everything below `top`."""
    directories = [top]
    while directories:
        directory = directories.pop()
        cookie = 0
        while entries := directory.entries(cookie, LISTED):
            cookie = entries[-1].cookie
            for entry in entries:
                assert entry.node is not None
                if entry.name in (b".", b".."):
                    continue
                attributes = entry.node.attributes()
                if attributes.type is FileType.DIRECTORY:
                    directories.append(entry.node)
                yield attributes


def memory_bytes() -> int:
    """The most that this process has had."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * KiB


CACHES: Final = (
    "METADATA_CACHE_BYTES_MAX",
    "GROUPS_CACHE_MAX",
    "BLOCK_MAP_CACHE_EXTENTS_MAX",
    "NODE_CACHE_MAX",
    "NAME_CACHE_MAX",
    "DIRECTORY_CACHE_ENTRIES_MAX",
    "DIRECTORY_ROOM_BYTES_MAX",
    "NAME_HASHES_MAX",
)
"""What bounds the memory of an image."""


def main(image: str, part: int = 1) -> None:
    for name in CACHES:
        setattr(image_limits, name, getattr(image_limits, name) // part)
    filesystem = open_image(image, read_only=False)
    filesystem.root().attributes()
    before = memory_bytes()
    begin = time.process_time()
    count = sum(1 for _ in walk(filesystem.root()))
    seconds = time.process_time() - begin
    # Not closed: nobody else needs the image, and what counts has been counted.
    print(json.dumps([count, seconds, memory_bytes(), before]))


def walk_of(image: Path, part: int = 1) -> Walk:
    """The walk through `image`, in another process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.image_walk", image, str(part)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return Walk(*json.loads(done.stdout))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
