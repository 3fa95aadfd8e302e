"""Does somebody else read our types as we mean them? tshark dissects every call and reply.

Server and test client are made of the same protocol.py, so a field in the wrong place would not be
noticed by either. Here every field has a value of its own, and has to come out under its name.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import dpkt
import pytest

from appliance.nfsd.v3.procedures import nfs3
from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    ACCESS3resok,
    BlockDevice,
    COMMIT3args,
    COMMIT3resok,
    CREATE3args,
    CREATE3resok,
    DontChange,
    Exclusive,
    FSINFO3args,
    FSINFO3resok,
    FSSTAT3args,
    FSSTAT3resok,
    GETATTR3args,
    GETATTR3resok,
    LINK3args,
    LINK3resok,
    LOOKUP3args,
    LOOKUP3resok,
    MKDIR3args,
    MKDIR3resok,
    MKNOD3args,
    MKNOD3resok,
    PATHCONF3args,
    PATHCONF3resok,
    READ3args,
    READ3resok,
    READDIR3args,
    READDIR3resok,
    READDIRPLUS3args,
    READDIRPLUS3resok,
    READLINK3args,
    READLINK3resok,
    REMOVE3args,
    REMOVE3resok,
    RENAME3args,
    RENAME3resok,
    RMDIR3args,
    RMDIR3resok,
    SETATTR3args,
    SETATTR3resok,
    SetToClientTime,
    SetToServerTime,
    SYMLINK3args,
    SYMLINK3resok,
    Unchecked,
    WRITE3args,
    WRITE3resok,
    devicedata3,
    dirlist3,
    dirlistplus3,
    diropargs3,
    entry3,
    entryplus3,
    fattr3,
    ftype3,
    nfstime3,
    sattr3,
    specdata3,
    stable_how,
    symlinkdata3,
    wcc_attr,
    wcc_data,
)
from appliance.oncrpc.message import success_reply
from tests.sim.nfs_client import PROCEDURES
from tests.sim.rpc_client import RpcClient

HANDLE, OTHER = b"\xaa" * 20, b"\xbb" * 27
VERF, COOKIEVERF = b"verifier", b"cookieve"

ATTRIBUTES = fattr3(
    ftype3.NF3CHR,
    0o4751,
    103,
    104,
    105,
    106 << 32,
    107 << 32,
    specdata3(108, 109),
    110,
    111 << 32,
    nfstime3(112, 113),
    nfstime3(114, 115),
    nfstime3(116, 117),
)
SHOWN = """Type: Character Special Device (4)|Mode: 04751|nlink: 103|uid: 104|gid: 105|
size: 455266533376|used: 459561500672|specdata1: 108|specdata2: 109|(110)|fileid: 476741369856|
seconds: 112|nano seconds: 113|seconds: 114|nano seconds: 115|seconds: 116|nano seconds: 117|"""

WCC = wcc_data(wcc_attr(201 << 32, nfstime3(202, 203), nfstime3(204, 205)), ATTRIBUTES)
SHOWN_WCC = (
    "size: 863288426496|seconds: 202|nano seconds: 203|seconds: 204|nano seconds: 205|" + SHOWN
)

NEW = sattr3(0o640, 301, 302, 303 << 32, SetToServerTime(), SetToClientTime(nfstime3(304, 305)))
SHOWN_NEW = """Mode: 0640|uid: 301|gid: 302|size: 1301375090688|set to server time (1)|
set to client time (2)|seconds: 304|nano seconds: 305|"""

A_HANDLE = "FileHandle: " + HANDLE.hex() + "|"
ANOTHER = "FileHandle: " + OTHER.hex() + "|"
WHERE = diropargs3(HANDLE, b"a-name")
NAMED = A_HANDLE + "Name: a-name|"
MADE = ANOTHER + SHOWN + SHOWN_WCC

Case = tuple[Any, str, Any, str]
CASES: list[Case] = [
    (GETATTR3args(HANDLE), A_HANDLE, GETATTR3resok(ATTRIBUTES), SHOWN),
    (
        SETATTR3args(HANDLE, NEW, nfstime3(306, 307)),
        A_HANDLE + SHOWN_NEW + "guard|seconds: 306|nano seconds: 307|",
        SETATTR3resok(WCC),
        SHOWN_WCC,
    ),
    (LOOKUP3args(WHERE), NAMED, LOOKUP3resok(OTHER, ATTRIBUTES, ATTRIBUTES), ANOTHER + SHOWN * 2),
    (
        ACCESS3args(HANDLE, 0x3F),
        A_HANDLE + "Check access: 0x3f|",
        ACCESS3resok(ATTRIBUTES, 0x0D),
        SHOWN + "Access rights (of requested): 0x0d|",
    ),
    (
        READLINK3args(HANDLE),
        A_HANDLE,
        READLINK3resok(ATTRIBUTES, b"a-text"),
        SHOWN + "a-text|",
    ),
    (
        READ3args(HANDLE, 401, 402),
        A_HANDLE + "offset: 401|count: 402|",
        READ3resok(ATTRIBUTES, 5, True, [b"hello"]),
        SHOWN + "count: 5|EOF: Yes|length: 5|",
    ),
    (
        WRITE3args(HANDLE, 403, 5, stable_how.DATA_SYNC, [b"hello"]),
        A_HANDLE + "offset: 403|count: 5|Stable: DATA_SYNC (1)|length: 5|",
        WRITE3resok(WCC, 404, stable_how.FILE_SYNC, VERF),
        SHOWN_WCC + "count: 404|Committed: FILE_SYNC (2)|Verifier|",
    ),
    (
        CREATE3args(WHERE, Unchecked(NEW)),
        NAMED + "Create Mode: UNCHECKED (0)|" + SHOWN_NEW,
        CREATE3resok(OTHER, ATTRIBUTES, WCC),
        MADE,
    ),
    (
        CREATE3args(WHERE, Exclusive(VERF)),
        NAMED + "Create Mode: EXCLUSIVE (2)|Verifier|",
        CREATE3resok(None, None, wcc_data()),
        "no value (0)|no value (0)|no value (0)|no value (0)|",
    ),
    (MKDIR3args(WHERE, NEW), NAMED + SHOWN_NEW, MKDIR3resok(OTHER, ATTRIBUTES, WCC), MADE),
    (
        SYMLINK3args(WHERE, symlinkdata3(NEW, b"a-text")),
        NAMED + SHOWN_NEW + "a-text|",
        SYMLINK3resok(OTHER, ATTRIBUTES, WCC),
        MADE,
    ),
    (
        MKNOD3args(WHERE, BlockDevice(devicedata3(NEW, specdata3(405, 406)))),
        NAMED + "Type: Block Special Device (3)|" + SHOWN_NEW + "specdata1: 405|specdata2: 406|",
        MKNOD3resok(OTHER, ATTRIBUTES, WCC),
        MADE,
    ),
    (REMOVE3args(WHERE), NAMED, REMOVE3resok(WCC), SHOWN_WCC),
    (RMDIR3args(WHERE), NAMED, RMDIR3resok(WCC), SHOWN_WCC),
    (
        RENAME3args(WHERE, diropargs3(OTHER, b"new-name")),
        NAMED + ANOTHER + "Name: new-name|",
        RENAME3resok(WCC, WCC),
        SHOWN_WCC * 2,
    ),
    (
        LINK3args(OTHER, WHERE),
        ANOTHER + NAMED,
        LINK3resok(ATTRIBUTES, WCC),
        SHOWN + SHOWN_WCC,
    ),
    (
        READDIR3args(HANDLE, 407, COOKIEVERF, 408),
        A_HANDLE + "cookie: 407|Verifier|count: 408|",
        READDIR3resok(
            ATTRIBUTES,
            COOKIEVERF,
            dirlist3([entry3(409, b"one", 410), entry3(411, b"four", 412)], True),
        ),
        SHOWN + "Verifier|File ID: 409|Name: one|Cookie: 410|"
        "File ID: 411|Name: four|Cookie: 412|EOF: 1|",
    ),
    (
        READDIRPLUS3args(HANDLE, 413, COOKIEVERF, 414, 415),
        A_HANDLE + "cookie: 413|Verifier|dircount: 414|maxcount: 415|",
        READDIRPLUS3resok(
            ATTRIBUTES,
            COOKIEVERF,
            dirlistplus3([entryplus3(416, b"a-name", 417, ATTRIBUTES, OTHER)], False),
        ),
        SHOWN + "Verifier|File ID: 416|Name: a-name|Cookie: 417|" + SHOWN + ANOTHER + "EOF: 0|",
    ),
    (
        FSSTAT3args(HANDLE),
        A_HANDLE,
        FSSTAT3resok(ATTRIBUTES, 501, 502, 503, 504, 505, 506, 507),
        SHOWN + "Total bytes: 501|Free bytes: 502|Available free bytes: 503|"
        "Total file slots: 504|Free file slots: 505|Available free file slots: 506|invarsec: 507|",
    ),
    (
        FSINFO3args(HANDLE),
        A_HANDLE,
        FSINFO3resok(ATTRIBUTES, 601, 602, 603, 604, 605, 606, 607, 608, nfstime3(609, 610), 0x1B),
        SHOWN + "rtmax: 601|rtpref: 602|rtmult: 603|wtmax: 604|wtpref: 605|wtmult: 606|"
        "dtpref: 607|maxfilesize: 608|609.000000610 seconds|Properties: 0x0000001b|",
    ),
    (
        PATHCONF3args(HANDLE),
        A_HANDLE,
        PATHCONF3resok(ATTRIBUTES, 701, 702, True, False, True, False),
        SHOWN + "linkmax: 701|name_max: 702|no_trunc: Yes|chown_restricted: No|"
        "case_insensitive: Yes|case_preserving: No|",
    ),
    (
        COMMIT3args(HANDLE, 801, 802),
        A_HANDLE + "offset: 801|count: 802|",
        COMMIT3resok(WCC, VERF),
        SHOWN_WCC + "Verifier|",
    ),
    (
        SETATTR3args(HANDLE, sattr3(atime=DontChange())),
        A_HANDLE + "no value (0)|no value (0)|no value (0)|no value (0)|don't change (0)|"
        "don't change (0)|no value (0)|",
        SETATTR3resok(wcc_data()),
        "no value (0)|no value (0)|",
    ),
]


def packet(data: bytes, *, from_client: bool, number: int) -> bytes:
    """A UDP datagram in a frame."""
    ends = [(b"\x0a\0\0\x09", 700), (b"\x0a\0\0\x05", 2049)]
    (source, sport), (destination, dport) = ends if from_client else reversed(ends)
    udp = dpkt.udp.UDP(sport=sport, dport=dport, data=data)
    udp.ulen = 8 + len(data)
    ip = dpkt.ip.IP(src=source, dst=destination, p=17, id=number, data=udp)
    ip.len = 28 + len(data)
    return bytes(dpkt.ethernet.Ethernet(src=b"\2" * 6, dst=b"\2" * 6, data=ip))


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What tshark says of each call and each reply of CASES, in order."""
    client = RpcClient()
    capture: Path = tmp_path_factory.mktemp("nfs3") / "cases.pcap"
    with capture.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, (args, _, result, _) in enumerate(CASES):
            procedure = PROCEDURES[type(args)]
            call = client.call(nfs3, procedure.number, args)
            body: list[Any] = [bytes(4), *procedure.result.encode(result)]
            reply = b"".join(success_reply(client.xid, [b"".join(body)], marked=False))
            writer.writepkt(packet(call, from_client=True, number=2 * number), ts=2 * number)
            writer.writepkt(
                packet(reply, from_client=False, number=2 * number + 1), ts=2 * number + 1
            )
    text = subprocess.run(
        ["tshark", "-n", "-r", capture, "-V", "-o", "nfs.file_name_snooping:FALSE"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [
        "Network File System" + frame.partition("Network File System")[2]
        for frame in text.split("\nFrame ")
    ]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_field_comes_out_under_its_name(dissected: list[str], number: int) -> None:
    args, asked, _, answered = CASES[number]
    name = PROCEDURES[type(args)].name.upper()
    for text, expected in (dissected[2 * number], asked), (dissected[2 * number + 1], answered):
        assert f"[V3 Procedure: {name} (" in text
        assert "Malformed" not in text and "Data (" not in text
        at = 0
        for words in expected.replace("\n", "").split("|"):
            found = text.find(words, at)
            assert found >= 0, f"{words!r} is not in, or not in its place:\n{text}"
            at = found + len(words)


def test_every_procedure_is_among_the_cases() -> None:
    assert {PROCEDURES[type(args)].number for args, *_ in CASES} == set(nfs3.procedures) - {0}
