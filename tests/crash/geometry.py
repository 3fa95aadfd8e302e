"""The file systems that are crashed: small ones, in which everything soon happens.

Journals are as small as mke2fs makes them (1024 blocks), so that the log wraps often; block groups
are small, so that there are many of them.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from tests.crash.recording import SECTOR, Image, MemoryDevice, Write
from tests.unit.fsimage.ext4_images import MKE2FS

_HASH_SEED: Final = "hash_seed=0d1b4c8e-6a55-4b7c-8a52-11f0c7a4e9d3"
_MADE_AT: Final = {"E2FSPROGS_FAKE_TIME": "1500000000"}


class Place(Enum):
    """Where a write goes."""

    SUPERBLOCK = "superblock"
    JOURNAL_SUPERBLOCK = "journal-superblock"
    COMMIT_BLOCK = "commit-block"
    LOG = "log"
    CHECKPOINT = "checkpoint"
    """Group descriptors, bitmaps and inode tables, in their place."""
    OTHER = "other"
    """Data of files, and blocks of directories and block maps."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a file system is made."""

    name: str
    block_bytes: int
    size_bytes: int
    options: tuple[str, ...]
    journal: bool = True
    prepare: Callable[[bytes], bytes] = bytes
    """What is made of a new file system before it is worked on."""

    def make(self, path: Path) -> Path:
        """A new file system, the same each time."""
        with path.open("wb") as file:
            file.truncate(self.size_bytes)
        where = ["-b", str(self.block_bytes), *self.options, str(path)]
        subprocess.run([*MKE2FS, "-E", _HASH_SEED, *where], env=os.environ | _MADE_AT, check=True)
        return path

    @cached_property
    def base(self) -> bytes:
        """A new file system, with nothing in it but what `prepare` has put there."""
        with tempfile.TemporaryDirectory() as folder:
            return self.prepare(self.make(Path(folder) / "fs.img").read_bytes())

    @cached_property
    def volume(self) -> Volume:
        device = MemoryDevice(Image(self.base).mapping())
        return Volume(device, Superblock.read(device), self.name)

    @cached_property
    def ring(self) -> list[int]:
        """The blocks of the journal, its superblock first."""
        if not self.journal:
            return []
        volume = self.volume
        journal = inodes.read_any(volume, layout.EXT4_JOURNAL_INO)
        block_map = BlockMaps(volume).of(journal)
        return [
            extent.physical + index
            for extent in block_map.extents(0, journal.size >> volume.block_bits)
            for index in range(extent.count)
        ]

    @cached_property
    def log_sectors(self) -> frozenset[int]:
        """The sectors of the log, which mean nothing once it has been replayed."""
        per_block = self.block_bytes // SECTOR
        return frozenset(
            block * per_block + index for block in self.ring[1:] for index in range(per_block)
        )

    @cached_property
    def _log_blocks(self) -> frozenset[int]:
        return frozenset(self.ring[1:])

    @cached_property
    def _system_blocks(self) -> frozenset[int]:
        """What is at a fixed place: descriptors, bitmaps, inode tables."""
        volume = self.volume
        superblock = volume.superblock
        per_group = superblock.disk.s_inodes_per_group * superblock.inode_bytes // self.block_bytes
        first = superblock.disk.s_first_data_block + 1
        found = set(range(first, first + superblock.groups_count * 64 // self.block_bytes + 1))
        for index in range(superblock.groups_count):
            group = volume.group(index)
            found |= {group.bg_block_bitmap_lo, group.bg_inode_bitmap_lo}
            found |= set(range(group.bg_inode_table_lo, group.bg_inode_table_lo + per_group))
        return frozenset(found)

    def place(self, write: Write) -> Place:
        """Where `write` goes."""
        block = write.offset // self.block_bytes
        if write.offset <= layout.SUPERBLOCK_OFFSET < write.end:
            return Place.SUPERBLOCK
        if self.ring and block == self.ring[0]:
            return Place.JOURNAL_SUPERBLOCK
        if block in self._log_blocks:
            return Place.COMMIT_BLOCK if has_commit_block(write, self.block_bytes) else Place.LOG
        return Place.CHECKPOINT if block in self._system_blocks else Place.OTHER


_COMMIT: Final = struct.pack(">II", layout.JBD2_MAGIC, layout.JBD2_COMMIT_BLOCK)


def has_commit_block(write: Write, block_bytes: int) -> bool:
    """Whether a write to the log contains the block that makes a transaction count."""
    starts = range(0, len(write.data), block_bytes)
    return any(write.data.startswith(_COMMIT, start) for start in starts)


def _geometry(name: str, block_bytes: int, mib: int, *options: str) -> Geometry:
    return Geometry(name, block_bytes, mib << 20, options, "-t ext2" not in " ".join(options))


_SMALL: Final = ("-I", "256", "-N", "768", "-g", "2048", "-J", "size=1")
"""Six groups of 2 MiB, and a journal of 1 MiB."""

_LARGER: Final = ("-N", "512", "-g", "1024")

GEOMETRIES: Final = {
    geometry.name: geometry
    for geometry in (
        _geometry("1k", 1024, 12, "-t", "ext4", *_SMALL),
        _geometry("2k", 2048, 12, "-t", "ext4", "-I", "256", *_LARGER, "-J", "size=2"),
        _geometry("4k", 4096, 16, "-t", "ext4", "-I", "256", *_LARGER, "-J", "size=4"),
        _geometry("no-csum", 1024, 12, "-t", "ext4", *_SMALL, "-O", "^metadata_csum"),
        _geometry("uninit", 1024, 12, "-t", "ext4", *_SMALL, "-O", "^metadata_csum,uninit_bg"),
        _geometry("32bit", 1024, 12, "-t", "ext4", *_SMALL, "-O", "^64bit"),
        _geometry(
            "upstream", 1024, 12, "-t", "ext4", *_SMALL, "-O", "metadata_csum_seed,orphan_file"
        ),
        _geometry("ext3", 1024, 12, "-t", "ext3", "-I", "256", *_SMALL[2:]),
        _geometry("ext3-128", 1024, 12, "-t", "ext3", "-I", "128", *_SMALL[2:]),
        _geometry("ext2", 1024, 12, "-t", "ext2", "-I", "256", "-N", "768", "-g", "2048"),
    )
}


@cache
def tool_version() -> str:
    """Of e2fsck, for reports."""
    said = subprocess.run(["e2fsck", "-V"], capture_output=True, text=True, check=True)
    return said.stderr.splitlines()[0]
