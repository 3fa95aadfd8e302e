"""Somebody who works on an image file until he is killed.

    python -m tests.crash.kill9 IMAGE SEED DURABILITY

What he begins, and what was acknowledged as durable, he says on stdout: "b 17", "a 17". Given the
same image and seed, the same is done again by `repeat`, in memory, which is how one knows what he
had done.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from tests.crash.geometry import GEOMETRIES
from tests.crash.recording import SECTOR, Recording
from tests.crash.session import Session
from tests.crash.workload import Pace, RandomWork

GEOMETRY: Final = GEOMETRIES["4k"]
PACE: Final = Pace(0.4, sync_node_share=0)
STEPS_MAX: Final = 20_000


class Reported(Recording):
    """Nothing is recorded (there is another device), but told."""

    def begin(self, operation: int) -> None:
        os.write(1, b"b %d\n" % operation)

    def acknowledge(self, operation: int) -> None:
        os.write(1, b"a %d\n" % operation)


def work(image: str, seed: int, durability: Durability) -> None:
    """The one who is going to be killed."""
    device = FileDevice(image, read_only=False)
    session = Session(
        GEOMETRY, seed, durability=durability, recording=Reported(bytes(SECTOR)), device=device
    )
    RandomWork(session, PACE).run(STEPS_MAX)


def repeat(raw: bytes, seed: int, durability: Durability, begun: int) -> Session:
    """The same once more, as far as operation `begun`."""
    session = Session(GEOMETRY, seed, durability=durability, recording=Recording(raw))
    again = RandomWork(session, PACE)
    while session.last < begun:
        again.step()
    return session


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), Durability(sys.argv[3]))
