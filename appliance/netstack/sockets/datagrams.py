"""A UDP socket: datagrams that wait for the program, in a bounded queue."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Sequence

from appliance.limits import DATAGRAM_BYTES_MAX, SOCKET_PIECE_BYTES_MIN
from appliance.netstack.sockets.endpoint import Endpoint
from appliance.netstack.sockets.errors import error, number_of
from appliance.netstack.sockets.options import Options
from appliance.netstack.sockets.ports import Binding, Receives, UdpPorts
from appliance.netstack.sockets.runner import Runner
from appliance.netstack.udp import UdpSocket

Place = tuple[bytes, int]


class Datagrams(Endpoint):
    """One socket. Bound when it first needs a port."""

    def __init__(self, runner: Runner, options: Options, ports: UdpPorts, family: int) -> None:
        super().__init__(runner, options)
        self.binding: Binding[Receives] | None = None
        self.remote: Place | None = None
        self._family = family
        self._ports = ports
        self._socket: UdpSocket | None = None
        self._queue: deque[tuple[memoryview, Place]] = deque()
        self._charge = 0
        self._reads = True

    # --- addresses ----------------------------------------------------------------------

    def bind(self, address: bytes | None, port: int) -> None:
        """Take a port, 0: any. OSError."""
        if self.binding is not None:
            raise error(errno.EINVAL)
        wanted: Binding[Receives] = Binding(
            port, self._family, address, self.options.v6only, self.options.reuse_address
        )
        self._ports.bind(wanted)
        self._socket = self._ports.open(wanted, self)
        self.binding = wanted

    def connect(self, remote: Place | None) -> None:
        """Send there, and hear only from there; None: as before."""
        if self.binding is None:
            self.bind(None, 0)
        self.remote = remote

    # --- what arrives -------------------------------------------------------------------

    def wants(self, source: bytes, port: int) -> int:
        """See ports.py: a socket that is connected goes before one that is not."""
        if self.remote is None:
            return 1
        return 2 if self.remote == (source, port) else 0

    def arrived(self, source: bytes, port: int, data: memoryview) -> None:
        """A datagram for us. What does not fit is dropped, as the network would."""
        cost = max(len(data), SOCKET_PIECE_BYTES_MIN)
        if not self._reads or self._charge + cost > self.options.receive_bytes:
            self.runner.stack.counters["udp.receive_queue_full"] += 1
            return
        self._charge += cost
        self._queue.append((data, (source, port)))
        self.changed()

    def refused(self, destination: bytes, port: int, reason: str) -> None:
        """ICMP says that what we sent there did not arrive. It is the next call that fails, on a
        socket that is connected (RFC 1122 section 4.1.3.3)."""
        if self.remote == (destination, port):
            self._pending = number_of(reason)
            self.changed()

    def take(self, peek: bool = False) -> tuple[memoryview, Place] | None:
        """The next datagram and where it is from; None: not yet. OSError."""
        self.raise_pending()
        if not self._queue:
            return None if self._reads else (memoryview(b""), self.remote or (bytes(4), 0))
        if peek:
            return self._queue[0]
        data, source = self._queue.popleft()
        self._charge -= max(len(data), SOCKET_PIECE_BYTES_MIN)
        self.show()
        return data, source

    @property
    def can_read(self) -> bool:
        return bool(self._queue or self._pending or not self._reads)

    @property
    def can_write(self) -> bool:
        return True

    # --- sending ------------------------------------------------------------------------

    def send(self, buffers: Sequence[memoryview], remote: Place | None) -> int:
        """Send one datagram: how many bytes. What the link does not take is lost. OSError."""
        self.raise_pending()
        remote = remote or self.remote
        if remote is None:
            raise error(errno.EDESTADDRREQ)
        size = sum(map(len, buffers))
        if size > DATAGRAM_BYTES_MAX:
            raise error(errno.EMSGSIZE)
        if self._socket is None:
            self.bind(None, 0)
        assert self._socket is not None
        if not remote[1]:
            raise error(errno.EINVAL)
        self._socket.send_to(*remote, buffers)
        self.runner.acted()
        return size

    # --- the end ------------------------------------------------------------------------

    def shut_down(self, how: int) -> None:
        """No more reading. OSError."""
        if self.remote is None:
            raise error(errno.ENOTCONN)
        if how != socket.SHUT_WR:
            self._reads = False
        self.changed()

    def release(self) -> None:
        if self.binding is not None:
            self._ports.release(self.binding)
        self._queue.clear()
        self._charge = 0

    def network_down(self) -> None:
        self._pending = errno.ENETDOWN
        self._reads = False
        self.changed()
