"""A process that writes to an image is killed, again and again: nothing acknowledged is lost."""

from __future__ import annotations

import mmap
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.filesystem import open_ext4
from tests.crash import kill9
from tests.crash.oracles import FRESH_FOLDER
from tests.crash.recording import MemoryDevice
from tests.crash.session import Session
from tests.crash.sight import Eyes, Window, see

ROUNDS: Final = 30
"""Of each kind: 60 in all."""

TOP: Final = Path(__file__).parents[2]


class Victim:
    """One process, killed at some time; what it had said by then."""

    def __init__(self, image: Path, seed: int, durability: Durability, operations: int) -> None:
        self.begun = self.acknowledged = 0
        command = [sys.executable, "-m", "tests.crash.kill9", str(image), str(seed)]
        process = subprocess.Popen([*command, durability.value], cwd=TOP, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            self._heard(line)
            if self.begun >= operations:
                break
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():
            self._heard(line)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL

    def _heard(self, line: bytes) -> None:
        letter, number = line.split()
        if letter == b"b":
            self.begun = int(number)
        else:
            self.acknowledged = int(number)


@pytest.mark.parametrize("durability", [Durability.FULL, Durability.PROCESS])
def test_nothing_acknowledged_is_lost(durability: Durability) -> None:
    rng = Random(durability.value)
    acknowledged = 0
    with TemporaryDirectory(dir=FRESH_FOLDER) as folder:
        image = kill9.GEOMETRY.make(Path(folder) / "fs.img")
        for seed in range(ROUNDS):
            before = image.read_bytes()
            victim = Victim(image, seed, durability, rng.randrange(1, 250))
            acknowledged += victim.acknowledged
            assert victim.acknowledged <= victim.begun
            session = kill9.repeat(before, seed, durability, victim.begun)
            window = Window(victim.acknowledged, victim.begun)
            theirs = Path(shutil.copy(image, Path(folder) / "theirs.img"))
            recover_by_e2fsck(theirs)
            assert problem_of(theirs, session, window, read_only=True) == "", f"round {seed}"
            assert problem_of(image, session, window, read_only=False) == "", f"round {seed}"
            fsck = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
            assert fsck.returncode == 0, fsck.stdout
            session.let_go()
    assert acknowledged > 10 * ROUNDS


def recover_by_e2fsck(image: Path) -> None:
    """The journal is replayed, orphans are removed, and there is nothing else to do."""
    preened = subprocess.run(["e2fsck", "-fp", image], capture_output=True, text=True)
    assert preened.returncode in (0, 1), preened.stdout + preened.stderr
    clean = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout


def problem_of(image: Path, session: Session, window: Window, *, read_only: bool) -> str:
    """What is wrong with what we see in an image. Unless it is only read, it is recovered, and has
    to be clean afterwards."""
    with (
        image.open("r+b") as file,
        closing(mmap.mmap(file.fileno(), 0)) as content,
    ):
        device = MemoryDevice(content)
        filesystem = open_ext4(device, "killed", read_only=read_only)
        sight = see(filesystem.root(), session.model.probes_of)
        filesystem.close()
        if not read_only:
            assert check(device) == []
        # What is made is given a new generation, so handles differ in what is repeated.
        return session.judge.problem(sight, window, Eyes.KERNEL)
