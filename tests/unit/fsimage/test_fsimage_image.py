"""Images as users have them, whole: compressed, with overlays, with snapshots, merged; and what
e2fsck says of the result."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import image_limits
from appliance.fsimage.device import FileDevice, snapshots_of
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import opening
from appliance.fsimage.ext4.check import examine
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.transfers import Transfers
from appliance.fsimage.image import IN_MEMORY, open_image
from appliance.fsimage.overlays import merge
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode, Node
from tests.unit.fsimage.ext4_images import e2fsck, make_image, open_ro, run, sample_tree, view

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tree = sample_tree(folder / "tree")
    return make_image(folder / "fs.img", "24M", "-t", "ext4", "-b", "1024", tree=tree)


@pytest.fixture
def image(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(made, tmp_path / "fs.img"))


def opened(image: Path, overlay: str | Path, durability: Durability = Durability.FULL) -> Ext4:
    filesystem = open_image(
        str(image), read_only=False, overlay=str(overlay), durability=durability
    )
    assert isinstance(filesystem, Ext4)
    return filesystem


def store(filesystem: Ext4, name: str, contents: bytes) -> Node:
    node = filesystem.root().create(name.encode(), FILE)
    node.write(0, [contents])
    return node


def contents_of(filesystem: Ext4, name: str) -> bytes:
    node = filesystem.root().lookup(name.encode())
    return b"".join(node.read(0, node.attributes().size)[0])


@pytest.fixture(params=["memory", "file"])
def overlay(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return IN_MEMORY if request.param == "memory" else str(tmp_path / "changes")


# --- overlays ------------------------------------------------------------------


def test_an_image_with_an_overlay_is_not_touched(image: Path, overlay: str) -> None:
    before = image.read_bytes(), image.stat().st_mtime_ns
    filesystem = opened(image, overlay)
    assert not filesystem.read_only
    store(filesystem, "new", b"n" * 100_000)
    filesystem.root().remove(b"size-300000")
    filesystem.commit()
    assert contents_of(filesystem, "new") == b"n" * 100_000
    with pytest.raises(ImageError, match="in use"):
        FileDevice(image, read_only=False)
    open_ro(image).close()  # but others may read it
    filesystem.close()
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before


def test_servers_share_an_image_each_with_changes_of_its_own(image: Path, tmp_path: Path) -> None:
    several = [
        opened(image, overlay) for overlay in (IN_MEMORY, "", tmp_path / "a", tmp_path / "b")
    ]
    for number, filesystem in enumerate(several):
        store(filesystem, "mine", b"%d" % number)
    for number, filesystem in enumerate(several):
        assert contents_of(filesystem, "mine") == b"%d" % number
        filesystem.close()


@pytest.mark.parametrize("durability", Durability)
def test_changes_in_a_file_are_there_at_the_next_start(
    image: Path, tmp_path: Path, durability: Durability
) -> None:
    filesystem = opened(image, tmp_path / "changes", durability)
    handle = store(filesystem, "new", b"new").handle
    filesystem.close()
    filesystem = opened(image, tmp_path / "changes", durability)
    assert filesystem.resolve(handle) is filesystem.root().lookup(b"new")
    assert contents_of(filesystem, "new") == b"new"
    filesystem.close()


@pytest.mark.parametrize("durability", [Durability.FULL, Durability.PROCESS])
def test_what_was_durable_survives_a_kill(
    image: Path, tmp_path: Path, durability: Durability
) -> None:
    filesystem = opened(image, tmp_path / "changes", durability)
    store(filesystem, "durable", b"d" * 50_000)
    filesystem.commit()
    shutil.copyfile(tmp_path / "changes", tmp_path / "left")  # what a kill leaves
    filesystem.abandon()
    filesystem = opened(image, tmp_path / "left")
    assert contents_of(filesystem, "durable") == b"d" * 50_000
    filesystem.close()


def test_more_changes_than_memory_may_hold_are_a_full_disk(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_BYTES_MAX", 2 << 20)
    filesystem = opened(image, IN_MEMORY)
    node = store(filesystem, "large", b"x" * 100_000)
    with pytest.raises(VfsError) as caught:
        node.write(100_000, [b"x" * 2_000_000])
    assert caught.value.code is Code.NOSPC
    assert contents_of(filesystem, "size-60") != b""


# --- merging -------------------------------------------------------------------


def test_a_merged_image_is_sound_and_has_everything(image: Path, tmp_path: Path) -> None:
    filesystem = opened(image, tmp_path / "changes")
    for number in range(200):
        store(filesystem, f"file-{number}", b"%d" % number * 1000)
    filesystem.root().rename(b"many", filesystem.root(), b"renamed")
    filesystem.root().remove(b"size-300000")
    filesystem.close()
    filesystem = opened(image, tmp_path / "changes")
    expected = view(filesystem)
    filesystem.close()
    merge(str(image), str(tmp_path / "changes"))
    e2fsck(image)
    assert view(open_ro(image)) == expected


def test_an_overlay_that_a_kill_left_is_merged_with_its_journal(
    image: Path, tmp_path: Path
) -> None:
    filesystem = opened(image, tmp_path / "changes")
    store(filesystem, "durable", b"d" * 50_000)
    filesystem.commit()
    filesystem.abandon()
    merge(str(image), str(tmp_path / "changes"))
    assert "recovering journal" in run(["e2fsck", "-p", image])
    e2fsck(image)
    assert run(["debugfs", "-R", "cat /durable", image]) == "d" * 50_000


# --- snapshots -----------------------------------------------------------------


def test_back_and_forth_between_states(image: Path, overlay: str) -> None:
    filesystem = opened(image, overlay)
    old = filesystem.root().lookup(b"size-60").handle
    clean = contents_of(filesystem, "size-60")
    filesystem.snapshot_create("clean")
    new = store(filesystem, "new", b"new").handle
    filesystem.resolve(old).write(0, [b"overwritten"])
    filesystem.snapshot_create("changed")
    told: list[str] = []

    filesystem.snapshot_rollback("clean", lambda: told.append("back"))
    assert told == ["back"]
    assert contents_of(filesystem, "size-60") == clean
    with pytest.raises(VfsError) as caught:
        filesystem.resolve(new)
    assert caught.value.code is Code.STALE
    other = store(filesystem, "other", b"o" * 10_000)
    filesystem.commit()

    filesystem.snapshot_rollback("changed", lambda: told.append("forth"))
    assert contents_of(filesystem, "new") == b"new"
    assert contents_of(filesystem, "size-60").startswith(b"overwritten")
    with pytest.raises(VfsError):
        filesystem.resolve(other.handle).attributes()

    assert [each.name for each in filesystem.snapshots()] == ["clean", "changed"]
    filesystem.snapshot_delete("clean")
    with pytest.raises(VfsError, match="no snapshot"):
        filesystem.snapshot_rollback("clean", lambda: None)
    assert told == ["back", "forth"]
    filesystem.close()


def test_going_back_to_what_there_is_not_loses_nothing(image: Path, overlay: str) -> None:
    """Not even what is not durable yet."""
    filesystem = opened(image, overlay, Durability.LAZY)
    store(filesystem, "new", b"new")
    with pytest.raises(VfsError, match="no snapshot"):
        filesystem.snapshot_rollback("clean", pytest.fail)
    assert contents_of(filesystem, "new") == b"new"
    filesystem.close()


def test_going_back_fails_and_everybody_is_told(
    image: Path, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not durable is lost: clients have to send it again."""
    filesystem = opened(image, overlay, Durability.LAZY)
    filesystem.snapshot_create("clean")
    store(filesystem, "durable", b"new")
    filesystem.commit()
    store(filesystem, "new", b"new")
    told: list[str] = []

    def fails(name: str) -> None:
        raise VfsError(Code.NOSPC, name)

    kept = snapshots_of(filesystem.volume.device)
    monkeypatch.setattr(kept, "rollback", fails)
    with pytest.raises(VfsError, match="NOSPC"):
        filesystem.snapshot_rollback("clean", lambda: told.append("back"))
    assert told == ["back"]
    assert contents_of(filesystem, "durable") == b"new"
    with pytest.raises(VfsError, match="NOENT"):
        filesystem.root().lookup(b"new")
    store(filesystem, "new", b"again")
    filesystem.close()


def test_going_back_while_a_file_is_written(
    image: Path, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is on the device, in blocks that were found free in a state that is gone; somebody
    has them by now."""
    filesystem = opened(image, overlay)
    node = filesystem.root().create(b"written", FILE)
    filesystem.snapshot_create("clean")
    real = Transfers.is_quiet
    others: list[Node] = []

    def meanwhile(self: Transfers, number: int) -> None:
        real(self, number)
        if not others:
            others.append(node)
            filesystem.snapshot_rollback("clean", lambda: None)
            others.append(store(filesystem, "other", b"other" * 4000))

    monkeypatch.setattr(Transfers, "is_quiet", meanwhile)
    node.write(0, [b"w" * 20_000])
    assert contents_of(filesystem, "written") == b"w" * 20_000
    assert contents_of(filesystem, "other") == b"other" * 4000
    filesystem.commit()
    assert not examine(filesystem.volume.device, "image").findings
    filesystem.close()


def test_a_state_that_cannot_be_written_is_read_only(
    image: Path, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the thread in the background has nothing to do any more."""
    filesystem = opened(image, overlay)
    filesystem.snapshot_create("clean")
    told: list[str] = []

    def refuses(*_: object, **__: object) -> None:
        raise VfsError(Code.NOSPC, "the journal cannot be written")

    monkeypatch.setattr(opening, "open_journal", refuses)
    with pytest.raises(VfsError) as caught:
        filesystem.snapshot_rollback("clean", lambda: told.append("back"))
    assert caught.value.detail == "the journal cannot be written"
    assert told == ["back"]
    assert filesystem.read_only
    thread = threading.Thread(target=filesystem.run_in_background, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(VfsError, match="ROFS"):
        store(filesystem, "new", b"new")
    with pytest.raises(VfsError, match="ROFS"):
        filesystem.snapshot_create("other")
    assert contents_of(filesystem, "size-60")
    filesystem.close()


def test_snapshots_in_a_file_survive_a_restart_and_a_merge_is_sound(
    image: Path, tmp_path: Path
) -> None:
    filesystem = opened(image, tmp_path / "changes")
    store(filesystem, "wanted", b"w" * 30_000)
    filesystem.snapshot_create("good")
    filesystem.root().remove(b"wanted")
    for number in range(300):
        store(filesystem, f"unwanted-{number}", b"u" * 3000)
    filesystem.close()
    filesystem = opened(image, tmp_path / "changes")
    [snapshot] = filesystem.snapshots()
    assert snapshot.name == "good" and snapshot.changed_bytes >= 30_000
    filesystem.snapshot_rollback("good", lambda: None)
    filesystem.close()
    merge(str(image), str(tmp_path / "changes"), discard_snapshots=True)
    e2fsck(image)
    assert run(["debugfs", "-R", "cat /wanted", image]) == "w" * 30_000


def test_many_rollbacks_and_the_same_handles(image: Path, overlay: str) -> None:
    """As a test suite does: the same state again before every test."""
    filesystem = opened(image, overlay, Durability.PROCESS)
    filesystem.snapshot_create("clean")
    handle = filesystem.root().lookup(b"many").handle
    names = len(filesystem.root().entries(0, 1000))
    for number in range(40):
        directory = filesystem.resolve(handle)
        assert len(filesystem.root().entries(0, 1000)) == names
        directory.create(b"new-%d" % number, FILE).write(0, [b"x" * 5000])
        store(filesystem, "in-the-root", b"y")
        filesystem.snapshot_rollback("clean", lambda: None)
    filesystem.close()
    if overlay:
        merge(str(image), overlay, discard_snapshots=True)
        e2fsck(image)
        assert Path(overlay).stat().st_blocks * 512 < 20 << 20


def test_without_an_overlay_there_are_none(image: Path) -> None:
    filesystem = open_image(str(image), read_only=False)
    assert isinstance(filesystem, Ext4)
    for act in (filesystem.snapshots, lambda: filesystem.snapshot_create("x")):
        with pytest.raises(VfsError, match="without an overlay") as caught:
            act()
        assert caught.value.code is Code.NOTSUPP
    filesystem.close()


# --- compressed ------------------------------------------------------------------


@pytest.fixture
def packed(image: Path) -> Path:
    path = image.with_name("fs.img.gz")
    path.write_bytes(gzip.compress(image.read_bytes(), 1))
    return path


def test_a_compressed_image_with_an_overlay_is_written_to(packed: Path, overlay: str) -> None:
    before = packed.read_bytes()
    filesystem = opened(packed, overlay)
    assert not filesystem.read_only
    store(filesystem, "new", b"new")
    filesystem.close()
    assert packed.read_bytes() == before
    if overlay:
        filesystem = opened(packed, overlay)
        assert contents_of(filesystem, "new") == b"new"
        filesystem.close()


def test_what_was_decompressed_is_not_merged_into(packed: Path, tmp_path: Path) -> None:
    filesystem = opened(packed, tmp_path / "changes")
    store(filesystem, "new", b"new")
    filesystem.close()
    before = packed.read_bytes()
    with pytest.raises(ImageError, match="compressed with gzip") as caught:
        merge(str(packed), str(tmp_path / "changes"))
    assert caught.value.hint
    assert packed.read_bytes() == before


# --- what cannot be written to ------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ETXTBSY])
def test_a_file_that_we_may_not_write(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    really = os.open

    def refuses(path: str, flags: int, *words: int, **more: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return really(path, flags, *words, **more)

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(ImageError, match="for writing") as caught:
        open_image(str(image), read_only=False)
    assert ",ro" in caught.value.hint and ",overlay" in caught.value.hint
    open_image(str(image)).close()
    opened(image, IN_MEMORY).close()


def test_an_image_is_written_to_by_one(image: Path) -> None:
    filesystem = open_image(str(image), read_only=False)
    uses: list[Callable[[], object]] = [
        lambda: open_ro(image),
        lambda: open_image(str(image), read_only=False),
        lambda: opened(image, IN_MEMORY),
    ]
    for use in uses:
        with pytest.raises(ImageError, match="another process"):
            use()
    filesystem.close()
    open_ro(image).close()
