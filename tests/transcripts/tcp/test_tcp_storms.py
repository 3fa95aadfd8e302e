"""What must not echo for ever, and what is larger than was promised."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import TCP_CHALLENGES_PER_SECOND_MAX, TCP_RECEIVE_BYTES_FIRST, KiB
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_ADDRESS, OURS, PEER
from tests.sim.wire import Conditions, Host
from tests.sim.wire import Wire as SimulatedWire
from tests.transcripts.tcp_wire import RecordingUser, Wire


class Quarrel:
    """Two stacks with a connection about whose numbers they do not agree: somebody has put text
    into it that neither has sent."""

    def __init__(self, distance: int) -> None:
        self.clock = VirtualClock()
        self.wire = SimulatedWire(self.clock, conditions=Conditions(delay=MILLISECOND))
        self.a = Host(self.wire.a, self.clock, PEER, 1)
        self.b = Host(self.wire.b, self.clock, OURS, 2)
        self.here, self.there = RecordingUser(), RecordingUser()
        self.b.stack.tcp.listen(2049, self.there.accept)
        self.clock.run(5 * SECOND)
        self.ours: Connection = self.a.stack.tcp.connect(
            OUR_ADDRESS, 2049, self.here, self.clock.now()
        )
        self.a.act()
        self.clock.run(SECOND)
        assert self.there.connection is not None
        self.theirs = self.there.connection
        for c in (self.ours, self.theirs):
            c.rcv.nxt += distance
            c.rcv.acked += distance
            c.rcv.edge += distance

    def frames_in(self, duration: int) -> int:
        """How many packets of IP go by meanwhile."""
        self.wire.record.clear()
        self.clock.run(duration)
        return sum(frame[12:14] == b"\x08\x00" for _, frame in self.wire.record)


@pytest.mark.parametrize("distance", [1, 5000, 1 << 20, 1 << 30])
def test_two_peers_that_disagree_do_not_shout_at_each_other(distance: int) -> None:
    """RFC 5961 section 7, and RFC 9293 section 3.10.7.4: each finds what the other says
    unacceptable, and answers; without a limit that would never end."""
    quarrel = Quarrel(distance)
    quarrel.ours.send([b"listen"])
    quarrel.a.act()
    quarrel.theirs.send([b"no, you listen"])
    quarrel.b.act()
    seconds = 20
    frames = quarrel.frames_in(seconds * SECOND)
    assert frames <= 2 * (TCP_CHALLENGES_PER_SECOND_MAX + 2) * seconds
    quarrel.ours.abort()
    quarrel.theirs.abort()
    quarrel.a.act()
    quarrel.b.act()
    quarrel.clock.run(SECOND)
    assert quarrel.frames_in(10 * SECOND) == 0, "resets answer nothing, and nothing answers them"


def test_two_closed_windows_do_not_make_a_conversation(wire: Wire) -> None:
    """RFC 9293 section 3.4: an acknowledgement into a closed window is taken, not answered."""
    wire.host(receive_bytes=2000).established()
    wire.user.pause()
    wire.peer(ACK, seq=1, ack=1, text=bytes(2000))
    wire.after(SECOND).ours(ACK, ack=2001, window=0)
    for _ in range(100):
        wire.peer(ACK, seq=2001, ack=1, window=0)
    wire.quiet()


@pytest.mark.parametrize("size", [TCP_RECEIVE_BYTES_FIRST + 1, 65535])
def test_a_super_segment_larger_than_the_window_is_cut(wire: Wire, size: int) -> None:
    """RFC 9293 section 3.10.7.4: what lies inside the window is taken, however the link has put it
    together."""
    window = 20 * KiB
    wire.host(receive_bytes=window, offload=True).established(shift=7)
    wire.peer(PSH | ACK, seq=1, ack=1, text=bytes(min(size, 65_160)))
    wire.ours(ACK, ack=1 + window)
    assert len(wire.app.text) == window
    assert wire.counters["tcp.text_beyond_window"] == 1


def test_a_fin_beyond_the_window_does_not_close(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, eighth step: it counts when everything before it has arrived."""
    window = 2000
    wire.host(receive_bytes=window).established()
    wire.peer(FIN | ACK, seq=1, ack=1, text=bytes(window + 500))
    wire.ours(ACK, ack=1 + window)
    wire.state(State.ESTABLISHED)
    wire.peer(FIN | ACK, seq=1 + window, ack=1, text=bytes(500))
    wire.ours(ACK, ack=1 + window + 501)
    wire.state(State.CLOSE_WAIT)
