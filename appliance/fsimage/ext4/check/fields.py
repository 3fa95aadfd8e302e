"""What one inode says of itself: fields that must agree with each other, with what it is, and with
the features of the file system ("Inode Table")."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.inode import Inode
from appliance.vfs.interface import FileType

Problem = tuple[Code, str]

_EXTRA_MIN: Final = layout.I_CHECKSUM_HI_OFFSET + 2 - layout.GOOD_OLD_INODE_SIZE
_DEVICES: Final = (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
_WITHOUT_BLOCKS: Final = (*_DEVICES, FileType.FIFO, FileType.SOCKET)
_DEVICE_WORDS: Final = 4
"""Of i_block, how many a device may use."""
_LARGE_FILE: Final = 1 << 31

_FLAGS_OF_FEATURES: Final = (
    (layout.INDEX_FL, "an index", {"compat": layout.COMPAT_DIR_INDEX}),
    (layout.IMAGIC_FL, "a mark of AFS", {"compat": layout.COMPAT_IMAGIC_INODES}),
    (layout.EXTENTS_FL, "extents", {"incompat": layout.INCOMPAT_EXTENTS}),
    (layout.EA_INODE_FL, "the value of an attribute", {"incompat": layout.INCOMPAT_EA_INODE}),
    (layout.INLINE_DATA_FL, "inline data", {"incompat": layout.INCOMPAT_INLINE_DATA}),
    (layout.CASEFOLD_FL, "folded names", {"incompat": layout.INCOMPAT_CASEFOLD}),
)
"""Flags that need a feature."""


def field_problems(
    context: Context, inode: Inode, raw: bytes, *, is_orphan: bool
) -> Iterator[Problem]:
    """What is wrong with the fields of an inode in use."""
    disk = inode.disk
    kind = disk.i_mode >> 12
    extra = disk.i_extra_isize
    room = len(raw) - layout.GOOD_OLD_INODE_SIZE
    if extra and (not _EXTRA_MIN <= extra <= room or extra & 3):
        yield Code.INODE_FIELD, f"has {extra} bytes of extra fields"
    if disk.i_dtime and not is_orphan:
        yield Code.INODE_FIELD, "is in use, but has the time of its deletion"
    if (
        disk.i_size_high
        and kind == FileType.DIRECTORY
        and not context.has_feature(incompat=layout.INCOMPAT_LARGEDIR)
    ):
        yield Code.INODE_SIZE, "is a directory, but has a size of more than 32 bits"
    if disk.i_obso_faddr:
        yield Code.INODE_FIELD, "has the address of a fragment"
    if disk.i_blocks_high and not context.has_feature(ro_compat=layout.RO_COMPAT_HUGE_FILE):
        yield Code.INODE_FIELD, "has more in i_blocks than there can be without huge_file"
    if disk.i_file_acl_high and not context.has_feature(incompat=layout.INCOMPAT_64BIT):
        yield Code.INODE_FIELD, "has a block of attributes beyond 32 bits"
    yield from _flag_problems(context, inode, kind)
    if kind in _WITHOUT_BLOCKS:
        yield from _device_problems(inode, kind)
    if inode.number == layout.EXT4_ROOT_INO and kind != FileType.DIRECTORY:
        yield Code.INODE_MODE, "is the root, but not a directory"


def _flag_problems(context: Context, inode: Inode, kind: int) -> Iterator[Problem]:
    for flag, what, feature in _FLAGS_OF_FEATURES:
        if inode.has_flag(flag) and not context.has_feature(**feature):
            yield Code.INODE_FIELD, f"has {what}, which the file system has not"
    for flag, what in ((layout.INDEX_FL, "an index"), (layout.CASEFOLD_FL, "folded names")):
        if inode.has_flag(flag) and kind != FileType.DIRECTORY:
            yield Code.INODE_FIELD, f"has {what}, but is not a directory"
    if inode.has_flag(layout.EXTENTS_FL) and inode.has_flag(layout.INLINE_DATA_FL):
        yield Code.INODE_FIELD, "has both extents and inline data"
    elif (
        kind in (FileType.REGULAR, FileType.DIRECTORY)
        and not inode.has_flag(layout.EXTENTS_FL | layout.INLINE_DATA_FL)
        and inode.disk.i_block[:2] == struct.pack("<H", layout.EXTENT_MAGIC)
        and context.has_feature(incompat=layout.INCOMPAT_EXTENTS)
    ):
        yield Code.INODE_FIELD, "has extents, but its flags do not say so"


def _device_problems(inode: Inode, kind: int) -> Iterator[Problem]:
    rest = inode.disk.i_block[4 * _DEVICE_WORDS if kind in _DEVICES else 0 :]
    if any(rest) or inode.has_flag(layout.EXTENTS_FL | layout.INLINE_DATA_FL):
        yield (
            Code.INODE_MODE,
            f"has blocks, though files of its mode ({inode.disk.i_mode:o}) cannot",
        )
    if inode.size:
        yield Code.INODE_SIZE, f"has the size {inode.size}, though it has no contents"


# --- sizes -------------------------------------------------------------------


def size_problem(context: Context, inode: Inode, last: int, last_written: int) -> str:
    """What is wrong with the size, given the last logical blocks (-1: none)."""
    kind = inode.disk.i_mode >> 12
    bits = context.volume.block_bits
    if inode.size >= 1 << 63:
        return f"has the size {inode.size}"
    if inode.has_flag(layout.INLINE_DATA_FL):
        return _inline_size_problem(inode, kind)
    if kind == FileType.DIRECTORY:
        if inode.size != last + 1 << bits or not inode.size:
            return f"is a directory of {inode.size} bytes, but has {last + 1} blocks"
        return ""
    if kind == FileType.SYMLINK:
        return ""
    if last_written << bits > max(inode.size, 0) and last_written >= 0:
        return f"has {inode.size} bytes, but contents up to block {last_written}"
    most = _size_max(context, inode)
    if inode.size > most:
        return f"has {inode.size} bytes, where {most} are the most"
    if inode.size >= _LARGE_FILE and not context.has_feature(ro_compat=layout.RO_COMPAT_LARGE_FILE):
        return f"has {inode.size} bytes, which needs the feature large_file"
    return ""


def _inline_size_problem(inode: Inode, kind: int) -> str:
    try:
        rest = dict(xattr.in_inode(inode.body)).get(xattr.INLINE_DATA_NAME)
    except ValueError:
        return ""  # its attributes are damaged, and that is told
    if rest is None:
        return "has inline data, but not the attribute that goes on with it"
    room = len(inode.disk.i_block) + len(rest)
    if inode.size > room or (kind == FileType.DIRECTORY and inode.size != room):
        return f"has {inode.size} bytes, but {room} inside its inode"
    return ""


def _size_max(context: Context, inode: Inode) -> int:
    bits = context.volume.block_bits
    if inode.has_flag(layout.EXTENTS_FL):
        return (1 << 32 + bits) - 1
    pointers = bits - 2
    blocks = 12 + (1 << pointers) + (1 << 2 * pointers) + (1 << 3 * pointers)
    return blocks << bits


# --- symbolic links ----------------------------------------------------------


def link_text_problem(text: bytes, size: int, room: int) -> str:
    """What is wrong with the text of a symbolic link: it ends with a zero after `size` bytes."""
    length = text.find(b"\0")
    if not size or size >= room or length != size:
        return f"is a symbolic link of {size} bytes, but has {length if length >= 0 else len(text)}"
    return ""
