"""Extended attributes and access control lists of ext4 images; debugfs and e2fsck are judges."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from appliance.fsimage.ext4 import acl as disk_acl
from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.node import Ext4Node
from appliance.nfsd.v3.protocol import (
    ACCESS3_MODIFY,
    ACCESS3_READ,
    ACCESS3args,
    SETATTR3args,
    nfsstat3,
    sattr3,
)
from appliance.vfs.access import Credential
from appliance.vfs.acl import CLOSED, Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Node, SetAttributes
from appliance.vfs.user import User
from tests.sim.nfs_client import NfsClient, Refused
from tests.sim.nfs_world import NfsWorld
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, open_ro, run
from tests.unit.fsimage.ext4_xattrs import (
    SUPERUSER,
    change,
    open_rw,
    random_changes,
    xattrs,
)
from tests.unit.vfs.tools import ALICE, BOB, CAROL, HandClock, memory, mode, refused

MATRIX = {
    "ext4-4k": ["-t", "ext4", "-b", "4096"],
    "ext4-1k": ["-t", "ext4", "-b", "1024", "-O", "metadata_csum_seed"],
    "ext4-no-csum": ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
    "ext4-inode-512": ["-t", "ext4", "-b", "2048", "-I", "512"],
    "ext2-inode-128": ["-t", "ext2", "-b", "1024", "-I", "128"],
}
TEAM = Acl(owner=7, group=5, other=0, mask=7, users=((CAROL.uid, 6),), groups=((60, 4),))


Shape = tuple[int, Acl | None, Acl | None]
"""Mode, access list and default list."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "fs.img", "8M", *MATRIX["ext4-1k"])


def user(who: Credential) -> User:
    return User(who, clock=HandClock())


# --- others' attributes --------------------------------------------------------


@pytest.mark.parametrize("name", MATRIX)
def test_what_debugfs_has_set_is_read(tmp_path: Path, name: str) -> None:
    image = make_image(tmp_path / "fs.img", "8M", *MATRIX[name])
    values = {f"user.{length}": Random(length).randbytes(length) for length in (1, 4, 30, 400)}
    (tmp_path / "empty").touch()
    debugfs(image, f"write {tmp_path}/empty file")
    for key, value in values.items():
        (tmp_path / "value").write_bytes(value)
        debugfs(image, f"ea_set -f {tmp_path}/value file {key}")
    debugfs(image, "ea_set file trusted.t text", "ea_set file security.s text")
    filesystem = open_ro(image)
    found = xattrs(filesystem)["file"]["xattrs"]
    filesystem.close()
    texts = dict.fromkeys(("trusted.t", "security.s"), b"text")
    assert found == {key: value.hex() for key, value in (values | texts).items()}


@pytest.mark.parametrize("name", MATRIX)
def test_what_we_have_set_is_read_by_debugfs(tmp_path: Path, name: str) -> None:
    """Random changes, with the file system opened again in between; the model is a dictionary."""
    image = make_image(tmp_path / "fs.img", "8M", *MATRIX[name])
    model: dict[str, dict[str, str]] = {}
    chance = Random(name)
    for _ in range(3):
        filesystem = open_rw(image)
        for path, key, value in random_changes(chance, 150):
            known = model.setdefault(path, {})
            if not change(filesystem, path, key, value):
                continue
            if value is None:
                known.pop(key, None)
            else:
                known[key] = value
        found = {path: each["xattrs"] for path, each in xattrs(filesystem).items()}
        assert found == model | {"lost+found": {}}
        filesystem.close()
        e2fsck(image)
    out = tmp_path / "out"
    for path, known in model.items():
        for key, value in known.items():
            if key.isascii() and not key.startswith("system."):
                out.unlink(missing_ok=True)
                run(["debugfs", "-R", f"ea_get -f {out} {path} {key}", image])
                assert out.read_bytes().hex() == value


# --- changes -------------------------------------------------------------------


def test_what_does_not_fit_changes_nothing(image: Path) -> None:
    filesystem = open_rw(image)
    file = SUPERUSER.create(filesystem.root(), b"file")
    file.set_xattr(b"user.in-inode", b"a" * 20)
    file.set_xattr(b"user.in-block", b"b" * 600)
    before, its = xattrs(filesystem), file.attributes()
    refused(Code.NOSPC, lambda: file.set_xattr(b"user.more", b"c" * 400))
    refused(Code.NOSPC, lambda: file.set_xattr(b"user.in-inode", b"c" * 5000))
    refused(Code.NOENT, lambda: file.remove_xattr(b"user.other"))
    many = Acl(7, 7, 7, mask=7, users=tuple((uid, 7) for uid in range(200)))
    refused(Code.NOSPC, lambda: SUPERUSER.set_attributes(file, SetAttributes(acl=many)))
    assert xattrs(filesystem) == before
    assert file.attributes() == its
    file.set_xattr(b"user.in-inode", b"d" * 20)
    assert file.attributes().change > its.change
    assert file.attributes().ctime_ns >= its.ctime_ns
    filesystem.close()
    e2fsck(image)


def test_a_full_file_system_has_no_room_for_a_block(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "8M", *MATRIX["ext4-1k"], "-m", "0")
    filesystem = open_rw(image)
    root = filesystem.root()
    filler = SUPERUSER.create(root, b"filler")
    with pytest.raises(VfsError, match="NOSPC"):
        fill(filler)
    files = [SUPERUSER.create(root, b"file-%d" % number) for number in range(150)]
    with pytest.raises(VfsError, match="NOSPC"):
        attribute(files)
    has_one = [bool(file.xattrs()) for file in files]
    assert has_one == sorted(has_one, reverse=True)
    assert [file.attributes().used for file in files] == [1024 * has for has in has_one]
    root.remove(b"filler")
    attribute(files)
    filesystem.close()
    e2fsck(image)


def fill(file: Node) -> None:
    """Write more than fits."""
    for piece in range(200):
        file.write(piece * 100_000, [bytes(100_000)])


def attribute(files: list[Node]) -> None:
    """Give each something that takes a block."""
    for file in files:
        file.set_xattr(b"user.large", bytes(500))


def test_blocks_are_given_back(image: Path) -> None:
    filesystem = open_rw(image)
    SUPERUSER.mkdir(filesystem.root(), b"directory")  # the root's own block has been used
    free = filesystem.statistics().free_bytes
    for number in range(20):
        name = b"file-%d" % number
        file = SUPERUSER.create(filesystem.root(), name)
        file.set_xattr(b"user.large", bytes(700))
        assert file.attributes().used == 1024
        if number % 2:
            file.remove_xattr(b"user.large")
            assert file.attributes().used == 0
        filesystem.root().remove(name)
    link = SUPERUSER.symlink(filesystem.root(), b"link", b"t" * 59)
    link.set_xattr(b"trusted.large", bytes(700))
    assert link.readlink() == b"t" * 59
    SUPERUSER.remove(filesystem.root(), b"link")
    filesystem.commit()
    assert filesystem.statistics().free_bytes == free
    filesystem.close()
    e2fsck(image)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"user.", Code.INVAL),
        (b"user.\0", Code.INVAL),
        (b"user." + b"n" * 256, Code.NAMETOOLONG),
        (b"system.posix_acl_access", Code.NOTSUPP),
        (b"system.data", Code.NOTSUPP),
        (b"colour", Code.NOTSUPP),
    ],
)
def test_names_that_cannot_be(image: Path, name: bytes, code: Code) -> None:
    filesystem = open_rw(image)
    file = SUPERUSER.create(filesystem.root(), b"file")
    refused(code, lambda: file.set_xattr(name, b""))
    refused(code, lambda: file.remove_xattr(name))
    filesystem.close()


def test_a_file_system_without_the_feature(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext2", "-O", "^ext_attr")
    filesystem = open_rw(image)
    file = SUPERUSER.create(filesystem.root(), b"file")
    refused(Code.NOTSUPP, lambda: file.set_xattr(b"user.a", b""))
    refused(Code.NOTSUPP, lambda: SUPERUSER.set_attributes(file, SetAttributes(acl=TEAM)))
    SUPERUSER.set_attributes(file, mode(0o600))
    filesystem.close()
    e2fsck(image)


# --- lists ---------------------------------------------------------------------


def test_lists_on_disk() -> None:
    """Version 1: ids only where somebody is named (checked by the kernel in tests/interop)."""
    value = disk_acl.encode(TEAM)
    assert len(value) == 4 + 4 * 4 + 2 * 8
    assert disk_acl.decode(value) == TEAM
    assert disk_acl.decode(b"\1\0\0\0") is None
    for wrong in (b"", b"\2\0\0\0", value[:-1], value[:-4], value + b"\0"):
        refused(Code.INVAL, lambda wrong=wrong: disk_acl.decode(wrong))  # type: ignore[misc]


def test_lists_are_kept_and_inherited_as_in_memory(image: Path) -> None:
    filesystem, model = open_rw(image), memory()
    chance = Random(3)
    for number in range(40):
        named = tuple((uid, chance.randrange(8)) for uid in (CAROL.uid, BOB.uid))
        owner, group, other, mask, bits = (chance.randrange(8) for _ in range(5))
        acl = Acl(owner, group, other)
        if number % 3:
            acl = Acl(owner, group, other, mask, named)
        name, bits = b"%d" % number, bits << 6 | 0o43
        ours = made_below(filesystem.root(), name, acl, bits)
        assert ours == made_below(model.root(), name, acl, bits)
    before = xattrs(filesystem)
    filesystem.close()
    e2fsck(image)
    again = open_ro(image)
    assert xattrs(again) == before
    again.close()


def made_below(root: Node, name: bytes, acl: Acl, bits: int) -> list[Shape]:
    """What comes of a directory with this default list."""
    wishes = SetAttributes(mode=0o777, uid=ALICE.uid, gid=ALICE.gid)
    directory = SUPERUSER.mkdir(root, name, wishes)
    user(ALICE).set_attributes(directory, SetAttributes(default_acl=acl))
    file = user(BOB).create(directory, b"file", mode(bits))
    below = user(BOB).mkdir(directory, b"below", mode(bits))
    user(BOB).set_attributes(file, mode(0o751))
    shapes = []
    for node in (directory, file, below):
        its = node.attributes()
        shapes.append((its.mode, its.acl, its.default_acl))
    return shapes


# --- damage --------------------------------------------------------------------


def damage(image: Path, before: bytes, after: bytes) -> None:
    """Change some bytes, wherever they are, and not the checksums over them."""
    raw = image.read_bytes()
    assert before in raw
    image.write_bytes(raw.replace(before, after))


def with_list_in_block(image: Path) -> Acl:
    """A file of Alice's, which anybody may read but for its list, in a block of its own."""
    acl = Acl(6, 4, 4, mask=4, users=tuple((uid, 0) for uid in range(50_000, 50_040)))
    filesystem = open_rw(image)
    root = filesystem.root()
    file = SUPERUSER.create(root, b"file", SetAttributes(mode=0o644, uid=ALICE.uid, gid=ALICE.gid))
    SUPERUSER.set_attributes(file, SetAttributes(acl=acl))
    file.write(0, [b"text"])
    filesystem.close()
    return acl


def test_a_list_that_cannot_be_read_gives_nothing(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "8M", *MATRIX["ext4-1k"])
    acl = with_list_in_block(image)
    value = disk_acl.encode(acl)
    for wrong in (value[:8] + b"\7\0\7\0" + value[12:], b"\7" + value[1:]):
        copy = tmp_path / "copy.img"
        copy.write_bytes(image.read_bytes())
        damage(copy, value, wrong)
        filesystem = open_rw(copy)
        file = filesystem.root().lookup(b"file")
        assert file.attributes().acl == CLOSED
        refused(Code.ACCES, lambda file=file: user(CAROL).read(file, 0, 9))  # type: ignore[misc]
        assert user(ALICE).read(file, 0, 9)[1]
        refused(Code.IO, file.xattrs)
        refused(Code.IO, lambda file=file: file.set_xattr(b"user.large", bytes(500)))  # type: ignore[misc]
        filesystem.root().remove(b"file")
        filesystem.close()


def test_a_list_that_makes_no_sense_gives_nothing(tmp_path: Path) -> None:
    """Where no checksum says that it is not what somebody wrote."""
    image = make_image(tmp_path / "fs.img", "8M", *MATRIX["ext4-no-csum"])
    value = disk_acl.encode(with_list_in_block(image))
    damage(image, value, value[:4] + b"\3" + value[5:])
    filesystem = open_rw(image)
    file = filesystem.root().lookup(b"file")
    assert file.attributes().acl == CLOSED
    user(ALICE).set_attributes(file, mode(0o604))  # Linux: and now no list is asked
    assert file.attributes().acl == Acl(6, 0, 4, mask=0)
    assert user(CAROL).read(file, 0, 9)[1]
    filesystem.close()
    e2fsck(image)


def test_entries_that_reach_too_far() -> None:
    good = xattr.body_with({(1, b"name"): b"value"}, 96)
    assert good is not None
    assert [stored.value for stored in xattr.in_body(good)] == [b"value"]
    for at, wrong in ((4, b"\xff"), (6, b"\xff\xff"), (12, b"\xff\0"), (12, b"\xff\xff\xff\xff")):
        bad = good[:at] + wrong + good[at + len(wrong) :]
        with pytest.raises(ValueError, match="beyond"):
            list(xattr.in_body(bad))
    with pytest.raises(ValueError, match="beyond"):
        list(xattr.in_body(good[:8]))
    with pytest.raises(ValueError, match="no block"):
        list(xattr.in_block(bytes(1024)))
    assert list(xattr.in_body(struct.pack("<I", layout.XATTR_MAGIC))) == []
    assert list(xattr.in_body(b"")) == []


# --- served --------------------------------------------------------------------


def test_callers_get_what_lists_give_them(image: Path) -> None:
    filesystem = open_rw(image)
    world = NfsWorld("/ *(rw,no_root_squash)", [("/", filesystem)])
    root = world.client()
    top = root.mount(b"/")
    file = root.create(top, b"file")
    root.write(file, b"text")
    node = filesystem.root().lookup(b"file")
    assert isinstance(node, Ext4Node)
    acl = Acl(6, 0, 0, mask=6, users=((1002, 4), (1003, 0), (1004, 6)), groups=((60, 2),))
    SUPERUSER.set_attributes(node, SetAttributes(acl=acl, uid=1000))
    assert root.attributes(file).mode == 0o660

    def may(uid: int, *gids: int) -> str:
        return rights_of(world.client(uid=uid, gid=9, gids=gids), file)

    assert [may(uid) for uid in (1000, 1002, 1003, 1004, 1005)] == ["rw", "r", "", "rw", ""]
    assert [may(1005, 60), may(1003, 60), may(1005, 61)] == ["w", "", ""]
    owner = world.client(uid=1000)
    owner(SETATTR3args(file, sattr3(mode=0o600), None))  # closes it to everybody who is named
    assert [may(1002), may(1004), may(1005, 60)] == ["", "", ""]
    owner(SETATTR3args(file, sattr3(mode=0o620), None))
    assert [may(1002), may(1004), may(1005, 60)] == ["", "w", "w"]
    filesystem.close()
    e2fsck(image)


def test_what_callers_make_inherits_lists(image: Path) -> None:
    filesystem = open_rw(image)
    world = NfsWorld("/ *(rw,no_root_squash)", [("/", filesystem)])
    top = world.client().mount(b"/")
    root = filesystem.root()
    SUPERUSER.set_attributes(root, SetAttributes(mode=0o777))
    SUPERUSER.set_attributes(root, SetAttributes(default_acl=TEAM))
    alice = world.client(uid=ALICE.uid, gid=ALICE.gid)
    file = alice.create(top, b"file", sattr3(mode=0o644))
    assert alice.attributes(file).mode == 0o640
    below = alice.mkdir(top, b"below", sattr3(mode=0o777))
    assert alice.attributes(below).mode == 0o770
    carol = world.client(uid=CAROL.uid, gid=CAROL.gid)
    assert rights_of(carol, file) == "r"
    with pytest.raises(Refused):  # she may read and write there, but not search
        carol.create(below, b"hers")
    filesystem.close()
    e2fsck(image)
    again = open_ro(image)
    its = again.root().lookup(b"file").attributes()
    assert its.acl == TEAM.with_mode(0o640)
    assert again.root().lookup(b"below").attributes().default_acl == TEAM
    again.close()


def rights_of(client: NfsClient, file: bytes) -> str:
    """What the server lets this client do, by trying; ACCESS has to say the same."""
    rights = "r" * succeeds(lambda: client.read(file))
    rights += "w" * succeeds(lambda: client.write(file, b"text"))
    said = client(ACCESS3args(file, ACCESS3_READ | ACCESS3_MODIFY)).access
    assert bool(said & ACCESS3_READ) == ("r" in rights)
    assert bool(said & ACCESS3_MODIFY) == ("w" in rights)
    return rights


def succeeds(act: Callable[[], object]) -> bool:
    """Whether the server does it, and does not refuse for want of permission."""
    try:
        act()
    except Refused as error:
        if error.status is not nfsstat3.NFS3ERR_ACCES:
            raise
        return False
    return True
