"""The client: which message is sent when, and what an answer means (RFC 2131 section 4.4).

Theory. The client is in one state, and waits for one deadline: to send again what nobody has
answered, or what the lease says. It knows nothing of packets: a Network (what the stack has to do
for it) takes its messages, probes for the address, and is told when to use it and when to stop.

    start           -> INIT -> SELECTING, or with a lease from before REBOOTING
    DHCPOFFER       SELECTING -> REQUESTING; the first that could be used is taken
    DHCPACK         REQUESTING, REBOOTING -> CHECKING; RENEWING, REBINDING -> BOUND
    DHCPNAK         any that waits for an answer -> INIT
    address free    CHECKING -> BOUND (`address_is_ours`)
    address taken   any that has one -> INIT, after a DHCPDECLINE (`address_is_taken`)

Invariants:
 D1. The network has an address of ours exactly in BOUND, RENEWING and REBINDING, and never after
     the end of the lease.
 D2. Every answer is one to the message sent last (its xid), and to us (chaddr).
 D3. Nothing is sent that neither a deadline nor one answer has called for, and after a failure each
     beginning comes later than the last: two DHCP servers in disagreement are not asked in a loop.

RFC 2131 would have a client wait for one to ten seconds before its first message, so that a power
cut does not make a whole building ask at once. This one is started for one test, as often as not.
"""

from __future__ import annotations

from logging import INFO, WARNING
from random import Random
from typing import Final, Protocol

from appliance.clock import SECOND, Instant
from appliance.limits import (
    DHCP_DECLINED_FOR,
    DHCP_DECLINED_OFTEN,
    DHCP_DECLINED_OFTEN_FOR,
    DHCP_EXTEND_AFTER_MIN,
    DHCP_MESSAGE_BYTES_MAX,
    DHCP_REBOOT_TRIES,
    DHCP_REQUEST_TRIES,
    DHCP_RETRY_AFTER,
    DHCP_RETRY_AFTER_MAX,
    DHCP_RETRY_JITTER,
    DHCP_START_OVER_AFTER,
)
from appliance.netstack.dhcp.lease import Lease, is_host, lease_of
from appliance.netstack.dhcp.requests import Identity, Requests
from appliance.netstack.dhcp.states import FIGURE_5, IN_USE, State
from appliance.netstack.timers import Timers
from appliance.netstack.wire import dhcp
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.dhcp import BOOTREPLY, DhcpMessage
from appliance.netstack.wire.errors import BadPacket
from appliance.trace import Counters, log

_DOUBLINGS: Final = 6


class Network(Protocol):
    """What the client wants of the host that it works for."""

    def broadcast(self, message: bytes, source: bytes | None) -> None:
        """Send to every server on the link, from `source`, or from 0.0.0.0 where there is none."""

    def unicast(self, message: bytes, server: bytes) -> None:
        """Send to one server, from the address that is in use."""

    def check(self, lease: Lease, now: Instant) -> None:
        """Find out whether anybody uses the address; later, call `address_is_ours` or
        `address_is_taken`."""

    def use(self, lease: Lease, now: Instant) -> None:
        """The address is ours; again, when what goes with it has changed: the gateway, the MTU."""

    def give_up(self, lease: Lease, reason: str, now: Instant) -> None:
        """It is not ours any more (or, if it was still being checked, will not be)."""


class DhcpClient:
    """One client. Calls of the network's come back to it, but never out of one of its own."""

    def __init__(
        self,
        identity: Identity,
        network: Network,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self.state = State.INIT
        self.lease: Lease | None = None
        """What is being checked or in use."""
        self.before: Lease | None = None
        """What was in use last: its address is asked for again."""
        self._identity = identity
        self._requests = Requests(identity)
        self._network = network
        self._random = random
        self._counters = counters
        self._timer = timers.timer(self._expire)
        self._offer: DhcpMessage | None = None
        self._xid = 0
        self._sent: Instant = 0  # when the message that waits for its answer was first sent
        self._began: Instant = 0  # when we began to want an address
        self._tries = 0
        self._failures = 0
        self._declined = 0
        self._trouble = ""

    # --- the user ---------------------------------------------------------------------------

    def start(self, now: Instant, before: Lease | None = None) -> None:
        """Begin; `before`: a lease of an earlier life, whose address may still be ours."""
        assert self.state is State.INIT
        self._began = now
        if before is None:
            self._discover(now)
            return
        self.before = before
        self._begin_exchange(State.REBOOTING, now)
        self._ask(now)

    def release(self) -> None:
        """Give the address back, where there is one (RFC 2131 section 4.4.6); `stop` has to follow
        as soon as the message is on its way."""
        self._timer.clear()
        lease = self.lease
        if lease is not None and self.state in IN_USE:
            self._counters["dhcp.released"] += 1
            message = self._requests.release(self._new_xid(), lease)
            self._network.unicast(message.emit(), lease.server)
            log.info("event=dhcp-released address=%s", lease)

    def stop(self, now: Instant) -> None:
        """Use the address no longer, and rest."""
        self._timer.clear()
        self._drop_lease("it is not wanted any more", now)

    @property
    def status(self) -> str:
        """What it waits for, in words."""
        match self.state:
            case State.INIT:
                return f"starting over: {self._trouble}"
            case State.SELECTING:
                return "no DHCP server answers" + (f" ({self._trouble})" if self._trouble else "")
            case State.REQUESTING:
                assert self._offer is not None and self._offer.server is not None
                address, server = address_text(self._offer.yiaddr), address_text(self._offer.server)
                return f"{server} has offered {address}, and does not confirm it"
            case State.REBOOTING:
                assert self.before is not None
                return f"no DHCP server confirms {self.before}"
            case State.CHECKING:
                return f"looking whether anybody else uses {self.lease}"
            case _:
                return f"has {self.lease}"

    # --- what the network tells -------------------------------------------------------------

    def address_is_ours(self, now: Instant) -> None:
        """Nobody else uses the address."""
        if self.state is not State.CHECKING:
            return
        self._bind(now)

    def address_is_taken(self, by: str, now: Instant) -> None:
        """Another station has the address (RFC 2131 section 4.4.1: decline, and start over, but
        not at once)."""
        lease = self.lease
        if lease is None:
            return
        self._counters["dhcp.declined"] += 1
        self._declined += 1
        message = self._requests.decline(self._new_xid(), lease)
        reason = f"{address_text(lease.address)} is in use by {by}"
        self.before = None  # nobody wants that one again
        self._drop_lease(reason, now)
        self._network.broadcast(message.emit(), None)
        often = self._declined >= DHCP_DECLINED_OFTEN
        self._start_over(reason, now, DHCP_DECLINED_OFTEN_FOR if often else DHCP_DECLINED_FOR)

    def arrives(self, data: bytes | memoryview, now: Instant) -> None:
        """A datagram to the client's port."""
        try:
            if len(data) > DHCP_MESSAGE_BYTES_MAX:
                raise BadPacket("dhcp.too_long")
            message = DhcpMessage.parse(data)
            self._check_answer(message)
            self._answered(message, now)
        except BadPacket as bad:
            self._counters[bad.reason] += 1

    def _check_answer(self, message: DhcpMessage) -> None:
        """D2."""
        if message.op != BOOTREPLY:
            raise BadPacket("dhcp.not_a_reply")
        if message.chaddr != self._identity.mac or message.xid != self._xid:
            raise BadPacket("dhcp.not_for_us")

    def _answered(self, message: DhcpMessage, now: Instant) -> None:
        match self.state, message.type:
            case State.SELECTING, dhcp.OFFER:
                self._offered(message, now)
            case State.REQUESTING | State.REBOOTING, dhcp.ACK:
                self._acknowledged(message, now)
            case State.RENEWING | State.REBINDING, dhcp.ACK:
                self._extended(message, now)
            case (
                (State.REQUESTING | State.REBOOTING | State.RENEWING | State.REBINDING),
                dhcp.NAK,
            ):
                self._refused(message, now)
            case _:
                raise BadPacket("dhcp.unexpected")  # late, double, or none of ours to answer

    # --- getting an address -----------------------------------------------------------------

    def _discover(self, now: Instant) -> None:
        self._begin_exchange(State.SELECTING, now)
        self._ask(now)

    def _offered(self, message: DhcpMessage, now: Instant) -> None:
        if message.server is None or not is_host(message.yiaddr):
            raise BadPacket("dhcp.bad_offer")
        self._counters["dhcp.offer"] += 1
        self._offer = message
        self._become(State.REQUESTING)
        self._tries = 0
        self._sent = now  # the xid is that of the offer
        self._ask(now)

    def _acknowledged(self, message: DhcpMessage, now: Instant) -> None:
        lease = lease_of(message, self._sent, self._random)
        self._check_sender(message)
        self._counters["dhcp.ack"] += 1
        self._check(lease, now)

    def _check(self, lease: Lease, now: Instant) -> None:
        self._become(State.CHECKING)
        self._timer.clear()
        self.lease = lease
        self._network.check(lease, now)

    def _check_sender(self, message: DhcpMessage) -> None:
        """A server that has been chosen is the only one that may say yes or no."""
        chosen = {
            State.REQUESTING: self._offer.server if self._offer is not None else None,
            State.RENEWING: self.lease.server if self.lease is not None else None,
        }.get(self.state)
        if chosen is not None and message.server != chosen:
            raise BadPacket("dhcp.other_server")

    def _bind(self, now: Instant) -> None:
        lease = self.lease
        assert lease is not None
        if lease.ends_at is not None and lease.ends_at <= now:
            self._lease_is_over(now)
            return
        self._become(State.BOUND)
        log.log(
            WARNING if self._failures else INFO,  # who was told of a loss is told of its end
            "event=dhcp-bound address=%s gateway=%s server=%s lease=%s",
            lease,
            address_text(lease.gateway) if lease.gateway else "none",
            address_text(lease.server),
            "for-ever" if lease.ends_at is None else f"{(lease.ends_at - now) // SECOND}s",
        )
        self._failures = self._declined = 0
        self._trouble = ""
        self.before = lease
        self._network.use(lease, now)
        self._wait_for_renewal(lease)

    # --- keeping it -------------------------------------------------------------------------

    def _wait_for_renewal(self, lease: Lease) -> None:
        if lease.renew_at is None:
            self._timer.clear()
        else:
            self._timer.set(lease.renew_at)

    def _extended(self, message: DhcpMessage, now: Instant) -> None:
        """RFC 2131 section 4.4.5: the lease begins anew."""
        was = self.lease
        assert was is not None
        lease = lease_of(message, self._sent, self._random)
        self._check_sender(message)
        if lease.address != was.address:
            raise BadPacket("dhcp.other_address")
        self._counters["dhcp.extended"] += 1
        log.info("event=dhcp-extended address=%s", lease)
        if lease.prefix_length != was.prefix_length:
            self._network.give_up(was, "the network has another size", now)
            self._check(lease, now)
            return
        self._become(State.BOUND)
        self.lease = self.before = lease
        if lease.network != was.network:
            self._network.use(lease, now)
        self._wait_for_renewal(lease)

    def _refused(self, message: DhcpMessage, now: Instant) -> None:
        """DHCPNAK: the address is none for this network, or another's by now."""
        self._check_sender(message)
        self._counters["dhcp.nak"] += 1
        server = address_text(message.server) if message.server else "a server"
        reason = f"{server} refuses the address" + (f": {message.words}" if message.words else "")
        self.before = None
        self._drop_lease(reason, now)
        self._start_over(reason, now, DHCP_START_OVER_AFTER << min(self._failures, _DOUBLINGS))

    def _lease_is_over(self, now: Instant) -> None:
        self._counters["dhcp.expired"] += 1
        reason = "the lease is over, and no DHCP server has extended it"
        self._drop_lease(reason, now)
        self._start_over(reason, now, 0)

    def _drop_lease(self, reason: str, now: Instant) -> None:
        """D1."""
        lease, self.lease = self.lease, None
        was = self.state
        if was is not State.INIT:
            self._become(State.INIT)
        if lease is None:
            return
        if was in IN_USE:
            log.warning('event=dhcp-lost address=%s reason="%s"', lease, reason)
        self._network.give_up(lease, reason, now)

    def _start_over(self, reason: str, now: Instant, after: int) -> None:
        """INIT, after a while (D3)."""
        self._trouble = reason
        self._failures += 1
        self._began = now + after
        if self.state is not State.INIT:
            self._become(State.INIT)
        self._timer.set(now + after)

    # --- asking, and asking again -----------------------------------------------------------

    def _begin_exchange(self, state: State, now: Instant) -> None:
        self._become(state)
        self._new_xid()
        self._sent = now
        self._tries = 0

    def _expire(self, now: Instant) -> None:
        match self.state:
            case State.INIT:
                self._discover(now)
            case State.BOUND:
                self._begin_exchange(State.RENEWING, now)
                self._extend(now)
            case State.RENEWING | State.REBINDING:
                self._extend(now)
            case State.REQUESTING if self._tries >= DHCP_REQUEST_TRIES:
                self._start_over(self.status, now, 0)
            case State.REBOOTING if self._tries >= DHCP_REBOOT_TRIES:
                self._start_over(self.status, now, 0)
            case State.CHECKING:
                raise AssertionError("the network says when that is over")
            case _:
                self._ask(now)

    def _ask(self, now: Instant) -> None:
        """By broadcast, from no address: SELECTING, REQUESTING, REBOOTING. RFC 2131 section 4.1:
        twice as long between two messages each time, up to 64 s, and one second more or less."""
        self._network.broadcast(self._question(now).emit(), None)
        wait = min(DHCP_RETRY_AFTER << min(self._tries, _DOUBLINGS), DHCP_RETRY_AFTER_MAX)
        self._tries += 1
        self._timer.set(now + wait + self._random.randint(-DHCP_RETRY_JITTER, DHCP_RETRY_JITTER))

    def _question(self, now: Instant) -> DhcpMessage:
        secs = (now - self._began) // SECOND
        if self.state is State.SELECTING:
            wanted = self.before.address if self.before is not None else None
            self._counters["dhcp.discover"] += 1
            return self._requests.discover(self._xid, secs, wanted)
        self._counters["dhcp.request"] += 1
        if self.state is State.REBOOTING:
            assert self.before is not None
            return self._requests.reboot(self._xid, secs, self.before.address)
        assert self._offer is not None
        return self._requests.select(self._xid, secs, self._offer)

    def _extend(self, now: Instant) -> None:
        """RENEWING: of the server that gave it; REBINDING: of any. Again after half of what is
        left of the state, but not within a minute (RFC 2131 section 4.4.5)."""
        lease = self.lease
        assert lease is not None and lease.rebind_at is not None and lease.ends_at is not None
        if now >= lease.ends_at:
            self._lease_is_over(now)
            return
        if self.state is State.RENEWING and now >= lease.rebind_at:
            self._begin_exchange(State.REBINDING, now)
        self._counters["dhcp.request"] += 1
        message = self._requests.extend(self._xid, (now - self._sent) // SECOND, lease)
        if self.state is State.RENEWING:
            self._network.unicast(message.emit(), lease.server)
            until = lease.rebind_at
        else:
            self._network.broadcast(message.emit(), lease.address)
            until = lease.ends_at
        self._timer.set(min(until, now + max((until - now) // 2, DHCP_EXTEND_AFTER_MIN)))

    def _new_xid(self) -> int:
        self._xid = self._random.getrandbits(32)
        return self._xid

    def _become(self, state: State) -> None:
        assert state in FIGURE_5[self.state], f"{self.state} -> {state}"
        log.debug("event=dhcp-state from=%s to=%s", self.state, state)
        self.state = state
