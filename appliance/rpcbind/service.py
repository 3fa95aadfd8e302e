"""rpcbind: the procedures of RFC 1833, in the order of their numbers, for versions 2, 3 and 4.

It knows what the registry of this process knows, and nothing else: nobody can register from outside
(SET and UNSET answer false, as the RFC has it for callers on other machines).

CALLIT, BCAST and INDIRECT ask us to call another program and to pass its reply on. Such a call
would carry our address instead of the caller's past every check that goes by address, and by UDP
it would send large replies to whoever's address was forged. What they are honestly used for is to
find out who has a program (rpcinfo -b): a call of procedure 0, which has no result. That much is
answered, without a call, because a program that is registered here is running. Anything else is
met with silence where the call may have been a broadcast, as the RFC demands, and with an error
over TCP and by INDIRECT.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from struct import Struct
from typing import ClassVar, Final, Never, TypeVar

from appliance import limits
from appliance.clock import SECOND, Clock
from appliance.oncrpc.message import proc_unavail, prog_unavail
from appliance.oncrpc.program import Call, Program, Refused, Silence
from appliance.oncrpc.server import Registry, Service
from appliance.oncrpc.transport import Endpoint
from appliance.oncrpc.xdr import uint32
from appliance.rpcbind.protocol import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    NC_INET,
    NC_INET6,
    NC_TPI_CLTS,
    NC_TPI_COTS_ORD,
    PMAP_VERS,
    RPCBIND_PROGRAM,
    RPCBSTAT_HIGHPROC,
    RPCBVERS,
    RPCBVERS4,
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
from appliance.trace import Counters

Key = TypeVar("Key")

PROTOCOLS: Final = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
NUMBERS: Final = {netid: number for number, netid in PROTOCOLS.items()}
"""Version 2 knows nothing but IPv4."""

NETIDS: Final = {
    "tcp": (NC_TPI_COTS_ORD, NC_INET, b"tcp", "0.0.0.0"),
    "udp": (NC_TPI_CLTS, NC_INET, b"udp", "0.0.0.0"),
    "tcp6": (NC_TPI_COTS_ORD, NC_INET6, b"tcp", "::"),
    "udp6": (NC_TPI_CLTS, NC_INET6, b"udp", "::"),
}
"""Of each transport: what it can do, its family, its protocol, and how a list calls us where it is
asked for by the other family: by no address. Who asks by this one is told the one it has asked."""

OWNER: Final = b"superuser"

SOCKADDR_IN: Final = Struct("<H2s4s8x")
SOCKADDR_IN6: Final = Struct("<H2s4x16s4x")
AF_INET: Final = 2
AF_INET6: Final = 10
"""A transport address (TADDR) is what sockets of most hosts have: sockaddr_in or sockaddr_in6 of
little-endian machines with Linux, port and address in network order."""


class RpcbindCall(Call[Never]):
    """A call, of one of the three versions."""

    __slots__ = ()

    host: Rpcbind
    version: ClassVar[int]

    def address_of(self, prog: int, vers: int, netid: str, *, any_version: bool = False) -> bytes:
        """The universal address of a program; empty if it has none there."""
        service = self.host.find(prog, vers, netid, any_version=any_version)
        self.host.asked(self.version, prog, vers, netid, found=service is not None)
        return b"" if service is None else uaddr(self.local.address, service.port)

    def listed_at(self, service: Service, netid: str) -> bytes:
        """The universal address of a program in a list of all transports."""
        is_of_call = netid.endswith("6") is self.netid.endswith("6")
        return uaddr(self.local.address if is_of_call else NETIDS[netid][3], service.port)

    def null_by_proxy(self, prog: int, vers: int, proc: int, *, indirect: bool) -> Service:
        """The service that would answer a call of procedure 0; see the head of this file."""
        service = self.host.find(prog, vers, self.netid)
        good = service is not None and proc == 0
        self.host.called(self.version, prog, vers, proc, self.netid, good=good, indirect=indirect)
        if service is not None and proc == 0:
            return service
        if self.netid.startswith("udp") and not indirect:
            raise Silence
        raise Refused(prog_unavail() if service is None else proc_unavail())


class Call2(RpcbindCall):
    __slots__ = ()
    version = PMAP_VERS


class Call3(RpcbindCall):
    __slots__ = ()
    version = RPCBVERS


class Call4(RpcbindCall):
    __slots__ = ()
    version = RPCBVERS4


pmap2 = Program(RPCBIND_PROGRAM, PMAP_VERS, "rpcbind", call=Call2)
rpcb3 = Program(RPCBIND_PROGRAM, RPCBVERS, "rpcbind", call=Call3)
rpcb4 = Program(RPCBIND_PROGRAM, RPCBVERS4, "rpcbind", call=Call4)

# --- version 2 (section 3.2) ---------------------------------------------------------------------


@pmap2.procedure(1)
def pmap_set(call: Call2, args: mapping) -> bool:
    """PMAPPROC_SET: not from outside."""
    return False


@pmap2.procedure(2)
def pmap_unset(call: Call2, args: mapping) -> bool:
    """PMAPPROC_UNSET: not from outside."""
    return False


@pmap2.procedure(3)
def getport(call: Call2, args: mapping) -> uint32:
    """PMAPPROC_GETPORT: the port of exactly this version over exactly this protocol, or 0."""
    netid = PROTOCOLS.get(args.prot, "")
    service = call.host.find(args.prog, args.vers, netid)
    call.host.asked(call.version, args.prog, args.vers, netid, found=service is not None)
    return 0 if service is None else service.port


@pmap2.procedure(4)
def pmap_dump(call: Call2, args: None) -> pmaplist:
    """PMAPPROC_DUMP: all mappings."""
    return [
        mapping(service.program.number, service.program.version, NUMBERS[netid], service.port)
        for service, netid in call.host.mappings()
        if netid in NUMBERS
    ]


@pmap2.procedure(5)
def pmap_callit(call: Call2, args: call_args) -> call_result:
    """PMAPPROC_CALLIT: call a program for the caller."""
    service = call.null_by_proxy(args.prog, args.vers, args.proc, indirect=False)
    return call_result(service.port, b"")


# --- versions 3 and 4 (section 2.2) --------------------------------------------------------------


@rpcb3.procedure(1)
@rpcb4.procedure(1)
def set(call: RpcbindCall, args: rpcb) -> bool:
    """RPCBPROC_SET: not from outside."""
    return False


@rpcb3.procedure(2)
@rpcb4.procedure(2)
def unset(call: RpcbindCall, args: rpcb) -> bool:
    """RPCBPROC_UNSET: not from outside."""
    return False


@rpcb3.procedure(3)
@rpcb4.procedure(3)
def getaddr(call: RpcbindCall, args: rpcb) -> string:
    """RPCBPROC_GETADDR: where the program is, over the transport that the call came by.

    Where this version is not registered but another one is, that one's address: the program will
    say which versions it has (PROG_MISMATCH). GETVERSADDR is there for who does not want this.
    """
    return call.address_of(args.r_prog, args.r_vers, call.netid, any_version=True)


@rpcb3.procedure(4)
@rpcb4.procedure(4)
def dump(call: RpcbindCall, args: None) -> rpcblist:
    """RPCBPROC_DUMP: all mappings."""
    return [
        rpcb(
            service.program.number,
            service.program.version,
            netid.encode(),
            call.listed_at(service, netid),
            OWNER,
        )
        for service, netid in call.host.mappings()
    ]


@rpcb3.procedure(5)
@rpcb4.procedure(5)
def callit(call: RpcbindCall, args: rpcb_rmtcallargs) -> rpcb_rmtcallres:
    """RPCBPROC_CALLIT, in version 4 RPCBPROC_BCAST: call a program for the caller."""
    service = call.null_by_proxy(args.prog, args.vers, args.proc, indirect=False)
    return rpcb_rmtcallres(uaddr(call.local.address, service.port), b"")


@rpcb3.procedure(6)
@rpcb4.procedure(6)
def gettime(call: RpcbindCall, args: None) -> uint32:
    """RPCBPROC_GETTIME: seconds since 1970."""
    return call.host.seconds() & 0xFFFFFFFF


@rpcb3.procedure(7)
@rpcb4.procedure(7)
def uaddr2taddr(call: RpcbindCall, args: string) -> netbuf:
    """RPCBPROC_UADDR2TADDR: the bytes of an address; none if it is not one."""
    endpoint = parse_uaddr(args)
    if endpoint is None:
        return netbuf(0, b"")
    address, port = ip_address(endpoint.address), endpoint.port.to_bytes(2, "big")
    if isinstance(address, IPv6Address):
        return netbuf(SOCKADDR_IN6.size, SOCKADDR_IN6.pack(AF_INET6, port, address.packed))
    return netbuf(SOCKADDR_IN.size, SOCKADDR_IN.pack(AF_INET, port, address.packed))


@rpcb3.procedure(8)
@rpcb4.procedure(8)
def taddr2uaddr(call: RpcbindCall, args: netbuf) -> string:
    """RPCBPROC_TADDR2UADDR: the universal address of these bytes; empty if they are not one."""
    for form, its_family in ((SOCKADDR_IN, AF_INET), (SOCKADDR_IN6, AF_INET6)):
        if len(args.buf) == form.size:
            family, port, address = form.unpack(args.buf)
            if family == its_family:
                return uaddr(str(ip_address(address)), int.from_bytes(port, "big"))
    return b""


# --- version 4 only (section 2.2.2) --------------------------------------------------------------


@rpcb4.procedure(9)
def getversaddr(call: Call4, args: rpcb) -> string:
    """RPCBPROC_GETVERSADDR: where exactly this version of the program is."""
    return call.address_of(args.r_prog, args.r_vers, call.netid)


@rpcb4.procedure(10)
def indirect(call: Call4, args: rpcb_rmtcallargs) -> rpcb_rmtcallres:
    """RPCBPROC_INDIRECT: as CALLIT, but errors are told."""
    service = call.null_by_proxy(args.prog, args.vers, args.proc, indirect=True)
    return rpcb_rmtcallres(uaddr(call.local.address, service.port), b"")


@rpcb4.procedure(11)
def getaddrlist(call: Call4, args: rpcb) -> rpcb_entry_list:
    """RPCBPROC_GETADDRLIST: every transport of exactly this version of the program."""
    return [
        rpcb_entry(call.listed_at(service, netid), netid.encode(), *NETIDS[netid][:3])
        for service, netid in call.host.mappings()
        if (service.program.number, service.program.version) == (args.r_prog, args.r_vers)
    ]


@rpcb4.procedure(12)
def getstat(call: Call4, args: None) -> rpcb_stat_byvers:
    """RPCBPROC_GETSTAT: what was asked for, by version."""
    return [call.host.statistics(program) for program in call.host.programs]


# --- the service ---------------------------------------------------------------------------------


class Rpcbind:
    """The service: what the procedures find in `call.host`. Its calls come one at a time."""

    programs: Final = (pmap2, rpcb3, rpcb4)

    def __init__(self, registry: Registry, counters: Counters, clock: Clock) -> None:
        self._registry = registry
        self._counters = counters
        self._clock = clock
        self._asked: dict[tuple[int, int, int, str], list[int]] = {}
        self._called: dict[tuple[int, int, int, int, str], list[int]] = {}

    def mappings(self) -> Iterator[tuple[Service, str]]:
        """Every program that runs, with each of its transports."""
        return ((service, netid) for service in self._registry for netid in service.netids)

    def find(
        self, prog: int, vers: int, netid: str, *, any_version: bool = False
    ) -> Service | None:
        """The service that does this; with `any_version`, if there is none, the newest other."""
        services = {
            service.program.version: service
            for service, its_netid in self.mappings()
            if its_netid == netid and service.program.number == prog
        }
        if vers not in services and any_version and services:
            vers = max(services)
        return services.get(vers)

    def seconds(self) -> int:
        """Since 1970-01-01 UTC."""
        return self._clock.wall() // SECOND

    def asked(self, version: int, prog: int, vers: int, netid: str, *, found: bool) -> None:
        """Count who was looked for."""
        count(self._asked, (version, prog, vers, netid), not found)

    def called(
        self,
        version: int,
        prog: int,
        vers: int,
        proc: int,
        netid: str,
        *,
        good: bool,
        indirect: bool,
    ) -> None:
        """Count who was to be called."""
        counts = count(self._called, (version, prog, vers, proc, netid), not good)
        if counts and indirect:
            counts[2] += 1

    def statistics(self, program: Program) -> rpcb_stat:
        """What one version of rpcbind was asked."""
        procedures = program.procedures
        return rpcb_stat(
            info=[
                self._counters.get(procedures[number].counter, 0) if number in procedures else 0
                for number in range(RPCBSTAT_HIGHPROC)
            ],
            setinfo=0,
            unsetinfo=0,
            addrinfo=[
                rpcbs_addrlist(prog, vers, counts[0], counts[1], netid.encode())
                for (version, prog, vers, netid), counts in self._asked.items()
                if version == program.version
            ],
            rmtinfo=[
                rpcbs_rmtcalllist(prog, vers, proc, counts[0], counts[1], counts[2], netid.encode())
                for (version, prog, vers, proc, netid), counts in self._called.items()
                if version == program.version
            ],
        )


def count(table: dict[Key, list[int]], key: Key, index: int) -> list[int] | None:
    """Add one to the successes (0) or failures (1) of `key`; None: the table is full."""
    counts = table.get(key)
    if counts is None:
        if len(table) >= limits.RPCBIND_STATISTICS_MAX:
            return None
        counts = table[key] = [0, 0, 0]
    counts[index] += 1
    return counts


def uaddr(address: str, port: int) -> bytes:
    """A universal address."""
    return f"{address}.{port >> 8}.{port & 0xFF}".encode()


def parse_uaddr(text: bytes) -> Endpoint | None:
    """What a universal address says; None: it is not one."""
    try:
        address, high, low = text.decode("ascii").rsplit(".", 2)
        port = bytes((int(high), int(low)))
        endpoint = Endpoint(str(ip_address(address)), int.from_bytes(port, "big"))
    except ValueError:
        return None
    # int() is more generous than the RFC.
    return endpoint if uaddr(endpoint.address, endpoint.port) == text else None
