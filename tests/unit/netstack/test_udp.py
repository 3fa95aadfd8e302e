"""UDP: datagrams in, datagrams out, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from appliance.netstack.udp import PortInUse
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader
from tests.sim.station import OUR_ADDRESS, OUR_MAC, PEER_ADDRESS, PEER_MAC, Station

US, PEER = "10.0.0.5", "10.0.0.1"
US_AT, PEER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":")
EVERYBODY_AT = "ff:ff:ff:ff:ff:ff"


class Service:
    """Something on port 2049 of a station that knows its peer."""

    def __init__(self, vnet_header: bool = False) -> None:
        self.station = Station(vnet=vnet_header)
        self.station.exchange(bytes(Ether(src=PEER_AT) / ARP(hwsrc=PEER_AT, psrc=PEER, pdst=US)))
        self.got: list[tuple[bytes, int, bytes, bytes]] = []
        self.socket = self.station.stack.udp.bind(2049, self._receive)

    def _receive(self, source: bytes, port: int, destination: bytes, data: memoryview) -> None:
        self.got.append((source, port, destination, bytes(data)))
        self.socket.send_to(source, port, [b"got ", data])

    def ask(self, packet: Any, to: str = US_AT) -> list[bytes]:
        return self.station.exchange(bytes(Ether(src=PEER_AT, dst=to) / packet))


@pytest.mark.parametrize("vnet_header", [False, True])
@pytest.mark.parametrize("data", [b"", b"x", b"hello", bytes(1468)])
def test_a_datagram_is_delivered_and_answered(vnet_header: bool, data: bytes) -> None:
    service = Service(vnet_header)
    (answer,) = service.ask(IP(src=PEER, dst=US) / UDP(sport=700, dport=2049) / data)
    assert service.got == [(PEER_ADDRESS, 700, OUR_ADDRESS, data)]
    seen = Ether(answer)
    assert (seen[IP].src, seen[IP].dst) == (US, PEER)
    assert (seen[UDP].sport, seen[UDP].dport) == (2049, 700)
    assert bytes(seen[UDP].payload) == b"got " + data
    del seen[UDP].chksum, seen[IP].chksum
    assert bytes(seen) == answer, "scapy computes the same checksums"


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.0.0.255"])
def test_a_broadcast_is_delivered_and_answered_from_our_own_address(destination: str) -> None:
    """How a client looks for an rpcbind that it does not know."""
    service = Service()
    packet = IP(src=PEER, dst=destination) / UDP(sport=700, dport=2049) / b"anybody?"
    (answer,) = service.ask(packet, EVERYBODY_AT)
    assert Ether(answer)[IP].src == US
    assert service.got[0][2] == bytes(map(int, destination.split(".")))


def test_a_datagram_without_a_checksum_is_believed() -> None:
    service = Service()
    assert service.ask(IP(src=PEER, dst=US) / UDP(sport=1, dport=2049, chksum=0) / b"x")


@pytest.mark.parametrize(
    ("udp", "reason"),
    [
        (UDP(dport=2049, chksum=0x1234) / b"x", "udp.bad_checksum"),
        (UDP(dport=2049, len=7) / b"x", "udp.bad_length"),
        (UDP(dport=2049, len=10) / b"x", "udp.truncated"),
        (UDP(dport=2049).build()[:7], "udp.truncated"),
        (UDP(dport=0) / b"x", "udp.port_zero"),
    ],
)
def test_a_bad_datagram_is_dropped_without_an_answer(udp: Any, reason: str) -> None:
    service = Service()
    packet = IP(src=PEER, dst=US, proto=17) / udp
    assert service.ask(packet) == []
    assert service.got == []
    assert service.station.counters[reason] == 1


def test_what_is_behind_the_length_of_udp_is_not_data() -> None:
    service = Service()
    service.ask(IP(src=PEER, dst=US) / UDP(sport=1, dport=2049, len=9, chksum=0) / b"xyz")
    assert service.got[0][3] == b"x"


def test_a_super_frame_of_datagrams_is_delivered_one_by_one() -> None:
    service = Service(vnet_header=True)
    packet = Ether(src=PEER_AT, dst=US_AT) / IP(src=PEER, dst=US)
    packet /= UDP(sport=700, dport=2049) / b"aaaabbbbcc"
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_UDP_L4, 42, 4, 34, 6)
    service.station.stack.receive(header.emit() + bytes(packet), 0)
    assert [data for _, _, _, data in service.got] == [b"aaaa", b"bbbb", b"cc"]


def test_a_large_datagram_goes_both_ways() -> None:
    service = Service()
    from scapy.layers.inet import fragment

    packet = IP(src=PEER, dst=US) / UDP(sport=700, dport=2049) / bytes(32768)
    pieces = fragment(packet, 1480)  # type: ignore[no-untyped-call]
    answers = service.station.exchange(
        *(bytes(Ether(src=PEER_AT, dst=US_AT) / piece) for piece in pieces)
    )
    assert service.got[0][3] == bytes(32768)
    assert len(answers) == len(pieces)


def test_a_port_is_bound_once_and_free_again_after_close() -> None:
    service = Service()
    udp = service.station.stack.udp
    with pytest.raises(PortInUse):
        udp.bind(2049, lambda *_: None)
    service.socket.close()
    service.socket.close()
    again = udp.bind(2049, lambda *_: None)
    service.socket.close()
    with pytest.raises(PortInUse):
        udp.bind(2049, lambda *_: None)
    again.close()
