"""What the tests of the file system layer share: a clock that is set by hand, file systems,
users."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Sequence

import pytest

from appliance.clock import SECOND, Instant
from appliance.limits import MiB
from appliance.vfs.access import Credential
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, Entry, Node, SetAttributes
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.user import User

ROOT = Credential(0, 0)
ALICE = Credential(1000, 100, frozenset({100, 50}))
BOB = Credential(1001, 101, frozenset({50}))
CAROL = Credential(1002, 102)
NOBODY_UID = 65534


class HandClock:
    """A clock that stands still until somebody moves it."""

    def __init__(self, wall: int = 1_000_000_000 * SECOND) -> None:
        self._wall = wall

    def now(self) -> Instant:
        return self._wall

    def wall(self) -> int:
        return self._wall

    def advance(self, nanoseconds: int) -> None:
        self._wall += nanoseconds


def memory(
    size: int = 64 * MiB, *, fsid: int = 7, clock: HandClock | None = None, nodes: int | None = None
) -> MemoryFileSystem:
    """A file system in memory whose root anybody may write."""
    filesystem = MemoryFileSystem(
        size,
        fsid=fsid,
        clock=clock or HandClock(),
        random=random.Random(fsid),
        node_count_max=nodes,
    )
    root_user = User(ROOT, clock=HandClock())
    root_user.set_attributes(filesystem.root(), mode(0o777))
    return filesystem


def mode(bits: int) -> SetAttributes:
    return SetAttributes(mode=bits)


def refused(code: Code, act: Callable[[], object]) -> None:
    """`act` fails for this reason."""
    with pytest.raises(VfsError) as caught:
        act()
    assert caught.value.code is code, caught.value


def text(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def content(node: Node) -> bytes:
    """Everything in a file."""
    buffers, end = node.read(0, node.attributes().size + 1)
    assert end
    return text(buffers)


def listing(node: Node, page: int = 100) -> list[Entry]:
    """All entries but "." and "..", asked for page by page."""
    found: list[Entry] = []
    cookie = 0
    while True:
        entries = node.entries(cookie, page)
        assert len(entries) <= page
        found += entries
        if len(entries) < page:
            return [entry for entry in found if entry.name not in (b".", b"..")]
        cookie = entries[-1].cookie


def names(node: Node, page: int = 100) -> list[bytes]:
    return [entry.name for entry in listing(node, page)]


def as_ordinary_user(act: Callable[[], None]) -> None:
    """Run `act` in a child process without any privilege."""

    def drop_privileges_and_act() -> None:
        os.setgroups([])
        os.setgid(NOBODY_UID)
        os.setuid(NOBODY_UID)
        act()

    as_child(drop_privileges_and_act)


def as_child(act: Callable[[], None]) -> None:
    """Run `act` in a child process, whose identity and mounts it may change."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the traceback of the child"
