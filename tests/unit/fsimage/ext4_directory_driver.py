"""Directories of an image, changed one operation at a time, without a journal: what is published
goes to the image when it is asked for. Beside them a model: a dictionary for each directory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4 import directory_changes, finishing, layout
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.check import check
from appliance.fsimage.ext4.directory import Directories, Directory
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.superblock import SUPERBLOCK_BYTES, Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.ext4_images import e2fsck, make_image

REGULAR = 1
FILES = 8
"""How many files there are for all names to mean."""
NOW_NS = 1_700_000_000_000_000_000


def image_for_directories(folder: Path, size: str, *options: str) -> Path:
    """An image with a directory "d", another one "e", and FILES files."""
    tree = folder / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "e").mkdir()
    for number in range(FILES):
        (tree / f"file-{number}").write_text(str(number))
    return make_image(folder / "fs.img", size, *options, tree=tree)


class Driver:
    """One image."""

    def __init__(self, image: Path) -> None:
        self.image: Final = image
        self._device: Final = FileDevice(image, read_only=False)
        superblock = Superblock.read(self._device)
        self.volume: Final = Volume(self._device, superblock, "image")
        self._allocator: Final = Allocator(self.volume)
        self.maps: Final = BlockMaps(self.volume)
        self.shared: Final = Directories(self.volume, self.maps)
        root = self._directory(self.shared, layout.EXT4_ROOT_INO)
        self.files: Final = [root.lookup(b"file-%d" % number) for number in range(FILES)]
        self.directories: Final = {
            name: self._directory(self.shared, root.lookup(name)) for name in (b"d", b"e")
        }
        self.model: Final[dict[bytes, dict[bytes, int]]] = {b"d": {}, b"e": {}}
        self.operations = 0
        self.gathers = False
        """The transaction stays open until `commit`, or `write`."""
        self._running: set[int] = set()

    def _directory(self, shared: Directories, number: int) -> Directory:
        return Directory(shared, inodes.read(self.volume, number))

    def fresh(self, number: int) -> Directory:
        """A directory read from what is published, with no memory of what was before."""
        return self._directory(Directories(self.volume, BlockMaps(self.volume)), number)

    def change(self, act: Callable[[Operation], None]) -> None:
        """One operation. If it raises, nothing has happened."""
        self.operations += 1
        operation = Operation(self.volume, self._allocator, NOW_NS + self.operations)
        try:
            act(operation)
            blocks = operation.finish()
        except BaseException:
            self._allocator.undo(operation)
            raise
        operation.announce()
        self.volume.publish(blocks)
        operation.publish()
        self._running.update(blocks)
        if not self.gathers:
            self.commit()
        self._allocator.free_blocks += operation.free_blocks_change

    def commit(self) -> None:
        """Close the transaction."""
        finishing.finish(self.volume, self._running)
        self._running.clear()

    def enter(self, operation: Operation, where: bytes, name: bytes, file: int) -> None:
        number = self.files[file]
        operation.inode(number).disk.i_links_count += 1
        directory_changes.enter(self.directories[where], operation, name, number, REGULAR)

    def remove(self, operation: Operation, where: bytes, name: bytes, file: int) -> None:
        operation.inode(self.files[file]).disk.i_links_count -= 1
        directory_changes.remove(self.directories[where], operation, name)

    def replace(
        self, operation: Operation, where: bytes, name: bytes, before: int, after: int
    ) -> None:
        operation.inode(self.files[before]).disk.i_links_count -= 1
        operation.inode(self.files[after]).disk.i_links_count += 1
        number = self.files[after]
        directory_changes.replace(self.directories[where], operation, name, number, REGULAR)

    # With the model.

    def add(self, name: bytes, file: int = 0, where: bytes = b"d") -> None:
        """Enter a name, in an operation of its own."""
        self.change(lambda operation: self.enter(operation, where, name, file))
        self.model[where][name] = file

    def add_all(self, names: Iterable[bytes], where: bytes = b"d") -> None:
        """Enter many, some of them in each operation."""
        waiting = iter(names)
        while some := list(itertools.islice(waiting, 20)):

            def act(operation: Operation, some: list[bytes] = some) -> None:
                for name in some:
                    self.enter(operation, where, name, 0)

            self.change(act)
            self.model[where].update(dict.fromkeys(some, 0))

    def drop(self, name: bytes, where: bytes = b"d") -> None:
        """Remove a name, in an operation of its own."""
        file = self.model[where][name]
        self.change(lambda operation: self.remove(operation, where, name, file))
        del self.model[where][name]

    def names_of(self, directory: Directory, step: int = 500) -> dict[bytes, int]:
        """What a listing says; every name once, every cookie after the one before."""
        entries = []
        cookie = 0
        while True:
            some = directory.entries(cookie, step)
            entries += some
            if len(some) < step:
                break
            cookie = some[-1].cookie
        assert all(before.cookie < after.cookie for before, after in pairwise(entries))
        assert Counter(entry.name for entry in entries).most_common(1)[0][1] == 1
        return {entry.name: entry.fileid for entry in entries[2:]}

    def agree(self) -> None:
        """What was kept up to date, what is read afresh, and the model say the same."""
        for where, names in self.model.items():
            known = self.directories[where]
            expected = {name: self.files[file] for name, file in names.items()}
            for directory in (known, self.fresh(known.number)):
                assert self.names_of(directory) == expected
                assert all(directory.lookup(name) == file for name, file in expected.items())
                assert directory.lookup(b"not there") == 0
                assert directory.is_empty() == (not names)

    def check(self) -> None:
        """Both checkers find nothing."""
        self.check_by_ours()
        e2fsck(self.image)

    def check_by_ours(self) -> None:
        """Our checker finds nothing."""
        self.write()
        findings = [finding.text for finding in check(self._device)]
        assert not findings, findings[:5]

    def write(self) -> None:
        """Everything into the image."""
        self.commit()
        volume = self.volume
        disk = volume.superblock.disk
        disk.s_free_blocks_count_lo = self._allocator.free_blocks
        raw = bytearray(self._device.read(layout.SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES))
        disk.encode_into(raw, 0)
        if volume.has_metadata_csum:
            disk.s_checksum = superblock_checksum(bytes(raw))
            disk.encode_into(raw, 0)
        blocks = dict(volume.unwritten)
        for number, block in blocks.items():
            self._device.write(number << volume.block_bits, [block])
        volume.written(blocks)
        self._device.write(layout.SUPERBLOCK_OFFSET, [raw])

    def close(self) -> None:
        self._device.close()
