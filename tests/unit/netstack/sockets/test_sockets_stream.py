"""TCP sockets on the stack: text both ways, the end, timeouts, flags, and back-pressure."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest

from appliance.clock import SECOND
from appliance.netstack.sockets.facade import Socket
from appliance.netstack.sockets.options import Options
from appliance.netstack.sockets.stream import Stream
from appliance.netstack.wire.tcp import ACK
from tests.sim.two_hosts import CLIENT, PATIENCE, SERVER, LoopHost
from tests.transcripts.tcp_wire import Wire

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]


def read_all(sock: Socket) -> bytes:
    """Until the peer has sent everything."""
    text = bytearray()
    while piece := sock.recv(100_000):
        text += piece
    return bytes(text)


def read_count(sock: Socket, count: int) -> bytes:
    text = bytearray()
    while len(text) < count:
        piece = sock.recv(count - len(text))
        assert piece, "that was all"
        text += piece
    return bytes(text)


# --- text ------------------------------------------------------------------------------------


def test_text_goes_both_ways_until_the_end(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"ping")
    assert server.recv(100) == b"ping"
    server.sendall(b"pong")
    server.close()
    assert read_all(client) == b"pong"
    assert client.recv(1) == b"", "and it stays the end"


def test_addresses_of_both_ends(pair: Pair) -> None:
    server, client = pair
    assert server.getsockname() == client.getpeername() == (SERVER, 80)
    assert server.getpeername() == client.getsockname()
    assert client.getsockname()[0] == CLIENT
    assert client.getsockname()[1] >= 49152


def test_one_direction_ends_before_the_other(pair: Pair) -> None:
    """shutdown(SHUT_WR): the peer's text still arrives."""
    server, client = pair
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        client.send(b"more")
    assert read_all(server) == b"question"
    server.sendall(b"answer")
    server.close()
    assert read_all(client) == b"answer"


def test_nothing_is_read_after_shutdown_of_reading(pair: Pair) -> None:
    server, client = pair
    client.shutdown(socket.SHUT_RD)
    server.sendall(b"unwanted")
    assert client.recv(10) == b""
    client.sendall(b"still writing")
    assert server.recv(100) == b"still writing"


def test_megabytes_arrive_as_they_were_sent(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    sent = random.Random(1).randbytes(12_000_000)
    sending = in_thread(lambda: client.sendall(sent))
    got = read_count(server, len(sent))
    sending.result()
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()


def test_what_the_program_changes_afterwards_is_not_sent(pair: Pair) -> None:
    """Only bytes are kept by reference."""
    server, client = pair
    mine = bytearray(b"A" * 200_000)
    client.sendall(mine)
    mine[:] = b"B" * len(mine)
    assert read_count(server, len(mine)) == b"A" * len(mine)


def test_several_buffers_are_sent_and_received_as_one_text(pair: Pair) -> None:
    server, client = pair
    assert client.sendmsg([b"one ", bytearray(b"two "), memoryview(b"three")]) == 13
    first, second = bytearray(5), bytearray(20)
    count, ancillary, flags, source = server.recvmsg_into([first, second])
    assert (count, ancillary, flags, source) == (13, [], 0, None)
    assert first + second[:8] == b"one two three"


def test_receiving_into_a_buffer(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"0123456789")
    buffer = bytearray(8)
    assert server.recv_into(buffer, 4) == 4
    assert server.recv_into(memoryview(buffer)[4:]) == 4
    assert buffer == b"01234567"
    assert server.recv(10) == b"89"
    with pytest.raises(ValueError, match="too small"):
        server.recv_into(buffer, 9)


def test_files_of_a_socket(pair: Pair) -> None:
    server, client = pair
    with client.makefile("w", encoding="utf-8", newline="\n") as out:
        print("first line", file=out)
        print("zweite Zeile: ü", file=out)
    with server.makefile("r", encoding="utf-8") as lines:
        assert lines.readline() == "first line\n"
        assert lines.readline() == "zweite Zeile: ü\n"


def test_a_socket_lives_as_long_as_its_files(pair: Pair) -> None:
    server, client = pair
    file = client.makefile("rb")
    client.close()
    server.sendall(b"late")
    server.close()
    assert file.read() == b"late"
    file.close()
    assert client.fileno() == -1


def test_a_file_is_sent(pair: Pair) -> None:
    server, client = pair
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 1000)
        assert client.sendfile(file, offset=5, count=9000) == 9000
    assert read_count(server, 9000) == (b"0123456789" * 1000)[5:9005]


# --- flags -----------------------------------------------------------------------------------


def test_peeking_leaves_the_text_there(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"look")
    assert server.recv(2, socket.MSG_PEEK) == b"lo"
    buffer = bytearray(10)
    assert server.recv_into(buffer, 0, socket.MSG_PEEK) == 4
    assert server.recv(10) == b"look"


def test_waiting_for_all(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    reading = in_thread(lambda: server.recv(10, socket.MSG_WAITALL))
    for digit in b"0123456789":
        client.send(bytes((digit,)))
    assert reading.result() == b"0123456789"
    client.sendall(b"short")
    client.close()
    assert server.recv(10, socket.MSG_WAITALL) == b"short", "no more will come"


def test_a_single_call_may_not_wait(pair: Pair) -> None:
    server, _ = pair
    with pytest.raises(BlockingIOError):
        server.recv(1, socket.MSG_DONTWAIT)


def test_urgent_data_comes_in_line(pair: Pair) -> None:
    """RFC 6093 section 6, as with SO_OOBINLINE; the connection knows how far it goes."""
    server, client = pair
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    assert isinstance(server.endpoint, Stream)
    connection = server.endpoint.connection
    assert connection is not None
    connection.on_urgent = lambda c: told.append(c.urgent_bytes)
    told: list[int] = []
    client.send(b"in line ")
    assert server.recv(100) == b"in line "
    assert client.send(b"and urgent", socket.MSG_OOB) == 10
    assert server.recv(100) == b"and urgent"
    client.sendall(b"!", socket.MSG_OOB)
    assert server.recv(100) == b"!"
    assert told == [10, 1]


def test_what_there_is_not_is_refused(pair: Pair) -> None:
    server, client = pair
    with pytest.raises(OSError, match="not supported"):
        client.send(b"!", socket.MSG_CONFIRM)
    with pytest.raises(OSError, match="Invalid"):
        server.recv(1, socket.MSG_OOB)
    with pytest.raises(ValueError, match="negative"):
        server.recv(-1)
    with pytest.raises(OSError, match="Invalid"):
        client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0\0\0\0")])


# --- waiting -----------------------------------------------------------------------------------


def test_patience_has_an_end(pair: Pair, listener: Socket) -> None:
    server, _ = pair
    for sock in (server, listener):
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(1) if sock is server else sock.accept()
        assert sock.gettimeout() == 0.02


def test_who_does_not_want_to_wait_is_told(pair: Pair, listener: Socket) -> None:
    server, _ = pair
    for sock in (server, listener):
        sock.setblocking(False)
        assert not sock.getblocking()
        with pytest.raises(BlockingIOError):
            sock.recv(1) if sock is server else sock.accept()


def test_text_that_comes_later_ends_the_wait(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    reading = in_thread(lambda: server.recv(10))
    client.send(b"at last")
    assert reading.result() == b"at last"


def test_a_reader_that_does_not_read_holds_up_the_sender(pair: Pair, hosts: Hosts) -> None:
    """The windows close, and nothing grows without bound; then everything arrives."""
    server, client = pair
    text, sent = random.Random(2).randbytes(1 << 20), 0
    client.settimeout(0.3)
    while sent < 100 * len(text):
        try:
            sent += client.send(text[sent % len(text) :])
        except TimeoutError:
            break
    assert len(text) <= sent < 10 * len(text)
    client.settimeout(PATIENCE)
    assert read_count(server, sent) == (text * 10)[:sent]
    client.sendall(b"the end")
    client.close()
    assert read_all(server) == b"the end"


def test_who_waits_for_room_goes_on_when_there_is_some(pair: Pair, in_thread: InThread) -> None:
    server, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    text = random.Random(3).randbytes(6 << 20)
    sending = in_thread(lambda: client.sendall(text))
    assert read_count(server, len(text)) == text
    sending.result()


class Stub:
    """A runner and a connection at once, of which a test says how much is unacknowledged."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.unsent_bytes = 0
        self.crowded = False
        self.woken = 0

    def acted(self) -> None:
        pass

    def wake(self, action: Callable[[], None]) -> None:
        with self.lock:
            action()
        self.woken += 1


def test_who_wants_little_is_woken_when_there_is_room_for_it() -> None:
    """Not only when half of the buffer is free: the peer may never read so much."""
    stub: Any = Stub()
    stream = Stream(stub, Options(send_bytes=100_000))
    stream.connection = stub
    stub.unsent_bytes = 90_000
    assert stream.put([memoryview(bytes(20_000))]) is None
    assert stub.crowded, "the connection is to say when something was acknowledged"
    for unsent, woken in ((85_000, 0), (80_000, 1)):
        stub.crowded, stub.unsent_bytes = False, unsent
        stream.room_again(stub)
        assert stub.woken == woken
        assert stub.crowded, "poll wants to hear of half of the buffer, too"
    stub.unsent_bytes = 40_000
    stub.crowded = False
    stream.room_again(stub)
    assert not stub.crowded


def test_who_reads_a_little_at_a_time_opens_no_silly_window() -> None:
    """RFC 9293 section 3.8.6.2.2, MUST-39: a window that was closed opens by a segment at least,
    however little of what waits is read at once."""
    wire = Wire().host(receive_bytes=16_384).established()
    runner: Any = Stub()
    stream = Stream(runner, Options(receive_bytes=4096))
    wire.user.user = stream
    stream.adopt(wire.user)
    sent = 0
    while room := wire.user.rcv.window:
        size = min(room, 500)
        wire.peer(ACK, seq=1 + sent, ack=1, text=bytes(size)).after(SECOND).ignore()
        sent += size
    assert stream.waiting_bytes < sent, "the rest waits in the connection, and keeps it closed"
    edge, opened = wire.user.rcv.edge, []
    for _ in range(sent // 64):
        stream.take(64)
        wire.flush()
        while wire.path.sent:
            wire.ours(ACK, seq=1, ack=1 + sent)
        if wire.user.rcv.edge != edge:
            opened.append(wire.user.rcv.edge - edge)
            edge = wire.user.rcv.edge
    assert sum(opened) > sent // 2
    assert min(opened) >= 1460


# --- states --------------------------------------------------------------------------------------


def test_a_socket_that_is_not_connected(hosts: Hosts) -> None:
    with hosts[1].sockets.socket() as sock:
        for call in (lambda: sock.recv(1), sock.getpeername, lambda: sock.shutdown(2)):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
        with pytest.raises(OSError, match="Invalid"):
            sock.accept()
        assert sock.getsockname() == ("0.0.0.0", 0)


def test_a_closed_socket(pair: Pair) -> None:
    _, client = pair
    client.close()
    client.close()
    assert client.fileno() == -1
    for call in (lambda: client.recv(1), lambda: client.send(b"x"), client.getsockname):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    assert "closed" in repr(client)


def test_a_detached_socket_is_made_a_socket_again(pair: Pair, hosts: Hosts) -> None:
    server, client = pair
    number = client.detach()
    assert number > 0
    assert client.fileno() == -1
    client.close()
    again = hosts[1].sockets.socket(fileno=number)
    again.sendall(b"still here")
    assert server.recv(100) == b"still here"
    assert again.getpeername() == (SERVER, 80)
    again.close()
    assert server.recv(1) == b""


def test_sockets_of_other_families_are_the_operating_systems(hosts: Hosts) -> None:
    local = hosts[0].sockets.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    assert isinstance(local, socket.socket)
    local.close()
    with pytest.raises(PermissionError):
        hosts[0].sockets.socket(socket.AF_INET, socket.SOCK_RAW)
