"""A decorator that makes a link worse, on purpose: frames are lost, sent twice, held up, damaged.

    link = FaultLink(tap, [parse_fault("drop=1%,seed=7")], counters=counters)

Faults happen to what is on a wire. So a super-frame is cut into its segments, with checksums
finished, before anything is decided: one of a hundred segments is lost, not 64 KiB at a time, and a
segment with a wrong bit has a wrong checksum, whoever verifies it. A super-frame that no rule wants
goes on as it is.

Each rule is a piece of wire of its own, one after the other. Its decisions come from its seed, for
each direction apart, because the order in which both meet here is not repeatable.

Nothing waits here. What is held up is due at `next_deadline`, and moves on in `expire`, which
whoever runs the timers calls: out over the link, or in to `receive`, which is woken for it. A frame
that is lost or held lets `receive` return empty, as if woken: there is a new deadline to look at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from random import Random
from threading import Lock
from typing import NamedTuple

from appliance.clock import Clock, Instant, SystemClock
from appliance.limits import FAULT_FRAME_OVERHEAD_BYTES, FAULT_WAITING_BYTES_MAX
from appliance.netstack.link.capture import Capture, as_on_a_wire
from appliance.netstack.link.conditions import OneWay, told
from appliance.netstack.link.fault_spec import FaultError, FaultRule, parse_fault
from appliance.netstack.link.frame_filter import Facts, facts_of
from appliance.netstack.link.interface import ClosableLink
from appliance.netstack.wire import vnet
from appliance.trace import Counters

__all__ = ["FaultError", "FaultLink", "FaultRule", "parse_fault"]

Buffer = bytes | bytearray | memoryview


class _Rule:
    """A rule at work: what it has seen."""

    def __init__(self, rule: FaultRule, start: Instant, counters: Counters) -> None:
        self._rule = rule
        self._start = start
        self._seen = 0
        self._ways = [
            OneWay(Random(rule.seed << 1 | outgoing), counters, "fault") for outgoing in (0, 1)
        ]

    def wants(self, facts: Facts, now: Instant) -> bool:
        """Whether it happens to this frame. To be asked once for each."""
        rule = self._rule
        if rule.between is not None:
            start, end = rule.between
            if not start <= now - self._start < end:
                return False
        if not rule.filter(facts):
            return False
        self._seen += 1
        return rule.nth is None or rule.nth[0] <= self._seen <= rule.nth[1]

    def carry(self, frame: bytes, outgoing: bool, at: Instant) -> tuple[list[_Arrival], list[str]]:
        return self._ways[outgoing].carry(self._rule.conditions, frame, at)


_Arrival = tuple[Instant, bytes]


class _Piece(NamedTuple):
    """A bare frame, and what becomes of it."""

    frame: bytes
    arrivals: list[_Arrival]
    events: list[str]


class _Held(NamedTuple):
    """A bare frame that waits for its instant."""

    at: Instant
    serial: int
    outgoing: bool
    frame: bytes
    comment: str


class FaultLink:
    """`link`, with faults in both directions. Any thread may send, and one receive."""

    def __init__(
        self,
        link: ClosableLink,
        rules: Iterable[FaultRule],
        *,
        counters: Counters,
        clock: Clock | None = None,
        capture: Capture | None = None,
    ) -> None:
        """`capture` gets what passes, with what was done to it; it is closed with the link."""
        self.vnet = link.vnet
        self.mtu = link.mtu
        self._link = link
        self._clock = clock or SystemClock()
        start = self._clock.now()
        self._rules = [_Rule(rule, start, counters) for rule in rules]
        self._counters = counters
        self._capture = capture
        self._lock = Lock()  # over rules, what is held, and the capture
        self._held: list[_Held] = []
        self._held_bytes = 0
        self._serial = 0
        self._arrived: deque[bytes] = deque()

    # --- frames -------------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """The next frame; empty: woken, or one that came does not arrive now (interface.py)."""
        arrived = self._arrived
        if not arrived:
            frame = self._link.receive()
            if frame is None:
                return None
            if frame:
                self._take(frame)
        return arrived.popleft() if arrived else b""

    def receive_now(self) -> bytes | None:
        """The next frame, if one is there already and arrives now."""
        arrived = self._arrived
        if not arrived:
            frame = self._link.receive_now()
            if frame is not None:
                self._take(frame)
        return arrived.popleft() if arrived else None

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send a frame. Whoever sends does not hear of faults."""
        frame = b"".join(buffers)
        now = self._clock.now()
        with self._lock:
            pieces = self._decide(frame, True, now)
            if pieces is None:
                sent = self._link.send((frame,))
                self._note(frame, self.vnet, outgoing=True, sent=sent)
                return sent
            taken = [self._send_piece(piece, now) for piece in pieces]
            return all(taken)

    def wait(self, timeout_ns: int) -> bool:
        """Whether a frame comes within the timeout."""
        return bool(self._arrived) or self._link.wait(timeout_ns)

    def wake(self) -> None:
        """Let `receive` return."""
        self._link.wake()

    def close(self) -> None:
        """Close the link. What is held is lost."""
        self._link.close()
        with self._lock:
            self._held.clear()
            self._held_bytes = 0
            if self._capture is not None:
                self._capture.close()

    # --- time ---------------------------------------------------------------------------

    @property
    def next_deadline(self) -> Instant | None:
        """When the next frame that is held moves on; None: none is held."""
        with self._lock:
            return self._held[0].at if self._held else None

    def expire(self, now: Instant) -> None:
        """Let go of what is due."""
        with self._lock:
            arrived = False
            while self._held and self._held[0].at <= now:
                held = heappop(self._held)
                self._held_bytes -= _charge(held.frame)
                if held.outgoing:
                    self._send_bare(held.frame, held.comment)
                else:
                    self._arrive(held.frame)
                    arrived = True
        if arrived:
            self._link.wake()

    # --- decisions ------------------------------------------------------------------------

    def _decide(self, frame: bytes, outgoing: bool, now: Instant) -> list[_Piece] | None:
        """What becomes of the frames that a wire would carry; None: nothing happens to them."""
        bares = as_on_a_wire(frame) if self.vnet else [frame]
        wanted = []
        for bare in bares:
            facts = facts_of(bare, outgoing)
            wanted.append([rule for rule in self._rules if rule.wants(facts, now)])
        if not any(wanted):
            return None
        return [
            self._piece(bare, rules, outgoing, now)
            for bare, rules in zip(bares, wanted, strict=True)
        ]

    def _piece(self, bare: bytes, rules: list[_Rule], outgoing: bool, now: Instant) -> _Piece:
        arrivals, events = [(now, bare)], []
        for rule in rules:
            before, arrivals = arrivals, []
            for at, frame in before:
                fate = rule.carry(frame, outgoing, at)
                arrivals += fate[0]
                events += fate[1]
        return _Piece(bare, arrivals, events)

    def _take(self, frame: bytes) -> None:
        """A frame has come."""
        now = self._clock.now()
        with self._lock:
            pieces = self._decide(frame, False, now)
            if pieces is None:
                self._note(frame, self.vnet, outgoing=False)
                self._arrived.append(frame)
                return
            for piece in pieces:
                latest = max((at for at, _ in piece.arrivals), default=now)
                self._note(
                    piece.frame, False, outgoing=False, words=told(piece.events, latest - now)
                )
                for at, bare in piece.arrivals:
                    if at <= now:
                        self._arrive(bare)
                    else:
                        self._hold(at, bare, False, "")

    def _send_piece(self, piece: _Piece, now: Instant) -> bool:
        """False: the link did not take it."""
        sent = True
        if not piece.arrivals:
            words = told(piece.events, 0)
            self._note(piece.frame, False, outgoing=True, words=words, sent=False)
        for at, bare in piece.arrivals:
            words = told(piece.events, at - now)
            if at <= now:
                sent &= self._send_bare(bare, words)
            else:
                self._hold(at, bare, True, words)
        return sent

    def _hold(self, at: Instant, bare: bytes, outgoing: bool, words: str) -> None:
        if self._held_bytes + _charge(bare) > FAULT_WAITING_BYTES_MAX:
            self._counters["fault.too_many"] += 1
            return
        self._held_bytes += _charge(bare)
        self._serial += 1  # what is due at the same instant moves on in the order it came
        heappush(self._held, _Held(at, self._serial, outgoing, bare, words))

    def _arrive(self, bare: bytes) -> None:
        self._arrived.append(vnet.NOTHING + bare if self.vnet else bare)

    def _send_bare(self, bare: bytes, words: str) -> bool:
        sent = self._link.send((vnet.NOTHING, bare) if self.vnet else (bare,))
        self._note(bare, False, outgoing=True, words=words, sent=sent)
        return sent

    def _note(
        self, frame: bytes, has_vnet: bool, *, outgoing: bool, words: str = "", sent: bool = True
    ) -> None:
        if self._capture is not None:
            self._capture.record(
                frame,
                has_vnet_header=has_vnet,
                outgoing=outgoing,
                comment=f"{words} by --fault" if words else "",
                sent=sent,
            )


def _charge(frame: bytes) -> int:
    return len(frame) + FAULT_FRAME_OVERHEAD_BYTES
