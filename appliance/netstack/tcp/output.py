"""What a connection sends: decided here, for everything at once, when Tcp.flush asks.

In this order: a SYN or a keep-alive probe if one is due; text and FIN that are believed lost; new
text and FIN; and if none of these carried it, the acknowledgement that is owed.

New text goes in packets of up to `super_bytes`, a whole number of segments of the effective MSS,
which the link cuts up; for a link that cannot, as much is cut up here (emit_burst). How much may go
is the least of what there is, what the peer's window takes and what congestion control allows. A
part of a segment waits, unless it ends what there is (RFC 9293 section 3.8.6.2.1, the sender's side
of the silly window syndrome) and Nagle's algorithm is off, or nothing is in flight, or it is
urgent; and not while the user has corked the connection.

`emit` fills the header, and emit_burst changes what is different in the next one. The
acknowledgement and the window go with everything, so nothing is owed after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from appliance.clock import MILLISECOND, Instant
from appliance.limits import TCP_DELAYED_ACK
from appliance.netstack.ip.path import ECT_0, NOT_ECT, Path
from appliance.netstack.tcp.ecn import SETUP
from appliance.netstack.tcp.retransmission import probe_interval
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import CLOSED, FIN_WAIT_2, SYN_SENT
from appliance.netstack.wire.checksum import fold, remainder, word_sum, word_sum_of
from appliance.netstack.wire.tcp import (
    ACK,
    CHANGING,
    CHECKSUM_AT,
    CWR,
    ECE,
    FIN,
    FLAGS_AT,
    PLAIN_OFFSET,
    PROTOCOL,
    PSH,
    SACK_BLOCKS_MAX,
    STAMP_PREFIX,
    STAMPED_OFFSET,
    SYN,
    URG,
    Segment,
    pack_plain,
    pack_stamped,
    unpack_plain,
)

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

Buffer = bytes | bytearray | memoryview

DUPLICATE_ACKS_MAX: Final = 8
"""Acknowledgements in one flush: one for each segment out of order, so that the peer's fast
retransmit can count them; more tell it nothing new."""

POINTER_MAX: Final = 0xFFFF
"""What the field of the urgent pointer holds."""


def output(c: Connection, now: Instant) -> None:
    """Send whatever may be sent now."""
    if c.state is CLOSED:
        return
    snd, rcv = c.snd, c.rcv
    if c.syn_due:
        emit_syn(c, now)
    elif c.probe_due:
        c.probe_due = False
        emit(c, snd.nxt - 1, ACK, (), 0, now)
    if snd.nxt < snd.limit or snd.lost.size:
        if rcv.acks_owed and c.sacks and (rcv.out_of_order or rcv.report.duplicate):
            acknowledge(c, now)  # text does not carry the blocks
        send_text(c, now)
        c.send_at_once = False
    unacked = rcv.unacked
    if rcv.acks_owed or unacked >= 2 * c.mss or (rcv.edge - rcv.nxt < rcv.low and rcv.has_opened):
        acknowledge(c, now)
    elif unacked and c.ack_timer.deadline is None:
        c.ack_timer.set(now + TCP_DELAYED_ACK)
    if c.closed and c.state is FIN_WAIT_2:
        c.reap_later(now)


def send_alone(c: Connection, now: Instant) -> bool:
    """The usual case, in one straight line, as in express.py: a call, or its reply. What there is
    to send is less than a segment, nothing is in flight, nothing else is going on, and everything
    fits. What send_text would do is done; or else nothing, and the answer is False."""
    snd = c.snd
    seq, stop = snd.nxt, snd.limit
    count = stop - seq
    if (
        not 0 < count < c.mss
        or seq != snd.una
        or count > snd.wnd
        or c.ecn is not None
        or c.corked
        or c.rcv.acks_owed
        or c.probe_due
        or c.send_at_once
    ):
        return False
    trip = c.round_trip
    if now - c.sent_at > trip.rto:
        c.congestion.idle(now)
    if count > c.congestion.window:
        return False
    c.progress_at = c.sent_at = now
    pieces = snd.take_all()
    snd.runs.append((stop, now, False))
    if snd.timed is None:
        snd.timed, snd.timed_at = stop, now
    if c.resend_timer.deadline is None:
        c.resend_timer.set(now + trip.rto)
    emit(c, seq, ACK | PSH, pieces, count, now)
    return True


def acknowledge(c: Connection, now: Instant) -> None:
    """Nothing else carried it: acknowledgements without text."""
    if c.state is SYN_SENT:
        return
    rcv = c.rcv
    if c.sacks and (rcv.out_of_order or rcv.report.duplicate):
        for _ in range(min(max(rcv.acks_owed, 1), DUPLICATE_ACKS_MAX)):
            emit_selective(c, now)
        return
    for _ in range(min(max(c.rcv.acks_owed, 1), DUPLICATE_ACKS_MAX)):
        emit(c, c.snd.nxt, ACK, (), 0, now)


# --- text --------------------------------------------------------------------


def send_text(c: Connection, now: Instant) -> None:  # noqa: C901 - the hot path, in one piece
    """Send text, and the FIN behind it, as far as windows allow."""
    snd = c.snd
    if snd.una == snd.iss:
        return  # our SYN is not acknowledged yet
    if snd.una == snd.nxt:
        c.progress_at = now
        if now - c.sent_at > c.round_trip.rto:
            c.congestion.idle(now)
    lost = snd.lost
    if lost.size:
        _send_lost(c, now)
    before = snd.nxt
    while snd.nxt < snd.limit and not lost.size:
        count = _allowance(c)
        if count < 0:
            break
        _send_new(c, count, now)
    if snd.nxt != before:
        c.sent_at = now
        if snd.runs:
            snd.times.sent(snd.nxt, now)
        else:
            snd.runs.append((snd.nxt, now, False))
    timer = c.resend_timer
    flight = snd.nxt - snd.una
    if timer.deadline is None:
        if flight:
            trip = c.round_trip
            probed = flight > c.mss and c.sacks and c.recovery.calm
            timer.set(now + (trip.probe_timeout if probed else trip.rto))
        elif snd.nxt < snd.limit:  # the window is closed
            timer.set(now + probe_interval(c))
    elif flight > c.mss and before - snd.una <= c.mss and c.sacks:
        c.recovery.arm(c, now)  # now the tail may be probed


def _allowance(c: Connection) -> int:
    """How many bytes of new text go into the next packet. 0: a FIN alone. -1: nothing now."""
    snd = c.snd
    una, nxt = snd.una, snd.nxt
    waiting = snd.end - nxt
    usable = una + snd.wnd - nxt
    if c.send_at_once:
        return min(waiting, c.mss, max(usable, 1))
    if waiting <= 0:
        return 0 if usable > 0 else -1
    # (Nothing is believed lost here, or that would be sent first.)
    room = una + snd.departed + c.congestion.window - nxt
    count = min(waiting, c.burst_bytes, usable, room)
    mss = c.mss
    if count >= mss:
        if snd.full is None:
            snd.full = nxt + mss
        # The rest of a segment goes in the same packet, where it would not have to wait alone.
        if count == waiting and c.nodelay and not c.corked:
            return count
        return count - count % mss
    if count <= 0:
        return -1
    if count == waiting:
        at_once = (c.nodelay or una == nxt or nxt < snd.up) and not (c.corked and snd.fin is None)
        return count if at_once else -1
    # Part of a segment, though there is more: only where the peer's whole buffer is that small.
    return count if count == usable and 2 * count >= snd.wnd_max else -1


def _send_new(c: Connection, count: int, now: Instant) -> None:
    snd = c.snd
    seq = snd.nxt
    pieces = snd.take(count) if count else []
    flags = ACK
    if snd.nxt == snd.end:
        flags = ACK | PSH if count else ACK
        if snd.fin is not None and (c.send_at_once or snd.nxt < snd.una + snd.wnd):
            flags |= FIN
            snd.nxt += 1
    ecn = NOT_ECT
    if c.ecn is not None and count and not c.send_at_once:
        ecn = ECT_0
        flags |= c.ecn.flags_of_new_text(c.recovery.recover)
    c.send_at_once = False
    if snd.timed is None:
        snd.timed = min(snd.nxt, seq + c.super_bytes)
        snd.timed_at = now
    if count <= c.super_bytes or seq < snd.up:  # (each urgent segment has a pointer of its own)
        emit(c, seq, flags, pieces, count, now, ecn)
    else:
        emit_burst(c, seq, flags, pieces, count, now, ecn)


def _send_lost(c: Connection, now: Instant) -> None:
    """Send the lost run again, as far as it goes. The window is respected here too, because the
    peer may have moved its edge left; one byte always goes, as a probe."""
    snd = c.snd
    while snd.lost.size:
        seq, end = snd.lost.first
        room = c.congestion.window - snd.flight
        if c.send_at_once:
            room = max(room, c.mss)
        usable = snd.una + snd.wnd - seq
        if c.send_at_once or seq == snd.una:
            usable = max(usable, 1)
        left = end - seq
        count = min(left, c.super_bytes, room, usable)
        if count < min(left, c.mss, usable) or count <= 0:
            break
        if count > c.mss and count < left:
            count -= count % c.mss
        snd.lost.remove(seq, seq + count)
        snd.times.sent_again(snd.una, seq, seq + count, now)
        c.send_at_once = False
        c.sent_at = now
        c.counters["tcp.bytes_resent"] += count
        c.recovery.resent(c, seq, count, now)
        flags = ACK
        if seq + count == snd.end or seq + count - 1 == snd.fin:
            flags = ACK | PSH
        if snd.fin is not None and seq + count > snd.fin:
            flags |= FIN
            count -= 1
        emit(c, seq, flags, snd.again(seq, count), count, now)


# --- segments ----------------------------------------------------------------


def emit(
    c: Connection,
    seq: int,
    flags: int,
    pieces: Sequence[Buffer],
    count: int,
    now: Instant,
    ecn: int = NOT_ECT,
) -> None:
    """Send one packet with `count` bytes of text. Whatever we owe the peer is paid with it."""
    if seq < c.snd.up:
        emit_urgent(c, seq, flags, count, now, ecn)
        return
    rcv = c.rcv
    ack = rcv.nxt
    if ack >= rcv.tune_at:
        rcv.tune(c.round_trip.srtt, now)
    window = rcv.advertise()
    path = c.path
    header = c.header
    checksum = (c.checksum_base + count) % 0xFFFF if path.checksum_offload else 0
    if c.stamps:
        stamp = now // MILLISECOND + c.stamp_base & MASK
        flags |= STAMPED_OFFSET | c.echo
        pack_stamped(
            header, CHANGING, seq & MASK, ack & MASK, flags, window, checksum,
            STAMP_PREFIX, stamp, c.stamp_recent,
        )  # fmt: skip
    else:
        flags |= PLAIN_OFFSET | c.echo
        pack_plain(header, CHANGING, seq & MASK, ack & MASK, flags, window, checksum)
    if not path.checksum_offload:
        _fill_checksum(header, c.checksum_base + count, pieces)
    rcv.acked = ack
    rcv.unacked = 0
    rcv.acks_owed = 0
    c.ack_timer.deadline = None
    path.send_tcp(header, pieces, count, c.mss, ecn | c.traffic_class)


def emit_selective(c: Connection, now: Instant) -> None:
    """Send an acknowledgement that also tells what has arrived out of order, or twice."""
    rcv = c.rcv
    flags = ACK | c.echo
    segment = Segment(c.local_port, c.peer_port, c.snd.nxt, rcv.nxt, flags, rcv.advertise())
    blocks = SACK_BLOCKS_MAX
    if c.stamps:
        segment.timestamp = (now // MILLISECOND + c.stamp_base & MASK, c.stamp_recent)
        blocks -= 1
    segment.sack = tuple(rcv.report.take(blocks))
    send_header(c.path, segment, c.traffic_class)
    paid(c)


def paid(c: Connection) -> None:
    """Everything is acknowledged with what has just been sent."""
    rcv = c.rcv
    rcv.acked = rcv.nxt
    rcv.unacked = rcv.acks_owed = 0
    c.ack_timer.deadline = None


def emit_burst(
    c: Connection,
    seq: int,
    flags: int,
    pieces: Sequence[Buffer],
    count: int,
    now: Instant,
    ecn: int,
) -> None:
    """The same with more text than the link takes at once, over one that leaves checksums to us: it
    is cut up here. Between two segments only the sequence number and the text change, but for the
    flags at both ends: CWR goes with the first, PSH and FIN with the last."""
    mss, header, path = c.mss, c.header, c.path
    text = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    last = (count - 1) // mss * mss
    emit(c, seq, flags & ~(PSH | FIN), (text[:mss],), mss, now, ecn)
    header[FLAGS_AT] &= 0xFF ^ CWR
    _, ack, offset_flags, window, _ = unpack_plain(header, CHANGING)
    pack_plain(header, CHANGING, 0, ack, offset_flags, window, 0)
    fixed = c.checksum_base + mss + word_sum(header)
    service = ecn | c.traffic_class
    for at in range(mss, last, mss):
        piece = text[at : at + mss]
        wire_seq = seq + at & MASK
        swapped = remainder(int.from_bytes(piece, "little"))
        total = fixed + (wire_seq >> 16) + (wire_seq & 0xFFFF)
        total += swapped >> 8 | (swapped & 0xFF) << 8
        pack_plain(header, CHANGING, wire_seq, ack, offset_flags, window, -total % 0xFFFF)
        path.send_tcp(header, (piece,), mss, mss, service)
    emit(c, seq + last, flags & ~CWR, (text[last:],), count - last, now, ecn)


def emit_urgent(c: Connection, seq: int, flags: int, count: int, now: Instant, ecn: int) -> None:
    """Send `count` bytes of text, that have been taken, one segment at a time: each has its own
    pointer, which a link that cuts packets up would copy from the first to all.

    The pointer is behind the urgent text (MUST-62). Where that is too far away for 16 bits, it says
    as much as they can, and moves on with the segments (MUST-31)."""
    snd, rcv = c.snd, c.rcv
    at, stop = seq, seq + count
    while True:
        size = min(stop - at, c.mss)
        last = at + size == stop
        part = flags | c.echo
        if at != seq:
            part &= ~CWR
        if not last:
            part &= ~(PSH | FIN)
        segment = Segment(c.local_port, c.peer_port, at, rcv.nxt, part, rcv.advertise())
        if snd.una < snd.up and at < snd.up:  # not of what a keep-alive repeats
            segment.flags |= URG
            segment.urgent = min(snd.up - at, POINTER_MAX)
        if c.stamps:
            segment.timestamp = (now // MILLISECOND + c.stamp_base & MASK, c.stamp_recent)
        text = snd.again(at, size) if size else ()
        send_header(c.path, segment, ecn | c.traffic_class, text)
        if last:
            break
        at += size
    paid(c)


def emit_syn(c: Connection, now: Instant) -> None:
    """SYN, or SYN and ACK, with the options that we offer or agree to."""
    c.syn_due = False
    snd, rcv, tcp = c.snd, c.rcv, c.tcp
    snd.nxt = snd.iss + 1
    if not c.syn_was_lost and snd.timed is None:
        snd.timed, snd.timed_at = snd.nxt, now
    active = c.state is SYN_SENT
    segment = Segment(c.local_port, c.peer_port, snd.iss, 0, SYN, tcp.first_window)
    segment.mss = tcp.mss_for(c.path)
    if active or c.scales:
        segment.window_scale = tcp.window_shift
    segment.sack_permitted = tcp.sacks if active else c.sacks
    if (active and tcp.stamps) or c.stamps:
        segment.timestamp = (now // MILLISECOND + c.stamp_base & MASK, c.stamp_recent)
    if c.ecn is not None and not (active and c.syn_was_lost):  # RFC 3168 section 6.1.1.1
        segment.flags |= SETUP if active else ECE
    if not active:
        segment.flags |= ACK
        segment.ack = rcv.nxt
        segment.wnd = min(rcv.window, 0xFFFF)
    send_header(c.path, segment, c.traffic_class)
    rcv.acks_owed = 0
    if c.resend_timer.deadline is None:
        c.progress_at = now
        c.resend_timer.set(now + c.round_trip.rto)


def send_header(
    path: Path, segment: Segment, traffic_class: int = 0, pieces: Sequence[Buffer] = ()
) -> None:
    """Send a segment that has more options than those of an established connection, or no
    connection, or an urgent pointer; with what text it has in `pieces`."""
    header = segment.emit()
    count = sum(map(len, pieces))
    total = path.pseudo_sum + PROTOCOL + len(header) + count
    if path.checksum_offload:
        header[CHECKSUM_AT : CHECKSUM_AT + 2] = fold(total).to_bytes(2, "big")
    else:
        _fill_checksum(header, total, pieces)
    path.send_tcp(header, pieces, count, count or len(header), traffic_class)


def _fill_checksum(header: bytearray, pseudo: int, pieces: Sequence[Buffer]) -> None:
    """Put the checksum over the pseudo-header, the header (its field is zero) and the text in it.

    Text is nearly always in one piece; then both are summed as numbers (wire/checksum.py), and
    only the result is brought into the order of the wire.
    """
    if len(pieces) > 1:
        total = pseudo + word_sum_of((header, *pieces))
    else:
        number = int.from_bytes(header, "little")
        if pieces:
            number += int.from_bytes(pieces[0], "little")
        swapped = remainder(number)
        total = pseudo + (swapped >> 8 | (swapped & 0xFF) << 8)
    header[CHECKSUM_AT : CHECKSUM_AT + 2] = (-total % 0xFFFF).to_bytes(2, "big")
