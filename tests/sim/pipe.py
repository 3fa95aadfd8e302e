"""A pipe: two links in memory, joined. What is sent into one end comes out of the other.

For two stacks in one process, with threads that wait, and without root. What comes out is what went
in: with `vnet`, super-frames and unfinished checksums stay as they are, as between two guests on
one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Condition

from appliance.clock import SECOND

Buffer = bytes | bytearray | memoryview

PIPE_FRAMES_MAX = 4096
"""Frames under way in one direction; more are dropped, as by a switch."""


class PipeEnd:
    """One end. A link (interface.py)."""

    def __init__(self, vnet: bool, mtu: int) -> None:
        self.vnet = vnet
        self.mtu = mtu
        self.other: PipeEnd | None = None
        self._frames: list[bytes] = []
        self._closed = False
        self._woken = False
        self._changed = Condition()

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send one frame to the other end. False: its queue is full, or it is closed."""
        other = self.other
        return not self._closed and other is not None and other.put(b"".join(buffers))

    def put(self, frame: bytes) -> bool:
        """Queue a frame for `receive`."""
        with self._changed:
            if self._closed or len(self._frames) >= PIPE_FRAMES_MAX:
                return False
            self._frames.append(frame)
            self._changed.notify()
            return True

    def receive(self) -> bytes | None:
        """The next frame, waiting for it; empty: woken; None: closed."""
        with self._changed:
            self._changed.wait_for(self._ready)
            if self._frames or self._closed:
                return None if self._closed else self._frames.pop(0)
            self._woken = False
            return b""

    def receive_now(self) -> bytes | None:
        """The next frame, if one is there already."""
        with self._changed:
            return self._frames.pop(0) if self._frames else None

    def wait(self, timeout_ns: int) -> bool:
        """Whether a frame comes, or the end, within the timeout."""
        with self._changed:
            return self._changed.wait_for(self._ready, timeout_ns / SECOND)

    def _ready(self) -> bool:
        return self._closed or self._woken or bool(self._frames)

    def wake(self) -> None:
        """Let `receive` return."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """End this end: frames that are under way to it are lost."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()


def pipe(*, vnet: bool = False, mtu: int = 1500) -> tuple[PipeEnd, PipeEnd]:
    """Both ends of a new pipe."""
    one, two = PipeEnd(vnet, mtu), PipeEnd(vnet, mtu)
    one.other, two.other = two, one
    return one, two
