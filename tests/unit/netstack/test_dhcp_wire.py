"""DHCP on the wire: scapy reads what we write, we read what scapy writes, and a message that
contradicts itself is a BadPacket with a name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from appliance.netstack.wire import dhcp
from appliance.netstack.wire.dhcp import (
    BOOTREPLY,
    BOOTREQUEST,
    MESSAGE_BYTES_MIN,
    DhcpMessage,
    emit_option,
)
from appliance.netstack.wire.errors import BadPacket

MAC = bytes.fromhex("02000a000005")
COOKIE = b"\x63\x82\x53\x63"

addresses = st.binary(min_size=4, max_size=4)
options = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != dhcp.OPTION_OVERLOAD),
    st.binary(max_size=600),
    max_size=6,
)


def reason_of(parse: Callable[[], object]) -> str:
    with pytest.raises(BadPacket) as caught:
        parse()
    return caught.value.reason


def raw(area: bytes, *, file: bytes = b"", sname: bytes = b"") -> bytes:
    """A reply whose fields hold these options."""
    head = DhcpMessage(BOOTREPLY, 7, MAC).emit()[:44]
    return head + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + COOKIE + area


def ack(**fields: bytes) -> DhcpMessage:
    """One with these options; `o51=...` is option 51."""
    chosen = {int(name[1:]): value for name, value in fields.items()}
    return DhcpMessage(BOOTREPLY, 7, MAC, options={53: b"\5", **chosen})


@given(
    st.sampled_from((BOOTREQUEST, BOOTREPLY)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 0xFFFF),
    st.booleans(),
    st.tuples(addresses, addresses, addresses, addresses),
    options,
)
def test_what_is_written_is_read_again(
    op: int,
    xid: int,
    secs: int,
    broadcast: bool,
    four: tuple[bytes, bytes, bytes, bytes],
    known: dict[int, bytes],
) -> None:
    message = DhcpMessage(op, xid, MAC, secs, broadcast, *four, options=known)
    assert DhcpMessage.parse(message.emit()) == message


def test_scapy_reads_what_we_write() -> None:
    message = DhcpMessage(BOOTREQUEST, 0x1234, MAC, 9, True, bytes([10, 0, 0, 7]))
    message.options = {53: b"\3", 50: bytes([10, 0, 0, 8]), 12: b"files", 57: b"\5\xdc"}
    seen = BOOTP(message.emit())
    assert (seen.op, seen.xid, seen.secs, int(seen.flags)) == (1, 0x1234, 9, 0x8000)
    assert (seen.ciaddr, seen.chaddr[:6]) == ("10.0.0.7", MAC)
    assert seen[DHCP].options[:4] == [
        ("message-type", 3),
        ("requested_addr", "10.0.0.8"),
        ("hostname", b"files"),
        ("max_dhcp_size", 1500),
    ]


def test_we_read_what_scapy_writes() -> None:
    said = [
        ("message-type", "ack"),
        ("server_id", "10.0.0.1"),
        ("subnet_mask", "255.255.252.0"),
        ("router", "10.0.0.1", "10.0.0.2"),
        ("interface-mtu", 1400),
        ("lease_time", 600),
        ("renewal_time", 100),
        ("rebinding_time", 200),
        ("error_message", b"no"),
        "end",
    ]
    packet = BOOTP(op=2, xid=5, chaddr=MAC, yiaddr="10.0.0.9") / DHCP(options=said)
    message = DhcpMessage.parse(bytes(packet))
    assert (message.type, message.server) == (dhcp.ACK, bytes([10, 0, 0, 1]))
    assert (message.yiaddr, message.prefix_length) == (bytes([10, 0, 0, 9]), 22)
    assert message.routers == [bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])]
    assert (message.mtu, message.words) == (1400, "no")
    times = (message.lease_seconds, message.renewal_seconds, message.rebinding_seconds)
    assert times == (600, 100, 200)
    assert str(message) == "dhcp ack xid=00000005 yiaddr=10.0.0.9"


def test_a_short_message_is_padded() -> None:
    message = DhcpMessage(BOOTREQUEST, 1, MAC, options={53: b"\1"})
    assert len(message.emit()) == MESSAGE_BYTES_MIN


@pytest.mark.parametrize("length", [0, 1, 236, 239])
def test_a_cut_header_is_refused(length: int) -> None:
    whole = DhcpMessage(BOOTREPLY, 1, MAC).emit()
    assert reason_of(lambda: DhcpMessage.parse(whole[:length])) == "dhcp.truncated"


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(0, 0, "op"), (0, 3, "op"), (1, 6, "hardware"), (2, 16, "hardware"), (236, 0, "cookie")],
)
def test_what_is_not_dhcp_over_ethernet_is_refused(at: int, value: int, reason: str) -> None:
    bad = bytearray(DhcpMessage(BOOTREPLY, 1, MAC).emit())
    bad[at] = value
    assert reason_of(lambda: DhcpMessage.parse(bytes(bad))) == f"dhcp.bad_{reason}"


# --- options --------------------------------------------------------------------------


def test_what_is_unknown_and_padding_are_skipped() -> None:
    area = b"\0\0" + emit_option(224, b"vendor") + b"\0" + emit_option(53, b"\2") + b"\xff\x01"
    message = DhcpMessage.parse(raw(area))
    assert message.type == dhcp.OFFER
    assert message.options == {224: b"vendor", 53: b"\2"}, "nothing is read behind the end"


def test_a_message_without_an_end_option_is_read() -> None:
    assert DhcpMessage.parse(raw(emit_option(53, b"\2"))).type == dhcp.OFFER


@pytest.mark.parametrize("area", [b"\x35", b"\x35\x01", b"\x35\xff\x01", b"\0\0\x01\x04\xff\xff"])
def test_an_option_that_ends_behind_the_message_condemns_it(area: bytes) -> None:
    assert reason_of(lambda: DhcpMessage.parse(raw(area))) == "dhcp.truncated_option"


def test_an_option_that_comes_again_goes_on() -> None:
    """RFC 3396."""
    area = emit_option(56, b"first ") + emit_option(53, b"\6") + emit_option(56, b"second")
    assert DhcpMessage.parse(raw(area)).words == "first second"
    assert len(emit_option(56, bytes(300))) == 304


@pytest.mark.parametrize(
    ("overload", "text"), [(0, "a"), (1, "afile"), (2, "asname"), (3, "afilesname")]
)
def test_options_go_on_in_the_fields_that_are_named(overload: int, text: str) -> None:
    """RFC 2131 section 4.1: first the options, then the boot file, then the server's name."""
    area = emit_option(52, bytes((overload,))) + emit_option(56, b"a") + b"\xff"
    file = emit_option(56, b"file") + b"\xff"
    sname = emit_option(52, b"\1") + emit_option(56, b"sname") + b"\xff"
    message = DhcpMessage.parse(raw(area, file=file, sname=sname))
    assert message.words == text
    assert dhcp.OPTION_OVERLOAD not in message.options


def test_an_overload_that_is_no_byte_condemns_the_message() -> None:
    assert reason_of(lambda: DhcpMessage.parse(raw(emit_option(52, b"")))) == "dhcp.bad_option"


def test_an_option_in_the_boot_file_does_not_go_on_behind_it() -> None:
    area = emit_option(52, b"\1") + b"\xff"
    file = bytes(126) + b"\x38\x05"
    assert reason_of(lambda: DhcpMessage.parse(raw(area, file=file))) == "dhcp.truncated_option"


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("type", 53, b""),
        ("type", 53, b"\1\2"),
        ("server", 54, bytes(3)),
        ("prefix_length", 1, bytes(5)),
        ("prefix_length", 1, bytes([255, 0, 255, 0])),
        ("prefix_length", 1, bytes([0, 255, 255, 255])),
        ("routers", 3, bytes(6)),
        ("mtu", 26, bytes(4)),
        ("lease_seconds", 51, bytes(2)),
        ("renewal_seconds", 58, b""),
        ("rebinding_seconds", 59, bytes(8)),
    ],
)
def test_an_option_of_the_wrong_size_is_refused(name: str, option: int, value: bytes) -> None:
    message = DhcpMessage(BOOTREPLY, 7, MAC, options={option: value})
    assert reason_of(lambda: getattr(message, name)) == "dhcp.bad_option"


@pytest.mark.parametrize("length", range(33))
def test_every_mask_is_a_length(length: int) -> None:
    mask = (2**32 - 2 ** (32 - length)).to_bytes(4, "big")
    assert ack(o1=mask).prefix_length == length


def test_what_is_not_there_is_nothing() -> None:
    message = DhcpMessage(BOOTREPLY, 7, MAC)
    assert message.type == 0
    absent = (message.server, message.prefix_length, message.mtu, message.lease_seconds)
    assert absent == (None,) * 4
    assert message.routers == [] and message.words == ""


def test_words_of_a_server_cannot_forge_a_line_of_the_log() -> None:
    assert ack(o56=b"no\nevent=\x1b[31m\xff").words == "no?event=?[31m?"


@given(st.binary(max_size=700))
def test_no_bytes_raise_anything_but_bad_packet(area: bytes) -> None:
    readers: list[Any] = ["type", "server", "prefix_length", "routers", "mtu", "lease_seconds"]
    with suppress(BadPacket):
        message = DhcpMessage.parse(raw(area, file=area[:128], sname=area[:64]))
        for name in readers:
            getattr(message, name)
        str(message)
