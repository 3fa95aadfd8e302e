"""Our fsx on file systems, called as nfsd calls them; and on some that are broken, which it has to
find out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.fsimage.ext4 import content
from appliance.fsimage.ext4.node import Ext4Node
from appliance.limits import KiB, MiB
from appliance.vfs.interface import Buffer, Node
from appliance.vfs.memory import MemoryFile
from appliance.vfs.sparse import SparseBytes
from tests.proofs import geometry
from tests.proofs.conftest import NIGHTLY, Templates
from tests.proofs.fsx import Difference, Fsx, Target
from tests.unit.vfs.tools import memory

OPERATIONS = 20_000
"""On each kind of image; over 100,000 on all."""

SEEDS = [random.randrange(1 << 32) for _ in range(20)] if NIGHTLY else [1]

BASES = {
    # In indirect blocks: at the first singly and doubly indirect block, and at the first triply.
    "ext4-no-extents": [0, 200 * KiB, 64 * MiB + 140 * KiB],
    "ext3-4k": [0, 4 * MiB - 100 * KiB, 4096 * MiB + 4 * MiB - 100 * KiB],
    "ext2-1k": [0, 200 * KiB, 64 * MiB + 140 * KiB],
    # With extents: also where an offset needs more than 32 bits.
    "ext4-1k": [0, 0, 4096 * MiB - 100 * KiB],
    "ext4-4k": [0, 0, 4096 * MiB - 100 * KiB],
}


def run_on_memory(seed: int, size: int = 64 * MiB, *, may_fill: bool = False) -> Fsx:
    filesystem = memory(size)
    fsx = Fsx(Target(lambda: filesystem), seed=seed, block_bytes=4096, may_fill=may_fill)
    fsx.run(5000)
    return fsx


def test_fsx_on_memory() -> None:
    run_on_memory(1)


def test_fsx_on_memory_that_is_full() -> None:
    assert run_on_memory(2, 512 * KiB, may_fill=True).refused > 20


def target_in(image: Path, kind: str) -> Target:
    """Where files can have storage that was not written, that, too."""

    def punch(node: Node, offset: int, end: int) -> None:
        assert isinstance(node, Ext4Node)
        content.punch(node, offset, end)

    def allocate(node: Node, offset: int, end: int) -> None:
        assert isinstance(node, Ext4Node)
        content.allocate(node, offset, end)

    extents = kind.startswith("ext4") and "no-extents" not in kind
    return Target(lambda: geometry.open_rw(image), punch, allocate if extents else None)


@pytest.mark.root
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", BASES)
def test_fsx_on_an_image(kind: str, seed: int, templates: Templates, tmp_path: Path) -> None:
    image = geometry.copied(templates(kind), tmp_path / "fs.img")
    target = target_in(image, kind)
    block_bytes = geometry.block_bytes(kind)
    fsx = Fsx(target, seed=seed, block_bytes=block_bytes, bases=BASES[kind])
    fsx.run(OPERATIONS)
    geometry.judge(image, target.filesystem)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4-tiny", "ext2-tiny"])
def test_fsx_on_an_image_that_is_full(kind: str, templates: Templates, tmp_path: Path) -> None:
    image = geometry.copied(templates(kind), tmp_path / "fs.img")
    target = target_in(image, kind)
    fsx = Fsx(target, seed=2, block_bytes=1024, bases=[0] * 24, may_fill=True)
    fsx.run(5000)
    assert fsx.refused > 20
    geometry.judge(image, target.filesystem)


# --- what it has to find out -------------------------------------------------


def keeps_what_was_cut_off(patch: pytest.MonkeyPatch) -> None:
    """A file that grows again shows what was in it before."""
    patch.setattr(SparseBytes, "truncate", lambda self, size: None)


def loses_the_last_byte(patch: pytest.MonkeyPatch) -> None:
    """Of a write over the end of a chunk."""
    original = SparseBytes.write

    def write(self: SparseBytes, where: list[tuple[int, int, int]], data: Sequence[Buffer]) -> None:
        original(self, where, data)
        index, _, stop = where[-1]
        if len(where) > 1:
            original(self, [(index, stop - 1, stop)], [b"\0"])

    patch.setattr(SparseBytes, "write", write)


def forgets_to_grow(patch: pytest.MonkeyPatch) -> None:
    """Where only one byte is written at the end."""
    original = MemoryFile.write

    def write(self: MemoryFile, offset: int, data: Sequence[Buffer]) -> int:
        size = self.attributes().size
        length = original(self, offset, data)
        if offset == size and length % 7 == 0:
            self._become(size=size)
        return length

    patch.setattr(MemoryFile, "write", write)


@pytest.mark.parametrize("bug", [keeps_what_was_cut_off, loses_the_last_byte, forgets_to_grow])
def test_fsx_finds(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(Difference, match=r"seed 1, operation \d+, file"):
        run_on_memory(1)
