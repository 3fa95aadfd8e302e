"""The content of a file in memory, against a plain bytearray."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.limits import KiB
from appliance.vfs.interface import Buffer
from appliance.vfs.sparse import CHUNK_BYTES, PAGE_BYTES, SparseBytes, pieces
from tests.unit.vfs.tools import text

SIZE_MAX = 4 * CHUNK_BYTES
BORDERS = [0, 1, PAGE_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]

offsets = st.sampled_from(BORDERS) | st.integers(0, SIZE_MAX)
lengths = st.sampled_from([n for n in BORDERS if n]) | st.integers(1, CHUNK_BYTES)
Step = tuple[str, int, int, list[int]]
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("write"), offsets, lengths, st.lists(st.integers(1, 40 * KiB), max_size=3)),
    st.tuples(st.just("read"), offsets, lengths, st.just([])),
    st.tuples(st.just("truncate"), offsets, st.just(0), st.just([])),
)


def cut(data: bytes, lengths: list[int]) -> list[memoryview]:
    """`data` in pieces, as the network would bring it."""
    rest = memoryview(data)
    parts = []
    for length in lengths:
        parts.append(rest[:length])
        rest = rest[length:]
    return [*parts, rest]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(steps, min_size=1, max_size=12))
def test_it_behaves_as_a_bytearray_and_what_was_read_never_changes(script: list[Step]) -> None:
    sparse, model = SparseBytes(), bytearray(SIZE_MAX + 3 * CHUNK_BYTES + 1)
    given_out: list[tuple[list[Buffer], bytes]] = []
    for number, (verb, offset, length, cuts) in enumerate(script, 1):
        where = pieces(offset, offset + length)
        if verb == "write":
            data = bytes((number,)) * length
            before = sparse.stored_bytes
            growth = sparse.growth(where)
            sparse.write(where, cut(data, cuts))
            model[offset : offset + length] = data
            assert sparse.stored_bytes == before + growth
        elif verb == "read":
            buffers = sparse.read(where)
            assert text(buffers) == model[offset : offset + length]
            given_out.append((buffers, text(buffers)))
        else:
            sparse.truncate(offset)
            model[offset:] = bytes(len(model) - offset)
    assert text(sparse.read(pieces(0, len(model)))) == model
    for kept, at_that_time in given_out:
        assert text(kept) == at_that_time


def test_reading_copies_nothing() -> None:
    sparse = SparseBytes()
    where = pieces(0, 2 * CHUNK_BYTES)
    sparse.write(where, [bytes(2 * CHUNK_BYTES)])
    first, again = sparse.read(where), sparse.read(where)
    assert [memoryview(one).obj for one in first] == [memoryview(one).obj for one in again]
    assert all(
        memoryview(one).obj is memoryview(other).obj
        for one, other in zip(first, again, strict=True)
    )


def test_writing_to_what_nobody_reads_is_done_in_place() -> None:
    sparse = SparseBytes()
    where = pieces(0, CHUNK_BYTES)
    sparse.write(where, [bytes(CHUNK_BYTES)])
    chunk = sparse._chunks[0]
    sparse.write(pieces(5, 9), [b"abcd"])
    assert sparse._chunks[0] is chunk


def test_holes_use_no_storage() -> None:
    sparse = SparseBytes()
    far = 1 << 50
    sparse.write(pieces(far, far + 1), [b"x"])
    assert sparse.stored_bytes == PAGE_BYTES
    assert text(sparse.read(pieces(far - 3, far + 1))) == b"\0\0\0x"
