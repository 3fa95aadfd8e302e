"""Reassembly: whatever order fragments come in, and whatever they try, the datagram is right or it
is dropped; and memory stays within its limits. (F1 to F4: the invariants of ip/fragments.py.)"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, fragment

from appliance.clock import SECOND, Instant
from appliance.limits import (
    FRAGMENT_BYTES_MAX,
    FRAGMENT_FLOWS_MAX,
    FRAGMENT_OVERHEAD_BYTES,
    FRAGMENT_PIECES_MAX,
    FRAGMENT_WAITS,
)
from appliance.netstack.ip.v4.fragments import Ipv4Reassembly
from appliance.netstack.timers import Timers
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import Ipv4Header
from appliance.trace import Counters


def scapy_fragments(packet: IP, size: int) -> list[IP]:
    cut: list[IP] = fragment(packet, size)  # type: ignore[no-untyped-call]
    return cut


class Table:
    """A reassembly, with what it reports."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.counters = Counters()
        self.timed_out: list[bytes] = []
        self.reassembly = Ipv4Reassembly(self.timers, self.counters, self._timed_out)

    def _timed_out(self, packet: bytes, _now: Instant) -> None:
        self.timed_out.append(packet)

    def add(
        self,
        start: int,
        text: bytes,
        *,
        more: bool = True,
        identification: int = 1,
        now: Instant = 0,
    ) -> bytes | str | None:
        """The text of the datagram, None while it is not complete, or why it was dropped."""
        header = Ipv4Header(
            b"\x0a\0\0\1",
            b"\x0a\0\0\5",
            17,
            20 + len(text),
            identification,
            more_fragments=more,
            offset=start,
        )
        packet = b"before" + header.emit() + text + b"padding"
        try:
            whole = self.reassembly.add(header, packet, 6, now)
        except BadPacket as bad:
            return bad.reason
        return None if whole is None else whole[20:]


class Model:
    """What a datagram is, by the byte: the naive oracle for one flow."""

    def __init__(self) -> None:
        self.extents: set[tuple[int, int, bool]] = set()
        self.known: dict[int, int] = {}
        self.end: int | None = None
        self.dead = False

    def add(self, start: int, text: bytes, more: bool) -> bytes | str | None:
        stop = start + len(text)
        if self.dead:
            return "ip.fragment_condemned"
        if (start, stop, more) in self.extents:
            return "ip.fragment_duplicate"
        overlaps = any(at in self.known for at in range(start, stop))
        beyond = self.end is not None and stop > self.end
        short = not more and any(at >= stop for at in self.known)
        second_end = not more and self.end is not None
        if overlaps or beyond or short or second_end:
            self.dead = True
            return "ip.fragment_overlap"
        self.extents.add((start, stop, more))
        self.known.update(zip(range(start, stop), text, strict=True))
        if not more:
            self.end = stop
        if self.end is not None and len(self.known) == self.end:
            return bytes(self.known[at] for at in range(self.end))
        return None


pieces = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 4), st.booleans(), st.integers(0, 255)),
    max_size=14,
)


@settings(max_examples=500)
@given(pieces)
def test_any_fragments_at_all_give_what_the_naive_model_gives(
    tries: list[tuple[int, int, bool, int]],
) -> None:
    table, model = Table(), Model()
    for start, units, more, fill in tries:
        text = bytes([fill]) * (units * 8 if more else units * 8 - fill % 8)
        expected = model.add(start * 8, text, more)
        assert table.add(start * 8, text, more=more) == expected
        if isinstance(expected, bytes):
            return
        assert table.reassembly.charged_bytes <= FRAGMENT_BYTES_MAX


@given(st.binary(min_size=9, max_size=4000), st.integers(1, 100), st.randoms(use_true_random=False))
def test_a_datagram_that_scapy_cut_is_whole_again_in_any_order(
    data: bytes, units: int, random: Random
) -> None:
    original = IP(src="10.0.0.1", dst="10.0.0.5", id=77, proto=99) / data
    cut = [bytes(piece) for piece in scapy_fragments(original, units * 8)]
    random.shuffle(cut)
    table = Table()
    results = []
    for raw in cut:
        header = Ipv4Header.parse(raw, 0, len(raw))
        if header.is_fragment:
            results.append(table.reassembly.add(header, raw, 0, 0))
        else:
            results.append(raw)
    assert results[:-1] == [None] * (len(cut) - 1)
    whole = results[-1]
    assert whole is not None
    assert bytes(IP(whole)) == bytes(IP(bytes(original)))
    assert table.reassembly.charged_bytes == 0


def test_the_whole_packet_keeps_the_options_of_the_first_fragment() -> None:
    original = IP(src="10.0.0.1", dst="10.0.0.5", proto=99, options=[b"\x94\x04\0\0"]) / bytes(64)
    table = Table()
    whole = None
    for piece in scapy_fragments(original, 32):
        raw = bytes(piece)
        header = Ipv4Header.parse(raw, 0, len(raw))
        whole = table.reassembly.add(header, raw, 0, 0)
    assert whole == bytes(original)


def test_F1_an_exact_duplicate_is_tolerated_and_the_first_one_counts() -> None:
    table = Table()
    assert table.add(0, b"a" * 8) is None
    assert table.add(0, b"b" * 8) == "ip.fragment_duplicate"
    assert table.add(8, b"c", more=False) == b"a" * 8 + b"c"


@pytest.mark.parametrize(
    ("start", "length"), [(0, 16), (0, 32), (8, 16), (16, 8), (24, 16), (8, 40), (0, 8)]
)
def test_F1_any_other_overlap_condemns_the_datagram(start: int, length: int) -> None:
    """Teardrop, and its kin."""
    table = Table()
    table.add(8, bytes(24))
    expected = None if start + length <= 8 else "ip.fragment_overlap"
    assert table.add(start, bytes(length)) == expected


def test_F2_a_condemned_datagram_does_not_begin_anew() -> None:
    table = Table()
    table.add(0, bytes(16))
    assert table.add(8, bytes(16)) == "ip.fragment_overlap"
    assert table.add(0, bytes(16)) == "ip.fragment_condemned"
    assert table.add(16, b"end", more=False) == "ip.fragment_condemned"
    assert table.reassembly.charged_bytes == FRAGMENT_OVERHEAD_BYTES
    table.timers.expire(FRAGMENT_WAITS)
    assert len(table.reassembly) == table.reassembly.charged_bytes == 0
    assert not table.timed_out, "what was condemned is not reported"


@pytest.mark.parametrize(
    ("start", "length", "more", "reason"),
    [
        (0, 0, True, "ip.fragment_empty"),
        (8, 0, False, "ip.fragment_empty"),
        (0, 9, True, "ip.fragment_bad_length"),
        (65528, 8, False, "ip.fragment_too_long"),
        (65504, 12, False, "ip.fragment_too_long"),
        (65512, 8, True, "ip.fragment_too_long"),
    ],
)
def test_fragments_that_cannot_be_part_of_a_datagram_start_nothing(
    start: int, length: int, more: bool, reason: str
) -> None:
    table = Table()
    assert table.add(start, bytes(length), more=more) == reason
    assert len(table.reassembly) == 0


def test_the_largest_datagram_fits() -> None:
    table = Table()
    assert table.add(65504, bytes(11), more=False) is None
    result = None
    for start in range(0, 65504, 1424):
        result = table.add(start, bytes(min(1424, 65504 - start)))
    assert result == bytes(65515)


def test_two_different_ends_condemn_the_datagram() -> None:
    table = Table()
    table.add(16, bytes(8), more=False)
    assert table.add(32, bytes(8), more=False) == "ip.fragment_overlap"
    other = Table()
    other.add(16, bytes(8))
    assert other.add(8, bytes(8), more=False) == "ip.fragment_overlap"


def test_a_datagram_of_very_many_fragments_is_dropped() -> None:
    table = Table()
    for number in range(FRAGMENT_PIECES_MAX):
        assert table.add(8 * number, bytes(8)) is None
    assert table.add(8 * FRAGMENT_PIECES_MAX, bytes(8)) == "ip.fragment_too_many"
    assert table.reassembly.charged_bytes == FRAGMENT_OVERHEAD_BYTES


def test_an_incomplete_datagram_is_reported_by_its_first_fragment() -> None:
    table = Table()
    table.add(0, b"the ports and so", now=5)
    table.add(32, bytes(8), identification=2, now=5)
    table.timers.expire(4 + FRAGMENT_WAITS)
    assert len(table.reassembly) == 2
    table.timers.expire(5 + FRAGMENT_WAITS)
    assert len(table.reassembly) == table.reassembly.charged_bytes == 0
    (packet,) = table.timed_out
    assert packet[20:] == b"the ports and so"
    assert Ipv4Header.parse(packet, 0, len(packet)).more_fragments
    assert table.counters["ip.fragment_timeout"] == 2


def test_time_runs_for_each_datagram_by_itself() -> None:
    table = Table()
    for second in range(40):
        table.timers.expire(second * SECOND)
        table.add(0, bytes(8), identification=second, now=second * SECOND)
    assert len(table.reassembly) == 30
    table.timers.expire(100 * SECOND)
    assert len(table.reassembly) == 0
    assert table.timers.next_deadline is None


def test_F3_a_flood_of_datagrams_that_never_end_stays_within_the_limits() -> None:
    table = Table()
    for number in range(5000):
        table.add(0, bytes(64 * 1024 - 8 * 8), identification=number % 65536)
        assert table.reassembly.charged_bytes <= FRAGMENT_BYTES_MAX
        assert len(table.reassembly) <= FRAGMENT_FLOWS_MAX
    assert table.counters["ip.fragment_evicted"] > 4000
    assert table.add(0, b"a" * 8, identification=9999) is None
    assert table.add(8, b"b", more=False, identification=9999) == b"aaaaaaaab"


def test_F3_tiny_fragments_are_charged_for_what_they_cost() -> None:
    table = Table()
    for number in range(FRAGMENT_FLOWS_MAX):
        for piece in range(FRAGMENT_PIECES_MAX):
            table.add(16 * piece, bytes(8), identification=number)
    assert table.reassembly.charged_bytes <= FRAGMENT_BYTES_MAX
    assert len(table.reassembly) < FRAGMENT_FLOWS_MAX
