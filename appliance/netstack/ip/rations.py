"""How often something may be said: a token bucket, as RFC 4443 section 2.4 (f) wants it."""

from __future__ import annotations

from appliance.clock import SECOND, Instant


class TokenBucket:
    """At most `burst` at once, and `per_second` on average."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._interval = SECOND // per_second
        self._span = self._interval * burst
        self._empty_until: Instant | None = None

    def take(self, now: Instant) -> bool:
        """One token, where there is one. (`_empty_until` is when the bucket is full again.)"""
        full = now if self._empty_until is None else max(self._empty_until, now)
        if full + self._interval - now > self._span:
            return False
        self._empty_until = full + self._interval
        return True
