"""Tests that run beside others, and tests that run alone, when several processes run them (`pytest
--numprocesses`). Processes agree on it by locks on two files that are there anyway."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any, Final


def runs_alone(item: Any) -> bool:
    """Whether no other test may run beside this one. With a network namespace come other programs,
    the kernel's clock, and a judge who complains of what was sent again because it was late; and
    the guest, emulated, takes a processor for itself."""
    return "netns" in getattr(item, "fixturenames", ())


class Turns:
    """One process's part in it."""

    def __init__(self, door: Path, room: Path) -> None:
        self._door: Final = door.open("rb")
        self._room: Final = room.open("rb")

    def enter(self, *, alone: bool) -> None:
        """Wait until a test may begin. Who waits to be alone stands in the door, so that those who
        come later do not keep him waiting for ever."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)

    def leave(self) -> None:
        """It has ended."""
        fcntl.flock(self._room, fcntl.LOCK_UN)

    def close(self) -> None:
        """The end of the process's part."""
        self._door.close()
        self._room.close()
