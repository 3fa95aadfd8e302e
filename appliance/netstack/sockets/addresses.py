"""Socket addresses: ("10.0.0.5", 80), and for AF_INET6 ("fd00::5", 80, flow, scope), to and from
the bytes of the wire. Names are looked up in a table that the user gives; nobody is asked."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from appliance.netstack.sockets.errors import error

Names = Mapping[str, str]
"""Host name -> address in text."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
AddressInfo = tuple[int, int, int, str, SocketAddress]

FAMILIES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
"""Bytes of an address."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""In front of an IPv4 address in an IPv6 socket (RFC 4291 section 2.5.5.2)."""

_PROTOCOLS: Final = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
}
_LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def parse(family: int, address: object, names: Names) -> tuple[bytes | None, int]:
    """Address (None: any) and port of what the user gave. TypeError, OverflowError, gaierror."""
    if not isinstance(address, tuple) or not 2 <= len(address) <= (2 if family == 2 else 4):
        raise TypeError(f"a socket address is a tuple of a host and a port, not {address!r}")
    host, port = address[0], address[1]
    if not isinstance(port, int):
        raise TypeError(f"a port is an integer, not {port!r}")
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    if isinstance(host, bytes | bytearray):
        host = host.decode("ascii")
    if host == "":
        return None, port
    if host == "<broadcast>":
        return b"\xff" * 4, port
    wire = parse_host(family, host, names)
    return (wire if any(wire) else None), port


def parse_host(family: int, host: str, names: Names) -> bytes:
    """The address of a host, by its number or by its name in the table. An IPv4 address mapped
    into IPv6 is one."""
    text = names.get(host, host).partition("%")[0]
    if family == socket.AF_INET6 and ":" not in text:
        text = "::ffff:" + text
    try:
        wire = socket.inet_pton(family, text)
    except OSError:
        raise no_such_name() from None
    return wire[12:] if wire[:12] == _MAPPED else wire


def no_such_name() -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def show(family: int, wire: bytes | None, port: int) -> SocketAddress:
    """As getsockname and accept give it."""
    if family == socket.AF_INET:
        return socket.inet_ntop(family, wire or bytes(4)), port
    if wire is not None and len(wire) == 4:
        wire = _MAPPED + wire
    return socket.inet_ntop(family, wire or bytes(16)), port, 0, 0


def getaddrinfo(
    names: Names,
    host: bytes | str | None,
    port: bytes | str | int | None,
    family: int = 0,
    type: int = 0,
    proto: int = 0,
    flags: int = 0,
) -> list[AddressInfo]:
    """The standard library's, for numbers and for names in the table."""
    if isinstance(host, bytes):
        host = host.decode("idna")
    if isinstance(port, bytes):
        port = port.decode("ascii")
    if host is None and port is None:
        raise no_such_name()
    if family not in (0, *FAMILIES):
        raise socket.gaierror(socket.EAI_FAMILY, "ai_family not supported")
    number = _service(port, type)
    found: list[AddressInfo] = []
    for one, text in _hosts(names, host, family, flags):
        for kind, protocol in _PROTOCOLS.items():
            if type in (0, kind) and proto in (0, protocol):
                wants_name = flags & socket.AI_CANONNAME and not found
                canonical = host or "" if wants_name else ""
                wire = socket.inet_pton(one, text)
                found.append((one, kind, protocol, canonical, show(one, wire, number)))
    if not found:
        raise no_such_name()
    return [(socket.AddressFamily(f), socket.SocketKind(k), p, c, a) for f, k, p, c, a in found]


def _service(port: str | int | None, type: int) -> int:
    if port is None or port == "":
        return 0
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    try:
        return socket.getservbyname(port, "udp" if type == socket.SOCK_DGRAM else "tcp")
    except OSError:
        raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported") from None


def _hosts(names: Names, host: str | None, family: int, flags: int) -> Iterator[tuple[int, str]]:
    """Families and addresses in text."""
    wanted = [one for one in FAMILIES if family in (0, one)]
    if not host:
        table = _ANY if flags & socket.AI_PASSIVE else _LOOPBACK
        yield from ((one, table[one]) for one in wanted)
        return
    text = host if flags & socket.AI_NUMERICHOST else names.get(host, host)
    for one in wanted:
        try:
            socket.inet_pton(one, text.partition("%")[0])
        except OSError:
            continue
        yield one, text.partition("%")[0]


def getnameinfo(sockaddr: Any, flags: int = 0) -> tuple[str, str]:
    """Numbers: there are no names for addresses."""
    host, port = sockaddr[0], sockaddr[1]
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError("getnameinfo() argument 1 must be a tuple")
    if flags & socket.NI_NAMEREQD:
        raise no_such_name()
    return host, str(port)


def no_family(family: int) -> OSError:
    return error(errno.EAFNOSUPPORT if family not in FAMILIES else errno.EADDRNOTAVAIL)
