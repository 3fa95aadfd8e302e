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
    stamp: tuple[int, int] | None = None
    """The peer's latest timestamp, and one of ours."""
    six: bool = False
    """Over IPv6."""

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
            window=window, urgent=urgent, options=options, tos=tos, six=self.six,
        )  # fmt: skip


def numbers(c: Connection | None, random: Random, now: int, six: bool) -> Numbers:
    """Of this connection, or of none."""
    if c is None:
        return Numbers(random, PORT, PEER_PORT, 5000, 9000, 100, 100, six=six)
    stamp = None
    if c.stamps:
        echo = now // 1_000_000 + c.stamp_base & frames.MASK
        stamp = c.stamp_recent + 1 & frames.MASK, echo
    seq, edge = (5000, 9000) if c.state is State.SYN_SENT else (c.rcv.nxt, c.rcv.edge)
    return Numbers(
        random, c.local_port, c.peer_port, seq, edge, c.snd.una, c.snd.nxt, stamp, six
    )  # fmt: skip


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
    "of nobody": lambda n: frames.tcp(n.peer + 1, n.ours, n.seq, n.nxt, ACK, six=n.six),
    "to nobody": lambda n: frames.tcp(n.peer, 7, n.seq, 0, SYN, six=n.six),
    "another syn": lambda n: frames.tcp(
        n.random.randrange(1024, 65536), PORT, n.seq, 0, SYN, options=SYN_OPTIONS, six=n.six
    ),
    "first fragment": lambda n: frames.ipv4(
        frames.UDP, bytes(64), fragment=0x2000, identification=n.random.randrange(4)
    ),
    "last fragment": lambda n: frames.ipv4(
        frames.UDP, bytes(64), fragment=8, identification=n.random.randrange(4)
    ),
    "datagram": lambda n: frames.udp(n.peer, PORT, text(n, 100), n.six),
    "datagram to nobody": lambda n: frames.udp(n.peer, 9, text(n, 100), n.six),
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


def extended(n: Numbers, kind: int, body: bytes) -> bytes:
    """An extension header before a datagram."""
    datagram = pack("!HHHH", n.peer, PORT, 12, 0) + bytes(4)
    return frames.ipv6(kind, bytes((frames.UDP, 0)) + body + datagram)


def fragment(n: Numbers, offset_flags: int) -> bytes:
    """A fragment header of one of a few datagrams."""
    return pack("!BBHI", frames.UDP, 0, offset_flags, n.random.randrange(4))


CORPUS6: dict[str, Callable[[Numbers], bytes]] = {
    "echo 6": lambda n: frames.icmp6(128, 0, 7, text(n, 56)),
    "unknown header": lambda n: frames.ipv6(200, bytes(20)),
    "hop-by-hop options": lambda n: extended(n, 0, b"\x01\x04\0\0\0\0"),
    "unknown option": lambda n: extended(n, 60, b"\x9e\x04\0\0\0\0"),
    "routing header": lambda n: extended(n, 43, bytes((n.random.randrange(4), 1, 0, 0, 0, 0))),
    "first fragment 6": lambda n: frames.ipv6(44, fragment(n, 1) + bytes(64)),
    "last fragment 6": lambda n: frames.ipv6(44, fragment(n, 64) + bytes(64)),
    "atomic fragment": lambda n: frames.ipv6(44, fragment(n, 0) + pack("!HHHH", 9000, PORT, 8, 0)),
    "unreachable 6": lambda n: frames.quoting6(
        1, n.random.randrange(7), 0, (n.ours, n.peer), n.una
    ),
    "packet too big": lambda n: frames.quoting6(
        2, 0, n.random.choice((0, 68, 1279, 1280, 1400, 70_000)), (n.ours, n.peer), n.una
    ),
    "parameter problem": lambda n: frames.quoting6(4, 1, 6, (n.ours, n.peer), n.una),
    "solicitation": lambda n: frames.solicitation(frames.OUR_ADDRESS6),
    "solicitation of another": lambda n: frames.solicitation(
        frames.OUR_ADDRESS6, bytes.fromhex("fd00") + n.random.randbytes(14)
    ),
    "solicitation of nobody": lambda n: frames.solicitation(frames.OUR_ADDRESS6, bytes(16)),
    "advertisement": lambda n: frames.advertisement(frames.PEER_ADDRESS6),
    "advertisement without flags": lambda n: frames.advertisement(frames.PEER_ADDRESS6, 0),
    "advertisement of ours": lambda n: frames.advertisement(frames.OUR_ADDRESS6, 0x2000_0000),
    "router": lambda n: frames.router_advertisement(
        bytes.fromhex("fd01") + n.random.randbytes(1) + bytes(13),
        n.random.choice((0, 1, 1800, 1 << 31, (1 << 32) - 1)),
        n.random.choice((0, 1280, 1500, 9000)),
    ),
    "router solicitation": lambda n: frames.icmp6(133, 0, 0, b"\1\1" + bytes(6)),
    "redirect": lambda n: frames.icmp6(
        137, 0, 0, frames.PEER_ADDRESS6 + frames.PEER_ADDRESS6, source=frames.ROUTER6
    ),
    "listener query": lambda n: frames.ipv6(
        0,
        b"\x3a\0\x05\x02\0\0\x01\0" + pack("!BBHI", 130, 0, 0, 100 << 16) + bytes(20),
        source=frames.ROUTER6,
        destination=frames.ALL_NODES,
        mac=frames.ALL_NODES_MAC,
        hops=1,
    ),
}
"""What is for IPv6 alone."""


assert OUR_PORT != PORT
