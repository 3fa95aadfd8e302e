"""What a host is given, and the addresses it has on its link.

An address is tentative until it is known that nobody else uses it (RFC 4862 section 5.4, RFC 5227),
then preferred, and deprecated when it is about to go; a duplicate is never used. Which states there
are is RFC 4862's; IPv4 addresses that need no test are preferred from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from appliance.limits import ADDRESSES_MAX
from appliance.netstack.ip.routes import Route, default_route
from appliance.netstack.wire.address import IPV4_BYTES, address_text, same_bits
from appliance.netstack.wire.ipv4 import TTL_DEFAULT

_IPV4_LINK_LOCAL = b"\xa9\xfe"
_IPV6_LINK_LOCAL = 0xFE80 >> 6
SCOPE_LINK = 2
SCOPE_GLOBAL = 14
SCOPE_MAX = 15


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address, and how much of it names the network."""

    address: bytes
    prefix_length: int

    def __post_init__(self) -> None:
        assert 0 <= self.prefix_length <= 8 * len(self.address)

    @property
    def network(self) -> bytes:
        """The address with zeros in place of the host's part."""
        host_bits = 8 * len(self.address) - self.prefix_length
        number = int.from_bytes(self.address, "big") >> host_bits << host_bits
        return number.to_bytes(len(self.address), "big")

    @property
    def connected_route(self) -> Route:
        """The hosts of the network are neighbours."""
        return Route(self.network, self.prefix_length)

    def __str__(self) -> str:
        return f"{address_text(self.address)}/{self.prefix_length}"


@dataclass(frozen=True)
class HostConfig:
    """One host on one link. Addresses as on the wire, of both families; more may come at run time
    (Internet.add_address), and these may go."""

    mac: bytes
    addresses: tuple[HostAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    """Beside the networks that the addresses are in."""
    mtu: int = 1500
    ttl: int = TTL_DEFAULT
    """How many routers a packet of ours may pass: time to live, hop limit. (IPv6 routers may say
    another.)"""
    neighbours: tuple[tuple[bytes, bytes], ...] = ()
    """Addresses and MAC addresses of those that are not to be asked for theirs."""
    autoconfigure: bool = False
    """Make IPv6 addresses of what routers advertise, and use them as routers (RFC 4862)."""

    def __post_init__(self) -> None:
        assert len(self.mac) == 6 and not self.mac[0] & 1
        assert 0 < self.ttl < 256

    @classmethod
    def single(
        cls,
        mac: bytes,
        address: bytes,
        prefix_length: int,
        gateway: bytes | None = None,
        mtu: int = 1500,
    ) -> HostConfig:
        """A host with one address, and at most one router."""
        routes = () if gateway is None else (default_route(gateway),)
        return cls(mac, (HostAddress(address, prefix_length),), routes, mtu)

    @property
    def address(self) -> bytes:
        """The first one."""
        return self.addresses[0].address

    def __str__(self) -> str:
        return " ".join(map(str, self.addresses))


class AddressState(Enum):
    """RFC 4862 section 2."""

    TENTATIVE = "tentative"
    PREFERRED = "preferred"
    DEPRECATED = "deprecated"
    DUPLICATED = "duplicated"

    __hash__ = object.__hash__  # Enum has one in Python, and each packet asks for a state


USABLE = frozenset((AddressState.PREFERRED, AddressState.DEPRECATED))


class Addresses:
    """The addresses of one host, in the order in which they came."""

    def __init__(self) -> None:
        self._all: dict[bytes, HostAddress] = {}
        self._states: dict[bytes, AddressState] = {}

    def __contains__(self, address: object) -> bool:
        """Is it ours, to receive at and to send from?"""
        return address in self._states and self._states[address] in USABLE

    def __iter__(self) -> Iterator[HostAddress]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, made: HostAddress, state: AddressState = AddressState.PREFERRED) -> bool:
        """One more. False: it is there already, or there are too many."""
        if made.address in self._all or len(self._all) >= ADDRESSES_MAX:
            return False
        self._all[made.address] = made
        self._states[made.address] = state
        return True

    def remove(self, address: bytes) -> HostAddress | None:
        """One less: what it was; None: there was none such."""
        self._states.pop(address, None)
        return self._all.pop(address, None)

    def state(self, address: bytes) -> AddressState | None:
        """None: it is not ours in any way."""
        return self._states.get(address)

    def become(self, address: bytes, state: AddressState) -> None:
        """An address that is there changes its state."""
        assert address in self._all
        self._states[address] = state

    def source_for(self, destination: bytes) -> bytes | None:
        """Which of our addresses to send from (RFC 6724 section 5, as far as one interface without
        temporary addresses needs it; the same for IPv4). None: no address of this family."""
        usable = [a for a in self._all if len(a) == len(destination) and a in self]
        return max(usable, key=lambda a: self._fitness(a, destination), default=None)

    def _fitness(
        self, candidate: bytes, destination: bytes
    ) -> tuple[bool, int, bool, bool, bool, int]:
        ours, theirs = scope(candidate), scope(destination)
        made = self._all[candidate]
        common = same_bits(candidate, destination)
        return (
            candidate == destination,  # rule 1
            -ours if ours >= theirs else ours - 2 * SCOPE_MAX,  # rule 2: the smallest that does
            self._states[candidate] is AddressState.PREFERRED,  # rule 3
            is_unique_local(candidate) is is_unique_local(destination),  # rule 6
            common >= made.prefix_length,  # a neighbour sees us as a neighbour
            min(common, made.prefix_length),  # rule 8
        )


def is_unique_local(address: bytes) -> bool:
    """fc00::/7 (RFC 4193), which RFC 6724 labels apart from what reaches the whole Internet."""
    return len(address) != IPV4_BYTES and address[0] & 0xFE == 0xFC


def scope(address: bytes) -> int:
    """How far an address reaches (RFC 4291 section 2.7, RFC 6724 section 3.1 and 3.2)."""
    if len(address) == IPV4_BYTES:
        return SCOPE_LINK if address[:2] == _IPV4_LINK_LOCAL else SCOPE_GLOBAL
    if address[0] == 0xFF:
        return address[1] & 0xF
    is_link_local = int.from_bytes(address[:2], "big") >> 6 == _IPV6_LINK_LOCAL
    return SCOPE_LINK if is_link_local or address == bytes(15) + b"\1" else SCOPE_GLOBAL
