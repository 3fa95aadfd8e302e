"""The MOUNT protocol: version 3 (RFC 1813 appendix I) and its elders 1 and 2 (RFC 1094 appendix A).

Version 2 is version 1 with one procedure more, PATHCONF, whose reply X/Open's XNFS describes.
A path is unbounded here, so that one of more than MNTPATHLEN bytes is answered
MNT3ERR_NAMETOOLONG and not taken for garbage.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from appliance.oncrpc.xdr import Chain, Opaque, int32, opaque, struct, uint32

MOUNT_PROGRAM: Final = 100005
MOUNT_V1: Final = 1
MOUNT_V2: Final = 2
MOUNT_V3: Final = 3

# I.4 Sizes, basic data types

MNTPATHLEN: Final = 1024
MNTNAMLEN: Final = 255
FHSIZE: Final = 32  # version 1 and 2
FHSIZE3: Final = 64

fhandle = Annotated[bytes, Opaque(size=FHSIZE)]
fhandle3 = Annotated[bytes, Opaque(max=FHSIZE3)]
dirpath = opaque
name = Annotated[bytes, Opaque(max=MNTNAMLEN)]


class mountstat3(IntEnum):
    MNT3_OK = 0
    MNT3ERR_PERM = 1
    MNT3ERR_NOENT = 2
    MNT3ERR_IO = 5
    MNT3ERR_ACCES = 13
    MNT3ERR_NOTDIR = 20
    MNT3ERR_INVAL = 22
    MNT3ERR_NAMETOOLONG = 63
    MNT3ERR_NOTSUPP = 10004
    MNT3ERR_SERVERFAULT = 10006


# MNT


@struct
class mountres3_ok:
    fhandle: fhandle3
    auth_flavors: list[int32]


@struct
class fhstatus_ok:  # version 1 and 2; what goes with another status is nothing
    fhandle: fhandle


# DUMP


@struct
class mountbody:
    ml_hostname: name
    ml_directory: dirpath


@struct
class mountlist:
    entries: Annotated[list[mountbody], Chain]


# EXPORT


@struct
class groupnode:
    gr_name: name


@struct
class exportnode:
    ex_dir: dirpath
    ex_groups: Annotated[list[groupnode], Chain]


@struct
class exports:
    entries: Annotated[list[exportnode], Chain]


# PATHCONF (version 2)


@struct
class ppathcnf:
    pc_link_max: int32
    pc_max_canon: int32  # this and what follows are shorts and bytes, which XDR widens
    pc_max_input: int32
    pc_name_max: int32
    pc_path_max: int32
    pc_pipe_buf: int32
    pc_vdisable: uint32
    pc_xxx: int32
    pc_mask: int32
    pc_mask_more: int32


PC_ERROR: Final = 1 << 0
PC_CHOWN_RESTRICTED: Final = 1 << 7
PC_NO_TRUNC: Final = 1 << 8
"""Bits of pc_mask: nothing of it is known; two limits that either hold or do not."""
