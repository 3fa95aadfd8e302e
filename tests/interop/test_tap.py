"""The stack on real TAP interfaces: the kernel's ping, UDP and TCP are the other side."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.netstack.link.interface import LinkError
from appliance.netstack.link.tap import TapLink
from tests.interop.lab import TOP, Namespace

pytestmark = pytest.mark.root

US = "10.0.0.5"
US_AT = "02:00:0a:00:00:05"
HOST = "10.0.0.1/24"


class Process:
    """tap_host.py, running."""

    def __init__(self, netns: Namespace, wanted: dict[str, Any]) -> None:
        command = netns.command(sys.executable, "-m", "tests.interop.tap_host", json.dumps(wanted))
        self._process = subprocess.Popen(
            command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.got = self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 20)[0], "it says nothing"
        said: dict[str, Any] = json.loads(self._process.stdout.readline() or b"{}")
        return said

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> dict[str, int]:
        """Close the link: the thread that reads ends at once. What was counted."""
        assert self._process.stdin is not None
        began = time.monotonic()
        self._process.stdin.close()
        said = self._line()
        assert said.get("ended") is True, self.complaints()
        assert time.monotonic() - began < 2
        assert self._process.wait(10) == 0
        self.woken: int = said["woken"]
        counters: dict[str, int] = said["counters"]
        return counters

    def complaints(self) -> str:
        """What it wrote on stderr until it ended."""
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()

    def end(self) -> None:
        """Whatever has happened: nothing of it stays behind."""
        self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Process]


@pytest.fixture
def tap_host(netns: Namespace) -> Iterator[Start]:
    """Starts a stack in the namespace: `tap_host(name="tap1", offload=False)`."""
    netns.ip("link del br0")  # here the TAP itself is the host's interface
    started: list[Process] = []

    def start(**wanted: Any) -> Process:
        started.append(Process(netns, wanted))
        return started[-1]

    yield start
    for one in started:
        one.end()


def ping(netns: Namespace, *words: str) -> bool:
    said = netns.run("ping", "-W", "3", "-i", "0.01", *words, US, expect=None)
    return "100% packet loss" not in said and " 0% packet loss" in said


def python(netns: Namespace, code: str) -> str:
    """Run a few lines in the namespace, with a socket towards us within reach."""
    head = f"import socket, os\nwhere = ({US!r}, 7)\n"
    return netns.run(sys.executable, "-c", head + code)


UDP_ECHO = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
for size in (0, 1, 1000, 1472, 1473, 9000, 32768, 65507):
    data = os.urandom(size)
    s.sendto(data, where)
    assert s.recv(70000) == data, size
s.connect((where[0], 9))
s.send(b"nobody is there")
try:
    s.recv(100)
    raise SystemExit("that was answered")
except ConnectionRefusedError:
    print("all echoed")
"""

TCP_ECHO = """
from threading import Thread
s = socket.create_connection(where, 5)
data = os.urandom(3_000_000)
Thread(target=s.sendall, args=(data,)).start()
got = bytearray()
while len(got) < len(data):
    got += s.recv(1 << 16)
assert got == data
s.close()
try:
    socket.create_connection((where[0], 9), 5)
    raise SystemExit("somebody is there")
except ConnectionRefusedError:
    print("all echoed")
"""


def assert_it_works(netns: Namespace) -> None:
    assert ping(netns, "-c", "20")
    assert ping(netns, "-c", "5", "-s", "60000")
    assert "all echoed" in python(netns, UDP_ECHO)
    assert "all echoed" in python(netns, TCP_ECHO)


def assert_nothing_was_bad(counters: dict[str, int]) -> None:
    bad = {k: v for k, v in counters.items() if "bad" in k or "truncated" in k or "vnet" in k}
    assert not any(bad.values()), bad


# --- a TAP that we make -------------------------------------------------------------------


@pytest.mark.parametrize("offload", [True, False])
def test_a_new_tap_is_set_up_used_and_gone_again(
    netns: Namespace, tap_host: Start, offload: bool
) -> None:
    process = tap_host(name="tap1", offload=offload, host=HOST)
    assert process.got == {"name": "tap1", "vnet": offload, "mtu": 1500}
    shown = netns.ip("-d address show dev tap1")
    assert "inet 10.0.0.1/24" in shown and "qlen 10000" in shown and "UP" in shown
    assert_it_works(netns)
    assert US_AT in netns.ip("neigh show")
    counters = process.stop()
    assert counters["ip.reassembled"] == 9, "five pings and four datagrams"
    assert_nothing_was_bad(counters)
    assert process.woken == 3, "the thread that reads can be called away from it"
    assert "tap1" not in netns.ip("link show")


def test_a_new_tap_gets_the_mtu_that_was_asked_for(netns: Namespace, tap_host: Start) -> None:
    process = tap_host(name="tap1", mtu=9000, host=HOST)
    assert process.got["mtu"] == 9000
    assert "mtu 9000" in netns.ip("link show dev tap1")
    assert_it_works(netns)
    process.stop()


def test_offload_is_on_as_far_as_this_kernel_can(netns: Namespace, tap_host: Start) -> None:
    """A megabyte comes in few frames."""
    process = tap_host(name="tap1", host=HOST)
    before = frames_to_us(netns)
    python(netns, TCP_ECHO)
    assert frames_to_us(netns) - before < 3_000_000 // 1448 // 2
    process.stop()


ECN = """
s = socket.create_connection(where, 5)
got = 0
s.sendall(os.urandom(50_000))
while got < 50_000:
    got += len(s.recv(1 << 16))
options = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
print("agreed" if options & 8 else "not agreed", "seen" if options & 16 else "not seen")
"""
"""Of tcpi_options: TCPI_OPT_ECN, and TCPI_OPT_ECN_SEEN for a packet that might have been marked."""


@pytest.mark.parametrize("offload", [True, False])
def test_the_kernel_and_we_agree_about_ecn(
    netns: Namespace, tap_host: Start, offload: bool
) -> None:
    """RFC 3168 section 6.1.1: where it asks; and our text comes as ECT."""
    process = tap_host(name="tap1", offload=offload, host=HOST)
    netns.run("sysctl", "-q", "-w", "net.ipv4.tcp_ecn=1")
    assert python(netns, ECN).split() == ["agreed", "seen"]
    netns.run("sysctl", "-q", "-w", "net.ipv4.tcp_ecn=0")
    assert python(netns, ECN).split() == ["not", "agreed", "not", "seen"]
    assert_nothing_was_bad(process.stop())


def frames_to_us(netns: Namespace) -> int:
    shown = netns.ip("-s link show dev tap1")
    found = re.search(r"TX:.*\n\s+\d+\s+(\d+)", shown)
    assert found is not None, shown
    return int(found.group(1))


# --- a TAP that is there already ------------------------------------------------------------


def settings(netns: Namespace, name: str) -> dict[str, Any]:
    """All that a user sets on an interface, and nothing that changes by itself."""
    (shown,) = json.loads(netns.ip(f"-json -details address show dev {name}"))
    kind = shown["linkinfo"]["info_data"]
    return {
        "mac": shown["address"],
        "mtu": shown["mtu"],
        "queue": shown["txqlen"],
        "up": "UP" in shown["flags"],
        "addresses": [a["local"] for a in shown["addr_info"] if a["family"] == "inet"],
        "kind": (kind["type"], kind["persist"], kind.get("multi_queue")),
    }


@pytest.mark.parametrize("kind", ["", "multi_queue"])
@pytest.mark.parametrize("offload", [True, False])
def test_a_persistent_tap_is_used_and_left_as_it_is(
    netns: Namespace, tap_host: Start, kind: str, offload: bool
) -> None:
    netns.ip(f"tuntap add dev tap1 mode tap {kind}")
    netns.ip("link set dev tap1 mtu 1400 txqueuelen 777 up")
    netns.ip(f"address add {HOST} dev tap1")
    before = settings(netns, "tap1")
    process = tap_host(name="tap1", offload=offload, host="192.0.2.1/24", mtu=9000)
    assert process.got == {"name": "tap1", "vnet": offload, "mtu": 1400}
    assert_it_works(netns)
    assert settings(netns, "tap1") == before
    assert_nothing_was_bad(process.stop())
    assert settings(netns, "tap1") == before


def test_who_opens_a_persistent_tap_after_us_finds_no_offload(
    netns: Namespace, tap_host: Start
) -> None:
    """Otherwise one that does not know virtio-net headers would get frames that are too large."""
    netns.ip("tuntap add dev tap1 mode tap")
    netns.ip("link set dev tap1 up")
    netns.ip(f"address add {HOST} dev tap1")
    tap_host(name="tap1").stop()
    process = tap_host(name="tap1", offload=False)
    assert_it_works(netns)
    assert_nothing_was_bad(process.stop())


# --- a descriptor -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vnet", "plain"])
def test_a_descriptor_is_used_as_it_was_opened(
    netns: Namespace, tap_host: Start, kind: str
) -> None:
    process = tap_host(name="tap1", hand_over=kind)
    assert process.got == {"name": "tap1", "vnet": kind == "vnet", "mtu": 1500}
    netns.ip(f"address add {HOST} dev tap1")
    assert_it_works(netns)
    assert_nothing_was_bad(process.stop())


def test_a_descriptor_of_something_else_is_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(LinkError, match="is not a TAP"):
        TapLink("", fd=read)
    os.close(read)
    os.close(write)


# --- trouble ------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_said_with_a_hint(netns: Namespace, tap_host: Start) -> None:
    netns.ip("link add bridge1 type bridge")
    assert "cannot open bridge1" in tap_host(name="bridge1").got["error"]
    first = tap_host(name="tap1", host=HOST)
    busy = tap_host(name="tap1", host=HOST).got
    assert busy["hint"] == "another process uses it"
    assert ping(netns, "-c", "3"), "the first one is not disturbed"
    first.stop()


@pytest.mark.parametrize("offload", [True, False])
def test_a_link_that_goes_down_and_up_goes_on(
    netns: Namespace, tap_host: Start, offload: bool
) -> None:
    process = tap_host(name="tap1", offload=offload, host=HOST)
    assert ping(netns, "-c", "3")
    for _ in range(2):
        netns.ip("link set dev tap1 down")
        assert not ping(netns, "-c", "2")
        assert process.is_alive
        netns.ip("link set dev tap1 up")
        assert_it_works(netns)
    process.stop()


def test_an_interface_that_is_deleted_ends_nothing(netns: Namespace, tap_host: Start) -> None:
    process = tap_host(name="tap1", host=HOST)
    assert ping(netns, "-c", "3")
    netns.ip("link del tap1")
    time.sleep(0.5)
    assert process.is_alive
    process.stop()
    assert "tap receive failed" in process.complaints()


@pytest.mark.parametrize("offload", [True, False])
def test_reads_and_writes_that_fail_now_and_then_are_only_loss(
    netns: Namespace, tap_host: Start, offload: bool
) -> None:
    process = tap_host(name="tap1", offload=offload, host=HOST, sabotage=True)
    for _ in range(3):
        assert python(netns, TCP_ECHO).strip() == "all echoed"
    counters = process.stop()
    kinds = ("EIO", "ENOBUFS", "EBADFD", "EINVAL", "None")
    assert all(counters[f"sabotage.{kind}"] for kind in kinds), counters
    assert "Traceback" not in process.complaints()


def test_a_link_that_is_down_can_be_closed_by_end_of_process(
    netns: Namespace, tap_host: Start
) -> None:
    process = tap_host(name="tap1", hand_over="vnet")
    netns.ip("link set dev tap1 down")
    process.stop()


# --- frames from scapy ----------------------------------------------------------------------------

SCAPY = """
from scapy.all import ARP, ICMP, IP, TCP, UDP, Ether, conf, sendp, srp1, sniff
conf.verb = 0
def ask(frame):
    return srp1(frame, iface="tap1", timeout=2)
everybody = "ff:ff:ff:ff:ff:ff"
"""


def scapy(netns: Namespace, code: str) -> str:
    return netns.run(sys.executable, "-W", "ignore", "-c", SCAPY + code)


def test_arp_questions_from_scapy_are_answered(netns: Namespace, tap_host: Start) -> None:
    process = tap_host(name="tap1", host=HOST)
    said = scapy(
        netns,
        """
a = ask(Ether(dst=everybody) / ARP(pdst="10.0.0.5"))
print("asked", a[ARP].op, a[ARP].hwsrc)
a = ask(Ether(dst=everybody) / ARP(psrc="0.0.0.0", pdst="10.0.0.5"))
print("probed", a[ARP].op, a[ARP].hwsrc)
""",
    )
    assert said.split("\n")[:2] == [f"asked 2 {US_AT}", f"probed 2 {US_AT}"]
    assert process.stop()["arp.answered"] >= 2


def test_forged_frames_from_scapy_are_dropped_by_name(netns: Namespace, tap_host: Start) -> None:
    process = tap_host(name="tap1", host=HOST)
    assert ping(netns, "-c", "1")
    said = scapy(
        netns,
        f"""
us = Ether(dst={US_AT!r})
for frame in (
    us / IP(src="10.0.0.5", dst="10.0.0.5") / TCP(dport=7, sport=7, flags="S"),
    us / IP(src="10.0.0.255", dst="10.0.0.5") / TCP(dport=7, flags="S"),
    us / IP(src="10.0.0.1", dst="10.0.0.5", chksum=1) / UDP(dport=7),
    us / IP(src="10.0.0.1", dst="10.0.0.5", flags="MF", frag=0) / bytes(16),
    us / IP(src="10.0.0.1", dst="10.0.0.5", flags="MF", frag=1) / bytes(16),
    us / IP(src="10.0.0.1", dst="10.0.0.5") / TCP(dport=7, flags="S", chksum=1),
    Ether(dst=everybody) / ARP(op=1, hwsrc="02:00:00:00:00:66", psrc="10.0.0.5", pdst="10.0.0.5"),
):
    sendp(frame, iface="tap1")
print("sent")
""",
    )
    assert "sent" in said
    assert ping(netns, "-c", "3")
    counters = process.stop()
    for reason in (
        "ip.own_source",
        "ip.bad_source",
        "ip.bad_checksum",
        "ip.fragment_overlap",
        "tcp.bad_checksum",
        "arp.conflict",
    ):
        assert counters.get(reason) == 1, (reason, counters)


def test_offloaded_datagrams_are_taken_one_by_one(netns: Namespace, tap_host: Start) -> None:
    """UDP_SEGMENT: the kernel hands over one super-frame with many datagrams in it."""
    process = tap_host(name="tap1", host=HOST)
    said = python(
        netns,
        """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.setsockopt(socket.IPPROTO_UDP, 103, 100)
s.sendto(bytes(950), where)
print(sorted(len(s.recv(2000)) for _ in range(10)))
""",
    )
    assert said.strip() == str([50] + [100] * 9)
    assert_nothing_was_bad(process.stop())
