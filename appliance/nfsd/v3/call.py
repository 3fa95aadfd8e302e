"""A call of NFS version 3 (RFC 1813), as its procedure sees it.

The guards are here, so that no procedure can forget one: `node` is the only way from a handle to a
node, and with it come the rights of the caller (`user`); `changing` and `writing` are the ways to
attributes from before and after a change, and with `sync` to a durable one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from appliance import limits
from appliance.nfsd.v3.attributes import post_op
from appliance.nfsd.v3.protocol import nfsstat3
from appliance.nfsd.v3.wcc import Change, Sync, WriteChange
from appliance.oncrpc.auth import Credential
from appliance.oncrpc.program import Call
from appliance.oncrpc.transport import Transport
from appliance.oncrpc.xdr import Encoded
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Entry, Node
from appliance.vfs.user import User

if TYPE_CHECKING:
    from appliance.nfsd.callers import Caller, Grant
    from appliance.nfsd.service import Nfsd

Failure = TypeVar("Failure")

_LOST: Final = (Code.IO, Code.NOSPC, Code.DQUOT)
"""With these a file system tells whoever asks first, and nobody else, that data did not last."""


class NfsError(Exception):
    """A failure that only the protocol knows, and no file system."""

    def __init__(self, status: nfsstat3) -> None:
        super().__init__(status)
        self.status = status


class NfsCall(Call[Failure]):
    """One call in progress."""

    __slots__ = ("_caller", "_grant")

    host: Nfsd
    _caller: Caller
    _grant: Grant | None

    def __init__(self, host: Nfsd, credential: Credential, transport: Transport) -> None:
        super().__init__(host, credential, transport)
        self._grant = None

    def node(self, handle: bytes) -> Node:
        """The node of a handle that this caller may use. One call acts within one export: a
        second handle from another is XDEV."""
        callers = self.host.callers
        if self._grant is None:
            self._caller = callers.caller(self._transport.peer, self.credential)
            self._grant = callers.grant(self._caller, handle)
        elif callers.grant(self._caller, handle).export is not self._grant.export:
            raise VfsError(Code.XDEV, "another export")
        return callers.node(handle)

    @property
    def grant(self) -> Grant:
        """What the caller may do with the node of the first handle."""
        assert self._grant is not None
        return self._grant

    @property
    def user(self) -> User:
        """Who the caller is in the export of its handle."""
        return self.grant.user

    @property
    def data_bytes_max(self) -> int:
        """How much bulk data a call over this transport may carry."""
        datagrams = self.netid in ("udp", "udp6")
        return limits.DATAGRAM_DATA_BYTES_MAX if datagrams else limits.CALL_DATA_BYTES_MAX

    def handle(self, node: Node) -> bytes:
        """The handle for a node that was found from the node of the first handle."""
        grant = self.grant
        if node.filesystem is not grant.filesystem:
            grant = self.host.callers.beyond(self._caller, grant, node)
        return grant.head + node.handle

    def lookup(self, directory: Node, name: bytes) -> Node:
        """The node of that name, also in a file system that is mounted there and not hidden."""
        found = self.user.lookup(directory, name)
        return self.host.callers.unhide(self._caller, found)

    def entry_nodes(self, directory: Node, entries: Sequence[Entry]) -> list[Node | None]:
        """What `lookup` would find for entries of a directory; None where it would fail."""
        callers, caller = self.host.callers, self._caller
        nodes = self.user.entry_nodes(directory, entries)
        if caller.in_force.unhides:
            nodes = [node and callers.unhide(caller, node) for node in nodes]
        return nodes

    def telling(self, node: Node, failure: Callable[[Encoded | None], Failure]) -> None:
        """From now on, a failure comes with the attributes of `node`."""
        self.on_failure(lambda: failure(post_op(node)))

    def changing(self, *nodes: Node, failure: Callable[..., Failure]) -> Change:
        """A step that changes these nodes. A failure comes with the wcc_data of each."""
        promise = self._promise if self.grant.export.options.sync else None
        change = Change(self.host.flights, nodes, promise)
        self.on_failure(lambda: failure(*change.wccs))
        return change

    def writing(self, node: Node, failure: Callable[[Encoded], Failure]) -> WriteChange:
        """A step in which data moves into `node`. A failure comes with its wcc_data."""
        change = WriteChange(self.host.flights, node)
        self.on_failure(lambda: failure(change.wcc))
        return change

    def sync(self, node: Node) -> None:
        """The reply waits until the data of a file is durable, where the export promises that."""
        if self.grant.export.options.sync:
            self._promise(partial(self.user.sync, node))

    def _promise(self, sync: Sync) -> None:
        """The reply promises what `sync` begins to make durable, and is held until it is."""
        try:
            ticket = sync()
        except VfsError as error:
            if error.code in _LOST:
                self.host.renew_write_verifier()
            raise
        if ticket is not None:
            self.hold(ticket)
