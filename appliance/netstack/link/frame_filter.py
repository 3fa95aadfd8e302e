"""Which frames are meant: a small language like that of tcpdump.

    tcp port 2049 and out
    host 10.0.0.9 and not (arp or icmp)
    tcp and syn and in

    expression  = term {"or" term}
    term        = factor {["and"] factor}
    factor      = "not" factor | "(" expression ")" | primitive
    primitive   = in | out | arp | ip | ip6 | icmp | icmp6 | tcp | udp | fragment | syn | fin | rst
                | [src | dst] (host ADDRESS | port NUMBER) | greater BYTES | less BYTES

`in` is to the appliance, `out` from it. `and` binds more tightly than `or`, and may be left out.
Lengths are those of the frame with its Ethernet header, `greater` and `less` include their number.
What a frame has not got, a fragment its ports, is not matched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Final

from appliance.netstack.wire.ethernet import HEADER_BYTES, TYPE_ARP, TYPE_IPV4
from appliance.netstack.wire.ipv4 import (
    MORE_FRAGMENTS,
    OFFSET_MASK,
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)

_TYPE_IPV6: Final = 0x86DD
_PROTOCOL_ICMPV6: Final = 58
_IPV6_HEADER_BYTES: Final = 40
_IPV6_FRAGMENT: Final = 44
_IPV6_OPTIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination
_FLAGS_AT: Final = 13
_FIN, _SYN, _RST = 0x01, 0x02, 0x04

DEPTH_MAX: Final = 32


class FilterError(ValueError):
    """An expression cannot be; `hint` says what can."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(slots=True)
class Facts:
    """What the language can ask about a frame."""

    outgoing: bool
    size: int
    ethertype: int = 0
    protocol: int | None = None
    fragment: bool = False
    source: bytes = b""
    destination: bytes = b""
    source_port: int | None = None
    destination_port: int | None = None
    flags: int = 0


Filter = Callable[[Facts], bool]


def everything(_facts: Facts) -> bool:
    """The filter of no expression."""
    return True


# --- a frame ----------------------------------------------------------------------------


def facts_of(frame: bytes, outgoing: bool, at: int = 0) -> Facts:
    """About the Ethernet frame that begins at `at`. Whatever it is, as far as it goes."""
    facts = Facts(outgoing, len(frame) - at)
    facts.ethertype = int.from_bytes(frame[at + 12 : at + HEADER_BYTES], "big")
    packet = at + HEADER_BYTES
    if facts.ethertype == TYPE_IPV4 and len(frame) >= packet + 20:
        _see_ipv4(facts, frame, packet)
    elif facts.ethertype == _TYPE_IPV6 and len(frame) >= packet + _IPV6_HEADER_BYTES:
        _see_ipv6(facts, frame, packet)
    elif facts.ethertype == TYPE_ARP and len(frame) >= packet + 28:
        facts.source = frame[packet + 14 : packet + 18]
        facts.destination = frame[packet + 24 : packet + 28]
    return facts


def _see_ipv4(facts: Facts, frame: bytes, at: int) -> None:
    facts.protocol = frame[at + 9]
    facts.source, facts.destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    field = int.from_bytes(frame[at + 6 : at + 8], "big")
    facts.fragment = field & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    if not field & OFFSET_MASK:
        _see_transport(facts, frame, at + (frame[at] & 0xF) * 4)


def _see_ipv6(facts: Facts, frame: bytes, at: int) -> None:
    facts.source, facts.destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    following, at = frame[at + 6], at + _IPV6_HEADER_BYTES
    while len(frame) >= at + 8:
        if following == _IPV6_FRAGMENT:
            facts.fragment = True
            if int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8:
                facts.protocol = frame[at]
                return
            following, at = frame[at], at + 8
        elif following in _IPV6_OPTIONS:
            following, at = frame[at], at + 8 + frame[at + 1] * 8
        else:
            break
    facts.protocol = following
    _see_transport(facts, frame, at)


def _see_transport(facts: Facts, frame: bytes, at: int) -> None:
    if facts.protocol not in (PROTOCOL_TCP, PROTOCOL_UDP) or len(frame) < at + 4:
        return
    facts.source_port = int.from_bytes(frame[at : at + 2], "big")
    facts.destination_port = int.from_bytes(frame[at + 2 : at + 4], "big")
    if facts.protocol == PROTOCOL_TCP and len(frame) > at + _FLAGS_AT:
        facts.flags = frame[at + _FLAGS_AT]


# --- an expression ----------------------------------------------------------------------

_WORDS: Final[dict[str, Filter]] = {
    "in": lambda facts: not facts.outgoing,
    "out": lambda facts: facts.outgoing,
    "arp": lambda facts: facts.ethertype == TYPE_ARP,
    "ip": lambda facts: facts.ethertype == TYPE_IPV4,
    "ip6": lambda facts: facts.ethertype == _TYPE_IPV6,
    "icmp": lambda facts: facts.ethertype == TYPE_IPV4 and facts.protocol == PROTOCOL_ICMP,
    "icmp6": lambda facts: facts.protocol == _PROTOCOL_ICMPV6,
    "tcp": lambda facts: facts.protocol == PROTOCOL_TCP,
    "udp": lambda facts: facts.protocol == PROTOCOL_UDP,
    "fragment": lambda facts: facts.fragment,
    "syn": lambda facts: facts.flags & _SYN != 0,
    "fin": lambda facts: facts.flags & _FIN != 0,
    "rst": lambda facts: facts.flags & _RST != 0,
}
_WITH_MORE: Final = ("src", "dst", "host", "port", "greater", "less", "not", "and", "or")
_OTHER_NAMES: Final = {"&&": "and", "||": "or", "!": "not", "proto": "", "inbound": "in"}
_TOKEN: Final = re.compile(r"\s*(\(|\)|&&|\|\||!|[^\s()!&|]+|.)")


def parse_filter(text: str) -> Filter:
    """The filter that `text` describes. FilterError."""
    parser = _Parser(text)
    made = parser.expression(0)
    if parser.next is not None:
        raise FilterError(f'"{parser.next}" is too much in "{text}"', "join with and, or")
    return made


class _Parser:
    """Recursive descent; `next` is the token that comes next, None at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [_OTHER_NAMES.get(t, t) for t in _TOKEN.findall(text.strip())]
        self._tokens = [token for token in self._tokens if token]
        self._at = 0

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, wanted: str) -> str:
        token = self.next
        if token is None:
            raise FilterError(f'{wanted} is missing at the end of "{self._text}"')
        self._at += 1
        return token

    def expression(self, depth: int) -> Filter:
        made = self._term(depth)
        while self.next == "or":
            self._at += 1
            made = _either(made, self._term(depth))
        return made

    def _term(self, depth: int) -> Filter:
        made = self._factor(depth)
        while self.next not in (None, "or", ")"):
            if self.next == "and":
                self._at += 1
            made = _both(made, self._factor(depth))
        return made

    def _factor(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise FilterError(f'"{self._text}" is nested too deeply')
        token = self._take("a condition")
        if token == "not":
            return _no(self._factor(depth + 1))
        if token == "(":
            made = self.expression(depth + 1)
            if self._take('")"') != ")":
                raise FilterError(f'")" is missing in "{self._text}"')
            return made
        return self._primitive(token)

    def _primitive(self, token: str) -> Filter:
        if token in _WORDS:
            return _WORDS[token]
        side = token if token in ("src", "dst") else ""
        if side:
            token = self._take(f"host or port after {side}")
        match token:
            case "host":
                return _host(side, self._take("an address"))
            case "port":
                return _port(side, self._number("port", 0xFFFF))
            case "greater":
                least = self._number("greater", 1 << 17)
                return lambda facts: facts.size >= least
            case "less":
                most = self._number("less", 1 << 17)
                return lambda facts: facts.size <= most
        near = get_close_matches(token, (*_WORDS, *_WITH_MORE), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {' '.join(_WORDS)}, host, port"
        raise FilterError(f'"{token}" is not known in "{self._text}"', hint)

    def _number(self, what: str, most: int) -> int:
        token = self._take(f"a number after {what}")
        if not (token.isascii() and token.isdigit() and len(token) < 8 and int(token) <= most):
            raise FilterError(f'"{token}" is no number for {what}', f"0 to {most}")
        return int(token)


def _both(one: Filter, two: Filter) -> Filter:
    return lambda facts: one(facts) and two(facts)


def _either(one: Filter, two: Filter) -> Filter:
    return lambda facts: one(facts) or two(facts)


def _no(one: Filter) -> Filter:
    return lambda facts: not one(facts)


def _host(side: str, text: str) -> Filter:
    try:
        address = ip_address(text).packed
    except ValueError:
        raise FilterError(f'"{text}" is not an address', "for example host 10.0.0.9") from None
    match side:
        case "src":
            return lambda facts: facts.source == address
        case "dst":
            return lambda facts: facts.destination == address
    return lambda facts: address in (facts.source, facts.destination)


def _port(side: str, port: int) -> Filter:
    match side:
        case "src":
            return lambda facts: facts.source_port == port
        case "dst":
            return lambda facts: facts.destination_port == port
    return lambda facts: port in (facts.source_port, facts.destination_port)
