"""The receive half against a model: an array of bytes, of which each is known or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.limits import TCP_OUT_OF_ORDER_PIECES_MAX, KiB, MiB
from appliance.netstack.tcp.receive_half import Budget, ReceiveHalf

IRS = (1 << 32) - 30
FIRST = IRS + 1


def started(capacity: int = 4096, shift: int = 0, budget: Budget | None = None) -> ReceiveHalf:
    rcv = ReceiveHalf(capacity, budget or Budget())
    rcv.start(IRS)
    rcv.negotiated(shift, 1460)
    rcv.advertise()
    return rcv


def test_no_window_grows_while_half_of_what_is_allowed_is_unread() -> None:
    budget = Budget(limit=1000)
    budget.used = 501
    assert not budget.grant(1)
    budget.used = 500
    assert budget.grant(1)


def pieces(rcv: ReceiveHalf) -> bytes:
    return b"".join(rcv.pieces)


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=20)), max_size=40))
def test_what_came_first_stays(arrivals: list[tuple[int, bytes]]) -> None:
    """R1 to R3, with texts that contradict each other."""
    rcv = started()
    model: dict[int, int] = {}
    delivered = 0
    for at, text in arrivals:
        if at + len(text) <= delivered:
            continue  # SEGMENT ARRIVES lets no such segment through
        for i, byte in enumerate(text):
            # A segment in order counts as a whole before what waits out of order behind it.
            if at <= delivered and at + i >= delivered:
                model[at + i] = byte
            else:
                model.setdefault(at + i, byte)
        assert rcv.accept(FIRST + at, memoryview(text))
        while delivered in model:
            delivered += 1
        assert rcv.nxt == FIRST + delivered
        assert pieces(rcv) == bytes(model[i] for i in range(delivered))
        known = {
            seq - FIRST + i: byte for seq, piece in rcv.out_of_order for i, byte in enumerate(piece)
        }
        assert known == {at: byte for at, byte in model.items() if at >= delivered}
        borders = [(seq, seq + len(piece)) for seq, piece in rcv.out_of_order]
        assert borders == sorted(borders)
        assert rcv.out_of_order_charge == 256 * len(borders)


@given(
    st.integers(0, 7),
    st.lists(st.tuples(st.integers(1, 3000), st.booleans(), st.booleans()), max_size=60),
)
def test_the_right_edge_never_moves_left(shift: int, events: list[tuple[int, bool, bool]]) -> None:
    """RFC 9293 section 3.8.6.2.2: whatever arrives, is read, and is rounded."""
    rcv = started(capacity=20_000, shift=shift)
    known_edge = rcv.edge
    for size, reads, tells in events:
        count = min(size, rcv.window)
        if count:
            rcv.accept(rcv.nxt, memoryview(bytes(count)))
        if reads:
            rcv.take()
        if tells:
            field = rcv.advertise()
            assert 0 <= field <= 0xFFFF
            edge = rcv.nxt + (field << shift)
            assert edge == rcv.edge >= known_edge
            assert edge - rcv.nxt <= rcv.capacity
            known_edge = edge
        assert rcv.nxt <= rcv.edge


def test_what_was_promised_is_taken() -> None:
    """Though the pieces are small and dear."""
    rcv = started(capacity=64 * KiB - 1)
    while rcv.window:
        assert rcv.accept(rcv.nxt, memoryview(b"x"))
    assert len(pieces(rcv)) == 64 * KiB - 1
    assert len(rcv.pieces) < 1000


def test_small_pieces_are_joined_and_large_ones_left_alone() -> None:
    """Bulk data is never copied, whatever comes between."""
    rcv = started(capacity=8 * KiB)
    large = memoryview(bytes(1000))
    rcv.accept(rcv.nxt, large)
    for _ in range(30):
        rcv.accept(rcv.nxt, memoryview(b"y"))
    assert rcv.pieces[0].obj is large.obj
    assert len(rcv.pieces) < 20
    assert pieces(rcv) == bytes(1000) + b"y" * 30


def test_out_of_order_pieces_are_counted() -> None:
    """TCP_OUT_OF_ORDER_PIECES_MAX."""
    rcv = started(capacity=1 * MiB, shift=7)
    for i in range(TCP_OUT_OF_ORDER_PIECES_MAX):
        assert rcv.accept(FIRST + 1 + 2 * i, memoryview(b"x"))
    assert not rcv.accept(FIRST + 1 + 2 * TCP_OUT_OF_ORDER_PIECES_MAX, memoryview(b"x"))
    assert rcv.accept(FIRST, memoryview(bytes(2 * TCP_OUT_OF_ORDER_PIECES_MAX)))
    assert not rcv.out_of_order
    assert rcv.out_of_order_charge == 0


def test_the_budget_knows_only_what_waits() -> None:
    """Text that is taken at once never counts."""
    budget = Budget(10_000)
    a, b = started(budget=budget), started(budget=budget)
    a.accept(a.nxt, memoryview(bytes(1000)))
    a.take()
    assert budget.used == 0
    a.accept(a.nxt, memoryview(bytes(1000)))
    a.account()
    b.accept(b.nxt + 5, memoryview(b"x"))
    b.account()
    assert budget.used == 1256
    a.take()
    b.forget()
    assert budget.used == 0
    b.account()
    assert budget.used == 0


def test_an_exhausted_budget_still_takes_what_fills_a_hole() -> None:
    """Or two things would wait for each other for ever."""
    budget = Budget(500)
    rcv = started(budget=budget)
    for i in range(4):
        rcv.accept(FIRST + 1 + 10 * i, memoryview(bytes(5)))
        rcv.account()
    assert len(rcv.out_of_order) == 2
    assert rcv.accept(FIRST, memoryview(bytes(40)))
    assert rcv.nxt == FIRST + 40


def test_the_window_opens_in_steps() -> None:
    """RFC 9293 section 3.8.6.2.2: a segment, or half of the buffer."""
    rcv = started(capacity=10_000)
    for _ in range(9):
        rcv.accept(rcv.nxt, memoryview(bytes(1000)))
    assert rcv.advertise() == 1000
    taken, rcv.pieces = rcv.pieces[:1], rcv.pieces[1:]
    rcv.charge -= len(taken[0])
    assert rcv.advertise() == 1000
    assert not rcv.has_opened
    rcv.pieces.pop()
    rcv.charge -= 1000
    assert rcv.has_opened
    assert rcv.advertise() == 3000


def test_a_small_part_of_a_frame_does_not_keep_the_frame_alive() -> None:
    """A peer with offload can send 60 KB in which one byte is new."""
    rcv = started(capacity=MiB)

    def frame() -> memoryview:
        return memoryview(bytes(60_000))

    for at in range(1, 50):
        assert rcv.accept(FIRST + at, frame())  # behind a hole
    assert rcv.accept(FIRST, frame()[:1])  # which is filled
    for at in range(50, 100):
        assert rcv.accept(FIRST + at, frame())  # from before RCV.NXT
    kept = {id(piece.obj): len(piece.obj) for piece in rcv.pieces}  # type: ignore[arg-type]
    assert pieces(rcv) == bytes(60_000 + 99)
    assert sum(kept.values()) <= 60_000 + 99
