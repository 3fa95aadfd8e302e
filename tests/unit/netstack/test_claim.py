"""Our own addresses (RFC 5227): probed for, announced, defended, and, if they are borrowed, given
up. The addresses that a user has configured are never given up: section 2.4 (c)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import (
    ARP_ANNOUNCE_AFTER,
    ARP_CLAIMED_AFTER,
    ARP_DEFEND_AFTER,
    ARP_PROBE_AFTER,
)
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.stack import HostConfig
from appliance.netstack.tcp.connection import Connection
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_MAC, OURS, PEER_MAC, Station
from tests.sim.wire import Host, Script, Wire

US, PEER, LENT = "10.0.0.5", "10.0.0.1", "10.0.0.77"
US_AT, PEER_AT, RIVAL_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":"), "02:00:00:00:00:66"
ANYBODY, NOWHERE = "ff:ff:ff:ff:ff:ff", "0.0.0.0"

CLAIMED = 2 * ARP_PROBE_AFTER + ARP_CLAIMED_AFTER
"""The longest time that a borrowed address is probed for."""


def arp(op: int, sender: str, target: str, at: str = RIVAL_AT, to: str = ANYBODY) -> bytes:
    packet = ARP(op=op, hwsrc=at, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(Ether(src=at, dst=to) / packet)


def announced(address: str, at: str = RIVAL_AT) -> bytes:
    return arp(1, address, address, at)


def probe(address: str, at: str = RIVAL_AT) -> bytes:
    return arp(1, NOWHERE, address, at)


def reply(address: str) -> bytes:
    """The answer to a probe of ours."""
    return arp(2, address, NOWHERE, to=US_AT)


def said(frames: list[bytes]) -> list[tuple[str, str]]:
    """Sender and target of our ARP requests."""
    seen = [Ether(frame) for frame in frames]
    return [(s[ARP].psrc, s[ARP].pdst) for s in seen if ARP in s and s[ARP].op == 1]


class Borrower:
    """A host that has just been lent an address, beside one of its own or (usually) none."""

    def __init__(self, with_own: bool = False) -> None:
        self.clock = VirtualClock()
        wire = Wire(self.clock, vnet_headers=(False, False))
        self.peer = Script(wire.a)
        own = (HostAddress(bytes([10, 0, 0, 5]), 24),) if with_own else ()
        self.host = Host(wire.b, self.clock, HostConfig(OUR_MAC, own))
        self.stack = self.host.stack
        self.clock.run(5 * SECOND)
        self.peer.take()
        self.ours: list[Instant] = []
        self.taken: list[str] = []
        self.began = self.clock.now()
        lent = HostAddress(bytes([10, 0, 0, 77]), 24)
        assert self.stack.ip.borrow_address(lent, self, self.began)
        self.host.act()
        self.clock.run(MILLISECOND)

    def address_is_ours(self, address: bytes, now: Instant) -> None:
        assert address == bytes([10, 0, 0, 77])
        self.ours.append(now)

    def address_is_taken(self, address: bytes, rival: str, now: Instant) -> None:
        self.taken.append(rival)
        self.stack.reset_connections(address, now)
        self.stack.ip.remove_address(address)

    def exchange(self, *frames: bytes) -> list[bytes]:
        """What comes back within a millisecond."""
        self.peer.take()
        for frame in frames:
            self.peer.send(frame)
        self.clock.run(MILLISECOND)
        return self.peer.take()

    def settle(self) -> None:
        """Until nobody has answered, and it has said so."""
        self.clock.run(CLAIMED + 2 * ARP_ANNOUNCE_AFTER)
        assert len(self.ours) == 1
        self.peer.take()


# --- probing (section 2.1) ----------------------------------------------------------------


def test_a_borrowed_address_is_probed_for_before_it_is_used() -> None:
    world = Borrower()
    world.clock.run(ARP_PROBE_AFTER)
    assert not world.ours
    assert set(said(world.peer.take())) == {(NOWHERE, LENT)}
    world.clock.run(CLAIMED)
    (when,) = world.ours
    assert ARP_PROBE_AFTER + ARP_CLAIMED_AFTER <= when - world.began <= CLAIMED


def test_a_probe_has_no_sender_address_and_no_target_hardware_address() -> None:
    """Section 2.1.1: so that nobody's table is polluted by it."""
    world = Borrower()
    frames = [Ether(frame) for frame in world.peer.take()]
    assert frames
    for seen in frames:
        assert (seen.dst, seen.src, seen[ARP].op) == (ANYBODY, US_AT, 1)
        assert (seen[ARP].hwsrc, seen[ARP].psrc) == (US_AT, NOWHERE)
        assert (seen[ARP].hwdst, seen[ARP].pdst) == ("00:00:00:00:00:00", LENT)


def test_three_probes_and_then_never_again() -> None:
    """Section 2.1: conflict detection is no periodic thing."""
    world = Borrower()
    world.clock.run(3600 * SECOND)
    assert said(world.peer.take()) == [(NOWHERE, LENT)] * 3 + [(LENT, LENT)] * 2


def test_hosts_that_start_together_do_not_probe_together() -> None:
    pauses = set()
    for seed in range(5):
        clock = VirtualClock()
        wire = Wire(clock, vnet_headers=(False, False))
        Host(wire.b, clock, OURS, seed)
        clock.run(SECOND)
        first, second = [wall for wall, frame in wire.record][:2]
        pauses.add(second - first)
        assert ARP_PROBE_AFTER // 2 <= second - first <= ARP_PROBE_AFTER
    assert len(pauses) == 5


@pytest.mark.parametrize("with_own", [False, True])
def test_an_address_that_is_being_probed_for_is_not_used(with_own: bool) -> None:
    """Nobody is answered at it: no ARP, no echo."""
    world = Borrower(with_own)
    ping = Ether(src=PEER_AT, dst=US_AT) / IP(src=PEER, dst=LENT) / ICMP()
    asked = arp(1, PEER, LENT, PEER_AT)
    assert world.exchange(asked, bytes(ping)) == []
    assert world.host.counters["ip.not_for_us"] == 1
    world.settle()
    assert [Ether(f).payload.name for f in world.exchange(asked, bytes(ping))] == ["ARP", "IP"]


@pytest.mark.parametrize("rival", [reply(LENT), announced(LENT), arp(1, LENT, PEER), probe(LENT)])
@pytest.mark.parametrize("when", [0, ARP_PROBE_AFTER, ARP_PROBE_AFTER + ARP_CLAIMED_AFTER // 2])
def test_whatever_shows_another_user_while_we_probe_ends_it(rival: bytes, when: int) -> None:
    """Section 2.1.1: any packet from the address, and a probe for it by another host; up to the
    end of the wait after the last probe."""
    world = Borrower()
    world.clock.run(when)
    assert world.exchange(rival) == []
    assert world.taken == [RIVAL_AT] and not world.ours
    assert world.host.counters["arp.gave_up"] == 1
    world.clock.run(60 * SECOND)
    assert world.peer.take() == [] and not world.ours


@pytest.mark.parametrize(
    "packet", [reply("10.0.0.78"), probe("10.0.0.78"), arp(1, PEER, LENT), arp(2, PEER, LENT)]
)
def test_talk_of_others_is_no_conflict(packet: bytes) -> None:
    world = Borrower()
    world.exchange(packet)
    world.settle()
    assert not world.taken


# --- announcing (section 2.3) -------------------------------------------------------------


def test_two_announcements_two_seconds_apart() -> None:
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    Host(wire.b, clock, OURS)
    times: list[Instant] = []
    while len(times) < 2:
        clock.run(MILLISECOND)
        times += [clock.now() for frame in script.take() if Ether(frame)[ARP].psrc == US]
    assert abs(times[1] - times[0] - ARP_ANNOUNCE_AFTER) <= MILLISECOND
    clock.run(60 * SECOND)
    assert script.take() == []


def test_an_announcement_has_the_address_as_sender_and_as_target() -> None:
    world = Borrower()
    world.clock.run(CLAIMED)
    last = Ether(world.peer.take()[-1])
    assert (last.dst, last[ARP].op, last[ARP].hwsrc) == (ANYBODY, 1, US_AT)
    assert (last[ARP].psrc, last[ARP].pdst) == (LENT, LENT)


# --- defending (section 2.4) --------------------------------------------------------------


@pytest.mark.parametrize("rival", [announced(LENT), reply(LENT), arp(1, LENT, PEER)])
def test_a_borrowed_address_is_defended_once(rival: bytes) -> None:
    """Section 2.4 (b)."""
    world = Borrower()
    world.settle()
    assert said(world.exchange(rival)) == [(LENT, LENT)]
    assert not world.taken
    world.clock.run(ARP_DEFEND_AFTER)
    assert said(world.exchange(rival)) == [(LENT, LENT)], "the first is forgotten"


def test_a_second_conflict_soon_after_ends_a_borrowed_address() -> None:
    world = Borrower()
    world.settle()
    world.exchange(announced(LENT))
    world.clock.run(ARP_DEFEND_AFTER - SECOND)
    assert world.exchange(announced(LENT)) == []
    assert world.taken == [RIVAL_AT]
    assert world.exchange(arp(1, PEER, LENT, PEER_AT)) == [], "nobody is answered any more"


class Idle:
    """The user of a connection, who hears of its end."""

    reason: str | None = ""

    def readable(self, connection: Connection) -> None: ...

    def room_again(self, connection: Connection) -> None: ...

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.reason = reason


def test_connections_are_reset_before_an_address_is_given_up() -> None:
    """Section 2.4."""
    world = Borrower()
    world.settle()
    user = Idle()
    world.stack.tcp.listen(2049, lambda _connection: user)
    ether = Ether(src=PEER_AT, dst=US_AT) / IP(src=PEER, dst=LENT)
    world.exchange(arp(1, PEER, LENT, PEER_AT))
    (answer,) = world.exchange(bytes(ether / TCP(sport=700, dport=2049, flags="S", seq=1)))
    ack = TCP(sport=700, dport=2049, flags="A", seq=2, ack=Ether(answer)[TCP].seq + 1)
    world.exchange(bytes(ether / ack))
    frames = world.exchange(announced(LENT), announced(LENT))
    resets = [Ether(f) for f in frames if TCP in Ether(f)]
    assert [(r[IP].dst, r[TCP].dport, r[TCP].flags.value & 4) for r in resets] == [(PEER, 700, 4)]
    assert user.reason and not world.stack.tcp.connections


def test_a_configured_address_is_defended_and_kept() -> None:
    """Section 2.4 (c): told, defended once in the interval, and still ours."""
    station = Station()
    assert len(station.exchange(*[announced(US)] * 5)) == 1
    station.clock.run(ARP_DEFEND_AFTER - SECOND)
    assert station.exchange(announced(US)) == []
    assert station.counters["arp.conflict"] == 6
    assert [Ether(f)[ARP].op for f in station.exchange(arp(1, PEER, US, PEER_AT))] == [2]
    assert station.stack.ip.rival(bytes([10, 0, 0, 5])) == RIVAL_AT


def test_a_configured_address_that_is_taken_is_not_announced_over() -> None:
    """The first to answer our probe hears no announcement from us in return: whoever starts us
    still has the time to stop."""
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    host = Host(wire.b, clock, OURS)
    clock.run(MILLISECOND)
    script.take()
    script.send(reply(US))
    clock.run(ARP_PROBE_AFTER // 4)
    assert script.take() == []
    assert host.stack.ip.rival(bytes([10, 0, 0, 5])) == RIVAL_AT


def test_a_rival_that_shouts_while_we_probe_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It neither fills the log nor ends us: the address is announced when the probes are over."""
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    host = Host(wire.b, clock, OURS)
    for _ in range(50):
        script.send(announced(US))
    clock.run(MILLISECOND)
    assert host.counters["arp.conflict"] == 50
    assert caplog.text.count("event=arp-conflict") == 1
    clock.run(CLAIMED)
    assert (US, US) in said(script.take())


@pytest.mark.parametrize("address", [US, PEER])
def test_our_own_packets_and_those_of_neighbours_are_no_conflict(address: str) -> None:
    station = Station()
    station.exchange(announced(address, US_AT if address == US else PEER_AT))
    assert station.counters["arp.conflict"] == 0


# --- a second station with our MAC address --------------------------------------------------


def test_a_second_appliance_with_the_same_configuration_is_told() -> None:
    """Its MAC is made of the same address. The first one answers its probes by broadcast, because
    no bridge would pass a reply from a MAC to the same MAC."""
    station = Station()
    frames = station.exchange(probe(US, US_AT), probe(US, US_AT))
    assert said(frames) == [(US, US)] and Ether(frames[0]).dst == ANYBODY
    assert station.counters["arp.conflict"] == 2
    assert station.counters["ethernet.own_source"] == 2


def test_the_second_appliance_finds_it_out() -> None:
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    host = Host(wire.b, clock, OURS)
    script.send(announced(US, US_AT))
    clock.run(MILLISECOND)
    rival = host.stack.ip.rival(bytes([10, 0, 0, 5]))
    assert rival is not None and "our own MAC" in rival


def test_our_own_frames_that_come_back_are_no_conflict() -> None:
    """A loop in the network: probes while we probe, announcements after."""
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    host = Host(wire.b, clock, OURS)
    for _ in range(8000):
        clock.run(MILLISECOND)
        for frame in script.take():
            script.send(frame)
    assert host.counters["ethernet.own_source"] >= 5
    assert host.counters["arp.conflict"] == 0


# --- what it must not do ------------------------------------------------------------------


def test_an_address_that_is_there_is_not_borrowed() -> None:
    world = Borrower(with_own=True)
    again = HostAddress(bytes([10, 0, 0, 5]), 24)
    assert not world.stack.ip.borrow_address(again, world, world.clock.now())


def test_a_borrowed_address_that_is_removed_while_it_is_probed_for_is_forgotten() -> None:
    world = Borrower()
    world.stack.ip.remove_address(bytes([10, 0, 0, 77]))
    world.peer.take()
    world.clock.run(60 * SECOND)
    assert world.peer.take() == [] and not world.ours and not world.taken
