"""What calls come over, and what replies go back to: a TCP connection or a UDP peer.

Both sides are called with the lock of the leader held (leader.py), in a simulated world with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview

NETIDS: Final = ("tcp", "udp")
NETIDS6: Final = ("tcp6", "udp6")
"""What transports are called over IPv4, and over IPv6 (RFC 5665 section 4.2)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a transport: an address in text form ("10.0.0.5", "fd00::5") and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Transport(Protocol):
    """Where a reply goes. What it carries is called by `netid` (RFC 5665): "tcp", "udp",
    "tcp6" or "udp6"."""

    netid: str
    peer: Endpoint
    local: Endpoint

    @property
    def unsent_bytes(self) -> int:
        """Bytes given to `send` that the peer has not acknowledged (of a datagram transport: 0).
        When `ended` is called: those that it never will."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Queue bytes of a stream, or send one datagram, made of these buffers. They are given
        away and must not change. To a peer that is gone: nothing happens."""

    def pause(self) -> None:
        """Deliver no more until `resume`: the peer's window closes meanwhile. (Of a datagram
        transport: nothing.)"""

    def resume(self) -> None:
        """Deliver again, first what arrived meanwhile."""

    def close(self) -> None:
        """End it in order, after everything that was sent has arrived."""

    def abort(self) -> None:
        """End it at once."""


class StreamUser(Protocol):
    """Whoever gets the bytes of a stream (server.py: a session)."""

    def text_arrived(self, text: Sequence[memoryview]) -> None:
        """The next bytes, in order, in pieces that stay valid and unchanged."""

    def room_again(self) -> None:
        """The unsent bytes, once more than limits.UNSENT_REPLY_BYTES_MAX, have drained."""

    def ended(self) -> None:
        """No more bytes will come. What is sent now may still arrive, if it was the peer that ended
        its half in order; the user closes the transport when it has sent everything."""

    def gone(self) -> None:
        """After `ended`: what is sent now does not arrive any more."""
