"""What a super-frame becomes on a wire: segments and fragments that scapy finds sound, and that are
together what was sent."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP, defragment
from scapy.layers.l2 import Ether

from appliance.netstack.link.segmentation import wire_frames
from appliance.netstack.wire import vnet
from appliance.netstack.wire.checksum import fold, pseudo_header_sum, word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader

A, B = "10.0.0.5", "10.0.0.1"
DATA = bytes(range(256)) * 40


def assert_sound(frame: bytes) -> Ether:
    """Scapy computes the same checksums and lengths."""
    seen = Ether(frame)
    again = seen.copy()
    for layer in (IP, TCP, UDP):
        if layer in again and not (layer is UDP and again[IP].frag):
            del again[layer].chksum
            if layer is not TCP:
                del again[layer].len
    if not (seen[IP].frag or seen[IP].flags.MF):
        assert bytes(again) == frame
    return seen


def unfinished(frame: Ether, at: int) -> bytes:
    """The frame as a stack leaves it to the link: the pseudo-header's sum in the checksum field."""
    raw = bytearray(bytes(frame))
    protocol, length = raw[23], len(raw) - 34
    total = pseudo_header_sum(fold(word_sum(raw[26:34])), protocol, length)
    raw[34 + at : 36 + at] = total.to_bytes(2, "big")
    return bytes(raw)


def tcp_frame(data: bytes, flags: str = "PAF", options: int = 0) -> bytes:
    tcp = TCP(sport=2049, dport=700, seq=0xFFFF_FF00, ack=7, flags=flags)
    tcp.options = [("NOP", None)] * options
    return unfinished(Ether() / IP(src=A, dst=B, flags="DF", id=65535) / tcp / data, 16)


def udp_frame(data: bytes) -> bytes:
    return unfinished(Ether() / IP(src=A, dst=B) / UDP(sport=2049, dport=700) / data, 6)


@pytest.mark.parametrize("options", [0, 12])
@pytest.mark.parametrize("size", [88, 1000, 1448, 10239, 10240])
def test_a_tcp_super_frame_is_cut_into_segments(size: int, options: int) -> None:
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_TCPV4, 54, size, 34, 16)
    segments = [
        assert_sound(frame)
        for frame in wire_frames(header.emit() + tcp_frame(DATA, "PAFC", options))
    ]
    assert b"".join(bytes(s[TCP].payload) for s in segments) == DATA
    assert all(len(s[TCP].payload) <= size for s in segments)
    assert [s[TCP].seq for s in segments] == [
        (0xFFFF_FF00 + at) % 2**32 for at in range(0, len(DATA), size)
    ]
    assert len({s[IP].id for s in segments}) == len(segments)
    first, last = segments[0], segments[-1]
    assert first[TCP].flags.C and all(not s[TCP].flags.C for s in segments[1:])
    assert last[TCP].flags.F and all(not s[TCP].flags.F for s in segments[:-1])
    assert last[TCP].flags.P and all(not s[TCP].flags.P for s in segments[:-1])


def test_a_frame_that_is_not_cut_gets_its_checksum() -> None:
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_NONE, 0, 0, 34, 16)
    (frame,) = wire_frames(header.emit() + tcp_frame(b"some text"))
    assert bytes(assert_sound(frame)[TCP].payload) == b"some text"


def test_a_frame_that_leaves_nothing_to_us_is_not_touched() -> None:
    frame = bytes(Ether() / IP(src=A, dst=B) / UDP() / DATA[:100])
    assert list(wire_frames(vnet.NOTHING + frame)) == [frame]


def test_a_udp_super_frame_is_many_datagrams() -> None:
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_UDP_L4, 42, 1000, 34, 6)
    datagrams = [assert_sound(f) for f in wire_frames(header.emit() + udp_frame(DATA))]
    assert [bytes(d[UDP].payload) for d in datagrams] == [
        DATA[at : at + 1000] for at in range(0, len(DATA), 1000)
    ]


def test_a_large_datagram_is_cut_into_fragments() -> None:
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_UDP, 42, 1480, 34, 6)
    fragments = [assert_sound(f)[IP] for f in wire_frames(header.emit() + udp_frame(DATA))]
    assert [f.frag * 8 for f in fragments] == list(range(0, len(DATA) + 8, 1480))
    assert [bool(f.flags.MF) for f in fragments] == [True] * (len(fragments) - 1) + [False]
    (whole,) = defragment(fragments)  # type: ignore[no-untyped-call]
    whole = IP(bytes(whole))
    assert bytes(whole[UDP].payload) == DATA
    wanted = whole[UDP].chksum
    del whole[UDP].chksum
    assert IP(bytes(whole))[UDP].chksum == wanted


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (vnet.GSO_TCPV4, udp_frame(DATA)),
        (vnet.GSO_UDP_L4, tcp_frame(DATA)),
        (vnet.GSO_TCPV4, bytes(Ether(type=0x800)) + bytes(100)),
        (vnet.GSO_TCPV4, tcp_frame(b"")),
        (vnet.GSO_TCPV4, tcp_frame(DATA)[:50]),
        (vnet.GSO_TCPV4, bytes(13)),
        (vnet.GSO_UDP, udp_frame(DATA)[:30]),
        (vnet.GSO_UDP, bytes(Ether() / IP(src=A, dst=B, flags="MF") / DATA)),
    ],
)
def test_a_header_that_does_not_fit_the_frame_is_refused(kind: int, frame: bytes) -> None:
    header = VnetHeader(0, kind, 0, 8, 0, 0)
    with pytest.raises(BadPacket):
        list(wire_frames(header.emit() + frame))


def test_no_beginning_of_a_super_frame_does_harm() -> None:
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_TCPV4, 54, 100, 34, 16)
    whole = header.emit() + tcp_frame(DATA[:300])
    for length in range(len(whole)):
        with pytest.raises(BadPacket):
            list(wire_frames(whole[:length]))
