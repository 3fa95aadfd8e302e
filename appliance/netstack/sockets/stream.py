"""A TCP socket that is connected, or going to be: the text that waits for the program, and room for
what it sends.

Text is taken from the connection as it comes, up to SO_RCVBUF; beyond, it stays there, and the
peer's window closes. `bytes` that the program sends are kept by reference until they are
acknowledged, anything else is copied. SO_SNDBUF bounds what is not acknowledged. A sender who has
had to wait is woken when half of it is free again, or as much as he has left, so that he does not
come back for each segment.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from appliance.limits import SOCKET_PIECE_BYTES_MIN
from appliance.netstack.sockets.endpoint import Endpoint
from appliance.netstack.sockets.errors import error, number_of
from appliance.netstack.sockets.options import Options
from appliance.netstack.sockets.runner import Runner
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.reasons import CannotConnect
from appliance.netstack.tcp.state import State

Place = tuple[bytes, int]
"""An address on the wire, and a port."""

SHUT_BOTH: Final = (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)


class Stream(Endpoint):
    """One connection, seen from the program (a ConnectionUser)."""

    def __init__(self, runner: Runner, options: Options) -> None:
        super().__init__(runner, options)
        self.connection: Connection | None = None
        self.local: Place | None = None
        self.remote: Place | None = None
        self._connecting = False
        self._told = True  # the program knows that it is connected
        self._text: deque[memoryview] = deque()
        self._charge = 0
        self._wanted = options.send_bytes // 2  # room that somebody waits for
        self._fin = False  # the peer has sent everything
        self._over = False  # the connection is CLOSED
        self._reads = self._writes = True  # not shut down

    # --- opening ------------------------------------------------------------------------

    def connect(
        self, remote: Place, source_port: int | None = None, source: bytes | None = None
    ) -> None:
        """Active OPEN, from what was bound. OSError: it cannot even be tried."""
        tcp = self.runner.stack.tcp
        try:
            c = tcp.connect(*remote, self, self.runner.now(), source_port, source)
        except CannotConnect as refusal:
            raise error(number_of(refusal.reason)) from None
        self._connecting, self._told = True, False
        self._use(c)
        self.runner.acted()
        self.changed()

    def adopt(self, c: Connection) -> None:
        """A listener has given us this connection."""
        self._use(c)

    def _use(self, c: Connection) -> None:
        self.connection = c
        self.local = (c.local_address, c.local_port)
        self.remote = (c.peer_address, c.peer_port)
        c.on_closed = self._on_closed
        self.options.apply(c)

    def connected(self) -> bool | None:
        """True: the handshake is complete; None: not yet. OSError: it has failed."""
        if self._connecting:
            return None
        self.raise_pending()
        self._told = True
        return self.connection is not None

    def why_not_connect(self) -> int:
        """Why `connect` cannot be called now, as an errno; 0: it can."""
        if self._connecting:
            return errno.EALREADY
        if self.connection is not None and self._told:
            return errno.EISCONN
        return 0

    @property
    def is_connected(self) -> bool:
        """The handshake is complete, and the connection is not over."""
        return self.connection is not None and not (self._connecting or self._over)

    @property
    def is_opening(self) -> bool:
        """`connect` was called, and the program has not heard of its success yet."""
        return not self._told

    # --- what the connection tells --------------------------------------------------------

    def readable(self, connection: Connection) -> None:
        """Text has arrived."""
        if not self._reads:
            connection.receive()  # and nobody wants it
        elif self._charge < self.options.receive_bytes:
            self._collect(connection)
            self.changed()

    def _collect(self, connection: Connection) -> None:
        for piece in connection.receive():
            self._text.append(piece)
            self._charge += max(len(piece), SOCKET_PIECE_BYTES_MIN)

    def room_again(self, connection: Connection) -> None:
        """It is established, or something was acknowledged."""
        if self._connecting:
            self._connecting = False
            self.options.apply(connection)
            self.changed()
            return
        unsent = connection.unsent_bytes
        if unsent > (0 if self.closed else self.options.send_bytes // 2):
            connection.crowded = True  # there may be more: tell me again
        if self.options.send_bytes - unsent >= self._wanted or unsent <= 0:
            self.changed()

    def ended(self, connection: Connection, reason: str | None) -> None:
        """The peer has sent everything, or the connection is over."""
        if reason is None:
            self._fin = True
        self.changed()

    def _on_closed(self, reason: str | None) -> None:
        """It is CLOSED, whatever was before."""
        c = self.connection
        if c is None:
            return
        if self._reads and not self.closed:
            self._collect(c)  # what had arrived is still worth reading
        if reason is not None and not self.closed:
            self._pending = number_of(reason)
        if self._connecting:
            self._connecting, self._told = False, True
            self.connection = None  # another attempt may be made
        else:
            self._over = True
        self.changed()

    # --- receiving ----------------------------------------------------------------------

    @property
    def can_read(self) -> bool:
        if self._text or self._pending or self._over or self._fin or not self._reads:
            return True
        return self.connection is None

    def take(self, count: int, peek: bool = False) -> bytes | None:
        """Up to `count` bytes of what has arrived; empty: the end; None: not yet. OSError."""
        if not self._text:
            return self._nothing_to_take()
        pieces, wanted = [], count
        for piece in self._text:
            if wanted <= 0:
                break
            pieces.append(piece[:wanted])
            wanted -= len(piece)
        data = b"".join(pieces)
        if not peek:
            self._drop(len(data))
        return data

    def take_into(self, buffer: memoryview, peek: bool = False) -> int | None:
        """The same, into a buffer of bytes: how many."""
        if not self._text:
            return None if self._nothing_to_take() is None else 0
        at = 0
        for piece in self._text:
            part = piece[: len(buffer) - at]
            buffer[at : at + len(part)] = part
            at += len(part)
            if at == len(buffer):
                break
        if not peek:
            self._drop(at)
        return at

    @property
    def waiting_bytes(self) -> int:
        """What `take` could give at once."""
        return sum(map(len, self._text))

    @property
    def at_end(self) -> bool:
        """Nothing will come behind what is waiting."""
        return bool(self._fin or self._over or self._pending or not self._reads)

    def _nothing_to_take(self) -> bytes | None:
        self.raise_pending()
        if self._fin or self._over or not self._reads:
            return b""
        if self.connection is None:
            raise error(errno.ENOTCONN)
        return None

    def _drop(self, count: int) -> None:
        """The program has so many bytes. Where that makes room, take more, and open the window."""
        text = self._text
        while count:
            piece = text[0]
            if len(piece) > count:
                text[0] = piece[count:]
                break
            count -= len(piece)
            self._charge -= max(len(piece), SOCKET_PIECE_BYTES_MIN)
            text.popleft()
        if not text:
            self._charge = 0
        c = self.connection
        if c is not None and c.rcv.pieces and self._charge <= self.options.receive_bytes // 2:
            self._collect(c)
            self.runner.acted()
        self.show()

    # --- sending ------------------------------------------------------------------------

    @property
    def can_write(self) -> bool:
        c = self.connection
        if c is None or self._connecting:
            return not self._connecting
        return self._over or c.unsent_bytes <= self.options.send_bytes // 2

    def put(self, buffers: Sequence[memoryview], urgent: bool = False) -> int | None:
        """Send as much of these bytes as there is room for: how many; None: no room yet.
        OSError."""
        self.raise_pending()
        c = self.connection
        if self._connecting:
            return None
        if c is None or self._over or not self._writes:
            raise error(errno.EPIPE)
        wanted, half = sum(map(len, buffers)), self.options.send_bytes // 2
        room = self.options.send_bytes - c.unsent_bytes
        if room < min(wanted, half):
            self._wanted = min(wanted, half, self._wanted)
            c.crowded = True
            return None
        self._wanted = half
        pieces, left = [], min(room, wanted)
        for buffer in buffers:
            if len(buffer) > left:
                buffer = buffer[:left]
            left -= len(buffer)
            # Bytes never change. Whatever else it is, it belongs to the program.
            pieces.append(buffer if type(buffer.obj) is bytes else bytes(buffer))
        if urgent:
            c.send_urgent(pieces)
        else:
            c.send(pieces)
        self.runner.acted()
        if c.unsent_bytes > half:
            c.crowded = True
        self.show()
        return min(room, wanted)

    # --- the end ------------------------------------------------------------------------

    def shut_down(self, how: int) -> None:
        """No more reading, no more writing, or neither. OSError."""
        if how not in SHUT_BOTH:
            raise error(errno.EINVAL)
        c = self.connection
        if c is None or self._connecting:
            raise error(errno.ENOTCONN)
        if how != socket.SHUT_WR:
            self._reads = False
            self._forget_text()
            c.receive()
        if how != socket.SHUT_RD and self._writes:
            self._writes = False
            c.finish()
        self.runner.acted()
        self.changed()

    def _forget_text(self) -> None:
        self._text.clear()
        self._charge = 0

    def release(self) -> None:
        c = self.connection
        if c is None:
            return
        unread = bool(self._text)
        self._forget_text()
        if unread or (self.options.linger_on and not self.options.linger_seconds):
            c.abort()
        else:
            c.close()
        self.runner.acted()

    def reset(self) -> None:
        """Nobody will ever use it."""
        if self.connection is not None:
            self.connection.abort()

    def linger(self, seconds: int) -> None:
        """After the close: wait until the peer has everything, but no longer."""
        c = self.connection
        if c is None:
            return
        c.crowded = True
        self.sleep_until(lambda: c.unsent_bytes <= 0 or c.state is State.CLOSED, seconds)

    @property
    def is_dead(self) -> bool:
        """It has failed, and nothing is left to be read."""
        return bool(self._pending and not self._text)

    def network_down(self) -> None:
        self._pending = self._pending or errno.ENETDOWN
        self._over = True
        self._connecting = False
        self.changed()
