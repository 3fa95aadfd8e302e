"""SEGMENT ARRIVES (RFC 9293 section 3.10.7): one function per step, in the RFC's order.

A step that ends the processing of a segment raises Drop, whose reason is counted. The steps for a
segment that belongs to no connection are in host.py (CLOSED) and listener.py (LISTEN).

Added to the RFC's steps: PAWS (RFC 7323 section 5.3), the checks of RFC 5961 against blind attacks,
the reuse of a connection in TIME-WAIT (RFC 6191), that a reset does not end TIME-WAIT (RFC 1337),
and ECN (RFC 3168)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.clock import SECOND, Instant
from appliance.netstack.tcp import ecn, reasons
from appliance.netstack.tcp.retransmission import acknowledged
from appliance.netstack.tcp.sequence import is_before, unwrap
from appliance.netstack.tcp.state import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    RECEIVING,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
)
from appliance.netstack.wire.tcp import ACK, ECE, FIN, RST, SYN, URG, Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

STAMPS_AGE_AFTER = 24 * 24 * 3600 * SECOND
"""RFC 7323 section 5.5: after so long without a segment the peer's timestamps prove nothing."""


class Drop(Exception):
    """The segment is finished with; why, as the name of a counter."""


def segment_arrives(c: Connection, seg: Segment, now: Instant) -> None:
    """A segment for `c`, in any state but CLOSED and LISTEN."""
    try:
        if c.state is SYN_SENT:
            arrives_in_syn_sent(c, seg, now)
        else:
            seg.seq = unwrap(seg.seq, c.rcv.nxt)
            seg.ack = unwrap(seg.ack, c.snd.una)
            arrives_in_other_states(c, seg, now)
    except Drop as drop:
        c.counters[str(drop)] += 1
    if c.state is ESTABLISHED:  # nothing is predicted in any other state
        c.predict()


# --- 3.10.7.3 SYN-SENT STATE ---------------------------------------------------------------------


def arrives_in_syn_sent(c: Connection, seg: Segment, now: Instant) -> None:
    """3.10.7.3 SYN-SENT STATE."""
    snd = c.snd
    seg.ack = unwrap(seg.ack, snd.una)
    acknowledges = bool(seg.flags & ACK)
    if acknowledges and not snd.iss < seg.ack <= snd.nxt:  # first
        if not seg.flags & RST:
            c.tcp.send_reset(c.path, c.key, seg.ack)
        raise Drop("tcp.unacceptable_ack")
    if seg.flags & RST:  # second
        if acknowledges:
            c.end(reasons.REFUSED)
        raise Drop("tcp.reset_in_syn_sent")
    if not seg.flags & SYN:  # fifth
        raise Drop("tcp.no_syn")
    c.heard_at = now  # fourth
    c.rcv.start(seg.seq)
    c.scales = seg.window_scale is not None
    c.negotiated(seg.mss, seg.window_scale, seg.timestamp is not None, seg.sack_permitted)
    if seg.timestamp is not None:
        c.stamp_recent, c.stamp_recent_at = seg.timestamp[0], now
    snd.wnd = snd.wnd_max = seg.wnd
    snd.wl1, snd.wl2 = seg.seq, seg.ack if acknowledges else snd.iss
    if not acknowledges or not ecn.agrees(seg):
        c.ecn = None
    if not acknowledges:
        c.become(SYN_RECEIVED)
        c.resend_timer.clear()
        c.syn_due = True
        c.mark()
        return
    if not c.established(seg.ack, now):
        raise Drop("tcp.refused")
    seg.seq += 1
    seg.flags ^= SYN
    check_urg(c, seg)
    process_text(c, seg)
    check_fin(c, seg, now)
    c.rcv.acks_owed = 1
    c.deliver()


# --- 3.10.7.4 OTHER STATES -----------------------------------------------------------------------


def arrives_in_other_states(c: Connection, seg: Segment, now: Instant) -> None:
    """3.10.7.4 OTHER STATES. What only a flag asks for is called where it is set."""
    flags = seg.flags
    if flags & SYN:
        answer_repeated_syn(c, seg)
    check_timestamp(c, seg, now)
    check_sequence_number(c, seg, now)
    note_timestamp(c, seg, now)
    if flags & RST:
        check_rst(c, seg, now)
    if seg.flags & SYN:  # still
        check_syn(c, seg, now)
    check_ack(c, seg, now)
    if flags & URG:
        check_urg(c, seg)
    if seg.text:
        process_text(c, seg)
    check_fin(c, seg, now)
    c.deliver()


def answer_repeated_syn(c: Connection, seg: Segment) -> None:
    """In SYN-RECEIVED: the peer's SYN again, because our answer was lost; or, in a simultaneous
    open, its answer to our SYN, whose own SYN we already have (figure 7)."""
    if c.state is not SYN_RECEIVED or seg.seq != c.rcv.irs:
        return
    if seg.flags & ACK:
        seg.seq += 1
        seg.flags ^= SYN
    elif not seg.flags & RST:
        c.syn_due = c.syn_was_lost = True
        c.snd.timed = None
        c.mark()
        raise Drop("tcp.syn_repeated")


def check_timestamp(c: Connection, seg: Segment, now: Instant) -> None:
    """PAWS: a segment with an older timestamp than one in order before it is an old duplicate. One
    without a timestamp is let through: some middleboxes and peers lose the option."""
    if not c.stamps or seg.timestamp is None or seg.flags & RST:
        return
    if not is_before(seg.timestamp[0], c.stamp_recent):
        return
    if now - c.stamp_recent_at > STAMPS_AGE_AFTER:
        return
    answer_unacceptable(c, seg, now)
    raise Drop("tcp.paws")


def check_sequence_number(c: Connection, seg: Segment, now: Instant) -> None:
    """First: is any part of it inside the window? A closed window still takes the acknowledgement
    and the reset of a segment that begins at its edge (section 3.4)."""
    rcv = c.rcv
    last = seg.seq + max(seg.length, 1) - 1
    if last >= rcv.nxt and seg.seq < max(rcv.edge, rcv.nxt + 1):
        return
    if seg.flags & RST:
        raise Drop("tcp.reset_outside_window")
    if c.state is TIME_WAIT and seg.flags & FIN:
        c.wait_2msl(now)
    answer_unacceptable(c, seg, now)
    raise Drop("tcp.outside_window")


def answer_unacceptable(c: Connection, seg: Segment, now: Instant) -> None:
    """A repeated segment with text or FIN is acknowledged again, since the acknowledgement may have
    been lost. Others get the same answer, but only so often: two peers that each find the other's
    numbers wrong would otherwise never stop."""
    if seg.length and not seg.flags & SYN and seg.seq + seg.length <= c.rcv.nxt:
        if seg.text:
            c.rcv.report.again(seg.seq, seg.seq + len(seg.text))
        c.rcv.acks_owed = 1
        c.mark()
    else:
        c.challenge(now)


def note_timestamp(c: Connection, seg: Segment, now: Instant) -> None:
    """RFC 7323 section 4.3: echo the timestamp of the earliest segment not acknowledged yet."""
    c.heard_at = now
    if not c.stamps or seg.timestamp is None or seg.flags & (SYN | RST):
        return
    if seg.seq <= c.rcv.acked:
        c.stamp_recent, c.stamp_recent_at = seg.timestamp[0], now


def check_rst(c: Connection, seg: Segment, now: Instant) -> None:
    """Second: RST. It must have exactly the expected number, or it is challenged (RFC 5961)."""
    if c.state is TIME_WAIT:
        raise Drop("tcp.reset_in_time_wait")
    if seg.seq != c.rcv.nxt:
        c.challenge(now)
        raise Drop("tcp.reset_challenged")
    if c.state is SYN_RECEIVED:
        c.end(reasons.REFUSED)
    elif c.state in (CLOSING, LAST_ACK):
        c.end(None)  # both sides have said all; RFC: enter the CLOSED state
    else:
        c.end(reasons.RESET)
    raise Drop("tcp.resets_received")


def check_syn(c: Connection, seg: Segment, now: Instant) -> None:
    """Fourth: SYN. It may be forged; a peer that has restarted answers the challenge with a
    reset."""
    if c.state is SYN_RECEIVED and c.listener is not None:
        c.end(reasons.ANOTHER_SYN)  # to LISTEN: the peer has begun anew, and will repeat its SYN
        raise Drop("tcp.syn_in_syn_received")
    c.challenge(now)
    raise Drop("tcp.syn_challenged")


def check_ack(c: Connection, seg: Segment, now: Instant) -> None:
    """Fifth: ACK."""
    snd = c.snd
    if not seg.flags & ACK:
        raise Drop("tcp.no_ack")
    if c.state is SYN_RECEIVED:
        check_ack_of_our_syn(c, seg, now)
    if seg.ack > snd.nxt:
        c.challenge(now)
        raise Drop("tcp.acknowledges_unsent")
    if seg.ack < snd.una - snd.wnd_max:
        c.challenge(now)
        raise Drop("tcp.ack_too_old")
    if c.ecn is not None and seg.flags & ECE and seg.ack >= snd.una:
        ecn.echo_arrives(c, seg, now)
    take_acknowledgement(c, seg, now)
    update_window(c, seg)
    check_our_fin(c, now)
    if c.crowded:
        c.ease()


def check_ack_of_our_syn(c: Connection, seg: Segment, now: Instant) -> None:
    """Fifth, in SYN-RECEIVED: enter ESTABLISHED."""
    snd = c.snd
    if not snd.una < seg.ack <= snd.nxt:
        c.tcp.send_reset(c.path, c.key, seg.ack)
        raise Drop("tcp.unacceptable_ack")
    snd.wnd = snd.wnd_max = seg.wnd << snd.shift
    snd.wl1, snd.wl2 = seg.seq, seg.ack
    if not c.established(seg.ack, now):
        raise Drop("tcp.refused")


def take_acknowledgement(c: Connection, seg: Segment, now: Instant) -> None:
    """What it acknowledges, selectively (RFC 2018) and altogether."""
    selective = c.sacks and bool(seg.sack)
    if selective:
        c.recovery.blocks(c, seg, now)
    if seg.ack > c.snd.una:
        echo = seg.timestamp[1] if c.stamps and seg.timestamp is not None else 0
        acknowledged(c, seg.ack, now, echo)
    elif selective or (not c.sacks and is_duplicate(c, seg)):
        c.recovery.duplicate(c, now)


def is_duplicate(c: Connection, seg: Segment) -> bool:
    """RFC 5681 section 2: an acknowledgement that can only mean that a segment arrived
    elsewhere."""
    snd = c.snd
    return (
        seg.ack == snd.una
        and snd.nxt > snd.una
        and not seg.length
        and seg.wnd << snd.shift == snd.wnd
        and snd.wnd > 0
    )


def update_window(c: Connection, seg: Segment) -> None:
    """SND.WND, unless the segment is older than the one that set it."""
    snd = c.snd
    if seg.ack < snd.una or (snd.wl1, snd.wl2) > (seg.seq, seg.ack):
        return
    was_closed = not snd.wnd
    snd.wnd = seg.wnd << snd.shift
    snd.wl1, snd.wl2 = seg.seq, seg.ack
    snd.wnd_max = max(snd.wnd_max, snd.wnd)
    if snd.wnd:
        c.probes = 0
        if was_closed:
            window_opened(c)
    if snd.nxt < snd.limit:
        c.mark()


def window_opened(c: Connection) -> None:
    """It was closed. What is in flight was sent into a closed window and thrown away."""
    snd = c.snd
    c.resend_timer.clear()
    if snd.una < snd.nxt:
        snd.lose(snd.una, snd.nxt)
    c.mark()


def check_our_fin(c: Connection, now: Instant) -> None:
    """Is our FIN acknowledged?"""
    if not c.snd.fin_is_acknowledged:
        return
    if c.state is FIN_WAIT_1:
        c.become(FIN_WAIT_2)
        if c.closed:
            c.reap_later(now)
    elif c.state is CLOSING:
        c.wait_2msl(now)
        raise Drop("tcp.closed")
    elif c.state is LAST_ACK:
        c.end(None)
        raise Drop("tcp.closed")


def check_urg(c: Connection, seg: Segment) -> None:
    """Sixth: URG. The urgent text ends in front of SEG.UP, and stays where it is in the stream (RFC
    6093 section 6); the user is told each time that there is more of it (MUST-32)."""
    rcv = c.rcv
    if not seg.flags & URG or c.state not in RECEIVING or seg.seq + seg.urgent <= rcv.up:
        return
    rcv.up = seg.seq + seg.urgent
    if rcv.urgent_bytes and c.on_urgent is not None and not c.closed:
        c.on_urgent(c)


def process_text(c: Connection, seg: Segment) -> None:
    """Seventh: the text."""
    rcv = c.rcv
    if not seg.text or c.state not in RECEIVING:
        return
    if c.closed and seg.seq + len(seg.text) > rcv.nxt:
        c.counters["tcp.text_after_close"] += 1
        c.abort()
        raise Drop("tcp.aborted")
    text = memoryview(seg.text)
    if seg.seq < rcv.nxt:
        rcv.report.again(seg.seq, min(seg.seq + len(text), rcv.nxt))
    limit = rcv.edge if rcv.fin is None else min(rcv.edge, rcv.fin)
    beyond = seg.seq + len(text) - limit
    if beyond > 0:
        c.counters["tcp.text_beyond_window"] += 1
        text = text[: max(len(text) - beyond, 0)]
    # A hole, its filling, and what does not fit are reported at once (RFC 5681 section 4.2).
    at_once = beyond > 0 or seg.seq > rcv.nxt or bool(rcv.out_of_order)
    if seg.seq + len(text) > rcv.nxt and not rcv.accept(seg.seq, text):
        c.counters["tcp.no_room"] += 1
        seg.flags &= ~FIN
        at_once = True
    if at_once:
        rcv.acks_owed += 1
    if c.ecn is not None:
        ecn.text_arrives(c, seg)
    c.mark()


def check_fin(c: Connection, seg: Segment, now: Instant) -> None:
    """Eighth: FIN. It counts when everything before it has arrived."""
    rcv = c.rcv
    if seg.flags & FIN and rcv.fin is None and c.state in RECEIVING:
        note_fin(c, seg)
    if rcv.fin != rcv.nxt or c.state not in RECEIVING:
        return
    rcv.nxt += 1
    rcv.edge = max(rcv.edge, rcv.nxt)
    rcv.acks_owed = max(rcv.acks_owed, 1)
    c.mark()
    if c.state is ESTABLISHED:
        c.become(CLOSE_WAIT)
    elif c.state is FIN_WAIT_1:
        c.become(CLOSING)
    elif c.state is FIN_WAIT_2:
        c.wait_2msl(now)


def note_fin(c: Connection, seg: Segment) -> None:
    """Remember where the FIN is. Nothing is accepted behind it."""
    rcv = c.rcv
    fin = seg.seq + len(seg.text)
    if fin < rcv.nxt or fin > rcv.edge:
        return
    if rcv.out_of_order and fin < rcv.out_of_order[-1][0] + len(rcv.out_of_order[-1][1]):
        return  # a FIN before text that has been received: what came first stays
    rcv.fin = fin
    if fin != rcv.nxt:
        rcv.acks_owed = max(rcv.acks_owed, 1)
        c.mark()
