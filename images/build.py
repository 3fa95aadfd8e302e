"""Make images/demo.img: a file system with one of everything, the same bytes every time.

    python images/build.py [OUTPUT]           (needs e2fsprogs; no root)

mke2fs fills the image from a tree that is made here, in the order of names. What an ordinary user
cannot make in a tree (owners, devices, sockets) is put in by debugfs afterwards, and e2fsck -D
gives the large directory its index. Nothing comes from the clock, from chance or from the host's
configuration: the time is SOURCE_DATE_EPOCH, UUID and hash seed are fixed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZE = "64M"
UUID = "64656d6f-2e69-4d67-8000-72756d706e66"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "1218153600"))

CONFIGURATION = """
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = acl,user_xattr
    enable_periodic_fsck = 0
    blocksize = 4096
    inode_size = 256
    inode_ratio = 4096
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
"""
"""What Debian 12 makes by default."""

WELCOME = """This file system is served by rumpnfsd, out of an image.

    files/     empty, small, large, sparse            many/    5,000 entries, indexed
    deep/      twenty levels                          links/   symbolic and hard
    special/   devices, a FIFO, a socket              names/   odd ones
    owners/    modes, owners, extended attributes     times/   from 1901 to 2446
"""

MANY = 5000
LEVELS = 20

ODD_NAMES = [
    b" leading and trailing ",
    b"-rf",
    b"...",
    b"back\\slash",
    b"dollar$HOME and `quotes`",
    b"new\nline",
    b"not utf-8 \xff\xfe",
    b"long-" + b"x" * 250,
    "caf\u00e9".encode(),
    "cafe\u0301".encode(),
    "\u65e5\u672c\u8a9e".encode(),
    "\U0001f600".encode(),
]

SPECIAL = [
    ("null", 0o020666, "c 1 3"),
    ("console", 0o020600, "c 5 1"),
    ("disk", 0o060660, "b 8 0"),
    ("large-minor", 0o060660, "b 259 65000"),
    ("fifo", 0o010644, "p"),
    ("socket", 0o140755, "p"),
]
"""Name, type and mode, and what debugfs makes: it knows no sockets, but changes the type."""

TIMES = [-(1 << 31), -1, 0, (1 << 31) - 1, 1 << 31, 1 << 32, 15_032_385_535]
"""What 34 bits of seconds can say, from end to end."""


def main(output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        workshop.build(output)


class Workshop:
    """Where an image is built."""

    def __init__(self, folder: Path) -> None:
        self._tree = folder / "tree"
        configuration = folder / "mke2fs.conf"
        configuration.write_text(CONFIGURATION)
        self._environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "MKE2FS_CONFIG": str(configuration),
            "E2FSPROGS_FAKE_TIME": str(EPOCH),
            "E2FSCK_TIME": str(EPOCH),
            "SOURCE_DATE_EPOCH": str(EPOCH),
            "LC_ALL": "C",
        }

    def build(self, output: Path) -> None:
        make_tree(self._tree)
        objects = sum(1 for _ in self._tree.rglob("*"))
        output.unlink(missing_ok=True)
        with output.open("wb") as image:
            image.truncate(int(SIZE[:-1]) << 20)
        options = ["-t", "ext4", "-L", "demo", "-U", UUID, "-E", f"hash_seed={UUID},root_owner=0:0"]
        self._run(["mke2fs", "-q", "-F", *options, "-d", str(self._tree), str(output)])
        self._debugfs(output, debugfs_commands(objects))
        self._run(["e2fsck", "-f", "-y", "-D", str(output)], status_max=1)
        self._run(["e2fsck", "-f", "-n", str(output)])

    def _run(self, command: Sequence[str], said: str = "", status_max: int = 0) -> str:
        """What a command complains of, if it was not too much."""
        done = subprocess.run(
            command,
            env=self._environment,
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode > status_max:
            sys.exit(f"error: {command[0]}: {done.stdout}{done.stderr}")
        return done.stderr

    def _debugfs(self, image: Path, commands: str) -> None:
        """debugfs does not tell by its status when a command fails, only in words."""
        _, *complaints = self._run(["debugfs", "-w", "-f", "-", str(image)], commands).splitlines()
        if complaints:
            sys.exit(f"error: debugfs: {complaints[0]}")


# --- the tree ----------------------------------------------------------------


def make_tree(top: Path) -> None:
    """Everything that an ordinary user can make."""
    top.mkdir()
    (top / "README").write_text(WELCOME)
    make_files(top / "files")
    make_many(top / "many")
    make_deep(top / "deep")
    make_links(top / "links")
    make_names(top / "names")
    for name in ("special", "owners", "times"):
        (top / name).mkdir()
    for mode in (0o000, 0o444, 0o644, 0o750, 0o777, 0o1777, 0o2755, 0o4755):
        (top / "owners" / f"mode-{mode:04o}").write_text(f"{mode:o}\n")
    for name in ("root", "user", "large-numbers", "attributed"):
        (top / "owners" / name).write_text(f"{name}\n")
    for seconds in TIMES:
        (top / "times" / str(seconds)).write_text(f"{seconds}\n")
    set_modes(top)


def make_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "small").write_text("small\n")
    for size in (4095, 4096, 4097):
        (folder / f"size-{size}").write_bytes(pattern(size))
    (folder / "large").write_bytes(pattern(9_000_000))
    with (folder / "sparse").open("wb") as file:
        for offset in (0, 1 << 20, 1 << 24, 1 << 32):
            file.seek(offset)
            file.write(b"an island at %d\n" % offset)
    with (folder / "only-a-hole").open("wb") as file:
        file.truncate(100_000_000)


def pattern(size: int) -> bytes:
    """Lines that say where they are."""
    lines = b"".join(b"%015d\n" % offset for offset in range(0, size, 16))
    return lines[:size]


def make_many(folder: Path) -> None:
    folder.mkdir()
    for number in range(MANY):
        (folder / f"entry-{number:04d}").touch()


def make_deep(folder: Path) -> None:
    here = folder
    for level in range(1, LEVELS + 1):
        here /= f"level-{level}"
    here.mkdir(parents=True)
    (here / "bottom").write_text("You have reached the bottom.\n")


def make_links(folder: Path) -> None:
    folder.mkdir()
    (folder / "target").write_text("a file with three names\n")
    (folder / "hard-1").hardlink_to(folder / "target")
    (folder / "hard-2").hardlink_to(folder / "target")
    (folder / "relative").symlink_to("target")
    (folder / "absolute").symlink_to("/README")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to("../deep")
    (folder / "length-59").symlink_to("f" * 59)
    (folder / "length-60").symlink_to("s" * 60)
    (folder / "length-1023").symlink_to("/".join(["p" * 15] * 64))


def make_names(folder: Path) -> None:
    folder.mkdir()
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()


def set_modes(top: Path) -> None:
    """The modes do not come from the umask."""
    for path in sorted([top, *top.rglob("*")], reverse=True):
        if path.parent.name == "owners" and path.name.startswith("mode-"):
            path.chmod(int(path.name.removeprefix("mode-"), 8) | 0o400)
        elif not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


# --- what needs debugfs ------------------------------------------------------


def debugfs_commands(objects: int) -> str:
    """Owners, times, devices, attributes; `objects` are in the image from the tree."""
    return "\n".join([*nothing_of_the_hosts(objects), *owners(), *times(), *special(), "quit", ""])


def nothing_of_the_hosts(objects: int) -> Iterator[str]:
    """mke2fs copies from the tree who made it, and when."""
    first = 12
    for number in range(first, first + objects):
        for field in ("uid", "gid"):
            yield f"set_inode_field <{number}> {field} 0"
        for field in ("atime", "ctime", "mtime"):
            yield f"set_inode_field <{number}> {field} @{EPOCH:#x}"
            yield f"set_inode_field <{number}> {field}_extra 0"


def owners() -> Iterator[str]:
    yield "set_inode_field owners/mode-0000 mode 0100000"
    for name, uid, gid in (("user", 1000, 1000), ("large-numbers", 4_000_000_000, 70_000)):
        yield f"set_inode_field owners/{name} uid {uid}"
        yield f"set_inode_field owners/{name} gid {gid}"
    yield "ea_set owners/attributed user.comment a-short-one"
    yield f"ea_set owners/attributed user.long {'v' * 180}"


def times() -> Iterator[str]:
    """debugfs takes the 32 bits of seconds and the extra word one by one."""
    for seconds in TIMES:
        low = seconds & 0xFFFFFFFF
        signed = low - (1 << 32) if low >> 31 else low
        extra = (seconds - signed >> 32 & 3) | 123_456_789 << 2
        for field in ("atime", "mtime"):
            yield f"set_inode_field times/{seconds} {field} @{low:#x}"
            yield f"set_inode_field times/{seconds} {field}_extra {extra:#x}"


def special() -> Iterator[str]:
    yield "cd special"
    for name, mode, node in SPECIAL:
        yield f"mknod {name} {node}"
        yield f"set_inode_field {name} mode 0{mode:o}"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "demo.img")
