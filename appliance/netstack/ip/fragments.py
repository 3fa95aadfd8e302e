"""Reassembly of fragmented datagrams (RFC 791 section 3.2, RFC 815), with limits on everything.

Theory. A datagram is known by source, destination, protocol and identification. Its fragments are
kept, in copies, until they cover it without a gap; since none may overlap another, they do so when
their bytes add up to the end that the last fragment states.

Invariants:
 F1. Fragments of a flow never overlap. One that repeats another's extent is a duplicate, and the
     first one's bytes count; any other overlap condemns the whole datagram (RFC 5722, which is as
     right for IPv4). Overlaps are how firewalls are deceived, not how networks fail.
 F2. A condemned flow keeps its place, without data, until its time is over, so that stragglers
     do not start it anew.
 F3. `_bytes` is what all flows are charged; never more than FRAGMENT_BYTES_MAX. The oldest flow
     gives way, so a flood can hurt what is under way, but not us.
 F4. Flows are in the order of their deadlines, because all wait equally long: one timer serves all.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.clock import Instant
from appliance.limits import (
    FRAGMENT_BYTES_MAX,
    FRAGMENT_FLOWS_MAX,
    FRAGMENT_OVERHEAD_BYTES,
    FRAGMENT_PIECES_MAX,
    FRAGMENT_WAITS,
)
from appliance.netstack.timers import Timers
from appliance.netstack.wire.checksum import checksum
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ipv4 import FRAGMENT_UNIT, PACKET_BYTES_MAX, Ipv4Header
from appliance.trace import Counters

Key = tuple[bytes, bytes, int, int]


class Flow:
    """One datagram that is not yet complete."""

    __slots__ = (
        "charged",
        "condemned",
        "deadline",
        "end",
        "first_header",
        "pieces",
        "reach",
        "text_bytes",
    )

    def __init__(self, deadline: Instant) -> None:
        self.deadline = deadline
        self.pieces: dict[int, bytes] = {}  # by offset
        self.text_bytes = 0
        self.reach = 0  # where the farthest piece ends
        self.charged = FRAGMENT_OVERHEAD_BYTES
        self.end: int | None = None  # known when the last fragment has arrived
        self.first_header: bytes | None = None  # the IP header of fragment 0
        self.condemned = False

    def add(self, header: Ipv4Header, ip_header: bytes, text: bytes) -> None:
        """Take a fragment in. BadPacket: it does not fit to the others."""
        start, stop = header.offset, header.offset + len(text)
        if self._is_duplicate(header, text):
            raise BadPacket("ip.fragment_duplicate")
        if len(self.pieces) >= FRAGMENT_PIECES_MAX:
            self.condemned = True
            raise BadPacket("ip.fragment_too_many")
        if self._contradicts(stop, header.more_fragments) or self._overlaps(start, stop):
            self.condemned = True
            raise BadPacket("ip.fragment_overlap")
        self.pieces[start] = text
        self.text_bytes += len(text)
        self.reach = max(self.reach, stop)
        self.charged += len(text) + FRAGMENT_OVERHEAD_BYTES
        if not header.more_fragments:
            self.end = stop
        if start == 0:
            self.first_header = ip_header

    def _is_duplicate(self, header: Ipv4Header, text: bytes) -> bool:
        kept = self.pieces.get(header.offset)
        if kept is None or len(kept) != len(text):
            return False
        is_last = header.offset + len(text) == self.end
        return is_last is not header.more_fragments

    def _contradicts(self, stop: int, more_fragments: bool) -> bool:
        """The stated ends disagree: two different ones, or data behind one."""
        if self.end is not None:
            return stop > self.end or not more_fragments
        return not more_fragments and self.reach > stop

    def _overlaps(self, start: int, stop: int) -> bool:
        if start >= self.reach:
            return False  # in order, as nearly always
        return any(
            offset < stop and start < offset + len(piece) for offset, piece in self.pieces.items()
        )

    @property
    def complete(self) -> bool:
        return self.text_bytes == self.end  # F1: no overlap, so no gap

    def packet(self) -> bytes:
        """The datagram as one packet, as if it had never been cut. BadPacket: with the options of
        the first fragment, which the others need not have, it is longer than any packet."""
        assert self.first_header is not None
        header = bytearray(self.first_header)
        if len(header) + self.text_bytes > PACKET_BYTES_MAX:
            raise BadPacket("ip.fragment_too_long")
        header[2:4] = (len(header) + self.text_bytes).to_bytes(2, "big")
        header[6:8] = bytes(2)  # no offset, no more fragments
        header[10:12] = bytes(2)
        header[10:12] = checksum(header).to_bytes(2, "big")
        return b"".join([header, *(self.pieces[offset] for offset in sorted(self.pieces))])


class Reassembly:
    """All incomplete datagrams. `timed_out(packet)` is told of one that never became complete,
    with what is needed to report it: the beginning of its first fragment."""

    def __init__(
        self, timers: Timers, counters: Counters, timed_out: Callable[[bytes, Instant], None]
    ) -> None:
        self._counters = counters
        self._timed_out = timed_out
        self._timer = timers.timer(self._expire)
        self._flows: dict[Key, Flow] = {}  # oldest first (F4)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._flows)

    @property
    def charged_bytes(self) -> int:
        """What the flows cost together."""
        return self._bytes

    def add(self, header: Ipv4Header, packet: bytes, at: int, now: Instant) -> bytes | None:
        """A fragment, whose header stands at `at` of `packet`: the whole datagram, as one packet,
        where it is complete with it."""
        text_at = at + header.header_bytes
        text = packet[text_at : at + header.total_bytes]
        check_extent(header, len(text))
        key = (header.source, header.destination, header.protocol, header.identification)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._begin(key, now)
        if flow.condemned:
            raise BadPacket("ip.fragment_condemned")
        charged = flow.charged
        try:
            flow.add(header, packet[at:text_at], text)
        except BadPacket:
            if flow.condemned:
                self._empty(flow)
            raise
        self._bytes += flow.charged - charged
        if flow.complete:
            self._end(key)
            self._counters["ip.reassembled"] += 1
            return flow.packet()
        self._make_room(key)
        return None

    def _begin(self, key: Key, now: Instant) -> Flow:
        if len(self._flows) >= FRAGMENT_FLOWS_MAX:
            self._evict_oldest()
        flow = self._flows[key] = Flow(now + FRAGMENT_WAITS)
        self._bytes += flow.charged
        if self._timer.deadline is None:
            self._timer.set(flow.deadline)
        return flow

    def _make_room(self, keep: Key) -> None:
        """F3. The flow that has just grown is not the one to give way."""
        while self._bytes > FRAGMENT_BYTES_MAX and len(self._flows) > 1:
            if next(iter(self._flows)) == keep:
                # The oldest is the one that grew: the next one is it that gives way.
                self._evict(next(key for key in self._flows if key != keep))
            else:
                self._evict_oldest()

    def _evict_oldest(self) -> None:
        self._evict(next(iter(self._flows)))

    def _evict(self, key: Key) -> None:
        self._counters["ip.fragment_evicted"] += 1
        self._end(key)

    def _empty(self, flow: Flow) -> None:
        """F2."""
        self._bytes -= flow.charged - FRAGMENT_OVERHEAD_BYTES
        flow.charged = FRAGMENT_OVERHEAD_BYTES
        flow.pieces.clear()
        flow.first_header = None

    def _end(self, key: Key) -> None:
        self._bytes -= self._flows.pop(key).charged

    def _expire(self, now: Instant) -> None:
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if flow.deadline > now:
                self._timer.set(flow.deadline)
                return
            self._end(key)
            if flow.condemned:
                continue
            self._counters["ip.fragment_timeout"] += 1
            if flow.first_header is not None:
                # RFC 792: without fragment 0 there is nobody to be told.
                self._timed_out(flow.first_header + flow.pieces[0], now)


def check_extent(header: Ipv4Header, text_bytes: int) -> None:
    """A fragment, looked at alone, could be a part of a datagram."""
    if text_bytes == 0:
        raise BadPacket("ip.fragment_empty")
    if header.more_fragments and text_bytes % FRAGMENT_UNIT:
        raise BadPacket("ip.fragment_bad_length")
    if header.header_bytes + header.offset + text_bytes > PACKET_BYTES_MAX:
        raise BadPacket("ip.fragment_too_long")
