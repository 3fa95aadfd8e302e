"""Options, names, and addresses in text."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from appliance.limits import SOCKET_BUFFER_BYTES_MAX, SOCKET_BUFFER_BYTES_MIN
from appliance.netstack.sockets import addresses, installed
from appliance.netstack.sockets.facade import Socket
from tests.sim.two_hosts import PATIENCE, SERVER, LoopHost

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
SOL, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP

SETTINGS = [
    (SOL, socket.SO_REUSEADDR, 1),
    (SOL, socket.SO_KEEPALIVE, 1),
    (SOL, socket.SO_BROADCAST, 1),
    (TCP, socket.TCP_NODELAY, 1),
    (TCP, socket.TCP_CORK, 1),
    (TCP, socket.TCP_KEEPIDLE, 33),
    (TCP, socket.TCP_KEEPINTVL, 44),
    (TCP, socket.TCP_KEEPCNT, 5),
    (TCP, socket.TCP_USER_TIMEOUT, 6000),
    (SOL, socket.SO_RCVBUF, 100_000),
    (SOL, socket.SO_SNDBUF, 200_000),
]


@pytest.mark.parametrize("connected", [False, True])
def test_what_is_set_is_got(pair: Pair, hosts: Hosts, connected: bool) -> None:
    sock = pair[1] if connected else hosts[1].sockets.socket()
    for level, name, value in SETTINGS:
        sock.setsockopt(level, name, value)
        assert sock.getsockopt(level, name) == value
        assert sock.getsockopt(level, name, 4) == struct.pack("i", value)
        sock.setsockopt(level, name, struct.pack("i", value))
    linger = struct.pack("ii", 1, 7)
    sock.setsockopt(SOL, socket.SO_LINGER, linger)
    assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == linger
    sock.setsockopt(SOL, socket.SO_LINGER, bytes(8))
    sock.close()


def test_the_connection_is_told(pair: Pair) -> None:
    endpoint: Any = pair[0].endpoint
    c: Any = endpoint.connection
    assert not c.nodelay, "Nagle is on, as everywhere"
    assert c.keepalive is None
    for level, name, value in SETTINGS:
        pair[0].setsockopt(level, name, value)
    assert c.nodelay
    assert c.corked
    assert c.user_timeout == 6_000_000_000
    patience: Any = c.keepalive
    assert (patience.idle, patience.interval) == (33_000_000_000, 44_000_000_000)
    assert patience.probes == 5
    for name in (socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_USER_TIMEOUT):
        pair[0].setsockopt(TCP, name, 0)
    pair[0].setsockopt(SOL, socket.SO_KEEPALIVE, 0)
    assert not (c.nodelay or c.corked)
    assert c.keepalive is None
    assert c.user_timeout is None


def test_a_cork_is_pulled(pair: Pair) -> None:
    server, client = pair
    client.setsockopt(TCP, socket.TCP_CORK, 1)
    client.sendall(b"held ")
    client.sendall(b"back")
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(100)
    client.setsockopt(TCP, socket.TCP_CORK, 0)
    server.settimeout(PATIENCE)
    assert server.recv(100) == b"held back"


def test_sizes_have_limits(hosts: Hosts) -> None:
    with hosts[0].sockets.socket() as sock:
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(SOL, name, 1)
            assert sock.getsockopt(SOL, name) == SOCKET_BUFFER_BYTES_MIN
            sock.setsockopt(SOL, name, 1 << 30)
            assert sock.getsockopt(SOL, name) == SOCKET_BUFFER_BYTES_MAX


def test_what_cannot_be_set(hosts: Hosts) -> None:
    with hosts[0].sockets.socket() as sock:
        for level, name, value, number in (
            (SOL, socket.SO_MARK, 1, errno.ENOPROTOOPT),
            (TCP, socket.TCP_INFO, 1, errno.ENOPROTOOPT),
            (TCP, socket.TCP_KEEPIDLE, 0, errno.EINVAL),
            (TCP, socket.TCP_KEEPCNT, 128, errno.EINVAL),
            (SOL, socket.SO_LINGER, b"123", errno.EINVAL),
            (SOL, socket.SO_OOBINLINE, 0, errno.EOPNOTSUPP),
        ):
            with pytest.raises(OSError) as caught:
                sock.setsockopt(level, name, value)
            assert caught.value.errno == number
        with pytest.raises(OSError, match="not available"):
            sock.getsockopt(TCP, socket.TCP_INFO)


def test_what_a_socket_is(hosts: Hosts, listener: Socket) -> None:
    with hosts[0].sockets.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        assert sock.getsockopt(SOL, socket.SO_TYPE) == socket.SOCK_DGRAM
        assert sock.getsockopt(SOL, socket.SO_DOMAIN) == socket.AF_INET6
        assert sock.getsockopt(SOL, socket.SO_PROTOCOL) == socket.IPPROTO_UDP
        assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0
        assert (sock.family, sock.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
        assert not sock.get_inheritable()
    assert listener.getsockopt(SOL, socket.SO_ACCEPTCONN) == 1


# --- names and addresses -------------------------------------------------------------------------


def test_names_come_from_the_table(hosts: Hosts) -> None:
    sockets = hosts[0].sockets
    assert sockets.gethostbyname("server.test") == SERVER
    assert sockets.gethostbyname_ex("server.test") == ("server.test", [], [SERVER])
    assert sockets.gethostbyaddr(SERVER) == ("server.test", [], [SERVER])
    found = sockets.getaddrinfo("server.test", "http", type=socket.SOCK_STREAM)
    assert found == [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (SERVER, 80)),
    ]
    with pytest.raises(socket.gaierror):
        sockets.getaddrinfo("example.com", 80)
    with pytest.raises(socket.herror):
        sockets.gethostbyaddr("192.0.2.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("10.0.0.5", 80),
        ("10.0.0.5", "80", 0, socket.SOCK_STREAM),
        ("fd00::5", 80),
        ("fd00::5", None, socket.AF_INET6, socket.SOCK_DGRAM),
        (None, 80, socket.AF_INET, 0, 0, socket.AI_PASSIVE),
        (None, 80, socket.AF_INET6, socket.SOCK_STREAM),
        ("10.0.0.5", 80, 0, 0, socket.IPPROTO_UDP),
        ("10.0.0.5", 80, socket.AF_INET, 0, 0, socket.AI_NUMERICHOST | socket.AI_CANONNAME),
    ],
)
def test_numbers_are_looked_up_as_the_library_does(arguments: tuple[object, ...]) -> None:
    theirs = socket.getaddrinfo(*arguments)  # type: ignore[arg-type]
    wanted = [one for one in theirs if one[1] != socket.SOCK_RAW]
    assert addresses.getaddrinfo({}, *arguments) == wanted  # type: ignore[arg-type]


def test_ipv6_addresses_have_four_parts() -> None:
    wire, port = addresses.parse(socket.AF_INET6, ("fd00::5%eth0", 80, 0, 2), {})
    assert (wire, port) == (bytes([0xFD]) + bytes(14) + b"\5", 80)
    assert addresses.show(socket.AF_INET6, wire, port) == ("fd00::5", 80, 0, 0)
    assert addresses.parse(socket.AF_INET6, ("::", 80), {}) == (None, 80)
    mapped = addresses.parse(socket.AF_INET6, ("::ffff:10.0.0.5", 80), {})
    assert mapped == (bytes([10, 0, 0, 5]), 80)
    assert addresses.show(socket.AF_INET6, mapped[0], 80) == ("::ffff:10.0.0.5", 80, 0, 0)


def test_the_module_is_given_back(hosts: Hosts) -> None:
    before = dict(vars(socket))
    with installed(hosts[0].sockets):
        assert socket.socket is not before["socket"]
        assert socket.getfqdn(SERVER) == "server.test"
        assert socket.getnameinfo((SERVER, 80), 0) == (SERVER, "80")
        one, other = socket.socketpair()
        one.send(b"the operating system's")
        assert other.recv(100) == b"the operating system's"
        one.close()
        other.close()
        with installed(hosts[1].sockets), socket.create_server(("", 80)) as made:
            assert isinstance(made, hosts[1].sockets.socket)
        assert socket.socket is hosts[0].sockets.socket
    assert dict(vars(socket)) == before
