"""Short ways to say what a test of nfsd expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from appliance.nfsd.v3.protocol import (
    COMMIT3args,
    CREATE3args,
    Exclusive,
    Guarded,
    LINK3args,
    MKDIR3args,
    MKNOD3args,
    REMOVE3args,
    RENAME3args,
    RMDIR3args,
    SETATTR3args,
    Socket,
    SYMLINK3args,
    Unchecked,
    WRITE3args,
    diropargs3,
    fattr3,
    nfsstat3,
    sattr3,
    stable_how,
    symlinkdata3,
    wcc_attr,
    wcc_data,
)
from tests.sim.nfs_client import Refused


class Expected:
    """What a `refused` block caught: the body that came with the status."""

    body: Any = None


@contextmanager
def refused(status: str) -> Iterator[Expected]:
    """The call inside fails with NFS3ERR_<status>."""
    expected = Expected()
    with pytest.raises(Refused) as caught:
        yield expected
    assert caught.value.status is nfsstat3[f"NFS3ERR_{status}"]
    expected.body = caught.value.body


def at(directory: bytes, name: bytes) -> diropargs3:
    return diropargs3(directory, name)


def wcc_of(before: fattr3, after: fattr3) -> wcc_data:
    """What weak cache consistency data says of a change between these."""
    return wcc_data(wcc_attr(before.size, before.mtime, before.ctime), after)


Change = tuple[Callable[[bytes, bytes], Any], set[str]]

CHANGES: Final[dict[str, Change]] = {
    "SETATTR": (lambda root, file: SETATTR3args(file, sattr3(mode=0o600)), {"file"}),
    "CREATE": (lambda root, file: CREATE3args(at(root, b"n"), Guarded(sattr3())), {"root", "n"}),
    "CREATE anew": (
        lambda root, file: CREATE3args(at(root, b"file"), Unchecked(sattr3(size=0))),
        {"root", "file"},
    ),
    "CREATE exclusive": (
        lambda root, file: CREATE3args(at(root, b"n"), Exclusive(b"verifier")),
        {"root", "n"},
    ),
    "MKDIR": (lambda root, file: MKDIR3args(at(root, b"n"), sattr3()), {"root", "n"}),
    "SYMLINK": (
        lambda root, file: SYMLINK3args(at(root, b"n"), symlinkdata3(sattr3(), b"text")),
        {"root", "n"},
    ),
    "MKNOD": (lambda root, file: MKNOD3args(at(root, b"n"), Socket(sattr3())), {"root", "n"}),
    "REMOVE": (lambda root, file: REMOVE3args(at(root, b"file")), {"root"}),
    "RMDIR": (lambda root, file: RMDIR3args(at(root, b"below")), {"root"}),
    "RENAME": (
        lambda root, file: RENAME3args(at(root, b"file"), at(root, b"n")),
        {"root"},
    ),
    "LINK": (lambda root, file: LINK3args(file, at(root, b"n")), {"root", "file"}),
    "WRITE FILE_SYNC": (
        lambda root, file: WRITE3args(file, 0, 1, stable_how.FILE_SYNC, [b"x"]),
        {"file"},
    ),
    "WRITE DATA_SYNC": (
        lambda root, file: WRITE3args(file, 0, 1, stable_how.DATA_SYNC, [b"x"]),
        {"file"},
    ),
    "WRITE UNSTABLE": (
        lambda root, file: WRITE3args(file, 0, 1, stable_how.UNSTABLE, [b"x"]),
        set(),
    ),
    "COMMIT": (lambda root, file: COMMIT3args(file, 0, 0), {"file"}),
}
"""Every call that changes something, made of a directory and a file: in the directory is the file,
named "file", and an empty directory, "below". And what has to be durable before it is answered ("n"
is what was made)."""
