"""The recovery of a connection that has not lost anything.

Most never do. They share one object, which knows nothing of any of them; the first sign that
something is going on makes a real one, with SACK (RFC 6675) or without (RFC 6582), and is passed on
to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import Instant
from appliance.netstack.tcp.recovery import NewRenoRecovery, Recovery
from appliance.netstack.tcp.sack_recovery import SackRecovery
from appliance.netstack.tcp.undo import Undo
from appliance.netstack.wire.tcp import Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection


class Calm:
    """A Recovery (recovery.py) that is none yet. Whatever comes to it is for the one that it
    makes."""

    def __init__(self) -> None:
        self.calm = True
        self.active = False
        self.duplicates = 0
        self.recover = -1  # before every connection's first number
        self.undo = Undo()  # and there is nothing to take back

    def blocks(self, c: Connection, seg: Segment, now: Instant) -> None:
        begin(c).blocks(c, seg, now)

    def duplicate(self, c: Connection, now: Instant) -> None:
        begin(c).duplicate(c, now)

    def before(self, c: Connection, ack: int, now: Instant, echo: int) -> None:
        begin(c).before(c, ack, now, echo)

    def advanced(self, c: Connection, acked: int, flight: int, now: Instant, echo: int) -> bool:
        return begin(c).advanced(c, acked, flight, now, echo)

    def resent(self, c: Connection, seq: int, count: int, now: Instant) -> None:
        begin(c).resent(c, seq, count, now)

    def arm(self, c: Connection, now: Instant) -> None:
        begin(c).arm(c, now)

    def expired(self, c: Connection, now: Instant) -> bool:
        return begin(c).expired(c, now)

    def timed_out(self, c: Connection, now: Instant) -> bool:
        return begin(c).timed_out(c, now)

    def start_over(self, c: Connection) -> None:
        begin(c).start_over(c)


def begin(c: Connection) -> Recovery:
    """A recovery of the connection's own, of the kind that was agreed to."""
    c.recovery = SackRecovery(c.snd.iss) if c.sacks else NewRenoRecovery(c.snd.iss)
    return c.recovery


CALM: Final = Calm()
