"""Record marking (RFC 5531 section 11): records out of a stream of bytes, and into it.

A record comes as fragments, each behind a word with its length and, in the top bit, whether it is
the last. Nothing can be said about where pieces of the stream begin and end: a piece may hold one
byte of a mark, or the end of one record, ten more, and the beginning of another.

What is given out is (head, rest): `head` is one `bytes` with the beginning of the record, so that
what decodes it neither copies nor looks for borders; `rest` are views of what follows. A small
record is all head; of a large one the bulk of the data stays where it arrived.

Limits. A record is refused when its mark says that it will be too long, before any of it is kept.
Empty fragments carry nothing, so they are counted. Many tiny pieces would hold more memory than
their bytes (each view keeps its whole frame), so a run of them is copied together, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from appliance import limits

Buffer = bytes | bytearray | memoryview

Record = tuple[bytes, Sequence[memoryview]]

LAST_FRAGMENT: Final = 0x8000_0000

_mark_at: Final = Struct(">I").unpack_from


class RecordError(Exception):
    """The stream cannot go on: what follows is no record, or one that we refuse."""


def mark(length: int) -> bytes:
    """The mark of a record that is sent in one fragment."""
    return (LAST_FRAGMENT | length).to_bytes(4, "big")


class RecordReader:
    """One direction of one stream."""

    __slots__ = ("_compact", "_empty", "_last", "_left", "_mark", "_max", "_pieces", "_size")

    def __init__(self, record_bytes_max: int = limits.CALL_BYTES_MAX) -> None:
        self._max = record_bytes_max
        self._mark = b""  # the first bytes of a mark that is not complete
        self._begin()

    def forget(self) -> None:
        """What has come of a record whose end will not come."""
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[memoryview] = []  # of the present record
        self._compact = 0  # so many of them will not be copied together (again)
        self._size = 0  # bytes of this record, those that its marks promise included
        self._left = 0  # bytes of this fragment that have not come
        self._last = False
        self._empty = 0

    def feed(self, text: Sequence[memoryview]) -> list[Record]:
        """The records that are complete with these bytes."""
        records: list[Record] = []
        for piece in text:
            at, end = 0, len(piece)
            while at < end:
                if self._left:
                    at = self._take(piece, at, end)
                elif self._mark or end - at < 4:
                    at = self._take_mark_bytes(piece, at)
                else:
                    (word,) = _mark_at(piece, at)
                    at += 4
                    size = word ^ LAST_FRAGMENT
                    if not (self._size or self._empty) and 0 < size <= min(end - at, self._max):
                        records.append(_record([piece[at : at + size]], size))  # nearly always
                        at += size
                        continue
                    self._begin_fragment(word)
                if self._last and not self._left:
                    records.append(_record(self._pieces, self._size))
                    self._begin()
        return records

    def _take_mark_bytes(self, piece: memoryview, at: int) -> int:
        missing = 4 - len(self._mark)
        self._mark += piece[at : at + missing]
        if len(self._mark) == 4:
            (word,) = _mark_at(self._mark)
            self._mark = b""
            self._begin_fragment(word)
        return at + missing

    def _begin_fragment(self, word: int) -> None:
        self._last = word >= LAST_FRAGMENT
        self._left = word & ~LAST_FRAGMENT
        self._size += self._left
        if self._size > self._max:
            raise RecordError(f"a record of {self._size} bytes")
        if not self._left:
            self._empty += 1
            if self._empty > limits.RECORD_EMPTY_FRAGMENTS_MAX:
                raise RecordError("empty fragments without end")

    def _take(self, piece: memoryview, at: int, end: int) -> int:
        """Text of the present fragment."""
        taken = min(self._left, end - at)
        self._left -= taken
        self._pieces.append(piece[at : at + taken])
        if len(self._pieces) - self._compact >= limits.RECORD_PIECES_MAX:
            self._join_small_pieces()
        return at + taken

    def _join_small_pieces(self) -> None:
        run = self._pieces[self._compact :]
        if sum(map(len, run)) < len(run) * limits.RECORD_PIECE_BYTES_MIN:
            self._pieces[self._compact :] = [memoryview(b"".join(run))]
        self._compact = len(self._pieces)


def _record(pieces: list[memoryview], size: int) -> Record:
    if size <= limits.RECORD_JOINED_BYTES_MAX:
        return (bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)), ()
    return _split(pieces)


def _split(pieces: list[memoryview]) -> Record:
    """The head of a large record, copied into one piece, and the views of what follows."""
    index, wanted = 0, limits.RECORD_HEAD_BYTES
    while len(pieces[index]) <= wanted:
        wanted -= len(pieces[index])
        index += 1
    head = b"".join((*pieces[:index], pieces[index][:wanted]))
    return head, [pieces[index][wanted:], *pieces[index + 1 :]]
