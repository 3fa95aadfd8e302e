"""Fixtures for tests with real clients: see lab.py for what is where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.lab import SERVER, Appliance, GuestRun, Namespace


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """A network namespace of the test's own."""
    namespace = Namespace()
    yield namespace
    namespace.remove()


StartAppliance = Callable[..., Appliance]


@pytest.fixture
def appliance(netns: Namespace, tmp_path: Path) -> Iterator[StartAppliance]:
    """Starts rumpnfsd on the bridge: `appliance("--memory", "64M")`. After the test it is stopped,
    has to end in order, and tshark judges what it sent (pcap=False: a test that sends too much)."""
    started: list[Appliance] = []

    def start(
        *words: str | Path,
        pcap: bool = True,
        mtu: int = 1500,
        tap: str = "tap0",
        ip: str = SERVER,
    ) -> Appliance:
        netns.add_tap(tap, mtu)
        words = ("--no-host-ip", *words)
        started.append(Appliance(netns, tmp_path, *words, pcap=pcap, tap=tap, ip=ip))
        return started[-1]

    yield start
    for one in started:
        one.stop()
        one.judge()


StartGuest = Callable[..., GuestRun]


@pytest.fixture
def start_guest(netns: Namespace, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts a script in the Linux guest: `start_guest("mount ...; echo here")`."""
    started: list[GuestRun] = []

    def start(script: str, timeout: float = 120) -> GuestRun:
        started.append(GuestRun(netns, tmp_path, script, timeout))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def guest(start_guest: StartGuest) -> Callable[..., str]:
    """Runs a script in the Linux guest to its end: what it printed. It has to end well."""

    def finish(script: str, timeout: float = 120) -> str:
        return start_guest(script, timeout).finish()

    return finish
