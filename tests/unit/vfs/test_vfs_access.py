"""Mode bits, squashing and the rules of SETATTR, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.vfs import access
from appliance.vfs.access import NOBODY, Credential, SquashRules, rights, squash
from appliance.vfs.attribute_rules import permitted_changes
from appliance.vfs.errors import Code
from appliance.vfs.interface import (
    APPEND_ONLY,
    IMMUTABLE,
    Attributes,
    FileType,
    SetAttributes,
    SetTime,
)
from tests.unit.vfs.tools import ALICE, BOB, CAROL, ROOT, refused

R, W, X = access.READ, access.WRITE, access.EXECUTE
NOW = 12345


def attributes(mode: int, type: FileType = FileType.REGULAR, gid: int = 50) -> Attributes:
    """Of something that belongs to Alice."""
    return Attributes(type, mode, 1, ALICE.uid, gid, 10, 0, (0, 0), 5, 1, 2, 3, 3)


@pytest.mark.parametrize(
    ("who", "mode", "type", "expected"),
    [
        (ALICE, 0o400, FileType.REGULAR, R),
        (ALICE, 0o077, FileType.REGULAR, 0),  # the owner is the owner, not one of the others
        (BOB, 0o050, FileType.REGULAR, R | X),  # by a supplementary group
        (BOB, 0o707, FileType.REGULAR, 0),  # nor is a member of the group
        (CAROL, 0o776, FileType.REGULAR, R | W),
        (CAROL, 0o770, FileType.REGULAR, 0),
        (Credential(1, 50), 0o060, FileType.REGULAR, R | W),  # by the primary group
        (ROOT, 0o000, FileType.REGULAR, R | W),
        (ROOT, 0o001, FileType.REGULAR, R | W | X),
        (ROOT, 0o000, FileType.DIRECTORY, R | W | X),
    ],
)
def test_one_class_of_mode_bits_counts(
    who: Credential, mode: int, type: FileType, expected: int
) -> None:
    assert rights(who, attributes(mode, type)) == expected


@pytest.mark.parametrize(
    ("before", "rules", "after"),
    [
        (ROOT, SquashRules(), Credential(NOBODY, NOBODY)),
        (ROOT, SquashRules(root_squash=False), ROOT),
        (ALICE, SquashRules(), ALICE),
        (ALICE, SquashRules(all_squash=True), Credential(NOBODY, NOBODY)),
        (
            ALICE,
            SquashRules(root_squash=False, all_squash=True, anonuid=7, anongid=8),
            Credential(7, 8),
        ),
        (
            Credential(1000, 0, frozenset({0, 5})),
            SquashRules(anonuid=7, anongid=8),
            Credential(1000, 8, frozenset({8, 5})),
        ),
        (
            Credential(0, 5, frozenset({5})),
            SquashRules(anonuid=7, anongid=8),
            Credential(7, 5, frozenset({5})),
        ),
        (
            Credential(0xFFFF_FFFF, 5),
            SquashRules(anonuid=7, anongid=8),
            Credential(7, 5),
        ),
        (
            Credential(5, 0xFFFF_FFFF),
            SquashRules(root_squash=False, anonuid=7, anongid=8),
            Credential(5, 8),
        ),
    ],
)
def test_squashing(before: Credential, rules: SquashRules, after: Credential) -> None:
    assert squash(before, rules) == after


def test_sticky_directories_protect_the_entries_of_others() -> None:
    sticky = Attributes(FileType.DIRECTORY, 0o1777, 2, BOB.uid, 0, 0, 0, (0, 0), 9, 0, 0, 0, 0)
    of_alice = attributes(0o666)
    assert access.may_unlink(ALICE, sticky, of_alice)
    assert access.may_unlink(BOB, sticky, of_alice)  # the directory is his
    assert access.may_unlink(ROOT, sticky, of_alice)
    assert not access.may_unlink(CAROL, sticky, of_alice)


@pytest.mark.parametrize(
    ("who", "mode", "changes", "code"),
    [
        (BOB, 0o666, SetAttributes(mode=0o777), Code.PERM),
        (ALICE, 0o666, SetAttributes(uid=BOB.uid), Code.PERM),
        (ALICE, 0o666, SetAttributes(gid=101), Code.PERM),
        (BOB, 0o666, SetAttributes(gid=50), Code.PERM),
        (BOB, 0o644, SetAttributes(size=0), Code.ACCES),
        (BOB, 0o666, SetAttributes(mtime_ns=5), Code.PERM),
        (BOB, 0o666, SetAttributes(atime_ns=SetTime.NOW, mtime_ns=5), Code.PERM),
        (CAROL, 0o664, SetAttributes(mtime_ns=SetTime.NOW), Code.ACCES),
    ],
)
def test_changes_that_are_refused(
    who: Credential, mode: int, changes: SetAttributes, code: Code
) -> None:
    refused(code, lambda: permitted_changes(who, attributes(mode), changes, NOW))


@pytest.mark.parametrize(
    ("who", "mode", "asked", "done"),
    [
        (ALICE, 0o644, SetAttributes(), SetAttributes()),
        (ALICE, 0o644, SetAttributes(mode=0o177777), SetAttributes(mode=0o7777)),
        (ALICE, 0o644, SetAttributes(uid=ALICE.uid), SetAttributes(uid=ALICE.uid)),
        (ALICE, 0o644, SetAttributes(gid=100), SetAttributes(gid=100)),
        (ALICE, 0o000, SetAttributes(size=3), SetAttributes(size=3)),
        (BOB, 0o666, SetAttributes(size=3), SetAttributes(size=3)),
        (
            BOB,
            0o666,
            SetAttributes(atime_ns=SetTime.NOW, mtime_ns=SetTime.NOW),
            SetAttributes(atime_ns=NOW, mtime_ns=NOW),
        ),
        (ROOT, 0o600, SetAttributes(uid=1, gid=2), SetAttributes(uid=1, gid=2)),
        # Set-user-id and set-group-id go with ownership and with content.
        (ROOT, 0o6755, SetAttributes(uid=1), SetAttributes(uid=1, mode=0o755)),
        (ALICE, 0o6755, SetAttributes(gid=100), SetAttributes(gid=100, mode=0o755)),
        (ALICE, 0o6744, SetAttributes(gid=100), SetAttributes(gid=100, mode=0o2744)),
        (BOB, 0o6766, SetAttributes(size=1), SetAttributes(size=1, mode=0o2766)),
        (CAROL, 0o6766, SetAttributes(size=1), SetAttributes(size=1, mode=0o766)),
        (BOB, 0o6777, SetAttributes(size=1), SetAttributes(size=1, mode=0o777)),
        (ROOT, 0o6777, SetAttributes(size=1), SetAttributes(size=1)),
        (ALICE, 0o644, SetAttributes(size=1, mode=0o4755), SetAttributes(size=1, mode=0o4755)),
        (ALICE, 0o644, SetAttributes(mode=0o2755), SetAttributes(mode=0o2755)),
    ],
)
def test_changes_that_are_made(
    who: Credential, mode: int, asked: SetAttributes, done: SetAttributes
) -> None:
    assert permitted_changes(who, attributes(mode), asked, NOW) == done


def test_a_stranger_to_the_group_cannot_set_its_id() -> None:
    before = attributes(0o755, gid=999)
    asked = SetAttributes(mode=0o6755)
    assert permitted_changes(ALICE, before, asked, NOW).mode == 0o4755
    assert permitted_changes(ROOT, before, asked, NOW).mode == 0o6755


def test_a_stranger_to_the_group_takes_its_id_from_what_nobody_executes() -> None:
    before = attributes(0o2644, gid=999)
    assert permitted_changes(ALICE, before, SetAttributes(gid=50), NOW).mode == 0o644
    assert permitted_changes(ROOT, before, SetAttributes(gid=50), NOW).mode is None
    both = SetAttributes(gid=50, mode=0o2644)
    assert permitted_changes(ALICE, before, both, NOW).mode == 0o2644  # he is in the new one


def test_directories_keep_their_bits_when_they_are_given_away() -> None:
    before = attributes(0o2775, FileType.DIRECTORY)
    assert permitted_changes(ROOT, before, SetAttributes(uid=1), NOW).mode is None


@pytest.mark.parametrize(
    ("type", "code"),
    [(FileType.DIRECTORY, Code.ISDIR), (FileType.SYMLINK, Code.INVAL), (FileType.FIFO, Code.INVAL)],
)
def test_only_files_have_a_size_to_set(type: FileType, code: Code) -> None:
    refused(
        code, lambda: permitted_changes(ROOT, attributes(0o777, type), SetAttributes(size=0), NOW)
    )
    fixed = replace(attributes(0o777, type), flags=IMMUTABLE)
    refused(code, lambda: permitted_changes(BOB, fixed, SetAttributes(size=0), NOW))


def test_the_mode_of_a_symbolic_link_stays() -> None:
    link = attributes(0o777, FileType.SYMLINK)
    asked = SetAttributes(mode=0o600, mtime_ns=5)
    assert permitted_changes(ALICE, link, asked, NOW) == SetAttributes(mtime_ns=5)
    assert permitted_changes(BOB, link, SetAttributes(mode=0o600), NOW) == SetAttributes()


def test_who_may_not_write_is_told_so_before_what_nobody_may() -> None:
    """Of what is append-only; what is immutable is so for everybody first."""
    shorter = SetAttributes(size=0)
    appended = replace(attributes(0o644), flags=APPEND_ONLY)
    refused(Code.ACCES, lambda: permitted_changes(BOB, appended, shorter, NOW))
    refused(Code.PERM, lambda: permitted_changes(ALICE, appended, shorter, NOW))
    longer = SetAttributes(size=11)
    assert permitted_changes(ALICE, appended, longer, NOW) == longer
    immutable = replace(attributes(0o644), flags=IMMUTABLE)
    refused(Code.PERM, lambda: permitted_changes(BOB, immutable, shorter, NOW))
