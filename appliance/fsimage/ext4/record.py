"""On-disk records: declared as the format's document prints them, compiled once.

A record is a class whose fields have a type and the offset that the document gives:

    @record(size=12)
    class ext4_extent_header(Record):
        eh_magic: le16 = at(0x00)
        eh_entries: le16 = at(0x02)

`decode(buffer, offset)` makes one from bytes; `encode_into(buffer, offset)` puts its fields back;
`copy()` makes another one.
*Patch, do not rebuild*: encoding touches declared fields only, so that bytes between them, which
belong to features that we do not know, survive. Fields that overlap, stand in the wrong order or
reach beyond the record are an assertion at import.

The source of `encode_into` and `copy` is generated, and registered with linecache, so that
tracebacks and help() show it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from struct import Struct
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
)

from appliance.vfs.interface import Buffer

u8 = Annotated[int, "<B"]
le16 = Annotated[int, "<H"]
le32 = Annotated[int, "<I"]
le64 = Annotated[int, "<Q"]
be8 = Annotated[int, ">B"]
be16 = Annotated[int, ">H"]
be32 = Annotated[int, ">I"]
be64 = Annotated[int, ">Q"]
"""A record is little-endian (ext4) or big-endian (JBD2) as a whole: it never mixes the two."""


class Record:
    """What every record can do. The decorator fills in what is declared here."""

    __slots__ = ()

    SIZE: ClassVar[int]

    STRUCT: ClassVar[Struct]
    """All fields, for loops in which objects would cost too much."""

    encode_into: ClassVar[Callable[[Any, bytearray, int], None]]
    """`encode_into(buffer, offset)`: put the fields there, and touch nothing between them."""

    copy: ClassVar[Callable[[Self], Self]]
    """Another one with the same fields."""

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """The record at `offset`."""
        return cls(*cls.STRUCT.unpack_from(buffer, offset))


T = TypeVar("T", bound=Record)


def at(offset: int) -> Any:
    """The field's byte offset in the record."""
    return field(metadata={"offset": offset})


@dataclass_transform(field_specifiers=(at,))
def record(size: int) -> Callable[[type[T]], type[T]]:
    """Declare a record of `size` bytes."""

    def declare(cls: type[T]) -> type[T]:
        made: Any = dataclass(slots=True)(cls)
        made.SIZE = size
        declared = _fields_of(made, size)
        made.STRUCT = _struct(declared, size)
        made.encode_into = _encoder(cls.__name__, declared)
        made.copy = _copier(made, declared)
        result: type[T] = made
        return result

    return declare


def _fields_of(cls: Any, size: int) -> list[tuple[str, int, str]]:
    """Name, offset and struct format of every field, checked."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    end = 0
    for each in fields(cls):
        offset = each.metadata["offset"]
        _, layout = get_args(hints[each.name])
        assert offset >= end, f"{cls.__name__}.{each.name} overlaps the field before it"
        end = offset + Struct(layout).size
        found.append((each.name, offset, layout))
    assert end <= size, f"{cls.__name__} is longer than {size} bytes"
    assert len({layout[0] for _, _, layout in found}) == 1, f"{cls.__name__} mixes byte orders"
    return found


def _struct(declared: list[tuple[str, int, str]], size: int) -> Struct:
    """All fields, and blanks for what is between them."""
    layout, end = declared[0][2][0], 0
    for _, offset, code in declared:
        layout += "x" * (offset - end) + code[1:]
        end = offset + Struct(code).size
    return Struct(layout + "x" * (size - end))


def _encoder(record_name: str, declared: list[tuple[str, int, str]]) -> Any:
    """Writes fields, those that follow each other without a gap in one go."""
    order = declared[0][2][0]
    scope: dict[str, Any] = {}
    lines = ["def encode_into(self, buffer, offset):"]
    for first, offset, run in _runs(declared):
        scope[f"pack_{first}"] = Struct(order + "".join(code for _, code in run)).pack_into
        names = ", ".join(f"self.{name}" for name, _ in run)
        lines.append(f"    pack_{first}(buffer, offset + {offset:#x}, {names})")
    return _compiled(f"<record {record_name}>", lines, scope)


def _copier(cls: Any, declared: list[tuple[str, int, str]]) -> Any:
    """Copies field by field: half of the time of the constructor with all its arguments."""
    scope: dict[str, Any] = {"cls": cls, "new": object.__new__}
    lines = ["def copy(self):", "    made = new(cls)"]
    lines += [f"    made.{name} = self.{name}" for name, _, _ in declared]
    return _compiled(f"<copy of {cls.__name__}>", [*lines, "    return made"], scope)


def _compiled(filename: str, lines: list[str], scope: dict[str, Any]) -> Any:
    """The function that `lines` define."""
    source = "\n".join([*lines, ""])
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), scope)
    made = scope[lines[0].removeprefix("def ").partition("(")[0]]
    made.__doc__ = source
    return made


def _runs(
    declared: list[tuple[str, int, str]],
) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Fields that follow each other without a gap: name of the first, its offset, the fields."""
    runs: list[tuple[str, int, list[tuple[str, str]]]] = []
    end = -1
    for name, offset, layout in declared:
        if offset != end:
            runs.append((name, offset, []))
        runs[-1][2].append((name, layout[1:]))
        end = offset + Struct(layout).size
    return runs
