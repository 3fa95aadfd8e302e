"""How fast is ONC RPC? Microseconds a call, best of several rounds; run it as a script.

    python -m tests.bench.rpc_core [--profile]

Every line has its target; more than that is marked. The world is the simplest: no stack, no
threads, so what is measured is XDR, messages, records, dispatch and nothing else.
"""

from __future__ import annotations

import cProfile
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Never

from appliance.clock import SystemClock
from appliance.oncrpc.held import Held
from appliance.oncrpc.message import call_header, success_reply
from appliance.oncrpc.program import Call, Program
from appliance.oncrpc.record import mark
from appliance.oncrpc.xdr import (
    Chain,
    Encoded,
    Opaque,
    bulk,
    codec,
    encode,
    opaque,
    struct,
    uint32,
    uint64,
)
from tests.sim.rpc_client import Loopback, RpcClient, RpcWorld

handle = Annotated[bytes, Opaque(max=64)]


@struct
class attributes:
    words: uint64
    more: uint64
    size: uint64
    used: uint64


@struct
class GETATTRargs:
    object: handle


@struct
class GETATTRresok:
    obj_attributes: attributes | Encoded


@struct
class WRITEargs:
    file: handle
    offset: uint64
    count: uint32
    stable: uint32
    data: bulk


@struct
class name_and_cookie:
    fileid: uint64
    name: opaque
    cookie: uint64


@struct
class entry:
    entry: name_and_cookie | Encoded
    name_attributes: attributes | Encoded | None
    name_handle: handle | None


@struct
class READDIRPLUSresok:
    entries: Annotated[list[entry], Chain]
    eof: bool


FATTR = bytes(84)
HANDLE = bytes(range(32))

bench = Program(300000, 1, "bench")


@bench.procedure(1)
def getattr(call: Call[None], args: GETATTRargs) -> GETATTRresok:
    """As NFS has it, with the attributes encoded already."""
    return GETATTRresok(FATTR)


@bench.procedure(2)
def count(call: Call[Never], args: WRITEargs) -> uint32:
    """The number of pieces of the data."""
    return len(args.data)


class Flush:
    """What held replies wait for."""

    def __init__(self) -> None:
        self.then: Callable[[Exception | None], None] | None = None

    def wait(self) -> None:
        """Nobody does."""

    def when_durable(self, then: Callable[[Exception | None], None]) -> None:
        self.then = then


class Disk:
    """A service whose replies are held until its next flush."""

    def __init__(self) -> None:
        self.flush = Flush()


@bench.procedure(3)
def change(call: Call[None], args: GETATTRargs) -> GETATTRresok:
    """As GETATTR, and held."""
    call.hold(call.host.flush)
    return GETATTRresok(FATTR)


HELD_TOGETHER = 64


def best(work: Callable[[], object], number: int, rounds: int = 7) -> float:
    """Microseconds of one `work`."""
    times = []
    for _ in range(rounds):
        begin = perf_counter()
        for _ in range(number):
            work()
        times.append((perf_counter() - begin) / number)
    return min(times) * 1e6


def whole_path(record: bytes) -> Callable[[], None]:
    """A record in, its reply out of the transport."""
    world = RpcWorld(SystemClock())
    world.add(bench, None)
    transport, session = world.connect(Loopback())
    pending, sent, text = world.pending, transport.sent, [memoryview(record)]

    def serve() -> None:
        session.text_arrived(text)
        call = pending.pop()
        reply = call.run()
        assert not isinstance(reply, Held)
        call.finish(reply)
        sent.clear()

    return serve


def held_together(record: bytes) -> Callable[[], None]:
    """So many records in, a flush, and their replies out of the transport."""
    world, disk = RpcWorld(SystemClock()), Disk()
    world.add(bench, disk)
    transport, session = world.connect(Loopback())
    text = [memoryview(record)] * HELD_TOGETHER

    def serve() -> None:
        session.text_arrived(text)
        world.run()
        flush, disk.flush = disk.flush, Flush()
        assert flush.then is not None
        flush.then(None)
        transport.sent.clear()

    return serve


def write_1m(client: RpcClient) -> Callable[[], None]:
    """A record with much data in, its reply out of the transport."""
    data = [memoryview(bytes(65160)) for _ in range(16)]
    length = sum(map(len, data))
    write = client.header(bench.number, 1, 2) + len(HANDLE).to_bytes(4, "big") + HANDLE
    write += bytes(16) + length.to_bytes(4, "big")
    text = [memoryview(mark(len(write) + length) + write), *data]
    world = RpcWorld(SystemClock())
    world.add(bench, None)
    transport, session = world.connect(Loopback())

    def serve() -> None:
        session.text_arrived(text)
        world.serve()
        transport.sent.clear()

    return serve


def cases() -> list[tuple[str, float, float]]:
    """What, target, measured."""
    client = RpcClient(uid=1000, gid=1000, gids=(4, 24, 27))
    getattr_call = client.call(bench, 1, GETATTRargs(HANDLE))
    null_call = client.call(bench, 0)
    change_call = client.call(bench, 3, GETATTRargs(HANDLE))
    arguments = codec(GETATTRargs)
    results = codec(GETATTRresok)
    known: dict[bytes, object] = {}

    def decode_getattr() -> None:
        header = call_header(getattr_call, known)  # type: ignore[arg-type]
        arguments.decode(getattr_call, header[5])

    def encode_getattr() -> None:
        success_reply(7, results.encode(GETATTRresok(FATTR)), marked=True)

    cached = name_and_cookie(1, b"a-file-name.txt", 2)
    wire = encode(cached)[0]
    listing = READDIRPLUSresok([entry(bytes(wire), FATTR, HANDLE) for _ in range(1000)], True)
    fresh = READDIRPLUSresok(
        [entry(cached, attributes(1, 2, 3, 4), HANDLE) for _ in range(1000)], True
    )
    listing_codec = codec(READDIRPLUSresok)

    def marked(call: bytes) -> bytes:
        return mark(len(call)) + call

    def readdirplus(value: READDIRPLUSresok) -> Callable[[], object]:
        return lambda: listing_codec.encode(value)

    return [
        ("GETATTR call: header and arguments decoded", 2.5, best(decode_getattr, 20000)),
        ("GETATTR reply: header and results encoded", 2.0, best(encode_getattr, 20000)),
        ("NULL, record to reply", 6.0, best(whole_path(marked(null_call)), 10000)),
        ("GETATTR, record to reply", 9.0, best(whole_path(marked(getattr_call)), 10000)),
        (
            f"the same, {HELD_TOGETHER} of them held for one flush, each",
            12.0,
            best(held_together(marked(change_call)), 200) / HELD_TOGETHER,
        ),
        (
            "READDIRPLUS, 1000 cached entries",
            400.0,
            best(readdirplus(listing), 50),
        ),
        ("READDIRPLUS, 1000 entries", 1500.0, best(readdirplus(fresh), 20)),
        ("WRITE of 1 MiB in 16 pieces, record to reply", 30.0, best(write_1m(client), 500)),
    ]


IMPORT = """
import time
import appliance.oncrpc.server
begin = time.perf_counter()
import appliance.nfsd.v3.protocol, appliance.mountd.protocol, appliance.rpcbind.protocol
print((time.perf_counter() - begin) * 1e3)
"""


def import_ms() -> float:
    """Milliseconds to import all protocol declarations, in a fresh interpreter."""
    python = [sys.executable, "-c", IMPORT]
    return min(float(subprocess.check_output(python)) for _ in range(3))


def main() -> None:
    """The table."""
    if "--profile" in sys.argv:
        call = RpcClient(uid=1000).call(bench, 1, GETATTRargs(HANDLE))
        serve = whole_path(mark(len(call)) + call)
        cProfile.runctx("for _ in range(50000): serve()", {}, {"serve": serve}, sort="tottime")
        return
    for what, target, measured in cases():
        slow = "" if measured <= target else "   SLOW"
        print(f"{what:48} {measured:8.2f} us   target {target:7.1f}{slow}")
    print(f"{'declarations of NFSv3, MOUNT and rpcbind':48} {import_ms():8.2f} ms   target    60.0")


if __name__ == "__main__":
    main()
