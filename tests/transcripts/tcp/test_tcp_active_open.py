"""Active OPEN: source ports, what is refused at once, and what follows one in TIME-WAIT."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.tcp import active_open, reasons
from appliance.netstack.tcp.active_open import EPHEMERAL_PORTS
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.reasons import CannotConnect
from appliance.netstack.tcp.state import State
from appliance.netstack.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.transcripts.tcp_wire import PEER_PORT, RecordingUser, Wire


def open_one(wire: Wire, port: int = PEER_PORT, source_port: int | None = None) -> Connection:
    return wire.tcp.connect(wire.family.peer, port, wire.app, wire.now, source_port)


# --- source ports (RFC 6056) ----------------------------------------------------


def test_source_ports_are_ephemeral_and_differ(wire: Wire) -> None:
    """RFC 6056 section 3.3.3: none is used again before all others were."""
    ports = []
    for _ in range(300):
        c = open_one(wire)
        ports.append(c.local_port)
        c.abort()
    wire.ignore()
    assert len(set(ports)) == 300
    assert set(ports) <= set(EPHEMERAL_PORTS)


def test_the_next_port_to_another_place_does_not_follow_from_this_one(wire: Wire) -> None:
    """RFC 6056 section 3.3.3: the offset depends on the destination, and on a secret."""
    steps = set()
    for port in range(1000, 1040):
        first, second = open_one(wire, port).local_port, open_one(wire, port + 5000).local_port
        steps.add((second - first) % len(EPHEMERAL_PORTS))
    wire.ignore()
    assert len(steps) > 30


def test_two_hosts_begin_with_different_ports() -> None:
    ports = {open_one(Wire().host(seed=seed)).local_port for seed in range(20)}
    assert len(ports) > 15


def test_the_last_free_port_is_found(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_open, "EPHEMERAL_PORTS", range(50_000, 50_008))
    wire.tcp.listen(50_003, RecordingUser().accept)
    ports = {open_one(wire).local_port for _ in range(7)}
    assert ports == set(range(50_000, 50_008)) - {50_003}
    with pytest.raises(CannotConnect, match=reasons.NO_FREE_PORT):
        open_one(wire)
    assert open_one(wire, PEER_PORT + 1).local_port in ports, "to another port all are free"
    wire.ignore()


# --- what is refused at once ----------------------------------------------------


def test_a_pair_of_ports_is_connected_once(wire: Wire) -> None:
    wire.connecting()
    with pytest.raises(CannotConnect, match=reasons.PORT_TAKEN):
        open_one(wire, source_port=3000)
    wire.quiet().state(State.SYN_SENT)


def test_a_port_is_not_connected_with_itself(wire: Wire) -> None:
    ours = wire.path.destination = wire.family.ours
    with pytest.raises(CannotConnect, match=reasons.PORT_TAKEN):
        wire.tcp.connect(ours, 3000, wire.app, wire.now, 3000)
    assert not wire.tcp.connections


@pytest.mark.lanes("express")
@pytest.mark.parametrize(
    "nobody",
    ["ffffffff", "e0000001", "00000000", "7f000001", "ff02" + 27 * "0" + "1", 32 * "0"],
)
def test_an_address_that_is_not_one_host_is_refused(wire: Wire, nobody: str) -> None:
    """RFC 9293 MUST-46: everybody, a group, nobody, ourselves."""
    with pytest.raises(CannotConnect, match=reasons.NO_ROUTE):
        wire.tcp.connect(bytes.fromhex(nobody), 7, wire.app, wire.now)
    wire.quiet()
    assert not wire.tcp.connections


def test_more_connections_than_the_limit_are_refused(wire: Wire) -> None:
    wire.host(connections_max=2)
    open_one(wire)
    open_one(wire)
    with pytest.raises(CannotConnect, match=reasons.NO_ROOM):
        open_one(wire)
    wire.ignore()


# --- after TIME-WAIT (RFC 6191) ----------------------------------------------------


def in_time_wait(wire: Wire, stamp: int | None) -> int:
    """We opened, and closed first. The unwrapped number of our FIN's successor."""
    wire.connecting()
    first = None if stamp is None else (stamp, 0)
    wire.peer(SYN | ACK, seq=0, ack=1, stamp=first)
    answer = wire.ours(ACK, seq=1, ack=1)
    if stamp is not None:
        assert answer.timestamp is not None
        wire.stamp = (stamp, answer.timestamp[0])
    wire.user.close()
    wire.ours(FIN | ACK, seq=1)
    wire.peer(FIN | ACK, seq=1, ack=2)
    wire.ours(ACK, seq=2, ack=2)
    wire.state(State.TIME_WAIT)
    return wire.user.snd.nxt


def test_a_pair_in_time_wait_is_opened_again_with_timestamps(wire: Wire) -> None:
    """After a second, with numbers and timestamps that are ahead of all old ones."""
    last = in_time_wait(wire, stamp=100)
    with pytest.raises(CannotConnect, match=reasons.PORT_TAKEN):
        open_one(wire, source_port=3000)  # its segments could still be taken for new ones
    wire.after(SECOND)
    assert wire.stamp is not None
    old_stamp = wire.stamp[1]
    wire.app.connection = open_one(wire, source_port=3000)
    wire.peer_isn += 100_000
    syn = wire.ours(SYN, seq=0)
    assert (syn.seq - last) % (1 << 32) < 1 << 31, "numbers go on"
    assert syn.timestamp is not None
    assert 0 < (syn.timestamp[0] - old_stamp) % (1 << 32) < 1 << 31, "and so do timestamps"
    assert wire.app.endings == [None], "the old one had ended before"
    wire.peer(SYN | ACK, seq=0, ack=1, stamp=(2000, syn.timestamp[0]))
    wire.ours(ACK, seq=1, ack=1)
    wire.state(State.ESTABLISHED)


def test_without_timestamps_a_pair_in_time_wait_stays_taken(wire: Wire) -> None:
    in_time_wait(wire, stamp=None)
    wire.after(30 * SECOND)
    with pytest.raises(CannotConnect, match=reasons.PORT_TAKEN):
        open_one(wire, source_port=3000)
    wire.state(State.TIME_WAIT)


# --- an attempt that fails ----------------------------------------------------


def test_nobody_answers(wire: Wire) -> None:
    """RFC 9293 MUST-23: for three minutes."""
    wire.connecting()
    wire.after(170 * SECOND).state(State.SYN_SENT)
    wire.after(60 * SECOND).ignore()
    assert wire.app.endings == [reasons.NO_ANSWER]


def test_nobody_answers_because_of_what_a_router_says(wire: Wire) -> None:
    """RFC 9293 MUST-56: an unreachable host is no reason to end the attempt, but what the user is
    told when it ends."""
    wire.connecting()
    quoted = (3000).to_bytes(2, "big") + PEER_PORT.to_bytes(2, "big")
    quoted += wire.user.snd.iss.to_bytes(4, "big")
    ours, peer = wire.family.ours, wire.family.peer
    wire.tcp.icmp_error(ours, peer, quoted, reasons.HOST_UNREACHABLE, False)
    wire.state(State.SYN_SENT)
    wire.after(240 * SECOND).ignore()
    assert wire.app.endings == [reasons.HOST_UNREACHABLE]


def test_the_users_patience_with_an_attempt(wire: Wire) -> None:
    wire.connecting()
    wire.user.user_timeout = 5 * SECOND
    wire.after(16 * SECOND).ignore()
    assert wire.app.endings == [reasons.NO_ANSWER]


def test_a_refusal_is_told_at_once(wire: Wire) -> None:
    wire.connecting()
    wire.peer(RST | ACK, ack=1)
    assert wire.app.endings == [reasons.REFUSED]
    wire.quiet()


# --- the end, also after the peer's FIN ----------------------------------------------------


def test_a_death_after_the_peers_fin_is_told_too(wire: Wire) -> None:
    """`ended` has told of the FIN; who still sends is told by `on_closed`."""
    told: list[str | None] = []
    wire.established()
    wire.user.on_closed = told.append
    wire.peer(FIN | ACK, seq=1, ack=1)
    wire.ours(ACK)
    wire.user.send([b"still here"])
    wire.ours(PSH | ACK, seq=1)
    assert told == []
    wire.peer(RST, seq=2)
    assert wire.app.endings == [None]
    assert told == [reasons.RESET]
    wire.after(100 * MILLISECOND).quiet()


@pytest.mark.parametrize("address", ["e0000001", "ffffffff", "00000000", "7f000001"])
def test_a_destination_that_is_no_host_is_refused(wire: Wire, address: str) -> None:
    """RFC 9293 MUST-46."""
    wire.path.destination = bytes.fromhex(address)
    with pytest.raises(CannotConnect):
        open_one(wire)
    wire.quiet()
