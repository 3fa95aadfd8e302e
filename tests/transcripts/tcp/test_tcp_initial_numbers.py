"""Initial sequence numbers (RFC 9293 section 3.4.1, RFC 6528): a clock, and a secret."""

from __future__ import annotations

from itertools import pairwise

from appliance.clock import MICROSECOND, SECOND
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.wire.tcp import ACK, RST, SYN
from tests.transcripts.tcp_wire import Wire

TICK = 4 * MICROSECOND


def number_of(wire: Wire, port: int) -> int:
    """What a connection from this port of the peer begins with."""
    wire.peer_port = port
    wire.peer(SYN, seq=0)
    number = wire.ours(SYN | ACK, ack=1).seq
    wire.peer(RST, seq=1)
    return number


def test_numbers_of_a_pair_of_ports_follow_the_clock(wire: Wire) -> None:
    """RFC 9293 MUST-8: one in four microseconds, so a new connection is ahead of an old one."""
    first = number_of(wire, 40_000)
    wire.after(TICK)
    assert number_of(wire, 40_000) - first & MASK == 1
    wire.after(100 * SECOND)
    assert number_of(wire, 40_000) - first & MASK == 1 + 100 * SECOND // TICK


def test_numbers_of_one_pair_do_not_tell_those_of_another(wire: Wire) -> None:
    """RFC 9293 SHLD-1: at one instant, each pair of ports is somewhere else."""
    numbers = [number_of(wire, port) for port in range(40_000, 40_100)]
    steps = {after - before & MASK for before, after in pairwise(numbers)}
    assert len(steps) == 99


def test_no_other_host_can_compute_them() -> None:
    """RFC 9293 MUST-9: at the same instant, for the same ports, hosts differ by their secrets."""
    numbers = {number_of(Wire().host(seed=seed), 40_000) for seed in range(20)}
    assert len(numbers) == 20
