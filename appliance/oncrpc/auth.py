"""Who calls: the credentials of RFC 5531 sections 8, 9 and appendix A, as plain values.

AUTH_NONE and AUTH_SYS are understood. Nothing here proves anything: AUTH_SYS is what the client
says of itself. Which flavors are good enough is for the service to say (an export, for nfsd): it
raises AuthError(TOOWEAK), and the call is denied.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, NamedTuple

from appliance import limits
from appliance.oncrpc.xdr import Max, Opaque, XdrError, decode, struct, uint32


class auth_flavor(IntEnum):
    """Section 8.2."""

    AUTH_NONE = 0
    AUTH_SYS = 1
    AUTH_SHORT = 2
    AUTH_DH = 3
    RPCSEC_GSS = 6


class auth_stat(IntEnum):
    """Section 9: why authentication failed."""

    AUTH_OK = 0
    AUTH_BADCRED = 1
    AUTH_REJECTEDCRED = 2
    AUTH_BADVERF = 3
    AUTH_REJECTEDVERF = 4
    AUTH_TOOWEAK = 5
    AUTH_INVALIDRESP = 6
    AUTH_FAILED = 7


class AuthError(Exception):
    """The call is denied with this auth_stat. Services may raise it, too."""

    def __init__(self, stat: auth_stat) -> None:
        super().__init__(stat)
        self.stat = stat


@struct
class authsys_parms:
    """Appendix A."""

    stamp: uint32
    machinename: Annotated[bytes, Opaque(max=limits.MACHINE_NAME_BYTES_MAX)]
    uid: uint32
    gid: uint32
    gids: Annotated[list[uint32], Max(limits.CREDENTIAL_GIDS_MAX)]


class Credential(NamedTuple):
    """Who the caller says it is. Two that are equal are the same caller to every service."""

    flavor: int
    uid: int
    gid: int
    gids: tuple[int, ...]


NOBODY_ID: Final = 65534

NOBODY: Final = Credential(auth_flavor.AUTH_NONE, NOBODY_ID, NOBODY_ID, ())
"""The caller that says nothing of itself."""


def credential(flavor: int, body: bytes) -> Credential:
    """The meaning of the credential of a call."""
    if flavor == auth_flavor.AUTH_NONE:
        return NOBODY
    if flavor != auth_flavor.AUTH_SYS:
        raise AuthError(auth_stat.AUTH_REJECTEDCRED)
    try:
        said = decode(authsys_parms, body)
    except XdrError:
        raise AuthError(auth_stat.AUTH_BADCRED) from None
    return Credential(flavor, said.uid, said.gid, tuple(said.gids))
