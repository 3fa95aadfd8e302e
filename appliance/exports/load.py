"""Reading an exports file: text or file -> problems and a table.

A line that has errors is left out of the table. The caller decides what a broken file means: at the
start it ends the program, at a reload (`ExportsFile`) the table that was valid stays valid.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from appliance import limits
from appliance.exports.clients import EVERYBODY, Client, HostResolver, Resolver, parse_client
from appliance.exports.grammar import Line, lines, path_of, shown, split_client, split_options
from appliance.exports.options import OptionList, Options
from appliance.exports.problems import Problem, Report, broken
from appliance.exports.table import Export, ExportTable
from appliance.vfs.handles import export_id


def parse(
    text: str,
    filename: str = "exports",
    *,
    resolver: Resolver | None = None,
    mount_points: Collection[bytes] | None = None,
) -> tuple[list[Problem], ExportTable]:
    """What `text` says. `mount_points` are the paths at which file systems are mounted, for the
    option "mountpoint"; None if that is not known, and then nothing is left out for it."""
    reader = _Reader(Report(filename), resolver or HostResolver(), mount_points)
    for line in lines(text, reader.report):
        reader.read(line)
    return reader.report.problems, ExportTable(reader.exports, reader.resolver)


class _Reader:
    """Turns lines into exports, and knows what earlier lines said."""

    def __init__(
        self, report: Report, resolver: Resolver, mount_points: Collection[bytes] | None
    ) -> None:
        self.report = report
        self.resolver = resolver
        self.exports: list[Export] = []
        self._mount_points = mount_points
        self._seen: dict[tuple[bytes, str], int] = {}  # path and client -> line
        self._paths: dict[int, bytes] = {}  # by export id

    def read(self, line: Line) -> None:
        """Add what one line says; nothing of it if a part of it is wrong."""
        self.report.line = line.number
        before = len(self.report.problems)
        path = path_of(line.words[0], self.report)
        if path is None or not self._is_acceptable(path):
            return
        entries = self._entries(path, line.words[1:])
        if broken(self.report.problems[before:]):
            return
        self.exports += [
            Export(path, client, options, line.number)
            for client, options in entries
            if self._is_new(path, client) and self._is_mounted(path, options)
        ]

    def _is_acceptable(self, path: bytes) -> bool:
        if len(path) > limits.PATH_BYTES_MAX:
            self.report.error(f"the path is longer than {limits.PATH_BYTES_MAX} bytes")
            return False
        twin = self._paths.setdefault(export_id(path), path)
        if twin != path:
            self.report.error(
                f"{shown(path)} and {shown(twin)} have the same CRC-32, by which file handles "
                "tell exports apart",
                "rename one of them",
            )
        return twin == path

    def _entries(self, path: bytes, words: list[str]) -> list[tuple[Client, Options]]:
        """The clients of a line, each with its options."""
        defaults = Options()
        entries: list[tuple[Client, Options]] = []
        for word in words:
            if word.startswith("-"):
                defaults = OptionList(defaults, self.report).read(split_options(word[1:]))
                continue
            parts = split_client(word, self.report)
            if parts is None:
                return entries
            name, options = parts
            if not name:
                self._warn_of_blank(word, alone=not entries)
            client = parse_client(name, self.resolver, self.report)
            if client is not None:
                entries.append((client, OptionList(defaults, self.report).read(options)))
        if not entries:
            self.report.warning(
                f"{shown(path)} has no clients and is exported to everybody",
                f"if that is meant, say so: {shown(path)} *",
            )
            entries.append((EVERYBODY, defaults))
        return entries

    def _warn_of_blank(self, listed: str, *, alone: bool) -> None:
        """ "host (rw)" gives rights to the whole world: the oldest trap of this file."""
        if alone:
            self.report.warning(
                f"{listed} without a client is for everybody", f"if that is meant: *{listed}"
            )
        else:
            self.report.warning(
                f"{listed} after a blank is for everybody; the client before it has the defaults",
                f"without the blank: host{listed}; if everybody is meant: *{listed}",
            )

    def _is_new(self, path: bytes, client: Client) -> bool:
        earlier = self._seen.get((path, client.text))
        if earlier is not None:
            self.report.warning(
                f"{shown(path)} is exported to {client.text} a second time: line {earlier} counts"
            )
        elif len(self._seen) >= limits.EXPORT_ENTRIES_MAX:
            self.report.error(f"more than {limits.EXPORT_ENTRIES_MAX} entries: the rest is ignored")
        else:
            self._seen[path, client.text] = self.report.line
            return True
        return False

    def _is_mounted(self, path: bytes, options: Options) -> bool:
        if options.mountpoint is None or self._mount_points is None:
            return True
        needed = options.mountpoint or path
        if needed in self._mount_points:
            return True
        self.report.warning(f"{shown(path)} is not exported: nothing is mounted at {shown(needed)}")
        return False


def read(
    path: Path, *, resolver: Resolver | None = None, mount_points: Collection[bytes] | None = None
) -> tuple[list[Problem], ExportTable]:
    """`parse` of a file. One that cannot be read is an error among the problems."""
    try:
        with path.open("rb") as file:
            content = file.read(limits.EXPORTS_BYTES_MAX + 1)
    except OSError as error:
        return _unreadable(path, error.strerror or str(error), resolver)
    if len(content) > limits.EXPORTS_BYTES_MAX:
        return _unreadable(path, f"longer than {limits.EXPORTS_BYTES_MAX} bytes", resolver)
    text = content.decode("utf-8", "surrogateescape")
    return parse(text, str(path), resolver=resolver, mount_points=mount_points)


def _unreadable(
    path: Path, why: str, resolver: Resolver | None
) -> tuple[list[Problem], ExportTable]:
    report = Report(str(path))
    report.error(why)
    return report.problems, ExportTable([], resolver or HostResolver())


class ExportsFile:
    """The exports of a running server: the table in force, and how a new one takes its place."""

    def __init__(
        self, path: Path | None, resolver: Resolver, mount_points: Collection[bytes]
    ) -> None:
        self.table = ExportTable.everything(resolver)
        self._path = path
        self._resolver = resolver
        self._mount_points = mount_points

    def load(self) -> list[Problem]:
        """Read the file (again). With an error among the problems the table stays what it was."""
        if self._path is None:
            return []
        problems, table = read(self._path, resolver=self._resolver, mount_points=self._mount_points)
        if not broken(problems):
            self.table = table
        return problems


def check(path: Path, out: TextIO, err: TextIO, resolver: Resolver | None = None) -> int:
    """`rumpnfsd --check-exports FILE`: the table as it would be, or what is wrong; an exit code."""
    problems, table = read(path, resolver=resolver)
    err.writelines(f"{problem}\n" for problem in problems)
    if broken(problems):
        return 1
    out.write(str(table))
    return 0
