"""RPC messages (RFC 5531 section 9): what a call says before its arguments, and every reply.

The types are declared in the RFC's order and with its names; refusals are made of them. What every
call needs, its header and the header of a successful reply, is done by hand with the same
result: a known caller's header is read with one struct call and one look into a dictionary, because
a client sends the same credential, byte for byte, with nearly every call.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from enum import IntEnum
from struct import Struct
from typing import Annotated, Final

from appliance import limits
from appliance.oncrpc.auth import AuthError, Credential, auth_flavor, auth_stat, credential
from appliance.oncrpc.record import LAST_FRAGMENT, mark
from appliance.oncrpc.xdr import Buffer, Opaque, arm, encode, struct, uint32

RPC_VERSION: Final = 2


class msg_type(IntEnum):
    CALL = 0
    REPLY = 1


class reply_stat(IntEnum):
    MSG_ACCEPTED = 0
    MSG_DENIED = 1


class accept_stat(IntEnum):
    SUCCESS = 0
    PROG_UNAVAIL = 1
    PROG_MISMATCH = 2
    PROC_UNAVAIL = 3
    GARBAGE_ARGS = 4
    SYSTEM_ERR = 5


class reject_stat(IntEnum):
    RPC_MISMATCH = 0
    AUTH_ERROR = 1


@struct
class opaque_auth:  # section 8.2
    flavor: uint32
    body: Annotated[bytes, Opaque(max=limits.AUTH_BODY_BYTES_MAX)]


NO_AUTH: Final = opaque_auth(auth_flavor.AUTH_NONE, b"")


@arm(msg_type.CALL)
class call_body:
    rpcvers: uint32
    prog: uint32
    vers: uint32
    proc: uint32
    cred: opaque_auth
    verf: opaque_auth
    # The arguments follow.


@arm(accept_stat.SUCCESS)
class success:
    pass  # The results follow.


@arm(accept_stat.PROG_UNAVAIL)
class prog_unavail:
    pass


@arm(accept_stat.PROG_MISMATCH)
class prog_mismatch:
    low: uint32
    high: uint32


@arm(accept_stat.PROC_UNAVAIL)
class proc_unavail:
    pass


@arm(accept_stat.GARBAGE_ARGS)
class garbage_args:
    pass


@arm(accept_stat.SYSTEM_ERR)
class system_err:
    pass


reply_data = success | prog_unavail | prog_mismatch | proc_unavail | garbage_args | system_err


@arm(reply_stat.MSG_ACCEPTED)
class accepted_reply:
    verf: opaque_auth
    reply_data: reply_data


@arm(reject_stat.RPC_MISMATCH)
class rpc_mismatch:
    low: uint32
    high: uint32


@arm(reject_stat.AUTH_ERROR)
class auth_error:
    stat: auth_stat


@arm(reply_stat.MSG_DENIED)
class rejected_reply:
    body: rpc_mismatch | auth_error


@arm(msg_type.REPLY)
class reply_body:
    body: accepted_reply | rejected_reply


@struct
class rpc_msg:
    xid: uint32
    body: call_body | reply_body


Refusal = reply_data | rpc_mismatch | auth_error
"""Every reply but success."""


# --- calls ---------------------------------------------------------------------------------------

CallHeader = tuple[int, int, int, int, Credential, int]
"""xid, program, version, procedure, who calls, and where the arguments begin. A plain tuple: one
is made for every call."""

_call_words: Final = Struct(">8I").unpack_from
_two_words: Final = Struct(">2I").unpack_from
_CREDENTIAL_AT: Final = 24  # its flavor and length are the last two of the eight words
_CALL_BYTES_MIN: Final = 40
_NO_VERIFIER: Final = bytes(8)  # AUTH_NONE, and no body


class NotACall(Exception):
    """Nothing that could be answered."""


class Denied(Exception):
    """A call that is refused for what its header says; the reply tells why."""

    def __init__(self, xid: int, why: rpc_mismatch | auth_error) -> None:
        super().__init__(xid, why)
        self.xid = xid
        self.why = why


def call_header(head: bytes, known: MutableMapping[bytes, Credential]) -> CallHeader:
    """What a call says before its arguments. `known` remembers the callers of this connection:
    the bytes of credential and verifier, and what they mean."""
    if len(head) < _CALL_BYTES_MIN:
        raise NotACall("too short")
    xid, direction, rpcvers, program, version, procedure, _, length = _call_words(head)
    if direction != msg_type.CALL:
        raise NotACall("not a call")
    if rpcvers != RPC_VERSION:
        raise Denied(xid, rpc_mismatch(RPC_VERSION, RPC_VERSION))
    at = _CREDENTIAL_AT + 16 + (length + 3 & ~3)
    caller = known.get(head[_CREDENTIAL_AT:at])
    if caller is None:
        try:
            caller = _authenticate(head)
        except AuthError as error:
            raise Denied(xid, auth_error(error.stat)) from None
        if len(known) >= limits.CREDENTIALS_KNOWN_MAX:
            known.clear()
        known[head[_CREDENTIAL_AT:at]] = caller
    return xid, program, version, procedure, caller, at


def _authenticate(head: bytes) -> Credential:
    """Who calls, from the two opaque_auth of a header that has been read up to them."""
    flavor, length = _two_words(head, _CREDENTIAL_AT)
    at = _CREDENTIAL_AT + 8
    end = at + (length + 3 & ~3)
    if length > limits.AUTH_BODY_BYTES_MAX or end + len(_NO_VERIFIER) > len(head):
        raise AuthError(auth_stat.AUTH_BADCRED)
    caller = credential(flavor, head[at : at + length])
    # Neither AUTH_NONE nor AUTH_SYS has anything to verify.
    if head[end : end + len(_NO_VERIFIER)] != _NO_VERIFIER:
        raise AuthError(auth_stat.AUTH_BADVERF)
    return caller


# --- replies -------------------------------------------------------------------------------------

_accepted: Final = Struct(">6I").pack
_marked_and_accepted: Final = Struct(">7I").pack
_ACCEPTED_BYTES: Final = 24


def success_reply(xid: int, results: Sequence[Buffer], *, marked: bool) -> list[Buffer]:
    """The reply with these results: one piece, or where there is much data, the pieces of the
    data uncopied after it. `marked`: for a stream, with the record mark."""
    length = _ACCEPTED_BYTES + sum(map(len, results))
    # The words: REPLY, MSG_ACCEPTED, the flavor and length of the verifier, SUCCESS.
    if marked:
        header = _marked_and_accepted(LAST_FRAGMENT | length, xid, 1, 0, 0, 0, 0)
    else:
        header = _accepted(xid, 1, 0, 0, 0, 0)
    if len(results) == 1:
        return [header + results[0]]
    if length <= limits.REPLY_JOINED_BYTES_MAX:
        return [b"".join((header, *results))]
    return [header + results[0], *results[1:]]


def refusal(xid: int, why: Refusal, *, marked: bool) -> list[Buffer]:
    """Any other reply."""
    body: accepted_reply | rejected_reply
    if isinstance(why, rpc_mismatch | auth_error):
        body = rejected_reply(why)
    else:
        body = accepted_reply(NO_AUTH, why)
    (message,) = encode(rpc_msg(xid, reply_body(body)))
    return [mark(len(message)) + message] if marked else [message]
