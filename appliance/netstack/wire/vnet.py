"""The virtio-net header that precedes each frame on a link with offload (struct virtio_net_hdr, the
ten bytes that TUNSETVNETHDRSZ 10 asks for).

It says what one side leaves to the other: to finish the transport checksum, and to cut one large
packet into segments. Its numbers are in the byte order of the machine, unlike all that follows.

What arrives in it comes from outside: a guest that shares a bridge with us writes its own. So its
offsets are compared with the frame before anything believes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.errors import BadPacket

HEADER_BYTES: Final = 10

NEEDS_CSUM: Final = 1
"""The checksum field holds only the sum of the pseudo-header; the data was never on a wire."""
DATA_VALID: Final = 2
"""Somebody before us has verified the checksum."""
CHECKSUM_GOOD: Final = NEEDS_CSUM | DATA_VALID
"""With either flag there is nothing for us to verify."""

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

_KNOWN_GSO: Final = frozenset((GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4))


@dataclass(slots=True)
class VnetHeader:
    """One virtio-net header."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    _FORMAT: ClassVar[Struct] = Struct("=BBHHHH")

    @classmethod
    def parse(cls, frame: bytes) -> VnetHeader:
        """The header at the start of `frame`. What it says fits the frame behind it."""
        if len(frame) < HEADER_BYTES:
            raise BadPacket("vnet.truncated")
        header = cls(*cls._FORMAT.unpack_from(frame))
        frame_bytes = len(frame) - HEADER_BYTES
        if header.flags & NEEDS_CSUM and (header.csum_start + header.csum_offset + 2 > frame_bytes):
            raise BadPacket("vnet.bad_csum_start")
        kind = header.gso_type & ~GSO_ECN
        if kind not in _KNOWN_GSO:
            raise BadPacket("vnet.bad_gso_type")
        if kind != GSO_NONE and not 0 < header.gso_size <= frame_bytes:
            raise BadPacket("vnet.bad_gso_size")
        return header

    def emit(self) -> bytes:
        """The ten bytes."""
        return self._FORMAT.pack(
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        )

    @property
    def checksum_good(self) -> bool:
        """True: the transport checksum needs no verification."""
        return self.flags & CHECKSUM_GOOD != 0

    def __str__(self) -> str:
        return (
            f"vnet flags={self.flags:#x} gso={self.gso_type:#x}/{self.gso_size}"
            f" csum={self.csum_start}+{self.csum_offset} hdr_len={self.hdr_len}"
        )


NOTHING: Final = bytes(HEADER_BYTES)
"""The header of a frame that leaves nothing to the other side."""
