"""RFC 1191: a router in between takes only smaller packets, and says so; RFC 5927: or somebody who
is not there says so."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import PATH_MTU_LEARNT_FOR
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.state import State
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_ADDRESS, OURS, PEER, PEER_MAC
from tests.sim.wire import Conditions, Host, Wire, evidence

ROUTER = "10.0.0.254"
NARROW = 1000


class Reader:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.count = 0
        self.ended_with: list[str | None] = []

    def readable(self, connection: Connection) -> None:
        self.count += sum(map(len, connection.receive()))

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.ended_with.append(reason)


class Narrow:
    """Two stacks that think of 1500, on a wire on which only 1000 passes."""

    def __init__(self, has_vnet_header: bool, mtu_told: int = NARROW) -> None:
        self.clock = VirtualClock()
        conditions = Conditions(delay=MILLISECOND, mtu=NARROW)
        headers = (has_vnet_header, has_vnet_header)
        self.wire = Wire(self.clock, conditions=conditions, vnet_headers=headers)
        self.wire.a.mtu = self.wire.b.mtu = 1500
        self.wire.too_large = self._too_large
        self.mtu_told = mtu_told
        self.a = Host(self.wire.a, self.clock, PEER, 1)
        self.b = Host(self.wire.b, self.clock, OURS, 2)
        self.here, self.there = Reader(), Reader()
        self.b.stack.tcp.listen(2049, lambda _connection: self.there)
        self.connection = self.a.stack.tcp.connect(OUR_ADDRESS, 2049, self.here, self.clock.now())
        self.a.act()
        self.clock.run(SECOND)

    def _too_large(self, frame: bytes) -> None:
        packet = Ether(frame)[IP]
        report = ICMP(type=3, code=4, nexthopmtu=self.mtu_told) / bytes(packet)[:28]
        self.clock.after(MILLISECOND, lambda: self.tell(report))

    def tell(self, report: Any) -> None:
        """An ICMP message for A from the router."""
        ethernet = Ether(src="02:00:00:00:00:fe", dst=PEER_MAC.hex(":"))
        frame = bytes(ethernet / IP(src=ROUTER, dst="10.0.0.1") / report)
        self.wire.a.deliver(bytes(10) + frame if self.wire.a.vnet else frame)

    def send(self, count: int) -> bool:
        self.connection.send([bytes(count)])
        self.a.act()
        return self.clock.run_while(lambda: self.there.count < count, 60 * SECOND)


@pytest.mark.parametrize("has_vnet_header", [False, True])
@pytest.mark.parametrize("mtu_told", [NARROW, 0])
def test_text_gets_through_in_smaller_packets_at_once(has_vnet_header: bool, mtu_told: int) -> None:
    """Also where an old router does not say what would pass: then the next plateau is tried, until
    one passes."""
    world = Narrow(has_vnet_header, mtu_told)
    began = world.clock.now()
    with evidence(world.wire, "narrow"):
        assert world.send(200_000)
    assert world.clock.now() - began < SECOND, "no timer had to expire"
    assert world.a.counters["tcp.retransmission_timeouts"] == 0
    assert world.connection.path.mtu <= NARROW or mtu_told == 0
    assert world.wire.counters["wire.too_large"] < 60
    assert world.connection.state is State.ESTABLISHED


@pytest.mark.parametrize("distance", [-1, 1 << 20, 1 << 31])
def test_a_forged_report_changes_nothing(distance: int) -> None:
    """It quotes a sequence number that is not in flight."""
    world = Narrow(False)
    c = world.connection
    ours = IP(src="10.0.0.1", dst="10.0.0.5", len=1500)
    seq = (c.snd.una + distance) % 2**32
    tcp = TCP(sport=c.local_port, dport=2049, seq=seq)
    world.tell(ICMP(type=3, code=4, nexthopmtu=600) / bytes(ours / tcp)[:28])
    assert world.a.counters["tcp.icmp_not_ours"] == 1
    assert c.path.mtu == 1500 and c.mss > 1400


def test_no_report_makes_packets_tiny() -> None:
    world = Narrow(False, mtu_told=68)
    assert world.send(50_000)
    assert world.connection.path.mtu == 552


@pytest.mark.parametrize(("code", "reason"), [(2, "protocol unreachable"), (3, "port unreachable")])
def test_a_hard_error_ends_a_connection_that_is_being_opened(code: int, reason: str) -> None:
    world = Narrow(False)
    world.wire.b.deliver = lambda _frame: None
    reader = Reader()
    c = world.a.stack.tcp.connect(OUR_ADDRESS, 9, reader, world.clock.now())
    world.a.act()
    ours = IP(src="10.0.0.1", dst="10.0.0.5") / TCP(
        sport=c.local_port, dport=9, seq=c.snd.una % 2**32
    )
    world.tell(ICMP(type=3, code=code) / bytes(ours))
    assert reader.ended_with == [reason]


def test_a_hard_error_does_not_end_an_established_connection() -> None:
    """RFC 5927: it may be forged, and retransmission will tell."""
    world = Narrow(False)
    c = world.connection
    c.send([b"in flight"])
    world.a.act()
    ours = IP(src="10.0.0.1", dst="10.0.0.5") / TCP(
        sport=c.local_port, dport=2049, seq=c.snd.una % 2**32
    )
    world.tell(ICMP(type=3, code=3) / bytes(ours))
    assert world.here.ended_with == []
    world.clock.run(SECOND)
    assert world.there.count == len(b"in flight")


def test_a_narrow_path_is_used_to_the_full_again_after_ten_minutes() -> None:
    """RFC 1191 section 6.3: an MTU that was learnt is old then, and the way may have changed."""
    world = Narrow(True)
    assert world.send(50_000)
    assert world.connection.mss < NARROW
    world.wire.conditions = Conditions(delay=MILLISECOND, mtu=1500)
    world.clock.run(PATH_MTU_LEARNT_FOR - 10 * SECOND)
    assert world.connection.mss < NARROW
    world.clock.run(20 * SECOND)
    assert world.connection.mss > 1400
    assert world.send(100_000)
    assert world.a.counters["tcp.cut_larger"] == 1


def test_a_path_that_is_still_narrow_is_found_out_again() -> None:
    world = Narrow(True)
    assert world.send(50_000)
    world.clock.run(PATH_MTU_LEARNT_FOR + 10 * SECOND)
    assert world.send(100_000)
    assert world.connection.mss < NARROW


@pytest.mark.parametrize("has_vnet_header", [False, True])
def test_a_black_hole_does_not_stop_a_connection(has_vnet_header: bool) -> None:
    """RFC 2923 section 2.1: nobody says that packets are too large; text arrives all the same."""
    world = Narrow(has_vnet_header)
    world.wire.too_large = lambda _frame: None
    with evidence(world.wire, "black-hole"):
        assert world.send(200_000)
    assert world.a.counters["tcp.black_holes"] == 1
    assert world.connection.path.mtu == 1500, "others do not suffer for it"
