"""Clients that keep count: each does one thing after the other in a directory of its own, and says
how many were acknowledged. What it does is a function of its number, so the count says all.

    python -m tests.proofs.load ADDRESS CLIENTS

When the server goes away they wait for the next one, as NFS clients do: the call without a reply is
made again. It may have happened; then it is refused in the second place, and that is well.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from appliance.nfsd.v3 import protocol as nfs
from appliance.nfsd.v3.protocol import nfsstat3
from appliance.oncrpc.record import mark
from tests.sim.nfs_client import NfsClient, Refused
from tests.sim.rpc_client import Reply, RpcClient

FILES_MAX: Final = 24
FILE_BYTES_MAX: Final = 60_000
RECONNECT_SECONDS: Final = 0.05
REPLY_SECONDS: Final = 2
_LAST_FRAGMENT: Final = 1 << 31

HAPPENED: Final = {
    "create": nfsstat3.NFS3ERR_EXIST,
    "mkdir": nfsstat3.NFS3ERR_EXIST,
    "remove": nfsstat3.NFS3ERR_NOENT,
    "rmdir": nfsstat3.NFS3ERR_NOENT,
    "rename": nfsstat3.NFS3ERR_NOENT,
}
"""What is said to a call that is made again, if it had happened."""


def directory_of(client: int) -> bytes:
    return b"client-%d" % client


@dataclass
class Deed:
    """One call that changes something."""

    kind: str
    name: bytes
    new_name: bytes = b""
    offset: int = 0
    data: bytes = b""


@dataclass
class Plan:
    """What a client does, and what its directory then holds (None: an empty directory)."""

    client: int
    done: int = 0
    holds: dict[bytes, bytes | None] = field(default_factory=dict)

    def next(self) -> Deed:
        """The deed after `done` others."""
        chance = random.Random(self.client << 32 | self.done)
        files = sorted(name for name, data in self.holds.items() if data is not None)
        folders = sorted(name for name, data in self.holds.items() if data is None)
        new = b"%d" % self.done
        kind = chance.choices(
            ["create", "write", "truncate", "remove", "rename", "mkdir", "rmdir"],
            [5, 8, 2, 3, 3, 1, 1],
        )[0]
        if kind == "mkdir":
            return Deed("mkdir", new)
        if kind == "rmdir" and folders:
            return Deed("rmdir", folders[0])
        if kind == "create" or len(files) < 2:
            return Deed("create", new) if len(files) < FILES_MAX else Deed("remove", files[0])
        name = chance.choice(files)
        size = len(self.holds[name] or b"")
        match kind:
            case "write":
                offset = chance.choice([size, chance.randrange(size + 5000)])
                count = min(chance.choice([10, 4096, 20_000]), FILE_BYTES_MAX - offset)
                return Deed("write", name, offset=offset, data=b"%d;" % self.done * (count // 8))
            case "truncate":
                return Deed("truncate", name, offset=chance.randrange(size + 1))
            case "rename":
                return Deed("rename", name, chance.choice([new, *files]))
        return Deed("remove", name)

    def do(self, deed: Deed) -> None:
        """It has happened."""
        self.done += 1
        old = self.holds.get(deed.name)
        match deed.kind:
            case "create":
                self.holds[deed.name] = b""
            case "mkdir":
                self.holds[deed.name] = None
            case "remove" | "rmdir":
                del self.holds[deed.name]
            case "rename":
                self.holds[deed.new_name] = self.holds.pop(deed.name)
            case "truncate":
                self.holds[deed.name] = (old or b"")[: deed.offset]
            case "write":
                text = bytearray(old or b"").ljust(deed.offset, b"\0")
                text[deed.offset : deed.offset + len(deed.data)] = deed.data
                self.holds[deed.name] = bytes(text)


class Connection:
    """One client's NFS over TCP, through the kernel of this machine."""

    def __init__(self, server: str, client: int) -> None:
        self._server = server
        self._sockets: dict[int, socket.socket] = {}
        # No xid of an earlier connection is used again.
        rpc = RpcClient(xid=client << 24 | time.monotonic_ns() >> 16 & 0xFF_FFFF)
        self.nfs = NfsClient(self._ask, rpc)

    def _ask(self, call: bytes, port: int) -> Reply:
        stream = self._sockets.get(port)
        if stream is None:
            stream = socket.create_connection((self._server, port), timeout=REPLY_SECONDS)
            self._sockets[port] = stream
        stream.sendall(mark(len(call)) + call)
        header = int.from_bytes(self._receive(stream, 4), "big")
        assert header & _LAST_FRAGMENT
        return RpcClient.reply(self._receive(stream, header & ~_LAST_FRAGMENT))

    def _receive(self, stream: socket.socket, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = stream.recv(count - len(data))
            if not more:
                raise ConnectionError("the server has closed the connection")
            data += more
        return bytes(data)

    def port(self, server_port: int) -> int:
        """Of our end of the connection to that port."""
        own: int = self._sockets[server_port].getsockname()[1]
        return own

    def close(self) -> None:
        for stream in self._sockets.values():
            stream.close()


def perform(client: NfsClient, directory: bytes, deed: Deed) -> None:
    """The call (after those that find out handles)."""
    where = nfs.diropargs3(directory, deed.name)
    match deed.kind:
        case "create":
            client.create(directory, deed.name)
        case "mkdir":
            client.mkdir(directory, deed.name)
        case "remove":
            client.remove(directory, deed.name)
        case "rmdir":
            client(nfs.RMDIR3args(where))
        case "rename":
            client(nfs.RENAME3args(where, nfs.diropargs3(directory, deed.new_name)))
        case "truncate":
            wishes = nfs.sattr3(size=deed.offset)
            client(nfs.SETATTR3args(client.lookup(directory, deed.name), wishes, None))
        case "write":
            client.write(client.lookup(directory, deed.name), deed.data, deed.offset)


def entered(client: NfsClient, number: int) -> bytes:
    """The client's own directory."""
    root = client.mount()
    try:
        return client.mkdir(root, directory_of(number))
    except Refused as refusal:
        if refusal.status is not nfsstat3.NFS3ERR_EXIST:
            raise
        return client.lookup(root, directory_of(number))


def work(server: str, number: int) -> None:
    """For ever."""
    plan = Plan(number)
    again: Deed | None = None
    while True:
        connection = Connection(server, number)
        try:
            directory = entered(connection.nfs, number)
            while True:
                deed = plan.next()
                try:
                    perform(connection.nfs, directory, deed)
                except Refused as refusal:
                    if deed != again or refusal.status is not HAPPENED.get(deed.kind):
                        raise
                except OSError:
                    again = deed
                    raise
                plan.do(deed)
                os.write(1, b"%d %d\n" % (number, plan.done))
        except OSError:
            time.sleep(RECONNECT_SECONDS)
        finally:
            connection.close()


def main() -> None:
    server, clients = sys.argv[1], int(sys.argv[2])
    for number in range(clients):
        threading.Thread(target=work, args=(server, number), name=f"client-{number}").start()


if __name__ == "__main__":
    main()
