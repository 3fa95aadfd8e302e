"""A host directory: its files are the host's, and nobody gets out of it."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import os
import random
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance import limits
from appliance.vfs.access import Credential, SquashRules, squash
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.hostdir import HostDirectory, syscalls
from appliance.vfs.hostdir.syscalls import Descriptor
from appliance.vfs.interface import FileType, NewNode, SetAttributes, same_node
from appliance.vfs.user import User
from tests.unit.vfs.tools import (
    ALICE,
    ROOT,
    HandClock,
    as_child,
    content,
    listing,
    mode,
    names,
    refused,
    text,
)

pytestmark = pytest.mark.root

root_user = User(ROOT, clock=HandClock())
alice = User(ALICE, clock=HandClock())

CLONE_NEWNS = 0x0002_0000
MS_REC_PRIVATE = 0x0004_4000


@pytest.fixture(params=["kernel handles", "id map"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostDirectory]:
    """A host directory "top" that anybody may write, beside a directory "outside"."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top").chmod(0o777)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    filesystem = HostDirectory(tmp_path / "top", kernel_handles=request.param == "kernel handles")
    yield filesystem
    filesystem.close()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "top"


def close_descriptors(filesystem: HostDirectory) -> None:
    """As if a thousand other files had been used since."""
    while filesystem._nodes:
        filesystem._nodes.popitem()[1].let_go()


def opened(below: Path) -> list[str]:
    """What this process has open in a directory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the one of this listing
    return [path for path in found if path.startswith(str(below))]


# What is made and seen.


def test_files_are_the_hosts(host: HostDirectory, top: Path) -> None:
    file = alice.create(host.root(), b"file", mode(0o4750))
    alice.write(file, 0, [b"hello ", b"", b"world"])
    seen = (top / "file").stat()
    assert (top / "file").read_bytes() == b"hello world"
    assert (seen.st_uid, seen.st_gid) == (ALICE.uid, ALICE.gid)
    assert stat.S_IMODE(seen.st_mode) == 0o750  # written by one who is not the superuser
    its = file.attributes()
    assert (its.fileid, its.size, its.used) == (seen.st_ino, 11, seen.st_blocks * 512)
    assert (its.mtime_ns, its.ctime_ns) == (seen.st_mtime_ns, seen.st_ctime_ns)


@pytest.mark.parametrize("bits", [0o777, 0o7777, 0o000])
def test_modes_are_exact_whatever_the_umask(host: HostDirectory, top: Path, bits: int) -> None:
    before = os.umask(0o077)
    try:
        root_user.create(host.root(), b"file", mode(bits))
        root_user.mkdir(host.root(), b"dir", mode(bits))
        root_user.mknod(host.root(), b"fifo", FileType.FIFO, wishes=mode(bits))
    finally:
        os.umask(before)
    for name in ("file", "dir", "fifo"):
        assert stat.S_IMODE((top / name).stat().st_mode) == bits


def test_symbolic_links_are_read_and_owned_and_never_followed(
    host: HostDirectory, top: Path
) -> None:
    link = alice.symlink(host.root(), b"link", b"../outside/secret")
    assert alice.readlink(link) == b"../outside/secret"
    root_user.set_attributes(link, SetAttributes(uid=5, gid=6, mtime_ns=7))
    seen = (top / "link").lstat()
    assert (seen.st_uid, seen.st_gid, seen.st_mtime_ns) == (5, 6, 7)
    root_user.link(link, host.root(), b"again")
    assert os.readlink(top / "again") == "../outside/secret"
    refused(Code.INVAL, lambda: root_user.read(link, 0, 10))
    (top / "out").symlink_to("../outside")
    out = root_user.lookup(host.root(), b"out")
    refused(Code.NOTDIR, lambda: root_user.lookup(out, b"secret"))
    refused(Code.NOTDIR, lambda: root_user.create(out, b"new"))


def test_devices_and_fifos_are_shown_and_not_opened(host: HostDirectory, top: Path) -> None:
    device = root_user.mknod(host.root(), b"null", FileType.CHARACTER_DEVICE, (1, 3))
    assert device.attributes().rdev == (1, 3)
    os.mkfifo(top / "fifo")  # opening it would wait for a writer
    fifo = root_user.lookup(host.root(), b"fifo")
    assert fifo.attributes().type is FileType.FIFO
    for node in (device, fifo):
        refused(Code.INVAL, lambda node=node: node.read(0, 1))  # type: ignore[misc]
        refused(Code.INVAL, lambda node=node: node.write(0, [b"x"]))  # type: ignore[misc]
        node.commit()


def test_changes_on_the_host_are_seen(host: HostDirectory, top: Path) -> None:
    (top / "file").write_bytes(b"one")
    file = host.root().lookup(b"file")
    assert content(file) == b"one"
    before = file.attributes()
    assert file.attributes() is before
    (top / "file").write_bytes(b"another")
    assert content(file) == b"another"
    assert file.attributes() != before


def test_every_change_of_ours_changes_the_change_attribute(host: HostDirectory) -> None:
    """Though the host's clock for files moves every few milliseconds only."""
    file = root_user.create(host.root(), b"file")
    seen = [file.attributes().change]
    for _ in range(20):
        file.write(0, [b"x"])
        seen.append(file.attributes().change)
    assert seen == sorted(set(seen))


def test_how_full_it_is_is_what_the_host_says(host: HostDirectory, top: Path) -> None:
    says = os.statvfs(top)
    full = host.statistics()
    assert full.total_bytes == says.f_blocks * says.f_frsize
    assert full.total_files == says.f_files
    assert 0 < full.available_bytes <= full.free_bytes < full.total_bytes


def test_identity_is_the_same_after_a_restart_and_differs_between_directories(
    host: HostDirectory, tmp_path: Path
) -> None:
    assert HostDirectory(tmp_path / "top").fsid == host.fsid
    assert HostDirectory(tmp_path / "outside").fsid != host.fsid


def test_what_cannot_be_served(tmp_path: Path) -> None:
    refused(Code.NOENT, lambda: HostDirectory(tmp_path / "missing"))
    (tmp_path / "file").write_bytes(b"")
    refused(Code.NOTDIR, lambda: HostDirectory(tmp_path / "file"))


def test_existing_names_are_not_made_again(host: HostDirectory, top: Path) -> None:
    """The backend itself, as when the host has been quicker than the check above it."""
    (top / "there").symlink_to("../outside/new")
    for type in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK, FileType.FIFO):
        new = NewNode(type, 0o644, 0, 0, target=b"x")
        refused(Code.EXIST, lambda new=new: host.root().create(b"there", new))  # type: ignore[misc]
    assert not (top.parent / "outside" / "new").exists()


# Handles.


def test_a_handle_survives_renames_and_a_restart(host: HostDirectory, top: Path) -> None:
    one = root_user.mkdir(host.root(), b"one")
    file = root_user.create(one, b"file")
    handles = [one.handle, file.handle]
    root_user.rename(one, b"file", host.root(), b"moved")
    os.rename(top / "one", top / "renamed on the host")
    os.rename(top / "moved", top / "moved on the host")
    close_descriptors(host)
    restarted = HostDirectory(top, kernel_handles="Kernel" in type(host.identities).__name__)
    for filesystem in (host, restarted):
        found = [filesystem.resolve(handle).attributes().fileid for handle in handles]
        assert found == [
            (top / "renamed on the host").stat().st_ino,
            (top / "moved on the host").stat().st_ino,
        ]


def test_any_link_leads_to_a_file(host: HostDirectory, top: Path) -> None:
    below = root_user.mkdir(host.root(), b"d")
    file = root_user.create(below, b"one")
    root_user.link(file, host.root(), b"two")
    os.unlink(top / "two")
    close_descriptors(host)
    assert host.resolve(file.handle).attributes().nlink == 1


def uses_inodes_again(where: Path) -> bool:
    """Whether the host's file system does: ext4, xfs and what lies on them; not tmpfs, nor
    btrfs."""
    numbers = set()
    for _ in range(50):
        (where / "probe").touch()
        numbers.add((where / "probe").stat().st_ino)
        (where / "probe").unlink()
    return len(numbers) < 50


@pytest.mark.parametrize("by_host", [False, True])
def test_removed_files_are_stale_also_when_the_inode_is_used_again(
    host: HostDirectory, top: Path, by_host: bool
) -> None:
    root = host.root()
    old = [root_user.create(root, b"file")]
    numbers = {old[0].attributes().fileid}
    reused = False
    for _ in range(50):
        if by_host:
            os.unlink(top / "file")
            old[-1].let_go()  # type: ignore[attr-defined]
        else:
            root_user.remove(root, b"file")
        new = root_user.create(root, b"file")
        number = new.attributes().fileid
        reused = reused or number in numbers
        numbers.add(number)
        for node in old:
            refused(Code.STALE, lambda node=node: host.resolve(node.handle).attributes())  # type: ignore[misc]
        old.append(new)
    assert reused == uses_inodes_again(top)


@pytest.mark.parametrize(("busy", "code"), [(3, Code.STALE), (10**6, Code.IO)])
def test_an_inode_that_somebody_is_making_is_looked_at_again(
    top: Path, monkeypatch: pytest.MonkeyPatch, busy: int, code: Code
) -> None:
    """Linux has no memory for it meanwhile, it says; and it may be true."""
    top.mkdir()
    host = HostDirectory(top, kernel_handles=True)
    file = root_user.create(host.root(), b"file")
    root_user.remove(host.root(), b"file")
    file.let_go()  # type: ignore[attr-defined]
    answers = itertools.chain(itertools.repeat(errno.ENOMEM, busy), itertools.repeat(errno.ESTALE))

    def open_by_handle(*_: object) -> Descriptor:
        raise OSError(next(answers), "")

    monkeypatch.setattr(syscalls, "open_by_handle", open_by_handle)
    refused(code, lambda: host.resolve(file.handle).attributes())
    monkeypatch.undo()
    host.close()


def test_a_file_that_the_host_removes_is_stale_while_it_is_open(
    host: HostDirectory, top: Path
) -> None:
    file = root_user.create(host.root(), b"file")
    file.write(0, [b"x"])
    os.unlink(top / "file")
    refused(Code.STALE, file.attributes)
    refused(Code.STALE, lambda: root_user.read(file, 0, 1))


def test_no_handle_can_be_made_up(host: HostDirectory, tmp_path: Path) -> None:
    """Not even from good handles, of this or of another server: the kernel would open any file."""
    file = root_user.create(host.root(), b"file")
    handle = file.handle
    assert 1 <= len(handle) <= limits.NODE_HANDLE_BYTES_MAX
    others = HostDirectory(tmp_path / "outside", key=b"k" * 32)
    made_up = [handle[:-1], handle + b"\0", b"", bytes(43), others.root().lookup(b"secret").handle]
    for position in range(len(handle)):
        flipped = bytearray(handle)
        flipped[position] ^= 1
        made_up.append(bytes(flipped))
    close_descriptors(host)
    for wrong in made_up:
        with pytest.raises(VfsError) as caught:
            host.resolve(wrong)
        assert caught.value.code in (Code.BADHANDLE, Code.STALE)


# Nobody gets out.


def test_a_directory_that_was_moved_out_has_no_parent(host: HostDirectory, top: Path) -> None:
    below = root_user.mkdir(root_user.mkdir(host.root(), b"d"), b"below")
    os.rename(top / "d", top.parent / "outside" / "d")
    refused(Code.STALE, lambda: root_user.lookup(below, b".."))


def test_the_top_is_its_own_parent(host: HostDirectory, top: Path) -> None:
    assert same_node(root_user.lookup(host.root(), b".."), host.root())
    entries = {entry.name: entry for entry in host.root().entries(0, 10)}
    assert entries[b".."].fileid == host.root().attributes().fileid == top.stat().st_ino


def test_a_directory_replaced_by_a_link_is_not_followed(host: HostDirectory, top: Path) -> None:
    below = root_user.mkdir(host.root(), b"d")
    root_user.create(below, b"inside")
    os.rename(top / "d", top / "real")
    (top / "d").symlink_to("../outside")
    for _ in range(2):
        refused(Code.NOENT, lambda: root_user.lookup(below, b"secret"))
        assert names(below) == [b"inside"]
        close_descriptors(host)


def test_while_the_host_swaps_a_directory_with_a_link_nothing_leaks(
    host: HostDirectory, top: Path
) -> None:
    outside = (top.parent / "outside" / "secret").stat().st_ino
    (top / "real").mkdir()
    (top / "real" / "file").write_bytes(b"inside")
    (top / "link").symlink_to("../outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(top / "link", top / "name")
            os.unlink(top / "name")
            os.rename(top / "real", top / "name")
            os.rename(top / "name", top / "real")
            (top / "link").symlink_to("../outside")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = set()
        for turn in range(2000):
            try:
                where = root_user.lookup(host.root(), b"name")
                if turn % 7 == 0:
                    close_descriptors(host)
                found = root_user.lookup(where, b"secret" if turn % 2 else b"file")
            except VfsError as error:
                seen.add(error.code)
                continue
            assert found.attributes().fileid != outside
    finally:
        stop.set()
        swapper.join()
    assert seen & {Code.NOTDIR, Code.NOENT, Code.STALE}


def test_what_is_mounted_below_is_not_entered(host: HostDirectory, top: Path) -> None:
    (top / "point").mkdir()
    (top / "dir").mkdir()
    with_handles = "Kernel" in type(host.identities).__name__

    def act() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        assert libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) == 0
        target = os.fsencode(top / "point")
        assert libc.mount(b"tmpfs", target, b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
        served = HostDirectory(top, kernel_handles=with_handles)
        refused(Code.ACCES, lambda: root_user.lookup(served.root(), b"point"))
        assert sorted(names(served.root())) == [b"dir", b"point"]
        root_user.lookup(served.root(), b"dir")

    as_child(act)


# Listings.


def test_ten_thousand_entries_change_while_they_are_listed(host: HostDirectory, top: Path) -> None:
    chance = random.Random(5)
    staying = {b"stays-%d" % number for number in range(5000)}
    going = [b"goes-%d" % number for number in range(5000)]
    for name in [*staying, *going]:
        os.close(os.open(os.fsencode(top) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    seen: list[bytes] = []
    cookie, page = 0, 173
    while True:
        entries = host.root().entries(cookie, page)
        seen += [entry.name for entry in entries]
        if len(entries) < page:
            break
        cookie = entries[-1].cookie
        assert 0 < cookie < 1 << 63
        for _ in range(40):
            host.root().remove(going.pop(chance.randrange(len(going))))
            os.close(os.open(top / f"new-{chance.random()}", os.O_CREAT | os.O_WRONLY))
        close_descriptors(host)
    found = [name for name in seen if name in staying]
    assert len(found) == len(staying) and set(found) == staying
    assert {b".", b".."} <= set(seen)


@pytest.mark.parametrize("cookie", [1, 12345, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_any_number_serves_as_a_cookie(host: HostDirectory, cookie: int) -> None:
    root_user.create(host.root(), b"file")
    assert len(host.root().entries(cookie, 10)) <= 3


# Waiting, and what is kept open.


class FakeReads:
    """preadv of a host whose memory holds the first `cached` bytes of every file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cached: int | None) -> None:
        self._real = os.preadv
        self.cached = cached  # None: the host cannot tell
        self.waits: list[str] = []
        monkeypatch.setattr(os, "preadv", self.preadv)

    def preadv(
        self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int = 0
    ) -> int:
        if not flags:
            self.waits.append("read")
            return self._real(fd, buffers, offset)
        assert flags == os.RWF_NOWAIT
        if self.cached is None:
            raise OSError(errno.EOPNOTSUPP, "cannot tell")
        if offset >= self.cached:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        part = memoryview(buffers[0])[: self.cached - offset]
        return self._real(fd, [part], offset)

    def about_to_wait(self) -> None:
        self.waits.append("about to wait")


@pytest.mark.parametrize(
    ("cached", "expected"),
    [
        (1 << 20, []),
        (100_000, ["about to wait", "read"]),
        (0, ["about to wait", "read"]),
        (None, ["about to wait", "read"]),
    ],
)
def test_a_read_says_when_it_is_about_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: int | None, expected: list[str]
) -> None:
    data = os.urandom(200_000)
    (tmp_path / "file").write_bytes(data)
    reads = FakeReads(monkeypatch, cached)
    filesystem = HostDirectory(tmp_path, about_to_wait=reads.about_to_wait)
    file = filesystem.root().lookup(b"file")
    for offset, count in ((0, 200_000), (0, 1 << 20)):
        buffers, end = file.read(offset, count)
        assert text(buffers) == data and end
        assert reads.waits == expected
        reads.waits.clear()
    assert file.read(200_000, 10) == ([], True)
    buffers, end = file.read(0, 10)
    assert (text(buffers), end) == (data[:10], False)


def test_a_file_that_is_cut_off_while_it_is_read_ends_there(
    host: HostDirectory, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "file").write_bytes(b"x" * 1000)
    file = host.root().lookup(b"file")
    host.about_to_wait = lambda: os.truncate(top / "file", 300)  # type: ignore[misc]
    FakeReads(monkeypatch, 100)
    buffers, end = file.read(0, 1000)
    assert (text(buffers), end) == (b"x" * 300, True)


def test_commits_say_that_they_wait(tmp_path: Path) -> None:
    waits: list[None] = []
    filesystem = HostDirectory(tmp_path, about_to_wait=lambda: waits.append(None))
    file = root_user.create(filesystem.root(), b"file")
    assert not waits
    file.commit()
    filesystem.root().commit()
    filesystem.commit()
    assert len(waits) == 3


def test_writes_are_whole_though_the_host_takes_them_in_parts(
    host: HostDirectory, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [os.urandom(1 + number % 5) for number in range(3000)]
    file = root_user.create(host.root(), b"file")
    real = os.pwritev

    def in_parts(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        assert len(buffers) <= 1024
        return real(fd, [buffers[0], *(part[:1] for part in buffers[1:2])], offset)

    for writing in (real, in_parts):
        monkeypatch.setattr(os, "pwritev", writing)
        assert file.write(7, pieces) == sum(map(len, pieces))
        assert (top / "file").read_bytes() == bytes(7) + b"".join(pieces)
        file.set_attributes(SetAttributes(size=0))


def test_few_files_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOST_NODES_MAX", 10)
    filesystem = HostDirectory(tmp_path)
    nodes = [root_user.create(filesystem.root(), b"%d" % number) for number in range(100)]
    for node in nodes:
        node.write(0, [b"x"])
        node.read(0, 1)
    assert len(opened(tmp_path)) > 3 * 10  # these are in use
    del nodes, node
    assert len(opened(tmp_path)) <= 1 + 3 * 10


def test_removed_files_are_not_kept_open(host: HostDirectory, top: Path) -> None:
    root = host.root()
    nodes = [root_user.create(root, name) for name in (b"one", b"two", b"three")]
    for node in nodes:
        node.write(0, [b"x"])
        node.read(0, 1)
    root_user.remove(root, b"one")
    root_user.rename(root, b"two", root, b"three")
    assert not [path for path in opened(top) if path.endswith("(deleted)")]


def test_a_program_can_be_run_on_the_host_once_it_is_committed(
    host: HostDirectory, top: Path
) -> None:
    program = root_user.create(host.root(), b"program", mode(0o755))
    program.write(0, [Path("/bin/true").read_bytes()])
    program.commit()
    assert subprocess.run([top / "program"], check=False).returncode == 0


def test_nothing_stays_open_after_closing(tmp_path: Path) -> None:
    filesystem = HostDirectory(tmp_path)
    for number in range(20):
        root_user.create(filesystem.root(), b"%d" % number).write(0, [b"x"])
    assert len(opened(tmp_path)) > 20
    filesystem.close()
    assert len(opened(tmp_path)) == 1
    del filesystem
    gc.collect()
    assert not opened(tmp_path)


def test_threads_work_in_one_directory(host: HostDirectory, top: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                name = b"%d-%d" % (number, turn)
                file = root_user.create(host.root(), name)
                root_user.write(file, 0, [name])
                root_user.rename(host.root(), name, host.root(), b"moved-" + name)
                assert text(root_user.read(host.resolve(file.handle), 0, 100)[0]) == name
                if turn % 2:
                    root_user.remove(host.root(), b"moved-" + name)
                if turn % 10 == 0:
                    with host.lock:
                        close_descriptors(host)
        except (VfsError, AssertionError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(top)) == 4 * 30 == len(listing(host.root()))


def test_a_squashed_caller_is_nobody_on_the_host(host: HostDirectory, top: Path) -> None:
    nobody = User(Credential(65534, 65534), clock=HandClock())
    nobody.create(host.root(), b"file")
    assert (top / "file").stat().st_uid == 65534


@pytest.mark.parametrize("rules", [SquashRules(), SquashRules(root_squash=False)])
def test_nobody_gets_a_program_that_runs_as_root(
    host: HostDirectory, top: Path, rules: SquashRules
) -> None:
    who = squash(Credential(0xFFFF_FFFF, 0xFFFF_FFFF), rules)
    User(who, clock=HandClock()).create(host.root(), b"program", mode(0o4755))
    status = (top / "program").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)
