"""The TCP segment on the wire (RFC 9293 section 3.1): parse, emit, str.

Numbers here are as on the wire, modulo 2**32. Whatever of a segment contradicts itself makes it a
BadPacket; an option that is unknown, cut off or of the wrong size is skipped, because the rest of
the segment is still good (RFC 9293 MUST-6, MUST-7).

A connection sends its segments without building a Segment: it keeps one header and fills in what
changes, with `pack_plain` or, where timestamps are used, `pack_stamped`.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from appliance.netstack.wire.checksum import word_sum
from appliance.netstack.wire.errors import BadPacket

Buffer = bytes | bytearray | memoryview

PROTOCOL: Final = 6

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

HEADER_BYTES: Final = 20
STAMP_BYTES: Final = 12
"""What the timestamp option takes with its usual padding."""
STAMP_PREFIX: Final = 0x0101080A
"""Two NOPs, kind 8, length 10: the layout of RFC 7323 appendix A, the only one ever seen."""
WINDOW_SCALE_MAX: Final = 14
"""RFC 7323 section 2.3."""

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_MSS: Final = 2
OPTION_WINDOW_SCALE: Final = 3
OPTION_SACK_PERMITTED: Final = 4
OPTION_SACK: Final = 5
OPTION_TIMESTAMP: Final = 8

SACK_BLOCKS_MAX: Final = 4
"""What 40 bytes of options hold (RFC 2018 section 3); with timestamps it is one less."""

HEADER: Final = Struct("!HHIIHHHH")  # ports, seq, ack, offset and flags, window, checksum, urgent
TIMESTAMP: Final = Struct("!II")
SACK_BLOCK: Final = Struct("!II")
_SYN_OPTIONS: Final = Struct("!HHIIIII")
"""All that we offer, as `emit` orders them: MSS, window scale, SACK permitted, timestamps."""
_LINUX_OPTIONS: Final = Struct("!HHIIII")
"""The same in the order in which Linux has them: MSS, SACK permitted, timestamps, window scale."""
_MSS_PREFIX: Final = OPTION_MSS << 8 | 4
_SCALE_PREFIX: Final = 0x01030300
_SACKS_PREFIX: Final = 0x01010402
_SACKS_STAMP_PREFIX: Final = 0x0402080A
_PLAIN: Final = Struct("!IIHHH")
_STAMPED: Final = Struct("!IIHHHxxIII")

CHANGING: Final = 4
"""Where in a header `pack_plain` and `pack_stamped` begin: behind the ports."""
PLAIN_OFFSET: Final = 0x5000
STAMPED_OFFSET: Final = 0x8000
"""Data offset of a header without options and of one with the timestamp option."""
FLAGS_AT: Final = 13
CHECKSUM_AT: Final = 16

pack_plain = _PLAIN.pack_into  # seq, ack, offset and flags, window, checksum
pack_stamped = _STAMPED.pack_into  # the same, then STAMP_PREFIX, TSval, TSecr
unpack_plain = _PLAIN.unpack_from
unpack_stamp = Struct("!III").unpack_from  # prefix, TSval, TSecr

_FLAG_LETTERS: Final = (
    (SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (URG, "U"), (ECE, "E"), (CWR, "W"), (ACK, "."),
)  # fmt: skip


@dataclass(slots=True)
class Segment:
    """One segment. Inside a connection `seq` and `ack` are unwrapped first (tcp/sequence.py)."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    wnd: int
    text: Buffer = b""
    mss: int | None = None
    window_scale: int | None = None
    timestamp: tuple[int, int] | None = None
    """TSval, TSecr."""
    marked: bool = False
    """IP says that the packet has met congestion (RFC 3168)."""
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    """Left and right edges of blocks, as they come (RFC 2018 section 3)."""
    urgent: int = 0
    """SEG.UP, less SEG.SEQ: where there is URG, the urgent text ends so many bytes on."""

    @property
    def length(self) -> int:
        """SEG.LEN: bytes of text, and one each for SYN and FIN."""
        return len(self.text) + (self.flags >> 1 & 1) + (self.flags & 1)

    def __str__(self) -> str:
        """As tcpdump prints it."""
        letters = "".join(letter for bit, letter in _FLAG_LETTERS if self.flags & bit)
        parts = [f"Flags [{letters or 'none'}]", f"seq {_extent(self.seq, len(self.text))}"]
        if self.flags & ACK:
            parts.append(f"ack {self.ack}")
        parts.append(f"win {self.wnd}")
        if self.flags & URG:
            parts.append(f"urg {self.urgent}")
        options = self._options_text()
        if options:
            parts.append(f"options [{options}]")
        parts.append(f"length {len(self.text)}")
        return f"{self.source_port} > {self.destination_port}: " + ", ".join(parts)

    def _options_text(self) -> str:
        known = []
        if self.mss is not None:
            known.append(f"mss {self.mss}")
        if self.window_scale is not None:
            known.append(f"wscale {self.window_scale}")
        if self.timestamp is not None:
            known.append("TS val {} ecr {}".format(*self.timestamp))
        if self.sack_permitted:
            known.append("sackOK")
        if self.sack:
            blocks = "".join(f"{{{left}:{right}}}" for left, right in self.sack)
            known.append(f"sack {len(self.sack)} {blocks}")
        return ",".join(known)

    def emit(self) -> bytearray:
        """The header with its options, its checksum field zero. The text follows it."""
        options = self._emit_options()
        offset = (HEADER_BYTES + len(options)) << 10 & 0xF000
        ports = self.source_port, self.destination_port
        rest = offset | self.flags, self.wnd, 0, self.urgent
        seq, ack = self.seq & 0xFFFF_FFFF, self.ack & 0xFFFF_FFFF
        return bytearray(HEADER.pack(*ports, seq, ack, *rest) + options)

    def _emit_options(self) -> bytes:
        mss, scale, stamp, sacks = self.mss, self.window_scale, self.timestamp, self.sack_permitted
        if mss is not None and scale is not None and stamp is not None and sacks and not self.sack:
            scale |= _SCALE_PREFIX
            return _SYN_OPTIONS.pack(_MSS_PREFIX, mss, scale, _SACKS_PREFIX, STAMP_PREFIX, *stamp)
        options = b""
        if mss is not None:
            options += bytes((OPTION_MSS, 4)) + mss.to_bytes(2, "big")
        if scale is not None:
            options += bytes((OPTION_NOP, OPTION_WINDOW_SCALE, 3, scale))
        if sacks:
            options += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2))
        if stamp is not None:
            options += STAMP_PREFIX.to_bytes(4, "big") + TIMESTAMP.pack(*stamp)
        if self.sack:
            options += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + 8 * len(self.sack)))
            for left, right in self.sack:
                options += SACK_BLOCK.pack(left & 0xFFFF_FFFF, right & 0xFFFF_FFFF)
        return options


def _extent(seq: int, count: int) -> str:
    return f"{seq}:{seq + count}" if count else f"{seq}"


def parse(packet: Buffer, at: int, end: int) -> Segment:
    """The segment in packet[at:end]. Its text is a view of the packet."""
    if end - at < HEADER_BYTES:
        raise BadPacket("tcp.truncated")
    source, destination, seq, ack, offset_flags, wnd, _, urgent = HEADER.unpack_from(packet, at)
    text_at = at + (offset_flags >> 12) * 4
    if text_at < at + HEADER_BYTES or text_at > end:
        raise BadPacket("tcp.bad_offset")
    text = memoryview(packet)[text_at:end] if text_at < end else b""
    segment = Segment(source, destination, seq, ack, offset_flags & 0xFF, wnd, text)
    if offset_flags & URG:
        segment.urgent = urgent
    options_at = at + HEADER_BYTES
    if text_at == options_at + STAMP_BYTES:
        prefix, value, echo = unpack_stamp(packet, options_at)
        if prefix == STAMP_PREFIX:
            segment.timestamp = value, echo
            return segment
    elif text_at == options_at + _LINUX_OPTIONS.size and _takes_all(segment, packet, options_at):
        return segment
    if text_at > options_at:
        _parse_options(segment, bytes(packet[options_at:text_at]))
    return segment


def _takes_all(segment: Segment, packet: Buffer, at: int) -> bool:
    """Are the options at `at` those of a SYN of Linux?"""
    first, mss, second, value, echo, third = _LINUX_OPTIONS.unpack_from(packet, at)
    if first != _MSS_PREFIX or second != _SACKS_STAMP_PREFIX or third & ~0xFF != _SCALE_PREFIX:
        return False
    segment.mss, segment.timestamp, segment.sack_permitted = mss, (value, echo), True
    segment.window_scale = min(third & 0xFF, WINDOW_SCALE_MAX)
    return True


def _parse_options(segment: Segment, options: bytes) -> None:
    """Of an option that comes twice the last one counts."""
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == OPTION_NOP:
            at += 1
            continue
        if kind == OPTION_END or at + 1 == end:
            return
        size = options[at + 1]
        if size < 2 or at + size > end:
            return  # nothing behind it can be found
        if kind == OPTION_MSS and size == 4:
            segment.mss = options[at + 2] << 8 | options[at + 3]
        elif kind == OPTION_SACK_PERMITTED and size == 2:
            segment.sack_permitted = True
        elif kind == OPTION_TIMESTAMP and size == 10:
            segment.timestamp = TIMESTAMP.unpack_from(options, at + 2)
        elif kind == OPTION_WINDOW_SCALE and size == 3:
            segment.window_scale = min(options[at + 2], WINDOW_SCALE_MAX)
        elif kind == OPTION_SACK and size % 8 == 2:
            segment.sack = tuple(SACK_BLOCK.iter_unpack(options[at + 2 : at + size]))
        at += size


def checksum_is_good(addresses: Buffer, packet: Buffer, at: int, end: int) -> bool:
    """Compare the checksum of the segment in packet[at:end], that went between `addresses`."""
    length = end - at
    total = word_sum(addresses) + PROTOCOL + length + word_sum(memoryview(packet)[at:end])
    return total % 0xFFFF == 0
