"""The receive half: RCV.* (RFC 9293 section 3.3.1), the text that has arrived, and the window.

       taken by the user | waiting (pieces) |  holes and out-of-order text   |
    ---------------------|------------------|--------------------------------|---
                                            nxt                              edge

The text stays in the frames it came in: pieces are views of them. `edge` is the right edge of the
window as the peer knows it, and never moves left (RFC 9293 section 3.8.6.2.2): what was promised
will be taken. What is promised is the capacity less what waiting text is charged. A piece is
charged at least 256 bytes, so that a peer that sends single bytes pays for the objects around them.

Text can cost more than its bytes only while it waits in small pieces; those are then copied
together. And a piece that is a small part of its frame is copied out of it, or a peer could make us
keep frames of 64 KiB that bring one new byte each. A peer that acknowledges rounding (see
`advertise`) can get a little more than was meant. Beyond that, and when all connections together
have too much, text is dropped: the peer sends it again.

The capacity follows the user (`tune`). What he reads in a round trip has to fit twice, so that the
peer can send as much again while our acknowledgements are on their way: when half a capacity has
been read in no more than a round trip, it is doubled, up to `capacity_max`, from which the window
scale was chosen, and as far as all connections together have not been promised too much.

Invariants, while the connection is synchronized:
  R1  nxt <= edge
  R2  out of order: sorted, disjoint, everything behind nxt and before edge, and never more pieces
      than the limit
  R3  what was received first stays; what comes again is thrown away
"""

from __future__ import annotations

from bisect import bisect_left

from appliance.clock import Instant
from appliance.limits import (
    TCP_OUT_OF_ORDER_PIECES_MAX,
    TCP_PIECE_BYTES_MIN,
    TCP_RECEIVE_BYTES_FIRST,
    TCP_RECEIVE_ROUND_MIN,
    TCP_RECEIVE_TOTAL_BYTES_MAX,
)
from appliance.netstack.tcp.sack import Report

WINDOW_FIELD_MAX = 0xFFFF

JOINED_BYTES_MIN = 4096
"""Small pieces are joined until they are so large."""


NEVER = 1 << 100
"""A sequence number that no connection reaches."""


class Budget:
    """What all connections of a host together keep of text, and what their windows have grown
    by."""

    __slots__ = ("granted", "limit", "used")

    def __init__(self, limit: int = TCP_RECEIVE_TOTAL_BYTES_MAX) -> None:
        self.limit = limit
        self.used = 0
        self.granted = 0

    def grant(self, count: int) -> bool:
        """May a window grow by so much?"""
        if self.granted + count > self.limit or 2 * self.used > self.limit:
            return False
        self.granted += count
        return True

    @property
    def exhausted(self) -> bool:
        return self.used > self.limit


def charge_for(count: int) -> int:
    """What a piece of `count` bytes costs."""
    return count if count > TCP_PIECE_BYTES_MIN else TCP_PIECE_BYTES_MIN


def apart(text: memoryview) -> memoryview:
    """The text; copied, where it would keep alive a frame of more than four times its size."""
    frame: bytes = text.obj  # type: ignore[assignment]
    return memoryview(bytes(text)) if 4 * len(text) < len(frame) else text


class ReceiveHalf:
    """Receive sequence variables, and the text on its way to the user."""

    __slots__ = (
        "_budget",
        "_granted",
        "_joined_at",
        "_joined_grows",
        "_mss",
        "_overhead",
        "_tuned_at",
        "acked",
        "acks_owed",
        "capacity",
        "capacity_max",
        "charge",
        "count",
        "edge",
        "fin",
        "full",
        "held",
        "irs",
        "low",
        "nxt",
        "out_of_order",
        "out_of_order_charge",
        "pieces",
        "report",
        "shift",
        "step",
        "tune_at",
        "unacked",
        "up",
    )

    def __init__(self, capacity_max: int, budget: Budget) -> None:
        self._budget = budget
        self._granted = 0  # what the capacity has grown by
        self.held = 0  # what the budget knows of us
        self.capacity_max = capacity_max
        self.capacity = min(capacity_max, TCP_RECEIVE_BYTES_FIRST)
        self.tune_at = NEVER  # when nxt gets here, `tune` is worth a call
        self._tuned_at: Instant = 0
        self._mss = 0
        self.low = 0  # a window below this is worth an update of its own
        self.full = 0  # the window field when nothing waits
        self.step = 1  # the window is opened by no less (silly window syndrome)
        self.shift = 0  # of our windows (RFC 7323 section 2)
        self.irs = 0
        self.up = 0  # behind the urgent text that the peer has told of
        self.nxt = 0
        self.edge = 0
        self.acked = 0  # the acknowledgement number last sent
        self.unacked = 0  # bytes that arrived in order since then
        self.acks_owed = 0  # segments that must be answered at once
        self.fin: int | None = None  # where the peer's FIN is, once it is known
        self.pieces: list[memoryview] = []
        self.count = 0  # bytes in pieces
        self.charge = 0
        self._joined_at = 0  # pieces before this index are not worth joining any more
        self._joined_grows = False  # the one at it was joined, and is still small
        self._overhead = 0  # what pieces cost more than their bytes, when they were last joined
        self.out_of_order: list[tuple[int, memoryview]] = []
        self.out_of_order_charge = 0
        self.report = Report()  # what selective acknowledgements say of it

    def start(self, irs: int) -> None:
        """The peer's SYN has come. The window of a SYN or SYN-ACK is not scaled."""
        self.irs = self.up = irs
        self.nxt = self.acked = irs + 1
        self.edge = self.nxt + min(self.capacity, WINDOW_FIELD_MAX)

    def negotiated(self, shift: int, mss: int) -> None:
        """Windows will be in units of 2**shift; the peer's segments carry up to `mss` bytes."""
        self.shift = shift
        self._mss = mss
        self.capacity_max = self._whole(self.capacity_max)
        self._become(self._whole(self.capacity))
        if self.capacity < self.capacity_max:
            self.tune_at = self.nxt

    def _whole(self, capacity: int) -> int:
        """As much of it as the window field can say."""
        return min(capacity, WINDOW_FIELD_MAX << self.shift) >> self.shift << self.shift

    def _become(self, capacity: int) -> None:
        self.capacity = capacity
        self.full = capacity >> self.shift
        self.step = min(capacity // 2, self._mss)
        self.low = min(capacity // 2, WINDOW_FIELD_MAX // 2)

    def tune(self, round_trip: Instant | None, now: Instant) -> None:
        """Half a capacity has arrived since the last look. Was it read within a round trip?"""
        read = self.nxt - self.count
        if read < self.tune_at:
            return
        took = now - self._tuned_at
        if self._tuned_at and took <= max(round_trip or 0, TCP_RECEIVE_ROUND_MIN):
            capacity = min(2 * self.capacity, self.capacity_max)
            if self._budget.grant(capacity - self.capacity):
                self._granted += capacity - self.capacity
                self._become(capacity)
        self._tuned_at = now
        at_most = self.capacity == self.capacity_max
        self.tune_at = NEVER if at_most else read + self.capacity // 2

    # --- the window ----------------------------------------------------------

    @property
    def window(self) -> int:
        """RCV.WND: what the peer may still send."""
        return self.edge - self.nxt

    def advertise(self) -> int:
        """The window field of a segment that is sent now.

        The edge moves right when there is enough new room, and otherwise stays where it is. The
        field counts in units of 2**shift, so where the edge stays it is rounded up: rounding down
        would move it left (RFC 7323 section 2.4).
        """
        nxt, shift = self.nxt, self.shift
        if not self.charge and not self.held:
            self.edge = nxt + self.capacity
            return self.full
        field = self.free >> shift
        edge = nxt + (field << shift)
        if edge < self.edge or (edge - self.edge < self.step and self.charge):
            field = (self.edge - nxt + (1 << shift) - 1) >> shift
            edge = nxt + (field << shift)
        self.edge = edge
        return field

    @property
    def free(self) -> int:
        """Room for text that was not promised or may not be promised yet."""
        if self.held and self._budget.exhausted:
            return 0
        return max(self.capacity - self.charge, 0)

    @property
    def urgent_bytes(self) -> int:
        """From what the user takes next to the end of the urgent text (RFC 9293 section 3.8.5)."""
        return max(self.up - (self.nxt - self.count), 0)

    @property
    def has_opened(self) -> bool:
        """The window has become small, and could be at least twice as large as the peer thinks."""
        window, free = self.edge - self.nxt, self.free
        if window >= self.low or self.fin is not None:
            return False
        return free >= 2 * window and free - window >= self.step

    # --- text ----------------------------------------------------------------

    def accept(self, seq: int, text: memoryview) -> bool:
        """Take text that begins at `seq`, within the window. False: there was no room for it."""
        skip = self.nxt - seq
        if skip < 0:
            return self._keep(seq, text)
        # Text in order that the user takes at once needs no room: it may be what fills a hole.
        if self.charge and (
            self._budget.exhausted or self.count > self.capacity + self.capacity // 4
        ):
            return False
        self._append(apart(text[skip:]))
        if self.out_of_order:
            self._join()
        return True

    def _append(self, text: memoryview) -> None:
        size = len(text)
        self.pieces.append(text)
        self.nxt += size
        self.unacked += size
        self.count += size
        self.charge += charge_for(size)
        if self.charge - self.count - self._overhead > self.capacity // 4:
            self._compact()

    def _join(self) -> None:
        """Move out-of-order text that nxt has reached behind the rest; throw away what nxt has
        passed: a segment that was sent again may have been cut differently (R2, R3)."""
        queue = self.out_of_order
        reached = 0
        for seq, text in queue:
            if seq > self.nxt:
                break
            reached += 1
            self.out_of_order_charge -= charge_for(len(text))
            if seq + len(text) > self.nxt:
                self._append(apart(text[self.nxt - seq :]))
        del queue[:reached]
        self.report.passed(self.nxt)

    def _keep(self, seq: int, text: memoryview) -> bool:
        """Out of order: keep what nobody has sent before (R3)."""
        if self.held and self._budget.exhausted:
            return False
        queue = self.out_of_order
        stop = seq + len(text)
        known = self.report.blocks.run_of(seq)
        if known is not None:
            self.report.again(seq, min(stop, known[1]))
        at = bisect_left(queue, seq, key=lambda piece: piece[0])
        if at:
            before, piece = queue[at - 1]
            seq = max(seq, before + len(piece))
        taken = stop - len(text)  # the sequence number of text[0]
        while seq < stop:
            until = min(queue[at][0], stop) if at < len(queue) else stop
            if until > seq:
                if len(queue) >= TCP_OUT_OF_ORDER_PIECES_MAX:
                    return False
                piece = apart(text[seq - taken : until - taken])
                queue.insert(at, (seq, piece))
                self.out_of_order_charge += charge_for(len(piece))
                self.report.arrived(seq, until)
                at += 1
            if at == len(queue):
                break
            seq = max(seq, queue[at][0] + len(queue[at][1]))
            at += 1
        self.report.touched(stop - len(text))
        return True

    def _compact(self) -> None:
        """Copy runs of small pieces together. It happens once in many pieces, and the result grows
        only up to JOINED_BYTES_MIN, so that a byte is copied a few times at most. Afterwards small
        pieces stand only between larger ones, and all cost no more than twice their bytes."""
        run: list[memoryview] = []
        result: list[memoryview] = self.pieces[: self._joined_at]
        for piece in self.pieces[self._joined_at :]:
            if len(piece) < TCP_PIECE_BYTES_MIN or self._joined_grows:
                self._joined_grows = False  # it was only the first one
                run.append(piece)
                continue
            _flush_run(run, result)
            result.append(piece)
        self._joined_grows = 0 < sum(map(len, run)) < JOINED_BYTES_MIN
        _flush_run(run, result)
        self.pieces = result
        self._joined_at = len(result) - self._joined_grows
        self.charge = sum(charge_for(len(piece)) for piece in result)
        self._overhead = self.charge - self.count

    # --- the user ------------------------------------------------------------

    def take(self) -> list[memoryview]:
        """All text that has arrived in order."""
        pieces = self.pieces
        self.pieces = []
        self.count = self.charge = 0
        if self._overhead:
            self._joined_at = self._overhead = 0
            self._joined_grows = False
        if self.held:
            self.account()
        return pieces

    def account(self) -> None:
        """Tell the budget what is kept here. Text that is taken at once is never told of."""
        held = self.charge + self.out_of_order_charge
        self._budget.used += held - self.held
        self.held = held

    def forget(self) -> None:
        """The connection is over. What arrived in order stays for the user, at his expense."""
        self.out_of_order.clear()
        self.out_of_order_charge = 0
        self.report.forget()
        self._budget.used -= self.held
        self._budget.granted -= self._granted
        self._budget = Budget()
        self.held = self._granted = 0


def _flush_run(run: list[memoryview], result: list[memoryview]) -> None:
    if run:
        result.append(memoryview(b"".join(run)))
        run.clear()
