"""Where packets go, and which address they come from (RFC 1122 section 3.3.1, RFC 6724)."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.limits import ADDRESSES_MAX, ROUTES_MAX
from appliance.netstack.ip.addresses import Addresses, AddressState, HostAddress
from appliance.netstack.ip.routes import METRIC_LEARNT, Route, Routes, default_route


def at(text: str) -> bytes:
    return ip_address(text).packed


def route(network: str, gateway: str | None = None, metric: int = 0) -> Route:
    made = ip_network(network)
    via = None if gateway is None else at(gateway)
    return Route(made.network_address.packed, made.prefixlen, via, metric)


def host_address(text: str) -> HostAddress:
    made = ip_interface(text)
    return HostAddress(made.ip.packed, made.network.prefixlen)


def routes(*all_routes: Route) -> Routes:
    table = Routes()
    for one in all_routes:
        assert table.add(one)
    return table


# --- routes ---------------------------------------------------------------------------


def test_the_longest_prefix_decides() -> None:
    table = routes(
        default_route(at("10.0.0.254")),
        route("10.0.0.0/24"),
        route("192.168.0.0/16", "10.0.0.1"),
        route("192.168.7.0/24", "10.0.0.2"),
        default_route(at("fe80::1")),
        route("fd00::/64"),
    )
    hops = {
        "10.0.0.9": "10.0.0.9",
        "192.168.1.1": "10.0.0.1",
        "192.168.7.1": "10.0.0.2",
        "8.8.8.8": "10.0.0.254",
        "fd00::9": "fd00::9",
        "fd01::9": "fe80::1",
    }
    for destination, hop in hops.items():
        assert table.next_hop(at(destination)) == at(hop), destination


def test_the_families_have_nothing_to_do_with_each_other() -> None:
    table = routes(default_route(at("10.0.0.254")))
    assert table.next_hop(at("::1")) is None
    assert table.find(at("::1")) is None


def test_of_two_equally_long_ones_the_lower_metric_counts_then_the_earlier() -> None:
    learnt = default_route(at("10.0.0.1"), METRIC_LEARNT)
    given_by_user, given_later = default_route(at("10.0.0.2")), default_route(at("10.0.0.3"))
    table = routes(learnt, given_by_user, given_later)
    for expected in (given_by_user, given_later, learnt):
        assert table.find(at("8.8.8.8")) == expected
        table.remove(expected)
    assert table.find(at("8.8.8.8")) is None


def test_what_two_addresses_bring_along_stays_until_both_are_gone() -> None:
    connected = route("10.0.0.0/24")
    table = routes(connected, connected)
    table.remove(connected)
    assert table.next_hop(at("10.0.0.9")) == at("10.0.0.9")
    table.remove(connected)
    assert table.next_hop(at("10.0.0.9")) is None
    table.remove(connected)


def test_routes_are_bounded() -> None:
    table = Routes()
    added = [table.add(default_route(at("10.0.0.1"), number)) for number in range(ROUTES_MAX + 5)]
    assert sum(added) == len(table) == ROUTES_MAX


@given(
    st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 32)), max_size=20),
    st.binary(min_size=4, max_size=4),
)
def test_routes_agree_with_ipaddress(networks: list[tuple[bytes, int]], destination: bytes) -> None:
    """Python's own module says which networks cover the destination."""
    table = routes(*(Route(network, length) for network, length in networks))
    covering = [
        length
        for network, length in networks
        if ip_address(destination) in ip_network((network, length), strict=False)
    ]
    found = table.find(destination)
    assert (None if found is None else found.prefix_length) == max(covering, default=None)


# --- source addresses -------------------------------------------------------------------


def addresses(*texts: str) -> Addresses:
    table = Addresses()
    for text in texts:
        assert table.add(host_address(text))
    return table


OURS = ("10.0.0.5/24", "192.168.1.5/24", "fe80::5/64", "fd00::5/64", "2001:db8::5/64")


@pytest.mark.parametrize(
    ("destination", "source"),
    [
        ("10.0.0.9", "10.0.0.5"),
        ("192.168.1.9", "192.168.1.5"),
        ("11.0.0.1", "10.0.0.5"),
        ("fe80::9", "fe80::5"),
        ("ff02::1", "fe80::5"),
        ("fd00::9", "fd00::5"),
        ("2001:db8:1::9", "2001:db8::5"),
        ("fd00:0:0:1::9", "fd00::5"),
        ("ff0e::1", "2001:db8::5"),
        ("192.168.1.5", "192.168.1.5"),
    ],
)
def test_the_source_suits_the_destination(destination: str, source: str) -> None:
    assert addresses(*OURS).source_for(at(destination)) == at(source)


def test_a_link_local_address_is_used_where_there_is_no_better_one() -> None:
    assert addresses("fe80::5/64").source_for(at("2001:db8::1")) == at("fe80::5")


def test_no_source_of_the_other_family() -> None:
    assert addresses("10.0.0.5/24").source_for(at("fd00::1")) is None


def test_only_usable_addresses_are_ours_and_deprecated_ones_come_last() -> None:
    table = addresses("10.0.0.5/24")
    assert table.add(host_address("10.0.0.6/24"), AddressState.TENTATIVE)
    assert at("10.0.0.5") in table
    assert at("10.0.0.6") not in table
    assert table.source_for(at("10.0.0.6")) == at("10.0.0.5")
    table.become(at("10.0.0.6"), AddressState.PREFERRED)
    table.become(at("10.0.0.5"), AddressState.DEPRECATED)
    assert table.source_for(at("10.0.0.9")) == at("10.0.0.6")
    table.become(at("10.0.0.6"), AddressState.DUPLICATED)
    assert table.source_for(at("10.0.0.9")) == at("10.0.0.5"), "better than none"


def test_addresses_are_bounded_and_there_once() -> None:
    table = addresses("10.0.0.5/24")
    assert not table.add(host_address("10.0.0.5/8"))
    added = [table.add(host_address(f"10.0.1.{number}/24")) for number in range(ADDRESSES_MAX + 5)]
    assert sum(added) + 1 == len(table) == ADDRESSES_MAX
    assert table.remove(at("10.0.0.5")) == host_address("10.0.0.5/24")
    assert table.remove(at("10.0.0.5")) is None
