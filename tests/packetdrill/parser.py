"""A script's text becomes its events (language.py).

Recursive descent straight over the text: what a dot or a bracket means depends on where it stands,
so there are no tokens in between. Blank space and comments (`//`, `/* */`, `#`) may stand anywhere.

    --tolerance_usecs=1000                     options, first; --define NAME=VALUE makes $NAME
    0    socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
    +.1  < S 0:0(0) win 65535 <mss 1460,nop,wscale 7>
    *    > S. 0:0(0) ack 1 <...>
    +0...0.2 accept(3, ..., ...) = 4           a call that blocks, and when it returns
    +.3~+.5 > . 1:1(0) ack 1001                any time in between
    0.7  < [1:1461(1460)] icmp unreachable frag_needed mtu 1200
    +0   %{ assert tcpi_snd_mss == 1160 }%

A script with `--ip_version=ipv6` in its head is played over IPv6, and has `icmpv6` in the place of
`icmp`.

Added to the language: `raw 0x...` for options of any bytes, numbers below zero for what is older
than the connection, `<mss 1460,...>` for options of which some may be there, too, and the comment
`// Not for Linux: why`, or `// Not for IPv6: why` (one line).
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from tests.packetdrill.language import (
    FLAG_LETTERS,
    Call,
    Event,
    From,
    Icmp,
    Inbound,
    Option,
    Outbound,
    Packet,
    Python,
    Range,
    Script,
    ScriptError,
    Tcp,
    Time,
    Udp,
    Value,
)

SKIP = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?\*/)*", re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+|\.\d+|\d+")
INTEGER = re.compile(r"-?\d+")
HEX = re.compile(r"0x([0-9a-fA-F]+)")
NAME = re.compile(r"[A-Za-z_]\w*")
FLAGS = re.compile(rf"[{FLAG_LETTERS}]+(?=\s)|-(?=\s)")
HEAD_OPTION = re.compile(r"--(\w+)(?:[= ]([^\n]*))?")
ECN = re.compile(r"\[(noecn|ect01|ect0|ect1|ce)\]")
PORTS = re.compile(r"(\d+)\s*>\s*(\d+):?(?=\s)")
QUOTED = re.compile(r"\[(?=\s*(?:-?\d+:|udp))")
NOT_FOR_IPV6 = re.compile(r"^// Not for IPv6: (.+)$", re.MULTILINE)
NOT_FOR_LINUX = re.compile(r"^// Not for Linux: (.+(?:\n// .+)*)", re.MULTILINE)

ICMP_TYPES = {
    "unreachable": 3,
    "time_exceeded": 11,
    "source_quench": 4,
    "redirect": 5,
    "parameter_problem": 12,
}
ICMPV6_TYPES = {"unreachable": 1, "packet_too_big": 2, "time_exceeded": 3, "parameter_problem": 4}
ICMPV6_CODES = {
    "no_route": 0,
    "admin_prohibited": 1,
    "address_unreachable": 3,
    "port_unreachable": 4,
}
ICMP_CODES = {
    "net_unreachable": 0,
    "host_unreachable": 1,
    "protocol_unreachable": 2,
    "port_unreachable": 3,
    "frag_needed": 4,
    "source_route_failed": 5,
    "net_admin_prohibited": 9,
    "host_admin_prohibited": 10,
    "admin_prohibited": 13,
}


def parse_file(file: Path) -> Script:
    """The script in a file."""
    return parse(file.read_text(), file.name)


def parse(text: str, file: str) -> Script:
    """The script that this text is; `file` is for messages."""
    return Parser(text, file).script()


class Parser:
    """A place in the text of one script."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.at = 0

    # --- the text ---------------------------------------------------------------------------------

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def error(self, message: str) -> ScriptError:
        rest = self.text[self.at :].split("\n", 1)[0]
        return ScriptError(self.file, self.line, f"{message}, not {rest.strip() or 'the end'!r}")

    def skip(self) -> None:
        found = SKIP.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def match(self, what: re.Pattern[str]) -> re.Match[str] | None:
        """Take it, if it is what comes next."""
        self.skip()
        found = what.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def has(self, word: str) -> bool:
        """Take this very word, if it comes next."""
        self.skip()
        if not self.text.startswith(word, self.at):
            return False
        end = self.at + len(word)
        if word[-1].isalnum() and self.text[end : end + 1].isalnum():
            return False
        self.at = end
        return True

    def expect(self, word: str) -> None:
        if not self.has(word):
            raise self.error(f"expected {word!r}")

    def integer(self, what: str) -> int:
        found = self.match(INTEGER)
        if found is None:
            raise self.error(f"expected {what}")
        return int(found[0])

    def name(self, what: str) -> str:
        found = self.match(NAME)
        if found is None:
            raise self.error(f"expected {what}")
        return found[0]

    # --- the script -------------------------------------------------------------------------------

    def script(self) -> Script:
        linux, ipv6 = NOT_FOR_LINUX.search(self.text), NOT_FOR_IPV6.search(self.text)
        options: dict[str, str] = {}
        while found := self.match(HEAD_OPTION):
            name, value = found[1], (found[2] or "").strip()
            if name == "define":
                self._define(value)
            else:
                options[name] = value
        events = []
        self.skip()
        while self.at < len(self.text):
            line = self.line
            events.append(Event(self.time(), self.what(), line))
            self.skip()
        not_for_linux = linux[1].replace("\n//", "") if linux else None
        return Script(self.file, events, options, not_for_linux, ipv6[1] if ipv6 else None)

    def _define(self, definition: str) -> None:
        """From here on, $NAME stands for the value."""
        name, equals, value = definition.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise ScriptError(self.file, self.line, "expected --define NAME=VALUE")
        rest = re.sub(rf"\${name}\b", lambda _found: value, self.text[self.at :])
        self.text = self.text[: self.at] + rest

    def what(self) -> Inbound | Outbound | Call | Python:
        if self.has("<"):
            return Inbound(self.packet())
        if self.has(">"):
            return Outbound(self.packet())
        if self.has("%{"):
            return self.python()
        if self.has("`"):
            raise ScriptError(self.file, self.line, "commands of a shell are not supported")
        return self.call()

    def time(self) -> Time:
        if self.has("*"):
            return Time(From.ANY)
        relative = self.has("+")
        base = From.BEFORE if relative else From.START
        first = self.seconds()
        if self.has("..."):
            self.has("+")
            return Time(base, first, self.seconds(), blocks=True)
        if self.has("~"):
            if self.has("+") != relative:
                raise self.error("expected both ends of a range to be relative or none")
            last = self.seconds()
            if last < first:
                raise self.error("expected a range that ends after it begins")
            return Time(base, first, last)
        return Time(base, first)

    def seconds(self) -> int:
        """A number of seconds, as nanoseconds."""
        found = self.match(NUMBER)
        if found is None:
            raise self.error("expected a time")
        return round(float(found[0]) * 1e9)

    def python(self) -> Python:
        end = self.text.find("}%", self.at)
        if end < 0:
            raise self.error("expected '}%' after '%{'")
        code = self.text[self.at : end]
        self.at = end + 2
        return Python(textwrap.dedent(code.strip("\n")).strip())

    # --- packets ----------------------------------------------------------------------------------

    def packet(self) -> Packet:
        ecn = self.match(ECN)
        ports = self.match(PORTS)
        quoted = self.quoted()
        body: Tcp | Udp | Icmp
        if self.has("icmpv6"):
            body = self.icmp(quoted, ICMPV6_TYPES, ICMPV6_CODES)
        elif self.has("icmp"):
            body = self.icmp(quoted, ICMP_TYPES, ICMP_CODES)
        elif self.has("udp"):
            body = self.udp()
        else:
            body = self.tcp()
        source, destination = map(int, ports.groups()) if ports else (None, None)
        return Packet(body, ecn[1] if ecn else None, source, destination)

    def tcp(self) -> Tcp:
        flags = self.match(FLAGS)
        if flags is None:
            raise self.error(f"expected flags of {FLAG_LETTERS!r}, or '-' for none")
        seq = self.range()
        numbers: dict[str, int | None] = {"ack": None, "win": None, "urg": None}
        for word in numbers:
            if self.has(word):
                numbers[word] = self.integer(f"a number after {word!r}")
        options, others = self.options() if self.has("<") else ((), False)
        return Tcp(
            flags[0], seq, numbers["ack"], numbers["win"], numbers["urg"], options, others
        )  # fmt: skip

    def range(self) -> Range:
        first = self.integer("first:end(size)")
        self.expect(":")
        end = self.integer("the end of a range")
        self.expect("(")
        size = self.integer("the size of a range")
        self.expect(")")
        if end - first != size:
            raise self.error(f"expected a size of {end - first} for {first}:{end}({size})")
        return Range(first, end, size)

    def options(self) -> tuple[tuple[Option, ...], bool]:
        """Those between angle brackets, and whether others may be there."""
        options: list[Option] = []
        others = False
        while not self.has(">"):
            if self.has("..."):
                others = True
            else:
                options.append(self.option())
            if not self.has(","):
                self.expect(">")
                break
        return tuple(options), others

    def option(self) -> Option:
        name = self.name("an option")
        match name:
            case "nop" | "eol" | "sackOK":
                return Option(name)
            case "mss" | "wscale":
                return Option(name, (self.integer(f"a number after {name!r}"),))
            case "TS":
                self.expect("val")
                value = self.integer("the value of a timestamp")
                self.expect("ecr")
                return Option(name, (value, self.integer("the echo of a timestamp")))
            case "sack":
                return Option(name, self.blocks())
            case "raw":
                found = self.match(HEX)
                if found is None:
                    raise self.error("expected bytes in hexadecimal after 'raw'")
                return Option(name, raw=bytes.fromhex(found[1]))
        raise ScriptError(self.file, self.line, f"unknown option {name!r}")

    def blocks(self) -> tuple[int, ...]:
        """left:right pairs."""
        numbers: list[int] = []
        while found := self.match(INTEGER):
            self.expect(":")
            numbers += [int(found[0]), self.integer("the right edge of a block")]
        return tuple(numbers)

    def quoted(self) -> Range | Udp | None:
        """What an ICMP error is about, in brackets."""
        if not self.match(QUOTED):
            return None
        quoted = self.udp() if self.has("udp") else self.range()
        self.expect("]")
        return quoted

    def udp(self) -> Udp:
        self.expect("(")
        size = self.integer("the size of a datagram")
        self.expect(")")
        return Udp(size)

    def icmp(
        self, quoted: Range | Udp | None, types: dict[str, int], codes: dict[str, int]
    ) -> Icmp:
        name = self.name("a type of ICMP")
        if name not in types:
            raise ScriptError(self.file, self.line, f"unknown ICMP type {name!r}")
        code = self.match(re.compile("|".join(codes)))
        mtu = self.integer("an MTU") if self.has("mtu") else 0
        quoted = quoted or self.quoted()
        return Icmp(types[name], codes[code[0]] if code else 0, mtu, quoted)

    # --- calls ------------------------------------------------------------------------------------

    def call(self) -> Call:
        name = self.name("'<', '>', '%{' or a call")
        self.expect("(")
        arguments = self.values(")")
        self.expect("=")
        found = self.match(HEX)
        result = int(found[1], 16) if found else self.integer("a result")
        errno = self.match(re.compile(r"E[A-Z0-9]+\b"))
        if errno:
            self.match(re.compile(r"\([^)]*\)"))
        return Call(name, tuple(arguments), result, errno[0] if errno else None)

    def values(self, closing: str) -> list[Value]:
        values: list[Value] = []
        while not self.has(closing):
            values.append(self.value())
            if not self.has(","):
                self.expect(closing)
                break
        return values

    def value(self) -> Value:
        if self.has("..."):
            return None
        if self.has("["):
            return list(self.values("]"))
        if self.has("{"):
            return self.structure()
        if found := self.match(HEX):
            return int(found[1], 16)
        if found := self.match(INTEGER):
            return int(found[0])
        if found := self.match(re.compile(r'"([^"\n]*)"')):
            return found[1]
        names = [self.name("an argument")]
        while self.has("|"):
            names.append(self.name("a name after '|'"))
        return "|".join(names)

    def structure(self) -> dict[str, Value]:
        """{field=value, ...}"""
        fields: dict[str, Value] = {}
        while not self.has("}"):
            self.has(".")
            name = self.name("a field")
            self.expect("=")
            fields[name] = self.value()
            if not self.has(","):
                self.expect("}")
                break
        return fields
