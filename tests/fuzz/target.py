"""The host that is fuzzed: a stack on a link that only records, and what must hold for it.

Everything that happens to it is an action, which can be written down and done again: a frame
arrives, time passes, the program calls. After each one `check` looks at everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import (
    ADDRESSES_MAX,
    FRAGMENT_BYTES_MAX,
    FRAGMENT_FLOWS_MAX,
    ND_PREFIXES_MAX,
    ND_ROUTERS_MAX,
    NEIGHBOURS_MAX,
    PATHS_MAX,
    TCP_SEND_ROOM_BYTES,
)
from appliance.netstack.ip.routes import default_route
from appliance.netstack.stack import HostAddress, HostConfig, Stack
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.host import window_shift
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.tcp.state import State
from appliance.netstack.wire import vnet
from appliance.netstack.wire.tcp import FIN
from appliance.trace import Counters
from tests.fuzz.frames import (
    ARP,
    ICMPV6,
    IP_AT,
    IPV6,
    OUR_ADDRESS6,
    PEER_ADDRESS6,
    ROUTER6,
    TCP,
    advertisement,
    arp,
    solicitation,
)
from tests.sim.station import OUR_ADDRESS, OUR_MAC, OURS, PEER_ADDRESS
from tests.sim.wire import AT_ONCE_MAX
from tests.transcripts.tcp_wire import assert_sound

Buffer = bytes | bytearray | memoryview

PORT = 2049
PEER_PORT = 40000
OUR_PORT = 3000
"""Of connections that we open."""
START: Instant = 10 * SECOND
EXPIRIES_MAX = 20_000
"""More deadlines in one action than any patience needs."""
OFFSET_MASK = 0x1FFF
FRAGMENT_HEADER = 44
SIX = IPV6.to_bytes(2, "big")
ROUTER_SOLICITATION, SOLICITATION, ADVERTISEMENT, LISTENER_REPORT = 133, 135, 136, 143
QUESTIONS = (ROUTER_SOLICITATION, SOLICITATION, 131, LISTENER_REPORT)
"""And reports of the groups that we are in, which nobody has to ask for."""
OURS_BOTH = HostConfig(
    OUR_MAC,
    (*OURS.addresses, HostAddress(OUR_ADDRESS6, 64)),
    (*OURS.routes, default_route(ROUTER6)),
    autoconfigure=True,
)


@dataclass(frozen=True)
class Arrives:
    """A frame, with its virtio-net header where the link has one. Answered once at most if it is
    `bad`, but for text that it releases."""

    frame: bytes
    bad: bool = False


@dataclass(frozen=True)
class Passes:
    """Time, in nanoseconds, and the deadlines in it."""

    duration: int


@dataclass(frozen=True)
class Calls:
    """The program makes a call on the newest connection."""

    name: str
    size: int = 0


Action = Arrives | Passes | Calls


@dataclass(frozen=True)
class Setting:
    """How the host is set up."""

    vnet: bool
    six: bool
    """It has an IPv6 address, and takes others from routers; its connections are over IPv6."""
    receive_bytes: int
    seed: int


class RecordingLink:
    """Keeps what is sent, until it is looked at."""

    def __init__(self, has_vnet_header: bool) -> None:
        self.vnet = has_vnet_header
        self.mtu = 1500
        self.sent: list[bytes] = []

    def send(self, buffers: Sequence[Buffer]) -> bool:
        frame = b"".join(buffers)
        self.sent.append(frame[vnet.HEADER_BYTES :] if self.vnet else frame)
        return True

    def receive(self) -> bytes | None:
        """Frames are brought, not fetched."""
        raise AssertionError("nobody waits here")


class Program:
    """The user of every connection: reads unless it was told not to."""

    def __init__(self) -> None:
        self.newest: Connection | None = None
        self.reading = True
        self.endings: dict[Connection, int] = {}

    def accept(self, connection: Connection) -> Program:
        self.newest = connection
        self.endings[connection] = 0
        return self

    def readable(self, connection: Connection) -> None:
        if self.reading:
            connection.receive()

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.endings[connection] = self.endings.get(connection, 0) + 1
        assert self.endings[connection] == 1, "the user was told twice"


class Target:
    """The host, the program, and the time."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.counters = Counters()
        self.link = RecordingLink(setting.vnet)
        self.now = START
        self.peer = PEER_ADDRESS6 if setting.six else PEER_ADDRESS
        config = OURS_BOTH if setting.six else OURS
        self.stack = Stack(self.link, config, random=Random(setting.seed), counters=self.counters)
        self.stack.tcp.receive_bytes = setting.receive_bytes
        self.stack.tcp.window_shift = window_shift(setting.receive_bytes)
        self.program = Program()
        self.stack.tcp.listen(PORT, self.program.accept)
        self.stack.udp.bind(PORT, lambda *_datagram: None)
        self.stack.start(self.now)
        self.edges: dict[Connection, int] = {}
        self.perform(Passes(5 * SECOND))
        self._take(arp(1, PEER_ADDRESS, OUR_ADDRESS))
        if setting.six:
            self._take(solicitation(OUR_ADDRESS6))

    @property
    def connection(self) -> Connection | None:
        """The newest, if it is still there."""
        newest = self.program.newest
        return None if newest is None or newest.state is State.CLOSED else newest

    def perform(self, action: Action) -> list[bytes]:
        """Do it, and see that everything is sound. What was sent because of it."""
        self.link.sent.clear()
        match action:
            case Arrives(frame):
                self.stack.receive(frame, self.now)
            case Passes(duration):
                self._pass(duration)
            case Calls(name, size):
                self._call(name, size)
        self.stack.flush(self.now)
        self._expire()
        sent = list(self.link.sent)
        self._resolve()
        self.check()
        if isinstance(action, Arrives) and action.bad:
            bare = action.frame[vnet.HEADER_BYTES :] if self.link.vnet else action.frame
            # What a neighbour's word sets free was waiting for it: those are answers to others.
            kinds = is_discovery if is_discovery(bare) else is_answer
            answers = [frame for frame in sent if is_answer(frame) and kinds(frame)]
            assert len(answers) <= 1, f"{len(answers)} answers to one bad frame"
        return sent

    def _take(self, bare: bytes) -> None:
        self.stack.receive((vnet.NOTHING if self.link.vnet else b"") + bare, self.now)
        self.stack.flush(self.now)

    def _resolve(self) -> None:
        """The peer answers ARP and neighbour solicitations, whatever else it does."""
        for frame in list(self.link.sent):
            if is_arp(frame) and frame[20:22] == b"\0\1" and frame[38:42] == PEER_ADDRESS:
                self._take(arp(2, PEER_ADDRESS, OUR_ADDRESS))
            elif message6(frame) == SOLICITATION and frame[62:78] == PEER_ADDRESS6:
                self._take(advertisement(PEER_ADDRESS6))

    def _pass(self, duration: int) -> None:
        until = self.now + duration
        for _ in range(EXPIRIES_MAX):
            deadline = self.stack.next_deadline
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self._expire()
            self._resolve()
            self.link.sent.clear()
            self.check()
        else:
            raise AssertionError("the timers never rest")
        self.now = until

    def _expire(self) -> None:
        """Run what is due; then nothing is."""
        for _ in range(AT_ONCE_MAX):
            self.stack.expire(self.now)
            self.stack.flush(self.now)
            deadline = self.stack.next_deadline
            if deadline is None or deadline > self.now:
                return
        raise AssertionError("a deadline that does not pass")

    def _call(self, name: str, size: int) -> None:
        if name == "connect":
            made = self.stack.tcp.connect(
                self.peer, PEER_PORT, self.program, self.now, source_port=OUR_PORT
            )
            self.program.accept(made)
            return
        c = self.connection
        match name:
            case "read":
                self.program.reading = bool(size)
                if size and c is not None:
                    c.receive()
            case "send" if c is not None and c.unsent_bytes < TCP_SEND_ROOM_BYTES:
                c.send([bytes(size)])
            case "send_urgent" if c is not None and c.unsent_bytes < TCP_SEND_ROOM_BYTES:
                c.send_urgent([bytes(size)])
            case "keep_alive" if c is not None:
                c.keep_alive(KeepAlive(SECOND, SECOND, 3))
            case "nodelay" if c is not None:
                c.nodelay = bool(size)
            case "user_timeout" if c is not None:
                c.user_timeout = size * MILLISECOND
            case "finish" | "close" | "abort" | "pause" | "resume" if c is not None:
                getattr(c, name)()

    def check(self) -> None:
        """Whatever has happened, this holds."""
        assert_sound(self.stack.tcp, self.edges)
        if len(self.edges) > 64:
            live = set(self.stack.tcp.connections.values())
            self.edges = {c: edge for c, edge in self.edges.items() if c in live}
        internet = self.stack.ip
        for family in (internet._ipv4, internet._ipv6):
            assert family._reassembly.charged_bytes <= FRAGMENT_BYTES_MAX
            assert len(family._reassembly) <= FRAGMENT_FLOWS_MAX
            assert len(family.neighbours._known) <= NEIGHBOURS_MAX
        routers = internet._ipv6._routers
        assert len(routers._routers) <= ND_ROUTERS_MAX
        assert len(routers._prefixes) <= ND_PREFIXES_MAX
        assert len(internet.addresses) <= ADDRESSES_MAX
        assert len(internet.paths._paths) <= PATHS_MAX

    def rest(self) -> None:
        """After the program has closed everything and hours have gone by, nothing is left."""
        for c in list(self.stack.tcp.connections.values()):
            c.close()
        self.stack.flush(self.now)
        self._resolve()
        self.perform(Passes(1000 * SECOND))
        tcp = self.stack.tcp
        assert not tcp.connections, "a connection never ends"
        assert tcp.budget.used == 0
        listener = tcp.listeners[PORT]
        assert not listener.open
        assert not listener.half_open


def is_answer(frame: bytes) -> bool:
    """It is a reply, and neither text, with a FIN behind it or a FIN alone, nor a question of ours,
    nor the rest of a packet that was too large for its path."""
    if is_arp(frame):
        return frame[20:22] == b"\0\2"
    at = IP_AT + 40 if frame[12:14] == SIX else IP_AT + 20
    protocol = frame[IP_AT + 6] if frame[12:14] == SIX else frame[IP_AT + 9]
    if protocol == FRAGMENT_HEADER:
        protocol, offset, at = frame[at], int.from_bytes(frame[at + 2 : at + 4], "big") >> 3, at + 8
    else:
        offset = int.from_bytes(frame[IP_AT + 6 : IP_AT + 8], "big") & OFFSET_MASK
        offset = 0 if frame[12:14] == SIX else offset
    if offset or message6(frame) in QUESTIONS:
        return False
    if protocol != TCP:
        return True
    return len(frame) == at + (frame[at + 12] >> 4) * 4 and not frame[at + 13] & FIN


def is_arp(frame: bytes) -> bool:
    return frame[12:14] == ARP.to_bytes(2, "big")


def message6(frame: bytes) -> int | None:
    """The type of an ICMPv6 message right behind the IPv6 header, or behind hop-by-hop options."""
    if frame[12:14] != SIX or len(frame) < IP_AT + 56:
        return None
    if frame[IP_AT + 6] == ICMPV6:
        return frame[IP_AT + 40]
    return frame[IP_AT + 48] if frame[IP_AT + 6] == 0 and frame[IP_AT + 40] == ICMPV6 else None


def is_discovery(frame: bytes) -> bool:
    """ARP, or neighbour discovery."""
    return is_arp(frame) or message6(frame) in range(ROUTER_SOLICITATION, ADVERTISEMENT + 2)
