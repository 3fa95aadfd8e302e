"""How a frame is made wrong: a few cuts, flips and strange numbers, and then usually the checksums
that it should have, so that it gets further than the first look."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from appliance.netstack.wire import vnet
from tests.fuzz.frames import IP_AT, IPV4, IPV6, sealed

STRANGE = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)
SEALED = 0.85
CHANGES_MAX = 3
FOUR, SIX = IPV4.to_bytes(2, "big"), IPV6.to_bytes(2, "big")

TCP_AT = IP_AT + 20
TCP6_AT = IP_AT + 40
FIELDS6 = (
    (IP_AT, 4), (IP_AT + 4, 2), (IP_AT + 6, 1), (IP_AT + 7, 1), (IP_AT + 8, 4), (IP_AT + 24, 4),
    (IP_AT + 38, 2), (TCP6_AT, 1), (TCP6_AT + 1, 1), (TCP6_AT + 2, 2), (TCP6_AT + 4, 4),
    (TCP6_AT + 8, 4), (TCP6_AT + 12, 1), (TCP6_AT + 13, 1), (TCP6_AT + 14, 2), (TCP6_AT + 20, 4),
    (TCP6_AT + 24, 1), (TCP6_AT + 25, 1), (TCP6_AT + 26, 2), (12, 2),
)  # fmt: skip
FIELDS = (
    (IP_AT, 1), (IP_AT + 1, 1), (IP_AT + 2, 2), (IP_AT + 6, 2), (IP_AT + 9, 1), (IP_AT + 12, 4),
    (IP_AT + 16, 4), (TCP_AT, 2), (TCP_AT + 2, 2), (TCP_AT + 4, 4), (TCP_AT + 8, 4),
    (TCP_AT + 12, 1), (TCP_AT + 13, 1), (TCP_AT + 14, 2), (TCP_AT + 18, 2), (TCP_AT + 20, 1),
    (TCP_AT + 21, 1), (TCP_AT + 22, 2), (TCP_AT + 24, 4), (12, 2),
)  # fmt: skip
"""Where the headers have something to say, and how many bytes."""


def flip(frame: bytearray, random: Random) -> None:
    """One bit."""
    frame[random.randrange(len(frame))] ^= 1 << random.randrange(8)


def strange_byte(frame: bytearray, random: Random) -> None:
    frame[random.randrange(len(frame))] = random.choice(STRANGE) & 0xFF


def strange_field(frame: bytearray, random: Random) -> None:
    """A whole field, strange, or a little off, or anything."""
    at, size = random.choice(FIELDS6 if frame[12:14] == SIX else FIELDS)
    if at + size > len(frame):
        return
    value = int.from_bytes(frame[at : at + size], "big")
    match random.randrange(3):
        case 0:
            value = random.choice(STRANGE)
        case 1:
            value += random.choice((-1460, -2, -1, 1, 2, 1460, 65536))
        case _:
            value = random.getrandbits(8 * size)
    frame[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")


def cut(frame: bytearray, random: Random) -> None:
    """The end is missing."""
    del frame[random.randrange(1, len(frame) + 1) :]


def grow(frame: bytearray, random: Random) -> None:
    """There is more than there should be."""
    frame += random.randbytes(random.choice((1, 4, 60, 600)))


def repeat(frame: bytearray, random: Random) -> None:
    """A part of it comes twice."""
    at = random.randrange(len(frame))
    part = frame[at : at + random.randrange(1, 40)]
    frame[at:at] = part


def leave_out(frame: bytearray, random: Random) -> None:
    """A part of it is not there."""
    at = random.randrange(len(frame))
    del frame[at : min(at + random.randrange(1, 40), len(frame) - 1)]


def fit_length(frame: bytearray, random: Random) -> None:
    """The IP length says what is there."""
    if frame[12:14] == SIX and len(frame) >= TCP6_AT:
        frame[IP_AT + 4 : IP_AT + 6] = min(len(frame) - TCP6_AT, 0xFFFF).to_bytes(2, "big")
    elif len(frame) >= TCP_AT:
        frame[IP_AT + 2 : IP_AT + 4] = min(len(frame) - IP_AT, 0xFFFF).to_bytes(2, "big")


CHANGES: tuple[Callable[[bytearray, Random], None], ...] = (
    flip, strange_byte, strange_field, strange_field, strange_field, strange_field, cut, grow,
    repeat, leave_out, fit_length,
)  # fmt: skip


def mutated(frame: bytes, random: Random) -> bytes:
    """The frame, made wrong."""
    made = bytearray(frame)
    for _ in range(random.randint(1, CHANGES_MAX)):
        random.choice(CHANGES)(made, random)
    if random.random() < SEALED and made[12:14] in (FOUR, SIX):
        return bytes(made[:IP_AT]) + sealed(bytes(made[IP_AT:]))
    return bytes(made)


def offload_header(frame: bytes, random: Random) -> bytes:
    """A virtio-net header for the frame: nearly always a right one."""
    chance = random.random()
    if chance < 0.03:
        return random.randbytes(random.randrange(vnet.HEADER_BYTES + 1))
    if chance < 0.2:
        size = random.choice((0, 1, 536, 1448, 65535))
        kind, at = (vnet.GSO_TCPV6, 54) if frame[12:14] == SIX else (vnet.GSO_TCPV4, 34)
        return vnet.VnetHeader(vnet.NEEDS_CSUM, kind, at + 20, size, at, 16).emit()
    return vnet.NOTHING
