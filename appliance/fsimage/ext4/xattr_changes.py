"""Changing extended attributes.

They are kept where the kernel would keep them: inside the inode as far as there is room, and what
does not fit in the block. A block that other inodes share is left as it is, for one inode less, and
gets a successor; with the last inode it is freed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from appliance import limits
from appliance.fsimage.ext4 import acl as disk_acl
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout, xattr, xattr_reader
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.layout import ext4_xattr_header
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.xattr import Key, Stored
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import SetAcl

_ACLS: Final = (layout.XATTR_INDEX_POSIX_ACL_ACCESS, layout.XATTR_INDEX_POSIX_ACL_DEFAULT)


def change(op: Operation, inode: Inode, name: bytes, value: bytes | None) -> None:
    """Give an attribute this value, or with None take it away; `name` has its prefix.

    NOENT: it is not there. NOSPC: it does not fit. NOTSUPP: no such attributes are kept here.
    """
    key = xattr.key_of(name)
    if key is None:
        raise VfsError(Code.NOTSUPP, "an attribute with this prefix")
    if not key[1] or b"\0" in key[1]:
        raise VfsError(Code.INVAL, "name of an attribute")
    if len(key[1]) > limits.XATTR_NAME_BYTES_MAX:
        raise VfsError(Code.NAMETOOLONG, "name of an attribute")
    if _update(op, inode, {key: value}):
        op.touched(inode)
    elif value is None:
        raise VfsError(Code.NOENT, "attribute")


def set_lists(
    op: Operation,
    inode: Inode,
    access: Acl | SetAcl | None,
    default: Acl | SetAcl | None,
) -> None:
    """Change the access control lists of an inode, those that are not None. NOSPC, NOTSUPP.

    That it was touched is said by whoever changes its mode with them.
    """
    if access is None and default is None:
        return
    changes = {
        (index, b""): disk_acl.encode(acl) if isinstance(acl, Acl) else None
        for index, acl in zip(_ACLS, (access, default), strict=True)
        if acl is not None
    }
    _update(op, inode, changes)


def release(op: Operation, inode: Inode) -> None:
    """The inode is removed: give its block up. A damaged one is left for e2fsck to find."""
    number = xattr.block_of(op.volume, inode.disk)
    if not number:
        return
    try:
        _refcount(op, inode, number)
    except VfsError:  # it has been logged
        xattr.set_block(op.volume, inode.disk, 0)
    else:
        _store_block(op, inode, {})


def _update(op: Operation, inode: Inode, changes: Mapping[Key, bytes | None]) -> bool:
    """Make these changes; whether anything is different now."""
    if not op.volume.superblock.disk.s_feature_compat & layout.COMPAT_EXT_ATTR:
        raise VfsError(Code.NOTSUPP, "the file system has no extended attributes (ext_attr)")
    body_before = _values(xattr_reader.of_body(op.volume, inode))
    block_before = _values(_of_block(op, inode))
    body, block = dict(body_before), dict(block_before)
    for key, value in changes.items():
        if value is not None and _body_with(inode, body | {key: value}) is not None:
            body[key] = value
            block.pop(key, None)
        else:
            body.pop(key, None)
            if value is None:
                block.pop(key, None)
            else:
                block[key] = value
    if body != body_before:
        packed = _body_with(inode, body)
        assert packed is not None, "it fitted a moment ago"
        assert len(packed) == len(inode.body)
        inode.body = packed
    if block != block_before:
        _store_block(op, inode, block)
    return body != body_before or block != block_before


def _body_with(inode: Inode, values: xattr.Values) -> bytes | None:
    has_room = inode.disk.i_extra_isize or not values
    return xattr.body_with(values, len(inode.body)) if has_room else None


def _values(found: list[Stored]) -> dict[Key, bytes]:
    if any(stored.inode for stored in found):
        raise VfsError(Code.NOTSUPP, "values of attributes in inodes of their own (ea_inode)")
    return {stored.key: stored.value for stored in found}


# --- the block ---------------------------------------------------------------


def _of_block(op: Operation, inode: Inode) -> list[Stored]:
    number = xattr.block_of(op.volume, inode.disk)
    if op.has_changed(number):  # its checksum is still to come
        return xattr_reader.in_block(op.volume, inode, bytes(op.block(number)))
    return xattr_reader.of_block(op.volume, inode)


def _store_block(op: Operation, inode: Inode, values: xattr.Values) -> None:
    """Make these the attributes in the block of `inode`."""
    volume = op.volume
    before = xattr.block_of(volume, inode.disk)
    refcount = _refcount(op, inode, before) if before else 0
    if values and refcount == 1:
        _fill(op.change(before, partial(xattr.seal_block, volume, before)), values)
        return
    number = 0
    if values:
        number, _ = op.allocate(op.goal_of(inode.number), 1)
        _fill(op.new_block(number, partial(xattr.seal_block, volume, number)), values)
    if refcount == 1:
        op.free(before, 1, metadata=True)
    elif refcount:
        shared = op.change(before, partial(xattr.seal_block, volume, before))
        header = ext4_xattr_header.decode(shared)
        header.h_refcount -= 1
        header.encode_into(shared, 0)
    xattr.set_block(volume, inode.disk, number)
    inodes.add_blocks(volume, inode, bool(number) - bool(before))


def _fill(block: bytearray, values: xattr.Values) -> None:
    if not xattr.fill_block(block, values):
        raise VfsError(Code.NOSPC, "no room for the attribute in its block")


def _refcount(op: Operation, inode: Inode, number: int) -> int:
    """How many inodes have this block, which has been checked."""
    _of_block(op, inode)
    refcount = ext4_xattr_header.decode(op.block(number)).h_refcount
    if not refcount:
        raise op.volume.damaged(f"block {number} of attributes", "belongs to nobody")
    return refcount
