"""Short ways to say what a test of nfsd expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    diropargs3,
    fattr3,
    nfsstat3,
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
