"""Each script is a test: `scripts/NAME.pkt` against our stack, without and with offload, over IPv6
where it speaks of TCP alone, and against the Linux kernel, unless it says why not.
`--against=ours`, `--against=linux`: one of both.

Scripts against the kernel need root. All that are selected are played by one process, several at a
time (linux.py), which is started for the first; each test waits for its own verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packetdrill.language import Icmp, Inbound, Outbound, Script, ScriptError
from tests.packetdrill.ours import play_ours
from tests.packetdrill.parser import parse_file

TOP = Path(__file__).parents[2]
IPV6_LONGER = 20
"""Bytes: the header of IPv6, compared with that of IPv4."""


class ScriptFile(pytest.File):
    """A script."""

    def collect(self) -> Iterator[pytest.Item]:
        against = self.config.getoption("against")
        if against != "linux":
            yield AgainstOurs.from_parent(self, name="ours")
            yield AgainstOurs.from_parent(self, name="offload")
            if speaks_of_tcp_alone(parse_file(self.path)):
                yield AgainstOurs.from_parent(self, name="ipv6")
        if against != "ours" and parse_file(self.path).not_for_linux is None:
            yield AgainstLinux.from_parent(self, name="linux")


class ScriptItem(pytest.Item):
    """A script against some host."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """What differs, and no traceback of the player."""
        if isinstance(excinfo.value, ScriptError):
            notes = getattr(excinfo.value, "__notes__", [])
            return "\n".join((str(excinfo.value), *notes))
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name} against {self.name}"


class AgainstOurs(ScriptItem):
    """A script against our stack: as it is, or on a link that cuts up super-frames, or over IPv6.
    To TCP there must be no difference: IPv6 has a link that is wider by what its header is longer,
    so that the sizes in the script hold."""

    def runtest(self) -> None:
        script = parse_file(self.path)
        if self.name == "offload":
            script.options["offload"] = "1"
        elif self.name == "ipv6":
            mtu = int(script.options.get("mtu", "1500"))
            script.options |= {"ip_version": "ipv6", "mtu": str(mtu + IPV6_LONGER)}
        play_ours(script)


def speaks_of_tcp_alone(script: Script) -> bool:
    """It is not one of IPv6 anyway, and has nothing in it of IPv4's own."""
    packets = [e.what.packet for e in script.events if isinstance(e.what, Inbound | Outbound)]
    has_icmp = any(isinstance(packet.body, Icmp) for packet in packets)
    return script.not_for_ipv6 is None and "ip_version" not in script.options and not has_icmp


class AgainstLinux(ScriptItem):
    """A script against the kernel."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_marker(pytest.mark.root)
        self.add_marker(pytest.mark.xdist_group("the kernel plays all of them"))

    def runtest(self) -> None:
        stash = self.session.stash
        if VERDICTS not in stash:
            items = (item for item in self.session.items if isinstance(item, AgainstLinux))
            stash[VERDICTS] = Verdicts([item.path for item in items])
        failure = stash[VERDICTS].of(self.path)
        if failure is not None:
            pytest.fail(failure, pytrace=False)


class Verdicts:
    """The process that plays scripts against the kernel, and what it has said so far."""

    def __init__(self, files: list[Path]) -> None:
        command = [sys.executable, "-m", "tests.packetdrill.linux", *map(str, files)]
        self.process = subprocess.Popen(
            command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.known: dict[Path, str | None] = {}

    def of(self, file: Path) -> str | None:
        """What failed; None: nothing did."""
        assert self.process.stdout is not None
        while file not in self.known:
            line = self.process.stdout.readline()
            assert line, "the process that plays scripts has died"
            verdict = json.loads(line)
            self.known[Path(verdict["file"])] = verdict["failure"]
        return self.known[file]

    def close(self) -> None:
        """The end, whether it has said everything or not."""
        self.process.terminate()
        self.process.communicate()


VERDICTS: pytest.StashKey[Verdicts] = pytest.StashKey()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if VERDICTS in session.stash:
        session.stash[VERDICTS].close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".pkt":
        return None
    return ScriptFile.from_parent(parent, path=file_path)
