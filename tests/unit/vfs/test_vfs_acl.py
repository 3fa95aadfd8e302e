"""Access control lists: tables for what the rules say, and the kernel as judge of the rest.

As root, files with random lists are made on file systems of the kernel, and processes with many
identities ask it what they may do there. We have to say the same; and what it makes of a list when
a mode is changed, or when something is created below a default list, we have to make of it too.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.vfs import access
from appliance.vfs.access import Credential
from appliance.vfs.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, AclEntry
from appliance.vfs.errors import Code
from appliance.vfs.interface import Attributes, FileType, Limits, SetAcl, SetAttributes
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.user import User
from tests.unit.vfs.tools import (
    ALICE,
    BOB,
    CAROL,
    ROOT,
    HandClock,
    memory,
    mode,
    refused,
)

R, W, X = access.READ, access.WRITE, access.EXECUTE
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

OWNER, OWNING_GROUP = ALICE.uid, 50
DAVE = Credential(1003, 103, frozenset({60, 61}))

TEAM = Acl(owner=7, group=5, other=0, mask=7, users=((CAROL.uid, R | W),), groups=((60, R),))


def attributes(acl: Acl | None, type: FileType = FileType.REGULAR) -> Attributes:
    """Of something of Alice's, whose mode is as the list wants it."""
    bits = 0o640 if acl is None else acl.mode
    return Attributes(type, bits, 1, OWNER, OWNING_GROUP, 0, 0, (0, 0), 5, 1, 2, 3, 3, acl=acl)


# --- the rules ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "acl", "expected"),
    [
        (ALICE, Acl(0, 7, 7, mask=7, users=((ALICE.uid, 7),)), 0),  # the owner is the owner
        (CAROL, TEAM, R | W),
        (CAROL, Acl(7, 0, 7, mask=R, users=((CAROL.uid, R | W),)), R),  # under the mask
        (CAROL, Acl(7, 7, 7, mask=7, users=((CAROL.uid, 0),)), 0),  # named, so not one of others
        (BOB, Acl(7, R | X, W, mask=X), X),  # the owning group is under the mask as well
        (DAVE, TEAM, R),
        (DAVE, Acl(7, 0, 7, mask=7, groups=((60, R), (61, W))), R | W),
        (DAVE, Acl(7, 0, 7, mask=7, groups=((60, 0),)), 0),  # in a group, so not one of others
        (DAVE, Acl(7, 0, R, mask=7, groups=((99, 7),)), R),
        (DAVE, Acl(7, 0, R, mask=0, groups=((60, W),)), R),  # Linux: without a mask, no list
        (ROOT, Acl(0, 0, 0, mask=0), R | W),
        (ROOT, Acl(0, 0, 0, mask=X, users=((5, X),)), R | W | X),
    ],
)
def test_one_entry_decides(who: Credential, acl: Acl, expected: int) -> None:
    assert access.rights(who, attributes(acl)) == expected


def test_two_groups_do_not_add_up() -> None:
    its = attributes(Acl(7, 0, 0, mask=7, groups=((60, R), (61, W))))
    assert access.permits(DAVE, its, R) and access.permits(DAVE, its, W)
    assert not access.permits(DAVE, its, R | W)
    assert access.rights(DAVE, its) == R | W


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(USER_OBJ, 7), (GROUP_OBJ, 5)],
        [(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 8)],
        [(USER_OBJ, 7), (OTHER, 5), (GROUP_OBJ, 5)],
        [(USER_OBJ, 7), (USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)],
        [(USER_OBJ, 7), (USER, 7, 5), (GROUP_OBJ, 5), (OTHER, 0)],  # no mask
        [(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0)],  # nobody
        [(USER_OBJ, 7), (3, 7), (GROUP_OBJ, 5), (OTHER, 0)],
    ],
)
def test_a_list_has_to_make_sense(entries: list[tuple[int, ...]]) -> None:
    refused(Code.INVAL, lambda: Acl.of(AclEntry(*entry) for entry in entries))


def test_values_of_attributes() -> None:
    assert Acl.from_xattr(TEAM.to_xattr()) == TEAM
    assert Acl.from_xattr(b"\2\0\0\0") is None
    refused(Code.NOTSUPP, lambda: Acl.from_xattr(b"\1\0\0\0"))
    refused(Code.INVAL, lambda: Acl.from_xattr(b"\2\0\0"))
    refused(Code.INVAL, lambda: Acl.from_xattr(TEAM.to_xattr()[:-1]))


def test_there_is_an_end_to_a_list() -> None:
    many = Acl(7, 7, 7, mask=7, users=tuple((uid, 7) for uid in range(2000)))
    refused(Code.INVAL, lambda: Acl.of(many.entries()))


# --- users -------------------------------------------------------------------


def user(who: Credential) -> User:
    return User(who, clock=HandClock())


@pytest.fixture
def filesystem() -> MemoryFileSystem:
    return memory()


def test_a_list_is_enforced(filesystem: MemoryFileSystem) -> None:
    top = user(ALICE).mkdir(filesystem.root(), b"top", mode(0o700))
    file = user(ALICE).create(top, b"file", mode(0o600))
    file.write(0, [b"text"])
    refused(Code.ACCES, lambda: user(CAROL).lookup(top, b"file"))
    user(ALICE).set_attributes(top, SetAttributes(acl=TEAM))
    refused(Code.ACCES, lambda: user(CAROL).lookup(top, b"file"))  # she may read, not search
    user(ALICE).set_attributes(
        top, SetAttributes(acl=Acl(7, 0, 0, mask=7, users=((CAROL.uid, X),)))
    )
    assert user(CAROL).lookup(top, b"file") is file
    refused(Code.ACCES, lambda: user(CAROL).create(top, b"other"))
    refused(Code.ACCES, lambda: user(CAROL).read(file, 0, 9))
    user(ALICE).set_attributes(file, SetAttributes(acl=TEAM))
    assert user(CAROL).access(file) == R | W
    assert user(CAROL).write(file, 0, [b"hers"]) == 4
    assert user(DAVE).access(file) == R
    refused(Code.ACCES, lambda: user(DAVE).write(file, 0, [b"his"]))
    user(CAROL).set_attributes(file, SetAttributes(size=0))
    refused(Code.ACCES, lambda: user(DAVE).set_attributes(file, SetAttributes(size=0)))


def test_half_a_right_to_change_a_directory_is_none(filesystem: MemoryFileSystem) -> None:
    top = user(ALICE).mkdir(filesystem.root(), b"top")
    split = Acl(7, 0, 0, mask=7, groups=((60, W), (61, R | X)))
    user(ALICE).set_attributes(top, SetAttributes(acl=split))
    assert user(DAVE).access(top) == R | X
    refused(Code.ACCES, lambda: user(DAVE).create(top, b"file"))


def test_mode_and_list_go_together(filesystem: MemoryFileSystem) -> None:
    file = user(ALICE).create(filesystem.root(), b"file", mode(0o4600))
    user(ALICE).set_attributes(file, SetAttributes(acl=TEAM))
    assert file.attributes().mode == 0o4770
    user(ALICE).set_attributes(file, mode(0o651))
    its = file.attributes()
    assert its.mode == 0o651
    assert its.acl == Acl(6, 5, 1, mask=5, users=TEAM.users, groups=TEAM.groups)
    user(ALICE).set_attributes(file, SetAttributes(acl=Acl(6, 4, 0)))
    assert (file.attributes().mode, file.attributes().acl) == (0o640, None)


def test_removing_a_list_leaves_the_mode(filesystem: MemoryFileSystem) -> None:
    file = user(ALICE).create(filesystem.root(), b"file")
    user(ALICE).set_attributes(file, SetAttributes(acl=TEAM))
    user(ALICE).set_attributes(file, SetAttributes(acl=SetAcl.NONE))
    assert (file.attributes().mode, file.attributes().acl) == (0o770, None)


def test_only_the_owner_changes_a_list(filesystem: MemoryFileSystem) -> None:
    top = user(ALICE).mkdir(filesystem.root(), b"top", mode(0o777))
    for change in (SetAttributes(acl=TEAM), SetAttributes(default_acl=SetAcl.NONE)):
        refused(Code.PERM, lambda change=change: user(CAROL).set_attributes(top, change))  # type: ignore[misc]
    user(ROOT).set_attributes(top, SetAttributes(acl=TEAM, default_acl=TEAM))
    assert (top.attributes().acl, top.attributes().default_acl) == (TEAM, TEAM)
    user(ALICE).set_attributes(top, SetAttributes(default_acl=SetAcl.NONE))
    assert (top.attributes().acl, top.attributes().default_acl) == (TEAM, None)
    before = top.attributes()
    user(ALICE).set_attributes(top, SetAttributes(default_acl=SetAcl.NONE))
    assert top.attributes() is before  # there was none


def test_what_cannot_have_a_list(filesystem: MemoryFileSystem) -> None:
    link = user(ALICE).symlink(filesystem.root(), b"link", b"to")
    file = user(ALICE).create(filesystem.root(), b"file")
    refused(Code.NOTSUPP, lambda: user(ALICE).set_attributes(link, SetAttributes(acl=TEAM)))
    refused(Code.ACCES, lambda: user(ALICE).set_attributes(file, SetAttributes(default_acl=TEAM)))
    refused(Code.ACCES, lambda: user(BOB).set_attributes(file, SetAttributes(default_acl=TEAM)))
    for somebody in (ALICE, BOB):
        user(somebody).set_attributes(file, SetAttributes(default_acl=SetAcl.NONE))
    filesystem.limits = Limits()  # type: ignore[misc]
    refused(Code.NOTSUPP, lambda: user(ALICE).set_attributes(file, SetAttributes(acl=TEAM)))


def test_a_set_group_id_bit_is_lost_with_a_list_from_outside(filesystem: MemoryFileSystem) -> None:
    file = user(ROOT).create(
        filesystem.root(), b"file", SetAttributes(mode=0o2750, uid=ALICE.uid, gid=77)
    )
    user(ALICE).set_attributes(file, SetAttributes(acl=TEAM))
    assert file.attributes().mode == 0o770


def test_a_default_list_is_inherited(filesystem: MemoryFileSystem) -> None:
    top = user(ALICE).mkdir(filesystem.root(), b"top", mode(0o777))
    user(ALICE).set_attributes(top, SetAttributes(default_acl=TEAM))
    file = user(BOB).create(top, b"file", mode(0o644))
    assert file.attributes().mode == 0o640
    assert file.attributes().acl == Acl(6, 5, 0, mask=4, users=TEAM.users, groups=TEAM.groups)
    assert file.attributes().default_acl is None
    below = user(BOB).mkdir(top, b"below", mode(0o2777))
    assert (below.attributes().mode, below.attributes().acl) == (0o2770, TEAM)
    assert below.attributes().default_acl == TEAM
    link = user(BOB).symlink(top, b"link", b"to")
    assert (link.attributes().mode, link.attributes().acl) == (0o777, None)
    exclusive = user(BOB).create_exclusive(top, b"exclusive", b"verifier")
    assert exclusive.attributes().mode == 0
    user(BOB).set_attributes(exclusive, mode(0o664))  # as clients do next
    assert user(CAROL).access(exclusive) == R | W


def test_a_minimal_default_list_is_a_mask_for_modes(filesystem: MemoryFileSystem) -> None:
    top = user(ALICE).mkdir(filesystem.root(), b"top", mode(0o777))
    user(ALICE).set_attributes(top, SetAttributes(default_acl=Acl(7, 5, 0)))
    file = user(BOB).create(top, b"file", mode(0o666))
    assert (file.attributes().mode, file.attributes().acl) == (0o640, None)


def test_attributes_of_nodes_in_memory_take_storage(filesystem: MemoryFileSystem) -> None:
    free = filesystem.free_bytes
    file = user(ALICE).create(filesystem.root(), b"file")
    file.set_xattr(b"user.one", b"1" * 1000)
    file.set_xattr(b"user.two", b"")
    file.set_xattr(b"user.one", b"2" * 10)
    assert (file.xattr(b"user.one"), file.xattrs()) == (b"2" * 10, [b"user.one", b"user.two"])
    assert free - filesystem.free_bytes == file.attributes().used > 0
    refused(Code.NOENT, lambda: file.xattr(b"user.three"))
    refused(Code.NOENT, lambda: file.remove_xattr(b"user.three"))
    refused(Code.NOSPC, lambda: file.set_xattr(b"user.long", bytes(65537)))
    file.remove_xattr(b"user.one")
    user(ALICE).remove(filesystem.root(), b"file")
    assert filesystem.free_bytes == free


def test_there_is_an_end_to_attributes(filesystem: MemoryFileSystem) -> None:
    file = user(ALICE).create(filesystem.root(), b"file")
    for number in range(257):
        file.set_xattr(b"user.%0250d" % number, b"")
    refused(Code.NOSPC, lambda: file.set_xattr(b"user.more", b""))
    file.set_xattr(b"user.%0250d" % 0, b"again")


# --- the kernel says ---------------------------------------------------------

USERS = [ALICE.uid, BOB.uid, CAROL.uid, DAVE.uid, 0, 65534]
GROUPS = [OWNING_GROUP, 60, 61, 62, 0]
CALLERS = [
    ROOT,
    ALICE,
    BOB,
    CAROL,
    DAVE,
    Credential(2000, OWNING_GROUP),
    Credential(2001, 60),
    Credential(2002, 62, frozenset({61, OWNING_GROUP})),
    Credential(2003, 300, frozenset({60, 61, 62})),
    Credential(65534, 65534),
]
LIST_COUNT = 150


def random_acl(chance: random.Random) -> Acl:
    def rights() -> int:
        return chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 7])

    def named(ids: list[int]) -> tuple[tuple[int, int], ...]:
        chosen = chance.sample(ids, chance.choice([0, 0, 1, 2, 3]))
        return tuple((id, rights()) for id in sorted(chosen))

    users, groups = named(USERS), named(GROUPS)
    mask = rights() if users or groups or chance.random() < 0.2 else None
    return Acl(rights(), rights(), rights(), mask, users, groups)


@pytest.fixture(params=["ext4", "tmpfs"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of the kernel's, in which everybody may do everything."""
    place = tmp_path / "place"
    place.mkdir()
    device = tmp_path / "device"
    if request.param == "ext4":
        subprocess.run(["truncate", "-s", "32M", device], check=True)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", "-o", "loop", device, place], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    place.chmod(0o777)
    before, umask = os.getcwd(), os.umask(0)
    os.chdir(place)  # what is above cannot be searched by everybody
    yield place
    os.chdir(before)
    os.umask(umask)
    subprocess.run(["umount", place], check=True)


def asked_as(who: Credential, ask: Callable[[], object]) -> object:
    """What a process of `who` finds out."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(Exception):
            os.setgroups(list(who.groups))
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
            with open(writer, "w") as out:
                json.dump(ask(), out)
            status = 0
        os._exit(status)
    os.close(writer)
    with open(reader) as found:
        said = found.read()
    _, status = os.waitpid(child, 0)
    assert status == 0
    return json.loads(said)


def list_of(path: str, name: str = ACCESS) -> Acl | None:
    try:
        return Acl.from_xattr(os.getxattr(path, name))
    except OSError:
        return None


def bits_of(path: str) -> int:
    return os.stat(path).st_mode & 0o7777


@pytest.mark.root
@pytest.mark.parametrize("type", [FileType.REGULAR, FileType.DIRECTORY])
def test_the_kernel_gives_the_same_rights(kernel: Path, type: FileType) -> None:
    chance = random.Random(f"rights {type}")
    made: dict[str, Attributes] = {}
    for number in range(LIST_COUNT):
        path, acl = str(number), random_acl(chance)
        os.mkdir(path) if type is FileType.DIRECTORY else Path(path).touch()
        os.chown(path, OWNER, OWNING_GROUP)
        os.setxattr(path, ACCESS, acl.to_xattr())
        kept = list_of(path)
        assert kept == (None if acl.is_minimal else acl)
        assert bits_of(path) == acl.mode
        made[path] = attributes(kept, type)
        made[path].mode = acl.mode
    for who in CALLERS:

        def ask() -> dict[str, list[bool]]:
            return {path: [os.access(path, wanted) for wanted in range(1, 8)] for path in made}

        said = asked_as(who, ask)
        ours = {
            path: [access.permits(who, its, wanted) for wanted in range(1, 8)]
            for path, its in made.items()
        }
        assert said == ours, who
        for path, its in made.items():
            one_by_one = [right for right in (X, W, R) if ours[path][right - 1]]
            assert access.rights(who, its) == sum(one_by_one)
        assert any(any(row) for row in ours.values())


@pytest.mark.root
def test_the_kernel_takes_the_same_lists(kernel: Path) -> None:
    chance = random.Random("lists")
    Path("file").touch()
    taken = 0
    for _ in range(3000):
        entries = list(random_acl(chance).entries())
        match chance.randrange(6):
            case 0:
                entries.pop(chance.randrange(len(entries)))
            case 1:
                chance.shuffle(entries)
            case 2:
                entries.insert(chance.randrange(len(entries)), chance.choice(entries))
            case 3:
                at = chance.randrange(len(entries))
                entries[at] = entries[at]._replace(rights=chance.choice([8, 15, 0o100, 7]))
            case 4:
                at = chance.randrange(len(entries))
                entries[at] = entries[at]._replace(
                    tag=chance.choice([0, 3, 1, 2, 4, 8, 16, 32, 64])
                )
        value = Acl(0, 0, 0).to_xattr()[:4] + b"".join(
            entry.tag.to_bytes(2, "little")
            + entry.rights.to_bytes(2, "little")
            + entry.id.to_bytes(4, "little")
            for entry in entries
        )
        try:
            os.setxattr("file", ACCESS, value)
        except OSError:
            refused(Code.INVAL, lambda value=value: Acl.from_xattr(value))  # type: ignore[misc]
        else:
            taken += 1
            ours = Acl.from_xattr(value)
            assert ours is not None
            assert ours.to_xattr() == value
            assert list_of("file") == (None if ours.is_minimal else ours)
    assert 500 < taken < 2500


@pytest.mark.root
def test_the_kernel_changes_lists_with_modes(kernel: Path) -> None:
    chance = random.Random("modes")
    clock = HandClock()
    filesystem = memory(clock=clock)
    Path("file").touch()
    ours = user(ROOT).create(filesystem.root(), b"file", mode(0o666))
    for _ in range(400):
        if chance.random() < 0.5:
            bits = chance.randrange(0o10000)
            os.chmod("file", bits)
            user(ROOT).set_attributes(ours, mode(bits))
        elif chance.random() < 0.2:
            with suppress(OSError):
                os.removexattr("file", ACCESS)
            user(ROOT).set_attributes(ours, SetAttributes(acl=SetAcl.NONE))
        else:
            acl = random_acl(chance)
            os.setxattr("file", ACCESS, acl.to_xattr())
            user(ROOT).set_attributes(ours, SetAttributes(acl=acl))
        its = ours.attributes()
        assert (bits_of("file"), list_of("file")) == (its.mode, its.acl)


@pytest.mark.root
def test_the_kernel_passes_default_lists_on_as_we_do(kernel: Path) -> None:
    chance = random.Random("defaults")
    filesystem = memory()
    for number in range(LIST_COUNT):
        acl, bits = random_acl(chance), chance.randrange(0o1000)
        name = str(number)
        os.mkdir(name)
        os.setxattr(name, DEFAULT, acl.to_xattr())
        os.close(os.open(f"{name}/file", os.O_CREAT, bits))
        os.mkdir(f"{name}/directory", bits)
        os.mkfifo(f"{name}/fifo", bits)
        top = user(ROOT).mkdir(filesystem.root(), name.encode())
        user(ROOT).set_attributes(top, SetAttributes(default_acl=acl))
        made = {
            "file": user(ROOT).create(top, b"file", mode(bits)),
            "directory": user(ROOT).mkdir(top, b"directory", mode(bits)),
            "fifo": user(ROOT).mknod(top, b"fifo", FileType.FIFO, wishes=mode(bits)),
        }
        for each, node in made.items():
            path, its = f"{name}/{each}", node.attributes()
            said = bits_of(path), list_of(path), list_of(path, DEFAULT)
            assert said == (its.mode, its.acl, its.default_acl), (acl, bits)
