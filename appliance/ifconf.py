"""The interface of the appliance, from text: addresses, MAC, MTU. `dhcp` in the place of an address
leaves it to a DHCP server.

Knows neither the TAP nor the stack: `InterfaceConfig` is what machine.py builds both from.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, NetmaskValueError

PREFIX_LENGTH_DEFAULT = 24
MTU_DEFAULT = 1500
MTU_MIN = 576  # every IPv4 host accepts datagrams of this size (RFC 1122 section 3.3.2)
MTU_MAX = 65521  # the largest that a TAP takes: 65535 less the Ethernet header
HOSTNAME_DEFAULT = "rumpnfsd"
DHCP = "dhcp"
NAME_BYTES_MAX = 15  # IFNAMSIZ less the NUL
HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class ConfigError(ValueError):
    """What the user wrote cannot be; `hint` says what can."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """One interface: our side of the link, and what the host's side of it gets."""

    tap: str
    address: IPv4Interface | None
    """None: a DHCP server has one."""
    gateway: IPv4Address | None
    mac: bytes
    mtu: int
    host: IPv4Interface | None
    """The host's address on the TAP; None: leave the host's side alone."""
    hostname: str = HOSTNAME_DEFAULT
    """What a DHCP server is told that we are called; empty: nothing."""


def interface_config(
    *,
    tap: str = "tap0",
    ip: str,
    gateway: str | None = None,
    mac: str | None = None,
    mtu: int = MTU_DEFAULT,
    host_ip: str | None = None,
    no_host_ip: bool = False,
    hostname: str = HOSTNAME_DEFAULT,
    machine: str = "",
) -> InterfaceConfig:
    """Everything about the interface, from the words of the command line. ConfigError.

    `machine`: what tells this machine from others, for a MAC address where no IP address does.
    """
    if not 0 < len(tap) <= NAME_BYTES_MAX or "/" in tap or tap.split() != [tap]:
        raise ConfigError(f"{tap!r} cannot be the name of an interface", "for example tap0")
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ConfigError(f"MTU {mtu} is out of range", f"{MTU_MIN} to {MTU_MAX}")
    if ip == DHCP:
        if gateway:
            raise ConfigError("with --ip dhcp, the DHCP server says what the gateway is")
        return InterfaceConfig(
            tap=tap,
            address=None,
            gateway=None,
            mac=parse_mac(mac) if mac else mac_of_machine(f"{machine} {tap}"),
            mtu=mtu,
            host=parse_interface(host_ip) if host_ip and not no_host_ip else None,
            hostname=parse_hostname(hostname),
        )
    address = parse_interface(ip)
    host = None
    if not no_host_ip:
        host = parse_interface(host_ip, address) if host_ip else first_other_address(address)
        if host.ip == address.ip:
            raise ConfigError(f"{host.ip} is the address of the appliance itself", "see --host-ip")
    return InterfaceConfig(
        tap=tap,
        address=address,
        gateway=parse_gateway(gateway, address) if gateway else None,
        mac=parse_mac(mac) if mac else default_mac(address.ip),
        mtu=mtu,
        host=host,
    )


def parse_interface(text: str, near: IPv4Interface | None = None) -> IPv4Interface:
    """ADDR[/LEN], or with a netmask. Without one: that of `near`, else /24."""
    length = near.network.prefixlen if near else PREFIX_LENGTH_DEFAULT
    try:
        made = IPv4Interface(text if "/" in text else f"{text}/{length}")
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ConfigError(f"{text!r} is not an IPv4 address", "ADDR, ADDR/LEN or dhcp") from None
    network = made.network
    if made.ip.is_multicast or made.ip.is_loopback or made.ip.is_unspecified or made.ip.is_reserved:
        raise ConfigError(f"{made.ip} cannot be the address of a host")
    if network.prefixlen < 31 and made.ip in (network.network_address, network.broadcast_address):
        raise ConfigError(
            f"{made.ip} is the network's own or its broadcast address in {network}",
            f"for example {network.network_address + 1}",
        )
    return made


def parse_gateway(text: str, address: IPv4Interface) -> IPv4Address:
    """A router on the link."""
    try:
        gateway = IPv4Address(text)
    except AddressValueError:
        raise ConfigError(f"{text!r} is not an IPv4 address") from None
    if gateway not in address.network or gateway == address.ip:
        raise ConfigError(f"the gateway {gateway} is not another host in {address.network}")
    return gateway


def first_other_address(address: IPv4Interface) -> IPv4Interface:
    """The first usable address of the subnet that is not ours."""
    for candidate in address.network.hosts():
        if candidate != address.ip:
            return IPv4Interface(f"{candidate}/{address.network.prefixlen}")
    raise ConfigError(
        f"no room for the host beside {address.ip} in {address.network}", "use --no-host-ip"
    )


def parse_mac(text: str) -> bytes:
    """Six bytes in hexadecimal, with colons; of one station, not of a group."""
    parts = text.replace("-", ":").split(":")
    try:
        mac = bytes(int(part, 16) for part in parts)
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise ConfigError(f"{text!r} is not a MAC address", "for example 02:00:00:00:00:05")
    if mac[0] & 1 or mac == bytes(6):
        raise ConfigError(f"{text} is not the address of one station", "make the first byte even")
    return mac


def default_mac(address: IPv4Address) -> bytes:
    """A locally administered address that is made of the IP address, so that the same server
    keeps its MAC over a restart and peers need not resolve it again."""
    return b"\x02\x4e" + address.packed  # 4e: N for NFS


def mac_of_machine(text: str) -> bytes:
    """One that is made of what tells this machine and this interface from others, so that a DHCP
    server knows us again after a restart."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return b"\x02\x44" + digest  # 44: D for DHCP


def parse_hostname(text: str) -> str:
    """A label of a host name (RFC 1123 section 2.1); empty: none."""
    if text and not HOSTNAME.fullmatch(text):
        raise ConfigError(f"{text!r} cannot be the name of a host", "letters, digits and hyphens")
    return text
