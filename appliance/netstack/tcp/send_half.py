"""The send half: SND.* (RFC 9293 section 3.3.1) and the text behind it.

        sent, not acknowledged      not sent yet
    ---|---------------------------|---------------------|--- FIN
       una                         nxt                   end   fin

The text stays where the user has it. Two queues of (first sequence number, buffer) refer to it:
`sent` from una on, `unsent` from nxt on. Sending moves references from one to the other, and cuts
one in two where a segment ends inside it. So any range can be sent again, whatever the segments it
was in at first; nothing is copied, and nothing depends on how a super-segment was cut up.

`nxt` never goes back. What lies between una and nxt is partly known to have arrived (`sacked`, RFC
2018), partly believed lost and to be sent again before anything new (`lost`), and the rest is in
flight. These are sets of bytes, and S1 to S3 hold between any two events:

  S1  sacked and lost are inside [una, nxt), and have nothing in common
  S2  a byte that is sent again is no longer lost; when that copy is believed lost, it is again
  S3  departed is the size of sacked; without SACK it is guessed (recovery.py)

Sequence numbers are unwrapped. SYN takes `iss`, the text begins at iss + 1, FIN takes `fin`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final

from appliance.limits import TCP_PIECES_MAX
from appliance.netstack.tcp.ranges import Ranges
from appliance.netstack.tcp.send_times import SendTimes

Buffer = bytes | bytearray | memoryview

NO_TEXT: Final[deque[tuple[int, Buffer]]] = deque()
"""The queues of a connection that sends nothing: an empty one takes 600 bytes."""


class SendHalf:
    """Send sequence variables, and what the user has sent."""

    __slots__ = (
        "departed", "end", "fin", "full", "iss", "limit", "lost", "nxt", "runs", "sacked", "sent",
        "shift", "timed", "timed_at", "times", "una", "unsent", "up", "wl1", "wl2", "wnd",
        "wnd_max",
    )  # fmt: skip

    def __init__(self, iss: int) -> None:
        self.iss = iss
        self.una = iss
        self.nxt = iss
        self.up = iss  # behind the urgent text
        self.end = iss + 1  # the sequence number behind the last byte of text
        self.fin: int | None = None
        self.limit = iss + 1  # behind everything there is to send, FIN included
        self.wnd = 0
        self.wnd_max = 0  # the largest window seen
        self.wl1 = 0
        self.wl2 = 0
        self.shift = 0  # of the peer's windows (RFC 7323 section 2)
        self.full: int | None = None  # behind the first full segment of the present size
        self.sacked = Ranges()
        self.lost = Ranges()
        self.departed = 0  # bytes behind una that have left the network
        self.times = SendTimes()
        self.runs = self.times.runs
        self.timed: int | None = None  # when this is acknowledged, a round trip has been measured
        self.timed_at = 0
        self.unsent = self.sent = NO_TEXT

    @property
    def flight(self) -> int:
        """Bytes that are in the network now, as far as we know."""
        return self.nxt - self.una - self.departed - self.lost.size

    @property
    def unacknowledged_text(self) -> int:
        """Bytes of text that the user has sent and the peer has not acknowledged."""
        return self.end - min(max(self.una, self.iss + 1), self.end)  # una: behind FIN, perhaps

    @property
    def fin_is_acknowledged(self) -> bool:
        return self.fin is not None and self.una > self.fin

    def queue(self, buffers: Iterable[Buffer]) -> None:
        """Append text. The buffers must stay as they are."""
        if self.unsent is NO_TEXT:
            self.unsent, self.sent = deque(), deque()
        end = self.end
        for buffer in buffers:
            size = len(buffer)
            if size:
                self.unsent.append((end, buffer))
                end += size
        self.end = self.limit = end

    def finish(self) -> None:
        """A FIN follows the text."""
        self.fin = self.end
        self.limit = self.end + 1

    def take(self, count: int) -> list[Buffer]:
        """The first `count` bytes that were not sent yet: now they are."""
        if self.nxt + count == self.end:
            return self.take_all()
        unsent, sent = self.unsent, self.sent
        self.nxt += count
        pieces = []
        while count:
            start, buffer = unsent.popleft()
            if len(buffer) > count:
                view = memoryview(buffer)
                unsent.appendleft((start + count, view[count:]))
                buffer = view[:count]
            sent.append((start, buffer))
            pieces.append(buffer)
            count -= len(buffer)
        return joined_if_many(pieces)

    def take_all(self) -> list[Buffer]:
        """All text that was not sent yet."""
        unsent, sent = self.unsent, self.sent
        self.nxt = self.end
        if len(unsent) == 1:
            run = unsent.popleft()
            sent.append(run)
            return [run[1]]
        pieces = [buffer for _, buffer in unsent]
        sent.extend(unsent)
        unsent.clear()
        return joined_if_many(pieces)

    def again(self, seq: int, count: int) -> list[Buffer]:
        """The text of [seq, seq + count), which has been sent before."""
        pieces: list[Buffer] = []
        stop = seq + count
        for start, buffer in self.sent:
            if start >= stop:
                break
            if start + len(buffer) > seq:
                pieces.append(memoryview(buffer)[max(seq - start, 0) : stop - start])
        return joined_if_many(pieces)

    def acknowledge(self, ack: int) -> None:
        """The peer has everything before `ack`: let go of it."""
        self.una = ack
        if ack == self.nxt:
            self.sent.clear()
            self.runs.clear()
        else:
            sent = self.sent
            while sent:
                start, buffer = sent[0]
                if start + len(buffer) > ack:
                    break
                sent.popleft()
            if self.runs and self.runs[0][0] <= ack:
                self.times.acknowledged(ack)
        if self.lost.size:
            self.lost.remove_before(ack)
        if self.departed:
            self.departed -= self.sacked.remove_before(ack)

    def sack(self, left: int, right: int) -> None:
        """The peer has [left, right), too (RFC 2018)."""
        self.departed += self.sacked.add(left, right)
        if self.lost.size:
            self.lost.remove(left, right)

    def forget_sacks(self) -> None:
        """The peer may have thrown away what it had out of order (RFC 2018 section 8)."""
        self.sacked.clear()
        self.departed = 0

    def lose(self, left: int, right: int) -> None:
        """Believe [left, right) to be lost, but what is known to have arrived: it will be sent
        again, and no longer counts as in flight. Nothing in it can tell a round-trip time any more
        (Karn's algorithm)."""
        if left == right:
            return  # nothing is in flight
        if not self.sacked.size:
            self.lost.add(left, right)
        else:
            for gap in self.sacked.gaps(left, right):
                self.lost.add(*gap)
        self.timed = None

    def forget(self) -> None:
        """The connection is over: let go of all text."""
        self.unsent = self.sent = NO_TEXT


def joined_if_many(pieces: list[Buffer]) -> list[Buffer]:
    """Text in more pieces than one write takes is copied together; only tiny pieces are so many."""
    if len(pieces) <= TCP_PIECES_MAX:
        return pieces
    first = islice(pieces, TCP_PIECES_MAX - 1)
    return [*first, b"".join(pieces[TCP_PIECES_MAX - 1 :])]
