"""A file system above an overlay file, crashed: random work between which snapshots are made, gone
back to and deleted, while every write to the overlay's file is recorded.

Whatever of them has arrived, the file system is one that may be seen, the snapshots are those that
there were before the crash or after it, and each is what it was when it was made.
"""

from __future__ import annotations

from contextlib import closing
from random import Random
from typing import Final

import pytest

from appliance import image_limits
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.overlay_file import OverlayFile, begin
from appliance.fsimage.overlay_format import HEADER_BYTES, Base, read_header
from tests.crash.geometry import GEOMETRIES
from tests.crash.recording import Flush, Image, MemoryDevice, Recording, RecordingDevice, Write
from tests.crash.session import Session
from tests.crash.sight import Eyes, Window, see
from tests.crash.states import Stage, State, States
from tests.crash.workload import PACES, RandomWork
from tests.unit.fsimage.overlay_crash import BytesDevice

_STORE_BYTES: Final = 40 << 20
_STEPS: Final = 120
_STATES: Final = 30

Names = dict[str, int]
"""Snapshots, and the version of the tree that each is."""


class Store(RecordingDevice):
    """The overlay's file. Its room is there from the beginning."""

    def resize(self, size: int) -> None:
        assert size <= self.size


class Crashed(MemoryDevice):
    """The same after a crash."""

    def resize(self, size: int) -> None:
        assert size <= self.size


class Overlaid:
    """Random work on a file system above an overlay."""

    def __init__(self, geometry: str, seed: int, durability: Durability) -> None:
        self.base: Final = GEOMETRIES[geometry].base
        self.recording: Final = Recording(bytes(_STORE_BYTES))
        self._content: Final = Image(self.recording.base).mapping()
        store = Store(self._content, self.recording)
        header = begin(store, Base(len(self.base), 0, bytes(32)))
        eager = durability is Durability.PROCESS
        overlay = OverlayFile(BytesDevice(self.base), store, header, eager=eager)
        self.made: Final = len(self.recording.log)
        self.session: Final = Session(
            GEOMETRIES[geometry],
            seed,
            durability=durability,
            recording=self.recording,
            device=overlay,
        )
        self.random: Final = Random(seed)
        self.kept: Final[list[tuple[int, Names]]] = [(self.made, {})]
        """From which place of the log on there were certainly these."""

    def run(self) -> None:
        session, random = self.session, self.random
        work = RandomWork(session, PACES["groups"])
        names: Names = {}
        for step in range(_STEPS):
            work.step()
            dice = random.random()
            if dice < 0.06 and len(names) < image_limits.SNAPSHOTS_MAX:
                self._keep(f"s{step}", names)
            elif dice < 0.08 and names:
                name = random.choice(sorted(names))
                session.filesystem.snapshot_delete(name)
                del names[name]
            elif dice < 0.12 and names:
                self._go_back(random.choice(sorted(names)), names)
            self.kept.append((len(self.recording.log), dict(names)))
        session.compare()

    def _keep(self, name: str, names: Names) -> None:
        self.session.filesystem.snapshot_create(name)
        names[name] = self.session.last
        self.recording.acknowledge(self.session.last)

    def _go_back(self, name: str, names: Names) -> None:
        session, model = self.session, self.session.model
        self.recording.begin(len(model.versions))
        session.filesystem.snapshot_rollback(name, lambda: None)
        model.now = dict(model.versions[names[name]])
        model.keep()
        self.recording.acknowledge(session.last)
        session.compare()

    # States.

    def states(self, *, host: bool) -> list[State]:
        """Half of them around flushes, and where a header is written."""
        random, log = self.random, self.recording.log
        states = States(self.recording, self.session.geometry, 1, host=host)
        matter = [
            [at for at in range(self.made, len(log)) if isinstance(log[at], Flush)],
            [
                at
                for at, event in enumerate(log[self.made :], self.made)
                if isinstance(event, Write) and event.offset < 2 * HEADER_BYTES
            ],
        ]
        points = []
        for _ in range(_STATES):
            near = random.choice([*filter(None, matter), range(self.made, len(log))])
            points.append(min(len(log), random.choice(near) + random.choice((0, 1, 1, 2))))
        return states.at(points, random)

    def problem(self, state: State, store: Crashed) -> str:
        """What is wrong with what the crash has left; "" if nothing is."""
        header = read_header(store)
        assert header is not None
        overlay = OverlayFile(BytesDevice(self.base), store, header)
        filesystem = open_ext4(overlay, "crashed")
        session = self.session
        sight = see(filesystem.root(), session.model.probes_of)
        problem = session.problem(sight, state.point, Eyes.OURS)
        before = [names for at, names in self.kept if at <= state.point][-1]
        after = [names for at, names in self.kept if at > state.point][:1]
        known = before | (after[0] if after else {})
        names = {snapshot.name for snapshot in filesystem.snapshots()}
        if names not in [set(before), *map(set, after)]:
            problem = problem or f"there are snapshots {names}"
        for name in sorted(names)[-2:]:
            filesystem.snapshot_rollback(name, lambda: None)
            sight = see(filesystem.root(), session.model.probes_of)
            there = Window(known[name], known[name])
            problem = problem or session.judge.problem(sight, there, Eyes.OURS)
        filesystem.close()
        return problem or "; ".join(map(str, check(overlay)[:3]))


@pytest.mark.parametrize(
    ("geometry", "seed", "durability"),
    [
        ("1k", 1, Durability.FULL),
        ("4k", 2, Durability.FULL),
        ("upstream", 3, Durability.PROCESS),
    ],
)
def test_the_file_of_an_overlay_is_crashed(
    monkeypatch: pytest.MonkeyPatch, geometry: str, seed: int, durability: Durability
) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 1 << 17)
    overlaid = Overlaid(geometry, seed, durability)
    overlaid.run()
    assert any(names for _, names in overlaid.kept)
    stage = Stage(overlaid.recording, frozenset())
    with closing(stage):
        for state in overlaid.states(host=durability is Durability.FULL):
            with stage.device(state) as device:
                problem = overlaid.problem(state, Crashed(device.content))
            assert not problem, f"{state.recipe}: {problem}"
    overlaid.session.let_go()
