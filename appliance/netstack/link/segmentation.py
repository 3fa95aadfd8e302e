"""What a network card does with a frame that has a virtio-net header: finish the checksum, cut a
super-frame into segments. For places that want to see frames as they are on a wire: a capture, and
a simulated wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance.netstack.wire import ethernet, ipv6, udp, vnet
from appliance.netstack.wire.checksum import checksum, fold, pseudo_header_sum, word_sum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import TYPE_IPV4, TYPE_IPV6, EthernetHeader
from appliance.netstack.wire.ipv4 import (
    FRAGMENT_UNIT,
    MORE_FRAGMENTS,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Ipv4Header,
)
from appliance.netstack.wire.ipv6 import Ipv6Header
from appliance.netstack.wire.vnet import VnetHeader

_TCP_HEADER_BYTES: Final = 20
_TCP_CHECKSUM_AT: Final = 16
_TCP_FLAGS_AT: Final = 13
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_SEQ: Final = slice(4, 8)


def wire_frames(frame: bytes) -> Iterator[bytes]:
    """The frames that a wire would carry for `frame`, which has a virtio-net header.

    BadPacket: what the header asks for cannot be done with this frame.
    """
    header = VnetHeader.parse(frame)
    bare = bytearray(frame[vnet.HEADER_BYTES :])
    kind = header.gso_type & ~vnet.GSO_ECN
    if kind in (vnet.GSO_TCPV4, vnet.GSO_TCPV6):
        yield from _cut(bare, header.gso_size, PROTOCOL_TCP)
    elif kind == vnet.GSO_UDP_L4:
        yield from _cut(bare, header.gso_size, PROTOCOL_UDP)
    else:
        if header.flags & vnet.NEEDS_CSUM:
            _finish_checksum(bare, header.csum_start, header.csum_offset)
        if kind == vnet.GSO_UDP and _is_ipv4(bare):
            yield from _fragments(bare, header.gso_size)
        else:
            yield bytes(bare)


def whole_frame(frame: bytes) -> bytes:
    """`frame`, which has a virtio-net header, without it and with its checksum finished, as if it
    had not to be cut. BadPacket."""
    header = VnetHeader.parse(frame)
    bare = bytearray(frame[vnet.HEADER_BYTES :])
    if header.flags & vnet.NEEDS_CSUM:
        _finish_checksum(bare, header.csum_start, header.csum_offset)
    return bytes(bare)


def _is_ipv4(frame: bytearray) -> bool:
    return EthernetHeader.parse(bytes(frame)).ethertype == TYPE_IPV4


def _finish_checksum(frame: bytearray, start: int, offset: int) -> None:
    """The field holds the sum of the pseudo-header: what it must hold is the checksum of all. Zero
    is written the other way only where it means "no checksum": in UDP (RFC 768)."""
    at = start + offset
    zero = 0xFFFF if offset == udp.CHECKSUM_OFFSET else 0
    frame[at : at + 2] = (checksum(frame[start:]) or zero).to_bytes(2, "big")


def _cut(frame: bytearray, size: int, protocol: int) -> Iterator[bytes]:
    """Segments, or datagrams, with at most `size` bytes of text each."""
    at = ethernet.HEADER_BYTES
    found, transport, end = _transport(frame, at)
    if found != protocol:
        raise BadPacket("vnet.bad_gso_type")
    text = transport + _header_bytes(frame, transport, protocol)
    if text >= end:
        raise BadPacket("vnet.truncated")
    headers = frame[:text]
    for index, start in enumerate(range(text, end, size)):
        stop = min(start + size, end)
        piece = headers + frame[start:stop]
        if protocol == PROTOCOL_TCP:
            _correct_tcp(piece[transport:text], piece, transport, start - text, stop == end)
        _correct_lengths(piece, at, transport, protocol, index)
        yield bytes(piece)


def _transport(frame: bytearray, at: int) -> tuple[int, int, int]:
    """Which protocol a whole packet carries, and where that begins and ends."""
    ethertype = EthernetHeader.parse(bytes(frame)).ethertype
    if ethertype == TYPE_IPV6:
        header = Ipv6Header.parse(frame, at, len(frame))
        end = at + ipv6.HEADER_BYTES + header.payload_bytes
        chain = ipv6.follow(frame, at, end)
        if chain.fragment is not None:
            raise BadPacket("vnet.bad_gso_type")
        return chain.protocol, chain.start, end
    whole = Ipv4Header.parse(frame, at, len(frame))
    if whole.is_fragment:
        raise BadPacket("vnet.bad_gso_type")
    return whole.protocol, at + whole.header_bytes, at + whole.total_bytes


def _fragments(frame: bytearray, size: int) -> Iterator[bytes]:
    """One datagram as fragments with at most `size` bytes each, which is a multiple of eight."""
    at = ethernet.HEADER_BYTES
    whole = Ipv4Header.parse(frame, at, len(frame))
    if whole.is_fragment or size % FRAGMENT_UNIT:
        raise BadPacket("vnet.bad_gso_size")
    text, end = at + whole.header_bytes, at + whole.total_bytes
    for start in range(text, end, size):
        stop = min(start + size, end)
        piece = frame[:text] + frame[start:stop]
        more = MORE_FRAGMENTS if stop < end else 0
        field = (start - text) // FRAGMENT_UNIT | more
        piece[at + 6 : at + 8] = field.to_bytes(2, "big")
        _finish_ip(piece, at, text)
        yield bytes(piece)


def _finish_ip(piece: bytearray, at: int, end: int) -> None:
    """The IP header from `at` to `end`: the packet's length, and the checksum."""
    piece[at + 2 : at + 4] = (len(piece) - at).to_bytes(2, "big")
    piece[at + 10 : at + 12] = bytes(2)
    piece[at + 10 : at + 12] = checksum(piece[at:end]).to_bytes(2, "big")


def _header_bytes(frame: bytearray, transport: int, protocol: int) -> int:
    if protocol == PROTOCOL_UDP:
        return udp.HEADER_BYTES
    if len(frame) < transport + _TCP_HEADER_BYTES:
        raise BadPacket("vnet.truncated")
    return max(_TCP_HEADER_BYTES, (frame[transport + 12] >> 4) * 4)


def _correct_tcp(
    header: bytearray, piece: bytearray, transport: int, before: int, is_last: bool
) -> None:
    """Each segment has its own place in the stream; FIN and PSH belong to the last one, CWR to the
    first."""
    seq = int.from_bytes(header[_SEQ], "big") + before & 0xFFFFFFFF
    header[_SEQ] = seq.to_bytes(4, "big")
    if not is_last:
        header[_TCP_FLAGS_AT] &= ~_FIN_PSH
    if before:
        header[_TCP_FLAGS_AT] &= ~_CWR & 0xFF
    piece[transport : transport + len(header)] = header


def _correct_lengths(piece: bytearray, at: int, transport: int, protocol: int, index: int) -> None:
    """Lengths, identification and checksums of one segment."""
    if _is_ipv4(piece):
        identification = int.from_bytes(piece[at + 4 : at + 6], "big") + index & 0xFFFF
        piece[at + 4 : at + 6] = identification.to_bytes(2, "big")
        _finish_ip(piece, at, transport)
        addresses = word_sum(piece[at + 12 : at + 20])
    else:
        payload_bytes = len(piece) - at - ipv6.HEADER_BYTES
        piece[at + 4 : at + 6] = payload_bytes.to_bytes(2, "big")
        addresses = word_sum(piece[at + 8 : at + ipv6.HEADER_BYTES])
    length = len(piece) - transport
    where = transport + (_TCP_CHECKSUM_AT if protocol == PROTOCOL_TCP else udp.CHECKSUM_OFFSET)
    if protocol == PROTOCOL_UDP:
        piece[transport + 4 : transport + 6] = length.to_bytes(2, "big")
    piece[where : where + 2] = bytes(2)
    total = pseudo_header_sum(addresses, protocol, length) + word_sum(piece[transport:])
    zero = 0xFFFF if protocol == PROTOCOL_UDP else 0
    piece[where : where + 2] = (0xFFFF - fold(total) or zero).to_bytes(2, "big")
