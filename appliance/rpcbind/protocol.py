"""The types of RFC 1833: rpcbind versions 3 and 4 (section 2.1), the port mapper (section 3.1).

Universal addresses are those of RFC 5665 section 5.2.3: the address as text, then the two bytes of
the port, as in 10.0.0.5.8.1 for port 2049.
"""

from __future__ import annotations

from typing import Annotated, Final

from appliance import limits
from appliance.oncrpc.xdr import Chain, Opaque, Size, int32, opaque, struct, uint32

RPCBIND_PROGRAM: Final = 100000
PMAP_VERS: Final = 2
RPCBVERS: Final = 3
RPCBVERS4: Final = 4

string = Annotated[bytes, Opaque(max=limits.RPCBIND_STRING_BYTES_MAX)]

# 2.1 RPCBIND


@struct
class rpcb:
    r_prog: uint32
    r_vers: uint32
    r_netid: string
    r_addr: string
    r_owner: string


rpcblist = Annotated[list[rpcb], Chain]


@struct
class rpcb_rmtcallargs:
    prog: uint32
    vers: uint32
    proc: uint32
    args: opaque


@struct
class rpcb_rmtcallres:
    addr: string
    results: opaque


@struct
class rpcb_entry:
    r_maddr: string
    r_nc_netid: string
    r_nc_semantics: uint32
    r_nc_protofmly: string
    r_nc_proto: string


rpcb_entry_list = Annotated[list[rpcb_entry], Chain]

NC_TPI_CLTS: Final = 1
NC_TPI_COTS_ORD: Final = 3
"""r_nc_semantics: datagrams, and a stream that is closed in order."""

NC_INET: Final = b"inet"
NC_INET6: Final = b"inet6"


@struct
class rpcbs_addrlist:
    prog: uint32
    vers: uint32
    success: int32
    failure: int32
    netid: string


@struct
class rpcbs_rmtcalllist:
    prog: uint32
    vers: uint32
    proc: uint32
    success: int32
    failure: int32
    indirect: int32  # of them, those by INDIRECT
    netid: string


RPCBSTAT_HIGHPROC: Final = 13


@struct
class rpcb_stat:
    info: Annotated[list[int32], Size(RPCBSTAT_HIGHPROC)]
    setinfo: int32
    unsetinfo: int32
    addrinfo: Annotated[list[rpcbs_addrlist], Chain]
    rmtinfo: Annotated[list[rpcbs_rmtcalllist], Chain]


RPCBVERS_STAT: Final = 3
rpcb_stat_byvers = Annotated[list[rpcb_stat], Size(RPCBVERS_STAT)]


@struct
class netbuf:
    maxlen: uint32
    buf: string


# 3.1 Port mapper

IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17


@struct
class mapping:
    prog: uint32
    vers: uint32
    prot: uint32
    port: uint32


pmaplist = Annotated[list[mapping], Chain]


@struct
class call_args:
    prog: uint32
    vers: uint32
    proc: uint32
    args: opaque


@struct
class call_result:
    port: uint32
    res: opaque
