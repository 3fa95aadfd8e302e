"""What a program knows as the module `socket`, on one stack.

    sockets = Sockets(loop)
    sockets.create_connection(("10.0.0.1", 80))        # a program that knows

    with installed(sockets):                            # one that does not
        urllib.request.urlopen("http://10.0.0.1/")

`installed` puts `sockets.socket` and the functions that look up names in the place of those of the
standard library's module, for the whole process. What is built on them (create_connection,
create_server, http, urllib, asyncio, ...) then runs on the stack, whether it was imported before or
not; only who has said `from socket import socket` before keeps the operating system's. Sockets
remember the stack that they are on, so the place may be given back while they are still used.
Sockets of other families (AF_UNIX, ...) are always the operating system's.
"""

from __future__ import annotations

import errno
import socket as std
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from appliance.netstack.sockets import addresses
from appliance.netstack.sockets.addresses import AddressInfo, Names, SocketAddress
from appliance.netstack.sockets.endpoint import Endpoint
from appliance.netstack.sockets.errors import error
from appliance.netstack.sockets.facade import Socket
from appliance.netstack.sockets.ports import TcpPorts, UdpPorts
from appliance.netstack.sockets.runner import Runner
from appliance.netstack.sockets.stream import Stream
from appliance.netstack.sockets.tls import TlsSocket
from appliance.netstack.wire.address import IPV4_BYTES, is_unicast


class Sockets:
    """The sockets of one stack. `names`: hosts by name, for there is no resolver."""

    def __init__(self, runner: Runner, names: Names | None = None) -> None:
        self.runner = runner
        self.names: Names = {} if names is None else names
        self.tcp_ports = TcpPorts(runner.stack)
        self.udp_ports = UdpPorts(runner.stack)
        self.detached: dict[int, Socket] = {}
        """By the descriptor that `detach` has given."""
        self._endpoints: WeakSet[Endpoint] = WeakSet()
        self.socket: type[Socket] = type("socket", (Socket,), {"_host": self})
        self.getaddrinfo = partial(addresses.getaddrinfo, self.names)
        runner.at_end(self._network_down)

    # --- as in the module -----------------------------------------------------------------

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
    ) -> Socket:
        """A stream socket that is connected to the first address that answers. OSError."""
        failure: OSError | None = None
        for family, kind, protocol, _, place in self.getaddrinfo(*address, type=std.SOCK_STREAM):
            made = self.socket(family, kind, protocol)
            made.settimeout(timeout)
            try:
                if source_address is not None:
                    made.bind(source_address)
                made.connect(place)
            except OSError as why:
                failure = why
                made.close()
            else:
                return made
        raise failure or error(errno.EADDRNOTAVAIL)

    def create_server(
        self,
        address: tuple[str, int],
        *,
        family: int = std.AF_INET,
        backlog: int = 128,
        dualstack_ipv6: bool = False,
    ) -> Socket:
        """A stream socket that listens. OSError."""
        made = self.socket(family, std.SOCK_STREAM)
        try:
            made.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
            if family == std.AF_INET6:
                made.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, not dualstack_ipv6)
            made.bind(address)
            made.listen(backlog)
        except BaseException:
            made.close()
            raise
        return made

    def gethostbyname(self, name: str) -> str:
        """One IPv4 address."""
        return str(self._by_name(name)[0][4][0])

    def gethostbyname_ex(self, name: str) -> tuple[str, list[str], list[str]]:
        """All that is known of a name."""
        return name, [], [str(found[4][0]) for found in self._by_name(name)]

    def _by_name(self, name: str) -> list[AddressInfo]:
        return self.getaddrinfo(name, 0, std.AF_INET, std.SOCK_STREAM)

    def gethostbyaddr(self, address: str) -> tuple[str, list[str], list[str]]:
        """The name of an address in the table. herror."""
        for name, text in self.names.items():
            if address in (name, text):
                return name, [], [text]
        raise std.herror(1, "Unknown host")

    # --- for sockets ----------------------------------------------------------------------

    def remember(self, endpoint: Endpoint) -> None:
        """Tell it when the network is down."""
        self._endpoints.add(endpoint)

    def _network_down(self) -> None:
        for endpoint in list(self._endpoints):
            endpoint.network_down()

    def adopt(self, stream: Stream, family: int) -> Socket:
        """The socket of a connection that was accepted."""
        made: Socket = object.__new__(self.socket)
        made.set_up(stream, family, None)
        return made

    def attach(self, fileno: int) -> Socket:
        """What was detached with this descriptor."""
        return self.detached.pop(fileno)

    def is_ours(self, address: bytes) -> bool:
        """An address to bind to."""
        ip = self.runner.stack.ip
        return address in ip.addresses or ip.is_group(address)

    def source_for(self, destination: bytes) -> bytes | None:
        """Which of our addresses speaks with this one."""
        return self.runner.stack.ip.addresses.source_for(destination)

    def check_route(self, destination: bytes) -> None:
        """OSError: no connection can be made there."""
        ip = self.runner.stack.ip
        if not is_unicast(destination) or self.source_for(destination) is None:
            raise error(errno.ENETUNREACH)
        if ip.is_group(destination):
            raise error(errno.ENETUNREACH)
        if destination in ip.addresses or ip.path_to(destination).leads_nowhere:
            raise error(errno.ENETUNREACH)  # there is no loopback

    def check_destination(self, destination: bytes, may_broadcast: bool) -> None:
        """OSError: no datagram can be sent there."""
        ip = self.runner.stack.ip
        if self.source_for(destination) is None:
            raise error(errno.ENETUNREACH)
        if ip.is_group(destination) and len(destination) == IPV4_BYTES and not may_broadcast:
            raise error(errno.EACCES)
        if ip.path_to(destination).leads_nowhere:
            raise error(errno.ENETUNREACH)


@contextmanager
def installed(sockets: Sockets) -> Iterator[None]:
    """Inside, the standard library's module `socket` is that of a stack, in every thread."""
    ours: dict[str, Any] = {
        "socket": sockets.socket,
        "getaddrinfo": sockets.getaddrinfo,
        "getnameinfo": addresses.getnameinfo,
        "gethostbyname": sockets.gethostbyname,
        "gethostbyname_ex": sockets.gethostbyname_ex,
        "gethostbyaddr": sockets.gethostbyaddr,
    }
    before = {name: getattr(std, name) for name in ours}
    tls_before = ssl.SSLContext.sslsocket_class
    for name, value in ours.items():
        setattr(std, name, value)
    ssl.SSLContext.sslsocket_class = TlsSocket  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(std, name, value)
        ssl.SSLContext.sslsocket_class = tls_before


__all__ = ["SocketAddress", "Sockets", "installed"]
