"""The calls of a script, made on our stack: sockets as a program would see them.

Just enough of POSIX to drive a connection. A call either gives its result, or raises Failed with
an errno, or raises WouldBlock; whoever makes it (ours.py) knows what that means for the socket and
for the script. What a program writes, and what it must read, is the pattern (packets.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.netstack.tcp import reasons
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.host import Tcp
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.state import State
from appliance.netstack.udp import Udp
from tests.packetdrill.internet import hosts_of
from tests.packetdrill.language import Value
from tests.packetdrill.packets import pattern

if TYPE_CHECKING:
    from appliance.netstack.tcp.listener import Listener
    from appliance.netstack.udp import UdpSocket

FIRST_DESCRIPTOR = 3

ERRNO_OF = {
    reasons.RESET: "ECONNRESET",
    reasons.REFUSED: "ECONNREFUSED",
    "port unreachable": "ECONNREFUSED",
    "protocol unreachable": "ENOPROTOOPT",
    reasons.HOST_UNREACHABLE: "EHOSTUNREACH",
    reasons.NO_ROUTE: "ENETUNREACH",
}
"""Other ends of a connection are timeouts, however they are put."""


class Failed(Exception):
    """The call returns -1 and this errno."""


class WouldBlock(Exception):
    """The call has no result yet."""


class Socket:
    """One descriptor. The user of its connection (appliance.netstack.tcp.connection)."""

    def __init__(self, progress: Callable[[], None]) -> None:
        self.progress = progress  # something has happened for which a call may wait
        self.connection: Connection | None = None
        self.listener: Listener | None = None
        self.datagrams: UdpSocket | None = None
        self.received: deque[bytes] = deque()  # datagrams
        self.accepted: deque[Socket] = deque()
        self.blocking = True
        self.established = False
        self.options: dict[str, int] = {}
        self.buffered = bytearray()
        self.taken = 0  # bytes that read has given
        self.written = 0
        self.at_end = False
        self.error: str | None = None
        self.was_shut = False

    def readable(self, connection: Connection) -> None:
        """Text waits until the program reads."""
        self.progress()

    def room_again(self, connection: Connection) -> None:
        self.established = True
        self.progress()

    def ended(self, connection: Connection, reason: str | None) -> None:
        if reason is None:
            self.at_end = True
        else:
            self.error = ERRNO_OF.get(reason, "ETIMEDOUT")
        self.progress()

    def datagram_arrives(self, _source: bytes, _port: int, _to: bytes, data: memoryview) -> None:
        """UDP's user."""
        self.received.append(bytes(data))
        self.progress()

    def take(self) -> None:
        """What has arrived is ours."""
        if self.connection is not None:
            for piece in self.connection.receive():
                self.buffered += piece

    def fail_if_ended(self) -> None:
        """An error is told once."""
        error, self.error = self.error, None
        if error is not None:
            self.was_shut = True
            raise Failed(error)


class Sockets:
    """All descriptors of the program."""

    def __init__(
        self,
        tcp: Tcp,
        udp: Udp,
        now: Callable[[], Instant],
        ports: tuple[int, int],
        progress: Callable[[], None],
        options: dict[str, str],
    ) -> None:
        """`ports`: ours and the peer's, where the script does not say. `options` of its head."""
        self.tcp = tcp
        self.udp = udp
        self.now = now
        self.our_port, self.peer_port = ports
        self.progress = progress
        self.peer = hosts_of(options).peer
        self.ecn = options.get("ecn") == "1"
        self.listening = {"backlog": 0} if options.get("syncookies") == "1" else {}
        self.by_number: dict[int, Socket] = {}
        self.last: Connection | None = None
        """The connection that was made last: what assertions are about."""

    def number(self, socket: Socket) -> int:
        """The least descriptor that is free."""
        number = FIRST_DESCRIPTOR
        while number in self.by_number:
            number += 1
        self.by_number[number] = socket
        return number

    def at(self, number: Value) -> Socket:
        socket = self.by_number.get(number) if isinstance(number, int) else None
        if socket is None:
            raise Failed("EBADF")
        return socket

    # --- making connections -----------------------------------------------------------------------

    def socket(self, family: Value, kind: Value, protocol: Value) -> int:
        socket = Socket(self.progress)
        if "SOCK_DGRAM" in str(kind):
            socket.datagrams = self.udp.bind(self.our_port, socket.datagram_arrives)
        socket.blocking = "SOCK_NONBLOCK" not in str(kind)
        return self.number(socket)

    def bind(self, number: Value, address: Value, size: Value) -> int:
        self.at(number)
        return 0

    def listen(self, number: Value, backlog: Value) -> int:
        socket = self.at(number)

        def accept(connection: Connection) -> Socket:
            child = Socket(self.progress)
            child.options = dict(socket.options)
            self._adopt(child, connection)
            child.established = True
            socket.accepted.append(child)
            self.progress()
            return child

        socket.listener = self.tcp.listen(self.our_port, accept, **self.listening)
        return 0

    def accept(self, number: Value, address: Value, size: Value) -> int:
        socket = self.at(number)
        if not socket.accepted:
            raise WouldBlock
        return self.number(socket.accepted.popleft())

    def connect(self, number: Value, address: Value, size: Value) -> int:
        socket = self.at(number)
        if socket.connection is None:
            made = self.tcp.connect(
                self.peer,
                self.peer_port,
                socket,
                self.now(),
                source_port=self.our_port,
                ecn=self.ecn,
            )
            self._adopt(socket, made)
            raise WouldBlock("EINPROGRESS")
        socket.fail_if_ended()
        if not socket.established:
            raise WouldBlock("EALREADY")
        return 0

    def _adopt(self, socket: Socket, connection: Connection) -> None:
        socket.connection = self.last = connection
        self._apply(socket)

    # --- text -------------------------------------------------------------------------------------

    def read(self, number: Value, buffer: Value, count: Value) -> int:
        socket = self.at(number)
        assert isinstance(count, int)
        if socket.datagrams is not None:
            return self._read_datagram(socket)
        socket.take()
        if socket.buffered:
            got = bytes(socket.buffered[:count])
            del socket.buffered[:count]
            assert got == pattern(1 + socket.taken, len(got)), "not the bytes that were sent"
            socket.taken += len(got)
            return len(got)
        socket.fail_if_ended()
        if socket.at_end or socket.was_shut:
            return 0
        raise WouldBlock

    @staticmethod
    def _read_datagram(socket: Socket) -> int:
        if not socket.received:
            raise WouldBlock
        got = socket.received.popleft()
        assert got == pattern(0, len(got)), "not the bytes that were sent"
        return len(got)

    def recv(self, number: Value, buffer: Value, count: Value, flags: Value) -> int:
        return self.read(number, buffer, count)

    def write(self, number: Value, buffer: Value, count: Value) -> int:
        return self.send(number, buffer, count, 0)

    def send(self, number: Value, buffer: Value, count: Value, flags: Value) -> int:
        socket = self.at(number)
        assert isinstance(count, int)
        connection = socket.connection
        socket.fail_if_ended()
        if connection is None or socket.was_shut or connection.state is State.CLOSED:
            raise Failed("EPIPE")
        if connection.crowded or not socket.established:
            raise WouldBlock
        send = connection.send_urgent if flags == "MSG_OOB" else connection.send
        send([pattern(1 + socket.written, count)])
        socket.written += count
        return count

    def sendto(
        self, number: Value, buffer: Value, count: Value, flags: Value, to: Value, size: Value
    ) -> int:
        socket = self.at(number)
        assert isinstance(count, int)
        assert socket.datagrams is not None
        socket.datagrams.send_to(self.peer, self.peer_port, [pattern(0, count)])
        return count

    # --- the end ----------------------------------------------------------------------------------

    def shutdown(self, number: Value, how: Value) -> int:
        socket = self.at(number)
        if how != "SHUT_RD":
            if socket.connection is None or socket.connection.state is State.CLOSED:
                raise Failed("ENOTCONN")
            socket.connection.finish()
            socket.was_shut = how == "SHUT_RDWR"
        return 0

    def close(self, number: Value) -> int:
        socket = self.at(number)
        del self.by_number[number]  # type: ignore[arg-type]
        if socket.listener is not None:
            socket.listener.close()
            for child in socket.accepted:
                assert child.connection is not None
                child.connection.abort()
        elif socket.connection is not None:
            if socket.options.get("SO_LINGER") == 0 or socket.buffered:
                socket.connection.abort()
            else:
                socket.connection.close()
        return 0

    # --- options ----------------------------------------------------------------------------------

    def fcntl(self, number: Value, command: Value, value: Value = 0) -> int:
        socket = self.at(number)
        if command == "F_SETFL":
            socket.blocking = "O_NONBLOCK" not in str(value)
        return 0 if command == "F_SETFL" else 2 | (0 if socket.blocking else 0x800)

    def setsockopt(
        self, number: Value, level: Value, name: Value, value: Value, size: Value
    ) -> int:
        socket = self.at(number)
        if isinstance(value, dict):  # struct linger
            assert name == "SO_LINGER"
            number_value = value["l_linger"] if value["l_onoff"] else None
        else:
            number_value = value[0] if isinstance(value, list) else value
        if isinstance(number_value, int):
            socket.options[str(name)] = number_value
        self._apply(socket)
        return 0

    def _apply(self, socket: Socket) -> None:
        """The options of a socket, on its connection. POSIX has Nagle's algorithm on."""
        connection, options = socket.connection, socket.options
        if connection is None:
            return
        connection.nodelay = bool(options.get("TCP_NODELAY"))
        was_corked, connection.corked = connection.corked, bool(options.get("TCP_CORK"))
        if was_corked and not connection.corked:
            connection.mark()
        if "TCP_USER_TIMEOUT" in options:
            connection.user_timeout = options["TCP_USER_TIMEOUT"] * MILLISECOND
        connection.keepalive = None
        if options.get("SO_KEEPALIVE"):
            usual = KeepAlive()
            idle, interval = options.get("TCP_KEEPIDLE"), options.get("TCP_KEEPINTVL")
            connection.keep_alive(
                KeepAlive(
                    usual.idle if idle is None else idle * SECOND,
                    usual.interval if interval is None else interval * SECOND,
                    options.get("TCP_KEEPCNT", usual.probes),
                )
            )

    def getsockopt(
        self, number: Value, level: Value, name: Value, value: Value, size: Value
    ) -> int:
        """SO_ERROR, whose name the script writes into the value it expects."""
        socket = self.at(number)
        assert name == "SO_ERROR"
        assert isinstance(value, list)
        error, socket.error = socket.error, None
        if value != [error or 0]:
            raise AttributeError(f"the error is {error or 0}")
        return 0

    def poll(self, descriptors: Value, count: Value, timeout: Value) -> int:
        """Which are ready now; waits if it may and none is."""
        assert isinstance(descriptors, list)
        ready = 0
        for one in descriptors:
            assert isinstance(one, dict)
            asked = set(str(one["events"]).split("|"))
            got = self._events(self.at(one["fd"])) & (asked | {"POLLHUP", "POLLERR"})
            ready += bool(got)
            wanted = str(one.get("revents", "0"))
            if got != set(wanted.split("|")) - {"0"} and (got or timeout == 0):
                raise AttributeError(f"revents={'|'.join(sorted(got)) or 0}")
        if not ready and timeout != 0:
            raise WouldBlock
        return ready

    def _events(self, socket: Socket) -> set[str]:
        socket.take()
        events = set()
        if socket.buffered or socket.accepted or socket.at_end or socket.error:
            events.add("POLLIN")
        connection = socket.connection
        if socket.established and connection is not None and not connection.crowded:
            events.add("POLLOUT")
        if socket.error:
            events |= {"POLLERR", "POLLHUP", "POLLOUT"}
        return events
