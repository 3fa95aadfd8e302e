"""The wire of a transcript, and its recording when the transcript fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.netstack.tcp import host
from tests.transcripts.tcp_wire import IPV4, IPV6, Wire

OUT = Path(__file__).parent.parent / "out"
WIRE: pytest.StashKey[Wire] = pytest.StashKey()


LANES = ("express", "long way", "IPv6")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every transcript is played three times: the express lane must change nothing but the cost,
    in (header prediction) and out, and the family of the addresses nothing that TCP does.
    `@pytest.mark.lanes`: only on these."""
    if "wire" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("lanes")
        lanes = LANES if only is None else only.args
        assert set(lanes) <= set(LANES)
        metafunc.parametrize("wire", lanes, indirect=True)


@pytest.fixture
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire of one lane."""
    if request.param == "long way":
        monkeypatch.setattr(host, "send_alone", lambda _connection, _now: False)
    family = IPV6 if request.param == "IPv6" else IPV4
    wire = Wire(expressly=request.param != "long way", family=family)
    request.node.stash[WIRE] = wire
    yield wire
    if not request.node.stash.get(FAILED, False):
        wire.quiet()


FAILED: pytest.StashKey[bool] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        wire = item.stash.get(WIRE, None)
        if wire is not None:
            name = item.name.replace(" ", "-").replace("/", "-")
            wire.write_pcap(OUT / f"{name}.pcap")
            report.sections.append(("packets", f"tests/out/{name}.pcap"))
    return report
