"""A host directory whose files have access control lists: the host keeps them, we obey them."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import limits
from appliance.clock import SECOND
from appliance.vfs.access import READ, WRITE, Credential
from appliance.vfs.acl import CLOSED, Acl
from appliance.vfs.errors import Code
from appliance.vfs.hostdir import HostDirectory, lists
from appliance.vfs.hostdir.syscalls import Descriptor
from appliance.vfs.interface import FileType, SetAcl, SetAttributes
from appliance.vfs.user import User
from tests.unit.vfs.tools import ALICE, BOB, CAROL, ROOT, HandClock, mode, refused

pytestmark = pytest.mark.root

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TEAM = Acl(owner=7, group=5, other=0, mask=7, users=((CAROL.uid, READ | WRITE),))


def user(who: Credential) -> User:
    return User(who, clock=HandClock())


@pytest.fixture(params=["kernel handles", "id map"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostDirectory]:
    """A host directory "top" that anybody may write."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top").chmod(0o777)
    filesystem = HostDirectory(tmp_path / "top", kernel_handles=request.param == "kernel handles")
    yield filesystem
    filesystem.close()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "top"


def list_of(path: Path, name: str = ACCESS) -> Acl | None:
    try:
        return Acl.from_xattr(os.getxattr(path, name))
    except OSError:
        return None


def test_lists_of_the_host_are_obeyed(host: HostDirectory, top: Path) -> None:
    (top / "file").write_bytes(b"text")
    (top / "file").chmod(0o600)
    file = host.root().lookup(b"file")
    refused(Code.ACCES, lambda: user(CAROL).read(file, 0, 9))
    os.setxattr(top / "file", ACCESS, TEAM.to_xattr())
    assert user(CAROL).access(file) == READ | WRITE
    assert user(CAROL).write(file, 0, [b"hers"]) == 4
    refused(Code.ACCES, lambda: user(BOB).read(file, 0, 9))
    os.setxattr(top / "file", ACCESS, Acl(7, 7, 7, mask=7, users=((CAROL.uid, 0),)).to_xattr())
    refused(Code.ACCES, lambda: user(CAROL).read(file, 0, 9))
    assert user(BOB).read(file, 0, 9)[1]
    os.removexattr(top / "file", ACCESS)
    assert user(CAROL).read(file, 0, 9)[1]


def test_no_change_within_one_tick_of_the_host_is_missed(host: HostDirectory, top: Path) -> None:
    """Its clock for files may stand still between two of these."""
    (top / "file").touch()
    file = host.root().lookup(b"file")
    for number in range(500):
        acl = Acl(7, 7, 7, mask=7, users=((CAROL.uid, number % 8),))
        os.setxattr(top / "file", ACCESS, acl.to_xattr())
        assert file.attributes().acl == acl


def test_lists_are_not_asked_for_again_and_again(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top.mkdir()
    (top / "file").touch()
    os.setxattr(top / "file", ACCESS, TEAM.to_xattr())
    clock = HandClock(os.stat(top / "file").st_ctime_ns)
    filesystem = HostDirectory(top, clock=clock)
    file = filesystem.root().lookup(b"file")
    asked = []
    read = lists.read

    def counted(path: Descriptor, *, is_directory: bool) -> tuple[Acl | None, Acl | None]:
        asked.append(path)
        return read(path, is_directory=is_directory)

    monkeypatch.setattr(lists, "read", counted)
    first = file.attributes()
    assert file.attributes() is first  # asked again, but nothing has changed
    assert len(asked) == 2
    clock.advance(SECOND)
    assert file.attributes() is first
    assert file.attributes() is first
    assert len(asked) == 3
    os.setxattr(top / "file", ACCESS, Acl(7, 5, 0, mask=1).to_xattr())
    assert file.attributes().acl == Acl(7, 5, 0, mask=1)
    filesystem.close()


def test_lists_can_be_changed(host: HostDirectory, top: Path) -> None:
    file = user(ALICE).create(host.root(), b"file", mode(0o600))
    user(ALICE).set_attributes(file, SetAttributes(acl=TEAM))
    assert list_of(top / "file") == TEAM == file.attributes().acl
    assert file.attributes().mode == 0o770
    user(ALICE).set_attributes(file, mode(0o640))
    assert list_of(top / "file") == TEAM.with_mode(0o640) == file.attributes().acl
    user(ALICE).set_attributes(file, SetAttributes(acl=Acl(6, 4, 4)))
    assert (list_of(top / "file"), file.attributes().mode) == (None, 0o644)
    directory = user(ALICE).mkdir(host.root(), b"directory")
    user(ALICE).set_attributes(directory, SetAttributes(default_acl=TEAM))
    assert list_of(top / "directory", DEFAULT) == TEAM == directory.attributes().default_acl
    user(ALICE).set_attributes(directory, SetAttributes(default_acl=SetAcl.NONE))
    assert (top / "directory").is_dir()
    assert list_of(top / "directory", DEFAULT) is directory.attributes().default_acl is None
    link = user(ALICE).symlink(host.root(), b"link", b"to")
    assert link.attributes().acl is None


def test_what_is_made_below_a_default_list_is_what_the_host_would_make(
    host: HostDirectory, top: Path
) -> None:
    chance = random.Random(5)
    umask = os.umask(0)
    try:
        for number in range(60):
            here = top / str(number)
            here.mkdir()
            named = tuple((uid, chance.randrange(8)) for uid in (CAROL.uid, BOB.uid))
            owner, group, other, mask = (chance.randrange(8) for _ in range(4))
            acl = Acl(owner, group, other, *((mask, named) if number % 3 else ()))
            os.setxattr(here, DEFAULT, acl.to_xattr())
            bits = chance.randrange(0o1000)
            os.close(os.open(here / "file", os.O_CREAT, bits))
            (here / "directory").mkdir(bits)
            os.mkfifo(here / "fifo", bits)
            directory = host.root().lookup(str(number).encode())
            user(ROOT).create(directory, b"our file", mode(bits))
            user(ROOT).mkdir(directory, b"our directory", mode(bits))
            user(ROOT).mknod(directory, b"our fifo", FileType.FIFO, wishes=mode(bits))
            for name in ("file", "directory", "fifo"):
                its, ours = here / name, here / f"our {name}"
                assert ours.stat().st_mode == its.stat().st_mode
                assert list_of(ours) == list_of(its)
                assert list_of(ours, DEFAULT) == list_of(its, DEFAULT)
    finally:
        os.umask(umask)


def test_a_list_that_is_too_long_is_one_for_nobody(
    host: HostDirectory, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "file").touch()
    os.setxattr(top / "file", ACCESS, TEAM.to_xattr())
    monkeypatch.setattr(limits, "ACL_ENTRIES_MAX", len(list(TEAM.entries())) - 1)
    assert host.root().lookup(b"file").attributes().acl == CLOSED


def test_a_file_system_without_lists(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        without_lists(HostDirectory(tmp_path))
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def without_lists(filesystem: HostDirectory) -> None:
    file = user(ROOT).create(filesystem.root(), b"file")
    refused(Code.NOTSUPP, lambda: user(ROOT).set_attributes(file, SetAttributes(acl=TEAM)))
    user(ROOT).set_attributes(file, mode(0o640))
    assert (file.attributes().mode, file.attributes().acl) == (0o640, None)
    filesystem.close()


def test_attributes_of_users(host: HostDirectory, top: Path) -> None:
    file = user(ALICE).create(host.root(), b"file")
    before = file.attributes().change
    file.set_xattr(b"user.colour", b"green")
    assert file.attributes().change > before
    assert os.getxattr(top / "file", "user.colour") == b"green" == file.xattr(b"user.colour")
    os.setxattr(top / "file", "trusted.secret", b"for the host")
    assert file.xattrs() == [b"user.colour"]
    refused(Code.NOTSUPP, lambda: file.xattr(b"trusted.secret"))
    file.remove_xattr(b"user.colour")
    refused(Code.NOENT, lambda: file.xattr(b"user.colour"))
    refused(Code.NOENT, lambda: file.remove_xattr(b"user.colour"))
