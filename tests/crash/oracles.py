"""Who says whether a state is sound: our recovery, e2fsck's, and the kernel's.

Each gets the state as the crash left it, brings it up, and must then see a tree that may be seen
(sight.py). What is left behind must be clean for e2fsck -fn and for our own check. A crash may also
happen during the recovery; so for some states the writes of our recovery are recorded as well, and
cut off somewhere.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.vfs.errors import VfsError
from tests.crash.geometry import Geometry
from tests.crash.kernel import Kernel
from tests.crash.recording import Image, MemoryDevice, Recording, RecordingDevice
from tests.crash.sight import Eyes, Sight, see
from tests.crash.states import Stage, State, States

_SIGHTS_MAX: Final = 16
_SAID_MAX: Final = 600
_NESTED: Final = 4
"""Crashes that are tried during one recovery."""

_EXPECTED: Final = (
    *("orphan", "Clearing", "Truncating", "recovering journal", " files ("),
    "could be narrower.  IGNORED",  # a tree of extents in which holes were made
)
"""What e2fsck -p may say about a file system that crashed: nothing else was to be done."""

FRESH_FOLDER: Final = "/dev/shm"
"""Where images are for e2fsck and the kernel: memory."""


@dataclass
class Tally:
    """What was done, for the summary."""

    states: int = 0
    repeated: int = 0
    e2fsck_runs: int = 0
    kernel_mounts: int = 0
    nested: int = 0

    def add(self, other: Tally) -> None:
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self) -> str:
        return (
            f"{self.states} states ({self.repeated} twice), {self.nested} crashed again in the"
            f" recovery, {self.kernel_mounts} mounted by the kernel, {self.e2fsck_runs} runs of"
            " e2fsck"
        )


_COUNTED: Final = [field.name for field in fields(Tally)]


class Case(Protocol):
    """A recording, and what it promises."""

    @property
    def geometry(self) -> Geometry:
        """Of the file system."""

    @property
    def recording(self) -> Recording:
        """What was written."""

    @property
    def probes(self) -> dict[int, set[int]]:
        """Of large files, by inode, the chunks that are worth reading."""

    def promise(self, point: int) -> str:
        """What may be seen after a crash at `point` of the log: the same text, the same."""

    def problem(self, sight: Sight, point: int, eyes: Eyes) -> str:
        """Why this may not be seen after a crash at `point`; "" if it may."""


class Oracles:
    """All that have something to say about the states of one recording.

    States are given in the order of `settled`, because each is made of the one before.
    """

    def __init__(self, case: Case, tally: Tally, *, kernel: Kernel | None = None) -> None:
        self.tally: Final = tally
        self._case: Final = case
        self._geometry: Final = case.geometry
        self._kernel: Final = kernel
        self._log: Final = self._geometry.log_sectors
        self.stage: Final = Stage(case.recording, self._log)
        self._sights: Final[dict[int, Sight]] = {}
        self._clean: Final[set[int]] = set()
        self._seen: Final[set[tuple[int, str]]] = set()
        self._folder: Final = TemporaryDirectory(dir=FRESH_FOLDER)
        self.scratch: Final = Path(self._folder.name) / "fs.img"
        self.scratch.write_bytes(case.recording.base)

    def close(self) -> None:
        self.stage.close()
        self._folder.cleanup()

    def _probes_of(self, inode: int) -> set[int]:
        return self._case.probes.get(inode, set())

    # All of them.

    def check(self, state: State, *, kernel: bool = False, nested: Random | None = None) -> str:
        """What is wrong with this state; "" if nothing is. `kernel`: ask it, too. `nested`: crash
        once more during the recovery."""
        point = state.point
        self.tally.states += 1
        with self.stage.device(state) as device:
            key = (device.fingerprint, self._case.promise(point))
            if key in self._seen and not kernel:
                self.tally.repeated += 1
                return ""
            self._seen.add(key)
            for problem in self._problems(device, point, kernel, nested):
                if problem:
                    return problem
        return ""

    def _problems(
        self, device: MemoryDevice, point: int, kernel: bool, nested: Random | None
    ) -> Iterator[str]:
        raw = bytes(device.content)
        yield self._of_e2fsck(raw, point)
        if kernel and self._kernel is not None:
            yield self._of_kernel(raw, point)
        if nested is not None:
            yield self._of_second_crash(raw, point, nested)
        yield self.of_ours(device, point)

    # Ours.

    def of_ours(self, device: MemoryDevice, point: int) -> str:
        """What is wrong once we have recovered what is on `device`."""
        problem = self._recovered(device, point)
        if not problem and device.essence not in self._clean:
            problem = self._unclean(device)
            self._clean.add(device.essence)
        return problem and f"our recovery: {problem}"

    def _recovered(self, device: MemoryDevice, point: int) -> str:
        try:
            filesystem = open_ext4(device, "crashed")
            essence = device.essence
            sight = self._sights.get(essence)
            if sight is None:
                sight = see(filesystem.root(), self._probes_of)
                if len(self._sights) > _SIGHTS_MAX:
                    self._sights.clear()
                self._sights[essence] = sight
            filesystem.close()
        except (ImageError, VfsError, AssertionError) as error:
            return f"{type(error).__name__} {error}"
        return self._case.problem(sight, point, Eyes.OURS)

    def _unclean(self, device: MemoryDevice) -> str:
        """What e2fsck, and our own check, find in a file system that was unmounted."""
        self._put(device.content)
        status, said = self._e2fsck("-fn")
        if status:
            return f"e2fsck -fn afterwards: {said}"
        try:
            findings = check(device)
        except ImageError as error:
            return f"our check afterwards: {error}"
        return f"our check afterwards: {findings[:4]}" if findings else ""

    def _of_second_crash(self, raw: bytes, point: int, rng: Random) -> str:
        """Crash during our recovery, and recover from that."""
        self.tally.nested += 1
        recording = Recording(raw)
        image = Image(raw)
        with contextlib.closing(image.mapping()) as content:
            try:
                open_ext4(RecordingDevice(content, recording), "crashed").close()
            except (ImageError, VfsError) as error:
                return f"our recovery: {error}"
        image.close()
        stage = Stage(recording, self._log)
        with contextlib.closing(stage):
            for state in States(recording, self._geometry, rng.randrange(1 << 30)).sample(_NESTED):
                with stage.device(state) as device:
                    # It begins where another image begins: its essence is of another kind.
                    device.essence = hash((device.essence, rng.random()))
                    problem = self._of_e2fsck(device.content[:], point)
                    problem = problem or self.of_ours(device, point)
                if problem:
                    return f"crashed again in the recovery ({state.recipe}): {problem}"
        return ""

    # e2fsck's.

    def _of_e2fsck(self, raw: bytes, point: int) -> str:
        self._put(raw)
        status, said = self._e2fsck("-fp")
        if status not in (0, 1):
            return f"e2fsck's recovery: exit status {status}: {said}"
        surprises = [line for line in said.splitlines() if _is_a_surprise(line)]
        if surprises:
            return f"e2fsck's recovery had to repair: {' | '.join(surprises)[:_SAID_MAX]}"
        status, said = self._e2fsck("-fn")
        if status:
            return f"e2fsck -fn after e2fsck's recovery: {said}"
        problem = self._seen_in_scratch(point)
        return problem and f"e2fsck's recovery: {problem}"

    def _seen_in_scratch(self, point: int) -> str:
        with self.scratch.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with contextlib.closing(content):
            try:
                filesystem = open_ext4(MemoryDevice(content), "scratch", read_only=True)
                sight = see(filesystem.root(), self._probes_of)
                filesystem.close()
            except (ImageError, VfsError, AssertionError) as error:
                return f"{type(error).__name__} {error}"
        return self._case.problem(sight, point, Eyes.E2FSCK)

    def _put(self, raw: bytes | mmap.mmap) -> None:
        opened = os.open(self.scratch, os.O_WRONLY)
        os.pwrite(opened, raw, 0)
        os.close(opened)

    def _e2fsck(self, *options: str) -> tuple[int, str]:
        self.tally.e2fsck_runs += 1
        done = subprocess.run(
            ["e2fsck", *options, self.scratch], capture_output=True, text=True, errors="replace"
        )
        return done.returncode, (done.stdout + done.stderr)[-_SAID_MAX:]

    # The kernel's.

    def _of_kernel(self, raw: bytes, point: int) -> str:
        assert self._kernel is not None
        self._put(raw)
        self.tally.kernel_mounts += 1
        try:
            sight = self._kernel.see(self.scratch, self._case.probes)
        except AssertionError as error:
            return f"the kernel: {error}"
        problem = self._case.problem(sight, point, Eyes.KERNEL)
        if problem:
            return f"the kernel's recovery: {problem}"
        status, said = self._e2fsck("-fn")
        return f"e2fsck -fn after the kernel: {said}" if status else ""


def _is_a_surprise(line: str) -> bool:
    return bool(line.strip()) and not any(words in line for words in _EXPECTED)
