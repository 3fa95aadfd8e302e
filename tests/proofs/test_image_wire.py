"""What NFS clients rely on, call by call, on an image: over a restart of the server, over the reuse
of inodes and blocks, and while a directory changes under its reader."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.nfsd.v3 import protocol as nfs
from appliance.nfsd.v3.protocol import nfsstat3
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, FileType, NewNode, Node, SetAttributes
from tests.proofs import geometry
from tests.proofs.conftest import Templates
from tests.sim.nfs_client import NfsClient, Refused
from tests.sim.nfs_world import NfsWorld

pytestmark = pytest.mark.root

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
VICTIM_BYTES = 4 << 20
KINDS = ["ext4-1k", "ext4-no-extents", "ext2-1k"]
"""With an index in directories, without one, and without a journal."""


class Served:
    """An image behind nfsd, which can be started again on it."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.start()

    def start(self) -> None:
        self.filesystem: FileSystem = geometry.open_rw(self.image)
        self.world = NfsWorld("/ *(rw,no_root_squash)", [("/", self.filesystem)])

    def client(self) -> NfsClient:
        return self.world.client()

    def restart(self) -> None:
        self.filesystem.close()
        self.start()

    def power_cut(self) -> None:
        """What is in the file at this moment is all that is left."""
        self.image = Path(shutil.copyfile(self.image, self.image.with_suffix(".left")))
        self.filesystem.close()
        self.start()


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest, templates: Templates, tmp_path: Path) -> Served:
    image = geometry.copied(templates(request.param), tmp_path / "fs.img")
    return Served(image)


def refused(status: nfsstat3, act: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.status is status


def create_exclusive(client: NfsClient, root: bytes, name: bytes, verifier: bytes) -> bytes:
    where = nfs.diropargs3(root, name)
    made: bytes = client(nfs.CREATE3args(where, nfs.Exclusive(verifier))).obj
    return made


@pytest.mark.parametrize("kind", ["ext4-1k", "ext3-1k"])
def test_an_exclusive_create_is_repeated_after_a_power_cut(
    kind: str, templates: Templates, tmp_path: Path
) -> None:
    """The reply was lost: the client repeats its call to the next server, and it is its own."""
    served = Served(geometry.copied(templates(kind), tmp_path / "fs.img"))
    client = served.client()
    root = client.mount()
    verifier = b"\xff\x80verify"
    made = create_exclusive(client, root, b"name", verifier)
    served.power_cut()
    assert create_exclusive(served.client(), root, b"name", verifier) == made
    refused(
        nfsstat3.NFS3ERR_EXIST,
        lambda: create_exclusive(served.client(), root, b"name", b"another."),
    )
    geometry.judge(served.image, served.filesystem)


def test_an_exclusive_create_is_repeated_after_a_restart(served: Served) -> None:
    root = served.client().mount()
    made = create_exclusive(served.client(), root, b"name", b"verifier")
    served.restart()
    assert create_exclusive(served.client(), root, b"name", b"verifier") == made
    geometry.judge(served.image, served.filesystem)


def test_a_removed_file_is_stale_for_ever(served: Served) -> None:
    """Also when its inode is another file's, and after a restart."""
    client = served.client()
    root = client.mount()
    old = client.create(root, b"old")
    client.write(old, b"old")
    number = client.attributes(old).fileid
    client.remove(root, b"old")
    for turn in range(100):
        new = client.create(root, b"new-%d" % turn)
        client.write(new, b"new")
        if client.attributes(new).fileid == number:
            break
    else:
        pytest.fail("the inode was never used again")
    check_stale(client, old)
    served.restart()
    assert served.client().read(new) == b"new"
    check_stale(served.client(), old)
    geometry.judge(served.image, served.filesystem)


def check_stale(client: NfsClient, file: bytes) -> None:
    refused(nfsstat3.NFS3ERR_STALE, lambda: client.attributes(file))
    refused(nfsstat3.NFS3ERR_STALE, lambda: client.read(file))
    refused(nfsstat3.NFS3ERR_STALE, lambda: client.write(file, b"x"))


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_goes_on_while_entries_come_and_go(served: Served, plus: bool) -> None:
    """What stays is listed exactly once, also if the server is started again in the middle."""
    client, chance = served.client(), random.Random(1)
    root = client.mount()
    directory = client.mkdir(root, b"many")
    staying = {b"stays-%d" % number for number in range(400)}
    passing = [b"comes-and-goes-%d" % number for number in range(300)]
    there = set(passing[:150])
    for name in sorted(staying | there):
        client.create(directory, name)
    seen: list[bytes] = []
    pages = 0
    cookie, verifier, eof = 0, bytes(8), False
    while not eof:
        args = (
            nfs.READDIRPLUS3args(directory, cookie, verifier, 1024, 4096)
            if plus
            else nfs.READDIR3args(directory, cookie, verifier, 1024)
        )
        page = client(args)
        seen += [entry.name for entry in page.reply.entries]
        cookie, verifier, eof = page.reply.entries[-1].cookie, page.cookieverf, page.reply.eof
        pages += 1
        for name in chance.sample(passing, 20):
            if name in there:
                client.remove(directory, name)
            else:
                client.create(directory, name)
            there ^= {name}
        if pages == 5:
            served.restart()
            client = served.client()
    assert pages > 10
    assert sorted(name for name in seen if name in staying) == sorted(staying)
    geometry.judge(served.image, served.filesystem)


def test_a_file_is_removed_while_another_client_reads_it(served: Served) -> None:
    """Its reader is told so, and is never given what another file now has in its blocks."""
    reader, writer = served.client(), served.world.client(address="10.0.0.10")
    root = reader.mount()
    file = writer.create(root, b"file")
    for at in range(8):
        writer.write(file, b"old!" * 8192, at * 32768)
    assert reader.read(file, 0, 32768) == b"old!" * 8192
    writer.remove(root, b"file")
    other = writer.create(root, b"other")
    for at in range(8):
        writer.write(other, b"new!" * 8192, at * 32768)
    refused(nfsstat3.NFS3ERR_STALE, lambda: reader.read(file, 32768, 32768))
    geometry.judge(served.image, served.filesystem)


class Reader(threading.Thread):
    """Reads a file again and again; `foreign`: bytes that were never in it."""

    def __init__(self, root: Node) -> None:
        super().__init__()
        self._root = root
        self.ended = threading.Event()
        self.foreign = b""
        self.errors: set[Code] = set()
        self.reads = 0

    def run(self) -> None:
        while not self.ended.is_set() and not self.foreign:
            try:
                buffers, _ = self._root.lookup(b"victim").read(0, VICTIM_BYTES)
            except VfsError as error:
                self.errors.add(error.code)
                continue
            self.reads += 1
            self.foreign = bytes(set(b"".join(buffers)) - {0, ord("v")})


def test_readers_never_see_blocks_that_have_become_anothers(
    templates: Templates, tmp_path: Path
) -> None:
    """Threads read a file while it is truncated and removed, and its blocks are given away: they
    find its bytes, zeros, its end or that it has gone."""
    image = geometry.copied(templates("ext4-1k"), tmp_path / "fs.img")
    filesystem = geometry.open_rw(image)
    root = filesystem.root()
    readers = [Reader(root) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(40):
            give_and_take(root, truncated=turn % 2 == 1)
            if turn % 4 == 0:
                filesystem.commit()
    finally:
        for reader in readers:
            reader.ended.set()
            reader.join()
    for reader in readers:
        assert not reader.foreign
        assert reader.errors <= {Code.NOENT, Code.STALE}
        assert reader.reads
    geometry.judge(image, filesystem)


def give_and_take(root: Node, *, truncated: bool) -> None:
    """Two files, whose first letters are their content, come and go."""
    names = (b"victim", b"other")
    for name in names:
        root.create(name, FILE).write(0, [name[:1] * VICTIM_BYTES])
    if truncated:
        root.lookup(b"victim").set_attributes(SetAttributes(size=1000))
    for name in names:
        root.remove(name)
