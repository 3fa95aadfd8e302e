"""How fast is it? The whole appliance over its TAP with a libnfs client, and beside it the limits.

    python tests/bench/run.py [--seconds N] [ROW ...]        (root)

Everything happens in a network namespace of its own. The server is pinned to core 0, the client to
core 1. Machines differ and are noisy: compare rows of one run, not runs. `cpu` is the server's user
and system time for one call.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVER, HOST = "10.9.0.5", "10.9.0.1"
SERVER_CORE, CLIENT_CORE = "0", "1"
NFS_PROGRAM = 100003


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    operation: str
    depth: int
    connections: int = 1
    goal: str = ""
    offload: bool = True


ROWS = [
    Row("NULL", "null", 1, goal="20,000/s"),
    Row("NULL x16", "null", 16, goal="60,000/s"),
    Row("GETATTR", "getattr", 1, goal="18,000/s"),
    Row("GETATTR x16", "getattr", 16, goal="40,000/s, 22 us"),
    Row("LOOKUP", "lookup", 1, goal="18,000/s"),
    Row("LOOKUP x16", "lookup", 16, goal="40,000/s"),
    Row("GETATTR 64 connections", "getattr", 1, connections=64, goal="no collapse"),
    Row("READ 1 MiB x4", "read", 4, goal="1,500 MB/s"),
    Row("WRITE 1 MiB x4", "write", 4, goal="1,200 MB/s"),
    Row("READ 4 KiB random", "read4k", 1, goal="16,000/s"),
    Row("READ 4 KiB random x16", "read4k", 16, goal="32,000/s"),
    Row("READDIRPLUS of 1,000", "readdirplus", 1, goal="800/s"),
    Row("CREATE + WRITE 4 KiB x16", "create", 16, goal="5,000/s"),
    Row("READ 1 MiB x4, no offload", "read", 4, goal="100 MB/s", offload=False),
    Row("WRITE 1 MiB x4, no offload", "write", 4, goal="100 MB/s", offload=False),
]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace with a loopback."""
    name = f"bench{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


def inside(name: str, core: str) -> list[str]:
    return ["ip", "netns", "exec", name, "taskset", "-c", core]


@contextmanager
def appliance(name: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running appliance with an empty file system in memory, ready to serve."""
    command = [sys.executable, "-m", "appliance", "--tap", "tap0", "--ip", SERVER]
    server = subprocess.Popen(
        [*inside(name, SERVER_CORE), *command, "--memory", "4G", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        if not server.stdout.readline().startswith("ready:"):
            sys.exit("the appliance did not start")
        yield server
    finally:
        server.terminate()
        server.wait(10)


def build(folder: Path) -> None:
    """The two clients, from source."""
    for client, libraries in (("nfs_client", ["-lnfs"]), ("limits_client", [])):
        source = str(HERE / f"{client}.c")
        run("gcc", "-O2", "-Wall", "-o", str(folder / client), source, *libraries)


def measure(folder: Path, row: Row, seconds: float) -> str:
    """Serve, load, and say what came out: one line of the table."""
    offload = [] if row.offload else ["--no-offload"]
    with namespace() as name, appliance(name, *offload) as server:
        words = run(
            *inside(name, CLIENT_CORE),
            str(folder / "nfs_client"),
            *(SERVER, "/", row.operation, str(row.depth), str(seconds)),
            *(str(row.connections), str(server.pid)),
        ).split()
    calls, took, moved, cpu = int(words[0]), float(words[1]), int(words[2]), float(words[3])
    speed = f"{moved / took / 1e6:,.0f} MB/s" if moved and row.operation != "create" else ""
    each = f"{cpu / calls * 1e6:,.1f} us"
    return f"{row.name:28} {calls / took:>12,.0f}/s {speed:>12} {each:>10}   {row.goal}"


def limits_client(folder: Path, name: str, mode: str, port: int, depth: int, seconds: float) -> str:
    words = run(
        *inside(name, CLIENT_CORE),
        str(folder / "limits_client"),
        *(mode, SERVER, str(port), str(depth), str(seconds)),
    ).split()
    messages, took, moved = int(words[0]), float(words[1]), int(words[2])
    return f"{messages / took:,.0f}/s" if mode.endswith("rr") else f"{moved / took / 1e6:,.0f} MB/s"


@contextmanager
def limits_server(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [*inside(name, SERVER_CORE), sys.executable, str(HERE / "limits_server.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    try:
        yield server
    finally:
        server.kill()
        server.wait(10)


def bare_tap(folder: Path, seconds: float) -> Iterator[str]:
    """Frames on a TAP, driven by the least Python."""
    with namespace() as name:
        run("ip", "-n", name, "tuntap", "add", "dev", "tap0", "mode", "tap")
        with limits_server(name, "tap", "tap0", SERVER) as server:
            run("ip", "-n", name, "addr", "add", f"{HOST}/24", "dev", "tap0")
            run("ip", "-n", name, "link", "set", "tap0", "up", "txqueuelen", "10000")
            for depth in (1, 16):
                rate = limits_client(folder, name, "udp-rr", 9000, depth, seconds)
                yield f"bare TAP, 128 bytes x{depth}: {rate}"
            send_one(name, 9002)
            assert server.stdout is not None
            yield f"bare TAP, 64 KiB frames out: {float(server.stdout.readline()) / 1e6:,.0f} MB/s"
            limits_client(folder, name, "udp-send", 9001, 1, seconds)
            send_one(name, 9003)
            received = int(server.stdout.readline()) / seconds
            yield f"bare TAP, 44 KiB frames in: {received / 1e6:,.0f} MB/s"


def send_one(name: str, port: int) -> None:
    """One datagram to the server, from inside the namespace."""
    code = f"import socket; socket.socket(2, 2).sendto(b'x', ({SERVER!r}, {port}))"
    run(*inside(name, CLIENT_CORE), sys.executable, "-c", code)


def kernel_tcp(folder: Path, seconds: float) -> Iterator[str]:
    """The same bytes through the kernel's TCP, over veth, with a Python server."""
    with namespace() as name:
        peer = f"{name}s"
        run("ip", "netns", "add", peer)
        try:
            run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "v1", "netns", peer)
            for side, link, address in ((name, "v0", HOST), (peer, "v1", SERVER)):
                run("ip", "-n", side, "addr", "add", f"{address}/24", "dev", link)
                run("ip", "-n", side, "link", "set", link, "up")
            with limits_server(peer, "tcp", SERVER):
                for depth in (1, 16):
                    rate = limits_client(folder, name, "tcp-rr", 9000, depth, seconds)
                    yield f"kernel TCP over veth, 128 bytes x{depth}: {rate}"
                rate = limits_client(folder, name, "tcp-send", 9001, 1, seconds)
                yield f"kernel TCP over veth, to the server: {rate}"
                rate = limits_client(folder, name, "tcp-receive", 9002, 1, seconds)
                yield f"kernel TCP over veth, from the server: {rate}"
        finally:
            run("ip", "netns", "del", peer)


def first_answer() -> None:
    """Call NULL over UDP until it is answered (run inside the namespace)."""
    call = struct.pack(">10I", 1, 0, 2, NFS_PROGRAM, 3, 0, 0, 0, 0, 0)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(0.002)
    while True:
        try:
            client.sendto(call, (SERVER, 2049))
            client.recv(100)
            return
        except OSError:
            time.sleep(0.001)


def start_up() -> str:
    """From exec to the first answered NULL: the median of five."""
    times = []
    for _ in range(5):
        with namespace() as name:
            begin = time.monotonic()
            client = subprocess.Popen(
                [*inside(name, CLIENT_CORE), sys.executable, __file__, "--first-answer"]
            )
            with appliance(name):
                client.wait(20)
                times.append(time.monotonic() - begin)
    return f"exec to the first answered NULL: {sorted(times)[2] * 1000:.0f} ms (goal: under 400 ms)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--first-answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", help="words that a row's name contains (default: all)")
    options = parser.parse_args()
    if options.first_answer:
        first_answer()
        return
    chosen = [r for r in ROWS if not options.rows or any(w in r.name for w in options.rows)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        print(f"{'':28} {'calls':>14} {'data':>12} {'cpu':>10}   goal")
        for row in chosen:
            print(measure(folder, row, options.seconds), flush=True)
        if not options.rows:
            print(start_up(), flush=True)
            for limit in (bare_tap, kernel_tcp):
                for line in limit(folder, options.seconds):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
