"""The judge of captures: what is sent again in time, and what in haste."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

from tests.interop.lab import TOP

SERVER, CLIENT = "10.0.0.5", "10.0.0.9"


def segment(at: float, *, acknowledgement: bool = False) -> Packet:
    """100 octets of the server, the first of them 1001; or the client's acknowledgement."""
    if acknowledgement:
        made = Ether() / IP(src=CLIENT, dst=SERVER) / TCP(sport=700, dport=7, seq=1, ack=1101)
        made[TCP].flags = "A"
    else:
        made = Ether() / IP(src=SERVER, dst=CLIENT) / TCP(sport=7, dport=700, seq=1001, ack=1)
        made[TCP].flags = "PA"
        made = made / bytes(100)
    made.time = 1000 + at
    return made


@pytest.mark.parametrize(
    ("seconds", "acknowledged", "wrong"),
    [(0.1, False, True), (0.25, False, False), (0.25, True, True)],
)
def test_who_is_silent_for_long_is_sent_it_again(
    tmp_path: Path, seconds: float, acknowledged: bool, wrong: bool
) -> None:
    frames = [segment(0), segment(seconds)]
    if acknowledged:
        frames.insert(1, segment(0.05, acknowledgement=True))
    wrpcap(str(tmp_path / "run.pcap"), frames)
    command = [str(TOP / "tools" / "capture-oracle"), str(tmp_path / "run.pcap"), SERVER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == wrong, done.stdout + done.stderr
