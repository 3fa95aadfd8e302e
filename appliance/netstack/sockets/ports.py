"""Who is bound to which port of ours, and whose a connection or a datagram is.

The stack knows ports. Addresses are told apart here: sockets of both families, and sockets bound to
different addresses, may share a port. Two bindings that could get the same connection are in
conflict, unless both sockets have SO_REUSEADDR and neither listens; and without SO_REUSEADDR a port
is taken as long as a connection of it is left (in TIME-WAIT, mostly).
"""

from __future__ import annotations

import errno
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from appliance.netstack.sockets.errors import error
from appliance.netstack.stack import Stack
from appliance.netstack.tcp.active_open import EPHEMERAL_PORTS
from appliance.netstack.tcp.connection import Connection, ConnectionUser
from appliance.netstack.tcp.listener import Listener
from appliance.netstack.udp import PortInUse, UdpSocket

Held = TypeVar("Held")


@dataclass(slots=True, eq=False)
class Binding(Generic[Held]):
    """One socket at one port."""

    port: int
    family: int
    address: bytes | None
    """None: any."""
    v6only: bool
    reuse: bool
    holder: Held | None = None
    """Who gets what arrives; None: nothing is wanted."""

    def takes(self, local: bytes) -> bool:
        """Is what arrives at this address of ours for it?"""
        if self.address is not None:
            return local == self.address
        if self.family == socket.AF_INET:
            return len(local) == 4
        return len(local) == 16 or not self.v6only

    def meets(self, other: Binding[Held]) -> bool:
        """Could both get the same?"""
        if self.address is not None:
            return other.takes(self.address)
        if other.address is not None:
            return self.takes(other.address)
        return self.family == other.family or not (self.v6only or other.v6only)


class Accepts(Protocol):
    """A socket that listens."""

    def arrived(self, connection: Connection) -> ConnectionUser | None: ...


class Receives(Protocol):
    """A socket for datagrams."""

    def wants(self, source: bytes, port: int) -> int:
        """0: not from there; more: the more it is meant."""

    def arrived(self, source: bytes, port: int, data: memoryview) -> None: ...

    def refused(self, destination: bytes, port: int, reason: str) -> None: ...


class _Table(ABC, Generic[Held]):
    """The bindings of one protocol."""

    def __init__(self, stack: Stack) -> None:
        self._stack: Final = stack
        self._bound: dict[int, list[Binding[Held]]] = {}

    def bind(self, wanted: Binding[Held]) -> None:
        """Take the port; port 0: any that is free. OSError."""
        if wanted.port:
            self._check(wanted)
        else:
            wanted.port = self._any_port(wanted)
        self._bound.setdefault(wanted.port, []).append(wanted)

    def _any_port(self, wanted: Binding[Held]) -> int:
        start = self._stack.tcp.random.randrange(len(EPHEMERAL_PORTS))
        for number in range(len(EPHEMERAL_PORTS)):
            port = EPHEMERAL_PORTS[(start + number) % len(EPHEMERAL_PORTS)]
            if port not in self._bound and not self._is_used(port):
                return port
        raise error(errno.EADDRINUSE)

    @abstractmethod
    def _check(self, wanted: Binding[Held]) -> None:
        """OSError: somebody else has the port."""

    @abstractmethod
    def _is_used(self, port: int) -> bool:
        """By somebody who is not in this table?"""

    def release(self, binding: Binding[Held]) -> None:
        """Let go of the port."""
        there = self._bound.get(binding.port, [])
        if binding in there:
            there.remove(binding)
        if not there:
            self._bound.pop(binding.port, None)


class TcpPorts(_Table[Accepts]):
    """TCP's."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._listeners: dict[int, Listener] = {}

    def _check(self, wanted: Binding[Accepts]) -> None:
        for there in self._bound.get(wanted.port, ()):
            shared = wanted.reuse and there.reuse and there.holder is None
            if there.meets(wanted) and not shared:
                raise error(errno.EADDRINUSE)
        if wanted.port in self._stack.tcp.listeners and wanted.port not in self._listeners:
            raise error(errno.EADDRINUSE)  # a service of the appliance
        if not wanted.reuse and self._is_connected(wanted.port):
            raise error(errno.EADDRINUSE)

    def _is_used(self, port: int) -> bool:
        return port in self._stack.tcp.listeners or self._is_connected(port)

    def _is_connected(self, port: int) -> bool:
        return any(c.local_port == port for c in self._stack.tcp.connections.values())

    def listen(self, binding: Binding[Accepts], holder: Accepts) -> None:
        """From now on connections go to `holder`. OSError."""
        for there in self._bound[binding.port]:
            if there is not binding and there.holder is not None and there.meets(binding):
                raise error(errno.EADDRINUSE)
        binding.holder = holder
        if binding.port not in self._listeners:
            accept = partial(self._accept, binding.port)
            made = self._stack.tcp.listen(binding.port, accept)
            made.is_at = partial(self._is_at, binding.port)
            self._listeners[binding.port] = made

    def _accept(self, port: int, connection: Connection) -> ConnectionUser | None:
        found = self._holder(port, connection.local_address)
        return None if found is None else found.arrived(connection)

    def _is_at(self, port: int, local: bytes) -> bool:
        return self._holder(port, local) is not None

    def _holder(self, port: int, local: bytes) -> Accepts | None:
        """Who takes connections at this address; one that is bound to it before one that is not."""
        found: Accepts | None = None
        for binding in self._bound.get(port, ()):
            if binding.holder is not None and binding.takes(local):
                found = binding.holder
                if binding.address is not None:
                    break
        return found

    def take_more(self, binding: Binding[Accepts], more: bool) -> None:
        """Whether its holder has room for further connections. Others at the port are held up
        as well, for as long: a peer asks again after a second."""
        listener = self._listeners.get(binding.port)
        if listener is not None:
            listener.taking = more

    def release(self, binding: Binding[Accepts]) -> None:
        """Let go of the port; with the last one who listens, handshakes that are under way end."""
        super().release(binding)
        binding.holder = None
        listener = self._listeners.get(binding.port)
        if listener is None:
            return
        listener.taking = True
        if all(there.holder is None for there in self._bound.get(binding.port, ())):
            del self._listeners[binding.port]
            listener.close()


class UdpPorts(_Table[Receives]):
    """UDP's."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._sockets: dict[int, UdpSocket] = {}

    def _check(self, wanted: Binding[Receives]) -> None:
        for there in self._bound.get(wanted.port, ()):
            if there.meets(wanted) and not (wanted.reuse and there.reuse):
                raise error(errno.EADDRINUSE)

    def _is_used(self, port: int) -> bool:
        return False  # `open` says so

    def open(self, binding: Binding[Receives], holder: Receives) -> UdpSocket:
        """Datagrams go to `holder` from now on. What to send with. OSError."""
        made = self._sockets.get(binding.port)
        if made is None:
            receive: Callable[[bytes, int, bytes, memoryview], None]
            receive = partial(self._receive, binding.port)
            try:
                made = self._stack.udp.bind(binding.port, receive)
            except PortInUse:
                super().release(binding)
                raise error(errno.EADDRINUSE) from None
            made.error_arrives = partial(self._refused, binding.port)
            self._sockets[binding.port] = made
        binding.holder = holder
        return made

    def _receive(
        self, port: int, source: bytes, source_port: int, local: bytes, data: memoryview
    ) -> None:
        best, found = 0, None
        for binding in self._bound.get(port, ()):
            if binding.holder is not None and binding.takes(local):
                fitness = 2 * binding.holder.wants(source, source_port)
                fitness += bool(fitness and binding.address)
                if fitness > best:
                    best, found = fitness, binding.holder
        if found is None:
            self._stack.counters["udp.no_socket"] += 1
        else:
            found.arrived(source, source_port, data)

    def _refused(self, port: int, destination: bytes, remote_port: int, reason: str) -> None:
        for binding in self._bound.get(port, ()):
            if binding.holder is not None:
                binding.holder.refused(destination, remote_port, reason)

    def release(self, binding: Binding[Receives]) -> None:
        """Let go of the port."""
        super().release(binding)
        if binding.port not in self._bound and binding.port in self._sockets:
            self._sockets.pop(binding.port).close()
