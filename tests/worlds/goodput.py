"""Goodput over loss, buffers and delay, in virtual time: a table that is kept with the source.

    python -m tests.worlds.goodput          print the table as it is now
    python -m tests.worlds.goodput --write  and keep it (tests/worlds/goodput.txt)

A cell is what a client gets through to a server in kB/s, in the median of some seeds: one megabyte
of 1448-byte segments over a wire with this rate, round-trip time and loss both ways. `buffer` is
the receive buffer of the server; the queue in front of the wire holds a quarter of a second, but 64
kB at least. Nothing depends on the machine, so a difference is a change of behaviour, and the table
with it is a decision.

No sender that shares a network fairly can use a wide wire that loses packets at random: after RFC
5681 a loss rate p lets through about 1.22 MSS / (RTT sqrt p), which is 178 kB/s at 100 ms and 1 %.
The column `law` has that, where it is less than the wire.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import inf, sqrt
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import KiB, MiB
from appliance.netstack.stack import HostConfig
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.cubic import ALGORITHMS
from tests.sim.clock import VirtualClock
from tests.sim.wire import Conditions, Host, Wire

SERVER: Final = HostConfig.single(bytes.fromhex("020000000005"), bytes((10, 0, 0, 5)), 24)
CLIENT: Final = HostConfig.single(bytes.fromhex("020000000009"), bytes((10, 0, 0, 9)), 24)
PORT: Final = 2049
TABLE: Final = Path(__file__).with_name("goodput.txt")
SEEDS: Final = (1, 2, 3)
TOLERANCE: Final = 0.20
"""A cell may change by so much without anybody deciding it."""

LOSSES: Final = (0.0, 0.001, 0.01, 0.03)
QUEUE_BYTES_MIN: Final = 64_000
LIMIT: Final = 600 * SECOND


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    kilobytes_per_second: int
    rtt: int  # milliseconds
    buffer: int  # KiB
    algorithm: str = "cubic"
    sacks: bool = True
    reordering: float = 0.0
    """So many packets are held up for up to a quarter of the round trip."""

    def conditions(self, loss: float) -> Conditions:
        rate = 1000 * self.kilobytes_per_second
        return Conditions(
            delay=self.rtt * MILLISECOND // 2,
            loss=loss,
            reordering=self.reordering,
            reordering_delay=self.rtt * MILLISECOND // 4,
            bytes_per_second=rate,
            queue_bytes=max(rate // 4, QUEUE_BYTES_MIN),
        )

    def law(self, loss: float) -> float:
        """What RFC 5681 lets through, in kB/s (Mathis, Semke, Mahdavi, Ott, 1997)."""
        return 1.22 * 1448 / (self.rtt * sqrt(loss)) if loss else inf

    def __str__(self) -> str:
        recovery = "SACK" if self.sacks else "none"
        return (
            f"{self.kilobytes_per_second:6} {self.rtt:5} {self.buffer:7}  {self.algorithm:8}"
            f" {recovery:5} {self.reordering:8.0%}"
        )


CASES: Final = (
    Case(250, 10, 64),
    Case(250, 100, 64),
    Case(250, 100, 1024),
    Case(250, 100, 1024, algorithm="newreno"),
    Case(250, 100, 1024, algorithm="newreno", sacks=False),
    Case(250, 100, 1024, reordering=0.05),
    Case(10_000, 10, 64),
    Case(10_000, 10, 1024),
    Case(10_000, 10, 1024, algorithm="newreno"),
    Case(10_000, 100, 64),
    Case(10_000, 100, 1024),
    Case(10_000, 100, 1024, algorithm="newreno", sacks=False),
    Case(10_000, 100, 1024, reordering=0.05),
)

HEAD: Final = (
    "# Goodput in kB/s: see goodput.py beside this file, which writes it.\n"
    "#  wire   RTT  buffer  congest. recovery reorder |"
    + "".join(f" {loss:8.1%}" for loss in LOSSES)
    + " | law at 1.0%, 3.0%\n"
    "#  kB/s    ms     KiB                            | loss\n"
)


@dataclass
class Sink:
    """Counts what arrives."""

    arrived: int = 0

    def accept(self, _connection: Connection) -> Sink:
        return self

    def readable(self, connection: Connection) -> None:
        self.arrived += sum(map(len, connection.receive()))

    def room_again(self, connection: Connection) -> None:
        pass

    def ended(self, connection: Connection, reason: str | None) -> None:
        pass


@dataclass
class Source:
    """Has so much to send."""

    left: int
    connection: Connection | None = None

    def room_again(self, connection: Connection) -> None:
        self.connection = connection
        while self.left and not connection.crowded:
            count = min(self.left, 64 * KiB)
            self.left -= count
            connection.send([bytes(count)])

    def readable(self, connection: Connection) -> None:
        connection.receive()

    def ended(self, connection: Connection, reason: str | None) -> None:
        pass


@dataclass
class Transfer:
    """`flows` sources that send `size` bytes each from the client to the server."""

    conditions: Conditions
    seed: int = 1
    size: int = 1 * MiB
    flows: int = 1
    buffer: int = 1 * MiB
    algorithm: str = "cubic"
    sacks: bool = True
    sinks: list[Sink] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(self.clock, seed=self.seed, conditions=self.conditions)
        self.server = self._host(self.wire.a, SERVER, self.seed + 1)
        self.client = self._host(self.wire.b, CLIENT, self.seed + 2)
        self.server.stack.tcp.listen(PORT, self._accept)
        self.clock.run(5 * SECOND)  # both have claimed their addresses
        self.sources = [Source(self.size) for _ in range(self.flows)]
        self.began = self.clock.now()
        for source in self.sources:
            self.client.stack.tcp.connect(bytes((10, 0, 0, 5)), PORT, source, self.began)
        self.client.act()

    def _host(self, end: object, config: HostConfig, seed: int) -> Host:
        host = Host(end, self.clock, config, seed=seed)  # type: ignore[arg-type]
        tcp = host.stack.tcp
        tcp.congestion, tcp.sacks = ALGORITHMS[self.algorithm], self.sacks
        tcp.receive_bytes = self.buffer
        return host

    def _accept(self, connection: Connection) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]

    @property
    def arrived(self) -> int:
        return sum(sink.arrived for sink in self.sinks)

    @property
    def elapsed(self) -> Instant:
        return self.clock.now() - self.began

    def run(self, until: Callable[[], bool] | None = None) -> float:
        """Until everything has arrived, or `until`: goodput in kB/s."""
        total = self.flows * self.size
        done = until or (lambda: self.arrived == total)
        assert self.clock.run_while(lambda: not done(), LIMIT), f"stuck: {self}"
        return self.arrived / 1000 / (self.elapsed / SECOND)


@cache
def goodput(case: Case, loss: float) -> float:
    """One cell."""
    return statistics.median(
        Transfer(
            case.conditions(loss),
            seed=seed,
            buffer=case.buffer * KiB,
            algorithm=case.algorithm,
            sacks=case.sacks,
        ).run()
        for seed in SEEDS[: 3 if loss or case.reordering else 1]
    )


def line(case: Case) -> str:
    """One line of the table."""
    cells = "".join(f" {goodput(case, loss):8.0f}" for loss in LOSSES)
    laws = [case.law(loss) for loss in LOSSES[2:]]
    law = "".join(f" {law:6.0f}" if law < case.kilobytes_per_second else "      -" for law in laws)
    return f" {case}  |{cells} | {law}\n"


def kept() -> dict[str, list[float]]:
    """The cells of the table beside this file, by the head of their lines."""
    rows = {}
    for row in TABLE.read_text().splitlines():
        if not row.startswith("#"):
            head, cells, _ = row.split("|")
            rows[head.strip()] = [float(cell) for cell in cells.split()]
    return rows


def main() -> None:
    text = HEAD
    sys.stdout.write(HEAD)
    for case in CASES:
        row = line(case)
        sys.stdout.write(row)
        sys.stdout.flush()
        text += row
    if "--write" in sys.argv:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
