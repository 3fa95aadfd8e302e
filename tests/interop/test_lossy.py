"""Linux clients over a bad wire, and over wires of any width: the data is right, and tshark finds
nothing malformed.

The wire is made bad by --fault, in both directions; the clients are on the other side of a bridge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import NET4, NET6, SERVER, TOP, Appliance, Namespace, Net, run

Guest = Callable[..., str]

BAD = ("--fault", "drop=1%,duplicate=1%,seed=7", "--fault", "reorder=5%,hold=5ms,seed=8")
SLOW = ("--fault", "delay=10ms,seed=9")
ROUND_TRIP_SECONDS = 0.02
DAMAGING = ("--fault", "corrupt=0.5%,truncate=0.2%,seed=10,filter=ip or tcp")
"""Of IPv6, not the question whether anybody else has the address: nobody asks again."""


def do_nfs(
    netns: Namespace, kibibytes: int, server: str = SERVER, timeout: float = 120
) -> dict[str, float]:
    """A client of ours on the kernel's TCP: it compares what it reads with what it wrote."""
    words = (sys.executable, "-m", "tests.interop.wire_client", server, str(kibibytes))
    said: dict[str, float] = json.loads(netns.run(*words, timeout=timeout))
    return said


def judge(server: Appliance, capture: Path) -> None:
    """Stop it; tshark finds nothing wrong in what it sent, but for what loss explains."""
    server.stop()
    run(TOP / "tools" / "capture-oracle", capture, server.address, "--allow-loss", timeout=300)


@pytest.mark.root
@pytest.mark.parametrize(
    ("net", "faults", "offload"),
    [
        (NET4, SLOW, True),
        (NET4, (*BAD, *SLOW), True),
        (NET4, (*BAD, *SLOW), False),
        (NET4, DAMAGING, False),
        (NET6, (*BAD, *SLOW), True),
        (NET6, DAMAGING, False),
    ],
    ids=[
        "slow",
        "lossy-and-slow",
        "lossy-and-slow-plain",
        "damaging-plain",
        "IPv6-lossy-and-slow",
        "IPv6-damaging-plain",
    ],
)
def test_a_linux_client_over_a_bad_wire(
    appliance: StartAppliance,
    netns: Namespace,
    tmp_path: Path,
    net: Net,
    faults: tuple[str, ...],
    offload: bool,
) -> None:
    capture = tmp_path / "bad.pcapng"
    plain = () if offload else ("--no-offload",)
    if net is NET6:
        netns.add_ipv6()
    words = ("--memory", "64M", "--pcap", capture, *faults, *plain)
    server = appliance(*words, pcap=False, ip=net.host(5))
    took = do_nfs(netns, 1000, server.address)["seconds"]
    counters = server.counters()
    judge(server, capture)
    if faults == SLOW:
        assert took > 20 * ROUND_TRIP_SECONDS, "no call is answered earlier"
    elif faults == DAMAGING:
        assert counters["fault.damaged"] > 0 and counters["tcp.bad_checksum"] > 0
    else:
        assert min(counters[f"fault.{what}"] for what in ("lost", "duplicated", "reordered")) > 0
    told = tshark_comments(capture)
    assert told and all(line.endswith(" by --fault") for line in told)


def tshark_comments(capture: Path) -> set[str]:
    words = ("tshark", "-r", capture, "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment")
    said = run("sh", "-c", 'exec "$@" 2>/dev/null', "sh", *words)
    return set(said.splitlines())


@pytest.mark.root
@pytest.mark.guest
def test_the_kernels_nfs_client_over_a_bad_wire(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    capture = tmp_path / "bad.pcapng"
    server = appliance("--memory", "128M", "--pcap", capture, *BAD, *SLOW, pcap=False)
    said = guest(
        f"""
        mkdir -p /mnt && mount -t nfs -o vers=3,nolock,hard {SERVER}:/ /mnt
        head -c 3000000 /dev/urandom >/tmp/data
        cp /tmp/data /mnt/data
        mkdir /mnt/many; for n in $(seq 30); do echo $n >/mnt/many/$n; done
        umount /mnt; mount -t nfs -o vers=3,nolock,hard {SERVER}:/ /mnt
        cmp /tmp/data /mnt/data && echo SAME
        cat /mnt/many/* | sort -n | md5sum; seq 30 | md5sum
        rm -r /mnt/many; ls /mnt; umount /mnt
        """,
        timeout=300,
    )
    assert "SAME" in said
    sums = [line for line in said.splitlines() if line.endswith("  -")]
    assert len(sums) == 2 and sums[0] == sums[1]
    counters = server.counters()
    assert counters["fault.lost"] > 5
    judge(server, capture)


@pytest.mark.root
@pytest.mark.parametrize(
    ("net", "mtu", "offload"),
    [
        *((NET4, mtu, offload) for mtu in (576, 1280, 1500, 9000, 65521) for offload in (1, 0)),
        (NET6, 1280, False),
        (NET6, 1500, True),
        (NET6, 9000, False),
        (NET6, 65521, True),
    ],
    ids=lambda value: {True: "offload", False: "plain"}.get(value, str(value)),
)
def test_every_mtu(
    appliance: StartAppliance,
    netns: Namespace,
    tmp_path: Path,
    net: Net,
    mtu: int,
    offload: bool,
) -> None:
    """Also datagrams that need fragments there, in both directions. No IPv6 link is narrower than
    1280 (RFC 8200 section 5), so 576 is IPv4's alone."""
    plain = () if offload else ("--no-offload",)
    capture = tmp_path / "mtu.pcapng"
    words = ("--mtu", str(mtu), "--memory", "64M", "--pcap", capture)
    if net is NET6:
        netns.add_ipv6()
    server = appliance(*words, *plain, pcap=False, mtu=mtu, ip=net.host(5))
    netns.ip(f"link set br0 mtu {mtu}")
    do_nfs(netns, 1500, server.address)
    for size in (mtu - net.header_bytes - 8, min(mtu, 65_507), 20_000):
        pinged = ("ping", "-c", "2", "-i", "0.05", "-W", "5", "-s", str(size), server.address)
        assert "2 received" in netns.run(*pinged, expect=None), f"{size} bytes"
    asked = netns.run("rpcinfo", "-T", net.udp, server.address, "100003", "3")
    assert "program 100003 version 3 ready" in asked
    judge(server, capture)
