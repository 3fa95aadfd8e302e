"""What a link is: where frames come from and where they go to.

A frame, with `vnet`, begins with the ten bytes of struct virtio_net_hdr (wire/vnet.py), before the
Ethernet header: then a TCP frame may be larger than the MTU (the kernel cuts it up, or has put it
together), and its checksum may be left to the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Link(Protocol):
    """Frames in, frames out. `receive` may wait, `send` never does."""

    vnet: bool
    """Frames carry a virtio-net header."""

    mtu: int
    """The largest IP packet, in bytes, that goes out in one frame (before segmentation offload)."""

    def receive(self) -> bytes | None:
        """The next frame; None: the link is closed. Every frame is its own `bytes`: slices of it
        may be kept."""

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send one frame made of these buffers, joined. They may change after the return.

        False: the link did not take it (queue full, interface down); the frame is lost.
        """


class LinkError(Exception):
    """A link cannot be had; `hint` says what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ClosableLink(Link, Protocol):
    """A link as its owner sees it: what a thread reads from, can be called away from, and can be
    ended. `receive` gives an empty frame after `wake`."""

    def receive_now(self) -> bytes | None:
        """The next frame, if one is there already."""

    def wait(self, timeout_ns: int) -> bool:
        """Wait for a frame, at most so long. True: `receive` would return at once."""

    def wake(self) -> None:
        """Let `receive` return, in a thread that waits in it, or the next that would wait. Any
        thread may call it."""

    def close(self) -> None:
        """The end: `receive` returns None, also in a thread that waits in it; what is sent is
        lost. Any thread may call it, more than once."""
