"""A peer for TCP, played by hand: the wire of a transcript.

    wire.peer(FIN | ACK, seq=1, ack=1)      the peer sends this segment
    wire.ours(ACK, seq=1, ack=2)            the next packet of ours is this one
    wire.after(200 * MILLISECOND)           time goes by, and deadlines with it
    wire.quiet()                            we have sent nothing else

Sequence and acknowledgement numbers are relative: each side's SYN is 0. Windows are what they mean,
in bytes. What is not mentioned is not compared. The test that does not look at a packet of ours
fails at its end. After each step the invariants of the connection are asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path as FilePath
from random import Random
from struct import unpack_from

import dpkt

from appliance.clock import Instant
from appliance.limits import (
    TCP_CONNECTIONS_MAX,
    TCP_OUT_OF_ORDER_PIECES_MAX,
    TCP_RECEIVE_TOTAL_BYTES_MAX,
    TCP_SACK_RANGES_MAX,
    TCP_SEND_RUNS_MAX,
)
from appliance.netstack.ip.path import CE
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.ecn import marked
from appliance.netstack.tcp.host import Tcp
from appliance.netstack.tcp.listener import Listener
from appliance.netstack.tcp.sequence import MASK, unwrap
from appliance.netstack.tcp.state import State
from appliance.netstack.timers import Timers
from appliance.netstack.wire.tcp import ACK, CWR, ECE, PSH, RST, SYN, Segment, parse
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Family:
    """What of IP TCP gets to see: the addresses of both hosts, the size of the header, and the
    smallest MTU that a path may be said to have."""

    ours: bytes
    peer: bytes
    header_bytes: int
    mtu_min: int
    mss_default: int
    """Of a peer that says nothing (RFC 9293 section 3.7.1)."""

    def mtu_for(self, mss: int) -> int:
        """Of a path that segments with so much text just pass."""
        return mss + 20 + self.header_bytes


IPV4 = Family(bytes((10, 0, 0, 5)), bytes((10, 0, 0, 9)), 20, 552, 536)
IPV6 = Family(ip_address("fd00::5").packed, ip_address("fd00::9").packed, 40, 1280, 1220)
OURS, PEER = IPV4.ours, IPV4.peer
PORT = 2049
PEER_PORT = 40000
START: Instant = 1_000_000_000_000


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071, the slow and obvious way: an oracle for the fast one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(unpack_from("!H", data, at)[0] for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class RecordingPath:
    """A path whose packets stay here to be looked at. Checks what every packet must keep to."""

    source: bytes = OURS
    destination: bytes = PEER
    header_bytes: int = IPV4.header_bytes
    mtu: int = 1500
    mtu_min: int = IPV4.mtu_min
    checksum_offload: bool = False
    segment_bytes_max: int = 0
    pseudo_sum: int = 0
    sent: list[tuple[bytes, int]] = field(default_factory=list)
    ecns: list[int] = field(default_factory=list)
    """What the IP header of each packet says, of all that were ever sent."""

    def __post_init__(self) -> None:
        addresses = self.source + self.destination
        self.pseudo_sum = sum(unpack_from(f"!{len(addresses) // 2}H", addresses))

    def send_tcp(
        self, header: Buffer, text: Sequence[Buffer], text_bytes: int, mss: int, ecn: int = 0
    ) -> None:
        assert text_bytes == sum(len(piece) for piece in text)
        assert text_bytes <= max(mss, self.segment_bytes_max), "larger than the link takes"
        assert len(header) + min(text_bytes, mss) + self.header_bytes <= self.mtu
        packet = bytes(header) + b"".join(text)
        pseudo = pseudo_header(self.source, self.destination, packet)
        if self.checksum_offload:
            assert int.from_bytes(packet[16:18], "big") == ones_complement_sum(pseudo)
        else:
            assert ones_complement_sum(pseudo + packet) == 0xFFFF, "bad checksum"
        self.sent.append((packet, mss))
        self.ecns.append(ecn)


class RecordingUser:
    """The user of a connection: keeps what it is told. With `reading` off it takes no text."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.reading = True
        self.text = bytearray()
        self.endings: list[str | None] = []
        self.rooms = 0

    def accept(self, connection: Connection) -> RecordingUser:
        self.connection = connection
        return self

    def readable(self, connection: Connection) -> None:
        if self.reading:
            self.read(connection)

    def read(self, connection: Connection) -> None:
        for piece in connection.receive():
            self.text += piece

    def room_again(self, connection: Connection) -> None:
        self.rooms += 1

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.endings.append(reason)


def assert_sound(tcp: Tcp, edges: dict[Connection, int]) -> None:
    """What holds between any two events, whatever a peer does. `edges` is kept from call to
    call."""
    held = 0
    for c in tcp.connections.values():
        snd, rcv = c.snd, c.rcv
        assert c.state in State and c.state not in (State.CLOSED, State.LISTEN)
        assert snd.iss <= snd.una <= snd.nxt <= snd.limit
        for ranges in (snd.lost, snd.sacked):  # S1
            assert ranges.size == sum(right - left for left, right in ranges)
            assert not ranges or snd.una <= ranges.left <= ranges.right <= snd.nxt
        assert not any(snd.sacked.gaps(*run) != [run] for run in snd.lost), "S1"
        assert 0 <= snd.departed <= snd.nxt - snd.una
        assert not c.sacks or snd.departed == snd.sacked.size, "S3"
        assert len(snd.sacked) <= TCP_SACK_RANGES_MAX
        assert len(snd.runs) <= TCP_SEND_RUNS_MAX
        ends = [end for end, _, _ in snd.runs]
        assert ends == sorted(set(ends))
        assert not ends or ends[-1] == snd.nxt, "times of what is in flight"
        assert c.state is State.SYN_SENT or list(rcv.report.blocks) == joined(rcv.out_of_order)
        assert sum(len(b) for _, b in snd.unsent) == max(snd.end - max(snd.nxt, snd.iss + 1), 0)
        if c.state is not State.SYN_SENT:
            assert rcv.nxt <= rcv.edge
            assert rcv.edge >= edges.get(c, rcv.edge), "the window was shrunk"
            edges[c] = rcv.edge
        assert rcv.up <= max(rcv.edge, rcv.nxt) + 0xFFFF
        assert len(rcv.out_of_order) <= TCP_OUT_OF_ORDER_PIECES_MAX
        at = rcv.nxt
        for seq, piece in rcv.out_of_order:
            assert seq > at or (seq == at and at > rcv.nxt), "R2"
            at = seq + len(piece)
        assert at <= rcv.edge
        assert rcv.charge <= 2 * rcv.capacity + 65536
        held += rcv.charge + rcv.out_of_order_charge
    assert tcp.budget.used <= held
    assert tcp.budget.used <= TCP_RECEIVE_TOTAL_BYTES_MAX + 65536 * 256
    assert len(tcp.connections) <= TCP_CONNECTIONS_MAX
    for listener in tcp.listeners.values():
        assert len(listener.half_open) <= listener.backlog


def joined(pieces: list[tuple[int, memoryview]]) -> list[tuple[int, int]]:
    """The blocks that the pieces make up."""
    blocks: list[tuple[int, int]] = []
    for seq, piece in pieces:
        left = blocks.pop()[0] if blocks and blocks[-1][1] == seq else seq
        blocks.append((left, seq + len(piece)))
    return blocks


class ScriptedTcp(Tcp):
    """A host whose first sequence number the script may choose."""

    isn: int | None = None

    def initial_sequence_number(self, key: bytes, now: Instant) -> int:
        return super().initial_sequence_number(key, now) if self.isn is None else self.isn


class Wire:
    """One host with a listener, and one peer."""

    def __init__(self, expressly: bool = True, family: Family = IPV4) -> None:
        self.expressly = expressly  # try the express lane first, as the stack does
        self.family = family
        self.now: Instant = START
        self.log: list[tuple[Instant, bytes]] = []
        self.host()

    def host(
        self,
        *,
        offload: bool = False,
        mtu: int = 1500,
        receive_bytes: int = 65535,
        seed: int = 1,
        peer_isn: int = 5000,
        our_isn: int | None = None,
        connections_max: int = TCP_CONNECTIONS_MAX,
        stamps: bool = True,
        ecn: bool = True,
        congestion: str = "newreno",
    ) -> Wire:
        """A new host, to begin with. Without scaled windows unless `receive_bytes` asks for
        them; with NewReno, whose windows are easy to tell. `mtu` is IPv4's: IPv6 has a link that is
        wider by what its header is longer, so that TCP's own numbers are the same."""
        self.timers = Timers()
        self.counters = Counters()
        family = self.family
        self.path = RecordingPath(
            family.ours,
            family.peer,
            family.header_bytes,
            family.mtu_for(mtu - 40),
            family.mtu_min,
            checksum_offload=offload,
        )
        self.path.segment_bytes_max = 65495 if offload else 0
        self.tcp = ScriptedTcp(
            self.timers,
            Random(seed),
            self.counters,
            lambda destination, source=None: self.path,
            receive_bytes=receive_bytes,
            connections_max=connections_max,
            stamps=stamps,
            ecn=ecn,
            learn_mtu=self.learn_mtu,
            congestion=congestion,
        )
        self.tcp.isn = our_isn
        self.app = RecordingUser()
        self.listener: Listener = self.tcp.listen(PORT, self.app.accept)
        self.peer_isn = peer_isn
        self.our_isn: int | None = None
        self.peer_port = PEER_PORT
        self.our_port = PORT
        self.peer_shift = self.our_shift = 0
        self.peer_window = 65535
        self.stamp: tuple[int, int] | None = None
        self.edges: dict[Connection, int] = {}
        return self

    def learn_mtu(self, _destination: bytes, mtu: int, _now: Instant) -> bool:
        """What Paths does: the path has become narrower, or that is no news."""
        is_news = max(mtu, self.path.mtu_min) < self.path.mtu
        self.path.mtu = min(max(mtu, self.path.mtu_min), self.path.mtu)
        return is_news

    # --- the scene --------------------------------------------------------------------------------

    def established(
        self,
        *,
        mss: int | None = 1460,
        window: int = 65535,
        shift: int | None = None,
        stamp: int | None = None,
        ecn: bool = False,
        sacks: bool = False,
        rtt: Instant = 0,
    ) -> Wire:
        """The peer opens a connection (RFC 9293 figure 6, seen from B)."""
        self.peer_window = window
        first = None if stamp is None else (stamp, 0)
        flags = (SYN | ECE | CWR, SYN | ECE | ACK) if ecn else (SYN, SYN | ACK)
        size = min(window, 65535)
        self.peer(flags[0], seq=0, mss=mss, shift=shift, stamp=first, window=size, sacks=sacks)
        answer = self.ours(flags[1], seq=0, ack=1)
        assert answer.sack_permitted == sacks
        if shift is not None:
            assert answer.window_scale is not None
            self.peer_shift, self.our_shift = shift, answer.window_scale
        if stamp is not None:
            assert answer.timestamp is not None
            self.stamp = (stamp, answer.timestamp[0])
        if rtt:
            self.after(rtt)
        self.peer(ACK, seq=1, ack=1)
        self.quiet()
        self.state(State.ESTABLISHED)
        return self

    def connecting(self) -> Wire:
        """We open a connection; the peer has our SYN."""
        c = self.tcp.connect(self.family.peer, PEER_PORT, self.app, self.now, source_port=3000)
        self.app.connection = c
        self.our_port = 3000
        self.flush()
        self.ours(SYN, seq=0)
        return self

    @property
    def user(self) -> Connection:
        """The connection, to make calls on."""
        assert self.app.connection is not None, "no connection was accepted"
        return self.app.connection

    def connection(self) -> Connection | None:
        """The connection of the peer, if it has one."""
        return self.tcp.connections.get(self.key)

    @property
    def key(self) -> bytes:
        ports = self.peer_port.to_bytes(2, "big") + self.our_port.to_bytes(2, "big")
        return self.family.peer + self.family.ours + ports

    # --- the script -------------------------------------------------------------------------------

    def peer(
        self,
        flags: int,
        seq: int = 0,
        ack: int = 0,
        text: Buffer = b"",
        window: int | None = None,
        mss: int | None = None,
        shift: int | None = None,
        stamp: tuple[int, int] | None = None,
        ecn: int = 0,
        sacks: bool = False,
        sack: Sequence[tuple[int, int]] = (),
        urgent: int = 0,
    ) -> Wire:
        """The peer sends a segment. `ecn` is in the IP header when it arrives. `sacks`: with
        SACK-permitted; `sack`: these blocks."""
        wnd = (self.peer_window if window is None else window) >> (
            0 if flags & SYN else self.peer_shift
        )
        segment = Segment(
            self.peer_port,
            self.our_port,
            self.peer_isn + seq,
            (self.our_isn or 0) + ack if flags & ACK else 0,
            flags,
            wnd,
            mss=mss,
            window_scale=shift,
            timestamp=stamp or self.stamp,
            sack_permitted=sacks,
            sack=tuple(
                ((self.our_isn or 0) + left, (self.our_isn or 0) + right) for left, right in sack
            ),
            urgent=urgent,
        )
        return self.arrives(bytes(segment.emit()) + bytes(text), ecn)

    def arrives(self, packet: bytes, ecn: int = 0) -> Wire:
        """These bytes arrive, with the checksum they should have."""
        packet = packet[:16] + b"\0\0" + packet[18:]
        pseudo = pseudo_header(self.family.peer, self.family.ours, packet)
        checksum = 0xFFFF - ones_complement_sum(pseudo + packet)
        packet = packet[:16] + checksum.to_bytes(2, "big") + packet[18:]
        return self.arrives_as_is(packet, ecn)

    def arrives_as_is(self, packet: bytes, ecn: int = 0) -> Wire:
        """These bytes arrive, checksum and all."""
        peer, ours = self.family.peer, self.family.ours
        self.log.append((self.now, ip_packet(peer, ours, packet)))
        if not (self.expressly and self.express(packet, ecn)):
            self.tcp.arrives(peer, ours, packet, 0, len(packet), False, self.now, ecn)
        return self.flush()

    def express(self, packet: bytes, ecn: int = 0) -> bool:
        """The express lane, as in Stack.receive, for packets that are long enough."""
        if len(packet) < 20:
            return False
        c = self.tcp.connections.get(self.family.peer + self.family.ours + packet[:4])
        if c is None:
            return False
        seq, ack, offset_flags, window = unpack_from("!IIHH", packet, 4)
        if not c.express(seq, ack, offset_flags, window, packet, 0, len(packet), self.now):
            return False
        if ecn == CE:
            marked(c)
        return True

    def flush(self) -> Wire:
        """What the calls of the user made worth sending is sent."""
        already = len(self.path.sent)
        self.tcp.flush(self.now)
        for packet, _ in self.path.sent[already:]:
            self.log.append((self.now, ip_packet(self.family.ours, self.family.peer, packet)))
        assert_sound(self.tcp, self.edges)
        return self

    def after(self, duration: Instant) -> Wire:
        """Time goes by."""
        self.flush()
        until = self.now + duration
        for _ in range(100_000):
            deadline = self.timers.next_deadline
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.timers.expire(self.now)
            self.flush()
            following = self.timers.next_deadline
            assert following is None or following > self.now, "a deadline that does not pass"
        else:
            raise AssertionError("the timers never rest")
        self.now = until
        return self

    def ours(
        self,
        flags: int,
        seq: int | None = None,
        ack: int | None = None,
        text: Buffer | None = None,
        window: int | None = None,
        size: int | None = None,
        sack: Sequence[tuple[int, int]] | None = None,
        urgent: int | None = None,
    ) -> Segment:
        """The next packet of ours is this one. PSH is compared only where `flags` has it."""
        self.flush()
        assert self.path.sent, "we sent nothing"
        packet, _ = self.path.sent.pop(0)
        got = parse(packet, 0, len(packet))
        if got.flags & SYN and not got.flags & RST:
            self.our_isn = got.seq
        expected = flags if flags & PSH else flags & ~PSH
        actual = got.flags if flags & PSH else got.flags & ~PSH
        assert actual == expected, f"flags: {self.relative(got)}"
        for name, wanted, have in (
            ("seq", seq, self.relative_seq(got)),
            ("ack", ack, self.relative_ack(got)),
            ("text", None if text is None else bytes(text), bytes(got.text)),
            ("window", window, got.wnd << (0 if got.flags & SYN else self.our_shift)),
            ("size", size, len(got.text)),
            ("sack", None if sack is None else list(sack), self.relative_blocks(got)),
            ("urgent", urgent, got.urgent),
        ):
            assert wanted is None or wanted == have, f"{name}: {self.relative(got)}"
        return got

    def relative_seq(self, got: Segment) -> int:
        return unwrap(got.seq - (self.our_isn or 0) & MASK, 1 << 20)

    def relative_blocks(self, got: Segment) -> list[tuple[int, int]]:
        isn = self.peer_isn
        return [(left - isn & MASK, right - isn & MASK) for left, right in got.sack]

    def relative_ack(self, got: Segment) -> int:
        return unwrap(got.ack - self.peer_isn & MASK, 1 << 20) if got.flags & ACK else 0

    def relative(self, got: Segment) -> str:
        """For messages: the segment as it is, with relative numbers."""
        return str(
            Segment(
                got.source_port,
                got.destination_port,
                self.relative_seq(got),
                self.relative_ack(got),
                got.flags,
                got.wnd,
                got.text,
                got.mss,
                got.window_scale,
                got.timestamp,
                sack_permitted=got.sack_permitted,
                sack=tuple(self.relative_blocks(got)),
                urgent=got.urgent,
            )
        )

    def quiet(self) -> Wire:
        """We have nothing else to say."""
        self.flush()
        rest = [self.relative(parse(p, 0, len(p))) for p, _ in self.path.sent]
        assert not rest, f"we also sent {rest}"
        return self

    def state(self, expected: State) -> Wire:
        """The connection is in this state."""
        actual = self.user.state if self.app.connection else None
        in_table = self.connection()
        if actual is None or in_table is not None:
            actual = in_table.state if in_table else State.CLOSED
        assert actual is expected, f"state is {actual}"
        return self

    def ignore(self) -> Wire:
        """Whatever we have sent, it is not what this test is about."""
        self.flush()
        self.path.sent.clear()
        return self

    # --- afterwards -------------------------------------------------------------------------------

    def write_pcap(self, name: FilePath) -> None:
        """Everything that went by, for tcpdump and tshark."""
        name.parent.mkdir(parents=True, exist_ok=True)
        with name.open("wb") as file:
            writer = dpkt.pcap.Writer(file, linktype=dpkt.pcap.DLT_RAW)
            for at, packet in self.log:
                writer.writepkt(packet, ts=(at - START) / 1e9)


def pseudo_header(source: bytes, destination: bytes, segment: bytes) -> bytes:
    """What TCP's checksum covers beside the segment: with both families the same sum."""
    return source + destination + bytes((0, 6)) + len(segment).to_bytes(2, "big")


def ip_packet(source: bytes, destination: bytes, segment: bytes) -> bytes:
    """Put an IP header in front."""
    if len(source) == 16:
        return bytes(dpkt.ip6.IP6(src=source, dst=destination, nxt=6, hlim=64, data=segment))
    packet = dpkt.ip.IP(src=source, dst=destination, p=6, data=segment)
    packet.len = 20 + len(segment)
    return bytes(packet)
