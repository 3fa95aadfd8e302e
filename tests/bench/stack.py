"""How fast is the stack alone? Our TCP on a TAP, and beside it the kernel's, with the same client.

    python -m tests.bench.stack [--seconds N] [--rounds N] [ROW ...]        (root)

Each row is measured by turns with ours and with the kernel's TCP, each a Python server of a few
lines (stack_server.py, limits_server.py) in network namespaces of their own; the client is in C.
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
from contextlib import ExitStack, contextmanager
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
def server(where: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A server that has said that it is ready. It ends with its input, or is killed."""
    process = subprocess.Popen(
        [*inside(where, SERVER_CORE), sys.executable, "-m", *words],
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


@contextmanager
def ours(path: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Our stack on a TAP; where the client is, and the server."""
    with ExitStack() as stack:
        near = stack.enter_context(namespace("t"))
        run("ip", "-n", near, "tuntap", "add", "dev", "tap0", "mode", "tap")
        run("ip", "-n", near, "link", "set", "tap0", "up", "txqueuelen", "10000")
        options = ["--no-offload"] if path == "plain" else []
        words = "tests.bench.stack_server", "tap0", SERVER, *options
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
        yield where, stack.enter_context(server(near, *words))


@contextmanager
def kernels(path: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The kernel's TCP behind a veth; "plain": without offload, in packets of 1500 bytes."""
    with namespace("c") as where, namespace("s") as far:
        veth(where, "v0", far, "v1")
        for side, link, address in ((where, "v0", HOST), (far, "v1", SERVER)):
            give(side, address, link)
            if path == "plain":
                off = [f"{what} off" for what in ("tso", "gso", "gro", "tx")]
                run(*inside(side, SERVER_CORE), "ethtool", "-K", link, *" ".join(off).split())
        with server(far, "tests.bench.limits_server", "tcp", SERVER) as process:
            yield where, process


@dataclass
class Figure:
    """The best of what was measured. `moved`: bytes a second."""

    rate: float = 0.0
    moved: float = 0.0
    cpu: float = 0.0

    def best(self, other: Figure) -> Figure:
        return max(self, other, key=lambda figure: (figure.moved, figure.rate))

    def __str__(self) -> str:
        if self.moved > 0:
            return f"{self.moved / 1e9:.2f} GB/s"
        return f"{self.rate:,.0f}/s {self.cpu * 1e6:.1f} us"


def measure(client: Path, row: Row, kind: str, seconds: float) -> Figure:
    """One turn of a row."""
    with (ours if kind == "ours" else kernels)(row.path) as (where, process):
        core = SERVER_CORE if row.same_core else CLIENT_CORE
        before = cpu_of(process.pid)
        words = run(
            *inside(where, core),
            *(str(client), row.mode, SERVER, str(row.port), "1", str(seconds)),
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


def idle(client: Path) -> str:
    """The memory of a stack with many connections that say nothing."""
    with ours("tap") as (where, process):
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
        client = Path(place) / "limits_client"
        run("gcc", "-O2", "-Wall", "-o", str(client), str(HERE / "limits_client.c"))
        print(f"{'':28}{'ours':>20} {'the kernel':>20} {'ratio':>6}   goal")
        for row in chosen:
            found = {"ours": Figure(), "kernel": Figure()}
            for _ in range(options.rounds):
                for kind, figure in found.items():
                    found[kind] = figure.best(measure(client, row, kind, options.seconds))
            mine, its = found["ours"], found["kernel"]
            ratio = mine.moved / its.moved if its.moved else mine.rate / its.rate
            print(f"{row.name:28}{mine!s:>20} {its!s:>20} {ratio:6.2f}   {row.goal}", flush=True)
        if not options.rows:
            print(idle(client), flush=True)


if __name__ == "__main__":
    main()
