"""Explicit Congestion Notification (RFC 3168 section 6.1): a router whose queue grows marks packets
where it would otherwise drop some.

    a marked packet arrives   every segment of ours carries ECE, until one with CWR comes
    ECE arrives               as if a segment were lost, though none has to be sent again: less may
                              be in flight. Once in a round trip, and the next new text carries CWR
    what we send              new text may be marked: it is ECT(0). What is sent again, probes,
                              acknowledgements without text, SYNs and resets may not be (6.1.4 to
                              6.1.6)

`Connection.echo` is ECE or nothing, and goes into every header. `Connection.ecn` is there only
where both sides have agreed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.clock import Instant
from appliance.netstack.wire.tcp import CWR, ECE, Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

SETUP = ECE | CWR
"""What asks for it in a SYN. The answer has ECE alone (section 6.1.1)."""


class Ecn:
    """The data sender's side of one connection."""

    __slots__ = ("cwr_due", "reacted")

    def __init__(self, iss: int) -> None:
        self.reacted = iss
        """SND.NXT when the window was last made smaller: what is acknowledged up to here was marked
        before."""
        self.cwr_due = False

    def flags_of_new_text(self, recover: int) -> int:
        """CWR, once after the window was made smaller. `recover`: SND.NXT at the last loss, which
        makes it smaller as well (section 6.1.2)."""
        if recover > self.reacted:
            self.reacted = recover
        elif not self.cwr_due:
            return 0
        self.cwr_due = False
        return CWR


def asks(seg: Segment) -> bool:
    """Is it an ECN-setup SYN?"""
    return seg.flags & SETUP == SETUP


def agrees(seg: Segment) -> bool:
    """Is it an ECN-setup SYN-ACK? One that sends back what it got has not understood."""
    return seg.flags & SETUP == ECE


def marked(c: Connection) -> None:
    """A packet with text has met congestion. Say so at once, and go on saying so."""
    if c.ecn is None or c.echo:
        return
    c.echo = ECE
    c.counters["tcp.ecn_marked"] += 1
    c.rcv.acks_owed = max(c.rcv.acks_owed, 1)
    c.mark()


def text_arrives(c: Connection, seg: Segment) -> None:
    """The long way's part of the receiver's side. CWR first: it answers earlier marks."""
    if seg.flags & CWR:
        c.echo = 0
    if seg.marked:
        marked(c)


def echo_arrives(c: Connection, seg: Segment, now: Instant) -> None:
    """An acceptable acknowledgement with ECE."""
    assert c.ecn is not None
    snd = c.snd
    if seg.ack <= c.ecn.reacted or snd.una == snd.nxt:
        return  # it was sent before the peer could have seen that we know
    c.ecn.reacted = snd.nxt
    c.ecn.cwr_due = True
    if not c.recovery.active:
        c.counters["tcp.ecn_reactions"] += 1
        c.recovery.undo.give_up()
        c.congestion.lost(snd.nxt - snd.una, now)
