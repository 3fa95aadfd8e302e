"""rpcbind (RFC 1833): who asks where a program is gets the truth, and nothing is done for him."""

from __future__ import annotations

from typing import Any

import pytest

from appliance import limits
from appliance.clock import SECOND, Instant
from appliance.oncrpc.message import garbage_args, proc_unavail, prog_mismatch, prog_unavail
from appliance.oncrpc.program import Program
from appliance.oncrpc.transport import Endpoint
from appliance.oncrpc.xdr import uint32
from appliance.rpcbind.protocol import (
    call_args,
    call_result,
    mapping,
    netbuf,
    pmaplist,
    rpcb,
    rpcb_entry,
    rpcb_entry_list,
    rpcb_rmtcallargs,
    rpcb_rmtcallres,
    rpcb_stat,
    rpcb_stat_byvers,
    rpcblist,
    rpcbs_addrlist,
    rpcbs_rmtcalllist,
    string,
)
from appliance.rpcbind.service import Rpcbind, parse_uaddr, pmap2, rpcb3, rpcb4, uaddr
from tests.sim.rpc_client import Loopback, Reply, RpcClient, RpcWorld

NFS, MOUNT, RPCBIND, UNKNOWN = 100003, 100005, 100000, 100021
TCP, UDP = 6, 17
PORT = 111


class FixedClock:
    """It is always the same time."""

    def now(self) -> Instant:
        return 0

    def wall(self) -> int:
        return 1_700_000_000 * SECOND + 999


class World(RpcWorld):
    """A host with NFS over TCP, and MOUNT, two versions of it, over both."""

    def __init__(self) -> None:
        super().__init__(FixedClock())
        rpcbind = Rpcbind(self.registry, self.counters, FixedClock())
        for program in rpcbind.programs:
            self.add(program, rpcbind, PORT)
        nfs = Program(NFS, 3, "nfs")
        self.registry.add(nfs, None, self.pending.append, port=2049, netids=("tcp",))
        for version in (1, 3):
            self.add(Program(MOUNT, version, "mount"), None, port=20048)
        self.client = RpcClient(anonymous=True)

    def call(
        self, program: Program, procedure: int, args: object = None, netid: str = "tcp"
    ) -> Reply:
        return self.ask(self.client.call(program, procedure, args), PORT, netid)


@pytest.fixture
def world() -> World:
    return World()


versions = pytest.mark.parametrize("program", [rpcb3, rpcb4])
netids = pytest.mark.parametrize("netid", ["tcp", "udp"])


def asked(prog: int, vers: int, netid: bytes = b"", owner: bytes = b"") -> rpcb:
    return rpcb(prog, vers, netid, b"", owner)


# --- version 2 -----------------------------------------------------------------------------------


@netids
@pytest.mark.parametrize(
    ("prog", "vers", "prot", "port"),
    [
        (NFS, 3, TCP, 2049),
        (NFS, 3, UDP, 0),
        (NFS, 4, TCP, 0),
        (MOUNT, 3, TCP, 20048),
        (MOUNT, 1, UDP, 20048),
        (MOUNT, 2, UDP, 0),
        (RPCBIND, 2, UDP, 111),
        (RPCBIND, 5, UDP, 0),
        (UNKNOWN, 4, TCP, 0),
        (NFS, 3, 1, 0),
        (0, 0, 0, 0),
    ],
)
def test_getport_honours_version_and_protocol(
    world: World, netid: str, prog: int, vers: int, prot: int, port: int
) -> None:
    """Whatever the call itself comes over, and whatever its own port field says."""
    assert world.call(pmap2, 3, mapping(prog, vers, prot, 999), netid).value(uint32) == port


def test_getport_to_the_byte(world: World) -> None:
    """As a port mapper client has sent it since 1985."""
    call = bytes.fromhex(
        "12345678 00000000 00000002 000186a0 00000002 00000003"
        "00000000 00000000 00000000 00000000 000186a3 00000003 00000006 00000000"
    )
    transport = Loopback("udp", local=Endpoint("10.0.0.5", PORT))
    world.server.datagram(transport, call)
    world.serve()
    (reply,) = transport.sent
    expected = "12345678 00000001 00000000 00000000 00000000 00000000 00000801"
    assert reply == [bytes.fromhex(expected)]


@netids
def test_dump_of_version_2(world: World, netid: str) -> None:
    listed = world.call(pmap2, 4, None, netid).value(pmaplist)
    assert sorted((m.prog, m.vers, m.prot, m.port) for m in listed) == [
        *((RPCBIND, vers, prot, 111) for vers in (2, 3, 4) for prot in (TCP, UDP)),
        (NFS, 3, TCP, 2049),
        *((MOUNT, vers, prot, 20048) for vers in (1, 3) for prot in (TCP, UDP)),
    ]


def test_nobody_registers_from_outside(world: World) -> None:
    for procedure in (1, 2):
        assert world.call(pmap2, procedure, mapping(NFS, 3, TCP, 2049)).value(bool) is False
        for program in (rpcb3, rpcb4):
            mine = rpcb(NFS, 3, b"tcp", b"10.0.0.9.8.1", b"root")
            assert world.call(program, procedure, mine).value(bool) is False
    assert world.call(pmap2, 3, mapping(NFS, 3, TCP, 0)).value(uint32) == 2049


# --- versions 3 and 4 ----------------------------------------------------------------------------


@versions
@pytest.mark.parametrize(
    ("prog", "vers", "netid", "address"),
    [
        (NFS, 3, "tcp", b"10.0.0.5.8.1"),
        (NFS, 3, "udp", b""),
        (NFS, 4, "tcp", b"10.0.0.5.8.1"),
        (MOUNT, 2, "udp", b"10.0.0.5.78.80"),
        (RPCBIND, 4, "udp", b"10.0.0.5.0.111"),
        (UNKNOWN, 4, "tcp", b""),
    ],
)
def test_getaddr_tells_the_transport_of_the_call_and_any_version(
    world: World, program: Program, prog: int, vers: int, netid: str, address: bytes
) -> None:
    assert world.call(program, 3, asked(prog, vers), netid).value(string) == address


@versions
def test_getaddr_infers_the_netid(world: World, program: Program) -> None:
    """Section 2.2.1: what the argument says of it is ignored."""
    assert world.call(program, 3, asked(NFS, 3, b"udp"), "tcp").value(string) == b"10.0.0.5.8.1"
    assert world.call(program, 3, asked(NFS, 3, b"tcp"), "udp").value(string) == b""


@pytest.mark.parametrize(("vers", "address"), [(3, b"10.0.0.5.8.1"), (4, b""), (0, b"")])
def test_getversaddr_tells_exactly_this_version(world: World, vers: int, address: bytes) -> None:
    assert world.call(rpcb4, 9, asked(NFS, vers)).value(string) == address


@versions
@netids
def test_dump_of_versions_3_and_4(world: World, program: Program, netid: str) -> None:
    listed = world.call(program, 4, None, netid).value(rpcblist)
    assert rpcb(NFS, 3, b"tcp", b"10.0.0.5.8.1", b"superuser") in listed
    assert rpcb(MOUNT, 1, b"udp", b"10.0.0.5.78.80", b"superuser") in listed
    assert len(listed) == 11


def test_getaddrlist_tells_every_transport(world: World) -> None:
    assert world.call(rpcb4, 11, asked(MOUNT, 3)).value(rpcb_entry_list) == [
        rpcb_entry(b"10.0.0.5.78.80", b"tcp", 3, b"inet", b"tcp"),
        rpcb_entry(b"10.0.0.5.78.80", b"udp", 1, b"inet", b"udp"),
    ]
    assert world.call(rpcb4, 11, asked(MOUNT, 2)).value(rpcb_entry_list) == []


@versions
def test_gettime_is_the_time(world: World, program: Program) -> None:
    assert world.call(program, 6).value(uint32) == 1_700_000_000


SOCKADDR = bytes.fromhex("0200 0801 0a000005 0000000000000000")


@versions
def test_addresses_are_converted(world: World, program: Program) -> None:
    taddr = world.call(program, 7, b"10.0.0.5.8.1").value(netbuf)
    assert taddr == netbuf(16, SOCKADDR)
    assert world.call(program, 8, taddr).value(string) == b"10.0.0.5.8.1"


@versions
@pytest.mark.parametrize(
    "text",
    [b"", b"10.0.0.5", b"10.0.0.5.8.256", b"10.0.0.5.08.1", b"1.2.3.4.5.6.7", b"a.b.c.d.1.2",
     b"10.0.0.5.+8.1", b"10.0.0.5.8.1 ", b"10.0.0.5.8.-1", b"\xff.0.0.5.8.1", b"10.0.0.256.8.1"],
)  # fmt: skip
def test_what_is_no_address_is_none(world: World, program: Program, text: bytes) -> None:
    assert world.call(program, 7, text).value(netbuf) == netbuf(0, b"")


@versions
@pytest.mark.parametrize("buf", [b"", SOCKADDR[:15], SOCKADDR + b"\0", b"\x0a" + SOCKADDR[1:]])
def test_what_is_no_transport_address_is_none(world: World, program: Program, buf: bytes) -> None:
    assert world.call(program, 8, netbuf(16, buf)).value(string) == b""


def test_universal_addresses_split_the_port() -> None:
    for port in (0, 1, 111, 255, 256, 2049, 65535):
        assert parse_uaddr(uaddr("10.0.0.5", port)) == Endpoint("10.0.0.5", port)


# --- IPv6 ----------------------------------------------------------------------------------------


class World6(World):
    """The same, with MOUNT over IPv6 as well."""

    def __init__(self) -> None:
        super().__init__()
        mount = Program(MOUNT, 4, "mount")
        netids = ("tcp", "udp", "tcp6", "udp6")
        self.registry.add(mount, None, self.pending.append, port=20048, netids=netids)
        rpcbind = Rpcbind(self.registry, self.counters, FixedClock())
        for program in rpcbind.programs:
            self.registry.add(
                program, rpcbind, self.pending.append, port=PORT, netids=("tcp6", "udp6")
            )


@versions
@pytest.mark.parametrize(
    ("netid", "address"),
    [
        ("tcp6", b"fd00::5.78.80"),
        ("udp6", b"fd00::5.78.80"),
        ("tcp", b"10.0.0.5.78.80"),
        ("udp", b"10.0.0.5.78.80"),
    ],
)
def test_getaddr_answers_in_the_family_that_it_is_asked_by(
    program: Program, netid: str, address: bytes
) -> None:
    """Whatever netid is in the arguments: RFC 1833 section 2.2.1."""
    for said in (b"tcp", b"udp6", b""):
        assert World6().call(program, 3, asked(MOUNT, 4, said), netid).value(string) == address


@versions
def test_a_list_has_all_transports_each_as_the_caller_can_use_it(program: Program) -> None:
    over4 = World6().call(program, 4, None, "tcp").value(rpcblist)
    over6 = World6().call(program, 4, None, "tcp6").value(rpcblist)
    assert {(e.r_netid, e.r_addr) for e in over4 if e.r_vers == 4 and e.r_prog == MOUNT} == {
        (b"tcp", b"10.0.0.5.78.80"),
        (b"udp", b"10.0.0.5.78.80"),
        (b"tcp6", b"::.78.80"),
        (b"udp6", b"::.78.80"),
    }
    assert {(e.r_netid, e.r_addr) for e in over6 if e.r_vers == 4 and e.r_prog == MOUNT} == {
        (b"tcp", b"0.0.0.0.78.80"),
        (b"udp", b"0.0.0.0.78.80"),
        (b"tcp6", b"fd00::5.78.80"),
        (b"udp6", b"fd00::5.78.80"),
    }


def test_getaddrlist_says_what_each_transport_is() -> None:
    assert World6().call(rpcb4, 11, asked(MOUNT, 4), "udp6").value(rpcb_entry_list) == [
        rpcb_entry(b"0.0.0.0.78.80", b"tcp", 3, b"inet", b"tcp"),
        rpcb_entry(b"0.0.0.0.78.80", b"udp", 1, b"inet", b"udp"),
        rpcb_entry(b"fd00::5.78.80", b"tcp6", 3, b"inet6", b"tcp"),
        rpcb_entry(b"fd00::5.78.80", b"udp6", 1, b"inet6", b"udp"),
    ]


def test_version_2_lists_ipv4_alone() -> None:
    listed = World6().call(pmap2, 4, None, "tcp6").value(pmaplist)
    assert [m.prot for m in listed if (m.prog, m.vers) == (MOUNT, 4)] == [TCP, UDP]


SOCKADDR6 = bytes.fromhex("0a00 0801 00000000 fd000000000000000000000000000005 00000000")


@versions
def test_ipv6_addresses_are_converted(program: Program) -> None:
    taddr = World6().call(program, 7, b"fd00::5.8.1").value(netbuf)
    assert taddr == netbuf(28, SOCKADDR6)
    assert World6().call(program, 8, taddr).value(string) == b"fd00::5.8.1"


def test_a_remote_call_over_udp6_is_met_with_silence_too() -> None:
    """As over UDP: it may have been a multicast."""
    world = World6()
    call = world.client.call(rpcb3, 5, proxied(MOUNT, 4, 5))
    transport = Loopback("udp6", local=Endpoint("fd00::5", PORT))
    world.server.datagram(transport, call)
    world.serve()
    assert not transport.sent


def test_a_string_is_bounded(world: World) -> None:
    long = b"o" * (limits.RPCBIND_STRING_BYTES_MAX + 1)
    header = world.client.header(RPCBIND, 3, 3)
    arguments = bytes(16) + len(long).to_bytes(4, "big") + long
    assert world.ask(header + arguments, PORT).body == garbage_args()


# --- remote calls --------------------------------------------------------------------------------


def proxied(prog: int, vers: int, proc: int, args: bytes = b"") -> Any:
    return rpcb_rmtcallargs(prog, vers, proc, args)


@netids
def test_a_call_of_procedure_0_is_answered_without_a_call(world: World, netid: str) -> None:
    """What `rpcinfo -b` asks to find out who has a program."""
    here = rpcb_rmtcallres(b"10.0.0.5.78.80", b"")
    for program, procedure in ((rpcb3, 5), (rpcb4, 5), (rpcb4, 10)):
        reply = world.call(program, procedure, proxied(MOUNT, 3, 0), netid)
        assert reply.value(rpcb_rmtcallres) == here
    reply = world.call(pmap2, 5, call_args(MOUNT, 3, 0, b""), netid)
    assert reply.value(call_result) == call_result(20048, b"")
    assert "mount3.null" not in world.counters


OTHERS = pytest.mark.parametrize(
    ("prog", "vers", "proc"), [(UNKNOWN, 1, 0), (MOUNT, 2, 0), (MOUNT, 3, 5), (RPCBIND, 4, 4)]
)


@OTHERS
def test_anything_else_is_met_with_silence_by_udp(
    world: World, prog: int, vers: int, proc: int
) -> None:
    """Section 2.2.1: a broadcast must not bring errors from everybody."""
    calls = [
        world.client.call(pmap2, 5, call_args(prog, vers, proc, b"args")),
        world.client.call(rpcb3, 5, proxied(prog, vers, proc, b"args")),
        world.client.call(rpcb4, 5, proxied(prog, vers, proc, b"args")),
    ]
    for call in calls:
        transport = Loopback("udp", local=Endpoint("10.0.0.5", PORT))
        world.server.datagram(transport, call)
        world.serve()
        assert not transport.sent
    assert world.counters["rpc.silence"] == 3


@OTHERS
def test_where_nobody_broadcasts_an_error_is_told(
    world: World, prog: int, vers: int, proc: int
) -> None:
    error = proc_unavail() if proc else prog_unavail()
    args = proxied(prog, vers, proc, b"args")
    assert world.call(rpcb4, 10, args, "udp").body == error
    assert world.call(rpcb4, 10, args, "tcp").body == error
    assert world.call(rpcb4, 5, args, "tcp").body == error
    assert world.call(pmap2, 5, call_args(prog, vers, proc, b""), "tcp").body == error


def test_no_remote_call_is_answered_with_more_than_was_asked(world: World) -> None:
    for program, procedure in ((rpcb3, 5), (rpcb4, 5), (rpcb4, 10)):
        call = world.client.call(program, procedure, proxied(MOUNT, 3, 0))
        transport = Loopback("udp", local=Endpoint("10.0.0.5", PORT))
        world.server.datagram(transport, call)
        world.serve()
        assert len(transport.sent[0][0]) <= len(call)


# --- statistics ----------------------------------------------------------------------------------


def statistics(world: World) -> list[rpcb_stat]:
    found: list[rpcb_stat] = world.call(rpcb4, 12).value(rpcb_stat_byvers)
    return found


def test_statistics_count_what_was_asked(world: World) -> None:
    world.call(pmap2, 0)
    world.call(pmap2, 3, mapping(NFS, 3, TCP, 0))
    world.call(pmap2, 3, mapping(NFS, 3, TCP, 0))
    world.call(pmap2, 3, mapping(NFS, 3, UDP, 0))
    world.call(rpcb3, 3, asked(MOUNT, 3), "udp")
    world.call(rpcb4, 9, asked(NFS, 2))
    world.call(rpcb4, 10, proxied(MOUNT, 3, 0))
    world.call(rpcb4, 10, proxied(MOUNT, 3, 1))
    two, three, four = statistics(world)
    assert two.info == [1, 0, 0, 3, *[0] * 9]
    assert two.addrinfo == [
        rpcbs_addrlist(NFS, 3, 2, 0, b"tcp"),
        rpcbs_addrlist(NFS, 3, 0, 1, b"udp"),
    ]
    assert three.info == [0, 0, 0, 1, *[0] * 9]
    assert three.addrinfo == [rpcbs_addrlist(MOUNT, 3, 1, 0, b"udp")]
    assert four.info == [*[0] * 9, 1, 2, 0, 1]
    assert four.addrinfo == [rpcbs_addrlist(NFS, 2, 0, 1, b"tcp")]
    assert four.rmtinfo == [
        rpcbs_rmtcalllist(MOUNT, 3, 0, 1, 0, 1, b"tcp"),
        rpcbs_rmtcalllist(MOUNT, 3, 1, 0, 1, 1, b"tcp"),
    ]
    assert (four.setinfo, four.unsetinfo) == (0, 0)


def test_statistics_are_bounded(world: World) -> None:
    for prog in range(limits.RPCBIND_STATISTICS_MAX + 10):
        world.call(pmap2, 3, mapping(prog, 1, TCP, 0))
        world.call(rpcb4, 10, proxied(prog, 1, 0))
    two, _, four = statistics(world)
    assert len(two.addrinfo) == len(four.rmtinfo) == limits.RPCBIND_STATISTICS_MAX
    assert two.info[3] == limits.RPCBIND_STATISTICS_MAX + 10


# --- what is not there ---------------------------------------------------------------------------


@netids
def test_other_versions_and_procedures_are_refused(world: World, netid: str) -> None:
    client = world.client
    assert world.ask(client.header(RPCBIND, 1, 0), PORT, netid).body == prog_mismatch(2, 4)
    assert world.ask(client.header(RPCBIND, 5, 0), PORT, netid).body == prog_mismatch(2, 4)
    assert world.ask(client.header(RPCBIND, 2, 6), PORT, netid).body == proc_unavail()
    assert world.ask(client.header(RPCBIND, 3, 9), PORT, netid).body == proc_unavail()
    assert world.ask(client.header(RPCBIND, 4, 13), PORT, netid).body == proc_unavail()
    assert world.ask(client.header(NFS, 3, 0), PORT, netid).body == prog_unavail()
