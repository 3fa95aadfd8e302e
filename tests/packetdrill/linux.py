"""The Linux kernel as the host of a script, in real time: it proves the script, not the kernel.

    python -m tests.packetdrill.linux [--jobs N] FILE...     one line of JSON for each, when it ends

Each script has a process of its own, in a network namespace of its own, which ends with it. In the
namespace is one TAP interface: what the kernel sends we read from it, and what the peer sends we
write into it. Calls are made on the kernel's sockets, each in a thread, so that one may block.

Real time is only as good as the machine is quiet: a packet may be late by `slack_ns`, and a script
that fails is tried again when the others are through. Nothing is forgiven that comes too early.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import queue
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytun

from tests.packetdrill.internet import Hosts, hosts_of
from tests.packetdrill.kernel_calls import KernelCalls
from tests.packetdrill.language import Call, Script, ScriptError
from tests.packetdrill.packets import OUR_PORT, PEER_PORT
from tests.packetdrill.parser import parse_file
from tests.packetdrill.player import Player, Returned

CLONE_NEWNET = 0x40000000
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
OUR_MAC, PEER_MAC = bytes.fromhex("02000a000005"), bytes.fromhex("02000a000009")
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
BLOCKS_AFTER = 1.0
"""A call that has not returned after so many seconds blocks."""
SLACK_NS = (120_000_000, 300_000_000, 900_000_000)
"""How late the host may be: at the first attempt, and at those after it."""
SCRIPT_SECONDS_MAX = 30

SETTINGS = {
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv4/tcp_congestion_control": "reno",
    "net/ipv4/tcp_invalid_ratelimit": "0",
    "net/ipv4/tcp_challenge_ack_limit": "1000000",
    "net/ipv4/tcp_no_metrics_save": "1",
    "net/ipv4/icmp_ratelimit": "0",
}
"""The kernel as scripts want it, as far as this one has the setting."""


class Kernel:
    """A Subject (player.py)."""

    patience_ns = 8_000_000_000

    def __init__(self, script: Script, slack_ns: int) -> None:
        self.slack_ns = slack_ns
        options = script.options
        settings = {
            "net/ipv4/tcp_ecn": "1" if options.get("ecn") == "1" else "2",
            "net/ipv4/tcp_syncookies": "2" if options.get("syncookies") == "1" else "1",
        }
        self.hosts = hosts = hosts_of(options)
        self.tap = open_tap(int(options.get("mtu", "1500")), SETTINGS | settings, hosts)
        ports = int(options.get("local_port", OUR_PORT)), int(options.get("remote_port", PEER_PORT))
        self.calls = KernelCalls(str(ip_address(hosts.ours)), str(ip_address(hosts.peer)), ports)
        self.sent: deque[tuple[int, bytes]] = deque()
        self.arrived = Event()
        self.made: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.started = time.monotonic_ns()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """All that the kernel sends to the peer, with the time it was read."""
        way = self.hosts.ours + self.hosts.peer
        at = 22 if self.hosts.six else 26
        while True:
            frame = os.read(self.tap.fileno(), 65536)
            if frame[12:14] in (IPV4, IPV6) and frame[at : at + len(way)] == way:
                self.sent.append((self.now(), frame[14:]))
                self.arrived.set()

    def now(self) -> int:
        return time.monotonic_ns() - self.started

    def run_until(self, instant: int) -> None:
        left = instant - self.now()
        if left > 0:
            time.sleep(left / 1e9)

    def inject(self, packet: bytes) -> None:
        kind = IPV6 if self.hosts.six else IPV4
        os.write(self.tap.fileno(), OUR_MAC + PEER_MAC + kind + packet)

    def sniff(self, until: int) -> tuple[int, bytes] | None:
        while not self.sent:
            self.arrived.clear()
            left = until - self.now()
            if not self.sent and (left <= 0 or not self.arrived.wait(left / 1e9)):
                break
        return self.sent.popleft() if self.sent else None

    def call(self, call: Call, may_block: bool) -> Returned:
        returned = Returned()
        function = getattr(self.calls, call.name)

        def run() -> None:
            try:
                result, name = function(*call.arguments), None
            except OSError as failed:
                result, name = -1, errno.errorcode[failed.errno or 0]
                if name == "EAGAIN" and call.errno == "EWOULDBLOCK":
                    name = "EWOULDBLOCK"
            returned.errno, returned.at, returned.result = name, self.now(), result

        thread = Thread(target=run, daemon=True)
        thread.start()
        if not may_block:
            thread.join(BLOCKS_AFTER)
        return returned

    def names(self) -> dict[str, Any]:
        return self.calls.names()


def open_tap(mtu: int, settings: dict[str, str], hosts: Hosts) -> pytun.TunTapDevice:
    """Our interface, up, in a namespace that nobody else has. The peer is known to ARP."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace")
    for name, value in settings.items():
        setting = Path("/proc/sys") / name
        if setting.exists():
            setting.write_text(value)
    tap = pytun.TunTapDevice("tap0", IFF_TAP | IFF_NO_PI)
    tap.hwaddr = OUR_MAC
    tap.mtu = mtu
    tap.up()
    ours, peer = ip_address(hosts.ours), ip_address(hosts.peer)
    address = f"{ours}/64 dev tap0 nodad" if hosts.six else f"{ours}/24 dev tap0"
    words = f"neigh replace {peer} lladdr {PEER_MAC.hex(':')} dev tap0 nud permanent"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", *address.split()], check=True)
    subprocess.run(["ip", *words.split()], check=True)
    return tap


@dataclass
class Verdict:
    """How a script went."""

    file: str
    failure: str | None
    seconds: float
    attempt: int = 1


def play_linux(file: Path, slack_ns: int) -> str | None:
    """Play it in this process, which must be for nothing else. What failed, if something did."""
    script = parse_file(file)
    try:
        Player(script, Kernel(script, slack_ns)).play()
    except ScriptError as failed:
        return str(failed)
    return None


def in_a_process(file: Path, slack_ns: int) -> tuple[int, int]:
    """Play it in a child: its process and a descriptor from which its verdict comes."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    failure: str | None = f"{file.name}: the player itself has failed"
    try:
        failure = play_linux(file, slack_ns)
    except (OSError, AssertionError) as unforeseen:
        failure = f"{file.name}: {unforeseen!r}"
    finally:
        os.write(writes, json.dumps(failure).encode())
        os._exit(0)


def play_all(files: list[Path], jobs: int, attempt: int = 1) -> list[Path]:
    """Play them, so many at a time, and print verdicts; those that failed before the last attempt
    are what is returned instead."""
    waiting, again = list(files), []
    running: dict[int, tuple[Path, int, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            file = waiting.pop(0)
            child, reads = in_a_process(file, SLACK_NS[attempt - 1])
            running[reads] = file, child, time.monotonic()
        for reads in select.select(list(running), [], [], 1)[0]:
            file, child, began = running.pop(reads)
            said = os.read(reads, 1 << 16)
            os.close(reads)
            os.waitpid(child, 0)
            failure = json.loads(said) if said else "the process of the script died"
            if failure and attempt < len(SLACK_NS):
                print(failure, file=sys.stderr)
                again.append(file)
                continue
            verdict = Verdict(str(file), failure, time.monotonic() - began, attempt)
            print(json.dumps(asdict(verdict)), flush=True)
        for _file, child, began in running.values():
            if time.monotonic() - began > SCRIPT_SECONDS_MAX:
                os.kill(child, 9)
    return again


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.packetdrill.linux", description=__doc__)
    parser.add_argument("--jobs", type=int, default=8, help="scripts at a time")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    files, jobs = options.files, options.jobs
    for attempt in range(1, len(SLACK_NS) + 1):
        files = play_all(files, jobs, attempt)
        jobs = max(jobs // 4, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
