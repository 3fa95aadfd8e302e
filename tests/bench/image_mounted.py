"""The same image, used through system calls, mounted by somebody else: by the kernel, through a
loop device, or by fuse2fs.

Who waits for nothing but its answers: the kernel's work for a system call is the processor time of
the caller, and that of fuse2fs is added to it. (What the kernel does later, in threads of its own,
is in nobody's figures.)
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final

from appliance.limits import KiB
from tests.bench import image_tree as tree
from tests.bench.image_ours import PIECE, Samples
from tests.bench.measuring import Sample, Timer, cpu_of

MOUNT_SECONDS_MAX: Final = 10.0
CHANGED: Final = 0o600


class Mounted:
    """One image, mounted at `top`."""

    name: str
    names_max: int | None = None
    """So many names in the large directory are enough."""

    def __init__(self, top: Path, timer: Timer) -> None:
        self._top: Final = os.fsencode(top)
        self._timer: Final = timer
        self._rounds = 0

    def close(self) -> None:
        subprocess.run(["umount", self._top], check=True)

    def path(self, *names: bytes) -> bytes:
        return b"/".join((self._top, *names))

    # Looking.

    def look(self) -> Samples:
        names = tree.SMALL_NAMES
        paths = [self.path(each, name) for each in tree.SMALL_DIRECTORIES for name in names]
        large = [self.path(tree.LARGE, name) for name in tree.large_names_shuffled()]
        large = large[: self.names_max]

        def stat(some: list[bytes]) -> Callable[[], int]:
            def act() -> int:
                lstat = os.lstat
                for path in some:
                    lstat(path)
                return len(some)

            return act

        _forget()
        for each in (*tree.SMALL_DIRECTORIES, tree.LARGE):
            os.lstat(self.path(each))
        found = {
            "LOOKUP, uncached, directories of 100": self._timer(stat(paths)),
            "LOOKUP, uncached, a directory of 20,000": self._timer(stat(large)),
            "LOOKUP, cached": self._timer(stat(paths)),
        }
        fd = os.open(paths[0], os.O_RDONLY)

        def attributes() -> int:
            for _ in range(50_000):
                os.fstat(fd)
            return 50_000

        found["GETATTR, cached"] = self._timer(attributes)
        os.close(fd)
        _forget()
        found["list with attributes, uncached"] = self._timer(self._list)
        found["list with attributes, cached"] = self._timer(self._list)
        return found

    def _list(self) -> int:
        count = 0
        with os.scandir(self.path(tree.LARGE)) as entries:
            for entry in islice(entries, self.names_max):
                entry.stat(follow_symlinks=False)
                count += 1
        return count

    def read(self) -> Samples:
        fd = os.open(self.path(tree.FILE), os.O_RDONLY)
        size = tree.FILE_BYTES
        offsets = [at * 4 * KiB for at in range(size // (4 * KiB))]
        some = random.Random(1).sample(offsets, 5000)

        def in_order() -> int:
            for offset in range(0, size, PIECE):
                os.preadv(fd, [bytearray(PIECE)], offset)
            return size // PIECE

        def here_and_there() -> int:
            for offset in some:
                os.preadv(fd, [bytearray(4 * KiB)], offset)
            return len(some)

        in_order()  # what the kernel has in memory is not what was read through another mount
        found = {
            "READ 64 KiB, warm": self._timer(in_order, size),
            "READ 4 KiB, here and there": self._timer(here_and_there),
        }
        os.close(fd)
        return found

    # Data.

    def write(self) -> Samples:
        path = self.path(b"stream")
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        found = {
            "WRITE 64 KiB, new blocks": self._stream(fd),
            "WRITE 64 KiB, overwriting": self._stream(fd),
        }
        os.close(fd)
        os.unlink(path)
        return found

    def write_sparse(self) -> Samples:
        self._rounds += 1
        fd = os.open(self.path(b"sparse-%d" % self._rounds), os.O_RDWR | os.O_CREAT)
        found = {"WRITE 64 KiB, new blocks, sparse image": self._stream(fd)}
        os.close(fd)
        return found

    def _stream(self, fd: int) -> Sample:
        data, size = [bytes(PIECE)], tree.STREAM_BYTES

        def stream() -> int:
            for offset in range(0, size, PIECE):
                os.pwritev(fd, data, offset)
            return size // PIECE

        sample = self._timer(stream, size)
        os.fsync(fd)
        return sample

    # Names.

    def live(self, group: int) -> Samples:
        """Nobody waits for anything: the kernel commits when it likes."""
        if group > 1:
            return {}
        top = self._new_directory()
        names = [top + b"/" + name for name in tree.LIVE_NAMES]
        others = [top + b"/" + name for name in tree.OTHER_NAMES]

        def each(act: Callable[[int], object]) -> Sample:
            def run() -> int:
                for at in range(len(names)):
                    act(at)
                return len(names)

            return self._timer(run)

        found = {
            "create, alone": each(lambda at: os.close(_create(names[at]))),
            "setattr, alone": each(lambda at: os.chmod(names[at], CHANGED)),
            "rename, alone": each(lambda at: os.rename(names[at], others[at])),
            "unlink, alone": each(lambda at: os.unlink(others[at])),
        }
        os.rmdir(top)
        return found

    def _new_directory(self) -> bytes:
        self._rounds += 1
        top = self.path(b"new-%d" % self._rounds)
        os.mkdir(top)
        return top

    # What is durable.

    def last(self, clients: int, count: int) -> Samples:
        """Each change is followed by fsync, of the file and of its directory, as it needs it."""
        top = self._new_directory()
        directory = os.open(top, os.O_RDONLY)
        names = [top + b"/" + name for name in tree.LIVE_NAMES[:count]]
        others = [top + b"/" + name for name in tree.OTHER_NAMES[:count]]

        def create(at: int) -> None:
            fd = _create(names[at])
            os.fsync(fd)
            os.close(fd)
            os.fsync(directory)

        def change(at: int) -> None:
            fd = os.open(names[at], os.O_RDONLY)
            os.fchmod(fd, CHANGED)
            os.fsync(fd)
            os.close(fd)

        def rename(at: int) -> None:
            os.rename(names[at], others[at])
            os.fsync(directory)

        def unlink(at: int) -> None:
            os.unlink(others[at])
            os.fsync(directory)

        with ThreadPoolExecutor(clients) as pool:

            def each(act: Callable[[int], None]) -> Sample:
                def some(first: int) -> None:
                    for at in range(first, count, clients):
                        act(at)

                def run() -> int:
                    list(pool.map(some, range(clients)))
                    return count

                return self._timer(run)

            found = {
                "create": each(create),
                "setattr": each(change),
                "rename": each(rename),
                "unlink": each(unlink),
            }
        os.close(directory)
        return {f"{what}, durable, {clients} at a time": s for what, s in found.items()}


def _forget() -> None:
    """Let the kernel forget names and inodes, but not blocks."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def _create(path: bytes) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)


class Kernel(Mounted):
    """The kernel's ext4 on a loop device."""

    name = "kernel"

    def __init__(self, image: Path, top: Path) -> None:
        subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, top], check=True)
        super().__init__(top, Timer())


class Fuse2fs(Mounted):
    """e2fsprogs' fuse2fs: a process that has the image, and no journal."""

    name = "fuse2fs"
    names_max = 500  # it looks through the whole directory for each

    def __init__(self, image: Path, top: Path) -> None:
        self._process: Final = subprocess.Popen(
            ["fuse2fs", "-f", image, top], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + MOUNT_SECONDS_MAX
        while not os.path.ismount(top):
            assert self._process.poll() is None and time.monotonic() < end, "fuse2fs did not start"
            time.sleep(0.01)
        super().__init__(top, Timer(self._cpu))

    def _cpu(self) -> float:
        return time.process_time() + cpu_of(self._process.pid)

    def close(self) -> None:
        super().close()
        self._process.wait(60)


def mounted(image: Path, top: Path) -> Sample:
    """How long it takes the kernel, mount(8) included."""
    top.mkdir(exist_ok=True)

    def act() -> int:
        subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, top], check=True)
        return 1

    sample = Timer()(act)
    subprocess.run(["umount", top], check=True)
    return sample
