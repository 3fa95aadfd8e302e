"""Two hosts on one pipe, each with a loop of its own, and sockets: threads and real time.

with two_hosts() as (server, client):
    listener = server.sockets.create_server(("10.0.0.5", 80))
    client.sockets.create_connection(("10.0.0.5", 80))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from random import Random

from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.loop import Loop
from appliance.netstack.sockets import Sockets
from appliance.netstack.stack import HostConfig, Stack
from appliance.trace import Counters
from tests.sim.pipe import PipeEnd, pipe

SERVER, CLIENT = "10.0.0.5", "10.0.0.9"
SERVER6, CLIENT6 = "fd00::5", "fd00::9"
NAMES = {"server.test": SERVER, "client.test": CLIENT}
PATIENCE = 30.0
"""Seconds after which a test has waited in vain."""


class LoopHost:
    """One of them."""

    def __init__(self, end: PipeEnd, number: int, names: Mapping[str, str]) -> None:
        self.link = end
        self.counters = Counters()
        mac = bytes((2, 0, 10, 0, 0, number))
        config = HostConfig(
            mac,
            (
                HostAddress(bytes((10, 0, 0, number)), 24),
                HostAddress(bytes((0xFD, *bytes(14), number)), 64),
            ),
        )
        self.stack = Stack(end, config, random=Random(number), counters=self.counters)
        self.loop = Loop(self.stack, end)
        self.sockets = Sockets(self.loop, names)


@contextmanager
def two_hosts(
    *, vnet: bool = True, names: Mapping[str, str] = NAMES
) -> Iterator[tuple[LoopHost, LoopHost]]:
    """Both hosts, running. Nothing of what should not happen may have happened in their loops."""
    one, other = pipe(vnet=vnet)
    hosts = LoopHost(one, 5, names), LoopHost(other, 9, names)
    with ExitStack() as running:
        for host in hosts:
            host.loop.start()
            running.callback(host.loop.stop, grace=0)
        yield hosts
    for host in hosts:
        assert not host.counters["loop.exception"]
