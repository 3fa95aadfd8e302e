"""The kinds of XDR types (RFC 4506 section 4): each emits the lines that decode and encode it.

Nothing here runs for a call. What runs is what was emitted, and the two functions for bulk data.
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


class Structure(Kind):
    """Section 4.14. The fields are looked at when they are needed, not at the declaration."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls

    @property
    def fields(self) -> Sequence[tuple[str, Kind]]:
        fields: Sequence[tuple[str, Kind]] = self.cls.__xdr__.fields
        return fields

    @property
    def bytes_min(self) -> int:
        return sum(kind.bytes_min for _, kind in self.fields)

    def decode(self, code: Decoder) -> str:
        values = [kind.decode(code) for _, kind in self.fields]
        return f"{code.constant(self.cls)}({', '.join(values)})"

    def encode(self, code: Encoder, value: str) -> None:
        if not value.isidentifier():
            variable = code.variable()
            code.prepare(f"{variable} = {value}")
            value = variable
        for name, kind in self.fields:
            kind.encode(code, f"{value}.{name}")

    def nothing(self) -> object:
        return self.cls(*(kind.nothing() for _, kind in self.fields))


class Encodable(Kind):
    """A struct that may be given as its ready-made encoding: `fattr3 | Encoded`."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    @property
    def bytes_min(self) -> int:
        return self.structure.bytes_min

    def decode(self, code: Decoder) -> str:
        return self.structure.decode(code)

    def encode(self, code: Encoder, value: str) -> None:
        variable = code.variable()
        code.prepare(f"{variable} = {value}")
        code.branch(
            (f"if type({variable}) is bytes:", lambda: code.emit(f"out({variable})")),
            ("else:", lambda: self.structure.encode(code, variable)),
        )

    def nothing(self) -> object:
        return self.structure.nothing()


class Optional(Kind):
    """Optional data, `type *name`: section 4.19."""

    def __init__(self, inner: Kind) -> None:
        self.inner = inner

    def decode(self, code: Decoder) -> str:
        present, value = code.take("I"), code.variable()
        code.flush()
        with code.block(f"if {present} == 1:"):
            code.emit(f"{value} = {self.inner.decode(code)}")
        with code.block(f"elif {present}:"):
            code.emit("raise XdrError('neither present nor absent')")
        with code.block("else:"):
            code.emit(f"{value} = None")
        return value

    def encode(self, code: Encoder, value: str) -> None:
        variable = code.variable()
        code.prepare(f"{variable} = {value}")

        def present() -> None:
            code.word("I", "1")
            self.inner.encode(code, variable)

        code.branch(
            (f"if {variable} is None:", lambda: code.word("I", "0")),
            ("else:", present),
        )

    def nothing(self) -> object:
        return None


class Array(Kind):
    """A variable-length array, `type name<limit>`: section 4.13."""

    def __init__(self, inner: Kind, limit: int) -> None:
        self.inner = inner
        self.limit = limit

    def decode(self, code: Decoder) -> str:
        if not self.inner.bytes_min:
            raise TypeError("nothing bounds an array of elements without bytes")
        count, values = code.take("I"), code.variable()
        code.flush()
        code.bound(count, self.limit)
        # Before any work is done for elements that cannot be there.
        code.emit(
            f"if {count} * {self.inner.bytes_min} > len(buf) - at: "
            "raise XdrError('truncated array')"
        )
        code.emit(f"{values} = []")
        with code.block(f"for _ in range({count}):"):
            code.emit(f"{values}.append({self.inner.decode(code)})")
        return values

    def encode(self, code: Encoder, value: str) -> None:
        values, count, item = code.variable(), code.variable(), code.variable()
        code.prepare(f"{values} = {value}")
        code.prepare(f"{count} = len({values})")
        code.bound(count, self.limit)
        code.word("I", count)
        code.flush()
        with code.block(f"for {item} in {values}:"):
            self.inner.encode(code, item)

    def nothing(self) -> object:
        return []


class FixedArray(Kind):
    """A fixed-length array, `type name[count]`: section 4.12."""

    def __init__(self, inner: Kind, count: int) -> None:
        self.inner = inner
        self.count = count

    @property
    def bytes_min(self) -> int:
        return self.count * self.inner.bytes_min

    def decode(self, code: Decoder) -> str:
        values = code.variable()
        code.emit(f"{values} = []")
        with code.block(f"for _ in range({self.count}):"):
            code.emit(f"{values}.append({self.inner.decode(code)})")
        return values

    def encode(self, code: Encoder, value: str) -> None:
        values, item = code.variable(), code.variable()
        code.prepare(f"{values} = {value}")
        code.emit(f"if len({values}) != {self.count}: raise XdrError('not {self.count} elements')")
        with code.block(f"for {item} in {values}:"):
            self.inner.encode(code, item)

    def nothing(self) -> object:
        return [self.inner.nothing() for _ in range(self.count)]


class LinkedList(Kind):
    """A list made of optional data, `struct { type item; list *next; }`: a Python list."""

    def __init__(self, inner: Kind, limit: int) -> None:
        self.inner = inner
        self.limit = limit

    def decode(self, code: Decoder) -> str:
        more, values = code.take("I"), code.variable()
        code.emit(f"{values} = []")
        with code.block(f"while {more} == 1:"):
            item = self.inner.decode(code)
            code.word("I", more)
            code.emit(f"{values}.append({item})")
            code.bound(f"len({values})", self.limit)
        code.emit(f"if {more}: raise XdrError('neither present nor absent')")
        return values

    def encode(self, code: Encoder, value: str) -> None:
        item = code.variable()
        code.flush()
        with code.block(f"for {item} in {value}:"):
            code.word("I", "1")
            self.inner.encode(code, item)
        code.word("I", "0")

    def nothing(self) -> object:
        return []


class Union(Kind):
    """A discriminated union: section 4.15. Each arm is a struct of its own, with its tag."""

    def __init__(self, arms: Sequence[Any]) -> None:
        self.arms = arms

    def decode(self, code: Decoder) -> str:
        tag, value = code.take("i"), code.variable()
        table = code.constant({arm.__xdr_tag__: self._codec(arm).reader() for arm in self.arms})
        code.emit(f"{value}, at = {table}[{tag}](buf, at, ())")
        return value

    def encode(self, code: Encoder, value: str) -> None:
        variable = code.variable()
        tags = code.constant({arm: arm.__xdr_tag__ for arm in self.arms})
        table = code.constant({arm: self._codec(arm).writer() for arm in self.arms})
        code.prepare(f"{variable} = {value}")
        code.word("i", f"{tags}[type({variable})]")
        code.emit(f"{table}[type({variable})]({variable}, out)")

    def nothing(self) -> object:
        return self._codec(self.arms[0]).kind.nothing()

    @staticmethod
    def _codec(arm: Any) -> Any:
        codec = arm.__xdr__
        if codec.takes_bulk:
            raise TypeError("bulk data cannot be in a union")
        return codec
