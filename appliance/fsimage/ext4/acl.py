"""Access control lists as ext4 keeps them: version 1, in which entries that are for nobody in
particular have no id ("POSIX ACLs" are the attributes with the prefixes 2 and 3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from appliance import limits
from appliance.vfs.acl import GROUP, USER, Acl, AclEntry
from appliance.vfs.errors import Code, VfsError

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<I")
_SHORT: Final = struct.Struct("<HH")
_LONG: Final = struct.Struct("<HHI")


@lru_cache(maxsize=limits.ACLS_KEPT)
def decode(value: bytes) -> Acl | None:
    """The list in this value of an attribute; None: an empty one, which is none. INVAL."""
    if value[: _HEADER.size] != _HEADER.pack(_VERSION):
        raise VfsError(Code.INVAL, "an ACL that is not of version 1")
    return Acl.of(_entries(value)) if len(value) > _HEADER.size else None


def _entries(value: bytes) -> Iterator[AclEntry]:
    at = _HEADER.size
    while at < len(value):
        is_named = value[at] in (USER, GROUP)
        form = _LONG if is_named else _SHORT
        if at + form.size > len(value):
            raise VfsError(Code.INVAL, "an ACL that was cut off")
        yield AclEntry(*form.unpack_from(value, at))
        at += form.size


def encode(acl: Acl) -> bytes:
    """The value of an attribute that says this."""
    entries = (
        _LONG.pack(*entry) if entry.tag in (USER, GROUP) else _SHORT.pack(*entry[:2])
        for entry in acl.entries()
    )
    return _HEADER.pack(_VERSION) + b"".join(entries)
