"""What is in files: read, written, cut off, extended; holes made, found, and filled in advance.

An operation may change only so many blocks, as it has to fit into the journal. So what may be large
is done in several: a file that is cut off has its new size at once, and is on the list of orphans
until the blocks behind it are freed; holes and reserved space come piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from appliance import image_limits
from appliance.fsimage.ext4 import data as file_data
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout, map_changes, writing, zeroing
from appliance.fsimage.ext4.extents import DIRECT_BLOCKS, EVERYTHING
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.operation import Operation
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, FileType

if TYPE_CHECKING:
    from appliance.fsimage.ext4.filesystem import Ext4
    from appliance.fsimage.ext4.node import Ext4Node

_ANY_FILE_BYTES_MAX: Final = (1 << 31) - 1
"""Every file may be so large."""

_SECTORS_MAX: Final = (1 << 32) - 1
"""Without huge_file, i_blocks has 32 bits."""


# --- reading --------------------------------------------------------------------------


def read(node: Ext4Node, offset: int, count: int) -> tuple[list[Buffer], bool]:
    """As vfs.Node.read."""
    filesystem = node.filesystem
    with filesystem.lock:
        node.check_alive()
        volume, inode = filesystem.volume, node.inode
        left = inode.size - offset
        if left <= 0:
            return [], True
        at_end = count >= left
        if at_end:
            count = left
        if count <= 0:
            return [], at_end
        if inode.disk.i_flags & layout.INLINE_DATA_FL:
            return [_inline(node)[offset : offset + count]], at_end
        where = file_data.places(node.block_map, volume.block_bits, offset, count)
        transfer = volume.transfers.begin()
    try:
        return file_data.read(volume.device, where), at_end
    finally:
        volume.transfers.end(transfer)


def _inline(node: Ext4Node) -> bytes:
    """The whole contents of a file that is inside its inode."""
    size = node.inode.size
    data = inodes.inline_data(node.filesystem.volume, node.inode)
    if len(data) < size:
        raise node.damaged(f"holds {len(data)} bytes of {size}")
    return data[:size]


def seek(node: Ext4Node, offset: int, *, data: bool) -> int | None:
    """Where from `offset` on there is data, or a hole (the end of the file is one). None: `offset`
    is not in the file, or there is no data behind it."""
    filesystem = node.filesystem
    bits = filesystem.volume.block_bits
    with filesystem.lock:
        node.check_alive()
        size = node.inode.size
        if offset >= size:
            return None
        for _ in range(image_limits.SEEK_EXTENTS_MAX):
            extent = node.block_map.find(offset >> bits)
            if data == bool(extent.physical and extent.written):
                return offset
            offset = extent.end << bits
            if offset >= size:
                return None if data else size
        return offset if data else size


# --- writing --------------------------------------------------------------------------


def write(node: Ext4Node, offset: int, data: Sequence[Buffer]) -> int:
    """As vfs.Node.write."""
    length = sum(map(len, data))
    if not length:
        return 0
    if node.filesystem.read_only:  # data would be written before anybody says that
        raise VfsError(Code.ROFS, node.filesystem.volume.name)
    end = offset + length
    if end > _ANY_FILE_BYTES_MAX and end > size_max(node.filesystem, node.inode):
        raise VfsError(Code.FBIG)
    return writing.write(node, offset, length, data)


def size_max(filesystem: Ext4, inode: Inode) -> int:
    """How large this file can become."""
    superblock = filesystem.volume.superblock
    bits = superblock.block_bits
    size = filesystem.limits.file_bytes_max
    if not inode.has_flag(layout.EXTENTS_FL):
        trees = sum(1 << (bits - 2) * levels for levels in (1, 2, 3))
        size = min(size, DIRECT_BLOCKS + trees << bits)
    if not superblock.disk.s_feature_ro_compat & layout.RO_COMPAT_HUGE_FILE:
        size = min(size, _SECTORS_MAX >> bits - 9 << bits)
    return size


def fill_first_block(filesystem: Ext4, operation: Operation, inode: Inode, content: bytes) -> None:
    """Put `content` into the first block of a new inode."""
    volume = filesystem.volume
    physical, _ = operation.allocate(filesystem.writer.allocator.goal_of(inode.number), 1)
    volume.device.write(physical << volume.block_bits, [content.ljust(volume.block_bytes, b"\0")])
    map_changes.of(filesystem.maps, operation, inode).insert(0, physical, 1)


# --- sizes ----------------------------------------------------------------------------


def set_size(node: Ext4Node, operation: Operation, inode: Inode, size: int) -> bool:
    """Cut the file off, or let it end with a hole. Whether that is all: if not, it is on the list
    of orphans, and `finish_truncation` has to be called when the operation is published."""
    filesystem = node.filesystem
    if size > size_max(filesystem, inode):
        raise VfsError(Code.FBIG)
    finished = True
    if size < inode.size:
        finished = _free_behind(filesystem, operation, inode, size)
        if not finished:
            filesystem.orphans.add(operation, inode)
    zeroing.zero_rest(filesystem, operation, inode, min(size, inode.size))
    inode.size = size
    operation.modified(inode)
    return finished


def finish_truncation(filesystem: Ext4, number: int) -> None:
    """Free what is behind the end of a file that is on the list of orphans, and take it off."""

    def act(operation: Operation) -> bool:
        inode = operation.inode(number)
        if not _has_map(filesystem, inode):
            finished = True
        else:
            finished = _free_behind(filesystem, operation, inode, inode.size)
        if finished:
            filesystem.orphans.remove(operation, inode)
            inode.disk.i_dtime = 0
        return finished

    while not filesystem.change(act):
        pass
    _clean_end(filesystem, number)


def _clean_end(filesystem: Ext4, number: int) -> None:
    """Who began the truncation (the kernel, say) may have left this for later. It is not needed
    here, where a file that grows is cleaned before; and so it may fail."""
    volume = filesystem.volume
    inode = inodes.read_any(volume, number, unlinked=True)
    if not _has_map(filesystem, inode):
        return
    with suppress(VfsError):
        if not zeroing.rest_is_zero(volume, filesystem.maps.of(inode).find, inode.size):
            filesystem.change(
                lambda operation: zeroing.zero_rest(
                    filesystem, operation, operation.inode(number), inode.size
                )
            )


def release_all(filesystem: Ext4, operation: Operation, inode: Inode) -> bool:
    """Free what an inode without a name has; whether that is all."""
    return not _has_map(filesystem, inode) or _free_behind(filesystem, operation, inode, 0)


def _has_map(filesystem: Ext4, inode: Inode) -> bool:
    kind = inode.disk.i_mode >> 12
    if inode.has_flag(layout.INLINE_DATA_FL):
        return False
    if kind == FileType.SYMLINK:
        return not inodes.symlink_is_inline(filesystem.volume, inode)
    return kind in (FileType.REGULAR, FileType.DIRECTORY)


def _free_behind(filesystem: Ext4, operation: Operation, inode: Inode, size: int) -> bool:
    """Free the blocks behind `size`, as many as an operation may; whether those were all."""
    first = -(-size >> filesystem.volume.block_bits)
    changer = map_changes.of(filesystem.maps, operation, inode)
    return changer.remove(first, EVERYTHING, image_limits.EXTENTS_CHANGED_MAX) == first


# --- holes and reserved space ---------------------------------------------------------


def punch(node: Ext4Node, offset: int, end: int) -> None:
    """Let there be zeros, and where that is possible no storage, from `offset` to `end`."""
    filesystem = node.filesystem
    number = node.inode.number
    bits = filesystem.volume.block_bits
    with filesystem.lock:
        node.check_alive()
        end = min(end, zeroing.block_end(filesystem.volume, node.inode.size))
        first, stop = -(-offset >> bits), end >> bits

        def edges(operation: Operation) -> None:
            inode = operation.inode(number)
            for start, edge in (
                (offset, min(first << bits, end)),
                (max(stop << bits, offset), end),
            ):
                if start < edge:
                    zeroing.zero(filesystem, operation, inode, start, edge)
            operation.modified(inode)

        def inside(operation: Operation) -> int:
            inode = operation.inode(number)
            changer = map_changes.of(filesystem.maps, operation, inode)
            operation.modified(inode)
            return changer.remove(first, stop, image_limits.EXTENTS_CHANGED_MAX)

        if offset < end:
            filesystem.change(edges)
        while first < stop:
            stop = filesystem.change(inside)


def allocate(node: Ext4Node, offset: int, end: int) -> None:
    """Let there be storage for all from `offset` to `end`, which belongs to the file from then on;
    what was a hole reads as zeros as before. NOSPC, FBIG; NOTSUPP: not in a file without
    extents."""
    filesystem = node.filesystem
    number = node.inode.number
    bits = filesystem.volume.block_bits
    first, stop = offset >> bits, -(-end >> bits)
    with filesystem.lock:
        node.check_alive()
        if not node.inode.has_flag(layout.EXTENTS_FL):
            raise VfsError(Code.NOTSUPP, "storage for a file without extents")
        if end > size_max(filesystem, node.inode):
            raise VfsError(Code.FBIG)
        filesystem.finish_truncation(number)
        pieces = node.block_map.between(first, stop)
        missing = sum(piece.count for piece in pieces if not piece.physical)
        if missing > filesystem.writer.allocator.available_blocks(privileged=False):
            raise VfsError(Code.NOSPC)

        def some(operation: Operation) -> int:
            inode = operation.inode(number)
            reached = _fill_holes(filesystem, operation, inode, first, stop)
            if reached == stop and end > inode.size:
                zeroing.zero_rest(filesystem, operation, inode, inode.size)
                inode.size = end
            operation.modified(inode)
            return reached

        while first < stop:
            first = filesystem.change(some)


def _fill_holes(
    filesystem: Ext4, operation: Operation, inode: Inode, logical: int, end: int
) -> int:
    """Put storage where there are holes, as often as an operation may; how far it came."""
    changer = map_changes.of(filesystem.maps, operation, inode)
    goal = filesystem.writer.allocator.goal_of(inode.number)
    for _ in range(image_limits.EXTENTS_CHANGED_MAX):
        extent = changer.find(logical).part(logical, end)
        if extent.physical:
            goal = extent.physical + extent.count
        else:
            goal, extent.count = operation.allocate(goal, extent.count)
            changer.insert(logical, goal, extent.count, written=False)
            goal += extent.count
        logical = extent.end
        if logical == end:
            break
    return logical
