"""What the VFS says in the words of RFC 1813, and what sattr3 asks for in the words of the VFS.

A node's attributes are encoded once for every change of them: the 84 bytes of a fattr3 are kept in
`Attributes.wire`, and a wcc_attr is cut out of them. They are given to the encoder as they are.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from appliance.nfsd.v3.protocol import (
    DontChange,
    SetToClientTime,
    SetToServerTime,
    ftype3,
    nfsstat3,
    nfstime3,
    sattr3,
    set_time,
)
from appliance.oncrpc.xdr import Encoded
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Attributes, FileType, Node, SetAttributes, SetTime

STATUS: Final = {code: nfsstat3[f"NFS3ERR_{code.name}"] for code in Code}
"""Section 2.6 has the names that the VFS has, so a reason that is new there cannot be forgotten."""

_FTYPE: Final = {
    FileType.REGULAR: ftype3.NF3REG,
    FileType.DIRECTORY: ftype3.NF3DIR,
    FileType.BLOCK_DEVICE: ftype3.NF3BLK,
    FileType.CHARACTER_DEVICE: ftype3.NF3CHR,
    FileType.SYMLINK: ftype3.NF3LNK,
    FileType.SOCKET: ftype3.NF3SOCK,
    FileType.FIFO: ftype3.NF3FIFO,
}

_FATTR3: Final = Struct(">5I2Q2I2Q6I")
FATTR3_BYTES: Final = _FATTR3.size
_SIZE: Final = slice(20, 28)
_MTIME_CTIME: Final = slice(68, 84)
_CTIME: Final = slice(76, 84)

ABSENT: Final = bytes(4)
PRESENT: Final = b"\0\0\0\1"
NO_WCC: Final = ABSENT + ABSENT
"""A wcc_data that tells nothing."""

_SECOND_NS: Final = 1_000_000_000
_SECONDS_MAX: Final = 0xFFFFFFFF
_UNCHANGED_ID: Final = 0xFFFFFFFF
"""As in chown(2), -1 leaves an owner as it is: Linux clients send it for ids they cannot map."""


def encoded(attributes: Attributes, fsid: int) -> Encoded:
    """The fattr3 of these attributes; the file system is that of the node they belong to."""
    wire = attributes.wire
    if wire is None:
        wire = attributes.wire = _encode(attributes, fsid)
    return wire


def _encode(a: Attributes, fsid: int) -> bytes:
    return _FATTR3.pack(
        _FTYPE[a.type],
        a.mode,
        a.nlink or 1,  # clients take 0 for "deleted", and drop a file that is still open
        a.uid,
        a.gid,
        a.size,
        a.used,
        *a.rdev,
        fsid,
        a.fileid,
        *_nfstime3(a.atime_ns),
        *_nfstime3(a.mtime_ns),
        *_nfstime3(a.ctime_ns),
    )


def _nfstime3(time_ns: int) -> tuple[int, int]:
    """Seconds and nanoseconds; what lies before 1970 or after 2106 becomes the nearest time that
    can be said."""
    seconds, nanoseconds = divmod(time_ns, _SECOND_NS)
    if seconds < 0:
        return 0, 0
    if seconds > _SECONDS_MAX:
        return _SECONDS_MAX, _SECOND_NS - 1
    return seconds, nanoseconds


def post_op(node: Node) -> Encoded | None:
    """A post_op_attr: the node's attributes now. Absent where it has none any more."""
    try:
        attributes = node.attributes()
    except VfsError:
        return None
    return attributes.wire or encoded(attributes, node.filesystem.fsid)


def wcc(before: Encoded | None, after: Encoded | None) -> Encoded:
    """A wcc_data made of two fattr3; its `before` is only right if nothing else came between."""
    pre = PRESENT + before[_SIZE] + before[_MTIME_CTIME] if before else ABSENT
    post = PRESENT + after if after else ABSENT
    return pre + post


def same_ctime(wire: Encoded, guard: nfstime3) -> bool:
    """Whether a sattrguard3 still holds."""
    seconds_ns = guard.seconds.to_bytes(4, "big") + guard.nseconds.to_bytes(4, "big")
    return wire[_CTIME] == seconds_ns


def changes(new: sattr3) -> SetAttributes:
    """What a sattr3 asks for. INVAL: a time that is none."""
    return SetAttributes(
        mode=None if new.mode is None else new.mode & 0o7777,
        uid=None if new.uid == _UNCHANGED_ID else new.uid,
        gid=None if new.gid == _UNCHANGED_ID else new.gid,
        size=new.size,
        atime_ns=_time(new.atime),
        mtime_ns=_time(new.mtime),
    )


def _time(new: set_time) -> int | SetTime | None:
    match new:
        case DontChange():
            return None
        case SetToServerTime():
            return SetTime.NOW
        case SetToClientTime(time):
            if time.nseconds >= _SECOND_NS:
                raise VfsError(Code.INVAL, "nseconds")
            return time.seconds * _SECOND_NS + time.nseconds
