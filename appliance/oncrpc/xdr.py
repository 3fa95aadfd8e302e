"""XDR (RFC 4506): protocol types are declared as classes and compiled to straight-line code.

    @struct
    class nfstime3:                  # RFC 1813 section 2.5
        seconds: uint32
        nseconds: uint32

The mapping is the whole manual:

    int, unsigned, hyper             int32, uint32, int64, uint64
    enum                             an IntEnum
    bool                             bool
    opaque<n>, string<n>             Annotated[bytes, Opaque(max=n)]; unbounded: opaque
    opaque[n]                        Annotated[bytes, Opaque(size=n)]
    bulk data (the last field)       Annotated[Sequence[Buffer], Opaque(view=True)], or bulk
    struct                           a class under @struct
    type *                           type | None
    type<n>                          Annotated[list[type], Max(n)], or list[type]
    type[n]                          Annotated[list[type], Size(n)]
    a linked list                    Annotated[list[type], Chain]
    union                            A | B | C, each a class under @arm(tag)
    void                             None, or a @struct without fields

`fattr3 | Encoded` is a struct that the encoder also takes ready-made, as `bytes`; it is always
decoded to the struct. The union of a status with its two bodies is not declared: returning and
raising are its arms (program.py).

Values are not to be changed after they were made (type checkers hold that); they compare by value.
A length is checked against its limit and against the bytes that are there before anything is made
of it. Declaring costs little; the code is compiled at the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from struct import error as StructError
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from appliance.oncrpc import xdr_composed as composed
from appliance.oncrpc import xdr_kinds as kinds
from appliance.oncrpc.xdr_compiler import UNLIMITED, Decoder, Encoder, XdrError
from appliance.oncrpc.xdr_kinds import Buffer, Read, Write

__all__ = [
    "Buffer",
    "Chain",
    "Codec",
    "Encoded",
    "Max",
    "Opaque",
    "Size",
    "XdrError",
    "arm",
    "bulk",
    "codec",
    "decode",
    "encode",
    "int32",
    "int64",
    "nothing",
    "opaque",
    "struct",
    "uint32",
    "uint64",
]

T = TypeVar("T")

Encoded = bytes
"""The ready-made encoding of a struct, where a field is declared to take one."""


@dataclass(frozen=True)
class Integer:
    """A fixed-size integer, by its character in struct's notation."""

    fmt: str


@dataclass(frozen=True)
class Opaque:
    """opaque<max>, or opaque[size]; with `view`, bulk data that is never copied."""

    max: int = UNLIMITED
    size: int | None = None
    view: bool = False


class Chain:
    """A list on the wire as a chain of optional elements."""


@dataclass(frozen=True)
class Max:
    """The most elements of a list."""

    count: int


@dataclass(frozen=True)
class Size:
    """The number of elements of a list that always has as many."""

    count: int


int32 = Annotated[int, Integer("i")]
uint32 = Annotated[int, Integer("I")]
int64 = Annotated[int, Integer("q")]
uint64 = Annotated[int, Integer("Q")]
opaque = Annotated[bytes, Opaque()]
bulk = Annotated[Sequence[Buffer], Opaque(view=True)]


class Codec(Generic[T]):
    """Decodes and encodes the values of one type.

    `read` and `write` are the compiled functions (until the first use: what compiles them); they
    raise whatever the bytes provoke. `decode` and `encode` raise XdrError and nothing else.
    """

    def __init__(self, name: str, kind: kinds.Kind) -> None:
        self.name = name
        self.kind = kind
        self.read: Read = self._first_read
        self.write: Write = self._first_write

    def decode(self, head: Buffer, at: int = 0, rest: Sequence[Buffer] = ()) -> T:
        """The one value in `head` from `at`, and in `rest`, which goes on where head ends.

        Only bulk data is taken from `rest` as it is; anything else in it is copied together.
        """
        if type(head) is not bytes:
            head = bytes(head)
        if rest and not self.takes_bulk:
            head, rest = b"".join((head, *rest)), ()
        try:
            value, end = self.read(head, at, rest)
            if end != len(head):
                where = "before" if end > len(head) else "after"
                raise XdrError(f"{abs(end - len(head))} bytes {where} the end of {self.name}")
        except (StructError, KeyError, IndexError, XdrError) as error:
            if rest:  # what comes before the bulk data may have been cut
                return self.decode(b"".join((head, *rest)), at)
            raise XdrError(f"{self.name}: {error}") from error
        return value  # type: ignore[no-any-return]

    def encode(self, value: T) -> list[Buffer]:
        """The encoding: one piece, and after it the pieces of bulk data, uncopied."""
        pieces: list[Buffer] = []
        try:
            bulk_data = self.write(value, pieces.append)
        except (StructError, KeyError) as error:
            raise XdrError(f"{self.name}: {error}") from error
        joined = b"".join(pieces)
        return [joined, *bulk_data] if bulk_data else [joined]

    def reader(self) -> Read:
        """`read`, compiled."""
        if self.read == self._first_read:
            code = Decoder()
            code.emit(f"return {self.kind.decode(code)}, at")
            self.read = code.compile(f"decode_{self.name}", "buf, at, rest")
        return self.read

    def writer(self) -> Write:
        """`write`, compiled."""
        if self.write == self._first_write:
            code = Encoder()
            self.kind.encode(code, "value")
            code.emit(f"return {code.bulk}")
            self.write = code.compile(f"encode_{self.name}", "value, out")
        return self.write

    @cached_property
    def takes_bulk(self) -> bool:
        """Whether the value ends in bulk data."""
        code = Decoder()
        self.kind.decode(code)
        return code.bulk is not None

    @cached_property
    def fields(self) -> list[tuple[str, kinds.Kind]]:
        """Of a struct: the names and kinds of its fields."""
        assert isinstance(self.kind, composed.Structure)
        hints = get_type_hints(self.kind.cls, include_extras=True)
        return [(field.name, kind_of(hints[field.name])) for field in fields(self.kind.cls)]

    def _first_read(self, buf: bytes, at: int, rest: Sequence[Buffer]) -> tuple[Any, int]:
        return self.reader()(buf, at, rest)

    def _first_write(self, value: Any, out: Any) -> Sequence[Buffer] | None:
        return self.writer()(value, out)


def kind_of(annotation: Any) -> kinds.Kind:
    """What an annotation declares."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated_kind(args[0], args[1:])
    if origin is list:
        return composed.Array(kind_of(args[0]), UNLIMITED)
    if origin in (UnionType, Union):
        return _union_kind(args)
    if annotation is None or annotation is NoneType:
        return kinds.Void()
    if annotation is bool:
        return kinds.Boolean()
    if isinstance(annotation, type) and issubclass(annotation, IntEnum):
        return kinds.Enumeration(annotation)
    if hasattr(annotation, "__xdr__"):
        return composed.Structure(annotation)
    raise TypeError(f"not an XDR type: {annotation!r}")


def _annotated_kind(base: Any, marks: Sequence[object]) -> kinds.Kind:
    limit = next((mark.count for mark in marks if isinstance(mark, Max)), UNLIMITED)
    if get_origin(base) is list:
        inner = kind_of(get_args(base)[0])
        for mark in marks:
            if isinstance(mark, Size):
                return composed.FixedArray(inner, mark.count)
        return (composed.LinkedList if Chain in marks else composed.Array)(inner, limit)
    match marks[-1]:  # an alias may be narrowed: Annotated[opaque, Opaque(max=9)]
        case Integer(fmt):
            return kinds.Word(fmt)
        case Opaque(size=int(size)):
            return kinds.FixedOpaque(size)
        case Opaque(max=limit, view=True):
            return kinds.Bulk(limit)
        case Opaque(max=limit):
            return kinds.VariableOpaque(limit)
        case other:
            raise TypeError(f"not an XDR annotation: {other!r}")


def _union_kind(args: Sequence[Any]) -> kinds.Kind:
    if NoneType in args:
        return composed.Optional(_union_kind([arg for arg in args if arg is not NoneType]))
    if Encoded in args:
        (structure,) = (composed.Structure(arg) for arg in args if arg is not Encoded)
        return composed.Encodable(structure)
    return composed.Union(args) if len(args) > 1 else kind_of(args[0])


@dataclass_transform(frozen_default=True)
def struct(cls: type[T]) -> type[T]:
    """Declare an XDR struct: a slotted class with a field for every annotation."""
    # A dataclass would compile these three for every class anew, which doubles what it costs.
    for name, method in (("__repr__", _repr), ("__eq__", _eq), ("__hash__", _hash)):
        setattr(cls, name, method)
    cls.__doc__ = cls.__doc__ or cls.__name__  # or dataclass makes one, slowly
    made: Any = dataclass(slots=True, repr=False, eq=False)(cls)
    made.__xdr__ = Codec(cls.__name__, composed.Structure(made))
    return made  # type: ignore[no-any-return]


@dataclass_transform(frozen_default=True)
def arm(tag: int) -> Callable[[type[T]], type[T]]:
    """Declare a struct that is the arm of a union for one value of the discriminant."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = struct(cls)
        made.__xdr_tag__ = int(tag)
        return made  # type: ignore[no-any-return]

    return decorate


def _values(value: Any) -> tuple[object, ...]:
    return tuple(getattr(value, name) for name in value.__match_args__)


def _repr(self: Any) -> str:
    shown = zip(self.__match_args__, _values(self), strict=True)
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"


def _eq(self: Any, other: object) -> bool:
    return type(self) is type(other) and _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def codec(kind: Any) -> Codec[Any]:
    """The codec of a struct, or of any annotation that is an XDR type."""
    made: Codec[Any] | None = getattr(kind, "__xdr__", None)
    return made or Codec(getattr(kind, "__name__", "value"), kind_of(kind))


def decode(kind: type[T], head: Buffer, at: int = 0, rest: Sequence[Buffer] = ()) -> T:
    """Decode exactly one struct; see Codec.decode."""
    return codec(kind).decode(head, at, rest)  # type: ignore[no-any-return]


def encode(value: object) -> list[Buffer]:
    """Encode a struct; see Codec.encode."""
    return codec(type(value)).encode(value)


def nothing(kind: Any) -> Any:
    """The value of a type with everything zero, empty or absent."""
    return codec(kind).kind.nothing()
