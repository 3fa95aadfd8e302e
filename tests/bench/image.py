"""How fast is the file system layer on an image, and how fast are the kernel and fuse2fs on one?

    python -m tests.bench.image [--place FOLDER] [--rounds N] [PART ...]        (root)

PART: look, read, write, sparse, live, last, open, walk (default: all). All three have copies of the
same image, side by side on the disk that FOLDER is on, work on the same core, and take turns. The
columns are the best of some rounds, the median, and what is asked for. Where nobody waits for the
disk, time is processor time (with that of fuse2fs); what is `durable`, and opening an image, are
wall time. A whole system call stands beside a call into our layer: that is what programs pay.

Mounts are made in a mount namespace of this process, and are gone with it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from appliance.fsimage.durability import Durability
from appliance.garbage import seldom_collected
from appliance.limits import MiB
from tests.bench import image_tree as tree
from tests.bench.image_mounted import Fuse2fs, Kernel, Mounted, mounted
from tests.bench.image_ours import Ours, Samples, fill_journal, opened
from tests.bench.image_table import CLIENTS, GROUP, SUBJECTS, Table, lines
from tests.bench.image_walk import walk_of
from tests.bench.measuring import Figures, Sample, fixed_work, one_core

INSIDE: Final = "--inside"
WALK_BYTES_MAX: Final = 300 * MiB

Subject = Ours | Mounted


class Bench:
    """Images, subjects, and the figures so far."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self._folder: Final = folder
        self._rounds: Final = rounds
        self._template: Path | None = None
        self.table: Table = {}
        self.speeds: list[float] = []

    @contextmanager
    def _everybody(
        self,
        copy_to: Callable[[Path], Path],
        durability: Durability = Durability.PROCESS,
        names: tuple[str, ...] = SUBJECTS,
    ) -> Iterator[list[Subject]]:
        """Ours, the kernel and fuse2fs, each with a copy of an image."""
        subjects: list[Subject] = []
        with ExitStack() as stack:
            for name in names:
                image, top = self._folder / f"{name}.img", self._folder / f"{name}.mnt"
                stack.callback(image.unlink)
                copy_to(image)
                if name == "ours":
                    subjects.append(Ours(image, durability))
                else:
                    top.mkdir()
                    stack.callback(top.rmdir)
                    subjects.append((Kernel if name == "kernel" else Fuse2fs)(image, top))
                stack.callback(subjects[-1].close)
            yield subjects

    def _in_turns(self, subjects: list[Subject], act: Callable[[Subject], Samples]) -> None:
        """Let everybody do the same, round after round."""
        for _ in range(self._rounds):
            for subject in subjects:
                self.speeds.append(fixed_work())
                for row, sample in act(subject).items():
                    self._add(row, subject.name, sample)

    def _add(self, row: str, subject: str, sample: Sample) -> None:
        self.table.setdefault(row, {}).setdefault(subject, Figures()).samples.append(sample)

    def show(self) -> None:
        """What was measured since the last time."""
        if self.table:
            print(*lines(self.table), "", sep="\n", flush=True)
            self.table.clear()

    # The parts.

    def run(self, parts: set[str]) -> None:
        """Those parts, in the order in which they use the same images."""
        if parts & {"look", "read", "write", "live", "last"}:
            self._template = tree.make(self._folder / "template.img")
        if parts & {"look", "read", "write", "live"}:
            with self._everybody(self._copy_to) as subjects:
                for part in ("look", "read", "write", "live"):
                    if part in parts:
                        getattr(self, f"_{part}")(subjects)
                        self.show()
        for part in ("last", "sparse", "open", "walk"):
            if part in parts:
                getattr(self, f"_{part}")()
                self.show()

    def _copy_to(self, to: Path) -> Path:
        assert self._template is not None
        return tree.whole_copy(self._template, to)

    def _look(self, subjects: list[Subject]) -> None:
        self._in_turns(subjects, lambda subject: subject.look())

    def _read(self, subjects: list[Subject]) -> None:
        self._in_turns(subjects, lambda subject: subject.read())

    def _write(self, subjects: list[Subject]) -> None:
        self._in_turns(subjects, lambda subject: subject.write())

    def _live(self, subjects: list[Subject]) -> None:
        self._in_turns(subjects, lambda subject: subject.live(1))
        self._in_turns(subjects[:1], lambda subject: subject.live(GROUP))

    def _last(self) -> None:
        def act(subject: Subject) -> Samples:
            found: Samples = {}
            for clients, count in CLIENTS.items():
                found |= subject.last(clients, count)
            return found

        with self._everybody(self._copy_to, Durability.FULL, SUBJECTS[:2]) as subjects:
            self._in_turns(subjects, act)

    def _sparse(self) -> None:
        with self._everybody(lambda to: tree.empty(to, tree.SPARSE_SIZE)) as subjects:
            self._in_turns(subjects, lambda subject: subject.write_sparse())

    def _open(self) -> None:
        """A clean image, and one whose journal is full of what has not come to its place."""
        clean = tree.empty(self._folder / "clean.img", tree.OPENED_SIZE)
        dirty = tree.empty(self._folder / "dirty.img", tree.OPENED_SIZE)
        fill_journal(dirty)
        copy = self._folder / "opened.img"
        for _ in range(self._rounds):
            for row, image in (("open, clean, 2 GiB", clean), ("open, dirty", dirty)):
                self._add(row, "ours", opened(tree.sparse_copy(image, copy)))
                sample = mounted(tree.sparse_copy(image, copy), self._folder / "opened.mnt")
                self._add(row, "kernel", sample)
                copy.unlink()

    def _walk(self) -> None:
        """Memory is bounded, however many files there are."""
        image, top = self._folder / "crowd.img", self._folder / "crowd.mnt"
        top.mkdir()
        kernel = Kernel(tree.empty(image, tree.OPENED_SIZE, "-N", "1100000"), top)
        count = tree.fill_crowd(top)
        kernel.close()
        walk = walk_of(image)
        image.unlink()
        assert walk.count == count + 1, "and there is lost+found"
        text = (
            f"{walk.count:,} files and directories were listed, with their attributes, in "
            f"{walk.seconds:.1f} s, by a process of {walk.memory_bytes / MiB:.0f} MiB "
            f"(goal: under {WALK_BYTES_MAX / MiB:.0f})"
        )
        print(text)
        assert walk.memory_bytes < WALK_BYTES_MAX, text


PARTS: Final = ("look", "read", "write", "live", "last", "sparse", "open", "walk")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--place", help="a folder on the disk that counts (default: that of /tmp)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS])
    options = parser.parse_args()
    if not options.inside:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable]
        os.execvp(command[0], [*command, "-m", "tests.bench.image", INSIDE, *sys.argv[1:]])
    with tempfile.TemporaryDirectory(dir=options.place) as place, one_core(), seldom_collected():
        bench = Bench(Path(place), options.rounds)
        bench.run(set(options.parts or PARTS))
    if bench.speeds:
        slow = statistics.median(bench.speeds) / min(bench.speeds)
        print(
            f"Python {platform.python_version()}. A piece of it that is always the same took "
            f"{min(bench.speeds) * 1e3:.1f} ms at best, and {slow:.2f} times that in the median."
        )


if __name__ == "__main__":
    main()
