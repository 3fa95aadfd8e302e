"""Blocks that somebody still reads are given to nobody else; who needs them waits for him."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.transfers import Transfers
from appliance.limits import MiB
from appliance.vfs.interface import FileType, NewNode
from tests.unit.fsimage.ext4_images import e2fsck, make_image

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
SIZE = 2 * MiB
"""More than half of what is free."""


def test_what_is_under_way_has_not_ended() -> None:
    transfers = Transfers()
    first, second = transfers.begin(), transfers.begin()
    assert not transfers.have_ended(first)
    transfers.end(first)
    assert transfers.have_ended(first)
    assert not transfers.have_ended(second)
    transfers.is_quiet(second)
    transfers.wait_until_quiet()
    assert not transfers.have_ended(second)
    transfers.end(second)
    assert transfers.have_ended(second)


class SlowDevice(FileDevice):
    """Large reads begin, and end only when they are told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.reading = threading.Event()
        self.go_on = threading.Event()

    def readinto(self, offset: int, views: Sequence[bytearray | memoryview]) -> None:
        if len(views[0]) >= SIZE:
            self.reading.set()
            assert self.go_on.wait(10)
        super().readinto(offset, views)


@pytest.fixture
def device(tmp_path: Path) -> SlowDevice:
    image = make_image(tmp_path / "fs.img", "4M", "-t", "ext2", "-b", "1024", "-m", "0")
    return SlowDevice(image)


@pytest.fixture
def filesystem(device: SlowDevice) -> Iterator[Ext4]:
    opened = open_ext4(device, "image", durability=Durability.PROCESS)
    yield opened
    opened.close()
    e2fsck(Path(device.path))


def test_a_full_file_system_waits_for_readers_of_what_was_removed(
    device: SlowDevice, filesystem: Ext4
) -> None:
    root = filesystem.root()
    removed = root.create(b"removed", FILE)
    removed.write(0, [b"r" * SIZE])
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(b"".join(removed.read(0, SIZE)[0])))
    reader.start()
    assert device.reading.wait(10)
    root.remove(b"removed")
    threading.Timer(0.2, device.go_on.set).start()
    assert root.create(b"other", FILE).write(0, [b"o" * SIZE]) == SIZE
    reader.join()
    assert found == [b"r" * SIZE]
