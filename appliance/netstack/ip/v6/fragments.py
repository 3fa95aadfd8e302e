"""Fragments of IPv6 (RFC 8200 section 4.5, RFC 5722, RFC 6946, RFC 7112): what one is, and the
datagram as one packet again.

In a fragment, the headers up to the fragment header are the unfragmentable part. The first one's
make the packet, with the fragment header taken out: the field that named it names what it names.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.clock import Instant
from appliance.limits import IPV6_FRAGMENT_WAITS
from appliance.netstack.ip.fragments import Fragment, Reassembly
from appliance.netstack.timers import Timers
from appliance.netstack.wire import ipv6
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv6 import Chain, FragmentHeader, Ipv6Header, ParameterProblem
from appliance.trace import Counters

_PAYLOAD_LENGTH_AT = 4
_FIELD_AT = 2
"""Of the offset, in a fragment header."""
_ANY_PROTOCOL = 0


class Ipv6Reassembly(Reassembly):
    """All incomplete IPv6 datagrams."""

    def __init__(
        self, timers: Timers, counters: Counters, timed_out: Callable[[bytes, Instant], None]
    ) -> None:
        super().__init__(IPV6_FRAGMENT_WAITS, timers, counters, timed_out)

    def add(
        self, header: Ipv6Header, chain: Chain, packet: bytes, at: int, end: int, now: Instant
    ) -> bytes | None:
        """The fragment from `at` to `end`: the whole datagram, as one packet, where it is complete
        with it."""
        front = chain.fragment
        assert front is not None
        text = packet[chain.start : end]
        unfragmentable = bytearray(packet[at : chain.start - ipv6.FRAGMENT_HEADER_BYTES])
        unfragmentable[chain.next_header_at - at] = front.next_header
        if front.is_atomic:  # alone, whatever else there may be of this identification
            return as_if_never_cut(unfragmentable, text)
        check_extent(front, len(text), chain.start - at, len(unfragmentable))
        key = (header.source, header.destination, _ANY_PROTOCOL, front.identification)
        offset, more = front.offset, front.more_fragments
        if offset == 0:
            check_first(bytes(unfragmentable) + text)
        whole = self.take(Fragment(key, offset, more, bytes(unfragmentable), text), now)
        return None if whole is None else as_if_never_cut(*whole)


def check_extent(
    front: FragmentHeader, text_bytes: int, text_at: int, unfragmentable_bytes: int
) -> None:
    """A fragment, looked at alone, could be a part of a datagram."""
    if text_bytes == 0:
        raise BadPacket("ipv6.fragment_empty")
    if front.more_fragments and text_bytes % ipv6.FRAGMENT_UNIT:
        raise ParameterProblem(
            "ipv6.fragment_bad_length", ipv6.CODE_ERRONEOUS_FIELD, _PAYLOAD_LENGTH_AT
        )
    payload_bytes = unfragmentable_bytes - ipv6.HEADER_BYTES + front.offset + text_bytes
    if payload_bytes > ipv6.PAYLOAD_BYTES_MAX:
        where = text_at - ipv6.FRAGMENT_HEADER_BYTES + _FIELD_AT
        raise ParameterProblem("ipv6.fragment_too_long", ipv6.CODE_ERRONEOUS_FIELD, where)


def check_first(beginning: bytes) -> None:
    """All headers stand in the first fragment (RFC 7112), up to that of the transport: no firewall
    on the way could have judged them otherwise."""
    chain = ipv6.follow(beginning, 0, len(beginning))
    least = {6: 20, 17: 8, ipv6.ICMPV6: 8}.get(chain.protocol, 0)
    if chain.fragment is not None or chain.start + least > len(beginning):
        raise ParameterProblem("ipv6.fragment_without_header", ipv6.CODE_INCOMPLETE_CHAIN, 0)


def as_if_never_cut(unfragmentable: bytes | bytearray, text: bytes) -> bytes:
    """The datagram as one packet. BadPacket: with the extension headers of the first fragment, it
    is longer than any packet."""
    header = bytearray(unfragmentable)
    payload_bytes = len(header) - ipv6.HEADER_BYTES + len(text)
    if payload_bytes > ipv6.PAYLOAD_BYTES_MAX:
        raise BadPacket("ipv6.fragment_too_long")
    header[_PAYLOAD_LENGTH_AT : _PAYLOAD_LENGTH_AT + 2] = payload_bytes.to_bytes(2, "big")
    return bytes(header) + text
