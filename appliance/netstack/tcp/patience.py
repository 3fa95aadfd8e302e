"""How long to wait for a silent peer, and how often to answer a noisy one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.clock import SECOND, Instant
from appliance.limits import (
    TCP_GIVE_UP_AFTER,
    TCP_KEEPALIVE_IDLE,
    TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
    TCP_ORPHAN_AFTER,
    TCP_SYN_GIVE_UP_AFTER,
    TCP_SYN_RECEIVED_MAX,
)
from appliance.netstack.tcp import reasons
from appliance.netstack.tcp.state import State

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection


@dataclass(slots=True)
class KeepAlive:
    """RFC 9293 section 3.8.4: after `idle` without a segment, up to `probes` questions."""

    idle: Instant = TCP_KEEPALIVE_IDLE
    interval: Instant = TCP_KEEPALIVE_INTERVAL
    probes: int = TCP_KEEPALIVE_PROBES
    unanswered: int = 0

    def is_over(self, silent: Instant, user_timeout: Instant | None) -> bool:
        """Nothing was heard for so long: is the peer gone? A user timeout says how long it may be
        silent, instead of how many questions there are: both are about the same patience (RFC 5482
        section 4.2)."""
        if user_timeout is None:
            return self.unanswered >= self.probes
        return self.unanswered > 0 and silent >= user_timeout


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


def keep_alive(c: Connection, keepalive: KeepAlive, now: Instant) -> Instant | None:
    """Nothing was heard, perhaps: ask. When to look again; None: it is given up."""
    if now - c.heard_at < keepalive.idle:
        keepalive.unanswered = 0
        return c.heard_at + keepalive.idle
    if c.snd.una < c.snd.limit:  # MUST-26; and there is a timer for it
        keepalive.unanswered = 0
    elif keepalive.is_over(now - c.heard_at, c.user_timeout):
        c.counters["tcp.keepalive_failed"] += 1
        c.give_up(c.soft_error or reasons.KEEPALIVE)
        return None
    else:
        keepalive.unanswered += 1
        c.probe_due = True
        c.mark()
    return now + keepalive.interval


def why_give_up(c: Connection, now: Instant) -> str | None:
    """The timer has expired: RFC 9293 section 3.8.3. None: not yet.

    A user timeout (RFC 5482) is about text that is not acknowledged, for whatever reason: a peer
    that answers probes of its closed window for ever is given up, too. Without one it is not (RFC
    9293 MUST-37)."""
    stalled = now - c.progress_at
    if c.state is State.SYN_SENT:
        patience = c.user_timeout or TCP_SYN_GIVE_UP_AFTER
        return (c.soft_error or reasons.NO_ANSWER) if stalled >= patience else None
    if c.state is State.SYN_RECEIVED:
        return "handshake was not completed" if stalled >= TCP_SYN_RECEIVED_MAX else None
    if c.closed:
        return (
            "closed, and the peer does not take the rest" if stalled >= TCP_ORPHAN_AFTER else None
        )
    if c.user_timeout is not None:
        return reasons.USER_TIMEOUT if stalled >= c.user_timeout else None
    silent = min(stalled, now - c.heard_at) if c.snd.wnd == 0 else stalled
    return (c.soft_error or reasons.TIMED_OUT) if silent >= TCP_GIVE_UP_AFTER else None


def in_time(c: Connection, deadline: Instant) -> Instant:
    """When to look again: at `deadline`, but no later than the user's patience ends."""
    if c.user_timeout is None or c.closed or c.state is State.SYN_RECEIVED:
        return deadline
    return min(deadline, c.progress_at + c.user_timeout)
