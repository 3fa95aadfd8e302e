"""The kinds of XDR types that are made of others (RFC 4506 section 4): structs, lists, unions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.oncrpc.xdr_compiler import Decoder, Encoder
from appliance.oncrpc.xdr_kinds import Kind


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
