"""Connecting, binding, listening, accepting: and the errno of everything that goes wrong."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from appliance.clock import SECOND
from appliance.limits import TCP_SYN_BACKLOG
from appliance.netstack.ip.addresses import HostAddress
from appliance.netstack.sockets.errors import number_of
from appliance.netstack.sockets.facade import Socket
from appliance.netstack.tcp import reasons
from tests.sim.two_hosts import CLIENT, PATIENCE, SERVER, LoopHost

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def fails_with(number: int, call: Callable[[], Any]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == number, caught.value


# --- connecting ----------------------------------------------------------------------------------


def test_nobody_listens(hosts: Hosts) -> None:
    with hosts[1].sockets.socket() as sock:
        sock.settimeout(PATIENCE)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((SERVER, 9))
        assert sock.connect_ex((SERVER, 9)) == errno.ECONNREFUSED, "and it may be tried again"


def test_another_attempt_may_succeed(hosts: Hosts, listener: Socket) -> None:
    with hosts[1].sockets.socket() as sock:
        sock.settimeout(PATIENCE)
        assert sock.connect_ex((SERVER, 9)) == errno.ECONNREFUSED
        assert sock.connect_ex((SERVER, 80)) == 0
        listener.accept()[0].close()
        assert sock.recv(1) == b""


def test_no_way_leads_there(hosts: Hosts) -> None:
    """Not on the link, and there is no router; and there is no loopback."""
    for there in ("192.0.2.1", "224.0.0.1", "127.0.0.1", "10.0.0.255", CLIENT):
        with hosts[1].sockets.socket() as sock:
            fails_with(errno.ENETUNREACH, lambda sock=sock, to=there: sock.connect((to, 80)))  # type: ignore[misc]


def test_nobody_answers_in_time(hosts: Hosts) -> None:
    with hosts[1].sockets.socket() as sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.connect(("10.0.0.77", 80))


def test_every_reason_has_its_number() -> None:
    assert number_of(reasons.REFUSED) == errno.ECONNREFUSED
    assert number_of(reasons.RESET) == errno.ECONNRESET
    assert number_of(reasons.NO_ANSWER) == errno.ETIMEDOUT
    assert number_of(reasons.TIMED_OUT) == errno.ETIMEDOUT
    assert number_of(reasons.USER_TIMEOUT) == errno.ETIMEDOUT
    assert number_of(reasons.KEEPALIVE) == errno.ETIMEDOUT
    assert number_of(reasons.HOST_UNREACHABLE) == errno.EHOSTUNREACH
    assert number_of(reasons.NO_ROUTE) == errno.ENETUNREACH
    assert number_of(reasons.PORT_TAKEN) == errno.EADDRNOTAVAIL
    assert number_of(reasons.NO_ROOM) == errno.ENOBUFS
    assert number_of("port unreachable") == errno.ECONNREFUSED
    assert number_of("something new") == errno.ECONNABORTED


def test_connecting_without_waiting(hosts: Hosts, listener: Socket) -> None:
    """As event loops do it."""
    with hosts[1].sockets.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            sock.connect((SERVER, 80))
        assert caught.value.errno == errno.EINPROGRESS
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.connect_ex((SERVER, 80)) == 0, "this is how one hears of it, too"
        assert sock.connect_ex((SERVER, 80)) == errno.EISCONN
        listener.accept()[0].close()


def test_failing_without_waiting(hosts: Hosts) -> None:
    with hosts[1].sockets.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((SERVER, 9)) == errno.EINPROGRESS
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "it is told once"


def test_connecting_while_connecting(hosts: Hosts) -> None:
    with hosts[1].sockets.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(("10.0.0.77", 80)) == errno.EINPROGRESS
        assert sock.connect_ex(("10.0.0.77", 80)) == errno.EALREADY
        fails_with(errno.ENOTCONN, lambda: sock.shutdown(2))


def test_both_connect_at_once(hosts: Hosts) -> None:
    """RFC 9293 figure 7, from two programs."""
    both = []
    for host, port in zip(hosts, (5000, 6000), strict=True):
        sock = host.sockets.socket()
        sock.bind(("", port))
        both.append(sock)
    one, other = both
    with hosts[0].loop.lock, hosts[1].loop.lock:  # neither hears of the other before it has begun
        one.endpoint.connect((bytes((10, 0, 0, 9)), 6000), 5000)  # type: ignore[attr-defined]
        other.endpoint.connect((bytes((10, 0, 0, 5)), 5000), 6000)  # type: ignore[attr-defined]
    for sock in both:
        sock.settimeout(PATIENCE)
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    one.sendall(b"I was first")
    assert other.recv(100) == b"I was first"
    for sock in both:
        sock.close()


def test_a_port_may_be_bound_before_connecting(hosts: Hosts, listener: Socket) -> None:
    made = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE, ("", 4000))
    server, address = listener.accept()
    assert address == (CLIENT, 4000)
    fails_with(errno.EADDRINUSE, lambda: bind_plain(hosts[1], 4000))
    server.close()
    made.close()


def bind_plain(host: LoopHost, port: int) -> None:
    with host.sockets.socket() as sock:
        sock.bind(("", port))


# --- binding -------------------------------------------------------------------------------------


def test_a_port_is_bound_once(hosts: Hosts, listener: Socket) -> None:
    sockets = hosts[0].sockets
    for address in ("", SERVER):
        with sockets.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            fails_with(errno.EADDRINUSE, lambda s=sock, a=address: s.bind((a, 80)))  # type: ignore[misc]
    with sockets.socket() as sock:
        sock.bind(("", 81))
        fails_with(errno.EINVAL, lambda: sock.bind(("", 82)))


def test_only_our_own_addresses_can_be_bound(hosts: Hosts) -> None:
    with hosts[0].sockets.socket() as sock:
        fails_with(errno.EADDRNOTAVAIL, lambda: sock.bind((CLIENT, 80)))
        with pytest.raises(OverflowError):
            sock.bind((SERVER, 70_000))
        with pytest.raises(TypeError):
            sock.bind(SERVER)
        with pytest.raises(socket.gaierror):
            sock.bind(("no.such.name", 80))


def second_address(host: LoopHost, address: str) -> None:
    with host.loop.lock:
        made = HostAddress(socket.inet_aton(address), 24)
        assert host.stack.ip.add_address(made, host.loop.now())


def test_a_connection_comes_from_the_address_it_was_bound_to(
    hosts: Hosts, listener: Socket
) -> None:
    """RFC 9293 MUST-43, MUST-45: and stays there."""
    second_address(hosts[1], "10.0.0.10")
    for source in ("10.0.0.10", CLIENT):
        client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE, (source, 0))
        server, address = listener.accept()
        assert address[0] == client.getsockname()[0] == source
        client.sendall(b"text")
        server.settimeout(PATIENCE)
        assert server.recv(4) == b"text"
        server.close()
        client.close()


def test_a_listener_takes_what_comes_to_its_address(hosts: Hosts, listener: Socket) -> None:
    """RFC 9293 MUST-43: the same port at another address is another matter."""
    second_address(hosts[0], "10.0.0.6")
    with hosts[1].sockets.socket() as sock:
        sock.settimeout(PATIENCE)
        fails_with(errno.ECONNREFUSED, lambda: sock.connect(("10.0.0.6", 80)))
        sock.connect((SERVER, 80))
        listener.accept()[0].close()


def test_a_closed_socket_frees_its_port(hosts: Hosts) -> None:
    """Also one that was never connected."""
    for _ in range(3):
        with hosts[0].sockets.socket() as sock:
            sock.bind(("", 4321))
    for _ in range(3):
        hosts[0].sockets.create_server((SERVER, 4321)).close()


def test_any_free_port(hosts: Hosts) -> None:
    socks = [hosts[0].sockets.socket() for _ in range(50)]
    for sock in socks:
        sock.bind(("", 0))
    assert len({sock.getsockname()[1] for sock in socks}) == 50
    for sock in socks:
        sock.close()


def test_a_port_in_time_wait_needs_reuse(pair: Pair, hosts: Hosts, listener: Socket) -> None:
    server, client = pair
    server.close()
    assert client.recv(1) == b""
    client.close()
    listener.close()
    with hosts[0].sockets.socket() as sock:
        fails_with(errno.EADDRINUSE, lambda: sock.bind((SERVER, 80)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SERVER, 80))
        sock.listen()


def test_a_service_of_the_stack_keeps_its_port(hosts: Hosts) -> None:
    with hosts[0].loop.lock:
        hosts[0].stack.tcp.listen(2049, lambda _connection: None)
    fails_with(errno.EADDRINUSE, lambda: hosts[0].sockets.create_server((SERVER, 2049)))


def test_two_families_share_a_port(hosts: Hosts, listener: Socket) -> None:
    """As asyncio and others bind 0.0.0.0 and ::, one for each."""
    sockets = hosts[0].sockets
    six = sockets.create_server(("", 80), family=socket.AF_INET6)
    fails_with(
        errno.EADDRINUSE,
        lambda: sockets.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True),
    )
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    listener.accept()[0].close()
    six.close()
    client.close()


def test_one_socket_for_both_families(hosts: Hosts) -> None:
    listener = hosts[0].sockets.create_server(
        ("", 8080), family=socket.AF_INET6, dualstack_ipv6=True
    )
    client = hosts[1].sockets.create_connection((SERVER, 8080), PATIENCE)
    server, address = listener.accept()
    assert address[0] == "::ffff:10.0.0.9"
    assert server.getsockname() == ("::ffff:10.0.0.5", 8080, 0, 0)
    for sock in (listener, client, server):
        sock.close()


# --- accepting -----------------------------------------------------------------------------------


def test_who_died_before_he_was_accepted_is_not(hosts: Hosts, listener: Socket) -> None:
    sockets = hosts[1].sockets
    dead = sockets.create_connection((SERVER, 80), PATIENCE)
    dead.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    dead.close()
    alive = sockets.create_connection((SERVER, 80), PATIENCE)
    server, address = listener.accept()
    assert address == alive.getsockname()
    server.close()
    alive.close()


def test_text_of_who_left_before_he_was_accepted_is_read(hosts: Hosts, listener: Socket) -> None:
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    client.sendall(b"in a hurry")
    client.close()
    server, _ = listener.accept()
    assert server.recv(100) == b"in a hurry"
    assert server.recv(100) == b""
    server.close()


def test_a_full_queue_takes_no_more_until_there_is_room(hosts: Hosts) -> None:
    """Further SYNs are not answered; their senders ask again."""
    listener = hosts[0].sockets.create_server((SERVER, 80), backlog=2)
    sockets = hosts[1].sockets
    first = [sockets.create_connection((SERVER, 80), PATIENCE) for _ in range(2)]
    late = sockets.socket()
    late.settimeout(0.1)
    with pytest.raises(TimeoutError):
        late.connect((SERVER, 80))
    counters = hosts[0].counters
    assert hosts[0].loop.until(lambda: counters["tcp.accept_queue_full"] > 0, 30 * SECOND)
    listener.accept()[0].close()
    late.settimeout(PATIENCE)
    late.connect((SERVER, 80))
    for sock in (listener, late, *first):
        sock.close()
    assert TCP_SYN_BACKLOG > 2


def test_closing_a_listener_resets_who_waits_there(hosts: Hosts, listener: Socket) -> None:
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    listener.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    client.close()


def test_a_listener_that_was_shut_down(listener: Socket, in_thread: InThread) -> None:
    accepting = in_thread(listener.accept)
    listener.shutdown(socket.SHUT_RDWR)
    fails_with(errno.EINVAL, accepting.result)


def test_options_of_a_listener_are_inherited(hosts: Hosts, listener: Socket) -> None:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    server, _ = listener.accept()
    assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    server.close()
    client.close()
