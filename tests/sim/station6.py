"""One stack that speaks IPv6, and one scripted peer on a perfect wire (as in station.py)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from scapy.layers.inet6 import ICMPv6ND_NA as NeighbourAdvertisement
from scapy.layers.inet6 import ICMPv6ND_NS as NeighbourSolicitation
from scapy.layers.inet6 import ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from appliance.clock import SECOND
from appliance.netstack.ip.routes import default_route
from appliance.netstack.stack import HostAddress, HostConfig
from tests.sim.clock import VirtualClock
from tests.sim.station import OUR_MAC, PEER_MAC
from tests.sim.wire import Conditions, Host, Script, Wire

US, PEER, ROUTER = "fd00::5", "fd00::1", "fe80::fe"
OUR_ADDRESS, PEER_ADDRESS = ip_address(US).packed, ip_address(PEER).packed
US_AT, PEER_AT, ROUTER_AT = OUR_MAC.hex(":"), PEER_MAC.hex(":"), "02:00:00:00:00:fe"
OUR_LINK_LOCAL = "fe80::aff:fe00:5"
ALL_NODES_AT = "33:33:00:00:00:01"
OUR_GROUP, OUR_GROUP_AT = "ff02::1:ff00:5", "33:33:ff:00:00:05"

OURS6 = HostConfig(
    OUR_MAC, (HostAddress(OUR_ADDRESS, 64),), (default_route(ip_address(ROUTER).packed),)
)
PEER6 = HostConfig(PEER_MAC, (HostAddress(PEER_ADDRESS, 64),))

STARTED = 5 * SECOND
"""When it is known that nobody else has our addresses."""


class Station6:
    """Our stack at wire.b, started, and a script at wire.a, which it has been told of."""

    def __init__(
        self,
        *,
        vnet: bool = False,
        mtu: int = 1500,
        config: HostConfig = OURS6,
        started: bool = True,
        known: bool = True,
    ) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(self.clock, conditions=Conditions(mtu=mtu), vnet_headers=(False, vnet))
        self.peer = Script(self.wire.a)
        self.host = Host(self.wire.b, self.clock, config)
        self.stack = self.host.stack
        self.counters = self.host.counters
        if started:
            self.clock.run(STARTED)
            self.peer.take()
            if known:
                self.exchange(solicitation())

    def exchange(self, *frames: bytes) -> list[Packet]:
        """Send these frames, and give what comes back within a millisecond."""
        self.peer.take()
        for frame in frames:
            self.peer.send(frame)
        return self.run(SECOND // 1000)

    def run(self, duration: int) -> list[Packet]:
        """What comes within this time."""
        self.clock.run(duration)
        return [Ether(frame) for frame in self.peer.take()]


def frame(packet: Packet, to: str = US_AT, source: str = PEER_AT) -> bytes:
    """In Ethernet, from the peer to us."""
    return bytes(Ether(src=source, dst=to) / packet)


def ip6(**fields: Any) -> IPv6:
    """An IPv6 header from the peer to us."""
    return IPv6(**{"src": PEER, "dst": US, **fields})


def solicitation(
    target: str = US,
    source: str = PEER,
    mac: str | None = PEER_AT,
    *,
    to: str = OUR_GROUP,
    hlim: int = 255,
) -> bytes:
    """Who has `target`?"""
    packet = IPv6(src=source, dst=to, hlim=hlim) / NeighbourSolicitation(tgt=target)
    if mac is not None:
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=mac)
    group_at = "33:33:" + ip_address(to).packed[-4:].hex(":")
    return frame(packet, group_at if to.startswith("ff") else US_AT, mac or PEER_AT)


def advertisement(
    target: str = PEER,
    mac: str | None = PEER_AT,
    *,
    solicited: int = 1,
    override: int = 1,
    router: int = 0,
    to: str = US,
    source: str | None = None,
    sender_at: str = PEER_AT,
) -> bytes:
    """`target` is at `mac`."""
    packet = IPv6(src=source or target, dst=to, hlim=255)
    packet /= NeighbourAdvertisement(tgt=target, R=router, S=solicited, O=override)
    if mac is not None:
        packet /= ICMPv6NDOptDstLLAddr(lladdr=mac)
    return frame(packet, ALL_NODES_AT if to.startswith("ff") else US_AT, sender_at)
