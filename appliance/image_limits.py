"""A limit on everything that an image, or its user, can make large, with its reason: limits.py for
file systems inside images."""

from __future__ import annotations

from typing import Final

from appliance.clock import SECOND
from appliance.limits import MiB

PARTITIONS_MAX: Final = 128
"""Partitions of one disk: what a GPT holds unless somebody asked for more, and far above what an
MBR's chain of logical partitions reaches in practice."""

GPT_BYTES_MAX: Final = 1 * MiB
"""The GPT's array of entries: 128 entries of 128 bytes are 16 KiB; a header may claim 16 TiB."""

TRANSACTIONS_WAITING_MAX: Final = 2
"""Transactions of a journal that are complete and not yet written. Whoever would make it more waits
for the disk: what is in memory and not on it stays below a few times a quarter of the journal."""

COMMIT_INTERVAL: Final = 5 * SECOND
"""After so long, what was changed is made durable even if nobody asks (ext4's `commit=5`)."""

OVERLAY_BYTES_MAX: Final = 1024 * MiB
"""Blocks changed in memory over an image, those of its snapshots among them: the largest journal
that mke2fs makes is 1 GiB, and the copy of a replayed one has to fit."""

OVERLAY_MAP_BYTES_MAX: Final = 16 * MiB
"""The map of an overlay file, which is in memory as a whole and copied for each snapshot: 4 bytes a
block. Its blocks are 4 KiB for images up to 16 GiB, and larger for larger ones."""

OVERLAY_GROWS_BY: Final = 16 * MiB
"""An overlay file is extended in such steps: the host allocates only what is written."""

SNAPSHOTS_MAX: Final = 64
"""Of one image. Reading looks through the changes since each of them."""

SNAPSHOT_NAME_BYTES_MAX: Final = 64

SPOOL_BYTES_MAX: Final = 64 << 30
"""A compressed image, decompressed: larger ones have an owner who knows where to put them. A few
KiB can claim any size."""

SPOOL_MEMORY_MAX: Final = 256 * MiB
"""What a decompressor may need: xz -9 takes 65 MiB, zstd --ultra 128; the formats allow 4 GiB."""

METADATA_CACHE_BYTES_MAX: Final = 64 * MiB
"""Blocks of inode tables, group descriptors and block maps: all of a tree of a million files."""

GROUPS_CACHE_MAX: Final = 131_072
"""Block groups of which the descriptor is kept decoded, and what follows from it: those of 16 TiB,
at some 600 bytes each."""

BLOCK_MAP_CACHE_EXTENTS_MAX: Final = 262_144
"""Extents that are kept decoded, over all files: about 120 bytes each."""

NODE_CACHE_MAX: Final = 65_536
"""Inodes that are kept decoded: about 1 KiB each."""

NAME_CACHE_MAX: Final = 131_072
"""Names that were looked up: about 250 bytes each."""

DIRECTORY_CACHE_ENTRIES_MAX: Final = 65_536
"""Directory entries that are kept decoded and in order: about 400 bytes each, and they hold their
inodes."""

DIRECTORY_ROOM_BYTES_MAX: Final = 16 * MiB
"""Where the records of directory blocks begin: some 600 bytes of memory for a block of 4 KiB, so
that a million names in a directory are found without reading their blocks again and again."""

NAME_HASHES_MAX: Final = 65_536
"""Names whose hash in a directory's index is remembered: a name is looked up before it is entered,
and comes again in a listing. About 250 bytes each."""

DIRECTORY_LINEAR_BYTES_MAX: Final = 64 * MiB
"""A directory without an index has to be sorted whole before its first entry can be listed: at
64 MiB (about 2 million names) that takes some 15 seconds. An indexed one is sorted leaf by leaf."""

COMPLAINTS_MAX: Final = 1000
"""Different sentences about a damaged image that are logged: a damaged disk has one a block."""

WRITABLE_GROUPS_MAX: Final = 131_072
"""Block groups of an image that is written: 16 TiB in blocks of 4 KiB. Of each some 30 bytes are
kept, and its descriptor is read at the start, in some 10 us."""

CHECKED_BLOCKS_MAX: Final = 1 << 26
"""Blocks of an image that is checked as a whole before it is written, if it says that it was not
unmounted: 256 GiB in blocks of 4 KiB, for which the check needs some 30 MiB."""

JOURNAL_BLOCKS_MIN: Final = 128
"""Blocks of the log of a journal that is written to. A quarter of it is what one transaction may
have; mke2fs makes none with less than 1024 blocks, or 1 MiB."""

JOURNAL_BLOCKS_MAX: Final = 10_240_000
"""Blocks of a journal that is replayed: mke2fs makes none with more. A map whose blocks name each
other may claim any number, and all of them would have to be read to find the end of the log."""

EXTENTS_AT_ONCE_MAX: Final = 1 << 20
"""Extents of one map that are looked at together, those of a directory or of the journal: some 150
bytes each. Of indirect blocks that name each other there may be as many as there are blocks."""

SEEK_EXTENTS_MAX: Final = 1 << 16
"""Extents that are passed in a search for a hole or for data, with the lock held, in some 60 ms.
After that a hole may count as data, and data as going on to the end: whoever asks reads more."""

ORPHANS_MAX: Final = 1 << 17
"""Inodes on the list of orphans of an image that is written, or in its orphan file: half-removed
files, of which a crash leaves as many as were open. To take the first of so many off the list takes
50 us."""

ORPHAN_FILE_BYTES_MAX: Final = 8 * MiB
"""The largest orphan file that mke2fs makes."""

BLOCK_BITMAPS_MAX: Final = 1024
"""Block bitmaps that the allocator keeps: 4 KiB each. Those of groups in which nothing is under way
are made again from the disk when they are needed."""

EXTENTS_CHANGED_MAX: Final = 64
"""Extents that one operation adds to the map of a file, or frees: each may be in another group, so
each may change a bitmap and a block of descriptors, and a journal of 1 MiB with blocks of 4 KiB
takes some 250 blocks at once. What is more goes on in the next operation."""

SPARE_BLOCKS_MAX: Final = 64
"""Blocks (at most a fiftieth of all) that are not given to data, so that an operation that has
begun finds some for its tree of extents: five for each of a dozen writers."""

DIRECTORY_GROUPS_TRIED_MAX: Final = 64
"""Groups that are looked at to find a good one for a directory, before any has to do."""

CHECK_FINDINGS_MAX: Final = 1000
"""What a check of an image says before it only counts: a ruined disk has a finding a block."""

CHECK_NAMES_MAX: Final = 262_144
"""Names of one directory that are remembered to find one that occurs twice: some 100 bytes each."""

CHECK_TABLES_BYTES_MAX: Final = 2048 * MiB
"""What a check may keep in memory of an image: a file system of 1.5 TiB, as mke2fs makes it by
default, takes that. An image that is a few blocks in a sparse file may claim any size."""
