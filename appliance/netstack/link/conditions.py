"""What a bad wire does to frames: decided frame by frame, from one seed, at no time but `now`.

A frame may be too large for the wire, find its queue full, be lost, sent twice, damaged, cut short,
or held up so that others overtake it. Nothing here waits or sends: what comes out are frames with
the instants at which they arrive. So the same decisions are those of a simulated wire in virtual
time, and of a link that real clients use (fault.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.netstack.wire import ethernet
from appliance.trace import Counters


@dataclass(frozen=True)
class Conditions:
    """What the wire does to frames. Probabilities are between 0 and 1, times in nanoseconds."""

    delay: int = 0
    """From one end to the other."""
    jitter: int = 0
    """Up to so much more, without a change of order: what waits in queues on the way waits
    together."""
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """A frame is held up for up to `reordering_delay` more, so that others overtake it."""
    reordering_delay: int = 0
    damage: float = 0.0
    """One bit is flipped, somewhere behind the Ethernet header."""
    truncation: float = 0.0
    """The frame ends somewhere behind its Ethernet header."""
    bytes_per_second: int | None = None
    burst_bytes: int = 0
    """With a limited rate: what may leave at once after a pause, the depth of the token bucket."""
    queue_bytes: int = 1 << 20
    """With a limited rate: what waits to be sent; more is lost."""
    mtu: int | None = None
    """A frame with a larger packet is lost."""


PERFECT: Final = Conditions()


class Fate(NamedTuple):
    """What becomes of a frame: the instants at which it arrives, with what arrives then (none: it
    is lost), and what happened to it, in the words of the counters."""

    arrivals: list[tuple[Instant, bytes]]
    events: list[str]


class OneWay:
    """One direction of a wire. `name` is the first half of its counters."""

    def __init__(self, random: Random, counters: Counters, name: str) -> None:
        self._random = random
        self._counters = counters
        self._name = name
        self._free_at: Instant = 0  # when the last frame will have left
        self._last_at: Instant = 0  # when the last frame that jitter has delayed arrives

    def carry(self, conditions: Conditions, frame: bytes, now: Instant) -> Fate:
        """What becomes of `frame`, a bare Ethernet frame, if it is sent at `now`."""
        fate = self._decide(conditions, frame, now)
        for event in fate.events:
            self._counters[f"{self._name}.{event}"] += 1
        return fate

    def _decide(self, conditions: Conditions, frame: bytes, now: Instant) -> Fate:
        random = self._random
        mtu = conditions.mtu
        if mtu is not None and len(frame) > mtu + ethernet.HEADER_BYTES:
            return Fate([], ["too_large"])
        leaves = self._leaves(conditions, len(frame), now)
        if leaves is None:
            return Fate([], ["queue_full"])
        if random.random() < conditions.loss:
            return Fate([], ["lost"])
        events = []
        copies = 1
        if random.random() < conditions.duplication:
            events.append("duplicated")
            copies = 2
        if random.random() < conditions.damage:
            events.append("damaged")
            frame = self._damaged(frame)
        if conditions.truncation and random.random() < conditions.truncation:
            events.append("truncated")
            frame = frame[: random.randrange(min(ethernet.HEADER_BYTES, len(frame)), len(frame))]
        arrivals = []
        for _ in range(copies):
            arrives = self._arrives(conditions, leaves)
            if random.random() < conditions.reordering:
                events.append("reordered")
                arrives += random.randint(1, max(1, conditions.reordering_delay))
            arrivals.append((arrives, frame))
        return Fate(arrivals, events)

    def _leaves(self, conditions: Conditions, size: int, now: Instant) -> Instant | None:
        """When a frame of this size has left; None: the queue is full.

        The bucket is full again `burst_bytes` after the last frame, so what it holds is told by
        how far `_free_at`, the instant at which everything sent would have left without it, is
        ahead of now.
        """
        rate = conditions.bytes_per_second
        if rate is None:
            return now
        start = max(now, self._free_at)
        saved = conditions.burst_bytes * SECOND // rate
        if (start - saved - now) * rate // SECOND + size > conditions.queue_bytes:
            return None
        self._free_at = start + size * SECOND // rate
        return max(now, self._free_at - saved)

    def _arrives(self, conditions: Conditions, leaves: Instant) -> Instant:
        arrives = leaves + conditions.delay
        if conditions.jitter:
            arrives += self._random.randint(0, conditions.jitter)
            arrives = self._last_at = max(arrives, self._last_at)
        return arrives

    def _damaged(self, frame: bytes) -> bytes:
        if len(frame) <= ethernet.HEADER_BYTES:
            return frame
        damaged = bytearray(frame)
        at = self._random.randrange(ethernet.HEADER_BYTES, len(frame))
        damaged[at] ^= 1 << self._random.randrange(8)
        return bytes(damaged)


WORDS: Final = {
    "too_large": "dropped as too large",
    "queue_full": "dropped from a full queue",
    "lost": "dropped",
    "duplicated": "duplicated",
    "damaged": "corrupted",
    "truncated": "truncated",
    "reordered": "held back",
}
"""The counters' events, in the words of those who ask for them."""


def told(events: list[str], waits: int) -> str:
    """What has happened to a frame that arrives `waits` nanoseconds later, or not: in words."""
    words = [WORDS[event] for event in events]
    if waits > 0:
        words.append(f"delayed {waits / MILLISECOND:.3g} ms")
    return ", ".join(words)
