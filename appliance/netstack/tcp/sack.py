"""Selective acknowledgements: what a peer's blocks may say, and what ours do.

Blocks come with acknowledgements (RFC 2018), and the first one may instead report something that
arrived twice (D-SACK, RFC 2883). What a peer says is believed only where it can be true: inside
[SND.UNA, SND.NXT), and not behind its own acknowledgement.

Ours go with acknowledgements that carry no text: segments stay the size they were, and while
something is missing such an acknowledgement goes out in front of text (output.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.netstack.tcp.ranges import Ranges
from appliance.netstack.tcp.sequence import unwrap
from appliance.netstack.wire.tcp import SACK_BLOCKS_MAX, Segment

if TYPE_CHECKING:
    from appliance.netstack.tcp.connection import Connection

Block = tuple[int, int]
"""Left and right edge, unwrapped."""

RECENT_MAX: Final = 8
"""Blocks of which the order of arrival is remembered: those of two or three acknowledgements."""


def blocks_of(c: Connection, seg: Segment) -> tuple[Block | None, list[Block]]:
    """What the segment, whose ACK is unwrapped, reports as a duplicate, and what it says has
    arrived, from the left. What cannot be true is counted and left out."""
    snd = c.snd
    blocks = [(unwrap(left, snd.una), unwrap(right, snd.una)) for left, right in seg.sack]
    duplicate = None
    if _is_duplicate(c, seg.ack, blocks):
        duplicate = blocks.pop(0)
    arrived = []
    for left, right in blocks[:SACK_BLOCKS_MAX]:
        if left >= right or left <= seg.ack or right > snd.nxt or left <= snd.iss:
            c.counters["tcp.sack_bad"] += 1
        elif right > snd.una:  # an older acknowledgement may be overtaken by SND.UNA
            arrived.append((max(left, snd.una), right))
    return duplicate, sorted(arrived)


def _is_duplicate(c: Connection, ack: int, blocks: list[Block]) -> bool:
    """RFC 2883 section 4: is the first block below the acknowledgement, or inside the second? It
    may speak of what was acknowledged long ago, but not of more than a window."""
    snd = c.snd
    left, right = blocks[0]
    if left >= right or right > snd.nxt or left < max(ack - max(snd.wnd_max, 1), snd.iss + 1):
        return False
    if right <= ack:
        return True
    return len(blocks) > 1 and blocks[1][0] <= left and right <= blocks[1][1]


class Report:
    """What the receive half has out of order, in the order in which it should be told of."""

    __slots__ = ("_recent", "blocks", "duplicate")

    def __init__(self) -> None:
        self.blocks = Ranges()
        self.duplicate: Block | None = None  # arrived twice; told of once
        self._recent: list[int] = []  # a number in each of the latest blocks, newest first

    def arrived(self, left: int, right: int) -> None:
        """[left, right) is out of order, and new."""
        self.blocks.add(left, right)

    def touched(self, seq: int) -> None:
        """A segment with `seq` in it has come: its block is told of first (RFC 2018 section 4)."""
        block = self.blocks.run_of(seq)
        if block is not None:
            rest = [other for other in self._recent if not block[0] <= other < block[1]]
            self._recent = [seq, *rest[: RECENT_MAX - 1]]

    def again(self, left: int, right: int) -> None:
        """[left, right) has come before (RFC 2883)."""
        self.duplicate = (left, right)

    def passed(self, nxt: int) -> None:
        """RCV.NXT is `nxt`: nothing before it is out of order."""
        self.blocks.remove_before(nxt)

    def take(self, most: int) -> list[Block]:
        """Up to `most` blocks for an acknowledgement: the duplicate, then from the most recent."""
        chosen: list[Block] = []
        for seq in self._recent:
            block = self.blocks.run_of(seq)
            if block is not None and block not in chosen:
                chosen.append(block)
        if self.duplicate is not None:
            within = self.blocks.run_of(self.duplicate[0])
            if within is not None:  # the block that it is part of comes next (section 4)
                chosen = [within, *(block for block in chosen if block != within)]
            chosen.insert(0, self.duplicate)
            self.duplicate = None
        return chosen[:most]

    def forget(self) -> None:
        """The connection is over."""
        self.blocks.clear()
        self._recent.clear()
        self.duplicate = None
