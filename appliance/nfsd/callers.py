"""Who calls, and what it may do with which handle: the door of nfsd, for every protocol version.

A handle names an export, a file system and a node (vfs/handles.py). Whether this caller may use it,
and as whom, is decided once for each export and file system, and kept in a Grant; so a call that
follows others costs three look-ups in dictionaries. What is kept is thrown away when the exports
are loaded again. What a caller may not do is never remembered.

As Linux' nfsd answers: a handle in an export that is not for this client is STALE, and one that
comes from a port above 1023 where the export is "secure" is PERM.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from typing import Final

from appliance import limits
from appliance.clock import Clock
from appliance.exports import Export, ExportsFile, ExportTable
from appliance.exports.options import RESERVED_PORTS
from appliance.oncrpc.auth import AuthError, auth_flavor, auth_stat
from appliance.oncrpc.auth import Credential as RpcCredential
from appliance.oncrpc.transport import Endpoint
from appliance.vfs import handles
from appliance.vfs.access import Credential, SquashRules, squash
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, Node
from appliance.vfs.tree import Tree
from appliance.vfs.user import User

_HEAD: Final = slice(0, limits.HANDLE_BYTES_MAX - limits.NODE_HANDLE_BYTES_MAX)
"""The part of a handle that says which export and which file system."""


class Grant:
    """What one caller may do in one file system of one export: `user` is who it is there."""

    __slots__ = ("export", "filesystem", "head", "user")

    def __init__(self, export: Export, filesystem: FileSystem, head: bytes, user: User) -> None:
        self.export = export
        self.filesystem = filesystem
        self.head = head
        self.user = user


class InForce:
    """The exports of one load, and who has called since.

    Never changed but replaced as a whole, so that a call that is in progress during a reload sees
    the old exports or the new ones, and no mixture."""

    __slots__ = ("callers", "table", "tops", "unhides")

    def __init__(self, table: ExportTable, tree: Tree) -> None:
        self.table = table
        self.callers: dict[tuple[str, bool, RpcCredential], Caller] = {}
        self.unhides = any(export.options.nohide for export in table)
        self.tops: dict[int, int] = {}
        """By the fsid of every file system that is exported where it is mounted: that export."""
        for path, _ in table.listing():
            with suppress(VfsError):  # whoever mounts it is told
                node = tree.walk(os.fsdecode(path))
                if tree.is_top(node):
                    self.tops[node.filesystem.fsid] = handles.export_id(path)


class Caller:
    """Somebody who calls, and the grants it has got so far, by the head of their handles."""

    __slots__ = ("address", "credential", "grants", "in_force", "port", "users")

    def __init__(self, in_force: InForce, peer: Endpoint, credential: RpcCredential) -> None:
        self.in_force = in_force
        self.address = ipaddress.ip_address(peer.address).packed
        self.port = peer.port  # this one or one that is as good
        self.credential = credential
        self.grants: dict[bytes, Grant] = {}
        self.users: dict[int, tuple[User, Node]] = {}
        """Who it is in each export, and the exported directory."""

    def export(self, number: int | None) -> Export | None:
        """The export of this number, if it is for this caller."""
        return None if number is None else self.in_force.table.by_id(number, self.address)


class NodeCache:
    """The nodes of handles that were used lately.

    Two generations: what is used in the old one moves to the young one, and when that is full, it
    becomes the old one. That forgets what has not been used for long, and costs one look-up.
    """

    def __init__(self, generation_size: int = limits.NODES_CACHED) -> None:
        self._size = generation_size
        self._young: dict[bytes, Node] = {}
        self._old: dict[bytes, Node] = {}

    def get(self, handle: bytes) -> Node | None:
        node = self._young.get(handle)
        if node is None:
            node = self._old.get(handle)
            if node is not None:
                self.put(handle, node)
        return node

    def put(self, handle: bytes, node: Node) -> None:
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[handle] = node

    def forget(self, handle: bytes) -> None:
        self._young.pop(handle, None)
        self._old.pop(handle, None)

    def clear(self) -> None:
        self._young, self._old = {}, {}


class Callers:
    """Everybody who has called lately, and the nodes that were called for."""

    def __init__(self, tree: Tree, exports: ExportsFile, clock: Clock) -> None:
        self.tree: Final = tree
        self.nodes: Final = NodeCache()
        self._exports = exports
        self._clock = clock
        self._in_force = InForce(exports.table, tree)

    def caller(self, peer: Endpoint, credential: RpcCredential) -> Caller:
        """Who calls from `peer` with this credential."""
        in_force = self._in_force
        if self._exports.table is not in_force.table:
            in_force = self._in_force = InForce(self._exports.table, self.tree)
        key = (peer.address, peer.port < RESERVED_PORTS, credential)
        caller = in_force.callers.get(key)
        if caller is None:
            if len(in_force.callers) >= limits.CALLERS_MAX:
                in_force.callers.clear()
            caller = in_force.callers[key] = Caller(in_force, peer, credential)
        return caller

    def grant(self, caller: Caller, handle: bytes) -> Grant:
        """What `caller` may do with `handle`. BADHANDLE, STALE, PERM, AuthError."""
        grant = caller.grants.get(handle[_HEAD])
        if grant is None:
            number, fsid, _ = handles.decode(handle)
            export = caller.export(number)
            if export is None:
                raise VfsError(Code.STALE, "not exported to this client")
            grant = self._make_grant(caller, export, self.tree.filesystem_by_fsid(fsid))
        return grant

    def node(self, handle: bytes) -> Node:
        """The node of a handle. STALE, BADHANDLE."""
        node = self.nodes.get(handle)
        if node is None:
            _, fsid, node_handle = handles.decode(handle)
            node = self.tree.filesystem_by_fsid(fsid).resolve(node_handle)
            self.nodes.put(handle, node)
        if not node.attributes().nlink:
            self.nodes.forget(handle)
            raise VfsError(Code.STALE, "removed")
        return node

    def forget_nodes(self) -> None:
        """Everything that was remembered may have become something else."""
        self.nodes.clear()
        self._in_force = InForce(self._exports.table, self.tree)

    def beyond(self, caller: Caller, grant: Grant, node: Node) -> Grant:
        """The grant for a node in another file system, which was reached by crossing a mount: on
        the way down, of the export of that file system if it has one; or else of the same
        export."""
        export, filesystem = grant.export, node.filesystem
        if self.tree.is_top(node):
            export = caller.export(caller.in_force.tops.get(filesystem.fsid)) or export
        return self._make_grant(caller, export, filesystem)

    def unhide(self, caller: Caller, node: Node) -> Node:
        """What one finds on coming to `node` in an export without "crossmnt": a file system that
        is exported there as "nohide", or `node` itself."""
        if not caller.in_force.unhides:
            return node
        there = self.tree.cross(node)
        if there is node:
            return node
        export = caller.export(caller.in_force.tops.get(there.filesystem.fsid))
        return there if export is not None and export.options.nohide else node

    def _make_grant(self, caller: Caller, export: Export, filesystem: FileSystem) -> Grant:
        if export.id not in caller.users:
            caller.users[export.id] = self._make_user(caller, export)
        user, top = caller.users[export.id]
        crossed = filesystem is not top.filesystem
        if crossed and not (export.options.crossmnt and self.tree.reaches(top, filesystem)):
            raise VfsError(Code.STALE, "not in this export")
        head = handles.encode(export.id, filesystem.root())[_HEAD]
        grant = caller.grants[head] = Grant(export, filesystem, head, user)
        return grant

    def _make_user(self, caller: Caller, export: Export) -> tuple[User, Node]:
        options = export.options
        rights = options.access(caller.credential.flavor)
        if rights is None:
            raise AuthError(auth_stat.AUTH_TOOWEAK)
        if not options.admits(caller.port):
            raise VfsError(Code.PERM, "insecure port")
        try:
            top = self.tree.walk(os.fsdecode(export.path))
        except VfsError as error:
            raise VfsError(Code.STALE, "the exported directory is gone") from error
        user = User(
            _identity(caller.credential, rights.squash),
            clock=self._clock,
            read_only=rights.read_only,
            tree=self.tree,
            crosses=options.crossmnt,
            top=top,
        )
        return user, top


def _identity(said: RpcCredential, rules: SquashRules) -> Credential:
    """Who a caller is in an export with these rules."""
    if said.flavor == auth_flavor.AUTH_NONE:
        return rules.anonymous
    return squash(Credential(said.uid, said.gid, frozenset(said.gids)), rules)
