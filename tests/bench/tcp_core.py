"""What TCP itself costs for each segment, without a link: run it as a script.

    python tests/bench/tcp_core.py [--profile]

Three loops, each on one established connection: a call that is answered, as RPC does (one small
segment in, one out), with its two halves alone; a stream of super-segments in; and one out. The
path only counts. Times are the best of several runs: what is wanted is the cost, not the machine's
mood."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from random import Random
from struct import Struct, pack_into
from time import perf_counter_ns

sys.path.insert(0, str(FilePath(__file__).parents[2]))

from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.host import Tcp
from appliance.netstack.timers import Timers
from appliance.netstack.wire.tcp import ACK, PSH, SYN, Segment, parse
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview
OURS, PEER = bytes((10, 0, 0, 5)), bytes((10, 0, 0, 9))
MASK = 0xFFFF_FFFF
unpack = Struct("!12sIIHH").unpack_from
RUNS = 5
BATCH = 100
"""Frames between two flushes, where what is measured does not flush: the window must not close."""


class CountingPath:
    """Takes everything and keeps only the last header."""

    source, destination = OURS, PEER
    header_bytes, mtu, mtu_min = 20, 1500, 552
    checksum_offload = True
    segment_bytes_max = 65495
    pseudo_sum = 0x1234

    def __init__(self) -> None:
        self.header: Buffer = b""
        self.packets = self.text_bytes = 0

    def send_tcp(
        self, header: Buffer, text: Sequence[Buffer], text_bytes: int, mss: int, ecn: int = 0
    ) -> None:
        self.header = header
        self.packets += 1
        self.text_bytes += text_bytes


class Taker:
    """Takes what arrives, and answers with `reply`, if there is one."""

    def __init__(self) -> None:
        self.reply: list[Buffer] = []

    def accept(self, connection: Connection) -> Taker:
        return self

    def readable(self, connection: Connection) -> None:
        connection.receive()
        if self.reply:
            connection.send(self.reply)

    def room_again(self, connection: Connection) -> None:
        pass

    def ended(self, connection: Connection, reason: str | None) -> None:
        pass


class Bench:
    """One established connection, and frames to feed it with."""

    def __init__(self, stamps: bool) -> None:
        self.path = CountingPath()
        self.taker = Taker()
        self.tcp = Tcp(Timers(), Random(1), Counters(), lambda *_: self.path)
        self.tcp.listen(2049, self.taker.accept)
        self.now = 10**12
        self.stamps = stamps
        self.seq = 1000
        self.ack = 0
        stamp = (1, 0) if stamps else None
        first = Segment(40000, 2049, 999, 0, SYN, 65535, b"", 1460, 7, stamp, sack_permitted=True)
        self.arrives(first.emit())
        self.ack = parse(self.path.header, 0, len(self.path.header)).seq + 1
        self.arrives(bytes(self.frame(b"")[20:]))
        (self.connection,) = self.tcp.connections.values()

    def arrives(self, segment: Buffer) -> None:
        self.tcp.arrives(PEER, OURS, segment, 0, len(segment), True, self.now)
        self.tcp.flush(self.now)

    def frame(self, text: bytes) -> bytearray:
        """An IP packet, as the express lane reads it."""
        stamp = (1, 1) if self.stamps else None
        flags = ACK | PSH if text else ACK
        segment = Segment(40000, 2049, self.seq, self.ack, flags, 60000, timestamp=stamp)
        return bytearray(12) + PEER + OURS + segment.emit() + text

    def feed(self, template: bytearray, count: int, flush: bool) -> int:
        """`count` frames, each next in order and acknowledging everything; nanoseconds."""
        c, tcp = self.connection, self.tcp
        connections, now = tcp.connections, self.now
        size = len(template) - (52 if self.stamps else 40)
        frames = []
        seq, ack, reply = self.seq, self.ack, sum(len(b) for b in self.taker.reply)
        for _ in range(count):
            pack_into("!II", template, 24, seq & MASK, ack & MASK)
            frames.append(bytes(template))
            seq += size
            ack += reply
        took = 0
        for some in range(0, count, BATCH):
            batch = frames[some : some + BATCH]
            began = perf_counter_ns()
            for frame in batch:
                key, wire_seq, wire_ack, offset_flags, window = unpack(frame, 12)
                c = connections[key]
                if not c.express(
                    wire_seq, wire_ack, offset_flags, window, frame, 20, len(frame), now
                ):
                    raise AssertionError("the express lane did not take it")
                if flush:
                    tcp.flush(now)
            took += perf_counter_ns() - began
            tcp.flush(now)
        self.seq, self.ack = seq, ack
        self.now += 1_000_000
        return took

    def send(self, buffer: Buffer, count: int) -> int:
        """`count` buffers out, each flushed, and acknowledged in between (not counted)."""
        took = 0
        for _ in range(count):
            began = perf_counter_ns()
            self.connection.send((buffer,))
            self.tcp.flush(self.now)
            took += perf_counter_ns() - began
            self.ack = self.connection.snd.nxt
            frame = self.frame(b"")
            _, seq, ack, offset_flags, window = unpack(frame, 12)
            self.connection.express(
                seq, ack & MASK, offset_flags, window, bytes(frame), 20, len(frame), self.now
            )
        return took


def best(run: Callable[[], int], count: int) -> float:
    """Microseconds for one of `count`."""
    return min(run() for _ in range(RUNS)) / count / 1000


def measure(stamps: bool) -> None:
    def line(what: str, run: Callable[[], int], count: int, text: int = 0) -> None:
        took = best(run, count)
        rate = f"{text / took / 1000:5.1f} GB/s" if text else ""
        print(f"  {what:34} {took:6.2f} us  {rate}")

    print("with timestamps:" if stamps else "without timestamps:")
    b = Bench(stamps)
    small, bulk, empty = b.frame(bytes(128)), b.frame(bytes(64_000)), b.frame(b"")
    line("128 bytes in, express only", lambda: b.feed(small, 20_000, False), 20_000)
    line("pure ACK in, express only", lambda: b.feed(empty, 20_000, False), 20_000)
    line("128 bytes out, send and flush", lambda: b.send(bytes(128), 5000), 5000)
    b.taker.reply = [bytes(28), bytes(100)]
    line("128 in, 128 out, flush: a call", lambda: b.feed(small, 20_000, True), 20_000)
    b.taker.reply = []
    line("64000 bytes in, acknowledged", lambda: b.feed(bulk, 500, True), 500, 64_000)
    million = memoryview(bytes(1 << 20))
    line("1 MiB out in super-segments", lambda: b.send(million, 200), 200, 1 << 20)


def profile() -> None:
    b = Bench(False)
    b.taker.reply = [bytes(28), bytes(100)]
    small = b.frame(bytes(128))
    profiler = cProfile.Profile()
    profiler.enable()
    b.feed(small, 100_000, True)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", action="store_true")
    if parser.parse_args().profile:
        profile()
        return
    for stamps in (False, True):
        measure(stamps)


if __name__ == "__main__":
    main()
