"""NFS version 3: the types of RFC 1813 sections 2.3 to 3.3, in its order and with its names.

The result unions are not declared: their first arm, `...resok`, is what a procedure returns, their
second, `...resfail`, what goes with an error status. A `post_op_attr` is an optional fattr3, a
`pre_op_attr` an optional wcc_attr, a `post_op_fh3` an optional handle.

Names and link texts are unbounded here: one that is too long is answered NFS3ERR_NAMETOOLONG, which
a decoder could not do.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from appliance.oncrpc.xdr import (
    Chain,
    Encoded,
    Opaque,
    arm,
    bulk,
    opaque,
    struct,
    uint32,
    uint64,
)

NFS_PROGRAM: Final = 100003
NFS_V3: Final = 3

# 2.4 Sizes

NFS3_FHSIZE: Final = 64
NFS3_COOKIEVERFSIZE: Final = 8
NFS3_CREATEVERFSIZE: Final = 8
NFS3_WRITEVERFSIZE: Final = 8

# 2.5 Basic data types

filename3 = opaque
nfspath3 = opaque
cookieverf3 = Annotated[bytes, Opaque(size=NFS3_COOKIEVERFSIZE)]
createverf3 = Annotated[bytes, Opaque(size=NFS3_CREATEVERFSIZE)]
writeverf3 = Annotated[bytes, Opaque(size=NFS3_WRITEVERFSIZE)]
nfs_fh3 = Annotated[bytes, Opaque(max=NFS3_FHSIZE)]


class nfsstat3(IntEnum):  # 2.6
    NFS3_OK = 0
    NFS3ERR_PERM = 1
    NFS3ERR_NOENT = 2
    NFS3ERR_IO = 5
    NFS3ERR_NXIO = 6
    NFS3ERR_ACCES = 13
    NFS3ERR_EXIST = 17
    NFS3ERR_XDEV = 18
    NFS3ERR_NODEV = 19
    NFS3ERR_NOTDIR = 20
    NFS3ERR_ISDIR = 21
    NFS3ERR_INVAL = 22
    NFS3ERR_FBIG = 27
    NFS3ERR_NOSPC = 28
    NFS3ERR_ROFS = 30
    NFS3ERR_MLINK = 31
    NFS3ERR_NAMETOOLONG = 63
    NFS3ERR_NOTEMPTY = 66
    NFS3ERR_DQUOT = 69
    NFS3ERR_STALE = 70
    NFS3ERR_REMOTE = 71
    NFS3ERR_BADHANDLE = 10001
    NFS3ERR_NOT_SYNC = 10002
    NFS3ERR_BAD_COOKIE = 10003
    NFS3ERR_NOTSUPP = 10004
    NFS3ERR_TOOSMALL = 10005
    NFS3ERR_SERVERFAULT = 10006
    NFS3ERR_BADTYPE = 10007
    NFS3ERR_JUKEBOX = 10008


class ftype3(IntEnum):
    NF3REG = 1
    NF3DIR = 2
    NF3BLK = 3
    NF3CHR = 4
    NF3LNK = 5
    NF3SOCK = 6
    NF3FIFO = 7


@struct
class specdata3:
    specdata1: uint32
    specdata2: uint32


@struct
class nfstime3:
    seconds: uint32
    nseconds: uint32


@struct
class fattr3:
    type: ftype3
    mode: uint32
    nlink: uint32
    uid: uint32
    gid: uint32
    size: uint64
    used: uint64
    rdev: specdata3
    fsid: uint64
    fileid: uint64
    atime: nfstime3
    mtime: nfstime3
    ctime: nfstime3


post_op_attr = fattr3 | Encoded | None


@struct
class wcc_attr:
    size: uint64
    mtime: nfstime3
    ctime: nfstime3


@struct
class wcc_data:
    before: wcc_attr | None = None
    after: post_op_attr = None


class time_how(IntEnum):
    DONT_CHANGE = 0
    SET_TO_SERVER_TIME = 1
    SET_TO_CLIENT_TIME = 2


@arm(time_how.DONT_CHANGE)
class DontChange:
    pass


@arm(time_how.SET_TO_SERVER_TIME)
class SetToServerTime:
    pass


@arm(time_how.SET_TO_CLIENT_TIME)
class SetToClientTime:
    time: nfstime3


set_time = DontChange | SetToServerTime | SetToClientTime


@struct
class sattr3:
    mode: uint32 | None = None
    uid: uint32 | None = None
    gid: uint32 | None = None
    size: uint64 | None = None
    atime: set_time = DontChange()
    mtime: set_time = DontChange()


@struct
class diropargs3:
    dir: nfs_fh3
    name: filename3


# 3.3.1 GETATTR


@struct
class GETATTR3args:
    object: nfs_fh3


@struct
class GETATTR3resok:
    obj_attributes: fattr3 | Encoded


# 3.3.2 SETATTR


@struct
class SETATTR3args:
    object: nfs_fh3
    new_attributes: sattr3
    guard: nfstime3 | None = None  # sattrguard3: the ctime that the client believes in


@struct
class SETATTR3resok:
    obj_wcc: wcc_data | Encoded


@struct
class SETATTR3resfail:
    obj_wcc: wcc_data | Encoded


# 3.3.3 LOOKUP


@struct
class LOOKUP3args:
    what: diropargs3


@struct
class LOOKUP3resok:
    object: nfs_fh3
    obj_attributes: post_op_attr
    dir_attributes: post_op_attr


@struct
class LOOKUP3resfail:
    dir_attributes: post_op_attr


# 3.3.4 ACCESS

ACCESS3_READ: Final = 0x0001
ACCESS3_LOOKUP: Final = 0x0002
ACCESS3_MODIFY: Final = 0x0004
ACCESS3_EXTEND: Final = 0x0008
ACCESS3_DELETE: Final = 0x0010
ACCESS3_EXECUTE: Final = 0x0020


@struct
class ACCESS3args:
    object: nfs_fh3
    access: uint32


@struct
class ACCESS3resok:
    obj_attributes: post_op_attr
    access: uint32


@struct
class ACCESS3resfail:
    obj_attributes: post_op_attr


# 3.3.5 READLINK


@struct
class READLINK3args:
    symlink: nfs_fh3


@struct
class READLINK3resok:
    symlink_attributes: post_op_attr
    data: nfspath3


@struct
class READLINK3resfail:
    symlink_attributes: post_op_attr


# 3.3.6 READ


@struct
class READ3args:
    file: nfs_fh3
    offset: uint64
    count: uint32


@struct
class READ3resok:
    file_attributes: post_op_attr
    count: uint32
    eof: bool
    data: bulk


@struct
class READ3resfail:
    file_attributes: post_op_attr


# 3.3.7 WRITE


class stable_how(IntEnum):
    UNSTABLE = 0
    DATA_SYNC = 1
    FILE_SYNC = 2


@struct
class WRITE3args:
    file: nfs_fh3
    offset: uint64
    count: uint32
    stable: stable_how
    data: bulk


@struct
class WRITE3resok:
    file_wcc: wcc_data | Encoded
    count: uint32
    committed: stable_how
    verf: writeverf3


@struct
class WRITE3resfail:
    file_wcc: wcc_data | Encoded


# 3.3.8 CREATE


class createmode3(IntEnum):
    UNCHECKED = 0
    GUARDED = 1
    EXCLUSIVE = 2


@arm(createmode3.UNCHECKED)
class Unchecked:
    obj_attributes: sattr3


@arm(createmode3.GUARDED)
class Guarded:
    obj_attributes: sattr3


@arm(createmode3.EXCLUSIVE)
class Exclusive:
    verf: createverf3


createhow3 = Unchecked | Guarded | Exclusive


@struct
class CREATE3args:
    where: diropargs3
    how: createhow3


@struct
class CREATE3resok:
    obj: nfs_fh3 | None
    obj_attributes: post_op_attr
    dir_wcc: wcc_data | Encoded


@struct
class CREATE3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.9 MKDIR


@struct
class MKDIR3args:
    where: diropargs3
    attributes: sattr3


@struct
class MKDIR3resok:
    obj: nfs_fh3 | None
    obj_attributes: post_op_attr
    dir_wcc: wcc_data | Encoded


@struct
class MKDIR3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.10 SYMLINK


@struct
class symlinkdata3:
    symlink_attributes: sattr3
    symlink_data: nfspath3


@struct
class SYMLINK3args:
    where: diropargs3
    symlink: symlinkdata3


@struct
class SYMLINK3resok:
    obj: nfs_fh3 | None
    obj_attributes: post_op_attr
    dir_wcc: wcc_data | Encoded


@struct
class SYMLINK3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.11 MKNOD


@struct
class devicedata3:
    dev_attributes: sattr3
    spec: specdata3


@arm(ftype3.NF3CHR)
class CharacterDevice:
    device: devicedata3


@arm(ftype3.NF3BLK)
class BlockDevice:
    device: devicedata3


@arm(ftype3.NF3SOCK)
class Socket:
    pipe_attributes: sattr3


@arm(ftype3.NF3FIFO)
class Fifo:
    pipe_attributes: sattr3


@arm(ftype3.NF3REG)
class NotByMknodRegular:
    pass


@arm(ftype3.NF3DIR)
class NotByMknodDirectory:
    pass


@arm(ftype3.NF3LNK)
class NotByMknodSymlink:
    pass


NotByMknod = NotByMknodRegular | NotByMknodDirectory | NotByMknodSymlink
mknoddata3 = (
    CharacterDevice
    | BlockDevice
    | Socket
    | Fifo
    | NotByMknodRegular
    | NotByMknodDirectory
    | NotByMknodSymlink
)


@struct
class MKNOD3args:
    where: diropargs3
    what: mknoddata3


@struct
class MKNOD3resok:
    obj: nfs_fh3 | None
    obj_attributes: post_op_attr
    dir_wcc: wcc_data | Encoded


@struct
class MKNOD3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.12 REMOVE


@struct
class REMOVE3args:
    object: diropargs3


@struct
class REMOVE3resok:
    dir_wcc: wcc_data | Encoded


@struct
class REMOVE3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.13 RMDIR


@struct
class RMDIR3args:
    object: diropargs3


@struct
class RMDIR3resok:
    dir_wcc: wcc_data | Encoded


@struct
class RMDIR3resfail:
    dir_wcc: wcc_data | Encoded


# 3.3.14 RENAME


@struct
class RENAME3args:
    from_: diropargs3  # `from` in the RFC, which Python keeps for itself
    to: diropargs3


@struct
class RENAME3resok:
    fromdir_wcc: wcc_data | Encoded
    todir_wcc: wcc_data | Encoded


@struct
class RENAME3resfail:
    fromdir_wcc: wcc_data | Encoded
    todir_wcc: wcc_data | Encoded


# 3.3.15 LINK


@struct
class LINK3args:
    file: nfs_fh3
    link: diropargs3


@struct
class LINK3resok:
    file_attributes: post_op_attr
    linkdir_wcc: wcc_data | Encoded


@struct
class LINK3resfail:
    file_attributes: post_op_attr
    linkdir_wcc: wcc_data | Encoded


# 3.3.16 READDIR


@struct
class READDIR3args:
    dir: nfs_fh3
    cookie: uint64
    cookieverf: cookieverf3
    count: uint32


@struct
class entry3:
    fileid: uint64
    name: filename3
    cookie: uint64


@struct
class dirlist3:
    entries: Annotated[list[entry3], Chain]
    eof: bool


@struct
class READDIR3resok:
    dir_attributes: post_op_attr
    cookieverf: cookieverf3
    reply: dirlist3 | Encoded


@struct
class READDIR3resfail:
    dir_attributes: post_op_attr


# 3.3.17 READDIRPLUS


@struct
class READDIRPLUS3args:
    dir: nfs_fh3
    cookie: uint64
    cookieverf: cookieverf3
    dircount: uint32
    maxcount: uint32


@struct
class entryplus3:
    fileid: uint64
    name: filename3
    cookie: uint64
    name_attributes: post_op_attr
    name_handle: nfs_fh3 | None


@struct
class dirlistplus3:
    entries: Annotated[list[entryplus3], Chain]
    eof: bool


@struct
class READDIRPLUS3resok:
    dir_attributes: post_op_attr
    cookieverf: cookieverf3
    reply: dirlistplus3 | Encoded


@struct
class READDIRPLUS3resfail:
    dir_attributes: post_op_attr


# 3.3.18 FSSTAT


@struct
class FSSTAT3args:
    fsroot: nfs_fh3


@struct
class FSSTAT3resok:
    obj_attributes: post_op_attr
    tbytes: uint64
    fbytes: uint64
    abytes: uint64
    tfiles: uint64
    ffiles: uint64
    afiles: uint64
    invarsec: uint32


@struct
class FSSTAT3resfail:
    obj_attributes: post_op_attr


# 3.3.19 FSINFO

FSF3_LINK: Final = 0x0001
FSF3_SYMLINK: Final = 0x0002
FSF3_HOMOGENEOUS: Final = 0x0008
FSF3_CANSETTIME: Final = 0x0010


@struct
class FSINFO3args:
    fsroot: nfs_fh3


@struct
class FSINFO3resok:
    obj_attributes: post_op_attr
    rtmax: uint32
    rtpref: uint32
    rtmult: uint32
    wtmax: uint32
    wtpref: uint32
    wtmult: uint32
    dtpref: uint32
    maxfilesize: uint64
    time_delta: nfstime3
    properties: uint32


@struct
class FSINFO3resfail:
    obj_attributes: post_op_attr


# 3.3.20 PATHCONF


@struct
class PATHCONF3args:
    object: nfs_fh3


@struct
class PATHCONF3resok:
    obj_attributes: post_op_attr
    linkmax: uint32
    name_max: uint32
    no_trunc: bool
    chown_restricted: bool
    case_insensitive: bool
    case_preserving: bool


@struct
class PATHCONF3resfail:
    obj_attributes: post_op_attr


# 3.3.21 COMMIT


@struct
class COMMIT3args:
    file: nfs_fh3
    offset: uint64
    count: uint32


@struct
class COMMIT3resok:
    file_wcc: wcc_data | Encoded
    verf: writeverf3


@struct
class COMMIT3resfail:
    file_wcc: wcc_data | Encoded
