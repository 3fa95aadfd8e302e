"""Floods of all kinds, while an honest client reads and writes: it gets on, and when the flood is
over it is as quick as before; memory is bounded, no thread has died, and counters tell of it.

In the ordinary run several kinds come at once, for seconds. `make flood SECONDS=60` has each kind
for itself, for as long as you like.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.hostile import resident_bytes, threads
from tests.interop.lab import NET6, SERVER, TOP, Appliance, Namespace, wait_until

pytestmark = pytest.mark.root

LONG: Final = "FLOOD_SECONDS" in os.environ
SECONDS: Final = float(os.environ.get("FLOOD_SECONDS", 5))
WARM_SECONDS: Final = 20 if LONG else 2
"""A flood before the one that is measured: tables, caches and the allocator get their size."""

CALM_SECONDS: Final = 2
RECOVERED: Final = 0.5
"""Of the throughput before. The machine may do other things by then, so it is looked at again and
again, but not for ever."""
RECOVERY_SECONDS: Final = 20
GROWS_MAX: Final = (12 if LONG else 32) << 20
"""Bytes. After a long flood the tables have their size, and a leak of a hundred bytes a frame would
be more; after a short one, replies that nobody reads may still be piling up to their limit."""
CONNECTIONS_GROW_MAX: Final = 48 << 20
"""With connections that nobody ends: the table of 4096 may be filling yet, with some 10 KB each."""

KINDS: Final = {
    "syn": "tcp.syn_cookies_sent|tcp.too_many_connections",
    "rst": "tcp.reset_outside_window|tcp.reset_to_listener",
    "ack": "tcp.outside_window|tcp.ack_too_old|tcp.ack_to_listener",
    "fragments": "ip.fragment_evicted",
    "arp": "arp.conflict",
    "ra": "nd.too_many_routers|nd.too_many_prefixes",
    "nd": "nd.answered|nd.unsolicited",
    "mld": "mld.query",
    "redirects": "nd.ignored",
    "fragments6": "ip.fragment_overlap|ip.fragment_condemned",
    "extensions": "icmpv6.rate_limited|ipv6.too_many_extensions",
    "half_open": "rpc.closed_idle",
    "tiny_windows": "nfs3.read",
    "slow_readers": "nfs3.read",
}
"""And the counters of which at least one tells of it, by the beginnings of their names."""

GROUPS: Final = [
    ("syn", "rst", "ack", "half_open"),
    ("fragments", "arp"),
    ("ra", "nd", "mld", "redirects", "fragments6", "extensions"),
    ("tiny_windows", "slow_readers"),
]

OVER_IPV6: Final = frozenset(GROUPS[2])
"""And so is the honest client's work then."""


class Honest:
    """flood_client.py, running."""

    def __init__(self, netns: Namespace, folder: Path, server: str) -> None:
        self._said = folder / "honest"
        self._stderr = folder / "honest-stderr"
        command = netns.command(sys.executable, "-m", "tests.interop.flood_client", server)
        with self._said.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(command, cwd=TOP, stdout=stdout, stderr=stderr)
        wait_until(lambda: len(self._lines()) > 1, 20)
        self.port = int(self._lines()[0])

    def _lines(self) -> list[bytes]:
        """Whole ones."""
        return self._said.read_bytes().split(b"\n")[:-1]

    def bytes_by(self, instant: float) -> int:
        """How many bytes it had moved by then."""
        assert self._process.poll() is None, self._stderr.read_text()
        for line in reversed(self._lines()[1:]):
            at, total = line.split()
            if float(at) <= instant:
                return int(total)
        return 0

    def moves(self, seconds: float) -> float:
        """Bytes a second, from now on."""
        start = time.monotonic()
        time.sleep(seconds)
        return (self.bytes_by(start + seconds) - self.bytes_by(start)) / seconds

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(appliance: StartAppliance) -> Appliance:
    """It heeds what routers say, too."""
    return appliance("--memory", "64M", "--ip", NET6.host(5), "--ip", "slaac", pcap=False)


@pytest.fixture
def address(netns: Namespace, kinds: tuple[str, ...]) -> str:
    """Where clients find the server."""
    netns.add_ipv6()
    return NET6.host(5) if OVER_IPV6.issuperset(kinds) else SERVER


@pytest.fixture
def honest(server: Appliance, netns: Namespace, tmp_path: Path, address: str) -> Iterator[Honest]:
    client = Honest(netns, tmp_path, address)
    yield client
    client.close()


def flood(server: Appliance, port: int, kinds: tuple[str, ...], seconds: float) -> dict[str, int]:
    """What was sent, of each kind."""
    words = ("-m", "tests.interop.flooder", str(seconds), str(port), *kinds)
    said = subprocess.run(
        server.netns.command(sys.executable, *words),
        cwd=TOP,
        check=True,
        stdout=subprocess.PIPE,
        timeout=seconds + 60,
    ).stdout
    sent: dict[str, int] = json.loads(said.splitlines()[-1])
    return sent


def told(counters: dict[str, int], names: str) -> int:
    pattern = re.compile(names.replace(".", r"\."))
    return sum(count for name, count in counters.items() if pattern.match(name))


@pytest.mark.parametrize(
    "kinds", [(kind,) for kind in KINDS] if LONG else GROUPS, ids=lambda kinds: "-".join(kinds)
)
def test_a_flood_passes(
    server: Appliance, honest: Honest, netns: Namespace, address: str, kinds: tuple[str, ...]
) -> None:
    names = threads(server)
    before = honest.moves(CALM_SECONDS)
    flood(server, honest.port, kinds, WARM_SECONDS)
    memory, start = resident_bytes(server), time.monotonic()
    sent = flood(server, honest.port, kinds, SECONDS)
    assert all(sent.values()), sent
    assert honest.bytes_by(time.monotonic()) > honest.bytes_by(start), "it got on meanwhile"
    grown = resident_bytes(server) - memory

    rates: list[float] = []

    def recovered() -> bool:
        rates.append(honest.moves(1))
        return rates[-1] > RECOVERED * before

    try:
        wait_until(recovered, RECOVERY_SECONDS)
    except AssertionError:
        pytest.fail(f"{before:.0f} bytes/s before, {rates} after")
    assert_new_clients_are_served(netns, address)
    counters = server.counters()
    print(kinds, sent, "grown", grown, "before", before, "after", rates, counters)
    silent = [kind for kind in kinds if not told(counters, KINDS[kind])]
    assert not silent, counters
    assert "machine.exception" not in counters
    assert threads(server) == names
    assert grown < (CONNECTIONS_GROW_MAX if "half_open" in kinds else GROWS_MAX)


def assert_new_clients_are_served(netns: Namespace, address: str) -> None:
    """Their own connections, not one from before."""
    words = (sys.executable, "-m", "tests.interop.wire_client", address, "100")
    assert "bytes" in netns.run(*words, timeout=90)
