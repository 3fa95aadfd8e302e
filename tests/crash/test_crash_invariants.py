"""Invariants that are visible in the order of writes itself, without any recovery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.fsimage.ext4 import layout
from tests.crash.geometry import GEOMETRIES, Place
from tests.crash.plan import JOURNALED
from tests.crash.recording import SECTOR, Flush, Write
from tests.crash.session import Session
from tests.crash.workload import PACES, RandomWork

SUPERBLOCK_END = layout.SUPERBLOCK_OFFSET + 1024


@pytest.fixture(scope="module", params=JOURNALED)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A file system that was worked on, and unmounted."""
    session = Session(GEOMETRIES[request.param], 9)
    RandomWork(session, PACES["groups"]).run(300)
    session.close()
    yield session
    session.let_go()


def writes(session: Session, *places: Place) -> list[tuple[int, Write]]:
    """Where in the log there are writes to these places."""
    return [
        (index, event)
        for index, event in enumerate(session.recording.log)
        if isinstance(event, Write) and session.geometry.place(event) in places
    ]


def test_j8_there_is_a_flush_before_every_commit_block(session: Session) -> None:
    commits = writes(session, Place.COMMIT_BLOCK)
    assert len(commits) > 20
    for index, _ in commits:
        assert isinstance(session.recording.log[index - 1], Flush)


def test_j9_there_is_a_flush_before_anything_is_acknowledged(session: Session) -> None:
    marks = session.recording.acknowledged
    for position in marks.positions[1:]:
        assert isinstance(session.recording.log[position - 1], Flush)


def test_j11_blocks_are_durable_in_their_places_before_the_log_gives_them_up(
    session: Session,
) -> None:
    pointed = writes(session, Place.JOURNAL_SUPERBLOCK)
    assert len(pointed) > 2
    for index, _ in pointed[1:]:
        assert isinstance(session.recording.log[index - 1], Flush)
        assert isinstance(session.recording.log[index + 1], Flush)


def test_j13_the_superblock_says_so_as_long_as_the_log_holds_something(session: Session) -> None:
    says = holds = False
    seen = 0
    for event in session.recording.log:
        if not isinstance(event, Write):
            continue
        match session.geometry.place(event):
            case Place.JOURNAL_SUPERBLOCK:
                head = layout.journal_superblock_t.decode(event.data)
                holds = bool(head.s_start)
                seen += holds
            case Place.SUPERBLOCK:
                raw = event.data[layout.SUPERBLOCK_OFFSET - event.offset :]
                disk = layout.ext4_super_block.decode(raw)
                says = bool(disk.s_feature_incompat & layout.INCOMPAT_RECOVER)
        assert says or not holds
    assert seen and not says and not holds


def test_j14_the_superblock_changes_in_its_first_sector_only(session: Session) -> None:
    base = session.recording.base[layout.SUPERBLOCK_OFFSET + SECTOR : SUPERBLOCK_END]
    found = writes(session, Place.SUPERBLOCK)
    assert len(found) > 2
    for _, write in found:
        start = layout.SUPERBLOCK_OFFSET + SECTOR - write.offset
        assert write.data[start : start + 512] == base
