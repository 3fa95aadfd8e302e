"""The pcapng format (IETF draft-ietf-opsawg-pcapng), as much of it as a writer needs.

A file is a Section Header Block, one Interface Description Block, and an Enhanced Packet Block for
each frame, with its direction and, where there is something to be said about it, a comment.
Everything is in the byte order of the machine, as the format likes it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
ENHANCED_PACKET: Final = 6

BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
VERSION: Final = (1, 0)
LENGTH_UNKNOWN: Final = -1
LINKTYPE_ETHERNET: Final = 1

OPT_END: Final = 0
OPT_COMMENT: Final = 1
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_TSRESOL: Final = 9
EPB_FLAGS: Final = 2

NANOSECONDS: Final = b"\x09"
"""if_tsresol: time stamps count in units of 10^-9 s."""
INBOUND: Final = 1
OUTBOUND: Final = 2
"""epb_flags: the direction of the frame, as the machine sees it that captures."""

COMMENT_BYTES_MAX: Final = 0xFFFF

_BLOCK: Final = Struct("=II")  # type, length; the length once more at the end
_LENGTH: Final = Struct("=I")
_OPTION: Final = Struct("=HH")
_SECTION: Final = Struct("=IHHq")
_INTERFACE: Final = Struct("=HHI")
_PACKET: Final = Struct("=IIIII")
_FLAGS: Final = {
    direction: _OPTION.pack(EPB_FLAGS, 4) + _LENGTH.pack(direction)
    for direction in (INBOUND, OUTBOUND)
}
_END: Final = _OPTION.pack(OPT_END, 0)


def padded(data: bytes) -> bytes:
    """To a multiple of 32 bits."""
    return data + bytes(-len(data) % 4)


def option(code: int, value: bytes) -> bytes:
    """One option."""
    return _OPTION.pack(code, len(value)) + padded(value)


def block(kind: int, body: bytes) -> bytes:
    """One block around a body that is padded already."""
    length = _BLOCK.size + len(body) + _LENGTH.size
    return _BLOCK.pack(kind, length) + body + _LENGTH.pack(length)


def head(program: str, interface: str, snaplen: int) -> bytes:
    """The two blocks with which a file begins."""
    section = _SECTION.pack(BYTE_ORDER_MAGIC, *VERSION, LENGTH_UNKNOWN)
    section += option(SHB_USERAPPL, program.encode()) + _END
    described = _INTERFACE.pack(LINKTYPE_ETHERNET, 0, snaplen)
    described += option(IF_NAME, interface.encode()) + option(IF_TSRESOL, NANOSECONDS) + _END
    return block(SECTION_HEADER, section) + block(INTERFACE_DESCRIPTION, described)


def packet(frame: bytes, wall: int, direction: int, comment: str = "") -> bytes:
    """The block of one frame; `wall` in nanoseconds since 1970-01-01 UTC."""
    body = _PACKET.pack(0, wall >> 32 & 0xFFFFFFFF, wall & 0xFFFFFFFF, len(frame), len(frame))
    body += padded(frame) + _FLAGS[direction]
    if comment:
        body += option(OPT_COMMENT, comment.encode()[:COMMENT_BYTES_MAX])
    return block(ENHANCED_PACKET, body + _END)
