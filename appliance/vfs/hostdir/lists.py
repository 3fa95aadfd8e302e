"""The access control lists of host files, which the host's kernel keeps as extended attributes.

That kernel does the rest by itself: a change of mode goes into the list, and what is created in a
directory gets what its default list says.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from appliance.vfs.acl import CLOSED, Acl
from appliance.vfs.errors import VfsError
from appliance.vfs.hostdir import syscalls
from appliance.vfs.hostdir.syscalls import Descriptor
from appliance.vfs.interface import SetAcl

_ACCESS: Final = "system.posix_acl_access"
_DEFAULT: Final = "system.posix_acl_default"


def are_kept(top: Descriptor) -> bool:
    """Whether the file system of this directory has lists."""
    try:
        os.getxattr(syscalls.path_of(top), _DEFAULT)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def read(path: Descriptor, *, is_directory: bool) -> tuple[Acl | None, Acl | None]:
    """The access list and the default list of what is not a symbolic link."""
    return _read(path, _ACCESS), _read(path, _DEFAULT) if is_directory else None


def _read(path: Descriptor, name: str) -> Acl | None:
    try:
        return Acl.from_xattr(os.getxattr(syscalls.path_of(path), name))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    except VfsError:  # too long, or with users who do not exist where this process lives
        return CLOSED


def change(path: Descriptor, acl: Acl | SetAcl | None, default: Acl | SetAcl | None) -> None:
    """Set those lists that are not None."""
    for name, wish in ((_ACCESS, acl), (_DEFAULT, default)):
        if isinstance(wish, Acl):
            os.setxattr(syscalls.path_of(path), name, wish.to_xattr())
        elif wish is SetAcl.NONE:
            _remove(path, name)


def _remove(path: Descriptor, name: str) -> None:
    try:
        os.removexattr(syscalls.path_of(path), name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
