"""A station that floods a server, in as many ways at once as it is told.

    python -m tests.interop.flooder SECONDS VICTIM_PORT KIND...

It runs in the namespace of a test and sends raw frames on tap0; `VICTIM_PORT` is the port of an
honest connection of 10.0.0.1, into which it forges segments. What it has sent of each kind it
prints at the end, as JSON. It sends in small batches with a rest between them: some ten thousand
frames a second, which is what one processor has time for beside the server.
"""

from __future__ import annotations

import itertools
import json
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from appliance.netstack.wire.checksum import checksum, fold, pseudo_header_sum, word_sum
from appliance.nfsd.v3 import protocol as nfs
from appliance.nfsd.v3.procedures import nfs3
from appliance.oncrpc.record import mark
from tests.interop.lab import HOST, NET6, SERVER
from tests.proofs.load import Connection
from tests.sim.flood6 import Flood6
from tests.sim.rpc_client import RpcClient

NFS_PORT: Final = 2049
SERVER6: Final = socket.inet_pton(socket.AF_INET6, NET6.host(5))
BATCH: Final = 40
REST_SECONDS: Final = 0.003
KINDS_BETWEEN_RESTS: Final = 3
READERS: Final = 24
READ_BYTES: Final = 256 << 10
TCP_WINDOW_CLAMP: Final = 10
TINY_WINDOW: Final = 64

_ETH_P_ALL: Final = 3
_OUTGOING: Final = 4
EVIL: Final = bytes((10, 0, 0, 66))
EVIL_MAC: Final = bytes.fromhex("020000000066")
EVERYBODY: Final = b"\xff" * 6
SYN, RST, ACK, PSH = 0x02, 0x04, 0x10, 0x08

chance = random.Random(1)


class Wire:
    """A packet socket on the server's TAP."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self.socket.bind(("tap0", 0))
        self.socket.setblocking(False)
        self.host = socket.inet_aton(HOST)
        self.server = socket.inet_aton(SERVER)
        self.server_mac, self.host_mac = EVERYBODY, EVIL_MAC
        self.introduce()

    def introduce(self) -> None:
        """Ask for the server, so that it knows us; and hear where it is."""
        self.socket.send(arp(EVERYBODY, EVIL_MAC, 1, EVIL_MAC, EVIL, bytes(6), self.server))
        while select.select([self.socket], [], [], 2)[0]:
            frame, where = self.socket.recvfrom(2048)
            if (
                where[2] != _OUTGOING
                and frame[12:14] == b"\x08\x06"
                and frame[28:32] == self.server
            ):
                self.server_mac = frame[6:12]
                return

    def send(self, frame: bytes) -> bool:
        """False: the queue of the TAP is full."""
        try:
            self.socket.send(frame)
        except (BlockingIOError, OSError):
            return False
        return True

    def heard(self) -> Iterator[bytes]:
        """What the server has sent, as far as it is there."""
        for _ in range(200):
            try:
                frame, where = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            if where[2] != _OUTGOING:
                yield frame

    # --- packets ------------------------------------------------------------------------

    def ip(
        self, source: bytes, protocol: int, body: bytes, field: int = 0, ident: int = 0
    ) -> bytes:
        head = struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(body), ident, field, 64, protocol, 0, source, self.server),
        )
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        return self.server_mac + EVIL_MAC + b"\x08\x00" + head + body

    def tcp(
        self, source: bytes, port: int, flags: int, seq: int = 0, ack: int = 0, window: int = 1000
    ) -> bytes:
        head = struct.pack("!HHIIBBHHH", port, NFS_PORT, seq, ack, 0x50, flags, window, 0, 0)
        total = pseudo_header_sum(fold(word_sum(source + self.server)), 6, 20) + word_sum(head)
        check = 0xFFFF - fold(total)
        return self.ip(source, 6, head[:16] + check.to_bytes(2, "big") + head[18:])


def arp(
    to: bytes, at: bytes, op: int, mac: bytes, address: bytes, other: bytes, asked: bytes
) -> bytes:
    head = to + at + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, op)
    return head + mac + address + other + asked + bytes(18)


def number() -> int:
    return chance.getrandbits(32)


def mac() -> bytes:
    return b"\x02" + chance.randbytes(5)


def neighbour() -> bytes:
    return bytes((10, 0, 0, chance.randrange(100, 250)))


# --- frames -------------------------------------------------------------------------------


def syn(wire: Wire, _port: int) -> bytes:
    """From all ports and many stations."""
    source = neighbour() if chance.random() < 0.5 else EVIL
    return wire.tcp(source, chance.randrange(1024, 65536), SYN, number(), window=0xFFFF)


def rst(wire: Wire, port: int) -> bytes:
    """Into the honest connection, and for connections that are none."""
    if chance.random() < 0.5:
        return wire.tcp(wire.host, port, RST | chance.choice((0, ACK)), number(), number())
    return wire.tcp(EVIL, chance.randrange(1024, 65536), RST, number())


def ack(wire: Wire, port: int) -> bytes:
    """The same."""
    if chance.random() < 0.5:
        return wire.tcp(wire.host, port, ACK | chance.choice((0, PSH)), number(), number())
    return wire.tcp(EVIL, chance.randrange(1024, 65536), ACK, number(), number())


def fragment(wire: Wire, _port: int) -> bytes:
    """Of datagrams that are never complete: first, middle and last ones, some of them tiny."""
    more = 0x2000 if chance.random() < 0.8 else 0
    offset = chance.choice((0, 1, 8, 185, 1000, 8000))
    size = chance.choice((8, 16, 504, 1480))
    source = chance.choice((EVIL, wire.host, neighbour()))
    return wire.ip(source, 17, chance.randbytes(size), more | offset, chance.getrandbits(16))


def arp_frame(wire: Wire, _port: int) -> bytes:
    """Requests from stations without number, answers that nobody has asked for, and who claims to
    be the server."""
    at = mac()
    match chance.randrange(4):
        case 0 | 1:
            return arp(EVERYBODY, at, 1, at, neighbour(), bytes(6), wire.server)
        case 2:
            return arp(wire.server_mac, at, 2, at, neighbour(), wire.server_mac, wire.server)
        case _:
            return arp(EVERYBODY, at, chance.choice((1, 2)), at, wire.server, bytes(6), wire.server)


def six(name: str) -> Callable[[Wire, int], bytes]:
    """One of Flood6's frames."""
    return lambda wire, _port: getattr(Flood6(chance, wire.server_mac, SERVER6), name)()


# --- kinds --------------------------------------------------------------------------------

Step = Callable[[], int]
"""One batch: how much was sent."""


def frames(make: Callable[[Wire, int], bytes]) -> Callable[[Wire, int], Step]:
    """A kind that sends frames without listening, from a store that was made before."""

    def start(wire: Wire, port: int) -> Step:
        store = itertools.cycle([make(wire, port) for _ in range(5000)])
        return lambda: sum(wire.send(next(store)) for _ in range(BATCH))

    return start


def half_open(wire: Wire, _port: int) -> Step:
    """Handshakes that are completed by somebody who never says anything again, nor goes away."""
    ports = itertools.cycle(range(2000, 65000))

    def step() -> int:
        for frame in wire.heard():
            if frame[12:14] == b"\x08\x00" and frame[30:34] == EVIL and frame[47] == SYN | ACK:
                port, seq, ack = struct.unpack_from("!2xHII", frame, 34)
                wire.send(wire.tcp(EVIL, port, ACK, ack, seq + 1 & 0xFFFFFFFF))
        if chance.random() < 0.05:
            wire.introduce()
        return sum(wire.send(wire.tcp(EVIL, next(ports), SYN, number())) for _ in range(5))

    return step


class Reader:
    """A client that asks for much, and takes a little of it now and then."""

    def __init__(self, handle: bytes, window: int | None) -> None:
        self.socket = socket.socket()
        if window is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, TCP_WINDOW_CLAMP, window)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self.socket.settimeout(10)
        self.socket.connect((SERVER, NFS_PORT))
        self.socket.setblocking(False)
        asked = self._call(handle)
        self._calls = asked * 40
        self._takes = 1 if window else 100

    @staticmethod
    def _call(handle: bytes) -> bytes:
        call = RpcClient().call(nfs3, 6, nfs.READ3args(handle, 0, READ_BYTES))
        return mark(len(call)) + call

    def step(self) -> int:
        """Whether the server would take one more call."""
        try:
            self.socket.recv(self._takes)
        except BlockingIOError:
            pass
        except OSError:
            return 0
        try:
            sent = self.socket.send(self._calls)
        except OSError:
            return 0
        return sent // (len(self._calls) // 40)


def readers(window: int | None) -> Callable[[Wire, int], Step]:
    """A kind of many readers."""

    def start(_wire: Wire, _port: int) -> Step:
        connection = Connection(SERVER, 77)
        root = connection.nfs.mount()
        file = connection.nfs.create(root, b"much-%x" % time.monotonic_ns())
        connection.nfs.write(file, bytes(READ_BYTES))
        connection.close()
        crowd = [Reader(file, window) for _ in range(READERS)]
        turns = itertools.cycle(crowd)
        return lambda: next(turns).step()

    return start


KINDS: Final[dict[str, Callable[[Wire, int], Step]]] = {
    "syn": frames(syn),
    "rst": frames(rst),
    "ack": frames(ack),
    "fragments": frames(fragment),
    "arp": frames(arp_frame),
    "ra": frames(six("router_advertisement")),
    "nd": frames(six("neighbour")),
    "mld": frames(six("mld_query")),
    "redirects": frames(six("redirect")),
    "fragments6": frames(six("fragment")),
    "extensions": frames(six("extensions")),
    "half_open": half_open,
    "tiny_windows": readers(TINY_WINDOW),
    "slow_readers": readers(None),
}


def main() -> None:
    seconds, port, kinds = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    wire = Wire()
    steps = {kind: KINDS[kind](wire, port) for kind in kinds}
    sent = dict.fromkeys(kinds, 0)
    print("started", flush=True)
    rest = REST_SECONDS * max(1, len(kinds) // KINDS_BETWEEN_RESTS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind, step in steps.items():
            sent[kind] += step()
        time.sleep(rest)
    print(json.dumps(sent), flush=True)


if __name__ == "__main__":
    main()
