"""Two hosts with sockets, and threads that must not be left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.netstack.sockets.facade import Socket
from tests.sim.two_hosts import PATIENCE, SERVER, LoopHost, two_hosts

Hosts = tuple[LoopHost, LoopHost]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as both:
        yield both


@pytest.fixture
def listener(hosts: Hosts) -> Iterator[Socket]:
    """On port 80 of the server."""
    with hosts[0].sockets.create_server((SERVER, 80)) as made:
        made.settimeout(PATIENCE)
        yield made


@pytest.fixture
def pair(hosts: Hosts, listener: Socket) -> Iterator[tuple[Socket, Socket]]:
    """Both ends of a connection: the server's and the client's."""
    client = hosts[1].sockets.create_connection((SERVER, 80), PATIENCE)
    server, _ = listener.accept()
    server.settimeout(PATIENCE)
    with server, client:
        yield server, client


class Task(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:  # noqa: BLE001 - it is raised again in `result`
            self._error = error

    def result(self) -> Any:
        """What it gave, or raise what it raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "it waits for ever"
        if self._error is not None:
            raise self._error
        return self._result


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Task]:
    return Task
