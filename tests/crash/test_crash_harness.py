"""The harness itself, on logs and trees made by hand: it makes the states it should, and no others,
and it sees what is wrong with a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random

import pytest

from appliance.vfs.interface import Attributes, FileType, NewNode, SetAttributes
from tests.crash.geometry import GEOMETRIES, Place
from tests.crash.model import CHUNK, Content, Model, Node
from tests.crash.recording import (
    SECTOR,
    Flush,
    Image,
    MemoryDevice,
    Recording,
    RecordingDevice,
    Write,
)
from tests.crash.sight import Eyes, Judge, Seen, Sight, Window
from tests.crash.states import State, States, extremes_of, sectors_of, versions

GEOMETRY = GEOMETRIES["1k"]
BLOCK = 1024

# --- devices -----------------------------------------------------------------


def test_equal_contents_have_equal_fingerprints() -> None:
    image = Image(bytes(1 << 16))
    one, two = MemoryDevice(image.mapping()), MemoryDevice(image.mapping())
    one.write(700, [b"hello", b" world"])
    assert one.fingerprint != two.fingerprint
    two.write(704, [b"o world"])
    two.write(700, [b"hell"])
    assert one.fingerprint == two.fingerprint
    assert one.content[:] == two.content[:]
    one.write(700, [bytes(11)])
    assert one.fingerprint == 0


def test_the_essence_leaves_the_log_out() -> None:
    image = Image(bytes(1 << 16))
    device = MemoryDevice(image.mapping(), frozenset({4, 5}))
    device.write(4 * SECTOR, [b"x" * 2 * SECTOR])
    assert device.fingerprint and not device.essence
    device.write(5 * SECTOR + 500, [b"y" * 20])
    assert device.essence


def test_what_is_recorded_are_whole_sectors() -> None:
    recording = Recording(bytes(1 << 16))
    device = RecordingDevice(Image(recording.base).mapping(), recording)
    device.write(700, [b"hello", b" world"])
    device.write(1020, [b"ABCDEFGH"])
    first, second = recording.log
    assert isinstance(first, Write) and isinstance(second, Write)
    assert (first.offset, second.offset) == (512, 512)
    assert first.data == bytes(188) + b"hello world" + bytes(313)
    assert second.data[188:199] == b"hello world"
    assert second.data[508:516] == b"ABCDEFGH" and len(second.data) == 1024


def test_a_mark_holds_from_its_place_on() -> None:
    recording = Recording(b"")
    recording.log.extend((Write(0, b"a"), Flush()))
    recording.begin(1)
    recording.log.append(Write(0, b"b"))
    recording.acknowledge(1)
    assert [recording.begun.at(point) for point in range(4)] == [0, 0, 1, 1]
    assert [recording.acknowledged.at(point) for point in range(4)] == [0, 0, 0, 1]


# --- states ------------------------------------------------------------------


def recorded(*events: Write | Flush) -> Recording:
    recording = Recording(bytes(1 << 16))
    recording.log.extend(events)
    return recording


def contents_of(recording: Recording, state: State) -> bytes:
    content = bytearray(recording.base)
    pieces = [(event.offset, event.data) for event in settled(recording, state)]
    for offset, data in [*pieces, *state.pieces]:
        content[offset : offset + len(data)] = data
    return bytes(content)


def settled(recording: Recording, state: State) -> list[Write]:
    return [event for event in recording.log[: state.settled] if isinstance(event, Write)]


def test_a_write_is_torn_at_the_sectors_of_the_device() -> None:
    write = Write(700, b"a" * 324 + b"b" * 1024 + b"c" * 10)
    assert sectors_of(write, 1024) == [(700, b"a" * 324), (1024, b"b" * 1024), (2048, b"c" * 10)]
    assert len(sectors_of(write, 512)) == 4
    assert sectors_of(write, 4096) == [(700, write.data)]


LOG = recorded(
    Write(0, b"1" * 2048),
    Flush(),
    Write(0, b"2" * 1024),
    Write(512, b"3" * 1024),
    Flush(),
    Write(1024, b"4" * 512),
    Write(4096, b"5" * 512),
)


def test_every_prefix_is_a_state_of_the_process() -> None:
    found = [
        contents_of(LOG, state)[:2048:512] for state in States(LOG, GEOMETRY, 0).every_prefix()
    ]
    assert found == [
        b"\0\0\0\0",
        b"1111",
        b"1111",
        b"2211",
        b"2331",
        b"2331",
        b"2341",
        b"2341",
    ]


def possible(point: int) -> list[set[int]]:
    """By sector: what it may hold if the host dies at `point`."""
    last = max((i for i in range(point) if isinstance(LOG.log[i], Flush)), default=-1)
    held = [{0} for _ in range(9)]
    for index, event in enumerate(LOG.log[:point]):
        if isinstance(event, Write):
            for offset, data in sectors_of(event, SECTOR):
                settled_now = index < last
                sector = offset // SECTOR
                held[sector] = {data[0]} if settled_now else held[sector] | {data[0]}
    return held


def test_states_of_the_host_hold_what_was_flushed_and_any_of_the_rest() -> None:
    seen = set()
    for state in States(LOG, GEOMETRY, 7).sample(3000):
        content = contents_of(LOG, state)
        sectors = content[: 9 * SECTOR : SECTOR]
        if state.host:
            allowed = possible(state.point)
            assert all(held in allowed[at] for at, held in enumerate(sectors)), state
            seen.add((state.point, sectors))
    for point in range(len(LOG.log) + 1):
        allowed = possible(point)
        combinations = 1
        for held in allowed:
            combinations *= len(held)
        found = sum(at == point for at, _ in seen)
        assert found > min(combinations, 6) // 2, point


def test_states_are_the_same_for_the_same_seed() -> None:
    assert States(LOG, GEOMETRY, 3).sample(50) == States(LOG, GEOMETRY, 3).sample(50)
    assert States(LOG, GEOMETRY, 3).sample(50) != States(LOG, GEOMETRY, 4).sample(50)


def test_without_a_dying_host_there_are_only_prefixes() -> None:
    for state in States(LOG, GEOMETRY, 3, host=False).sample(300):
        assert not state.host
        whole = contents_of(LOG, State(state.settled, state.settled, (), "", False))
        event = LOG.log[state.settled] if state.settled < len(LOG.log) else Flush()
        torn = sectors_of(event, 512) if isinstance(event, Write) else []
        kept = b"".join(data for _, data in state.pieces)
        assert contents_of(LOG, state) == whole or b"".join(d for _, d in torn).startswith(kept)


def test_the_extremes() -> None:
    writes = [Write(0, b"a" * 512), Write(512, b"b" * 512), Write(0, b"c" * 1024)]
    found = dict(extremes_of(writes))
    assert found["nothing"] == []
    assert found["all"] == [(0, b"a" * 512), (512, b"b" * 512), (0, b"c" * 1024)]
    assert found["only 1"] == [(512, b"b" * 512)]
    assert found["all but 0"] == [(512, b"b" * 512), (0, b"c" * 1024)]
    assert found["last torn at 512"][-1] == (0, b"c" * 512)
    assert found["last torn at 512 from behind"][-1] == (512, b"c" * 512)


def test_a_sector_may_be_of_any_version() -> None:
    writes = [Write(0, bytes([value]) * 512) for value in range(1, 6)]
    found = set()
    for seed in range(200):
        pieces = versions(writes, 512, Random(seed))
        assert [data[0] for _, data in pieces] == list(range(1, len(pieces) + 1))
        found.add(len(pieces))
    assert found == set(range(6))


def test_writes_are_recognised() -> None:
    commit = b"\xc0\x3b\x39\x98" + (2).to_bytes(4, "big")
    ring = GEOMETRY.ring
    assert len(ring) == 1024
    table = GEOMETRY.volume.group(0).bg_inode_table_lo
    cases = [
        (Write(1024, bytes(1024)), Place.SUPERBLOCK),
        (Write(ring[0] * BLOCK, bytes(1024)), Place.JOURNAL_SUPERBLOCK),
        (Write(ring[5] * BLOCK, bytes(3072)), Place.LOG),
        (Write(ring[5] * BLOCK, bytes(2048) + commit.ljust(1024, b"\0")), Place.COMMIT_BLOCK),
        (Write(table * BLOCK, bytes(1024)), Place.CHECKPOINT),
        (Write(9000 * BLOCK, bytes(1024)), Place.OTHER),
    ]
    assert [GEOMETRY.place(write) for write, _ in cases] == [place for _, place in cases]


# --- contents ----------------------------------------------------------------


def test_contents_are_what_a_bytearray_is() -> None:
    rng = Random(5)
    content, real = Content(), bytearray()
    for _ in range(400):
        if rng.random() < 0.7:
            offset, data = rng.randrange(20_000), rng.choice((b"", bytes(900), rng.randbytes(6000)))
            content = content.write(offset, data)
            if data:
                real.extend(bytes(max(0, offset + len(data) - len(real))))
                real[offset : offset + len(data)] = data
            else:
                real.extend(bytes(max(0, offset - len(real))))
        else:
            size = rng.randrange(25_000)
            content = content.resize(size)
            del real[size:]
            real.extend(bytes(size - len(real)))
        chunks = -(-len(real) // CHUNK)
        held = b"".join(content.read(index * CHUNK, CHUNK) for index in range(chunks))
        assert held[: len(real)] == real
        assert not any(held[len(real) :])
        assert content.size == len(real)
        assert content == Content.of(bytes(real)).resize(len(real))


# --- judging -----------------------------------------------------------------


class World:
    """A model whose file system is imagined."""

    def __init__(self) -> None:
        root = Node(NewNode(FileType.DIRECTORY, 0o755, 0, 0), 2, Content(), {}, 2, {})
        self.model = Model({2: root}, 2)
        self.clock = 0
        self.observe([2])
        self.model.versions[0] = dict(self.model.now)
        self.judge = Judge(self.model)

    def observe(self, touched: Sequence[int]) -> None:
        for number in touched:
            node = self.model.now[number]
            self.clock += 1
            attributes = Attributes(
                node.new.type,
                node.new.mode,
                node.nlink,
                node.new.uid,
                node.new.gid,
                node.content.size,
                0,
                node.new.rdev,
                number,
                0,
                self.clock,
                self.clock,
                self.clock,
            )
            self.model.observed(number, b"handle-%d" % number, attributes)

    def did(self, touched: Sequence[int]) -> int:
        self.observe(touched)
        return self.model.keep()

    def create(self, name: bytes, number: int, parent: int = 2) -> int:
        new = NewNode(FileType.REGULAR, 0o644, 0, 0)
        return self.did(self.model.create(parent, name, number, new))

    def sight(self, version: int) -> Sight:
        found: Sight = {}
        for path, _, node in self.model.walk(self.model.versions[version]):
            assert node.attributes is not None
            found[path] = Seen(node.attributes, node.handle, node.new.target, node.content)
        return found

    def problem(self, sight: Sight, floor: int, begun: int, written: int = 0) -> str:
        marks = {11: written} if written else {}
        return self.judge.problem(sight, Window(floor, begun, marks), Eyes.OURS)


@pytest.fixture
def world() -> World:
    """A file of 3000 bytes, rewritten once in the middle, and cut."""
    world = World()
    world.create(b"file", 11)
    world.did(world.model.write(11, 0, b"a" * 3000))
    world.did(world.model.write(11, 512, b"b" * 1000))
    world.did(world.model.set_attributes(11, SetAttributes(size=1100)))
    return world


def with_content(sight: Sight, data: bytes) -> Sight:
    sight[b"/file"].content = Content.of(data)
    return sight


def test_any_version_between_the_acknowledged_and_the_begun_may_be_seen(world: World) -> None:
    for version in range(5):
        for floor in range(5):
            for begun in range(floor, 5):
                problem = world.problem(world.sight(version), floor, begun)
                assert (not problem) == (floor <= version <= begun), problem


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        (b"a" * 3000, True),
        (b"a" * 512 + b"b" * 512 + b"a" * (3000 - 1024), True),
        (b"a" * 1024 + b"b" * 488 + b"a" * (3000 - 1512), True),
        (b"a" * 512 + b"b" * 1000 + b"a" * (3000 - 1512), True),
        # The cut leaves no trace, and there is nothing that nobody ever wrote there.
        (b"a" * 512 + b"b" * 588 + bytes(948) + b"a" * 952, False),
        (b"a" * 1536 + bytes(512) + b"a" * 952, False),
        (b"a" * 512 + b"c" + b"a" * 2487, False),
        (b"a" * 600 + b"b" * 400 + b"a" * 2000, False),
        (b"b" * 512 + b"a" * 2488, False),
        (bytes(512) + b"a" * 2488, False),
    ],
)
def test_what_was_not_acknowledged_may_be_there_sector_by_sector(
    world: World, data: bytes, allowed: bool
) -> None:
    problem = world.problem(with_content(world.sight(2), data), 2, 4)
    assert (not problem) == allowed, problem


def test_what_was_acknowledged_is_exact(world: World) -> None:
    sight = with_content(world.sight(3), b"a" * 3000)
    assert "byte 512 of" in world.problem(sight, 3, 3)
    assert "byte 512 of" in world.problem(sight, 0, 4)


def test_what_was_acknowledged_for_one_file_binds_its_bytes(world: World) -> None:
    sight = with_content(world.sight(2), b"a" * 3000)
    assert not world.problem(sight, 2, 3)
    assert "byte 512 of" in world.problem(sight, 2, 3, written=3)


Change = Callable[[Sight], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sight: sight.pop(b"/file"), "b'/file' is missing"),
        (lambda sight: sight.update({b"/more": sight[b"/file"]}), "b'/more' should not be there"),
        (lambda sight: setattr(sight[b"/file"], "handle", b"other"), "b'/file' is"),
        (lambda sight: setattr(sight[b""], "attributes", None), "b'' is"),
        (lambda sight: setattr(sight[b"/file"], "target", b"x"), "b'/file' is"),
        (lambda sight: setattr(sight[b"/file"], "xattrs", {b"user.x": b""}), "b'/file' is"),
    ],
)
def test_every_difference_is_seen(world: World, change: Change, said: str) -> None:
    sight = world.sight(4)
    change(sight)
    assert said in world.problem(sight, 0, 4)


def test_a_number_that_is_used_again_is_another_file() -> None:
    """The bytes of a removed file are not a content that the next one with its number may have."""
    world = World()
    world.create(b"file", 11)
    world.did(world.model.write(11, 0, b"secret"))
    world.did(world.model.remove(2, b"file"))
    created = world.did(world.model.create(2, b"file", 11, NewNode(FileType.REGULAR, 0o644, 0, 0)))
    written = world.did(world.model.write(11, 0, b"public"))
    assert not world.problem(world.sight(written), created, written)
    assert world.problem(with_content(world.sight(written), b"secret"), 0, written)


# --- the model ---------------------------------------------------------------


def test_links_and_parents_are_counted() -> None:
    world = World()
    model = world.model
    directory = NewNode(FileType.DIRECTORY, 0o755, 0, 0)
    for number, name in ((20, b"one"), (21, b"two")):
        world.did(model.create(2, name, number, directory))
    world.create(b"file", 30, parent=20)
    world.did(model.link(21, b"hard", 30))
    world.did(model.rename(2, b"two", 20, b"below"))
    counts = {number: node.nlink for number, node in model.now.items()}
    assert counts == {2: 3, 20: 3, 21: 2, 30: 2}
    assert model.now[21].parent == 20
    world.did(model.remove(20, b"file"))
    world.did(model.rename(21, b"hard", 2, b"hard"))
    world.did(model.remove(20, b"below"))
    assert set(model.now) == {2, 20, 30}
    assert model.now[30].nlink == 1
    world.create(b"other", 31)
    world.did(model.rename(2, b"other", 2, b"hard"))
    assert set(model.now) == {2, 20, 31}
    assert set(model.now[2].entries) == {b"one", b"hard"}


def test_a_rename_over_another_name_of_the_same_file_does_nothing() -> None:
    world = World()
    world.create(b"file", 11)
    world.did(world.model.link(2, b"same", 11))
    assert world.model.rename(2, b"file", 2, b"same") == []


def test_an_attribute_that_the_model_did_not_expect_is_an_error() -> None:
    world = World()
    world.create(b"file", 11)
    node = world.model.now[11]
    assert node.attributes is not None
    with pytest.raises(AssertionError, match="same ctime"):
        world.model.observed(11, node.handle, node.attributes)
    world.clock += 1
    node.attributes.nlink = 2
    with pytest.raises(AssertionError, match="should be"):
        world.model.observed(11, node.handle, node.attributes)


def test_a_state_costs_only_what_differs() -> None:
    image = Image(bytes(64 << 20))
    for _ in range(100):
        with closing(image.mapping()) as content:
            MemoryDevice(content).write(1 << 20, [b"x"])
    assert image.size == 64 << 20
