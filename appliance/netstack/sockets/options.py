"""What can be set on a socket, and what it means to the stack."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    SOCKET_BUFFER_BYTES,
    SOCKET_BUFFER_BYTES_MAX,
    SOCKET_BUFFER_BYTES_MIN,
    TCP_KEEPALIVE_IDLE,
    TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
)
from appliance.netstack.sockets.errors import error
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.state import HANDSHAKING, State

_INT: Final = Struct("i")
_LINGER: Final = Struct("ii")


@dataclass(slots=True)
class Options:
    """Of one socket; one that was accepted begins with those of its listener."""

    reuse_address: bool = False
    broadcast: bool = False
    keepalive: bool = False
    keepalive_idle: int = TCP_KEEPALIVE_IDLE // SECOND
    keepalive_interval: int = TCP_KEEPALIVE_INTERVAL // SECOND
    keepalive_probes: int = TCP_KEEPALIVE_PROBES
    nodelay: bool = False
    cork: bool = False
    user_timeout_ms: int = 0
    """0: the stack's own patience."""
    receive_bytes: int = SOCKET_BUFFER_BYTES
    """Text that waits for the program, beside a window that the peer may still fill."""
    send_bytes: int = SOCKET_BUFFER_BYTES
    """Text that the peer has not acknowledged."""
    linger_on: bool = False
    linger_seconds: int = 0
    v6only: bool = False
    urgent_in_line: bool = True
    """There is no other way."""

    def apply(self, c: Connection) -> None:
        """Tell the connection. Again, whenever something is set, and when it is established."""
        c.nodelay = self.nodelay
        c.corked = self.cork
        c.user_timeout = self.user_timeout_ms * MILLISECOND or None
        if c.state is State.CLOSED or c.state in HANDSHAKING or c.closed:
            return
        if not self.keepalive:
            c.keepalive = None
        else:
            wanted = KeepAlive(
                self.keepalive_idle * SECOND,
                self.keepalive_interval * SECOND,
                self.keepalive_probes,
            )
            if c.keepalive is None or _differ(c.keepalive, wanted):
                c.keep_alive(wanted)
        if not (self.cork or c.marked):
            c.mark()  # what was held back goes out


def _differ(one: KeepAlive, other: KeepAlive) -> bool:
    return (one.idle, one.interval, one.probes) != (other.idle, other.interval, other.probes)


_FLAGS: Final = {
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): "reuse_address",
    (socket.SOL_SOCKET, socket.SO_BROADCAST): "broadcast",
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): "keepalive",
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): "nodelay",
    (socket.IPPROTO_TCP, socket.TCP_CORK): "cork",
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY): "v6only",
}

_ALWAYS: Final = {(socket.SOL_SOCKET, socket.SO_OOBINLINE): "urgent_in_line"}
"""These cannot be switched off."""

_NUMBERS: Final = {
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): ("keepalive_idle", 1, 32767),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): ("keepalive_interval", 1, 32767),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): ("keepalive_probes", 1, 127),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): ("user_timeout_ms", 0, (1 << 31) - 1),
}
"""Name, least and largest value, as the kernel has them."""

_SIZES: Final = {
    (socket.SOL_SOCKET, socket.SO_RCVBUF): "receive_bytes",
    (socket.SOL_SOCKET, socket.SO_SNDBUF): "send_bytes",
}

_LINGER_OPTION: Final = (socket.SOL_SOCKET, socket.SO_LINGER)


def set_option(options: Options, level: int, name: int, value: object) -> None:
    """setsockopt. OSError: there is no such option, or it cannot have this value."""
    key = (level, name)
    if key == _LINGER_OPTION:
        on, seconds = _unpack(_LINGER, value)
        options.linger_on, options.linger_seconds = bool(on), seconds
        return
    number = value if isinstance(value, int) else _unpack(_INT, value)[0]
    if key in _FLAGS:
        setattr(options, _FLAGS[key], bool(number))
    elif key in _ALWAYS:
        if not number:
            raise error(errno.EOPNOTSUPP)
    elif key in _NUMBERS:
        attribute, least, most = _NUMBERS[key]
        if not least <= number <= most:
            raise error(errno.EINVAL)
        setattr(options, attribute, number)
    elif key in _SIZES:
        size = min(max(number, SOCKET_BUFFER_BYTES_MIN), SOCKET_BUFFER_BYTES_MAX)
        setattr(options, _SIZES[key], size)
    else:
        raise error(errno.ENOPROTOOPT)


def get_option(options: Options, level: int, name: int) -> int | bytes:
    """getsockopt, for what `set_option` sets. OSError."""
    key = (level, name)
    if key == _LINGER_OPTION:
        return _LINGER.pack(options.linger_on, options.linger_seconds)
    attribute = (
        _FLAGS.get(key) or _ALWAYS.get(key) or _SIZES.get(key) or _NUMBERS.get(key, ("", 0, 0))[0]
    )
    if not attribute:
        raise error(errno.ENOPROTOOPT)
    return int(getattr(options, attribute))


def _unpack(form: Struct, value: object) -> tuple[int, ...]:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"an integer or bytes, not {type(value).__name__}")
    try:
        return form.unpack(value)
    except StructError:
        raise error(errno.EINVAL) from None
