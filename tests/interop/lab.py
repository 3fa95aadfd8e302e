"""A laboratory for real clients: a network namespace with a bridge, the appliance as a process of
its own on a TAP interface, and a Linux guest on another.

    bridge br0, 10.0.0.1    the tools of the host: ping, rpcinfo, showmount, libnfs
      tap0                  rumpnfsd, 10.0.0.5
      guest...              Linux, 10.0.0.9

Nothing leaves the namespace, and everything in it ends with it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Net:
    """The addresses of one family on the bridge."""

    prefix: str
    length: int
    header_bytes: int
    """Of IP."""
    udp: str
    """The netid of UDP over it (RFC 5665)."""

    def host(self, number: int) -> str:
        """The address of one host."""
        return f"{self.prefix}{number}"

    def __str__(self) -> str:
        return "IPv6" if ":" in self.prefix else "IPv4"


NET4: Final = Net("10.0.0.", 24, 20, "udp")
NET6: Final = Net("fd00::", 64, 40, "udp6")
HOST: Final = NET4.host(1)
SERVER: Final = NET4.host(5)
GUEST: Final = NET4.host(9)
MOUNT: Final = f"mount -t nfs -o vers=3,nolock,proto=tcp {SERVER}:/ /mnt"
"""In the guest."""
AGAIN: Final = f"umount /mnt && {MOUNT}"
"""Nothing stays in the client's cache."""
MOUNT_IMPATIENTLY: Final = MOUNT.replace("nolock", "nolock,timeo=50")
"""For servers that are killed. A call that the server had received, but not answered, is sent again
after 5 s; TCP has no reason to send it, and Linux waits for 60 s by itself."""
WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")
"""A program in the laboratory does not outlive the test run, however that ends."""

_numbers = itertools.count(1)


def run(*command: str | Path, timeout: float = 60) -> str:
    """Run on the host; what it said, if all went well."""
    return _output(command, timeout)


def _output(command: Sequence[str | Path], timeout: float, expect: int | None = 0) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert expect is None or done.returncode == expect, f"{command} -> {done.returncode}\n{said}"
    return said


class Namespace:
    """A network namespace with the bridge br0 in it."""

    def __init__(self) -> None:
        self.name = f"rumpnfsd-{os.getpid()}-{next(_numbers)}"
        run("ip", "netns", "add", self.name)
        try:
            self.ip("link set lo up")
            # With an address of its own: else it takes one of its ports', and changes it with them.
            self.ip("link add br0 address 02:00:00:00:00:01 type bridge")
            self.ip("link set br0 up")
            self.ip(f"address add {HOST}/24 dev br0")
        except AssertionError:
            self.remove()
            raise

    def ip(self, words: str) -> str:
        """ip(8) in the namespace."""
        return run("ip", "-n", self.name, *words.split())

    def add_ipv6(self, device: str = "br0", number: int = 1) -> None:
        """An IPv6 address of this host, there at once."""
        self.ip(f"address add {NET6.host(number)}/{NET6.length} dev {device} nodad")

    def add_tap(self, name: str, mtu: int = 1500) -> None:
        """A persistent TAP interface that is a port of the bridge."""
        self.ip(f"tuntap add dev {name} mode tap")
        self.ip(f"link set {name} mtu {mtu} txqueuelen 10000 master br0 up")

    def command(self, *words: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, *WITH_PARENT, *map(str, words)]

    def run(self, *words: str | Path, timeout: float = 60, expect: int | None = 0) -> str:
        """Run in the namespace; what it said. `expect`: the exit code, None for any."""
        return _output(self.command(*words), timeout, expect)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


class Appliance:
    """rumpnfsd as its users start it. Use `stop` (or `kill`), then `judge`."""

    def __init__(
        self,
        netns: Namespace,
        folder: Path,
        *words: str | Path,
        pcap: bool = True,
        tap: str = "tap0",
        ip: str = SERVER,
    ) -> None:
        self.netns = netns
        self._ip = ip
        self.allow_loss = False
        self._words = [str(word) for word in words]
        self._folder = folder
        self._tap = tap
        self._starts = 0
        self._captures: list[Path] = []
        self._with_pcap = pcap
        self.start()

    def start(self) -> None:
        """Start (again), and wait until it says that it serves."""
        self._starts += 1
        words = ["--tap", self._tap, "--ip", self._ip, *self._words]
        if self._with_pcap:
            self._captures.append(self._folder / f"{self._tap}-{self._starts}.pcap")
            words += ["--pcap", str(self._captures[-1])]
        self.stderr = self._folder / f"{self._tap}-stderr-{self._starts}"
        self.stdout = self._folder / f"{self._tap}-stdout-{self._starts}"
        ready, write = os.pipe()
        command = self.netns.command(
            sys.executable, "-m", "appliance", *words, "--ready-fd", str(write)
        )
        with self.stderr.open("wb") as stderr, self.stdout.open("wb") as stdout:
            self.process = subprocess.Popen(
                command, cwd=TOP, stdout=stdout, stderr=stderr, pass_fds=[write]
            )
        os.close(write)
        try:
            assert select.select([ready], [], [], 20)[0], "not ready after 20 s"
            assert os.read(ready, 1) == b"\n", f"it ended: {self.said()}"
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(ready)
        self.addresses = self.stdout.read_text().partition(" (")[0].split()[1:]
        self.address = self.addresses[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """What it wrote on stderr so far."""
        return self.stderr.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def counters(self) -> dict[str, int]:
        """What happened how often since it was started."""
        before = self.said().count("event=counters")
        self.signal(signal.SIGUSR1)
        wait_until(lambda: self.said().count("event=counters") > before)
        last = self.said().rpartition("event=counters")[2].splitlines()[0]
        return {name: int(count) for name, count in re.findall(r"(\S+)=(\d+)", last)}

    def stop(self) -> None:
        """In order: it has nothing to complain about."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.process.wait(20)
        said = self.said()
        assert "Traceback" not in said, said
        assert code == 0, f"exit code {code}\n{said}"

    def kill(self) -> None:
        """Without a warning, as a power cut would. What follows is loss for whoever watches."""
        self.process.kill()
        self.process.wait()
        self.allow_loss = True

    def judge(self) -> None:
        """tshark finds nothing wrong in what it sent."""
        words = ["--allow-loss"] if self.allow_loss else []
        for capture in self._captures:
            addresses = dict.fromkeys((*self.addresses, self.address))  # a lease may have changed
            run(TOP / "tools" / "capture-oracle", capture, *addresses, *words, timeout=300)


class GuestRun:
    """A script that runs in the guest."""

    def __init__(self, netns: Namespace, folder: Path, script: str, timeout: float) -> None:
        path = folder / f"script-{next(_numbers)}"
        path.write_text(f"#!/bin/bash\nset -euo pipefail\n{script}\n")
        self._timeout = timeout
        self._output = bytearray()
        self._process = subprocess.Popen(
            [
                *WITH_PARENT, TOP / "tools" / "guest-run", "--netns", netns.name, "--bridge", "br0",
                "--address", f"{GUEST}/24", "--timeout", str(timeout), path,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace")

    def wait_for(self, line: str) -> None:
        """Until the script has printed `line`."""
        wanted = re.compile(rf"^{re.escape(line)}$", re.MULTILINE)
        deadline = time.monotonic() + self._timeout
        while not wanted.search(self.output):
            assert self._read(deadline), f"{line!r} never came:\n{self.output}"

    def finish(self) -> str:
        """Until it ends well; all it printed."""
        deadline = time.monotonic() + self._timeout + 30
        while self._read(deadline):
            pass
        code = self._process.wait(10)
        assert code == 0, f"the guest's script ended with {code}:\n{self.output}"
        return self.output

    def _read(self, deadline: float) -> bool:
        stream = self._process.stdout
        assert stream is not None
        left = max(0.0, deadline - time.monotonic())
        assert select.select([stream], [], [], left)[0], f"the guest is silent:\n{self.output}"
        data = os.read(stream.fileno(), 1 << 16)
        self._output += data
        return bool(data)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Look again and again, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def make_tree(top: Path) -> None:
    """A little of everything that a directory holds."""
    top.mkdir()
    (top / "hello").write_text("hello, world\n")
    (top / "empty").write_bytes(b"")
    (top / "big").write_bytes(bytes(range(256)) * 20_000)
    (top / "name with blanks and ümläuts").write_text("x")
    deep = top / "sub" / "deeper" / "still"
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf\n")
    (top / "link").symlink_to("sub/deeper")
    (top / "dangling").symlink_to("/nowhere/at/all")
    os.link(top / "hello", top / "sub" / "hello-again")
    os.mkfifo(top / "fifo")
    many = top / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"file-{number:04}").write_text(f"{number}\n")
    for path, mode, owner in (
        ("hello", 0o640, (1000, 1000)),
        ("empty", 0o4755, (0, 0)),
        ("sub", 0o2775, (1001, 50)),
        ("many", 0o1777, (65534, 65534)),
    ):
        os.chown(top / path, *owner)
        (top / path).chmod(mode)
    os.utime(top / "hello", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))


def make_image(image: Path, tree: Path, megabytes: int = 64) -> None:
    """An ext4 image that holds `tree`."""
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, f"{megabytes}M")


def checksums(top: Path) -> dict[str, str]:
    """The SHA-256 of every file below."""
    return {
        str(file.relative_to(top)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(top.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }
