"""Every directory: its blocks, its entries, and what they name ("Linear Directories")."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from appliance import image_limits
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.bits import Bits
from appliance.fsimage.ext4.check.blocks import BlockWalk, Run
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.check.index import IndexCheck
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_dir_entry_2, ext4_dir_entry_tail
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import FileType

_HEAD: Final = ext4_dir_entry_2.SIZE
_SHORTEST: Final = 12
_BYTES_IN_REC_LEN_MAX: Final = 1 << 16
_INLINE_PARENT_BYTES: Final = 4


class RawEntry(NamedTuple):
    """An entry as it is."""

    at: int
    length: int
    inode: int
    name: bytes
    file_type: int


class DirectoryScan:
    """The way through all directories."""

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self.walk: Final = BlockWalk(context)
        self.read_already: Final = Bits(context.clusters_count << context.cluster_bits)
        """Blocks that were read as those of a directory: none is read for two of them."""

    def run(self) -> None:
        """Look at all."""
        context = self._context
        for done, number in enumerate(directories_of(context)):
            _OneDirectory(context, self, context.inode(number)).run()
            if not done & 0xFF:
                context.progress("directories", number, context.inodes_count)
        context.progress("directories", context.inodes_count, context.inodes_count)


def directories_of(context: Context) -> Iterator[int]:
    """The numbers of all directories."""
    number = context.kinds.find(FileType.DIRECTORY)
    while number >= 0:
        yield number
        number = context.kinds.find(FileType.DIRECTORY, number + 1)


def parse(raw: bytes, start: int, end: int, *, has_type: bool) -> Iterator[RawEntry | str]:
    """The entries of a piece of a directory; a sentence about what cannot be one ends them."""
    at = start
    while at < end:
        if at + _HEAD > end:
            yield f"half an entry at {at}"
            return
        inode, length, name_length, file_type = ext4_dir_entry_2.STRUCT.unpack_from(raw, at)
        if end >= _BYTES_IN_REC_LEN_MAX:
            length = len(raw) if length in (0, 0xFFFF) else length & 0xFFFC | (length & 3) << 16
        if not has_type:
            name_length |= file_type << 8
            file_type = 0
        stop = at + _HEAD + name_length
        if length < _SHORTEST or length & 3 or at + length > end or stop > at + length:
            yield f"an entry of {length} bytes, with a name of {name_length}, at {at}"
            return
        yield RawEntry(at, length, inode, raw[at + _HEAD : stop], file_type)
        at += length


class _OneDirectory:
    """The look at one directory."""

    def __init__(self, context: Context, scan: DirectoryScan, inode: Inode) -> None:
        self._context: Final = context
        self._scan: Final = scan
        self._inode: Final = inode
        self._number: Final = inode.number
        self._seed: Final = inodes.seed_of(context.volume, inode)
        self._has_type: Final = context.has_feature(incompat=layout.INCOMPAT_FILETYPE)
        self._has_tail: Final = context.superblock.has_metadata_csum
        self._folds: Final = inode.has_flag(layout.CASEFOLD_FL)
        self._seen: Final[set[bytes]] = set()
        self._index: IndexCheck | None = None

    def _wrong(self, code: Code, text: str) -> None:
        self._context.wrong(code, text, self._number)

    def run(self) -> None:
        """Everything."""
        if self._inode.has_flag(layout.INLINE_DATA_FL):
            self._inline()
            return
        self._runs = [run for run in self._scan.walk.runs(self._inode) if run.logical >= 0]
        self._starts = [run.logical for run in self._runs]
        self._check_holes()
        count = self._inode.size >> self._context.volume.block_bits
        if self._inode.has_flag(layout.INDEX_FL) and self._context.superblock.has_dir_index:
            self._index = IndexCheck(self._context, self._seed, count, self._block_at, self._wrong)
            self._index.run()
        for run in self._runs:
            for logical in range(run.logical, min(run.logical + run.length, count)):
                self._block(logical, run)

    # Blocks.

    def _check_holes(self) -> None:
        expected = 0
        for run in self._runs:
            if run.logical != expected:
                self._wrong(Code.DIRECTORY, f"has no block at {expected}-{run.logical - 1}")
            if not run.written:
                self._wrong(Code.DIRECTORY, f"has a block that was never written at {run.logical}")
            expected = run.logical + run.length

    def _block_at(self, logical: int) -> bytes | None:
        """A block of the directory, for the index."""
        at = bisect_right(self._starts, logical) - 1
        if at < 0 or logical >= self._runs[at].logical + self._runs[at].length:
            return None
        run = self._runs[at]
        return self._read(run.physical + logical - run.logical)

    def _read(self, block: int) -> bytes:
        volume = self._context.volume
        return volume.device.read(block << volume.block_bits, volume.block_bytes)

    def _block(self, logical: int, run: Run) -> None:
        block = run.physical + logical - run.logical
        at = block - self._context.first_block
        if at in self._scan.read_already:
            return
        self._scan.read_already.add(at)
        raw = self._read(block)
        index = self._index
        if index and index.hash and logical in index.nodes:
            if logical == 0:
                self._dots(raw, list(parse(raw, 0, len(raw), has_type=self._has_type))[:2])
            return
        if index and index.hash and logical not in index.leaves:
            self._wrong(Code.INDEX, f"has an index in which block {logical} does not occur")
        self._leaf(logical, raw, ignore_tail=bool(index and not index.hash))

    def _leaf(self, logical: int, raw: bytes, *, ignore_tail: bool) -> None:
        end = len(raw)
        if self._has_tail and not ignore_tail:
            end -= ext4_dir_entry_tail.SIZE
            self._check_tail(logical, raw, end)
        entries: list[RawEntry] = []
        for entry in parse(raw, 0, end, has_type=self._has_type):
            if isinstance(entry, str):
                self._wrong(Code.DIRECTORY, f"has in block {logical} {entry}")
            else:
                entries.append(entry)
        if logical == 0:
            self._dots(raw, entries[:2])
            entries = entries[2:]
        for each in entries:
            if each.inode:
                self._entry(each.name, each.inode, each.file_type)
        self._check_hashes(logical, entries)

    def _check_tail(self, logical: int, raw: bytes, end: int) -> None:
        tail = ext4_dir_entry_tail.decode(raw, end)
        if (
            tail.det_reserved_ft != layout.DIR_TAIL_FILE_TYPE
            or tail.det_rec_len != ext4_dir_entry_tail.SIZE
            or tail.det_reserved_zero1
            or tail.det_reserved_zero2
        ):
            self._wrong(Code.DIRECTORY_CHECKSUM, f"has no checksum in block {logical}")
        elif tail.det_checksum != crc32c(self._seed, raw[:end]):
            self._wrong(Code.DIRECTORY_CHECKSUM, f"has a wrong checksum in block {logical}")

    def _check_hashes(self, logical: int, entries: list[RawEntry]) -> None:
        index = self._index
        if not index or not index.hash or self._folds or logical not in index.leaves:
            return
        low, high = index.leaves[logical]
        for entry in entries:
            if entry.inode and not low & ~1 <= index.hash(entry.name)[0] < high:
                text = f"has {words(entry.name)} in block {logical}, where its index does not look"
                self._wrong(Code.INDEX, text)

    # Inside the inode.

    def _inline(self) -> None:
        context, number = self._context, self._number
        try:
            raw = inodes.inline_data(context.volume, self._inode)
        except VfsError:
            return  # its attributes are damaged, and that is told
        split = len(self._inode.disk.i_block)
        context.names[number] += 1
        self._dotdot(int.from_bytes(raw[:_INLINE_PARENT_BYTES], "little"))
        for start, end in ((_INLINE_PARENT_BYTES, split), (split, len(raw))):
            for entry in parse(raw, start, end, has_type=self._has_type):
                if isinstance(entry, str):
                    self._wrong(Code.DIRECTORY, f"has inside its inode {entry}")
                elif entry.inode:
                    self._entry(entry.name, entry.inode, entry.file_type)

    # Entries.

    def _dots(self, raw: bytes, entries: list[RawEntry | str] | list[RawEntry]) -> None:
        """The first two entries of a directory."""
        found = [entry for entry in entries if isinstance(entry, RawEntry)]
        names = [entry.name for entry in found]
        directory = (0, layout.FILE_TYPES[FileType.DIRECTORY])
        self._context.names[self._number] += 1
        if not found or names[0] != b"." or found[0].inode != self._number:
            self._wrong(Code.DOTS, 'does not begin with ".", naming itself')
        elif found[0].length != _SHORTEST and not self._inode.has_flag(layout.INDEX_FL):
            self._wrong(Code.DOTS, f'has a "." of {found[0].length} bytes')
        if len(found) < 2 or names[1] != b"..":
            self._wrong(Code.DOTS, 'has no ".." after "."')
            return
        if any(raw[entry.at + _HEAD + len(entry.name)] for entry in found):
            self._wrong(Code.DOTS, 'has a "." or ".." with something behind its name')
        if any(entry.file_type != directory[self._has_type] for entry in found):
            self._wrong(Code.ENTRY_TYPE, 'has a "." or ".." with the type of something else')
        self._dotdot(found[1].inode)

    def _dotdot(self, parent: int) -> None:
        context = self._context
        if not context.may_be_named(parent) or context.kinds[parent] != FileType.DIRECTORY:
            self._wrong(Code.DOTS, f'has inode {parent} as "..", which is no directory')
            return
        context.dotdots[self._number] = parent
        context.names[parent] += 1

    def _entry(self, name: bytes, inode: int, file_type: int) -> None:
        """An entry that is neither "." nor ".."."""
        context = self._context
        problem = self._entry_problem(name, inode)
        if problem:
            self._wrong(Code.ENTRY, f"has the entry {words(name)}, {problem}")
            return
        if name in self._seen:
            self._wrong(Code.ENTRY_DUPLICATE, f"has the entry {words(name)} twice")
        if len(self._seen) >= image_limits.CHECK_NAMES_MAX:
            self._seen.clear()
        self._seen.add(name)
        kind = context.kinds[inode]
        # 0 means that whoever wants to know has to look.
        if self._has_type and file_type not in (0, layout.FILE_TYPES.get(kind, 0)):
            text = f"has the entry {words(name)} with the type {file_type}, but inode {inode} is"
            self._wrong(Code.ENTRY_TYPE, f"{text} of type {layout.FILE_TYPES.get(kind, 0)}")
        if kind == FileType.DIRECTORY and context.parents[inode]:
            text = f"has the entry {words(name)} for directory {inode}, which has a name already"
            self._wrong(Code.ENTRY, text)
            return
        context.names[inode] += 1
        if not context.parents[inode]:
            context.parents[inode] = self._number

    def _entry_problem(self, name: bytes, inode: int) -> str:
        context = self._context
        if not name or b"/" in name or b"\0" in name:
            return "which is no name"
        if name in (b".", b".."):
            return "which does not belong there"
        if not context.may_be_named(inode):
            return f"for inode {inode}, which cannot be named"
        if inode == layout.EXT4_ROOT_INO:
            return "for the root"
        if inode in context.unused_inodes:
            return f"for inode {inode}, in a part of the table that was never used"
        if not context.kinds[inode]:
            return f"for inode {inode}, which is free"
        return ""


def words(name: bytes) -> str:
    """A name in a sentence."""
    return f'"{printable(name)}"'


def printable(name: bytes) -> str:
    """A name as it can be shown on any terminal."""
    text = name.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
