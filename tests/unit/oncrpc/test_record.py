"""Record marking (RFC 5531 section 11): any way to cut a stream gives the same records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import limits
from appliance.limits import KiB, MiB
from appliance.oncrpc.record import LAST_FRAGMENT, Record, RecordError, RecordReader, mark


def fragment(text: bytes, *, last: bool) -> bytes:
    return (len(text) | (LAST_FRAGMENT if last else 0)).to_bytes(4, "big") + text


def fragmented(record: bytes, *sizes: int) -> bytes:
    """The record in fragments of these sizes, and one more for the rest."""
    text = b""
    for size in sizes:
        text += fragment(record[:size], last=False)
        record = record[size:]
    return text + fragment(record, last=True)


def feed(reader: RecordReader, text: bytes, piece_bytes: int) -> list[bytes]:
    """The records in a text that arrives in pieces of this size, one delivery each."""
    view = memoryview(text)
    records: list[Record] = []
    for at in range(0, len(text), piece_bytes):
        records += reader.feed([view[at : at + piece_bytes]])
    return [whole(record) for record in records]


def whole(record: Record) -> bytes:
    head, rest = record
    return b"".join((head, *rest))


def test_a_mark_is_the_length_with_the_top_bit() -> None:
    assert mark(0x1234) == b"\x80\x00\x12\x34"


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 7, 1000])
def test_records_come_whole_however_they_arrive(piece_bytes: int) -> None:
    records = [b"abc", b"", b"x" * 300, b"12345678"]
    text = b"".join(fragment(record, last=True) for record in records)
    assert feed(RecordReader(), text, piece_bytes) == records


@pytest.mark.parametrize("piece_bytes", [1, 3, 5, 1000])
def test_fragments_are_put_together(piece_bytes: int) -> None:
    text = (
        fragmented(b"abcdefgh", 1, 1, 1, 2)
        + fragmented(b"whole")
        + fragmented(b"empties", 0, 3, 0, 0)
        + fragmented(b"ends with an empty one", 22)
    )
    assert feed(RecordReader(), text, piece_bytes) == [
        b"abcdefgh",
        b"whole",
        b"empties",
        b"ends with an empty one",
    ]


@given(
    records=st.lists(st.tuples(st.binary(max_size=40), st.lists(st.integers(0, 9), max_size=4))),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_the_cuts_do_not_matter(records: list[tuple[bytes, list[int]]], cuts: list[int]) -> None:
    text = memoryview(b"".join(fragmented(record, *sizes) for record, sizes in records))
    reader = RecordReader()
    found: list[Record] = []
    at = 0
    while at < len(text):
        delivery: list[memoryview] = []
        for cut in cuts:
            delivery.append(text[at : at + cut])
            at += cut
        found += reader.feed(delivery)
    assert [whole(record) for record in found] == [record for record, _ in records]


def test_a_record_over_many_frames_beside_others_in_one() -> None:
    small, large = b"s" * 100, bytes(range(256)) * 400
    text = fragmented(small) * 3 + fragmented(large) + fragmented(small) * 2
    frames = [memoryview(text[at : at + 1448]) for at in range(0, len(text), 1448)]
    records = RecordReader().feed(frames)
    assert [whole(record) for record in records] == [small, small, small, large, small, small]


def test_a_small_record_is_one_piece_of_bytes() -> None:
    text = fragment(bytes(limits.RECORD_JOINED_BYTES_MAX), last=True)
    ((head, rest),) = RecordReader().feed([memoryview(text[:100]), memoryview(text[100:])])
    assert type(head) is bytes and len(head) == limits.RECORD_JOINED_BYTES_MAX and not rest


def test_of_a_large_record_only_the_head_is_copied() -> None:
    frames = [bytearray(fragment(bytes(200_000), last=True)[:60_000])]
    frames += [bytearray(b"%d" % index * 60_000) for index in range(2)]
    frames += [bytearray(20_004)]
    ((head, rest),) = RecordReader().feed([memoryview(frame) for frame in frames])
    assert type(head) is bytes and len(head) == limits.RECORD_HEAD_BYTES
    assert [len(piece) for piece in rest] == [58_972, 60_000, 60_000, 20_004]
    assert [piece.obj is frame for piece, frame in zip(rest, frames, strict=True)] == [True] * 4


def test_a_head_is_put_together_from_small_pieces() -> None:
    text = memoryview(fragment(bytes(range(256)) * 64, last=True))
    pieces = [text[at : at + 100] for at in range(0, 1500, 100)]
    ((head, rest),) = RecordReader().feed([*pieces, text[1500:]])
    assert len(head) == limits.RECORD_HEAD_BYTES
    assert whole((head, rest)) == bytes(range(256)) * 64


def test_the_largest_call_is_taken() -> None:
    text = fragment(bytes(limits.CALL_BYTES_MAX), last=True)
    (record,) = feed(RecordReader(), text, 64 * KiB)
    assert len(record) == limits.CALL_BYTES_MAX


@pytest.mark.parametrize(
    "marks",
    [
        [LAST_FRAGMENT | limits.CALL_BYTES_MAX + 1],
        [limits.CALL_BYTES_MAX + 1],
        [0xFFFFFFFF],
        [0x7FFFFFFF],
    ],
)
def test_a_record_that_will_be_too_long_is_refused_at_its_mark(marks: list[int]) -> None:
    reader = RecordReader()
    with pytest.raises(RecordError, match="a record of"):
        reader.feed([memoryview(b"".join(word.to_bytes(4, "big") for word in marks))])


def test_fragments_count_together() -> None:
    reader = RecordReader(record_bytes_max=10)
    reader.feed([memoryview(fragment(b"123456", last=False))])
    with pytest.raises(RecordError, match="a record of 11 bytes"):
        reader.feed([memoryview(b"\x80\0\0\5")])


def test_a_refused_record_does_not_spoil_those_before_it() -> None:
    reader = RecordReader(record_bytes_max=10)
    (record,) = reader.feed([memoryview(fragment(b"0123456789", last=True))])
    assert whole(record) == b"0123456789"


def test_empty_fragments_without_end_are_refused() -> None:
    reader = RecordReader()
    empty = memoryview(bytes(4 * limits.RECORD_EMPTY_FRAGMENTS_MAX))
    assert reader.feed([empty]) == []
    with pytest.raises(RecordError, match="empty fragments"):
        reader.feed([memoryview(bytes(4))])


def test_empty_fragments_are_counted_for_each_record() -> None:
    text = fragmented(b"abc", *[0] * limits.RECORD_EMPTY_FRAGMENTS_MAX) + fragment(b"x", last=True)
    assert feed(RecordReader(), text * 5, 1000) == [b"abc", b"x"] * 5


def test_tiny_pieces_do_not_pile_up() -> None:
    """A MiB of one-byte pieces must not become a million objects."""
    text = memoryview(fragment(bytes(range(256)) * 256, last=True))
    reader = RecordReader()
    pieces_max = 0
    for at in range(0, len(text) - 1):
        assert reader.feed([text[at : at + 1]]) == []
        pieces_max = max(pieces_max, len(reader._pieces))
    (record,) = reader.feed([text[-1:]])
    assert whole(record) == bytes(range(256)) * 256
    assert pieces_max < limits.RECORD_PIECES_MAX + 64 * KiB // limits.RECORD_PIECES_MAX + 1


def test_full_frames_are_never_copied_together() -> None:
    data = bytes(1 * MiB)
    text = mark(len(data)) + data
    frames = [memoryview(text[at : at + 1448]) for at in range(0, len(text), 1448)]
    ((_, rest),) = RecordReader().feed(frames)
    assert len(rest) == len(frames)
