"""The interface of the appliance, from text: addresses of both families, MAC, MTU. `dhcp` in the
place of an address leaves it to a DHCP server, `slaac` to what IPv6 routers advertise (RFC 4862).

Knows neither the TAP nor the stack: `InterfaceConfig` is what machine.py builds both from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from appliance.limits import NEIGHBOURS_FIXED_MAX, STATIC_ROUTES_MAX

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

PREFIX_LENGTH_DEFAULT = {4: 24, 6: 64}
MTU_DEFAULT = 1500
MTU_MIN = 576  # every IPv4 host accepts datagrams of this size (RFC 1122 section 3.3.2)
MTU_MIN_IPV6 = 1280  # RFC 8200 section 5
MTU_MAX = 65521  # the largest that a TAP takes: 65535 less the Ethernet header
TTL_DEFAULT = 64  # RFC 1700
TTL_MAX = 255
HOSTNAME_DEFAULT = "rumpnfsd"
DHCP = "dhcp"
SLAAC = "slaac"
EVERYWHERE: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
ROUTE_EXAMPLE = "for example --route 10.1.0.0/16,via=10.0.0.1"
NAME_BYTES_MAX = 15  # IFNAMSIZ less the NUL
HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class ConfigError(ValueError):
    """What the user wrote cannot be; `hint` says what can."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A network behind a router on the link."""

    network: Network
    gateway: Address


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """One interface: our side of the link, and what the host's side of it gets."""

    tap: str
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...]
    """At most one of each family."""
    mac: bytes
    mtu: int
    hosts: tuple[Interface, ...]
    """The host's addresses on the TAP; none: leave the host's side alone."""
    dhcp: bool = False
    """A DHCP server has another address."""
    slaac: bool = False
    """So have IPv6 routers."""
    hostname: str = HOSTNAME_DEFAULT
    """What a DHCP server is told that we are called; empty: nothing."""
    ttl: int = TTL_DEFAULT
    """How many routers a packet may pass."""
    routes: tuple[StaticRoute, ...] = ()
    """Beside those of `gateways`, which lead everywhere."""
    neighbours: tuple[tuple[Address, bytes], ...] = ()
    """Hosts on the link whose MAC addresses are known, and not asked for."""


def interface_config(
    *,
    tap: str = "tap0",
    ip: str | Sequence[str],
    gateway: str | Sequence[str] | None = None,
    route: Sequence[str] = (),
    mac: str | None = None,
    mtu: int = MTU_DEFAULT,
    host_ip: str | Sequence[str] | None = None,
    no_host_ip: bool = False,
    hostname: str = HOSTNAME_DEFAULT,
    ttl: int = TTL_DEFAULT,
    neighbours: Sequence[str] = (),
    machine: str = "",
) -> InterfaceConfig:
    """Everything about the interface, from the words of the command line. ConfigError.

    `machine`: what tells this machine from others, for a MAC address where no IP address does.
    """
    if not 0 < len(tap) <= NAME_BYTES_MAX or "/" in tap or tap.split() != [tap]:
        raise ConfigError(f"{tap!r} cannot be the name of an interface", "for example tap0")
    words = words_of(ip)
    addresses = tuple(parse_interface(text) for text in words if text not in (DHCP, SLAAC))
    dhcp, slaac = DHCP in words, SLAAC in words
    if len({address.ip for address in addresses}) + dhcp + slaac < len(words):
        raise ConfigError("the same --ip is there twice")
    check_mtu(mtu, ipv6=slaac or any(address.version == 6 for address in addresses))
    if not 0 < ttl <= TTL_MAX:
        raise ConfigError(f"--ttl {ttl} is out of range", f"1 to {TTL_MAX}")
    hosts = () if no_host_ip else host_addresses(words_of(host_ip), addresses)
    if mac:
        station = parse_mac(mac)
    elif dhcp or not addresses:
        station = mac_of_machine(f"{machine} {tap}")
    else:
        station = default_mac(addresses[0].ip)
    gateways = parse_gateways(words_of(gateway), addresses, dhcp=dhcp)
    comes_later = {version for version, later in ((4, dhcp), (6, slaac)) if later}
    return InterfaceConfig(
        tap=tap,
        addresses=addresses,
        gateways=gateways,
        mac=station,
        mtu=mtu,
        hosts=hosts,
        dhcp=dhcp,
        slaac=slaac,
        hostname=parse_hostname(hostname),
        ttl=ttl,
        routes=parse_routes(route, addresses, gateways, comes_later),
        neighbours=parse_neighbours(neighbours, addresses),
    )


def words_of(given: str | Sequence[str] | None) -> Sequence[str]:
    """An option that may be given more than once."""
    return (given,) if isinstance(given, str) else given or ()


def check_mtu(mtu: int, *, ipv6: bool) -> None:
    """ConfigError: no link has this MTU, or none with these addresses."""
    least = MTU_MIN_IPV6 if ipv6 else MTU_MIN
    if not least <= mtu <= MTU_MAX:
        where = " for IPv6" if ipv6 and mtu >= MTU_MIN else ""
        raise ConfigError(f"MTU {mtu} is out of range{where}", f"{least} to {MTU_MAX}")


def host_addresses(given: Sequence[str], ours: Sequence[Interface]) -> tuple[Interface, ...]:
    """The host's addresses on the TAP: those that are given, and one in every other network of
    ours, so that it finds us there. ConfigError."""
    hosts: list[Interface] = []
    for text in given:
        near = next((a for a in ours if (":" in text) == (a.version == 6)), None)
        hosts.append(parse_interface(text, near))
    for address in ours:
        if any(host.ip == address.ip for host in hosts):
            raise ConfigError(
                f"{address.ip} is the address of the appliance itself", "see --host-ip"
            )
        served = any(h.version == address.version for h in hosts[: len(given)])
        if not served and not any(address.ip in host.network for host in hosts):
            hosts.append(first_other_address(address))
    return tuple(hosts)


def parse_interface(text: str, near: Interface | None = None) -> Interface:
    """ADDR[/LEN], or with a netmask. Without one: that of `near`, else /24 or /64."""
    try:
        version = ip_address(text.partition("/")[0]).version
        length = near.network.prefixlen if near else PREFIX_LENGTH_DEFAULT[version]
        made = ip_interface(text if "/" in text else f"{text}/{length}")
    except ValueError:
        hint = "ADDR, ADDR/LEN, dhcp or slaac"
        raise ConfigError(f"{text!r} is not an IP address", hint) from None
    if not is_for_host(made):
        raise ConfigError(f"{made.ip} cannot be the address of a host")
    network = made.network
    names = (network.network_address, network.broadcast_address)
    if isinstance(made, IPv4Interface) and network.prefixlen < 31 and made.ip in names:
        raise ConfigError(
            f"{made.ip} is the network's own or its broadcast address in {network}",
            f"for example {network.network_address + 1}",
        )
    return made


def is_for_host(made: Interface) -> bool:
    """Can it be the address of one host?"""
    if made.ip.is_multicast or made.ip.is_loopback or made.ip.is_unspecified:
        return False
    if isinstance(made, IPv6Interface):
        return made.scope_id is None and made.ip.ipv4_mapped is None
    return not made.ip.is_reserved


def parse_gateways(
    texts: Sequence[str], ours: Sequence[Interface], *, dhcp: bool
) -> tuple[Address, ...]:
    """Routers on the link, one of each family at most."""
    gateways = tuple(parse_gateway(text, ours) for text in texts)
    versions = [gateway.version for gateway in gateways]
    if dhcp and 4 in versions:
        raise ConfigError("with --ip dhcp, the DHCP server says what the gateway is")
    if len(set(versions)) < len(versions):
        raise ConfigError("there is one --gateway of each family at most")
    return gateways


def parse_gateway(text: str, ours: Sequence[Interface]) -> Address:
    """A router on the link."""
    try:
        gateway = ip_address(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address") from None
    family = [address for address in ours if address.version == gateway.version]
    is_neighbour = any(gateway in address.network for address in family)
    if isinstance(gateway, IPv6Address) and gateway.is_link_local:
        is_neighbour = True
    if not is_neighbour or any(gateway == address.ip for address in family):
        networks = " ".join(str(address.network) for address in family)
        raise ConfigError(f"the gateway {gateway} is not another host in {networks or 'reach'}")
    return gateway


def parse_routes(
    texts: Sequence[str],
    ours: Sequence[Interface],
    gateways: Sequence[Address],
    comes_later: Container[int],
) -> tuple[StaticRoute, ...]:
    """Each network once. `comes_later`: the families in which we have networks that are not known
    yet, and any gateway may be a neighbour."""
    routes = tuple(parse_route(text, ours, comes_later) for text in texts)
    networks = [EVERYWHERE[gateway.version] for gateway in gateways]
    for route in routes:
        if route.network in networks:
            raise ConfigError(f"there is more than one route to {route.network}")
        networks.append(route.network)
    if len(routes) > STATIC_ROUTES_MAX:
        raise ConfigError(f"{len(routes)} times --route", f"at most {STATIC_ROUTES_MAX}")
    return routes


def parse_route(text: str, ours: Sequence[Interface], comes_later: Container[int]) -> StaticRoute:
    """NETWORK[/LEN],via=GATEWAY, or in the words of ip-route(8), NETWORK[/LEN] via GATEWAY; without
    a length it leads to one host, and `default` everywhere."""
    words = text.replace(",", " ").replace("=", " ").split()
    if len(words) != 3 or words[1] != "via":
        raise ConfigError(f"--route {text!r} is not NETWORK/LEN,via=GATEWAY", ROUTE_EXAMPLE)
    destination, _, via = words
    try:
        gateway = ip_address(via)
    except ValueError:
        raise ConfigError(f"--route {text!r}: {via!r} is not an IP address") from None
    network = (
        EVERYWHERE[gateway.version]
        if destination == "default"
        else parse_network(text, destination)
    )
    if network.version != gateway.version:
        raise ConfigError(f"--route {text!r}: the gateway is of the other family", ROUTE_EXAMPLE)
    if network.is_multicast or network.is_loopback:
        raise ConfigError(f"--route {text!r}: no router leads to {network}")
    if gateway.version in comes_later and is_for_host(ip_interface(gateway)):
        return StaticRoute(network, gateway)
    return StaticRoute(network, parse_gateway(via, ours))


def parse_network(text: str, destination: str) -> Network:
    """The network of the route `text`: an address in it is not enough."""
    try:
        around = ip_network(destination, strict=False)
    except ValueError:
        raise ConfigError(
            f"--route {text!r}: {destination!r} is not a network", ROUTE_EXAMPLE
        ) from None
    if str(around.network_address) != str(ip_address(destination.partition("/")[0])):
        raise ConfigError(
            f"--route {text!r}: {destination} is an address in a network",
            f"the network is {around}",
        )
    return around


def parse_neighbours(
    texts: Sequence[str], ours: Sequence[Interface]
) -> tuple[tuple[Address, bytes], ...]:
    """ADDR=MAC, each for another host. ConfigError."""
    if len(texts) > NEIGHBOURS_FIXED_MAX:
        raise ConfigError(f"there are {NEIGHBOURS_FIXED_MAX} --neighbour at most")
    known: dict[Address, bytes] = {}
    for text in texts:
        address_text, _, mac = text.partition("=")
        try:
            address = ip_address(address_text if mac else "")
        except ValueError:
            hint = "for example 10.0.0.1=02:00:00:00:00:01"
            raise ConfigError(f"--neighbour {text} is not ADDR=MAC", hint) from None
        if any(address == one.ip for one in ours) or address.is_multicast or address in known:
            raise ConfigError(f"--neighbour {text} is not another host")
        known[address] = parse_mac(mac)
    return tuple(known.items())


def first_other_address(address: Interface) -> Interface:
    """The first usable address of the network that is not ours."""
    for candidate in address.network.hosts():
        if candidate != address.ip:
            return ip_interface(f"{candidate}/{address.network.prefixlen}")
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


def default_mac(address: Address) -> bytes:
    """A locally administered address that is made of the IP address, so that the same server
    keeps its MAC over a restart and peers need not resolve it again."""
    packed = address.packed
    if isinstance(address, IPv6Address):
        packed = hashlib.blake2b(packed, digest_size=4).digest()
    return b"\x02\x4e" + packed  # 4e: N for NFS


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
