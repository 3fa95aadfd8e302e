"""Who an entry of exports(5) is for: a host, a network, host names with wildcards, everybody.

Host names are looked up once, when the file is read. A wildcard can only be compared with the name
of a client that is there: that name is looked up when the client is first seen, and believed only
if it leads back to the client's address, since whoever owns an address writes its reverse record.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from appliance import limits
from appliance.exports.problems import Report
from appliance.vfs.interface import AboutToWait, waits_for_nobody

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_WILDCARD_NAME: Final = re.compile(r"(?:[A-Za-z0-9_.*?-]|\[[!^]?[A-Za-z0-9_.-]+\])+")
_NUMERIC: Final = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


class Resolver(Protocol):
    """Host names <-> addresses (4 or 16 bytes, as on the wire)."""

    def addresses(self, name: str) -> Sequence[bytes]:
        """All addresses of a host; none if it is not known."""

    def names(self, address: bytes) -> Sequence[str]:
        """The names of a host that lead back to `address`; none if it is not known."""


class HostResolver:
    """The resolver of the host we run on. It may wait for a name server, and says so before.

    It is the only thing here that touches the host's network, and it is imported only for a file
    that has names in it.
    """

    def __init__(self, about_to_wait: AboutToWait = waits_for_nobody) -> None:
        self._about_to_wait = about_to_wait

    def addresses(self, name: str) -> Sequence[bytes]:
        import socket

        self._about_to_wait()
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return ()
        return tuple(
            dict.fromkeys(ipaddress.ip_address(str(entry[4][0])).packed for entry in found)
        )

    def names(self, address: bytes) -> Sequence[str]:
        import socket

        self._about_to_wait()
        try:
            first, others, _ = socket.gethostbyaddr(str(ipaddress.ip_address(address)))
        except (OSError, UnicodeError):
            return ()
        return tuple(name for name in (first, *others) if address in self.addresses(name))


class Kind(IntEnum):
    """What an entry names. If several match a client, the one with the smallest number counts;
    among those of one kind, the first in the file."""

    HOST = 0
    NETWORK = 1
    WILDCARD = 2
    NOBODY = 3
    """Netgroups and the old gss/ names: understood, but there is nobody whom they match."""
    EVERYBODY = 4


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses that agree with `base` in the bits of `mask`; a host is one with all bits."""

    length: int  # bytes of an address: 4 or 16
    base: int
    mask: int

    def __contains__(self, address: bytes) -> bool:
        return (
            len(address) == self.length and int.from_bytes(address, "big") & self.mask == self.base
        )


@dataclass(frozen=True, slots=True)
class Client:
    """One client entry. `text` is what the file says, and what showmount -e tells."""

    text: str
    kind: Kind
    networks: tuple[Network, ...] = ()
    pattern: re.Pattern[str] | None = None

    def matches(self, address: bytes, resolver: Resolver) -> bool:
        """Whether the entry is for the client at this address."""
        if self.kind is Kind.EVERYBODY:
            return True
        if self.pattern is not None:
            return any(self.pattern.fullmatch(name) for name in resolver.names(address))
        return any(address in network for network in self.networks)


EVERYBODY: Final = Client("*", Kind.EVERYBODY)


def parse_client(text: str, resolver: Resolver, report: Report) -> Client | None:
    """The client that `text` names; None (and reported) if it names none."""
    if text in ("", "*"):
        return EVERYBODY
    if text.startswith("@"):
        report.warning(f"there are no netgroups: {text} matches nobody")
        return Client(text, Kind.NOBODY)
    if text.startswith("gss/"):
        report.warning(
            f"there is no RPCSEC_GSS: {text} matches nobody", "since 2007 this is written sec="
        )
        return Client(text, Kind.NOBODY)
    if "/" in text:
        return _parse_network(text, report)
    if ":" in text:
        return _parse_address(text, report)
    if any(character in text for character in "*?[]"):
        return _parse_wildcard(text, report)
    if _NUMERIC.fullmatch(text):
        return _parse_address(text, report)
    return _parse_host(text, resolver, report)


def _parse_address(text: str, report: Report) -> Client | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        brackets = text.startswith("[")
        report.error(
            f'"{text}" is not an IP address',
            "IPv6 addresses stand without brackets here" if brackets else "",
        )
        return None
    return Client(text, Kind.HOST, (_host(address.packed),))


def _host(address: bytes) -> Network:
    everything = (1 << 8 * len(address)) - 1
    return Network(len(address), int.from_bytes(address, "big"), everything)


def _parse_network(text: str, report: Report) -> Client | None:
    base_text, _, mask_text = text.partition("/")
    try:
        base = ipaddress.ip_address(base_text)
    except ValueError:
        report.error(
            f'"{base_text}" in "{text}" is not an IP address', "a network is ADDRESS/LENGTH"
        )
        return None
    width = base.max_prefixlen
    length = _prefix_length(mask_text, width)
    if length is None:
        report.error(
            f'"{mask_text}" in "{text}" is not a netmask',
            f"a length from 0 to {width}"
            + (", or a mask like 255.255.252.0" if base.version == 4 else ""),
        )
        return None
    mask = ((1 << length) - 1) << (width - length)
    network = int(base) & mask
    if network != int(base):
        meant = ipaddress.ip_network((int(base) & mask, length))
        report.warning(f"{text} has bits outside its mask", f"taken as {meant}")
    return Client(text, Kind.NETWORK, (Network(width // 8, network, mask),))


def _prefix_length(text: str, width: int) -> int | None:
    """The length that a mask stands for; None if its ones are not all in front."""
    if re.fullmatch(r"[0-9]{1,3}", text):
        return int(text) if int(text) <= width else None
    try:
        mask = int(ipaddress.IPv4Address(text))
    except ValueError:
        return None
    zeros = 32 - mask.bit_count()
    return 32 - zeros if width == 32 and mask == (0xFFFFFFFF >> zeros) << zeros else None


def _parse_wildcard(text: str, report: Report) -> Client | None:
    if len(text) > limits.HOST_NAME_BYTES_MAX or not _WILDCARD_NAME.fullmatch(text):
        report.error(f'"{text}" is neither a host name nor a pattern of host names')
        return None
    if _NUMERIC.fullmatch(re.sub(r"[*?]|\[[^]]*\]", "0", text)):
        report.warning(
            f"wildcards are compared with names, not with addresses: {text} matches nobody",
            "write a network: 192.168.1.0/24",
        )
    pattern = fnmatch.translate(text.replace("[^", "[!"))
    return Client(text, Kind.WILDCARD, pattern=re.compile(pattern, re.IGNORECASE))


def _parse_host(text: str, resolver: Resolver, report: Report) -> Client | None:
    if len(text) > limits.HOST_NAME_BYTES_MAX or not _HOST_NAME.fullmatch(text):
        report.error(f'"{text}" is not a host name')
        return None
    addresses = resolver.addresses(text)
    if not addresses:
        report.warning(f'host "{text}" is not known: it matches nobody until the next reload')
    return Client(text, Kind.HOST, tuple(_host(address) for address in addresses))
