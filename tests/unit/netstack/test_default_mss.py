"""A peer whose SYN has no options (RFC 9293 section 3.7.1): 536 bytes at most, 1220 in IPv6."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from appliance.clock import MILLISECOND
from tests.sim.station import OUR_MAC, PEER_MAC, Station
from tests.sim.station6 import PEER as PEER6
from tests.sim.station6 import US as US6
from tests.sim.station6 import Station6
from tests.transcripts.tcp_wire import RecordingUser

US, PEER = "10.0.0.5", "10.0.0.1"
ETHER = Ether(src=PEER_MAC.hex(":"), dst=OUR_MAC.hex(":"))
SYN, ACK = "S", "A"


def text_bytes(packet: Any) -> int:
    header = packet.payload
    if IP in packet:
        return int(header.len) - 20 - 4 * int(packet[TCP].dataofs)
    return int(header.plen) - 4 * int(packet[TCP].dataofs)


@pytest.mark.parametrize(("family", "most"), [(4, 536), (6, 1220)])
def test_a_peer_that_tells_no_size_gets_the_default_of_the_family(family: int, most: int) -> None:
    """RFC 9293 MUST-15."""
    station: Station | Station6
    ip: Any
    if family == 4:
        station, ip = Station(), IP(src=PEER, dst=US)
        arp = ARP(op=1, hwsrc=PEER_MAC.hex(":"), psrc=PEER, pdst=US)
        station.exchange(bytes(Ether(src=PEER_MAC.hex(":"), dst="ff:ff:ff:ff:ff:ff") / arp))
    else:
        station, ip = Station6(), IPv6(src=PEER6, dst=US6)
    user = RecordingUser()
    station.stack.tcp.listen(7, user.accept)
    ports: dict[str, Any] = {"sport": 700, "dport": 7, "window": 65535}
    (answer,) = station.exchange(bytes(ETHER / ip / TCP(flags=SYN, seq=0, **ports)))
    number = Ether(bytes(answer))[TCP].seq
    station.exchange(bytes(ETHER / ip / TCP(flags=ACK, seq=1, ack=number + 1, **ports)))
    assert user.connection is not None
    user.connection.send([bytes(2 * most + 1)])
    station.host.act()
    station.clock.run(MILLISECOND)
    sent = [Ether(frame) for frame in station.peer.take()]
    assert [text_bytes(packet) for packet in sent] == [most, most, 1]
