"""Forged, broken and senseless segments: dropped and counted, or answered once, and never
believed."""

from __future__ import annotations

from ipaddress import ip_address
from struct import pack

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import TCP_CHALLENGES_PER_SECOND_MAX, TCP_MSS_MIN
from appliance.netstack.tcp.sequence import MASK
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, URG
from tests.transcripts.tcp_wire import IPV4, IPV6, PEER_PORT, PORT, Wire


def test_a_reset_with_the_exact_number_resets(wire: Wire) -> None:
    """RFC 5961 section 3.2 case 2; the user is told that it was no orderly end."""
    wire.established()
    wire.peer(RST, seq=1)
    wire.quiet()
    wire.state(State.CLOSED)
    assert wire.app.endings == ["reset by peer"]


def test_a_reset_inside_the_window_is_challenged(wire: Wire) -> None:
    """RFC 5961 section 3.2 case 3."""
    wire.established()
    wire.peer(RST, seq=2)
    wire.ours(ACK, seq=1, ack=1)
    wire.peer(RST, seq=65535)
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)


def test_a_reset_outside_the_window_is_ignored(wire: Wire) -> None:
    """RFC 5961 section 3.2 case 1."""
    wire.established()
    wire.peer(RST, seq=0)
    wire.peer(RST, seq=65537)
    wire.quiet()
    wire.state(State.ESTABLISHED)


def test_a_challenged_peer_can_reset(wire: Wire) -> None:
    """RFC 5961 section 3.2: the challenge tells an honest peer the number that counts."""
    wire.established()
    wire.peer(RST, seq=500)
    challenge = wire.ours(ACK)
    wire.peer(RST, seq=wire.relative_ack(challenge))
    wire.state(State.CLOSED)


@pytest.mark.parametrize("seq", [-1000, 0, 1, 2, 65535, 100_000])
def test_a_syn_is_challenged(wire: Wire, seq: int) -> None:
    """RFC 5961 section 4.2: whatever its number."""
    wire.established()
    wire.peer(SYN, seq=seq)
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)


def test_challenges_are_rare(wire: Wire) -> None:
    """RFC 5961 section 7: an attacker cannot make us send at his speed."""
    wire.established()
    for _ in range(100):
        wire.peer(SYN, seq=500)
    for _ in range(TCP_CHALLENGES_PER_SECOND_MAX):
        wire.ours(ACK, seq=1, ack=1)
    wire.quiet()
    wire.after(SECOND).peer(SYN, seq=500)
    wire.ours(ACK, seq=1, ack=1)


def test_an_acknowledgement_of_unsent_text_changes_nothing(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, fifth step: an optimistic peer does not make us send faster."""
    wire.established()
    wire.user.send([bytes(100)])
    wire.ours(PSH | ACK, seq=1)
    wire.peer(ACK, seq=1, ack=102, text=b"forged")
    wire.ours(ACK, seq=101, ack=1)
    assert wire.app.text == b""
    assert wire.user.unsent_bytes == 100


def test_blind_text_with_an_old_acknowledgement_is_not_taken(wire: Wire) -> None:
    """RFC 5961 section 5.2: an ACK older than any window we have seen."""
    wire.established(window=1000)
    wire.peer(PSH | ACK, seq=1, ack=-1000, text=b"forged")
    wire.ours(ACK, seq=1, ack=1)
    assert wire.app.text == b""


def test_text_with_an_acceptable_old_acknowledgement_is_taken(wire: Wire) -> None:
    """RFC 5961 section 5.2: it may have been overtaken."""
    wire.established(window=1000)
    wire.user.send([bytes(500)])
    wire.ours(PSH | ACK)
    wire.peer(ACK, seq=1, ack=501)
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"overtaken")
    assert wire.app.text == b"overtaken"
    wire.after(SECOND).ours(ACK, ack=10)


def test_a_segment_without_ack_is_dropped(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, fifth step."""
    wire.established()
    wire.peer(PSH, seq=1, text=b"x")
    wire.peer(0, seq=1)
    wire.quiet()
    assert wire.app.text == b""


def test_an_acknowledgement_is_never_acknowledged(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4: two such stacks would go on for ever."""
    wire.established()
    for _ in range(10):
        wire.peer(ACK, seq=1, ack=1)
    wire.quiet()


def test_acknowledgements_outside_the_window_are_answered_rarely(wire: Wire) -> None:
    """Two stacks that each find the other's numbers wrong must not keep each other busy."""
    wire.established()
    for _ in range(100):
        wire.peer(ACK, seq=-5, ack=1)
    for _ in range(TCP_CHALLENGES_PER_SECOND_MAX):
        wire.ours(ACK, seq=1, ack=1)
    wire.quiet()


def test_repeated_text_is_always_acknowledged(wire: Wire) -> None:
    """RFC 9293 section 3.10.7.4, first step: or the peer would never stop repeating it."""
    wire.established()
    wire.peer(PSH | ACK, seq=1, ack=1, text=b"x" * 10)
    wire.after(SECOND).ours(ACK, ack=11)
    for _ in range(50):
        wire.peer(PSH | ACK, seq=1, ack=1, text=b"x" * 10)
        wire.ours(ACK, seq=1, ack=11)
    assert wire.app.text == b"x" * 10


def test_our_own_address_as_source_is_dropped(wire: Wire) -> None:
    """The LAND attack: a SYN from ourselves to ourselves."""
    syn = pack("!HHIIHHHH", PORT, PORT, 1, 0, 0x5000 | SYN, 1000, 0, 0)
    ours = wire.family.ours
    wire.tcp.arrives(ours, ours, syn, 0, len(syn), True, wire.now)
    wire.quiet()
    assert wire.counters["tcp.bad_source"] == 1
    assert not wire.tcp.connections


@pytest.mark.lanes("express")
@pytest.mark.parametrize(
    "source",
    ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "::", "::1", "ff02::1", "ff0e::9"],
)
def test_a_source_that_is_no_host_is_dropped(wire: Wire, source: str) -> None:
    """RFC 9293 MUST-57, MUST-63: no reset to a group."""
    syn = pack("!HHIIHHHH", PEER_PORT, 7, 1, 0, 0x5000 | SYN, 1000, 0, 0)
    packed = ip_address(source).packed
    ours = IPV4.ours if len(packed) == len(IPV4.ours) else IPV6.ours
    wire.tcp.arrives(packed, ours, syn, 0, len(syn), True, wire.now)
    wire.quiet()


@pytest.mark.parametrize("size", range(20))
def test_a_truncated_header_is_dropped(wire: Wire, size: int) -> None:
    """RFC 9293 section 3.1: the header has twenty bytes at least."""
    wire.established()
    header = pack("!HHIIHHHH", PEER_PORT, PORT, 5001, 0, 0x5000 | ACK, 1000, 0, 0)
    wire.tcp.arrives(wire.family.peer, wire.family.ours, header[:size], 0, size, True, wire.now)
    wire.quiet()
    assert wire.counters["tcp.truncated"] == 1


@pytest.mark.parametrize("words", [0, 1, 4, 7, 15])
def test_a_data_offset_that_cannot_be_is_dropped(wire: Wire, words: int) -> None:
    """RFC 9293 section 3.1: less than five words, or more than there are."""
    wire.established()
    header = pack("!HHIIHHHH", PEER_PORT, PORT, 5001, 0, words << 12 | ACK | SYN, 1000, 0, 0)
    wire.arrives(header + bytes(4))
    wire.quiet()
    assert wire.counters["tcp.bad_offset"] == 1


@pytest.mark.parametrize("bit", range(0, 24 * 8, 5))
def test_a_flipped_bit_is_noticed(wire: Wire, bit: int) -> None:
    """RFC 9293 section 3.1: the checksum covers header, text and addresses."""
    wire.established()
    wire.expressly = False  # the express lane is only given what was verified
    seq, ack = 5001, (wire.our_isn or 0) + 1 & MASK
    packet = bytearray(pack("!HHIIHHHH", PEER_PORT, PORT, seq, ack, 0x5018, 1000, 0, 0) + b"text")
    wire.arrives(bytes(packet))
    _, good = wire.log[-1]
    damaged = bytearray(good[20:])
    damaged[bit // 8] ^= 1 << bit % 8
    damaged_before = wire.counters["tcp.bad_checksum"]
    wire.arrives_as_is(bytes(damaged))
    assert wire.counters["tcp.bad_checksum"] == damaged_before + 1
    assert wire.app.text == b"text"
    wire.ignore()


@pytest.mark.parametrize(
    "options",
    [
        b"\x02\x00\x05\xb4",  # length 0
        b"\x02\x01\x05\xb4",  # length 1
        b"\x02\x05\x05\xb4",  # past the end
        b"\x01\x01\x01\x02",  # kind without length
        b"\xfe\x04\xab\xcd",  # unknown
        b"\x03\x04\x07\x00",  # wrong size for its kind
        b"\x08\x02\x08\x02",
        b"\x00\xff\xff\xff",  # garbage behind the end
    ],
)
def test_broken_options_do_not_break_a_handshake(wire: Wire, options: bytes) -> None:
    """RFC 9293 MUST-6, MUST-7: what cannot be understood is skipped."""
    header = pack("!HHIIHHHH", PEER_PORT, PORT, wire.peer_isn, 0, 0x6000 | SYN, 65535, 0, 0)
    wire.arrives(header + options)
    answer = wire.ours(SYN | ACK, seq=0, ack=1)
    assert answer.window_scale is None
    wire.peer(ACK, seq=1, ack=1)
    assert wire.user.mss == wire.family.mss_default


@pytest.mark.parametrize(
    ("offered", "used"),
    [(None, None), (0, None), (1, TCP_MSS_MIN), (9000, 1460), (1000, 1000)],
)
def test_the_peers_mss_is_clamped(wire: Wire, offered: int | None, used: int | None) -> None:
    """RFC 9293 section 3.7.1: the least of the peer's, with a floor, and what our link takes. None:
    what the family has where nobody says anything (MUST-15)."""
    used = wire.family.mss_default if used is None else used
    wire.established(mss=offered)
    wire.user.send([bytes(used + 1)])
    wire.ours(ACK, seq=1, size=used)
    wire.ours(PSH | ACK, seq=used + 1, size=1)


def test_a_tiny_mss_with_timestamps_still_makes_progress(wire: Wire) -> None:
    """RFC 6691: options come off the MSS; what is left is never nothing."""
    wire.established(mss=1, stamp=1)
    wire.user.send([bytes(100)])
    wire.ours(ACK, size=TCP_MSS_MIN - 12)
    wire.ours(PSH | ACK, size=100 - (TCP_MSS_MIN - 12))


def test_a_window_scale_above_fourteen_is_fourteen(wire: Wire) -> None:
    """RFC 7323 section 2.3."""
    wire.peer(SYN, seq=0, shift=200)
    wire.ours(SYN | ACK)
    wire.peer(ACK, seq=1, ack=1)
    assert wire.user.snd.shift == 14


def test_port_zero_is_dropped(wire: Wire) -> None:
    """RFC 6335 section 6: no such port."""
    wire.peer_port = 0
    wire.peer(SYN, seq=0)
    wire.quiet()
    assert wire.counters["tcp.port_zero"] == 1


def test_every_flag_at_once_is_answered_once(wire: Wire) -> None:
    """A "Christmas tree": in an established connection its SYN or RST decides."""
    wire.established()
    wire.peer(SYN | FIN | URG | PSH | ACK, seq=1, ack=1, text=b"x")
    wire.ours(ACK, seq=1, ack=1)
    wire.peer(SYN | FIN | RST | URG | PSH | ACK, seq=7, ack=1, text=b"x")
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)


def test_resets_for_nobody_are_limited(wire: Wire) -> None:
    """A port scan does not make us a source of packets."""
    wire.our_port = 9
    for port in range(1, 1501):
        wire.peer_port = port
        wire.peer(SYN, seq=0)
    assert len(wire.path.sent) == 1000
    wire.ignore()


# --- ICMP (RFC 5927) -----------------------------------------------------------------------------


def quoted(wire: Wire, seq: int) -> bytes:
    """The eight bytes of a segment of ours that an ICMP error shows."""
    ports = pack("!HH", wire.our_port, wire.peer_port)
    return ports + pack("!I", (wire.our_isn or 0) + seq & MASK)


def icmp_error(wire: Wire, quote: bytes, reason: str) -> None:
    """A hard error about it arrives."""
    wire.tcp.icmp_error(wire.family.ours, wire.family.peer, quote, reason, hard=True)


def test_an_icmp_error_ends_an_attempt_to_connect(wire: Wire) -> None:
    """RFC 9293 section 3.9.2.2: a hard error, and the SYN it quotes is ours."""
    wire.connecting()
    icmp_error(wire, quoted(wire, 0), "port unreachable")
    assert wire.app.endings == ["port unreachable"]


def test_an_icmp_error_does_not_end_a_connection(wire: Wire) -> None:
    """RFC 5927 section 5.2: on a synchronized connection every error is a soft one."""
    wire.established()
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, seq=1)
    icmp_error(wire, quoted(wire, 1), "host unreachable")
    wire.state(State.ESTABLISHED)
    wire.after(1000 * SECOND).ignore()
    assert wire.app.endings == ["host unreachable"]


@pytest.mark.parametrize("seq", [-1, 0, 2, 100_000])
def test_an_icmp_error_about_something_not_in_flight_is_forged(wire: Wire, seq: int) -> None:
    """RFC 5927 section 4.1."""
    wire.established()
    wire.user.send([b"x"])
    wire.ours(PSH | ACK, seq=1)
    icmp_error(wire, quoted(wire, seq), "host unreachable")
    icmp_error(wire, quoted(wire, 1)[:7], "host unreachable")
    assert wire.user.soft_error is None
    assert wire.counters["tcp.icmp_not_ours"] == 1
    wire.after(100 * MILLISECOND).quiet()


def test_old_text_in_a_reset_does_not_wake_anything(wire: Wire) -> None:
    """RFC 9293 section 3.5.3: a reset with text is a reset."""
    wire.established()
    wire.peer(RST | ACK, seq=1, ack=1, text=b"go away")
    wire.quiet()
    assert (bytes(wire.app.text), wire.app.endings) == (b"", ["reset by peer"])
