"""DHCP messages (RFC 2131 section 2), and the options that a client needs (RFC 2132).

Options are kept as bytes, by code, and read through properties that know how long each has to be.
An option that comes more than once is one long option, cut up (RFC 3396); one that goes on in the
fields of the server's name and the boot file (option 52) is read there. What is not known is
skipped. An option that ends behind the end of its field condemns the message: nobody can say what
else in it is not what it seems.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import ClassVar, Final

from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.ethernet import ADDRESS_BYTES
from appliance.netstack.wire.ipv4 import UNSPECIFIED

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2

DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7

TYPE_NAMES: Final = {
    DISCOVER: "discover",
    OFFER: "offer",
    REQUEST: "request",
    DECLINE: "decline",
    ACK: "ack",
    NAK: "nak",
    RELEASE: "release",
}

OPTION_SUBNET_MASK: Final = 1
OPTION_ROUTER: Final = 3
OPTION_HOST_NAME: Final = 12
OPTION_INTERFACE_MTU: Final = 26
OPTION_REQUESTED_ADDRESS: Final = 50
OPTION_LEASE_TIME: Final = 51
OPTION_OVERLOAD: Final = 52
OPTION_MESSAGE_TYPE: Final = 53
OPTION_SERVER_IDENTIFIER: Final = 54
OPTION_PARAMETER_REQUESTS: Final = 55
OPTION_MESSAGE: Final = 56
OPTION_MESSAGE_BYTES_MAX: Final = 57
OPTION_RENEWAL_TIME: Final = 58
OPTION_REBINDING_TIME: Final = 59
OPTION_CLIENT_IDENTIFIER: Final = 61

MESSAGE_BYTES_MIN: Final = 300
"""Shorter ones are padded: there are relays that drop what is no whole BOOTP message (RFC 1542
section 2.1)."""

LEASE_FOR_EVER: Final = 0xFFFFFFFF

_PAD: Final = 0
_END: Final = 255
_COOKIE: Final = b"\x63\x82\x53\x63"
_HARDWARE_ETHERNET: Final = 1
_BROADCAST: Final = 0x8000
_OPTION_BYTES_MAX: Final = 255
_IN_FILE, _IN_SNAME = 1, 2  # bits of option 52
_SNAME: Final = slice(44, 108)
_FILE: Final = slice(108, 236)
_OPTIONS_AT: Final = 240


@dataclass(slots=True)
class DhcpMessage:
    """One message. The RFC's names: ciaddr is the client's own address, yiaddr the one that it is
    given, giaddr that of the relay; chaddr is the client's MAC."""

    op: int
    xid: int
    chaddr: bytes
    secs: int = 0
    broadcast: bool = False
    ciaddr: bytes = UNSPECIFIED
    yiaddr: bytes = UNSPECIFIED
    siaddr: bytes = UNSPECIFIED
    giaddr: bytes = UNSPECIFIED
    options: dict[int, bytes] = field(default_factory=dict)
    """By code, in the order in which they are sent."""

    _FORMAT: ClassVar[Struct] = Struct("!BBBBIHH4s4s4s4s6s10x64x128x4s")

    @classmethod
    def parse(cls, message: bytes | memoryview) -> DhcpMessage:
        """The data of one datagram. BadPacket: it is not DHCP over Ethernet, or contradicts
        itself."""
        if len(message) < _OPTIONS_AT:
            raise BadPacket("dhcp.truncated")
        op, hardware, mac_bytes, _hops, xid, secs, flags, *addresses, chaddr, cookie = (
            cls._FORMAT.unpack_from(message)
        )
        if cookie != _COOKIE:
            raise BadPacket("dhcp.bad_cookie")
        if op not in (BOOTREQUEST, BOOTREPLY):
            raise BadPacket("dhcp.bad_op")
        if hardware != _HARDWARE_ETHERNET or mac_bytes != ADDRESS_BYTES:
            raise BadPacket("dhcp.bad_hardware")
        made = cls(op, xid, chaddr, secs, flags & _BROADCAST != 0, *addresses)
        made.options = parse_options(bytes(message))
        return made

    def emit(self) -> bytes:
        """The data of one datagram."""
        head = self._FORMAT.pack(
            self.op,
            _HARDWARE_ETHERNET,
            ADDRESS_BYTES,
            0,
            self.xid,
            self.secs,
            _BROADCAST if self.broadcast else 0,
            self.ciaddr,
            self.yiaddr,
            self.siaddr,
            self.giaddr,
            self.chaddr,
            _COOKIE,
        )
        options = b"".join(emit_option(code, value) for code, value in self.options.items())
        return (head + options + bytes((_END,))).ljust(MESSAGE_BYTES_MIN, bytes((_PAD,)))

    # --- what the options say ---------------------------------------------------------------

    @property
    def type(self) -> int:
        """Which of the messages it is (0: BOOTP, from before there was DHCP)."""
        value = self._exactly(OPTION_MESSAGE_TYPE, 1)
        return 0 if value is None else value[0]

    @property
    def server(self) -> bytes | None:
        """Which server has sent it, or is meant by it."""
        return self._exactly(OPTION_SERVER_IDENTIFIER, 4)

    @property
    def prefix_length(self) -> int | None:
        """The subnet mask, as the number of its ones, which stand together."""
        mask = self._exactly(OPTION_SUBNET_MASK, 4)
        if mask is None:
            return None
        zeros = 0xFFFFFFFF - int.from_bytes(mask, "big")
        if zeros & zeros + 1:
            raise BadPacket("dhcp.bad_option")
        return 32 - zeros.bit_length()

    @property
    def routers(self) -> list[bytes]:
        """In order of preference."""
        value = self.options.get(OPTION_ROUTER, b"")
        if len(value) % 4:
            raise BadPacket("dhcp.bad_option")
        return [value[at : at + 4] for at in range(0, len(value), 4)]

    @property
    def mtu(self) -> int | None:
        """The largest packet on that network."""
        return self._number(OPTION_INTERFACE_MTU, 2)

    @property
    def lease_seconds(self) -> int | None:
        """How long the address may be used; LEASE_FOR_EVER."""
        return self._number(OPTION_LEASE_TIME, 4)

    @property
    def renewal_seconds(self) -> int | None:
        """T1: when to ask the server again."""
        return self._number(OPTION_RENEWAL_TIME, 4)

    @property
    def rebinding_seconds(self) -> int | None:
        """T2: when to ask any server."""
        return self._number(OPTION_REBINDING_TIME, 4)

    @property
    def words(self) -> str:
        """What the server has to say, for people: the reason of a NAK. Printable, whatever came."""
        text = self.options.get(OPTION_MESSAGE, b"").decode("ascii", "replace")
        return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in text)

    def _exactly(self, code: int, count: int) -> bytes | None:
        value = self.options.get(code)
        if value is not None and len(value) != count:
            raise BadPacket("dhcp.bad_option")
        return value

    def _number(self, code: int, count: int) -> int | None:
        value = self._exactly(code, count)
        return None if value is None else int.from_bytes(value, "big")

    def __str__(self) -> str:
        name = TYPE_NAMES.get(self.type, f"type {self.type}")
        return f"dhcp {name} xid={self.xid:08x} yiaddr={address_text(self.yiaddr)}"


def parse_options(message: bytes) -> dict[int, bytes]:
    """All options of a message, also those in the fields that option 52 names, in the order of
    RFC 2131 section 4.1: the options, the boot file, the server's name."""
    options = _options_in(message[_OPTIONS_AT:], {})
    overload = options.pop(OPTION_OVERLOAD, bytes(1))
    if len(overload) != 1:
        raise BadPacket("dhcp.bad_option")
    for bit, place in ((_IN_FILE, _FILE), (_IN_SNAME, _SNAME)):
        if overload[0] & bit:
            options = _options_in(message[place], options)
    options.pop(OPTION_OVERLOAD, None)  # it means nothing in those fields
    return options


def _options_in(area: bytes, known: dict[int, bytes]) -> dict[int, bytes]:
    """The options in one field, after those that are known."""
    options = dict(known)
    at = 0
    while at < len(area) and area[at] != _END:
        code = area[at]
        at += 1
        if code == _PAD:
            continue
        if at == len(area):
            raise BadPacket("dhcp.truncated_option")
        end = at + 1 + area[at]
        if end > len(area):
            raise BadPacket("dhcp.truncated_option")
        options[code] = options.get(code, b"") + area[at + 1 : end]
        at = end
    return options


def emit_option(code: int, value: bytes) -> bytes:
    """One option, in pieces where it is long."""
    assert _PAD < code < _END
    pieces = [
        value[at : at + _OPTION_BYTES_MAX] for at in range(0, len(value) or 1, _OPTION_BYTES_MAX)
    ]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)
