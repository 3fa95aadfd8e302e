"""Which MapChanger an inode needs."""

from __future__ import annotations

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.extent_tree import ExtentTreeChanger
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.indirect import IndirectChanger
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.map_changer import MapChanger
from appliance.fsimage.ext4.operation import Operation


def of(maps: BlockMaps, operation: Operation, inode: Inode) -> MapChanger:
    """What changes the map of `inode`, which is the operation's copy."""
    if inode.has_flag(layout.EXTENTS_FL):
        return ExtentTreeChanger(maps, operation, inode)
    return IndirectChanger(maps, operation, inode)
