"""RPC messages (RFC 5531 section 9): every reply to the byte, and the header of a call."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import limits
from appliance.oncrpc.auth import NOBODY, Credential, auth_flavor, auth_stat
from appliance.oncrpc.message import (
    NO_AUTH,
    Denied,
    NotACall,
    Refusal,
    auth_error,
    call_header,
    garbage_args,
    opaque_auth,
    proc_unavail,
    prog_mismatch,
    prog_unavail,
    refusal,
    rpc_mismatch,
    success_reply,
    system_err,
)
from tests.sim.rpc_client import RpcClient

XID = 0x01020304
ACCEPTED = "01020304 00000001 00000000 00000000 00000000"
DENIED = "01020304 00000001 00000001"

REFUSALS: list[tuple[Refusal, str]] = [
    (prog_unavail(), f"{ACCEPTED} 00000001"),
    (prog_mismatch(2, 4), f"{ACCEPTED} 00000002 00000002 00000004"),
    (proc_unavail(), f"{ACCEPTED} 00000003"),
    (garbage_args(), f"{ACCEPTED} 00000004"),
    (system_err(), f"{ACCEPTED} 00000005"),
    (rpc_mismatch(2, 2), f"{DENIED} 00000000 00000002 00000002"),
    (auth_error(auth_stat.AUTH_BADCRED), f"{DENIED} 00000001 00000001"),
    (auth_error(auth_stat.AUTH_REJECTEDCRED), f"{DENIED} 00000001 00000002"),
    (auth_error(auth_stat.AUTH_BADVERF), f"{DENIED} 00000001 00000003"),
    (auth_error(auth_stat.AUTH_TOOWEAK), f"{DENIED} 00000001 00000005"),
]


@pytest.mark.parametrize(("why", "expected"), REFUSALS)
def test_a_refusal_to_the_byte(why: Refusal, expected: str) -> None:
    message = bytes.fromhex(expected)
    assert refusal(XID, why, marked=False) == [message]
    assert refusal(XID, why, marked=True) == [pack(">I", 0x80000000 | len(message)) + message]


@pytest.mark.parametrize(("why", "expected"), REFUSALS)
def test_the_client_of_the_tests_understands_it(why: Refusal, expected: str) -> None:
    reply = RpcClient.reply(bytes.fromhex(expected))
    assert (reply.xid, reply.body) == (XID, why)


def test_a_small_reply_is_one_piece_with_its_mark() -> None:
    expected = bytes.fromhex(f"8000001c {ACCEPTED} 00000000") + b"body"
    assert success_reply(XID, [b"body"], marked=True) == [expected]
    assert success_reply(XID, [b"body"], marked=False) == [expected[4:]]
    assert success_reply(XID, [b"bo", memoryview(b"dy")], marked=True) == [expected]


def test_the_data_of_a_large_reply_is_not_copied() -> None:
    data = memoryview(bytearray(limits.REPLY_JOINED_BYTES_MAX))
    head, piece, padding = success_reply(XID, [b"head", data, b"\0"], marked=True)
    assert head[:4] == pack(">I", 0x80000000 | 24 + 4 + len(data) + 1)
    assert head[-4:] == b"head" and piece is data and padding == b"\0"


# --- the header of a call ------------------------------------------------------------------------


def test_a_call_is_understood() -> None:
    client = RpcClient(uid=1000, gid=100, gids=(4, 24), machine=b"me")
    head = client.header(100003, 3, 1, xid=XID) + b"arguments..."
    *said, at = call_header(head, {})
    assert said == [XID, 100003, 3, 1, Credential(auth_flavor.AUTH_SYS, 1000, 100, (4, 24))]
    assert head[at:] == b"arguments..."


def test_a_call_of_nobody() -> None:
    head = RpcClient(anonymous=True).header(100003, 3, 0, xid=XID)
    assert call_header(head, {}) == (XID, 100003, 3, 0, NOBODY, len(head))


def test_a_caller_is_decoded_once() -> None:
    client, known = RpcClient(uid=1000), dict[bytes, Credential]()
    first = call_header(client.header(100003, 3, 1), known)[4]
    assert call_header(client.header(100005, 3, 2) + b"more", known)[4] is first
    client.uid = 1001
    assert call_header(client.header(100003, 3, 1), known)[4].uid == 1001
    assert len(known) == 2


def test_the_memory_for_callers_is_bounded() -> None:
    known = dict[bytes, Credential]()
    for uid in range(limits.CREDENTIALS_KNOWN_MAX + 10):
        assert call_header(RpcClient(uid=uid).header(1, 1, 1), known)[4].uid == uid
        assert len(known) <= limits.CREDENTIALS_KNOWN_MAX


def denied(head: bytes) -> Denied:
    known = dict[bytes, Credential]()
    with pytest.raises(Denied) as caught:
        call_header(head, known)
    assert not known and caught.value.xid == XID
    return caught.value


@pytest.mark.parametrize("version", [0, 1, 3, 0xFFFFFFFF])
def test_another_version_of_rpc_is_told_ours(version: int) -> None:
    head = RpcClient().header(100003, 3, 1, xid=XID, rpcvers=version)
    assert denied(head).why == rpc_mismatch(2, 2)


SYS, SHORT, GSS = auth_flavor.AUTH_SYS, auth_flavor.AUTH_SHORT, auth_flavor.RPCSEC_GSS
NO_MACHINE = bytes(4)


@pytest.mark.parametrize(
    ("credential", "stat"),
    [
        (opaque_auth(SHORT, b""), auth_stat.AUTH_REJECTEDCRED),
        (opaque_auth(GSS, bytes(20)), auth_stat.AUTH_REJECTEDCRED),
        (opaque_auth(7, b""), auth_stat.AUTH_REJECTEDCRED),  # AUTH_TLS
        (opaque_auth(0xFFFFFFFF, b""), auth_stat.AUTH_REJECTEDCRED),
        (opaque_auth(SYS, b""), auth_stat.AUTH_BADCRED),
        (opaque_auth(SYS, bytes(16)), auth_stat.AUTH_BADCRED),
        (opaque_auth(SYS, bytes(24)), auth_stat.AUTH_BADCRED),
        (opaque_auth(SYS, pack(">II256s3I", 0, 256, bytes(256), 0, 0, 0)), auth_stat.AUTH_BADCRED),
        (opaque_auth(SYS, pack(">5I68x", 0, 0, 0, 0, 17)), auth_stat.AUTH_BADCRED),
    ],
)
def test_a_bad_credential_is_denied(credential: opaque_auth, stat: auth_stat) -> None:
    head = RpcClient().header(100003, 3, 1, xid=XID, credential=credential)
    assert denied(head).why == auth_error(stat)


def test_the_largest_good_credential_is_good() -> None:
    client = RpcClient(uid=1, gids=tuple(range(16)), machine=b"m" * 255)
    assert call_header(client.header(1, 1, 1), {})[4].gids == tuple(range(16))


@pytest.mark.parametrize(
    "verifier", [opaque_auth(SYS, b""), opaque_auth(0, b"abcd"), opaque_auth(GSS, bytes(8))]
)
def test_a_verifier_that_verifies_nothing_is_denied(verifier: opaque_auth) -> None:
    head = RpcClient().header(100003, 3, 1, xid=XID, verifier=verifier)
    assert denied(head).why == auth_error(auth_stat.AUTH_BADVERF)


def test_a_credential_longer_than_rfc_allows_is_denied() -> None:
    head = pack(">8I", XID, 0, 2, 100003, 3, 1, 0, 404) + bytes(404 + 8)
    assert denied(head).why == auth_error(auth_stat.AUTH_BADCRED)
    head = pack(">8I", XID, 0, 2, 100003, 3, 1, 1, 0xFFFFFFFF) + bytes(404 + 8)
    assert denied(head).why == auth_error(auth_stat.AUTH_BADCRED)


def test_a_credential_that_is_cut_off_is_denied() -> None:
    head = RpcClient(machine=b"a-longer-name-than-that").header(100003, 3, 1, xid=XID)
    for end in range(40, len(head)):
        assert denied(head[:end]).why == auth_error(auth_stat.AUTH_BADCRED)


@pytest.mark.parametrize("length", range(0, 40))
def test_what_is_too_short_is_no_call(length: int) -> None:
    with pytest.raises(NotACall):
        call_header(RpcClient().header(100003, 3, 1)[:length], {})


@pytest.mark.parametrize("direction", [1, 2, 0xFFFFFFFF])
def test_what_is_not_a_call_is_not_answered(direction: int) -> None:
    with pytest.raises(NotACall):
        call_header(pack(">10I", XID, direction, 2, 100003, 3, 1, 0, 0, 0, 0), {})


@given(st.binary(max_size=120), st.integers(0, 120))
def test_no_bytes_escape_the_two_errors(garbage: bytes, at: int) -> None:
    good = RpcClient().header(100003, 3, 1)
    for head in (garbage, good[:8] + garbage, good[:at] + garbage + good[at + len(garbage) :]):
        try:
            call_header(head, {})
        except (NotACall, Denied):
            continue


def test_no_auth_is_flavor_none_without_a_body() -> None:
    assert opaque_auth(0, b"") == NO_AUTH
