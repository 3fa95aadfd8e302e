"""What a check finds, in words: one Finding per thing that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from appliance import image_limits


class Code(Enum):
    """What kind of thing is wrong, and what e2fsck would do about it."""

    SUPERBLOCK = "superblock", "correct it, or go on from a backup"
    BACKUP = "backup", "write the backup anew"
    GROUP = "group-descriptor", "go on from a backup, or move what is misplaced"
    GROUP_CHECKSUM = "group-checksum", "compute it again"
    INODE_CHECKSUM = "inode-checksum", "ask whether to clear the inode, or compute it again"
    INODE_MODE = "inode-mode", "clear the inode"
    INODE_FIELD = "inode-field", "correct the field"
    INODE_SIZE = "inode-size", "correct the size"
    INODE_BLOCKS = "inode-blocks", "correct the count"
    BLOCK_MAP = "block-map", "clear the part that cannot be"
    BLOCK_MAP_CHECKSUM = "block-map-checksum", "compute it again, or clear that part"
    BLOCK_RANGE = "block-range", "clear the reference to the block"
    BLOCK_METADATA = "block-in-metadata", "clone the block, or delete the file"
    BLOCK_SHARED = "block-shared", "clone the block, or delete the file"
    XATTR = "xattr", "clear the attributes"
    XATTR_REFCOUNT = "xattr-refcount", "correct the count"
    SYMLINK = "symlink", "clear the inode"
    ORPHAN = "orphan-list", "clear the list"
    DIRECTORY = "directory", "salvage what is left of the block"
    DIRECTORY_CHECKSUM = "directory-checksum", "compute it again"
    ENTRY = "entry", "clear the entry"
    ENTRY_TYPE = "entry-type", "correct the type"
    ENTRY_DUPLICATE = "entry-duplicate", "rename the entry"
    DOTS = "dots", "correct the entry"
    INDEX = "index", "rebuild the index"
    UNREACHABLE = "unreachable", "connect it to lost+found"
    LINK_COUNT = "link-count", "correct the count"
    BLOCK_BITMAP = "block-bitmap", "correct the bitmap"
    INODE_BITMAP = "inode-bitmap", "correct the bitmap"
    BITMAP_CHECKSUM = "bitmap-checksum", "compute it again"
    BITMAP_PADDING = "bitmap-padding", "set the padding"
    COUNT = "count", "correct the count"
    JOURNAL = "journal", "make the journal anew"
    RESIZE_INODE = "resize-inode", "make it anew"

    def __init__(self, title: str, remedy: str) -> None:
        self.title: Final = title
        self.remedy: Final = remedy


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `inode` is 0 if it belongs to none; `path`, where it is known, is
    how the tree names that inode."""

    code: Code
    inode: int
    text: str
    path: str = ""

    def __str__(self) -> str:
        where = ""
        if self.inode:
            where = f"inode {self.inode}{f' ({self.path})' if self.path else ''}: "
        return f"{where}{self.text} (e2fsck would {self.code.remedy})"


class Findings:
    """What was found so far, up to a limit: a ruined disk has one for every block."""

    def __init__(self) -> None:
        self.all: Final[list[Finding]] = []
        self.more = 0

    def add(self, code: Code, inode: int, text: str) -> None:
        """One more thing is wrong."""
        if len(self.all) < image_limits.CHECK_FINDINGS_MAX:
            self.all.append(Finding(code, inode, text))
        else:
            self.more += 1

    def name(self, at: int, path: str) -> None:
        """Say by which path the inode of the finding `at` is known."""
        self.all[at] = replace(self.all[at], path=path)


@dataclass(slots=True)
class Report:
    """What a check has to say."""

    findings: list[Finding]
    more: int
    """Findings that were counted only."""
    notes: list[str]
    """What is worth knowing, but not wrong."""
    files: int
    files_max: int
    blocks: int
    blocks_max: int

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings
