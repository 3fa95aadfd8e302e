"""What is in a file: from block maps to places on the device, and from there to buffers.

What is contiguous on the device is read by one call into one buffer, straight from the image; a
hole, and what was never written, is a view of zeros that all such readers share.
"""

from __future__ import annotations

from typing import Final

from appliance import limits
from appliance.fsimage.device import BlockDevice
from appliance.fsimage.ext4.extents import BlockMap
from appliance.vfs.buffers import unset_bytes
from appliance.vfs.interface import Buffer

_ZEROS: Final = memoryview(bytes(limits.CALL_DATA_BYTES_MAX))
_NOWHERE: Final = -1

Place = tuple[int, int]
"""Where on the device (`_NOWHERE`: these are zeros), and how many bytes."""


def places(block_map: BlockMap, block_bits: int, offset: int, count: int) -> list[Place]:
    """Where `count` bytes from `offset` on are, of which there is one at least. The lock of the
    file system is held."""
    end = offset + count
    found: list[Place] = []
    while True:
        extent = block_map.find(offset >> block_bits)
        at = (extent.physical - extent.logical << block_bits) + offset
        stop = extent.logical + extent.count << block_bits
        while stop < end:
            following = block_map.find(stop >> block_bits)
            if not following.continues(extent):
                break
            extent, stop = following, following.end << block_bits
        if stop > end:
            stop = end
        found.append((at if extent.physical and extent.written else _NOWHERE, stop - offset))
        if stop == end:
            return found
        offset = stop


def read(device: BlockDevice, where: list[Place]) -> list[Buffer]:
    """What is there."""
    buffers: list[Buffer] = []
    for at, count in where:
        if at == _NOWHERE:
            buffers += zeros(count)
        else:
            buffer = unset_bytes(count)
            device.readinto(at, (buffer,))
            buffers.append(buffer)
    return buffers


def zeros(count: int) -> list[memoryview]:
    """So many zeros, which cost nothing."""
    some = [_ZEROS] * (count // len(_ZEROS))
    rest = count % len(_ZEROS)
    return [*some, _ZEROS[:rest]] if rest else some
