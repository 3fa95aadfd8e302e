"""What a user may do to names, and what NFS makes of files: the rules of user.py, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.clock import SECOND
from appliance.vfs import access
from appliance.vfs.access import Credential
from appliance.vfs.errors import Code
from appliance.vfs.interface import (
    APPEND_ONLY,
    FileType,
    Limits,
    Node,
    SetAttributes,
    SetTime,
    same_node,
)
from appliance.vfs.user import DIRECTORY_MODE, FILE_MODE, User
from tests.unit.vfs.tools import (
    ALICE,
    BOB,
    CAROL,
    ROOT,
    HandClock,
    content,
    memory,
    mode,
    names,
    refused,
    text,
)

root_user = User(ROOT, clock=HandClock())
alice = User(ALICE, clock=HandClock())
bob = User(BOB, clock=HandClock())
carol = User(CAROL, clock=HandClock())


def top() -> Node:
    """A directory that anybody may write."""
    return memory().root()


def directory(parent: Node, name: bytes, bits: int, owner: Credential = ALICE) -> Node:
    return root_user.mkdir(parent, name, SetAttributes(mode=bits, uid=owner.uid, gid=owner.gid))


# Names.

Making = Callable[[User, Node, bytes], object]
MAKERS: dict[str, Making] = {
    "create": lambda user, where, name: user.create(where, name),
    "create_unchecked": lambda user, where, name: user.create_unchecked(where, name),
    "create_exclusive": lambda user, where, name: user.create_exclusive(where, name, bytes(8)),
    "mkdir": lambda user, where, name: user.mkdir(where, name),
    "symlink": lambda user, where, name: user.symlink(where, name, b"target"),
    "mknod": lambda user, where, name: user.mknod(where, name, FileType.FIFO),
    "link": lambda user, where, name: user.link(root_file(where), where, name),
    "rename": lambda user, where, name: user.rename(where, b"old", where, name),
}


def root_file(where: Node) -> Node:
    return root_user.create_unchecked(where.filesystem.root(), b"some file")


@pytest.fixture(params=sorted(MAKERS))
def making(request: pytest.FixtureRequest) -> Making:
    return MAKERS[request.param]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", Code.ACCES),
        (b"a/b", Code.ACCES),
        (b"/", Code.ACCES),
        (b"../x", Code.ACCES),
        (b"a\0b", Code.ACCES),
        (b"n" * 256, Code.NAMETOOLONG),
    ],
)
def test_what_is_not_a_name(making: Making, name: bytes, code: Code) -> None:
    where = top()
    root_user.create(where, b"old")
    refused(code, lambda: making(alice, where, name))
    refused(code, lambda: alice.lookup(where, name))
    refused(code, lambda: alice.remove(where, name))
    refused(code, lambda: alice.rmdir(where, name))
    refused(code, lambda: alice.rename(where, name, where, b"new"))


def test_the_longest_name_is_one(making: Making) -> None:
    where = top()
    alice.create(where, b"old")
    making(alice, where, b"n" * 255)
    assert b"n" * 255 in names(where)


def test_nothing_is_made_without_write_and_search_permission(making: Making) -> None:
    for bits in (0o666, 0o555, 0o444):
        where = directory(top(), b"d", bits)
        root_user.create(where, b"old")
        refused(Code.ACCES, lambda where=where: making(alice, where, b"new"))  # type: ignore[misc]


def test_nothing_is_made_where_only_reading_is_allowed(making: Making) -> None:
    where = top()
    root_user.create(where, b"old")
    root_file(where)
    reader = User(ROOT, clock=HandClock(), read_only=True)
    refused(Code.ROFS, lambda: making(reader, where, b"new"))
    where.filesystem.read_only = True
    refused(Code.ROFS, lambda: making(root_user, where, b"new"))


def test_nothing_is_made_in_what_is_not_a_directory(making: Making) -> None:
    where = alice.create(top(), b"file")
    refused(Code.NOTDIR, lambda: making(alice, where, b"new"))


@pytest.mark.parametrize("maker", sorted(set(MAKERS) - {"create_unchecked", "rename"}))
def test_what_exists_is_not_made_again(maker: str) -> None:
    where = top()
    alice.create(where, b"there", mode(0o600))
    alice.write(alice.lookup(where, b"there"), 0, [b"data"])
    for name in (b"there", b".", b".."):
        refused(Code.EXIST, lambda name=name: MAKERS[maker](alice, where, name))  # type: ignore[misc]


def test_existence_is_told_before_permission() -> None:
    """As namei does, so that mkdir -p works on a read-only mount."""
    where = directory(top(), b"d", 0o555)
    root_user.mkdir(where, b"there")
    refused(Code.EXIST, lambda: alice.mkdir(where, b"there"))
    reader = User(ALICE, clock=HandClock(), read_only=True)
    refused(Code.EXIST, lambda: reader.mkdir(where, b"there"))


def test_lookup_needs_search_permission_only() -> None:
    where = directory(top(), b"d", 0o711)
    root_user.create(where, b"file")
    assert same_node(bob.lookup(where, b"file"), where.lookup(b"file"))
    refused(Code.ACCES, lambda: bob.read_directory(where, 0, 10))
    root_user.set_attributes(where, mode(0o744))
    refused(Code.ACCES, lambda: bob.lookup(where, b"file"))
    refused(Code.ACCES, lambda: bob.lookup(where, b".."))
    entries = {entry.name: entry for entry in bob.read_directory(where, 0, 10)}
    assert b"file" in entries
    assert bob.entry_node(where, entries[b"file"]) is None


def test_dots_are_looked_up() -> None:
    where = top()
    below = alice.mkdir(where, b"below")
    assert same_node(alice.lookup(below, b"."), below)
    assert same_node(alice.lookup(below, b".."), where)
    assert same_node(alice.lookup(where, b".."), where)


def test_an_entry_that_has_gone_has_no_node() -> None:
    where = top()
    alice.create(where, b"file")
    entry = alice.read_directory(where, 0, 10)[-1]
    alice.remove(where, b"file")
    assert alice.entry_node(where, entry) is None


# What is made.


def test_new_nodes_belong_to_who_makes_them() -> None:
    made = alice.create(top(), b"file", SetAttributes(uid=0, gid=0, mode=0o640)).attributes()
    assert (made.uid, made.gid, made.mode) == (ALICE.uid, ALICE.gid, 0o640)
    made = root_user.create(top(), b"file", SetAttributes(uid=5, gid=6)).attributes()
    assert (made.uid, made.gid, made.mode) == (5, 6, FILE_MODE)
    assert alice.mkdir(top(), b"d").attributes().mode == DIRECTORY_MODE


def test_a_set_group_id_directory_passes_its_group_on() -> None:
    where = directory(top(), b"d", 0o2777, owner=CAROL)
    file = alice.create(where, b"file", mode(0o2755)).attributes()
    assert (file.gid, file.mode) == (CAROL.gid, 0o755)  # and nobody joins the group by it
    below = alice.mkdir(where, b"below", mode(0o755)).attributes()
    assert (below.gid, below.mode) == (CAROL.gid, 0o2755)
    # Where the group does not execute, the bit is no program's (but a mandatory lock's).
    assert alice.create(where, b"locked", mode(0o2645)).attributes().mode == 0o2645


def test_times_and_size_are_set_at_once() -> None:
    wishes = SetAttributes(size=5, mtime_ns=3 * SECOND, atime_ns=SetTime.NOW)
    node = alice.create(top(), b"file", wishes)
    made = node.attributes()
    assert (made.size, made.mtime_ns, made.atime_ns) == (5, 3 * SECOND, HandClock().wall())
    assert content(node) == bytes(5)


def test_unchecked_creation_keeps_what_is_there() -> None:
    where = top()
    file = alice.create(where, b"file", mode(0o600))
    alice.write(file, 0, [b"data"])
    again = alice.create_unchecked(where, b"file", mode(0o777))
    assert same_node(again, file) and again.attributes().mode == 0o600
    assert content(again) == b"data"
    alice.create_unchecked(where, b"file", SetAttributes(size=0))
    assert content(again) == b""
    refused(Code.ACCES, lambda: bob.create_unchecked(where, b"file", SetAttributes(size=0)))
    below = alice.mkdir(where, b"d")
    assert same_node(alice.create_unchecked(where, b"d", SetAttributes(size=0)), below)


def test_exclusive_creation_knows_its_own_repetition() -> None:
    where = top()
    verifier = b"\x12\x34\x56\x78\x1a\xbc\xde\xf0"
    file = alice.create_exclusive(where, b"file", verifier)
    assert same_node(alice.create_exclusive(where, b"file", verifier), file)
    refused(Code.EXIST, lambda: alice.create_exclusive(where, b"file", bytes(8)))
    alice.write(file, 0, [b"x"])
    refused(Code.EXIST, lambda: alice.create_exclusive(where, b"file", verifier))
    assert names(where) == [b"file"]


@pytest.mark.parametrize("type", [FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE])
def test_devices_are_made_by_the_superuser(type: FileType) -> None:
    where = top()
    refused(Code.PERM, lambda: alice.mknod(where, b"dev", type, (8, 1)))
    made = root_user.mknod(where, b"dev", type, (8, 1)).attributes()
    assert (made.type, made.rdev) == (type, (8, 1))
    refused(Code.EXIST, lambda: alice.mknod(where, b"dev", type, (8, 1)))
    root_user.set_attributes(where, mode(0o755))
    refused(Code.ACCES, lambda: alice.mknod(where, b"other", type, (8, 1)))


@pytest.mark.parametrize("rdev", [(1 << 12, 0), (0, 1 << 20), ((1 << 32) - 1, (1 << 32) - 1)])
def test_numbers_that_no_device_has(rdev: tuple[int, int]) -> None:
    where = top()
    refused(Code.INVAL, lambda: root_user.mknod(where, b"dev", FileType.BLOCK_DEVICE, rdev))
    assert root_user.mknod(where, b"fifo", FileType.FIFO, rdev).attributes().rdev == (0, 0)


def test_anybody_makes_a_whiteout() -> None:
    where = top()
    made = alice.mknod(where, b"gone", FileType.CHARACTER_DEVICE, (0, 0)).attributes()
    assert (made.type, made.rdev) == (FileType.CHARACTER_DEVICE, (0, 0))
    refused(Code.PERM, lambda: alice.mknod(where, b"b", FileType.BLOCK_DEVICE, (0, 0)))


def test_mknod_makes_no_files() -> None:
    for type in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK):
        refused(Code.INVAL, lambda type=type: alice.mknod(top(), b"x", type))  # type: ignore[misc]


def test_symbolic_links_hold_any_text_but_none() -> None:
    where = top()
    link = alice.symlink(where, b"link", b"../" * 1365)
    assert alice.readlink(link) == b"../" * 1365
    assert link.attributes().size == 4095
    assert alice.symlink(where, b"plain", b"x", mode(0o640)).attributes().mode == 0o777
    refused(Code.INVAL, lambda: alice.symlink(where, b"l", b""))
    refused(Code.INVAL, lambda: alice.symlink(where, b"l", b"a\0b"))
    refused(Code.NAMETOOLONG, lambda: alice.symlink(where, b"l", b"x" * 4096))
    refused(Code.INVAL, lambda: alice.readlink(where))


def test_links() -> None:
    where = top()
    file = alice.create(where, b"file")
    alice.link(file, where, b"again")
    assert file.attributes().nlink == 2
    assert same_node(where.lookup(b"again"), file)
    below = alice.mkdir(where, b"d")
    refused(Code.PERM, lambda: alice.link(below, where, b"x"))
    refused(Code.XDEV, lambda: alice.link(file, memory(fsid=8).root(), b"x"))


def test_the_number_of_links_has_a_limit() -> None:
    where = top()
    where.filesystem.limits = Limits(link_count_max=3)  # type: ignore[misc]
    file = alice.create(where, b"file")
    alice.link(file, where, b"2")
    alice.link(file, where, b"3")
    refused(Code.MLINK, lambda: alice.link(file, where, b"4"))


def test_a_directory_counts_its_directories() -> None:
    where = top()
    where.filesystem.limits = Limits(directory_link_count_max=3)  # type: ignore[misc]
    one = alice.mkdir(where, b"one")
    assert where.attributes().nlink == 3
    refused(Code.MLINK, lambda: alice.mkdir(where, b"two"))
    inner = alice.mkdir(one, b"inner")
    refused(Code.MLINK, lambda: alice.rename(one, b"inner", where, b"outer"))
    alice.rename(one, b"inner", one, b"renamed")
    assert same_node(one.lookup(b"renamed"), inner)


# What goes.


def test_removing() -> None:
    where = top()
    alice.create(where, b"file")
    below = alice.mkdir(where, b"d")
    alice.create(below, b"inside")
    refused(Code.NOENT, lambda: alice.remove(where, b"missing"))
    refused(Code.NOENT, lambda: alice.rmdir(where, b"missing"))
    refused(Code.ISDIR, lambda: alice.remove(where, b"d"))
    refused(Code.NOTDIR, lambda: alice.rmdir(where, b"file"))
    refused(Code.NOTEMPTY, lambda: alice.rmdir(where, b"d"))
    alice.remove(below, b"inside")
    alice.rmdir(where, b"d")
    alice.remove(where, b"file")
    assert names(where) == []
    assert where.attributes().nlink == 2


def test_dots_are_not_removed() -> None:
    where = alice.mkdir(top(), b"d")
    refused(Code.ISDIR, lambda: alice.remove(where, b"."))
    refused(Code.ISDIR, lambda: alice.remove(where, b".."))
    refused(Code.INVAL, lambda: alice.rmdir(where, b"."))
    refused(Code.EXIST, lambda: alice.rmdir(where, b".."))
    for name in (b".", b".."):
        refused(Code.INVAL, lambda name=name: alice.rename(where, name, where, b"x"))  # type: ignore[misc]
        refused(Code.INVAL, lambda name=name: alice.rename(where, b"x", where, name))  # type: ignore[misc]


def test_who_may_not_search_is_not_told_of_dots() -> None:
    where = directory(top(), b"d", 0o644)
    file = alice.create(top(), b"file")
    for code, place in ((Code.ACCES, where), (Code.NOTDIR, file)):
        refused(code, lambda place=place: bob.remove(place, b"."))  # type: ignore[misc]
        refused(code, lambda place=place: bob.rmdir(place, b".."))  # type: ignore[misc]
        refused(code, lambda place=place: bob.rename(place, b".", place, b"x"))  # type: ignore[misc]


def test_dots_are_no_files() -> None:
    where = alice.mkdir(top(), b"d")
    for name in (b".", b".."):
        refused(Code.EXIST, lambda name=name: alice.create_unchecked(where, name))  # type: ignore[misc]
        refused(
            Code.EXIST,
            lambda name=name: alice.create_exclusive(where, name, bytes(8)),  # type: ignore[misc]
        )


def test_removing_needs_write_permission_on_the_directory_only() -> None:
    where = directory(top(), b"d", 0o777, owner=BOB)
    root_user.create(where, b"file", mode(0o000))
    alice.remove(where, b"file")
    root_user.set_attributes(where, mode(0o755))
    root_user.create(where, b"file", mode(0o777))
    root_user.mkdir(where, b"dir", mode(0o777))
    refused(Code.ACCES, lambda: alice.remove(where, b"file"))
    refused(Code.ACCES, lambda: alice.rmdir(where, b"dir"))
    refused(Code.ACCES, lambda: alice.rename(where, b"file", where, b"x"))
    reader = User(ROOT, clock=HandClock(), read_only=True)
    refused(Code.ROFS, lambda: reader.remove(where, b"file"))
    refused(Code.ROFS, lambda: reader.rmdir(where, b"dir"))


def test_in_a_sticky_directory_only_the_owner_removes() -> None:
    where = directory(top(), b"tmp", 0o1777, owner=BOB)
    alice.create(where, b"file")
    alice.mkdir(where, b"dir")
    carol.create(where, b"carols")
    refused(Code.PERM, lambda: carol.remove(where, b"file"))
    refused(Code.PERM, lambda: carol.rmdir(where, b"dir"))
    refused(Code.PERM, lambda: carol.rename(where, b"file", where, b"x"))
    refused(Code.PERM, lambda: carol.rename(where, b"carols", where, b"file"))
    alice.rename(where, b"file", where, b"renamed")
    bob.remove(where, b"renamed")
    root_user.rmdir(where, b"dir")


# Renaming.


def test_renaming_replaces() -> None:
    where = top()
    one, two = alice.create(where, b"one"), alice.create(where, b"two")
    alice.rename(where, b"one", where, b"two")
    assert names(where) == [b"two"]
    assert same_node(where.lookup(b"two"), one)
    refused(Code.STALE, lambda: where.filesystem.resolve(two.handle))


def test_renaming_over_the_wrong_type() -> None:
    where = top()
    alice.create(where, b"file")
    alice.mkdir(where, b"empty")
    alice.create(alice.mkdir(where, b"full"), b"x")
    alice.mkdir(where, b"dir")
    refused(Code.ISDIR, lambda: alice.rename(where, b"file", where, b"empty"))
    refused(Code.NOTDIR, lambda: alice.rename(where, b"dir", where, b"file"))
    refused(Code.NOTEMPTY, lambda: alice.rename(where, b"dir", where, b"full"))
    refused(Code.NOENT, lambda: alice.rename(where, b"missing", where, b"x"))
    alice.rename(where, b"dir", where, b"empty")
    assert sorted(names(where)) == [b"empty", b"file", b"full"]


def test_a_directory_does_not_move_into_itself() -> None:
    where = top()
    outer = alice.mkdir(where, b"outer")
    inner = alice.mkdir(outer, b"inner")
    refused(Code.INVAL, lambda: alice.rename(where, b"outer", outer, b"x"))
    refused(Code.INVAL, lambda: alice.rename(where, b"outer", inner, b"x"))
    refused(Code.NOTEMPTY, lambda: alice.rename(outer, b"inner", where, b"outer"))
    alice.create(inner, b"file")
    refused(Code.NOTEMPTY, lambda: alice.rename(inner, b"file", where, b"outer"))
    root_user.set_attributes(where, mode(0o755))
    refused(Code.NOTEMPTY, lambda: alice.rename(inner, b"file", where, b"outer"))
    alice.rename(where, b"outer", where, b"outer")


def test_a_directory_that_moves_gets_another_parent() -> None:
    where = top()
    one, two = alice.mkdir(where, b"one"), alice.mkdir(where, b"two")
    moved = alice.mkdir(one, b"moved")
    alice.rename(one, b"moved", two, b"here")
    assert same_node(alice.lookup(moved, b".."), two)
    assert (one.attributes().nlink, two.attributes().nlink) == (2, 3)


def test_moving_a_directory_needs_write_permission_on_it() -> None:
    """Its ".." is written; renaming it in place is not."""
    where = top()
    target = alice.mkdir(where, b"target", mode(0o777))
    directory(where, b"bobs", 0o755, owner=BOB)
    refused(Code.ACCES, lambda: alice.rename(where, b"bobs", target, b"x"))
    alice.rename(where, b"bobs", where, b"renamed")


def test_both_directories_are_searched_before_names_are_looked_up() -> None:
    where = top()
    closed = directory(where, b"closed", 0o600)
    refused(Code.ACCES, lambda: bob.rename(where, b"missing", closed, b"x"))


def test_names_of_one_node_are_not_renamed_into_each_other() -> None:
    where = top()
    file = alice.create(where, b"one")
    alice.link(file, where, b"two")
    alice.rename(where, b"one", where, b"two")
    assert sorted(names(where)) == [b"one", b"two"]


# Contents.


def test_reading_and_writing() -> None:
    file = alice.create(top(), b"file")
    assert alice.write(file, 2, [b"ab", b"", b"c"]) == 3
    buffers, end = alice.read(file, 0, 4)
    assert (text(buffers), end) == (b"\0\0ab", False)
    buffers, end = alice.read(file, 4, 100)
    assert (text(buffers), end) == (b"c", True)
    assert alice.read(file, 5, 1) == ([], True)
    alice.sync(file)


def test_an_owner_has_his_file_open() -> None:
    file = alice.create(top(), b"file", mode(0o000))
    alice.write(file, 0, [b"x"])
    assert text(alice.read(file, 0, 1)[0]) == b"x"
    refused(Code.ACCES, lambda: bob.read(file, 0, 1))
    refused(Code.ACCES, lambda: bob.write(file, 0, [b"y"]))
    refused(Code.ACCES, lambda: bob.sync(file))
    assert alice.access(file) == 0


def test_who_may_execute_may_read() -> None:
    file = alice.create(top(), b"program", mode(0o711))
    alice.write(file, 0, [b"#!"])
    assert text(bob.read(file, 0, 9)[0]) == b"#!"
    assert bob.access(file) == access.EXECUTE


def test_only_files_have_content() -> None:
    where = top()
    fifo = alice.mknod(where, b"fifo", FileType.FIFO)
    for node, code in ((where, Code.ISDIR), (fifo, Code.INVAL)):
        refused(code, lambda node=node: alice.read(node, 0, 1))  # type: ignore[misc]
        refused(code, lambda node=node: alice.write(node, 0, [b"x"]))  # type: ignore[misc]


def test_writing_takes_set_id_away() -> None:
    file = alice.create(top(), b"program", mode(0o6777))
    root_user.write(file, 0, [b"x"])
    assert file.attributes().mode == 0o6777
    bob.write(file, 0, [b"x"])
    assert file.attributes().mode == 0o777
    alice.set_attributes(file, mode(0o2666))
    alice.write(file, 0, [b"x"])
    assert file.attributes().mode == 0o2666
    bob.write(file, 0, [b"x"])  # who is not in the group
    assert file.attributes().mode == 0o666


def test_only_names_are_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """PERM; but who may not write is told that, as of any other file."""
    file = alice.create(top(), b"log", mode(0o644))
    appended = replace(file.attributes(), flags=APPEND_ONLY)
    monkeypatch.setattr(type(file), "attributes", lambda node: appended)
    refused(Code.ACCES, lambda: bob.write(file, 0, [b"x"]))
    for writer in (alice, root_user):
        refused(Code.PERM, lambda writer=writer: writer.write(file, 0, [b"x"]))  # type: ignore[misc]


def test_files_end_somewhere() -> None:
    file = alice.create(top(), b"file")
    last = file.filesystem.limits.file_bytes_max
    refused(Code.FBIG, lambda: alice.write(file, last, [b"x"]))
    refused(Code.FBIG, lambda: alice.set_attributes(file, SetAttributes(size=last + 1)))
    alice.write(file, last - 1, [b"x"])
    assert file.attributes().size == last


def test_read_only_is_shown_and_kept() -> None:
    file = alice.create(top(), b"file", mode(0o666))
    reader = User(ALICE, clock=HandClock(), read_only=True)
    assert reader.access(file) == access.READ
    refused(Code.ROFS, lambda: reader.write(file, 0, [b"x"]))
    refused(Code.ROFS, lambda: reader.set_attributes(file, mode(0o777)))
    refused(Code.ROFS, lambda: reader.sync(file))
    refused(Code.ROFS, lambda: reader.remove(top(), b"n" * 256))
    refused(Code.ISDIR, lambda: reader.set_attributes(top(), SetAttributes(size=0)))


def test_a_device_can_be_written_where_nothing_else_can() -> None:
    null = root_user.mknod(top(), b"null", FileType.CHARACTER_DEVICE, (1, 3), mode(0o666))
    reader = User(ALICE, clock=HandClock(), read_only=True)
    assert reader.access(null) == access.READ | access.WRITE


def test_setting_nothing_changes_nothing() -> None:
    file = alice.create(top(), b"file")
    before = file.attributes()
    bob.set_attributes(file, SetAttributes())
    assert file.attributes() is before
