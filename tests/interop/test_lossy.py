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
from tests.interop.lab import SERVER, TOP, Appliance, Namespace, run

Guest = Callable[..., str]

BAD = ("--fault", "drop=1%,duplicate=1%,seed=7", "--fault", "reorder=5%,hold=5ms,seed=8")
SLOW = ("--fault", "delay=10ms,seed=9")
ROUND_TRIP_SECONDS = 0.02
DAMAGING = ("--fault", "corrupt=0.5%,truncate=0.2%,seed=10,filter=ip")


def do_nfs(netns: Namespace, kibibytes: int, timeout: float = 120) -> dict[str, float]:
    """A client of ours on the kernel's TCP: it compares what it reads with what it wrote."""
    words = (sys.executable, "-m", "tests.interop.wire_client", SERVER, str(kibibytes))
    said: dict[str, float] = json.loads(netns.run(*words, timeout=timeout))
    return said


def judge(server: Appliance, capture: Path) -> None:
    """Stop it; tshark finds nothing wrong in what it sent, but for what loss explains."""
    server.stop()
    run(TOP / "tools" / "capture-oracle", capture, SERVER, "--allow-loss", timeout=300)


@pytest.mark.root
@pytest.mark.parametrize(
    ("faults", "offload"),
    [(SLOW, True), ((*BAD, *SLOW), True), ((*BAD, *SLOW), False), (DAMAGING, False)],
    ids=["slow", "lossy-and-slow", "lossy-and-slow-plain", "damaging-plain"],
)
def test_a_linux_client_over_a_bad_wire(
    appliance: StartAppliance,
    netns: Namespace,
    tmp_path: Path,
    faults: tuple[str, ...],
    offload: bool,
) -> None:
    capture = tmp_path / "bad.pcapng"
    plain = () if offload else ("--no-offload",)
    server = appliance("--memory", "64M", "--pcap", capture, *faults, *plain, pcap=False)
    took = do_nfs(netns, 1000)["seconds"]
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
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [576, 1280, 1500, 9000, 65521])
def test_every_mtu(
    appliance: StartAppliance, netns: Namespace, tmp_path: Path, mtu: int, offload: bool
) -> None:
    """Also datagrams that need fragments there, in both directions."""
    plain = () if offload else ("--no-offload",)
    capture = tmp_path / "mtu.pcapng"
    words = ("--mtu", str(mtu), "--memory", "64M", "--pcap", capture)
    server = appliance(*words, *plain, pcap=False, mtu=mtu)
    netns.ip(f"link set br0 mtu {mtu}")
    do_nfs(netns, 1500)
    for size in (mtu - 28, min(mtu, 65_507), 20_000):
        pinged = ("ping", "-c", "2", "-i", "0.05", "-W", "5", "-s", str(size), SERVER)
        assert "2 received" in netns.run(*pinged, expect=None), f"{size} bytes"
    assert "program 100003 version 3 ready" in netns.run("rpcinfo", "-u", SERVER, "100003", "3")
    judge(server, capture)
