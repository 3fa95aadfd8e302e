"""Whatever arrives, in whatever state: no exception, and the invariants hold.

Segments are made from what would be right for the connection, and then bent: numbers moved to where
something changes (edges of windows, what is in flight, the wrap), flags drawn at random, options
damaged, bytes of the packet overwritten. Between them, the user makes calls and time goes by.
After each segment `assert_sound` (tcp_wire.py) looks at everything, and a bad segment was answered
once at most.
"""

from __future__ import annotations

from random import Random

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import KiB
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment
from tests.transcripts.tcp_wire import Wire

SEGMENTS = 5_000
"""On each of the two lanes."""
EPISODE = 40
"""Segments to one connection, before a new one is begun."""

FLAGS = (ACK, ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, FIN | PSH | ACK, SYN, SYN | ACK, RST)


def near(random: Random, *places: int) -> int:
    """One of these places, or a little beside it, or far away."""
    place = random.choice(places)
    return place + random.choice((0, 0, 0, 0, 1, -1, 2, 1459, 1460, -1460, 1 << 16, 1 << 31))


class Fuzzer:
    """A host, a seed, and one connection after another."""

    def __init__(self, wire: Wire, seed: int) -> None:
        self.random = random = Random(seed)
        self.wire = wire.host(
            offload=random.random() < 0.5,
            receive_bytes=random.choice((1000, 65_535, 256 * KiB)),
            seed=seed,
            our_isn=random.choice((None, 0xFFFF_FFF0)),
            peer_isn=random.choice((5000, 0xFFFF_FFF0)),
        )
        self.states: set[State] = set()

    def begin(self) -> None:
        """A new connection, in some state."""
        random, wire = self.random, self.wire
        wire.peer_port = random.randrange(1024, 60_000)
        wire.our_port, wire.our_isn = 2049, None
        wire.stamp = None
        wire.app.reading = random.random() < 0.8
        stamp = random.choice((None, random.getrandbits(32)))
        if random.random() < 0.2:
            wire.peer_port = 40_000
            if wire.connection() is None and (wire.key not in wire.tcp.connections):
                self.connect()
            return
        wire.peer(
            SYN,
            seq=0,
            mss=random.choice((None, 0, 88, 536, 1460)),
            shift=random.choice((None, 0, 7)),
            stamp=None if stamp is None else (stamp, 0),
        )
        c = wire.connection()
        if c is None or random.random() < 0.15:
            return
        self.segment(c, ACK, c.rcv.nxt, c.snd.nxt, b"", stamp)
        if c.state is State.ESTABLISHED and random.random() < 0.5:
            self.call(c)
            self.walk(c)

    def connect(self) -> None:
        wire = self.wire
        for c in list(wire.tcp.connections.values()):
            if c.local_port == 3000:
                c.abort()
        wire.tcp.connect(wire.path.destination, 40_000, wire.app, wire.now, source_port=3000)
        wire.our_port = 3000
        wire.flush()

    def walk(self, c: Connection) -> None:
        """Right segments that lead to a later state."""
        for _ in range(self.random.randrange(4)):
            if self.random.random() < 0.4:
                c.close()
                self.wire.flush()
            flags = self.random.choice((ACK, FIN | ACK))
            self.segment(c, flags, c.rcv.nxt, c.snd.nxt, b"", None)

    def segment(
        self, c: Connection, flags: int, seq: int, ack: int, text: bytes, stamp: int | None
    ) -> None:
        if c.stamps and stamp is None:
            stamp = c.stamp_recent + self.random.choice((0, 0, 1, 1, -1, 1 << 31)) & MASK
        self.states.add(c.state)
        segment = Segment(
            c.peer_port, c.local_port, seq, ack, flags,
            self.random.choice((0, 1, 100, 1000, 65_535, 65_535)),
            timestamp=None if stamp is None else (stamp, 0),
        )  # fmt: skip
        self.arrives(bytes(segment.emit()) + text)

    def arrives(self, packet: bytes) -> None:
        """It arrives; then nothing may be wrong, and it was answered with one packet at most (text
        that it released is not an answer)."""
        wire = self.wire
        before = len(wire.path.sent)
        if self.random.random() < 0.02:
            damaged = bytearray(packet)
            damaged[self.random.randrange(len(packet))] = self.random.getrandbits(8)
            packet = bytes(damaged[: self.random.randint(0, len(packet))])
        if self.random.random() < 0.01:
            wire.arrives_as_is(packet)
        else:
            wire.arrives(packet) if len(packet) >= 18 else wire.arrives_as_is(packet)
        answers = [p for p, _ in wire.path.sent[before:] if len(p) == (p[12] >> 4) * 4]
        assert len(answers) <= 1
        wire.path.sent.clear()
        del wire.log[:-200]

    def bend(self, c: Connection) -> None:
        """A segment that is nearly right."""
        random, snd, rcv = self.random, c.snd, c.rcv
        flags = random.choice(FLAGS) if random.random() < 0.9 else random.getrandbits(8)
        seq = near(random, rcv.nxt, rcv.nxt, rcv.edge, rcv.acked, rcv.irs)
        ack = near(random, snd.nxt, snd.nxt, snd.una, snd.una, snd.iss, (snd.una + snd.nxt) // 2)
        size = random.choice((0, 0, 1, 10, 1460, 1460, 30_000))
        self.segment(c, flags, seq, ack, random.randbytes(size), None)

    def call(self, c: Connection) -> None:
        """The user does something."""
        random = self.random
        match random.randrange(12):
            case 0:
                c.close()
            case 1:
                c.finish()
            case 2:
                c.pause()
            case 3:
                c.resume()
            case 4:
                c.receive()
            case 5:
                c.keep_alive(KeepAlive(idle=SECOND, interval=SECOND, probes=3))
            case 6 if random.random() < 0.2:
                c.abort()
            case 7:
                c.nodelay = not c.nodelay
            case 8:
                c.user_timeout = 5 * SECOND
            case _:
                c.send([random.randbytes(random.choice((1, 100, 1460, 5000, 100_000)))])
        self.wire.flush()

    def run(self, segments: int) -> None:
        wire, random = self.wire, self.random
        for turn in range(segments):
            if turn % EPISODE == 0:
                self.begin()
            if random.random() < 0.2:
                wire.after(random.choice((1, 40, 200, 1000, 61_000)) * MILLISECOND)
                wire.path.sent.clear()
            c = wire.connection()
            if c is None:
                self.begin()
                continue
            if random.random() < 0.2:
                self.call(c)
                wire.path.sent.clear()
            self.bend(c)


@pytest.mark.parametrize("seed", range(10))
def test_no_segment_breaks_a_connection(wire: Wire, seed: int) -> None:
    """Invariants in every state, after each of 500 segments for each seed and lane."""
    fuzzer = Fuzzer(wire, seed)
    fuzzer.run(SEGMENTS // 10)
    wire.ignore()
    expected = {State.ESTABLISHED, State.SYN_RECEIVED, State.CLOSE_WAIT, State.FIN_WAIT_1}
    assert expected <= fuzzer.states


@pytest.mark.lanes("express", "long way")  # it takes long
def test_the_fuzzer_reaches_every_state(wire: Wire) -> None:
    """Or it would prove little."""
    states: set[State] = set()
    for seed in range(100, 110):
        fuzzer = Fuzzer(wire, seed)
        fuzzer.run(400)
        wire.ignore()
        states |= fuzzer.states
    assert states >= set(State) - {State.LISTEN, State.CLOSED}


def test_when_all_is_over_nothing_is_left(wire: Wire) -> None:
    """After the peers have gone and the users have closed, tables, timers and budgets are empty."""
    fuzzer = Fuzzer(wire, 99)
    fuzzer.run(500)
    for c in list(wire.tcp.connections.values()):
        c.close()
    wire.after(1000 * SECOND).ignore()
    assert not wire.tcp.connections
    assert wire.tcp.budget.used == 0
    assert wire.timers.next_deadline is None
    assert not wire.listener.open
    assert not wire.listener.half_open


@pytest.mark.parametrize("seed", range(5))
def test_both_lanes_do_the_same(seed: int) -> None:
    """Header prediction is only a short cut: the same segments give the same packets."""
    outputs = []
    for expressly in (True, False):
        wire = Wire(expressly)
        fuzzer = Fuzzer(wire, seed)
        record: list[bytes] = []
        original = wire.path.send_tcp

        def send_tcp(header, text, text_bytes, mss, ecn=0, record=record, original=original):  # type: ignore[no-untyped-def]
            record.append(bytes((ecn,)) + bytes(header) + b"".join(text))
            original(header, text, text_bytes, mss, ecn)

        wire.path.send_tcp = send_tcp  # type: ignore[method-assign]
        fuzzer.run(600)
        outputs.append((record, bytes(wire.app.text)))
    assert outputs[0] == outputs[1]
