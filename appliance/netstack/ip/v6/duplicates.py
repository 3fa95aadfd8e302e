"""Is an address of ours used by somebody else? Duplicate address detection (RFC 4862 section 5.4),
and what is done about one who comes later.

    TENTATIVE   asked for once, from nobody's address; any answer, and anybody else who asks the
                same, makes it a duplicate, which is never used
    ASSIGNED    ours: said to all, so that those who knew a predecessor learn our MAC address. Who
                claims it now is told that it is ours, but not in a loop (as in RFC 5227 section
                2.4, which neighbour discovery has no counterpart of)
"""

from __future__ import annotations

from appliance.clock import Instant
from appliance.limits import ARP_DEFEND_AFTER, ND_RETRY_AFTER
from appliance.netstack.ip.claimant import Claimant
from appliance.netstack.ip.v6.discovery import Discovery
from appliance.netstack.ip.v6.on_link import OnLink
from appliance.netstack.timers import Timers
from appliance.netstack.wire import ethernet, icmpv6, ipv6, ndp
from appliance.netstack.wire.address import address_text
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.trace import Counters, log


class Claim6:
    """The claim to one address. `rival`: who had another opinion last."""

    def __init__(
        self,
        address: bytes,
        claimant: Claimant,
        neighbours: Discovery,
        on_link: OnLink,
        timers: Timers,
        counters: Counters,
    ) -> None:
        self.is_tentative = True
        self.rival: str | None = None
        self._address = address
        self._claimant = claimant
        self._neighbours = neighbours
        self._on_link = on_link
        self._counters = counters
        self._timer = timers.timer(self._nobody_answered)
        self._defended: Instant | None = None

    def start(self, now: Instant) -> None:
        """Ask whether anybody uses the address (section 5.4.2). Once: DupAddrDetectTransmits."""
        self._on_link.send(
            ipv6.UNSPECIFIED,
            ipv6.solicited_node(self._address),
            Icmpv6Header(icmpv6.NEIGHBOUR_SOLICITATION, 0),
            self._address,
        )
        self._timer.set(now + ND_RETRY_AFTER)

    def _nobody_answered(self, now: Instant) -> None:
        self.is_tentative = False
        self._claimant.address_is_ours(self._address, now)
        self._say_it_is_ours()

    def withdraw(self) -> None:
        """The address is not ours any more."""
        self._timer.discard()

    def is_asked_for(self, by_nobody: bool, mac: bytes, now: Instant) -> bool:
        """A solicitation for the address (sections 5.4.3), `by_nobody`: from one who wants it as
        well. True: it is to be answered."""
        if self.is_tentative and by_nobody:
            self._taken(ethernet.mac_text(mac), now)
        return not self.is_tentative

    def is_advertised(self, mac: bytes, now: Instant) -> None:
        """Another station says that the address is its own (section 5.4.4)."""
        if self.is_tentative:
            self._taken(ethernet.mac_text(mac), now)
        else:
            self._defend(mac, now)

    def hears_our_mac(self, now: Instant, *, advertised: bool) -> None:
        """An advertisement of the address, or else a question by nobody, from our own MAC address:
        one of ours that came back, or one of a station that was given the same, as a second
        appliance with the same configuration is.

        What cannot be ours is the first while the address is tentative, and the second afterwards.
        So the one that came first tells the other (as in ARP: v4/claim.py).
        """
        mac = self._on_link.mac
        if self.is_tentative and advertised:
            self._taken(f"{ethernet.mac_text(mac)}, which is our own MAC address", now)
        elif not self.is_tentative and not advertised:
            self._defend(mac, now)

    def _defend(self, mac: bytes, now: Instant) -> None:
        """Say that the address is ours, but not so often that two hosts defend it in a loop."""
        self._counters["nd.conflict"] += 1
        if self._defended is None or now - self._defended >= ARP_DEFEND_AFTER:
            self._defended = now
            self.rival = ethernet.mac_text(mac)
            self._tell("assigned")
            self._say_it_is_ours()

    def _taken(self, rival: str, now: Instant) -> None:
        self._counters["nd.duplicate"] += 1
        self._timer.discard()
        self.rival = rival
        self._tell("tentative")
        self._claimant.address_is_taken(self._address, self.rival, now)

    def _tell(self, state: str) -> None:
        log.warning(
            "event=nd-conflict address=%s also-at=%s state=%s",
            address_text(self._address),
            self.rival,
            state,
        )

    def _say_it_is_ours(self) -> None:
        """Unsolicited, to all (RFC 4861 section 7.2.6)."""
        self._neighbours.advertise(self._address, ipv6.ALL_NODES, None, ndp.OVERRIDE)
