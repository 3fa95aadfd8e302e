"""The wire of a transcript, and its recording when the transcript fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transcripts.tcp_wire import Wire

OUT = Path(__file__).parent.parent / "out"
WIRE: pytest.StashKey[Wire] = pytest.StashKey()


@pytest.fixture(params=["express", "long way"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    """Every transcript is played twice: header prediction must change nothing but the cost."""
    wire = Wire(expressly=request.param == "express")
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
