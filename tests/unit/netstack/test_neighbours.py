"""ARP as a conversation: who is asked, who is answered, who gets into the table, who leaves it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    ARP_CONFIRMED_FOR,
    ARP_DEFEND_AFTER,
    NEIGHBOUR_WAITING_FRAMES_MAX,
    NEIGHBOURS_FIXED_MAX,
    NEIGHBOURS_MAX,
    NEIGHBOURS_RESOLVING_MAX,
)
from appliance.netstack.stack import HostConfig
from tests.sim.clock import VirtualClock
from tests.sim.station import (
    OUR_MAC,
    OURS,
    PEER_MAC,
    Station,
)
from tests.sim.wire import Host, Script, Wire

US, PEER = "10.0.0.5", "10.0.0.1"
US_AT, PEER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")
ANYBODY = "ff:ff:ff:ff:ff:ff"


def arp(op: int, sender: str, sender_at: str, target: str, to: str = ANYBODY) -> bytes:
    packet = ARP(op=op, hwsrc=sender_at, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(Ether(src=sender_at, dst=to) / packet)


def request(sender: str = PEER, sender_at: str = PEER_AT, target: str = US) -> bytes:
    return arp(1, sender, sender_at, target)


def reply(sender: str = PEER, sender_at: str = PEER_AT) -> bytes:
    return arp(2, sender, sender_at, US, US_AT)


def ping(source: str = PEER, source_at: str = PEER_AT) -> bytes:
    return bytes(Ether(src=source_at, dst=US_AT) / IP(src=source, dst=US) / ICMP() / b"hello")


def asked_for(frames: list[bytes]) -> list[tuple[str, str]]:
    """Where our requests went, and for whom."""
    seen = [Ether(frame) for frame in frames]
    return [(s.dst, s[ARP].pdst) for s in seen if ARP in s and s[ARP].op == 1]


# --- requests and replies ---------------------------------------------------------------


def test_a_request_for_our_address_is_answered_to_the_sender_alone() -> None:
    (frame,) = Station().exchange(request())
    seen = Ether(frame)
    assert (seen.src, seen.dst, seen[ARP].op) == (US_AT, PEER_AT, 2)
    assert (seen[ARP].hwsrc, seen[ARP].psrc) == (US_AT, US)
    assert (seen[ARP].hwdst, seen[ARP].pdst) == (PEER_AT, PEER)


def test_a_request_for_somebody_else_is_not_answered() -> None:
    assert Station().exchange(request(target="10.0.0.9")) == []


def test_who_asks_for_us_is_not_asked_in_return() -> None:
    frames = Station().exchange(request(), ping())
    assert [Ether(f).payload.name for f in frames] == ["ARP", "IP"]
    assert Ether(frames[1]).dst == PEER_AT


def test_a_packet_waits_until_its_neighbour_has_answered() -> None:
    station = Station()
    assert asked_for(station.exchange(ping(), ping())) == [(ANYBODY, PEER)]
    frames = station.exchange(reply())
    assert [Ether(f)[ICMP].type for f in frames] == [0, 0]
    assert all(Ether(f).dst == PEER_AT for f in frames)


def test_of_too_many_waiting_packets_the_latest_are_sent() -> None:
    station = Station()
    count = NEIGHBOUR_WAITING_FRAMES_MAX + 6
    pings = [
        bytes(Ether(src=PEER_AT, dst=US_AT) / IP(src=PEER, dst=US) / ICMP(seq=number))
        for number in range(count)
    ]
    station.exchange(*pings)
    frames = station.exchange(reply())
    assert [Ether(f)[ICMP].seq for f in frames] == list(range(6, count))


def test_an_answer_that_does_not_come_is_asked_for_three_times_in_all() -> None:
    station = Station()
    station.peer.send(ping())
    station.clock.run(20 * SECOND)
    assert asked_for(station.peer.take()) == [(ANYBODY, PEER)] * 3
    assert station.counters["arp.no_answer"] == 1
    assert station.counters["arp.dropped_waiting"] == 1
    assert station.stack.next_deadline is None, "nothing is left to do"


def test_a_failure_is_not_final() -> None:
    station = Station()
    station.peer.send(ping())
    station.clock.run(20 * SECOND)
    station.peer.take()
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]
    assert len(station.exchange(reply())) == 1


def test_an_idle_neighbour_is_forgotten_and_asked_for_again() -> None:
    station = Station()
    station.exchange(request())
    station.clock.run(2 * ARP_CONFIRMED_FOR)
    assert asked_for(station.peer.take()) == []
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]


def test_a_neighbour_in_use_is_checked_by_unicast_and_goes_on_being_used() -> None:
    station = Station()
    station.exchange(request(), ping())
    station.clock.run(ARP_CONFIRMED_FOR + 100 * MILLISECOND)
    assert asked_for(station.peer.take()) == [(PEER_AT, PEER)]
    assert Ether(station.exchange(ping())[0])[ICMP].type == 0, "meanwhile it is used"
    station.exchange(reply())
    station.clock.run(10 * SECOND)
    assert asked_for(station.peer.take()) == []


def test_a_neighbour_that_is_gone_is_found_out() -> None:
    station = Station()
    station.exchange(request(), ping())
    station.clock.run(ARP_CONFIRMED_FOR + 10 * SECOND)
    assert asked_for(station.peer.take()) == [(PEER_AT, PEER)] * 3
    assert station.counters["arp.no_answer"] == 1
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]


def test_somebody_behind_the_gateway_is_reached_over_it() -> None:
    station = Station()
    assert asked_for(station.exchange(ping("192.0.2.7"))) == [(ANYBODY, "10.0.0.254")]
    (frame,) = station.exchange(reply("10.0.0.254", "02:00:00:00:00:fe"))
    assert (Ether(frame).dst, Ether(frame)[IP].dst) == ("02:00:00:00:00:fe", "192.0.2.7")


def test_two_destinations_behind_one_gateway_share_it() -> None:
    station = Station()
    assert len(asked_for(station.exchange(ping("192.0.2.7"), ping("192.0.2.8")))) == 1
    assert len(station.exchange(reply("10.0.0.254", "02:00:00:00:00:fe"))) == 2


# --- who gets into the table ----------------------------------------------------------


@pytest.mark.parametrize("op", [1, 2])
def test_who_talks_about_himself_unasked_is_not_learnt(op: int) -> None:
    station = Station()
    station.exchange(arp(op, PEER, PEER_AT, PEER))
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]


def test_an_unsolicited_reply_is_counted() -> None:
    station = Station()
    station.exchange(reply())
    assert station.counters["arp.unsolicited_reply"] == 1


def test_a_neighbour_that_moves_takes_its_packets_along() -> None:
    """A failover: another machine announces the address."""
    station = Station()
    station.exchange(request(), ping())
    station.clock.run(2 * SECOND)
    station.exchange(arp(1, PEER, "02:00:00:00:00:99", PEER))
    (frame,) = station.exchange(ping())
    assert Ether(frame).dst == "02:00:00:00:00:99"
    assert station.counters["arp.moved"] == 1


def test_a_neighbour_that_has_just_spoken_does_not_move() -> None:
    station = Station()
    station.exchange(request(), arp(2, PEER, "02:00:00:00:00:99", US, US_AT))
    (frame,) = station.exchange(ping())
    assert Ether(frame).dst == PEER_AT
    assert station.counters["arp.contested"] == 1


def test_somebody_from_another_subnet_is_answered_but_not_learnt() -> None:
    station = Station()
    (frame,) = station.exchange(request("172.16.0.1"))
    assert Ether(frame)[ARP].op == 2
    assert asked_for(station.exchange(ping("172.16.0.1"))) == [(ANYBODY, "10.0.0.254")]


# --- floods ---------------------------------------------------------------------------


def test_a_flood_of_requests_does_not_grow_the_table_or_the_heap() -> None:
    config = HostConfig.single(OUR_MAC, bytes([10, 0, 0, 5]), 8)
    station = Station(config=config)
    station.exchange(request(), ping())
    for number in range(3000):
        station.exchange(request(f"10.{1 + number // 250}.7.{number % 250}"))
    assert station.counters["arp.answered"] == 3001
    assert station.counters["arp.evicted"] == 3001 - NEIGHBOURS_MAX
    (frame,) = station.exchange(ping())
    assert Ether(frame).dst == PEER_AT, "the one in use has stayed"


def test_packets_from_forged_addresses_do_not_make_us_flood_the_link() -> None:
    station = Station()
    frames = station.exchange(*(ping(f"10.0.0.{number}") for number in range(6, 250)))
    assert len(asked_for(frames)) == NEIGHBOURS_RESOLVING_MAX
    assert station.counters["arp.too_many_resolving"] == 244 - NEIGHBOURS_RESOLVING_MAX
    station.clock.run(10 * SECOND)
    station.peer.take()
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]


# --- our own address ------------------------------------------------------------------


def station_before_start() -> tuple[VirtualClock, Script, Host]:
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    script = Script(wire.a)
    return clock, script, Host(wire.b, clock, OURS)


def test_we_probe_then_announce() -> None:
    clock, script, _ = station_before_start()
    clock.run(10 * SECOND)
    seen = [Ether(frame)[ARP] for frame in script.take()]
    assert all((s.op, s.pdst, s.hwsrc) == (1, US, US_AT) for s in seen)
    assert [s.psrc for s in seen] == ["0.0.0.0"] * 3 + [US] * 2


def test_we_answer_from_the_first_instant() -> None:
    clock, script, _ = station_before_start()
    script.send(request())
    clock.run(MILLISECOND)
    assert [Ether(f)[ARP].op for f in script.take()] == [1, 2]


def test_a_conflict_is_counted_and_defended_but_not_in_a_loop() -> None:
    station = Station()
    rival = arp(1, US, "02:00:00:00:00:66", US)
    frames = station.exchange(rival, rival, rival)
    (defence,) = frames
    seen = Ether(defence)
    assert (seen.dst, seen[ARP].op, seen[ARP].psrc, seen[ARP].hwsrc) == (ANYBODY, 1, US, US_AT)
    assert station.counters["arp.conflict"] == 3
    station.clock.run(ARP_DEFEND_AFTER)
    assert len(station.exchange(rival)) == 1


def test_a_rival_that_probes_is_told_that_the_address_is_taken() -> None:
    station = Station()
    (frame,) = station.exchange(request("0.0.0.0", "02:00:00:00:00:66"))
    assert Ether(frame)[ARP].op == 2
    assert station.counters["arp.conflict"] == 0


def test_a_rival_that_probes_while_we_do_is_a_conflict() -> None:
    clock, script, host = station_before_start()
    script.send(request("0.0.0.0", "02:00:00:00:00:66"))
    clock.run(MILLISECOND)
    assert host.counters["arp.conflict"] == 1


def test_the_answer_to_our_probe_is_a_conflict() -> None:
    clock, script, host = station_before_start()
    script.send(arp(2, US, "02:00:00:00:00:66", "0.0.0.0", US_AT))
    clock.run(MILLISECOND)
    assert host.counters["arp.conflict"] == 1


def test_frames_of_ours_that_come_back_are_dropped() -> None:
    station = Station()
    station.exchange(request(US, US_AT))
    assert station.counters["ethernet.own_source"] == 1
    forged = bytes(Ether(src=PEER_AT, dst=ANYBODY) / ARP(hwsrc=US_AT, psrc=PEER, pdst=US))
    station.exchange(forged)
    assert station.counters["arp.own_sender"] == 1


# --- TCP over an unresolved path --------------------------------------------------------


def test_a_connection_opens_although_its_peer_was_not_known() -> None:
    """The SYN-ACK waits for ARP like everything else."""
    station = Station()
    syn = bytes(
        Ether(src=PEER_AT, dst=US_AT) / IP(src=PEER, dst=US) / TCP(sport=700, dport=9, flags="S")
    )
    assert asked_for(station.exchange(syn)) == [(ANYBODY, PEER)]
    (frame,) = station.exchange(reply())
    assert Ether(frame)[TCP].flags == "RA", "nobody listens there, and now it hears so"


# --- neighbours that the user knows -----------------------------------------------------


FIXED_AT = "02:00:00:00:00:77"
FIXED = (bytes((10, 0, 0, 1)), bytes.fromhex("020000000077"))


def test_a_fixed_neighbour_is_not_asked_for_and_never_forgotten() -> None:
    station = Station(config=replace(OURS, neighbours=(FIXED,)))
    for _ in range(2):
        (frame,) = station.exchange(ping())
        assert Ether(frame).dst == FIXED_AT, "and not where the packet came from"
        station.clock.run(2 * ARP_CONFIRMED_FOR)
        assert asked_for(station.peer.take()) == []


def test_a_fixed_neighbour_is_answered_but_not_believed() -> None:
    station = Station(config=replace(OURS, neighbours=(FIXED,)))
    (answer,) = station.exchange(request())
    assert (Ether(answer).dst, Ether(answer)[ARP].op) == (PEER_AT, 2)
    station.exchange(reply())
    (frame,) = station.exchange(ping())
    assert Ether(frame).dst == FIXED_AT
    assert station.counters["arp.contested"] == 1


def test_what_waits_is_sent_when_its_neighbour_is_fixed() -> None:
    station = Station()
    assert asked_for(station.exchange(ping())) == [(ANYBODY, PEER)]
    assert station.stack.ip.fix_neighbour(*FIXED)
    station.clock.run(10 * SECOND)
    (frame,) = station.peer.take()
    assert (Ether(frame).dst, Ether(frame)[ICMP].type) == (FIXED_AT, 0)


def test_fixed_neighbours_are_bounded() -> None:
    ip = Station().stack.ip
    for number in range(NEIGHBOURS_FIXED_MAX):
        assert ip.fix_neighbour(bytes((10, 1, number >> 8, number & 0xFF)), FIXED[1])
    assert not ip.fix_neighbour(*FIXED)
    assert ip.fix_neighbour(bytes((10, 1, 0, 0)), FIXED[1]), "one of them may move"
