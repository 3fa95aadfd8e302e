"""The segment on the wire, against scapy, which knows nothing of our code."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from appliance.netstack.wire import tcp
from appliance.netstack.wire.checksum import word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.tcp import ACK, FIN, PSH, SYN, Segment, parse

u8, u16, u32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
segments = st.builds(
    Segment,
    u16,
    u16,
    u32,
    u32,
    u8,
    u16,
    st.binary(max_size=50),
    mss=st.none() | u16,
    window_scale=st.none() | st.integers(0, 14),
    timestamp=st.none() | st.tuples(u32, u32),
    sack_permitted=st.booleans(),
)


@given(segments)
def test_what_is_emitted_is_parsed(segment: Segment) -> None:
    """RFC 9293 section 3.1."""
    packet = bytes(segment.emit()) + bytes(segment.text)
    again = parse(packet, 0, len(packet))
    again.text = bytes(again.text)
    assert again == segment


@given(segments)
def test_scapy_reads_the_same(segment: Segment) -> None:
    """An independent opinion on every field. There is no end of the options, which would have to be
    followed by zeros (RFC 9293 MUST-69), and everything else in them has a length (MUST-68)."""
    packet = TCP(bytes(segment.emit()) + bytes(segment.text))
    assert (packet.sport, packet.dport) == (segment.source_port, segment.destination_port)
    assert (packet.seq, packet.ack) == (segment.seq, segment.ack)
    assert (int(packet.flags) & 0xFF, packet.window) == (segment.flags, segment.wnd)
    options = dict(option for option in packet.options if option[0] != "NOP")
    assert options.get("MSS") == segment.mss
    assert options.get("WScale") == segment.window_scale
    assert options.get("Timestamp") == segment.timestamp
    assert ("SAckOK" in options) == segment.sack_permitted
    assert set(options) <= {"MSS", "WScale", "Timestamp", "SAckOK"}
    assert bytes(packet.payload) == bytes(segment.text)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_segment_or_bad(packet: bytes) -> None:
    """Never another exception, and nothing beyond the packet is read."""
    with suppress(BadPacket):
        segment = parse(packet, 0, len(packet))
        assert len(segment.text) <= len(packet) - tcp.HEADER_BYTES


@given(segments, st.binary(max_size=20), st.binary(max_size=20))
def test_a_segment_inside_a_frame(segment: Segment, before: bytes, behind: bytes) -> None:
    """parse and the checksum look at [at, end) and at nothing else."""
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    packet = segment.emit() + bytes(segment.text)
    pseudo = addresses + bytes((0, 6)) + len(packet).to_bytes(2, "big")
    packet[16:18] = (0xFFFF - word_sum(pseudo + bytes(packet))).to_bytes(2, "big")
    at, end = len(before), len(before) + len(packet)
    frame = before + bytes(packet) + behind
    assert tcp.checksum_is_good(addresses, frame, at, end)
    assert bytes(parse(frame, at, end).text) == bytes(segment.text)
    packet[0] ^= 1
    assert not tcp.checksum_is_good(addresses, before + bytes(packet) + behind, at, end)


@pytest.mark.parametrize(
    ("flags", "text", "length"),
    [(ACK, b"abc", 3), (SYN, b"", 1), (FIN | ACK, b"ab", 3), (SYN | FIN, b"a", 3), (ACK, b"", 0)],
)
def test_the_length_counts_syn_and_fin(flags: int, text: bytes, length: int) -> None:
    """RFC 9293 section 3.3.1: SEG.LEN."""
    assert Segment(1, 2, 0, 0, flags, 0, text).length == length


def test_it_prints_like_tcpdump() -> None:
    """So that it can be compared with one."""
    segment = Segment(
        40000, 2049, 5, 7, PSH | ACK, 100, b"abc", mss=1460, window_scale=7, timestamp=(1, 2)
    )
    assert str(segment) == (
        "40000 > 2049: Flags [P.], seq 5:8, ack 7, win 100, "
        "options [mss 1460,wscale 7,TS val 1 ecr 2], length 3"
    )


def test_the_packers_of_a_connection_agree_with_emit() -> None:
    """A connection fills its header in place; the bytes must be those of a Segment."""
    for stamp in (None, (77, 88)):
        expected = Segment(1, 2, 3, 4, ACK | PSH, 5, timestamp=stamp).emit()
        header = bytearray(expected[:4]) + bytearray(len(expected) - 4)
        if stamp is None:
            tcp.pack_plain(header, tcp.CHANGING, 3, 4, tcp.PLAIN_OFFSET | ACK | PSH, 5, 0)
        else:
            offset = tcp.STAMPED_OFFSET | ACK | PSH
            tcp.pack_stamped(header, tcp.CHANGING, 3, 4, offset, 5, 0, tcp.STAMP_PREFIX, *stamp)
        assert header == expected
