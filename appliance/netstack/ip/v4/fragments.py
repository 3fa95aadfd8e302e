"""Fragments of IPv4 (RFC 791 section 3.2): what one is, and the datagram as one packet again."""

from __future__ import annotations

from collections.abc import Callable

from appliance.clock import Instant
from appliance.limits import FRAGMENT_WAITS
from appliance.netstack.ip.fragments import Fragment, Reassembly
from appliance.netstack.timers import Timers
from appliance.netstack.wire.checksum import checksum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import FRAGMENT_UNIT, PACKET_BYTES_MAX, Ipv4Header
from appliance.trace import Counters


class Ipv4Reassembly(Reassembly):
    """All incomplete IPv4 datagrams."""

    def __init__(
        self, timers: Timers, counters: Counters, timed_out: Callable[[bytes, Instant], None]
    ) -> None:
        super().__init__(FRAGMENT_WAITS, timers, counters, timed_out)

    def add(self, header: Ipv4Header, packet: bytes, at: int, now: Instant) -> bytes | None:
        """A fragment, whose header stands at `at` of `packet`: the whole datagram, as one packet,
        where it is complete with it."""
        text_at = at + header.header_bytes
        text = packet[text_at : at + header.total_bytes]
        check_extent(header, len(text))
        key = (header.source, header.destination, header.protocol, header.identification)
        whole = self.take(
            Fragment(key, header.offset, header.more_fragments, packet[at:text_at], text), now
        )
        return None if whole is None else as_if_never_cut(*whole)


def check_extent(header: Ipv4Header, text_bytes: int) -> None:
    """A fragment, looked at alone, could be a part of a datagram."""
    if text_bytes == 0:
        raise BadPacket("ip.fragment_empty")
    if header.more_fragments and text_bytes % FRAGMENT_UNIT:
        raise BadPacket("ip.fragment_bad_length")
    if header.header_bytes + header.offset + text_bytes > PACKET_BYTES_MAX:
        raise BadPacket("ip.fragment_too_long")


def as_if_never_cut(first_header: bytes, text: bytes) -> bytes:
    """The datagram as one packet. BadPacket: with the options of the first fragment, which the
    others need not have, it is longer than any packet."""
    header = bytearray(first_header)
    if len(header) + len(text) > PACKET_BYTES_MAX:
        raise BadPacket("ip.fragment_too_long")
    header[2:4] = (len(header) + len(text)).to_bytes(2, "big")
    header[6:8] = bytes(2)  # no offset, no more fragments
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + text
