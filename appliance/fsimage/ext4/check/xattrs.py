"""Extended attributes: those inside inodes, those in a block of their own, and how many inodes
share such a block ("Extended Attributes")."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.check.blocks import Wrong
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_xattr_entry, ext4_xattr_header


def check(context: Context, inode: Inode, wrong: Wrong) -> int:
    """Check the attributes of an inode. How many blocks they take of its count."""
    body = inode.body
    if len(body) >= 4 and struct.unpack_from("<I", body)[0] == layout.XATTR_MAGIC:
        for problem in _entry_problems(context, body, 4, 4, needs_hash=False):
            wrong(Code.XATTR, f"has attributes of which {problem}")
    block = xattr.block_of(context.volume, inode.disk)
    if not block:
        return 0
    if not context.volume.has_blocks(block):
        wrong(Code.BLOCK_RANGE, f"has its attributes in block {block}, which does not exist")
        return 0
    _count_block(context, block, wrong)
    return context.superblock.cluster_blocks


def _count_block(context: Context, block: int, wrong: Wrong) -> None:
    seen = context.xattr_blocks.get(block, 0)
    context.xattr_blocks[block] = seen + 1
    if seen:
        return
    cluster = context.cluster_of(block)
    if cluster in context.used:
        if cluster in context.metadata:
            text = f"has its attributes in block {block}, where the file system keeps itself"
            wrong(Code.BLOCK_METADATA, text)
        context.shared.add(cluster)
    context.used.add(cluster)
    raw = context.volume.device.read(block << context.volume.block_bits, context.volume.block_bytes)
    for problem in _block_problems(context, block, raw):
        wrong(Code.XATTR, f"has attributes in block {block}, {problem}")


def _block_problems(context: Context, block: int, raw: bytes) -> Iterator[str]:
    header = ext4_xattr_header.decode(raw)
    if header.h_magic != layout.XATTR_MAGIC or header.h_blocks != 1:
        yield "which holds none"
        return
    if context.superblock.has_metadata_csum and (
        header.h_checksum != xattr.block_checksum(context.volume, block, raw)
    ):
        yield "which has a wrong checksum"
    for problem in _entry_problems(context, raw, ext4_xattr_header.SIZE, 0, needs_hash=True):
        yield f"of which {problem}"


def check_refcounts(context: Context) -> None:
    """A block of attributes says how many inodes have it."""
    bits = context.volume.block_bits
    for block, count in sorted(context.xattr_blocks.items()):
        raw = context.volume.device.read(block << bits, ext4_xattr_header.SIZE)
        header = ext4_xattr_header.decode(raw)
        if header.h_magic == layout.XATTR_MAGIC and header.h_refcount != count:
            context.wrong(
                Code.XATTR_REFCOUNT,
                f"the attributes in block {block} count {header.h_refcount} inodes, but {count}"
                " have them",
            )


# --- entries -----------------------------------------------------------------


def _entry_problems(
    context: Context, raw: bytes, start: int, base: int, *, needs_hash: bool
) -> Iterator[str]:
    """What is wrong with the entries from `start` on; their values are relative to `base`."""
    values: list[tuple[int, int]] = []
    at = start
    while at + 4 <= len(raw) and raw[at : at + 4] != b"\0\0\0\0":
        end = at + ext4_xattr_entry.SIZE
        if end > len(raw) or end + raw[at] > len(raw):
            yield "an entry reaches beyond the end"
            return
        entry = ext4_xattr_entry.decode(raw, at)
        name = raw[end : end + entry.e_name_len]
        if entry.e_value_inum:
            if not _holds_value(context, entry.e_value_inum):
                yield f"{name!r} has its value in inode {entry.e_value_inum}, which cannot be"
        else:
            offset = base + entry.e_value_offs
            if offset + entry.e_value_size > len(raw):
                yield f"{name!r} has a value that reaches beyond the end"
            else:
                value = raw[offset : offset + entry.e_value_size]
                if entry.e_value_size:
                    values.append((offset, offset + entry.e_value_size))
                if (entry.e_hash or needs_hash) and entry.e_hash not in _hashes(name, value):
                    yield f"{name!r} has a wrong hash"
        at = end + (entry.e_name_len + 3 & ~3)
    yield from _overlaps(values, at)


def _overlaps(values: list[tuple[int, int]], entries_end: int) -> Iterator[str]:
    end = entries_end
    for first, behind in sorted(values):
        if first < end:
            yield f"a value at {first} overlaps what is before it"
        end = behind


def _holds_value(context: Context, number: int) -> bool:
    """Whether the inode can hold the value of an attribute; it then needs no name."""
    if not context.has_feature(incompat=layout.INCOMPAT_EA_INODE):
        return False
    if not context.may_be_named(number):
        return False
    context.names[number] = 1
    return True


def _hashes(name: bytes, value: bytes) -> tuple[int, int]:
    """The hash of an entry, with characters unsigned and signed: both are in use."""
    return xattr.entry_hash(name, value), xattr.entry_hash(name, value, signed=True)
