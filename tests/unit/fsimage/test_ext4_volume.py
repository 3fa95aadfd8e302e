"""Blocks of metadata, as they are now: whatever is on its way from or to the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.ext4_images import make_image

BLOCK = 1024
NUMBER = 900
NEW = b"new." * (BLOCK // 4)


class Meanwhile(FileDevice):
    """While a block is being read, it is changed, and comes to its place."""

    volume: Volume | None = None
    arrives = True

    def read(self, offset: int, count: int) -> bytes:
        before = super().read(offset, count)
        volume, self.volume = self.volume, None
        if volume is not None:
            blocks = {NUMBER: NEW}
            volume.publish(blocks)
            if self.arrives:
                self.write(NUMBER * BLOCK, [NEW])
                volume.written(blocks)
        return before


@pytest.mark.parametrize("arrives", [False, True])
def test_what_was_read_before_a_change_does_not_stay(tmp_path: Path, arrives: bool) -> None:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext4", "-b", "1024")
    device = Meanwhile(image, read_only=False)
    volume = Volume(device, Superblock.read(device), "image")
    device.volume, device.arrives = volume, arrives
    assert volume.block(NUMBER) in (bytes(BLOCK), NEW)
    assert volume.block(NUMBER) == NEW
    volume.written({NUMBER: volume.block(NUMBER)})
    assert volume.block(NUMBER) == NEW
    device.close()
