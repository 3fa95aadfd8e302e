"""What a packet costs below TCP, in microseconds: `python -m tests.bench.netstack_lanes`.

The connection is one that does nothing, and the link takes everything, so that what is measured is
the way between them. The express lane with a known checksum should stay under one microsecond.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from appliance.netstack.ip.addresses import AddressState
from appliance.netstack.ip.v4.path import Ipv4Path
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader
from appliance.trace import Counters
from tests.sim.station import OUR_MAC, OURS, PEER_ADDRESS, PEER_MAC
from tests.sim.station6 import OURS6
from tests.sim.station6 import PEER as PEER6
from tests.sim.station6 import PEER_ADDRESS as PEER_ADDRESS6
from tests.sim.station6 import US as US6

Buffer = bytes | bytearray | memoryview
REPEAT = 5


class Nowhere:
    """A link that takes everything."""

    def __init__(self, has_vnet_header: bool) -> None:
        self.vnet = has_vnet_header
        self.mtu = 1500

    def receive(self) -> bytes | None:
        return None

    def send(self, _buffers: Sequence[Buffer]) -> bool:
        return True


class Taker:
    """A connection that takes every segment."""

    def express(self, *_arguments: Any) -> bool:
        return True


def stack_on(has_vnet_header: bool, config: HostConfig = OURS) -> Stack:
    return Stack(Nowhere(has_vnet_header), config, random=Random(1), counters=Counters())


def microseconds(act: Callable[[], object], number: int = 50_000) -> float:
    return min(timeit.repeat(act, number=number, repeat=REPEAT)) / number * 1e6


def show(what: str, cost: float) -> None:
    print(f"{what:48} {cost:6.2f} us")


IPV4, IPV6 = IP(src="10.0.0.1", dst="10.0.0.5"), IPv6(src=PEER6, dst=US6)
BOTH = HostConfig(OUR_MAC, OURS.addresses + OURS6.addresses)
"""A host that speaks both looks at the type first."""


def segment_in(
    flags: int | None, count: int, config: HostConfig = OURS, ip: Packet = IPV4
) -> float:
    """`flags`: of the virtio-net header; None: a link without."""
    stack = stack_on(flags is not None, config)
    packet = ip / TCP(sport=700, dport=2049, flags="A")
    frame = bytes(Ether(src=PEER_MAC.hex(":"), dst=OUR_MAC.hex(":")) / packet / bytes(count))
    key = frame[26:38] if ip is IPV4 else frame[22:58]
    stack.tcp.connections[key] = Taker()  # type: ignore[assignment]
    front = b"" if flags is None else VnetHeader(flags, 0, 0, 0, 34, 16).emit()
    receive, whole = stack.receive, front + frame
    cost = microseconds(lambda: receive(whole, 0))
    assert not stack.counters, "it went the long way"
    return cost


def datagram_in(has_vnet_header: bool) -> float:
    stack = stack_on(has_vnet_header)
    stack.udp.bind(2049, lambda *_arguments: None)
    packet = IP(src="10.0.0.1", dst="10.0.0.5") / UDP(sport=700, dport=2049) / bytes(128)
    frame = bytes(Ether(src=PEER_MAC.hex(":"), dst=OUR_MAC.hex(":")) / packet)
    whole = vnet.NOTHING + frame if has_vnet_header else frame
    return microseconds(lambda: stack.receive(whole, 0), 5000)


def path_of(stack: Stack) -> Ipv4Path:
    path = stack.tcp.path_to(PEER_ADDRESS)
    assert isinstance(path, Ipv4Path)
    path.resolved(PEER_MAC)
    return path


def main() -> None:
    show("segment in, checksum known, 128 bytes", segment_in(NEEDS_CSUM, 128))
    show("segment in, vnet, to be verified, 1448 bytes", segment_in(0, 1448))
    show("segment in, plain link, 128 bytes", segment_in(None, 128))
    show("segment in, plain link, 1448 bytes", segment_in(None, 1448))
    header, text = bytearray(32), [memoryview(bytes(64000))]
    for name, has_vnet_header in (("vnet", True), ("plain", False)):
        stack = stack_on(has_vnet_header)
        path = path_of(stack)
        count = 64000 if has_vnet_header else 1448
        cost = microseconds(partial(path.send_tcp, header, text, count, 1448))
        show(f"packet out, {name}, {count} bytes of text", cost)
        show(f"datagram in, {name}, 128 bytes", datagram_in(has_vnet_header))
        for size in (128, 32768):
            data = [bytes(size)]
            cost = microseconds(partial(stack.udp.send, 2049, PEER_ADDRESS, 700, data), 1000)
            show(f"datagram out, {name}, {size} bytes", cost)
    both_families(header, text)


def both_families(header: bytearray, text: list[memoryview]) -> None:
    """The same on a host that speaks IPv6 as well."""
    for name, ip in (("IPv4", IPV4), ("IPv6", IPV6)):
        cost = segment_in(NEEDS_CSUM, 128, BOTH, ip)
        show(f"both families: {name} in, checksum known", cost)
        show(f"both families: {name} in, plain, 1448", segment_in(None, 1448, BOTH, ip))
    stack = stack_on(True, BOTH)
    for made in BOTH.addresses:
        stack.ip.addresses.become(made.address, AddressState.PREFERRED)
    for name, destination in (("IPv4", PEER_ADDRESS), ("IPv6", PEER_ADDRESS6)):
        path = stack.ip.path_to(destination)
        path.resolved(PEER_MAC)
        cost = microseconds(partial(path.send_tcp, header, text, 64000, 1428))
        show(f"both families: {name} out, 64000 bytes", cost)


if __name__ == "__main__":
    main()
