"""A bridge with two Linux hosts, two servers, and a client that is a stack of ours, all at once:
also appliances find each other by ARP or neighbour discovery, and nobody's frames are taken for
anybody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import NET4, NET6, TOP, Namespace, Net

pytestmark = pytest.mark.root

OTHER_HOST = 2
KIBIBYTES = 2100  # in three files


@pytest.fixture
def other_host(netns: Namespace) -> Iterator[Namespace]:
    """A second Linux host, at another port of the bridge."""
    other = Namespace()
    other.ip("link delete br0")
    netns.ip(f"link add veth0 type veth peer name eth0 netns {other.name}")
    netns.ip("link set veth0 master br0 up")
    other.ip(f"address add {NET4.host(OTHER_HOST)}/{NET4.length} dev eth0")
    other.ip("link set eth0 up")
    netns.add_ipv6()
    other.add_ipv6("eth0", OTHER_HOST)
    yield other
    other.remove()


def start(netns: Namespace, module: str, *words: str) -> subprocess.Popen[bytes]:
    command = netns.command(sys.executable, "-m", f"tests.interop.{module}", *words)
    return subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("net", [NET4, NET6], ids=str)
def test_everybody_talks_to_everybody(
    appliance: StartAppliance, netns: Namespace, other_host: Namespace, net: Net
) -> None:
    servers = [
        appliance("--memory", "64M", tap=tap, ip=net.host(number))
        for tap, number in (("tap0", 5), ("tap1", 6))
    ]
    addresses = [server.address for server in servers]
    for server in servers:
        server.allow_loss = (
            True  # six clients keep two processors busy, and one may seem to be gone
        )
    netns.add_tap("tap2")
    size = str(KIBIBYTES)
    clients = [
        start(host, "wire_client", server, size, f"{host.name}{server}")
        for host in (netns, other_host)
        for server in addresses
    ]
    clients.append(start(netns, "stack_client", "tap2", net.host(7), size, *addresses))
    said = []
    try:
        for client in clients:
            output, _ = client.communicate(timeout=120)
            assert client.returncode == 0, output.decode()
            said += [json.loads(line) for line in output.splitlines()]
    finally:
        for client in clients:
            client.kill()
            client.wait()
    counters = said.pop()
    assert [one["bytes"] for one in said] == [KIBIBYTES << 10] * 6
    assert not {name for name in counters if name.startswith("ip.bad")}, counters
    for server in servers:
        counted = server.counters()
        assert not {name for name in counted if "conflict" in name or "bad" in name}, counted
        assert counted["mount3.mnt"] == 3
