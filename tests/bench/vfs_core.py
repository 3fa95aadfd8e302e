"""How fast is the file system layer? Microseconds of processor time, best of some rounds; a script.

    python -m tests.bench.vfs_core [DIRECTORY]          (DIRECTORY: where to put a host directory)

The file system in memory has targets, and what misses one is marked. A host directory is measured
beside it, with the kernel's handles (as root) and with the map of identities; there the host's
kernel takes most of the time.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from time import process_time

from appliance.clock import SystemClock
from appliance.limits import KiB, MiB
from appliance.vfs import handles
from appliance.vfs.access import Credential
from appliance.vfs.hostdir import HostDirectory
from appliance.vfs.interface import FileSystem, FileType, NewNode
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.user import User

ROUNDS = 5
ROUND_SECONDS = 0.05
SEGMENT_BYTES = 64 * KiB - 96  # what one super-frame brings of a WRITE
FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)


@dataclass
class Line:
    """One thing to measure, and how long it may take in memory."""

    name: str
    target_us: float | None
    run: Callable[[], object]


def lines(filesystem: FileSystem) -> Iterator[Line]:
    """What is measured, on a directory of 1,000 files and a file of 1 MiB."""
    user = User(Credential(1000, 1000), clock=SystemClock())
    root_user = User(Credential(0, 0), clock=SystemClock())
    top = root_user.mkdir(filesystem.root(), b"top")
    listed = root_user.mkdir(top, b"listed")
    for number in range(1000):
        root_user.create(listed, b"file-%04d" % number)
    file = root_user.create(top, b"file")
    pieces = [bytes(SEGMENT_BYTES)] * (MiB // SEGMENT_BYTES) + [bytes(MiB % SEGMENT_BYTES)]
    page = [bytes(4 * KiB)]
    file.write(0, pieces)
    wire = handles.encode(1, file)
    crowd = root_user.mkdir(top, b"crowd")
    numbers = count()

    def create_and_remove() -> None:
        crowd.create(b"file", FILE)
        crowd.remove(b"file")

    yield Line("attributes", 0.15, file.attributes)
    yield Line("lookup", 0.5, lambda: listed.lookup(b"file-0500"))
    yield Line("lookup by a user", 1.5, lambda: user.lookup(listed, b"file-0500"))
    yield Line("handle to node", 1.5, lambda: filesystem.resolve(handles.decode(wire).node_handle))
    yield Line("list 1,000 entries", 60, lambda: listed.entries(0, 1002))
    yield Line("write 1 MiB, nobody reads", 350, lambda: file.write(0, pieces))
    yield Line("write 4 KiB", 6, lambda: file.write(64 * KiB, page))
    yield Line("read 4 KiB", 3, lambda: file.read(64 * KiB, 4 * KiB))
    yield Line("read 1 MiB", 20, lambda: file.read(0, MiB))
    yield Line("read and write 1 MiB", None, lambda: (file.read(0, MiB), file.write(0, pieces)))
    yield Line("create", 6.7, lambda: crowd.create(b"%d" % next(numbers), FILE))
    yield Line("create by a user", 20, lambda: root_user.create(crowd, b"%d" % next(numbers)))
    yield Line("create and remove", None, create_and_remove)


def microseconds(run: Callable[[], object]) -> float:
    """The best of some rounds."""
    run()
    begin = process_time()
    run()
    repetitions = max(1, int(ROUND_SECONDS / max(process_time() - begin, 1e-7)))
    best = float("inf")
    for _ in range(ROUNDS):
        begin = process_time()
        for _ in range(repetitions):
            run()
        best = min(best, (process_time() - begin) / repetitions)
    return best * 1e6


def table(title: str, filesystem: FileSystem, *, targets: bool) -> None:
    print(f"\n{title}\n")
    for line in lines(filesystem):
        taken = microseconds(line.run)
        target = f"{line.target_us:8.2f}" if targets and line.target_us else " " * 8
        missed = targets and line.target_us is not None and taken > line.target_us
        print(f"{line.name:28}{taken:10.2f} us {target}{'  MISSED' if missed else ''}")


def main(place: str | None) -> None:
    memory = MemoryFileSystem(1 << 32, fsid=1, clock=SystemClock(), random=random.Random(1))
    table("memory", memory, targets=True)
    for kernel_handles in (True, False):
        with tempfile.TemporaryDirectory(dir=place) as path:
            host = HostDirectory(path, kernel_handles=kernel_handles)
            title = f"host directory, {type(host.identities).__name__}"
            table(title, host, targets=False)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
