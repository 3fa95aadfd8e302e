"""NFS version 3: the procedures of RFC 1813 section 3.3, in its order.

Every procedure: handles become nodes (BADHANDLE, STALE, the rights of the caller), the user acts,
and the reply tells the attributes of everything that was touched, also when it failed. What may be
done to a file is not decided here but in vfs/user.py; how attributes come before and after a change
is in wcc.py.
"""

from __future__ import annotations

from typing import Final, assert_never

from appliance import limits
from appliance.nfsd.v3 import directories, protocol
from appliance.nfsd.v3.attributes import STATUS, changes, encoded, post_op, same_ctime, wcc
from appliance.nfsd.v3.call import NfsCall, NfsError
from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    ACCESS3resfail,
    ACCESS3resok,
    BlockDevice,
    CharacterDevice,
    COMMIT3args,
    COMMIT3resfail,
    COMMIT3resok,
    CREATE3args,
    CREATE3resfail,
    CREATE3resok,
    Exclusive,
    Fifo,
    FSINFO3args,
    FSINFO3resfail,
    FSINFO3resok,
    FSSTAT3args,
    FSSTAT3resfail,
    FSSTAT3resok,
    GETATTR3args,
    GETATTR3resok,
    Guarded,
    LINK3args,
    LINK3resfail,
    LINK3resok,
    LOOKUP3args,
    LOOKUP3resfail,
    LOOKUP3resok,
    MKDIR3args,
    MKDIR3resfail,
    MKDIR3resok,
    MKNOD3args,
    MKNOD3resfail,
    MKNOD3resok,
    PATHCONF3args,
    PATHCONF3resfail,
    PATHCONF3resok,
    READ3args,
    READ3resfail,
    READ3resok,
    READDIR3args,
    READDIR3resfail,
    READDIR3resok,
    READDIRPLUS3args,
    READDIRPLUS3resfail,
    READDIRPLUS3resok,
    READLINK3args,
    READLINK3resfail,
    READLINK3resok,
    REMOVE3args,
    REMOVE3resfail,
    REMOVE3resok,
    RENAME3args,
    RENAME3resfail,
    RENAME3resok,
    RMDIR3args,
    RMDIR3resfail,
    RMDIR3resok,
    SETATTR3args,
    SETATTR3resfail,
    SETATTR3resok,
    Socket,
    SYMLINK3args,
    SYMLINK3resfail,
    SYMLINK3resok,
    Unchecked,
    WRITE3args,
    WRITE3resfail,
    WRITE3resok,
    nfsstat3,
    nfstime3,
    stable_how,
)
from appliance.oncrpc.program import Program
from appliance.vfs import access as rights
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import APPEND_ONLY, FileType, Node

TRANSFER_MULTIPLE: Final = 4096
"""What offsets and counts are best multiples of: a page of the client, a block of the server."""

_SECOND_NS: Final = 1_000_000_000


def status_of(error: VfsError | NfsError) -> nfsstat3:
    """What a failure is called in the protocol."""
    return error.status if isinstance(error, NfsError) else STATUS[error.code]


nfs3 = Program(
    protocol.NFS_PROGRAM,
    protocol.NFS_V3,
    "nfs",
    failures=(VfsError, NfsError),
    status=status_of,
    call=NfsCall,
)


@nfs3.procedure(1)
def getattr(call: NfsCall[None], args: GETATTR3args) -> GETATTR3resok:
    """3.3.1 GETATTR: get file attributes."""
    node = call.node(args.object)
    return GETATTR3resok(encoded(node.attributes(), node.filesystem.fsid))


@nfs3.procedure(2, cached=True)
def setattr(call: NfsCall[SETATTR3resfail], args: SETATTR3args) -> SETATTR3resok:
    """3.3.2 SETATTR: set file attributes."""
    node = call.node(args.object)
    with call.changing(node, failure=SETATTR3resfail) as change:
        if args.guard is not None and not same_ctime(change.before, args.guard):
            raise NfsError(nfsstat3.NFS3ERR_NOT_SYNC)
        call.user.set_attributes(node, changes(args.new_attributes))
    return SETATTR3resok(change.wcc)


@nfs3.procedure(3)
def lookup(call: NfsCall[LOOKUP3resfail], args: LOOKUP3args) -> LOOKUP3resok:
    """3.3.3 LOOKUP: look up a filename."""
    directory = call.node(args.what.dir)
    call.telling(directory, LOOKUP3resfail)
    node = call.lookup(directory, args.what.name)
    return LOOKUP3resok(call.handle(node), post_op(node), post_op(directory))


@nfs3.procedure(4)
def access(call: NfsCall[ACCESS3resfail], args: ACCESS3args) -> ACCESS3resok:
    """3.3.4 ACCESS: check access permission."""
    node = call.node(args.object)
    call.telling(node, ACCESS3resfail)
    granted = _access3(node, call.user.access(node))
    return ACCESS3resok(post_op(node), granted & args.access)


def _access3(node: Node, granted: int) -> int:
    """The bits of ACCESS for the rights that the mode bits give."""
    its = node.attributes()
    is_directory = its.type is FileType.DIRECTORY
    bits = 0
    if granted & rights.READ:
        bits |= protocol.ACCESS3_READ
    if granted & rights.EXECUTE:
        bits |= protocol.ACCESS3_LOOKUP if is_directory else protocol.ACCESS3_EXECUTE
    if granted & rights.WRITE and not is_directory:
        bits |= protocol.ACCESS3_MODIFY | protocol.ACCESS3_EXTEND
    if is_directory and granted & rights.WRITE and granted & rights.EXECUTE:
        bits |= protocol.ACCESS3_MODIFY | protocol.ACCESS3_EXTEND | protocol.ACCESS3_DELETE
    if its.flags & APPEND_ONLY:
        bits &= ~(protocol.ACCESS3_MODIFY | protocol.ACCESS3_DELETE)
    return bits


@nfs3.procedure(5)
def readlink(call: NfsCall[READLINK3resfail], args: READLINK3args) -> READLINK3resok:
    """3.3.5 READLINK: read from symbolic link."""
    node = call.node(args.symlink)
    call.telling(node, READLINK3resfail)
    text = call.user.readlink(node)
    return READLINK3resok(post_op(node), text)


@nfs3.procedure(6)
def read(call: NfsCall[READ3resfail], args: READ3args) -> READ3resok:
    """3.3.6 READ: read from file."""
    file = call.node(args.file)
    call.telling(file, READ3resfail)
    # No file reaches beyond `end`: what is asked for there is the end of file, and not an error.
    end = file.filesystem.limits.file_bytes_max
    offset = min(args.offset, end)
    count = min(args.count, call.data_bytes_max, end - offset)
    data, eof = call.user.read(file, offset, count)
    return READ3resok(post_op(file), sum(map(len, data)), eof, data)


@nfs3.procedure(7, cached=True)
def write(call: NfsCall[WRITE3resfail], args: WRITE3args) -> WRITE3resok:
    """3.3.7 WRITE: write to file."""
    file = call.node(args.file)
    if args.count != sum(map(len, args.data)):
        raise NfsError(nfsstat3.NFS3ERR_INVAL)
    verf = call.host.write_verifier  # from before, so that data lost meanwhile is written again
    with call.writing(file, WRITE3resfail) as change:
        count = call.user.write(file, args.offset, args.data)
    if args.stable is not stable_how.UNSTABLE:
        call.sync(file)
    return WRITE3resok(change.wcc, count, args.stable, verf)


@nfs3.procedure(8, cached=True)
def create(call: NfsCall[CREATE3resfail], args: CREATE3args) -> CREATE3resok:
    """3.3.8 CREATE: create a file."""
    directory, name = call.node(args.where.dir), args.where.name
    with call.changing(directory, failure=CREATE3resfail) as change:
        match args.how:
            case Unchecked(wishes):
                file = call.user.create_unchecked(directory, name, changes(wishes))
            case Guarded(wishes):
                file = call.user.create(directory, name, changes(wishes))
            case Exclusive(verf):
                file = call.user.create_exclusive(directory, name, verf)
            case _:
                assert_never(args.how)
        change.also(file)
    return CREATE3resok(call.handle(file), post_op(file), change.wcc)


@nfs3.procedure(9, cached=True)
def mkdir(call: NfsCall[MKDIR3resfail], args: MKDIR3args) -> MKDIR3resok:
    """3.3.9 MKDIR: create a directory."""
    directory, name = call.node(args.where.dir), args.where.name
    with call.changing(directory, failure=MKDIR3resfail) as change:
        made = change.also(call.user.mkdir(directory, name, changes(args.attributes)))
    return MKDIR3resok(call.handle(made), post_op(made), change.wcc)


@nfs3.procedure(10, cached=True)
def symlink(call: NfsCall[SYMLINK3resfail], args: SYMLINK3args) -> SYMLINK3resok:
    """3.3.10 SYMLINK: create a symbolic link."""
    directory, name = call.node(args.where.dir), args.where.name
    text = args.symlink.symlink_data
    with call.changing(directory, failure=SYMLINK3resfail) as change:
        wishes = changes(args.symlink.symlink_attributes)
        made = change.also(call.user.symlink(directory, name, text, wishes))
    return SYMLINK3resok(call.handle(made), post_op(made), change.wcc)


@nfs3.procedure(11, cached=True)
def mknod(call: NfsCall[MKNOD3resfail], args: MKNOD3args) -> MKNOD3resok:
    """3.3.11 MKNOD: create a special device."""
    directory, name = call.node(args.where.dir), args.where.name
    user, what = call.user, args.what
    with call.changing(directory, failure=MKNOD3resfail) as change:
        match what:
            case CharacterDevice(device) | BlockDevice(device):
                rdev = device.spec.specdata1, device.spec.specdata2
                wishes = changes(device.dev_attributes)
                made = user.mknod(directory, name, _DEVICES[type(what)], rdev, wishes)
            case Socket(wishes) | Fifo(wishes):
                made = user.mknod(directory, name, _DEVICES[type(what)], wishes=changes(wishes))
            case _:
                raise NfsError(nfsstat3.NFS3ERR_BADTYPE)
        change.also(made)
    return MKNOD3resok(call.handle(made), post_op(made), change.wcc)


_DEVICES: Final[dict[type, FileType]] = {
    CharacterDevice: FileType.CHARACTER_DEVICE,
    BlockDevice: FileType.BLOCK_DEVICE,
    Socket: FileType.SOCKET,
    Fifo: FileType.FIFO,
}


@nfs3.procedure(12, cached=True)
def remove(call: NfsCall[REMOVE3resfail], args: REMOVE3args) -> REMOVE3resok:
    """3.3.12 REMOVE: remove a file."""
    directory = call.node(args.object.dir)
    with call.changing(directory, failure=REMOVE3resfail) as change:
        call.user.remove(directory, args.object.name)
    return REMOVE3resok(change.wcc)


@nfs3.procedure(13, cached=True)
def rmdir(call: NfsCall[RMDIR3resfail], args: RMDIR3args) -> RMDIR3resok:
    """3.3.13 RMDIR: remove a directory."""
    directory = call.node(args.object.dir)
    with call.changing(directory, failure=RMDIR3resfail) as change:
        call.user.rmdir(directory, args.object.name)
    return RMDIR3resok(change.wcc)


@nfs3.procedure(14, cached=True)
def rename(call: NfsCall[RENAME3resfail], args: RENAME3args) -> RENAME3resok:
    """3.3.14 RENAME: rename a file or directory."""
    source, target = call.node(args.from_.dir), call.node(args.to.dir)
    with call.changing(source, target, failure=RENAME3resfail) as change:
        call.user.rename(source, args.from_.name, target, args.to.name)
    return RENAME3resok(*change.wccs)


@nfs3.procedure(15, cached=True)
def link(call: NfsCall[LINK3resfail], args: LINK3args) -> LINK3resok:
    """3.3.15 LINK: create a link to an object."""
    node, directory = call.node(args.file), call.node(args.link.dir)
    with call.changing(
        directory, failure=lambda dir_wcc: LINK3resfail(post_op(node), dir_wcc)
    ) as change:
        call.user.link(node, directory, args.link.name)
        change.also(node)
    attributes = post_op(node)
    call.on_failure(lambda: LINK3resfail(attributes, change.wcc))
    return LINK3resok(attributes, change.wcc)


@nfs3.procedure(16)
def readdir(call: NfsCall[READDIR3resfail], args: READDIR3args) -> READDIR3resok:
    """3.3.16 READDIR: read from directory."""
    directory = call.node(args.dir)
    call.telling(directory, READDIR3resfail)
    attributes = post_op(directory)
    room = min(args.count, call.data_bytes_max) - directories.fixed_bytes(attributes)
    entries = directories.dirlist3(call, directory, args.cookie, room)
    return READDIR3resok(attributes, directories.COOKIEVERF, entries)


@nfs3.procedure(17)
def readdirplus(call: NfsCall[READDIRPLUS3resfail], args: READDIRPLUS3args) -> READDIRPLUS3resok:
    """3.3.17 READDIRPLUS: extended read from directory."""
    directory = call.node(args.dir)
    call.telling(directory, READDIRPLUS3resfail)
    attributes = post_op(directory)
    room = min(args.maxcount, call.data_bytes_max) - directories.fixed_bytes(attributes)
    entries = directories.dirlistplus3(call, directory, args.cookie, args.dircount, room)
    return READDIRPLUS3resok(attributes, directories.COOKIEVERF, entries)


@nfs3.procedure(18)
def fsstat(call: NfsCall[FSSTAT3resfail], args: FSSTAT3args) -> FSSTAT3resok:
    """3.3.18 FSSTAT: get dynamic file system information."""
    node = call.node(args.fsroot)
    call.telling(node, FSSTAT3resfail)
    full = node.filesystem.statistics()
    return FSSTAT3resok(
        obj_attributes=post_op(node),
        tbytes=full.total_bytes,
        fbytes=full.free_bytes,
        abytes=full.available_bytes,
        tfiles=full.total_files,
        ffiles=full.free_files,
        afiles=full.available_files,
        invarsec=0,  # it may change at any time
    )


@nfs3.procedure(19)
def fsinfo(call: NfsCall[FSINFO3resfail], args: FSINFO3args) -> FSINFO3resok:
    """3.3.19 FSINFO: get static file system information."""
    node = call.node(args.fsroot)
    call.telling(node, FSINFO3resfail)
    its = node.filesystem.limits
    data_bytes_max = call.data_bytes_max
    return FSINFO3resok(
        obj_attributes=post_op(node),
        rtmax=data_bytes_max,
        rtpref=data_bytes_max,
        rtmult=TRANSFER_MULTIPLE,
        wtmax=data_bytes_max,
        wtpref=data_bytes_max,
        wtmult=TRANSFER_MULTIPLE,
        dtpref=min(limits.DIRECTORY_BYTES_PREFERRED, data_bytes_max),
        maxfilesize=its.file_bytes_max,
        time_delta=nfstime3(*divmod(its.time_granularity_ns, _SECOND_NS)),
        properties=_PROPERTIES,
    )


_PROPERTIES: Final = (
    protocol.FSF3_LINK
    | protocol.FSF3_SYMLINK
    | protocol.FSF3_HOMOGENEOUS
    | protocol.FSF3_CANSETTIME
)


@nfs3.procedure(20)
def pathconf(call: NfsCall[PATHCONF3resfail], args: PATHCONF3args) -> PATHCONF3resok:
    """3.3.20 PATHCONF: retrieve POSIX information."""
    node = call.node(args.object)
    call.telling(node, PATHCONF3resfail)
    its = node.filesystem.limits
    return PATHCONF3resok(
        obj_attributes=post_op(node),
        linkmax=its.link_count_max,
        name_max=its.name_bytes_max,
        no_trunc=True,
        chown_restricted=True,
        case_insensitive=False,
        case_preserving=True,
    )


@nfs3.procedure(21)
def commit(call: NfsCall[COMMIT3resfail], args: COMMIT3args) -> COMMIT3resok:
    """3.3.21 COMMIT: commit cached data on a server to stable storage."""
    file = call.node(args.file)
    call.on_failure(lambda: COMMIT3resfail(wcc(None, post_op(file))))
    call.sync(file)  # all of it, whatever the range: nobody waits longer for less
    now = post_op(file)  # nothing has changed by it, so this is before and after at once
    call.on_failure(lambda: COMMIT3resfail(wcc(None, now)))
    verf = call.host.write_verifier  # from afterwards, for the same reason as in WRITE
    return COMMIT3resok(wcc(now, now), verf)
