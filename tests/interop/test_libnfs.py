"""libnfs, an NFS client in user space: it asks port 111, mounts, lists, reads, writes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import SERVER, Appliance, Namespace, checksums, make_image, make_tree

pytestmark = pytest.mark.root

URL = f"nfs://{SERVER}/"
"""libnfs mounts what stands before the last slash, and cannot go on from an empty path: so files
in the root have two slashes."""


@pytest.fixture(params=["--image", "--directory"])
def served(
    request: pytest.FixtureRequest, appliance: StartAppliance, tmp_path: Path
) -> tuple[Appliance, Path]:
    """A server of the little tree, in an image or as a directory; and the tree."""
    tree = tmp_path / "tree"
    make_tree(tree)
    make_image(tmp_path / "fs.img", tree)
    source = tmp_path / "fs.img" if request.param == "--image" else tree
    return appliance(request.param, f"{source},ro"), tree


def test_every_name_is_listed(served: tuple[Appliance, Path]) -> None:
    appliance, tree = served
    for folder in (tree, tree / "sub", tree / "many"):
        path = "" if folder == tree else f"/{folder.relative_to(tree)}"
        said = appliance.netns.run("nfs-ls", URL + path)
        names = {line.split(maxsplit=5)[5] for line in said.splitlines()}
        assert names - {"lost+found", ".", ".."} == set(os.listdir(folder))


def test_every_file_has_its_checksum(served: tuple[Appliance, Path], tmp_path: Path) -> None:
    appliance, tree = served
    wanted = {name: sum_ for name, sum_ in checksums(tree).items() if "many" not in name}
    assert len(wanted) >= 6
    for name, checksum in wanted.items():
        appliance.netns.run("nfs-cp", f"{URL}/{name}", str(tmp_path / "copy"))
        assert hashlib.sha256((tmp_path / "copy").read_bytes()).hexdigest() == checksum
        (tmp_path / "copy").unlink()


def test_nfs_cat_prints_a_file(served: tuple[Appliance, Path]) -> None:
    appliance, _ = served
    assert appliance.netns.run("nfs-cat", f"{URL}/hello") == "hello, world\n"


def test_a_file_that_is_not_there(served: tuple[Appliance, Path]) -> None:
    appliance, _ = served
    said = appliance.netns.run("nfs-cat", f"{URL}/no-such", expect=None)
    assert "NFS3ERR_NOENT" in said


def test_a_read_only_export_refuses_to_be_written(
    served: tuple[Appliance, Path], tmp_path: Path
) -> None:
    appliance, _ = served
    (tmp_path / "new").write_text("new")
    said = appliance.netns.run("nfs-cp", str(tmp_path / "new"), f"{URL}/new", expect=None)
    assert "NFS3ERR_ROFS" in said


@pytest.mark.parametrize("kind", ["--memory", "--directory"])
@pytest.mark.parametrize("size", [0, 1, 4096, 1_048_576, 1_048_577, 33_333_333])
def test_what_is_copied_in_comes_out_again(
    appliance: StartAppliance, netns: Namespace, tmp_path: Path, kind: str, size: int
) -> None:
    (tmp_path / "served").mkdir()
    appliance(kind, "64M" if kind == "--memory" else tmp_path / "served")
    content = (hashlib.sha256(str(size).encode()).digest() * (size // 32 + 1))[:size]
    (tmp_path / "in").write_bytes(content)
    netns.run("nfs-cp", str(tmp_path / "in"), f"{URL}/file")
    netns.run("nfs-cp", f"{URL}/file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == content
    if kind == "--directory":
        assert (tmp_path / "served" / "file").read_bytes() == content


def test_a_path_that_is_not_exported_is_refused(
    appliance: StartAppliance, netns: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "exports").write_text("/pub *(ro,insecure)\n/one 10.0.0.77(rw,insecure)\n")
    paths = ["--memory", "16M@/pub", "--memory", "16M@/one", "--memory", "16M@/two"]
    appliance(*paths, "--exports", tmp_path / "exports")
    assert netns.run("nfs-ls", f"nfs://{SERVER}/pub") == ""
    for path in ("/", "/one", "/two", "/nowhere"):
        said = netns.run("nfs-ls", f"nfs://{SERVER}{path}", expect=None)
        assert "MNT3ERR_ACCES" in said, f"{SERVER}:{path}: {said}"
