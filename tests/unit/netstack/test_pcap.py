"""The recorder: a capture reads like one from a wire, and never harms the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from appliance.netstack.link.interface import LinkError
from appliance.netstack.link.pcap import PcapLink
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader
from tests.sim.clock import WALL_AT_START, VirtualClock
from tests.sim.pipe import pipe

PCAP_HEADER_BYTES = 24


def frame(data: bytes) -> bytes:
    return bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.5") / TCP(seq=1) / data)


def test_frames_of_both_directions_are_recorded_with_their_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    one, two = pipe()
    link = PcapLink(one, tmp_path / "x.pcap", clock)
    link.send((frame(b"out")[:20], frame(b"out")[20:]))
    clock.run(1_234_567_891)
    two.send((frame(b"in"),))
    assert link.receive() == frame(b"in")
    assert link.receive_now() is None
    two.send((frame(b"too"),))
    assert link.receive_now() == frame(b"too")
    assert two.receive() == frame(b"out")
    seen = rdpcap(str(tmp_path / "x.pcap"))
    assert [bytes(s) for s in seen] == [frame(b"out"), frame(b"in"), frame(b"too")]
    assert int((seen[1].time - seen[0].time) * 1_000_000_000) == 1_234_567_891
    assert int(seen[0].time) == WALL_AT_START // 1_000_000_000
    link.close()


def test_a_super_frame_is_recorded_as_segments(tmp_path: Path) -> None:
    one, two = pipe(vnet=True)
    link = PcapLink(one, tmp_path / "x.pcap", VirtualClock())
    data = bytes(range(256)) * 16
    header = VnetHeader(NEEDS_CSUM, vnet.GSO_TCPV4, 54, 1460, 34, 16).emit()
    assert link.send((header, frame(data)))
    assert two.receive() == header + frame(data), "the link gets it whole"
    seen = rdpcap(str(tmp_path / "x.pcap"))
    assert b"".join(bytes(s[TCP].payload) for s in seen) == data
    assert max(len(s) for s in seen) == 1514
    link.close()


def test_nonsense_is_recorded_as_it_is(tmp_path: Path) -> None:
    one, two = pipe(vnet=True)
    link = PcapLink(one, tmp_path / "x.pcap", VirtualClock())
    two.send((b"\xff" * 10 + frame(b"x"),))
    two.send((b"\xff" * 10 + frame(b"x")[:20],))
    link.receive()
    link.receive()
    seen = rdpcap(str(tmp_path / "x.pcap"))
    assert [bytes(s) for s in seen] == [frame(b"x"), frame(b"x")[:20]]
    link.close()


def test_what_the_link_did_not_take_is_not_recorded(tmp_path: Path) -> None:
    one, two = pipe()
    link = PcapLink(one, tmp_path / "x.pcap", VirtualClock())
    two.close()
    assert not link.send((frame(b"x"),))
    assert (tmp_path / "x.pcap").stat().st_size == PCAP_HEADER_BYTES
    link.close()


def test_a_reader_that_is_called_away_has_got_no_frame(tmp_path: Path) -> None:
    one, _two = pipe()
    link = PcapLink(one, tmp_path / "x.pcap", VirtualClock())
    link.wake()
    assert link.receive() == b""
    assert (tmp_path / "x.pcap").stat().st_size == PCAP_HEADER_BYTES
    link.close()


def test_after_close_nothing_is_written_and_nothing_breaks(tmp_path: Path) -> None:
    one, _two = pipe()
    link = PcapLink(one, tmp_path / "x.pcap", VirtualClock())
    link.close()
    assert not link.send((frame(b"x"),))
    assert link.receive() is None


def test_trouble_with_the_file_ends_the_capture_but_not_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a full disk: here the program that reads the capture goes away."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    one, two = pipe()
    link = PcapLink(one, fifo, VirtualClock())
    assert link.send((frame(b"x"),))
    os.close(reader)
    assert link.send((frame(b"y"),)) and link.send((frame(b"z"),))
    assert [two.receive(), two.receive(), two.receive()] == [frame(b"x"), frame(b"y"), frame(b"z")]
    assert caplog.text.count("capture ended") == 1
    link.close()


@pytest.mark.parametrize("file", ["/dev/full", "/nonexistent/x.pcap"])
def test_a_file_that_cannot_be_written_is_said_at_once(file: str) -> None:
    one, _two = pipe()
    with pytest.raises(LinkError, match=file):
        PcapLink(one, Path(file), VirtualClock())
