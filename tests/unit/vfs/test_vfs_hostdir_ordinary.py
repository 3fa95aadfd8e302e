"""A host directory that is served by an ordinary user: no privilege, hence the map of
identities."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.vfs.access import Credential
from appliance.vfs.errors import Code
from appliance.vfs.hostdir import HostDirectory
from appliance.vfs.hostdir.identities import IdMap
from appliance.vfs.interface import SetAttributes
from appliance.vfs.user import User
from tests.unit.vfs.tools import (
    NOBODY_UID,
    HandClock,
    as_ordinary_user,
    content,
    mode,
    names,
    refused,
)

pytestmark = pytest.mark.root  # to become an ordinary user one has to be root first

me = User(Credential(NOBODY_UID, NOBODY_UID), clock=HandClock())
somebody = User(Credential(1000, 1000), clock=HandClock())


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory of the ordinary user, at a place that he can reach."""
    path = Path(tempfile.mkdtemp())
    os.chown(path, NOBODY_UID, NOBODY_UID)
    yield path
    shutil.rmtree(path)


def test_files_are_served_without_any_privilege(top: Path) -> None:
    def act() -> None:
        host = HostDirectory(top)
        assert isinstance(host.identities, IdMap)
        below = me.mkdir(host.root(), b"d", mode(0o750))
        file = me.create(below, b"file", mode(0o640))
        me.write(file, 0, [b"hello"])
        me.sync(file)
        me.symlink(below, b"link", b"file")
        me.link(file, below, b"again")
        me.rename(below, b"file", host.root(), b"moved")
        me.set_attributes(file, SetAttributes(size=4, mtime_ns=5, mode=0o600))
        assert content(file) == b"hell"
        assert sorted(names(below)) == [b"again", b"link"]
        me.remove(below, b"again")
        assert file.attributes().nlink == 1
        host.close()

    as_ordinary_user(act)
    seen = (top / "moved").stat()
    assert (seen.st_uid, seen.st_mode & 0o7777, seen.st_mtime_ns) == (NOBODY_UID, 0o600, 5)


def test_handles_survive_a_restart_without_any_privilege(top: Path) -> None:
    def act() -> None:
        before = HostDirectory(top)
        below = me.mkdir(me.mkdir(before.root(), b"a"), b"b")
        file = me.create(below, b"file")
        me.write(file, 0, [b"data"])
        os.rename(top / "a" / "b" / "file", top / "elsewhere")
        after = HostDirectory(top)
        assert content(after.resolve(file.handle)) == b"data"
        assert after.resolve(below.handle).attributes().fileid == below.attributes().fileid
        os.unlink(top / "elsewhere")
        refused(Code.STALE, lambda: HostDirectory(top).resolve(file.handle))

    as_ordinary_user(act)


def test_what_others_make_belongs_to_the_server(top: Path) -> None:
    """It cannot give files away; so such an export squashes everybody to the server's user."""

    def act() -> None:
        host = HostDirectory(top)
        me.set_attributes(host.root(), mode(0o777))
        made = somebody.create(host.root(), b"file", mode(0o604)).attributes()
        assert (made.uid, made.mode) == (NOBODY_UID, 0o604)
        root = User(Credential(0, 0), clock=HandClock())
        file = host.root().lookup(b"file")
        refused(Code.PERM, lambda: root.set_attributes(file, SetAttributes(uid=1000)))

    as_ordinary_user(act)


def test_the_host_has_the_last_word(top: Path) -> None:
    """Whatever the caller may do, the server can do no more than its own user."""
    (top / "roots").write_bytes(b"secret")
    (top / "roots").chmod(0o600)
    (top / "locked").mkdir(mode=0o700)

    def act() -> None:
        host = HostDirectory(top)
        root = User(Credential(0, 0), clock=HandClock())
        file = root.lookup(host.root(), b"roots")
        refused(Code.ACCES, lambda: root.read(file, 0, 10))
        refused(Code.ACCES, lambda: root.write(file, 0, [b"x"]))
        locked = root.lookup(host.root(), b"locked")
        refused(Code.ACCES, lambda: root.lookup(locked, b"x"))
        refused(Code.ACCES, lambda: root.read_directory(locked, 0, 10))
        refused(Code.STALE, lambda: host.resolve(bytes(8)))  # walks, and is not stopped by them

    as_ordinary_user(act)


def test_a_file_that_may_only_be_written_is_written(top: Path) -> None:
    def act() -> None:
        host = HostDirectory(top)
        file = me.create(host.root(), b"file", mode(0o200))
        assert me.write(file, 0, [b"x"]) == 1
        me.sync(file)
        refused(Code.ACCES, lambda: me.read(file, 0, 1))

    as_ordinary_user(act)


def test_a_file_without_any_permission_is_written_and_committed(top: Path) -> None:
    """An exclusive create makes such a file, and sets its mode afterwards."""

    def act() -> None:
        host = HostDirectory(top)
        file = me.create_exclusive(host.root(), b"file", bytes(8))
        assert me.write(file, 0, [b"x"]) == 1
        me.sync(file)
        me.sync(file)
        me.set_attributes(file, mode(0o600))
        assert content(file) == b"x"

    as_ordinary_user(act)
