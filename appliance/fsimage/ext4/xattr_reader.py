"""All extended attributes of an inode, and among them its access control lists.

What stands in a block has been checked when it comes from here. A value may be in an inode of its
own (ea_inode), which then has the hash of the value where other inodes have the time of access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from appliance import limits
from appliance.fsimage.ext4 import acl as disk_acl
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout, xattr
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_xattr_header
from appliance.fsimage.ext4.volume import Volume
from appliance.fsimage.ext4.xattr import Key, Stored
from appliance.vfs.acl import CLOSED, Acl
from appliance.vfs.errors import VfsError

_ACCESS: Final[Key] = (layout.XATTR_INDEX_POSIX_ACL_ACCESS, b"")
_DEFAULT: Final[Key] = (layout.XATTR_INDEX_POSIX_ACL_DEFAULT, b"")


def read_all(volume: Volume, inode: Inode) -> dict[Key, bytes]:
    """Every attribute with its value. IO: they are damaged."""
    found = of_body(volume, inode) + of_block(volume, inode)
    return {stored.key: _value(volume, inode, stored) for stored in reversed(found)}


def lists_of(volume: Volume, inode: Inode) -> tuple[Acl | None, Acl | None]:
    """The access control list of an inode, and the default list of a directory."""
    if not (_has_body(inode) or inode.disk.i_file_acl_lo or inode.disk.i_file_acl_high):
        return None, None
    try:
        values = read_all(volume, inode)
        return _list(volume, inode, values.get(_ACCESS)), _list(volume, inode, values.get(_DEFAULT))
    except VfsError:  # it has been logged
        return CLOSED, CLOSED


def _list(volume: Volume, inode: Inode, value: bytes | None) -> Acl | None:
    if value is None:
        return None
    try:
        return disk_acl.decode(value)
    except VfsError as error:
        raise volume.damaged(f"inode {inode.number}", f"has {error.detail}") from None


# --- the two places ----------------------------------------------------------


def of_body(volume: Volume, inode: Inode) -> list[Stored]:
    """The attributes inside the inode."""
    return _checked(volume, inode, xattr.in_body, inode.body) if _has_body(inode) else []


def _has_body(inode: Inode) -> bool:
    """Without extra fields there are no attributes behind them either."""
    return bool(inode.disk.i_extra_isize) and any(inode.body[: xattr.BODY_HEADER_BYTES])


def of_block(volume: Volume, inode: Inode) -> list[Stored]:
    """The attributes in the inode's block of them."""
    number = xattr.block_of(volume, inode.disk)
    if not number:
        return []
    if not volume.may_be_in_file(number):
        raise volume.damaged(f"inode {inode.number}", f"has attributes in block {number}")
    raw = volume.block(number)
    header = ext4_xattr_header.decode(raw)
    if volume.has_metadata_csum and (
        header.h_checksum != xattr.block_checksum(volume, number, raw)
    ):
        raise volume.damaged(f"block {number} of attributes", "has a wrong checksum")
    return in_block(volume, inode, raw)


def in_block(volume: Volume, inode: Inode, raw: bytes) -> list[Stored]:
    """What is in a block of attributes, whatever its checksum says."""
    return _checked(volume, inode, xattr.in_block, raw)


def _checked(
    volume: Volume, inode: Inode, parse: Callable[[bytes], Iterable[Stored]], raw: bytes
) -> list[Stored]:
    try:
        return list(parse(raw))
    except ValueError as error:
        raise volume.damaged(f"inode {inode.number}", f"has damaged attributes: {error}") from None


# --- values in inodes --------------------------------------------------------


def _value(volume: Volume, inode: Inode, stored: Stored) -> bytes:
    if not stored.inode:
        return stored.value
    holder = _holder(volume, stored)
    if holder is None or holder.size != stored.size:
        raise volume.damaged(f"inode {inode.number}", f"has a value in inode {stored.inode}")
    value = _content(volume, holder)
    # Lustre, which had this first, has no hash, but says whose value it is.
    is_of_lustre = (holder.disk.i_mtime, holder.disk.i_generation) == (
        inode.number,
        inode.disk.i_generation,
    )
    if not is_of_lustre and crc32c(volume.seed, value) != holder.disk.i_atime:
        raise volume.damaged(f"inode {stored.inode}", "holds a value with another hash")
    return value


def _content(volume: Volume, holder: Inode) -> bytes:
    """What is in an inode that is that small."""
    count = -(-holder.size // volume.block_bytes)
    blocks = [
        volume.block(extent.physical + at)
        if extent.physical and extent.written
        else bytes(volume.block_bytes)
        for extent in BlockMaps(volume).of(holder).extents(0, count)
        for at in range(extent.count)
    ]
    return b"".join(blocks)[: holder.size]


def _holder(volume: Volume, stored: Stored) -> Inode | None:
    """The inode with a value; None: it cannot be one."""
    superblock = volume.superblock
    number = stored.inode
    if not superblock.first_inode <= number <= superblock.disk.s_inodes_count:
        return None
    block, offset = volume.inode_location(number)
    raw = volume.block(block)[offset : offset + superblock.inode_bytes]
    holder = inodes.decode(volume, number, raw)
    is_one = holder.has_flag(layout.EA_INODE_FL) and holder.size <= limits.XATTR_VALUE_BYTES_MAX
    if volume.has_metadata_csum and not inodes.checksum_is_right(volume, holder, raw):
        return None
    return holder if is_one else None
