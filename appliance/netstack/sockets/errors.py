"""Errors as the kernel's sockets have them."""

from __future__ import annotations

import errno
import os
from typing import Final

from appliance.netstack.tcp import reasons

_NUMBERS: Final = {
    reasons.REFUSED: errno.ECONNREFUSED,
    reasons.RESET: errno.ECONNRESET,
    reasons.NO_ANSWER: errno.ETIMEDOUT,
    reasons.TIMED_OUT: errno.ETIMEDOUT,
    reasons.USER_TIMEOUT: errno.ETIMEDOUT,
    reasons.KEEPALIVE: errno.ETIMEDOUT,
    reasons.NO_ROUTE: errno.ENETUNREACH,
    reasons.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    reasons.PORT_TAKEN: errno.EADDRNOTAVAIL,
    reasons.NO_FREE_PORT: errno.EADDRNOTAVAIL,
    reasons.NO_ROOM: errno.ENOBUFS,
    "port unreachable": errno.ECONNREFUSED,
    "protocol unreachable": errno.ENOPROTOOPT,
    "too many hops": errno.EHOSTUNREACH,
}
"""The last ones are ICMP's words."""


def number_of(reason: str) -> int:
    """The errno that says why a connection is over."""
    return _NUMBERS.get(reason, errno.ECONNABORTED)


def error(number: int) -> OSError:
    """As Python raises it: ConnectionRefusedError, TimeoutError, ..."""
    return OSError(number, os.strerror(number))
