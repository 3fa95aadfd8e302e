"""POSIX access control lists: the draft standard 1003.1e, as Linux keeps it (acl(5)).

Beside the three classes of the mode bits, an Acl names users and groups. Those and the owning group
are the *group class*: none of them gets more than the mask gives. Of a file with a mask, the group
bits of the mode *are* the mask, so that programs which know only modes neither see nor set more
than there is. The owner's and the others' bits are the same in both, always.

A directory may have a second list, its default: what is created in it inherits that, instead of
what a umask would do.

Bits are those of access.py: 4 read, 2 write, 1 execute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance import limits
from appliance.vfs.errors import Code, VfsError

if TYPE_CHECKING:
    from appliance.vfs.access import Credential

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
"""What an entry is for: the owner, a user, the owning group, a group, the mask, everybody else."""

NO_ID: Final = 0xFFFF_FFFF
"""The id of an entry that is for no user or group in particular."""

_ALL: Final = 7
_PERMISSIONS: Final = 0o777
_VERSION: Final = struct.Struct("<I")
_XATTR_VERSION: Final = 2
_XATTR_ENTRY: Final = struct.Struct("<HHI")

Named = tuple[tuple[int, int], ...]
"""Users or groups: id and rights of each. Of two for one user, the first counts."""


class AclEntry(NamedTuple):
    """One entry, as lists are stored and sent."""

    tag: int
    rights: int
    id: int = NO_ID


@dataclass(frozen=True, slots=True)
class Acl:
    """One list: access or default. Whoever is named needs a mask."""

    owner: int
    group: int
    other: int
    mask: int | None = None
    users: Named = ()
    groups: Named = ()

    @property
    def is_minimal(self) -> bool:
        """Whether mode bits say the same."""
        return self.mask is None

    @property
    def mode(self) -> int:
        """The nine bits that a mode shows of it."""
        group_class = self.group if self.mask is None else self.mask
        return self.owner << 6 | group_class << 3 | self.other

    def permits(self, credential: Credential, gid: int, wanted: int) -> bool:
        """Whether somebody who is neither the owner nor the superuser has all of `wanted` on a file
        of group `gid`.

        One entry has to give all of it: of two groups that give a half each, he has neither.
        """
        mask = _ALL if self.mask is None else self.mask
        uid = credential.uid
        for user, rights in self.users:
            if user == uid:
                return rights & mask & wanted == wanted
        is_member = False
        for group, rights in ((gid, self.group), *self.groups):
            if credential.in_group(group):
                if rights & wanted == wanted:
                    return mask & wanted == wanted
                is_member = True
        return not is_member and self.other & wanted == wanted

    def rights(self, credential: Credential, gid: int) -> int:
        """Which rights he has, each for itself: those that `permits` grants one by one."""
        mask = _ALL if self.mask is None else self.mask
        uid = credential.uid
        for user, rights in self.users:
            if user == uid:
                return rights & mask
        is_member, granted = False, 0
        for group, rights in ((gid, self.group), *self.groups):
            if credential.in_group(group):
                is_member = True
                granted |= rights
        return granted & mask if is_member else self.other

    def with_mode(self, mode: int) -> Acl:
        """It after a chmod to `mode`."""
        owner, group_class, other = _classes(mode)
        if self.mask is None:
            return replace(self, owner=owner, group=group_class, other=other)
        return replace(self, owner=owner, mask=group_class, other=other)

    def inherited(self, mode: int) -> tuple[Acl, int]:
        """What a file gets that is created with `mode` where this is the default: its own list, and
        its mode. Neither gives more than both the default and `mode` do."""
        both = self.with_mode(self.mode & mode)
        return both, mode & ~_PERMISSIONS | both.mode

    # As it is stored and sent.

    def entries(self) -> Iterator[AclEntry]:
        """All entries, in the order in which they have to stand."""
        yield AclEntry(USER_OBJ, self.owner)
        for user, rights in self.users:
            yield AclEntry(USER, rights, user)
        yield AclEntry(GROUP_OBJ, self.group)
        for group, rights in self.groups:
            yield AclEntry(GROUP, rights, group)
        if self.mask is not None:
            yield AclEntry(MASK, self.mask)
        yield AclEntry(OTHER, self.other)

    @classmethod
    def of(cls, entries: Iterable[AclEntry]) -> Acl:
        """The list of these entries. INVAL: they are not one each of what there must be one of, not
        in order, or somebody is named without a mask."""
        single: dict[int, int] = {}
        named: dict[int, list[tuple[int, int]]] = {USER: [], GROUP: []}
        before = count = 0
        for tag, rights, id in entries:
            count += 1
            if rights & ~_ALL or tag < before or tag in single or (tag in named and id == NO_ID):
                raise VfsError(Code.INVAL, f"entry {tag:#x} of an ACL")
            if tag in named:
                named[tag].append((id, rights))
            else:
                single[tag] = rights
            before = tag
        mask = single.pop(MASK, None)
        if single.keys() != _NEEDED or (mask is None and (named[USER] or named[GROUP])):
            raise VfsError(Code.INVAL, "an ACL without an entry that it needs")
        if count > limits.ACL_ENTRIES_MAX:
            raise VfsError(Code.INVAL, f"an ACL of {count} entries")
        users, groups = tuple(named[USER]), tuple(named[GROUP])
        return cls(single[USER_OBJ], single[GROUP_OBJ], single[OTHER], mask, users, groups)

    def to_xattr(self) -> bytes:
        """The value of system.posix_acl_access or _default that says this."""
        entries = b"".join(_XATTR_ENTRY.pack(*entry) for entry in self.entries())
        return _VERSION.pack(_XATTR_VERSION) + entries

    @classmethod
    def from_xattr(cls, value: bytes) -> Acl | None:
        """What such a value says; None: that there is no list. INVAL, NOTSUPP."""
        if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _XATTR_ENTRY.size:
            raise VfsError(Code.INVAL, f"an ACL of {len(value)} bytes")
        (version,) = _VERSION.unpack_from(value)
        if version != _XATTR_VERSION:
            raise VfsError(Code.NOTSUPP, f"an ACL of version {version}")
        entries = value[_VERSION.size :]
        return cls.of(map(AclEntry._make, _XATTR_ENTRY.iter_unpack(entries))) if entries else None


CLOSED: Final = Acl(0, 0, 0, mask=0)
"""Taken for a list that cannot be read: nobody must get more than it would have given."""

_NEEDED: Final = {USER_OBJ, GROUP_OBJ, OTHER}


def _classes(mode: int) -> tuple[int, int, int]:
    return mode >> 6 & 7, mode >> 3 & 7, mode & 7
