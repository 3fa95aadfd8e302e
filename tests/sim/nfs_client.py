"""A small NFS client without I/O, made of the server's own protocol.py: calls out, replies in.

    client = NfsClient(ask)                        # `ask` plays one call from bytes to reply
    root = client.mount(b"/")
    file = client.create(root, b"name")
    client(WRITE3args(file, 0, 2, stable_how.FILE_SYNC, [b"hi"]))     # any procedure, by its args

The result is the body of success; any other status is raised as Refused, with its body. Who has to
wait for replies uses the two halves of a call: `request(args)` and `result(args, reply)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from appliance.mountd import protocol as mount
from appliance.mountd.service import mount3
from appliance.nfsd.v3 import protocol as nfs
from appliance.nfsd.v3.procedures import nfs3
from appliance.nfsd.v3.protocol import nfsstat3, stable_how
from appliance.oncrpc.program import Procedure
from appliance.oncrpc.xdr import codec
from tests.sim.rpc_client import Reply, RpcClient

NFS_PORT: Final = 2049
MOUNTD_PORT: Final = 20048

Ask = Callable[[bytes, int], Reply]
"""What plays a call: its bytes and the port they go to -> the reply."""


def _by_arguments() -> dict[type, Procedure]:
    return {
        procedure.arguments.kind.cls: procedure  # type: ignore[attr-defined]
        for number, procedure in nfs3.procedures.items()
        if number
    }


PROCEDURES: Final = _by_arguments()


class Refused(Exception):
    """A status other than NFS3_OK."""

    def __init__(self, status: nfsstat3, body: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class MountRefused(Exception):
    """A status other than MNT3_OK."""

    def __init__(self, status: mount.mountstat3) -> None:
        super().__init__(status)
        self.status = status


class NfsClient:
    """One user of one client machine."""

    def __init__(self, ask: Ask, rpc: RpcClient | None = None) -> None:
        self.ask = ask
        self.rpc = rpc or RpcClient()

    def __call__(self, args: Any) -> Any:
        """Call the procedure that has these arguments."""
        return self.result(args, self.ask(self.request(args), NFS_PORT))

    def request(self, args: Any) -> bytes:
        """The call, without a record mark."""
        return self.rpc.call(nfs3, PROCEDURES[type(args)].number, args)

    def result(self, args: Any, reply: Reply) -> Any:
        """What the reply to a call with these arguments says."""
        procedure = PROCEDURES[type(args)]
        if reply.status == nfsstat3.NFS3_OK:
            return procedure.result.decode(reply.results[4:])
        failure = codec(procedure.failure)
        raise Refused(nfsstat3(reply.status), failure.decode(reply.results[4:]))

    # MOUNT

    def mnt(self, path: bytes) -> mount.mountres3_ok:
        """MNT, version 3."""
        reply = self.ask(self.rpc.call(mount3, 1, path), MOUNTD_PORT)
        if reply.status:
            assert len(reply.results) == 4
            raise MountRefused(mount.mountstat3(reply.status))
        return reply.ok(mount.mountres3_ok)

    def mount(self, path: bytes = b"/") -> bytes:
        """The handle of an exported directory."""
        return self.mnt(path).fhandle

    # What most tests need

    def attributes(self, handle: bytes) -> nfs.fattr3:
        found: nfs.fattr3 = self(nfs.GETATTR3args(handle)).obj_attributes
        return found

    def lookup(self, directory: bytes, name: bytes) -> bytes:
        found: bytes = self(nfs.LOOKUP3args(nfs.diropargs3(directory, name))).object
        return found

    def create(self, directory: bytes, name: bytes, wishes: nfs.sattr3 | None = None) -> bytes:
        where = nfs.diropargs3(directory, name)
        how = nfs.Guarded(wishes or nfs.sattr3())
        made: bytes = self(nfs.CREATE3args(where, how)).obj
        return made

    def mkdir(self, directory: bytes, name: bytes, wishes: nfs.sattr3 | None = None) -> bytes:
        where = nfs.diropargs3(directory, name)
        made: bytes = self(nfs.MKDIR3args(where, wishes or nfs.sattr3())).obj
        return made

    def symlink(self, directory: bytes, name: bytes, text: bytes) -> bytes:
        where = nfs.diropargs3(directory, name)
        made: bytes = self(nfs.SYMLINK3args(where, nfs.symlinkdata3(nfs.sattr3(), text))).obj
        return made

    def remove(self, directory: bytes, name: bytes) -> None:
        self(nfs.REMOVE3args(nfs.diropargs3(directory, name)))

    def write(
        self, file: bytes, data: bytes, offset: int = 0, stable: stable_how = stable_how.FILE_SYNC
    ) -> Any:
        """One WRITE: its WRITE3resok."""
        return self(nfs.WRITE3args(file, offset, len(data), stable, [data]))

    def read(self, file: bytes, offset: int = 0, count: int = 1 << 20) -> bytes:
        """One READ."""
        return b"".join(self(nfs.READ3args(file, offset, count)).data)

    def listing(self, directory: bytes, count: int = 4096) -> Iterator[nfs.entry3]:
        """All entries, by as many READDIRs as it takes."""
        cookie, verifier = 0, bytes(nfs.NFS3_COOKIEVERFSIZE)
        while True:
            page = self(nfs.READDIR3args(directory, cookie, verifier, count))
            yield from page.reply.entries
            if page.reply.eof:
                return
            cookie, verifier = page.reply.entries[-1].cookie, page.cookieverf

    def listing_plus(self, directory: bytes, maxcount: int = 8192) -> Iterator[Any]:
        """All entries (entryplus3), by as many READDIRPLUSes as it takes."""
        cookie, verifier = 0, bytes(nfs.NFS3_COOKIEVERFSIZE)
        while True:
            args = nfs.READDIRPLUS3args(directory, cookie, verifier, maxcount, maxcount)
            page = self(args)
            yield from page.reply.entries
            if page.reply.eof:
                return
            cookie, verifier = page.reply.entries[-1].cookie, page.cookieverf
