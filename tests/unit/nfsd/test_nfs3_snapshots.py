"""What clients see of a rollback: the state of then, nothing that was remembered since, and a new
write verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.control import SnapshotVerbs
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.image import IN_MEMORY, open_image
from appliance.nfsd.v3.protocol import COMMIT3args, WRITE3args, stable_how
from appliance.vfs.interface import Buffer
from tests.sim.nfs_world import NfsWorld
from tests.unit.fsimage.ext4_images import make_image
from tests.unit.nfsd.nfsd_helpers import refused


@pytest.fixture
def world(tmp_path: Path) -> NfsWorld:
    image = make_image(tmp_path / "fs.img", "16M", "-t", "ext4")
    return NfsWorld(
        "/ *(rw,no_root_squash)",
        [("/", open_image(str(image), read_only=False, overlay=IN_MEMORY))],
    )


@pytest.fixture
def snapshot(world: NfsWorld) -> Callable[[str, str], None]:
    """As rumpctl does."""
    [filesystem] = world.tree.filesystems
    verbs = SnapshotVerbs({"/": filesystem}, world.nfsd.rolled_back).verbs
    return lambda what, name: verbs[f"snapshot-{what}"]({"name": name})


def test_files_are_as_they_were(world: NfsWorld, snapshot: Callable[[str, str], None]) -> None:
    client = world.client()
    root = client.mount()
    file = client.create(root, b"file")
    client.write(file, b"before")
    before = client.attributes(file)
    snapshot("create", "clean")
    client.write(file, b"after, and longer")
    directory = client.mkdir(root, b"directory")
    inner = client.create(directory, b"inner")
    client.remove(root, b"file")

    snapshot("rollback", "clean")
    assert client.read(file) == b"before"
    assert client.attributes(file) == before
    assert client.lookup(root, b"file") == file
    for gone in (directory, inner):
        with refused("STALE"):
            client.attributes(gone)
    with refused("NOENT"):
        client.lookup(root, b"directory")
    assert client.attributes(client.create(root, b"directory")).nlink == 1


def test_what_was_written_unstable_is_written_again(
    world: NfsWorld, snapshot: Callable[[str, str], None]
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    snapshot("create", "clean")
    written = client(WRITE3args(file, 0, 4, stable_how.UNSTABLE, [b"text"]))
    assert client(COMMIT3args(file, 0, 0)).verf == written.verf
    snapshot("rollback", "clean")
    assert client(COMMIT3args(file, 0, 0)).verf != written.verf
    assert client.read(file) == b""


def test_a_write_that_overlaps_a_rollback_has_no_before(
    world: NfsWorld,
    snapshot: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = world.client()
    file = client.create(client.mount(), b"file")
    snapshot("create", "clean")
    client.write(file, b"what a client has in its cache")
    write = Ext4Node.write

    def writes(node: Ext4Node, offset: int, data: Sequence[Buffer]) -> int:
        snapshot("rollback", "clean")
        return write(node, offset, data)

    monkeypatch.setattr(Ext4Node, "write", writes)
    assert client.write(file, b"x").file_wcc.before is None
    assert client.read(file) == b"x"
