"""Was it needless? Taking back what a retransmission did to the congestion window.

A timeout or fast retransmit is spurious when the original had not been lost but was late: the path
became slower, or packets overtook each other. Two signs show it:

    the Eifel detection (RFC 3522)   the first acknowledgement of what was sent again echoes a
                                     timestamp from before that
    D-SACK (RFC 2883, RFC 3708)      the peer has reported every byte that was sent again as one
                                     that it had already

Then the window and threshold from before come back (RFC 4015), and what was believed lost is in
flight after all. The round-trip time that the late acknowledgement measured makes the timeout
longer by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.clock import MILLISECOND, Instant
from appliance.netstack.tcp.sequence import MASK, is_before

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection


class Undo:
    """What is known about the last reduction of the window."""

    __slots__ = ("_bytes", "_first", "_stamp", "possible")

    def __init__(self) -> None:
        self.possible = False  # the window was reduced, and not for certain with reason
        self._first: int | None = None  # the first byte that was sent again, until it is answered
        self._stamp = 0  # our timestamp then
        self._bytes = 0  # sent again, and not reported as duplicates

    def begin(self) -> None:
        """The window is being reduced; retransmissions follow."""
        self.possible = True
        self._first = None
        self._stamp = -1
        self._bytes = 0

    def give_up(self) -> None:
        """There was a loss, or too much has happened since."""
        self.possible = False

    def resent(self, c: Connection, seq: int, count: int, now: Instant) -> None:
        """`count` bytes went out again, from `seq` on."""
        if self._stamp < 0:
            self._first = seq
            self._stamp = now // MILLISECOND + c.stamp_base & MASK
        self._bytes += count

    def original_arrived(self, una: int, echo: int) -> bool:
        """SND.UNA has moved, by an acknowledgement that echoes `echo` (0: none). Does that show
        that nothing was lost? (RFC 3522 section 3.2)"""
        if not self.possible or self._first is None or una <= self._first:
            return False
        self._first = None
        return bool(echo) and is_before(echo, self._stamp)

    def duplicated(self, count: int) -> bool:
        """The peer had `count` bytes twice. Has it had all of them twice now?"""
        if not self.possible or not self._bytes:
            return False
        self._bytes -= min(count, self._bytes)
        return not self._bytes
