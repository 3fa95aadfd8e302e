"""Attacks by what is on a connection, before it is a call: records, headers, credentials; and by
how a connection is used: too many, never read, hung up."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from appliance.limits import CALL_BYTES_MAX, CONNECTIONS_MAX
from appliance.nfsd.v3.protocol import READ3args
from appliance.oncrpc.auth import auth_flavor, authsys_parms
from appliance.oncrpc.message import (
    NO_AUTH,
    auth_error,
    opaque_auth,
    proc_unavail,
    prog_mismatch,
    prog_unavail,
    rpc_mismatch,
)
from appliance.oncrpc.record import mark
from appliance.oncrpc.xdr import encode
from tests.interop.hostile import Attack, Attacker, Expected
from tests.interop.hostile_rpc import (
    NULL_CALL,
    ask,
    ask_all,
    ask_datagram,
    client_of,
    recorded,
    was_hung_up,
)
from tests.sim.nfs_client import Refused
from tests.sim.rpc_client import RpcClient

PORTS: Final = {"rpcbind2": 111, "nfs3": 2049, "mount3": 20048}


def no_end(attacker: Attacker) -> Expected:
    """Records of up to 4 GiB, at once or by and by, and fragments with nothing in them."""
    texts = [
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff" + bytes(100),
        (CALL_BYTES_MAX + 1).to_bytes(4, "big"),
        mark(CALL_BYTES_MAX + 1),
        ((1 << 20).to_bytes(4, "big") + bytes(1 << 20)) * 2,
        bytes(4) * 100,
        recorded(NULL_CALL)[:4] + NULL_CALL[:40] + b"\xff" * 4,
    ]
    for port in PORTS.values():
        for text in texts:
            with attacker.tcp(port) as stream:
                with suppress(ConnectionResetError):  # before it has all been sent
                    stream.sendall(text)
                assert hung_up_after_replies(stream), text[:8]
    return Expected({"rpc.bad_record": len(texts) * len(PORTS)})


def hung_up_after_replies(stream: socket.socket) -> bool:
    """Whatever it says, it ends the connection."""
    while not was_hung_up(stream):
        pass
    return True


def crumbs(attacker: Attacker) -> Expected:
    """Odd, but right: byte by byte, fragments of one byte, empty fragments between. Answered."""
    in_bytes = b"".join(b"\0\0\0\1" + NULL_CALL[at : at + 1] for at in range(39))
    forms = [
        recorded(NULL_CALL),
        in_bytes + b"\x80\0\0\1" + NULL_CALL[39:],
        bytes(4) * 60 + recorded(NULL_CALL),
        b"\0\0\0\x28" + NULL_CALL + b"\x80\0\0\0",
    ]
    for form in forms:
        with attacker.tcp() as stream:
            for at in range(len(form)):
                stream.sendall(form[at : at + 1])
            assert stream.recv(100)[:8] == b"\x80\0\0\x18" + NULL_CALL[:4]
    long = b"".join(b"\0\0\0\1x" for _ in range(50_000))
    with attacker.tcp() as stream:
        stream.sendall(b"\0\0\0\x28" + NULL_CALL + long + mark(0))
        assert stream.recv(100)[4:8] == NULL_CALL[:4]
    return Expected({"nfs3.null": len(forms)})


def other_protocols(attacker: Attacker) -> Expected:
    """What comes to every open port sooner or later."""
    noise = random.Random(1)
    texts = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x00\x00\x00\x85\xffSMBr" + bytes(200),
        *(noise.randbytes(1 << 16) for _ in range(10)),
        bytes(1 << 16),
    ]
    for port in PORTS.values():
        for text in texts:
            with attacker.tcp(port) as stream:
                try:
                    stream.sendall(text)
                    stream.shutdown(socket.SHUT_WR)
                except OSError:  # it has been reset already
                    continue
                assert hung_up_after_replies(stream), text[:8]
    return Expected({"rpc.bad_record": 10 * len(PORTS)})


def no_calls(attacker: Attacker) -> Expected:
    """Records that are too short, and replies. They are not answered; the call behind them is."""
    replies_ = [NULL_CALL[:4] + kind.to_bytes(4, "big") + NULL_CALL[8:] for kind in (1, 2, 1 << 31)]
    records = [NULL_CALL[:length] for length in range(40)] + replies_
    for port in PORTS.values():
        with attacker.tcp(port) as stream:
            stream.sendall(b"".join(map(recorded, records)))
            assert ask(attacker, NULL_CALL, stream).xid
        with attacker.udp(port) as wire:
            for record in records:
                wire.send(record)
            assert ask_datagram(attacker, NULL_CALL, port).xid
            assert not select.select([wire], [], [], 0.05)[0], "it was answered"
    return Expected({"rpc.not_a_call": 2 * len(records) * len(PORTS)})


def refused_headers(attacker: Attacker) -> Expected:
    """RPC version 3, programs, versions and procedures that are not there."""
    rpc = RpcClient()
    cases = [
        (rpc.header(100003, 3, 0, rpcvers=3), rpc_mismatch(2, 2)),
        (rpc.header(100003, 3, 0, rpcvers=0), rpc_mismatch(2, 2)),
        (rpc.header(100003, 3, 0, rpcvers=0xFFFFFFFF), rpc_mismatch(2, 2)),
        (rpc.header(100021, 4, 0), prog_unavail()),
        (rpc.header(0, 0, 0), prog_unavail()),
        (rpc.header(0xFFFFFFFF, 3, 0), prog_unavail()),
        (rpc.header(100003, 2, 1), prog_mismatch(3, 3)),
        (rpc.header(100003, 4, 1), prog_mismatch(3, 3)),
        (rpc.header(100003, 0xFFFFFFFF, 1), prog_mismatch(3, 3)),
        (rpc.header(100003, 3, 22), proc_unavail()),
        (rpc.header(100003, 3, 0xFFFFFFFF), proc_unavail()),
    ]
    return _all_refused(attacker, cases)


def refused_credentials(attacker: Attacker) -> Expected:
    """Flavors that we do not speak; bodies that are too long, cut, or not what they say."""

    def sys(*fields: object) -> bytes:
        return b"".join(encode(authsys_parms(*fields)))  # type: ignore[arg-type]

    good = sys(0, b"client", 1, 2, [3])
    words = NULL_CALL[:24]
    heads = [
        words + flavor.to_bytes(4, "big") + length.to_bytes(4, "big") + body + bytes(8)
        for flavor, length, body in (
            (6, 0, b""),  # RPCSEC_GSS
            (2, 0, b""),  # AUTH_SHORT
            (7, 0, b""),  # AUTH_TLS
            (0xFFFFFFFF, 0, b""),
            (1, 0, b""),  # AUTH_SYS of nothing
            (1, 401, bytes(404)),
            (1, 0xFFFFFFFF, good),
            (1, 0x7FFFFFFC, good),
            (0, 0xFFFFFFFC, b""),
            (1, len(good) + 400, good),
            *((1, length, good[:length]) for length in range(0, len(good), 4)),
            (1, 20, bytes(4) + b"\xff\xff\xff\xff" + bytes(12)),  # a machine name of 4 GiB
            (1, 20, bytes(16) + b"\xff\xff\xff\xff"),  # 4 Gi gids
            (1, 20 + 17 * 4, bytes(16) + b"\0\0\0\x11" + bytes(17 * 4)),  # 17 of them
            (1, 276, bytes(4) + b"\0\0\1\0" + bytes(268)),  # a name of 256 bytes
        )
    ]
    rpc = RpcClient()
    verifier = opaque_auth(auth_flavor.AUTH_SYS, b"abcd")
    heads.append(rpc.header(100003, 3, 0, verifier=verifier))
    heads.append(rpc.header(100003, 3, 0, verifier=opaque_auth(auth_flavor.AUTH_NONE, b"abcd")))
    assert ask(attacker, rpc.header(100003, 3, 0, credential=NO_AUTH)).succeeded
    return _all_refused(attacker, [(head, auth_error) for head in heads])


def _all_refused(attacker: Attacker, cases: Iterable[tuple[bytes, object]]) -> Expected:
    expected = Expected()
    calls, wanted = zip(*cases, strict=True)
    by_tcp = ask_all(attacker, calls)
    by_udp = [ask_datagram(attacker, call) for call in calls]
    for reply, body, call in zip(by_tcp + by_udp, wanted * 2, calls * 2, strict=True):
        kind = body if isinstance(body, type) else type(body)
        assert isinstance(reply.body, kind), (call, reply)
        assert isinstance(body, type) or reply.body == body
        expected[f"rpc.{kind.__name__}"] += 1
    return expected


# --- how connections are used -------------------------------------------------------------


def too_many(attacker: Attacker) -> Expected:
    """More connections than there may be, with nothing on them: those that have been silent
    longest make room, and whoever has something to say says it."""
    streams = [attacker.tcp() for _ in range(CONNECTIONS_MAX + 44)]
    for stream in streams[:44]:
        assert was_hung_up(stream)
    for stream in (streams[44], streams[-1]):
        assert ask(attacker, NULL_CALL, stream).succeeded
    with attacker.tcp() as another:
        assert ask(attacker, NULL_CALL, another).succeeded
    for stream in streams:
        stream.close()
    return Expected({"rpc.closed_idle": 45})


def hang_ups(attacker: Attacker) -> Expected:
    """In the middle of a record, of a WRITE, before the reply has come; by FIN and by RST."""
    client = client_of(attacker)
    file = client.lookup(client.mount(), b"file")
    write = client.rpc.header(100003, 3, 7) + bytes(1 << 20)
    read = recorded(client.request(READ3args(file, 0, 1 << 20)))
    texts = [b"", b"\x80", recorded(NULL_CALL)[:30], recorded(NULL_CALL), recorded(write)[:500_000]]
    texts += [read * 20, recorded(write)]
    for text in texts:
        for by_reset in (False, True) * 4:
            with attacker.tcp() as stream:
                stream.sendall(text)
                if by_reset:
                    linger = (1).to_bytes(4, "little") + bytes(4)
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return Expected({"tcp.resets_received": 16})


def never_read(attacker: Attacker) -> Expected:
    """Calls without end, whose replies nobody takes: READs of 1 MiB, and the smallest. TCP stops
    them. The connections stay open while normal clients work."""
    client = client_of(attacker)
    big = _big_file(attacker)
    read = recorded(client.request(READ3args(big, 0, 1 << 20)))
    attacker.let_go()  # of those of the round before, whose memory these ones take
    for calls in (read * 300, recorded(NULL_CALL) * 200_000):
        stream = attacker.tcp(timeout=0.5)
        attacker.held.append(stream)
        with suppress(TimeoutError):  # that is what a window is for
            stream.sendall(calls)
    return Expected({"nfs3.read": 4, "nfs3.null": 10_000})


def _big_file(attacker: Attacker) -> bytes:
    """1 MiB."""
    client = client_of(attacker)
    try:
        return client.lookup(client.mount(), b"big")
    except Refused:
        file = client.create(client.mount(), b"big")
        client.write(file, bytes(1 << 20))
        return file


def datagrams(attacker: Attacker) -> Expected:
    """The largest, the empty, noise; many at once. What cannot be taken is not."""
    noise = random.Random(2)
    for port in PORTS.values():
        with attacker.udp(port) as wire:
            for size in (0, 1, 39, 40, 1472, 1473, 9000, 65507):
                wire.send(noise.randbytes(size))
                wire.send((NULL_CALL + bytes(size))[:65507])
            for _ in range(500):
                wire.send(NULL_CALL)
        assert ask_datagram(attacker, NULL_CALL, port).xid
    return Expected({"rpc.not_a_call": 9})


ATTACKS: list[Attack] = [
    no_end,
    crumbs,
    other_protocols,
    no_calls,
    refused_headers,
    refused_credentials,
    too_many,
    hang_ups,
    never_read,
    datagrams,
]
