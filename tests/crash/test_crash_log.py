"""The log by itself, below any file system: after a crash around commit blocks and checkpoints, the
blocks are as after one transaction, and none that was durable is missing."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from appliance.fsimage.ext4 import journal, layout
from appliance.fsimage.ext4.journal.log import JournalLog
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from tests.crash.geometry import GEOMETRIES, Geometry, Place
from tests.crash.oracles import FRESH_FOLDER
from tests.crash.recording import Image, MemoryDevice, Recording, RecordingDevice, Write
from tests.crash.states import Stage, State, States

FIRST, COUNT = 3300, 400
"""Blocks that are free: what is written there hurts nobody."""

TRANSACTIONS = 330
MAGIC = b"\xc0\x3b\x39\x98"
Blocks = dict[int, bytes]


@dataclass
class Logged:
    """Transactions that were written, and what the blocks were after each of them."""

    geometry: Geometry
    recording: Recording
    after: list[Blocks]


def base_in_use(geometry: Geometry) -> bytes:
    """An image whose superblock says that the journal counts."""
    base = bytearray(geometry.base)
    start = layout.SUPERBLOCK_OFFSET
    raw = base[start : start + SUPERBLOCK_BYTES]
    disk = Superblock.parse(bytes(raw)).disk
    disk.s_feature_incompat |= layout.INCOMPAT_RECOVER
    disk.encode_into(raw, 0)
    if disk.s_feature_ro_compat & layout.RO_COMPAT_METADATA_CSUM:
        disk.s_checksum = superblock_checksum(bytes(raw))
        disk.encode_into(raw, 0)
    base[start : start + SUPERBLOCK_BYTES] = raw
    return bytes(base)


pytestmark = pytest.mark.xdist_group("one log for all")


@pytest.fixture(scope="module", params=["1k", "4k", "no-csum", "32bit", "ext3"])
def logged(request: pytest.FixtureRequest) -> Logged:
    geometry = GEOMETRIES[request.param]
    recording = Recording(base_in_use(geometry))
    device = RecordingDevice(Image(recording.base).mapping(), recording)
    volume = Volume(device, Superblock.read(device), geometry.name)
    rng = Random(geometry.name)
    log = JournalLog(volume, journal.ring_of(volume), device.flush, lambda: rng.getrandbits(60))
    after: list[Blocks] = [{}]
    for number in range(1, TRANSACTIONS + 1):
        blocks = {block: contents(rng, geometry) for block in numbers(rng)}
        revoked = set(numbers(rng)) - blocks.keys() if rng.random() < 0.2 else set()
        recording.begin(number)
        log.write(blocks, revoked)
        recording.acknowledge(number)
        kept = {block: held for block, held in after[-1].items() if block not in revoked}
        after.append(kept | blocks)
        if log.wants_checkpoint and rng.random() < 0.7:
            log.checkpoint()
    return Logged(geometry, recording, after)


def numbers(rng: Random) -> list[int]:
    return [FIRST + rng.randrange(COUNT) for _ in range(rng.choice((1, 2, 5, 30)))]


def contents(rng: Random, geometry: Geometry) -> bytes:
    """Some of them look like blocks of the journal."""
    raw = rng.randbytes(geometry.block_bytes)
    return MAGIC + raw[4:] if rng.random() < 0.2 else raw


def devices(logged: Logged) -> Iterator[tuple[State, MemoryDevice]]:
    """A sample of states, and all the extremes around some commit blocks."""
    possible = States(logged.recording, logged.geometry, 1)
    found = possible.sample(200)
    commits = [
        index
        for index, event in enumerate(logged.recording.log)
        if isinstance(event, Write) and logged.geometry.place(event) is Place.COMMIT_BLOCK
    ]
    for index in Random(2).sample(commits, 6):
        found += possible.extremes(index + 1)
    stage = Stage(logged.recording, frozenset())
    with closing(stage):
        for state in sorted(found, key=lambda state: state.settled):
            with stage.device(state) as device:
                yield state, device


def test_the_log_wraps_and_is_checkpointed(logged: Logged) -> None:
    places = [
        (logged.geometry.place(event), event.offset)
        for event in logged.recording.log
        if isinstance(event, Write)
    ]
    in_log = [offset for place, offset in places if place in (Place.LOG, Place.COMMIT_BLOCK)]
    assert sum(after < before for before, after in pairwise(in_log)) >= 2
    assert sum(place is Place.JOURNAL_SUPERBLOCK for place, _ in places) > 4


def test_j5_no_copy_looks_like_a_block_of_the_journal(logged: Logged) -> None:
    size, place = logged.geometry.block_bytes, logged.geometry.place
    raw = b"".join(
        event.data
        for event in logged.recording.log
        if isinstance(event, Write) and place(event) in (Place.LOG, Place.COMMIT_BLOCK)
    )
    blocks = [raw[at : at + size] for at in range(0, len(raw), size)]
    begin_alike = [block for block in blocks if block.startswith(MAGIC)]
    kinds = {int.from_bytes(block[4:8], "big") for block in begin_alike}
    assert kinds == {1, 2, 5}  # descriptors, commit blocks, revoke blocks
    assert len(begin_alike) < len(blocks)


def test_blocks_are_as_after_one_transaction(logged: Logged) -> None:
    for state, device in devices(logged):
        superblock = Superblock.read(device)
        if superblock.needs_recovery:
            journal.recover_in_place(Volume(device, superblock, "crashed"), device.flush)
        assert_is_some_transaction(logged, state, device.content, "our recovery")


def test_e2fsck_says_the_same(logged: Logged) -> None:
    with TemporaryDirectory(dir=FRESH_FOLDER) as folder:
        image = Path(folder) / "fs.img"
        for state, device in islice(devices(logged), 0, None, 3):
            image.write_bytes(device.content)
            done = subprocess.run(
                ["e2fsck", "-E", "journal_only", "-y", image], capture_output=True, text=True
            )
            assert done.returncode in (0, 1), done.stdout
            assert "corrupt" not in done.stdout, f"{state.recipe}: {done.stdout}"
            assert_is_some_transaction(logged, state, image.read_bytes(), "e2fsck")


def assert_is_some_transaction(
    logged: Logged, state: State, raw: bytes | mmap.mmap, who: str
) -> None:
    """Blocks that a transaction revoked may hold anything: nobody has them any more."""
    size = logged.geometry.block_bytes
    floor = logged.recording.acknowledged.at(state.point)
    begun = logged.recording.begun.at(state.point)
    wrong: set[int] = set()
    for number in range(floor, begun + 1):
        expected = logged.after[number]
        wrong = {
            block
            for block, held in expected.items()
            if raw[block * size : block * size + size] != held
        }
        if not wrong:
            return
    raise AssertionError(f"{who}, {state.recipe}: not {floor}..{begun}: {sorted(wrong)[:8]}")
