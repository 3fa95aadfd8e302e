"""The send half against a model: a string, and three positions in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.limits import TCP_PIECES_MAX
from appliance.netstack.tcp.send_half import SendHalf

ISS = (1 << 32) - 20


def joined(pieces: list[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(pieces)


@given(st.lists(st.binary(max_size=30), max_size=20), st.data())
def test_any_range_is_what_was_queued(texts: list[bytes], data: st.DataObject) -> None:
    """Whatever was taken in whatever cuts, [una, nxt) can be had again, from any byte to any."""
    snd = SendHalf(ISS)
    snd.una = snd.nxt = ISS + 1
    everything = b"".join(texts)
    snd.queue(texts)
    first = ISS + 1
    assert snd.end == first + len(everything)
    for _ in range(30):
        done, sent = snd.una - first, snd.nxt - first
        match data.draw(st.integers(0, 2)):
            case 0:
                count = data.draw(st.integers(0, len(everything) - sent))
                if count:
                    assert joined(snd.take(count)) == everything[sent : sent + count]
            case 1:
                start = data.draw(st.integers(done, sent))
                stop = data.draw(st.integers(start, sent))
                got = joined(snd.again(first + start, stop - start))
                assert got == everything[start:stop]
            case _:
                ack = data.draw(st.integers(done, sent))
                snd.acknowledge(first + ack)
        assert snd.una <= snd.nxt <= snd.end
        assert snd.unacknowledged_text == snd.end - snd.una
    snd.take(snd.end - snd.nxt) if snd.end > snd.nxt else None
    snd.acknowledge(snd.end)
    assert not snd.sent
    assert not snd.unsent


def test_nothing_is_copied() -> None:
    """What is taken, and taken again, are the user's own bytes."""
    text = bytearray(b"x" * 1000)
    snd = SendHalf(0)
    snd.una = snd.nxt = 1
    snd.queue([text])
    taken = snd.take(300) + snd.take(700) + snd.again(100, 500)
    text[:] = b"y" * 1000
    assert joined(taken) == b"y" * 1500
    snd.acknowledge(1001)
    del taken
    text.clear()  # BufferError, if a view were left


def test_what_is_lost_is_not_in_flight() -> None:
    """It has left the network, as has what duplicate acknowledgements spoke of."""
    snd = SendHalf(0)
    snd.una = snd.nxt = 1
    snd.queue([bytes(1000)])
    snd.take(1000)
    assert snd.flight == 1000
    snd.timed = 1001
    snd.lose(1, 301)
    snd.departed = 200
    assert snd.flight == 500
    assert snd.timed is None
    snd.acknowledge(101)
    assert list(snd.lost) == [(101, 301)]
    snd.acknowledge(600)
    assert not snd.lost


def test_more_pieces_than_a_write_takes_are_joined() -> None:
    """IOV_MAX."""
    snd = SendHalf(0)
    snd.una = snd.nxt = 1
    body = bytes(range(256)) * 4
    snd.queue([body[i : i + 1] for i in range(len(body))])
    pieces = snd.take(len(body))
    assert len(pieces) == TCP_PIECES_MAX
    assert joined(pieces) == body


def test_empty_buffers_are_nothing() -> None:
    """They would be pieces without an end."""
    snd = SendHalf(0)
    snd.queue([b"", b"a", b""])
    assert len(snd.unsent) == 1


def test_the_fin_is_behind_the_text() -> None:
    """RFC 9293 section 3.4."""
    snd = SendHalf(0)
    snd.queue([b"abc"])
    snd.finish()
    assert (snd.end, snd.fin, snd.limit) == (4, 4, 5)
    snd.una = 4
    assert not snd.fin_is_acknowledged
    snd.una = 5
    assert snd.fin_is_acknowledged
    assert snd.unacknowledged_text == 0, "and not one less"
