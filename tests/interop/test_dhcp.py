"""--ip dhcp, with DHCP servers that others wrote: dnsmasq, which is what most networks at home and
in laboratories have, and busybox's udhcpd, whose leases may last for seconds."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.lab import HOST, TOP, Appliance, Namespace, wait_until

pytestmark = pytest.mark.root

FIRST, OTHER = "10.0.0.50", "10.0.0.90"
MAC = "02:00:00:00:00:50"


class Server:
    """A DHCP server in the namespace, on br0."""

    def __init__(self, netns: Namespace, folder: Path) -> None:
        self._netns = netns
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "dhcp-server.log"

    def dnsmasq(self, *words: str, first: str = FIRST, count: int = 4) -> None:
        """Leases of two minutes (it has none that are shorter); renewed after three seconds, so
        that a test sees it."""
        last = first.rpartition(".")[0] + f".{int(first.rpartition('.')[2]) + count - 1}"
        self._start(
            "dnsmasq", "--no-daemon", "--user=root", "--conf-file=/dev/null", "--port=0",
            "--interface=br0", "--bind-interfaces", "--no-ping", "--no-hosts", "--no-resolv",
            "--dhcp-authoritative", "--log-dhcp", f"--dhcp-range={first},{last},255.255.255.0,2m",
            f"--dhcp-leasefile={self._folder / 'leases'}", "--pid-file=",
            "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60",
            f"--dhcp-option=option:router,{HOST}", "--dhcp-option=option:mtu,1400", *words,
        )  # fmt: skip
        wait_until(lambda: "DHCP, sockets bound" in self.said())

    def udhcpd(self, lease_seconds: int) -> None:
        """Leases of any length."""
        (self._folder / "leases").touch()
        config = self._folder / "udhcpd.conf"
        config.write_text(
            f"start {FIRST}\nend {FIRST}\ninterface br0\nmin_lease 2\n"
            f"lease_file {self._folder / 'leases'}\npidfile {self._folder / 'udhcpd.pid'}\n"
            f"option subnet 255.255.255.0\noption lease {lease_seconds}\n"
        )
        self._start("busybox", "udhcpd", "-f", str(config))
        wait_until(lambda: "started" in self.said())

    def _start(self, *words: str) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._netns.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def forget(self) -> None:
        """It does not know any more what it has given to whom."""
        (self._folder / "leases").unlink()


@pytest.fixture
def server(netns: Namespace, tmp_path: Path) -> Iterator[Server]:
    made = Server(netns, tmp_path)
    yield made
    made.stop()


StartLeased = Callable[..., Appliance]


@pytest.fixture
def leased(netns: Namespace, tmp_path: Path) -> Iterator[StartLeased]:
    """Starts rumpnfsd with --ip dhcp, and waits until it serves. In the end it is stopped, has to
    end in order, and tshark judges what it sent (pcap=False: clients are cut off in the middle)."""
    started: list[Appliance] = []

    def start(pcap: bool = True) -> Appliance:
        netns.add_tap("tap0")
        words = ("--memory", "64M", "--mac", MAC, "--log-level", "info")
        started.append(Appliance(netns, tmp_path, *words, ip="dhcp", pcap=pcap))
        return started[-1]

    yield start
    for one in started:
        one.stop()
        one.judge()


class Clients:
    """tests.proofs.load: two clients that do one thing after the other, and count what has been
    acknowledged."""

    def __init__(self, netns: Namespace, address: str, folder: Path) -> None:
        self._counts = folder / "acknowledged"
        words = (sys.executable, "-m", "tests.proofs.load", address, "2")
        with self._counts.open("wb") as stdout:
            self._process = subprocess.Popen(netns.command(*words), cwd=TOP, stdout=stdout)

    def done(self) -> int:
        return len(self._counts.read_bytes().splitlines())

    def progress(self) -> None:
        """Until much more has been acknowledged."""
        before = self.done()
        wait_until(lambda: self.done() >= before + 20, 30)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def clients(netns: Namespace, tmp_path: Path) -> Iterator[Callable[[str], Clients]]:
    """Starts clients of an address."""
    started: list[Clients] = []

    def start(address: str) -> Clients:
        started.append(Clients(netns, address, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.stop()


StartClients = Callable[[str], Clients]


def lines(appliance: Appliance, event: str) -> list[str]:
    """What it has logged about this."""
    return [line for line in appliance.said().splitlines() if f"event={event} " in line]


def connections(netns: Namespace, address: str) -> set[str]:
    """The ports from which NFS clients of the kernel here are connected to it."""
    said = netns.run("ss", "-Htn", "state", "established", "dst", f"{address}:2049")
    return {line.split()[2] for line in said.splitlines()}


def wait_for_lines(appliance: Appliance, event: str, count: int) -> str:
    """Until there are so many: the last one."""
    wait_until(lambda: len(lines(appliance, event)) >= count, 40)
    return lines(appliance, event)[-1]


def test_it_serves_at_an_address_from_dnsmasq(
    server: Server, leased: StartLeased, netns: Namespace
) -> None:
    server.dnsmasq()
    appliance = leased()
    assert appliance.address.startswith("10.0.0.5")
    assert f"gateway={HOST} server={HOST} lease=11" in lines(appliance, "dhcp-bound")[0]
    said = netns.run("rpcinfo", "-p", appliance.address)
    assert "100003" in said and "100005" in said
    said = netns.run("rpcinfo", "-T", "udp", appliance.address, "100005", "3")
    assert "ready and waiting" in said
    assert "/" in netns.run("showmount", "-e", appliance.address)
    said = netns.run("ping", "-c", "1", "-s", "3000", "-W", "1", appliance.address)
    assert "1 received" in said
    assert "client provides name: rumpnfsd" in server.said()
    netns.ip("-statistics neighbour flush all")
    appliance.stop()
    wait_until(lambda: "DHCPRELEASE(br0)" in server.said())


def test_clients_go_on_over_renewals(
    server: Server, leased: StartLeased, clients: StartClients, netns: Namespace
) -> None:
    server.dnsmasq()
    appliance = leased(pcap=False)
    load = clients(appliance.address)
    load.progress()
    before = connections(netns, appliance.address)
    wait_for_lines(appliance, "dhcp-extended", 2)
    load.progress()
    assert before and connections(netns, appliance.address) == before
    assert not lines(appliance, "dhcp-lost")


def test_a_lease_is_lost_with_its_server_and_comes_back_with_it(
    server: Server, leased: StartLeased, clients: StartClients, netns: Namespace
) -> None:
    """From T1 to the end: udhcpd, because its leases are over in seconds."""
    server.udhcpd(8)
    appliance = leased(pcap=False)
    load = clients(appliance.address)
    load.progress()
    server.stop()
    assert "no DHCP server has extended it" in wait_for_lines(appliance, "dhcp-lost", 1)
    netns.run("ping", "-c", "1", "-W", "1", appliance.address, expect=1)
    counters = appliance.counters()
    assert counters["dhcp.request"] >= 3 and counters["dhcp.expired"] == 1
    server.udhcpd(600)
    assert f"address={FIRST}/24" in wait_for_lines(appliance, "dhcp-bound", 2)
    load.progress()


def test_a_server_that_has_forgotten_us_gives_another_address(
    server: Server, leased: StartLeased, netns: Namespace
) -> None:
    """A DHCPNAK at the first renewal."""
    server.dnsmasq()
    appliance = leased()
    server.stop()
    server.forget()
    server.dnsmasq(first=OTHER)
    assert "refuses the address" in wait_for_lines(appliance, "dhcp-lost", 1)
    bound = wait_for_lines(appliance, "dhcp-bound", 2)
    assert re.search(r"address=10\.0\.0\.9[0-3]/24", bound)
    appliance.address = bound.split("address=")[1].split("/")[0]
    netns.run("rpcinfo", "-T", "tcp", appliance.address, "100003", "3")


def test_an_address_that_somebody_has_is_declined(
    server: Server, leased: StartLeased, netns: Namespace
) -> None:
    netns.ip(f"address add {FIRST}/32 dev br0")
    server.dnsmasq(f"--dhcp-host={MAC},{FIRST}")
    appliance = leased()
    assert appliance.address != FIRST
    assert f"DHCPDECLINE(br0) {FIRST} {MAC}" in server.said()
    assert "also-at=02:00:00:00:00:01" in lines(appliance, "arp-conflict")[0]


class Waiting:
    """rumpnfsd with --ip dhcp, which is not waited for."""

    def __init__(self, netns: Namespace, folder: Path) -> None:
        netns.add_tap("tap0")
        words = ("--tap", "tap0", "--ip", "dhcp", "--memory", "16M", "--log-level", "debug")
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            command = netns.command(sys.executable, "-m", "appliance", *words)
            self.process = subprocess.Popen(command, cwd=TOP, stdout=stdout, stderr=stderr)

    def talk(self) -> str:
        return self._stderr.read_text()

    def data(self) -> str:
        return self._stdout.read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0


@pytest.fixture
def waiting(netns: Namespace, tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(netns, tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_while_there_is_no_server_it_waits_and_says_so(server: Server, waiting: Waiting) -> None:
    """It does not end, takes signals, and serves when there is one."""
    wait_until(lambda: "still without an address: no DHCP server answers" in waiting.talk(), 20)
    waiting.process.send_signal(signal.SIGHUP)
    assert waiting.data() == ""
    server.dnsmasq()
    wait_until(lambda: "\n" in waiting.data(), 40)
    assert re.match(r"ready: 10\.0\.0\.5\d \(tap0\)", waiting.data())
    waiting.stop()


def test_it_can_be_stopped_before_there_is_an_address(waiting: Waiting) -> None:
    wait_until(lambda: "to=SELECTING" in waiting.talk())
    waiting.stop()
    assert waiting.data() == ""


# --- a configured address (RFC 5227) ------------------------------------------------------


def conflict_at(netns: Namespace, folder: Path, address: str, tap: str) -> str:
    """What rumpnfsd says on stderr that is started at an address that somebody has. It ends if it
    is told in time; on a machine that is busy it may be late, and then it goes on and says so."""
    netns.add_tap(tap)
    words = ("--tap", tap, "--ip", address, "--no-host-ip", "--memory", "16M")
    said = folder / f"stderr-{tap}"
    with said.open("wb") as stderr, (folder / f"stdout-{tap}").open("wb") as stdout:
        command = netns.command(sys.executable, "-m", "appliance", *words)
        process = subprocess.Popen(command, cwd=TOP, stdout=stdout, stderr=stderr)
    try:
        ready = folder / f"stdout-{tap}"
        wait_until(lambda: "also-at=" in said.read_text(), 20)
        wait_until(lambda: process.poll() is not None or "ready: " in ready.read_text(), 20)
        if "ready: " not in ready.read_text():
            assert process.poll() == 1
            assert "hint: choose another --ip" in said.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in said.read_text()
    return said.read_text()


def test_an_address_that_is_in_use_is_found_at_the_start(netns: Namespace, tmp_path: Path) -> None:
    assert "also-at=02:00:00:00:00:01" in conflict_at(netns, tmp_path, HOST, "tap0")


def test_the_same_appliance_twice_on_one_bridge_is_found(netns: Namespace, tmp_path: Path) -> None:
    """Their MAC is the same, as it is made of the address."""
    netns.add_tap("tap0")
    first = Appliance(netns, tmp_path, "--memory", "16M", "--no-host-ip")
    try:
        netns.run("ping", "-c", "2", "-i", "1", "-W", "1", first.address)  # its probes are over
        said = conflict_at(netns, tmp_path, first.address, "tap1")
        assert "which is our own MAC address" in said
        netns.run("rpcinfo", "-T", "tcp", first.address, "100003", "3")
    finally:
        first.stop()
