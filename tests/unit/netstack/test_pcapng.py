"""Captures in pcapng, read by scapy; and files that follow each other. (tshark reads them in
tests/interop.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader, rdpcap

from appliance.clock import MILLISECOND
from appliance.limits import CAPTURE_FILE_BYTES_MIN
from appliance.netstack.link.capture import Capture, CaptureSpec
from appliance.netstack.link.fault import FaultLink, parse_fault
from appliance.netstack.link.pcap import PcapLink
from appliance.netstack.wire import vnet
from appliance.netstack.wire.vnet import NEEDS_CSUM, VnetHeader
from appliance.trace import Counters
from tests.sim.clock import WALL_AT_START, VirtualClock
from tests.sim.pipe import pipe

IN, OUT = 1, 2


def frame(data: bytes) -> bytes:
    return bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.5") / TCP(seq=1) / data)


def read(file: Path) -> list[tuple[bytes, int, int, str]]:
    """Frame, nanoseconds, direction, comment."""
    found = []
    with RawPcapNgReader(str(file)) as reader:
        for data, metadata in reader:
            about: Any = metadata
            nanoseconds = (about.tshigh << 32) + about.tslow
            assert about.tsresol == 1_000_000_000 and about.ifname == b"tap0"
            comment = b"".join(about.comments or []).decode()
            found.append((data, nanoseconds, about.direction, comment))
    return found


def test_frames_have_their_time_to_the_nanosecond_and_their_direction(tmp_path: Path) -> None:
    clock = VirtualClock()
    one, two = pipe()
    file = tmp_path / "x.pcapng"
    link = PcapLink(one, file, clock, "tap0")
    link.send((frame(b"out")[:20], frame(b"out")[20:]))
    clock.run(1_234_567_891)
    two.send((frame(b"in!"),))
    assert link.receive() == frame(b"in!")
    assert read(file) == [
        (frame(b"out"), WALL_AT_START, OUT, ""),
        (frame(b"in!"), WALL_AT_START + 1_234_567_891, IN, ""),
    ], "complete before it is closed"
    link.close()


def test_a_super_frame_is_one_frame_with_its_checksum_finished(tmp_path: Path) -> None:
    one, _two = pipe(vnet=True)
    file = tmp_path / "x.pcapng"
    link = PcapLink(one, file, VirtualClock(), "tap0")
    raw = bytearray(frame(bytes(range(256)) * 200))
    right = bytes(raw)
    length = len(raw) - 34
    total = sum(int.from_bytes(raw[at : at + 2], "big") for at in range(26, 34, 2)) + 6 + length
    raw[50:52] = (total % 0xFFFF).to_bytes(2, "big")
    link.send((VnetHeader(NEEDS_CSUM, vnet.GSO_TCPV4, 54, 1460, 34, 16).emit(), bytes(raw)))
    ((seen, *_),) = read(file)
    assert seen == right
    link.close()


def test_faults_are_comments(tmp_path: Path) -> None:
    clock = VirtualClock()
    one, two = pipe()
    file = tmp_path / "x.pcapng"
    link = FaultLink(
        one,
        [
            parse_fault("drop,nth=1,filter=out"),
            parse_fault("delay=20ms,duplicate,filter=out"),
            parse_fault("corrupt,filter=in"),
        ],
        counters=Counters(),
        clock=clock,
        capture=Capture(CaptureSpec(file), clock, "tap0"),
    )
    link.send((frame(b"one"),))
    link.send((frame(b"two"),))
    two.send((frame(b"tri"),))
    assert link.receive() not in (frame(b"tri"), b"")
    clock.run(20 * MILLISECOND)
    link.expire(clock.now())
    told = "duplicated, delayed 20 ms by --fault"
    later = WALL_AT_START + 20 * MILLISECOND
    assert read(file) == [
        (frame(b"one"), WALL_AT_START, OUT, "dropped by --fault"),
        (frame(b"tri"), WALL_AT_START, IN, "corrupted by --fault"),
        (frame(b"two"), later, OUT, told),
        (frame(b"two"), later, OUT, told),
    ]
    link.close()


@pytest.mark.parametrize("name", ["x.pcap", "x.pcapng"])
def test_a_capture_of_a_limited_size_keeps_the_last_files(tmp_path: Path, name: str) -> None:
    size = CAPTURE_FILE_BYTES_MIN
    capture = Capture(CaptureSpec(tmp_path / name, size, 3), VirtualClock(), "tap0")
    count = 5 * size // 60_000
    for number in range(count):
        data = frame(number.to_bytes(4, "big") + bytes(59_000))
        capture.record(data, has_vnet_header=False, outgoing=True)
    capture.close()
    names = [f"{name}.2", f"{name}.1", name]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / one).stat().st_size <= size for one in names)
    seen = [
        int.from_bytes(bytes(packet[TCP].payload)[:4], "big")
        for one in names
        for packet in rdpcap(str(tmp_path / one))
    ]
    assert seen == list(range(seen[0], count)) and len(seen) >= 4


def test_one_file_starts_again(tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    capture = Capture(CaptureSpec(file, CAPTURE_FILE_BYTES_MIN, 1), VirtualClock())
    for _ in range(10):
        capture.record(frame(bytes(59_000)), has_vnet_header=False, outgoing=True)
    capture.close()
    assert list(tmp_path.iterdir()) == [file]
    assert len(rdpcap(str(file))) == 2


@pytest.mark.parametrize(("size", "files"), [(100, 2), (1 << 20, 0), (1 << 20, 10_000)])
def test_what_cannot_be_is_refused(tmp_path: Path, size: int, files: int) -> None:
    with pytest.raises(ValueError, match="capture has"):
        CaptureSpec(tmp_path / "x.pcap", size, files)
