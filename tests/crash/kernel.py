"""The kernel as a judge: it mounts an image, and says what it sees.

It works in a process of its own, in a mount namespace of its own: nobody else sees the mounts, and
with that process they are gone. Requests are paths of images, answers are pickled.

    python -m tests.crash.kernel MOUNTPOINT     (needs root)
"""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Final

from appliance.vfs.acl import Acl
from appliance.vfs.interface import Attributes, FileType
from tests.crash.model import CHUNK, Content
from tests.crash.sight import WHOLE_BYTES_MAX, Seen, Sight

_ACL: Final = b"system.posix_acl_access"
_DEFAULT_ACL: Final = b"system.posix_acl_default"

TOP: Final = Path(__file__).parents[2]


class Kernel:
    """The process that mounts, from this side."""

    def __init__(self) -> None:
        self._mountpoint: Final = mkdtemp()
        command = ["unshare", "--mount", "--propagation", "private", sys.executable]
        self._process: Final = subprocess.Popen(
            [*command, "-m", "tests.crash.kernel", self._mountpoint],
            cwd=TOP,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        os.rmdir(self._mountpoint)

    def see(self, image: Path, probes: dict[int, set[int]]) -> Sight:
        """What the kernel sees in `image`, once it has replayed the journal. AssertionError: it
        does not want to mount it, or finds it damaged."""
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((str(image), probes), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        assert not isinstance(answer, str), answer
        sight: Sight = answer
        return sight


# --- on the other side -------------------------------------------------------


def serve(mountpoint: str) -> None:
    while True:
        try:
            image, probes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(mount_and_look(image, mountpoint, probes), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def mount_and_look(image: str, mountpoint: str, probes: dict[int, set[int]]) -> Sight | str:
    mounted = subprocess.run(
        ["mount", "-o", "loop,noatime", image, mountpoint], capture_output=True, text=True
    )
    if mounted.returncode:
        return f"mount: {mounted.stderr}"
    try:
        return walk(mountpoint.encode(), probes)
    except OSError as error:
        return f"what it mounted is damaged: {error}"
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def walk(top: bytes, probes: dict[int, set[int]]) -> Sight:
    found: Sight = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        found[path] = look(top + path, probes)
        if found[path].attributes.type is FileType.DIRECTORY:
            pending += [path + b"/" + name for name in os.listdir(top + path)]
    return found


def look(path: bytes, probes: dict[int, set[int]]) -> Seen:
    status = os.lstat(path)
    kind = FileType(status.st_mode >> 12)
    attributes = Attributes(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_blocks * 512,
        (os.major(status.st_rdev), os.minor(status.st_rdev)),
        status.st_ino,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        0,
    )
    xattrs = xattrs_of(path)
    if _ACL in xattrs:
        attributes.acl = Acl.from_xattr(xattrs.pop(_ACL))
    if _DEFAULT_ACL in xattrs:
        attributes.default_acl = Acl.from_xattr(xattrs.pop(_DEFAULT_ACL))
    target, content = b"", Content(size=status.st_size)
    if kind is FileType.SYMLINK:
        target = os.readlink(path)
    elif kind is FileType.REGULAR:
        content = read(path, status.st_size, probes.get(status.st_ino, set()))
    return Seen(attributes, b"", target, content, xattrs)


def read(path: bytes, size: int, probes: set[int]) -> Content:
    opened = os.open(path, os.O_RDONLY)
    try:
        if size <= WHOLE_BYTES_MAX:
            return Content.of(os.pread(opened, size + 1, 0))
        content = Content()
        for index in sorted(probes):
            content = content.write(index * CHUNK, os.pread(opened, CHUNK, index * CHUNK))
        return content.resize(size)
    finally:
        os.close(opened)


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    return {
        name.encode(): os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }


if __name__ == "__main__":
    serve(sys.argv[1])
