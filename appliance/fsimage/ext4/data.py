"""What is in a file: extents to buffers.

What is contiguous on the device is read by one call into one buffer, straight from the image; a
hole, and what was never written, is a view of zeros that all such readers share.
"""

from __future__ import annotations

from typing import Final

from appliance import limits
from appliance.fsimage.device import BlockDevice
from appliance.fsimage.ext4.extents import BlockMap
from appliance.vfs.interface import Buffer

_ZEROS: Final = memoryview(bytes(limits.CALL_DATA_BYTES_MAX))


def read(
    device: BlockDevice, block_map: BlockMap, block_bits: int, offset: int, count: int
) -> list[Buffer]:
    """`count` bytes from `offset` of a file that is at least so long."""
    end = offset + count
    buffers: list[Buffer] = []
    while offset < end:
        extent = block_map.find(offset >> block_bits)
        at = (extent.physical - extent.logical << block_bits) + offset
        stop = extent.end << block_bits
        while stop < end:
            following = block_map.find(stop >> block_bits)
            if not following.continues(extent):
                break
            extent, stop = following, following.end << block_bits
        stop = min(stop, end)
        if extent.physical and extent.written:
            buffer = bytearray(stop - offset)
            device.readinto(at, (buffer,))
            buffers.append(buffer)
        else:
            _append_zeros(buffers, stop - offset)
        offset = stop
    return buffers


def _append_zeros(buffers: list[Buffer], count: int) -> None:
    while count > 0:
        buffers.append(_ZEROS[:count])
        count -= len(_ZEROS)
