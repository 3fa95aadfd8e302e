"""How long to wait for a silent peer, and how often to answer a noisy one."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.clock import SECOND, Instant
from appliance.limits import (
    TCP_KEEPALIVE_IDLE,
    TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
)


@dataclass(slots=True)
class KeepAlive:
    """RFC 9293 section 3.8.4: after `idle` without a segment, up to `probes` questions."""

    idle: Instant = TCP_KEEPALIVE_IDLE
    interval: Instant = TCP_KEEPALIVE_INTERVAL
    probes: int = TCP_KEEPALIVE_PROBES
    unanswered: int = 0


class PerSecond:
    """So many in each second, and no more (RFC 5961 section 7)."""

    __slots__ = ("_began", "_count", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._began: Instant | None = None

    def allows(self, now: Instant) -> bool:
        """Another one?"""
        if self._began is None or now - self._began >= SECOND:
            self._began, self._count = now, 0
        self._count += 1
        return self._count <= self._most
