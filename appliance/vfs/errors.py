"""Why a file system said no: one exception, one enumeration.

The names are those of errno(3) without the E. Every protocol maps them once
(nfsd/v3/attributes.py).
"""

from __future__ import annotations

import errno
from enum import Enum


class Code(Enum):
    """The reasons; the value is the errno(3) number."""

    PERM = errno.EPERM
    NOENT = errno.ENOENT
    IO = errno.EIO
    NXIO = errno.ENXIO
    ACCES = errno.EACCES
    EXIST = errno.EEXIST
    XDEV = errno.EXDEV
    NODEV = errno.ENODEV
    NOTDIR = errno.ENOTDIR
    ISDIR = errno.EISDIR
    INVAL = errno.EINVAL
    FBIG = errno.EFBIG
    NOSPC = errno.ENOSPC
    ROFS = errno.EROFS
    MLINK = errno.EMLINK
    NAMETOOLONG = errno.ENAMETOOLONG
    NOTEMPTY = errno.ENOTEMPTY
    DQUOT = errno.EDQUOT
    STALE = errno.ESTALE
    NOTSUPP = errno.EOPNOTSUPP
    BADHANDLE = -1
    """These bytes were never a handle of ours (a STALE one was)."""


_BY_ERRNO = {code.value: code for code in Code} | {
    errno.E2BIG: Code.NOSPC,
    errno.ELOOP: Code.INVAL,
    errno.ENODATA: Code.NOENT,
    errno.ENOSYS: Code.NOTSUPP,
    errno.ETXTBSY: Code.ACCES,
    errno.EBUSY: Code.ACCES,
    errno.EUCLEAN: Code.IO,
}


class VfsError(Exception):
    """A file system refuses; `code` says why, `detail` may say it in words (for the log)."""

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code.name}: {self.detail}" if self.detail else self.code.name

    @classmethod
    def from_os(cls, error: OSError) -> VfsError:
        """What the host's kernel said, in our words; a reason that we do not know is IO."""
        return cls(_BY_ERRNO.get(error.errno or 0, Code.IO), error.strerror or "")
