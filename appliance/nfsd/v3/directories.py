"""READDIR and READDIRPLUS (RFC 1813 sections 3.3.16, 3.3.17): entries, up to what the client takes.

`count` and `maxcount` bound the whole ...resok structure, every length word and all padding
included; `dircount` bounds what READDIRPLUS says of file ids, names and cookies. As many entries
are sent as fit, and `eof` is true exactly when the last one is among them. A cookie is one of the
backend's and is never refused, so the verifier has nothing to say and is always the same.

Entries are sent as they were encoded the first time (`Entry.wire`, `Attributes.wire`), since a
client that lists a directory of 100,000 names makes us do it 100,000 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, Final

from appliance.nfsd.v3.attributes import ABSENT, FATTR3_BYTES, PRESENT, encoded, post_op
from appliance.nfsd.v3.call import NfsCall, NfsError
from appliance.nfsd.v3.protocol import NFS3_COOKIEVERFSIZE, nfsstat3
from appliance.oncrpc.auth import AuthError
from appliance.oncrpc.xdr import Encoded
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Entry, Node

COOKIEVERF: Final = bytes(NFS3_COOKIEVERFSIZE)

_BATCH: Final = 256  # entries asked of a backend at a time
_COOKIE_MAX: Final = (1 << 63) - 1
_ENTRY_HEAD: Final = Struct(">IQI")
_COOKIE: Final = Struct(">Q")
_LENGTH: Final = Struct(">I")
_NOT_EOF: Final = ABSENT + ABSENT  # the list ends, and there is more
_EOF: Final = ABSENT + PRESENT
_WORD: Final = 4

_Piece = tuple[bytes, ...]


def fixed_bytes(dir_attributes: Encoded | None) -> int:
    """How much of a reply is not its list: the attributes of the directory and the verifier."""
    return _WORD + len(dir_attributes or b"") + len(COOKIEVERF)


def dirlist3(call: NfsCall[Any], directory: Node, cookie: int, room: int) -> Encoded:
    """A dirlist3 of at most `room` bytes: the entries after `cookie`. TOOSMALL."""
    pieces: list[bytes] = []
    room -= len(_EOF)
    for entries in _batches(call, directory, cookie, room):
        for entry in entries:
            head = entry.wire or _head(entry)
            room -= len(head)
            if room < 0:
                return _cut(pieces)
            pieces.append(head)
    return _whole(pieces, room)


def dirlistplus3(
    call: NfsCall[Any], directory: Node, cookie: int, dircount: int, room: int
) -> Encoded:
    """A dirlistplus3 of at most `room` bytes, `dircount` of them about names: the entries after
    `cookie`. TOOSMALL."""
    pieces: list[bytes] = []
    tails = _Tails(call)
    room -= len(_EOF)
    for entries in _batches(call, directory, cookie, room):
        nodes = call.entry_nodes(directory, entries)
        for entry, node in zip(entries, nodes, strict=True):
            head = entry.wire or _head(entry)
            tail, size = tails.of(node)
            dircount -= len(head) - _WORD
            room -= len(head) + size
            if room < 0 or dircount < 0:
                return _cut(pieces)
            pieces.append(head)
            pieces += tail
    return _whole(pieces, room)


def _batches(call: NfsCall[Any], directory: Node, cookie: int, room: int) -> Iterator[list[Entry]]:
    """The entries after `cookie`, some at a time: the backend is not asked for more than could
    fit."""
    limit = max(1, min(_BATCH, room // _ENTRY_HEAD.size + 1))
    cookie = min(cookie, _COOKIE_MAX)
    while True:
        entries = call.user.read_directory(directory, cookie, limit)
        yield entries
        if len(entries) < limit:
            return
        cookie = entries[-1].cookie


def _cut(pieces: list[bytes]) -> Encoded:
    """The list, if the next entry does not fit."""
    if not pieces:
        raise NfsError(nfsstat3.NFS3ERR_TOOSMALL)
    return b"".join((*pieces, _NOT_EOF))


def _whole(pieces: list[bytes], room: int) -> Encoded:
    """The list, if there is nothing more."""
    if room < 0:
        raise NfsError(nfsstat3.NFS3ERR_TOOSMALL)
    return b"".join((*pieces, _EOF))


def _head(entry: Entry) -> bytes:
    """What READDIR says of an entry, and READDIRPLUS begins with."""
    name = entry.name
    entry.wire = b"".join(
        (
            _ENTRY_HEAD.pack(1, entry.fileid, len(name)),
            name,
            bytes(-len(name) % _WORD),
            _COOKIE.pack(entry.cookie),
        )
    )
    return entry.wire


class _Tails:
    """What READDIRPLUS says of the nodes of entries: name_attributes and name_handle."""

    def __init__(self, call: NfsCall[Any]) -> None:
        self._call = call
        self._filesystem = call.grant.filesystem
        self._frames: dict[int, tuple[bytes, bytes, int]] = {}

    def of(self, node: Node | None) -> tuple[_Piece, int]:
        """The pieces of the encoding, and how long they are together."""
        if node is None:
            return _NOTHING
        if node.filesystem is not self._filesystem:
            return self._elsewhere(node)
        try:
            attributes = node.attributes()
        except VfsError:
            return _NOTHING
        handle = node.handle
        prefix, padding, size = self._frames.get(len(handle)) or self._frame(len(handle))
        wire = attributes.wire or encoded(attributes, self._filesystem.fsid)
        return (PRESENT, wire, prefix, handle, padding), size

    def _frame(self, length: int) -> tuple[bytes, bytes, int]:
        """What comes before and after a node's handle of this length, and how long the whole is."""
        head = self._call.grant.head
        total = len(head) + length
        prefix, padding = PRESENT + _LENGTH.pack(total) + head, bytes(-total % _WORD)
        size = _WORD + FATTR3_BYTES + len(prefix) + length + len(padding)
        self._frames[length] = prefix, padding, size
        return self._frames[length]

    def _elsewhere(self, node: Node) -> tuple[_Piece, int]:
        """Of the root of a file system that is mounted here."""
        try:
            handle = self._call.handle(node)
        except (VfsError, AuthError):
            return _NOTHING
        attributes = post_op(node)
        piece = (
            PRESENT + attributes if attributes else ABSENT,
            PRESENT + _LENGTH.pack(len(handle)) + handle + bytes(-len(handle) % _WORD),
        )
        return piece, sum(map(len, piece))


_NOTHING: Final[tuple[_Piece, int]] = ((ABSENT, ABSENT), len(ABSENT) * 2)
