"""The machine's own small parts; as a whole it is tested in tests/interop."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND, Instant, SystemClock
from appliance.ifconf import ConfigError
from appliance.limits import LINK_BURST_FRAMES
from appliance.machine import StartError
from appliance.mounts import parse_size
from appliance.netstack.driver import FaultyDriver, StackDriver
from appliance.netstack.link.fault import FaultLink, parse_fault
from appliance.netstack.wire.arp import announcement
from appliance.netstack.wire.ethernet import BROADCAST, TYPE_ARP, EthernetHeader
from appliance.trace import Counters
from tests.sim.clock import VirtualClock
from tests.sim.pipe import PipeEnd, pipe
from tests.sim.ticket_filesystem import TicketFileSystem
from tests.unit.test_machine_durability import PipedMachine


class RecordingStack:
    """What a stack was given."""

    next_deadline: Instant | None = None

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.expired: list[Instant] = []
        self.timers = self  # of which only the next deadline is asked

    def receive(self, frame: bytes, now: Instant) -> None:
        self.frames.append(frame)

    def flush(self, now: Instant) -> None: ...

    def expire(self, now: Instant) -> None:
        self.expired.append(now)


def arrivals(*sizes: int) -> tuple[PipeEnd, list[int]]:
    """The link after the first of these frames was taken in, and what the stack got by it."""
    ours, theirs = pipe(mtu=1500)
    for size in sizes:
        assert theirs.send((bytes(size),))
    stack = RecordingStack()
    wire = StackDriver(stack, ours)  # type: ignore[arg-type]
    first = wire.read()
    assert first is not None
    wire.receive(first, 0)
    return ours, [len(frame) for frame in stack.frames]


def test_behind_a_full_frame_what_has_arrived_is_taken_in_too() -> None:
    link, taken = arrivals(1514, 1514, 60, 1514)
    assert taken == [1514, 1514, 60]
    assert link.receive_now() == bytes(1514)


def test_behind_a_short_frame_nothing_is_looked_for() -> None:
    assert arrivals(60, 1514)[1] == [60]


def test_a_burst_has_an_end() -> None:
    link, taken = arrivals(*[1514] * (LINK_BURST_FRAMES + 3))
    assert taken == [1514] * LINK_BURST_FRAMES
    assert link.receive_now() == bytes(1514)


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("64K", 64 << 10), ("64m", 64 << 20), ("2G", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "0", "0G", "1.5G", "-1", "64MB", "x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_frames_that_are_held_up_have_deadlines_beside_those_of_the_stack() -> None:
    clock = VirtualClock()
    ours, theirs = pipe()
    link = FaultLink(ours, [parse_fault("delay=20ms")], counters=Counters(), clock=clock)
    stack = RecordingStack()
    wire = FaultyDriver(stack, link)  # type: ignore[arg-type]
    assert wire.next_deadline is None
    theirs.send((bytes(60),))
    assert wire.read() == b""
    assert wire.next_deadline == 20 * MILLISECOND
    stack.next_deadline = 5 * MILLISECOND
    assert wire.next_deadline == 5 * MILLISECOND
    wire.expire(20 * MILLISECOND)
    assert stack.expired == [20 * MILLISECOND]
    assert wire.wait(0) and wire.read() == bytes(60)


def test_an_address_that_another_host_has_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind."""
    monkeypatch.setattr("appliance.machine.ARP_START_WAITS", 20 * SECOND)  # until it is told
    filesystem = TicketFileSystem(2, SystemClock())
    machine = PipedMachine(filesystem)
    rival, address = b"\2\0\0\0\0\x66", bytes([10, 0, 0, 5])
    header = EthernetHeader(BROADCAST, rival, TYPE_ARP).emit()
    assert machine.theirs.send((header, announcement(rival, address).emit()))
    with pytest.raises(StartError) as caught:
        machine.start()
    assert str(caught.value) == "10.0.0.5 is in use already on this link, by 02:00:00:00:00:66"
    assert "choose another --ip" in caught.value.hint
    assert filesystem.closed
    assert not machine.theirs.send((bytes(60),)), "the link is closed"
