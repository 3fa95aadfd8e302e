"""The groups that we have joined, told to routers and to switches that listen (RFC 3810; RFC 2710
where the querier speaks only version 1).

A host is in the group of all nodes, of which nobody needs to be told, and for each of its addresses
in the group in which it is asked for it. Only reports about ourselves are sent; a flood of queries
is answered by one of them.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from appliance.clock import MILLISECOND, Instant
from appliance.limits import (
    MLD_ANSWERS_APART,
    MLD_OLDER_VERSION_FOR,
    MLD_REPORT_AGAIN_AFTER,
    MLD_REPORTS,
)
from appliance.netstack.ip.addresses import SCOPE_LINK, Addresses, AddressState, scope
from appliance.netstack.ip.v6.on_link import OnLink
from appliance.netstack.timers import Timers
from appliance.netstack.wire import icmpv6, ipv6, mld
from appliance.netstack.wire.errors import BadPacket
from appliance.netstack.wire.icmpv6 import Icmpv6Header
from appliance.netstack.wire.mld import Query
from appliance.trace import Counters

MLD2_ROUTERS = bytes.fromhex("ff020000000000000000000000000016")
_HOP_LIMIT = 1


class Groups:
    """The groups of one host."""

    def __init__(
        self,
        addresses: Addresses,
        on_link: OnLink,
        timers: Timers,
        random: Random,
        counters: Counters,
    ) -> None:
        self._addresses = addresses
        self._on_link = on_link
        self._random = random
        self._counters = counters
        self._joined: Counter[bytes] = Counter()  # two addresses may be asked for in one group
        self._changed: dict[bytes, int] = {}  # how often its joining is still to be told
        self._asked: set[bytes] = set()  # whose membership a querier wants to know
        self._answer_after: Instant = 0  # whoever asks, and however often
        self._change_timer = timers.timer(self._tell_changes)
        self._answer_timer = timers.timer(self._answer)
        self._version_timer = timers.timer(self._version_2_again)
        self.macs: set[bytes] = {ipv6.group_mac(ipv6.ALL_NODES)}
        """Where Ethernet carries packets for us, beside our own address."""

    def __contains__(self, group: object) -> bool:
        return group == ipv6.ALL_NODES or group in self._joined

    def join(self, group: bytes) -> None:
        """Be in a group, once more. Its joining is told by `tell`."""
        self._joined[group] += 1
        if self._joined[group] == 1:
            self._changed[group] = MLD_REPORTS
            self.macs.add(ipv6.group_mac(group))

    def tell(self, now: Instant) -> None:
        """Report what has been joined: at once, and again, for one report may be lost."""
        self._tell_changes(now)

    def leave(self, group: bytes) -> None:
        """Be in a group once less."""
        self._joined[group] -= 1
        if self._joined[group] > 0:
            return
        del self._joined[group]
        self._changed.pop(group, None)
        self._asked.discard(group)
        self.macs = {ipv6.group_mac(g) for g in (ipv6.ALL_NODES, *self._joined)}
        if self._speaks_version_1:
            self._send(ipv6.ALL_ROUTERS, Icmpv6Header(icmpv6.MLD_DONE, 0), group)
        else:
            self._report([group], mld.CHANGE_TO_INCLUDE)

    # --- what routers ask -------------------------------------------------------------

    def query_arrives(
        self, source: bytes, hop_limit: int, packet: bytes, at: int, end: int, now: Instant
    ) -> None:
        """RFC 3810 section 6.2: answer within the time that the querier gives, but not at once, so
        that not all hosts answer together."""
        if hop_limit != _HOP_LIMIT or not ipv6.is_link_local(source):
            raise BadPacket("mld.not_from_link")
        query = Query.parse(packet, at, end)
        self._counters["mld.query"] += 1
        if query.version == 1:
            self._version_timer.set(now + MLD_OLDER_VERSION_FOR)
        wanted = self._joined if query.group is None else {query.group} & self._joined.keys()
        if not wanted:
            return
        self._asked.update(wanted)
        delay = query.respond_within_ms * MILLISECOND
        deadline = max(now + self._random.randint(0, delay), self._answer_after)
        if self._answer_timer.deadline is None or deadline < self._answer_timer.deadline:
            self._answer_timer.set(deadline)

    @property
    def _speaks_version_1(self) -> bool:
        """The querier understands nothing newer (RFC 3810 section 8.2.1)."""
        return self._version_timer.deadline is not None

    def _version_2_again(self, _now: Instant) -> None:
        """It has not asked for long. The timer is not set any more: that is all."""

    def _answer(self, now: Instant) -> None:
        self._answer_after = now + MLD_ANSWERS_APART
        asked, self._asked = sorted(self._asked & self._joined.keys()), set()
        if asked:
            self._say(asked, mld.MODE_IS_EXCLUDE)

    def _tell_changes(self, now: Instant) -> None:
        if not self._changed:
            return
        self._say(sorted(self._changed), mld.CHANGE_TO_EXCLUDE)
        self._changed = {group: left - 1 for group, left in self._changed.items() if left > 1}
        if self._changed:
            self._change_timer.set(now + self._random.randint(1, MLD_REPORT_AGAIN_AFTER))

    # --- reports ----------------------------------------------------------------------

    def _say(self, groups: list[bytes], kind: int) -> None:
        if not self._speaks_version_1:
            self._report(groups, kind)
            return
        for group in groups:
            self._send(group, Icmpv6Header(icmpv6.MLD_REPORT, 0), group)

    def _report(self, groups: list[bytes], kind: int) -> None:
        header = Icmpv6Header(icmpv6.MLD2_REPORT, 0, len(groups))
        self._send(MLD2_ROUTERS, header, mld.records(kind, groups))

    def _send(self, destination: bytes, header: Icmpv6Header, data: bytes) -> None:
        self._counters["mld.report"] += 1
        self._on_link.send(
            self._source(),
            destination,
            header,
            data,
            hop_limit=_HOP_LIMIT,
            hop_by_hop=ipv6.ROUTER_ALERT_MLD,
        )

    def _source(self) -> bytes:
        """A link-local address; before there is one, nobody's (RFC 3590)."""
        for made in self._addresses:
            link_local = len(made.address) == 16 and scope(made.address) == SCOPE_LINK
            if link_local and self._addresses.state(made.address) is AddressState.PREFERRED:
                return made.address
        return ipv6.UNSPECIFIED
