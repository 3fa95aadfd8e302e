"""A descriptor for select, poll and epoll that says of a socket what its own would say.

It is one end of a pair of local sockets, and no data ever passes through it:

    readable    there is an empty record in it, which the other end has put there
    writable    its send buffer is larger than what is in it: a record that was put there at first,
                and that nobody takes out. The limit of the buffer is moved, not the data.

Its own sending side is shut down. So whoever takes the descriptor for the socket and writes to it
(os.sendfile, os.write) gets EPIPE instead of losing data, and asyncio falls back to `send`; whoever
reads from it (os.read) reads an end of file.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_FILLING: Final = bytes(4000)
_ROOM: Final = 1 << 16
_NO_ROOM: Final = 1
"""Linux makes 4608 of this. It counts a record with its overhead, and wants three quarters of the
buffer to be free: with the filling in it, they are not."""


class Readiness:
    """The descriptor, kept in step by `show`."""

    def __init__(self) -> None:
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._shown, self._other = ours, other
        ours.setblocking(False)
        other.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        ours.send(_FILLING)
        ours.shutdown(socket.SHUT_WR)
        self._readable = False
        self._writable = True

    def fileno(self) -> int:
        return self._shown.fileno()

    def show(self, readable: bool, writable: bool) -> None:
        """Say so from now on. Whoever waits is woken."""
        if readable is not self._readable:
            self._readable = readable
            with suppress(BlockingIOError):  # somebody has read the mark
                if readable:
                    self._other.send(b"")
                else:
                    self._shown.recv(1)
        if writable is not self._writable:
            self._writable = writable
            room = _ROOM if writable else _NO_ROOM
            self._shown.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)

    def close(self) -> None:
        self._shown.close()
        self._other.close()
