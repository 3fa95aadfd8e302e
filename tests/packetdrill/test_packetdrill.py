"""The interpreter itself: it reads what packetdrill reads, and a script that is wrong fails, at the
right line and in words that help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.packetdrill.language import (
    Call,
    From,
    Icmp,
    Inbound,
    Option,
    Outbound,
    Packet,
    Range,
    ScriptError,
    Tcp,
    Time,
    Udp,
    Value,
)
from tests.packetdrill.ours import play_ours
from tests.packetdrill.packets import (
    OUR_PORT,
    PEER_PORT,
    Flow,
    Flows,
    Mismatch,
    Seen,
    compare,
    flag_bits,
    flag_letters,
    pattern,
)
from tests.packetdrill.parser import parse, parse_file

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.pkt"))
SCRIPTS_MIN = 80

LISTEN = """\
0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 1) = 0
+.1 < S 0:0(0) win 65535 <mss 1460>
+0 > S. 0:0(0) ack 1 <mss 1460>
+.1 < . 1:1(0) ack 1 win 65535
+0 accept(3, ..., ...) = 4
"""
"""Seven lines: what follows begins at line 8, at 0.2 s."""


def play(text: str) -> None:
    play_ours(parse(text, "a.pkt"))


def complaint(text: str) -> str:
    """What is wrong with these lines, after LISTEN."""
    with pytest.raises(ScriptError) as raised:
        play(LISTEN + text)
    return str(raised.value)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("0.5", Time(From.START, 500_000_000)),
        ("+.25", Time(From.BEFORE, 250_000_000)),
        ("+1", Time(From.BEFORE, 1_000_000_000)),
        ("*", Time(From.ANY)),
        ("0.1~0.2", Time(From.START, 100_000_000, 200_000_000)),
        ("+.1~+.2", Time(From.BEFORE, 100_000_000, 200_000_000)),
        ("+0...0.3", Time(From.BEFORE, 0, 300_000_000, blocks=True)),
    ],
)
def test_times(text: str, time: Time) -> None:
    assert parse(f"{text} > . 1:1(0) ack 1", "a.pkt").events[0].time == time


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("S 0:0(0) win 9", Packet(Tcp("S", Range(0, 0, 0), window=9))),
        ("FP. 5:15(10) ack 7", Packet(Tcp("FP.", Range(5, 15, 10), 7))),
        ("- 0:0(0)", Packet(Tcp("-", Range(0, 0, 0)))),
        ("[ect0] SEW 0:0(0)", Packet(Tcp("SEW", Range(0, 0, 0)), "ect0")),
        ("7 > 80: R 1:1(0)", Packet(Tcp("R", Range(1, 1, 0)), None, 7, 80)),
        ("PU. -9:1(10) ack 1 win 2 urg 3", Packet(Tcp("PU.", Range(-9, 1, 10), 1, 2, 3))),
        ("udp (12)", Packet(Udp(12))),
        ("icmp unreachable frag_needed mtu 9 [1:2(1)]", Packet(Icmp(3, 4, 9, Range(1, 2, 1)))),
        ("[1:2(1)] icmp unreachable frag_needed mtu 9", Packet(Icmp(3, 4, 9, Range(1, 2, 1)))),
        ("icmpv6 packet_too_big mtu 9 [1:2(1)]", Packet(Icmp(2, 0, 9, Range(1, 2, 1)))),
        ("icmp time_exceeded [udp (3)]", Packet(Icmp(11, 0, 0, Udp(3)))),
    ],
)
def test_packets(text: str, packet: Packet) -> None:
    script = parse(f"0 < {text}\n+0 > {text}\n", "a.pkt")
    assert [event.what for event in script.events] == [Inbound(packet), Outbound(packet)]


def test_options() -> None:
    text = "mss 9,sackOK,TS val 1 ecr 2,nop,wscale 7,eol,sack 1:2 5:7,raw 0xfe02"
    script = parse(f"0 < S 0:0(0) <{text}>\n+0 > S 0:0(0) <mss 9,...>\n+0 > . 1:1(0) <...>", "a")
    first, second, third = (event.what for event in script.events)
    assert isinstance(first, Inbound)
    assert isinstance(second, Outbound)
    assert isinstance(third, Outbound)
    assert isinstance(first.packet.body, Tcp)
    assert isinstance(second.packet.body, Tcp)
    assert first.packet.body.options == (
        Option("mss", (9,)), Option("sackOK"), Option("TS", (1, 2)), Option("nop"),
        Option("wscale", (7,)), Option("eol"), Option("sack", (1, 2, 5, 7)),
        Option("raw", raw=b"\xfe\x02"),
    )  # fmt: skip
    assert str(first.packet.body).endswith(f"<{text}>")
    assert second.packet.body.options == (Option("mss", (9,)),)
    assert second.packet.body.any_options
    assert third.packet.body == Tcp(".", Range(1, 1, 0), any_options=True)


def test_calls() -> None:
    text = """0 setsockopt(3, SOL_SOCKET, SO_LINGER, {l_onoff=1, l_linger=0}, 8) = 0
    +0 poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLIN}], 1, 0) = 1
    +0 read(4, ..., 0x10) = -1 EAGAIN (Resource temporarily unavailable)"""
    calls = [event.what for event in parse(text, "a.pkt").events]
    linger: Value = {"l_onoff": 1, "l_linger": 0}
    assert calls[0] == Call("setsockopt", (3, "SOL_SOCKET", "SO_LINGER", linger, 8), 0)
    assert calls[1] == Call(
        "poll", ([{"fd": 4, "events": "POLLIN|POLLOUT", "revents": "POLLIN"}], 1, 0), 1
    )
    assert calls[2] == Call("read", (4, None, 16), -1, "EAGAIN")
    assert str(calls[2]) == "read(4, ..., 16) = -1 EAGAIN"


def test_head_comments_and_definitions() -> None:
    script = parse(
        "// one /* property\n// Not for Linux: it is\n// another\n\n--tolerance_usecs=5\n"
        "--define SIZE=100\n# or so\n/* over\nlines */ 0 < P. 1:101($SIZE) ack 1 // at the end\n",
        "a.pkt",
    )
    assert script.not_for_linux == "it is another"
    assert script.options == {"tolerance_usecs": "5"}
    assert [event.line for event in script.events] == [9]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n\n+0 < Q 0:0(0)", "a.pkt:3: expected flags"),
        ("+0 < S 0:5(4)", "a.pkt:1: expected a size of 5"),
        ("+0 < S 0:0(0) <mss>", "a number after 'mss'"),
        ("+0 < S 0:0(0) <tfo 1>", "unknown option 'tfo'"),
        ("+0 < S 0:0(0) <raw x>", "expected bytes in hexadecimal"),
        ("+0 < icmp surprise", "unknown ICMP type 'surprise'"),
        ("yesterday < S 0:0(0)", "a.pkt:1: expected a time, not 'yesterday"),
        ("+.2~+.1 > S 0:0(0)", "a range that ends after it begins"),
        ("+.2~.3 > S 0:0(0)", "both ends of a range"),
        ("+0 %{ assert True", "expected '}%'"),
        ("+0 read(4, ..., 5", "expected ')'"),
        ("+0 read(4) EAGAIN", "expected '='"),
        ("+0 `sleep 1`", "commands of a shell"),
        ("--define 5", "expected --define NAME=VALUE"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, says: str) -> None:
    with pytest.raises(ScriptError, match=re.escape(says)):
        parse(text, "a.pkt")


# --- playing: a script that is not true fails --------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("P. 1:101(100) ack 1", None),
        ("P. 1:101(100) ack 1 win 65535", None),
        (". 1:101(100) ack 1", None),
        ("FP. 1:101(100) ack 1", "flags"),
        ("P. 2:102(100) ack 1", "sequence numbers"),
        ("P. 1:100(99) ack 1", "sequence numbers"),
        ("P. 1:101(100) ack 2", "acknowledgement"),
        ("P. 1:101(100) ack 1 win 5", "window"),
        ("P. 1:101(100) ack 1 urg 5", "urgent pointer"),
        ("P. 1:101(100) ack 1 <nop>", "options: no nop"),
        ("[ect0] P. 1:101(100) ack 1", "ECN mark"),
        ("9 > 80 P. 1:101(100) ack 1", "ports 8080 > 45000"),
        ("udp (100)", "kind of packet"),
    ],
)
def test_each_field_of_a_packet_counts(line: str, says: str | None) -> None:
    script = f"+0 write(4, ..., 100) = 100\n+0 > {line}\n"
    if says is None:
        play(LISTEN + script)
        return
    said = complaint(script)
    assert said.startswith(f"a.pkt:9: {says}\nscript packet:  0.200000 ")
    assert "actual packet:  0.200000 [noecn] P. 1:101(100) ack 1 win 65535" in said


@pytest.mark.parametrize("option", ["mss 1461", "mss 1460,nop", "nop,mss 1460", "wscale 2,..."])
def test_options_are_compared(option: str) -> None:
    listening = "\n".join(LISTEN.splitlines()[:4])
    with pytest.raises(ScriptError, match=r"a\.pkt:5: options: no"):
        play(f"{listening}\n+0 > S. 0:0(0) ack 1 <{option}>")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            "+.1 > . 1:1(0) ack 1",
            "a.pkt:8: no packet came\nscript packet:  0.300000 . 1:1(0) ack 1",
        ),
        ("* > . 1:1(0) ack 1", "a.pkt:8: no packet came\nscript packet:  * . 1:1(0)"),
        ("+0 write(4, ..., 9) = 9\n+1 close(4) = 0", "a.pkt:9: unexpected packet\nactual packet:"),
        ("+0 write(4, ..., 9) = 9", "a.pkt:8: unexpected packet"),
        ("+0 write(4, ..., 9) = 8", "a.pkt:8: write: expected 8, got 9\nscript call:  write(4,"),
        ("+0 read(4, ..., 9) = 0", "a.pkt:8: read: expected 0, got nothing: it blocks"),
        ("+0 read(9, ..., 9) = 0", "a.pkt:8: read: expected 0, got -1 EBADF"),
        ("+0 fork(9) = 0", "a.pkt:8: cannot call fork(9) = 0"),
        ("+0...0.1 read(4, ..., 9) = 1", "a.pkt:8: read: expected 1, got nothing"),
        ("+0 %{ assert tcpi_state == 7 }%", "a.pkt:8: AssertionError() in\n  assert tcpi_state"),
        ("+0 < . 1:1(0) ack 1 <raw 0x01>", "a.pkt:8: options of 1 bytes do not fit into words"),
        ("* < . 1:1(0) ack 1", "a.pkt:8: only a packet of the host"),
    ],
)
def test_what_differs_is_said(lines: str, says: str) -> None:
    assert complaint(lines).startswith(says)


@pytest.mark.parametrize(("time", "good"), [("+.037", True), ("+.035", False), ("+.045", False)])
def test_times_are_compared_within_the_tolerance(time: str, good: bool) -> None:
    text = f"+0 < P. 1:2(1) ack 1 win 9\n{time} > . 1:1(0) ack 2"
    if good:
        play(LISTEN + text)
    else:
        found = complaint(text)
        assert "timing: expected a packet at 0.2" in found or "no packet came" in found


def test_a_blocking_call_returns_when_it_should() -> None:
    script = "+0...0.1 read(4, ..., 9) = 1\n+.1 < P. 1:2(1) ack 1 win 9\n+.04 > . 1:1(0) ack 2"
    play(LISTEN + script)
    assert "timing: read returned" in complaint(script.replace("0...0.1", "0...0.2"))


def test_text_that_is_not_what_was_written_is_noticed() -> None:
    tcp = Tcp(".", Range(1, 5, 4), 1)
    seen = Seen(tcp, "noecn", (OUR_PORT, PEER_PORT), flag_bits("."), pattern(1, 4))
    compare(Packet(tcp), seen, Flows(), 0)
    seen.text = pattern(2, 4)
    with pytest.raises(Mismatch, match="text"):
        compare(Packet(tcp), seen, Flows(), 0)


def test_numbers_turn_over() -> None:
    assert Flow(1, 2, 0).relative(0xFFFF_FFFF, 0) == -1
    assert Flow(1, 2, 0).relative(4, 0xFFFF_FFFE) == 6
    assert flag_letters(flag_bits("FP.")) == "FP."


# --- the scripts ---------------------------------------------------------------------------------


def test_there_are_enough_scripts() -> None:
    assert len(SCRIPTS) >= SCRIPTS_MIN
    for_linux = [file for file in SCRIPTS if parse_file(file).not_for_linux is None]
    assert len(for_linux) >= SCRIPTS_MIN


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_script_says_what_it_shows(file: Path) -> None:
    """A property, an RFC, and what must hold; and something is expected of the host."""
    head = file.read_text().split("\n\n", 1)[0]
    assert re.match(r"// .+\.\n// (.*\n)*", head), "a sentence"
    assert re.search(r"RFC \d{3,4}", head), "where it stands"
    assert any(isinstance(event.what, Outbound) for event in parse_file(file).events)
