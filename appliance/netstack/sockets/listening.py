"""A TCP socket that listens: connections whose handshake is complete, waiting to be accepted.

While there are as many as the backlog says, further SYNs are left unanswered, and their senders ask
again. What has died while it waited is not given to the program, which could do nothing with it."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import replace

from appliance.limits import SOCKET_BACKLOG_MAX, TCP_SYN_BACKLOG
from appliance.netstack.sockets.endpoint import Endpoint
from appliance.netstack.sockets.errors import error
from appliance.netstack.sockets.options import Options
from appliance.netstack.sockets.ports import Accepts, Binding, TcpPorts
from appliance.netstack.sockets.runner import Runner
from appliance.netstack.sockets.stream import Stream
from appliance.netstack.tcp.connection import Connection


class Listening(Endpoint):
    """A port with a queue."""

    def __init__(
        self,
        runner: Runner,
        options: Options,
        ports: TcpPorts,
        binding: Binding[Accepts],
        backlog: int,
    ) -> None:
        """OSError: somebody else listens there."""
        super().__init__(runner, options)
        self.binding = binding
        self._ports = ports
        self._queue: deque[Stream] = deque()
        self._down = False
        self.set_backlog(backlog)
        ports.listen(binding, self)

    def set_backlog(self, backlog: int) -> None:
        """How many may wait. `listen` may be called again for that."""
        self._backlog = min(max(backlog, 1), SOCKET_BACKLOG_MAX)

    def arrived(self, connection: Connection) -> Stream | None:
        """A connection is established. (Handshakes that had begun are still completed when the
        queue is full.)"""
        if len(self._queue) >= self._backlog + TCP_SYN_BACKLOG:
            return None
        stream = Stream(self.runner, replace(self.options))
        stream.adopt(connection)
        self._queue.append(stream)
        if len(self._queue) >= self._backlog:
            self._ports.take_more(self.binding, False)
        self.changed()
        return stream

    def accept(self) -> Stream | None:
        """The next one; None: not yet. OSError."""
        self.raise_pending()
        if self._down:
            raise error(errno.EINVAL)
        found = None
        while self._queue and found is None:
            stream = self._queue.popleft()
            found = None if stream.is_dead else stream
        if len(self._queue) < self._backlog:
            self._ports.take_more(self.binding, True)
        self.show()
        return found

    @property
    def can_read(self) -> bool:
        return self._down or any(not stream.is_dead for stream in self._queue)

    @property
    def can_write(self) -> bool:
        return False

    def shut_down(self) -> None:
        """Take no more connections, though the socket stays: `accept` raises."""
        if not self._down:
            self._down = True
            self.release()
            self.changed()

    def release(self) -> None:
        self._ports.release(self.binding)
        for stream in self._queue:
            stream.reset()
        self._queue.clear()
        self.runner.acted()

    def network_down(self) -> None:
        self._pending = errno.ENETDOWN
        self._down = True
        self.changed()
