"""Attacks by fragments: teardrop, overlaps, the ping of death, floods that stay incomplete."""

from __future__ import annotations

import itertools
import random

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.interop.hostile import Attack, Attacker, Expected

ECHO = bytes(ICMP(id=0xF7) / Raw(bytes(range(256)) * 4))
"""1032 bytes: what the honest fragments here carry."""

_identifications = itertools.count(1)


def identification() -> int:
    """Of a datagram that has not been begun."""
    return next(_identifications) & 0xFFFF


def piece(attacker: Attacker, number: int, at: int, text: bytes, *, more: bool = True) -> Packet:
    """One fragment, of an ICMP message."""
    fields = {"id": number, "frag": at // 8, "flags": "MF" if more else 0, "proto": 1}
    return attacker.ip(**fields) / Raw(text)


def pieces(attacker: Attacker, size: int, number: int) -> list[Packet]:
    """All of ECHO."""
    return [
        piece(attacker, number, at, ECHO[at : at + size], more=at + size < len(ECHO))
        for at in range(0, len(ECHO), size)
    ]


def in_any_order(attacker: Attacker) -> Expected:
    """Honest, if strange: tiny, in any order, with duplicates. Answered."""
    chance = random.Random(3)
    expected = Expected()
    for size in (8, 64, 512, 1024):
        parts = pieces(attacker, size, identification())
        doubled = [*parts[:-1], *parts[: len(parts) // 2]]
        chance.shuffle(doubled)
        answers = attacker.answers([*doubled, parts[-1]])
        assert any(ICMP in a and a[ICMP].type == 0 and a[ICMP].id == 0xF7 for a in answers)
        expected += Expected({"ip.reassembled": 1, "icmp.echo": 1})
        expected["ip.fragment_duplicate"] += len(parts) // 2
    return expected


def overlaps(attacker: Attacker) -> Expected:
    """Teardrop and its family. No datagram comes of any of them, whatever follows."""

    text = ECHO + bytes(8)

    def of(*spans: tuple[int, int, bool]) -> list[Packet]:
        number = identification()
        return [piece(attacker, number, at, text[at:to], more=more) for at, to, more in spans]

    different = identification()
    families = [
        of((0, 40, True), (24, 1032, False)),  # teardrop: the second begins inside the first
        of((0, 1024, True), (8, 16, True)),  # inside
        of((8, 16, True), (0, 1024, True)),  # around
        of((0, 512, True), (504, 1032, False)),  # the last one overlaps
        of((512, 1032, False), (0, 520, True)),  # and the other way about
        of((512, 1032, False), (512, 800, False)),  # two different ends
        of((512, 1032, False), (1032, 1040, True)),  # text behind the end
        of((1024, 1032, True), (512, 1024, False)),  # an end before text
        [
            piece(attacker, different, 0, ECHO[:512]),
            piece(attacker, different, 0, bytes(520)),  # the same place, another extent
        ],
    ]
    for family in families:
        number = family[0][IP].id
        rest = pieces(attacker, 128, number)
        answers = attacker.answers([*family, *rest])
        echoed = [a for a in answers if ICMP in a and a[ICMP].type == 0]
        assert not echoed, f"{family} -> {echoed}"
    return Expected({"ip.fragment_overlap": len(families), "ip.fragment_condemned": len(families)})


def impossible(attacker: Attacker) -> Expected:
    """Too long (the ping of death), empty, of a length that no offset continues."""
    frames: dict[str, list[Packet]] = {
        "ip.fragment_too_long": [
            piece(attacker, identification(), 65528, bytes(n), more=more)
            for n, more in ((8, True), (8, False), (1400, False))
        ],
        "ip.fragment_empty": [
            piece(attacker, identification(), at, b"", more=more)
            for at, more in ((0, True), (8, True), (8, False), (65528, False))
        ],
        "ip.fragment_bad_length": [
            piece(attacker, identification(), 0, bytes(n)) for n in (1, 7, 9, 1001)
        ],
    }
    return Expected({reason: attacker.send(some) for reason, some in frames.items()})


def tiny_first(attacker: Attacker) -> Expected:
    """A first fragment that ends inside the transport header, which firewalls cannot judge: whole,
    it is a SYN like any other, and bad where it is bad."""
    syn = bytes(attacker.ip() / TCP(sport=701, dport=9, flags="S"))[34:]
    call = bytes(attacker.ip() / UDP(sport=701, dport=9) / Raw(bytes(16)))[34:]
    frames = []
    for proto, packet in ((6, syn), (17, call), (6, syn[:8] + bytes(8)), (17, call[:8])):
        number = identification()
        for at in range(0, len(packet), 8):
            flags = "MF" if at + 8 < len(packet) else 0
            fields = {"id": number, "frag": at // 8, "flags": flags, "proto": proto}
            frames.append(attacker.ip(**fields) / Raw(packet[at : at + 8]))
    attacker.send(frames)
    return Expected({"tcp.no_connection": 1, "udp.no_listener": 1, "tcp.bad_checksum": 1})


def never_complete(attacker: Attacker) -> Expected:
    """First fragments without an end: many, and large ones. Memory has a limit."""
    tiny = [piece(attacker, identification(), 0, ECHO[:8]) for _ in range(600)]
    large = []
    for _ in range(100):
        number = identification()
        large += [piece(attacker, number, at, bytes(1480)) for at in range(0, 1480 * 3, 1480)]
    sent = attacker.send(tiny)
    attacker.send(large)
    return Expected({"ip.fragment_evicted": sent - 256})


def to_the_limit(attacker: Attacker) -> Expected:
    """Datagrams of 64 KiB with a hole: more than all that is kept together."""
    frames = []
    for _ in range(80):
        number = identification()
        whole = bytes(piece(attacker, number, 0, bytes(1480)))
        frames.append(whole)
        frames += [
            bytes(piece(attacker, number, at, bytes(1480)))
            for at in range(2960, 65535 - 1500, 1480 * 4)
        ]
    attacker.send(frames)
    return Expected()


def duplicates(attacker: Attacker) -> Expected:
    """One fragment, again and again; and a datagram of more pieces than one may have."""
    again = [bytes(piece(attacker, identification(), 8, ECHO[8:16]))] * 1000
    expected = Expected({"ip.fragment_duplicate": attacker.send(again) - 1})
    number = identification()
    crumbs = [piece(attacker, number, at, bytes(8)) for at in range(0, 8 * 300, 8)]
    attacker.send(crumbs)
    return expected + Expected({"ip.fragment_too_many": 1, "ip.fragment_condemned": 43})


ATTACKS: list[Attack] = [
    in_any_order,
    overlaps,
    impossible,
    tiny_first,
    never_complete,
    to_the_limit,
    duplicates,
]
