"""ifconf: what the user may write, what it means, and what is refused."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_network,
)

import pytest

from appliance.ifconf import ConfigError, InterfaceConfig, StaticRoute, interface_config
from appliance.limits import (
    ADDRESSES_MAX,
    ND_PREFIXES_MAX,
    ND_ROUTERS_MAX,
    NEIGHBOURS_FIXED_MAX,
    ROUTES_MAX,
    STATIC_ROUTES_MAX,
)


def test_an_address_alone_is_a_slash_24_with_the_first_other_address_for_the_host() -> None:
    assert interface_config(ip="10.0.0.5") == InterfaceConfig(
        tap="tap0",
        addresses=(IPv4Interface("10.0.0.5/24"),),
        gateways=(),
        mac=bytes.fromhex("024e0a000005"),
        mtu=1500,
        hosts=(IPv4Interface("10.0.0.1/24"),),
    )


def test_the_host_gets_the_second_address_where_we_have_the_first() -> None:
    assert interface_config(ip="10.0.0.1").hosts == (IPv4Interface("10.0.0.2/24"),)


def test_a_netmask_says_the_same_as_a_length() -> None:
    assert interface_config(ip="10.1.2.3/255.255.0.0").addresses == (IPv4Interface("10.1.2.3/16"),)


def test_the_host_may_be_given_or_left_alone() -> None:
    given = interface_config(ip="10.0.0.5/16", host_ip="10.0.9.9")
    assert given.hosts == (IPv4Interface("10.0.9.9/16"),)
    assert interface_config(ip="10.0.0.5", no_host_ip=True).hosts == ()


def test_a_gateway_and_a_mac_are_taken_as_written() -> None:
    made = interface_config(ip="10.0.0.5", gateway="10.0.0.254", mac="02-00-00-00-00-2a")
    assert made.gateways == (IPv4Address("10.0.0.254"),)
    assert made.mac == bytes.fromhex("02000000002a")


def test_a_route_is_said_with_commas_or_as_ip_route_has_it() -> None:
    """Without a length it leads to one host."""
    made = interface_config(
        ip=["10.0.0.5", "fd00::5"],
        gateway="10.0.0.254",
        route=[
            "10.1.0.0/16,via=10.0.0.1",
            "10.1.2.3 via 10.0.0.2",
            "default via fe80::1",
            "fd01::/48,via=fd00::1",
        ],
    )
    assert made.routes == (
        StaticRoute(ip_network("10.1.0.0/16"), ip_address("10.0.0.1")),
        StaticRoute(ip_network("10.1.2.3/32"), ip_address("10.0.0.2")),
        StaticRoute(ip_network("::/0"), ip_address("fe80::1")),
        StaticRoute(ip_network("fd01::/48"), ip_address("fd00::1")),
    )


def test_a_gateway_in_a_network_that_comes_later_is_believed() -> None:
    """Whether it is a neighbour is not known before there is a lease, or an advertisement."""
    route = ["10.1.0.0/16,via=10.0.0.1", "fd01::/48,via=2001:db8::1"]
    made = interface_config(ip=["dhcp", "slaac"], route=route, machine="here")
    assert [str(one.gateway) for one in made.routes] == ["10.0.0.1", "2001:db8::1"]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("10.1.0.0/16", "is not NETWORK/LEN,via=GATEWAY"),
        ("10.1.0.0/16,gateway=10.0.0.1", "is not NETWORK/LEN,via=GATEWAY"),
        ("10.1.0.0/16,via=10.0.0.1,metric=5", "is not NETWORK/LEN,via=GATEWAY"),
        ("10.1.0.0/33,via=10.0.0.1", "'10.1.0.0/33' is not a network"),
        ("elsewhere,via=10.0.0.1", "'elsewhere' is not a network"),
        ("10.1.2.3/16,via=10.0.0.1", "10.1.2.3/16 is an address in a network"),
        ("10.1.0.0/16,via=router", "'router' is not an IP address"),
        ("10.1.0.0/16,via=fd00::1", "the gateway is of the other family"),
        ("10.1.0.0/16,via=10.0.1.1", "the gateway 10.0.1.1 is not another host in 10.0.0.0/24"),
        ("10.1.0.0/16,via=10.0.0.5", "the gateway 10.0.0.5 is not another host"),
        ("fd01::/64,via=fd02::1", "the gateway fd02::1 is not another host in fd00::/64"),
        ("224.0.0.0/4,via=10.0.0.1", "no router leads to 224.0.0.0/4"),
        ("127.0.0.0/8,via=10.0.0.1", "no router leads to 127.0.0.0/8"),
        ("default,via=10.0.0.1", "there is more than one route to 0.0.0.0/0"),
    ],
)
def test_a_route_that_cannot_be_is_refused_in_words(route: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        interface_config(ip=["10.0.0.5", "fd00::5"], gateway="10.0.0.254", route=[route])
    assert message in str(raised.value)


def test_routes_have_a_limit_and_each_network_one() -> None:
    many = [f"10.1.{number}.0/24,via=10.0.0.1" for number in range(STATIC_ROUTES_MAX + 1)]
    assert len(interface_config(ip="10.0.0.5", route=many[1:]).routes) == STATIC_ROUTES_MAX
    with pytest.raises(ConfigError, match="17 times --route"):
        interface_config(ip="10.0.0.5", route=many)
    with pytest.raises(ConfigError, match=r"more than one route to 10\.1\.0\.0/24"):
        interface_config(ip="10.0.0.5", route=[many[0], many[0]])


def test_all_routes_fit_into_the_table() -> None:
    """What the user gives is never left out, whatever routers and DHCP servers add."""
    lease = 1
    learnt = ND_ROUTERS_MAX + ND_PREFIXES_MAX + lease
    default = 2
    assert ADDRESSES_MAX + STATIC_ROUTES_MAX + default + learnt <= ROUTES_MAX


def test_with_dhcp_there_is_no_address_and_none_for_the_host() -> None:
    made = interface_config(ip="dhcp", machine="here")
    assert (made.addresses, made.gateways, made.hosts, made.dhcp) == ((), (), (), True)
    assert made.hostname == "rumpnfsd"
    given = interface_config(ip="dhcp", host_ip="10.0.0.1", hostname="files", mac="02:00:00:00:0:9")
    assert given.hosts == (IPv4Interface("10.0.0.1/24"),)
    assert (given.hostname, given.mac) == ("files", bytes.fromhex("020000000009"))


def test_with_dhcp_the_mac_is_that_of_this_machine_and_interface() -> None:
    """So that the server gives the same address after a restart, and another to another."""
    macs = {
        interface_config(ip="dhcp", tap=tap, machine=machine).mac
        for tap in ("tap0", "tap1")
        for machine in ("here", "there")
    }
    assert len(macs) == 4
    assert interface_config(ip="dhcp", machine="here").mac in macs
    assert all(not mac[0] & 1 and mac[0] & 2 for mac in macs), "of one station, given locally"


def test_an_ipv6_address_alone_is_a_slash_64_with_the_first_address_for_the_host() -> None:
    made = interface_config(ip="fd00::5")
    assert made.addresses == (IPv6Interface("fd00::5/64"),)
    assert made.hosts == (IPv6Interface("fd00::1/64"),)
    assert made.mac == interface_config(ip="fd00::5").mac != interface_config(ip="fd00::6").mac
    assert not made.mac[0] & 1 and made.mac[0] & 2, "of one station, given locally"


def test_there_may_be_several_addresses_of_both_families() -> None:
    made = interface_config(
        ip=["10.0.0.5", "10.0.0.6", "192.168.1.5", "fd00::5"],
        gateway=["10.0.0.254", "fe80::1"],
        host_ip="fd00::9",
    )
    assert [str(address) for address in made.addresses] == [
        "10.0.0.5/24",
        "10.0.0.6/24",
        "192.168.1.5/24",
        "fd00::5/64",
    ]
    assert made.gateways == (IPv4Address("10.0.0.254"), IPv6Address("fe80::1"))
    assert sorted(map(str, made.hosts)) == ["10.0.0.1/24", "192.168.1.1/24", "fd00::9/64"]
    assert made.mac == interface_config(ip="10.0.0.5").mac


@pytest.mark.parametrize("ttl", [0, 256, -1])
def test_a_time_to_live_has_eight_bits_and_lives(ttl: int) -> None:
    assert interface_config(ip="10.0.0.5", ttl=255).ttl == 255
    with pytest.raises(ConfigError, match="out of range"):
        interface_config(ip="10.0.0.5", ttl=ttl)


def test_slaac_and_dhcp_may_stand_beside_addresses() -> None:
    made = interface_config(ip=["dhcp", "slaac", "fd00::5"], gateway="fe80::1", machine="here")
    assert (made.dhcp, made.slaac) == (True, True)
    assert made.addresses == (IPv6Interface("fd00::5/64"),)
    alone = interface_config(ip="slaac", machine="here")
    assert (alone.addresses, alone.hosts, alone.slaac) == ((), (), True)


@pytest.mark.parametrize(
    "words",
    [
        {"ip": "dhcp", "gateway": "10.0.0.1"},
        {"ip": "dhcp", "hostname": "-files"},
        {"ip": "dhcp", "hostname": "a.b"},
        {"ip": "dhcp", "hostname": "x" * 64},
        {"ip": "DHCP"},
        {"ip": "10.0.0"},
        {"ip": "10.0.0.5/33"},
        {"ip": "fd00::5/129"},
        {"ip": "fd00::5%eth0"},
        {"ip": "ff02::1"},
        {"ip": "::1"},
        {"ip": "::"},
        {"ip": "::ffff:10.0.0.5"},
        {"ip": "fd00::5", "mtu": 1279},
        {"ip": "slaac", "mtu": 1000},
        {"ip": ["fd00::5", "fd00::5/48"]},
        {"ip": ["dhcp", "dhcp"]},
        {"ip": "fd00::5", "gateway": "fd01::1"},
        {"ip": "10.0.0.5", "gateway": "fd00::1"},
        {"ip": "fd00::5", "gateway": "fd00::5"},
        {"ip": "fd00::5", "gateway": ["fd00::1", "fe80::1"]},
        {"ip": ["dhcp", "fd00::5"], "gateway": "10.0.0.1"},
        {"ip": "fd00::5", "host_ip": "fd00::5"},
        {"ip": "fd00::5/128"},
        {"ip": "10.0.0.0"},
        {"ip": "10.0.0.255"},
        {"ip": "127.0.0.1"},
        {"ip": "224.0.0.1"},
        {"ip": "0.0.0.0"},
        {"ip": "10.0.0.5/32"},
        {"ip": "10.0.0.5", "host_ip": "10.0.0.5"},
        {"ip": "10.0.0.5", "gateway": "10.0.1.1"},
        {"ip": "10.0.0.5", "gateway": "10.0.0.5"},
        {"ip": "10.0.0.5", "gateway": "router"},
        {"ip": "10.0.0.5", "mac": "01:00:00:00:00:05"},
        {"ip": "10.0.0.5", "mac": "00:00:00:00:00:00"},
        {"ip": "10.0.0.5", "mac": "02:00:00:00:00"},
        {"ip": "10.0.0.5", "mac": "02:00:00:00:00:100"},
        {"ip": "10.0.0.5", "mac": "zz:00:00:00:00:01"},
        {"ip": "10.0.0.5", "tap": "a-name-too-long-for-linux"},
        {"ip": "10.0.0.5", "tap": "tap 0"},
        {"ip": "10.0.0.5", "tap": ""},
        {"ip": "10.0.0.5", "mtu": 575},
        {"ip": "10.0.0.5", "mtu": 65522},
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        interface_config(**words)  # type: ignore[arg-type]


def test_neighbours_are_taken_as_written() -> None:
    words = ["10.0.0.9=02:00:00:00:00:09", "fe80::1=02-00-00-00-00-01"]
    assert interface_config(ip="10.0.0.5", neighbours=words).neighbours == (
        (IPv4Address("10.0.0.9"), bytes.fromhex("020000000009")),
        (IPv6Address("fe80::1"), bytes.fromhex("020000000001")),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["10.0.0.9"], "not ADDR=MAC"),
        (["files=02:00:00:00:00:09"], "not ADDR=MAC"),
        (["10.0.0.9=02:00"], "not a MAC address"),
        (["10.0.0.9=01:00:00:00:00:09"], "one station"),
        (["10.0.0.5=02:00:00:00:00:09"], "another host"),
        (["224.0.0.1=02:00:00:00:00:09"], "another host"),
        (["10.0.0.9=02:00:00:00:00:09"] * 2, "another host"),
        (["10.0.0.9=02:00:00:00:00:09"] * (NEIGHBOURS_FIXED_MAX + 1), "at most"),
    ],
)
def test_neighbours_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        interface_config(ip="10.0.0.5", neighbours=words)
