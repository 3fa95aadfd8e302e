"""Random histories on two file systems at once: every answer and every error is the same.

The file system in memory is compared with the naive model; a host directory, under both ways of
naming files, with the one in memory, as several users with their own permissions.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from appliance.vfs.access import Credential
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.hostdir import HostDirectory
from appliance.vfs.interface import FileType, SetAttributes
from tests.unit.vfs.models import Actor, Naive, Served, Token
from tests.unit.vfs.tools import ALICE, BOB, CAROL, ROOT, memory

picks = st.integers(0, 23)
names = st.sampled_from([b"a", b"b", b"a", b"b", b"a", "\u00e9".encode()])
types = st.sampled_from(
    [FileType.REGULAR] * 3 + [FileType.DIRECTORY] * 4 + [FileType.SYMLINK, FileType.FIFO]
)
offsets = st.sampled_from([0, 1, 100, 4095, 4096, 65535, 65536, 70000])
data = st.binary(max_size=200) | st.just(b"long" * 20_000)

BEGINNING = [
    (2, b"a", FileType.DIRECTORY),
    (2, b"b", FileType.REGULAR),
    (3, b"a", FileType.DIRECTORY),
    (3, b"b", FileType.REGULAR),
    (5, b"a", FileType.SYMLINK),
]
"""What is there before a history begins: in which directory, under which name."""

Outcome = tuple[str, object]


def outcome(act: Callable[[], object]) -> Outcome:
    try:
        return "value", act()
    except VfsError as error:
        return "error", error.code


class Comparison(RuleBasedStateMachine):
    """Both sides do the same; here, memory and the naive model. What they act on is picked from all
    that was ever met: directories where one is needed and files for the rest, but sometimes
    anything, stale or of a wrong type."""

    users: ClassVar[list[Credential]] = [ROOT]
    modes: ClassVar[list[int]] = [0o777, 0o640]

    one: Actor
    other: Actor

    @initialize()
    def begin(self) -> None:
        self.one, self.other = self.sides()
        root = (self.one.root(), self.other.root())
        self.nodes: list[tuple[Token, Token]] = [root]
        self.directories = [root]
        self.others: list[tuple[Token, Token]] = []
        for where, name, type in BEGINNING:
            self.make(0, where, name, type, 0)

    def sides(self) -> tuple[Actor, Actor]:
        return Served(memory()), Naive()

    def teardown(self) -> None:
        if hasattr(self, "nodes"):
            self.everything_is_the_same()

    def directory(self, number: int) -> tuple[Token, Token]:
        return self.pick(self.directories, number)

    def other_node(self, number: int) -> tuple[Token, Token]:
        return self.pick(self.others, number)

    def pick(self, nodes: list[tuple[Token, Token]], number: int) -> tuple[Token, Token]:
        """The first or one of the newest (old ones are mostly gone), and sometimes any."""
        if number < 2:
            return self.nodes[-1 - number % len(self.nodes)]
        likely = nodes[:1] + nodes[-4:]
        return likely[number % len(likely)]

    def met(self, node: tuple[Token, Token]) -> None:
        if node not in self.nodes:
            self.nodes.append(node)
            is_directory = self.one.shape(node[0])[0] is FileType.DIRECTORY
            (self.directories if is_directory else self.others).append(node)

    def same(self, one: Callable[[], object], other: Callable[[], object]) -> Outcome:
        first, second = outcome(one), outcome(other)
        assert first == second
        return first

    def same_node(self, one: Callable[[], object], other: Callable[[], object]) -> None:
        """Both give a node, and it is the same one."""
        first, second = outcome(one), outcome(other)
        if "error" in (first[0], second[0]):
            assert first == second
            return
        for known in self.nodes:
            assert (known[0] == first[1]) == (known[1] == second[1])
        self.met((first[1], second[1]))

    def user(self, number: int) -> Credential:
        return self.users[number % len(self.users)]

    @rule(who=picks, where=picks, name=names, type=types, mode=picks)
    def make(self, who: int, where: int, name: bytes, type: FileType, mode: int) -> None:
        (a, b), user = self.directory(where), self.user(who)
        bits = self.modes[mode % len(self.modes)]
        self.same_node(
            lambda: self.one.make(user, a, name, type, bits),
            lambda: self.other.make(user, b, name, type, bits),
        )

    @rule(who=picks, where=picks, name=names | st.sampled_from([b".", b".."]))
    def lookup(self, who: int, where: int, name: bytes) -> None:
        (a, b), user = self.directory(where), self.user(who)
        self.same_node(
            lambda: self.one.lookup(user, a, name), lambda: self.other.lookup(user, b, name)
        )

    @rule(who=picks, node=picks, where=picks, name=names)
    def link(self, who: int, node: int, where: int, name: bytes) -> None:
        (a, b), (x, y), user = self.other_node(node), self.directory(where), self.user(who)
        self.same(
            lambda: self.one.link(user, a, x, name), lambda: self.other.link(user, b, y, name)
        )

    @rule(who=picks, where=picks, name=names)
    def remove(self, who: int, where: int, name: bytes) -> None:
        (a, b), user = self.directory(where), self.user(who)
        self.same(lambda: self.one.remove(user, a, name), lambda: self.other.remove(user, b, name))

    @rule(who=picks, where=picks, name=names)
    def rmdir(self, who: int, where: int, name: bytes) -> None:
        (a, b), user = self.directory(where), self.user(who)
        self.same(lambda: self.one.rmdir(user, a, name), lambda: self.other.rmdir(user, b, name))

    @rule(who=picks, where=picks, name=names, where_to=picks, new_name=names)
    def rename(self, who: int, where: int, name: bytes, where_to: int, new_name: bytes) -> None:
        (a, b), (x, y), user = self.directory(where), self.directory(where_to), self.user(who)
        self.same(
            lambda: self.one.rename(user, a, name, x, new_name),
            lambda: self.other.rename(user, b, name, y, new_name),
        )

    @rule(who=picks, node=picks, offset=offsets, data=data)
    def write(self, who: int, node: int, offset: int, data: bytes) -> None:
        (a, b), user = self.other_node(node), self.user(who)
        self.same(
            lambda: self.one.write(user, a, offset, data),
            lambda: self.other.write(user, b, offset, data),
        )

    @rule(who=picks, node=picks, offset=offsets, count=st.integers(1, 100_000))
    def read(self, who: int, node: int, offset: int, count: int) -> None:
        (a, b), user = self.other_node(node), self.user(who)
        self.same(
            lambda: self.one.read(user, a, offset, count),
            lambda: self.other.read(user, b, offset, count),
        )

    @rule(who=picks, node=picks, size=offsets)
    def truncate(self, who: int, node: int, size: int) -> None:
        self.change(who, node, SetAttributes(size=size))

    @rule(who=picks, node=picks, mode=picks)
    def chmod(self, who: int, node: int, mode: int) -> None:
        self.change(who, node, SetAttributes(mode=self.modes[mode % len(self.modes)]))

    def change(self, who: int, node: int, changes: SetAttributes) -> None:
        (a, b), user = self.other_node(node), self.user(who)
        self.same(
            lambda: self.one.change(user, a, changes), lambda: self.other.change(user, b, changes)
        )

    @rule(node=picks)
    def look(self, node: int) -> None:
        a, b = self.nodes[node % len(self.nodes)]
        self.same(lambda: self.one.shape(a), lambda: self.other.shape(b))
        self.same(lambda: self.one.names(a), lambda: self.other.names(b))

    def everything_is_the_same(self) -> None:
        for a, b in self.nodes:
            found = self.same(lambda a=a: self.one.shape(a), lambda b=b: self.other.shape(b))  # type: ignore[misc]
            if found[0] == "error":
                assert found[1] is Code.STALE
                continue
            self.same(lambda a=a: self.one.names(a), lambda b=b: self.other.names(b))  # type: ignore[misc]
            self.same(
                lambda a=a: self.one.read(ROOT, a, 0, 1 << 20),  # type: ignore[misc]
                lambda b=b: self.other.read(ROOT, b, 0, 1 << 20),  # type: ignore[misc]
            )


class HostIsAsMemory(Comparison):
    users: ClassVar[list[Credential]] = [ROOT, ROOT, ALICE, ALICE, BOB, CAROL]
    modes: ClassVar[list[int]] = [0o777, 0o777, 0o1777, 0o2775, 0o750, 0o6777, 0o400]
    kernel_handles: ClassVar[bool] = True

    def sides(self) -> tuple[Actor, Actor]:
        self.path = tempfile.mkdtemp()
        self.host = HostDirectory(self.path, kernel_handles=self.kernel_handles)
        self.host.root().set_attributes(SetAttributes(mode=0o777))
        return Served(self.host), Served(memory())

    @rule(who=picks, node=picks, new_owner=picks)
    def chown(self, who: int, node: int, new_owner: int) -> None:
        owner = self.user(new_owner)
        self.change(who, node, SetAttributes(uid=owner.uid, gid=owner.gid))

    @rule(who=picks, node=picks, group=st.sampled_from([50, 100, 101, 7]))
    def chgrp(self, who: int, node: int, group: int) -> None:
        self.change(who, node, SetAttributes(gid=group))

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "path"):
                shutil.rmtree(self.path)


class MappedHostIsAsMemory(HostIsAsMemory):
    kernel_handles: ClassVar[bool] = False


EFFORT = settings(max_examples=80, stateful_step_count=50, deadline=None, derandomize=True)


def test_memory_behaves_as_dictionaries_do() -> None:
    run_state_machine_as_test(Comparison, settings=EFFORT)


@pytest.mark.root
@pytest.mark.parametrize("machine", [HostIsAsMemory, MappedHostIsAsMemory])
def test_a_host_directory_behaves_as_memory_does(machine: type[Comparison]) -> None:
    run_state_machine_as_test(machine, settings=EFFORT)
