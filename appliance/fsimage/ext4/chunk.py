"""A part of a directory, decoded: the leaf of an index, or all of a directory that has none.

What an entry is called, where it is, and in which order entries are listed. A change of the
directory is made here too when it is published, so that nothing is parsed twice.

The order of entries, and so their cookies, costs a hash for each name. So it is made when it is
asked for, and a change is only noted (`unlisted`) until it is asked for again.

Cookies. An entry has the cookie that its name (or its place) gives it, unless another one has that
already: then the next free one, and it keeps that when the other one goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from appliance.vfs.interface import Entry

DOT_COOKIE: Final = 1
DOTDOT_COOKIE: Final = 2
FIRST_COOKIE: Final = 3

RawEntry = tuple[int, int, bytes]
"""Offset in the directory, inode, name."""

Position = Callable[[bytes, int], int]
"""From a name and its offset, the cookie that it should have."""

_UNLISTED_MAX: Final = 64
"""So many changes are noted, or as many as there are names: after that, all is sorted again."""


class Chunk:
    """A part of a directory."""

    __slots__ = (
        "cookies",
        "listing",
        "names",
        "offsets",
        "roomy",
        "shifted",
        "unlisted",
        "weight",
    )

    def __init__(self, entries: Sequence[RawEntry]) -> None:
        # Of a name that occurs twice, in a damaged directory, the last one counts.
        self.names = {name: number for _, number, name in entries}
        self.offsets = {name: offset for offset, _, name in entries}
        self.roomy = 0
        """In a directory without an index, the block where there was room last."""
        self.listing: list[Entry] | None = None  # in the order of cookies, made when it is needed
        self.cookies: list[int] = []
        self.shifted: dict[bytes, int] = {}
        """Names whose cookie is not the one that they should have."""
        self.unlisted: list[RawEntry] = []
        """What has changed since the listing was made; inode 0: the entry has gone."""
        self.weight = len(self.names) + 1

    def __len__(self) -> int:
        return self.weight

    # Changes, as they are published.

    def put(self, name: bytes, number: int, offset: int) -> None:
        """`name` is there, at `offset`, and means inode `number`."""
        self.names[name] = number
        self.offsets[name] = offset
        self._note((offset, number, name))

    def drop(self, name: bytes) -> None:
        """`name` has gone. (In a damaged directory it may have been there twice.)"""
        if self.names.pop(name, 0):
            self._note((self.offsets.pop(name), 0, name))

    def _note(self, change: RawEntry) -> None:
        if self.listing is None:
            return
        self.unlisted.append(change)
        if len(self.unlisted) > max(_UNLISTED_MAX, len(self.names)):
            self.listing = None
            self.unlisted.clear()

    # The order.

    def listed(self, position: Position) -> tuple[list[Entry], list[int]]:
        """All entries in the order of their cookies, and their cookies."""
        if self.listing is None:
            self._list(position)
        elif self.unlisted:
            for offset, number, name in self.unlisted:
                self._update(name, number, position(name, offset))
            self.unlisted.clear()
        assert self.listing is not None
        return self.listing, self.cookies

    def _list(self, position: Position) -> None:
        before, self.shifted = self.shifted, {}
        ordered = []
        for name, offset in self.offsets.items():
            wanted = position(name, offset)
            ordered.append((before.get(name, wanted), name, wanted))
        ordered.sort()
        self.listing, self.cookies = [], []
        free = FIRST_COOKIE
        for cookie, name, wanted in ordered:
            cookie = max(cookie, free)
            if cookie != wanted:
                self.shifted[name] = cookie
            self.listing.append(Entry(self.names[name], name, cookie))
            self.cookies.append(cookie)
            free = cookie + 1

    def _update(self, name: bytes, number: int, wanted: int) -> None:
        """Bring one entry of the listing up to date."""
        assert self.listing is not None
        cookies, listing = self.cookies, self.listing
        cookie = self.shifted.get(name, max(wanted, FIRST_COOKIE))
        at = bisect_left(cookies, cookie)
        if at < len(cookies) and listing[at].name == name:
            if number:
                listing[at] = Entry(number, name, cookies[at])
            else:
                self.shifted.pop(name, None)
                del listing[at], cookies[at]
        elif number:
            while at < len(cookies) and cookies[at] == cookie:
                at, cookie = at + 1, cookie + 1
            if cookie != wanted:
                self.shifted[name] = cookie
            cookies.insert(at, cookie)
            listing.insert(at, Entry(number, name, cookie))
