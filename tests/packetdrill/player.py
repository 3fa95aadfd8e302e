"""Plays a script against a host, and says where the two differ.

The host is a Subject: our stack on a virtual clock (ours.py) or the Linux kernel in real time
(linux.py). The player has no clock of its own. It goes through the events in order:

- an inbound packet is given to the host at its time;
- an outbound one is the next packet of the host, whose time must be right within the tolerance;
- a call is made at its time, and returns at once; one with an end (`+0...0.2`) may block, and is
  looked at when the next call comes, or the end of the script;
- Python looks at the connection.

What the host has sent more than the tolerance before the time of an inbound packet, a call or
Python, without being expected, fails the script: silence is tested by letting time pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.packetdrill.internet import Malformed, hosts_of
from tests.packetdrill.language import (
    Call,
    Event,
    From,
    Inbound,
    Outbound,
    Packet,
    Python,
    Script,
    ScriptError,
    result_text,
)
from tests.packetdrill.packets import Flows, Mismatch, Seen, compare

TOLERANCE_NS = 4_000_000
"""Unless the script says otherwise (`--tolerance_usecs`): what packetdrill allows, too."""
PATIENCE_NS = 120_000_000_000
"""How long to wait for a packet that may come at any time."""

STATE_NAMES = {
    "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4,
    "TCP_FIN_WAIT2": 5, "TCP_TIME_WAIT": 6, "TCP_CLOSE": 7, "TCP_CLOSE_WAIT": 8,
    "TCP_LAST_ACK": 9, "TCP_LISTEN": 10, "TCP_CLOSING": 11,
}  # fmt: skip
"""What assertions compare `tcpi_state` with: the numbers of the kernel."""


@dataclass
class Returned:
    """A call that has returned, or has not yet."""

    result: int | None = None
    errno: str | None = None
    at: int = 0

    def __str__(self) -> str:
        return "nothing: it blocks" if self.result is None else result_text(self.result, self.errno)


class Subject(Protocol):
    """The host under test. Times are nanoseconds since the script began."""

    slack_ns: int
    """By how much it may be late for reasons that are not its own: none in virtual time."""
    patience_ns: int
    """How long to wait for a packet that may come at any time."""

    def now(self) -> int: ...

    def run_until(self, instant: int) -> None:
        """Let time pass."""

    def inject(self, packet: bytes) -> None:
        """This IP packet arrives."""

    def sniff(self, until: int) -> tuple[int, bytes] | None:
        """Its next packet and when it left, waiting for it at most until then."""

    def call(self, call: Call, may_block: bool) -> Returned:
        """A program calls. A call that blocks is filled in when it returns."""

    def names(self) -> dict[str, Any]:
        """What assertions may speak of."""


@dataclass
class Player:
    """One script, and how far it is."""

    script: Script
    subject: Subject
    flows: Flows = field(init=False)
    tolerance: int = field(init=False)
    before: int = 0
    """When the last event happened: as the script has it, or, in real time, when it really did. So
    a player that comes late does not shorten what the host takes for a round trip."""
    early: tuple[int, bytes] | None = None
    """A packet that was sniffed and not looked at."""
    blocked: list[tuple[Event, Returned, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.script.options
        self.flows = Flows(
            int(options.get("remote_isn", "0")),
            int(options.get("local_port", Flows.our_port)),
            int(options.get("remote_port", Flows.peer_port)),
            hosts_of(options),
        )
        usecs = options.get("tolerance_usecs")
        self.tolerance = TOLERANCE_NS if usecs is None else int(usecs) * 1000

    def error(self, event: Event, message: str) -> ScriptError:
        return ScriptError(self.script.file, event.line, message)

    def play(self) -> None:
        """From the first event to the last; ScriptError where the host does otherwise."""
        for event in self.script.events:
            match event.what:
                case Outbound(packet):
                    self.expect(event, packet)
                case Inbound(packet):
                    self.arrive_at(event)
                    self.subject.inject(self.emitted(event, packet))
                case Call() as call:
                    self.arrive_at(event)
                    self.settle_blocked()
                    self.make(event, call)
                case Python(code):
                    self.arrive_at(event)
                    self.assert_python(event, code)
        self.settle_blocked()
        if self.script.events:
            self.subject.run_until(self.before)
            self.nothing_more(self.script.events[-1], self.subject.now() + 1)

    # --- time -------------------------------------------------------------------------------------

    def begins(self, event: Event) -> int:
        """When an event should happen, at the earliest."""
        base = self.before if event.time.base is From.BEFORE else 0
        return base + event.time.first

    def arrive_at(self, event: Event) -> None:
        """Let time pass until the event, in which nothing unexpected may be sent."""
        if event.time.base is From.ANY:
            raise self.error(event, "only a packet of the host can come at any time")
        self.before = self.begins(event)
        self.subject.run_until(self.before)
        self.nothing_more(event, self.before - self.tolerance)
        if self.subject.slack_ns:
            self.before = max(self.before, self.subject.now())

    def nothing_more(self, event: Event, until: int) -> None:
        """What was sent before `until` should have been expected."""
        if self.early is None:
            self.early = self.subject.sniff(0)
        if self.early is not None and self.early[0] < until:
            at, packet = self.early
            raise self.error(event, f"unexpected packet\nactual packet:  {self.told(at, packet)}")

    # --- packets ----------------------------------------------------------------------------------

    def expect(self, event: Event, packet: Packet) -> None:
        """The host's next packet is this one."""
        time, slack = event.time, self.tolerance + self.subject.slack_ns
        anytime = time.base is From.ANY
        first = 0 if anytime else self.begins(event)
        last = first if time.last is None else first + time.last - time.first
        until = self.subject.now() + self.subject.patience_ns if anytime else last + slack
        sniffed, self.early = self.early or self.subject.sniff(until), None
        wanted = f"{'*' if anytime else seconds(first)} {packet}"
        if sniffed is None:
            raise self.error(event, f"no packet came\nscript packet:  {wanted}")
        at, data = sniffed
        try:
            seen = self.flows.read(data)
            compare(packet, seen, self.flows, slack)
        except (Malformed, Mismatch) as problem:
            told = self.told(at, data)
            raise self.error(
                event, f"{problem}\nscript packet:  {wanted}\nactual packet:  {told}"
            ) from None
        if not anytime and not first - self.tolerance <= at <= last + slack:
            end = f"~{seconds(last)}" if last != first else ""
            raise self.error(
                event,
                f"timing: expected a packet at {seconds(first)}{end}, got it at {seconds(at)}\n"
                f"script packet:  {wanted}\nactual packet:  {seconds(at)} {seen}",
            )
        # What follows counts from when the script has it, or in a range from when it came.
        came = anytime or time.last is not None
        self.before = at if came else max(first, at if self.subject.slack_ns else first)

    def emitted(self, event: Event, packet: Packet) -> bytes:
        """A packet of the peer, for the wire."""
        try:
            return self.flows.emit(packet)
        except Mismatch as problem:
            raise self.error(event, f"{problem}\nscript packet:  {packet}") from None

    def told(self, at: int, data: bytes) -> str:
        """A packet as a script would have it."""
        try:
            seen: Seen | str = self.flows.read(data)
        except Malformed as problem:
            seen = f"{problem}: {data.hex()}"
        return f"{seconds(at)} {seen}"

    # --- calls ------------------------------------------------------------------------------------

    def make(self, event: Event, call: Call) -> None:
        """A program calls."""
        try:
            returned = self.subject.call(call, event.time.blocks)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
            raise self.error(event, f"cannot call {call}: {problem!r}") from problem
        if event.time.blocks:
            base = self.before - event.time.first
            self.blocked.append((event, returned, base + (event.time.last or 0)))
            return
        if (returned.result, returned.errno) != (call.result, call.errno):
            raise self.error(event, self.differs(call, returned))

    def settle_blocked(self) -> None:
        """Calls that blocked have returned when they should."""
        waiting, self.blocked = self.blocked, []
        for event, returned, end in waiting:
            assert isinstance(event.what, Call)
            slack = self.tolerance + self.subject.slack_ns
            self.subject.run_until(max(end, self.subject.now()))
            if returned.result is None:
                self.subject.run_until(end + slack)
            if (returned.result, returned.errno) != (event.what.result, event.what.errno):
                raise self.error(event, self.differs(event.what, returned))
            if not end - self.tolerance <= returned.at <= end + slack:
                when = f"expected it at {seconds(end)}, it was at {seconds(returned.at)}"
                raise self.error(event, f"timing: {event.what.name} returned: {when}")

    @staticmethod
    def differs(call: Call, returned: Returned) -> str:
        expected = result_text(call.result, call.errno)
        return f"{call.name}: expected {expected}, got {returned}\nscript call:  {call}"

    # --- Python -----------------------------------------------------------------------------------

    def assert_python(self, event: Event, code: str) -> None:
        names = self.subject.names()
        try:
            exec(compile(code, f"{self.script.file}:{event.line}", "exec"), names)
        except Exception as problem:  # noqa: BLE001 - whatever a script says wrong
            shown = {name: names[name] for name in sorted(names) if name in code}
            shown.pop("__builtins__", None)
            raise self.error(event, f"{problem!r} in\n  {code}\nwith {shown}") from None


def seconds(instant: int) -> str:
    """A time as scripts have it."""
    return f"{instant / 1e9:.6f}"
