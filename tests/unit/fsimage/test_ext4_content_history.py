"""Whatever is done to files, bytes are what they should be, and e2fsck has nothing to say."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from appliance.fsimage.ext4 import content, layout
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer
from tests.unit.fsimage.ext4_disk import EXT4, Disk, everything, raises, resize

SIZE_MAX = 2_000_000
GEOMETRIES = {
    "1k": EXT4,
    "4k": ("-t", "ext4", "-b", "4096"),
    "no checksums": ("-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext2": ("-t", "ext2", "-b", "2048"),
    "small": ("-t", "ext4", "-b", "1024", "-J", "size=1", "-m", "0"),
}


class History:
    """Random changes of one file, and what should be in it."""

    def __init__(self, disk: Disk, name: bytes, rng: Random) -> None:
        self.disk, self.name, self.rng = disk, name, rng
        self.model = bytearray()

    @property
    def node(self) -> Ext4Node:
        return self.disk.node(self.name)

    def step(self) -> None:
        kinds = ("write", "write", "write", "append", "append", "resize", "punch", "allocate")
        try:
            getattr(self, self.rng.choice(kinds))()
        except VfsError as error:
            if error.code is not Code.NOSPC:
                raise
        offset = self.rng.randrange(len(self.model) + 1)
        buffers, _ = self.node.read(offset, 60_000)
        assert b"".join(buffers) == self.model[offset : offset + 60_000]
        assert self.node.attributes().size == len(self.model)

    def write(self) -> None:
        self._write_at(self.rng.randrange(len(self.model) + 40_000))

    def append(self) -> None:
        self._write_at(len(self.model))

    def _write_at(self, offset: int) -> None:
        rng = self.rng
        length = rng.choice((rng.randrange(1, 300), rng.randrange(1, 150_000)))
        offset = min(offset, SIZE_MAX - length)
        data = rng.randbytes(length)
        cuts = sorted(rng.randrange(length + 1) for _ in range(2))
        parts: list[Buffer] = [
            data[: cuts[0]],
            memoryview(data)[cuts[0] : cuts[1]],
            bytearray(data[cuts[1] :]),
        ]
        done = self.node.write(offset, parts)
        assert 0 < done <= length
        self._grow(offset + done)
        self.model[offset : offset + done] = data[:done]

    def _grow(self, size: int) -> None:
        self.model.extend(bytes(max(0, size - len(self.model))))

    def resize(self) -> None:
        size = self.rng.choice((self.rng.randrange(SIZE_MAX), len(self.model) // 2, 0))
        resize(self.node, size)
        del self.model[size:]
        self._grow(size)

    def punch(self) -> None:
        start = self.rng.randrange(len(self.model) + 1)
        end = min(len(self.model), start + self.rng.choice((100, 3000, 100_000)))
        content.punch(self.node, start, end)
        self.model[start:end] = bytes(end - start)

    def allocate(self) -> None:
        start = self.rng.randrange(SIZE_MAX - 100_000)
        end = start + self.rng.choice((1, 3000, 100_000))
        if not self.node.inode.has_flag(layout.EXTENTS_FL):
            raises(Code.NOTSUPP, lambda: content.allocate(self.node, start, end))
            return
        content.allocate(self.node, start, end)
        self._grow(end)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", range(2))
def test_any_history(tmp_path: Path, geometry: str, seed: int) -> None:
    rng = Random(f"{geometry} {seed}")
    size = "3M" if geometry == "small" else "24M"
    disk = Disk(tmp_path / "image", size, GEOMETRIES[geometry])
    histories = [History(disk, name, rng) for name in (b"f", b"g")]
    for number in range(160):
        rng.choice(histories).step()
        if number % 40 == 39:
            disk.filesystem.commit()
    disk.check()
    for history in histories:
        assert everything(history.node) == history.model
    for history in histories:
        resize(history.node, 0)
        assert not history.node.attributes().used
    disk.check()
    disk.filesystem.close()
