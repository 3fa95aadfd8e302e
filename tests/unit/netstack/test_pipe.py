"""The pipe: frames come out whole, in order, of the other end."""

from __future__ import annotations

from threading import Thread

from appliance.clock import MILLISECOND, SECOND
from tests.sim.pipe import PIPE_FRAMES_MAX, pipe


def test_what_goes_in_comes_out_of_the_other_end() -> None:
    one, two = pipe(vnet=True, mtu=9000)
    assert one.vnet and two.vnet and one.mtu == two.mtu == 9000
    assert one.send((b"a", bytearray(b"b"), memoryview(b"c")))
    assert one.send((b"second",))
    assert two.send((b"back",))
    assert [two.receive(), two.receive(), one.receive()] == [b"abc", b"second", b"back"]


def test_a_buffer_may_be_changed_after_it_was_sent() -> None:
    one, two = pipe()
    header = bytearray(b"old")
    one.send((header,))
    header[:] = b"new"
    assert two.receive() == b"old"


def test_waiting_ends_with_a_frame_or_the_time() -> None:
    one, two = pipe()
    assert not two.wait(MILLISECOND)
    one.send((b"x",))
    assert two.wait(SECOND)


def test_a_reader_can_be_called_away_from_waiting() -> None:
    one, two = pipe()
    got: list[bytes | None] = []
    reader = Thread(target=lambda: got.append(two.receive()))
    reader.start()
    two.wake()
    reader.join(5)
    assert got == [b""]
    two.wake()
    two.wake()
    assert two.wait(MILLISECOND)
    one.send((b"x",))
    assert [two.receive(), two.receive()] == [b"x", b""], "no frame is lost by it"
    assert not two.wait(MILLISECOND), "called twice, away once"


def test_a_full_pipe_takes_nothing() -> None:
    one, two = pipe()
    assert all(one.send((b"x",)) for _ in range(PIPE_FRAMES_MAX))
    assert not one.send((b"x",))
    two.receive()
    assert one.send((b"x",))


def test_closing_wakes_whoever_waits_and_refuses_what_is_sent() -> None:
    one, two = pipe()
    got: list[bytes | None] = []
    reader = Thread(target=lambda: got.append(two.receive()))
    reader.start()
    two.close()
    two.close()
    reader.join(5)
    assert got == [None]
    assert not one.send((b"x",))
    assert not two.send((b"x",))
