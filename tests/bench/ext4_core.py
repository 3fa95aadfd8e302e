"""How fast is the ext4 reader, and how fast is the kernel's through a loop device? Best of some
rounds, everything in memory; run it as a script.

    python -m tests.bench.ext4_core            (root, for the kernel's column)

Every line has its target; what misses it is marked. "uncached" means that our own caches are empty,
while the image is in the host's memory, which is what a server that was just started finds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

from appliance.fsimage.image import open_image
from appliance.vfs.interface import FileSystem, Node

SMALL, LARGE = 100, 20_000
FILE_BYTES = 512 << 20
MiB = 1 << 20
ROUNDS = 5
READ_SIZES = (4096, 65536, MiB)


def make(image: Path, top: Path) -> None:
    """2 GiB: a file, a directory of 1,000 names, one of 100, and an indexed one of 20,000."""
    for name, count in (("small", SMALL), ("thousand", 1000), ("large", LARGE)):
        (top / name).mkdir(parents=True)
        for number in range(count):
            (top / name / f"name-{number:05d}").touch()
    with (top / "file").open("wb") as file:
        for _ in range(FILE_BYTES // MiB):
            file.write(random.randbytes(MiB))
    subprocess.run(["truncate", "-s", "2G", image], check=True)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", top, image], check=True)
    # -D gives the large directory its index.
    subprocess.run(["e2fsck", "-fyD", image], check=False, capture_output=True)


def best(action: Callable[[], int], before: Callable[[], None] = lambda: None) -> float:
    """Seconds for one of what `action` does several of."""
    found = float("inf")
    for _ in range(ROUNDS):
        before()
        start = perf_counter()
        count = action()
        found = min(found, (perf_counter() - start) / count)
    return found


# --- ours --------------------------------------------------------------------


class Ours:
    """Our reader of one image."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._filesystem = self._open()

    def _open(self) -> FileSystem:
        return open_image(str(self._image))

    def reopen(self) -> None:
        self._filesystem.close()
        self._filesystem = self._open()
        self._large = self._child(b"large")
        self._small = self._child(b"small")
        self._thousand = self._child(b"thousand")
        self._file = self._child(b"file")

    def _child(self, name: bytes) -> Node:
        return self._filesystem.root().lookup(name)

    def measure(self) -> dict[str, float]:
        self.reopen()
        found = {"open": best(self._open_once)}
        found["attributes, cached"] = best(self._attributes)
        small = [b"name-%05d" % number for number in range(SMALL)]
        large = [b"name-%05d" % number for number in range(LARGE)]
        random.Random(1).shuffle(large)
        found["lookup, uncached, of 100"] = best(
            lambda: self._lookup(self._small, small), self.reopen
        )
        found["lookup, uncached, of 20,000"] = best(
            lambda: self._lookup(self._large, large), self.reopen
        )
        found["lookup, cached"] = best(lambda: self._lookup(self._small, small * 100))
        found["listing, 1,000 with nodes, cold"] = best(self._list, self.reopen)
        found["listing, 1,000 with nodes, warm"] = best(self._list)
        for size in READ_SIZES:
            found[f"read {size >> 10}K"] = best(partial(self._read, size))
        return found

    def _open_once(self) -> int:
        self._open().close()
        return 1

    def _attributes(self) -> int:
        node = self._file
        for _ in range(20_000):
            node.attributes()
        return 20_000

    @staticmethod
    def _lookup(directory: Node, names: list[bytes]) -> int:
        lookup = directory.lookup
        for name in names:
            lookup(name).attributes()
        return len(names)

    def _list(self) -> int:
        entries = self._thousand.entries(0, 1000)
        assert all(entry.node for entry in entries)
        return 1

    def _read(self, size: int) -> int:
        read = self._file.read
        count = min(5000, FILE_BYTES // size)
        for number in range(count):
            read(number * size, size)
        return count


# --- the kernel's ------------------------------------------------------------


class Kernel:
    """The same, through system calls, of what is mounted at `top`."""

    def __init__(self, top: str) -> None:
        self._small = [f"{top}/small/name-{number:05d}" for number in range(SMALL)]
        self._large = [f"{top}/large/name-{number:05d}" for number in range(LARGE)]
        random.Random(1).shuffle(self._large)
        self._thousand = f"{top}/thousand"
        self._file = os.open(f"{top}/file", os.O_RDONLY)

    def measure(self) -> dict[str, float]:
        found = {"attributes, cached": best(self._attributes)}
        found["lookup, uncached, of 100"] = best(lambda: self._stat(self._small), self._drop)
        found["lookup, uncached, of 20,000"] = best(lambda: self._stat(self._large), self._drop)
        found["lookup, cached"] = best(lambda: self._stat(self._small * 100))
        found["listing, 1,000 with nodes, cold"] = best(self._list, self._drop)
        found["listing, 1,000 with nodes, warm"] = best(self._list)
        for size in READ_SIZES:
            found[f"read {size >> 10}K"] = best(partial(self._read, size))
        return found

    @staticmethod
    def _drop() -> None:
        Path("/proc/sys/vm/drop_caches").write_text("2")

    def _attributes(self) -> int:
        for _ in range(20_000):
            os.fstat(self._file)
        return 20_000

    @staticmethod
    def _stat(paths: list[str]) -> int:
        for path in paths:
            os.lstat(path)
        return len(paths)

    def _list(self) -> int:
        with os.scandir(self._thousand) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
        return 1

    def _read(self, size: int) -> int:
        count = min(5000, FILE_BYTES // size)
        for number in range(count):
            os.preadv(self._file, [bytearray(size)], number * size)
        return count


def kernel_beside(image: Path, mountpoint: Path) -> dict[str, float]:
    """The kernel's figures for `image`, in a mount namespace of its own; nothing without root."""
    if os.geteuid():
        return {}
    mountpoint.mkdir()
    ours = f"{sys.executable} -m tests.bench.ext4_core --kernel {mountpoint}"
    script = f"mount -t ext4 -o loop,ro,noload {image} {mountpoint} && {ours}; umount {mountpoint}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


# --- the table ---------------------------------------------------------------

US = 1e-6
TARGETS = {
    "open": 5000 * US,
    "attributes, cached": 1 * US,
    "lookup, uncached, of 100": 10 * US,
    "lookup, uncached, of 20,000": 25 * US,
    "lookup, cached": 1 * US,
    "listing, 1,000 with nodes, warm": 500 * US,
    "read 64K": 65536 / 5e9,
    "read 1024K": MiB / 5e9,
}


def figure(name: str, seconds: float) -> str:
    if name.startswith("read "):
        return f"{int(name[5:-1]) * 1024 / seconds / 1e9:8.2f} GB/s"
    return f"{seconds / US:10.2f} us"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "fs.img"
        make(image, Path(folder) / "tree")
        ours = Ours(image).measure()
        theirs = kernel_beside(image, Path(folder) / "mnt")
    print(f"{'':36}{'ours':>13}{'kernel':>15}{'target':>15}")
    for name, seconds in ours.items():
        columns = [figure(name, seconds)]
        columns.append(figure(name, theirs[name]) if name in theirs else "")
        target = TARGETS.get(name)
        columns.append(figure(name, target) if target else "")
        missed = "  MISSED" if target and seconds > target else ""
        print(f"{name:36}" + "".join(f"{column:>15}" for column in columns)[2:] + missed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--kernel"]:
        sys.stdout.write(json.dumps(Kernel(sys.argv[2]).measure()))
    else:
        main()
