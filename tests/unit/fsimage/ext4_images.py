"""Images to test with, and everything that our reader says about one.

Images are made by mke2fs and debugfs, which need no privilege; what the kernel makes of them is the
business of tests/interop.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from appliance.fsimage.image import open_image
from appliance.vfs.interface import Entry, FileSystem, FileType, Node

MKE2FS = ["mke2fs", "-q", "-F", "-U", "6a1b5c9e-2f0d-4f5e-9a53-0c1d2e3f4a5b"]

READ_BYTES = 1 << 20
LIST_ENTRIES = 700
LARGE = 1 << 25
LARGE_TAIL = 2 << 20


def run(command: Sequence[str | Path], said: str = "") -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=said)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_image(path: Path, size: str, *options: str, tree: Path | None = None) -> Path:
    """An image of `size` (as truncate takes it), with what is in `tree`."""
    run(["truncate", "-s", size, path])
    populate = ["-d", str(tree)] if tree else []
    run([*MKE2FS, *options, *populate, path])
    return path


def debugfs(image: Path, *commands: str) -> str:
    """Run commands of debugfs that may change the image."""
    return run(["debugfs", "-w", "-f", "-", image], said="\n".join(commands) + "\n")


def e2fsck(image: Path) -> None:
    """Fails if e2fsck finds anything wrong."""
    run(["e2fsck", "-f", "-n", image])


def open_ro(image: Path) -> FileSystem:
    return open_image(str(image))


def sample_tree(top: Path) -> Path:
    """Some of everything that needs no privilege."""
    top.mkdir()
    for size in (0, 1, 60, 1024, 4096, 5000, 300_000):
        (top / f"size-{size}").write_bytes(bytes(at * 31 >> 3 & 0xFF for at in range(size)))
    (top / "many").mkdir()
    for number in range(400):
        (top / "many" / f"entry-number-{number:04d}").write_text(str(number))
    (top / "short").symlink_to("size-60")
    (top / "long").symlink_to("l" * 200)
    (top / "hard").hardlink_to(top / "size-5000")
    (top / "a" / "b" / "c").mkdir(parents=True)
    with (top / "sparse").open("wb") as file:
        file.seek(2_000_000)
        file.write(b"the end")
    return top


# --- looking -----------------------------------------------------------------


def contents(node: Node) -> Iterator[bytes | bytearray | memoryview]:
    """All bytes of a file, in large reads; of one so large that it can only be sparse, the end."""
    size = node.attributes().size
    offset = size - LARGE_TAIL if size > LARGE else 0
    while True:
        buffers, at_end = node.read(offset, READ_BYTES)
        yield from buffers
        offset += sum(map(len, buffers))
        if at_end:
            assert offset == node.attributes().size
            return
        assert buffers


def digest(node: Node) -> str:
    found = hashlib.sha256()
    for buffer in contents(node):
        found.update(buffer)
    return found.hexdigest()


def listing(directory: Node) -> list[Entry]:
    """All entries but "." and "..", a few at a time, each from the cookie of the one before."""
    entries: list[Entry] = []
    cookie = 0
    while True:
        some = directory.entries(cookie, LIST_ENTRIES)
        entries += some
        if len(some) < LIST_ENTRIES:
            break
        cookie = some[-1].cookie
    assert [entry.name for entry in entries[:2]] == [b".", b".."]
    cookies = [entry.cookie for entry in entries]
    assert cookies[:2] == [1, 2]
    assert all(0 < before < after < 1 << 63 for before, after in pairwise(cookies))
    assert entries[0].fileid == directory.attributes().fileid
    assert entries[1].fileid == directory.parent().attributes().fileid
    return entries[2:]


def view(filesystem: FileSystem) -> dict[str, dict[str, Any]]:
    """Every object by its path, with all that is known of it."""
    objects: dict[str, dict[str, Any]] = {}
    pending: list[tuple[bytes, Node]] = [(b".", filesystem.root())]
    while pending:
        path, node = pending.pop()
        found = look(node)
        objects[path.hex()] = found
        if node.attributes().type is FileType.DIRECTORY:
            entries = listing(node)
            found["names"] = [entry.name.hex() for entry in entries]
            for entry in entries:
                child = node.lookup(entry.name)
                assert child.attributes().fileid == entry.fileid
                assert entry.node is child
                assert filesystem.resolve(child.handle) is child
                pending.append((path + b"/" + entry.name, child))
    return objects


def look(node: Node) -> dict[str, Any]:
    """One object, in the form of tests/interop/loop_worker.py."""
    attributes = node.attributes()
    found: dict[str, Any] = {
        "mode": attributes.type << 12 | attributes.mode,
        "ino": attributes.fileid,
        "nlink": attributes.nlink,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "size": attributes.size,
        "used": attributes.used,
        "rdev": list(attributes.rdev),
        "times": [attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns],
        "xattrs": dict(sorted(xattrs(node))),
    }
    if attributes.type is FileType.SYMLINK:
        found["target"] = node.readlink().hex()
    if attributes.type in (FileType.DIRECTORY, FileType.REGULAR):
        found["generation"] = int.from_bytes(node.handle[8:], "little")
    if attributes.type is FileType.REGULAR:
        found["sha256"] = digest(node)
    return found


def xattrs(node: Node) -> Iterator[tuple[str, str]]:
    """Its extended attributes, and its lists, which are such as well for the kernel."""
    attributes = node.attributes()
    for name in node.xattrs():
        yield os.fsdecode(name), node.xattr(name).hex()
    if attributes.acl is not None:
        yield "system.posix_acl_access", attributes.acl.to_xattr().hex()
    if attributes.default_acl is not None:
        yield "system.posix_acl_default", attributes.default_acl.to_xattr().hex()
