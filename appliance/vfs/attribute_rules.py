"""SETATTR's rules: which attributes a caller may change, and what else changes with them.

The rules are those of chmod(2), chown(2), truncate(2) and utimensat(2) as Linux keeps them:

    mode     the owner; set-group-id is lost where the owner is not in the file's group; that of a
             symbolic link stays
    uid      the superuser; the owner may "change" it to what it is
    gid      the superuser; the owner, to a group that he is in
    size     who may write; the owner may whatever the mode says (he may have the file open)
    times    explicit ones: the owner; the present time: also who may write
    ACLs     the owner; a default one only of a directory, none of a symbolic link

What is immutable keeps them all; what is append-only keeps all but the present time as a time, and
its size but to grow.

Giving a file away, or changing its content, takes set-user-id and set-group-id from it; if a mode
comes with the new size, the owner has said what it shall be. A new mode goes into the list, and a
new list into the mode; one that says no more than a mode is not kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from appliance.vfs import access
from appliance.vfs.access import Credential
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Attributes, FileType, SetAcl, SetAttributes, SetTime

_NOTHING: Final = SetAttributes()
_MODE_BITS: Final = 0o7777
_PERMISSION_BITS: Final = 0o0777


def permitted_changes(
    credential: Credential, before: Attributes, changes: SetAttributes, now_ns: int
) -> SetAttributes:
    """What to change in fact if `credential` asks for `changes`: with the present time filled in
    and the bits cleared that must go. PERM, ACCES, INVAL, ISDIR, NOTSUPP; nothing to do gives no
    changes."""
    if changes == _NOTHING:
        return changes
    _check_size(before, changes)
    if before.flags:
        _check_flags(before, changes)
    changes = _heard(before, changes)
    _check_acls(before, changes)
    _check_owner(credential, before, changes)
    _check_ownership(credential, before, changes)
    _check_writer(credential, before, changes)
    mode = _mode_after(credential, before, changes)
    return replace(
        changes,
        mode=mode,
        acl=_acl_after(before, changes, mode),
        default_acl=_unless_gone(changes.default_acl, before.default_acl),
        atime_ns=now_ns if changes.atime_ns is SetTime.NOW else changes.atime_ns,
        mtime_ns=now_ns if changes.mtime_ns is SetTime.NOW else changes.mtime_ns,
    )


def _heard(before: Attributes, changes: SetAttributes) -> SetAttributes:
    """`changes` without what is nothing to such a node: the mode of a symbolic link, which nobody
    asks for, and the end of a default list where there can be none."""
    if before.type is FileType.SYMLINK:
        return replace(changes, mode=None) if changes.mode is not None else changes
    if changes.default_acl is SetAcl.NONE and before.type is not FileType.DIRECTORY:
        return replace(changes, default_acl=None)
    return changes


def _check_flags(before: Attributes, changes: SetAttributes) -> None:
    access.check_not_immutable(before)
    gives_away = changes.uid is not None or changes.gid is not None
    if gives_away or _is_for_the_owner(changes):
        access.check_not_fixed(before)


def _is_for_the_owner(changes: SetAttributes) -> bool:
    return (
        changes.mode is not None
        or changes.acl is not None
        or changes.default_acl is not None
        or isinstance(changes.atime_ns, int)
        or isinstance(changes.mtime_ns, int)
    )


def _check_owner(credential: Credential, before: Attributes, changes: SetAttributes) -> None:
    if _is_for_the_owner(changes) and not access.owns(credential, before):
        raise VfsError(Code.PERM, "not the owner")


def _check_ownership(credential: Credential, before: Attributes, changes: SetAttributes) -> None:
    if credential.is_superuser:
        return
    owner = credential.uid == before.uid
    uid, gid = changes.uid, changes.gid
    if uid is not None and not (owner and uid == before.uid):
        raise VfsError(Code.PERM, "chown")
    if gid is not None and not (owner and (gid == before.gid or credential.in_group(gid))):
        raise VfsError(Code.PERM, "chgrp")


def _check_size(before: Attributes, changes: SetAttributes) -> None:
    if changes.size is None or before.type is FileType.REGULAR:
        return
    raise VfsError(Code.ISDIR if before.type is FileType.DIRECTORY else Code.INVAL, "size")


def _check_acls(before: Attributes, changes: SetAttributes) -> None:
    if before.type is FileType.SYMLINK and (changes.acl or changes.default_acl):
        raise VfsError(Code.NOTSUPP, "ACL of a symbolic link")
    if isinstance(changes.default_acl, Acl) and before.type is not FileType.DIRECTORY:
        raise VfsError(Code.ACCES, "default ACL of what is no directory")


def _check_writer(credential: Credential, before: Attributes, changes: SetAttributes) -> None:
    writes = (
        changes.size is not None
        or changes.atime_ns is SetTime.NOW
        or changes.mtime_ns is SetTime.NOW
    )
    owner = access.owns(credential, before)
    if writes and not owner and not access.permits(credential, before, access.WRITE):
        raise VfsError(Code.ACCES)
    if changes.size is not None and changes.size < before.size:
        access.check_not_fixed(before)


def _mode_after(credential: Credential, before: Attributes, changes: SetAttributes) -> int | None:
    """The mode to set: the one asked for, or one that other changes bring about, or None."""
    mode = before.mode if changes.mode is None else changes.mode & _MODE_BITS
    privileged = credential.is_superuser
    is_directory = before.type is FileType.DIRECTORY
    if isinstance(changes.acl, Acl):
        mode = mode & ~_PERMISSION_BITS | changes.acl.mode
    if changes.mode is not None or isinstance(changes.acl, Acl):
        gid = before.gid if changes.gid is None else changes.gid
        if not privileged and not credential.in_group(gid):
            mode &= ~access.SET_GID
    gives_away = changes.uid is not None or changes.gid is not None
    rewrites = changes.size is not None and not privileged and changes.mode is None
    if (gives_away and not is_directory) or rewrites:
        in_group = privileged or credential.in_group(before.gid)
        mode = access.without_set_id(mode, in_group=in_group or changes.mode is not None)
    return None if changes.mode is None and mode == before.mode else mode


def _acl_after(before: Attributes, changes: SetAttributes, mode: int | None) -> Acl | SetAcl | None:
    """The access list to set, if any: the one asked for, or what the mode makes of the old one."""
    acl = changes.acl
    if isinstance(acl, Acl):
        return SetAcl.NONE if acl.is_minimal else acl
    if acl is None and mode is not None and before.acl is not None:
        changed = before.acl.with_mode(mode)
        return None if changed == before.acl else changed
    return _unless_gone(acl, before.acl)


def _unless_gone(wish: Acl | SetAcl | None, now: Acl | None) -> Acl | SetAcl | None:
    """`wish`; to take away a list that there is not is no change."""
    return None if wish is SetAcl.NONE and now is None else wish
