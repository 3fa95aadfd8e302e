"""mountd: paths become file handles (RFC 1813 appendix I, RFC 1094 appendix A).

The three versions differ in the shape of MNT's reply and in which procedures there are; what they
do is in Mountd, once. A path that is not exported to the caller is ACCES whether it exists or not:
who may not use a tree does not learn what is in it. Below an exported directory the truth is told.

The list of mounts is what clients have said, and no more than that: one that crashes never
unmounts, one that comes back mounts twice. It is for showmount -a, nothing is decided by it.
"""

from __future__ import annotations

import ipaddress
import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, Never

from appliance import limits
from appliance.exports import Export, ExportsFile
from appliance.mountd import protocol
from appliance.mountd.protocol import (
    dirpath,
    exportnode,
    exports,
    fhstatus_ok,
    groupnode,
    mountbody,
    mountlist,
    mountres3_ok,
    mountstat3,
    ppathcnf,
)
from appliance.oncrpc.program import Call, Program
from appliance.oncrpc.transport import Endpoint
from appliance.vfs import handles
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, Node
from appliance.vfs.tree import Tree

_STATUS: Final = {
    Code.NOENT: mountstat3.MNT3ERR_NOENT,
    Code.NOTDIR: mountstat3.MNT3ERR_NOTDIR,
    Code.ACCES: mountstat3.MNT3ERR_ACCES,
    Code.NAMETOOLONG: mountstat3.MNT3ERR_NAMETOOLONG,
}


def status_of(error: VfsError) -> mountstat3:
    """What a failure is called in the protocol, the old versions of which have the same numbers."""
    return _STATUS.get(error.code, mountstat3.MNT3ERR_IO)


class Mountd:
    """The mount service."""

    def __init__(self, tree: Tree, exports: ExportsFile) -> None:
        self._tree = tree
        self._exports = exports
        self._lock = Lock()
        self._mounts: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    @property
    def programs(self) -> tuple[Program, ...]:
        """What is to be registered, with this service as the host."""
        return mount1, mount2, mount3

    def mount(self, path: bytes, peer: Endpoint) -> tuple[bytes, Export]:
        """The handle of a directory, and how it is exported to this client. ACCES, NOENT, NOTDIR,
        NAMETOOLONG."""
        path = path or b"/"  # libnfs asks for "" where the URL names a file in the root
        export, node = self._find(path, peer)
        handle = handles.encode(export.id, node)
        self._remember(peer.address, path)
        return handle, export

    def look(self, path: bytes, peer: Endpoint) -> Node:
        """The directory that `mount` would give the handle of."""
        return self._find(path, peer)[1]

    def _find(self, path: bytes, peer: Endpoint) -> tuple[Export, Node]:
        if len(path) > protocol.MNTPATHLEN:
            raise VfsError(Code.NAMETOOLONG)
        export = self._exports.table.find(path, ipaddress.ip_address(peer.address).packed)
        if export is None or not export.options.flavors:
            raise VfsError(Code.ACCES, "not exported to this client")
        if not export.options.admits(peer.port):
            raise VfsError(Code.ACCES, "insecure port")
        if any(len(name) > limits.NAME_BYTES_MAX for name in path.split(b"/")):
            raise VfsError(Code.NAMETOOLONG)
        node = self._tree.walk(os.fsdecode(path))
        top = self._tree.walk(os.fsdecode(export.path))
        crossed = node.filesystem is not top.filesystem
        if crossed and not (export.options.crossmnt and self._tree.reaches(top, node.filesystem)):
            raise VfsError(Code.ACCES, "in a file system that is not exported")
        if node.attributes().type is not FileType.DIRECTORY:
            raise VfsError(Code.NOTDIR)
        return export, node

    def _remember(self, host: str, path: bytes) -> None:
        with self._lock:
            self._mounts[host, path] = None
            self._mounts.move_to_end((host, path))
            if len(self._mounts) > limits.MOUNT_LIST_MAX:
                self._mounts.popitem(last=False)

    def forget(self, host: str, path: bytes | None = None) -> None:
        """`host` says that it has unmounted `path`, or everything."""
        with self._lock:
            for mount in [(h, p) for h, p in self._mounts if h == host and path in (None, p)]:
                del self._mounts[mount]

    def mounts(self) -> list[tuple[str, bytes]]:
        """Who has mounted what, as far as clients have said, the last one last."""
        with self._lock:
            return list(self._mounts)

    def exported(self) -> list[tuple[bytes, list[str]]]:
        """What is exported, and to whom, in the words of the exports file."""
        return self._exports.table.listing()


# The procedures that all versions have -----------------------------------------------------


def dump(call: Call[Never], args: None) -> mountlist:
    """DUMP: return mount entries."""
    host: Mountd = call.host
    return mountlist([mountbody(client.encode(), path) for client, path in host.mounts()])


def umnt(call: Call[Never], args: dirpath) -> None:
    """UMNT: remove mount entry."""
    host: Mountd = call.host
    host.forget(call.peer.address, args)


def umntall(call: Call[Never], args: None) -> None:
    """UMNTALL: remove all mount entries of the caller."""
    host: Mountd = call.host
    host.forget(call.peer.address)


def export(call: Call[Never], args: None) -> exports:
    """EXPORT: return export list."""
    host: Mountd = call.host
    return exports([exportnode(path, _groups(clients)) for path, clients in host.exported()])


def _groups(clients: list[str]) -> list[groupnode]:
    """The clients of one path. Names that are too long for the protocol are cut: they are only
    shown to people."""
    return [groupnode(os.fsencode(client)[: protocol.MNTNAMLEN]) for client in clients]


def _program(version: int, *more: tuple[int, Callable[..., Any]]) -> Program:
    program = Program(
        protocol.MOUNT_PROGRAM, version, "mount", failures=(VfsError,), status=status_of
    )
    common: tuple[tuple[int, Callable[..., Any]], ...]
    common = ((2, dump), (3, umnt), (4, umntall), (5, export))
    for number, procedure in (*common, *more):
        program.procedure(number)(procedure)
    return program


# Versions 1 and 2 --------------------------------------------------------------------------


def mnt1(call: Call[None], args: dirpath) -> fhstatus_ok:
    """MNT: add mount entry. A handle has 32 bytes here, so a shorter one is filled up."""
    host: Mountd = call.host
    handle, _ = host.mount(args, call.peer)
    if len(handle) > protocol.FHSIZE:
        raise VfsError(Code.NOTSUPP, "the handle is too long for this version")
    return fhstatus_ok(handle.ljust(protocol.FHSIZE, b"\0"))


def pathconf(call: Call[Never], args: dirpath) -> ppathcnf:
    """PATHCONF (version 2): POSIX information. What depends on a terminal or a pipe is as on
    Linux."""
    host: Mountd = call.host
    try:
        its = host.look(args, call.peer).filesystem.limits
    except VfsError:
        return ppathcnf(0, 0, 0, 0, 0, 0, 0, 0, protocol.PC_ERROR, 0)
    return ppathcnf(
        pc_link_max=min(its.link_count_max, 0x7FFF_FFFF),
        pc_max_canon=255,
        pc_max_input=255,
        pc_name_max=its.name_bytes_max,
        pc_path_max=limits.PATH_BYTES_MAX,
        pc_pipe_buf=4096,
        pc_vdisable=0,
        pc_xxx=0,
        pc_mask=protocol.PC_CHOWN_RESTRICTED | protocol.PC_NO_TRUNC,
        pc_mask_more=0,
    )


# Version 3 ---------------------------------------------------------------------------------


def mnt(call: Call[None], args: dirpath) -> mountres3_ok:
    """I.4.1 MNT: add mount entry."""
    host: Mountd = call.host
    handle, how = host.mount(args, call.peer)
    # Without a flavor that they can use, BSD clients give up: never an empty list, nor only NONE
    # where SYS is good, too.
    return mountres3_ok(handle, list(how.options.flavors))


_EXPORTALL: Final = (6, export)
mount1: Final = _program(protocol.MOUNT_V1, (1, mnt1), _EXPORTALL)
mount2: Final = _program(protocol.MOUNT_V2, (1, mnt1), _EXPORTALL, (7, pathconf))
mount3: Final = _program(protocol.MOUNT_V3, (1, mnt))
