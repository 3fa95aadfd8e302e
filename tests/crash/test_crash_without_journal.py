"""What is promised of a file system without a journal (ext2), if the process is killed.

W1  As soon as something was changed, and until it is unmounted, the superblock says "not clean": so
    e2fsck looks at it before anybody uses it.
W2  When everything is acknowledged and nothing has begun since, the tree is complete, and e2fsck
    finds nothing to repair.
W3  In between e2fsck can repair it, and what no operation has touched since the last acknowledged
    one is there, with its bytes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.ext4.superblock import Superblock
from tests.crash.geometry import GEOMETRIES
from tests.crash.recording import Image, MemoryDevice, Write
from tests.crash.session import Session
from tests.crash.sight import Eyes, Sight, Window, see
from tests.crash.workload import PACES, RandomWork

STATES = 60


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(GEOMETRIES["ext2"], 3)
    RandomWork(session, PACES["groups"]).run(250)
    session.compare()
    yield session
    session.let_go()


def raw_at(session: Session, point: int) -> bytes:
    """What is on the device after `point` events."""
    raw = bytearray(session.recording.base)
    for event in session.recording.log[:point]:
        if isinstance(event, Write):
            raw[event.offset : event.end] = event.data
    return bytes(raw)


def sight_of(raw: bytes, session: Session) -> Sight:
    image = Image(raw)
    with closing(image.mapping()) as content:
        filesystem = open_ext4(MemoryDevice(content), "ext2", read_only=True)
        sight = see(filesystem.root(), session.model.probes_of)
        filesystem.close()
    image.close()
    return sight


def test_w1_it_is_not_clean_until_it_is_unmounted(session: Session) -> None:
    recording = session.recording
    first = next(at for at, event in enumerate(recording.log) if isinstance(event, Write))
    for point in range(first + 1, len(recording.log), 50):
        image = Image(raw_at(session, point))
        with closing(image.mapping()) as content:
            state = Superblock.read(MemoryDevice(content)).disk.s_state
        image.close()
        assert not state & layout.STATE_VALID_FS, point


def test_w1_it_is_clean_once_it_was_unmounted() -> None:
    session = Session(GEOMETRIES["ext2"], 5)
    RandomWork(session, PACES["seldom"]).run(40)
    session.close()
    image = Image(session.raw())
    with closing(image.mapping()) as content:
        device = MemoryDevice(content)
        assert Superblock.read(device).disk.s_state & layout.STATE_VALID_FS
        assert check(device) == []
    image.close()
    session.let_go()


def test_w2_what_was_acknowledged_is_complete(session: Session, tmp_path: Path) -> None:
    marks = session.recording.acknowledged
    pairs = list(zip(marks.positions, marks.values, strict=True))[1:]
    for point, operation in Random(1).sample(pairs, min(len(pairs), 20)):
        raw = raw_at(session, point)
        assert e2fsck(tmp_path, raw, "-fn")[0] == 0
        window = Window(operation, operation)
        assert session.judge.problem(sight_of(raw, session), window, Eyes.OURS) == ""


def test_w3_what_was_not_touched_survives_the_repair(session: Session, tmp_path: Path) -> None:
    recording, model = session.recording, session.model
    kept = 0
    for point in Random(2).sample(range(len(recording.log)), STATES):
        status, raw = e2fsck(tmp_path, raw_at(session, point), "-fy")
        assert status in (0, 1)
        assert e2fsck(tmp_path, raw, "-fn")[0] == 0
        seen = sight_of(raw, session)
        floor, begun = recording.acknowledged.at(point), recording.begun.at(point)
        versions = model.versions[floor : begun + 1]
        for path, number, node in model.walk(versions[0]):
            untouched = all(version.get(number) is node for version in versions)
            if untouched and not node.is_directory and path in seen:
                assert seen[path].attributes == node.attributes
                assert seen[path].content.chunks == node.content.chunks
                kept += 1
    assert kept > 10 * STATES


def e2fsck(folder: Path, raw: bytes, option: str) -> tuple[int, bytes]:
    """The exit status, and what e2fsck made of the image."""
    image = folder / "fs.img"
    image.write_bytes(raw)
    done = subprocess.run(["e2fsck", option, image], capture_output=True)
    return done.returncode, image.read_bytes()
