"""Two stacks on a bad wire: every byte arrives, once, in order, both ways, and both sides end.

All faults come from one seed, in virtual time. The text that is compared is random, so that a byte
in the wrong place cannot look right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import TCP_GIVE_UP_AFTER, TCP_SEND_ROOM_BYTES, MiB
from appliance.netstack.stack import HostConfig
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.state import State
from tests.sim.clock import VirtualClock
from tests.sim.wire import Conditions, Host, Wire, evidence
from tests.transcripts.tcp_wire import assert_sound

PORT = 2049
SERVER = HostConfig.single(bytes.fromhex("020000000005"), bytes((10, 0, 0, 5)), 24)
CLIENT = HostConfig.single(bytes.fromhex("020000000009"), bytes((10, 0, 0, 9)), 24)

QUIET = Conditions(delay=1 * MILLISECOND)
LOSSY = replace(QUIET, loss=0.03)
VERY_LOSSY = replace(QUIET, loss=0.10)
SHUFFLED = replace(QUIET, reordering=0.3, reordering_delay=3 * MILLISECOND, duplication=0.1)
DAMAGED = replace(QUIET, damage=0.03)
EVERYTHING = Conditions(
    delay=5 * MILLISECOND,
    loss=0.03,
    duplication=0.03,
    reordering=0.1,
    reordering_delay=20 * MILLISECOND,
    damage=0.02,
)
NARROW = Conditions(delay=10 * MILLISECOND, bytes_per_second=2_000_000, queue_bytes=40_000)

CONDITIONS = {
    "quiet": QUIET,
    "lossy": LOSSY,
    "very lossy": VERY_LOSSY,
    "shuffled": SHUFFLED,
    "damaged": DAMAGED,
    "everything": EVERYTHING,
    "narrow": NARROW,
}


@dataclass
class Talker:
    """Sends `text` in pieces, ends, and keeps what it gets. Reads sometimes only after a pause."""

    text: bytes
    random: Random
    naps: bool = False
    got: bytearray = field(default_factory=bytearray)
    endings: list[str | None] = field(default_factory=list)
    connection: Connection | None = None
    finished_at: Instant = 0

    def accept(self, connection: Connection) -> Talker:
        self.start(connection)
        return self

    def start(self, connection: Connection) -> None:
        self.connection = connection
        at = 0
        view = memoryview(self.text)
        while at < len(view):
            size = self.random.choice((1, 100, 1460, 20_000, 200_000))
            connection.send([view[at : at + size]])
            at += size
        connection.finish()

    def room_again(self, connection: Connection) -> None:
        if self.connection is None:
            self.start(connection)

    def readable(self, connection: Connection) -> None:
        for piece in connection.receive():
            self.got += piece
        if self.naps and self.random.random() < 0.05:
            connection.pause()

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.endings.append(reason)


class World:
    """A server, a client, a wire between them, and one connection."""

    def __init__(
        self, seed: int, conditions: Conditions, plain: bool, size: int, naps: bool = False
    ) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(
            self.clock, seed=seed, conditions=conditions, vnet_headers=(not plain, not plain)
        )
        self.server = Host(self.wire.a, self.clock, SERVER, seed=seed + 1)
        self.client = Host(self.wire.b, self.clock, CLIENT, seed=seed + 2)
        random = Random(seed)
        self.answer = Talker(random.randbytes(size), random, naps)
        self.question = Talker(random.randbytes(size), random, naps)
        self.server.stack.tcp.listen(PORT, self.answer.accept)
        self.clock.run(5 * SECOND)  # both have claimed their addresses
        self.began = self.clock.now()
        self.client.stack.tcp.connect(SERVER.address, PORT, self.question, self.clock.now())
        self.client.act()

    @property
    def talkers(self) -> tuple[Talker, Talker]:
        return self.question, self.answer

    def is_talking(self) -> bool:
        for host in (self.server, self.client):
            assert_sound(host.stack.tcp, {})
        for host, talker in ((self.client, self.question), (self.server, self.answer)):
            connection = talker.connection
            if connection is not None and connection.paused and talker.random.random() < 0.2:
                connection.resume()
                host.act()
        return not all(talker.endings for talker in self.talkers)

    def run(self, limit: Instant = 3600 * SECOND) -> None:
        assert self.clock.run_while(self.is_talking, limit), "they never came to an end"

    def assert_all_arrived(self) -> None:
        assert self.question.got == self.answer.text
        assert self.answer.got == self.question.text
        assert [talker.endings for talker in self.talkers] == [[None], [None]]


@pytest.mark.parametrize("plain", [False, True], ids=["offload", "plain"])
@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_megabyte_each_way_arrives(seed: int, name: str, plain: bool) -> None:
    """RFC 9293 section 2: reliable, in order, both ways at once, whatever the wire does."""
    world = World(seed, CONDITIONS[name], plain, 1 * MiB)
    with evidence(world.wire, f"tcp-world-{name.replace(' ', '-')}-{seed}-{plain}"):
        world.run()
        world.assert_all_arrived()
        world.clock.run(200 * SECOND)  # TIME-WAIT
        for host in (world.server, world.client):
            assert not host.stack.tcp.connections
            assert host.stack.tcp.budget.used == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_short_talk_arrives_on_any_wire(seed: int) -> None:
    """Handshake and close are most of it, so these are what gets lost."""
    random = Random(seed)
    conditions = Conditions(
        delay=random.randrange(20) * MILLISECOND,
        loss=random.random() * 0.3,
        duplication=random.random() * 0.3,
        reordering=random.random() * 0.5,
        reordering_delay=50 * MILLISECOND,
        damage=random.random() * 0.1,
    )
    world = World(seed, conditions, bool(seed % 2), 5000)
    with evidence(world.wire, f"tcp-world-short-{seed}"):
        world.run()
        world.assert_all_arrived()


@pytest.mark.parametrize("seed", range(4))
def test_readers_that_nap_close_windows_and_lose_nothing(seed: int) -> None:
    """Zero windows, probes and updates, some of them lost."""
    world = World(seed, LOSSY, bool(seed % 2), 1 * MiB, naps=True)
    with evidence(world.wire, f"tcp-world-naps-{seed}"):
        world.run()
        world.assert_all_arrived()


def test_a_peer_behind_a_cut_wire_is_given_up() -> None:
    """Both sides find out by themselves, and nothing stays behind. (The reason is what is known
    best: the neighbour does not answer either.)"""
    world = World(7, QUIET, False, TCP_SEND_ROOM_BYTES)
    world.clock.run(8 * MILLISECOND)
    world.wire.conditions = replace(QUIET, loss=1.0)
    world.run(2 * TCP_GIVE_UP_AFTER)
    assert [talker.endings for talker in world.talkers] == [["host unreachable"]] * 2
    for host in (world.server, world.client):
        assert not host.stack.tcp.connections


@pytest.mark.parametrize(
    ("conditions", "seconds"),
    [
        (QUIET, 0.03),
        (replace(QUIET, delay=25 * MILLISECOND), 0.6),
        (replace(QUIET, loss=0.01), 3.0),
        (NARROW, 2.0),
    ],
)
def test_it_is_not_slow(conditions: Conditions, seconds: float) -> None:
    """A megabyte each way, in virtual time: recovery that stalls would show here. (On the narrow
    wire, slow start overruns the queue, and without SACK each round trip mends one hole.)"""
    took = []
    for seed in range(5):
        world = World(seed, conditions, False, 1 * MiB)
        world.run()
        world.assert_all_arrived()
        took.append((world.clock.now() - world.began) / SECOND)
    assert sorted(took)[2] < seconds, took


def test_both_open_at_once() -> None:
    """RFC 9293 figure 7: two stacks, one connection."""
    world = World(3, QUIET, False, 10)
    world.run()
    tcps = world.client.stack.tcp, world.server.stack.tcp
    a, b = (Talker(random_text, Random(1)) for random_text in (b"from a", b"from b"))
    now = world.clock.now()
    tcps[0].connect(SERVER.address, 700, a, now, source_port=600)
    tcps[1].connect(CLIENT.address, 600, b, now, source_port=700)
    world.client.act()
    world.server.act()
    world.clock.run(SECOND)
    assert (bytes(a.got), bytes(b.got)) == (b"from b", b"from a")
    assert a.endings == b.endings == [None]
    for talker in (a, b):
        assert talker.connection is not None
        assert talker.connection.state in (State.TIME_WAIT, State.CLOSED)
