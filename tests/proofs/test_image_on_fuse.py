"""An image under the kernel's VFS through FUSE: programs of others, system calls of any kind, and
each time the image is as it has to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.proofs import geometry
from tests.proofs.conftest import Templates
from tests.proofs.mounts import FuseMount
from tests.unit.fsimage.ext4_images import make_image

pytestmark = pytest.mark.root

FSX_OPERATIONS = 15_000
STRESS_SECONDS = 8

STRESSORS = [
    "access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany",
    "fallocate", "fcntl", "filename", "flock", "fpunch", "fstat", "getdent", "hdd", "io", "iomix",
    "lease", "link", "lockf", "lockofd", "mknod", "open", "rename", "symlink", "sync-file",
    "touch", "utime", "xattr",
]  # fmt: skip
"""stress-ng's class "filesystem" without what is not about ours (/proc, bind mounts, notification),
and without "fsize", which expects the kernel's own check of a limit in fallocate."""


HIDDEN_LEFT = re.compile("rmdir .* failed, errno=39")
"""The kernel tells libfuse of a close later, and until then it keeps what was removed, hidden."""


@pytest.mark.parametrize("kind", ["ext4-1k", "ext3-4k"])
def test_fsx(kind: str, templates: Templates, fsx_program: Path, tmp_path: Path) -> None:
    image = geometry.copied(templates(kind), tmp_path / "fs.img")
    with FuseMount(image, tmp_path) as mount:
        block = str(geometry.block_bytes(kind))
        words = ["-s", "5", "-n", str(FSX_OPERATIONS), "-b", block, "."]
        assert "as it should be" in mount.run(fsx_program, *words)
    geometry.sound(image)


def test_the_filesystem_class_of_stress_ng(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "512M", "-t", "ext4")
    with FuseMount(image, tmp_path) as mount:
        stressors = [word for name in STRESSORS for word in (f"--{name}", "1")]
        said = mount.run(
            "stress-ng", "--verify", "--temp-path", ".", "--timeout", str(STRESS_SECONDS),
            "--dentries", "200", "--hdd-bytes", "8M", "--iomix-bytes", "4M",
            "--fallocate-bytes", "4M", *stressors,
        )  # fmt: skip
        failures = [line for line in said.splitlines() if " fail:" in line]
        assert not [line for line in failures if not HIDDEN_LEFT.search(line)]
        assert "successful run completed" in said
    geometry.sound(image)


def test_bonnie(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "512M", "-t", "ext4")
    with FuseMount(image, tmp_path) as mount:
        mount.run("bonnie++", "-q", "-f", "-u", "root", "-d", ".", "-s", "16", "-r", "8", "-n", "1")
    geometry.sound(image)
