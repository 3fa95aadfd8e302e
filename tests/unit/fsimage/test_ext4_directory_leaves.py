"""Leaves of an indexed directory are split where both halves have room for any name."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from appliance.fsimage.ext4 import index_changes

LEAF_BYTES = 1024 - 12
"""The smallest, with a checksum."""

LONGEST = 264
"""The entry of a name of 255 bytes."""

entry_lengths = st.sampled_from([LONGEST, LONGEST, 200, 72, 12])


@example([LONGEST] * 3 + [12] * 5)
@given(st.lists(entry_lengths, min_size=2, max_size=30))
def test_the_longest_name_finds_room_in_either_half(lengths: list[int]) -> None:
    """Also if a few long names are followed by many short ones, whatever was full before."""
    while sum(lengths) > LEAF_BYTES:
        lengths.pop()
    middle = index_changes.middle_of(lengths)
    lower, upper = lengths[:middle], lengths[middle:]
    assert lower
    assert upper
    assert max(sum(lower), sum(upper)) <= LEAF_BYTES - LONGEST
