"""Data on its way to or from the device, outside of any lock.

Blocks that are freed may be in use by such a transfer, which looked them up before. They are given
to somebody else only when every transfer that began before they were freed has ended.
"""

from __future__ import annotations

from threading import Event


class Transfers:
    """Which are under way. They have numbers, in the order in which they began."""

    __slots__ = ("_listener", "_under_way", "last")

    def __init__(self) -> None:
        self.last = 0
        self._under_way: dict[int, bool] = {}  # whether it may still touch the device
        self._listener: Event | None = None

    def begin(self) -> int:
        """One begins; the lock of the file system is held."""
        self.last = number = self.last + 1
        self._under_way[number] = True
        return number

    def is_quiet(self, number: int) -> None:
        """It will not touch the device any more, but the blocks still have to be what they were."""
        self._under_way[number] = False
        if self._listener is not None:
            self._listener.set()

    def end(self, number: int) -> None:
        """It has ended."""
        del self._under_way[number]
        if self._listener is not None:
            self._listener.set()

    def wait_until_quiet(self) -> None:
        """Return when none touches the device. The lock is held, so that no other one begins."""
        listener = self._listener = Event()
        while True in list(self._under_way.values()):
            listener.wait()
            listener.clear()
        self._listener = None

    def have_ended(self, number: int) -> bool:
        """Whether this one and all before it have."""
        return min(list(self._under_way), default=number + 1) > number
