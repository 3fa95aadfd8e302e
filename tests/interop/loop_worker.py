"""What the kernel says about an image, and images that the kernel has written to.

Run in a mount namespace of its own (`run_worker` does that), so that nobody else sees the mount,
and nothing stays behind: with the last process the mount goes, and with it its loop device.

    python -m tests.interop.loop_worker OPTIONS IMAGE MOUNTPOINT ACTION ARGUMENT

Other modules with actions of their own call `main` in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
FS_IOC_GETVERSION = 0x80087601

Action = Callable[[str, str], Any]
"""What is done in a mounted image: the path of the image, an argument; what it says."""


def run_worker(
    image: Path,
    options: str,
    action: str,
    argument: str = "",
    *,
    module: str = "tests.interop.loop_worker",
) -> Any:
    """Mount `image` in a mount namespace, act there, and give back what the action says."""
    mountpoint = image.with_suffix(".mnt")
    mountpoint.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*command, "-m", module, options, image, mountpoint, action, argument],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    mountpoint.rmdir()
    return json.loads(done.stdout)


def main(actions: dict[str, Action]) -> None:
    options, image, mountpoint, action, argument = sys.argv[1:]
    subprocess.run(["mount", "-t", "ext4", "-o", f"loop,{options}", image, mountpoint], check=True)
    try:
        os.chdir(mountpoint)
        result = actions[action](image, argument)
        os.chdir("/")
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    json.dump(result, sys.stdout)


# --- looking -----------------------------------------------------------------


def view(image: str, argument: str) -> dict[str, Any]:
    """Everything there is to see: every object by its path, every directory in its order."""
    objects = {}
    pending = [b"."]
    while pending:
        path = pending.pop()
        found = look(path)
        objects[path.hex()] = found
        if stat.S_ISDIR(found["mode"]):
            names = os.listdir(path)
            found["names"] = [name.hex() for name in names]
            pending += [path + b"/" + name for name in names]
    total = os.statvfs(".")
    return {
        "objects": objects,
        "statistics": [total.f_blocks, total.f_bfree, total.f_files, total.f_ffree, total.f_frsize],
    }


def look(path: bytes) -> dict[str, Any]:
    """One object."""
    status = os.lstat(path)
    found: dict[str, Any] = {
        "mode": status.st_mode,
        "ino": status.st_ino,
        "nlink": status.st_nlink,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "used": status.st_blocks * 512,
        "rdev": [os.major(status.st_rdev), os.minor(status.st_rdev)],
        "times": [status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns],
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if stat.S_ISLNK(status.st_mode):
        found["target"] = os.readlink(path).hex()
    if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
        found["generation"] = generation(path)
    if stat.S_ISREG(status.st_mode):
        found["sha256"] = digest(path)
    return found


def generation(path: bytes) -> int:
    opened = os.open(path, os.O_RDONLY)
    buffer = bytearray(8)
    fcntl.ioctl(opened, FS_IOC_GETVERSION, buffer)
    os.close(opened)
    return int(struct.unpack_from("<I", buffer)[0])


LARGE = 1 << 25
LARGE_TAIL = 2 << 20
"""Of a file so large that it can only be sparse, the end is compared."""


def digest(path: bytes) -> str:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGE:
            file.seek(-LARGE_TAIL, os.SEEK_END)
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing -----------------------------------------------------------------


def populate(image: str, argument: str) -> None:
    """One of everything that a file system can hold."""
    regular_files()
    with_holes()
    links_and_devices()
    many_names()
    modes_and_owners()
    times()
    deep()


def regular_files() -> None:
    for size in (
        0,
        1,
        59,
        60,
        61,
        155,
        156,
        1023,
        1024,
        1025,
        4095,
        4096,
        4097,
        100_000,
        3_000_000,
    ):
        Path(f"size-{size}").write_bytes(
            bytes(index * 7 & 0xFF for index in range(min(size, 997))).ljust(min(size, 1000), b"r")
            * (size // 1000 + 1)
        )
        os.truncate(f"size-{size}", size)
    Path("attributed").write_bytes(b"small and attributed")
    os.setxattr("attributed", "user.small", b"value")
    os.setxattr("attributed", "user.large", b"v" * 700)


def with_holes() -> None:
    with open("sparse", "wb") as file:
        for offset in (0, 70_000, 1_000_000, 20_000_000, 4_000_000_000):
            file.seek(offset)
            file.write(b"island at %d" % offset)
    with open("only-hole", "wb") as file:
        file.truncate(5_000_000)
    with open("punched", "wb") as file:
        file.write(b"#" * 4096 * 1500)
    with contextlib.suppress(OSError), open("unwritten", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2_000_000)
        file.seek(500_000)
        file.write(b"written between what is not" * 1000)
    punch("punched", 1500)


def punch(name: str, blocks: int) -> None:
    """Every other block of a file taken away: an extent tree of more than one level."""
    script = f"""
import ctypes, os
libc = ctypes.CDLL(None)
f = os.open({name!r}, os.O_RDWR)
for block in range(0, {blocks}, 2):
    libc.fallocate(f, 3, ctypes.c_long(block * 4096), ctypes.c_long(4096))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def links_and_devices() -> None:
    for length in (1, 59, 60, 61, 500, 1000):
        os.symlink("t" * length, f"symlink-{length}")
    os.mkdir("links")
    for number in range(5):
        os.link("size-1025", f"links/hard-{number}")
    os.mknod("console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    os.mknod("large-device", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo("fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")


def many_names() -> None:
    os.mkdir("many")
    for number in range(2500):
        Path(f"many/a-name-of-some-length-{number:05d}").touch()
    for number in range(0, 2500, 3):
        os.unlink(f"many/a-name-of-some-length-{number:05d}")
    os.mkdir("long")
    for number in range(300):
        Path("long/" + f"{number:03d}" + "x" * 252).touch()
    os.mkdir(b"odd")
    for name in (b" ", b"\n", b"\\", b"-rf", b"\xff\xfe", b"...", b"a" * 255, b"#", b"%s", b"\x01"):
        os.close(os.open(b"odd/" + name, os.O_CREAT))
    os.mkdir("unicode")
    for number in range(700):
        Path(f"unicode/\u00e4\u6f22\U0001f600-{number}").touch()


def modes_and_owners() -> None:
    os.mkdir("modes")
    for mode in (0o0, 0o7777, 0o4755, 0o2750, 0o1777, 0o644):
        path = f"modes/{mode:o}"
        Path(path).touch()
        os.chown(path, 70_000 + mode, 4_000_000_000 - mode)
        os.chmod(path, mode)


def times() -> None:
    os.mkdir("times")
    second = 1_000_000_000
    for at in (-(1 << 31), -1, 0, (1 << 31) - 1, 1 << 31, 1 << 32, 15_032_385_535):
        path = f"times/{at}"
        Path(path).touch()
        os.utime(path, ns=(at * second + 123_456_789, at * second + 987_654_321))


def deep() -> None:
    here = Path()
    for level in range(40):
        here /= f"level-{level}"
    here.mkdir(parents=True)
    (here / "bottom").write_text("found")


def crash(image: str, argument: str) -> None:
    """Work, and copy the image in the middle of it: as if the machine had stopped here."""
    for number in range(400):
        Path(f"file-{number}").write_bytes(b"x" * (number * 37 % 9000))
        if number % 3 == 0:
            Path(f"file-{number // 2}").unlink(missing_ok=True)
        if number % 50 == 0:
            os.makedirs(f"dir-{number}/inner")
            os.rename(f"dir-{number}/inner", f"moved-{number}")
    # What looks like the journal's own blocks has to be escaped there.
    os.mkdir("escaped")
    os.symlink(struct.pack(">I", 0xC03B3998) + b"m" * 900, b"escaped/symlink")
    held = os.open("file-399", os.O_RDONLY)
    os.unlink("file-399")
    os.sync()
    # A directory's blocks become those of a file: the journal revokes them.
    for number in range(200):
        Path(f"dir-0/{'n' * 200}{number}").touch()
    sync_directory()
    shutil.rmtree("dir-0")
    Path("in-its-place").write_bytes(b"data, not a directory" * 20_000)
    for number in range(50):
        Path(f"late-{number}").write_bytes(b"late" * number)
    sync_directory()
    shutil.copyfile(image, argument)
    os.close(held)


def sync_directory() -> None:
    here = os.open(".", os.O_RDONLY)
    os.fsync(here)
    os.close(here)


# --- extended attributes -----------------------------------------------------


def change_xattrs(image: str, argument: str) -> list[bool]:
    """Make the changes in this file: path, name, and value in hexadecimal or null, which removes.
    A file that is not there is made first. What the kernel takes."""
    return [take_xattr(*change) for change in json.loads(Path(argument).read_text())]


def take_xattr(path: str, name: str, value: str | None) -> bool:
    if not os.path.exists(path):
        Path(path).touch()
    try:
        if value is None:
            os.removexattr(path, name)
        else:
            os.setxattr(path, name, bytes.fromhex(value))
    except OSError:
        return False
    return True


def xattrs(image: str, argument: str) -> dict[str, dict[str, Any]]:
    """All extended attributes of what is at the top, and what else changes with them."""
    found = {}
    for path in os.listdir():
        status = os.lstat(path)
        found[path] = {
            "mode": status.st_mode & 0o7777,
            "used": status.st_blocks * 512,
            "xattrs": {
                name: os.getxattr(path, name, follow_symlinks=False).hex()
                for name in os.listxattr(path, follow_symlinks=False)
            },
        }
    return found


# --- what chattr(1) forbids --------------------------------------------------


def make_fixed(image: str, argument: str) -> None:
    """Files and directories of user 1001 that are immutable (i), append-only (a) or neither (n), a
    file in each directory, and a directory that passes flags on."""
    for kind in "ian":
        Path(f"file-{kind}").write_bytes(b"content")
        Path(f"directory-{kind}/below").mkdir(parents=True)
        Path(f"directory-{kind}/inside").touch()
    subprocess.run(["chown", "--recursive", "1001:1001", "."], check=True)
    for kind in "ia":
        subprocess.run(["chattr", f"+{kind}", f"file-{kind}", f"directory-{kind}"], check=True)
    os.mkdir("passes-on")
    subprocess.run(["chattr", "+sucSdADtx", "passes-on"], check=True)


def attempt(image: str, argument: str) -> list[str]:
    """Try what this file says as the user that it says, one after the other; how each ended."""
    uid, attempts = json.loads(Path(argument).read_text())
    os.seteuid(uid)
    ends = [attempt_one(*each) for each in attempts]
    os.seteuid(0)
    return ends


def attempt_one(what: str, path: str, other: str) -> str:
    try:
        ATTEMPTS[what](path, other)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


ATTEMPTS: dict[str, Callable[[str, str], object]] = {
    "write": lambda path, _: os.close(os.open(path, os.O_WRONLY)),
    "truncate": lambda path, _: os.truncate(path, 1),
    "chmod": lambda path, _: os.chmod(path, 0o700),
    "chown": lambda path, _: os.chown(path, -1, os.stat(path).st_gid),
    "set times": lambda path, _: os.utime(path, (1, 2)),
    "touch": lambda path, _: os.utime(path),
    "set list": lambda path, _: os.removexattr(path, "system.posix_acl_access"),
    "create": lambda path, _: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
    "mkdir": lambda path, _: os.mkdir(path),
    "symlink": lambda path, _: os.symlink("text", path),
    "link": lambda path, other: os.link(path, other),
    "unlink": lambda path, _: os.unlink(path),
    "rmdir": lambda path, _: os.rmdir(path),
    "rename": lambda path, other: os.rename(path, other),
}

ACTIONS: dict[str, Action] = {
    "make_fixed": make_fixed,
    "attempt": attempt,
    "view": view,
    "populate": populate,
    "crash": crash,
    "change_xattrs": change_xattrs,
    "xattrs": xattrs,
}

if __name__ == "__main__":
    main(ACTIONS)
