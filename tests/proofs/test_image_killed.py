"""Again and again the server is killed under load, and each client's directory then holds what was
acknowledged to it, all of it, and at most the one call more whose reply it did not see.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import eq, or_
from pathlib import Path

import pytest

from appliance.vfs.interface import FileType, Node
from tests.interop.conftest import StartAppliance
from tests.interop.lab import SERVER, TOP, Appliance, wait_until
from tests.proofs import geometry
from tests.proofs.conftest import Templates
from tests.proofs.load import Plan, directory_of
from tests.unit.vfs.tools import content, listing

pytestmark = pytest.mark.root

ROUNDS = 20
CLIENTS = 4
LOAD_SECONDS = 0.25
PROGRESS = 10
"""Every client has done so much more before the next kill."""


class Load:
    """The clients, as a process in the namespace."""

    def __init__(self, server: Appliance, folder: Path) -> None:
        self._counts = folder / "acknowledged"
        self._stderr = folder / "load-stderr"
        command = server.netns.command(
            sys.executable, "-m", "tests.proofs.load", SERVER, str(CLIENTS)
        )
        with self._counts.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(command, cwd=TOP, stdout=stdout, stderr=stderr)

    def counts(self) -> list[int]:
        """How much was acknowledged, to each."""
        found = [0] * CLIENTS
        for line in self._counts.read_bytes().splitlines():
            client, done = line.split()
            found[int(client)] = int(done)
        return found

    def wait_for_progress(self, before: list[int]) -> None:
        def progress() -> bool:
            if self._stderr.stat().st_size:
                time.sleep(0.5)  # until all of it is there
                pytest.fail(self._stderr.read_text())
            now = self.counts()
            return all(b - a >= PROGRESS for a, b in zip(before, now, strict=True))

        wait_until(progress, 30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def image(templates: Templates, tmp_path: Path) -> Path:
    return geometry.copied(templates("ext4-1k"), tmp_path / "fs.img")


@pytest.fixture
def server(appliance: StartAppliance, image: Path) -> Appliance:
    return appliance("--image", image, pcap=False)


@pytest.fixture
def load(server: Appliance, tmp_path: Path) -> Iterator[Load]:
    clients = Load(server, tmp_path)
    yield clients
    clients.close()


def test_nothing_that_was_acknowledged_is_lost(
    server: Appliance, load: Load, image: Path, tmp_path: Path
) -> None:
    plans = [Plan(client) for client in range(CLIENTS)]
    for _ in range(ROUNDS):
        load.wait_for_progress([plan.done for plan in plans])
        time.sleep(LOAD_SECONDS)
        server.kill()
        time.sleep(0.05)  # for the replies that had been sent
        left = Path(shutil.copyfile(image, tmp_path / "left.img"))
        geometry.sound_after_replay(left, tmp_path / "replayed.img")
        look(left, plans, load.counts())
        server.start()
    load.wait_for_progress([plan.done for plan in plans])
    server.stop()
    geometry.sound(image)


def look(left: Path, plans: list[Plan], counts: list[int]) -> None:
    """Our own recovery, and what is then there."""
    filesystem = geometry.open_rw(left)
    for plan, count in zip(plans, counts, strict=True):
        while plan.done < count:
            plan.do(plan.next())
        found = held(filesystem.root().lookup(directory_of(plan.client)))
        assert agrees(found, plan), f"client {plan.client} after {count}"
    geometry.judge(left, filesystem)


def agrees(found: dict[bytes, bytes | None], plan: Plan) -> bool:
    """Whether it is what was acknowledged, or that and the next call; of which, if it is a WRITE,
    a part may have happened: data is not written twice."""
    if found == plan.holds:
        return True
    deed = plan.next()
    later = Plan(plan.client, plan.done, dict(plan.holds))
    later.do(deed)
    if found == later.holds or deed.kind != "write":
        return found == later.holds
    present = found.get(deed.name) or b""
    old, new = plan.holds[deed.name] or b"", later.holds[deed.name] or b""
    return (
        found | {deed.name: new} == later.holds
        and len(old) <= len(present) <= len(new)
        and all(map(or_, map(eq, present, old.ljust(len(new), b"\0")), map(eq, present, new)))
    )


def held(directory: Node) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    for entry in listing(directory):
        node = directory.lookup(entry.name)
        is_file = node.attributes().type is FileType.REGULAR
        found[entry.name] = content(node) if is_file else None
    return found
