"""The simulated wire itself: it does what its conditions say, the same again for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.utils import rdpcap

from appliance.clock import MILLISECOND, SECOND
from tests.sim import wire as wire_module
from tests.sim.clock import VirtualClock
from tests.sim.wire import Conditions, Script, Wire, evidence

PLAIN = (False, False)
FRAME = bytes(14) + b"payload"


def run(conditions: Conditions, count: int, seed: int = 1) -> tuple[Wire, list[tuple[int, bytes]]]:
    """What arrives, and when, of `count` numbered frames that are sent at once."""
    clock = VirtualClock()
    wire = Wire(clock, seed=seed, conditions=conditions, vnet_headers=PLAIN)
    arrived: list[tuple[int, bytes]] = []
    wire.b.deliver = lambda frame: arrived.append((clock.now(), frame))
    for number in range(count):
        wire.a.send((bytes(14), number.to_bytes(4, "big")))
    clock.run(60 * SECOND)
    return wire, arrived


def numbers(arrived: list[tuple[int, bytes]]) -> list[int]:
    return [int.from_bytes(frame[14:18], "big") for _, frame in arrived]


def test_a_perfect_wire_delivers_everything_in_order_after_its_delay() -> None:
    _, arrived = run(Conditions(delay=7 * MILLISECOND), 100)
    assert numbers(arrived) == list(range(100))
    assert {at for at, _ in arrived} == {7 * MILLISECOND}


def test_loss_and_duplication_are_as_frequent_as_they_should_be() -> None:
    wire, arrived = run(Conditions(loss=0.2, duplication=0.1), 10_000)
    assert 1800 < wire.counters["wire.lost"] < 2200
    assert 700 < wire.counters["wire.duplicated"] < 900
    assert len(arrived) == 10_000 - wire.counters["wire.lost"] + wire.counters["wire.duplicated"]


def test_reordering_changes_the_order_and_nothing_else() -> None:
    _, arrived = run(Conditions(reordering=0.3, reordering_delay=MILLISECOND), 1000)
    assert numbers(arrived) != list(range(1000))
    assert sorted(numbers(arrived)) == list(range(1000))


def test_damage_flips_one_bit_behind_the_ethernet_header() -> None:
    _, arrived = run(Conditions(damage=1.0), 100)
    for number, (_, frame) in enumerate(arrived):
        wrong = int.from_bytes(frame, "big") ^ int.from_bytes(
            bytes(14) + number.to_bytes(4, "big"), "big"
        )
        assert wrong.bit_count() == 1 and frame[:14] == bytes(14)


def test_a_limited_rate_makes_frames_queue_and_a_full_queue_drops() -> None:
    wire, arrived = run(Conditions(bytes_per_second=18_000, queue_bytes=180), 20)
    assert [at for at, _ in arrived] == [MILLISECOND * n for n in range(1, 11)]
    assert wire.counters["wire.queue_full"] == 10


def test_a_frame_over_the_mtu_is_lost() -> None:
    clock = VirtualClock()
    wire = Wire(clock, conditions=Conditions(mtu=100), vnet_headers=PLAIN)
    script = Script(wire.b)
    wire.a.send((bytes(14), bytes(100)))
    wire.a.send((bytes(14), bytes(101)))
    clock.run(SECOND)
    assert [len(frame) for frame in script.take()] == [114]
    assert wire.counters["wire.too_large"] == 1


def test_the_same_seed_gives_the_same_world() -> None:
    bad = Conditions(
        delay=1, loss=0.1, duplication=0.1, reordering=0.1, reordering_delay=99, damage=0.1
    )
    assert run(bad, 500, seed=3)[1] == run(bad, 500, seed=3)[1]
    assert run(bad, 500, seed=3)[1] != run(bad, 500, seed=4)[1]


def test_a_failure_leaves_a_capture_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "OUT", tmp_path)
    clock = VirtualClock()
    wire = Wire(clock, seed=42, vnet_headers=PLAIN)
    wire.a.send((FRAME,))
    clock.run(SECOND)
    with pytest.raises(AssertionError) as caught, evidence(wire, "it"):
        raise AssertionError("as expected")
    assert caught.value.__notes__ == [f"seed 42; capture in {tmp_path / 'it.pcap'}"]
    assert [bytes(packet) for packet in rdpcap(str(tmp_path / "it.pcap"))] == [FRAME]


def test_the_clock_does_things_in_their_order() -> None:
    clock = VirtualClock()
    done: list[tuple[str, int]] = []

    def note(name: str) -> None:
        done.append((name, clock.now()))

    clock.at(20, lambda: note("second"))
    clock.at(10, lambda: note("first"))
    clock.at(20, lambda: note("third"))
    clock.at(5, lambda: clock.after(100, lambda: note("last")))
    clock.run_until(30)
    assert done == [("first", 10), ("second", 20), ("third", 20)]
    assert clock.now() == 30
    clock.at(3, lambda: note("late"))
    assert clock.run_while(lambda: len(done) < 5, 1000)
    assert done[3:] == [("late", 30), ("last", 105)]


def test_a_world_that_does_not_come_to_rest_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.clock.STEPS_MAX", 100)
    clock = VirtualClock()

    def again() -> None:
        clock.after(0, again)

    again()
    with pytest.raises(AssertionError, match="rest"):
        clock.run(1)
