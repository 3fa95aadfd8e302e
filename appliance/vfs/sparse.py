"""The content of one file in memory, which nobody who reads it ever sees changing.

It is a dictionary of chunks of 64 KiB; an absent chunk is a hole, and a chunk may be shorter than
64 KiB, the rest being zeros. A chunk is a bytearray while only this object refers to it, and writes
go into it in place. `read` gives memoryviews of chunks, which must not change afterwards (they are
sent, perhaps again and again), so a chunk that was given out is from then on kept as a read-only
memoryview. The type says that it is shared, and a write to it puts a copy in its place. So nothing
is copied for reading, and a write that covers a whole chunk never copies what was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from appliance.limits import KiB
from appliance.vfs.interface import Buffer

CHUNK_BYTES: Final = 64 * KiB
PAGE_BYTES: Final = 4 * KiB
"""What storage is counted in."""

_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))
_HOLE: Final = _ZEROS[:0]

Piece = tuple[int, int, int]
"""A part of one chunk: its index, and from where to where."""


def pieces(offset: int, end: int) -> list[Piece]:
    """The bytes from `offset` to `end`, cut at the borders of chunks."""
    found = []
    while offset < end:
        index, start = divmod(offset, CHUNK_BYTES)
        stop = min(CHUNK_BYTES, start + end - offset)
        found.append((index, start, stop))
        offset += stop - start
    return found


class SparseBytes:
    """Bytes at any offsets; what was never written is zero."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray | memoryview] = {}

    @property
    def stored_bytes(self) -> int:
        """The storage in use, in whole pages."""
        return sum(_in_pages(len(chunk)) for chunk in self._chunks.values())

    def read(self, where: Iterable[Piece]) -> list[Buffer]:
        """What is there, in buffers that stay as they are."""
        buffers: list[Buffer] = []
        for index, start, stop in where:
            chunk = self._chunks.get(index, _HOLE)
            if type(chunk) is bytearray:
                chunk = self._chunks[index] = memoryview(chunk).toreadonly()
            filled = len(chunk)
            if start < filled:
                buffers.append(chunk[start:stop])
            if stop > filled:
                buffers.append(_ZEROS[max(start, filled) : stop])
        return buffers

    def growth(self, where: Iterable[Piece]) -> int:
        """How much more storage a write there will use."""
        more = 0
        for index, _, stop in where:
            filled = len(self._chunks.get(index, _HOLE))
            if stop > filled:
                more += _in_pages(stop) - _in_pages(filled)
        return more

    def write(self, where: Iterable[Piece], data: Sequence[Buffer]) -> None:
        """Put `data` there, which is exactly as long."""
        source = _Gather(data)
        for index, start, stop in where:
            chunk = self._chunks.get(index, _HOLE)
            if type(chunk) is not bytearray:
                if start == 0 and stop >= len(chunk):
                    self._chunks[index] = bytearray().join(source.take(stop))
                    continue
                chunk = self._chunks[index] = bytearray(chunk)
            if len(chunk) < stop:
                chunk += _ZEROS[: stop - len(chunk)]
            into = memoryview(chunk)
            for part in source.take(stop - start):
                into[start : start + len(part)] = part
                start += len(part)

    def truncate(self, size: int) -> None:
        """Forget everything from `size` on."""
        last, filled = divmod(size, CHUNK_BYTES)
        for index in [index for index in self._chunks if index > last]:
            del self._chunks[index]
        chunk = self._chunks.get(last, _HOLE)
        if len(chunk) > filled:
            self._chunks[last] = chunk[:filled]
            if not filled:
                del self._chunks[last]


class _Gather:
    """Received buffers, taken in portions of other sizes without copying."""

    __slots__ = ("_buffers", "_rest")

    def __init__(self, data: Sequence[Buffer]) -> None:
        self._buffers = iter(data)
        self._rest = _HOLE

    def take(self, count: int) -> list[memoryview]:
        """The next `count` bytes."""
        parts = []
        rest = self._rest
        while count:
            if not rest:
                rest = memoryview(next(self._buffers))
            part = rest[:count]
            rest = rest[len(part) :]
            count -= len(part)
            parts.append(part)
        self._rest = rest
        return parts


def _in_pages(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
