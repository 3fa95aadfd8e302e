"""File handles as clients hold them: which export, which file system, which node.

    [version 1][export id 4][fsid 8][node.handle, 1 to 43]      (big-endian)

Nothing in it depends on this process: it is as good after a restart, after a rename, and while
several file systems are served. The export is in it because rights belong to exports, and one node
can be reached through two of them.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

from appliance import limits
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Node

VERSION: Final = 1

_HEAD: Final = struct.Struct(">BIQ")
_HEAD_BYTES: Final = _HEAD.size

assert limits.HANDLE_BYTES_MAX - limits.NODE_HANDLE_BYTES_MAX == _HEAD_BYTES


class Handle(NamedTuple):
    """A handle taken apart."""

    export_id: int
    fsid: int
    node_handle: bytes


def export_id(path: bytes) -> int:
    """The number of the export of `path` ("/" or without a slash at the end)."""
    return zlib.crc32(path)


def encode(export: int, node: Node) -> bytes:
    """The handle under which clients of this export know `node`."""
    return _HEAD.pack(VERSION, export, node.filesystem.fsid) + node.handle


def decode(handle: bytes) -> Handle:
    """What `encode` put together. BADHANDLE for anything that it cannot have made."""
    if not _HEAD_BYTES < len(handle) <= limits.HANDLE_BYTES_MAX:
        raise VfsError(Code.BADHANDLE, "length")
    version, export, fsid = _HEAD.unpack_from(handle)
    if version != VERSION:
        raise VfsError(Code.BADHANDLE, "version")
    return Handle(export, fsid, bytes(handle[_HEAD_BYTES:]))
