"""The descriptor says of a socket what the kernel's would say of its own."""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from appliance.netstack.sockets.facade import Socket
from appliance.netstack.sockets.readiness import Readiness
from tests.sim.two_hosts import PATIENCE, SERVER, LoopHost

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]


def ready(sock: Any, timeout: float = 0) -> str:
    """r: readable, w: writable."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    events = dict(poll.poll(timeout * 1000)).get(sock.fileno(), 0)
    assert not events & ~(select.POLLIN | select.POLLOUT), "no error, no hang-up"
    return "r" * bool(events & select.POLLIN) + "w" * bool(events & select.POLLOUT)


def becomes(sock: Socket, readable: bool = False, writable: bool = False) -> bool:
    """In time."""
    found = select.select([sock] * readable, [sock] * writable, [], PATIENCE)
    return bool(found[0] or found[1])


# --- the descriptor by itself ------------------------------------------------------------------


def test_all_four_states_are_shown_and_waiters_are_woken(in_thread: InThread) -> None:
    shown = Readiness()
    for _ in range(3):
        for readable in (False, True):
            for writable in (False, True):
                shown.show(readable, writable)
                assert ready(shown) == "r" * readable + "w" * writable
    for mask, state in ((select.EPOLLIN, (True, False)), (select.EPOLLOUT, (False, True))):
        for edge in (0, select.EPOLLET):
            shown.show(False, False)
            epoll = select.epoll()
            epoll.register(shown.fileno(), mask | edge)
            waiting = in_thread(partial(epoll.poll, PATIENCE))
            shown.show(*state)
            assert waiting.result() == [(shown.fileno(), mask)]
            epoll.close()
    shown.close()


def test_data_does_not_get_lost_in_it() -> None:
    """Who takes it for a socket is told, and does not lose anything."""
    shown = Readiness()
    shown.show(True, True)
    with pytest.raises(BrokenPipeError):
        os.write(shown.fileno(), b"into nowhere")
    assert os.read(shown.fileno(), 10) == b""
    shown.close()


# --- streams -------------------------------------------------------------------------------------


def test_a_quiet_connection_is_writable(pair: Pair) -> None:
    assert [ready(sock) for sock in pair] == ["w", "w"]


def test_it_is_readable_as_long_as_something_is_there(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"two")
    assert becomes(server, readable=True)
    server.recv(2)
    assert ready(server) == "rw"
    server.recv(2)
    assert ready(server) == "w"
    client.close()
    assert becomes(server, readable=True)
    server.recv(1)
    assert ready(server) == "rw", "the end stays"


def test_it_is_readable_where_the_descriptor_is_asked_for_late(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"early")
    assert server.recv(1, socket.MSG_PEEK)
    assert ready(server) == "rw"


def test_it_is_writable_while_there_is_room(pair: Pair) -> None:
    server, client = pair
    assert ready(client) == "w"
    client.setblocking(False)
    sent = 0
    while ready(client, 0.1):
        sent += client.send(bytes(1 << 18))
    got = 0
    while got < sent:
        got += len(server.recv(1 << 20))
    assert becomes(client, writable=True)


def test_a_reset_makes_it_both(pair: Pair) -> None:
    server, client = pair
    assert ready(server) == "w"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert becomes(server, readable=True)
    assert ready(server) == "rw"
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_a_listener_is_readable_while_somebody_waits(hosts: Hosts, listener: Socket) -> None:
    assert ready(listener) == ""
    clients = [hosts[1].sockets.create_connection((SERVER, 80), PATIENCE) for _ in range(2)]
    assert becomes(listener, readable=True)
    first, _ = listener.accept()
    assert ready(listener) in ("", "r")  # the second may be a moment behind
    second, _ = listener.accept()
    assert ready(listener) == ""
    for sock in (first, second, *clients):
        sock.close()


def test_a_descriptor_from_before_listening_stays(hosts: Hosts) -> None:
    with hosts[0].sockets.socket() as sock:
        number = sock.fileno()
        sock.bind((SERVER, 80))
        sock.listen()
        assert sock.fileno() == number
        assert ready(sock) == ""


def test_an_echo_server_with_selectors(hosts: Hosts, listener: Socket, in_thread: InThread) -> None:
    """One thread, twenty clients."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)

    def serve(left: int) -> None:
        while left:
            for key, _ in selector.select(PATIENCE):
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                sock: Any = key.fileobj
                text = sock.recv(100)
                if text:
                    sock.sendall(text.upper())
                else:
                    selector.unregister(sock)
                    sock.close()
                    left -= 1

    serving = in_thread(lambda: serve(20))
    clients = [hosts[1].sockets.create_connection((SERVER, 80), PATIENCE) for _ in range(20)]
    for turn in range(3):
        for number, client in enumerate(clients):
            client.sendall(f"turn {turn} of {number}".encode())
        for number, client in enumerate(clients):
            assert client.recv(100) == f"TURN {turn} OF {number}".encode()
    for client in clients:
        client.close()
    serving.result()
    selector.close()
