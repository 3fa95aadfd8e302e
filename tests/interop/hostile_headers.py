"""Attacks by single frames: headers that are cut, that lie, that come from nobody."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import ARP, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from tests.interop.hostile import EVERYBODY_MAC, EVIL, EVIL_MAC, Attack, Attacker, Expected
from tests.interop.lab import HOST, SERVER

IP_AT, TRANSPORT_AT = 14, 34


def templates(attacker: Attacker) -> list[Packet]:
    """A good frame of every kind."""
    options = [("MSS", 1460), ("NOP", None), ("WScale", 7), ("Timestamp", (1, 0)), ("SAckOK", b"")]
    about = IP(src=SERVER, dst=EVIL) / UDP(sport=111, dport=9)
    return [
        attacker.ip() / TCP(dport=2049, sport=700, flags="S", options=options),
        attacker.ip() / TCP(dport=9, sport=700, flags="PA") / Raw(b"some text"),
        attacker.ip(options=[IPOption_NOP()] * 8) / UDP(dport=111, sport=700) / Raw(bytes(40)),
        attacker.ip() / ICMP(id=1) / Raw(b"some data"),
        attacker.ip() / ICMP(type=3, code=3) / about,
        attacker.ether() / ARP(op=1, hwsrc=EVIL_MAC, psrc=EVIL, pdst=SERVER),
    ]


def cut_everywhere(attacker: Attacker) -> Expected:
    """Frames cut at every byte."""
    frames = [
        bytes(frame)[:length]
        for frame in templates(attacker)
        for length in range(IP_AT, len(frame))
    ]
    return Expected({"ip.truncated|arp.truncated": attacker.send(frames)})


def cut_in_transport(attacker: Attacker) -> Expected:
    """Cut at every byte, with IP headers that agree: the cut is found by TCP, UDP, and ICMP."""
    frames = []
    for frame in templates(attacker):
        if IP not in frame:
            continue
        whole = bytes(frame)
        at = IP_AT + (whole[IP_AT] & 0xF) * 4
        frames += [
            attacker.ip(proto=frame[IP].proto) / Raw(whole[at:length])
            for length in range(at, min(len(whole), at + 20))
        ]
    sent = attacker.send(frames)
    found = ["truncated", "bad_checksum", "bad_offset", "bad_length"]
    names = [f"{kind}.{what}" for kind in ("tcp", "udp", "icmp") for what in found]
    return Expected({"|".join([*names, "icmp.truncated_quote", "icmp.echo"]): sent})


def bad_checksums(attacker: Attacker) -> Expected:
    expected = Expected()
    for number in range(50):
        wrong = 1 + number * 1000
        expected["ip.bad_checksum"] += attacker.send([attacker.ip(chksum=wrong) / UDP(dport=111)])
    for layer, kind in (
        (TCP(dport=2049, flags="S"), "tcp"),
        (UDP(dport=111), "udp"),
        (ICMP(), "icmp"),
    ):
        good = bytes(attacker.ip() / layer / Raw(b"data"))
        at = TRANSPORT_AT + {"tcp": 16, "udp": 6, "icmp": 2}[kind]
        frames = [_flip(good, at * 8 + bit) for bit in range(16)]
        frames += [_flip(good, len(good) * 8 - 1 - bit) for bit in range(32)]
        expected[f"{kind}.bad_checksum"] += attacker.send(frames)
    return expected


def _flip(frame: bytes, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def lies(attacker: Attacker) -> Expected:
    """Lengths, versions, offsets and ports that cannot be."""
    syn = TCP(dport=2049, sport=700, flags="S")
    frames: dict[str, list[Packet]] = {
        "ip.bad_header_length": [attacker.ip(ihl=ihl) / syn for ihl in range(5)],
        "ip.bad_total_length": [attacker.ip(len=length) / syn for length in range(20)],
        "ip.truncated": [attacker.ip(len=length) / syn for length in (41, 1500, 65535)],
        "ip.bad_version": [attacker.ip(version=v) / syn for v in range(16) if v != 4],
        "tcp.bad_offset": [
            attacker.ip() / TCP(dport=2049, flags="S", dataofs=words) for words in (0, 4, 6, 15)
        ],
        "udp.bad_length": [attacker.ip() / UDP(dport=111, len=n) / Raw(b"12") for n in range(8)],
        "udp.truncated": [attacker.ip() / UDP(dport=111, len=n) / Raw(b"12") for n in (11, 65535)],
        "tcp.port_zero": [
            attacker.ip() / TCP(dport=0, sport=700, flags="S"),
            attacker.ip() / TCP(dport=2049, sport=0, flags="S"),
        ],
        "udp.port_zero": [attacker.ip() / UDP(dport=0, sport=700)],
        "ip.unknown_protocol": [attacker.ip(proto=number) / Raw(bytes(8)) for number in (0, 2, 41)],
    }
    return Expected({reason: attacker.send(some) for reason, some in frames.items()})


def nobodies(attacker: Attacker) -> Expected:
    """What comes from, or goes to, an address at which nobody can be; LAND; smurf. None of it is
    answered."""
    syn = TCP(dport=2049, sport=2049, flags="S")
    nobody = ("0.0.0.0", "10.0.0.0", "10.0.0.255", "127.0.0.1", "224.0.0.1", "240.0.0.1")
    everybody = attacker.ether(dst=EVERYBODY_MAC)
    echo = ICMP(id=7)
    frames: dict[str, list[Packet]] = {
        "ip.own_source": [attacker.ip(src=SERVER) / layer for layer in (syn, echo, UDP(dport=111))],
        "ip.bad_source": [
            attacker.ip(src=src) / layer
            for src in (*nobody, "255.255.255.255")
            for layer in (syn, echo, UDP(sport=700, dport=111) / Raw(bytes(40)))
        ],
        "ip.broadcast": [
            ether / IP(src=EVIL, dst=dst) / layer
            for ether in (everybody, attacker.ether())
            for dst in ("10.0.0.255", "255.255.255.255")
            for layer in (syn, echo)
        ],
        "ip.unicast_in_broadcast": [everybody / IP(src=EVIL, dst=SERVER) / syn],
        "ip.not_for_us": [attacker.ip(dst=dst) / syn for dst in ("10.0.0.6", "8.8.8.8")],
        "ethernet.own_source": [
            Ether(src=attacker.server_mac, dst=attacker.server_mac) / IP(src=EVIL, dst=SERVER) / syn
        ],
        "ethernet.bad_source": [
            attacker.ether(src=src) / IP(src=EVIL, dst=SERVER) / syn
            for src in (EVERYBODY_MAC, "01:00:5e:00:00:01")
        ],
        "ethernet.not_for_us": [attacker.ether(dst="02:00:00:00:00:77") / IP(dst=SERVER) / syn],
        "ethernet.802_3": [Dot3(src=EVIL_MAC, dst=attacker.server_mac) / Raw(bytes(46))],
        "ethernet.unknown_type": [
            attacker.ether(type=0x86DD) / Raw(bytes(40)),
            attacker.ether() / Dot1Q(vlan=3) / IP(src=EVIL, dst=SERVER) / syn,
        ],
    }
    expected = Expected()
    for reason, some in frames.items():
        said = attacker.answers(some)
        assert not said, f"{reason}: {said}"
        expected[reason] += len(some)
    return expected


def icmp_of_all_types(attacker: Attacker) -> Expected:
    """Every type, and errors about packets that were never sent. No error about an error."""
    unknown = [attacker.ip() / ICMP(type=kind) for kind in range(256) if kind not in ERROR_TYPES]
    expected = Expected({"icmp.unknown_type": attacker.send(unknown)})
    ours = IP(src=SERVER, dst=EVIL)
    quotes: dict[str, list[Packet]] = {
        "icmp.truncated_quote": [Raw(bytes(ours / TCP())[:n]) for n in (0, 1, 19, 20, 27)],
        "icmp.not_about_us": [IP(src=EVIL, dst=SERVER) / TCP()],
        "icmp.bad_quote": [IP(src=SERVER, version=6) / TCP(), IP(src=SERVER, ihl=3) / TCP()],
        "icmp.about_later_fragment": [IP(src=SERVER, dst=EVIL, frag=5) / TCP()],
        "icmp.ignored": [ours / ICMP()],
        "udp.icmp_not_ours": [ours / UDP()],
        "tcp.icmp_not_ours": [ours / TCP(sport=2049, dport=port) for port in (1, 700)],
    }
    for reason, some in quotes.items():
        errors = [attacker.ip() / ICMP(type=kind, code=1) / q for kind in (3, 11) for q in some]
        assert not attacker.answers(errors)
        expected[reason] += len(errors)
    return expected


ERROR_TYPES = {3, 4, 5, 11, 12, 8}
"""And the echo request, which is no error, but not unknown either."""


def closed_ports(attacker: Attacker) -> Expected:
    """Datagrams to where nobody listens: few of them are reported, none of the errors twice."""
    frames = [bytes(attacker.ip() / UDP(dport=9, sport=700) / Raw(b"x"))] * 1500
    return Expected({"udp.no_listener": attacker.send(frames), "icmp.rate_limited": 100})


def noise(attacker: Attacker) -> Expected:
    """Good frames with something else in them, by a fixed seed. Some stay good: only that the
    server survives is asked here."""
    attacker.send(mutations(attacker, random.Random(7), 1500))
    return Expected()


def mutations(attacker: Attacker, chance: random.Random, count: int) -> Iterator[bytes]:
    frames = [bytes(frame) for frame in templates(attacker)]
    for _ in range(count):
        frame = bytearray(chance.choice(frames))
        for _ in range(chance.randint(1, 4)):
            frame[chance.randrange(12, len(frame))] = chance.choice(
                (0, 1, 255, chance.getrandbits(8))
            )
        if chance.random() < 0.5:
            frame = bytearray(bytes(_with_checksums(frame)))
        yield bytes(frame)


def _with_checksums(frame: bytearray) -> Packet:
    """What was changed is not found by a checksum."""
    packet = Ether(bytes(frame))
    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:
            packet[layer].chksum = None
    return packet


# --- ARP --------------------------------------------------------------------------------


def arp_lies(attacker: Attacker) -> Expected:
    """ARP that cannot be."""
    good: dict[str, Any] = {"hwsrc": EVIL_MAC, "psrc": EVIL, "pdst": SERVER}
    to_us = attacker.ether()
    frames: dict[str, list[Packet]] = {
        "arp.unknown_type": [to_us / ARP(hwtype=6, **good), to_us / ARP(ptype=0x86DD, **good)],
        "arp.bad_length": [
            to_us / Raw(bytes(ARP(op=1, **good))[:4] + lengths + bytes(30))
            for lengths in (b"\0\0", b"\6\0", b"\0\4", b"\xff\xff", b"\10\4")
        ],
        "arp.unknown_operation": [to_us / ARP(op=op, **good) for op in (0, 3, 8, 65535)],
        "arp.bad_sender": [
            to_us / ARP(hwsrc=mac, psrc=EVIL, pdst=SERVER)
            for mac in ("00:00:00:00:00:00", EVERYBODY_MAC, "01:00:5e:00:00:01")
        ],
        "arp.own_sender": [to_us / ARP(hwsrc=attacker.server_mac, psrc=EVIL, pdst=SERVER)],
    }
    for some in frames.values():
        for frame in some:
            frame[Ether].type = 0x0806
    return Expected({reason: attacker.send(some) for reason, some in frames.items()})


def arp_flood(attacker: Attacker) -> Expected:
    """Replies that nobody asked for are not learnt; of those who ask for us, so many are."""
    replies = [
        attacker.ether() / ARP(op=2, hwsrc=EVIL_MAC, psrc=f"10.0.0.{n}", pdst=SERVER)
        for n in range(100, 250)
    ]
    expected = Expected({"arp.unsolicited_reply": attacker.send(replies)})
    ask = bytes(attacker.ether() / ARP(op=1, hwsrc=EVIL_MAC, psrc=EVIL, pdst=SERVER))
    asks = [ask[:29] + n.to_bytes(2, "big") + ask[31:] for n in range(1000)]
    expected["arp.answered"] += attacker.send(asks)
    return expected


def arp_poison(attacker: Attacker) -> Expected:
    """Somebody else claims the address of the host; and ours, which is defended, but not in a
    loop. Then the host speaks up again, as it does when it misses answers."""
    attacker.introduce(HOST, attacker.host_mac)
    lies_ = [attacker.ether() / ARP(op=2, hwsrc=EVIL_MAC, psrc=HOST, pdst=SERVER)] * 50
    expected = Expected({"arp.contested": attacker.send(lies_)})
    ours = [
        attacker.ether(dst=EVERYBODY_MAC) / ARP(op=op, hwsrc=EVIL_MAC, psrc=SERVER, pdst=SERVER)
        for op in (1, 2)
    ] * 50
    expected["arp.conflict"] += attacker.send(ours)
    attacker.netns.ip("neigh flush dev br0")
    return expected


ATTACKS: list[Attack] = [
    cut_everywhere,
    cut_in_transport,
    bad_checksums,
    lies,
    nobodies,
    icmp_of_all_types,
    closed_ports,
    noise,
    arp_lies,
    arp_flood,
    arp_poison,
]
