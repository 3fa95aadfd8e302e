"""A stack that has its address from a DHCP server, frame by frame: it asks, serves at the address
that it gets, and goes on serving at the next one."""

from __future__ import annotations

from random import Random
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import DHCP_DECLINED_FOR, DHCP_WAITING_MAX
from appliance.netstack.dhcp.host import DhcpHost
from appliance.netstack.dhcp.lease import Lease
from appliance.netstack.dhcp.requests import Identity
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.stack import HostConfig
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.wire.address import IPV4_BYTES
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_MAC, PEER_MAC
from tests.sim.wire import Host, Wire

SERVER, GIVEN, ROUTER = "10.0.0.1", "10.0.0.77", "10.0.0.254"
US_AT, SERVER_AT, RIVAL_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":"), "02:00:00:00:00:66"
ANYBODY = "ff:ff:ff:ff:ff:ff"
A_SECOND = SECOND + 100 * MILLISECOND


class Watched(DhcpHost):
    """Remembers why addresses went."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reasons: list[str] = []

    def give_up(self, lease: Lease, reason: str, now: Instant) -> None:
        self.reasons.append(reason)
        super().give_up(lease, reason, now)


class Net:
    """The stack at one end of a wire; a DHCP server of few words at the other."""

    def __init__(self, *addresses: HostAddress, vnet: bool = False, start: bool = True) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(self.clock, vnet_headers=(False, vnet))
        self.wire.a.deliver = self._arrives
        self.host = Host(self.wire.b, self.clock, HostConfig(OUR_MAC, addresses))
        self.stack = self.host.stack
        self.offers = [GIVEN]
        self.lease_seconds = 600
        self.options: list[Any] = [("router", ROUTER), ("interface-mtu", 1400)]
        self.answers = True
        self.seen: list[Ether] = []
        self.dhcp = Watched(self.stack, Identity(OUR_MAC, "files"), Random(1), self.host.counters)
        self.echo = self.stack.udp.bind(7, self._echo)
        if start:
            self.dhcp.start(self.clock.now())
            self.host.act()

    def _echo(self, source: bytes, port: int, _destination: bytes, data: memoryview) -> None:
        self.echo.send_to(source, port, [data])

    @property
    def has(self) -> str | None:
        return None if self.dhcp.lease is None else str(self.dhcp.lease)

    # --- the server -----------------------------------------------------------------------

    def run(self, duration: int) -> None:
        self.clock.run(duration)

    def _arrives(self, frame: bytes) -> None:
        seen = Ether(frame)
        self.seen.append(seen)
        if self.answers and ARP in seen and seen[ARP].op == 1 and seen[ARP].pdst == SERVER:
            self.send(arp(2, SERVER, SERVER_AT, seen[ARP].psrc, US_AT))
        elif self.answers and DHCP in seen:
            self._answer(seen)

    def send(self, frame: bytes) -> None:
        self.wire.a.send((frame,))

    def _answer(self, seen: Ether) -> None:
        kind = {1: "offer", 3: "ack"}.get(message_type(seen))
        if kind is None:
            return
        renewed = seen[BOOTP].ciaddr != "0.0.0.0"
        address = seen[BOOTP].ciaddr if renewed else self.offers[0]
        to = (US_AT, address) if renewed else (ANYBODY, "255.255.255.255")
        self.send(self.reply(kind, address, seen[BOOTP].xid, to))

    def reply(self, kind: str, address: str, xid: int, to: tuple[str, str]) -> bytes:
        options: list[Any] = [("message-type", kind), ("server_id", SERVER)]
        options += [("subnet_mask", "255.255.255.0"), ("lease_time", self.lease_seconds)]
        message = BOOTP(op=2, xid=xid, chaddr=OUR_MAC, yiaddr=address)
        packet = Ether(src=SERVER_AT, dst=to[0]) / IP(src=SERVER, dst=to[1])
        packet /= UDP(sport=67, dport=68)
        return bytes(packet / message / DHCP(options=[*options, *self.options, "end"]))

    def take(self) -> list[Ether]:
        seen, self.seen = self.seen, []
        return seen

    def ask(self, packet: Any) -> list[Ether]:
        """Something of the server's, and what comes back within a millisecond."""
        self.take()
        self.send(bytes(Ether(src=SERVER_AT, dst=US_AT) / packet))
        self.run(MILLISECOND)
        return self.take()


def arp(op: int, sender: str, at: str, target: str, to: str = ANYBODY) -> bytes:
    packet = ARP(op=op, hwsrc=at, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(Ether(src=at, dst=to) / packet)


def message_type(seen: Ether) -> int:
    return next(int(o[1]) for o in seen[DHCP].options if o[0] == "message-type")


def messages(frames: list[Ether]) -> list[int]:
    return [message_type(seen) for seen in frames if DHCP in seen]


def bound(*addresses: HostAddress, vnet: bool = False) -> Net:
    net = Net(*addresses, vnet=vnet)
    net.run(6 * SECOND)
    assert net.has == f"{GIVEN}/24"
    return net


# --- getting it -----------------------------------------------------------------------


def test_within_a_second_there_is_an_address() -> None:
    net = Net()
    net.run(SECOND)
    assert net.has == f"{GIVEN}/24"
    frames = net.take()
    assert messages(frames) == [1, 3]
    for seen in frames:
        if DHCP in seen:
            assert (seen.dst, seen[IP].src, seen[IP].dst) == (ANYBODY, "0.0.0.0", "255.255.255.255")
            assert (seen[UDP].sport, seen[UDP].dport) == (68, 67)
            again = Ether(bytes(seen))
            del again[UDP].chksum, again[IP].chksum
            assert bytes(again) == bytes(seen), "scapy computes the same checksums"


def test_the_address_is_probed_for_then_announced() -> None:
    net = bound()
    said = [(s[ARP].psrc, s[ARP].pdst) for s in net.take() if ARP in s]
    assert said == [("0.0.0.0", GIVEN)] * 3 + [(GIVEN, GIVEN)] * 2


def test_it_serves_at_the_address_over_the_router_with_the_mtu() -> None:
    net = bound()
    asked, answer = net.ask(IP(src=SERVER, dst=GIVEN) / UDP(sport=9, dport=7) / b"hello")
    assert asked[ARP].pdst == SERVER and bytes(answer[UDP].payload) == b"hello"
    (answer,) = net.ask(IP(src=SERVER, dst=GIVEN) / UDP(sport=9, dport=7) / bytes(1390))[:1]
    assert answer[IP].src == GIVEN and answer[IP].len <= 1400 and answer[IP].flags.value & 1
    (asked,) = net.ask(IP(src="192.0.2.9", dst=GIVEN) / ICMP())
    assert (asked[ARP].psrc, asked[ARP].pdst) == (GIVEN, ROUTER)


def test_it_works_with_virtio_net_headers() -> None:
    assert bound(vnet=True).host.counters["dhcp.ack"] == 1


def test_beside_a_configured_address_messages_still_come_from_nowhere() -> None:
    """RFC 2131 section 4.1."""
    net = bound(HostAddress(bytes([172, 16, 0, 5]), 24))
    assert {s[IP].src for s in net.take() if DHCP in s} == {"0.0.0.0"}


# --- keeping and losing it ----------------------------------------------------------------


def test_it_is_renewed_by_unicast_and_nothing_else_happens() -> None:
    net = bound()
    net.take()
    net.run(400 * SECOND)
    renewals = [s for s in net.take() if DHCP in s]
    assert messages(renewals) == [3]
    assert (renewals[0].dst, renewals[0][IP].src, renewals[0][IP].dst) == (SERVER_AT, GIVEN, SERVER)
    assert not net.dhcp.reasons and net.host.counters["dhcp.extended"] == 1


def test_a_lease_that_ends_takes_the_address_away_and_the_next_brings_it_back() -> None:
    net = bound()
    net.answers = False
    net.run(600 * SECOND)
    assert net.has is None and "no DHCP server has extended it" in net.dhcp.reasons[0]
    assert net.ask(ARP(op=1, hwsrc=SERVER_AT, psrc=SERVER, pdst=GIVEN)) == []
    assert not net.stack.ip.routes.find(bytes([192, 0, 2, 1]))
    assert net.stack.ip.mtu(IPV4_BYTES) == 1500
    net.answers = True
    net.offers = ["10.0.0.78"]
    net.run(80 * SECOND)
    assert net.has == "10.0.0.78/24"
    net.ask(ARP(op=1, hwsrc=SERVER_AT, psrc=SERVER, pdst="10.0.0.78"))
    (answer,) = net.ask(IP(src=SERVER, dst="10.0.0.78") / UDP(sport=9, dport=7) / b"still there?")
    assert bytes(answer[UDP].payload) == b"still there?"


def test_an_address_that_somebody_answers_for_is_declined_and_another_taken() -> None:
    net = Net()
    net.run(100 * MILLISECOND)
    net.send(arp(2, GIVEN, RIVAL_AT, "0.0.0.0", US_AT))
    net.run(100 * MILLISECOND)
    frames = net.take()
    assert messages(frames) == [1, 3, 4]
    assert frames[-1][IP].src == "0.0.0.0"
    net.offers = ["10.0.0.78"]
    net.run(DHCP_DECLINED_FOR + A_SECOND)
    assert net.has == "10.0.0.78/24"
    assert net.host.counters["arp.gave_up"] == 1


def test_an_address_that_is_contested_later_is_declined() -> None:
    net = bound()
    net.send(arp(1, GIVEN, RIVAL_AT, GIVEN))
    net.run(A_SECOND)
    assert net.has, "defended"
    net.send(arp(1, GIVEN, RIVAL_AT, GIVEN))
    net.take()
    net.run(A_SECOND)
    assert net.has is None and messages(net.take()) == [4]
    assert net.dhcp.reasons == [f"{GIVEN} is in use by {RIVAL_AT}"]


class Silent:
    """The user of a connection that says nothing."""

    def readable(self, connection: Connection) -> None: ...

    def room_again(self, connection: Connection) -> None: ...

    def ended(self, connection: Connection, reason: str | None) -> None: ...


def test_connections_are_reset_before_a_contested_address_goes() -> None:
    """RFC 5227 section 2.4: whoever is connected need not find it out by silence."""
    net = bound()
    net.stack.tcp.listen(2049, lambda _connection: Silent())
    ip = IP(src=SERVER, dst=GIVEN)
    answers = net.ask(ip / TCP(sport=700, dport=2049, flags="S", seq=1))
    ack = answers[-1][TCP].seq + 1
    net.ask(ip / TCP(sport=700, dport=2049, flags="A", seq=2, ack=ack))
    assert net.stack.tcp.connections
    for _ in range(2):
        net.send(arp(1, GIVEN, RIVAL_AT, GIVEN))
    net.run(MILLISECOND)
    resets = [s for s in net.take() if TCP in s]
    assert [(s[IP].src, s[TCP].dport, s[TCP].flags.value & 4) for s in resets] == [(GIVEN, 700, 4)]


def test_an_address_that_this_host_has_already_is_declined_and_stays() -> None:
    net = Net(HostAddress(bytes([10, 0, 0, 77]), 24))
    net.run(A_SECOND)
    assert messages(net.take()) == [1, 3, 4]
    assert net.ask(ARP(op=1, hwsrc=SERVER_AT, psrc=SERVER, pdst=GIVEN))[0][ARP].op == 2


def test_a_stop_tells_the_server_although_its_mac_was_not_known() -> None:
    net = bound()
    net.take()
    net.dhcp.release()
    assert net.stack.ip.is_resolving
    net.run(10 * MILLISECOND)
    assert not net.stack.ip.is_resolving
    net.dhcp.stop(net.clock.now())
    assert messages(net.take()) == [7]
    assert net.has is None
    net.run(1000 * SECOND)
    assert net.take() == []


# --- what arrives -----------------------------------------------------------------------


def test_a_flood_of_answers_is_bounded() -> None:
    net = Net(start=False)
    data = memoryview(bytes(300))
    for _ in range(DHCP_WAITING_MAX + 5):
        net.dhcp._receive(bytes(4), 67, bytes(4), data)
    assert net.host.counters["dhcp.too_many"] == 5


def test_an_answer_from_another_port_is_none() -> None:
    net = Net(start=False)
    net.dhcp._receive(bytes(4), 68, bytes(4), memoryview(bytes(300)))
    assert net.host.counters["dhcp.bad_port"] == 1


def test_damaged_answers_raise_nothing() -> None:
    net = Net()
    net.answers = False
    net.run(MILLISECOND)
    xid = net.take()[0][BOOTP].xid
    random = Random(6)
    good = net.reply("offer", GIVEN, xid, (ANYBODY, "255.255.255.255"))
    for _ in range(2000):
        bad = bytearray(good[42:])
        for _ in range(random.randrange(1, 4)):
            bad[random.randrange(len(bad))] = random.randrange(256)
        cut = bytes(bad[: random.randrange(len(bad) + 1)])
        packet = Ether(src=SERVER_AT, dst=ANYBODY) / IP(src=SERVER, dst="255.255.255.255")
        net.send(bytes(packet / UDP(sport=67, dport=68) / cut))
        net.clock.run(MILLISECOND // 10)
    reasons = {name for name, count in net.host.counters.items() if name.startswith("dhcp.")}
    assert len(reasons) > 5
