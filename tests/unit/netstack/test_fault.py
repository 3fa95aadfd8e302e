"""The fault injector on a pipe, in virtual time: what it does to frames, and when they come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import FAULT_WAITING_BYTES_MAX
from appliance.netstack.link.capture import Capture, CaptureSpec
from appliance.netstack.link.fault import FaultLink, FaultRule, parse_fault
from appliance.netstack.link.frame_filter import everything
from appliance.netstack.wire import vnet
from appliance.netstack.wire.checksum import fold, pseudo_header_sum, word_sum
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader
from appliance.trace import Counters
from tests.sim.clock import VirtualClock
from tests.sim.pipe import PipeEnd, pipe

A, B = "10.0.0.5", "10.0.0.9"
MSS = 1460


class Lab:
    """A faulty link, what is behind it, and the time."""

    def __init__(self, *rules: str | FaultRule, offload: bool = False, pcap: Path | None = None):
        self.clock = VirtualClock()
        self.counters = Counters()
        self.inner: PipeEnd
        self.inner, self.far = pipe(vnet=offload)
        self.link = FaultLink(
            self.inner,
            [parse_fault(rule) if isinstance(rule, str) else rule for rule in rules],
            counters=self.counters,
            clock=self.clock,
            capture=Capture(CaptureSpec(pcap), self.clock, "tap0") if pcap else None,
        )

    def run(self, duration: int) -> None:
        """Time passes, and whoever runs the timers does so."""
        end = self.clock.now() + duration
        while (due := self.link.next_deadline) is not None and due <= end:
            self.clock.run_until(due)
            self.link.expire(due)
        self.clock.run_until(end)

    def out(self) -> list[bytes]:
        """What has come out at the far end."""
        return list(iter(self.far.receive_now, None))

    def came(self) -> list[bytes]:
        """What has come in: nothing waits, not even where frames are lost."""
        frames = []
        while self.link.wait(0):
            frame = self.link.receive()
            assert frame is not None
            if frame:
                frames.append(frame)
        return frames


HEAD = bytes(
    Ether(src="02:00:00:00:00:05", dst="02:00:00:00:00:09")
    / IP(src=A, dst=B, len=86)
    / TCP(sport=2049, dport=700)
)


def frame(number: int, size: int = 100) -> bytes:
    """A segment with this sequence number."""
    return HEAD[:38] + number.to_bytes(4, "big") + HEAD[42:] + bytes(size - len(HEAD))


def super_frame(text: bytes, sport: int = 2049) -> bytes:
    """As the stack sends one: the pseudo-header's sum in the checksum field."""
    raw = bytearray(bytes(Ether() / IP(src=A, dst=B) / TCP(sport=sport, seq=1, flags="PA") / text))
    total = pseudo_header_sum(fold(word_sum(raw[26:34])), 6, len(raw) - 34)
    raw[50:52] = total.to_bytes(2, "big")
    return VnetHeader(NEEDS_CSUM, vnet.GSO_TCPV4, 54, MSS, 34, 16).emit() + bytes(raw)


def checksum_is_right(bare: bytes) -> bool:
    seen = Ether(bare)
    del seen[TCP].chksum
    return bytes(seen) == bare


def sequence(bare: bytes) -> int:
    return int.from_bytes(bare[38:42], "big")


# --- kinds of faults ---------------------------------------------------------------------


def test_so_many_frames_are_lost_in_both_directions() -> None:
    lab = Lab("drop=10%,seed=7")
    for number in range(2000):
        assert lab.link.send([frame(number)]), "whoever sends does not hear of it"
        lab.far.send([frame(number)])
    assert 1740 < len(lab.out()) < 1860
    assert 1740 < len(lab.came()) < 1860
    assert 280 < lab.counters["fault.lost"] < 520


def test_the_same_seed_loses_the_same_frames() -> None:
    def survivors(text: str) -> list[bytes]:
        lab = Lab(text)
        for number in range(200):
            lab.link.send([frame(number)])
        return lab.out()

    assert survivors("drop=30%,seed=3") == survivors("drop=30%,seed=3")
    assert survivors("drop=30%,seed=3") != survivors("drop=30%,seed=4")


def test_directions_do_not_disturb_each_other() -> None:
    """What is sent meanwhile changes nothing about what is lost of what comes."""

    def survivors(sent: int) -> list[bytes]:
        lab = Lab("drop=30%,seed=3")
        for number in range(100):
            for _ in range(sent):
                lab.link.send([frame(number)])
            lab.far.send([frame(number)])
        return lab.came()

    assert survivors(0) == survivors(3)


def test_frames_are_duplicated() -> None:
    lab = Lab("duplicate")
    lab.link.send([frame(1)])
    lab.far.send([frame(2)])
    assert lab.out() == [frame(1)] * 2
    assert lab.came() == [frame(2)] * 2
    assert lab.counters["fault.duplicated"] == 2


def test_a_delayed_frame_comes_out_at_its_deadline_and_not_before() -> None:
    lab = Lab("delay=20ms")
    lab.link.send([frame(1)])
    lab.far.send([frame(2)])
    assert lab.link.receive() == b"", "who waits for frames has to look at the deadline"
    assert lab.link.next_deadline == 20 * MILLISECOND
    lab.run(20 * MILLISECOND - 1)
    assert lab.out() == [] and not lab.link.wait(0)
    lab.run(1)
    assert lab.out() == [frame(1)]
    assert lab.link.wait(0), "the reader is woken"
    assert lab.came() == [frame(2)]
    assert lab.link.next_deadline is None


def test_jitter_spreads_frames_and_keeps_their_order() -> None:
    lab = Lab("delay=10ms,jitter=5ms")
    for number in range(50):
        lab.link.send([frame(number)])
    deadlines = []
    out: list[bytes] = []
    while (due := lab.link.next_deadline) is not None:
        deadlines.append(due)
        lab.run(due - lab.clock.now())
        out += lab.out()
    assert [sequence(one) for one in out] == list(range(50))
    assert 10 * MILLISECOND <= deadlines[0] <= deadlines[-1] <= 15 * MILLISECOND
    assert len(set(deadlines)) > 2


def test_reordering_lets_others_overtake() -> None:
    lab = Lab("reorder=30%,hold=5ms,seed=1")
    for number in range(100):
        lab.link.send([frame(number)])
        lab.run(MILLISECOND // 10)
    lab.run(5 * MILLISECOND)
    seen = [sequence(one) for one in lab.out()]
    assert sorted(seen) == list(range(100)) and seen != sorted(seen)


def test_a_corrupted_frame_has_one_wrong_bit() -> None:
    lab = Lab("corrupt")
    lab.link.send([frame(1)])
    (bad,) = lab.out()
    wrong = int.from_bytes(bad, "big") ^ int.from_bytes(frame(1), "big")
    assert wrong.bit_count() == 1 and bad[:14] == frame(1)[:14]


def test_a_truncated_frame_keeps_its_ethernet_header() -> None:
    lab = Lab("truncate")
    for _ in range(50):
        lab.far.send([frame(1)])
    came = lab.came()
    assert len(came) == 50
    assert all(14 <= len(one) < 100 and frame(1).startswith(one) for one in came)


def test_a_narrow_wire_takes_its_time_and_its_queue_is_bounded() -> None:
    """100 bytes at 100 kB/s take a millisecond; the queue holds twenty more frames."""
    lab = Lab("rate=800kbit,queue=2048")
    for number in range(40):
        lab.link.send([frame(number)])
    times = []
    while (due := lab.link.next_deadline) is not None:
        times.append(due)
        lab.run(due - lab.clock.now())
    assert times == [n * MILLISECOND for n in range(1, 21)]
    assert lab.counters["fault.queue_full"] == 20
    assert len(lab.out()) == 20


def test_a_bucket_lets_a_burst_through_after_a_pause() -> None:
    lab = Lab("rate=800kbit,burst=1000,queue=4096")
    for number in range(12):
        lab.link.send([frame(number)])
    assert len(lab.out()) == 10
    lab.run(2 * MILLISECOND)
    assert len(lab.out()) == 2
    lab.run(SECOND)
    for number in range(12):
        lab.link.send([frame(number)])
    assert len(lab.out()) == 10, "the bucket is full again, and no fuller"


def test_a_small_mtu_is_a_black_hole() -> None:
    lab = Lab("mtu=500")
    lab.link.send([frame(1, 514)])
    lab.link.send([frame(2, 515)])
    assert lab.out() == [frame(1, 514)]
    assert lab.counters["fault.too_large"] == 1


def test_rules_are_pieces_of_wire_one_after_the_other() -> None:
    lab = Lab("delay=20ms", "delay=5ms,duplicate")
    lab.link.send([frame(1)])
    lab.run(25 * MILLISECOND - 1)
    assert lab.out() == []
    lab.run(1)
    assert lab.out() == [frame(1)] * 2


# --- which frames -----------------------------------------------------------------------------


def test_only_frames_of_the_filter_are_meant() -> None:
    lab = Lab("drop,filter=out and tcp port 2049")
    lab.link.send([frame(1)])
    lab.far.send([frame(2)])
    other = bytes(Ether() / IP(src=A, dst=B) / TCP(sport=111))
    lab.link.send([other])
    assert lab.out() == [other]
    assert lab.came() == [frame(2)]


def test_only_the_nth_frames_of_the_filter_are_meant() -> None:
    lab = Lab("drop,nth=3-4,filter=out")
    for number in range(6):
        lab.far.send([frame(number)])
        lab.link.send([frame(number)])
    assert [sequence(one) for one in lab.out()] == [0, 1, 4, 5]


def test_only_some_seconds_are_meant() -> None:
    lab = Lab("drop,between=1-2")
    for number in range(4):
        lab.link.send([frame(number)])
        lab.run(SECOND * 9 // 10)
    assert [sequence(one) for one in lab.out()] == [0, 1, 3]


# --- offload ------------------------------------------------------------------------------------


def test_one_segment_of_a_super_frame_is_lost_and_not_all_of_it() -> None:
    lab = Lab("drop,nth=3", offload=True)
    text = bytes(range(256)) * 57
    lab.link.send([super_frame(text)])
    out = lab.out()
    assert [one[:10] for one in out] == [vnet.NOTHING] * 9
    bare = [one[10:] for one in out]
    assert [(sequence(one) - 1) // MSS for one in bare] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert all(checksum_is_right(one) for one in bare)


def test_losses_are_as_frequent_with_offload() -> None:
    lab = Lab("drop=1%,seed=2", offload=True)
    for _ in range(300):
        lab.link.send([super_frame(bytes(40 * MSS))])
    assert 60 < lab.counters["fault.lost"] < 180, "of 12,000"


def test_a_super_frame_that_no_rule_wants_stays_whole() -> None:
    lab = Lab("drop,filter=port 111", offload=True)
    whole = super_frame(bytes(10_000))
    lab.link.send([whole[:50], whole[50:]])
    lab.far.send([whole])
    assert lab.out() == [whole]
    assert lab.came() == [whole]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_corrupted_segment_has_a_wrong_checksum_that_somebody_verifies(direction: str) -> None:
    """Also where the link had promised that the checksum was good, or still to be made."""
    lab = Lab("corrupt,nth=2", offload=True)
    whole = super_frame(bytes(3 * MSS))
    if direction == "in":
        lab.far.send([whole])
        pieces = lab.came()
    else:
        lab.link.send([whole])
        pieces = lab.out()
    assert [VnetHeader.parse(one).checksum_good for one in pieces] == [False] * 3
    sums = [word_sum(one[24:44]) == 0xFFFF and transport_is_right(one[10:]) for one in pieces]
    assert sums == [True, False, True]


def transport_is_right(bare: bytes) -> bool:
    """As a receiver verifies it: over the pseudo-header and the segment."""
    addresses = word_sum(bare[26:34])
    length = int.from_bytes(bare[16:18], "big") - 20
    return fold(pseudo_header_sum(addresses, bare[23], length) + word_sum(bare[34:])) == 0xFFFF


def test_nonsense_from_the_link_passes() -> None:
    lab = Lab("duplicate", offload=True)
    lab.far.send([b"\xff" * 10 + frame(1)])
    lab.far.send([b"\xff" * 4])
    assert lab.came() == [vnet.NOTHING + frame(1)] * 2 + [vnet.NOTHING] * 2


# --- limits and ends ----------------------------------------------------------------------------


def test_what_is_held_is_bounded() -> None:
    lab = Lab("delay=1s,duplicate")
    for number in range(FAULT_WAITING_BYTES_MAX // 60_000):
        lab.link.send([frame(number, 60_000)])
    assert lab.counters["fault.too_many"] > 0
    lab.run(SECOND)
    assert len(lab.out()) > 1000
    lab.link.send([frame(1)])
    lab.run(SECOND)
    assert len(lab.out()) == 2, "and given back"


def test_what_the_link_does_not_take_is_said() -> None:
    lab = Lab("drop,filter=udp")
    lab.far.close()
    assert not lab.link.send([frame(1)])
    twice = Lab("duplicate")
    twice.far.close()
    assert not twice.link.send([frame(1)])


def test_after_close_nothing_comes() -> None:
    lab = Lab("delay=1s")
    lab.link.send([frame(1)])
    lab.link.close()
    assert lab.link.next_deadline is None
    assert lab.link.receive() is None


def test_a_reader_that_is_called_away_has_got_no_frame() -> None:
    lab = Lab("drop")
    lab.link.wake()
    assert lab.link.receive() == b""
    assert lab.link.receive_now() is None


def test_python_makes_rules_without_words() -> None:
    base = parse_fault("drop")
    rule = FaultRule(replace(base.conditions, loss=0.0, duplication=1.0), filter=everything)
    lab = Lab(rule)
    lab.link.send([frame(1)])
    assert lab.out() == [frame(1)] * 2


# --- with a capture -------------------------------------------------------------------------


def test_a_capture_has_what_was_on_the_wire(tmp_path: Path) -> None:
    """In pcap, which has no comments, what was never sent is not to be seen."""
    lab = Lab("drop,nth=1,filter=out", pcap=tmp_path / "x.pcap")
    lab.link.send([frame(1)])
    lab.link.send([frame(2)])
    lab.far.send([frame(3)])
    lab.came()
    lab.link.close()
    assert [bytes(one) for one in rdpcap(str(tmp_path / "x.pcap"))] == [frame(2), frame(3)]
