"""What the passes of a check tell each other: tables with a few bits or bytes for every block and
every inode, so that memory is bounded by the geometry, whatever the image says.

Blocks are counted in clusters from the first data block on, as in the bitmaps. (A cluster is a
block, unless the file system has bigalloc.)
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.bits import Bits
from appliance.fsimage.ext4.check.findings import Code, Findings
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_group_desc, ext4_super_block
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume, inode_table_of

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it has been, of how much."""

assert array("I").itemsize == 4, sys.platform


_GROUP_BYTES: Final = 600
"""About what a decoded descriptor takes."""


def tables_bytes(superblock: Superblock) -> int:
    """How much memory the tables of a check take: some seven bits for a block (three sets here, and
    those of the passes), for an inode what is declared below, and for a group its descriptor."""
    of_groups = superblock.groups_count * _GROUP_BYTES
    return superblock.blocks_count * 7 // 8 + superblock.disk.s_inodes_count * 16 + of_groups


def silent(what: str, done: int, total: int) -> None:
    """The Progress of those who do not watch."""


class Context:
    """One check."""

    def __init__(self, volume: Volume, findings: Findings, progress: Progress) -> None:
        superblock = volume.superblock
        disk = superblock.disk
        self.volume: Final = volume
        self.superblock: Final[Superblock] = superblock
        self.disk: Final[ext4_super_block] = disk
        self.findings: Final = findings
        self.progress: Final = progress
        self.notes: Final[list[str]] = []
        self.groups: list[ext4_group_desc | None] = []
        """None: it cannot be used."""
        self.doubtful_groups: Final[set[int]] = set()
        """Those with a wrong checksum: what they say of unused inodes does not count."""

        self.first_block: Final = disk.s_first_data_block
        self.cluster_bits: Final = superblock.cluster_blocks.bit_length() - 1
        self.clusters_count: Final = self.cluster_of(superblock.blocks_count - 1) + 1
        self.clusters_per_group: Final = disk.s_blocks_per_group >> self.cluster_bits
        self.used: Final = Bits(self.clusters_count)
        self.metadata: Final = Bits(self.clusters_count)
        self.shared: Final = Bits(self.clusters_count)
        """Clusters that more than one claims."""

        self.inodes_count: Final = disk.s_inodes_count
        slots = self.inodes_count + 1
        self.kinds: Final = bytearray(slots)
        """Of each inode in use its FileType; 0: not in use."""
        self.links: Final = array("H", bytes(2 * slots))
        """i_links_count."""
        self.names: Final = array("I", bytes(4 * slots))
        """How many entries there are."""
        self.parents: Final = array("I", bytes(4 * slots))
        """A directory that has an entry for it."""
        self.dotdots: Final = array("I", bytes(4 * slots))
        """What a directory says is above it."""
        self.xattr_blocks: Final[dict[int, int]] = {}
        """Blocks of attributes, and how many inodes have them. (Each takes a block on disk.)"""
        self.orphans: Final = Bits(slots)
        self.unused_inodes: Final = Bits(slots)
        """Those that their group says were never used: they are not looked at."""

    def wrong(self, code: Code, text: str, inode: int = 0) -> None:
        """Something is."""
        self.findings.add(code, inode, text)

    # Blocks.

    def cluster_of(self, block: int) -> int:
        """The number of a block's cluster in the tables."""
        return block - self.first_block >> self.cluster_bits

    def claim_metadata(self, block: int, count: int) -> bool:
        """Blocks that belong to the file system itself; whether nothing else there does too."""
        first = self.cluster_of(block)
        clusters = self.cluster_of(block + count - 1) - first + 1
        self.used.add_range(first, clusters)
        return self.metadata.add_range(first, clusters)

    def has_feature(self, compat: int = 0, incompat: int = 0, ro_compat: int = 0) -> bool:
        """Whether the file system has one of these."""
        disk = self.disk
        return bool(
            disk.s_feature_compat & compat
            or disk.s_feature_incompat & incompat
            or disk.s_feature_ro_compat & ro_compat
        )

    # Inodes.

    @property
    def has_uninit_groups(self) -> bool:
        """Whether the flags of groups count."""
        return self.superblock.has_metadata_csum or self.superblock.has_gdt_csum

    def inode(self, number: int) -> Inode:
        """An inode that is in use, as it is on disk."""
        index, at = divmod(number - 1, self.disk.s_inodes_per_group)
        group = self.groups[index]
        assert group is not None, "its table was read before"
        offset = at * self.superblock.inode_bytes
        block = self.volume.block(inode_table_of(group) + (offset >> self.volume.block_bits))
        offset &= self.volume.block_bytes - 1
        raw = block[offset : offset + self.superblock.inode_bytes]
        return inodes.decode(self.volume, number, raw)

    def may_be_named(self, number: int) -> bool:
        """Whether a directory may have an entry for this inode."""
        return (
            number == layout.EXT4_ROOT_INO
            or self.superblock.first_inode <= number <= self.inodes_count
        )
