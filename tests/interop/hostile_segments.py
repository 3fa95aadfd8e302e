"""Attacks by TCP segments: floods, forgeries against a connection of somebody else, and a peer that
keeps no rule.

`Peer` is a TCP without a state machine: it says what it is told to, and remembers the two numbers
that a segment needs. The connections of others, which are attacked, are the host's own.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from appliance.limits import TCP_RECEIVE_BYTES_FIRST
from tests.interop.hostile import Attack, Attacker, Expected, drain, received
from tests.interop.hostile_rpc import NULL_CALL, ask, recorded
from tests.interop.lab import HOST, SERVER

NFS: Final = 2049
USUAL: Final = b"\x02\x04\x05\xb4" + b"\x01\x03\x03\x07"
"""Options of a SYN: MSS 1460, window scale 7."""

_ports = itertools.cycle(range(2100, 60000))


class Peer:
    """A connection whose other end has no manners."""

    def __init__(self, attacker: Attacker, options: bytes = USUAL, window: int = 0xFFFF) -> None:
        self.attacker = attacker
        self.port = next(_ports)
        self.window = window
        self.seq = 0xFFFF_FF00  # so that it wraps
        self.ack = 0
        said = self.say(self.segment("S", options=options))
        assert len(said) == 1 and said[0][TCP].flags == "SA", said
        self.synack = said[0]
        self.seq += 1
        self.ack = said[0][TCP].seq + 1
        attacker.send([self.segment("A")])

    def segment(
        self,
        flags: str,
        text: bytes = b"",
        *,
        seq: int = 0,
        ack: int = 0,
        window: int | None = None,
        options: bytes = b"",
    ) -> bytes:
        """One segment; `seq` and `ack` count from where they should be. Options of any bytes."""
        options += bytes(-len(options) % 4)
        tcp = TCP(
            sport=self.port,
            dport=NFS,
            flags=flags,
            seq=self.seq + seq & 0xFFFF_FFFF,
            ack=self.ack + ack & 0xFFFF_FFFF if "A" in flags else 0,
            window=self.window if window is None else window,
            dataofs=5 + len(options) // 4,
        )
        return bytes(self.attacker.ip() / tcp / Raw(options + text))

    def say(self, *segments: bytes) -> list[Packet]:
        """Send them; what the server answers on this connection."""
        answers = self.attacker.answers(segments)
        return [a for a in answers if TCP in a and a[TCP].dport == self.port]

    def is_served(self, options: bytes = b"") -> bool:
        """A call in order gets its reply, whole."""
        call = recorded(NULL_CALL)
        said = self.say(self.segment("PA", call, options=options))
        self.seq += len(call)
        text = b"".join(text_of(one) for one in said)
        self.ack += len(text)
        self.attacker.send([self.segment("A", options=options)])
        return len(text) == 28

    def close(self) -> None:
        """Reset it."""
        self.attacker.send([self.segment("RA")])


def text_of(packet: Packet) -> bytes:
    size: int = packet[IP].len - 4 * (packet[IP].ihl + packet[TCP].dataofs)
    return bytes(packet[TCP].payload)[:size]


def syn(attacker: Attacker, port: int = NFS) -> bytes:
    return bytes(attacker.ip() / TCP(sport=1, dport=port, flags="S", window=0xFFFF))


def changed(frame: bytes, source_port: int, host: int = 66) -> bytes:
    """The frame, from another port and 10.0.0.`host`; both checksums repaired (RFC 1624)."""
    words = list(struct.unpack("!20H", frame[14:54]))
    old = words[7], words[10]
    words[7], words[10] = (words[7] & 0xFF00) | host, source_port
    difference = (words[7] - old[0]) + (words[10] - old[1])
    words[5] = _repaired(words[5], words[7] - old[0])
    words[18] = _repaired(words[18], difference)
    return frame[:14] + struct.pack("!20H", *words) + frame[54:]


def _repaired(checksum: int, difference: int) -> int:
    return 0xFFFF - ((0xFFFF - checksum) + difference) % 0xFFFF


# --- floods -----------------------------------------------------------------------------


def syn_flood_from_ports(attacker: Attacker) -> Expected:
    """Honest handshakes get through meanwhile; the backlog is bounded, and what does not fit into
    it is answered with a cookie."""
    one = syn(attacker)
    sent = attacker.send(changed(one, port) for port in range(2000, 4000))
    assert ask(attacker, NULL_CALL).succeeded
    return Expected({"tcp.syn_cookies_sent": sent - 200})


def syn_flood_from_addresses(attacker: Attacker) -> Expected:
    """From stations that are not there: we do not ask the whole link for them."""
    one = syn(attacker)
    frames = [changed(one, port, host) for host in range(100, 250) for port in range(9, 19)]
    attacker.send(frames)
    assert ask(attacker, NULL_CALL).succeeded
    return Expected({"arp.too_many_resolving": 500})


def strays(attacker: Attacker) -> Expected:
    """Segments of no connection. Resets are answered to nothing but themselves: never."""
    frames: dict[str, list[Packet]] = {}
    for port, names in (
        (9, {"S": "no_connection", "A": "no_connection", "PA": "no_connection"}),
        (NFS, {"A": "ack_to_listener", "SA": "ack_to_listener", "": "no_syn", "F": "no_syn"}),
    ):
        for flags, name in names.items():
            frames.setdefault(f"tcp.{name}", []).extend(
                [attacker.ip() / TCP(sport=99, dport=port, flags=flags, seq=5, ack=6)] * 100
            )
    resets = [attacker.ip() / TCP(sport=99, dport=port, flags="R") for port in (9, NFS)] * 100
    resets += [attacker.ip() / TCP(sport=99, dport=port, flags="SRAF") for port in (9, NFS)] * 100
    expected = Expected({reason: attacker.send(some) for reason, some in frames.items()})
    assert not attacker.answers(resets)
    return expected + Expected({"tcp.reset_to_listener": 200, "tcp.no_connection": 200})


def ack_storm(attacker: Attacker) -> Expected:
    """What is outside the window is answered, but not always; what is inside is not."""
    peer = Peer(attacker)
    outside = peer.say(*[peer.segment("A", seq=-5000)] * 1000)
    assert 0 < len(outside) < 50
    assert len(peer.say(*[peer.segment("A")] * 500)) == 0
    assert peer.is_served()
    peer.close()
    return Expected({"tcp.outside_window": 1000, "tcp.challenges_suppressed": 900})


def out_of_order(attacker: Attacker) -> Expected:
    """Single bytes with holes between them, more than will be kept; then text beyond the window,
    and the FIN with it."""
    peer, window = Peer(attacker), TCP_RECEIVE_BYTES_FIRST
    attacker.send(peer.segment("A", b"x", seq=2 * n + 1) for n in range(700))
    attacker.send(peer.segment("A", b"ab", seq=window // 2 + 3 * n) for n in range(1600))
    attacker.send([peer.segment("FA", bytes(1000), seq=window - 100)] * 10)
    attacker.send([peer.segment("FA", bytes(100), seq=64 << 20)] * 10)
    peer.close()
    return Expected({"tcp.no_room": 200, "tcp.text_beyond_window": 10, "tcp.outside_window": 10})


def stingy(attacker: Attacker) -> Expected:
    """Frames of 60 KB, each of which brings one new byte: what is kept of them is the byte, and not
    the frame that it came in."""
    peer = Peer(attacker)
    whole = peer.segment("A", bytes(60_000), seq=1000)
    frames = (
        whole[:38] + (peer.seq + 1000 + n & 0xFFFF_FFFF).to_bytes(4, "big") + whole[42:]
        for n in range(800)
    )
    attacker.send_super(frames)
    assert peer.is_served()
    attacker.held.append(peer)
    return Expected({"nfs3.null": 1})


# --- against the connection of somebody else ----------------------------------------------


@contextmanager
def victim(attacker: Attacker) -> Iterator[tuple[socket.socket, dict[str, Any], int, int]]:
    """A connection of the host's: its socket, the fields that make a segment look like one of its,
    and the numbers that the server expects next (SEQ and ACK)."""
    with attacker.tcp(NFS) as made:
        drain(attacker.sniffer)
        assert ask(attacker, NULL_CALL, made).succeeded
        port = made.getsockname()[1]
        heard = [Ether(frame) for frame in received(attacker.sniffer, 0)]
        reply = next(p for p in heard if TCP in p and p[TCP].dport == port and text_of(p))
        fields = {"sport": port, "dport": NFS}
        yield made, fields, reply[TCP].ack, reply[TCP].seq + len(text_of(reply))
        assert ask(attacker, NULL_CALL, made).succeeded


def forged(attacker: Attacker, fields: dict[str, Any], seq: int, ack: int, flags: str) -> Packet:
    """A segment that seems to come from the host."""
    tcp = TCP(**fields, seq=seq & 0xFFFF_FFFF, ack=ack & 0xFFFF_FFFF, flags=flags, window=1000)
    return attacker.ether(src=attacker.host_mac) / IP(src=HOST, dst=SERVER) / tcp


def blind(attacker: Attacker) -> Expected:
    """RFC 5961: resets, SYNs and text by somebody who does not see the connection."""
    with victim(attacker) as (_, fields, seq, ack):
        for at in (1, 2, 1000, 60_000):
            for flags in ("R", "RA", "S", "SA"):
                attacker.send([forged(attacker, fields, seq + at, ack, flags)] * 5)
        for at in (-1, -1000, 1 << 28, 1 << 31):
            attacker.send([forged(attacker, fields, seq + at, ack, "R")] * 5)
        for at in (1, 1000, 1 << 30):
            attacker.send([forged(attacker, fields, seq, ack + at, "PA") / Raw(b"bad")] * 5)
        attacker.send([forged(attacker, fields, seq, ack - (1 << 30), "PA") / Raw(b"bad")] * 5)
        attacker.send([forged(attacker, fields, seq, ack, "") / Raw(b"bad")] * 5)
    return Expected(
        {
            "tcp.reset_challenged": 40,
            "tcp.syn_challenged": 40,
            "tcp.reset_outside_window": 20,
            "tcp.acknowledges_unsent": 15,
            "tcp.ack_too_old": 5,
            "tcp.no_ack": 5,
        }
    )


def forged_errors(attacker: Attacker) -> Expected:
    """ICMP errors about a connection, by somebody who does not see its numbers: ports that are not
    reachable, links that take only packets of 68 bytes."""
    errors = [ICMP(type=3, code=code) for code in (0, 1, 2, 3, 13)]
    errors += [ICMP(type=3, code=4, nexthopmtu=mtu) for mtu in (0, 1, 68, 551, 65535)]
    errors += [ICMP(type=kind) for kind in (4, 11, 12)]
    with victim(attacker) as (_, fields, seq, ack):
        ports = {"sport": fields["dport"], "dport": fields["sport"]}
        for guess in (ack + 1, ack - 1000, ack + 5000, seq):
            quoted = IP(src=SERVER, dst=HOST, len=1500) / TCP(**ports, seq=guess & 0xFFFF_FFFF)
            attacker.send(attacker.ip() / error / quoted for error in errors)
    return Expected({"icmp.error_in": 40})


# --- peers that keep no rule ----------------------------------------------------------------

MALFORMED: Final = [
    b"\x02",  # no length
    b"\x02\x00",  # lengths 0, 1, and beyond the end
    b"\x02\x01\x05\xb4",
    b"\x02\xff\x05\xb4",
    b"\x02\x03\x05",  # an MSS of other lengths, of 0, of 1
    b"\x02\x05\x05\xb4\x00",
    b"\x02\x04\x00\x00",
    b"\x02\x04\x00\x01",
    b"\x03\x02",  # window scale without a value, too large, too long
    b"\x03\x03\x0f",
    b"\x03\x03\xff",
    b"\x03\x04\x01\x01",
    b"\x04\x03\x00",  # SACK permitted, with text
    b"\x05\x0a" + bytes(8),  # SACK in a SYN
    b"\x08\x09" + bytes(7),  # timestamps of other lengths
    b"\x08\x0b" + bytes(9),
    b"\x08\x02",
    b"\x08\x0a" + bytes(8) + b"\x08\x0a" + b"\xff" * 8,  # and two of them
    b"\x22\x12" + bytes(16),  # a fast open cookie
    b"\x4d\x04ab",  # unknown
    b"\x4d\x00",
    b"\x4d\xff",
    b"\x13\x12" + bytes(16),  # an MD5 signature
    b"\x00" + b"\xff" * 39,  # something behind the end
    b"\x01" * 40,
    b"\x01" * 39 + b"\x02",
]

LATER: Final = [
    b"\x05\x02",  # SACK without a block, cut, with its edges exchanged, of what was never sent
    b"\x05\x09" + bytes(7),
    b"\x05\x0a" + b"\x00\x00\x00\x09\x00\x00\x00\x01",
    b"\x05\x22" + b"\xff" * 32,
    b"\x08\x0a" + b"\x7f" * 8,  # a timestamp that was not agreed on
    b"\x02\x04\x00\x01",  # an MSS in the middle
    b"\x03\x03\x00",
]


def malformed_options(attacker: Attacker) -> Expected:
    """The options are ignored; the connection is as good as any."""
    for options in MALFORMED:
        peer = Peer(attacker, options)
        assert peer.is_served(), options
        peer.close()
    peer = Peer(attacker)
    for options in (*LATER, *MALFORMED):
        assert peer.is_served(options), options
    peer.close()
    return Expected({"tcp.resets_received": len(MALFORMED) + 1})


def vanishing(attacker: Attacker) -> Expected:
    """Peers that are gone: in the handshake, after a call, after a FIN; half of them reset."""
    for _ in range(15):
        attacker.send([changed(syn(attacker), next(_ports))])
        silent, reset, ended = Peer(attacker), Peer(attacker), Peer(attacker)
        attacker.send([silent.segment("PA", recorded(NULL_CALL)[:20])])
        reset.close()
        attacker.send([ended.segment("PA", recorded(NULL_CALL)), ended.segment("FA", seq=44)])
        silent.seq += 20
        silent.close()
        assert Peer(attacker).is_served()
    return Expected({"tcp.resets_received": 30})


def closed_windows(attacker: Attacker) -> Expected:
    """Peers that ask, and never open their windows, or only by a byte."""
    peers = [Peer(attacker, window=window) for window in (0, 1, 2) for _ in range(5)]
    calls = recorded(NULL_CALL) * 30
    for peer in peers:
        for at in range(0, len(calls), 1400):
            attacker.send([peer.segment("PA", calls[at : at + 1400], seq=at)])
    for peer in peers:
        for taken in range(20):
            attacker.send([peer.segment("A", seq=len(calls), ack=min(taken, peer.window))])
    for peer in peers:
        attacker.send([peer.segment("RA", seq=len(calls))])
    return Expected({"tcp.resets_received": len(peers)})


def nonsense(attacker: Attacker) -> Expected:
    """All flags, in all combinations, at a connection; it may end, but nothing else."""
    for first in range(0, 256, 16):
        peer = Peer(attacker)
        for flags in range(first, first + 16):
            frame = bytearray(peer.segment("A", b"text", seq=1))
            frame[47] = flags
            attacker.send([bytes(_fresh(frame))])
        peer.close()
    return Expected()


def _fresh(frame: bytearray) -> Packet:
    packet = Ether(bytes(frame))
    packet[TCP].chksum = None
    return packet


ATTACKS: list[Attack] = [
    syn_flood_from_ports,
    syn_flood_from_addresses,
    strays,
    ack_storm,
    out_of_order,
    stingy,
    blind,
    forged_errors,
    malformed_options,
    vanishing,
    closed_windows,
    nonsense,
]
