"""How fast is the stack alone? Our TCP on a TAP, and beside it the kernel's and lwIP's.

    python -m tests.bench.stack [--seconds N] [--rounds N] [ROW ...]        (root)

Each row is measured by turns with ours and with the kernel's TCP, each a Python server of a few
lines (stack_server.py, limits_server.py), and with lwIP's, a server in C (lwip_server.c), in
network namespaces of their own. The client is the same, in C.
The server is pinned to core 0, the client to core 1, or to the same core where the row says so.
The best of the rounds counts. With messages: the server's user and system time for one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.measuring import cpu_of
from tests.bench.stack_server import CLOSE, ECHO, SINK, SOURCE

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
SERVER, HOST, FAR = "10.9.0.5", "10.9.0.1", "10.9.0.2"
SERVER_CORE, CLIENT_CORE = "0", "1"


@dataclass(frozen=True)
class Row:
    """One line of the table. `path`: how the client reaches us, "tap", "bridge" (from another
    namespace, through a bridge and veth) or "plain" (the TAP without offload)."""

    name: str
    mode: str
    port: int
    goal: str
    path: str = "tap"
    connections: int = 1
    same_core: bool = False


ROWS: Final = (
    Row("bulk out", "tcp-receive", SOURCE, "5 GB/s"),
    Row("bulk in", "tcp-send", SINK, "5 GB/s"),
    Row("bulk out, bridge and veth", "tcp-receive", SOURCE, "2.5 GB/s", "bridge"),
    Row("bulk in, bridge and veth", "tcp-send", SINK, "5 GB/s", "bridge"),
    Row("bulk out, plain frames", "tcp-receive", SOURCE, "0.15 GB/s", "plain"),
    Row("bulk in, plain frames", "tcp-send", SINK, "0.15 GB/s", "plain"),
    Row("128 bytes, same core", "tcp-rr", ECHO, "60,000/s, 10 us", same_core=True),
    Row("128 bytes", "tcp-rr", ECHO, "-"),
    Row("128 bytes, 8 connections", "tcp-rr", ECHO, "90,000/s, 10 us", connections=8),
    Row("accepted and closed", "tcp-open", CLOSE, "5,000/s"),
)
LWIP_CANNOT: Final = {
    "tcp-send": "Debian's writes behind its buffers when large packets come, and ends",
    "tcp-open": "after some hundreds, connections time out",
}
IDLE_CONNECTIONS: Final = 10_000


def run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def inside(namespace: str, core: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, "taskset", "-c", core]


@contextmanager
def namespace(suffix: str) -> Iterator[str]:
    """A network namespace with a loopback."""
    name = f"stack{os.getpid()}{suffix}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


def veth(near: str, link: str, far: str, peer: str) -> None:
    run("ip", "-n", near, "link", "add", link, "type", "veth", "peer", peer, "netns", far)
    for side, name in ((near, link), (far, peer)):
        run("ip", "-n", side, "link", "set", name, "up")


def give(side: str, address: str, link: str) -> None:
    run("ip", "-n", side, "addr", "add", f"{address}/24", "dev", link)


@contextmanager
def server(where: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A server that has said that it is ready. It ends with its input, or is killed."""
    process = subprocess.Popen(
        [*inside(where, SERVER_CORE), *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


Running = tuple[str, subprocess.Popen[str]]
"""In which namespace the client is, and the server."""


@contextmanager
def on_tap(path: str, *command: str) -> Iterator[Running]:
    """A server that takes the name of a TAP and its address at the end of its command line."""
    with ExitStack() as stack:
        near = stack.enter_context(namespace("t"))
        run("ip", "-n", near, "tuntap", "add", "dev", "tap0", "mode", "tap")
        run("ip", "-n", near, "link", "set", "tap0", "up", "txqueuelen", "10000")
        where = near
        if path == "bridge":
            where = stack.enter_context(namespace("f"))
            run("ip", "-n", near, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", near, "link", "set", "br0", "up")
            veth(near, "v0", where, "v1")
            for port in ("tap0", "v0"):
                run("ip", "-n", near, "link", "set", port, "master", "br0")
            give(where, FAR, "v1")
        else:
            give(near, HOST, "tap0")
        yield where, stack.enter_context(server(near, *command, "tap0", SERVER))


def ours(path: str, _folder: Path) -> AbstractContextManager[Running]:
    options = ["--no-offload"] if path == "plain" else []
    return on_tap(path, sys.executable, "-m", "tests.bench.stack_server", *options)


def lwips(path: str, folder: Path) -> AbstractContextManager[Running]:
    return on_tap(path, str(folder / "lwip_server"))


@contextmanager
def kernels(path: str, _folder: Path) -> Iterator[Running]:
    """The kernel's TCP behind a veth; "plain": without offload, in packets of 1500 bytes."""
    with namespace("c") as where, namespace("s") as far:
        veth(where, "v0", far, "v1")
        for side, link, address in ((where, "v0", HOST), (far, "v1", SERVER)):
            give(side, address, link)
            if path == "plain":
                off = [f"{what} off" for what in ("tso", "gso", "gro", "tx")]
                run(*inside(side, SERVER_CORE), "ethtool", "-K", link, *" ".join(off).split())
        command = sys.executable, "-m", "tests.bench.limits_server", "tcp", SERVER
        with server(far, *command) as process:
            yield where, process


SUBJECTS: Final = {"ours": ours, "the kernel": kernels, "lwIP": lwips}


@dataclass
class Figure:
    """The best of what was measured. `moved`: bytes a second."""

    rate: float = 0.0
    moved: float = 0.0
    cpu: float = 0.0

    def best(self, other: Figure) -> Figure:
        return max(self, other, key=lambda figure: (figure.moved, figure.rate))

    def __str__(self) -> str:
        if not self.rate and not self.moved:
            return "-"
        if self.moved:
            return f"{self.moved / 1e9:.2f} GB/s"
        return f"{self.rate:,.0f}/s {self.cpu * 1e6:.1f} us"


def measure(folder: Path, row: Row, subject: str, seconds: float) -> Figure:
    """One turn of a row."""
    with SUBJECTS[subject](row.path, folder) as (where, process):
        core = SERVER_CORE if row.same_core else CLIENT_CORE
        before = cpu_of(process.pid)
        words = run(
            *inside(where, core),
            *(str(folder / "limits_client"), row.mode, SERVER, str(row.port), "1", str(seconds)),
            str(row.connections),
        ).split()
        cpu = cpu_of(process.pid) - before
    messages, took, moved = int(words[0]), float(words[1]), int(words[2])
    bulk = row.mode in ("tcp-send", "tcp-receive")
    each = cpu / messages if messages else 0.0
    return Figure(messages / took, moved / took if bulk else 0.0, each)


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def idle(folder: Path) -> str:
    """The memory of a stack with many connections that say nothing."""
    client = folder / "limits_client"
    with ours("tap", folder) as (where, process):
        before = resident_bytes(process.pid)
        holder = subprocess.Popen(
            [
                *inside(where, CLIENT_CORE),
                *(str(client), "tcp-idle", SERVER, str(ECHO), "1", "0", str(IDLE_CONNECTIONS)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        after = resident_bytes(process.pid)
        holder.stdin.close()
        holder.wait(60)
    return (
        f"{IDLE_CONNECTIONS:,} idle connections: {after / 1e6:.0f} MB, and {before / 1e6:.0f} MB"
        " without them (goal: 100 MB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("rows", nargs="*", help="words that a row's name contains (default: all)")
    options = parser.parse_args()
    chosen = [r for r in ROWS if not options.rows or any(w in r.name for w in options.rows)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        print(f"{'':28}" + "".join(f"{subject:>20}" for subject in SUBJECTS) + "   goal")
        for row in chosen:
            found = dict.fromkeys(SUBJECTS, Figure())
            for _ in range(options.rounds):
                for subject, figure in found.items():
                    if subject == "lwIP" and row.mode in LWIP_CANNOT:
                        continue
                    found[subject] = figure.best(measure(folder, row, subject, options.seconds))
            figures = "".join(f"{figure!s:>20}" for figure in found.values())
            print(f"{row.name:28}{figures}   {row.goal}", flush=True)
        if not options.rows:
            print(idle(folder), flush=True)


def build(folder: Path) -> None:
    """The programs in C."""
    for name, options in (
        ("limits_client", ["-Wall"]),
        ("lwip_server", ["-I/usr/include/lwip", "-llwip"]),
    ):
        run("gcc", "-O2", "-o", str(folder / name), str(HERE / f"{name}.c"), *options)


if __name__ == "__main__":
    main()
