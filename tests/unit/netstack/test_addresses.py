"""Several addresses on one interface, which come and go while the host is running."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.ip.routes import Route, default_route
from appliance.netstack.stack import HostAddress, HostConfig
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.reasons import ADDRESS_GONE
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_ADDRESS, OUR_MAC, PEER, PEER_ADDRESS, PEER_MAC, Station
from tests.sim.wire import Host, Wire

SECOND_ADDRESS = bytes([192, 168, 1, 5])
BOTH = HostConfig(OUR_MAC, (HostAddress(OUR_ADDRESS, 24), HostAddress(SECOND_ADDRESS, 24)))
US, ALSO_US = "10.0.0.5", "192.168.1.5"
US_AT, PEER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")


def asks(sender: str, target: str) -> bytes:
    packet = ARP(op=1, hwsrc=PEER_AT, psrc=sender, pdst=target)
    return bytes(Ether(src=PEER_AT, dst="ff:ff:ff:ff:ff:ff") / packet)


def frame(source: str, destination: str, payload: Any) -> bytes:
    return bytes(Ether(src=PEER_AT, dst=US_AT) / IP(src=source, dst=destination) / payload)


@pytest.mark.parametrize(("peer", "us"), [("10.0.0.1", US), ("192.168.1.1", ALSO_US)])
def test_each_address_is_found_and_answers_for_itself(peer: str, us: str) -> None:
    station = Station(config=BOTH)
    station.stack.udp.bind(7, lambda *_: None)
    (reply,) = station.exchange(asks(peer, us))
    assert (Ether(reply)[ARP].psrc, Ether(reply)[ARP].hwsrc) == (us, US_AT)
    answers = station.exchange(
        frame(peer, us, ICMP()),
        frame(peer, us, TCP(sport=700, dport=9, flags="S")),
        frame(peer, us, UDP(sport=700, dport=9)),
    )
    assert [Ether(answer)[IP].src for answer in answers] == [us] * 3
    assert [Ether(answer)[IP].dst for answer in answers] == [peer] * 3


def test_the_answer_comes_from_the_address_that_was_asked_not_from_the_nearest() -> None:
    """A client asks for the second address from the first one's subnet."""
    station = Station(config=BOTH)
    station.exchange(asks("10.0.0.1", US))
    syn = TCP(sport=700, dport=9, flags="S")
    answers = station.exchange(frame("10.0.0.1", ALSO_US, ICMP()), frame("10.0.0.1", ALSO_US, syn))
    assert [Ether(answer)[IP].src for answer in answers] == [ALSO_US] * 2


def test_we_ask_from_the_address_in_the_neighbours_subnet() -> None:
    station = Station(config=BOTH)
    (asked,) = station.exchange(frame("192.168.1.9", ALSO_US, ICMP()))
    assert (Ether(asked)[ARP].psrc, Ether(asked)[ARP].pdst) == (ALSO_US, "192.168.1.9")


def test_every_address_has_its_broadcast() -> None:
    station = Station(config=BOTH)
    got: list[bytes] = []
    station.stack.udp.bind(7, lambda _a, _p, destination, _d: got.append(destination))
    for everybody in ("10.0.0.255", "192.168.1.255", "255.255.255.255", "192.168.2.255"):
        packet = IP(src="192.168.1.9", dst=everybody) / UDP(dport=7)
        station.exchange(bytes(Ether(src=PEER_AT, dst="ff:ff:ff:ff:ff:ff") / packet))
    assert [destination[-2:] for destination in got] == [b"\0\xff", b"\1\xff", b"\xff\xff"]
    assert station.counters["ip.not_for_us"] == 1


def test_all_addresses_are_claimed() -> None:
    clock = VirtualClock()
    wire = Wire(clock, vnet_headers=(False, False))
    frames: list[bytes] = []
    wire.a.deliver = frames.append
    Host(wire.b, clock, BOTH)
    clock.run(10 * SECOND)
    probed = [Ether(f)[ARP].pdst for f in frames if Ether(f)[ARP].psrc == "0.0.0.0"]
    assert sorted(probed) == [US] * 3 + [ALSO_US] * 3


def test_an_address_can_be_added_and_is_used_at_once() -> None:
    station = Station()
    assert not station.exchange(asks("192.168.1.1", ALSO_US))
    assert station.stack.ip.add_address(HostAddress(SECOND_ADDRESS, 24), station.clock.now())
    assert not station.stack.ip.add_address(HostAddress(SECOND_ADDRESS, 24), station.clock.now())
    probe, reply = station.exchange(asks("192.168.1.1", ALSO_US))
    assert (Ether(probe)[ARP].psrc, Ether(reply)[ARP].op) == ("0.0.0.0", 2)
    (pong,) = station.exchange(frame("192.168.1.1", ALSO_US, ICMP()))
    assert Ether(pong)[IP].src == ALSO_US


def test_the_source_that_was_chosen_once_is_not_kept_for_ever() -> None:
    station = Station()
    far = bytes([192, 168, 1, 9])
    assert station.stack.ip.path_to(far).source == OUR_ADDRESS
    station.stack.ip.add_address(HostAddress(SECOND_ADDRESS, 24), station.clock.now())
    assert station.stack.ip.path_to(far).source == SECOND_ADDRESS
    station.stack.ip.deprecate_address(SECOND_ADDRESS, deprecated=True)
    assert station.stack.ip.path_to(far).source == OUR_ADDRESS
    station.stack.ip.remove_address(OUR_ADDRESS)
    assert station.stack.ip.path_to(far).source == SECOND_ADDRESS


def test_a_host_may_begin_without_an_address() -> None:
    station = Station(config=HostConfig(OUR_MAC))
    assert not station.exchange(asks("10.0.0.1", US), frame("10.0.0.1", US, ICMP()))
    station.stack.ip.add_address(HostAddress(OUR_ADDRESS, 24), station.clock.now())
    frames = station.exchange(asks("10.0.0.1", US), frame("10.0.0.1", US, ICMP()))
    assert ICMP in Ether(frames[-1])


def test_a_host_without_an_address_can_ask_everybody() -> None:
    """As a DHCP client does (RFC 2131 section 4.1)."""
    station = Station(config=HostConfig(OUR_MAC))
    socket = station.stack.udp.bind(68, lambda *_: None)
    assert socket.send_to(b"\xff" * 4, 67, [b"discover"], bytes(4))
    station.clock.run(MILLISECOND)
    (sent,) = map(Ether, station.peer.take())
    assert (sent.dst, sent[IP].src, sent[IP].dst) == (
        "ff:ff:ff:ff:ff:ff",
        "0.0.0.0",
        "255.255.255.255",
    )


class Listener:
    """What becomes of a connection."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []

    def readable(self, connection: Connection) -> None:
        connection.receive()

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.reasons.append(reason)


def test_an_address_that_is_removed_takes_its_connections_along_and_no_others() -> None:
    clock = VirtualClock()
    wire = Wire(clock)
    peer = HostConfig(PEER_MAC, (*PEER.addresses, HostAddress(bytes([192, 168, 1, 1]), 24)))
    there, here = Host(wire.a, clock, peer), Host(wire.b, clock, BOTH, 2)
    users: list[tuple[Connection, Listener]] = []

    def accept(connection: Connection) -> Listener:
        users.append((connection, Listener()))
        return users[-1][1]

    here.stack.tcp.listen(2049, accept)
    for address in (OUR_ADDRESS, SECOND_ADDRESS):
        there.stack.tcp.connect(address, 2049, Listener(), clock.now())
        there.act()
        clock.run(5 * SECOND)
    assert [c.local_address for c, _ in users] == [OUR_ADDRESS, SECOND_ADDRESS]
    assert here.stack.ip.remove_address(SECOND_ADDRESS)
    assert not here.stack.ip.remove_address(SECOND_ADDRESS)
    sent = wire.counters["wire.frames"]
    here.act()
    clock.run(SECOND)
    assert wire.counters["wire.frames"] == sent, "nothing is sent from it any more"
    assert [user.reasons for _, user in users] == [[], [ADDRESS_GONE]]


def test_a_path_in_use_follows_a_new_route() -> None:
    station = Station(config=HostConfig(OUR_MAC, (HostAddress(OUR_ADDRESS, 24),)))
    far = "192.0.2.9"
    assert not station.exchange(frame(far, US, ICMP()))
    assert station.counters["ip.no_route"] == 1
    first, second = default_route(bytes([10, 0, 0, 1])), default_route(bytes([10, 0, 0, 2]))
    station.stack.ip.add_route(first)
    (asked,) = station.exchange(frame(far, US, ICMP()))
    assert Ether(asked)[ARP].pdst == "10.0.0.1"
    station.stack.ip.remove_route(first)
    station.stack.ip.add_route(second)
    (asked,) = station.exchange(frame(far, US, ICMP()))
    assert Ether(asked)[ARP].pdst == "10.0.0.2"


def test_a_more_exact_route_takes_its_part() -> None:
    station = Station()
    station.stack.ip.add_route(Route(bytes([192, 0, 2, 0]), 24, PEER_ADDRESS))
    (asked,) = station.exchange(frame("192.0.2.9", US, ICMP()))
    assert Ether(asked)[ARP].pdst == "10.0.0.1"
    (asked,) = station.exchange(frame("192.0.3.9", US, ICMP()))
    assert Ether(asked)[ARP].pdst == "10.0.0.254"
