"""What a DHCPACK gives: address, mask, router, MTU, and the times of the lease."""

from __future__ import annotations

from random import Random

import pytest

from appliance.clock import SECOND
from appliance.limits import DHCP_LEASE_MIN
from appliance.netstack.dhcp.lease import Lease, lease_of
from appliance.netstack.wire.dhcp import BOOTREPLY, LEASE_FOR_EVER, DhcpMessage
from appliance.netstack.wire.errors import BadPacket


def address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def given(yiaddr: str = "10.0.0.77", mask: str | None = "255.255.255.0", **more: int) -> Lease:
    """The lease of an ACK. `more`: options that are numbers, o26, o51, o58, o59."""
    seconds = more.pop("o51", 1000)
    options = {54: address("10.0.0.1"), 51: seconds.to_bytes(4, "big")}
    if mask is not None:
        options[1] = address(mask)
    for name, value in more.items():
        options[int(name[1:])] = value.to_bytes(2 if name == "o26" else 4, "big")
    ack = DhcpMessage(BOOTREPLY, 1, bytes(6), yiaddr=address(yiaddr), options=options)
    return lease_of(ack, 0, Random(1))


def seconds(lease: Lease) -> tuple[int, int, int]:
    """T1, T2 and the end."""
    assert lease.renew_at is not None and lease.rebind_at is not None and lease.ends_at is not None
    return lease.renew_at // SECOND, lease.rebind_at // SECOND, lease.ends_at // SECOND


def test_T1_and_T2_are_half_and_seven_eighths_less_some_fuzz() -> None:
    """RFC 2131 section 4.4.5."""
    t1, t2, end = seconds(given(o51=8000))
    assert 3800 <= t1 <= 4000 and 6800 <= t2 <= 7000 and end == 8000
    assert t1 != 4000, "by chance"


def test_T1_and_T2_are_what_the_server_says() -> None:
    assert [t // 10 for t in seconds(given(o58=200, o59=600))] in ([19, 59, 100], [20, 60, 100])


@pytest.mark.parametrize(
    ("renewal", "rebinding"), [(0, 0), (1000, 1000), (5000, 9000), (900, 100), (100, 100)]
)
def test_times_out_of_order_are_put_in_order(renewal: int, rebinding: int) -> None:
    lease = given(o58=renewal, o59=rebinding)
    assert lease.renew_at is not None and lease.rebind_at is not None and lease.ends_at is not None
    assert 0 < lease.renew_at < lease.rebind_at < lease.ends_at


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_lease_has_a_shortest_length(length: int) -> None:
    assert given(o51=length).ends_at == DHCP_LEASE_MIN


def test_a_lease_for_ever_has_no_times() -> None:
    lease = given(o51=LEASE_FOR_EVER)
    assert (lease.renew_at, lease.rebind_at, lease.ends_at) == (None, None, None)


@pytest.mark.parametrize(
    ("yiaddr", "mask", "length"),
    [
        ("10.0.0.77", "255.255.255.0", 24),
        ("10.0.0.77", "255.255.255.254", 31),
        ("10.0.0.77", "255.255.255.255", 32),
        ("10.0.0.77", None, 8),
        ("172.16.0.9", None, 16),
        ("192.168.0.9", None, 24),
    ],
)
def test_the_mask_or_that_of_the_class(yiaddr: str, mask: str | None, length: int) -> None:
    lease = given(yiaddr, mask)
    assert lease.prefix_length == length
    assert str(lease) == f"{yiaddr}/{length}"


@pytest.mark.parametrize(
    "yiaddr", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.0", "10.0.0.255"]
)
def test_an_address_that_no_host_can_have_is_refused(yiaddr: str) -> None:
    with pytest.raises(BadPacket) as caught:
        given(yiaddr)
    assert caught.value.reason == "dhcp.bad_address"


@pytest.mark.parametrize(("mtu", "taken"), [(67, None), (575, None), (576, 576), (9000, 9000)])
def test_an_MTU_below_what_every_host_takes_is_not_believed(mtu: int, taken: int | None) -> None:
    assert given(o26=mtu).mtu == taken


@pytest.mark.parametrize(
    ("routers", "taken"),
    [
        ([], None),
        (["10.0.0.254"], "10.0.0.254"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
        (["10.1.0.1"], None),
        (["10.0.0.77", "10.0.0.2"], "10.0.0.2"),
        (["10.0.0.255", "0.0.0.0"], None),
    ],
)
def test_the_first_router_that_can_be_reached_is_the_gateway(
    routers: list[str], taken: str | None
) -> None:
    options = {54: address("10.0.0.1"), 51: bytes([0, 0, 1, 0]), 1: address("255.255.255.0")}
    options[3] = b"".join(map(address, routers))
    ack = DhcpMessage(BOOTREPLY, 1, bytes(6), yiaddr=address("10.0.0.77"), options=options)
    lease = lease_of(ack, 0, Random(1))
    assert lease.gateway == (address(taken) if taken else None)


@pytest.mark.parametrize("absent", [51, 54])
def test_without_a_server_or_a_time_it_is_no_lease(absent: int) -> None:
    options = {54: address("10.0.0.1"), 51: bytes([0, 0, 1, 0])}
    del options[absent]
    ack = DhcpMessage(BOOTREPLY, 1, bytes(6), yiaddr=address("10.0.0.77"), options=options)
    with pytest.raises(BadPacket) as caught:
        lease_of(ack, 0, Random(1))
    assert caught.value.reason == "dhcp.incomplete"
