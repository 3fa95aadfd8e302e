"""What a script says: the language of packetdrill as data.

A script is a list of events, each with a time: a packet that the peer sends (`<`), a packet that is
expected of the host under test (`>`), a call that a program makes on that host, or assertions in
Python. Numbers of sequences are relative: each side's SYN is 0. parser.py makes these objects;
nothing here knows a stack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

Value = int | str | list["Value"] | dict[str, "Value"] | None
"""An argument of a call; None stands for `...`."""

FLAG_LETTERS = "FSRP.UEW"
"""From bit 0: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, by the letters that packetdrill uses."""


class ScriptError(Exception):
    """A script that cannot be read, or that does not hold."""

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}")
        self.line = line


class From(Enum):
    """What the time of an event counts from."""

    START = "the start of the script"
    BEFORE = "the event before"
    ANY = "nothing: it happens when it happens"


@dataclass(frozen=True)
class Time:
    """When an event happens: between `first` and `last`, in nanoseconds. For a call with an end,
    `last` is when it returns."""

    base: From
    first: int = 0
    last: int | None = None
    blocks: bool = False


@dataclass(frozen=True)
class Range:
    """first:end(size), as of the text of a segment."""

    first: int
    end: int
    size: int

    def __str__(self) -> str:
        return f"{self.first}:{self.end}({self.size})"


@dataclass(frozen=True)
class Option:
    """One TCP option. `numbers` are its values: of TS two, of sack two for each block."""

    name: str
    numbers: tuple[int, ...] = ()
    raw: bytes = b""

    def __str__(self) -> str:
        match self.name:
            case "TS":
                return "TS val {} ecr {}".format(*self.numbers)
            case "sack":
                pairs = zip(self.numbers[::2], self.numbers[1::2], strict=True)
                return "sack " + " ".join(f"{left}:{right}" for left, right in pairs)
            case "raw":
                return f"raw 0x{self.raw.hex()}"
        return " ".join((self.name, *map(str, self.numbers)))


@dataclass(frozen=True)
class Tcp:
    """A segment. None: the script does not say, so an outbound packet may have any."""

    flags: str
    seq: Range
    ack: int | None = None
    window: int | None = None
    urgent: int | None = None
    options: tuple[Option, ...] = ()
    any_options: bool = False
    """`<...>`: other options than these may be there, too."""

    def __str__(self) -> str:
        parts = [self.flags, str(self.seq)]
        for name, number in (("ack", self.ack), ("win", self.window), ("urg", self.urgent)):
            if number is not None:
                parts.append(f"{name} {number}")
        words = [str(option) for option in self.options] + ["..."] * self.any_options
        if words:
            parts.append(f"<{','.join(words)}>")
        return " ".join(parts)


@dataclass(frozen=True)
class Udp:
    """A datagram with so many bytes."""

    size: int

    def __str__(self) -> str:
        return f"udp ({self.size})"


@dataclass(frozen=True)
class Icmp:
    """An ICMP message; an error quotes a packet that went the other way."""

    type: int
    code: int
    mtu: int = 0
    quoted: Range | Udp | None = None

    def __str__(self) -> str:
        what = f"icmp type {self.type} code {self.code}"
        quoted = "" if self.quoted is None else f" [{self.quoted}]"
        return what + (f" mtu {self.mtu}" if self.mtu else "") + quoted


@dataclass(frozen=True)
class Packet:
    """A packet with the marks of its IP header. Ports None: those of the script."""

    body: Tcp | Udp | Icmp
    ecn: str | None = None
    """noecn, ect0, ect1, ce; ect01: one of two. None in an outbound packet: any."""
    source_port: int | None = None
    destination_port: int | None = None

    def __str__(self) -> str:
        mark = f"[{self.ecn}] " if self.ecn else ""
        ports = f"{self.source_port} > {self.destination_port} " if self.source_port else ""
        return f"{mark}{ports}{self.body}"


@dataclass(frozen=True)
class Inbound:
    """The peer sends a packet."""

    packet: Packet


@dataclass(frozen=True)
class Outbound:
    """The host under test sends a packet."""

    packet: Packet


@dataclass(frozen=True)
class Call:
    """A program calls the host under test: `name(arguments) = result errno`."""

    name: str
    arguments: tuple[Value, ...]
    result: int
    errno: str | None = None

    def __str__(self) -> str:
        words = ", ".join(map(value_text, self.arguments))
        return f"{self.name}({words}) = {result_text(self.result, self.errno)}"


@dataclass(frozen=True)
class Python:
    """Assertions about the connection."""

    code: str


@dataclass(frozen=True)
class Event:
    """One thing that happens, and where the script says it."""

    time: Time
    what: Inbound | Outbound | Call | Python
    line: int


@dataclass
class Script:
    """A whole one. `options` are those of its head, without the dashes."""

    file: str
    events: list[Event]
    options: dict[str, str] = field(default_factory=dict)
    not_for_linux: str | None = None
    """Why it says nothing about the Linux kernel."""
    not_for_ipv6: str | None = None
    """Why it is not played over IPv6 as well."""


def result_text(result: int, errno: str | None) -> str:
    """As a script has it behind the equals sign."""
    return f"{result} {errno}" if errno else str(result)


def value_text(value: Value) -> str:
    """An argument, as a script has it."""
    match value:
        case None:
            return "..."
        case list():
            return f"[{', '.join(map(value_text, value))}]"
        case dict():
            return "{" + ", ".join(f"{k}={value_text(v)}" for k, v in value.items()) + "}"
    return str(value)
