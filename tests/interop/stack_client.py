"""wire_client.py on a stack of ours: one appliance is the client of others.

    python -m tests.interop.stack_client TAP ADDRESS KIBIBYTES SERVER...

The same program, on the standard library's socket module as the stack has it. At the end it prints
what the stack has counted.
"""

from __future__ import annotations

import json
import random
import sys
from ipaddress import ip_address

from appliance.netstack.link.tap import TapLink
from appliance.netstack.loop import Loop
from appliance.netstack.sockets import Sockets, installed
from appliance.netstack.stack import HostConfig, Stack
from appliance.onstack import ADDRESS_PATIENCE
from appliance.trace import Counters
from tests.interop.wire_client import be_a_client


def main() -> None:
    tap, address, size, servers = sys.argv[1], sys.argv[2], int(sys.argv[3]) << 10, sys.argv[4:]
    packed = ip_address(address).packed
    link = TapLink(tap)
    config = HostConfig.single(b"\x02\x4e" + packed[-4:], packed, 24 if len(packed) == 4 else 64)
    counters = Counters()
    stack = Stack(link, config, random=random.Random(1), counters=counters)
    with Loop(stack, link) as loop, installed(Sockets(loop)):
        # Nobody sends from an IPv6 address that others may have (RFC 4862 section 5.4).
        loop.until(lambda: packed in stack.ip.addresses, ADDRESS_PATIENCE)
        for server in servers:
            be_a_client(server, size, random.Random(server))
    print(json.dumps(counters))


if __name__ == "__main__":
    main()
