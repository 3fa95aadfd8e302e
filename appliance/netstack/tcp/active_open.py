"""Active OPEN (RFC 9293 section 3.10.1): may there be such a connection, and from which port?

The port, where the user leaves it to us, is that of RFC 6056 section 3.3.3 (simple hash-based): an
offset that nobody else can compute, different for each destination, and a counter. Each port is
tried once, and the one that was used last comes last, which keeps us out of the peer's TIME-WAIT.

A pair of ports that is still in TIME-WAIT here may be used again if both sides have timestamps and
a second has passed: then a segment of the old connection is told by PAWS from one of the new (RFC
6191 section 2, seen from the side that opens)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import SECOND, Instant
from appliance.netstack.ip.path import Path
from appliance.netstack.tcp import reasons
from appliance.netstack.tcp.connection import Connection, ConnectionUser
from appliance.netstack.tcp.reasons import CannotConnect
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.address import is_unicast

if TYPE_CHECKING:
    from appliance.netstack.tcp.host import Tcp

EPHEMERAL_PORTS: Final = range(49152, 65536)
"""RFC 6335 section 6."""

STAMPS_DIFFER_AFTER: Final = SECOND
"""The slowest clock of timestamps that is allowed ticks once in so long (RFC 7323 section 5.4)."""

REUSE_GAP: Final = 1 << 16
"""How far the numbers of a connection that follows one in TIME-WAIT are ahead of it (RFC 6191)."""


def active_open(
    tcp: Tcp, path: Path, port: int, user: ConnectionUser, now: Instant, source_port: int | None
) -> Connection:
    """A connection in SYN-SENT, whose SYN goes out with the next flush. CannotConnect."""
    if not is_unicast(path.destination):
        raise CannotConnect(reasons.NO_ROUTE)  # RFC 9293 MUST-46
    if source_port is None:
        source_port = free_port(tcp, path, port)
    key = connection_key(path, port, source_port)
    iss = tcp.initial_sequence_number(key, now)
    before = tcp.connections.get(key)
    if before is not None:
        if not may_follow(before, now):
            raise CannotConnect(reasons.PORT_TAKEN)
        iss = before.snd.nxt + REUSE_GAP & MASK
        before.end(None)
    if path.destination == path.source and port == source_port:
        raise CannotConnect(reasons.PORT_TAKEN)  # with itself
    if not tcp.has_room():
        raise CannotConnect(reasons.NO_ROOM)
    c = Connection(tcp, path, key, iss, State.CLOSED)
    c.user = user
    c.heard_at = c.progress_at = now
    c.become(State.SYN_SENT)
    c.syn_due = True
    tcp.connections[key] = c
    c.mark()
    return c


def free_port(tcp: Tcp, path: Path, port: int) -> int:
    """A source port that is hard to guess, and that no listener has. CannotConnect."""
    count = len(EPHEMERAL_PORTS)
    offset = tcp.keyed(path.destination + path.source + port.to_bytes(2, "big"), b"port")
    for _ in range(count):
        tcp.ports_used += 1
        candidate = EPHEMERAL_PORTS[(offset + tcp.ports_used) % count]
        key = connection_key(path, port, candidate)
        if key not in tcp.connections and candidate not in tcp.listeners:
            return candidate
    raise CannotConnect(reasons.NO_FREE_PORT)


def may_follow(before: Connection, now: Instant) -> bool:
    """Is it safe to open a connection between the two ports of this one?"""
    is_over = before.state is State.TIME_WAIT and before.stamps
    return is_over and now - before.heard_at >= STAMPS_DIFFER_AFTER


def connection_key(path: Path, port: int, source_port: int) -> bytes:
    """The key of a connection: addresses and ports as in a packet from the peer."""
    ports = port.to_bytes(2, "big") + source_port.to_bytes(2, "big")
    return path.destination + path.source + ports
