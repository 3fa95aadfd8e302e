"""ICMPv6 messages that stay on the link, to a station or a group: those of neighbour discovery (RFC
4861) and MLD (RFC 3810). They need no path, and some of them are what makes one."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.netstack.link.interface import Link
from appliance.netstack.wire import ethernet, ipv6, vnet
from appliance.netstack.wire.checksum import word_sum
from appliance.netstack.wire.ethernet import EthernetHeader
from appliance.netstack.wire.icmpv6 import HEADER_BYTES, Icmpv6Header
from appliance.netstack.wire.ipv6 import Ipv6Header
from appliance.trace import Counters


class OnLink:
    """Sends such messages."""

    def __init__(self, link: Link, mac: bytes, counters: Counters) -> None:
        self._link = link
        self._counters = counters
        self._vnet = vnet.NOTHING if link.vnet else b""
        self.mac = mac

    def send(
        self,
        source: bytes,
        destination: bytes,
        header: Icmpv6Header,
        data: bytes,
        *,
        to_mac: bytes | None = None,
        hop_limit: int = ipv6.HOP_LIMIT_MAX,
        hop_by_hop: bytes = b"",
    ) -> None:
        """Send one message; to a group, unless a MAC address is given. `hop_by_hop`: an extension
        header, which says what follows it."""
        next_header = ipv6.HOP_BY_HOP if hop_by_hop else ipv6.ICMPV6
        length = len(hop_by_hop) + HEADER_BYTES + len(data)
        packet = Ipv6Header(source, destination, next_header, length, hop_limit).emit()
        message = header.emit(word_sum(source + destination), [data])
        frame = EthernetHeader(
            to_mac or ipv6.group_mac(destination), self.mac, ethernet.TYPE_IPV6
        ).emit()
        buffers: Sequence[bytes] = (self._vnet, frame, packet, hop_by_hop, message, data)
        if not self._link.send(buffers):
            self._counters["link.refused"] += 1
