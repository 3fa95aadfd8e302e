"""The same sockets over IPv6, and over both at once."""

from __future__ import annotations

import asyncio
import errno
import http.server
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SECOND
from appliance.netstack.sockets import installed
from tests.sim.two_hosts import CLIENT, CLIENT6, PATIENCE, SERVER, SERVER6, LoopHost, two_hosts

Hosts = tuple[LoopHost, LoopHost]
InThread = Callable[[Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def both() -> Iterator[Hosts]:
    """Two hosts that are sure of their addresses (RFC 4862 section 5.4: after a second)."""
    with two_hosts() as hosts:
        wait_for_addresses(hosts)
        yield hosts


def wait_for_addresses(hosts: Hosts) -> None:
    for host in hosts:
        addresses = host.stack.ip.addresses
        assert host.loop.until(lambda a=addresses: all(x.address in a for x in a), 10 * SECOND)  # type: ignore[misc]


def test_a_connection_over_ipv6(both: Hosts, in_thread: InThread) -> None:
    listener = both[0].sockets.create_server((SERVER6, 80), family=socket.AF_INET6)
    client = both[1].sockets.create_connection((SERVER6, 80), PATIENCE)
    server, address = listener.accept()
    assert address == client.getsockname()
    assert address[0] == CLIENT6
    assert server.getsockname() == (SERVER6, 80, 0, 0)
    sending = in_thread(lambda: client.sendall(bytes(3_000_000)))
    got = 0
    while got < 3_000_000:
        got += len(server.recv(1 << 20))
    sending.result()
    client.close()
    assert server.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        both[1].sockets.create_connection((SERVER6, 81), PATIENCE)
    with pytest.raises(OSError) as caught:
        both[1].sockets.create_connection(("fd01::1", 80), PATIENCE)
    assert caught.value.errno == errno.ENETUNREACH
    server.close()
    listener.close()


def test_one_listener_for_both_families(both: Hosts) -> None:
    listener = both[0].sockets.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    for there, seen in ((SERVER, f"::ffff:{CLIENT}"), (SERVER6, CLIENT6)):
        client = both[1].sockets.create_connection((there, 80), PATIENCE)
        server, address = listener.accept()
        assert address[0] == seen
        server.close()
        client.close()
    listener.close()


def test_a_listener_of_each_family_at_one_port(both: Hosts) -> None:
    four = both[0].sockets.create_server(("", 80))
    six = both[0].sockets.create_server(("", 80), family=socket.AF_INET6)
    for there, listener in ((SERVER, four), (SERVER6, six)):
        client = both[1].sockets.create_connection((there, 80), PATIENCE)
        server, _ = listener.accept()
        assert server.family == listener.family
        server.close()
        client.close()
    four.close()
    six.close()


def test_datagrams_over_ipv6(both: Hosts) -> None:
    server = both[0].sockets.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", 53))
    for there, kind in ((SERVER6, socket.AF_INET6), (SERVER, socket.AF_INET)):
        client = both[1].sockets.socket(kind, socket.SOCK_DGRAM)
        client.settimeout(PATIENCE)
        client.sendto(b"question", (there, 53))
        text, source = server.recvfrom(100)
        server.sendto(text[::-1], source)
        assert client.recvfrom(100) == (b"noitseuq", client_sees(there))
        client.close()
    server.close()


def client_sees(there: str) -> tuple[Any, ...]:
    return (there, 53, 0, 0) if ":" in there else (there, 53)


def test_http_over_ipv6(both: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"over IPv6")
    monkeypatch.chdir(tmp_path)

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with installed(both[0].sockets):
        server = Server(("::", 80), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with installed(both[1].sockets):
        answer = urllib.request.urlopen(f"http://[{SERVER6}]/file", timeout=PATIENCE)
        assert answer.read() == b"over IPv6"
        answer.close()
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE)


def test_asyncio_on_all_addresses(both: Hosts) -> None:
    """start_server without a host binds one socket for each family."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    async def main() -> None:
        with installed(both[0].sockets):
            server = await asyncio.start_server(echo, None, 7)
        assert len(server.sockets) == 2
        for there in (SERVER, SERVER6):
            with installed(both[1].sockets):
                reader, writer = await asyncio.open_connection(there, 7)
            writer.write(there.encode())
            assert await reader.read(100) == there.encode()
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
