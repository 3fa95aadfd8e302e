"""Who may do what: POSIX mode bits and lists, the identity of a caller, and squashing.

A credential is what the server believes of a caller after squashing. User id 0 is the superuser, as
for Linux's nfsd: it passes every check but one (executing a file that nobody may execute).
Everybody else falls into exactly one class of a file (owner, group, others), and only the bits of
that class count: an owner without permission is refused even where others are not. Where a
file has an access control list (acl.py), that decides for all but the owner.

What chattr(1) has made immutable or append-only is so for the superuser, too, and the answer is
PERM as in Linux. Only names can be appended over NFS: a WRITE may be somebody's second one to the
same place, so there is none to an append-only file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.vfs.acl import NO_ID
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import APPEND_ONLY, IMMUTABLE, Attributes, FileType

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1
"""The three rights; of a directory EXECUTE is the right to search it."""

SET_UID: Final = 0o4000
SET_GID: Final = 0o2000
STICKY: Final = 0o1000
GROUP_EXECUTE: Final = 0o010
GROUP_CLASS: Final = 0o070

NOBODY: Final = 65534
"""The user and group that squashed callers become unless the export says otherwise."""

_DIRECTORY: Final = FileType.DIRECTORY
_ANYBODY_EXECUTES: Final = 0o111


@dataclass(frozen=True, slots=True)
class Credential:
    """A caller: user id, group id and the supplementary groups."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    @property
    def is_superuser(self) -> bool:
        return self.uid == 0

    def in_group(self, gid: int) -> bool:
        """Whether `gid` is one of the caller's groups."""
        return gid == self.gid or gid in self.groups


@dataclass(frozen=True, slots=True)
class SquashRules:
    """Whom an export takes for somebody else, and for whom. The defaults are those of
    exports(5)."""

    root_squash: bool = True
    all_squash: bool = False
    anonuid: int = NOBODY
    anongid: int = NOBODY

    @property
    def anonymous(self) -> Credential:
        """Who a caller without an identity (AUTH_NONE) is."""
        return Credential(self.anonuid, self.anongid)


def squash(credential: Credential, rules: SquashRules) -> Credential:
    """The identity that `credential` has under `rules`.

    The id -1 is nobody's, and becomes the anonymous one under any rules, as on Linux: chown(2)
    takes it for "as it is", so what its bearer makes in a directory of the host would stay root's.
    """
    if rules.all_squash:
        return rules.anonymous
    uid, gid, groups = credential.uid, credential.gid, credential.groups
    if NO_ID in (uid, gid):
        uid = rules.anonuid if uid == NO_ID else uid
        gid = rules.anongid if gid == NO_ID else gid
        credential = Credential(uid, gid, groups)
    if not rules.root_squash:
        return credential
    if uid != 0 and gid != 0 and 0 not in groups:
        return credential
    return Credential(
        uid or rules.anonuid,
        gid or rules.anongid,
        frozenset(group or rules.anongid for group in groups),
    )


def permits(credential: Credential, attributes: Attributes, wanted: int) -> bool:
    """Whether a caller has all of the `wanted` rights at once."""
    acl = attributes.acl
    if acl is not None and _list_decides(credential, attributes):
        return acl.permits(credential, attributes.gid, wanted)
    return rights(credential, attributes) & wanted == wanted


def rights(credential: Credential, attributes: Attributes) -> int:
    """Which of READ, WRITE and EXECUTE a caller has, each for itself: a list may give two of them
    and yet not both at once."""
    mode = attributes.mode
    uid = credential.uid
    if uid == 0:
        if mode & _ANYBODY_EXECUTES or attributes.type is _DIRECTORY:
            return READ | WRITE | EXECUTE
        return READ | WRITE
    if uid == attributes.uid:
        return mode >> 6 & 7
    acl = attributes.acl
    if acl is not None and _list_decides(credential, attributes):
        return acl.rights(credential, attributes.gid)
    gid = attributes.gid
    if gid == credential.gid or gid in credential.groups:
        return mode >> 3 & 7
    return mode & 7


def _list_decides(credential: Credential, attributes: Attributes) -> bool:
    """Whether, where there is a list, it is asked.

    Linux does not look into one whose mask is empty: who is named there falls under the bits of the
    group or of the others. We follow it.
    """
    is_special = credential.uid in (0, attributes.uid)
    return not is_special and bool(attributes.mode & GROUP_CLASS)


def owns(credential: Credential, attributes: Attributes) -> bool:
    """Whether the caller may do what is the owner's alone."""
    return credential.uid in (0, attributes.uid)


def check_not_immutable(attributes: Attributes) -> None:
    """The rule for what is to be written, or to get or lose a name. PERM."""
    if attributes.flags & IMMUTABLE:
        raise VfsError(Code.PERM, "immutable")


def check_not_fixed(attributes: Attributes) -> None:
    """The rule for what is more than to append. PERM."""
    if attributes.flags:
        raise VfsError(Code.PERM, "immutable or append-only")


def may_unlink(credential: Credential, directory: Attributes, entry: Attributes) -> bool:
    """The rule of the sticky bit: there, an entry is removed by its owner or the directory's. What
    is immutable or append-only keeps its names, and an append-only directory all of its entries."""
    if entry.flags or directory.flags & APPEND_ONLY:
        return False
    return not directory.mode & STICKY or owns(credential, entry) or credential.uid == directory.uid


def without_set_id(mode: int, *, in_group: bool) -> int:
    """`mode` after a change of owner or content: it must not run with its owner's rights any more.

    Set-group-id without group execution is left alone if who changes it is in the file's group: it
    marks mandatory locking, not a program.
    """
    if mode & GROUP_EXECUTE or not in_group:
        mode &= ~SET_GID
    return mode & ~SET_UID
