"""Frames of whoever floods an IPv6 host: made fast, by the thousand, from one seed. Some are valid,
many nearly so."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from random import Random
from typing import Final

from appliance.netstack.wire.checksum import fold, word_sum

ALL_NODES: Final = ip_address("ff02::1").packed
LINK_LOCAL: Final = bytes.fromhex("fe80000000000000")
HOP_BY_HOP, UDP, ROUTING, FRAGMENT, ICMPV6, DESTINATION_OPTIONS = 0, 17, 43, 44, 58, 60
FOR_EVER: Final = 0xFFFF_FFFF
LIFETIMES: Final = (0, 1, 2, 600, 7200, FOR_EVER)

ROUTER_ALERT: Final = bytes((ICMPV6, 0, 5, 2, 0, 0, 1, 0))
"""The hop-by-hop header of MLD."""


class Flood6:
    """Frames to the station at `mac`, which has `address`."""

    def __init__(self, chance: Random, mac: bytes, address: bytes) -> None:
        self._chance = chance
        self._mac = mac
        self._address = address

    # --- what stays on the link -------------------------------------------------------

    def router_advertisement(self) -> bytes:
        """Routers without number, with prefixes and an MTU, or that go; some of them from further
        away, or with options that cannot be."""
        chance, at = self._chance, self._station()
        source = self._link_local()
        message = struct.pack(
            "!BBHBBHII",
            *(134, 0, 0, chance.choice((0, 1, 64, 255)), 0),
            chance.choice((0, 1, 600, 9000)),
            chance.choice((0, 1, 30_000, FOR_EVER)),
            chance.choice((0, 1, 1000, FOR_EVER)),
        )
        message += b"\1\1" + at
        message += b"\5\1\0\0" + chance.choice((0, 1280, 1400, 1500, FOR_EVER)).to_bytes(4, "big")
        for _ in range(chance.choice((0, 1, 3, 20))):
            message += self._prefix()
        if chance.random() < 0.1:
            message += chance.choice((b"\3\0" + bytes(6), b"\1", b"\3\4" + bytes(9), b"\1\1" * 200))
        hop_limit = 255 if chance.random() < 0.9 else chance.randrange(255)
        return self._message(message, source, ALL_NODES, hop_limit, at)

    def _prefix(self) -> bytes:
        chance = self._chance
        valid, preferred = chance.choice(LIFETIMES), chance.choice(LIFETIMES)
        length = chance.choice((64, 64, 64, 48, 0, 128, 200))
        network = b"\x20\x01" + chance.randbytes(6) + bytes(8)
        return struct.pack("!BBBBIII", 3, 4, length, 0xC0, valid, preferred, 0) + network

    def neighbour(self) -> bytes:
        """Who asks for us, or says where he is, from ever new addresses."""
        at, source = self._station(), self._link_local()
        if self._chance.random() < 0.5:
            message = bytes((135, 0, 0, 0)) + bytes(4) + self._address + b"\1\1" + at
        else:
            flags = self._chance.choice((0x20, 0x60, 0xA0, 0xE0))
            message = bytes((136, 0, 0, 0, flags, 0, 0, 0)) + source + b"\2\1" + at
        return self._message(message, source, ALL_NODES, 255, at)

    def redirect(self) -> bytes:
        """To a better router for hosts near and far, or straight to them."""
        chance, at = self._chance, self._station()
        far = ip_address("2001:db8::").packed[:8] + chance.randbytes(8)
        target = chance.choice((self._link_local(), far))
        message = bytes((137, 0, 0, 0)) + bytes(4) + target + far + b"\2\1" + at
        return self._message(message, self._link_local(), self._address, 255, at)

    def mld_query(self) -> bytes:
        """Of both versions, about all groups or one, to be answered at once."""
        chance = self._chance
        group = chance.choice((bytes(16), ip_address("ff02::1:ff00:5").packed))
        message = bytes((130, 0, 0, 0)) + chance.choice((0, 0, 1, 0xFFFF)).to_bytes(2, "big")
        message += bytes(2) + group + chance.choice((b"", bytes((2, 125, 0, 0))))
        return self._message(
            message, self._link_local(), ALL_NODES, 1, self._station(), ROUTER_ALERT
        )

    # --- what may come from anywhere --------------------------------------------------

    def fragment(self) -> bytes:
        """Of few datagrams, so that they overlap and contradict each other; some of neighbour
        discovery (RFC 6980)."""
        chance = self._chance
        next_header = chance.choice((UDP, UDP, ICMPV6))
        field = chance.choice((0, 8, 16, 1000, 65528)) | chance.choice((0, 1))
        head = struct.pack("!BBHI", next_header, 0, field, chance.randrange(4))
        text = b"\x88" + chance.randbytes(chance.choice((7, 15, 1023)))
        source = LINK_LOCAL + bytes(7) + bytes((chance.randrange(1, 4),))
        return self._packet(FRAGMENT, head + text, source, self._address, 255)

    def extensions(self) -> bytes:
        """Chains of headers, too long, in a bad order, or with options that nobody knows."""
        chance = self._chance
        kinds = [chance.choice((HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING)) for _ in range(20)]
        kinds = kinds[: chance.randrange(1, 21)]
        packet = b""
        for following in [*kinds[1:], UDP]:
            option = chance.choice(
                (b"\1\4\0\0\0\0", b"\xc2\4\0\0\0\0", b"\x1e\4\0\0\0\0", bytes(6))
            )
            packet += bytes((following, 0)) + option
        return self._packet(kinds[0], packet + bytes(8), self._link_local(), self._address, 64)

    # --- packets ----------------------------------------------------------------------

    def _station(self) -> bytes:
        return b"\2" + self._chance.randbytes(5)

    def _link_local(self) -> bytes:
        return LINK_LOCAL + self._chance.randbytes(8)

    def _message(
        self,
        message: bytes,
        source: bytes,
        to: bytes,
        hop_limit: int,
        station: bytes,
        in_front: bytes = b"",
    ) -> bytes:
        """An ICMPv6 message, with its checksum."""
        total = fold(word_sum(source + to)) + len(message) + ICMPV6 + word_sum(message)
        message = message[:2] + (0xFFFF - fold(total)).to_bytes(2, "big") + message[4:]
        kind = HOP_BY_HOP if in_front else ICMPV6
        return self._packet(kind, in_front + message, source, to, hop_limit, station)

    def _packet(
        self,
        next_header: int,
        payload: bytes,
        source: bytes,
        to: bytes,
        hop_limit: int,
        station: bytes = b"\2\0\0\0\0\x66",
    ) -> bytes:
        head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), next_header, hop_limit, source, to)
        destination = b"\x33\x33" + to[-4:] if to[0] == 0xFF else self._mac
        return destination + station + b"\x86\xdd" + head + payload
