"""What is crashed: pairs of a file system and work on it, each with a share of the states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.vfs.errors import VfsError
from tests.crash.crowd import Crowd
from tests.crash.geometry import GEOMETRIES
from tests.crash.kernel import Kernel
from tests.crash.oracles import Oracles, Tally
from tests.crash.rare import RARE_GEOMETRIES, RARE_SCRIPTS
from tests.crash.recording import Recording
from tests.crash.scripts import SCRIPTS
from tests.crash.session import Session
from tests.crash.states import Stage, State, States
from tests.crash.workload import PACES, RandomWork

_STEPS: Final = {"every": 160, "groups": 260, "seldom": 400, "interrupted": 200}
SECOND_LIFE: Final = "second-life"
"""Random work on what a crash has left."""

SAME_AGAIN: Final = "same-again"
"""Much the same transactions before a crash and after it, at the same places of the log."""

CROWD: Final = "crowd"
"""Several at once. Unlike all else, this is not the same a second time."""

WORKS: Final = [*PACES, SECOND_LIFE, CROWD, *SCRIPTS]

EVERY_GEOMETRY: Final = GEOMETRIES | RARE_GEOMETRIES
EVERY_SCRIPT: Final = SCRIPTS | RARE_SCRIPTS

JOURNALED: Final = [name for name, geometry in GEOMETRIES.items() if geometry.journal]


@dataclass(slots=True, frozen=True)
class Task:
    """One session, and how many of its states are tried. As text: how to have it again."""

    geometry: str
    work: str
    seed: int
    states: int
    durability: Durability = Durability.FULL
    around: str = ""

    def __str__(self) -> str:
        around = f" --around {self.around}" if self.around else ""
        return (
            f"--geometry {self.geometry} --work {self.work} --seed {self.seed}"
            f" --states {self.states} --durability {self.durability.value}{around}"
        )

    def case(self) -> Session | Crowd:
        """The work, done and recorded."""
        if self.work != CROWD:
            return self.session()
        crowd = Crowd(EVERY_GEOMETRY[self.geometry], self.seed)
        crowd.run()
        return crowd

    def session(self) -> Session:
        """The same, of one who works alone."""
        lives_again = self.work in (SECOND_LIFE, SAME_AGAIN)
        recording = self._after_a_crash() if lives_again else None
        seed = self.seed if recording is None else self.seed + 1
        session = Session(
            EVERY_GEOMETRY[self.geometry], seed, durability=self.durability, recording=recording
        )
        script = EVERY_SCRIPT.get(self.work)
        if script is not None:
            script(session)
        else:
            pace = "groups" if recording is not None else self.work
            RandomWork(session, PACES[pace]).run(_STEPS[pace])
        session.compare()
        return session

    def _after_a_crash(self) -> Recording:
        """A file system that has crashed already, and goes on from there."""
        if self.work == SAME_AGAIN:
            session = Session(EVERY_GEOMETRY[self.geometry], self.seed)
            SCRIPTS[SAME_AGAIN](session)
            raw = session.raw()
        else:
            before = replace(self, work="groups", states=10, around="")
            session = before.session()
            state = before.sample(session)[-1]
            stage = Stage(session.recording, frozenset())
            with closing(stage), stage.device(state) as device:
                raw = device.content[:]
        session.let_go()
        return Recording(raw)

    def sample(self, session: Session | Crowd) -> list[State]:
        """The states that are tried, in their order."""
        of_host = self.durability is not Durability.PROCESS
        states = States(
            session.recording, session.geometry, self.seed, host=of_host, around=self.around
        )
        return states.sample(self.states)


@dataclass(slots=True, frozen=True)
class Failure:
    """A state that is not sound."""

    task: Task
    index: int
    problem: str

    def __str__(self) -> str:
        return f"{self.problem}\n    again: python -m tests.crash {self.task} --only {self.index}"


def run(
    task: Task,
    *,
    kernel: Kernel | None = None,
    kernel_every: int = 0,
    save_to: Path | None = None,
    only: int | None = None,
    failures_max: int = 3,
    nested_every: int = 6,
) -> tuple[Tally, list[Failure]]:
    """Do what `task` says. Of `kernel_every` states the kernel sees one, and of `nested_every` one
    is crashed again during its recovery. Images of states that fail are put into `save_to`."""
    tally = Tally()
    failures: list[Failure] = []
    try:
        case = task.case()
    except (AssertionError, VfsError, ImageError) as error:
        return tally, [Failure(task, 0, f"already while it ran: {error}")]
    oracles = Oracles(case, tally, kernel=kernel)
    try:
        for index, state in enumerate(task.sample(case)):
            if only not in (None, index):
                continue
            rng = Random(f"{task} {index}")
            problem = oracles.check(
                state,
                kernel=bool(kernel_every) and rng.randrange(kernel_every) == 0,
                nested=rng if rng.randrange(nested_every) == 0 else None,
            )
            if problem:
                failures.append(Failure(task, index, f"{state.recipe}: {problem}"))
                if save_to is not None:
                    save(oracles, state, save_to / f"{_file_name(task)}-{index}.img")
                if len(failures) == failures_max:
                    break
    finally:
        oracles.close()
        case.let_go()
    return tally, failures


def _file_name(task: Task) -> str:
    return f"crash-{task.geometry}-{task.work}-{task.seed}"


def save(oracles: Oracles, state: State, path: Path) -> None:
    """The image as the crash left it."""
    path.parent.mkdir(exist_ok=True)
    with oracles.stage.device(state) as device:
        path.write_bytes(device.content)


def tasks(states: int, seed: int, geometries: list[str]) -> Iterator[Task]:
    """So many states, spread over all work on `geometries`, in tasks of a size that one process
    does in some seconds."""
    per_task = min(100, max(5, states // (len(geometries) * len(WORKS))))
    left, turn = states, 0
    while left > 0:
        for task in _one_turn(per_task, seed + turn, geometries):
            if left <= 0:
                return
            left -= task.states
            yield task
        turn += 1


def _one_turn(states: int, seed: int, geometries: list[str]) -> Iterator[Task]:
    for index, work in enumerate(WORKS):
        for number, geometry in enumerate(geometries):
            how = list(Durability)[(index + number + seed) % 7 % 3] if work in PACES else _FULL
            yield Task(geometry, work, seed, states, how)


_FULL: Final = Durability.FULL
