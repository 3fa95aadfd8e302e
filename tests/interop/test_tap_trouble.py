"""Trouble with the interface, while a client works: the process goes on, and when the interface is
back, the client gets everything it has asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.hostile import processor_seconds
from tests.interop.lab import SERVER, TOP, Appliance, Namespace, wait_until

pytestmark = pytest.mark.root

DOWN_SECONDS = 0.4


class Client:
    """wire_client.py, running: 6 MB each way, byte by byte compared."""

    def __init__(self, netns: Namespace) -> None:
        words = (sys.executable, "-m", "tests.interop.wire_client", SERVER, "6000")
        self._process = subprocess.Popen(
            netns.command(*words),
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> None:
        said, _ = self._process.communicate(timeout=90)
        assert self._process.returncode == 0, said.decode()
        assert json.loads(said)["bytes"] == 6_144_000

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def server(appliance: StartAppliance) -> Appliance:
    """On a slow wire, so that there is time for trouble while the client works."""
    slow = ("--fault", "rate=40mbit,queue=1M,delay=2ms")
    return appliance("--memory", "64M", *slow, pcap=False)


@pytest.fixture
def client(server: Appliance, netns: Namespace) -> Iterator[Client]:
    made = Client(netns)
    wait_until(lambda: server.counters().get("nfs3.write", 0) > 3)
    yield made
    made.close()


def test_an_interface_that_goes_down_and_up_under_a_client(
    server: Appliance, netns: Namespace, client: Client
) -> None:
    for _ in range(3):
        netns.ip("link set tap0 down")
        time.sleep(DOWN_SECONDS)
        assert client.is_running, "it has waited"
        netns.ip("link set tap0 up")
        time.sleep(DOWN_SECONDS)
    client.finish()
    assert server.said().count("tap send failed name=tap0 error=Input/output error") == 1


def test_an_interface_that_is_deleted_and_made_again_under_a_client(
    server: Appliance, netns: Namespace, client: Client
) -> None:
    for number in (1, 2):
        netns.ip("link delete tap0")
        used = processor_seconds(server)
        time.sleep(1)
        assert processor_seconds(server) - used < 0.5, "it does not spin"
        assert server.process.poll() is None and client.is_running
        netns.add_tap("tap0")
        wait_until(lambda n=number: server.said().count("tap attached again") == n)  # type: ignore[misc]
    client.finish()
    server.stop()
    shown = json.loads(netns.ip("-json -details link show dev tap0"))
    assert shown[0]["linkinfo"]["info_data"]["persist"], "it is left as it was found"


def test_a_deleted_interface_does_not_keep_it_from_stopping(
    server: Appliance, netns: Namespace
) -> None:
    netns.ip("link delete tap0")
    wait_until(lambda: "tap receive failed" in server.said())
    server.stop()
