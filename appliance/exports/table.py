"""The table of exports: which client may use which path, and how.

A table never changes after it was made: a reload makes a new one, and whoever is in the middle of a
call goes on with the one it has. What it does remember are its decisions, since a file handle names
its export by a number (the CRC-32 of the path) and every call has to look it up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from appliance import limits
from appliance.exports.clients import EVERYBODY, Client, Resolver
from appliance.exports.grammar import normal_path, quote
from appliance.exports.options import AUTH_NONE, AUTH_SYS, Access, Options
from appliance.vfs.access import SquashRules
from appliance.vfs.handles import export_id

_MAPPED: Final = ipaddress.ip_address("::ffff:0.0.0.0").packed[:12]


@dataclass(frozen=True, slots=True)
class Export:
    """One path, exported to one client entry. `line` is where the file says so (0: nowhere)."""

    path: bytes
    client: Client
    options: Options
    line: int = field(default=0, compare=False)
    id: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", export_id(self.path))

    def __str__(self) -> str:
        return f"{quote(self.path)} {self.client.text}({self.options})"


class ExportTable:
    """Immutable; see `find` for a mount and `by_id` for every call after it."""

    def __init__(self, exports: Sequence[Export], resolver: Resolver) -> None:
        self._resolver = resolver
        self._by_path: dict[bytes, tuple[Export, ...]] = {}
        for export in exports:
            self._by_path[export.path] = (*self._by_path.get(export.path, ()), export)
        self._by_id = {export_id(path): entries for path, entries in self._by_path.items()}
        assert len(self._by_id) == len(self._by_path), "two paths with one CRC-32"
        self._decided: dict[tuple[int, bytes], Export | None] = {}

    @classmethod
    def everything(cls, resolver: Resolver) -> ExportTable:
        """What holds when there is no exports file: / for everybody, with all rights, and
        everything that is mounted below."""
        access = Access(read_only=False, squash=SquashRules(root_squash=False))
        rules = ((AUTH_SYS, access), (AUTH_NONE, access))
        return cls([Export(b"/", EVERYBODY, Options(rules, secure=False, crossmnt=True))], resolver)

    def find(self, path: bytes, client_address: bytes) -> Export | None:
        """How a client may use `path`, as a MOUNT call names it: by the export with the longest
        path, at or above it, that is for this client at all."""
        above = normal_path(path)
        while above is not None:
            if above in self._by_path:
                export = self.by_id(export_id(above), client_address)
                if export is not None:
                    return export
            above = None if above == b"/" else above.rpartition(b"/")[0] or b"/"
        return None

    def by_id(self, number: int, client_address: bytes) -> Export | None:
        """The export that a file handle of this client names; None: not (or no longer) for it."""
        try:
            return self._decided[number, client_address]
        except KeyError:
            return self._decide(number, client_address)

    def _decide(self, number: int, client_address: bytes) -> Export | None:
        """Find out, and remember; not for a made-up number, of which a peer has any amount."""
        if number not in self._by_id:
            return None
        if len(self._decided) >= limits.EXPORT_DECISIONS_MAX:
            self._decided.clear()
        address = client_address
        if len(address) == 16:
            address = address.removeprefix(_MAPPED)
        export = self._most_specific(self._by_id[number], address)
        self._decided[number, client_address] = export
        return export

    def _most_specific(self, entries: tuple[Export, ...], address: bytes) -> Export | None:
        """The entry that counts for a client: by kind first, then by its place in the file."""
        for export in sorted(entries, key=lambda export: export.client.kind):
            if export.client.matches(address, self._resolver):
                return export
        return None

    def listing(self) -> list[tuple[bytes, list[str]]]:
        """What EXPORT of the MOUNT protocol tells: paths and the names of their clients."""
        return [
            (path, [export.client.text for export in entries])
            for path, entries in self._by_path.items()
        ]

    def __iter__(self) -> Iterator[Export]:
        for entries in self._by_path.values():
            yield from entries

    def __str__(self) -> str:
        """As an exports file that says everything: reading it makes the same table."""
        return "".join(f"{export}\n" for export in self)
