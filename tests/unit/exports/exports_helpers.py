"""A resolver that knows what the test says, and short ways to read an exports file."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence

from appliance.exports import Export, ExportTable, Problem, Severity, parse


class KnownHosts:
    """Resolves only `hosts` (name -> address). `reverse` overrides what an address is called."""

    def __init__(
        self, hosts: Mapping[str, str] | None = None, reverse: Mapping[str, str] | None = None
    ) -> None:
        self.hosts = dict(hosts or {})
        self.reverse = dict(reverse or {a: n for n, a in self.hosts.items()})
        self.questions = 0

    def addresses(self, name: str) -> Sequence[bytes]:
        self.questions += 1
        return [address(self.hosts[name])] if name in self.hosts else []

    def names(self, client: bytes) -> Sequence[str]:
        self.questions += 1
        name = self.reverse.get(str(ipaddress.ip_address(client)))
        return [name] if name and client in self.addresses(name) else []


def address(text: str) -> bytes:
    """An address as on the wire."""
    return ipaddress.ip_address(text).packed


def table(
    text: str,
    resolver: KnownHosts | None = None,
    mount_points: Collection[bytes] | None = None,
) -> ExportTable:
    """The table of a file that has no errors."""
    problems, found = parse(
        text, "exports.conf", resolver=resolver or KnownHosts(), mount_points=mount_points
    )
    assert not [str(p) for p in problems if p.severity is Severity.ERROR]
    return found


def only(text: str) -> Export:
    """The one export of a file that has no errors."""
    [export] = table(text)
    return export


def told(text: str, severity: Severity) -> list[Problem]:
    """What is said about a file, of one severity."""
    problems, _ = parse(text, "exports.conf", resolver=KnownHosts())
    return [problem for problem in problems if problem.severity is severity]


def error(text: str) -> str:
    """The one error in a file."""
    [problem] = told(text, Severity.ERROR)
    return str(problem)


def warning(text: str) -> str:
    """The one warning about a file that has no errors."""
    assert not told(text, Severity.ERROR)
    [problem] = told(text, Severity.WARNING)
    return str(problem)
