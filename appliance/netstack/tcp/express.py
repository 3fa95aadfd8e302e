"""Header prediction: the segment that nearly always comes, without building a Segment.

On an established connection it is the next one in order, with ACK and perhaps PSH, and no options
but timestamps in their usual place. `Connection.predicted` holds offset and flags of just that
segment, and is negative while anything else is going on (see Connection.predict), so a single
comparison stands for the first steps of SEGMENT ARRIVES (RFC 9293 section 3.10.7.4). What does not
match is left untouched, and goes the long way (segment_arrives.py), which gives the same result for
every segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.clock import Instant
from appliance.netstack.tcp.receive_half import charge_for
from appliance.netstack.tcp.retransmission import acknowledged
from appliance.netstack.tcp.sequence import HALF, MASK
from appliance.netstack.wire.tcp import HEADER_BYTES, PSH, STAMP_PREFIX, unpack_stamp

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

NOT_PSH: Final = 0xFFFF ^ PSH


def express(  # noqa: C901 - one straight line on purpose: a call costs what a step does
    c: Connection,
    seq: int,
    ack: int,
    offset_flags: int,
    window: int,
    frame: bytes,
    at: int,
    end: int,
    now: Instant,
) -> bool:
    """Take the segment whose header is at frame[at] and whose text ends at `end`, if it is the
    predicted one; its checksum is good. False: nothing was done with it."""
    rcv, snd = c.rcv, c.snd
    nxt, una = rcv.nxt, snd.una
    if offset_flags & NOT_PSH != c.predicted or seq != nxt & MASK:
        return False
    acked, flight = ack - una & MASK, snd.nxt - una
    text_at = at + (offset_flags >> 12) * 4
    count, wnd = end - text_at, window << snd.shift
    if (
        acked > flight
        or not 0 <= count <= rcv.edge - nxt
        or not (wnd and snd.wnd)  # it closes, or opens: perhaps something has to be sent again
        or (not count and not acked and flight and wnd == snd.wnd)  # a duplicate acknowledgement
    ):
        return False
    echo = 0
    if c.stamps:
        prefix, stamp, echo = unpack_stamp(frame, at + HEADER_BYTES)
        if prefix != STAMP_PREFIX or stamp - c.stamp_recent & MASK >= HALF:
            return False
        if nxt <= rcv.acked:
            c.stamp_recent, c.stamp_recent_at = stamp, now
    c.heard_at = now
    # Step 5: in order, and acknowledging no less than before, so it always renews the window.
    snd.wnd, snd.wl1, snd.wl2 = wnd, nxt, una + acked
    if wnd > snd.wnd_max:
        snd.wnd_max = wnd
    if acked == flight and snd.timed is not None and c.recovery.calm:
        _all_acknowledged(c, acked, now)
    elif acked:
        acknowledged(c, una + acked, now, echo)
    if count:  # step 7
        rcv.pieces.append(memoryview(frame)[text_at:end])
        rcv.nxt, rcv.count = nxt + count, count  # (nothing waited, or it was not predicted)
        rcv.unacked += count
        if not c.marked:
            c.marked = True
            c.tcp.dirty.append(c)
        c.user.readable(c)
        if rcv.pieces:  # left to wait: the long way keeps account of that
            rcv.charge = charge_for(count)
            rcv.account()
            c.predict()
    elif snd.nxt < snd.limit and not c.marked:
        c.mark()
    if c.crowded:
        c.ease()
    return True


def _all_acknowledged(c: Connection, acked: int, now: Instant) -> None:
    """What `acknowledged` would do: everything has arrived, and nothing was ever in doubt."""
    snd, congestion = c.snd, c.congestion
    snd.una = snd.nxt
    snd.sent.clear()
    snd.runs.clear()
    c.round_trip.sample(now - snd.timed_at, now)
    snd.timed = None
    if acked * 2 >= congestion.window:
        congestion.acknowledged(acked, acked, now)
    c.progress_at = now
    c.send_at_once = False
    c.resend_timer.deadline = None
