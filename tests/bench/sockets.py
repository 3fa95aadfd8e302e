"""How fast are sockets on the stack, on a TAP with Linux on the other side?

    unshare -n python -m tests.bench.sockets [--rounds N]        (root)

A Python process behind the TAP, with the kernel's sockets, is the peer of both: of our sockets, and
of the kernel's over the loopback of the namespace, with the same code. Both run on one core with
the peer, and take turns. GB/s and round trips are wall time; `own CPU` is what the process with the
sockets under test used, system calls included: that is not disturbed by what others do.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any, Final

from appliance.limits import MiB
from appliance.netstack.link.tap import TapLink
from appliance.netstack.loop import Loop
from appliance.netstack.sockets import Sockets
from appliance.netstack.stack import HostConfig, Stack
from appliance.trace import Counters
from tests.bench.measuring import Sample, Timer, one_core

HOST: Final = IPv4Interface("10.0.0.1/24")
PORT: Final = 9
BLOCKS: Final = 1500
ROUND_TRIPS: Final = 3000
CONNECTIONS: Final = 300

PEER: Final = """
import socket
listener = socket.create_server(("", 9))
print("ready", flush=True)
block, buffer = bytes(1 << 20), bytearray(1 << 20)
while True:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    what = sock.recv(1)
    if what == b"i":
        while sock.recv_into(buffer):
            pass
    elif what == b"o":
        for _ in range(int.from_bytes(sock.recv(2), "big")):
            sock.sendall(block)
    elif what == b"e":
        while text := sock.recv(1000):
            sock.sendall(text)
    sock.close()
"""

Connect = Callable[[], Any]


def bulk_out(connect: Connect) -> int:
    block = bytes(MiB)
    with connect() as sock:
        sock.sendall(b"i")
        for _ in range(BLOCKS):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        assert not sock.recv(1)
    return BLOCKS


def bulk_in(connect: Connect) -> int:
    buffer, got = bytearray(MiB), 0
    with connect() as sock:
        sock.sendall(b"o" + BLOCKS.to_bytes(2, "big"))
        while count := sock.recv_into(buffer):
            got += count
    assert got == BLOCKS * MiB
    return BLOCKS


def round_trips(connect: Connect) -> int:
    with connect() as sock:
        sock.sendall(b"e")
        for _ in range(ROUND_TRIPS):
            sock.sendall(bytes(128))
            assert len(sock.recv(1000)) == 128
    return ROUND_TRIPS


def connections(connect: Connect) -> int:
    for _ in range(CONNECTIONS):
        with connect() as sock:
            sock.sendall(b"x")
            assert not sock.recv(1)
    return CONNECTIONS


def bulk_figures(sample: Sample) -> tuple[float, float]:
    moved = sample.count * MiB / 1e9
    return moved / sample.wall, moved / sample.cpu


def each_figures(sample: Sample) -> tuple[float, float]:
    return sample.wall / sample.count * 1e6, sample.cpu / sample.count * 1e6


ROWS: Final = (
    ("bulk out, 1 MiB sendall", "GB/s", bulk_out, bulk_figures, max),
    ("bulk in, 1 MiB recv_into", "GB/s", bulk_in, bulk_figures, max),
    ("128 bytes there and back", "us", round_trips, each_figures, min),
    ("connect, one byte, close", "us", connections, each_figures, min),
)


def connect_to(made: Any, host: str) -> Connect:
    """`made` is the module, ours or the kernel's."""

    def connect() -> Any:
        sock = made.create_connection((host, PORT), 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    return connect


def measure(rounds: int) -> None:
    link = TapLink("tap0", hosts=[HOST])
    config = HostConfig.single(bytes.fromhex("02000a000005"), bytes((10, 0, 0, 5)), 24)
    stack = Stack(link, config, random=random.Random(1), counters=Counters())
    timer = Timer()
    with Loop(stack, link) as loop:
        subjects = {
            "ours": connect_to(Sockets(loop), str(HOST.ip)),
            "kernel": connect_to(socket, "127.0.0.1"),
        }
        print(f"{'best (median) of ' + str(rounds):28}{'':12}{'wall':>18}{'own CPU':>20}")
        for name, unit, act, figures, best in ROWS:
            samples: dict[str, list[tuple[float, float]]] = {who: [] for who in subjects}
            for _ in range(rounds):
                for who, connect in subjects.items():
                    samples[who].append(figures(timer(lambda a=act, c=connect: a(c))))  # type: ignore[misc]
            for who, found in samples.items():
                columns = [
                    f"{best(column):10.2f} ({statistics.median(column):.2f})"
                    for column in zip(*found, strict=True)
                ]
                print(f"{name:28}{who:8}{unit:4}{columns[0]:>20}{columns[1]:>20}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with one_core():
        peer = subprocess.Popen([sys.executable, "-c", PEER], stdout=subprocess.PIPE)
        try:
            assert peer.stdout is not None
            assert peer.stdout.readline() == b"ready\n"
            measure(rounds)
        finally:
            peer.kill()
            peer.wait()


if __name__ == "__main__":
    main()
