"""Extended attributes and access control lists: the kernel, through a loop device, and we do the
same to an image, read what the other has written, and go on with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest

from appliance.fsimage.ext4 import xattr
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.layout import ext4_xattr_header
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.acl import Acl
from tests.interop.loop_worker import run_worker
from tests.unit.fsimage.ext4_images import e2fsck, make_image, open_ro
from tests.unit.fsimage.ext4_xattrs import (
    ACCESS,
    Change,
    change,
    open_rw,
    random_changes,
    random_list,
    xattrs,
)

pytestmark = pytest.mark.root

MATRIX = {
    "ext4-4k": ["-t", "ext4", "-b", "4096"],
    "ext4-1k": ["-t", "ext4", "-b", "1024"],
    "ext4-upstream": ["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
    "ext4-no-csum": ["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
    "ext4-inode-1024": ["-t", "ext4", "-b", "4096", "-I", "1024"],
    "ext4-inode-128": ["-t", "ext4", "-b", "2048", "-I", "128"],
    "ext3": ["-t", "ext3", "-b", "4096", "-I", "256"],
    "ext2-32bit": ["-t", "ext2", "-b", "1024", "-I", "128"],
}

LONG_LIST = Acl(7, 7, 7, mask=7, users=tuple((uid, 5) for uid in range(500)))


def by_kernel(image: Path, changes: list[Change]) -> list[bool]:
    file = image.with_suffix(".json")
    file.write_text(json.dumps(changes))
    taken: list[bool] = run_worker(image, "rw", "change_xattrs", str(file))
    e2fsck(image)
    return taken


def seen_by_kernel(image: Path) -> dict[str, Any]:
    found: dict[str, Any] = run_worker(image, "ro,noload", "xattrs")
    return found


def by_us(image: Path, changes: list[Change]) -> list[bool]:
    filesystem = open_rw(image)
    taken = [change(filesystem, *each) for each in changes]
    filesystem.close()
    e2fsck(image)
    return taken


def seen_by_us(image: Path) -> dict[str, Any]:
    filesystem = open_ro(image)
    found = xattrs(filesystem)
    filesystem.close()
    return found


@pytest.mark.parametrize("name", MATRIX)
def test_the_kernel_and_we_change_attributes_alike(tmp_path: Path, name: str) -> None:
    """On two copies of an image: what fits for one fits for the other, and takes as much. In the
    end each goes on with what the other has left."""
    one = make_image(tmp_path / "one.img", "32M", *MATRIX[name])
    two = tmp_path / "two.img"
    shutil.copyfile(one, two)
    chance = Random(name)
    for first, second in ((one, two), (two, one)):
        changes = random_changes(chance, 400)
        taken = by_kernel(first, changes)
        assert by_us(second, changes) == taken
        assert 100 < sum(taken) < 400
        assert seen_by_kernel(first) == seen_by_us(first)
        assert seen_by_kernel(second) == seen_by_us(second) == seen_by_us(first)


def test_blocks_that_the_kernel_shares(tmp_path: Path) -> None:
    """Each of us takes files out of the community, without harm to the others."""
    image = make_image(tmp_path / "fs.img", "32M", "-t", "ext4", "-b", "1024")
    value = bytes(range(200)).hex()
    chance = Random(1)
    acl = random_list(chance)
    files = [f"file-{number}" for number in range(20)]
    both: list[Change] = [(file, "user.a", value) for file in files]
    both += [(file, ACCESS, acl) for file in files]
    assert all(by_kernel(image, both))

    filesystem = open_rw(image)
    assert len(shared_with(filesystem, "file-0")) == len(files)
    before = xattrs(filesystem)
    free = filesystem.statistics().free_bytes
    assert change(filesystem, "file-0", "user.a", "00" * 100)
    assert change(filesystem, "file-1", ACCESS, None)
    assert change(filesystem, "file-1", "user.a", None)
    filesystem.root().remove(b"file-2")
    assert len(shared_with(filesystem, "file-3")) == len(files) - 3
    assert free - filesystem.statistics().free_bytes == 1024
    after = xattrs(filesystem)
    assert {file: after[file] for file in files[3:]} == {file: before[file] for file in files[3:]}
    filesystem.close()
    e2fsck(image)
    assert seen_by_kernel(image) == after
    assert all(by_kernel(image, [(file, "user.a", None) for file in files[3:10]]))

    filesystem = open_rw(image)
    for file in files[3:]:
        filesystem.root().remove(file.encode())
    filesystem.close()
    e2fsck(image)


def shared_with(filesystem: Ext4, path: str) -> list[int]:
    """The inodes that share the block of this file; its header counts as many."""
    block = block_of(filesystem, path)
    found = [
        filesystem.root().lookup(name.encode()).attributes().fileid
        for name in xattrs(filesystem)
        if block_of(filesystem, name) == block
    ]
    header = ext4_xattr_header.decode(filesystem.volume.block(block))
    assert header.h_refcount == len(found)
    return found


def block_of(filesystem: Ext4, path: str) -> int:
    node = filesystem.root().lookup(path.encode())
    assert isinstance(node, Ext4Node)
    return xattr.block_of(filesystem.volume, node.inode.disk)


def test_values_in_inodes_of_their_own(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "32M", "-t", "ext4", "-b", "1024", "-O", "ea_inode")
    chance = Random(2)
    changes: list[Change] = [
        ("file", f"user.{length}", chance.randbytes(length).hex())
        for length in (10, 900, 1024, 1025, 20_000, 65_536)
    ]
    changes.append(("file", ACCESS, random_list(chance)))
    changes.append(("listed", ACCESS, LONG_LIST.to_xattr().hex()))
    assert all(by_kernel(image, changes))
    ours = seen_by_us(image)
    assert ours == seen_by_kernel(image)
    assert len(ours["file"]["xattrs"]) == len(changes) - 1


def test_the_kernel_obeys_lists_that_we_wrote(tmp_path: Path) -> None:
    """As a process of the user who is named, and as one of somebody else."""
    image = make_image(tmp_path / "fs.img", "32M", "-t", "ext4")
    script = tmp_path / "try.sh"
    script.write_text(
        "mount -o loop $1 $2 && cd $2 && "
        "setpriv --reuid 1002 --regid 9 --clear-groups cat file && "
        "! setpriv --reuid 1003 --regid 9 --clear-groups cat file"
    )
    filesystem = open_rw(image)
    for_one = Acl(6, 0, 0, mask=4, users=((1002, 6),))
    assert change(filesystem, "file", ACCESS, for_one.to_xattr().hex())
    filesystem.root().lookup(b"file").write(0, [b"seen"])
    filesystem.close()
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", script, image, place],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "seen"), done.stderr
