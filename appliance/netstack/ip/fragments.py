"""Reassembly of fragmented datagrams (RFC 791 section 3.2, RFC 815; RFC 8200 section 4.5), with
limits on everything, for both families: v4/fragments.py and v6/fragments.py read the headers.

Theory. A datagram is known by source, destination, protocol and identification; IPv6 does without
the protocol. Its fragments are kept, in copies, until they cover it without a gap; since none may
overlap another, they do so when their bytes add up to the end that the last fragment states.

Invariants:
 F1. Fragments of a flow never overlap. One that repeats another's extent is a duplicate, and the
     first one's bytes count; any other overlap condemns the whole datagram (RFC 8200, RFC 5722; it
     is as right for IPv4). Overlaps are how firewalls are deceived, not how networks fail.
 F2. A condemned flow keeps its place, without data, until its time is over, so that stragglers
     do not start it anew.
 F3. `_bytes` is what all flows are charged; never more than FRAGMENT_BYTES_MAX. The oldest flow
     gives way, so a flood can hurt what is under way, but not us.
 F4. Flows are in the order of their deadlines, because all wait equally long: one timer serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.clock import Instant
from appliance.limits import (
    FRAGMENT_BYTES_MAX,
    FRAGMENT_FLOWS_MAX,
    FRAGMENT_OVERHEAD_BYTES,
    FRAGMENT_PIECES_MAX,
)
from appliance.netstack.timers import Timers
from appliance.netstack.wire.errors import BadPacket
from appliance.trace import Counters

Key = tuple[bytes, bytes, int, int]


@dataclass(slots=True)
class Fragment:
    """One fragment that could be a part of a datagram, looked at alone."""

    key: Key
    offset: int
    more_fragments: bool
    header: bytes
    """What the whole datagram begins with, if this is its first fragment."""
    text: bytes


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

    def add(self, fragment: Fragment) -> None:
        """Take a fragment in. BadPacket: it does not fit to the others."""
        text = fragment.text
        start, stop = fragment.offset, fragment.offset + len(text)
        if self._is_duplicate(fragment):
            raise BadPacket("ip.fragment_duplicate")
        if len(self.pieces) >= FRAGMENT_PIECES_MAX:
            self.condemned = True
            raise BadPacket("ip.fragment_too_many")
        if self._contradicts(stop, fragment.more_fragments) or self._overlaps(start, stop):
            self.condemned = True
            raise BadPacket("ip.fragment_overlap")
        self.pieces[start] = text
        self.text_bytes += len(text)
        self.reach = max(self.reach, stop)
        self.charged += len(text) + FRAGMENT_OVERHEAD_BYTES
        if not fragment.more_fragments:
            self.end = stop
        if start == 0:
            self.first_header = fragment.header

    def _is_duplicate(self, fragment: Fragment) -> bool:
        kept = self.pieces.get(fragment.offset)
        if kept is None or len(kept) != len(fragment.text):
            return False
        is_last = fragment.offset + len(kept) == self.end
        return is_last is not fragment.more_fragments

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

    @property
    def text(self) -> bytes:
        """What has been cut."""
        return b"".join(self.pieces[offset] for offset in sorted(self.pieces))


class Reassembly:
    """All incomplete datagrams of one family, which each may wait for `waits`. `timed_out(packet)`
    is told of one that never became complete, with what is needed to report it: the beginning of
    its first fragment."""

    def __init__(
        self,
        waits: Instant,
        timers: Timers,
        counters: Counters,
        timed_out: Callable[[bytes, Instant], None],
    ) -> None:
        self._waits = waits
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

    def take(self, fragment: Fragment, now: Instant) -> tuple[bytes, bytes] | None:
        """The header of the first fragment and the text of all, where the datagram is complete with
        this one."""
        key = fragment.key
        flow = self._flows.get(key)
        if flow is None:
            flow = self._begin(key, now)
        if flow.condemned:
            raise BadPacket("ip.fragment_condemned")
        charged = flow.charged
        try:
            flow.add(fragment)
        except BadPacket:
            if flow.condemned:
                self._empty(flow)
            raise
        self._bytes += flow.charged - charged
        if flow.complete:
            self._end(key)
            self._counters["ip.reassembled"] += 1
            assert flow.first_header is not None
            return flow.first_header, flow.text
        self._make_room(key)
        return None

    def _begin(self, key: Key, now: Instant) -> Flow:
        if len(self._flows) >= FRAGMENT_FLOWS_MAX:
            self._evict_oldest()
        flow = self._flows[key] = Flow(now + self._waits)
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
