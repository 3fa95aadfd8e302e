"""rpcinfo(8), showmount(8) and ping(8) find what they look for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import HOST, SERVER, Namespace

pytestmark = pytest.mark.root

PROGRAMS = [
    (100000, 2),
    (100000, 3),
    (100000, 4),
    (100003, 3),
    (100005, 1),
    (100005, 2),
    (100005, 3),
]
PORTS = {100000: 111, 100003: 2049, 100005: 20048}


def test_ping_is_answered(appliance: StartAppliance, netns: Namespace) -> None:
    appliance("--memory", "16M")
    said = netns.run("ping", "-c", "3", "-i", "0.2", "-s", "1400", "-W", "1", SERVER)
    assert "3 received, 0% packet loss" in said
    said = netns.run("ping", "-c", "1", "-s", "6000", "-W", "1", SERVER)
    assert "1 received" in said


def test_rpcinfo_lists_every_program(appliance: StartAppliance, netns: Namespace) -> None:
    appliance("--memory", "16M")
    said = netns.run("rpcinfo", "-p", SERVER)
    listed = {
        (int(program), int(version), protocol, int(port))
        for program, version, protocol, port in re.findall(
            r"^ +(\d+) +(\d+) +(tcp|udp) +(\d+)", said, re.MULTILINE
        )
    }
    wanted = {
        (program, version, protocol, PORTS[program])
        for program, version in PROGRAMS
        for protocol in ("tcp", "udp")
    }
    assert listed == wanted
    short = netns.run("rpcinfo", "-s", SERVER)
    assert re.search(r"100005 +3,2,1 +", short)


def test_every_program_is_ready_and_waiting(appliance: StartAppliance, netns: Namespace) -> None:
    appliance("--memory", "16M")
    for program, version in PROGRAMS:
        for protocol in ("tcp", "udp"):
            said = netns.run("rpcinfo", "-T", protocol, SERVER, str(program), str(version))
            assert f"program {program} version {version} ready and waiting" in said


@pytest.mark.parametrize(
    ("program", "low", "high"), [(100000, 2, 4), (100003, 3, 3), (100005, 1, 3)]
)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_wrong_version_is_answered_with_the_right_ones(
    appliance: StartAppliance, netns: Namespace, program: int, low: int, high: int, protocol: str
) -> None:
    appliance("--memory", "16M")
    said = netns.run("rpcinfo", "-T", protocol, SERVER, str(program), "9", expect=None)
    assert f"low version = {low}, high version = {high}" in said
    assert f"program {program} version 9 is not available" in said


def test_a_program_that_is_not_there_is_said_to_be_so(
    appliance: StartAppliance, netns: Namespace
) -> None:
    appliance("--memory", "16M")
    said = netns.run("rpcinfo", "-T", "tcp", SERVER, "100021", "4", expect=None)
    assert "Program not registered" in said


EXPORTS = """\
/work    10.0.0.0/24(rw,insecure) trusty.invalid(rw,no_root_squash)
/pub     *(ro,insecure)
"""


def test_showmount_tells_the_exports(
    appliance: StartAppliance, netns: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "exports").write_text(EXPORTS)
    words = ["--memory", "16M@/work", "--memory", "16M@/pub", "--exports", tmp_path / "exports"]
    appliance(*words)
    said = netns.run("showmount", "-e", SERVER).splitlines()
    assert said[0] == f"Export list for {SERVER}:"
    assert [line.split() for line in said[1:]] == [
        ["/work", "10.0.0.0/24,trusty.invalid"],
        ["/pub", "*"],
    ]


def test_showmount_tells_who_has_mounted_what(appliance: StartAppliance, netns: Namespace) -> None:
    appliance("--memory", "16M")
    assert netns.run("showmount", "-a", SERVER).splitlines() == [f"All mount points on {SERVER}:"]
    netns.run("nfs-ls", f"nfs://{SERVER}/")
    assert f"{HOST}:/" in netns.run("showmount", "-a", SERVER).splitlines()
    assert netns.run("showmount", "-d", SERVER).splitlines() == [f"Directories on {SERVER}:", "/"]
    assert netns.run("showmount", SERVER).splitlines() == [f"Hosts on {SERVER}:", HOST]
