"""IPv6 with the Linux kernel as the neighbour: ping, rpcinfo, showmount, neighbour discovery, a
router's advertisements, and the kernel's NFS client."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import NET6, TOP, Appliance, Namespace, make_image, make_tree, wait_until

pytestmark = pytest.mark.root

HOST6, SERVER6, GUEST6 = NET6.host(1), NET6.host(5), NET6.host(9)


@pytest.fixture
def netns6(netns: Namespace) -> Namespace:
    """With an IPv6 address of the host on the bridge, which is there at once."""
    netns.add_ipv6()
    return netns


@pytest.fixture
def server(netns6: Namespace, appliance: StartAppliance) -> Appliance:
    return appliance("--memory", "16M", "--ip", SERVER6)


def test_the_ready_line_has_all_addresses(server: Appliance) -> None:
    assert server.stdout.read_text() == "ready: 10.0.0.5 fd00::5 (tap0) exports: /\n"
    assert server.addresses == ["10.0.0.5", "fd00::5"]


def test_ping_is_answered_whole_and_in_fragments(server: Appliance, netns6: Namespace) -> None:
    for size in ("56", "1400", "6000", "60000"):
        said = netns6.run("ping", "-6", "-c", "2", "-i", "0.2", "-s", size, "-W", "2", SERVER6)
        assert "2 received, 0% packet loss" in said
    said = netns6.run("ping", "-6", "-c", "1", "-W", "1", "-t", "1", SERVER6)
    assert "1 received" in said
    assert "lladdr" in netns6.ip(f"-6 neigh show {SERVER6}")


def test_the_kernel_finds_us_reachable_and_we_find_it(server: Appliance, netns6: Namespace) -> None:
    """The kernel asks again by unicast when it is told to doubt us."""
    netns6.run("ping", "-6", "-c", "1", "-W", "2", SERVER6)
    before = server.counters()["nd.answered"]
    mac = netns6.ip(f"-6 neigh show {SERVER6}").split("lladdr ")[1].split()[0]
    netns6.ip(f"-6 neigh replace {SERVER6} lladdr {mac} dev br0 nud probe")
    wait_until(lambda: "REACHABLE" in netns6.ip(f"-6 neigh show {SERVER6}"))
    assert server.counters()["nd.answered"] > before


def test_rpcinfo_and_showmount_work_over_ipv6(server: Appliance, netns6: Namespace) -> None:
    for program, version in (("100000", "4"), ("100003", "3"), ("100005", "3")):
        for netid in ("tcp6", "udp6"):
            said = netns6.run("rpcinfo", "-T", netid, SERVER6, program, version)
            assert f"program {program} version {version} ready and waiting" in said
    listed = netns6.run("rpcinfo", SERVER6)
    assert "fd00::5.8.1" in listed and "0.0.0.0.8.1" in listed
    short = netns6.run("rpcinfo", "-s", SERVER6)
    assert "udp6,tcp6,udp,tcp" in short
    assert "/ *" in netns6.run("showmount", "-e", SERVER6)
    assert "/ *" in netns6.run("showmount", "-e", "10.0.0.5"), "and over IPv4 as before"


def test_an_unbound_port_is_refused(server: Appliance, netns6: Namespace) -> None:
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        f"s.settimeout(3); s.connect(('{SERVER6}', 33434)); s.send(b'x')\n"
        "try: s.recv(9)\n"
        "except ConnectionRefusedError: print('refused')\n"
        "t = socket.socket(socket.AF_INET6); t.settimeout(3)\n"
        f"try: t.connect(('{SERVER6}', 9))\n"
        "except ConnectionRefusedError: print('refused')\n"
    )
    assert netns6.run(sys.executable, "-c", program) == "refused\nrefused\n"


def test_an_address_that_the_host_has_is_not_taken(netns6: Namespace, tmp_path: Path) -> None:
    netns6.ip(f"address add {SERVER6}/64 dev br0 nodad")
    netns6.add_tap("tap0")
    words = ["--tap", "tap0", "--no-host-ip", "--memory", "16M", "--ip", SERVER6]
    command = netns6.command(sys.executable, "-m", "appliance", *words)
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"error: {SERVER6} is in use already on this link, by 02:00:00:00:00:01" in done.stderr


def test_the_kernel_does_not_take_our_address(server: Appliance, netns6: Namespace) -> None:
    netns6.run("ping", "-6", "-c", "1", "-W", "2", SERVER6)
    netns6.ip(f"address add {SERVER6}/64 dev br0")
    wait_until(lambda: "dadfailed" in netns6.ip("-6 address show dev br0"))


def test_a_tap_that_is_made_has_the_hosts_addresses_of_both_families(
    netns: Namespace, tmp_path: Path
) -> None:
    """Usable at once: nobody has to wait for the kernel to look for duplicates."""
    netns.ip("link delete br0")
    server = Appliance(netns, tmp_path, "--memory", "16M", "--ip", SERVER6)
    try:
        shown = netns.ip("-6 address show dev tap0")
        assert f"inet6 {HOST6}/64" in shown and "tentative" not in shown.split("scope link")[0]
        assert "10.0.0.1/24" in netns.ip("-4 address show dev tap0")
        assert "/ *" in netns.run("showmount", "-e", SERVER6)
        assert "/ *" in netns.run("showmount", "-e", "10.0.0.5")
    finally:
        server.stop()
    server.judge()


ADVERTISE = """
import sys, time
from scapy.layers.inet6 import (
    ICMPv6ND_RA, ICMPv6NDOptMTU, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6,
)
from scapy.layers.l2 import Ether
from scapy.sendrecv import sendp

mac = "02:00:00:00:00:01"
packet = Ether(src=mac, dst="33:33:00:00:00:01") / IPv6(src=sys.argv[1], dst="ff02::1", hlim=255)
packet /= ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=mac)
packet /= ICMPv6NDOptMTU(mtu=1400)
packet /= ICMPv6NDOptPrefixInfo(prefix="fd00:0:0:7::", prefixlen=64, L=1, A=1)
print("sending", flush=True)
while True:
    sendp(packet, iface="br0", verbose=False)
    time.sleep(0.5)
"""


@pytest.fixture
def router(netns: Namespace) -> Iterator[None]:
    """Advertises fd00:0:0:7::/64 on the bridge; the host has an address in it."""
    netns.ip("address add fd00:0:0:7::1/64 dev br0 nodad")
    own = "fe80::ff:fe00:1"
    process = subprocess.Popen(
        netns.command(sys.executable, "-c", ADVERTISE, own), stdout=subprocess.PIPE, cwd=TOP
    )
    assert process.stdout is not None and process.stdout.readline() == b"sending\n"
    yield
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("router")
def test_with_slaac_the_address_is_made_of_what_a_router_advertises(
    netns: Namespace, tmp_path: Path
) -> None:
    netns.add_tap("tap0")
    words = ("--no-host-ip", "--memory", "16M", "--mac", "02:00:00:00:00:77")
    server = Appliance(netns, tmp_path, *words, ip="slaac")
    try:
        assert server.address == "fd00::7:0:ff:fe00:77"
        netns.run("ping", "-6", "-c", "1", "-s", "3000", "-W", "2", server.address)
        assert "/ *" in netns.run("showmount", "-e", server.address)
    finally:
        server.stop()
    server.judge()


@pytest.mark.guest
def test_the_kernels_client_mounts_over_ipv6(
    netns6: Namespace, appliance: StartAppliance, guest: Callable[..., str], tmp_path: Path
) -> None:
    tree, image = tmp_path / "tree", tmp_path / "fs.img"
    make_tree(tree)
    make_image(image, tree)
    exports = tmp_path / "exports"
    exports.write_text("/ fd00::/64(rw,no_root_squash)\n")
    server = appliance("--image", image, "--exports", exports, "--ip", SERVER6)
    server.allow_loss = True  # an emulated guest acknowledges so late that probes go out (RFC 8985)
    said = guest(f"""
        ip -6 address add {GUEST6}/64 dev eth0 nodad
        for mountproto in tcp6 udp6; do
            mount -t nfs -o vers=3,nolock,proto=tcp6,mountproto=$mountproto [{SERVER6}]:/ /mnt
            sha256sum /mnt/big | cut -d' ' -f1
            head -c 3000000 /dev/zero | tr '\\0' x > /mnt/new-$mountproto
            umount /mnt
            mount -t nfs -o vers=3,nolock,proto=tcp6,mountproto=$mountproto [{SERVER6}]:/ /mnt
            wc -c < /mnt/new-$mountproto
            umount /mnt
        done
        mount -t nfs -o vers=3,nolock,proto=tcp 10.0.0.5:/ /mnt 2>&1 || echo refused over IPv4
    """)
    digest = hashlib.sha256((tree / "big").read_bytes()).hexdigest()
    assert said.count(digest) == 2 and said.count("3000000") == 2
    assert "refused over IPv4" in said, "the export is for the IPv6 network alone"
