"""What is mutated: frames that make sense, for a connection as it is now.

Each function makes one kind of frame from the numbers of the connection; where there is none, from
made-up ones. All of them are sent in every state, where many are wrong already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from struct import pack

from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.state import State
from tests.fuzz import frames
from tests.fuzz.target import OUR_PORT, PEER_PORT, PORT
from tests.sim.station import OUR_ADDRESS, PEER_ADDRESS

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
MSS = 1460


@dataclass
class Numbers:
    """What is right for a connection now, on the wire."""

    random: Random
    ours: int
    peer: int
    seq: int
    """The peer's next sequence number."""
    edge: int
    una: int
    nxt: int
    shift: int
    stamp: tuple[int, int] | None
    """The peer's latest timestamp, and one of ours."""

    @property
    def stamps(self) -> bytes:
        """The timestamp option, if it is used."""
        return b"" if self.stamp is None else b"\x01\x01" + pack("!BBII", 8, 10, *self.stamp)

    def segment(
        self,
        flags: int,
        text: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int = 65535,
        urgent: int = 0,
        options: bytes = b"",
        tos: int = 0,
    ) -> bytes:
        """A segment, by default the next one."""
        seq = self.seq if seq is None else seq
        ack = (self.nxt if ack is None else ack) if flags & ACK else 0
        options = self.stamps + options
        return frames.tcp(
            self.peer, self.ours, seq, ack, flags, text,
            window=window, urgent=urgent, options=options, tos=tos,
        )  # fmt: skip


def numbers(c: Connection | None, random: Random, now: int) -> Numbers:
    """Of this connection, or of none."""
    if c is None:
        return Numbers(random, PORT, PEER_PORT, 5000, 9000, 100, 100, 0, None)
    stamp = None
    if c.stamps:
        echo = now // 1_000_000 + c.stamp_base & frames.MASK
        stamp = c.stamp_recent + 1 & frames.MASK, echo
    seq, edge = (5000, 9000) if c.state is State.SYN_SENT else (c.rcv.nxt, c.rcv.edge)
    return Numbers(
        random, c.local_port, c.peer_port, seq, edge, c.snd.una, c.snd.nxt, c.snd.shift, stamp
    )


def text(n: Numbers, size: int) -> bytes:
    return n.random.randbytes(8) * (size // 8) + bytes(size % 8)


def sack(*edges: int) -> bytes:
    """The option with these blocks."""
    wire = [edge & frames.MASK for edge in edges]
    return b"\x01\x01" + pack(f"!BB{len(wire)}I", 5, 2 + 4 * len(wire), *wire)


def half(n: Numbers) -> int:
    return (n.una + n.nxt) // 2


SYN_OPTIONS = bytes.fromhex("020405b40402080a0000006400000000010303070101")

CORPUS: dict[str, Callable[[Numbers], bytes]] = {
    "ack": lambda n: n.segment(ACK),
    "ack again": lambda n: n.segment(ACK, ack=n.una),
    "ack of a part": lambda n: n.segment(ACK, ack=half(n)),
    "ack of unsent": lambda n: n.segment(ACK, ack=n.nxt + 1000),
    "old ack": lambda n: n.segment(ACK, ack=n.una - 100_000),
    "window closes": lambda n: n.segment(ACK, window=0),
    "small window": lambda n: n.segment(ACK, window=10),
    "text": lambda n: n.segment(PSH | ACK, text(n, 100)),
    "full segment": lambda n: n.segment(ACK, text(n, 1400)),
    "super-segment": lambda n: n.segment(ACK, text(n, 30_000)),
    "text behind a hole": lambda n: n.segment(ACK, text(n, 100), seq=n.seq + 500),
    "text before": lambda n: n.segment(ACK, text(n, 100), seq=n.seq - 50),
    "old text": lambda n: n.segment(ACK, text(n, 100), seq=n.seq - 500),
    "text at the edge": lambda n: n.segment(ACK, text(n, 100), seq=n.edge - 50),
    "text beyond": lambda n: n.segment(ACK, text(n, 100), seq=n.edge + 500),
    "urgent text": lambda n: n.segment(URG | ACK, text(n, 100), urgent=50),
    "keep-alive": lambda n: n.segment(ACK, b"\0", seq=n.seq - 1),
    "fin": lambda n: n.segment(FIN | ACK),
    "fin with text": lambda n: n.segment(FIN | PSH | ACK, text(n, 100)),
    "fin behind a hole": lambda n: n.segment(FIN | ACK, seq=n.seq + 500),
    "syn": lambda n: n.segment(SYN, options=SYN_OPTIONS),
    "syn above": lambda n: n.segment(SYN, seq=n.seq + 10_000, options=SYN_OPTIONS),
    "syn and ack": lambda n: n.segment(SYN | ACK, options=SYN_OPTIONS),
    "reset": lambda n: n.segment(RST),
    "reset and ack": lambda n: n.segment(RST | ACK),
    "reset in window": lambda n: n.segment(RST, seq=n.seq + 10),
    "no flags": lambda n: n.segment(0),
    "sack": lambda n: n.segment(ACK, ack=n.una, options=sack(half(n), n.nxt)),
    "two sacks": lambda n: n.segment(
        ACK, ack=n.una, options=sack(n.una + MSS, n.una + 2 * MSS, n.una + 3 * MSS, n.nxt)
    ),
    "d-sack": lambda n: n.segment(ACK, options=sack(n.una - 100, n.una)),
    "sack of unsent": lambda n: n.segment(ACK, ack=n.una, options=sack(n.nxt, n.nxt + 1000)),
    "ece": lambda n: n.segment(ECE | ACK),
    "cwr": lambda n: n.segment(CWR | PSH | ACK, text(n, 10), tos=3),
    "congestion": lambda n: n.segment(ACK, text(n, 1400), tos=3),
    "of nobody": lambda n: frames.tcp(n.peer + 1, n.ours, n.seq, n.nxt, ACK),
    "to nobody": lambda n: frames.tcp(n.peer, 7, n.seq, 0, SYN),
    "another syn": lambda n: frames.tcp(
        n.random.randrange(1024, 65536), PORT, n.seq, 0, SYN, options=SYN_OPTIONS
    ),
    "first fragment": lambda n: frames.ipv4(
        frames.UDP, bytes(64), fragment=0x2000, identification=n.random.randrange(4)
    ),
    "last fragment": lambda n: frames.ipv4(
        frames.UDP, bytes(64), fragment=8, identification=n.random.randrange(4)
    ),
    "datagram": lambda n: frames.udp(n.peer, PORT, text(n, 100)),
    "datagram to nobody": lambda n: frames.udp(n.peer, 9, text(n, 100)),
    "echo": lambda n: frames.icmp(8, 0, 7, text(n, 56)),
    "unknown protocol": lambda n: frames.ipv4(200, bytes(20)),
    "host unreachable": lambda n: frames.quoting(3, 1, 0, (n.ours, n.peer), n.una),
    "port unreachable": lambda n: frames.quoting(3, 3, 0, (n.ours, n.peer), n.una),
    "fragmentation needed": lambda n: frames.quoting(
        3, 4, n.random.choice((0, 68, 576, 1280, 1499)), (n.ours, n.peer), n.una
    ),
    "time exceeded": lambda n: frames.quoting(11, 0, 0, (n.ours, n.peer), n.nxt - 1),
    "arp request": lambda n: frames.arp(1, PEER_ADDRESS, OUR_ADDRESS),
    "arp of another": lambda n: frames.arp(
        1, bytes((10, 0, 0, n.random.randrange(2, 250))), OUR_ADDRESS
    ),
    "arp reply": lambda n: frames.arp(2, PEER_ADDRESS, OUR_ADDRESS),
    "arp conflict": lambda n: frames.arp(2, OUR_ADDRESS, OUR_ADDRESS),
}
"""By name. Of our own open, ports are the other way round; Numbers has them."""

assert OUR_PORT != PORT
