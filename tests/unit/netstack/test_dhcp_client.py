"""The DHCP client: which message is sent when, and what an answer does (RFC 2131 section 4.4).
D1 to D3: the invariants of dhcp/client.py."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from appliance.clock import MILLISECOND, SECOND, Instant
from appliance.limits import DHCP_DECLINED_FOR, DHCP_DECLINED_OFTEN, DHCP_MESSAGE_BYTES_MAX
from appliance.netstack.dhcp.states import State
from appliance.netstack.wire import dhcp
from appliance.netstack.wire.dhcp import BOOTREPLY, DhcpMessage
from tests.sim.dhcp_world import GIVEN, MAC, OTHER_SERVER, SERVER, Sent, World

LEASE = 600 * SECOND
A_MOMENT = 1 * MILLISECOND


def bound(lease_seconds: int = 600) -> World:
    """A world whose client has its address; the server goes on answering."""
    world = World(lease_seconds)
    world.run(A_MOMENT)
    assert world.is_in(State.BOUND)
    world.take()
    return world


def kinds(sent: list[Sent]) -> list[int]:
    return [one.message.type for one in sent]


# --- getting an address -----------------------------------------------------------------


def test_discover_offer_request_ack() -> None:
    """RFC 2131 figure 3."""
    world = World()
    world.run(A_MOMENT)
    discover, request = world.take()
    assert kinds([discover, request]) == [dhcp.DISCOVER, dhcp.REQUEST]
    assert world.is_in(State.BOUND)
    assert world.used is not None and world.used.address == GIVEN
    assert world.used.prefix_length == 24


def test_before_there_is_an_address_everything_is_broadcast_from_nowhere() -> None:
    """RFC 2131 section 4.1."""
    world = World()
    world.run(A_MOMENT)
    for sent in world.take():
        assert sent.source is None and sent.server is None
        assert sent.message.ciaddr == bytes(4) and sent.message.broadcast


def test_a_discover_says_who_asks_and_for_what() -> None:
    (sent,) = World(answers=False).take()
    options = sent.message.options
    assert sent.message.chaddr == MAC
    assert options[dhcp.OPTION_CLIENT_IDENTIFIER] == b"\xff" + MAC[2:] + b"\0\3\0\1" + MAC
    assert options[dhcp.OPTION_HOST_NAME] == b"files"
    assert options[dhcp.OPTION_MESSAGE_BYTES_MAX] == (1500).to_bytes(2, "big")
    wanted = {dhcp.OPTION_SUBNET_MASK, dhcp.OPTION_ROUTER, dhcp.OPTION_INTERFACE_MTU}
    assert wanted <= set(options[dhcp.OPTION_PARAMETER_REQUESTS])
    assert dhcp.OPTION_SERVER_IDENTIFIER not in options
    assert dhcp.OPTION_REQUESTED_ADDRESS not in options


def test_a_request_names_the_server_and_the_address_and_keeps_the_xid() -> None:
    """RFC 2131 section 4.3.2: DHCPREQUEST generated during SELECTING."""
    world = World(answers=False)
    (discover,) = world.take()
    world.reply(dhcp.OFFER, to=discover)
    (request,) = world.take()
    assert request.message.xid == discover.message.xid
    assert request.message.server == SERVER
    assert request.message.options[dhcp.OPTION_REQUESTED_ADDRESS] == GIVEN


def test_a_second_offer_is_not_heeded() -> None:
    world = World(answers=False)
    (discover,) = world.take()
    world.reply(dhcp.OFFER, to=discover)
    world.take()
    world.reply(dhcp.OFFER, to=discover, server=OTHER_SERVER)
    assert world.take() == []
    assert world.counters["dhcp.unexpected"] == 1


def test_an_unanswered_discover_is_repeated_with_doubled_pauses_and_jitter() -> None:
    """RFC 2131 section 4.1: 4, 8, 16, 32, 64, 64, ... seconds, each one second more or less."""
    world = World(answers=False)
    world.run(600 * SECOND)
    sent = world.take()
    assert set(kinds(sent)) == {dhcp.DISCOVER}
    pauses = [b.at - a.at for a, b in pairwise(sent)]
    for pause, expected in zip(pauses, [4, 8, 16, 32, 64, 64, 64, 64], strict=False):
        assert abs(pause - expected * SECOND) <= SECOND
    assert len(pauses) >= 8 and len({p % SECOND for p in pauses}) > 1, "by chance"
    assert [s.message.secs for s in sent[1:3]] == [s.at // SECOND for s in sent[1:3]]


def test_two_clients_do_not_ask_in_step() -> None:
    times = []
    for seed in (1, 2):
        world = World(answers=False, seed=seed)
        world.run(60 * SECOND)
        times.append([sent.at for sent in world.take()][1:])
    assert not set(times[0]) & set(times[1])


def test_an_offer_without_an_acknowledgement_is_dropped_after_four_requests() -> None:
    """RFC 2131 section 3.1 (5): a minute in all, then from the beginning."""
    world = World(answers=False)
    world.reply(dhcp.OFFER)
    assert "does not confirm" in world.client.status
    world.take()
    world.run(70 * SECOND)
    sent = world.take()
    assert kinds(sent)[:4] == [dhcp.REQUEST] * 3 + [dhcp.DISCOVER]
    assert 56 * SECOND <= sent[3].at <= 64 * SECOND
    assert sent[3].message.xid != sent[0].message.xid


@pytest.mark.parametrize("address", [bytes(4), bytes([127, 0, 0, 1]), bytes([224, 0, 0, 1])])
def test_an_offer_of_no_host_address_is_not_taken(address: bytes) -> None:
    world = World(answers=False)
    world.reply(dhcp.OFFER, yiaddr=address)
    assert world.is_in(State.SELECTING)
    assert world.counters["dhcp.bad_offer"] == 1


def test_an_offer_without_a_server_is_not_taken() -> None:
    world = World(answers=False)
    world.reply(dhcp.OFFER, options={dhcp.OPTION_MESSAGE_TYPE: b"\2"})
    assert world.counters["dhcp.bad_offer"] == 1


# --- D2 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"xid": 1}, "dhcp.not_for_us"),
        ({"chaddr": bytes(6)}, "dhcp.not_for_us"),
        ({"op": 1}, "dhcp.not_a_reply"),
        ({"options": {}}, "dhcp.unexpected"),
        ({"options": {53: b"\6"}}, "dhcp.unexpected"),
        ({"options": {53: b"\5"}}, "dhcp.unexpected"),
        ({"options": {53: b"\2\2"}}, "dhcp.bad_option"),
    ],
)
def test_D2_what_is_no_answer_to_us_is_dropped(change: dict[str, Any], reason: str) -> None:
    world = World(answers=False)
    world.take()
    world.reply(
        dhcp.OFFER, to=Sent(0, DhcpMessage(1, world.client._xid, MAC), None, None), **change
    )
    assert world.counters[reason] == 1
    assert world.is_in(State.SELECTING) and world.take() == []


def test_D2_only_the_server_that_was_chosen_may_answer() -> None:
    world = World(answers=False)
    world.reply(dhcp.OFFER)
    for kind in (dhcp.ACK, dhcp.NAK):
        world.reply(kind, server=OTHER_SERVER)
    assert world.counters["dhcp.other_server"] == 2
    assert world.is_in(State.REQUESTING)


def test_a_message_that_is_longer_than_we_take_is_dropped() -> None:
    world = World(answers=False)
    world.arrives(bytes(DHCP_MESSAGE_BYTES_MAX + 1))
    assert world.counters["dhcp.too_long"] == 1


@pytest.mark.parametrize("state", ["SELECTING", "REQUESTING", "BOUND", "RENEWING", "REBINDING"])
def test_no_bytes_move_the_client(state: str) -> None:
    """In each state: answers with random options, cut, and damaged."""
    world = World(answers=state not in ("SELECTING", "REQUESTING"))
    if state == "REQUESTING":
        world.reply(dhcp.OFFER)
    world.run(A_MOMENT)
    world.answers = False
    world.run({"RENEWING": LEASE * 3 // 5, "REBINDING": LEASE * 9 // 10}.get(state, 0))
    assert str(world.client.state) == state
    random = Random(4)
    for _ in range(2000):
        message = DhcpMessage(BOOTREPLY, world.client._xid, MAC, yiaddr=bytes([10, 0, 0, 9]))
        message.options = {c: random.randbytes(random.randrange(5)) for c in (51, 53, 54, 1, 3)}
        data = bytearray(message.emit())
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        world.arrives(bytes(data[: random.randrange(len(data) + 1)]))
    assert str(world.client.state) == state, "four random bytes are never the server's"


# --- what was given ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{dhcp.OPTION_LEASE_TIME: b"\1"}, {dhcp.OPTION_SUBNET_MASK: bytes([255, 0, 255, 0])}]
)
def test_an_acknowledgement_that_makes_no_sense_is_dropped(options: dict[int, bytes]) -> None:
    world = World(options=options)
    world.run(A_MOMENT)
    assert world.counters["dhcp.bad_option"] == 1
    assert world.is_in(State.REQUESTING) and world.used is None


def test_router_and_mtu_are_used() -> None:
    router = bytes([10, 0, 0, 254])
    world = World(options={3: router, 26: (1400).to_bytes(2, "big")})
    world.run(A_MOMENT)
    assert world.used is not None
    assert (world.used.gateway, world.used.mtu) == (router, 1400)


# --- keeping it -------------------------------------------------------------------------


def test_at_half_of_the_lease_the_server_is_asked_by_unicast() -> None:
    """RFC 2131 section 4.4.5, and the table of section 4.3.6: from the address, which is ciaddr,
    without the options that stand for it before."""
    world = bound()
    world.run(LEASE)
    requests = world.take()
    first = requests[0]
    assert LEASE * 9 // 20 <= first.at <= LEASE // 2
    assert (first.server, first.source, first.message.ciaddr) == (SERVER, GIVEN, GIVEN)
    assert not first.message.broadcast
    absent = {dhcp.OPTION_SERVER_IDENTIFIER, dhcp.OPTION_REQUESTED_ADDRESS}
    assert not absent & set(first.message.options)
    assert world.is_in(State.BOUND) and not world.given_up
    assert world.counters["dhcp.extended"] == len(requests) >= 2


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    """RFC 2131 section 4.4.1: an acknowledgement that was long on its way gives less."""
    world = World(answers=False)
    world.reply(dhcp.OFFER)
    world.run(3 * SECOND)
    world.reply(dhcp.ACK)
    world.run(A_MOMENT)
    assert world.used is not None and world.used.ends_at == LEASE


def test_a_server_that_is_gone_is_replaced_by_any_then_the_lease_is_lost() -> None:
    world = bound()
    world.answers = False
    world.clock.run_until(LEASE - 1)
    sent = world.take()
    renewing = [one for one in sent if one.server == SERVER]
    rebinding = [one for one in sent if one.server is None]
    assert sent == renewing + rebinding and renewing and rebinding
    assert rebinding[0].at >= LEASE * 4 // 5
    assert all(one.source == one.message.ciaddr == GIVEN for one in rebinding)
    assert {one.message.xid for one in renewing}.isdisjoint(o.message.xid for o in rebinding)
    assert world.is_in(State.REBINDING) and world.used is not None
    world.run(1)
    assert world.used is None and world.counters["dhcp.expired"] == 1
    assert kinds(world.take()) == [dhcp.DISCOVER]


def test_between_two_requests_to_extend_is_half_of_what_is_left_but_a_minute() -> None:
    world = bound(lease_seconds=36000)
    world.answers = False
    world.clock.run_until(36000 * SECOND - 1)
    sent = world.take()
    pauses = [b.at - a.at for a, b in pairwise(sent)]
    until = [36000 * 7 // 8 if one.server else 36000 for one in sent]
    for one, pause, end in zip(sent, pauses, until, strict=False):
        left = end * SECOND - one.at
        assert pause >= min(60 * SECOND, left - 900 * SECOND)
        assert pause <= max(left // 2 + 1, 60 * SECOND)
    assert len(sent) < 25


def test_another_server_extends_the_lease_in_rebinding() -> None:
    world = bound()
    world.answers = False
    world.run(LEASE * 9 // 10)
    assert world.is_in(State.REBINDING)
    world.reply(dhcp.ACK, server=OTHER_SERVER)
    assert world.is_in(State.BOUND) and not world.given_up
    assert world.client.lease is not None and world.client.lease.server == OTHER_SERVER


def test_an_extension_of_another_address_is_not_one() -> None:
    world = bound()
    world.answers = False
    world.run(LEASE * 6 // 10)
    world.reply(dhcp.ACK, yiaddr=bytes([10, 0, 0, 78]))
    assert world.counters["dhcp.other_address"] == 1
    assert world.is_in(State.RENEWING)


def test_a_router_that_changes_with_an_extension_is_used_at_once() -> None:
    world = bound()
    world.options = {3: bytes([10, 0, 0, 253])}
    world.run(LEASE * 6 // 10)
    assert not world.given_up
    assert world.used is not None and world.used.gateway == bytes([10, 0, 0, 253])


def test_a_network_of_another_size_is_another_network() -> None:
    world = bound()
    world.options = {1: bytes([255, 255, 0, 0])}
    world.run(LEASE * 6 // 10)
    assert world.given_up == ["the network has another size"]
    assert world.used is not None and world.used.prefix_length == 16
    assert world.is_in(State.BOUND)


def test_a_lease_for_ever_is_never_extended() -> None:
    world = bound(lease_seconds=dhcp.LEASE_FOR_EVER)
    assert world.timers.next_deadline is None or world.client._timer.deadline is None
    world.run(10_000_000 * SECOND)
    assert world.take() == [] and world.used is not None


def test_a_lease_of_no_time_does_not_make_us_ask_in_a_loop() -> None:
    world = World(lease_seconds=0)
    world.run(60 * SECOND)
    assert len(world.take()) < 50


# --- losing it --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["REQUESTING", "RENEWING", "REBINDING"])
def test_a_nak_ends_it_at_once_and_it_starts_over(state: str) -> None:
    world = World(answers=state != "REQUESTING")
    if state == "REQUESTING":
        world.reply(dhcp.OFFER)
    world.run(A_MOMENT)
    world.answers = False
    world.run({"RENEWING": LEASE * 3 // 5, "REBINDING": LEASE * 9 // 10}.get(state, 0))
    world.take()
    options = {53: b"\6", 54: SERVER, 56: b"wrong network"}
    world.reply(dhcp.NAK, to=world.asked(), options=options)
    assert world.used is None and world.is_in(State.INIT)
    assert "10.0.0.1 refuses the address: wrong network" in world.client.status
    world.answers = True
    world.run(2 * SECOND)
    assert kinds(world.take()) == [dhcp.DISCOVER, dhcp.REQUEST]
    assert world.is_in(State.BOUND)


def test_D3_servers_that_offer_and_refuse_are_asked_more_and_more_seldom() -> None:
    world = World()

    reply = world.reply

    def refuse(kind: int, **fields: Any) -> None:
        reply(dhcp.NAK if kind == dhcp.ACK else kind, **fields)

    world.reply = refuse  # type: ignore[method-assign]
    world.run(600 * SECOND)
    assert world.counters["dhcp.nak"] < 20


def test_an_address_that_is_taken_is_declined_and_another_asked_for_later() -> None:
    """RFC 2131 section 3.1 (5)."""
    world = World(checks=False)
    world.run(A_MOMENT)
    assert world.is_in(State.CHECKING) and world.used is None
    world.take()
    world.client.address_is_taken("02:00:00:00:00:66", world.clock.now())
    world._arm()
    (decline,) = world.take()
    message = decline.message
    assert message.type == dhcp.DECLINE
    assert (message.server, message.ciaddr) == (SERVER, bytes(4))
    assert message.options[dhcp.OPTION_REQUESTED_ADDRESS] == GIVEN
    assert dhcp.OPTION_PARAMETER_REQUESTS not in message.options
    assert decline.source is None and decline.server is None
    assert "in use by 02:00:00:00:00:66" in world.client.status
    world.run(DHCP_DECLINED_FOR - 10 * MILLISECOND)
    assert world.take() == []
    world.run(20 * MILLISECOND)
    discover = world.take()[0].message
    assert discover.type == dhcp.DISCOVER
    assert dhcp.OPTION_REQUESTED_ADDRESS not in discover.options, "not that one again"


def test_one_conflict_after_the_other_slows_us_down() -> None:
    """RFC 5227 section 2.1.1: after MAX_CONFLICTS, one attempt in RATE_LIMIT_INTERVAL."""
    world = World(checks=False)
    declined: list[Instant] = []
    while len(declined) < DHCP_DECLINED_OFTEN + 3:
        world.run(A_MOMENT)
        if world.is_in(State.CHECKING):
            world.client.address_is_taken("02:00:00:00:00:66", world.clock.now())
            world._arm()
            declined.append(world.clock.now())
        world.run(SECOND)
    pauses = [(b - a) // SECOND for a, b in pairwise(declined)]
    assert set(pauses[: DHCP_DECLINED_OFTEN - 1]) <= {10, 11}
    assert all(60 <= pause <= 62 for pause in pauses[DHCP_DECLINED_OFTEN - 1 :])


def test_an_address_that_is_taken_away_while_in_use_is_declined() -> None:
    world = bound()
    world.client.address_is_taken("02:00:00:00:00:66", world.clock.now())
    assert kinds(world.take()) == [dhcp.DECLINE]
    assert world.used is None and world.is_in(State.INIT)
    world._arm()
    world.run(DHCP_DECLINED_FOR + A_MOMENT)
    assert dhcp.OPTION_REQUESTED_ADDRESS not in world.take()[0].message.options


def test_after_a_loss_the_same_address_is_asked_for() -> None:
    world = bound()
    world.answers = False
    world.run(LEASE)
    discover = world.take()[-1].message
    assert discover.options[dhcp.OPTION_REQUESTED_ADDRESS] == GIVEN


def test_a_stop_gives_the_address_back() -> None:
    """RFC 2131 section 4.4.6."""
    world = bound()
    world.client.release()
    (sent,) = world.take()
    assert world.used is not None, "until the message has left"
    world.client.stop(world.clock.now())
    assert (sent.message.type, sent.message.ciaddr, sent.server) == (dhcp.RELEASE, GIVEN, SERVER)
    assert sent.message.server == SERVER
    assert dhcp.OPTION_REQUESTED_ADDRESS not in sent.message.options
    assert world.used is None
    world.run(10 * LEASE)
    assert world.take() == []


@pytest.mark.parametrize("answers", [False, True])
def test_a_stop_before_there_is_an_address_says_nothing(answers: bool) -> None:
    world = World(answers=answers, checks=False)
    world.run(A_MOMENT)
    world.take()
    world.client.release()
    world.client.stop(world.clock.now())
    world.run(100 * SECOND)
    assert world.take() == []


# --- an earlier life --------------------------------------------------------------------


def test_a_remembered_address_is_asked_for_without_a_discover() -> None:
    """RFC 2131 figure 4, and section 4.3.2: DHCPREQUEST generated during INIT-REBOOT."""
    before = bound().client.before
    world = World(before=before)
    world.run(A_MOMENT)
    (request,) = world.take()
    assert request.message.type == dhcp.REQUEST
    assert (request.message.ciaddr, request.message.server) == (bytes(4), None)
    assert request.message.options[dhcp.OPTION_REQUESTED_ADDRESS] == GIVEN
    assert world.is_in(State.BOUND)


def test_a_remembered_address_that_nobody_confirms_is_looked_for_anew() -> None:
    world = World(before=bound().client.before, answers=False)
    assert "no DHCP server confirms 10.0.0.77/24" in world.client.status
    world.run(15 * SECOND)
    sent = world.take()
    assert kinds(sent) == [dhcp.REQUEST, dhcp.REQUEST, dhcp.DISCOVER]
    assert sent[2].message.options[dhcp.OPTION_REQUESTED_ADDRESS] == GIVEN


def test_a_remembered_address_that_is_refused_is_forgotten() -> None:
    world = World(before=bound().client.before, answers=False)
    world.take()
    world.reply(dhcp.NAK, to=world.asked())
    world.run(2 * SECOND)
    (discover,) = world.take()
    assert dhcp.OPTION_REQUESTED_ADDRESS not in discover.message.options
