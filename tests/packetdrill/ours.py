"""Our stack as the host of a script: on the simulated wire, in virtual time.

The whole of it, from Ethernet up, as in the other tests of the stack (tests/sim/station.py). The
script is the only neighbour, and answers ARP by itself. A script of a minute takes milliseconds.

Options of the head, beside those of the player: `--mtu`, `--offload=1` (super-frames, cut up on the
wire), `--receive_bytes` (what a connection may have waiting), `--local_isn`, `--stamps=0`; and for
both hosts `--ecn=1` (ask for it) and `--syncookies=1` (no half-open connections are kept).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from appliance.clock import MICROSECOND
from appliance.netstack.stack import HostConfig
from appliance.netstack.tcp.host import window_shift
from tests.packetdrill.internet import ICMPV6, emit_ip, hosts_of, with_checksum
from tests.packetdrill.language import Call, Script
from tests.packetdrill.our_sockets import Failed, Sockets, WouldBlock
from tests.packetdrill.packets import OUR_PORT, PEER_PORT
from tests.packetdrill.player import PATIENCE_NS, STATE_NAMES, Player, Returned
from tests.sim.station import OUR_MAC, PEER_MAC, Station
from tests.sim.wire import evidence

IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
ARP_REQUEST = bytes.fromhex("0001080006040001")
ARP_REPLY = bytes.fromhex("0001080006040002")
SOLICITATION = 135
ADVERTISEMENT = bytes.fromhex("8800000060000000")
"""Of a neighbour (RFC 4861 section 4.4): solicited, to override what was known."""

LINUX_STATES = {
    "ESTABLISHED": 1, "SYN-SENT": 2, "SYN-RECEIVED": 3, "FIN-WAIT-1": 4, "FIN-WAIT-2": 5,
    "TIME-WAIT": 6, "CLOSED": 7, "CLOSE-WAIT": 8, "LAST-ACK": 9, "LISTEN": 10, "CLOSING": 11,
}  # fmt: skip
"""States by the numbers of struct tcp_info, under the names that scripts know."""


class Ours:
    """A Subject (player.py)."""

    slack_ns = 0
    patience_ns = PATIENCE_NS

    def __init__(self, script: Script) -> None:
        options = script.options
        offload = options.get("offload") == "1"
        self.hosts = hosts_of(options)
        mtu = int(options.get("mtu", "1500"))
        length = 64 if self.hosts.six else 24
        config = HostConfig.single(OUR_MAC, self.hosts.ours, length, mtu=mtu)
        self.station = Station(vnet=offload, mtu=mtu, config=config)
        self.clock = self.station.clock
        self.station.wire.a.deliver = self._deliver
        self.sent: deque[tuple[int, bytes]] = deque()
        self.waiting: list[Callable[[], bool]] = []
        tcp = self.station.stack.tcp
        if "receive_bytes" in options:
            tcp.receive_bytes = int(options["receive_bytes"])
            tcp.window_shift = window_shift(tcp.receive_bytes)
        if "local_isn" in options:
            isn = int(options["local_isn"])
            tcp.initial_sequence_number = lambda key, now: isn  # type: ignore[method-assign]
        tcp.stamps = options.get("stamps") != "0"
        ports = int(options.get("local_port", OUR_PORT)), int(options.get("remote_port", PEER_PORT))
        udp = self.station.stack.udp
        self.sockets = Sockets(tcp, udp, self.clock.now, ports, self._progress, options)
        self.started = self.clock.now()

    # --- time and packets -------------------------------------------------------------------------

    def now(self) -> int:
        return self.clock.now() - self.started

    def run_until(self, instant: int) -> None:
        self.clock.run_until(max(self.started + instant, self.clock.now()))

    def inject(self, packet: bytes) -> None:
        self._send(IPV6 if self.hosts.six else IPV4, packet)
        self.clock.run(0)

    def sniff(self, until: int) -> tuple[int, bytes] | None:
        limit = max(until - self.now(), 0)
        if not self.sent:
            self.clock.run_while(lambda: not self.sent, limit)
        return self.sent.popleft() if self.sent else None

    def _send(self, kind: bytes, payload: bytes) -> None:
        self.station.peer.send(OUR_MAC + PEER_MAC + kind + payload)

    def _deliver(self, frame: bytes) -> None:
        """A frame of ours has come out of the wire."""
        kind, payload = frame[12:14], frame[14:]
        ours, peer = self.hosts.ours, self.hosts.peer
        asks = kind == IPV6 and payload[6] == ICMPV6 and payload[40] == SOLICITATION
        if kind == IPV4 or (kind == IPV6 and payload[24:40] == peer and not asks):
            self.sent.append((self.now(), payload))
        elif kind == ARP and payload.startswith(ARP_REQUEST) and payload[24:28] == peer:
            self._send(ARP, ARP_REPLY + PEER_MAC + peer + OUR_MAC + ours)
        elif asks and payload[48:64] == peer:
            bare = ADVERTISEMENT + peer + b"\2\1" + PEER_MAC
            answer = emit_ip(ICMPV6, with_checksum(bare, 2, ICMPV6, self.hosts), peer, ours, 0)
            self._send(IPV6, answer[:7] + b"\xff" + answer[8:])  # from no further than the link

    # --- calls ------------------------------------------------------------------------------------

    def call(self, call: Call, may_block: bool) -> Returned:
        returned = Returned()
        function = getattr(self.sockets, call.name)
        attempt = partial(self._attempt, returned, partial(function, *call.arguments))
        blocking = may_block or self._is_blocking(call)
        if not attempt(blocking):
            self.waiting.append(partial(attempt, blocking))
        self.station.host.act()
        self.clock.run(0)
        return returned

    def _is_blocking(self, call: Call) -> bool:
        number = call.arguments[0] if call.arguments else None
        socket = self.sockets.by_number.get(number) if isinstance(number, int) else None
        return socket is None or socket.blocking

    def _attempt(self, returned: Returned, call: Callable[[], int], blocking: bool) -> bool:
        """Make the call; False: it has to wait."""
        try:
            returned.result = call()
        except Failed as failed:
            returned.result, returned.errno = -1, str(failed)
        except WouldBlock as blocks:
            if blocking:
                return False
            returned.result, returned.errno = -1, str(blocks) or "EAGAIN"
        returned.at = self.now()
        return True

    def _progress(self) -> None:
        """Something has happened: make the calls again that wait."""
        waiting, self.waiting = self.waiting, []
        self.waiting += [attempt for attempt in waiting if not attempt()]

    # --- assertions -------------------------------------------------------------------------------

    def names(self) -> dict[str, Any]:
        names: dict[str, Any] = dict(STATE_NAMES)
        names["counters"] = self.station.counters
        names["tcp"] = self.station.stack.tcp
        c = self.sockets.last
        if c is not None:
            names |= {
                "connection": c,
                "tcpi_state": LINUX_STATES[str(c.state)],
                "tcpi_snd_mss": c.mss,
                "tcpi_rto": c.round_trip.rto // MICROSECOND,
                "tcpi_rtt": (c.round_trip.srtt or 0) // MICROSECOND,
                "tcpi_snd_cwnd": c.congestion.window // c.mss,
            }
        return names


def play_ours(script: Script) -> None:
    """Play it against our stack. Where it fails, the packets are in tests/out."""
    subject = Ours(script)
    name = re.sub(r"\W", "-", script.file)
    with evidence(subject.station.wire, f"packetdrill-{name}"):
        Player(script, subject).play()
