"""The headers below TCP: scapy reads what we write, we read what scapy writes, and whatever is cut
off or contradicts itself is a BadPacket with a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from appliance.netstack.wire import arp, icmp, ipv4, udp
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.arp import ArpPacket
from appliance.netstack.wire.checksum import fold, word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import EthernetHeader, mac_text
from appliance.netstack.wire.icmp import IcmpHeader
from appliance.netstack.wire.ipv4 import Ipv4Header
from appliance.netstack.wire.udp import UdpHeader
from appliance.netstack.wire.vnet import (
    DATA_VALID,
    GSO_TCPV4,
    NEEDS_CSUM,
    VnetHeader,
)

macs = st.binary(min_size=6, max_size=6)
addresses = st.binary(min_size=4, max_size=4)
words = st.integers(0, 0xFFFF)


def reason_of(parse: Callable[[], object]) -> str:
    with pytest.raises(BadPacket) as caught:
        parse()
    return caught.value.reason


# --- Ethernet -------------------------------------------------------------------------


@given(macs, macs, st.integers(0x600, 0xFFFF))
def test_ethernet_is_what_scapy_reads(destination: bytes, source: bytes, kind: int) -> None:
    header = EthernetHeader(destination, source, kind)
    seen = Ether(header.emit())
    assert (seen.dst, seen.src, seen.type) == (mac_text(destination), mac_text(source), kind)
    assert EthernetHeader.parse(b"front" + header.emit(), 5) == header


@pytest.mark.parametrize("length", range(14))
def test_a_cut_ethernet_header_is_refused(length: int) -> None:
    frame = bytes(Ether(type=0x800))[:length]
    assert reason_of(lambda: EthernetHeader.parse(frame)) == "ethernet.truncated"


def test_a_length_in_the_place_of_the_type_is_refused() -> None:
    frame = EthernetHeader(bytes(6), bytes(6), 0x05FF).emit()
    assert reason_of(lambda: EthernetHeader.parse(frame)) == "ethernet.802_3"


# --- ARP ------------------------------------------------------------------------------


@given(st.sampled_from((1, 2)), macs, addresses, macs, addresses)
def test_arp_is_what_scapy_reads(
    operation: int, sender: bytes, sender_address: bytes, target: bytes, target_address: bytes
) -> None:
    packet = ArpPacket(operation, sender, sender_address, target, target_address)
    seen = ARP(packet.emit())
    assert (seen.op, seen.hwsrc, seen.hwdst) == (operation, mac_text(sender), mac_text(target))
    assert (seen.psrc, seen.pdst) == (address_text(sender_address), address_text(target_address))
    if not sender[0] & 1 and any(sender):
        assert ArpPacket.parse(packet.emit(), 0) == packet


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hwtype": 6}, "arp.unknown_type"),
        ({"ptype": 0x86DD}, "arp.unknown_type"),
        ({"hwlen": 8}, "arp.bad_length"),
        ({"plen": 16}, "arp.bad_length"),
        ({"op": 0}, "arp.unknown_operation"),
        ({"op": 3}, "arp.unknown_operation"),
        ({"hwsrc": "ff:ff:ff:ff:ff:ff"}, "arp.bad_sender"),
        ({"hwsrc": "01:00:5e:00:00:01"}, "arp.bad_sender"),
        ({"hwsrc": "00:00:00:00:00:00"}, "arp.bad_sender"),
    ],
)
def test_odd_arp_packets_are_refused(fields: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {
        "op": 1,
        "hwsrc": "02:00:00:00:00:01",
        "psrc": "10.0.0.1",
        "pdst": "10.0.0.5",
    }
    raw = bytearray(bytes(ARP(**good)))
    changed = {"hwtype": 0, "ptype": 2, "hwlen": 4, "plen": 5}
    for name, value in fields.items():
        if name in changed:  # scapy would change the layout of the rest with these
            width = 2 if name in ("hwtype", "ptype") else 1
            raw[changed[name] : changed[name] + width] = value.to_bytes(width, "big")
        else:
            raw = bytearray(bytes(ARP(**{**good, name: value})))
    assert reason_of(lambda: ArpPacket.parse(bytes(raw), 0)) == reason


@pytest.mark.parametrize("length", range(28))
def test_a_cut_arp_packet_is_refused(length: int) -> None:
    raw = bytes(ARP(hwsrc="02:00:00:00:00:01"))[:length]
    assert reason_of(lambda: ArpPacket.parse(raw, 0)) == "arp.truncated"


def test_arp_packets_say_what_they_are() -> None:
    ours, address = b"\2\0\0\0\0\5", bytes([10, 0, 0, 5])
    assert str(arp.probe(ours, address)) == "arp who-has 10.0.0.5 tell 0.0.0.0"
    assert str(arp.announcement(ours, address)) == "arp who-has 10.0.0.5 tell 10.0.0.5"
    asked = arp.request(b"\2\0\0\0\0\1", bytes([10, 0, 0, 1]), address)
    assert str(arp.reply_to(asked, ours)) == "arp reply 10.0.0.5 is-at 02:00:00:00:00:05"


# --- IPv4 -----------------------------------------------------------------------------


@given(
    addresses,
    addresses,
    st.integers(0, 255),
    words,
    st.booleans(),
    st.booleans(),
    st.integers(0, 0x1FFF),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=20),
)
def test_ipv4_is_what_scapy_reads(
    source: bytes,
    destination: bytes,
    protocol: int,
    identification: int,
    df: bool,
    mf: bool,
    offset: int,
    ttl: int,
    tos: int,
    text: bytes,
) -> None:
    header = Ipv4Header(
        source,
        destination,
        protocol,
        20 + len(text),
        identification,
        df,
        mf,
        offset * 8,
        ttl,
        tos,
    )
    raw = header.emit()
    seen = IP(raw)
    assert (seen.src, seen.dst) == (address_text(source), address_text(destination))
    assert (seen.proto, seen.id, seen.frag, seen.ttl, seen.tos, seen.len) == (
        protocol,
        identification,
        offset,
        ttl,
        tos,
        20 + len(text),
    )
    assert (bool(seen.flags.DF), bool(seen.flags.MF)) == (df, mf)
    del seen.chksum
    assert bytes(seen)[:20] == raw, "scapy computes another checksum"
    packet = raw + text
    assert Ipv4Header.parse(packet, 0, len(packet)) == header


@given(st.integers(0, 10), st.binary(max_size=30), st.integers(0, 40))
def test_options_and_padding_are_skipped(words_of_options: int, text: bytes, pad: int) -> None:
    ip = IP(src="10.0.0.1", dst="10.0.0.5", proto=17, options=[b"\1"] * 4 * words_of_options)
    packet = bytes(ip / text)
    header = Ipv4Header.parse(packet + bytes(pad), 0, len(packet) + pad)
    assert header.header_bytes == 20 + 4 * words_of_options
    assert packet[header.header_bytes : header.total_bytes] == text


@pytest.mark.parametrize("length", range(40))
def test_a_cut_ip_packet_is_refused(length: int) -> None:
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.5") / bytes(20))
    assert reason_of(lambda: Ipv4Header.parse(packet[:length], 0, length)) == "ip.truncated"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 6}, "ip.bad_version"),
        ({"version": 0}, "ip.bad_version"),
        ({"ihl": 4}, "ip.bad_header_length"),
        ({"ihl": 0}, "ip.bad_header_length"),
        ({"ihl": 15}, "ip.bad_total_length"),
        ({"len": 19}, "ip.bad_total_length"),
        ({"len": 0}, "ip.bad_total_length"),
        ({"len": 41}, "ip.truncated"),
        ({"len": 65535}, "ip.truncated"),
        ({"chksum": 0x1234}, "ip.bad_checksum"),
    ],
)
def test_ip_headers_that_contradict_themselves_are_refused(
    fields: dict[str, Any], reason: str
) -> None:
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.5", **fields) / bytes(20))
    assert reason_of(lambda: Ipv4Header.parse(packet, 0, len(packet))) == reason


# --- ICMP -----------------------------------------------------------------------------


@given(st.integers(0, 0xFFFF_FFFF), st.binary(max_size=50))
def test_an_echo_reply_is_what_scapy_reads(rest: int, data: bytes) -> None:
    raw = IcmpHeader(icmp.ECHO_REPLY, 0, rest).emit([data[:7], data[7:]]) + data
    seen = ICMP(raw)
    assert (seen.type, seen.code, seen.id << 16 | seen.seq) == (0, 0, rest)
    wanted = seen.chksum
    del seen.chksum
    assert ICMP(bytes(seen)).chksum == wanted
    assert IcmpHeader.parse(raw, 0, len(raw)) == IcmpHeader(0, 0, rest)


@pytest.mark.parametrize("length", range(8))
def test_a_cut_icmp_message_is_refused(length: int) -> None:
    raw = bytes(ICMP())[:length]
    assert reason_of(lambda: IcmpHeader.parse(raw, 0, length)) == "icmp.truncated"


def test_a_damaged_icmp_message_is_refused() -> None:
    raw = bytearray(bytes(ICMP() / b"data"))
    raw[-1] ^= 1
    assert reason_of(lambda: IcmpHeader.parse(bytes(raw), 0, len(raw))) == "icmp.bad_checksum"


# --- UDP ------------------------------------------------------------------------------


@given(words, words, st.binary(max_size=60), addresses, addresses)
def test_a_udp_checksum_is_what_scapy_computes(
    sport: int, dport: int, data: bytes, source: bytes, destination: bytes
) -> None:
    header = UdpHeader(sport, dport, 8 + len(data))
    sums = fold(word_sum(source) + word_sum(destination))
    header.checksum = udp.datagram_checksum(sums, header.length, word_sum(header.emit() + data))
    ip = IP(src=address_text(source), dst=address_text(destination))
    theirs = bytes(ip / UDP(sport=sport, dport=dport) / data)[20:]
    assert header.emit() + data == theirs
    assert udp.is_sound(header, sums, theirs)


def test_a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() -> None:
    """RFC 768: zero means that there is none."""
    length = 8
    sums = 0xFFFF - ipv4.PROTOCOL_UDP - length
    assert udp.datagram_checksum(sums, length, 0) == 0xFFFF


@pytest.mark.parametrize("length", range(8))
def test_a_cut_udp_header_is_refused(length: int) -> None:
    assert reason_of(lambda: UdpHeader.parse(bytes(length), 0, length)) == "udp.truncated"


@pytest.mark.parametrize(
    ("length", "reason"),
    [(0, "udp.bad_length"), (7, "udp.bad_length"), (13, "udp.truncated"), (65535, "udp.truncated")],
)
def test_udp_lengths_that_cannot_be_are_refused(length: int, reason: str) -> None:
    raw = bytes(UDP(len=length) / b"text")
    assert reason_of(lambda: UdpHeader.parse(raw, 0, len(raw))) == reason


# --- virtio-net -----------------------------------------------------------------------


@given(
    st.integers(0, 255),
    st.sampled_from((0, 1, 3, 4, 5, 0x81)),
    words,
    st.integers(1, 100),
    st.integers(0, 50),
    st.integers(0, 48),
)
def test_a_vnet_header_survives_the_round_trip(
    flags: int, kind: int, hdr_len: int, size: int, start: int, offset: int
) -> None:
    header = VnetHeader(flags, kind, hdr_len, size, start, offset)
    assert VnetHeader.parse(header.emit() + bytes(100)) == header
    assert header.checksum_good == bool(flags & (NEEDS_CSUM | DATA_VALID))


@pytest.mark.parametrize("length", range(10))
def test_a_cut_vnet_header_is_refused(length: int) -> None:
    assert reason_of(lambda: VnetHeader.parse(bytes(length))) == "vnet.truncated"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (VnetHeader(NEEDS_CSUM, csum_start=49, csum_offset=0), "vnet.bad_csum_start"),
        (VnetHeader(NEEDS_CSUM, csum_start=0, csum_offset=49), "vnet.bad_csum_start"),
        (VnetHeader(NEEDS_CSUM, csum_start=0xFFFF, csum_offset=0xFFFF), "vnet.bad_csum_start"),
        (VnetHeader(0, GSO_TCPV4, gso_size=0), "vnet.bad_gso_size"),
        (VnetHeader(0, GSO_TCPV4, gso_size=51), "vnet.bad_gso_size"),
        (VnetHeader(0, 2, gso_size=10), "vnet.bad_gso_type"),
        (VnetHeader(0, 0x7F, gso_size=10), "vnet.bad_gso_type"),
    ],
)
def test_vnet_headers_that_point_outside_of_the_frame_are_refused(
    header: VnetHeader, reason: str
) -> None:
    assert reason_of(lambda: VnetHeader.parse(header.emit() + bytes(50))) == reason


def test_offsets_without_the_flag_mean_nothing() -> None:
    header = VnetHeader(0, csum_start=999, csum_offset=999)
    assert VnetHeader.parse(header.emit() + bytes(50)) == header
