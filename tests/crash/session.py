"""A file system that is worked on while everything is recorded."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Final

from appliance.fsimage.device import BlockDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import open_ext4
from tests.crash.geometry import Geometry
from tests.crash.recording import Image, Recording, RecordingDevice
from tests.crash.worker import Worker

_EPOCH_NS: Final = 1_600_000_000_000_000_000
_HOUR_NS: Final = 3_600_000_000_000
_HOURS: Final = 50_000
"""With any seed it is before today, or e2fsck would put the time of the last mount right."""


class Clock:
    """Time goes on now and then, and stands still in between; as a coarse clock does."""

    def __init__(self, seed: int) -> None:
        self._random: Final = Random(seed)
        self._now = _EPOCH_NS + seed % _HOURS * _HOUR_NS

    def now(self) -> int:
        return self._now

    def wall(self) -> int:
        self._now += self._random.choice((0, 0, 1, 4_000_000, 1_000_000_007))
        return self._now


class Session(Worker):
    """A new file system on a device that records, and one who works on all of it."""

    def __init__(
        self,
        geometry: Geometry,
        seed: int = 0,
        *,
        durability: Durability = Durability.FULL,
        recording: Recording | None = None,
        device: BlockDevice | None = None,
    ) -> None:
        self.geometry: Final = geometry
        recording = recording or Recording(geometry.base)
        self._image: Final = Image(recording.base)
        self._content: Final = self._image.mapping()
        filesystem = open_ext4(
            device or RecordingDevice(self._content, recording),
            "crash test",
            durability=durability,
            clock=Clock(seed),
        )
        super().__init__(filesystem, recording, seed=seed, durability=durability)

    def close(self) -> None:
        """Unmount. What was done is then durable."""
        self.filesystem.close()
        self.recording.acknowledge(self.last)

    def raw(self) -> bytes:
        """What is on the device now."""
        return self._content[:]

    def let_go(self) -> None:
        with contextlib.suppress(BufferError):
            self._content.close()
        self._image.close()
