"""UDP sockets on the stack."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.netstack.sockets.facade import Socket
from tests.sim.two_hosts import CLIENT, PATIENCE, SERVER, LoopHost

Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]


def datagram_socket(host: LoopHost) -> Socket:
    made = host.sockets.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    return made


@pytest.fixture
def server(hosts: Hosts) -> Iterator[Socket]:
    with datagram_socket(hosts[0]) as made:
        made.bind(("", 53))
        yield made


@pytest.fixture
def client(hosts: Hosts) -> Iterator[Socket]:
    with datagram_socket(hosts[1]) as made:
        yield made


def test_datagrams_go_there_and_back(server: Socket, client: Socket) -> None:
    for size in (0, 1, 1472, 1473, 30_000, 65_507):
        assert client.sendto(bytes(size), (SERVER, 53)) == size
        text, source = server.recvfrom(70_000)
        assert len(text) == size
        assert source == (CLIENT, client.getsockname()[1])
        server.sendto(text + b"!" * (size < 65_507), source)
        assert client.recvfrom(70_000)[1] == (SERVER, 53)
    with pytest.raises(OSError) as caught:
        client.sendto(bytes(65_508), (SERVER, 53))
    assert caught.value.errno == errno.EMSGSIZE


def test_a_datagram_is_received_whole_or_cut(server: Socket, client: Socket) -> None:
    for _ in range(4):
        client.sendto(b"0123456789", (SERVER, 53))
    assert server.recv(4) == b"0123", "the rest is gone"
    text, ancillary, flags, source = server.recvmsg(4)
    assert (text, ancillary, flags) == (b"0123", [], socket.MSG_TRUNC)
    assert source is not None
    assert source[0] == CLIENT
    buffer = bytearray(20)
    assert server.recvfrom_into(buffer)[0] == 10
    assert server.recv(20, socket.MSG_PEEK) == b"0123456789"
    assert server.recv_into(buffer, 5) == 5


def test_a_connected_socket_hears_its_peer_only(
    hosts: Hosts, server: Socket, client: Socket
) -> None:
    client.connect((SERVER, 53))
    assert client.getpeername() == (SERVER, 53)
    client.send(b"hello")
    _, back = server.recvfrom(100)
    with datagram_socket(hosts[0]) as stranger:
        stranger.sendto(b"forged", back)
        server.sendto(b"genuine", back)
        assert client.recv(100) == b"genuine"
    client.connect((socket.AF_UNSPEC, 0))
    with pytest.raises(OSError) as caught:
        client.send(b"to whom?")
    assert caught.value.errno == errno.EDESTADDRREQ


def test_a_refusal_reaches_a_connected_socket(client: Socket) -> None:
    """RFC 1122 section 4.1.3.3: ICMP errors are told."""
    client.connect((SERVER, 9))
    client.send(b"is anybody there?")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)
    client.settimeout(0.02)
    with pytest.raises(TimeoutError):
        client.recv(100)


def test_a_refusal_does_not_concern_others(server: Socket, client: Socket) -> None:
    client.sendto(b"nobody", (SERVER, 9))
    client.sendto(b"somebody", (SERVER, 53))
    assert server.recv(100) == b"somebody"
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(100)


def test_the_queue_is_bounded(hosts: Hosts, server: Socket, client: Socket) -> None:
    client.sendto(b"where are you?", (SERVER, 53))
    server.recv(100)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    for _ in range(100):
        client.sendto(b"x", (SERVER, 53))
    client.sendto(bytes(1000), (SERVER, 53))
    wait_for(lambda: hosts[0].counters["udp.receive_queue_full"] == 100 - 32 + 1)
    server.setblocking(False)
    for _ in range(32):
        assert server.recv(10) == b"x"
    with pytest.raises(BlockingIOError):
        server.recv(10)
    client.sendto(b"there is room again", (SERVER, 53))
    assert select.select([server], [], [], PATIENCE)[0]


def wait_for(condition: Callable[[], bool]) -> None:
    """What another thread is about to do."""
    for _ in range(3000):
        if condition():
            return
        select.select([], [], [], 0.01)
    raise AssertionError("it does not happen")


def test_a_close_wakes_the_receiver(server: Socket, in_thread: InThread) -> None:
    receiving = in_thread(lambda: server.recv(1))
    server.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receiving.result()


def test_a_close_frees_the_port(hosts: Hosts, server: Socket) -> None:
    with datagram_socket(hosts[0]) as second, pytest.raises(OSError, match="in use"):
        second.bind(("", 53))
    server.close()
    with datagram_socket(hosts[0]) as third:
        third.bind((SERVER, 53))


def test_poll_sees_datagrams(server: Socket, client: Socket) -> None:
    assert not select.select([server], [], [], 0)[0]
    assert select.select([], [server], [], 0)[1]
    client.sendto(b"x", (SERVER, 53))
    assert select.select([server], [], [], PATIENCE)[0]
    server.recv(1)
    assert not select.select([server], [], [], 0)[0]


def test_broadcast_has_to_be_asked_for(server: Socket, client: Socket) -> None:
    for everybody in ("255.255.255.255", "10.0.0.255", "<broadcast>"):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        with pytest.raises(PermissionError):
            client.sendto(b"to all", (everybody, 53))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"to all", (everybody, 53))
        text, source = server.recvfrom(100)
        assert text == b"to all"
        server.sendto(b"heard", source)
        assert client.recvfrom(100) == (b"heard", (SERVER, 53))


def test_what_cannot_be_sent(client: Socket) -> None:
    with pytest.raises(OSError) as caught:
        client.sendto(b"x", ("192.0.2.1", 53))
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(OSError, match="Invalid"):
        client.sendto(b"x", (SERVER, 0))
    with pytest.raises(OSError, match="not supported"):
        client.listen()


def test_what_the_program_changes_afterwards_is_not_sent(server: Socket, client: Socket) -> None:
    """The first datagram waits for the neighbour's address."""
    mine = bytearray(b"as it was")
    client.sendto(mine, (SERVER, 53))
    mine[:] = b"different"
    assert server.recv(100) == b"as it was"
