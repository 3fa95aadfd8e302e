"""Programs of the standard library that know nothing of the stack: the server on one host, the
client on the other."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import os
import select
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.netstack.sockets import installed
from appliance.netstack.sockets.facade import Socket
from appliance.netstack.sockets.tls import TlsSocket
from tests.sim.two_hosts import CLIENT, PATIENCE, SERVER, LoopHost

Pair = tuple[Socket, Socket]
Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]

FILE = bytes(range(256)) * 20_000


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says back what is posted; not on stderr."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[::-1])


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_bytes(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- HTTP ------------------------------------------------------------


def test_http_server_and_urllib(hosts: Hosts, folder: Path) -> None:
    with installed(hosts[0].sockets):
        server = http.server.ThreadingHTTPServer(("", 80), Handler)
    with serving(server), installed(hosts[1].sockets):
        for url in (f"http://{SERVER}/file", "http://server.test/file"):
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                assert answer.read() == FILE
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{SERVER}/nothing", timeout=PATIENCE)
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(f"http://{SERVER}:81/", timeout=PATIENCE)
        with pytest.raises(urllib.error.URLError, match="Name or service"):
            urllib.request.urlopen("http://example.com/", timeout=PATIENCE)


def test_many_clients_at_once(hosts: Hosts, folder: Path, in_thread: InThread) -> None:
    with installed(hosts[0].sockets):
        server = http.server.ThreadingHTTPServer(("", 80), Handler)

    def fetch() -> bool:
        with urllib.request.urlopen(f"http://{SERVER}/file", timeout=PATIENCE) as answer:
            return bool(answer.read() == FILE)

    with serving(server), installed(hosts[1].sockets):
        assert all(task.result() for task in [in_thread(fetch) for _ in range(10)])


def test_one_connection_for_many_requests(hosts: Hosts, folder: Path) -> None:
    with installed(hosts[0].sockets):
        server = http.server.ThreadingHTTPServer(("", 80), Handler)
    with serving(server), installed(hosts[1].sockets):
        client = http.client.HTTPConnection(SERVER, timeout=PATIENCE)
        client.request("GET", "/file")
        assert client.getresponse().read() == FILE
        first = client.sock
        for size in (0, 1, 100_000):
            client.request("POST", "/", body=bytes(range(100)) * (size // 100))
            assert client.getresponse().read() == (bytes(range(100)) * (size // 100))[::-1]
        assert client.sock is first
        client.close()


def test_xmlrpc(hosts: Hosts) -> None:
    with installed(hosts[0].sockets):
        server = xmlrpc.server.SimpleXMLRPCServer((SERVER, 8000), logRequests=False)
    server.register_function(lambda base, power: base**power, "pow")
    with (
        serving(server),
        installed(hosts[1].sockets),
        xmlrpc.client.ServerProxy("http://server.test:8000/") as proxy,
    ):
        assert proxy.pow(2, 20) == 1 << 20


# --- socketserver ------------------------------------------------------------


class UpperLines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagrams(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


def test_socketserver_streams(hosts: Hosts) -> None:
    with installed(hosts[0].sockets):
        server = socketserver.ThreadingTCPServer((SERVER, 7), UpperLines)
    server.daemon_threads = True
    with (
        serving(server),
        installed(hosts[1].sockets),
        socket.create_connection((SERVER, 7), PATIENCE) as sock,
        sock.makefile("rw", encoding="ascii") as lines,
    ):
        for word in ("one", "two"):
            print(word, file=lines, flush=True)
            assert lines.readline() == word.upper() + "\n"


def test_socketserver_datagrams(hosts: Hosts) -> None:
    with installed(hosts[0].sockets):
        server = socketserver.ThreadingUDPServer((SERVER, 7), UpperDatagrams)
    with (
        serving(server),
        installed(hosts[1].sockets),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.sendto(b"word", (SERVER, 7))
        assert sock.recvfrom(100) == (b"WORD", (SERVER, 7))


# --- TLS ------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of server.test, signed by itself; with its key."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=server.test",
            "-addext", f"subjectAltName=DNS:server.test,IP:{SERVER}",
            "-keyout", folder / "key", "-out", folder / "certificate",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    both = folder / "both"
    both.write_bytes((folder / "certificate").read_bytes() + (folder / "key").read_bytes())
    return both


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["echo"])
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["echo"])
    return context


def test_https(hosts: Hosts, folder: Path, certificate: Path) -> None:
    with installed(hosts[0].sockets):
        server = http.server.ThreadingHTTPServer(("", 443), Handler)
        server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
    context = client_context(certificate)
    with serving(server), installed(hosts[1].sockets):
        for url in ("https://server.test/file", f"https://{SERVER}/file"):
            with urllib.request.urlopen(url, timeout=PATIENCE, context=context) as answer:
                assert answer.read() == FILE


def test_a_certificate_that_is_not_trusted(hosts: Hosts, folder: Path, certificate: Path) -> None:
    with installed(hosts[0].sockets):
        server = http.server.ThreadingHTTPServer(("", 443), Handler)
        context = server_context(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    with (
        serving(server),
        installed(hosts[1].sockets),
        pytest.raises(urllib.error.URLError, match="certificate verify failed"),
    ):
        urllib.request.urlopen("https://server.test/file", timeout=PATIENCE)


def test_tls_by_hand(pair: Pair, certificate: Path, in_thread: InThread) -> None:
    """wrap_socket, both ways, until both have said goodbye, and on in the clear."""
    server, client = pair
    contexts = server_context(certificate), client_context(certificate)
    for context in contexts:
        context.sslsocket_class = TlsSocket  # type: ignore[assignment]

    def serve() -> Any:
        tls: Any = contexts[0].wrap_socket(server, server_side=True)  # type: ignore[arg-type]
        text = tls.recv(100)
        tls.sendall(text.upper())
        return tls

    answering = in_thread(serve)
    tls: Any = contexts[1].wrap_socket(client, server_hostname="server.test")  # type: ignore[arg-type]
    assert client.fileno() == -1, "it was used up"
    tls.sendall(b"secret")
    assert tls.recv(2) == b"SE"
    assert tls.pending() == 4
    buffer = bytearray(10)
    assert tls.recv_into(buffer) == 4
    assert buffer[:4] == b"CRET"
    assert tls.version() == "TLSv1.3"
    assert tls.selected_alpn_protocol() == "echo"
    assert tls.getpeercert()["subject"] == ((("commonName", "server.test"),),)
    assert tls.cipher()[2] >= 128
    with pytest.raises(ValueError, match="not allowed"):
        tls.sendto(b"x", (SERVER, 443))
    other = answering.result()
    leaving = in_thread(other.unwrap)
    plain = tls.unwrap()
    there = leaving.result()
    plain.sendall(b"in the clear")
    assert there.recv(100) == b"in the clear"
    plain.close()
    there.close()


def test_tls_leaves_what_was_not_read_in_the_socket(
    pair: Pair, certificate: Path, in_thread: InThread
) -> None:
    """So poll sees it, record by record."""
    server, client = pair
    contexts = server_context(certificate), client_context(certificate)
    for context in contexts:
        context.sslsocket_class = TlsSocket  # type: ignore[assignment]
    shaking = in_thread(lambda: contexts[0].wrap_socket(server, server_side=True))  # type: ignore[arg-type]
    tls: Any = contexts[1].wrap_socket(client, server_hostname="server.test")  # type: ignore[arg-type]
    other = shaking.result()
    tls.sendall(b"first")
    tls.sendall(b"second")
    for text in (b"first", b"second"):
        assert select.select([other], [], [], PATIENCE)[0]
        assert other.recv(100) == text
    other.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        other.recv(1)
    other.sendall(b"read, with the session tickets before it, so that the close is no reset")
    assert tls.recv(4) == b"read"
    tls.close()
    assert select.select([other], [], [], PATIENCE)[0]
    assert other.recv(1) == b"", "a ragged end is an end"
    other.close()


def test_megabytes_over_tls(pair: Pair, certificate: Path, in_thread: InThread) -> None:
    server, client = pair
    contexts = server_context(certificate), client_context(certificate)
    for context in contexts:
        context.sslsocket_class = TlsSocket  # type: ignore[assignment]
    shaking = in_thread(lambda: contexts[0].wrap_socket(server, server_side=True))  # type: ignore[arg-type]
    tls: Any = contexts[1].wrap_socket(client, server_hostname="server.test")  # type: ignore[arg-type]
    other = shaking.result()
    sending = in_thread(lambda: other.sendall(FILE))
    got = bytearray()
    while len(got) < len(FILE):
        got += tls.recv(1 << 16)
    assert got == FILE
    sending.result()
    tls.close()
    other.close()


# --- asyncio ------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while text := await reader.read(1 << 16):
        writer.write(text)
        await writer.drain()
    writer.close()


async def ask(where: str, port: int, text: bytes, **how: Any) -> bytes:
    reader, writer = await asyncio.open_connection(where, port, **how)
    sending = asyncio.create_task(drained(writer, text))
    answer = await reader.readexactly(len(text))
    await sending
    writer.close()
    await writer.wait_closed()
    return answer


async def drained(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    await writer.drain()


def test_asyncio_streams(hosts: Hosts) -> None:
    async def main() -> None:
        with installed(hosts[0].sockets):
            server = await asyncio.start_server(echo, SERVER, 7)
        assert server.sockets[0].getsockname() == (SERVER, 7)
        with installed(hosts[1].sockets):
            texts = [os.urandom(1 + 100_000 * number) for number in range(8)]
            answers = await asyncio.gather(*(ask(SERVER, 7, text) for text in texts))
            assert answers == texts
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(SERVER, 9)
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_asyncio_with_tls(hosts: Hosts, certificate: Path) -> None:
    async def main() -> None:
        with installed(hosts[0].sockets):
            server = await asyncio.start_server(echo, SERVER, 7, ssl=server_context(certificate))
        with installed(hosts[1].sockets):
            how = {"ssl": client_context(certificate), "server_hostname": "server.test"}
            assert await ask(SERVER, 7, FILE, **how) == FILE
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_asyncio_socket_calls(hosts: Hosts) -> None:
    """sock_accept, sock_connect, sock_sendall, sock_recv, sock_recv_into, sock_sendfile."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with installed(hosts[0].sockets):
            listener = socket.create_server((SERVER, 7))
        with installed(hosts[1].sockets):
            client = socket.socket()
        for sock in (listener, client):
            sock.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listener))
        await loop.sock_connect(client, (SERVER, 7))
        server, address = await accepting
        assert address[0] == CLIENT
        sending = asyncio.create_task(loop.sock_sendall(client, FILE))
        got = bytearray()
        while len(got) < len(FILE):
            got += await loop.sock_recv(server, 1 << 16)
        await sending
        assert got == FILE
        with tempfile.TemporaryFile() as file:
            file.write(FILE)
            file.flush()
            file.seek(0)
            sending_file = asyncio.create_task(loop.sock_sendfile(server, file))
            buffer, count = bytearray(1 << 16), 0
            while count < len(FILE):
                count += await loop.sock_recv_into(client, buffer)
            assert await sending_file == len(FILE)
        for sock in (listener, client, server):
            sock.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


class UpperProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data.upper(), addr)


class OneAnswer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answer.set_result(data)


def test_asyncio_datagrams(hosts: Hosts) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with installed(hosts[0].sockets):
            here, _ = await loop.create_datagram_endpoint(UpperProtocol, (SERVER, 53))
        with installed(hosts[1].sockets):
            there, protocol = await loop.create_datagram_endpoint(
                OneAnswer, remote_addr=(SERVER, 53)
            )
        there.sendto(b"word")
        assert await protocol.answer == b"WORD"
        here.close()
        there.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
