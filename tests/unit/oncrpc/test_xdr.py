"""XDR: the bytes of RFC 4506 for every kind of type, and back; and what is not an encoding."""

from __future__ import annotations

import traceback
from contextlib import suppress
from enum import IntEnum
from itertools import pairwise
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import appliance.mountd.protocol
import appliance.nfsd.v3.protocol
import appliance.oncrpc.auth
import appliance.oncrpc.message
import appliance.rpcbind.protocol
from appliance.oncrpc.xdr import (
    Chain,
    Codec,
    Encoded,
    Max,
    Opaque,
    Size,
    XdrError,
    arm,
    bulk,
    codec,
    decode,
    encode,
    int32,
    int64,
    nothing,
    opaque,
    struct,
    uint32,
    uint64,
)
from tests.unit.oncrpc.xdr_strategies import declared_in, values

DECLARED = declared_in(
    appliance.nfsd.v3.protocol,
    appliance.mountd.protocol,
    appliance.rpcbind.protocol,
    appliance.oncrpc.message,
    appliance.oncrpc.auth,
)


class color(IntEnum):
    RED = 2
    BLUE = 5


@struct
class point:
    x: int32
    y: int32


@struct
class nothing_at_all:
    pass


@arm(color.RED)
class in_red:
    at: point


@arm(color.BLUE)
class in_blue:
    pass


@struct
class everything:
    small: int32
    unsigned: uint32
    large: int64
    huge: uint64
    flag: bool
    shade: color
    fixed: Annotated[bytes, Opaque(size=5)]
    name: Annotated[bytes, Opaque(max=10)]
    where: point
    perhaps: point | None
    several: Annotated[list[point], Max(3)]
    always_two: Annotated[list[uint32], Size(2)]
    chained: Annotated[list[uint32], Chain]
    short_chain: Annotated[list[point | Encoded], Chain, Max(2)]
    pairs: list[Annotated[list[point], Size(2)]]
    either: in_red | in_blue
    empty: nothing_at_all
    given: point | Encoded
    given_perhaps: point | Encoded | None
    given_chain: Annotated[list[point | Encoded], Chain]
    unbounded: list[opaque]
    given_array: list[point | Encoded]


@struct
class written:
    file: Annotated[bytes, Opaque(max=8)]
    data: Annotated[bulk, Opaque(max=20, view=True)]


def hexes(text: str) -> bytes:
    return bytes.fromhex(text)


EXAMPLES: list[tuple[Any, Any, str]] = [
    (int32, -2, "fffffffe"),
    (uint32, 0xFFFFFFFE, "fffffffe"),
    (int64, -2, "fffffffffffffffe"),
    (uint64, 1 << 40, "0000010000000000"),
    (bool, True, "00000001"),
    (bool, False, "00000000"),
    (color, color.BLUE, "00000005"),
    (Annotated[bytes, Opaque(size=5)], b"abcde", "6162636465000000"),
    (Annotated[bytes, Opaque(size=4)], b"abcd", "61626364"),
    (opaque, b"", "00000000"),
    (opaque, b"abc", "0000000361626300"),
    (opaque, b"abcd", "0000000461626364"),
    (point, point(1, -1), "00000001ffffffff"),
    (point | None, None, "00000000"),
    (point | None, point(1, 2), "000000010000000100000002"),
    (list[uint32], [7, 8], "000000020000000700000008"),
    (list[uint32], [], "00000000"),
    (Annotated[list[uint32], Size(2)], [7, 8], "0000000700000008"),
    (Annotated[list[uint32], Chain], [7, 8], "0000000100000007000000010000000800000000"),
    (Annotated[list[uint32], Chain], [], "00000000"),
    (in_red | in_blue, in_red(point(3, 4)), "000000020000000300000004"),
    (in_red | in_blue, in_blue(), "00000005"),
    (None, None, ""),
    (nothing_at_all, nothing_at_all(), ""),
]


@pytest.mark.parametrize(("kind", "value", "expected"), EXAMPLES)
def test_bytes_are_those_of_the_rfc(kind: Any, value: Any, expected: str) -> None:
    assert codec(kind).encode(value) == [hexes(expected)]
    assert codec(kind).decode(hexes(expected)) == value


@given(values(everything.__xdr__.kind))  # type: ignore[attr-defined]
def test_every_kind_in_one_struct_survives(value: everything) -> None:
    (data,) = encode(value)
    assert decode(everything, data) == value


@pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: declared.name)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_declared_type_survives(declared: Codec[Any], data: st.DataObject) -> None:
    value = data.draw(values(declared.kind))
    wire = b"".join(declared.encode(value))
    again = declared.decode(wire)
    assert b"".join(declared.encode(again)) == wire
    if not declared.takes_bulk:
        assert again == value


@pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: declared.name)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_no_input_escapes_xdr_error(declared: Codec[Any], data: st.DataObject) -> None:
    wire = bytearray(b"".join(declared.encode(data.draw(values(declared.kind)))))
    for at in data.draw(st.lists(st.integers(0, max(0, len(wire) - 1)), max_size=3)):
        wire[at : at + 1] = data.draw(st.binary(max_size=2))
    cut = data.draw(st.integers(0, len(wire)))
    for garbage in (bytes(wire), bytes(wire[:cut]), data.draw(st.binary(max_size=60))):
        for split in (len(garbage), cut % (len(garbage) + 1)):
            with suppress(XdrError):
                declared.decode(garbage[:split], 0, [memoryview(garbage)[split:]])


@given(values(everything.__xdr__.kind))  # type: ignore[attr-defined]
def test_every_truncation_is_an_error(value: everything) -> None:
    (data,) = encode(value)
    for end in range(len(data)):
        with pytest.raises(XdrError):
            decode(everything, bytes(data[:end]))


NOT_AN_ENCODING: dict[str, tuple[Any, str]] = {
    "neither true nor false": (bool, "00000002"),
    "no such color": (color, "00000003"),
    "neither present nor absent": (point | None, "000000020000000100000002"),
    "neither more nor the end": (Annotated[list[uint32], Chain], "0000000100000007ffffffff"),
    "no such arm": (in_red | in_blue, "00000003"),
    "longer than its limit": (Annotated[bytes, Opaque(max=2)], "0000000361626300"),
    "more than its limit": (Annotated[list[uint32], Max(1)], "000000020000000700000008"),
    "a chain over its limit": (Annotated[list[uint32], Chain, Max(1)], EXAMPLES[18][2]),
    "padding missing": (opaque, "00000003616263"),
    "padding of the last field missing": (Annotated[bytes, Opaque(size=3)], "616263"),
    "bytes after the end": (opaque, "000000046162636400000000"),
    "a length of 4 GiB": (opaque, "ffffffff61626364"),
    "4 Gi elements": (list[uint32], "ffffffff00000000"),
    "one byte too many": (point, "000000010000000200"),
    "something, where nothing belongs": (None, "00"),
}


@pytest.mark.parametrize("why", NOT_AN_ENCODING)
def test_what_is_not_an_encoding_is_refused(why: str) -> None:
    kind, wire = NOT_AN_ENCODING[why]
    with pytest.raises(XdrError):
        codec(kind).decode(hexes(wire))


def test_padding_that_is_not_zero_is_tolerated() -> None:
    assert codec(opaque).decode(hexes("00000003616263ff")) == b"abc"
    assert codec(Annotated[bytes, Opaque(size=3)]).decode(hexes("616263ff")) == b"abc"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (uint32, -1),
        (uint32, 1 << 32),
        (int32, 1 << 31),
        (Annotated[bytes, Opaque(size=5)], b"abcd"),
        (Annotated[bytes, Opaque(max=2)], b"abc"),
        (Annotated[list[uint32], Max(1)], [1, 2]),
        (Annotated[list[uint32], Size(2)], [1]),
        (in_red | in_blue, point(1, 2)),
        (written, written(b"", [bytes(21)])),
    ],
)
def test_what_has_no_encoding_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(XdrError):
        codec(kind).encode(value)


def test_a_long_list_costs_nothing_before_it_is_there() -> None:
    """A length is compared with the bytes that follow it, at the size of the smallest element."""
    with pytest.raises(XdrError, match="truncated array"):
        codec(list[point]).decode(hexes("00000003") + bytes(16))


def test_ready_made_structs_are_emitted_as_they_are() -> None:
    wire = encode(point(1, 2))[0]
    chain = codec(Annotated[list[point | Encoded], Chain])
    assert chain.encode([wire, point(3, 4)]) == chain.encode([point(1, 2), point(3, 4)])
    perhaps = codec(point | Encoded | None)
    assert perhaps.encode(wire) == perhaps.encode(point(1, 2))
    assert perhaps.decode(perhaps.encode(None)[0]) is None
    assert codec(point | Encoded).decode(wire) == point(1, 2)
    assert codec(nothing_at_all | Encoded).encode(nothing_at_all()) == [b""]
    array = codec(list[point | Encoded])
    assert array.encode([wire, wire]) == [hexes("00000002") + wire + wire]


# --- bulk data -----------------------------------------------------------------------------------


def test_bulk_data_is_encoded_without_a_copy() -> None:
    data = memoryview(bytearray(b"abcdef"))
    head, *pieces = encode(written(b"hh", [data[:4], data[4:]]))
    assert head == hexes("000000026868000000000006")
    assert pieces == [b"abcd", b"ef", b"\0\0"]
    data[:4] = b"ABCD"  # both are views of the same bytes, still
    assert pieces[0] == b"ABCD"


def test_one_buffer_is_bulk_data_too() -> None:
    assert encode(written(b"", b"abcd")) == [bytes(7) + b"\4", b"abcd"]  # type: ignore[arg-type]


def test_bulk_data_is_decoded_to_views_of_what_arrived() -> None:
    head, data = hexes("000000026868000000000006") + b"ab", bytearray(b"cdef\0\0")
    value = decode(written, head, 0, [memoryview(data)[:1], memoryview(data)[1:]])
    assert value.file == b"hh"
    assert [bytes(piece) for piece in value.data] == [b"ab", b"c", b"def"]
    data[0:1] = b"C"
    assert bytes(value.data[1]) == b"C"


@given(
    data=st.binary(max_size=20),
    head_bytes=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_bulk_data_is_the_same_wherever_the_record_was_cut(
    data: bytes, head_bytes: int, cuts: list[int]
) -> None:
    wire = memoryview(b"".join(encode(written(b"abc", [data]))))
    edges = [head_bytes, *(head_bytes + cut for cut in sorted(cuts)), len(wire)]
    rest = [wire[a:b] for a, b in pairwise(edges)]
    value = decode(written, wire[:head_bytes], 0, rest)
    assert value.file == b"abc"
    assert b"".join(value.data) == data


@pytest.mark.parametrize("missing", range(1, 8))
def test_truncated_bulk_data_is_an_error(missing: int) -> None:
    wire = memoryview(b"".join(encode(written(b"", [b"abcde"]))))
    for head_bytes in (8, 10, len(wire) - missing):
        with pytest.raises(XdrError):
            decode(written, wire[:head_bytes], 0, [wire[head_bytes : len(wire) - missing]])


def test_bytes_after_bulk_data_are_an_error() -> None:
    wire = b"".join(encode(written(b"", [b"abcd"])))
    with pytest.raises(XdrError, match="after the end"):
        decode(written, wire, 0, [memoryview(bytes(4))])


def test_a_record_in_pieces_is_good_for_any_type() -> None:
    wire = memoryview(encode(point(1, 2))[0])
    assert decode(point, wire[:3], 0, [wire[3:6], wire[6:]]) == point(1, 2)


def test_decoding_begins_where_it_is_told() -> None:
    assert decode(point, hexes("ffffffff0000000100000002"), 4) == point(1, 2)


# --- declarations --------------------------------------------------------------------------------


@struct
class bulk_then_more:
    data: bulk
    more: uint32


@arm(1)
class bulk_in_an_arm:
    data: bulk


@struct
class not_xdr:
    text: str


@pytest.mark.parametrize(
    "kind",
    [
        bulk_then_more,
        bulk | None,
        list[bulk],
        bulk_in_an_arm | in_blue,
        list[nothing_at_all],
        not_xdr,
        dict[str, int],
    ],
)
def test_a_declaration_that_cannot_be_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError):
        codec(kind).reader()


def test_an_unknown_annotation_is_refused() -> None:
    with pytest.raises(TypeError, match="not an XDR annotation"):
        codec(Annotated[int, "whatever"])


def test_nothing_is_zero_empty_or_absent() -> None:
    value = nothing(everything)
    assert value.small == 0 and value.fixed == bytes(5) and value.perhaps is None
    assert value.either == in_red(point(0, 0)) and value.always_two == [0, 0]
    assert decode(everything, encode(value)[0]) == value
    assert nothing(None) is None and nothing(written).data == []


def test_values_compare_by_value_and_say_what_they_are() -> None:
    assert point(1, 2) == point(1, 2) != point(2, 1)
    assert point(1, 2).__eq__(in_red(point(1, 2))) is False
    assert len({point(1, 2), point(1, 2), point(3, 4)}) == 2
    assert repr(in_red(point(1, 2))) == "in_red(at=point(x=1, y=2))"


def test_the_generated_code_can_be_read() -> None:
    """In a docstring, and in the traceback of an error."""
    assert "def decode_point(buf, at, rest):" in (point.__xdr__.reader().__doc__ or "")  # type: ignore[attr-defined]
    with pytest.raises(XdrError) as caught:
        decode(written, hexes("00000009"))
    assert "raise XdrError('more than 8 long')" in "".join(traceback.format_exception(caught.value))
