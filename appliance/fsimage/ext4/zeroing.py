"""Making a part of a block zero, so that it happens with its operation, or not at all.

Where a file is cut off, or a hole begins or ends, inside of a block, the rest of the block has to
become zero; and where a file grows, what is behind its end in its last block may be anything: data
of a write that a crash has cut off, or that another system has left there.

Zeros are never written over what is there. The operation may fail, or a crash may forget it: then
what was there is there again, and has to be whole. Nor is it known who is just writing to that
block, having looked it up before. So the block is copied to a new one, and what it was is freed:
whoever was writing finds, before he says that he is done, that the map has changed, and does it
again (writing.py). Where there are zeros already, which is so nearly always, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.fsimage.ext4 import map_changes
from appliance.fsimage.ext4.data import zeros
from appliance.fsimage.ext4.extents import Extent
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.volume import Volume

if TYPE_CHECKING:
    from appliance.fsimage.ext4.filesystem import Ext4


def rest_is_zero(volume: Volume, find: Callable[[int], Extent], offset: int) -> bool:
    """Whether everything from `offset` on in its block is zero; `find` knows where blocks are."""
    return _is_zero(volume, find, offset, block_end(volume, offset))


def zero_rest(filesystem: Ext4, operation: Operation, inode: Inode, offset: int) -> None:
    """Let everything from `offset` on in its block be zero. NOSPC."""
    zero(filesystem, operation, inode, offset, block_end(filesystem.volume, offset))


def zero(filesystem: Ext4, operation: Operation, inode: Inode, offset: int, end: int) -> None:
    """Let the bytes from `offset` to `end`, which are in one block of a file, be zero. NOSPC."""
    volume = filesystem.volume
    changer = map_changes.of(filesystem.maps, operation, inode)
    if _is_zero(volume, changer.find, offset, end):
        return
    bits = volume.block_bits
    logical = offset >> bits
    old = changer.find(logical).part(logical, logical + 1).physical
    new, _ = operation.allocate(old + 1, 1)
    before = volume.device.read(old << bits, volume.block_bytes)
    start, stop = offset - (logical << bits), end - (logical << bits)
    volume.device.write(new << bits, [before[:start], *zeros(stop - start), before[stop:]])
    changer.remove(logical, logical + 1, 1)
    changer.insert(logical, new, 1)


def block_end(volume: Volume, offset: int) -> int:
    """Where the block ends that `offset` is in; or the one before, if it is at its end."""
    return offset + (-offset & volume.block_bytes - 1)


def _is_zero(volume: Volume, find: Callable[[int], Extent], offset: int, end: int) -> bool:
    if offset == end:
        return True
    bits = volume.block_bits
    extent = find(offset >> bits)
    if not extent.physical or not extent.written:
        return True
    at = (extent.physical - extent.logical << bits) + offset
    return volume.device.read(at, end - offset).count(0) == end - offset
