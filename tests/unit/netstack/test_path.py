"""The headers that a path makes: scapy finds them right, on both kinds of link."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.l2 import Ether

from appliance.limits import PATH_MTU_LEARNT_FOR, PATHS_MAX
from appliance.netstack.ip.addresses import HostConfig
from appliance.netstack.ip.internet import Internet
from appliance.netstack.ip.link_path import LinkPath, cut
from appliance.netstack.link.segmentation import wire_frames
from appliance.netstack.timers import Timers
from appliance.netstack.udp import Udp
from appliance.netstack.wire.address import address_text
from appliance.trace import Counters
from tests.sim.station import OUR_ADDRESS, OUR_MAC, OURS, PEER_ADDRESS, PEER_MAC

Buffer = bytes | bytearray | memoryview


class Recorder:
    """A link that keeps what is sent."""

    def __init__(self, vnet: bool = False, mtu: int = 1500) -> None:
        self.vnet = vnet
        self.mtu = mtu
        self.frames: list[bytes] = []
        self.takes = True

    def receive(self) -> bytes | None:
        return None

    def send(self, buffers: Sequence[Buffer]) -> bool:
        if self.takes:
            self.frames.append(b"".join(buffers))
        return self.takes


class Nets:
    """Paths and neighbours over a recorder."""

    def __init__(self, vnet: bool = False, config: HostConfig = OURS, mtu: int = 1500) -> None:
        self.link = Recorder(vnet, mtu)
        self.counters = Counters()
        self.timers = Timers()
        self.ip = Internet(
            self.link,
            config,
            *[lambda *_: None] * 3,
            timers=self.timers,
            random=Random(1),
            counters=self.counters,
        )
        self.paths = self.ip.paths

    def path(self, destination: bytes = PEER_ADDRESS) -> LinkPath:
        path = self.paths.to(destination)
        path.resolved(PEER_MAC)
        return path

    def udp(self) -> Udp:
        return Udp(self.paths.to, self.ip.port_unreachable, self.counters)


def tcp_header(path: LinkPath, text_bytes: int) -> bytes:
    """A header as TCP makes it: the pseudo-header's sum where the link finishes checksums."""
    raw = bytearray(bytes(TCP(sport=2049, dport=700, flags="PA")))
    total = path.pseudo_sum + 6 + len(raw) + text_bytes
    raw[16:18] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytes(raw)


@given(st.integers(0, 1460), st.binary(min_size=4, max_size=4))
def test_a_tcp_packet_has_the_headers_that_scapy_would_give_it(count: int, last: bytes) -> None:
    nets = Nets()
    destination = bytes([10, 0, 0, 1 + last[0] % 250])
    path = nets.path(destination)
    text = (last * 400)[:count]
    path.send_tcp(tcp_header(path, count), [text[:5], memoryview(text)[5:]], count, 1460)
    (frame,) = nets.link.frames
    seen = Ether(frame)
    assert (seen.src, seen.dst) == (OUR_MAC.hex(":"), PEER_MAC.hex(":"))
    assert (seen[IP].src, seen[IP].dst) == ("10.0.0.5", address_text(destination))
    assert seen[IP].flags.DF and seen[IP].ttl == 64 and seen[IP].len == 40 + count
    del seen[IP].chksum
    assert bytes(seen) == frame


@given(st.integers(0, 255))
def test_the_type_of_service_is_in_the_header_and_its_checksum(service: int) -> None:
    """RFC 2474, RFC 3168: and does not stay there for the next packet."""
    nets = Nets()
    path = nets.path()
    path.send_tcp(tcp_header(path, 0), [], 0, 1460, service)
    path.send_tcp(tcp_header(path, 0), [], 0, 1460)
    for frame, expected in zip(nets.link.frames, (service, 0), strict=True):
        seen = Ether(frame)
        assert seen[IP].tos == expected
        del seen[IP].chksum
        assert bytes(seen) == frame


def test_a_super_frame_says_how_it_is_to_be_cut() -> None:
    nets = Nets(vnet=True)
    path = nets.path()
    text = bytes(range(256)) * 200
    for mss in (1460, 1000, 1460):
        path.send_tcp(tcp_header(path, len(text)), [text], len(text), mss)
        segments = [Ether(f) for f in wire_frames(nets.link.frames.pop())]
        assert {len(s[TCP].payload) for s in segments[:-1]} == {mss}
        assert b"".join(bytes(s[TCP].payload) for s in segments) == text
        for segment in segments:
            raw = bytes(segment)
            del segment[IP].chksum, segment[TCP].chksum
            assert bytes(segment) == raw


def test_a_small_packet_after_a_super_frame_is_not_cut() -> None:
    nets = Nets(vnet=True)
    path = nets.path()
    path.send_tcp(tcp_header(path, 9000), [bytes(9000)], 9000, 1460)
    path.send_tcp(tcp_header(path, 1460), [bytes(1460)], 1460, 1460)
    (frame,) = wire_frames(nets.link.frames[1])
    assert len(frame) == 1514


def test_a_super_frame_of_the_promised_size_is_a_packet() -> None:
    path = Nets(vnet=True).path()
    assert 20 + 60 + path.segment_bytes_max == 65535
    assert Nets(vnet=False).path().segment_bytes_max == 0


@pytest.mark.parametrize("vnet", [False, True])
@pytest.mark.parametrize("count", [0, 1, 1472, 1473, 9000, 32768, 65507])
def test_a_datagram_arrives_whole_whatever_its_size(vnet: bool, count: int) -> None:
    nets = Nets(vnet)
    nets.path()
    udp = nets.udp()
    data = (bytes(range(251)) * 262)[:count]
    third = count // 3
    pieces: list[Buffer] = [data[:third], memoryview(data)[third:]]
    assert udp.send(2049, PEER_ADDRESS, 700, pieces)
    frames = nets.link.frames
    if vnet:
        frames = [bare for frame in frames for bare in wire_frames(frame)]
    assert all(len(f) <= 1514 for f in frames)
    (whole,) = defragment([Ether(f)[IP] for f in frames])  # type: ignore[no-untyped-call]
    whole = IP(bytes(whole))
    assert bytes(whole[UDP].payload)[:count] == data
    wanted = whole[UDP].chksum
    del whole[UDP].chksum
    assert IP(bytes(whole))[UDP].chksum == wanted != 0


def test_a_datagram_that_is_too_large_is_not_sent() -> None:
    nets = Nets()
    udp = nets.udp()
    assert not udp.send(2049, PEER_ADDRESS, 700, [bytes(65508)])
    assert not udp.send(2049, PEER_ADDRESS, 0, [b"nobody has port 0"])
    assert nets.counters["udp.cannot_be_sent"] == 2
    assert not nets.link.frames


def test_fragments_of_two_datagrams_cannot_be_mixed_up() -> None:
    nets = Nets()
    path = nets.path()
    for _ in range(2):
        path.send(1, [bytes(ICMP()), bytes(3000)], 3008)
    ids = [Ether(f)[IP].id for f in nets.link.frames]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4] == ids[5]


def test_a_link_that_takes_nothing_is_counted() -> None:
    nets = Nets()
    path = nets.path()
    nets.link.takes = False
    path.send_tcp(tcp_header(path, 0), [], 0, 1460)
    assert not path.send(1, [bytes(3000)], 3000)
    assert nets.counters["link.refused"] == 2, "the other fragments are of no use"


def test_a_destination_without_a_way_is_counted() -> None:
    nets = Nets(config=HostConfig.single(OUR_MAC, OUR_ADDRESS, 24))
    for nowhere in (bytes([192, 0, 2, 1]), bytes([10, 0, 0, 0]), bytes(4)):
        path = nets.paths.to(nowhere)
        path.send_tcp(tcp_header(path, 0), [], 0, 1460)
    assert nets.counters == {"ip.no_route": 3}
    assert not nets.link.frames


def test_what_is_not_on_the_link_goes_over_the_gateway() -> None:
    nets = Nets()
    path = nets.paths.to(bytes([192, 0, 2, 1]))
    path.send_tcp(tcp_header(path, 0), [], 0, 1460)
    assert "10.0.0.254" in str(Ether(nets.link.frames[0]).payload.pdst)


def test_paths_are_bounded_and_the_one_in_use_stays() -> None:
    nets = Nets()
    mine = nets.paths.to(PEER_ADDRESS)
    for number in range(3 * PATHS_MAX):
        nets.paths.to(b"\xc0" + number.to_bytes(3, "big"))
        assert nets.paths.to(PEER_ADDRESS) is mine
    assert len(nets.paths) == PATHS_MAX


def test_a_smaller_path_mtu_is_learnt_and_forgotten() -> None:
    nets = Nets()
    path = nets.path()
    nets.paths.learn_mtu(PEER_ADDRESS, 1400, 0)
    assert path.mtu == 1400
    nets.paths.learn_mtu(PEER_ADDRESS, 1450, 0)
    assert path.mtu == 1400, "only a smaller one is news"
    nets.paths.learn_mtu(PEER_ADDRESS, 68, 0)
    assert path.mtu == 552, "nobody talks us into tiny packets"
    nets.timers.expire(PATH_MTU_LEARNT_FOR)
    assert path.mtu == 1500


@given(st.lists(st.binary(max_size=20), max_size=10), st.integers(1, 12))
def test_cut_gives_back_all_bytes_in_pieces_of_one_size(buffers: list[bytes], size: int) -> None:
    pieces = [b"".join(piece) for piece in cut(buffers, size)]
    assert b"".join(pieces) == b"".join(buffers)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)
