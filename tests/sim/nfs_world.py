"""nfsd and mountd on file systems in memory, called without a network: for tests of the protocol.

world = NfsWorld("/ *(rw,no_root_squash)")
root = world.client()
somebody = world.client(uid=1000, address="10.0.0.7", port=40000)
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from appliance.exports import ExportsFile, broken, parse
from appliance.limits import MiB
from appliance.mountd.service import Mountd
from appliance.nfsd.service import Nfsd
from appliance.oncrpc.record import mark
from appliance.oncrpc.transport import Endpoint
from appliance.vfs.interface import FileSystem
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.tree import Tree
from tests.sim.clock import VirtualClock
from tests.sim.nfs_client import MOUNTD_PORT, NFS_PORT, NfsClient
from tests.sim.rpc_client import SERVER, Loopback, Reply, RpcClient, RpcWorld


class NoHosts:
    """A resolver in a world without names."""

    def addresses(self, name: str) -> Sequence[bytes]:
        return ()

    def names(self, address: bytes) -> Sequence[str]:
        return ()


class NfsWorld:
    """One server. `exports` is the text of an exports file; without one, everything is allowed."""

    def __init__(
        self,
        exports: str | None = None,
        mounts: Sequence[tuple[str, FileSystem]] | None = None,
        *,
        size_bytes: int = 64 * MiB,
    ) -> None:
        self.clock = VirtualClock()
        self.memory = self.filesystem(2, size_bytes)
        self.tree = Tree.of(mounts or [("/", self.memory)], self.clock)
        self.exports = ExportsFile(None, NoHosts(), ())
        if exports is not None:
            self.export(exports)
        self._starts = 0
        self._clients = 0
        self.restart()

    def filesystem(self, fsid: int, size_bytes: int = MiB) -> MemoryFileSystem:
        """One more file system in memory, not mounted yet."""
        return MemoryFileSystem(size_bytes, fsid=fsid, clock=self.clock, random=random.Random(fsid))

    def export(self, text: str) -> None:
        """Load this exports file."""
        problems, self.exports.table = parse(text, resolver=NoHosts())
        assert not broken(problems), problems

    def restart(self) -> None:
        """A new server on the same file systems."""
        self._starts += 1
        self.nfsd = Nfsd(
            self.tree, self.exports, self.clock, write_verifier=self._starts.to_bytes(8, "big")
        )
        self.mountd = Mountd(self.tree, self.exports)
        self.rpc = RpcWorld(self.clock)
        for program in self.nfsd.programs:
            self.rpc.add(program, self.nfsd, NFS_PORT)
        for program in self.mountd.programs:
            self.rpc.add(program, self.mountd, MOUNTD_PORT)

    def client(
        self,
        *,
        uid: int = 0,
        gid: int = 0,
        gids: tuple[int, ...] = (),
        anonymous: bool = False,
        address: str = "10.0.0.9",
        port: int = 700,
        netid: str = "tcp",
    ) -> NfsClient:
        """A user of the client machine at this address."""
        self._clients += 1  # a new one does not go on with the xids of another
        rpc = RpcClient(uid, gid, gids, xid=self._clients << 16, anonymous=anonymous)
        peer = Endpoint(address, port)

        def ask(call: bytes, to_port: int) -> Reply:
            return self.ask(call, Loopback(netid, peer, Endpoint(SERVER.address, to_port)))

        return NfsClient(ask, rpc)

    def ask(self, call: bytes, transport: Loopback) -> Reply:
        """Play one call over `transport`."""
        if transport.netid == "udp":
            self.rpc.server.datagram(transport, call)
        else:
            stream = self.rpc.server.stream(transport)
            stream.text_arrived([memoryview(mark(len(call)) + call)])
            stream.ended()
        self.rpc.serve()
        (reply,) = transport.replies()
        return reply
