"""Crashes within what takes long: while an operation works, transactions of others are closed,
written and brought to their places; and a hole is made, or storage given, in several operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

import pytest

from appliance import image_limits
from appliance.fsimage.ext4 import content
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.ext4.operation import Operation
from tests.crash.geometry import GEOMETRIES
from tests.crash.oracles import Oracles, Tally
from tests.crash.session import Session
from tests.crash.sight import look
from tests.crash.states import States
from tests.crash.workload import PACES, RandomWork

T = TypeVar("T")

_STEPS: Final = ("change", "new_block", "allocate", "free", "inode", "allocate_inode", "finish")
"""Of an operation; before and after each, somebody else may be at work."""


def check(session: Session, count: int) -> None:
    """Crash it in `count` places."""
    session.compare()
    oracles = Oracles(session, Tally())
    states = States(session.recording, session.geometry, session.seed)
    with closing(oracles):
        for state in states.sample(count):
            again = Random(state.point) if state.point % 4 == 0 else None
            problem = oracles.check(state, nested=again)
            assert not problem, f"{state.recipe}: {problem}"
    session.let_go()


@pytest.mark.parametrize(("geometry", "seed"), [("1k", 11), ("4k", 12)])
def test_transactions_go_on_while_an_operation_works(
    monkeypatch: pytest.MonkeyPatch, geometry: str, seed: int
) -> None:
    """As the thread in the background does it, which does not wait for the lock."""
    session = Session(GEOMETRIES[geometry], seed)
    journal, dice = session.filesystem.writer.journal, Random(seed)
    committed = 0

    def meanwhile() -> None:
        nonlocal committed
        if dice.random() < 0.1:
            committed += 1
            dice.choice((journal.commit, journal.commit, journal.bring_to_place))()

    def disturbed(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            meanwhile()
            result = step(*words, **named)
            meanwhile()
            return result

        return call

    session.mkdir(session.root, b"first")  # after which it is marked as being in use
    for name in _STEPS:
        monkeypatch.setattr(Operation, name, disturbed(getattr(Operation, name)))
    RandomWork(session, PACES["groups"]).run(150)
    monkeypatch.undo()
    assert committed > 100
    check(session, 16)


def in_several(session: Session, number: int, act: Callable[[Ext4Node], object]) -> int:
    """Let `act` change one file in several operations, after each of which there is a version with
    what is in the file then; how many."""
    filesystem, model = session.filesystem, session.model
    real, begun = filesystem.change, len(model.versions)

    def change(operation: Callable[[Operation], T]) -> T:
        session.recording.begin(len(model.versions))
        result = real(operation)
        node = session.node(number)
        seen = look(node, model.probes_of)
        model.now = dict(model.now)
        changed = replace(model.now[number], content=seen.content, changed=len(model.versions))
        model.now[number] = changed
        model.observed(number, node.handle, node.attributes())
        model.keep()
        return result

    setattr(filesystem, "change", change)  # noqa: B010 (mypy: a method)
    act(filesystem.node(number))
    setattr(filesystem, "change", real)  # noqa: B010
    return len(model.versions) - begun


def test_holes_and_storage_take_several_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 6)
    session = Session(GEOMETRIES["1k"], 21)
    session.interrupt(0.3)
    random = session.random
    data = random.randbytes(200_000)
    number = session.create(session.root, b"file")
    for offset in range(0, len(data), 2048):
        session.write(number, offset, data[offset : offset + 1000])
    several = 0
    for _ in range(30):
        offset = random.randrange(len(data))
        end = offset + random.choice((10, 3000, 60_000))
        before = b"".join(session.node(number).read(0, 1 << 20)[0])
        act = content.allocate
        if random.random() < 0.5:
            act = content.punch
            before = before[:offset].ljust(offset, b"\0") + bytes(end - offset) + before[end:]
        several += in_several(session, number, partial(act, offset=offset, end=end)) > 2
        after = b"".join(session.node(number).read(0, 1 << 20)[0])
        shared = min(len(before), len(after))
        assert after[:shared] == before[:shared]
        assert not any(after[shared:])
        if random.random() < 0.3:
            session.sync()
    assert several > 4
    check(session, 40)
