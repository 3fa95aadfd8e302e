"""An image with two files in it, on a device to which something may happen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.node import Ext4Node
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, SetAttributes
from tests.unit.fsimage.ext4_images import e2fsck
from tests.unit.fsimage.ext4_maps import empty_files

EXT4 = ("-t", "ext4", "-b", "1024")


class Device(FileDevice):
    """Calls `meanwhile`, once, when something is about to be written."""

    meanwhile: Callable[[], object] | None = None

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        super().write(offset, data)


class Disk:
    """An image with two empty files, and what becomes of it."""

    def __init__(self, image: Path, size: str = "24M", options: Sequence[str] = EXT4) -> None:
        self.image = empty_files(image, size, *options, names="f g")
        self.open()

    def open(self) -> None:
        self.device = Device(self.image, read_only=False)
        self.filesystem = open_ext4(self.device, "image", durability=Durability.PROCESS)
        self.held = self.held_blocks()

    def node(self, name: bytes = b"f") -> Ext4Node:
        return self.filesystem.root().lookup(name)

    def held_blocks(self) -> int:
        """Blocks that are free, and yet not to be had."""
        allocator = self.filesystem.writer.allocator
        return allocator.free_blocks - allocator.available_blocks(privileged=True)

    def check(self) -> None:
        """Nothing is reserved for nobody, and e2fsck has nothing to say."""
        assert self.held_blocks() == self.held
        self.filesystem.close()
        e2fsck(self.image)
        self.open()

    def after_crash(self) -> Ext4:
        """The file system as it would be if we were killed now."""
        copy = self.image.with_suffix(".crashed")
        shutil.copy(self.image, copy)
        return open_ext4(FileDevice(copy, read_only=False), "crashed")


def everything(node: Ext4Node) -> bytes:
    buffers, at_end = node.read(0, 1 << 40)
    assert at_end
    return b"".join(buffers)


def resize(node: Ext4Node, size: int) -> None:
    node.set_attributes(SetAttributes(size=size))


def physical(node: Ext4Node, logical: int) -> int:
    extent = node.block_map.find(logical)
    assert extent.physical
    return extent.physical + logical - extent.logical


def raises(code: Code, act: Callable[[], object]) -> None:
    with pytest.raises(VfsError) as caught:
        act()
    assert caught.value.code is code
