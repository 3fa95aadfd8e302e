"""RFC 3168 between IP and TCP: the mark of a router comes through both ways into the stack, and
what we send says that it may be marked, also where the link cuts it up."""

from __future__ import annotations

from random import Random

import pytest

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.netstack.ip.path import CE, ECT_0
from appliance.netstack.link.segmentation import wire_frames
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.wire import vnet
from appliance.netstack.wire.checksum import checksum
from appliance.netstack.wire.tcp import CWR, ECE, FLAGS_AT
from appliance.netstack.wire.vnet import VnetHeader
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_ADDRESS, OURS, PEER
from tests.sim.station6 import OUR_ADDRESS as OUR_ADDRESS6
from tests.sim.station6 import OURS6, PEER6
from tests.sim.wire import Conditions, Host, Wire, WireEnd, evidence

IP_AT = 14
KINDS = {b"\x08\x00": (34, OURS, PEER, OUR_ADDRESS), b"\x86\xdd": (54, OURS6, PEER6, OUR_ADDRESS6)}
"""By type of frame: where TCP begins without options or extensions, and who takes part."""

IPV4, IPV6 = KINDS
LINKS = pytest.mark.parametrize(
    ("kind", "has_vnet_header"), [(k, v) for k in KINDS for v in (False, True)]
)
TEXT = Random(3).randbytes(1 << 20)


class Reader:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.text = bytearray()

    def readable(self, connection: Connection) -> None:
        for piece in connection.receive():
            self.text += piece

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        """Not looked at."""


class MarkingRouter:
    """Two stacks, and between them a router that marks what may be marked, every so often."""

    def __init__(self, has_vnet_header: bool, mark_every: int, kind: bytes = IPV4) -> None:
        self.kind = kind
        self.tcp_at, ours, peer, address = KINDS[kind]
        self.clock = VirtualClock()
        headers = (has_vnet_header, has_vnet_header)
        conditions = Conditions(delay=5 * MILLISECOND)
        self.wire = Wire(self.clock, conditions=conditions, vnet_headers=headers)
        self.a = Host(self.wire.a, self.clock, peer, 1)
        self.b = Host(self.wire.b, self.clock, ours, 2)
        self.mark_every = mark_every
        self.could_be_marked = 0
        self.seen: list[bytes] = []
        self._route(self.wire.b)
        self._route(self.wire.a)
        self.there = Reader()
        self.b.stack.tcp.listen(2049, lambda _connection: self.there)
        self.clock.run(5 * SECOND)
        self.connection = self.a.stack.tcp.connect(
            address, 2049, Reader(), self.clock.now(), ecn=True
        )
        self.a.act()
        self.clock.run(SECOND)

    def _route(self, end: WireEnd) -> None:
        behind = end.deliver

        def through(frame: bytes) -> None:
            front, bare = (frame[:10], frame[10:]) if end.vnet else (b"", frame)
            self.seen.append(bare)
            behind(front + self.marked(bare))

        end.deliver = through

    def ecn_of(self, frame: bytes) -> int:
        """What the IP header says; 0 for other packets."""
        if frame[12:14] != self.kind:
            return 0
        return (frame[IP_AT + 1] if self.kind == IPV4 else frame[IP_AT + 1] >> 4) & CE

    def marked(self, frame: bytes) -> bytes:
        """The frame; marked, if it may be and it is its turn."""
        if self.ecn_of(frame) != ECT_0:
            return frame
        self.could_be_marked += 1
        if self.could_be_marked % self.mark_every:
            return frame
        changed = bytearray(frame)
        if self.kind == IPV6:
            changed[IP_AT + 1] |= CE << 4
            return bytes(changed)
        changed[IP_AT + 1] |= CE
        changed[IP_AT + 10 : IP_AT + 12] = bytes(2)
        summed = checksum(changed[IP_AT : self.tcp_at]).to_bytes(2, "big")
        changed[IP_AT + 10 : IP_AT + 12] = summed
        return bytes(changed)


@LINKS
def test_a_marking_router_slows_us_down_without_a_loss(kind: bytes, has_vnet_header: bool) -> None:
    """RFC 3168 section 6.1: the window stays small, and not a byte has to be sent again."""
    world = MarkingRouter(has_vnet_header, 50, kind)
    with evidence(world.wire, "ecn"):
        world.connection.send([TEXT])
        world.a.act()
        assert world.clock.run_while(lambda: len(world.there.text) < len(TEXT), 60 * SECOND)
    assert bytes(world.there.text) == TEXT
    assert world.b.counters["tcp.ecn_marked"] >= 5
    assert 5 <= world.a.counters["tcp.ecn_reactions"] <= world.could_be_marked // 50 + 1
    assert world.a.counters["tcp.bytes_resent"] == 0
    assert world.connection.congestion.window < 100 * world.connection.mss
    for frame in world.seen:
        if world.ecn_of(frame):
            text = len(frame) - world.tcp_at - (frame[world.tcp_at + 12] >> 4) * 4
            assert text > 0, "only text may be marked"


def test_without_marks_nothing_is_slowed_down() -> None:
    """The same world, so that the marks are what the other test sees."""
    world = MarkingRouter(True, mark_every=1 << 60)
    world.connection.send([TEXT])
    world.a.act()
    assert world.clock.run_while(lambda: len(world.there.text) < len(TEXT), 60 * SECOND)
    assert world.a.counters["tcp.ecn_reactions"] == 0
    assert world.connection.congestion.window > 200 * world.connection.mss


@LINKS
def test_the_express_lane_keeps_the_mark(kind: bytes, has_vnet_header: bool) -> None:
    """The long way is shut: what comes in and is marked is taken all the same, and echoed."""
    world = MarkingRouter(has_vnet_header, 1, kind)
    lane = world.b.stack

    def shut(frame: bytes, now: Instant) -> None:
        raise AssertionError("the long way")

    lane._take = shut  # type: ignore[method-assign]
    world.seen.clear()
    world.connection.send([b"text"])
    world.a.act()
    world.clock.run(SECOND // 2)
    assert bytes(world.there.text) == b"text"
    (answer,) = [f for f in world.seen if f[12:14] == kind and not world.ecn_of(f)]
    assert answer[world.tcp_at + FLAGS_AT] & ECE


@pytest.mark.parametrize(("kind", "gso"), [(IPV4, vnet.GSO_TCPV4), (IPV6, vnet.GSO_TCPV6)])
def test_the_link_hears_of_cwr_on_a_super_segment(kind: bytes, gso: int) -> None:
    """A virtio-net header says so, and the link then puts CWR into the first segment alone."""
    world = MarkingRouter(True, 1 << 60, kind)
    frames: list[bytes] = []
    carry = world.wire.carry

    def look(sender: WireEnd, frame: bytes) -> bool:
        frames.append(frame)
        return carry(sender, frame)

    world.wire.carry = look  # type: ignore[method-assign]
    ecn = world.connection.ecn
    assert ecn is not None
    ecn.cwr_due = True
    for _ in range(2):
        world.connection.send([bytes(5 * world.connection.mss)])
        world.a.act()
        world.clock.run(SECOND // 2)
    first, second = (f for f in frames if len(f) > 3000)
    assert VnetHeader.parse(first).gso_type == gso | vnet.GSO_ECN
    assert VnetHeader.parse(second).gso_type == gso
    flags = [f[world.tcp_at + FLAGS_AT] & CWR for f in wire_frames(first)]
    assert flags == [CWR, 0, 0, 0, 0]
    assert all(world.ecn_of(f) == ECT_0 for f in wire_frames(first))
