"""A client behind a router: the Linux kernel forwards, and the appliance finds the way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import Namespace

pytestmark = pytest.mark.root

FAR4, FAR6 = "10.1.0.0/16", "fd01::/64"


@pytest.fixture
def far_host(netns: Namespace) -> Iterator[Namespace]:
    """A host in a network of its own, to which the host of the bridge is the router."""
    other = Namespace()
    other.ip("link delete br0")
    for here in (netns, other):  # else the router cannot ask for its neighbours at once
        here.run("sh", "-c", "echo 0 | tee /proc/sys/net/ipv6/conf/*/accept_dad")
    netns.ip("link set br0 down")
    netns.ip("link set br0 up")
    netns.add_ipv6()
    netns.ip(f"link add veth0 type veth peer name eth0 netns {other.name}")
    for here, device, number in ((netns, "veth0", 1), (other, "eth0", 2)):
        here.ip(f"address add 10.1.0.{number}/16 dev {device}")
        here.ip(f"address add fd01::{number}/64 dev {device} nodad")
        here.ip(f"link set {device} up")
    for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        netns.run("sh", "-c", f"echo 1 >/proc/sys/net/{family.replace('.', '/')}")
    other.ip("route add default via 10.1.0.1")
    other.ip("-6 route add default via fd01::1")
    yield other
    other.remove()


def test_static_routes_lead_to_networks_behind_routers(
    appliance: StartAppliance, far_host: Namespace
) -> None:
    routes = ("--route", f"{FAR4},via=10.0.0.1", "--route", f"{FAR6} via fd00::1")
    server = appliance("--memory", "16M", "--ip", "fd00::5", *routes)
    for address in server.addresses:
        assert "/ *" in far_host.run("showmount", "-e", address)
        assert "1 received" in far_host.run("ping", "-c", "1", "-s", "5000", "-W", "5", address)
    assert "ip.no_route" not in server.counters()


def test_without_a_route_nothing_goes_there(appliance: StartAppliance, far_host: Namespace) -> None:
    server = appliance("--memory", "16M", "--ip", "fd00::5", "--route", f"{FAR6},via=fd00::1")
    ping = ("ping", "-c", "1", "-W")
    assert "0 received" in far_host.run(*ping, "1", server.addresses[0], expect=None)
    assert "1 received" in far_host.run(*ping, "5", server.addresses[1])
    assert server.counters()["ip.no_route"] > 0
