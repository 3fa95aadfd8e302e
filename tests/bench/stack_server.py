"""Our stack alone on a TAP, with the services that limits_server.py has on the kernel's TCP.

    python -m tests.bench.stack_server [--no-offload] TAP ADDRESS

Ports: 9000 echo, 9001 sink, 9002 source, 9003 closes at once. It ends with its input.
"""

from __future__ import annotations

import random
import socket
import sys
from typing import Final

from appliance.garbage import seldom_collected
from appliance.netstack.link.tap import TapLink
from appliance.netstack.loop import Loop
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.tcp.connection import Connection
from appliance.trace import Counters

ECHO, SINK, SOURCE, CLOSE = 9000, 9001, 9002, 9003
MAC: Final = b"\x02\x4e\x00\x00\x00\x0a"
CONNECTIONS_MAX: Final = 20_000
PIECE: Final = memoryview(bytes(1 << 20))


class Echo:
    """What comes is sent back."""

    def readable(self, connection: Connection) -> None:
        connection.send(connection.receive())

    def room_again(self, connection: Connection) -> None:
        """There is room all the time."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        connection.close()


class Sink(Echo):
    """What comes is forgotten."""

    def readable(self, connection: Connection) -> None:
        connection.receive()


class Source(Echo):
    """Sends as much as is taken."""

    def room_again(self, connection: Connection) -> None:
        while not connection.crowded:
            connection.send([PIECE])


def source(connection: Connection) -> Source:
    user = Source()
    user.room_again(connection)
    return user


class Close(Echo):
    """Has nothing to say."""


def close(connection: Connection) -> Close:
    connection.close()
    return Close()


def main() -> None:
    name, address = sys.argv[-2:]
    link = TapLink(name, offload="--no-offload" not in sys.argv)
    config = HostConfig.single(MAC, socket.inet_aton(address), 24)
    stack = Stack(link, config, random=random.Random(), counters=Counters())
    tcp = stack.tcp
    tcp.connections_max = CONNECTIONS_MAX
    for port, accept in ((ECHO, lambda _: Echo()), (SINK, lambda _: Sink()), (SOURCE, source)):
        tcp.listen(port, accept, backlog=1024, connections_max=CONNECTIONS_MAX)
    tcp.listen(CLOSE, close, backlog=1024, connections_max=CONNECTIONS_MAX)
    with Loop(stack, link), seldom_collected():
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
