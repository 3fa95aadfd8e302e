"""Calls over the sockets of the host: records out, replies in."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from appliance.nfsd.v3.protocol import NFS_PROGRAM, NFS_V3
from appliance.oncrpc.record import RecordReader, mark
from tests.interop.hostile import Attacker
from tests.sim.nfs_client import NfsClient
from tests.sim.rpc_client import Reply, RpcClient

NULL_CALL: Final = RpcClient(anonymous=True).header(NFS_PROGRAM, NFS_V3, 0)
"""The smallest call, of 40 bytes. Its reply has 24."""


def recorded(call: bytes) -> bytes:
    """As it is sent on a stream."""
    return mark(len(call)) + call


def replies(stream: socket.socket, count: int) -> list[Reply]:
    """The next so many replies."""
    reader = RecordReader(record_bytes_max=1 << 30)
    found: list[Reply] = []
    while len(found) < count:
        text = stream.recv(1 << 20)
        assert text, f"the stream ended after {len(found)} of {count} replies"
        found += [
            RpcClient.reply(b"".join((head, *rest)))
            for head, rest in reader.feed([memoryview(text)])
        ]
    assert len(found) == count
    return found


def ask_all(
    attacker: Attacker,
    calls: Sequence[bytes],
    port: int = 2049,
    stream: socket.socket | None = None,
) -> list[Reply]:
    """Send these calls, some at a time, on one connection; the replies, in the order of calls."""
    found: list[Reply] = []
    with stream or attacker.tcp(port) as wire:
        for at in range(0, len(calls), 32):
            some = calls[at : at + 32]
            wire.sendall(b"".join(map(recorded, some)))
            found += replies(wire, len(some))
    return found


def ask(attacker: Attacker, call: bytes, stream: socket.socket | None = None) -> Reply:
    """One call to nfsd."""
    if stream is None:
        with attacker.tcp() as made:
            return ask(attacker, call, made)
    stream.sendall(recorded(call))
    (reply,) = replies(stream, 1)
    return reply


def ask_datagram(attacker: Attacker, call: bytes, port: int = 2049) -> Reply:
    """One call over UDP."""
    with attacker.udp(port) as wire:
        wire.send(call)
        return RpcClient.reply(wire.recv(1 << 16))


def client_of(attacker: Attacker, **identity: int) -> NfsClient:
    """An NFS client that makes a connection for every call."""

    def play(call: bytes, port: int) -> Reply:
        (reply,) = ask_all(attacker, [call], port)
        return reply

    return NfsClient(play, RpcClient(**identity))  # type: ignore[arg-type]


def was_hung_up(stream: socket.socket) -> bool:
    """The server has ended the connection."""
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True
