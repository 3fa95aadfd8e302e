"""Which message says what: table 5 of RFC 2131 section 4.4.1, and the table of section 4.3.6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.limits import DHCP_MESSAGE_BYTES_MAX
from appliance.netstack.dhcp.lease import Lease
from appliance.netstack.wire import dhcp
from appliance.netstack.wire.dhcp import BOOTREQUEST, DhcpMessage
from appliance.netstack.wire.ipv4 import UNSPECIFIED

_WANTED: Final = bytes(
    (
        dhcp.OPTION_SUBNET_MASK,
        dhcp.OPTION_ROUTER,
        dhcp.OPTION_INTERFACE_MTU,
        dhcp.OPTION_LEASE_TIME,
        dhcp.OPTION_RENEWAL_TIME,
        dhcp.OPTION_REBINDING_TIME,
    )
)

_UDP_IP_HEADERS: Final = 28
_IDENTIFIER_IAID_DUID: Final = 255
_DUID_LINK_LAYER: Final = b"\x00\x03\x00\x01"


@dataclass(frozen=True, slots=True)
class Identity:
    """By what a server knows us again."""

    mac: bytes
    hostname: str = ""

    @property
    def client_identifier(self) -> bytes:
        """RFC 4361 section 6.1: the number of the interface (the end of its MAC: there is one
        interface to a MAC here), and a DUID made of the link-layer address (RFC 8415 section
        11.4)."""
        iaid = self.mac[2:]
        return bytes((_IDENTIFIER_IAID_DUID,)) + iaid + _DUID_LINK_LAYER + self.mac


class Requests:
    """Makes the messages of one client."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def discover(self, xid: int, secs: int, wanted: bytes | None) -> DhcpMessage:
        """Who gives addresses? `wanted`: one that we would like."""
        message = self._asking(dhcp.DISCOVER, xid, secs)
        if wanted is not None:
            message.options[dhcp.OPTION_REQUESTED_ADDRESS] = wanted
        return message

    def select(self, xid: int, secs: int, offer: DhcpMessage) -> DhcpMessage:
        """In SELECTING: what this server offers is taken."""
        assert offer.server is not None
        message = self._asking(dhcp.REQUEST, xid, secs)
        message.options[dhcp.OPTION_SERVER_IDENTIFIER] = offer.server
        message.options[dhcp.OPTION_REQUESTED_ADDRESS] = offer.yiaddr
        return message

    def reboot(self, xid: int, secs: int, address: bytes) -> DhcpMessage:
        """In INIT-REBOOT: is this address still ours?"""
        message = self._asking(dhcp.REQUEST, xid, secs)
        message.options[dhcp.OPTION_REQUESTED_ADDRESS] = address
        return message

    def extend(self, xid: int, secs: int, lease: Lease) -> DhcpMessage:
        """In RENEWING and REBINDING: the same for longer, to the address itself."""
        message = self._asking(dhcp.REQUEST, xid, secs)
        message.ciaddr = lease.address
        message.broadcast = False
        return message

    def decline(self, xid: int, lease: Lease) -> DhcpMessage:
        """Somebody else has the address."""
        message = self._message(dhcp.DECLINE, xid)
        message.options[dhcp.OPTION_SERVER_IDENTIFIER] = lease.server
        message.options[dhcp.OPTION_REQUESTED_ADDRESS] = lease.address
        return message

    def release(self, xid: int, lease: Lease) -> DhcpMessage:
        """The address is not wanted any more."""
        message = self._message(dhcp.RELEASE, xid)
        message.ciaddr = lease.address
        message.options[dhcp.OPTION_SERVER_IDENTIFIER] = lease.server
        return message

    def _asking(self, kind: int, xid: int, secs: int) -> DhcpMessage:
        """To be answered by broadcast: before it has an address, a host takes nothing else
        (RFC 2131 section 4.1)."""
        message = self._message(kind, xid)
        message.secs = min(secs, 0xFFFF)
        message.broadcast = True
        takes = DHCP_MESSAGE_BYTES_MAX + _UDP_IP_HEADERS
        message.options[dhcp.OPTION_MESSAGE_BYTES_MAX] = takes.to_bytes(2, "big")
        if self._identity.hostname:
            message.options[dhcp.OPTION_HOST_NAME] = self._identity.hostname.encode("ascii")
        message.options[dhcp.OPTION_PARAMETER_REQUESTS] = _WANTED
        return message

    def _message(self, kind: int, xid: int) -> DhcpMessage:
        message = DhcpMessage(BOOTREQUEST, xid, self._identity.mac, ciaddr=UNSPECIFIED)
        message.options[dhcp.OPTION_MESSAGE_TYPE] = bytes((kind,))
        message.options[dhcp.OPTION_CLIENT_IDENTIFIER] = self._identity.client_identifier
        return message
