"""The language of filters, on frames that scapy makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether

from appliance.netstack.link.frame_filter import FilterError, facts_of, parse_filter

NFS = (
    Ether() / IP(src="10.0.0.9", dst="10.0.0.5") / TCP(sport=700, dport=2049, flags="PA") / b"call"
)
SYN = Ether() / IP(src="10.0.0.9", dst="10.0.0.5") / TCP(sport=700, dport=2049, flags="S")
PORTMAP = Ether() / IP(src="10.0.0.9", dst="10.0.0.5") / UDP(sport=700, dport=111) / b"call"
PING = Ether() / IP(src="10.0.0.1", dst="10.0.0.5") / ICMP()
WHO_HAS = Ether() / ARP(psrc="10.0.0.9", pdst="10.0.0.5")
DATAGRAM = Ether() / IP(src="10.0.0.9", dst="10.0.0.5") / UDP(dport=2049) / bytes(3000)
PIECES = fragment(DATAGRAM, 1480)  # type: ignore[no-untyped-call]
NFS6 = Ether() / IPv6(src="fd00::9", dst="fd00::5") / TCP(sport=700, dport=2049)
BEHIND = Ether() / IPv6(dst="fd00::5") / IPv6ExtHdrDestOpt() / TCP(dport=2049)
PIECE6 = Ether() / IPv6(dst="fd00::5") / IPv6ExtHdrFragment(offset=9, nh=17) / bytes(80)
PING6 = Ether() / IPv6(dst="fd00::5") / ICMPv6EchoRequest()

CASES = [
    ("", [NFS, WHO_HAS], []),
    ("tcp", [NFS, SYN, NFS6, BEHIND], [PORTMAP, PING, WHO_HAS]),
    ("udp", [PORTMAP, PIECES[0], PIECES[1], PIECE6], [NFS]),
    ("tcp port 2049", [NFS, NFS6, BEHIND], [PORTMAP, PIECES[0]]),
    ("port 2049", [NFS, PIECES[0]], [PIECES[1], PING]),
    ("src port 700 and dst port 111", [PORTMAP], [NFS]),
    ("src port 2049", [], [NFS]),
    ("host 10.0.0.9", [NFS, WHO_HAS], [PING]),
    ("src host 10.0.0.5", [], [NFS]),
    ("dst host 10.0.0.5", [NFS, WHO_HAS, PING], [NFS6]),
    ("host fd00::9", [NFS6], [BEHIND, NFS]),
    ("arp or icmp", [WHO_HAS, PING], [NFS, PING6]),
    ("icmp6", [PING6], [PING]),
    ("ip6", [NFS6, PING6], [NFS]),
    ("ip and not tcp", [PORTMAP, PING], [NFS, NFS6]),
    ("fragment", [*PIECES, PIECE6], [NFS]),
    ("syn", [SYN], [NFS]),
    ("udp or tcp and syn", [PORTMAP, SYN], [NFS]),
    ("(udp or tcp) and syn", [SYN], [PORTMAP, NFS]),
    ("!(udp||tcp)&&ip", [PING], [PORTMAP, NFS]),
    ("greater 1000", [PIECES[0]], [NFS]),
    ("less 100", [NFS], [PIECES[0]]),
]


@pytest.mark.parametrize(("text", "taken", "left"), CASES)
def test_a_filter_takes_what_it_says(text: str, taken: list[Ether], left: list[Ether]) -> None:
    made = parse_filter(text or "in or out")
    for frame in taken:
        assert made(facts_of(bytes(frame), outgoing=True)), frame
    for frame in left:
        assert not made(facts_of(bytes(frame), outgoing=True)), frame


def test_the_direction_is_as_the_appliance_sees_it() -> None:
    outgoing, incoming = parse_filter("out"), parse_filter("in")
    assert outgoing(facts_of(bytes(NFS), outgoing=True))
    assert incoming(facts_of(bytes(NFS), outgoing=False))
    assert not incoming(facts_of(bytes(NFS), outgoing=True))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("tpc", '"tpc" is not known', "did you mean tcp?"),
        ("tcp prot 2049", '"prot" is not known', "did you mean port?"),
        ("port nfs", '"nfs" is no number for port', "0 to 65535"),
        ("port 65536", "is no number", "0 to 65535"),
        ("port", "a number after port is missing", ""),
        ("host nobody", '"nobody" is not an address', "host 10.0.0.9"),
        ("(tcp", '")" is missing', ""),
        ("tcp)", '")" is too much', ""),
        ("tcp and", "a condition is missing", ""),
        ("", "a condition is missing", ""),
        ("src 10.0.0.9", "not known", ""),
        ("not " * 1000 + "tcp", "nested too deeply", ""),
        ("(" * 1000, "nested too deeply", ""),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, hint: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_facts_of_anything_can_be_asked_for(data: bytes, kind: bytes) -> None:
    facts_of(bytes(12) + kind + data, outgoing=False)
    facts_of(data, outgoing=False)
    whole = bytes(NFS)
    for end in range(len(whole)):
        facts_of(whole[:end], outgoing=True)
