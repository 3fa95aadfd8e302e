"""The simple kinds of XDR types (RFC 4506 section 4): each emits what decodes and encodes it.

Nothing here runs for a call. What runs is what was emitted, and the two functions for bulk data.
Kinds that are made of others are in xdr_composed.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, Final

from appliance.oncrpc.xdr_compiler import Decoder, Encoder, XdrError

Buffer = bytes | bytearray | memoryview

Read = Callable[[bytes, int, Sequence[Buffer]], tuple[Any, int]]
Write = Callable[[Any, Callable[[Buffer], None]], Sequence[Buffer] | None]

PADDING: Final = (b"", bytes(3), bytes(2), bytes(1))
"""What follows an opaque, by its length modulo 4."""


class Kind(ABC):
    """One kind of XDR type."""

    @property
    def bytes_min(self) -> int:
        """The shortest encoding, often a lone word: it bounds how many of these a list can have."""
        return 4

    @abstractmethod
    def decode(self, code: Decoder) -> str:
        """Emit what decodes one; the expression of the value, good at the next `emit`."""

    @abstractmethod
    def encode(self, code: Encoder, value: str) -> None:
        """Emit what encodes the value of the expression `value`."""

    @abstractmethod
    def nothing(self) -> object:
        """The value with everything zero, empty or absent."""


class Void(Kind):
    """RFC 4506 section 4.16."""

    @property
    def bytes_min(self) -> int:
        return 0

    def decode(self, code: Decoder) -> str:
        return "None"

    def encode(self, code: Encoder, value: str) -> None:
        pass

    def nothing(self) -> object:
        return None


class Word(Kind):
    """Integers and hyper integers: sections 4.1, 4.2, 4.5."""

    def __init__(self, fmt: str) -> None:
        self.fmt = fmt

    @property
    def bytes_min(self) -> int:
        return Struct(">" + self.fmt).size

    def decode(self, code: Decoder) -> str:
        return code.take(self.fmt)

    def encode(self, code: Encoder, value: str) -> None:
        code.word(self.fmt, value)

    def nothing(self) -> object:
        return 0


class Enumeration(Kind):
    """Section 4.3. A value that is not declared is an error."""

    def __init__(self, enum: type[IntEnum]) -> None:
        self.enum = enum

    def decode(self, code: Decoder) -> str:
        # Calling the enum would take ten times as long as a look into a table.
        table = code.constant({int(member): member for member in self.enum})
        return f"{table}[{code.take('i')}]"

    def encode(self, code: Encoder, value: str) -> None:
        code.word("i", value)

    def nothing(self) -> object:
        return next(iter(self.enum))


class Boolean(Kind):
    """Section 4.4. A value that is neither 0 nor 1 is an error."""

    def decode(self, code: Decoder) -> str:
        return f"{code.constant((False, True))}[{code.take('I')}]"

    def encode(self, code: Encoder, value: str) -> None:
        code.word("I", value)

    def nothing(self) -> object:
        return False


class FixedOpaque(Kind):
    """Section 4.9."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fmt = f"{size}s{-size % 4}x"

    @property
    def bytes_min(self) -> int:
        return self.size + -self.size % 4

    def decode(self, code: Decoder) -> str:
        return code.take(self.fmt)

    def encode(self, code: Encoder, value: str) -> None:
        data = code.variable()
        code.prepare(f"{data} = {value}")
        code.prepare(f"if len({data}) != {self.size}: raise XdrError('not {self.size} bytes')")
        code.word(self.fmt, data)

    def nothing(self) -> object:
        return bytes(self.size)


class VariableOpaque(Kind):
    """Opaques and strings: sections 4.10, 4.11."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def decode(self, code: Decoder) -> str:
        count, data = code.take("I"), code.variable()
        code.flush()
        code.bound(count, self.limit)
        code.emit(f"{data} = buf[at:at + {count}]")
        code.emit(f"if len({data}) != {count}: raise XdrError('truncated opaque')")
        code.emit(f"at += ({count} + 3) & ~3")
        return data

    def encode(self, code: Encoder, value: str) -> None:
        data, count = code.variable(), code.variable()
        code.prepare(f"{data} = {value}")
        code.prepare(f"{count} = len({data})")
        code.bound(count, self.limit)
        code.word("I", count)
        code.emit(f"out({data})")
        code.emit(f"if {count} & 3: out({code.constant(PADDING)}[{count} & 3])")

    def nothing(self) -> object:
        return b""


class Bulk(Kind):
    """A variable opaque that is not copied: the last field of a record, decoded to the pieces in
    which it has arrived, encoded from whatever pieces there are."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def decode(self, code: Decoder) -> str:
        count, data = code.take("I"), code.variable()
        code.flush()
        code.bound(count, self.limit)
        code.emit(f"{data} = {code.constant(take_bulk)}(buf, at, {count}, rest)")
        code.emit("at = len(buf)")
        code.seal(data)
        return data

    def encode(self, code: Encoder, value: str) -> None:
        data, count = code.variable(), code.variable()
        code.prepare(f"{data}, {count} = {code.constant(give_bulk)}({value})")
        code.bound(count, self.limit)
        code.word("I", count)
        code.flush()
        code.seal(data)

    def nothing(self) -> object:
        return []


def take_bulk(buf: bytes, at: int, count: int, rest: Sequence[Buffer]) -> list[memoryview]:
    """The last `count` bytes (without padding) of a record, as views. Nothing may follow them."""
    over = len(buf) - at + sum(map(len, rest)) - count
    if over < 0:
        raise XdrError("truncated opaque")
    if over != -count % 4:
        raise XdrError("bytes after the end, or padding missing")
    pieces = [memoryview(piece) for piece in (memoryview(buf)[at:], *rest)]
    while pieces and len(pieces[-1]) <= over:
        over -= len(pieces.pop())
    if over:
        pieces[-1] = pieces[-1][:-over]
    return [piece for piece in pieces if piece]


def give_bulk(data: Buffer | Sequence[Buffer]) -> tuple[Sequence[Buffer], int]:
    """The pieces of bulk data, with their padding, and the number of bytes without it."""
    pieces: Sequence[Buffer]
    pieces = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    count = sum(map(len, pieces))
    return (*pieces, PADDING[count & 3]) if count & 3 else pieces, count
