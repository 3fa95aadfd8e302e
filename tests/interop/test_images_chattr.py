"""What chattr(1) has forbidden in an image: the kernel, through a loop device, and we refuse the
same, and pass the same flags on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from appliance.vfs.access import Credential
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import Node, SetAcl, SetAttributes, SetTime
from appliance.vfs.user import User
from tests.interop.loop_worker import run_worker
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image
from tests.unit.fsimage.ext4_xattrs import SUPERUSER, open_rw
from tests.unit.vfs.tools import HandClock

pytestmark = pytest.mark.root

Attempt = tuple[str, str, str]
"""What, on which path, and where to."""

ON_FILES: Final = ("write", "chmod", "chown", "set times", "touch", "set list", "truncate")
ON_DIRECTORIES: Final = ("chmod", "chown", "set times", "touch", "set list")
KINDS: Final = "ian"

ATTEMPTS: Final[list[Attempt]] = [
    *((what, f"file-{kind}", "") for kind in KINDS for what in ON_FILES),
    *((what, f"directory-{kind}", "") for kind in KINDS for what in ON_DIRECTORIES),
    *(("link", f"file-{kind}", f"one-more-{kind}") for kind in KINDS),
    *(("rename", "file-n", f"file-{kind}") for kind in "ia"),
    *(("rename", f"file-{kind}", f"renamed-{kind}") for kind in KINDS),
    *(("unlink", f"file-{kind}", "") for kind in "ia"),
    *(
        (what, f"directory-{kind}/{what}", "")
        for kind in KINDS
        for what in ("create", "mkdir", "symlink")
    ),
    *(("link", "renamed-n", f"directory-{kind}/linked") for kind in KINDS),
    *(("rename", f"directory-{kind}/create", f"directory-{kind}/renamed") for kind in KINDS),
    *(("rename", f"directory-{kind}/inside", f"moved-{kind}") for kind in KINDS),
    *(("rename", "renamed-n", f"directory-{kind}/moved-here") for kind in KINDS),
    *(("rename", f"directory-{kind}/below", "directory-n/below-too") for kind in KINDS),
    *(("unlink", f"directory-{kind}/symlink", "") for kind in KINDS),
    *(("rmdir", f"directory-{kind}/mkdir", "") for kind in KINDS),
    *(("rmdir", f"directory-{kind}", "") for kind in KINDS),
]


@pytest.mark.parametrize("uid", [0, 1001])
def test_the_kernel_and_we_refuse_the_same(tmp_path: Path, uid: int) -> None:
    ours = make_image(tmp_path / "ours.img", "32M", "-t", "ext4")
    run_worker(ours, "rw", "make_fixed")
    theirs = tmp_path / "theirs.img"
    shutil.copy(ours, theirs)
    said = tmp_path / "attempts.json"
    said.write_text(json.dumps([uid, ATTEMPTS]))

    by_kernel = run_worker(theirs, "rw", "attempt", str(said))
    by_us = attempt_all(ours, uid)
    assert dict(zip(ATTEMPTS, by_us, strict=True)) == dict(zip(ATTEMPTS, by_kernel, strict=True))
    assert by_us.count("EPERM") > len(ATTEMPTS) // 2
    assert by_us.count("done") > len(ATTEMPTS) // 4
    e2fsck(ours)


def test_flags_are_passed_on_as_by_the_kernel(tmp_path: Path) -> None:
    """With O_SYNC and noatime, for one, a directory marks what is made in it."""
    ours = make_image(tmp_path / "ours.img", "32M", "-t", "ext4")
    run_worker(ours, "rw", "make_fixed")
    theirs = tmp_path / "theirs.img"
    shutil.copy(ours, theirs)
    makers = ("create", "mkdir", "symlink")
    attempts = [(what, f"passes-on/{what}", "") for what in makers]
    said = tmp_path / "attempts.json"
    said.write_text(json.dumps([0, attempts]))
    assert run_worker(theirs, "rw", "attempt", str(said)) == ["done"] * len(makers)

    filesystem = open_rw(ours)
    for what, path, other in attempts:
        TRY[what](SUPERUSER, filesystem.root(), path, other)
    filesystem.close()
    e2fsck(ours)
    assert [flags(ours, path) for _, path, _ in attempts] == [
        flags(theirs, path) for _, path, _ in attempts
    ]
    assert flags(ours, "passes-on/mkdir") == flags(ours, "passes-on")


def flags(image: Path, path: str) -> int:
    found = re.search(r"Flags: 0x([0-9a-f]+)", debugfs(image, f"stat /{path}"))
    assert found
    return int(found[1], 16)


def attempt_all(image: Path, uid: int) -> list[str]:
    filesystem = open_rw(image)
    user = User(Credential(uid, uid), clock=HandClock())
    ends = [attempt(user, filesystem.root(), *each) for each in ATTEMPTS]
    filesystem.close()
    return ends


def attempt(user: User, root: Node, what: str, path: str, other: str) -> str:
    try:
        TRY[what](user, root, path, other)
    except VfsError as error:
        return f"E{error.code.name}"
    return "done"


def walk(root: Node, path: str) -> Node:
    node = root
    for name in path.encode().split(b"/"):
        node = SUPERUSER.lookup(node, name)
    return node


def place(root: Node, path: str) -> tuple[Node, bytes]:
    """The directory of a path, and the name in it."""
    above, _, name = path.rpartition("/")
    return walk(root, above) if above else root, name.encode()


def setter(changes: SetAttributes) -> Callable[[User, Node, str, str], object]:
    return lambda user, root, path, _: user.set_attributes(walk(root, path), changes)


TRY: Final[dict[str, Callable[[User, Node, str, str], object]]] = {
    "write": lambda user, root, path, _: user.write(walk(root, path), 7, [b"more"]),
    "truncate": setter(SetAttributes(size=1)),
    "chmod": setter(SetAttributes(mode=0o700)),
    "chown": setter(SetAttributes(gid=1001)),
    "set times": setter(SetAttributes(atime_ns=1, mtime_ns=2)),
    "touch": setter(SetAttributes(atime_ns=SetTime.NOW, mtime_ns=SetTime.NOW)),
    "set list": setter(SetAttributes(acl=SetAcl.NONE)),
    "create": lambda user, root, path, _: user.create(*place(root, path)),
    "mkdir": lambda user, root, path, _: user.mkdir(*place(root, path)),
    "symlink": lambda user, root, path, _: user.symlink(*place(root, path), b"text"),
    "link": lambda user, root, path, other: user.link(walk(root, path), *place(root, other)),
    "unlink": lambda user, root, path, _: user.remove(*place(root, path)),
    "rmdir": lambda user, root, path, _: user.rmdir(*place(root, path)),
    "rename": lambda user, root, path, other: user.rename(*place(root, path), *place(root, other)),
}
