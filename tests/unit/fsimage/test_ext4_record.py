"""On-disk records: declared once, read and patched in place."""

from __future__ import annotations

import inspect
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.record import Record, at, be16, be32, le16, le32, record


@record(size=16)
class sample(Record):
    first: le16 = at(0x00)
    second: le16 = at(0x02)
    third: le32 = at(0x08)


def test_decode() -> None:
    raw = struct.pack("<4xHHIII", 1, 2, 0xAAAA, 3, 0xBBBB)
    assert sample.decode(raw, 4) == sample(1, 2, 3)
    assert sample.SIZE == 16


def test_encoding_patches_and_does_not_rebuild() -> None:
    raw = bytearray(b"." * 20)
    sample(1, 2, 3).encode_into(raw, 4)
    assert raw == b"....\1\0\2\0....\3\0\0\0...."


def test_the_source_is_visible() -> None:
    encode = sample.encode_into
    assert "pack_first(buffer, offset + 0x0, self.first, self.second)" in (encode.__doc__ or "")
    assert inspect.getsource(encode) == encode.__doc__


@record(size=6)
class big_endian(Record):
    first: be16 = at(0x0)
    second: be32 = at(0x2)


def test_byte_order() -> None:
    assert big_endian.decode(b"\1\2\3\4\5\6") == big_endian(0x0102, 0x03040506)


def test_a_wrong_declaration_is_found_at_import() -> None:
    with pytest.raises(AssertionError, match="overlaps"):

        @record(size=8)
        class overlapping(Record):
            first: le32 = at(0x0)
            second: le32 = at(0x2)

    with pytest.raises(AssertionError, match="longer"):

        @record(size=4)
        class too_long(Record):
            first: le32 = at(0x2)

    with pytest.raises(AssertionError, match="mixes"):

        @record(size=8)
        class mixed(Record):
            first: le32 = at(0x0)
            second: be32 = at(0x4)


DECLARED = [
    each for each in vars(layout).values() if isinstance(each, type) and issubclass(each, Record)
]
RECORDS = [each for each in DECLARED if each is not Record]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(
    raw=some.binary(min_size=1024, max_size=1024), other=some.binary(min_size=1024, max_size=1024)
)
def test_every_record_survives(kind: type[Record], raw: bytes, other: bytes) -> None:
    """What is decoded and encoded over something else is decoded as the same."""
    found = kind.decode(raw)
    changed = bytearray(other)
    found.encode_into(changed, 0)
    assert kind.decode(changed) == found
    assert changed[kind.SIZE :] == other[kind.SIZE :]
    same = bytearray(raw)
    found.encode_into(same, 0)
    assert same == raw
