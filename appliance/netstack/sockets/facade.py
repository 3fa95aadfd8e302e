"""The face of a socket: the standard library's interface, on a stack of ours.

A Socket holds an endpoint (stream.py, listening.py, datagrams.py) and adds what belongs to the
caller: timeouts, addresses as Python has them, flags. Each call takes the lock of the runner, and
waits only in Endpoint.until, which lets go of it.
"""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from appliance.netstack.sockets import addresses
from appliance.netstack.sockets.addresses import SocketAddress
from appliance.netstack.sockets.datagrams import Datagrams
from appliance.netstack.sockets.endpoint import Endpoint
from appliance.netstack.sockets.errors import error
from appliance.netstack.sockets.listening import Listening
from appliance.netstack.sockets.options import Options, get_option, set_option
from appliance.netstack.sockets.ports import Accepts, Binding
from appliance.netstack.sockets.stream import Stream

if TYPE_CHECKING:
    from appliance.netstack.sockets.module import Sockets

Buffer = bytes | bytearray | memoryview
Result = TypeVar("Result")

_RECEIVE_FLAGS: Final = std.MSG_PEEK | std.MSG_WAITALL | std.MSG_DONTWAIT | std.MSG_CMSG_CLOEXEC
_SEND_FLAGS: Final = std.MSG_DONTWAIT | std.MSG_NOSIGNAL | std.MSG_MORE
_STREAM_SEND_FLAGS: Final = _SEND_FLAGS | std.MSG_OOB

SENDFILE_BYTES: Final = 1 << 18


class Socket:
    """A socket on a stack. `Sockets` makes a subclass of it for each stack."""

    _host: Sockets

    def __new__(
        cls, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> Any:
        """One of ours for AF_INET and AF_INET6; everything else is the operating system's."""
        ours = family in (-1, *addresses.FAMILIES) and (
            fileno is None or fileno in cls._host.detached
        )
        return object.__new__(cls) if ours else std_socket(family, type, proto, fileno)

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        if fileno is not None:
            self.take_over(self._host.attach(fileno))
            return
        family = std.AF_INET if family == -1 else family
        kind = (std.SOCK_STREAM if type == -1 else type) & ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC)
        expected = {std.SOCK_STREAM: std.IPPROTO_TCP, std.SOCK_DGRAM: std.IPPROTO_UDP}
        if kind not in expected:
            raise error(errno.EPERM)
        if proto not in (-1, 0, expected[std.SocketKind(kind)]):
            raise error(errno.EPROTONOSUPPORT)
        host, options = self._host, Options()
        made: Endpoint
        if kind == std.SOCK_DGRAM:
            made = Datagrams(host.runner, options, host.udp_ports, family)
        else:
            made = Stream(host.runner, options)
        self.set_up(made, family, None)
        self.proto = max(proto, 0)
        if type != -1 and type & std.SOCK_NONBLOCK:
            self.settimeout(0.0)

    def set_up(self, endpoint: Endpoint, family: int, binding: Binding[Accepts] | None) -> None:
        self.family = std.AddressFamily(family)
        self.endpoint = endpoint
        self.binding = binding
        self.type = std.SOCK_DGRAM if isinstance(endpoint, Datagrams) else std.SOCK_STREAM
        self.proto = 0
        self._timeout: float | None = std.getdefaulttimeout()
        self._io_refs = 0
        self._closed = self._detached = False
        self._host.remember(endpoint)

    def take_over(self, other: Socket) -> None:
        """Be what `other`, which was detached, has been."""
        self.set_up(other.endpoint, other.family, other.binding)
        self.proto = other.proto
        self._timeout = other._timeout

    # --- waiting ------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        """None: wait for ever; 0: never; else for so many seconds."""
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        return self._timeout

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    def _wait(self, attempt: Callable[[], Result | None], flags: int = 0) -> Result:
        """What `attempt` gives, as soon as it gives something. The lock is held."""
        timeout = 0.0 if flags & std.MSG_DONTWAIT else self._timeout
        return self.endpoint.until(attempt, timeout)

    # --- which endpoint -----------------------------------------------------------------

    @property
    def _lock(self) -> Any:
        if self._detached or self.endpoint.closed:
            raise error(errno.EBADF)
        return self._host.runner.lock

    def _stream(self, otherwise: int = errno.ENOTCONN) -> Stream:
        if not isinstance(self.endpoint, Stream):
            raise error(otherwise)
        return self.endpoint

    def _parse(self, address: object) -> tuple[bytes | None, int]:
        return addresses.parse(self.family, address, self._host.names)

    def _show(self, wire: bytes | None, port: int) -> SocketAddress:
        return addresses.show(self.family, wire, port)

    # --- opening ------------------------------------------------------------------------

    def bind(self, address: object) -> None:
        """Take a port; port 0: any that is free."""
        wire, port = self._parse(address)
        with self._lock:
            if wire is not None and not self._host.is_ours(wire):
                raise error(errno.EADDRNOTAVAIL)
            if isinstance(self.endpoint, Datagrams):
                self.endpoint.bind(wire, port)
                return
            stream = self._stream(errno.EINVAL)
            if self.binding is not None or stream.connection is not None:
                raise error(errno.EINVAL)
            options = stream.options
            wanted: Binding[Accepts] = Binding(
                port, self.family, wire, options.v6only, options.reuse_address
            )
            self._host.tcp_ports.bind(wanted)
            self.binding = wanted

    def listen(self, backlog: int = 128) -> None:
        """Take connections."""
        with self._lock:
            if isinstance(self.endpoint, Listening):
                self.endpoint.set_backlog(backlog)
                return
            stream = self._stream(errno.EOPNOTSUPP)
            if stream.connection is not None:
                raise error(errno.EINVAL)
            host = self._host
            if self.binding is None:
                any_port: Binding[Accepts] = Binding(
                    0, self.family, None, stream.options.v6only, False
                )
                host.tcp_ports.bind(any_port)
                self.binding = any_port
            listening = Listening(
                host.runner, stream.options, host.tcp_ports, self.binding, backlog
            )
            stream.become(listening)
            self.endpoint = listening
            host.remember(listening)

    def accept(self) -> tuple[Socket, SocketAddress]:
        """The next connection, and where it is from."""
        with self._lock:
            if not isinstance(self.endpoint, Listening):
                raise error(errno.EINVAL)
            stream = self._wait(self.endpoint.accept)
            assert stream.remote is not None
            made = self._host.adopt(stream, self.family)
            return made, self._show(*stream.remote)

    def connect(self, address: object) -> None:
        """Connect, and wait for it."""
        number = self.connect_ex(address, raises=True)
        if number:
            raise error(number)

    def connect_ex(self, address: object, raises: bool = False) -> int:
        """The same; the errno of what failed."""
        try:
            if isinstance(self.endpoint, Datagrams):
                self._connect_datagrams(self.endpoint, address)
                return 0
            return self._connect_stream(address)
        except TimeoutError as late:
            if raises:
                raise
            return late.errno or errno.EAGAIN
        except OSError as failure:
            if failure.errno is None or raises:
                raise
            return failure.errno

    def _connect_datagrams(self, endpoint: Datagrams, address: object) -> None:
        unspecified = isinstance(address, tuple) and address[:1] == (std.AF_UNSPEC,)
        wire, port = (None, 0) if unspecified else self._parse(address)
        with self._lock:
            if wire is None:
                endpoint.connect(None)
                return
            self._host.check_route(wire)
            endpoint.connect((wire, port))

    def _connect_stream(self, address: object) -> int:
        wire, port = self._parse(address)
        with self._lock:
            stream = self._stream(errno.EISCONN)
            if not stream.is_opening:
                number = stream.why_not_connect()
                if number:
                    return number
                if wire is None or not port:
                    return errno.ECONNREFUSED  # nobody is at no address
                self._host.check_route(wire)
                bound = self.binding
                stream.connect(
                    (wire, port),
                    bound.port if bound else None,
                    bound.address if bound else None,
                )
                if self._timeout == 0:
                    return errno.EINPROGRESS
            elif self._timeout == 0 and stream.connected() is None:
                return errno.EALREADY
            self._wait(stream.connected)
            return 0

    # --- receiving ----------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Up to `bufsize` bytes; empty: the peer has sent everything."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        check_flags(flags, _RECEIVE_FLAGS)
        with self._lock:
            if isinstance(self.endpoint, Datagrams):
                return bytes(self._take_datagram(flags)[0][:bufsize])
            stream, peek = self._stream(), bool(flags & std.MSG_PEEK)
            if not bufsize:
                return b""
            if flags & std.MSG_WAITALL:
                self._wait_for_all(stream, bufsize, flags)
            return self._wait(lambda: stream.take(bufsize, peek), flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """The same, into a buffer: how many bytes."""
        check_flags(flags, _RECEIVE_FLAGS)
        view = memoryview(buffer).cast("B")
        if nbytes < 0 or nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        view = view[: nbytes or len(view)]
        with self._lock:
            if isinstance(self.endpoint, Datagrams):
                data = self._take_datagram(flags)[0][: len(view)]
                view[: len(data)] = data
                return len(data)
            stream, peek = self._stream(), bool(flags & std.MSG_PEEK)
            if not len(view):
                return 0
            if flags & std.MSG_WAITALL:
                self._wait_for_all(stream, len(view), flags)
            return self._wait(lambda: stream.take_into(view, peek), flags)

    def _wait_for_all(self, stream: Stream, count: int, flags: int) -> None:
        """Until there is enough for MSG_WAITALL, or no more will come, or no more fits."""
        most = min(count, stream.options.receive_bytes)
        self._wait(lambda: stream.at_end or stream.waiting_bytes >= most or None, flags)

    def _take_datagram(self, flags: int) -> tuple[memoryview, tuple[bytes, int]]:
        endpoint, peek = self.endpoint, bool(flags & std.MSG_PEEK)
        assert isinstance(endpoint, Datagrams)
        return self._wait(lambda: endpoint.take(peek), flags)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, SocketAddress | None]:
        """What `recv` gives, and where it is from."""
        if not isinstance(self.endpoint, Datagrams):
            return self.recv(bufsize, flags), None
        check_flags(flags, _RECEIVE_FLAGS)
        with self._lock:
            data, source = self._take_datagram(flags)
            return bytes(data[:bufsize]), self._show(*source)

    def recvfrom_into(
        self, buffer: Any, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, SocketAddress | None]:
        view = memoryview(buffer).cast("B")
        data, source = self.recvfrom(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data), source

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[Any], int, SocketAddress | None]:
        """As `recvfrom`; there is no ancillary data."""
        if not isinstance(self.endpoint, Datagrams):
            return self.recv(bufsize, flags), [], 0, None
        check_flags(flags, _RECEIVE_FLAGS)
        with self._lock:
            data, source = self._take_datagram(flags)
            cut = std.MSG_TRUNC if len(data) > bufsize else 0
            return bytes(data[:bufsize]), [], cut, self._show(*source)

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, SocketAddress | None]:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        data, _, cut, source = self.recvmsg(sum(map(len, views)), ancbufsize, flags)
        at = 0
        for view in views:
            part = data[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        return len(data), [], cut, source

    # --- sending ------------------------------------------------------------------------

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what there is room for now: how many bytes."""
        return self._send([data], flags)

    def sendmsg(
        self,
        buffers: Iterable[Any],
        ancdata: Sequence[Any] = (),
        flags: int = 0,
        address: object = None,
    ) -> int:
        """The same for several buffers. There is no ancillary data."""
        if ancdata:
            raise error(errno.EINVAL)
        return self._send(list(buffers), flags, address)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """sendto(data, [flags,] address)"""
        *flags, address = flags_and_address
        return self._send([data], flags[0] if flags else 0, address)

    def _send(self, buffers: Iterable[Any], flags: int, address: object = None) -> int:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if isinstance(self.endpoint, Datagrams):
            check_flags(flags, _SEND_FLAGS)
            return self._send_datagram(self.endpoint, views, address)
        check_flags(flags, _STREAM_SEND_FLAGS)
        urgent = bool(flags & std.MSG_OOB)
        with self._lock:
            stream = self._stream(errno.EPIPE)
            return self._wait(lambda: stream.put(views, urgent), flags)

    def _send_datagram(self, endpoint: Datagrams, views: list[memoryview], address: object) -> int:
        remote = None
        if address is not None:
            wire, port = self._parse(address)
            if wire is None:
                raise error(errno.EINVAL)
            remote = wire, port
        with self._lock:
            if remote is not None:
                self._host.check_destination(remote[0], endpoint.options.broadcast)
            # What is sent may have to wait for a neighbour: it must not change meanwhile.
            return self._wait(lambda: endpoint.send(views, remote))

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything."""
        view = memoryview(data).cast("B")
        if isinstance(self.endpoint, Datagrams):
            self._send_datagram(self.endpoint, [view], None)
            return
        check_flags(flags, _STREAM_SEND_FLAGS)
        urgent = bool(flags & std.MSG_OOB)
        with self._lock:
            stream = self._stream(errno.EPIPE)
            while len(view):
                rest = view
                sent = self._wait(lambda rest=rest: stream.put([rest], urgent), flags)  # type: ignore[misc]
                view = view[sent:]

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send a file, or so much of it: how many bytes."""
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        sent = 0
        while count is None or sent < count:
            piece = file.read(
                SENDFILE_BYTES if count is None else min(SENDFILE_BYTES, count - sent)
            )
            if not piece:
                break
            self.sendall(piece)
            sent += len(piece)
        return sent

    # --- options and addresses ------------------------------------------------------------

    def setsockopt(
        self, level: int, optname: int, value: int | Buffer | None, optlen: int | None = None
    ) -> None:
        with self._lock:
            set_option(self.endpoint.options, level, optname, value)
            if isinstance(self.endpoint, Stream) and self.endpoint.connection is not None:
                self.endpoint.options.apply(self.endpoint.connection)
                self._host.runner.acted()

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        with self._lock:
            value = self._read_option(level, optname)
        if not buflen:
            return value if isinstance(value, int) else int.from_bytes(value[:4], "little")
        raw = value.to_bytes(4, "little", signed=True) if isinstance(value, int) else value
        return raw[:buflen]

    def _read_option(self, level: int, optname: int) -> int | bytes:
        if level != std.SOL_SOCKET:
            return get_option(self.endpoint.options, level, optname)
        match optname:
            case std.SO_ERROR:
                return self.endpoint.take_error()
            case std.SO_TYPE:
                return int(self.type)
            case std.SO_DOMAIN:
                return int(self.family)
            case std.SO_PROTOCOL:
                stream = self.type == std.SOCK_STREAM
                return std.IPPROTO_TCP if stream else std.IPPROTO_UDP
            case std.SO_ACCEPTCONN:
                return int(isinstance(self.endpoint, Listening))
        return get_option(self.endpoint.options, level, optname)

    def getsockname(self) -> SocketAddress:
        with self._lock:
            endpoint = self.endpoint
            if isinstance(endpoint, Stream) and endpoint.local is not None:
                return self._show(*endpoint.local)
            bound = endpoint.binding if isinstance(endpoint, Datagrams) else self.binding
            if bound is None:
                return self._show(None, 0)
            address = bound.address
            if isinstance(endpoint, Datagrams) and endpoint.remote and address is None:
                address = self._host.source_for(endpoint.remote[0])
            return self._show(address, bound.port)

    def getpeername(self) -> SocketAddress:
        with self._lock:
            endpoint = self.endpoint
            remote = endpoint.remote if isinstance(endpoint, Stream | Datagrams) else None
            if isinstance(endpoint, Stream) and not endpoint.is_connected:
                remote = None
            if remote is None:
                raise error(errno.ENOTCONN)
            return self._show(*remote)

    # --- descriptors and files --------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor for select, poll and epoll (readiness.py), and for nothing else."""
        if self._detached:
            return -1
        with self._host.runner.lock:
            return self.endpoint.fileno()

    def detach(self) -> int:
        """Give up the socket without closing it. What is given can be made a socket again."""
        number = self.fileno()
        self._host.detached[number] = self
        self.give_up()
        return number

    def give_up(self) -> None:
        """The endpoint belongs to another Socket now."""
        self._closed = self._detached = True

    makefile: Any = std.socket.makefile

    def _decref_socketios(self) -> None:
        """For makefile: one file less."""
        self._io_refs = max(self._io_refs - 1, 0)
        if self._closed:
            self.close()

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        if inheritable:
            raise error(errno.EOPNOTSUPP)

    # --- the end --------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        with self._lock:
            if isinstance(self.endpoint, Listening):
                self.endpoint.shut_down()
            elif isinstance(self.endpoint, Datagrams):
                self.endpoint.shut_down(how)
            else:
                self._stream().shut_down(how)

    def close(self) -> None:
        """Close, once the files that were made of it are closed, too."""
        self._closed = True
        if self._io_refs <= 0:
            self._really_close()

    def _really_close(self) -> None:
        endpoint = self.endpoint
        if endpoint.closed or self._detached:
            return
        with self._host.runner.lock:
            self._let_go()
            options = endpoint.options
            if isinstance(endpoint, Stream) and options.linger_on and self._timeout != 0:
                endpoint.linger(options.linger_seconds)

    def _let_go(self) -> None:
        self.endpoint.close()
        if self.binding is not None and not isinstance(self.endpoint, Listening):
            self._host.tcp_ports.release(self.binding)

    def __del__(self) -> None:
        """Nobody has closed it. The collector may run anywhere, so the runner does it."""
        endpoint = getattr(self, "endpoint", None)
        if endpoint is not None and not self._closed and not endpoint.closed:
            self._host.runner.later(self._let_go)

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._closed:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else type(self.endpoint).__name__
        return f"<Socket on the stack {self.family.name} {self.type.name} {state}>"


std_socket: Final = std.socket
"""The operating system's, whatever the module has now (host.py)."""


def check_flags(flags: int, known: int) -> None:
    """Some are not there. Urgent data comes in line: there is nothing to receive out of band."""
    if flags & ~known:
        raise error(errno.EINVAL if flags & std.MSG_OOB else errno.EOPNOTSUPP)
