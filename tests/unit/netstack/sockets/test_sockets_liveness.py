"""Whoever waits is woken, by every way in which what he waits for can end."""

from __future__ import annotations

import errno
import gc
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from appliance.netstack.sockets.facade import Socket
from tests.sim.two_hosts import PATIENCE, SERVER, LoopHost

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_by(sock: Socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def test_a_reset_is_an_error_and_not_the_end_of_the_text(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    reading = in_thread(lambda: server.recv(1))
    reset_by(client)
    with pytest.raises(ConnectionResetError):
        reading.result()
    assert server.recv(1) == b"", "told once, as the kernel does"
    with pytest.raises(BrokenPipeError):
        server.send(b"x")


def test_text_before_a_reset_is_still_read(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"last words")
    assert server.recv(5, socket.MSG_WAITALL | socket.MSG_PEEK) == b"last "
    reset_by(client)
    assert server.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_a_reset_wakes_who_waits_for_room(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    sending = in_thread(lambda: client.sendall(bytes(50 << 20)))
    assert server.recv(1)
    reset_by(server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sending.result()


def test_a_reset_after_the_peers_fin_wakes_who_waits_for_room(
    pair: Pair, in_thread: InThread
) -> None:
    server, client = pair
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    sending = in_thread(lambda: client.sendall(bytes(50 << 20)))
    assert server.recv(1)
    reset_by(server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sending.result()


def test_unread_text_makes_a_close_a_reset(pair: Pair) -> None:
    """RFC 9293 section 3.6.1: the peer learns that it was in vain."""
    server, client = pair
    client.sendall(b"you will not read this")
    assert server.recv(1, socket.MSG_PEEK)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_close_in_another_thread_wakes_the_reader(pair: Pair, in_thread: InThread) -> None:
    server, _ = pair
    reading = in_thread(lambda: server.recv(1))
    server.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        reading.result()


def test_a_close_in_another_thread_wakes_who_accepts(listener: Socket, in_thread: InThread) -> None:
    accepting = in_thread(listener.accept)
    listener.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        accepting.result()


def test_the_end_of_the_network_wakes_everybody(
    pair: Pair, hosts: Hosts, listener: Socket, in_thread: InThread
) -> None:
    server, _ = pair
    datagrams = hosts[0].sockets.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", 53))
    calls = (lambda: server.recv(1), listener.accept, lambda: datagrams.recv(1))
    waiting = [in_thread(call) for call in calls]
    hosts[0].link.close()
    for one in waiting:
        with pytest.raises(OSError) as caught:
            one.result()
        assert caught.value.errno == errno.ENETDOWN


def test_a_frame_that_is_poison_costs_nothing_but_itself(
    pair: Pair, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One exception must not end the loop."""
    server, client = pair
    driver = hosts[0].loop._driver
    receive, poisoned = driver.receive, threading.Event()

    def fail_once(frame: bytes, now: int) -> None:
        if not poisoned.is_set():
            poisoned.set()
            raise RuntimeError("a mistake of ours")
        receive(frame, now)

    monkeypatch.setattr(driver, "receive", fail_once)
    client.sendall(b"sent again after a while")
    assert server.recv(100) == b"sent again after a while"
    assert hosts[0].counters["loop.exception"] == 1
    hosts[0].counters["loop.exception"] = 0


def test_an_action_that_fails_costs_nothing_but_itself(pair: Pair, hosts: Hosts) -> None:
    server, client = pair

    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    hosts[0].loop.later(fail)
    client.sendall(b"still there")
    assert server.recv(100) == b"still there"
    assert hosts[0].counters["loop.exception"] == 1
    hosts[0].counters["loop.exception"] = 0


def test_a_socket_that_is_forgotten_is_closed(pair: Pair, hosts: Hosts, listener: Socket) -> None:
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    server, _ = listener.accept()
    del client
    gc.collect()
    assert server.recv(1) == b""
    server.close()


def test_lingering_waits_until_the_peer_has_everything(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    text = bytes(8 << 20)

    def send_and_close() -> None:
        client.sendall(text)
        client.close()

    sending = in_thread(send_and_close)
    got = 0
    while got < len(text):
        got += len(server.recv(1 << 20))
    sending.result()
    assert server.recv(1) == b""


def test_keepalive_ends_a_connection_whose_peer_has_vanished(pair: Pair, hosts: Hosts) -> None:
    server, _ = pair
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
    hosts[1].link.close()
    with pytest.raises(TimeoutError) as caught:
        server.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT, "not the timeout of the socket"
