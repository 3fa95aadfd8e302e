"""A next hop that does not answer: who is just connecting is told, and nobody else gives up."""

from __future__ import annotations

from appliance.clock import SECOND
from appliance.netstack.tcp import reasons
from appliance.netstack.tcp.state import State
from tests.sim.station import PEER_ADDRESS, Station
from tests.transcripts.tcp_wire import RecordingUser


def test_a_neighbour_that_does_not_answer_ends_an_attempt_to_connect() -> None:
    station = Station()
    user = RecordingUser()
    station.stack.tcp.connect(PEER_ADDRESS, 80, user, station.clock.now())
    station.host.act()
    station.clock.run(2 * SECOND)
    assert user.endings == []
    station.clock.run(3 * SECOND)
    assert user.endings == [reasons.HOST_UNREACHABLE]
    assert station.counters["arp.no_answer"] == 1


def test_so_does_a_router() -> None:
    station = Station()
    user = RecordingUser()
    station.stack.tcp.connect(bytes([192, 0, 2, 1]), 80, user, station.clock.now())
    station.host.act()
    station.clock.run(5 * SECOND)
    assert user.endings == [reasons.HOST_UNREACHABLE]


def test_an_attempt_somewhere_else_goes_on() -> None:
    station = Station()
    user, other = RecordingUser(), RecordingUser()
    station.stack.tcp.connect(PEER_ADDRESS, 80, user, station.clock.now())
    station.host.act()
    station.clock.run(2 * SECOND)
    later = station.stack.tcp.connect(bytes([10, 0, 0, 77]), 80, other, station.clock.now())
    station.host.act()
    station.clock.run(2 * SECOND)
    assert user.endings == [reasons.HOST_UNREACHABLE]
    assert other.endings == []
    assert later.state is State.SYN_SENT
