"""ifconf: what the user may write, what it means, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from appliance.ifconf import ConfigError, InterfaceConfig, interface_config


def test_an_address_alone_is_a_slash_24_with_the_first_other_address_for_the_host() -> None:
    assert interface_config(ip="10.0.0.5") == InterfaceConfig(
        tap="tap0",
        address=IPv4Interface("10.0.0.5/24"),
        gateway=None,
        mac=bytes.fromhex("024e0a000005"),
        mtu=1500,
        host=IPv4Interface("10.0.0.1/24"),
    )


def test_the_host_gets_the_second_address_where_we_have_the_first() -> None:
    assert interface_config(ip="10.0.0.1").host == IPv4Interface("10.0.0.2/24")


def test_a_netmask_says_the_same_as_a_length() -> None:
    assert interface_config(ip="10.1.2.3/255.255.0.0").address == IPv4Interface("10.1.2.3/16")


def test_the_host_may_be_given_or_left_alone() -> None:
    assert interface_config(ip="10.0.0.5/16", host_ip="10.0.9.9").host == IPv4Interface(
        "10.0.9.9/16"
    )
    assert interface_config(ip="10.0.0.5", no_host_ip=True).host is None


def test_a_gateway_and_a_mac_are_taken_as_written() -> None:
    made = interface_config(ip="10.0.0.5", gateway="10.0.0.254", mac="02-00-00-00-00-2a")
    assert made.gateway == IPv4Address("10.0.0.254")
    assert made.mac == bytes.fromhex("02000000002a")


def test_with_dhcp_there_is_no_address_and_none_for_the_host() -> None:
    made = interface_config(ip="dhcp", machine="here")
    assert (made.address, made.gateway, made.host) == (None, None, None)
    assert made.hostname == "rumpnfsd"
    given = interface_config(ip="dhcp", host_ip="10.0.0.1", hostname="files", mac="02:00:00:00:0:9")
    assert given.host == IPv4Interface("10.0.0.1/24")
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
        {"ip": "fd00::5"},
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
def test_what_cannot_be_is_refused(words: dict[str, str | int]) -> None:
    with pytest.raises(ConfigError):
        interface_config(**words)  # type: ignore[arg-type]
