"""Features that real images have and that are not written here: such an image is served read-only,
with the right contents, or refused; and what it is said to take is what it takes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import debugfs, e2fsck, make_image, run

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)

READ_ONLY = {
    "bigalloc": "bigalloc",
    "inline_data": "inline_data",
    "casefold": "casefold",
    "verity": "verity",
    "quota": "quota",
    "project": "project",
    "ea_inode": "ea_inode",
    "meta_bg,^resize_inode": "meta_bg",
    "fast_commit": "fast_commit",
    "mmp": "mmp",
    "project,quota,mmp": "project",
    "casefold,inline_data": "inline_data",
}
WRITTEN = ["stable_inodes", "sparse_super2", "large_dir", "orphan_file", "^has_journal", "none"]
BY_DEBUGFS = {"shared_blocks": "shared_blocks", "FEATURE_R12": "read-only"}


def image_with(tmp_path: Path, features: str) -> Path:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "small").write_bytes(b"small")
    (tree / "large").write_bytes(b"large" * 20_000)
    (tree / "link").symlink_to("large")
    path = tmp_path / "fs.img"
    return make_image(path, "16M", "-t", "ext4", "-O", features, tree=tree)


def opened(image: Path) -> Ext4:
    return open_ext4(FileDevice(image, read_only=False), "image")


def check_contents(filesystem: Ext4) -> None:
    root = filesystem.root()
    names = {entry.name for entry in root.entries(2, 100)}
    assert names == {b"d", b"large", b"link", b"lost+found"}
    assert b"".join(root.lookup(b"large").read(0, 1 << 20)[0]) == b"large" * 20_000
    assert b"".join(root.lookup(b"d").lookup(b"small").read(0, 100)[0]) == b"small"
    assert root.lookup(b"link").readlink() == b"large"


def check_read_only(image: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says."""
    before = image.read_bytes()
    with caplog.at_level(logging.WARNING):
        filesystem = opened(image)
    [sentence] = caplog.messages
    assert filesystem.read_only
    check_contents(filesystem)
    for act in (
        lambda: filesystem.root().create(b"new", FILE),
        lambda: filesystem.root().lookup(b"large").write(0, [b"x"]),
        lambda: filesystem.root().remove(b"link"),
    ):
        with pytest.raises(VfsError) as caught:
            act()
        assert caught.value.code is Code.ROFS
    filesystem.close()
    assert image.read_bytes() == before
    return sentence


@pytest.mark.parametrize("features", READ_ONLY)
def test_it_is_served_read_only_and_the_hint_is_true(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, features: str
) -> None:
    image = image_with(tmp_path, features)
    said = check_read_only(image, caplog)
    assert READ_ONLY[features] in said
    command = re.search(r"tune2fs (-O \S+)", said)
    if command is None:
        assert "loop device" in said
        assert "--directory" in said
        return
    run(["tune2fs", *command.group(1).split(), image])
    filesystem = opened(image)
    assert not filesystem.read_only
    check_contents(filesystem)
    filesystem.root().create(b"new", FILE)
    filesystem.close()
    e2fsck(image)


@pytest.mark.parametrize("features", READ_ONLY)
def test_tune2fs_is_named_where_it_helps_only(tmp_path: Path, features: str) -> None:
    """The other way round: what has no such hint cannot be removed."""
    image = image_with(tmp_path, features)
    filesystem = opened(image)
    why = filesystem.volume.superblock.why_not_written
    filesystem.close()
    if "tune2fs" not in why:
        names = re.findall(r"it uses ([\w, ]+), which", why)[0].split(", ")
        with pytest.raises(AssertionError):
            run(["tune2fs", "-O", ",".join(f"^{name}" for name in names), image])


def test_an_external_journal_is_given_up_as_the_message_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = image_with(tmp_path, "none")
    debugfs(image, "feature has_journal", "ssv journal_dev 0x700")
    said = check_read_only(image, caplog)
    assert "journal is on another device" in said
    for words in re.findall(r"tune2fs ([-\w ^]+)", said):
        command = words.replace(" and then", "").replace(" give it one of its own", "").split()
        run(["tune2fs", *command, image])
    filesystem = opened(image)
    assert not filesystem.read_only
    filesystem.root().create(b"new", FILE)
    filesystem.close()
    e2fsck(image)


@pytest.mark.parametrize("feature", BY_DEBUGFS)
def test_what_mke2fs_does_not_make(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, feature: str
) -> None:
    image = image_with(tmp_path, "none")
    debugfs(image, f"feature {feature}")
    assert BY_DEBUGFS[feature] in check_read_only(image, caplog)


def test_the_inodes_of_the_hurd_are_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """e2fsck takes the change attribute of Linux for a block there."""
    image = image_with(tmp_path, "none")
    debugfs(image, "ssv creator_os 1")
    said = check_read_only(image, caplog)
    assert "the Hurd" in said and "loop device" in said


def test_encrypted_names_cannot_be_read(tmp_path: Path) -> None:
    image = image_with(tmp_path, "encrypt")
    before = image.read_bytes()
    with pytest.raises(ImageError, match="encrypt") as caught:
        opened(image)
    assert "loop device" in caught.value.hint
    assert "tune2fs" not in caught.value.hint
    assert image.read_bytes() == before


@pytest.mark.parametrize("features", WRITTEN)
def test_these_are_written(tmp_path: Path, features: str) -> None:
    image = image_with(tmp_path, features)
    filesystem = opened(image)
    assert not filesystem.read_only
    check_contents(filesystem)
    filesystem.root().create(b"new", FILE).write(0, [b"x" * 100_000])
    filesystem.root().remove(b"new")
    check_contents(filesystem)
    filesystem.close()
    e2fsck(image)
